"""Orchestrators of the simulation's corpus that no other test has."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Generator
from datetime import timedelta
from typing import Any

import ray_durable as durable

broken: set[str] = set()
"""What fails while it is in here."""


@durable.activity
def step(name: str) -> str:
    if name in broken:
        raise ValueError(f"{name} is broken")
    return name.upper()


@durable.activity
def square(value: int) -> int:
    return value * value


@durable.activity(max_slice=1)
def square_alone(value: int) -> int:
    """Each call is a slice, so that they queue."""
    return value * value


@durable.activity
def total(values: list[int]) -> int:
    return sum(values)


@durable.activity
def flaky(value: int) -> int:
    """Fails in its first two attempts."""
    if durable.current_activity().attempt < 3:
        raise OSError("busy")
    return value


@durable.activity
def picky(value: int) -> int:
    if value % 3 == 0:
        raise ValueError(f"{value} is no good")
    return value


@durable.activity(local=True)
def near(value: int) -> int:
    return value + 10


_THREE = durable.RetryPolicy(max_attempts=3, first_retry_interval=timedelta(seconds=2))


@durable.orchestrator
async def two_stages(ctx: durable.OrchestrationContext, count: int) -> int:
    squares = await ctx.map(square, list(range(count)))
    return await ctx.call_activity(total, squares)


@durable.orchestrator
async def queues(ctx: durable.OrchestrationContext, count: int) -> int:
    return sum(await asyncio.gather(*(ctx.call_activity(square_alone, value) for value in range(count))))


@durable.orchestrator
def generator_chain(ctx: durable.OrchestrationContext, name: str) -> Generator[Any, Any, str]:
    first = yield ctx.call_activity(step, name)
    second = yield ctx.call_activity(step, f"{name}{name}")
    yield ctx.create_timer(timedelta(seconds=3))
    return f"{first}{second}"


@durable.orchestrator
def generator_fan(ctx: durable.OrchestrationContext, count: int) -> Generator[Any, Any, list[int]]:
    squares = yield [ctx.call_activity(square, value) for value in range(count)]
    return list(squares)


@durable.orchestrator
def generator_catches(ctx: durable.OrchestrationContext) -> Generator[Any, Any, str]:
    try:
        yield ctx.call_activity(picky, 3)
    except durable.ActivityError as error:
        return str(error)
    return "no error"


@durable.orchestrator
async def races(ctx: durable.OrchestrationContext) -> str:
    """An activity against a timer of an hour: the activity always wins, however long it takes to tell."""
    work = ctx.call_activity(step, "work")
    timer = ctx.create_timer(timedelta(hours=100))
    first = await ctx.task_any([work, timer])
    timer.cancel()
    return "work" if first is work else "timer"


@durable.orchestrator
async def timers_in_order(ctx: durable.OrchestrationContext) -> list[int]:
    order: list[int] = []

    async def wait(seconds: int) -> None:
        await ctx.create_timer(timedelta(seconds=seconds))
        order.append(seconds)

    await asyncio.gather(*(wait(seconds) for seconds in (9, 3, 6)))
    return order


@durable.orchestrator
async def side_effects(ctx: durable.OrchestrationContext) -> list[int]:
    first = ctx.side_effect(lambda: 1, int)
    value = await ctx.call_activity(square, first + 1)
    second = ctx.side_effect(lambda: 2, int)
    return [first, value, second, await ctx.call_activity(square, second + 1)]


@durable.orchestrator
async def patched(ctx: durable.OrchestrationContext) -> list[int]:
    values = [await ctx.call_activity(square, 2)]
    if ctx.patched("more"):
        values.append(await ctx.call_activity(square, 3))
    return values


@durable.orchestrator
async def chance(ctx: durable.OrchestrationContext) -> bool:
    """What the code draws decides what it calls; nothing of it shows."""
    calls = [ctx.call_activity(step, str(ctx.new_uuid())) for _ in range(1 + ctx.random.randrange(3))]
    names = await asyncio.gather(*calls)
    await ctx.create_timer(timedelta(seconds=ctx.random.random()))
    return len(set(names)) == len(names)


@durable.orchestrator
async def statuses(ctx: durable.OrchestrationContext, count: int) -> str:
    for number in range(count):
        ctx.set_custom_status({"at": number})
        await ctx.call_activity(square, number)
    return "done"


@durable.orchestrator
async def retries_all(ctx: durable.OrchestrationContext) -> list[Any]:
    single = ctx.call_activity_with_retry(flaky, _THREE, 7)
    mapped = ctx.map(flaky, [1, 2, 3], retry=_THREE)
    return [await single, await mapped]


@durable.orchestrator
async def gives_up(ctx: durable.OrchestrationContext) -> int:
    return await ctx.call_activity_with_retry(picky, _THREE, 6)


@durable.orchestrator
async def unordered(ctx: durable.OrchestrationContext, count: int) -> int:
    found = 0
    async for _, value in ctx.map_unordered(square, list(range(count))):
        found += value
    return found


@durable.orchestrator(name="simulation.collects")
async def collects(ctx: durable.OrchestrationContext, count: int) -> int:
    """As many events as were asked for, with a call after each."""
    found = 0
    for _ in range(count):
        found += await ctx.call_activity(square, await ctx.wait_for_external_event("Number", int))
    return found


@durable.orchestrator
async def two_doors(ctx: durable.OrchestrationContext) -> list[str]:
    left = ctx.wait_for_external_event("Left", str)
    right = ctx.wait_for_external_event("Right", str)
    return list(await asyncio.gather(left, right))


@durable.orchestrator
async def accumulates(ctx: durable.OrchestrationContext, so_far: int, left: int) -> int:
    """Continues as new after each event."""
    so_far += await ctx.wait_for_external_event("Number", int)
    if left > 1:
        ctx.continue_as_new(so_far, left - 1)
        return 0
    return so_far


@durable.orchestrator
async def accumulates_slowly(ctx: durable.OrchestrationContext, so_far: int, left: int) -> int:
    """The same, while later events wait."""
    weight = await ctx.call_activity(square, 1)
    so_far += weight * await ctx.wait_for_external_event("Number", int)
    if left > 1:
        ctx.continue_as_new(so_far, left - 1)
        return 0
    return so_far


@durable.orchestrator
async def loops(ctx: durable.OrchestrationContext, left: int) -> str:
    await ctx.call_activity(step, f"round{left}")
    await ctx.create_timer(timedelta(seconds=1))
    if left:
        ctx.continue_as_new(left - 1)
    return "done"


@durable.orchestrator
async def leaf(ctx: durable.OrchestrationContext, name: str) -> str:
    return await ctx.call_activity(step, name)


@durable.orchestrator
async def unlucky_leaf(ctx: durable.OrchestrationContext, value: int) -> int:
    return await ctx.call_activity(picky, value)


@durable.orchestrator
async def tree(ctx: durable.OrchestrationContext, depth: int) -> int:
    if not depth:
        return await ctx.call_activity(square, 2)
    return sum(await asyncio.gather(*(ctx.call_sub_orchestrator(tree, depth - 1) for _ in range(2))))


@durable.orchestrator
async def children_with_trouble(ctx: durable.OrchestrationContext) -> list[str]:
    calls = [ctx.call_sub_orchestrator(unlucky_leaf, value) for value in (2, 3, 4)]
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    return [str(outcome) for outcome in outcomes]


@durable.orchestrator
async def child_retried(ctx: durable.OrchestrationContext) -> str:
    try:
        await ctx.call_sub_orchestrator_with_retry(unlucky_leaf, _THREE, 9)
    except durable.SubOrchestrationError as error:
        return str(error)
    return "no error"


@durable.orchestrator
async def waits_for_ever(ctx: durable.OrchestrationContext) -> str:
    return await ctx.wait_for_external_event("Never", str)


@durable.orchestrator
async def cancels_child(ctx: durable.OrchestrationContext) -> str:
    child = ctx.call_sub_orchestrator(waits_for_ever)
    await ctx.call_activity(step, "a")
    child.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await child
    return await ctx.call_activity(step, "b")


@durable.orchestrator
async def waits_with_child(ctx: durable.OrchestrationContext) -> str:
    return await ctx.call_sub_orchestrator(waits_for_ever)


@durable.orchestrator
async def locals_and_others(ctx: durable.OrchestrationContext) -> list[int]:
    values = [await ctx.call_activity(near, 1), await ctx.call_activity(square, 3)]
    return values + list(await asyncio.gather(ctx.call_activity(near, 2), ctx.call_activity(square, 4)))


@durable.orchestrator(name="simulation.cleans_up")
async def cleans_up(ctx: durable.OrchestrationContext) -> list[str]:
    """A call is given up after a while, and what it leaves is cleaned up."""
    log: list[str] = []

    async def work() -> None:
        try:
            await ctx.wait_for_external_event("Never")
        finally:
            log.append(await ctx.call_activity(step, "clean"))

    try:
        await asyncio.wait_for(work(), 5)
    except TimeoutError:
        log.append("late")
    return log


@durable.orchestrator
async def group_fails(ctx: durable.OrchestrationContext) -> str:
    told = "no error"
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(_await(ctx.call_activity(picky, 3)))
            group.create_task(_await(ctx.wait_for_external_event("Never")))
    except* durable.ActivityError as errors:
        told = str(errors.exceptions[0])
    return told


async def _await(future: asyncio.Future[Any]) -> Any:
    return await future


@durable.orchestrator
async def queue_of_work(ctx: durable.OrchestrationContext, count: int) -> list[int]:
    queue: asyncio.Queue[int | None] = asyncio.Queue()
    found: list[int] = []

    async def consume() -> None:
        while (value := await queue.get()) is not None:
            found.append(await ctx.call_activity(square, value))

    async with asyncio.TaskGroup() as group:
        for _ in range(2):
            group.create_task(consume())
        for value in range(count):
            await queue.put(value)
        for _ in range(2):
            await queue.put(None)
    return sorted(found)


@durable.orchestrator
async def mends(ctx: durable.OrchestrationContext) -> list[str]:
    """Three calls and a timer; the second one may be broken."""
    first = await ctx.call_activity(step, "first")
    second = await ctx.call_activity(step, "second")
    await ctx.create_timer(timedelta(seconds=2))
    return [first, second, await ctx.call_activity(step, "third")]


@durable.orchestrator
async def mends_with_children(ctx: durable.OrchestrationContext) -> list[str]:
    return list(await asyncio.gather(*(ctx.call_sub_orchestrator(leaf, name) for name in ("first", "second"))))


@durable.orchestrator
async def sends_to(ctx: durable.OrchestrationContext, receiver: str, count: int) -> str:
    for number in range(count):
        ctx.send_event(receiver, "Number", number + 1)
        await ctx.call_activity(square, number)
    return "sent"


@durable.orchestrator
async def asks_child_by_event(ctx: durable.OrchestrationContext) -> int:
    child = ctx.call_sub_orchestrator(collects, 2, instance_id="collector")
    await ctx.create_timer(timedelta(seconds=1))
    ctx.send_event("collector", "Number", 3)
    ctx.send_event("collector", "Number", 4)
    return await child
