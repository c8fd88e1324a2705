"""Timers, external events, groups of tasks, and the custom status."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Generator
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest

import ray_durable as durable
from ray_durable.codec import Trust
from ray_durable.engine import CustomStatusSet, TimerCreated

from .kit import T0_US, Running

Check = Callable[[durable.OrchestrationContext], Any]
NOW = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=T0_US)


@durable.activity
def counted(number: int) -> int:
    return number


checks: dict[str, Check] = {
    "below zero": lambda ctx: ctx.create_timer(timedelta(seconds=-1)),
    "too far": lambda ctx: ctx.create_timer(timedelta(days=40_000)),
    "too late": lambda ctx: ctx.create_timer(datetime.max.replace(tzinfo=UTC)),
    "no time": lambda ctx: ctx.create_timer(5),  # type: ignore[arg-type]
    "not a number": lambda ctx: ctx.create_timer(math.nan),  # type: ignore[arg-type]
    "event below zero": lambda ctx: ctx.wait_for_external_event("x", timeout=timedelta(seconds=-1)),
    "event too far": lambda ctx: ctx.wait_for_external_event("x", timeout=timedelta(days=40_000)),
    "event no time": lambda ctx: ctx.wait_for_external_event("x", timeout=3),  # type: ignore[call-overload]
    "event no name": lambda ctx: ctx.wait_for_external_event(""),
    "nothing to wait for": lambda ctx: ctx.task_any([]),
    "status of an object": lambda ctx: ctx.set_custom_status(object()),
    "status not finite": lambda ctx: ctx.set_custom_status({"progress": math.nan}),
    "status of an array": lambda ctx: ctx.set_custom_status(np.arange(3)),
    "status too large": lambda ctx: ctx.set_custom_status("x" * 20_000),
    "change without a name": lambda ctx: ctx.patched(""),
    "activity without its policy": lambda ctx: ctx.call_activity_with_retry(counted, 1),  # type: ignore[call-overload]
    "child without its policy": lambda ctx: ctx.call_sub_orchestrator_with_retry("checked_calls", "p"),  # type: ignore[call-overload]
    "map with attempts for a policy": lambda ctx: ctx.map(counted, [1], retry=3),  # type: ignore[call-overload]
    "map that tolerates less than nothing": lambda ctx: ctx.map(counted, [1], tolerated_failures=-1),
}


@durable.orchestrator
async def checked_calls(ctx: durable.OrchestrationContext, check: str) -> None:
    checks[check](ctx)


@pytest.mark.parametrize(
    ("check", "error", "said"),
    [
        ("below zero", "ValueError", "a timer of -1 day, 23:59:59 lies in the past"),
        ("too far", "ValueError", "more than a century"),
        ("too late", "ValueError", "more than a century"),
        ("no time", "TypeError", "give a datetime, or a timedelta"),
        ("not a number", "TypeError", "nan"),
        ("event below zero", "ValueError", "a wait for event 'x' of -1 day, 23:59:59 lies in the past"),
        ("event too far", "ValueError", "more than a century"),
        ("event no time", "TypeError", "give a timedelta"),
        ("event no name", "InvalidIdError", "event name"),
        ("nothing to wait for", "ValueError", "at least one"),
        ("status of an object", "SerializationError", "custom status is a object"),
        ("status not finite", "SerializationError", "finite numbers"),
        ("status of an array", "SerializationError", "custom status is a ndarray"),
        ("status too large", "PayloadTooLargeError", "16384"),
        ("change without a name", "ValueError", "give a name"),
        ("activity without its policy", "TypeError", "The retry policy is 1: give a RetryPolicy"),
        ("child without its policy", "TypeError", "The retry policy is 'p': give a RetryPolicy"),
        ("map with attempts for a policy", "TypeError", "The retry policy is 3: give a RetryPolicy"),
        ("map that tolerates less than nothing", "ConfigurationError", "tolerated_failures is -1"),
    ],
)
def test_what_cannot_work_is_refused_at_the_call(check: str, error: str, said: str) -> None:
    """Nothing is recorded by it but the failure."""
    running = Running(checked_calls, check, trust=Trust.PRIVATE_LOCAL_ROOT)
    assert running.failure.type_name == error
    assert said in running.failure.message
    assert len(running.caused) == 1


@durable.orchestrator
async def sets_timers(ctx: durable.OrchestrationContext) -> None:
    ctx.create_timer(timedelta(days=300))
    ctx.create_timer(ctx.current_utc_datetime + timedelta(seconds=5))
    ctx.create_timer((ctx.current_utc_datetime + timedelta(seconds=6)).replace(tzinfo=None))
    await ctx.create_timer(ctx.current_utc_datetime - timedelta(days=3))


def test_timers_take_delays_and_times() -> None:
    """Aware or naive in UTC; a time that is past is no timer at all."""
    due_us = [event.due_us for event in Running(sets_timers).caused if isinstance(event, TimerCreated)]
    assert due_us == [T0_US + seconds * 1_000_000 for seconds in (300 * 86_400, 5, 6)]


@durable.orchestrator
async def asks_twice(ctx: durable.OrchestrationContext) -> list[Any]:
    try:
        first: Any = await ctx.wait_for_external_event("Approval", bool)
    except durable.SerializationError as error:
        first = [str(error), error.where]
    return [first, await ctx.wait_for_external_event("Approval", str)]


@pytest.mark.parametrize("early", [True, False])
def test_an_event_of_another_type_is_kept_for_a_wait_with_the_right_one(early: bool) -> None:
    """The error names event and type and says so; whether the event or the wait was there first."""
    running = Running(waits_first if early else asks_twice)
    running.raise_event("Approval", "yes")
    if early:
        running.complete(2, 1)
    text, where = running.result[0]
    assert "event 'Approval': expected bool" in text
    assert "The event is kept" in text
    assert where == "event 'Approval'"
    assert running.result[1] == "yes"
    assert running.execution.unread_events == []


@durable.activity
def wait_a_moment() -> int:
    return 1


@durable.orchestrator
async def waits_first(ctx: durable.OrchestrationContext) -> list[Any]:
    await ctx.call_activity(wait_a_moment)
    return await asks_twice(ctx)


def test_a_kept_event_goes_before_later_ones_and_to_whoever_waits_already() -> None:
    running = Running(two_waits)
    running.raise_event("x", "text")
    running.raise_event("x", 7)
    assert running.result == ["SerializationError", "text", 7]


@durable.orchestrator
async def two_waits(ctx: durable.OrchestrationContext) -> list[Any]:
    waits: list[asyncio.Future[Any]] = [ctx.wait_for_external_event("x", int), ctx.wait_for_external_event("x", str)]
    error, text = await asyncio.gather(*waits, return_exceptions=True)
    return [type(error).__name__, text, await ctx.wait_for_external_event("x", int)]


def test_a_pickled_event_of_another_class_is_no_less_of_the_wrong_type() -> None:
    """Encodings that bring their own type are looked at, too."""
    trusted = Trust.PRIVATE_LOCAL_ROOT
    running = Running(asks_twice, trust=trusted)
    running.raise_event("Approval", {1, 2})
    running.execution.close()
    assert [event.name for event in running.execution.unread_events] == ["Approval"]


@durable.orchestrator
def yields_tasks(ctx: durable.OrchestrationContext, what: str) -> Generator[Any, Any, Any]:
    first, second = ctx.call_activity(wait_a_moment), ctx.call_activity(wait_a_moment)
    if what == "list":
        return (yield [first, second])
    if what == "all":
        return (yield ctx.task_all([first, second]))
    if what == "any":
        winner = yield ctx.task_any([first, second])
        return [winner is second, (yield winner)]
    try:
        yield 5
    except TypeError as error:
        return str(error)


@pytest.mark.parametrize(
    ("what", "result"), [("list", [1, 2]), ("all", [1, 2]), ("any", [True, 2]), ("wrong", "cannot be awaited")]
)
def test_generators_yield_tasks_lists_and_groups(what: str, result: Any) -> None:
    """What cannot be awaited comes back as a TypeError that says what to yield."""
    running = Running(yields_tasks, what)
    if not running.execution.ended:
        running.complete(3, 2)
    if not running.execution.ended:
        running.complete(2, 1)
    assert result in running.result if isinstance(result, str) else running.result == result


@durable.orchestrator
async def says_how_it_is(ctx: durable.OrchestrationContext) -> Any:
    ctx.set_custom_status({"done": [1, 2], "text": "ä"})
    await ctx.wait_for_external_event("x")


def test_the_custom_status_is_plain_json() -> None:
    (event,) = [event for event in Running(says_how_it_is).caused if isinstance(event, CustomStatusSet)]
    assert event.value.bytes == '{"done":[1,2],"text":"ä"}'.encode()


@durable.orchestrator
async def builds_its_status_up(ctx: durable.OrchestrationContext) -> list[Any]:
    seen = [ctx.custom_status]
    for word in ("one", "two"):
        ctx.set_custom_status([*(ctx.custom_status or []), word])
        seen.append(ctx.custom_status)
    return seen


def test_the_code_may_read_its_status_back() -> None:
    """As the value that everybody sees; nothing before it was set."""
    assert Running(builds_its_status_up).result == [None, ["one"], ["one", "two"]]
