"""Why an instance waits: each thing that it waits for, by name, with the line of code that asked for it."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterator
from datetime import timedelta

import pytest

import ray_durable as durable
from ray_durable.testing import Environment

OFTEN = durable.RetryPolicy(max_attempts=3, first_retry_interval=timedelta(minutes=1))


@pytest.fixture
def env() -> Iterator[Environment]:
    with Environment() as environment:
        yield environment


def shown(handle: durable.Handle[object], orchestrator: durable.Orchestrator[..., object]) -> list[tuple[str, str]]:
    """What is waited for, by kind and name, and the text of the line that it points at."""
    lines, first = inspect.getsourcelines(orchestrator.function)
    found = []
    for one in handle.explain().waiting:
        file, _, line = one.source.rpartition(":")
        assert file == __file__
        found.append((f"{one.kind} {one.name}".rstrip(), lines[int(line) - first].strip()))
    return found


def test_timers_of_asyncio_lead_to_the_users_line(env: Environment) -> None:
    """Also where only asyncio's own coroutines stand between: whoever created the task is shown."""

    @durable.orchestrator
    async def sleeps_in_many_ways(ctx: durable.OrchestrationContext) -> None:
        bare = asyncio.create_task(asyncio.sleep(60))
        bounded = asyncio.ensure_future(asyncio.wait_for(asyncio.Event().wait(), 120))
        event = ctx.wait_for_external_event("Go", timeout=timedelta(minutes=3))
        nested = asyncio.gather(asyncio.wait_for(asyncio.wait_for(asyncio.sleep(400), 300), 200))
        async with asyncio.timeout(500):
            await asyncio.gather(bare, bounded, event, nested)

    handle = env.start(sleeps_in_many_ways)
    nested = "nested = asyncio.gather(asyncio.wait_for(asyncio.wait_for(asyncio.sleep(400), 300), 200))"
    event = 'event = ctx.wait_for_external_event("Go", timeout=timedelta(minutes=3))'
    assert sorted(shown(handle, sleeps_in_many_ways)) == sorted(
        [
            ("timer", "bare = asyncio.create_task(asyncio.sleep(60))"),
            ("timer", "bounded = asyncio.ensure_future(asyncio.wait_for(asyncio.Event().wait(), 120))"),
            ("timer", event),
            ("external event Go", event),
            *[("timer", nested)] * 3,
            ("timer", "async with asyncio.timeout(500):"),
        ]
    )


def test_a_call_that_is_to_be_tried_again_is_named(env: Environment) -> None:
    """Between two attempts it is no bare timer: which call, which attempt, and when."""

    @durable.activity(retry=OFTEN)
    def fails(number: int) -> int:
        raise OSError(f"{number} is busy")

    @durable.orchestrator
    async def fails_at_once(ctx: durable.OrchestrationContext) -> None:
        raise OSError("busy")

    @durable.orchestrator
    async def tries(ctx: durable.OrchestrationContext) -> None:
        call = ctx.call_activity(fails, 1)
        items = ctx.map(fails, [2, 3])
        child = ctx.call_sub_orchestrator_with_retry(fails_at_once, OFTEN)
        await asyncio.gather(call, items, child)

    handle = env.start(tries)
    waiting = [one for one in handle.explain().waiting if one.due is not None]
    assert all(one.due == env.now + timedelta(minutes=1) and one.attempt == 2 for one in waiting)
    assert ("activity fails", "call = ctx.call_activity(fails, 1)") in shown(handle, tries)
    assert {(one.kind, one.name) for one in waiting} == {
        ("activity", "fails"),
        ("map", "fails"),
        ("sub-orchestration", "fails_at_once"),
    }
    assert "activity fails, attempt 2, not begun: the last one failed, due 2025-01-01 00:01:00 UTC" in str(
        handle.explain()
    )


def test_of_very_many_things_most_are_counted(env: Environment) -> None:
    """The text stays one that a person can read; `waiting` has them all."""

    @durable.activity
    def slow(number: int) -> int:
        return number

    @durable.orchestrator
    async def calls_many(ctx: durable.OrchestrationContext) -> None:
        await asyncio.gather(*(ctx.call_activity(slow, number) for number in range(2_000)))

    env.hold(slow)
    explanation = env.start(calls_many).explain()
    assert len(explanation.waiting) == 2_000
    assert str(explanation).splitlines()[-1] == "    and 1,950 more of activity slow"
    assert len(str(explanation).splitlines()) < 120


def test_code_that_waits_for_itself_is_shown(env: Environment) -> None:
    """A deadlock of its own has no event to come: the lines at which the coroutines wait."""

    @durable.orchestrator
    async def locks_twice(ctx: durable.OrchestrationContext) -> None:
        lock = asyncio.Lock()
        async with lock:
            await lock.acquire()

    @durable.orchestrator
    async def locks_but_sleeps(ctx: durable.OrchestrationContext) -> None:
        sleeping = asyncio.create_task(asyncio.sleep(60))
        await asyncio.Event().wait()
        await sleeping

    handle = env.start(locks_twice)
    assert shown(handle, locks_twice) == [("code", "await lock.acquire()")]
    assert "nothing will wake" in str(handle.explain())
    handle = env.start(locks_but_sleeps)
    assert [kind for kind, _ in shown(handle, locks_but_sleeps)] == ["timer"]
    env.advance(timedelta(minutes=2))
    assert shown(handle, locks_but_sleeps) == [("code", "await asyncio.Event().wait()")]
