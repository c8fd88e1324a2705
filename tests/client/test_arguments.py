"""Arguments of control calls and events that cannot work: refused where they are given, the instance unharmed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest

import ray_durable as durable
from ray_durable.errors import ConfigurationError, InstanceNotFoundError, InvalidIdError
from ray_durable.testing import Environment
from tests.support.ids import named

LONG = "x" * 8_001


@durable.orchestrator
async def awaits_go(ctx: durable.OrchestrationContext) -> Any:
    return await ctx.wait_for_external_event("Go")


@pytest.fixture
def handle() -> Iterator[durable.Handle[Any]]:
    with Environment() as env:
        yield env.start(awaits_go)


@pytest.mark.parametrize(
    ("act", "error", "words"),
    [
        (lambda one: one.terminate(object()), ConfigurationError, "give text"),
        (lambda one: one.suspend(3), ConfigurationError, "The reason is 3: give text"),
        (lambda one: one.resume(LONG), ConfigurationError, "8,001 characters: give at most 8,000"),
        (lambda one: one.rewind(None), ConfigurationError, "The reason is None"),
        (lambda one: one.restart(reason=b"why"), ConfigurationError, "The reason is b'why'"),
        (lambda one: one.raise_event("Go", 1, event_id=["a"]), InvalidIdError, r"event id \['a'\] is not allowed"),
        (lambda one: one.raise_event("Go", 1, event_id=""), InvalidIdError, "1 to 256 printable characters"),
        (lambda one: one.raise_event("Go", 1, event_id="e" * 257), InvalidIdError, "event id 'eee"),
        (lambda one: one.raise_event("", 1), InvalidIdError, "event name '' is not allowed"),
    ],
    ids=named,
)
def test_what_the_log_could_not_hold_does_not_reach_the_instance(
    handle: durable.Handle[Any], act: Callable[[durable.Handle[Any]], None], error: type[Exception], words: str
) -> None:
    """Nothing is recorded, nothing is a problem, and it goes on."""
    with pytest.raises(error, match=words):
        act(handle)
    assert [type(event).__name__ for event in handle.history()] == ["ExecutionStarted", "OwnerClaimed"]
    assert handle.status().problem is None
    handle.raise_event("Go", "on", event_id="e" * 256)
    assert handle.result() == "on"


def test_a_result_is_waited_for_in_seconds_or_as_a_timedelta(handle: durable.Handle[Any]) -> None:
    """What is neither is refused."""
    for timeout in (2, 2.0, timedelta(seconds=2)):
        with pytest.raises(TimeoutError, match=r"Running after 2(\.0)? s"):
            handle.result(timeout)
    with pytest.raises(ConfigurationError, match="timeout is '2': give seconds"):
        handle.result("2")  # type: ignore[arg-type]


def test_an_execution_that_is_not_there_is_told_with_those_that_are(handle: durable.Handle[Any]) -> None:
    """Numbers begin with 1; 0 is none, and not the newest."""
    handle.terminate()
    handle.restart()
    assert [len(handle.history(number)) for number in (1, 2)] == [5, 2]
    for number in (0, 3, -1):
        with pytest.raises(InstanceNotFoundError, match=f"no execution {number} in storage, but those from 1 to 2"):
            handle.history(number)
