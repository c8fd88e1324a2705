"""Orchestrators that use the rest of the engine: other instances, markers, status, the next execution."""

from __future__ import annotations

import asyncio
from typing import Any

from ray_durable.engine import RuntimeStatus
from ray_durable.errors import ActivityError, SubOrchestrationError

from ..kit import Context, retries
from .cases import case, fail, twice


@case()
async def children(ctx: Context, value: Any) -> Any:
    outcomes = await asyncio.gather(
        *[ctx.child("double", n) for n in range(3)], ctx.child("fail", 3, "given"), return_exceptions=True
    )
    return await ctx.call("echo", [str(outcome) for outcome in outcomes])


@case()
async def children_retried(ctx: Context, value: Any) -> Any:
    first = ctx.child("flaky", 1, retry=retries(4, 0.5))
    second = ctx.child("fail", 2, "given", retry=retries(3, 0))
    try:
        await second
    except SubOrchestrationError as error:
        return [error.attempt, error.instance_id, await first]


@case()
async def children_of_a_failing_group(ctx: Context, value: Any) -> Any:
    async def raise_child(n: int) -> Any:
        try:
            return await ctx.child("echo", await ctx.child("slow", n, f"child-{n}"))
        except asyncio.CancelledError:
            ctx.send(f"child-{n}", "cancelled")
            raise

    try:
        async with asyncio.TaskGroup() as group:
            for n in range(4):
                group.create_task(raise_child(n))
            group.create_task(fail(ctx))
    except* ActivityError:
        await ctx.call("echo", "failed")


@case(termination=0.15)
async def children_terminated(ctx: Context, value: Any) -> Any:
    while True:
        await asyncio.gather(ctx.child("slow", 1), ctx.child("slow", 2), twice(ctx, 3))


@case(events=(("reply", 1), ("reply", 2), ("reply", 3)))
async def messages_to_others(ctx: Context, value: Any) -> Any:
    replies = []
    for n in range(3):
        ctx.send("other", "question", n)
        replies.append(await ctx.event("reply"))
    ctx.send("other", "bye", replies)
    return replies


@case()
async def side_effects(ctx: Context, value: Any) -> Any:
    """A function whose value depends on when it is called: replay must not call it, and must find its value."""

    async def work(n: int) -> Any:
        first = ctx.side_effect(lambda: [n, ctx.execution.position])
        await ctx.call("echo", first)
        return [first, ctx.side_effect(lambda: ctx.execution.position)]

    return await asyncio.gather(*[work(n) for n in range(4)])


@case()
async def side_effects_that_fail(ctx: Context, value: Any) -> Any:
    outcomes: list[Any] = []
    for _ in range(2):
        try:
            outcomes.append(ctx.side_effect(lambda: "worth it"))
            ctx.side_effect(_raise)
        except LookupError as error:
            outcomes.append(await ctx.call("echo", str(error)))
    return outcomes


def _raise() -> None:
    raise LookupError("never recorded")


# A step that lacks the marker was run by the code before the patch: half a step would say the wrong thing.
@case(cut_in_steps=False)
async def patched(ctx: Context, value: Any) -> Any:
    seen = []
    for n in range(4):
        name = "new" if ctx.patched("rename") else "old"
        seen.append(await ctx.call(name, n))
        if ctx.patched(f"extra-{n % 2}"):
            await asyncio.gather(ctx.call("extra", n), ctx.timer(0.5))
    return seen


@case(end=RuntimeStatus.CONTINUED_AS_NEW, input=1, events=tuple(("work", n) for n in range(5)))
async def continued(ctx: Context, value: Any) -> Any:
    total = value + await ctx.event("work") + await ctx.event("work")
    await ctx.call("echo", total)
    ctx.continue_as_new(-1)
    ctx.continue_as_new(total)


@case(events=tuple(("task", n) for n in range(6)))
async def dispatcher_of_events(ctx: Context, value: Any) -> Any:
    running: set[asyncio.Task[Any]] = set()
    results: list[Any] = []

    async def handle(n: int) -> None:
        results.append(await (ctx.child("double", n) if n % 2 else twice(ctx, n)))

    for _ in range(6):
        task = asyncio.create_task(handle(await ctx.event("task")))
        running.add(task)
        task.add_done_callback(running.discard)
        if len(running) > 2:
            await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        ctx.status({"running": len(running), "done": len(results)})
    await asyncio.gather(*running)
    return results


@case()
async def randomness_among_tasks(ctx: Context, value: Any) -> Any:
    async def work(n: int) -> Any:
        await asyncio.sleep(ctx.execution.random.random())
        return await ctx.call("echo", [n, str(ctx.execution.new_uuid()), ctx.execution.random.randrange(1000)])

    shuffled = list(range(4))
    ctx.execution.random.shuffle(shuffled)
    return await asyncio.gather(*[work(n) for n in shuffled])


@case()
async def everything_at_once(ctx: Context, value: Any) -> Any:
    async with asyncio.timeout(1000), asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(twice(ctx, 1)),
            group.create_task(_await(ctx.map("flaky", [1, 2, 3], retry=retries(4, 1)))),
            group.create_task(_await(ctx.child("double", 2))),
            group.create_task(_await(ctx.call("flaky", 3, retry=retries(4, 0.5)))),
            group.create_task(asyncio.sleep(2, "slept")),
        ]
        ctx.status([task.done() for task in tasks])
    return [task.result() for task in tasks]


async def _await(future: asyncio.Future[Any]) -> Any:
    return await future
