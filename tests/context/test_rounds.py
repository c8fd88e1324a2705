"""Continuing as new, changes of the code, side effects, and maps whose results come as they arrive."""

from __future__ import annotations

import contextlib
from itertools import count
from typing import Any

import pytest

import ray_durable as durable
from ray_durable.codec import Codec
from ray_durable.engine import ContinueAsNew, CustomStatusSet, Event, MapCanceled, MapCompleted, MarkerRecorded
from ray_durable.failure import Failure

from .kit import T0_US, Running


@durable.orchestrator
async def next_round(ctx: durable.OrchestrationContext, number: int, name: str = "a") -> int:
    mistake: dict[str, tuple[Any, ...]] = {"too many": (1, 2, 3), "of a type": (object(),)}
    ctx.continue_as_new(*mistake.get(name, (number + 1,)))
    assert ctx.will_continue_as_new
    return None  # type: ignore[return-value]


def test_the_next_round_gets_its_arguments() -> None:
    """What the round returns is not looked at."""
    (event,) = [event for event in Running(next_round, 3).caused if isinstance(event, ContinueAsNew)]
    assert event.input.bytes == b"[4]"


@pytest.mark.parametrize(("name", "error"), [("too many", "TypeError"), ("of a type", "SerializationError")])
def test_arguments_that_do_not_fit_the_orchestrator_itself_are_refused_at_the_call(name: str, error: str) -> None:
    running = Running(next_round, 3, name)
    assert running.failure.type_name == error
    assert "next_round" in running.failure.message


effects = count(1)


@durable.orchestrator
async def takes_effects(ctx: durable.OrchestrationContext, way: str) -> Any:
    match way:
        case "typed":
            pair = ctx.side_effect(lambda: (next(effects), "x"), tuple[int, str])
            return [type(pair).__name__, *pair]
        case "plain":
            return ctx.side_effect(lambda: {"n": 1.5})
        case "async":
            return ctx.side_effect(lambda: takes_effects.function(ctx, "plain"))
        case "no value":
            return ctx.side_effect(lambda: object())


def test_a_side_effect_has_its_type_the_first_time_and_in_replay() -> None:
    first = Running(takes_effects, "typed")
    assert first.result == ["tuple", 1, "x"]
    assert [type(event) for event in first.caused[:1]] == [MarkerRecorded]
    assert Running(takes_effects, "plain").result == {"n": 1.5}
    again = Running(takes_effects, "typed")
    assert again.result[1] == 2, "another execution has its own"


@pytest.mark.parametrize(("way", "error"), [("async", "TypeError"), ("no value", "SerializationError")])
def test_a_side_effect_that_gives_no_value_is_refused(way: str, error: str) -> None:
    """A coroutine is none, and is not left unawaited."""
    running = Running(takes_effects, way)
    assert running.failure.type_name == error
    assert len(running.caused) == 1


@durable.activity
def item_of_round(item: int) -> int:
    return item


@durable.orchestrator
async def streams(ctx: durable.OrchestrationContext, way: str) -> Any:
    seen: list[Any] = []
    if way == "closed":
        async with contextlib.aclosing(ctx.map_unordered(item_of_round, [10, 11, 12])) as arrivals:
            async for index, result in arrivals:
                seen.append([index, result])
                await arrivals.aclose()
        ctx.set_custom_status(seen)
        await ctx.wait_for_external_event("never")
    try:
        async for index, result in ctx.map_unordered(item_of_round, [] if way == "empty" else [10, 11, 12]):
            seen.append([index, result])
            await ctx.wait_for_external_event("next")
    except durable.ActivityError as error:
        seen.append(error.failure.message)
    return seen


def arrived(start: int, *results: int, failure: str | None = None) -> Event:
    failures = ((len(results), Failure(type_name="ValueError", message=failure)),) if failure else ()
    values = Codec().encode_batch(list(results), int, where="results")
    return MapCompleted(
        map=2, start=start, count=len(results) + len(failures), results=values, failures=failures, time_us=T0_US
    )


def test_results_of_a_map_come_in_the_order_of_arrival() -> None:
    """Each with its index, and also while the loop's body waits for something else."""
    running = Running(streams, "all")
    running.apply(arrived(2, 120))
    running.apply(arrived(0, 100, 110))
    assert running.execution.waiting_for == ["next"]
    for _ in range(3):
        running.raise_event("next", None)
    assert running.result == [[2, 120], [0, 100], [1, 110]]


def test_a_map_that_fails_raises_behind_what_came_before() -> None:
    running = Running(streams, "all")
    running.apply(arrived(1, 110))
    running.apply(arrived(0, failure="broken"))
    running.raise_event("next", None)
    assert running.result == [[1, 110], "broken"]


def test_a_map_of_nothing_ends_at_once() -> None:
    assert Running(streams, "empty").result == []


def test_closing_the_iterator_withdraws_the_rest() -> None:
    running = Running(streams, "closed")
    out = running.apply(arrived(1, 110))
    assert [type(event) for event in out[1:]] == [MapCanceled, CustomStatusSet]
    assert not running.execution.outstanding_maps


@durable.orchestrator
async def changed(ctx: durable.OrchestrationContext) -> list[bool]:
    return [ctx.patched("new rate"), ctx.is_replaying]


def test_a_change_is_in_force_where_the_code_runs_first() -> None:
    running = Running(changed)
    assert running.result == [True, False]
