"""Orchestrators that wait for several things: gather, wait, as_completed, wait_for, timeout, shield."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from ray_durable.errors import ActivityError

from ..kit import Context, retries
from .cases import case, fail, twice


@case()
async def gather_nested_with_exceptions(ctx: Context, value: Any) -> Any:
    inner = [
        asyncio.gather(ctx.call("odd", n), ctx.call("echo", n), fail(ctx, n), return_exceptions=True) for n in range(3)
    ]
    outcomes = await asyncio.gather(*inner, ctx.call("fail", 9), return_exceptions=True)
    return await ctx.call("echo", [str(outcome) for outcome in outcomes])


@case()
async def gather_cancelled(ctx: Context, value: Any) -> Any:
    async def work(n: int) -> Any:
        try:
            return await twice(ctx, n)
        except asyncio.CancelledError:
            await ctx.call("clean up", n)
            raise

    working = asyncio.gather(*[work(n) for n in range(5)])
    await ctx.timer(1)
    cancelled = working.cancel()
    try:
        return [cancelled, await working]
    except asyncio.CancelledError:
        return [cancelled, await ctx.call("echo", "cancelled")]


@case()
async def gather_with_a_cancelled_child(ctx: Context, value: Any) -> Any:
    calls = [ctx.call("echo", n) for n in range(4)]
    plain, tolerant = asyncio.gather(*calls), asyncio.gather(*calls, return_exceptions=True)
    await ctx.timer(0.5)
    calls[2].cancel()
    try:
        first: Any = await plain
    except asyncio.CancelledError:
        first = "cancelled"
    return [first, [repr(outcome) for outcome in await tolerant]]


@case()
async def gather_of_the_same(ctx: Context, value: Any) -> Any:
    call, task = ctx.call("echo", 1), asyncio.create_task(twice(ctx, 2))
    return await asyncio.gather(call, task, call, asyncio.gather(task, call), task)


@case()
async def gather_whose_rest_goes_on(ctx: Context, value: Any) -> Any:
    tasks = [asyncio.create_task(twice(ctx, n), name=f"rest-{n}") for n in range(4)]
    try:
        await asyncio.gather(*tasks, fail(ctx))
    except ActivityError as error:
        done = [task.get_name() for task in tasks if task.done()]
        await ctx.call("echo", [error.name, done])
    return await asyncio.gather(*tasks)


@case()
async def wait_in_all_modes(ctx: Context, value: Any) -> Any:
    tasks = {asyncio.ensure_future(ctx.call("odd" if n % 3 else "echo", n)) for n in range(9)}
    seen = []
    for mode in (asyncio.FIRST_COMPLETED, asyncio.FIRST_EXCEPTION, asyncio.ALL_COMPLETED):
        done, tasks = await asyncio.wait(tasks, timeout=3, return_when=mode)
        for task in done:
            seen.append(await ctx.call("seen", str(task.exception() or task.result())))
        if not tasks:
            break
    for task in tasks:
        task.cancel()
    return seen


@case()
async def wait_again_and_again(ctx: Context, value: Any) -> Any:
    pending: set[asyncio.Future[Any]] = {ctx.call("echo", n) for n in range(6)}
    rounds = []
    for wait_s in (0, 0.3, 0.3, 1, 4, None):
        if not pending:
            break
        done, pending = await asyncio.wait(pending, timeout=wait_s)
        rounds.append([future.result() for future in done])
    return rounds


@case()
async def wait_for_all_sorts(ctx: Context, value: Any) -> Any:
    mixture: dict[asyncio.Future[Any], str] = {
        ctx.call("echo", 1): "call",
        asyncio.create_task(twice(ctx, 2)): "task",
        asyncio.gather(ctx.call("echo", 3), ctx.call("echo", 4)): "gather",
        ctx.timer(2): "timer",
        ctx.map("double", [1, 2, 3]): "map",
        asyncio.shield(ctx.call("echo", 5)): "shield",
    }
    pending, order = set(mixture), []
    while pending:
        done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        order += [mixture[future] for future in done]
        await ctx.call("seen", order)
    return order


@case()
async def wait_where_many_are_done(ctx: Context, value: Any) -> Any:
    gate = asyncio.Event()

    async def after(n: int) -> int:
        await gate.wait()
        return n

    tasks = [asyncio.create_task(after(n)) for n in range(40)]
    await ctx.call("echo")
    gate.set()
    done, _ = await asyncio.wait(tasks)
    return await asyncio.gather(*[ctx.call("echo", task.result()) for task in list(done)[::9]])


@case()
async def as_completed_in_time(ctx: Context, value: Any) -> Any:
    seen = []
    try:
        for following in asyncio.as_completed([twice(ctx, n) for n in range(6)], timeout=4):
            seen.append(await following)
    except TimeoutError:
        seen.append(await ctx.call("late", len(seen)))
    return seen


@case()
async def as_completed_of_both(ctx: Context, value: Any) -> Any:
    tasks = [asyncio.create_task(twice(ctx, n)) for n in range(3)]
    mixed = [*tasks, *[twice(ctx, n) for n in range(3, 6)], ctx.call("echo", 6)]
    return [await ctx.call("seen", await following) for following in asyncio.as_completed(mixed)]


@case()
async def as_completed_left_early(ctx: Context, value: Any) -> Any:
    calls = [ctx.call("odd", n) for n in range(8)]
    seen: list[Any] = []
    for following in asyncio.as_completed(calls):
        try:
            seen.append(await following)
        except ActivityError as error:
            seen.append(error.failure.message)
            break
    for call in calls:
        call.cancel()
    return await ctx.call("echo", seen)


@case()
async def as_completed_of_a_set(ctx: Context, value: Any) -> Any:
    tasks = {asyncio.create_task(twice(ctx, n)) for n in range(12)}
    await asyncio.wait(tasks)
    return [await following for following in asyncio.as_completed(tasks)]


@case()
async def wait_for_at_the_same_instant(ctx: Context, value: Any) -> Any:
    outcomes: list[Any] = []
    for _ in range(4):
        try:
            await asyncio.wait_for(ctx.timer(1), timeout=1)
            outcomes.append(await ctx.call("echo", "in time"))
        except TimeoutError:
            outcomes.append("late")
    return outcomes


@case()
async def wait_for_with_cleanup(ctx: Context, value: Any) -> Any:
    async def work(n: int) -> Any:
        try:
            return await twice(ctx, n)
        finally:
            await ctx.call("clean up", n)

    async def limited(n: int) -> Any:
        try:
            return await asyncio.wait_for(work(n), timeout=1 + n / 4)
        except TimeoutError:
            return "late"

    return await asyncio.gather(*[limited(n) for n in range(4)])


@case()
async def wait_for_without_waiting(ctx: Context, value: Any) -> Any:
    done, never = ctx.call("echo", 1), ctx.event("never")
    await done
    outcomes = []
    for future, wait_s in ((done, 0), (done, -1), (never, 0), (ctx.call("echo", 2), None)):
        try:
            outcomes.append(await asyncio.wait_for(future, wait_s))
        except TimeoutError:
            outcomes.append("late")
    return [outcomes, never.cancelled()]


@case()
async def timeouts_within_timeouts(ctx: Context, value: Any) -> Any:
    outcomes = []
    for outer_s, inner_s in ((1, 3), (3, 1), (2, 2)):
        try:
            async with asyncio.timeout(outer_s) as outer:
                try:
                    async with asyncio.timeout(inner_s) as inner:
                        outcomes.append(await twice(ctx, outer_s))
                except TimeoutError:
                    outcomes.append(["inner", inner.expired(), outer.expired()])
                    await ctx.call("after", inner_s)
        except TimeoutError:
            outcomes.append(["outer", inner.expired(), outer.expired()])
    return outcomes


@case()
async def timeout_rescheduled(ctx: Context, value: Any) -> Any:
    loop, steps = asyncio.get_running_loop(), 0
    try:
        async with asyncio.timeout(None) as limit:
            for steps in range(6):
                limit.reschedule(loop.time() + 2 - steps / 3)
                await ctx.call("echo", steps)
            limit.reschedule(None)
            await ctx.call("echo", "without limit")
            limit.reschedule(loop.time() - 1)
            await ctx.call("too late")
    except TimeoutError:
        return await ctx.call("echo", ["late", steps, limit.expired()])
    return steps


@case()
async def timeout_at_a_time(ctx: Context, value: Any) -> Any:
    loop, outcomes = asyncio.get_running_loop(), []
    end = loop.time() + 5
    for n in range(8):
        try:
            async with asyncio.timeout_at(end):
                outcomes.append(await ctx.call("slow", n))
        except TimeoutError:
            outcomes.append(round(loop.time() - end, 3) >= 0)
            break
    return outcomes


@case()
async def timeout_that_cleans_up(ctx: Context, value: Any) -> Any:
    async def work() -> Any:
        async with contextlib.AsyncExitStack() as stack:
            for n in range(3):
                stack.push_async_callback(_release, ctx, n)
                await ctx.call("acquire", n)
            return "acquired"

    try:
        async with asyncio.timeout(1.5):
            return await work()
    except TimeoutError:
        return await ctx.call("echo", "late")


async def _release(ctx: Context, n: int) -> None:
    await ctx.call("release", n)


@case()
async def shield_in_a_cancelled_task(ctx: Context, value: Any) -> Any:
    inner = asyncio.create_task(twice(ctx, 3))

    async def outer() -> Any:
        try:
            return await asyncio.shield(inner)
        except asyncio.CancelledError:
            await ctx.call("clean up", inner.done())
            raise

    task = asyncio.create_task(outer())
    await ctx.timer(1)
    task.cancel()
    outcomes = await asyncio.gather(task, inner, return_exceptions=True)
    return [repr(outcome) for outcome in outcomes]


@case()
async def shield_of_a_failure(ctx: Context, value: Any) -> Any:
    calling = asyncio.ensure_future(fail(ctx))
    shielded = [asyncio.shield(calling) for _ in range(3)]
    shielded[0].cancel()
    outcomes = await asyncio.gather(*shielded, return_exceptions=True)
    return [str(outcome) for outcome in outcomes]


@case(events=(("go", "event"),))
async def first_of_three(ctx: Context, value: Any) -> Any:
    racers = {"event": ctx.event("go"), "timer": ctx.timer(1), "call": ctx.call("flaky", 1, retry=retries(5, 0.3))}
    done, pending = await asyncio.wait(racers.values(), return_when=asyncio.FIRST_COMPLETED)
    for racer in pending:
        racer.cancel()
    return await ctx.call("won", [name for name, racer in racers.items() if racer in done])


@case(events=tuple(("vote", n % 2) for n in range(7)))
async def quorum(ctx: Context, value: Any) -> Any:
    votes: list[Any] = []
    try:
        async with asyncio.timeout(20) as limit:
            while votes.count(1) < 3:
                votes.append(await ctx.event("vote"))
                ctx.status(votes)
                limit.reschedule(asyncio.get_running_loop().time() + 10)
    except TimeoutError:
        return await ctx.call("escalate", votes)
    return await ctx.call("elect", votes)
