"""Orchestrators that cancel, and those that resist, clean up, or change their mind."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from ray_durable.engine import RuntimeStatus

from ..kit import Context, retries
from .cases import case, twice


@case()
async def cancelled_before_the_start(ctx: Context, value: Any) -> Any:
    started: list[int] = []

    async def work(n: int) -> Any:
        started.append(n)
        return await ctx.call("echo", n)

    tasks = [asyncio.create_task(work(n)) for n in range(4)]
    tasks[1].cancel()
    await asyncio.sleep(0)
    tasks[2].cancel()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    return [started, [repr(outcome) for outcome in outcomes]]


@case()
async def cancelled_in_its_cleanup(ctx: Context, value: Any) -> Any:
    async def work() -> Any:
        try:
            return await ctx.call("slow", 1)
        finally:
            try:
                await ctx.call("clean up", 1)
            finally:
                await ctx.call("clean up", 2)

    task = asyncio.create_task(work())
    for wait_s in (1, 0.5, 0.5):
        await ctx.timer(wait_s)
        task.cancel()
    outcome = (await asyncio.gather(task, return_exceptions=True))[0]
    return repr(outcome)


@case()
async def swallowed_cancellation(ctx: Context, value: Any) -> Any:
    async def deaf(n: int) -> Any:
        heard = 0
        while heard < 2:
            try:
                await ctx.call("slow", [n, heard])
                break
            except asyncio.CancelledError:
                heard += 1
        return [heard, await ctx.call("echo", n)]

    tasks = [asyncio.create_task(deaf(n)) for n in range(3)]
    for _ in range(3):
        await ctx.timer(0.7)
        for task in tasks:
            task.cancel()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    return [repr(outcome) for outcome in outcomes]


@case()
async def uncancelled(ctx: Context, value: Any) -> Any:
    counts: list[Any] = []

    async def work() -> Any:
        task = asyncio.current_task()
        assert task is not None
        try:
            return await ctx.call("slow", 1)
        except asyncio.CancelledError:
            counts.append([task.cancelling(), task.uncancel(), task.cancelling()])
            async with asyncio.timeout(100):
                return await ctx.call("instead", counts)

    task = asyncio.create_task(work())
    await ctx.timer(0.5)
    task.cancel()
    task.cancel()
    return [await task, counts]


@case()
async def cancellation_with_a_word(ctx: Context, value: Any) -> Any:
    async def work() -> None:
        try:
            await ctx.event("never")
        except asyncio.CancelledError as error:
            await ctx.call("heard", list(error.args))
            raise

    task = asyncio.create_task(work())
    await ctx.call("echo")
    task.cancel("for a reason")
    try:
        await task
    except asyncio.CancelledError as error:
        return list(error.args)


@case()
async def cancellation_through_a_chain(ctx: Context, value: Any) -> Any:
    trace: list[Any] = []

    async def link(n: int) -> Any:
        try:
            return await (asyncio.create_task(link(n - 1)) if n else ctx.event("never"))
        except asyncio.CancelledError:
            trace.append(await ctx.call("link", n))
            raise

    outer = asyncio.create_task(link(4))
    await ctx.timer(1)
    outer.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await outer
    return trace


@case()
async def cancels_itself(ctx: Context, value: Any) -> Any:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    try:
        await ctx.call("never runs")
    except asyncio.CancelledError:
        left = task.uncancel()
    return [left, await ctx.call("echo", 1)]


@case(end=RuntimeStatus.FAILED)
async def fails_by_cancellation(ctx: Context, value: Any) -> Any:
    async def cancel(task: asyncio.Task[Any]) -> None:
        await ctx.call("echo")
        task.cancel("from inside")

    task = asyncio.current_task()
    assert task is not None
    killer = asyncio.create_task(cancel(task))
    try:
        await ctx.event("never")
    finally:
        await ctx.call("clean up", killer.done())


@case()
async def stops_all_others(ctx: Context, value: Any) -> Any:
    async def work(n: int) -> None:
        try:
            await twice(ctx, n)
        except asyncio.CancelledError:
            await ctx.call("stopped", n)
            raise

    for n in range(40):
        asyncio.create_task(work(n) if n % 8 == 0 else asyncio.sleep(0), name=str(n))  # noqa: RUF006  # all_tasks finds it
    await ctx.timer(1)
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    return [task.get_name() for task in others]


@case()
async def compensated(ctx: Context, value: Any) -> Any:
    undo: list[int] = []
    try:
        for n in range(5):
            await ctx.call("book", n)
            undo.append(n)
            if n == 3:
                await ctx.call("fail", n, retry=retries(2, 0.5))
    except Exception as error:
        return [str(error), await asyncio.gather(*[ctx.call("cancel", n) for n in reversed(undo)])]


@case()
async def cancelled_while_it_starts_more(ctx: Context, value: Any) -> Any:
    more: list[asyncio.Task[Any]] = []

    async def work(n: int) -> Any:
        try:
            return await ctx.call("slow", n)
        except asyncio.CancelledError:
            more.append(asyncio.create_task(twice(ctx, n)))
            raise

    tasks = [asyncio.create_task(work(n)) for n in range(4)]
    await ctx.timer(0.5)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return await asyncio.gather(*more)


@case()
async def everything_cancelled(ctx: Context, value: Any) -> Any:
    asked: list[asyncio.Future[Any]] = [
        ctx.call("slow", 1),
        ctx.call("fail", 2, retry=retries(9, 3)),
        ctx.map("flaky", [1, 2, 3], retry=retries(9, 3)),
        ctx.timer(50),
        ctx.event("never"),
        ctx.child("slow", 3),
        asyncio.ensure_future(asyncio.sleep(60)),
        asyncio.gather(ctx.call("slow", 4), ctx.timer(70)),
    ]
    await ctx.timer(2)
    answers = [future.cancel() for future in asked]
    await asyncio.wait(asked)
    return [answers, [future.cancelled() for future in asked], await ctx.call("echo", "rest")]


@case()
async def cancelled_when_it_is_done(ctx: Context, value: Any) -> Any:
    """The outcome and the cancellation meet in one turn."""
    call = ctx.call("echo", 1)
    waiting = asyncio.create_task(_await(call))
    call.add_done_callback(lambda _: waiting.cancel())
    outcome = (await asyncio.gather(waiting, return_exceptions=True))[0]
    return [repr(outcome), call.result(), waiting.cancelled()]


async def _await(future: asyncio.Future[Any]) -> Any:
    return await future
