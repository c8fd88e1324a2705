"""Orchestrators that call each other, go on as new, and wait for people. `runs` and `broken` steer their activities."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import timedelta
from typing import Any

import ray_durable as durable

runs: Counter[str] = Counter()
"""How often each activity was executed, by "name argument"."""

broken: set[str] = set()
"""Calls, by "name argument", that fail while they are in here."""

mended: set[str] = set()
"""Orchestrators whose code fails until they are in here."""


def reset() -> None:
    """Forget everything."""
    runs.clear()
    broken.clear()
    mended.clear()


@durable.activity
def work(name: str) -> str:
    call = f"work {name}"
    runs[call] += 1
    if call in broken:
        raise ValueError(f"{name} is broken")
    return name.upper()


@durable.orchestrator
async def child(ctx: durable.OrchestrationContext, name: str) -> str:
    first = await ctx.call_activity(work, name)
    return first + await ctx.call_activity(work, f"{name}2")


@durable.orchestrator
async def caller(ctx: durable.OrchestrationContext, name: str) -> str:
    return "<" + await ctx.call_sub_orchestrator(child, name) + ">"


@durable.orchestrator
async def clan(ctx: durable.OrchestrationContext, count: int) -> list[str]:
    children = [ctx.call_sub_orchestrator(caller, f"c{number}") for number in range(count)]
    return await asyncio.gather(*children)


@durable.orchestrator
async def named_parent(ctx: durable.OrchestrationContext, child_id: str) -> str:
    return await ctx.call_sub_orchestrator(child, "x", instance_id=child_id)


@durable.orchestrator
async def careful_parent(ctx: durable.OrchestrationContext, name: str) -> str:
    try:
        return await ctx.call_sub_orchestrator(child, name)
    except durable.SubOrchestrationError as error:
        return f"{error.instance_id}: {error}"


@durable.orchestrator
async def patient_parent(ctx: durable.OrchestrationContext, name: str) -> str:
    retry = durable.RetryPolicy(max_attempts=3, first_retry_interval=timedelta(seconds=10))
    return await ctx.call_sub_orchestrator_with_retry(child, retry, name)


@durable.orchestrator
async def awaits_event(ctx: durable.OrchestrationContext, name: str) -> Any:
    return await ctx.wait_for_external_event(name)


@durable.orchestrator
async def parent_of_waiting(ctx: durable.OrchestrationContext, child_id: str) -> Any:
    return await ctx.call_sub_orchestrator(awaits_event, "Go", instance_id=child_id)


@durable.orchestrator
async def grandparent_of_waiting(ctx: durable.OrchestrationContext, child_id: str) -> Any:
    return await ctx.call_sub_orchestrator(parent_of_waiting, child_id, instance_id=f"mid-{child_id}")


@durable.orchestrator
async def impatient_parent(ctx: durable.OrchestrationContext, child_id: str) -> str:
    waiting = ctx.call_sub_orchestrator(awaits_event, "Go", instance_id=child_id)
    try:
        await asyncio.wait_for(waiting, 60)
    except TimeoutError:
        return "gave up"
    return "went"


@durable.orchestrator
async def leaves_children(ctx: durable.OrchestrationContext, child_id: str) -> str:
    ctx.call_sub_orchestrator(awaits_event, "Go", instance_id=child_id)
    return "left"


@durable.orchestrator
async def sends(ctx: durable.OrchestrationContext, receiver: str) -> str:
    for number in range(3):
        ctx.send_event(receiver, "Note", number)
    await asyncio.sleep(10)
    await ctx.call_activity(work, "sent")
    ctx.send_event(receiver, "Note", "last")
    return "sent"


@durable.orchestrator
async def receives(ctx: durable.OrchestrationContext, count: int) -> list[Any]:
    return [await ctx.wait_for_external_event("Note") for _ in range(count)]


@durable.orchestrator
async def endless(ctx: durable.OrchestrationContext, depth: int) -> int:
    return 1 + await ctx.call_sub_orchestrator(endless, depth + 1)


@durable.orchestrator
async def goes_round(ctx: durable.OrchestrationContext, left: int, total: int) -> int:
    """Each round works once and takes one event, if there is one, within a second."""
    await ctx.call_activity(work, f"round{left}")
    if left == 0:
        return total
    ctx.continue_as_new(left - 1, total + 1)
    return -1


@durable.orchestrator
async def gathers_items(ctx: durable.OrchestrationContext, wanted: int, got: list[str]) -> list[str]:
    """One event a round."""
    got.append(await ctx.wait_for_external_event("Item", str))
    if len(got) == wanted:
        return got
    ctx.continue_as_new(wanted, got)
    return []


@durable.orchestrator
async def parent_of_rounds(ctx: durable.OrchestrationContext, left: int) -> int:
    return 100 + await ctx.call_sub_orchestrator(goes_round, left, 0)


@durable.orchestrator
async def sends_and_goes_on(ctx: durable.OrchestrationContext, receiver: str, left: int) -> str:
    ctx.send_event(receiver, "Note", left)
    if left == 0:
        return "done"
    ctx.continue_as_new(receiver, left - 1)
    return ""


@durable.orchestrator
async def three_steps(ctx: durable.OrchestrationContext, names: list[str]) -> list[str]:
    return [await ctx.call_activity(work, name) for name in names]


@durable.orchestrator
async def compensates(ctx: durable.OrchestrationContext, names: list[str]) -> list[str]:
    """Raises an error of its own where a call failed, once it has undone the one before."""
    try:
        return [await ctx.call_activity(work, name) for name in names]
    except durable.ActivityError:
        await ctx.call_activity(work, "undo")
        raise RuntimeError("undone")  # noqa: B904  # As people write it.


@durable.orchestrator
async def conceals(ctx: durable.OrchestrationContext, names: list[str]) -> list[str]:
    """Raises an error of its own that does not say from what it came."""
    try:
        return [await ctx.call_activity(work, name) for name in names]
    except durable.ActivityError:
        raise RuntimeError("it went wrong") from None


@durable.orchestrator
async def counts_failures(ctx: durable.OrchestrationContext, names: list[str]) -> list[str]:
    """Raises an error of its own that never met those of its calls."""
    calls = [ctx.call_activity(work, name) for name in names]
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    if failed := [one for one in outcomes if isinstance(one, BaseException)]:
        raise RuntimeError(f"{len(failed)} went wrong")
    return [str(one) for one in outcomes]


@durable.orchestrator
async def side_by_side(ctx: durable.OrchestrationContext, names: list[str]) -> list[str]:
    return await asyncio.gather(*[ctx.call_activity(work, name) for name in names])


@durable.orchestrator
async def map_of_work(ctx: durable.OrchestrationContext, names: list[str]) -> list[str]:
    return await ctx.map(work, names)


@durable.orchestrator
async def gates(ctx: durable.OrchestrationContext) -> list[Any]:
    """Two events, an activity after each, and a timer at the end."""
    got = []
    for number in range(2):
        got.append(await ctx.wait_for_external_event("Gate"))
        got.append(await ctx.call_activity(work, f"gate{number}"))
    await asyncio.sleep(30)
    return got


@durable.orchestrator
async def calls_and_drops(ctx: durable.OrchestrationContext, child_id: str) -> str:
    """A call that is taken back in the step that made it."""
    ctx.call_sub_orchestrator(awaits_event, "Go", instance_id=child_id).cancel()
    await asyncio.sleep(60)
    return "dropped"


@durable.orchestrator
async def calls_and_goes_on(ctx: durable.OrchestrationContext, child_id: str, is_last: bool) -> str:
    """Its first round calls without waiting; the second one's call has the same number."""
    if is_last:
        return await ctx.call_sub_orchestrator(child, "x")
    ctx.call_sub_orchestrator(awaits_event, "Go", instance_id=child_id)
    ctx.continue_as_new(child_id, True)
    return ""


