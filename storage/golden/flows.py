"""The orchestrators of the recorded roots. Histories are bound to code: this is never changed, only added to."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import ray_durable as durable

broken: set[str] = set()
"""The activities that fail while they are in here."""


@durable.activity(name="golden.work")
def work(name: str) -> str:
    if name in broken:
        raise ValueError(f"{name} is broken")
    return name.upper()


@durable.activity(name="golden.odd_fails_first")
def odd_fails_first(value: int) -> int:
    """Odd values fail in their first attempt."""
    if value % 2 and durable.current_activity().attempt == 1:
        raise ValueError(f"{value} is odd")
    return value


@durable.activity(name="golden.repeat")
def repeat(text: str, count: int) -> str:
    return text * count


@durable.activity(name="golden.count_letters", local=True)
def count_letters(text: str) -> int:
    return len(text)


@durable.orchestrator(name="golden.chain")
async def chain(ctx: durable.OrchestrationContext, names: list[str]) -> list[str]:
    """One after the other."""
    return [await ctx.call_activity(work, name) for name in names]


@durable.orchestrator(name="golden.side_by_side")
async def side_by_side(ctx: durable.OrchestrationContext, names: list[str]) -> list[str]:
    return await asyncio.gather(*[ctx.call_activity(work, name) for name in names])


@durable.orchestrator(name="golden.everything")
async def everything(ctx: durable.OrchestrationContext) -> list[Any]:
    """Statuses, markers, retries, a map, a local activity, large values, timers kept and taken back, an event."""
    ctx.set_custom_status({"step": 1})
    is_new = ctx.patched("everything-1")
    drawn = ctx.side_effect(lambda: 7, int)
    policy = durable.RetryPolicy(max_attempts=2, first_retry_interval=timedelta(seconds=5))
    items = await ctx.map(odd_fails_first, [4, 5, 6, 7], retry=policy)
    once_more = await ctx.call_activity_with_retry(odd_fails_first, policy, 9)
    text = await ctx.call_activity(repeat, "abcdefgh", 1_000)
    length = await ctx.call_activity(count_letters, text)
    lengths = await ctx.map(repeat_and_count, [text, text[1:]])
    event = await ctx.wait_for_external_event("Go", str, timeout=timedelta(hours=1))
    await ctx.create_timer(timedelta(minutes=5))
    return [is_new, drawn, items, once_more, length, lengths, event]


@durable.activity(name="golden.repeat_and_count")
def repeat_and_count(text: str) -> int:
    return len(text * 2)


@durable.orchestrator(name="golden.takes_back")
async def takes_back(ctx: durable.OrchestrationContext) -> str:
    """Gives up waiting for an activity, a map and another instance, none of which end before a second has passed."""
    waiting = [
        asyncio.ensure_future(ctx.call_activity(work, "slow")),
        asyncio.ensure_future(ctx.map(work, ["slow", "slower"])),
        asyncio.ensure_future(ctx.call_sub_orchestrator(waits, "Never")),
    ]
    await asyncio.wait(waiting, timeout=1)
    for one in waiting:
        one.cancel()
    return await ctx.wait_for_external_event("Go", str)


@durable.orchestrator(name="golden.waits")
async def waits(ctx: durable.OrchestrationContext, name: str) -> Any:
    return await ctx.wait_for_external_event(name)


@durable.orchestrator(name="golden.sleeps")
async def sleeps(ctx: durable.OrchestrationContext, seconds: int) -> str:
    await ctx.create_timer(timedelta(seconds=seconds))
    return await ctx.call_activity(work, "slept")


@durable.orchestrator(name="golden.calls")
async def calls(ctx: durable.OrchestrationContext, child_id: str | None, name: str) -> str:
    result: str = await ctx.call_sub_orchestrator(waits, name, instance_id=child_id)
    return f"<{result}>"


@durable.orchestrator(name="golden.calls_again")
async def calls_again(ctx: durable.OrchestrationContext, names: list[str]) -> list[str]:
    """Its child fails while something is broken, and is called again a little later."""
    policy = durable.RetryPolicy(max_attempts=3, first_retry_interval=timedelta(seconds=10))
    return await ctx.call_sub_orchestrator_with_retry(chain, policy, names)


@durable.orchestrator(name="golden.tells")
async def tells(ctx: durable.OrchestrationContext, receiver: str, count: int) -> str:
    for number in range(count):
        ctx.send_event(receiver, "Item", number)
        await asyncio.sleep(90)
    return "told"


@durable.orchestrator(name="golden.collects")
async def collects(ctx: durable.OrchestrationContext, wanted: int, got: list[Any]) -> list[Any]:
    """One event a round; the others are handed on."""
    got.append(await ctx.wait_for_external_event("Item"))
    if len(got) == wanted:
        return got
    ctx.continue_as_new(wanted, got)
    return []


@durable.orchestrator(name="golden.yields")
def yields(ctx: durable.OrchestrationContext, names: list[str]) -> Any:
    """A generator."""
    results = []
    for name in names:
        results.append((yield ctx.call_activity(work, name)))
    return results


@durable.activity(name="golden.add_one")
def add_one(value: int) -> int:
    return value + 1


@durable.orchestrator(name="golden.columns")
async def columns(ctx: durable.OrchestrationContext, count: int) -> int:
    """Items and results that are stored in columns."""
    return sum(await ctx.map(add_one, list(range(count))))


@durable.orchestrator(name="golden.mapped")
async def mapped(ctx: durable.OrchestrationContext, names: list[str]) -> list[str]:
    return await ctx.map(work, names)


class Point:
    """A value that only pickle can hold."""

    def __init__(self, x: int, y: int) -> None:
        self.x = x
        self.y = y

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Point) and (self.x, self.y) == (other.x, other.y)

    def __hash__(self) -> int:
        return hash((self.x, self.y))


@durable.activity(name="golden.move")
def move(point: Any, by: int) -> Any:
    return Point(point.x + by, point.y + by)


@durable.orchestrator(name="golden.pickles")
async def pickles(ctx: durable.OrchestrationContext) -> int:
    point = await ctx.call_activity(move, Point(1, 2), 3)
    return int(point.x * point.y)
