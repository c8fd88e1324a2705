"""Orchestrators with task groups and groups of exceptions."""

from __future__ import annotations

import asyncio
from typing import Any

from ray_durable.errors import ActivityError

from ..kit import Context, retries
from .cases import case, fail, twice


@case()
async def group_in_a_failing_group(ctx: Context, value: Any) -> Any:
    async def branch(n: int) -> None:
        try:
            async with asyncio.TaskGroup() as inner:
                for m in range(3):
                    inner.create_task(twice(ctx, 10 * n + m))
                if n == 1:
                    inner.create_task(fail(ctx, n))
        except asyncio.CancelledError:
            await ctx.call("clean up", n)
            raise

    try:
        async with asyncio.TaskGroup() as outer:
            for n in range(3):
                outer.create_task(branch(n), name=f"branch-{n}")
    except* ActivityError as errors:
        await ctx.call("echo", [str(error) for error in errors.exceptions])


@case()
async def group_in_finally(ctx: Context, value: Any) -> Any:
    cleaned: list[Any] = []

    async def clean(n: int) -> None:
        cleaned.append(await ctx.call("clean up", n))

    async def work() -> None:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(twice(ctx, 1))
                group.create_task(fail(ctx))
        finally:
            async with asyncio.TaskGroup() as group:
                for n in range(3):
                    group.create_task(clean(n))

    outcome = (await asyncio.gather(work(), return_exceptions=True))[0]
    return [str(outcome), cleaned]


@case()
async def group_cancelled_from_outside(ctx: Context, value: Any) -> Any:
    async def work() -> Any:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(guarded(n)) for n in range(4)]
        return [task.result() for task in tasks]

    async def guarded(n: int) -> Any:
        try:
            return await twice(ctx, n)
        finally:
            await ctx.call("clean up", n)

    working = asyncio.create_task(work())
    await ctx.timer(2)
    working.cancel()
    try:
        return await working
    except asyncio.CancelledError:
        return [working.cancelled(), await ctx.call("echo", "cancelled")]


@case()
async def group_that_grows(ctx: Context, value: Any) -> Any:
    seen: list[Any] = []

    async def visit(group: asyncio.TaskGroup, n: int) -> None:
        seen.append(await ctx.call("echo", n))
        if n < 7:
            group.create_task(visit(group, 2 * n + 1))
            group.create_task(visit(group, 2 * n + 2))

    async with asyncio.TaskGroup() as group:
        group.create_task(visit(group, 0))
    return seen


@case()
async def group_whose_body_raises(ctx: Context, value: Any) -> Any:
    tasks: list[asyncio.Task[Any]] = []
    try:
        async with asyncio.TaskGroup() as group:
            tasks += [group.create_task(twice(ctx, n)) for n in range(3)]
            await ctx.call("echo")
            raise LookupError("in the body")
    except* LookupError as errors:
        await ctx.call("echo", str(errors.exceptions[0]))
    return [task.cancelled() for task in tasks]


@case()
async def group_of_maps_and_retries(ctx: Context, value: Any) -> Any:
    async def mapped(n: int) -> Any:
        return await ctx.map("flaky", list(range(n)), retry=retries(4, 0.5))

    async def retried(n: int) -> Any:
        return await ctx.call("flaky", n, retry=retries(4, 0.25, jitter=0.5))

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(mapped(n)) for n in (1, 3)] + [group.create_task(retried(n)) for n in (4, 5)]
    return [task.result() for task in tasks]


@case()
async def exceptions_by_kind(ctx: Context, value: Any) -> Any:
    handled: list[Any] = []

    async def raise_after(n: int, error: BaseException) -> None:
        try:
            await ctx.call("echo", n)
        finally:
            raise error

    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(raise_after(1, KeyError("a")))
            group.create_task(raise_after(2, ValueError("b")))
            group.create_task(raise_after(3, ExceptionGroup("c", [TypeError("d"), KeyError("e")])))
    except* KeyError as errors:
        handled.append(await ctx.call("keys", _leaves(errors)))
    except* (ValueError, TypeError) as errors:
        handled.append(await ctx.call("values", _leaves(errors)))
    return handled


def _leaves(group: BaseExceptionGroup[Any]) -> list[str]:
    return [
        leaf
        for error in group.exceptions
        for leaf in (_leaves(error) if isinstance(error, BaseExceptionGroup) else [repr(error)])
    ]


@case()
async def group_with_a_stubborn_task(ctx: Context, value: Any) -> Any:
    async def stubborn() -> Any:
        for _ in range(3):
            try:
                await ctx.call("slow", 1)
            except asyncio.CancelledError:
                await ctx.call("not yet")
        return "done at last"

    tasks: list[asyncio.Task[Any]] = []
    try:
        async with asyncio.TaskGroup() as group:
            tasks.append(group.create_task(stubborn()))
            group.create_task(fail(ctx))
    except* ActivityError:
        await ctx.call("echo", tasks[0].result())


@case()
async def group_with_callbacks(ctx: Context, value: Any) -> Any:
    order: list[Any] = []
    async with asyncio.TaskGroup() as group:
        for n in range(6):
            task = group.create_task(twice(ctx, n), name=str(n))
            task.add_done_callback(lambda task: order.append(task.get_name()))
    return await ctx.call("echo", order)


@case()
async def groups_one_after_the_other(ctx: Context, value: Any) -> Any:
    outcomes: list[Any] = []
    for n in range(3):
        try:
            async with asyncio.timeout(2), asyncio.TaskGroup() as group:
                tasks = [group.create_task(twice(ctx, n)), group.create_task(asyncio.sleep(1))]
                if n == 1:
                    group.create_task(fail(ctx))
            outcomes.append(tasks[0].result())
        except* ActivityError:
            outcomes.append("failed")
        except* TimeoutError:
            outcomes.append("late")
    return outcomes


@case(termination=0.1)
async def group_terminated(ctx: Context, value: Any) -> Any:
    async with asyncio.TaskGroup() as group:
        for n in range(4):
            group.create_task(twice(ctx, n))
        group.create_task(_forever(ctx))


async def _forever(ctx: Context) -> None:
    while True:
        try:
            await ctx.call("tick")
            await asyncio.sleep(1)
        finally:
            ctx.status("a round")