@durable.orchestrator
async def group(ctx: durable.OrchestrationContext) -> list[Any]:
    """Where one fails, the others are cancelled: a call of a caller, and an activity behind a timer."""

    async def fails() -> str:
        await asyncio.sleep(30)
        return await ctx.call_activity(work, "a")

    async with asyncio.TaskGroup() as tasks:
        leaf = tasks.create_task(_leaf(ctx))
        failing = tasks.create_task(fails())
    return [leaf.result(), failing.result()]


async def _leaf(ctx: durable.OrchestrationContext) -> Any:
    return await ctx.call_sub_orchestrator(parent_of_waiting, "leaf", instance_id="mid")


@durable.orchestrator(check=False)
async def checks(ctx: durable.OrchestrationContext) -> str:
    """Fails before it asks for anything."""
    if "checks" not in mended:
        raise ValueError("not mended yet")
    return await ctx.call_activity(work, "a")


@durable.orchestrator
async def waits_for_named_and_works(ctx: durable.OrchestrationContext, child_id: str) -> list[Any]:
    """Calls an instance by its id, works when an event comes, and waits for it."""
    kid = ctx.call_sub_orchestrator(awaits_event, "Go", instance_id=child_id)
    await ctx.wait_for_external_event("Work")
    done = await ctx.call_activity(work, "side")
    return [done, await kid]
