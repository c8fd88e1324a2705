"""What the benchmarks run: activities that do nothing, and orchestrators that call many of them."""

from __future__ import annotations

import asyncio

import ray_durable as durable


@durable.activity
def nothing(number: int) -> int:
    """Give the number back."""
    return number


@durable.activity(local=True)
def nothing_local(number: int) -> int:
    """Give the number back, in the orchestrator's process."""
    return number


@durable.orchestrator
async def chain(ctx: durable.OrchestrationContext, count: int) -> float:
    """Call one activity after the other; the seconds from the first call to the last result."""
    await ctx.call_activity(nothing, 0)  # the workers are warm, as the baseline's are
    began = ctx.current_utc_datetime
    for number in range(count):
        await ctx.call_activity(nothing, number)
    return (ctx.current_utc_datetime - began).total_seconds()


@durable.orchestrator
async def local_chain(ctx: durable.OrchestrationContext, count: int) -> float:
    """The same with an activity in the orchestrator's own process."""
    await ctx.call_activity(nothing_local, 0)
    began = ctx.current_utc_datetime
    for number in range(count):
        await ctx.call_activity(nothing_local, number)
    return (ctx.current_utc_datetime - began).total_seconds()


@durable.orchestrator
async def goes_on(ctx: durable.OrchestrationContext, left: int, done: int) -> int:
    """Begin anew so many times, with nothing in between."""
    if left:
        ctx.continue_as_new(left - 1, done + 1)
    return done


@durable.orchestrator
async def echoes(ctx: durable.OrchestrationContext, number: int) -> int:
    """Give the number back."""
    return number


@durable.orchestrator
async def calls_many(ctx: durable.OrchestrationContext, count: int) -> int:
    """Call so many instances at once; the sum."""
    return sum(await asyncio.gather(*(ctx.call_sub_orchestrator(echoes, number) for number in range(count))))


@durable.orchestrator
async def gathered(ctx: durable.OrchestrationContext, count: int) -> tuple[int, float]:
    """Call so many activities at once, one by one; the sum, and the seconds from the first call to the last result."""
    await ctx.call_activity(nothing, 0)
    began = ctx.current_utc_datetime
    total = sum(await asyncio.gather(*(ctx.call_activity(nothing, number) for number in range(count))))
    return total, (ctx.current_utc_datetime - began).total_seconds()


@durable.orchestrator
async def mapped(ctx: durable.OrchestrationContext, count: int) -> tuple[int, float]:
    """Map an activity over so many items; the same figures."""
    await ctx.call_activity(nothing, 0)
    began = ctx.current_utc_datetime
    total = sum(await ctx.map(nothing, list(range(count))))
    return total, (ctx.current_utc_datetime - began).total_seconds()
