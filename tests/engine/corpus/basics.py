"""Orchestrators of the first acquaintance: one of each thing that an orchestrator can do."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
from collections.abc import AsyncIterator, Generator
from typing import Any

from ray_durable.engine import RuntimeStatus, drive_generator
from ray_durable.errors import ActivityError

from ..kit import Context, retries
from .cases import case, fail, twice


@case()
async def nothing(ctx: Context, value: Any) -> Any:
    return "done"


@case(input=3)
async def chain(ctx: Context, value: Any) -> Any:
    for _ in range(4):
        value = await ctx.call("double", value)
    return value


@case(input=7)
async def fan_out(ctx: Context, count: Any) -> Any:
    return await asyncio.gather(*[ctx.call("double", n) for n in range(count)])


@case()
async def fan_out_of_chains(ctx: Context, value: Any) -> Any:
    async def branch(n: int) -> Any:
        first = await ctx.call("double", n)
        return await ctx.call("echo", [first, await ctx.call("double", first)])

    return await asyncio.gather(*[branch(n) for n in range(4)])


@case()
async def nested_gathers(ctx: Context, value: Any) -> Any:
    inner = [asyncio.gather(*[ctx.call("echo", [row, column]) for column in range(3)]) for row in range(3)]
    done, pending = await asyncio.wait(inner, return_when=asyncio.FIRST_COMPLETED)
    ctx.status([len(done), len(pending)])
    order = [await ctx.call("seen", future.result()[0]) for future in done]
    return [order, await asyncio.gather(*inner)]


@case()
async def gather_with_failure(ctx: Context, value: Any) -> Any:
    outcomes = await asyncio.gather(
        ctx.call("echo", 1), ctx.call("fail", 2), ctx.call("echo", 3), return_exceptions=True
    )
    return [str(outcome) for outcome in outcomes]


@case()
async def wait_first(ctx: Context, value: Any) -> Any:
    pending = {ctx.call("echo", n) for n in range(12)}
    order = []
    while pending:
        done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        order += [future.result() for future in done]
        if len(order) == 5:
            for future in pending:
                future.cancel()
            break
    return order


@case()
async def wait_first_exception(ctx: Context, value: Any) -> Any:
    tasks = [asyncio.ensure_future(ctx.call(name, n)) for n, name in enumerate(("echo", "fail", "echo", "fail"))]
    done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
    for future in pending:
        future.cancel()
    return [len(done) + len(pending), [await ctx.call("look", tasks.index(future)) for future in done]]


@case()
async def wait_with_timeout(ctx: Context, value: Any) -> Any:
    done, pending = await asyncio.wait([ctx.call("echo", n) for n in range(5)], timeout=1.0)
    return [len(done), sorted(future.result() for future in done), len(pending)]


@case()
async def as_completed_futures(ctx: Context, value: Any) -> Any:
    return [await following for following in asyncio.as_completed([ctx.call("echo", n) for n in range(9)])]


@case()
async def as_completed_coroutines(ctx: Context, value: Any) -> Any:
    async def work(n: int) -> Any:
        return await ctx.call("echo", n)

    return [await following for following in asyncio.as_completed([work(n) for n in range(9)], timeout=1000)]


@case()
async def as_completed_gathers(ctx: Context, value: Any) -> Any:
    groups = [asyncio.gather(ctx.call("echo", n), ctx.call("echo", -n)) for n in range(9)]
    await asyncio.wait(groups)
    return [await ctx.call("echo", await following) for following in asyncio.as_completed(groups)]


@case()
async def group(ctx: Context, value: Any) -> Any:
    async with asyncio.TaskGroup() as tasks:
        made = [tasks.create_task(twice(ctx, n)) for n in range(4)]
    return [task.result() for task in made]


@case()
async def group_with_failing_sibling(ctx: Context, value: Any) -> Any:
    async def guarded(n: int) -> None:
        try:
            await ctx.call("slow", n)
            await ctx.call("slow", n + 100)
        except asyncio.CancelledError:
            await ctx.call("clean up", n)
            raise

    try:
        async with asyncio.TaskGroup() as tasks:
            for n in range(10):
                tasks.create_task(guarded(n))
            tasks.create_task(fail(ctx))
    except ExceptionGroup as errors:
        return [str(error) for error in errors.exceptions]
    return None


@case(end=RuntimeStatus.FAILED)
async def unhandled_failure(ctx: Context, value: Any) -> Any:
    await ctx.call("echo", 1)
    return await ctx.call("fail", 2)


@case()
async def timeout_that_fires(ctx: Context, value: Any) -> Any:
    try:
        async with asyncio.timeout(0.4):
            return await ctx.event("never")
    except TimeoutError:
        return await ctx.call("echo", "late")


@case()
async def timeout_that_may_fire(ctx: Context, value: Any) -> Any:
    async def limited(n: int) -> Any:
        try:
            return await asyncio.wait_for(ctx.call("echo", n), timeout=n)
        except TimeoutError:
            return "late"

    return await asyncio.gather(*[limited(n) for n in range(5)])


@case(events=(("approval", True),))
async def approval(ctx: Context, value: Any) -> Any:
    try:
        approved = await asyncio.wait_for(ctx.event("approval"), timeout=3)
    except TimeoutError:
        return await ctx.call("escalate", 1)
    return await ctx.call("proceed", approved)


@case(events=(*(("item", n) for n in range(6)), ("other", "x")))
async def events_early_and_late(ctx: Context, value: Any) -> Any:
    await ctx.call("echo")
    seen = [await ctx.event("item") for _ in range(3)]
    dropped = ctx.event("item")
    dropped.cancel()
    await ctx.timer(1)
    both = await asyncio.gather(ctx.event("item"), ctx.event("item"), ctx.event("other"))
    return [seen, both]


@case()
async def sleeps(ctx: Context, value: Any) -> Any:
    loop = asyncio.get_running_loop()
    before = loop.time()
    await asyncio.gather(asyncio.sleep(5), asyncio.sleep(1), ctx.timer(3), asyncio.sleep(0), ctx.timer(-1))
    await ctx.call("echo", round(loop.time() - before, 3))
    return ctx.execution.now_us


@case()
async def producer_and_consumers(ctx: Context, value: Any) -> Any:
    queue: asyncio.Queue[int | None] = asyncio.Queue(maxsize=2)
    taken: list[Any] = []

    async def consume(name: str) -> None:
        while (item := await queue.get()) is not None:
            taken.append([name, await ctx.call("double", item)])

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(consume("left"))
        tasks.create_task(consume("right"))
        for n in range(6):
            await queue.put(n)
        await queue.put(None)
        await queue.put(None)
    return taken


@case()
async def lock_and_semaphore(ctx: Context, value: Any) -> Any:
    lock, semaphore, ready = asyncio.Lock(), asyncio.Semaphore(2), asyncio.Event()
    order: list[Any] = []

    async def work(n: int) -> None:
        await ready.wait()
        async with semaphore:
            result = await ctx.call("echo", n)
        async with lock:
            order.append(await ctx.call("double", result))

    working = asyncio.gather(*[work(n) for n in range(5)])
    await ctx.call("prepare")
    ready.set()
    await working
    return order


@case()
async def condition(ctx: Context, value: Any) -> Any:
    changed, counter = asyncio.Condition(), [0]

    async def step(n: int) -> None:
        async with changed:
            await changed.wait_for(lambda: counter[0] >= n)
        await ctx.call("echo", n)
        async with changed:
            counter[0] += 1
            changed.notify_all()

    await asyncio.gather(*[step(n) for n in reversed(range(4))])
    return counter[0]


@case()
async def retried(ctx: Context, value: Any) -> Any:
    first = ctx.call("flaky", 1, retry=retries(5))
    second = ctx.call("flaky", 2, retry=retries(5, 0))
    third = ctx.call("fail", 3, retry=retries(3, 2, jitter=0.5))
    with contextlib.suppress(ActivityError):
        await third
    return [await first, await second]


@case()
async def retry_given_up(ctx: Context, value: Any) -> Any:
    try:
        return await ctx.call("fail", 1, retry=retries(4, 0.5))
    except ActivityError as error:
        return [error.attempt, error.failure.message]


@case()
async def retry_cancelled(ctx: Context, value: Any) -> Any:
    calling = ctx.call("fail", 1, retry=retries(50, 1, backoff_coefficient=1))
    await ctx.timer(4)
    calling.cancel()
    return await ctx.call("echo", 2)


@case()
async def mapped(ctx: Context, value: Any) -> Any:
    return [await ctx.map("double", list(range(20))), await ctx.map("double", [])]


@case()
async def map_with_failures(ctx: Context, value: Any) -> Any:
    try:
        return await ctx.map("odd", [0, 2, 4, 5, 6, 7, 8, 10])
    except ActivityError as error:
        return await ctx.call("echo", error.failure.message)


@case()
async def map_that_returns_exceptions(ctx: Context, value: Any) -> Any:
    return [str(result) for result in await ctx.map("odd", list(range(8)), return_exceptions=True)]


@case()
async def map_that_tolerates(ctx: Context, value: Any) -> Any:
    return await ctx.map("odd", list(range(8)), tolerated_failures=4)


@case()
async def map_with_retries(ctx: Context, value: Any) -> Any:
    steady = ctx.map("double", list(range(10)))
    return [await ctx.map("flaky", list(range(10)), retry=retries(4, 1)), await steady]


@case()
async def map_cancelled(ctx: Context, value: Any) -> Any:
    mapping = ctx.map("flaky", list(range(30)), retry=retries(3, 5))
    await ctx.timer(3)
    mapping.cancel()
    return await ctx.call("echo", "rest")


@case()
async def cancellation_with_cleanup(ctx: Context, value: Any) -> Any:
    async def work(n: int) -> Any:
        try:
            return await ctx.call("slow", n)
        finally:
            await ctx.call("clean up", n)

    working = [asyncio.create_task(work(n)) for n in range(5)]
    await ctx.timer(1)
    for task in working:
        task.cancel()
    return [type(outcome).__name__ for outcome in await asyncio.gather(*working, return_exceptions=True)]


@case()
async def shielded(ctx: Context, value: Any) -> Any:
    calling = ctx.call("slow", 1)
    try:
        return await asyncio.wait_for(asyncio.shield(calling), timeout=0.5)
    except TimeoutError:
        ctx.status("still waiting")
        return [await calling]


@case()
async def status_and_identity(ctx: Context, value: Any) -> Any:
    made: list[Any] = []
    for n in range(3):
        ctx.status({"step": n})
        made.append([str(ctx.execution.new_uuid()), ctx.execution.random.random(), ctx.execution.now_us])
        await ctx.call("echo", made)
    return [made, [ctx.execution.random.sample(range(100), 3) for _ in range(2)]]


@case(events=(("go", 1),))
async def background_tasks(ctx: Context, value: Any) -> Any:
    async def forever(n: int) -> None:
        try:
            while True:
                await ctx.call("tick", n)
        finally:
            await ctx.call("never asked for")

    async def broken() -> None:
        await ctx.call("echo")
        raise ValueError("nobody looks")

    tasks = [asyncio.create_task(forever(n)) for n in range(3)] + [asyncio.create_task(broken())]
    await ctx.event("go")
    return len(tasks)


@case(termination=0.15, events=(("go", 1),))
async def terminated(ctx: Context, value: Any) -> Any:
    try:
        async with asyncio.TaskGroup() as tasks:
            for n in range(3):
                tasks.create_task(twice(ctx, n))
            await asyncio.sleep(100)
    finally:
        await ctx.call("never asked for")


@case()
async def driven_generator(ctx: Context, value: Any) -> Any:
    def steps() -> Generator[Any, Any, Any]:
        first = yield ctx.call("double", 4)
        rest = yield [ctx.call("double", first), ctx.call("echo", first)]
        try:
            yield ctx.call("fail", rest)
        except ActivityError as error:
            yield ctx.timer(2)
            return [first, rest, error.failure.message]

    return await drive_generator(steps())


@case()
async def asynchronous_generators(ctx: Context, value: Any) -> Any:
    async def pages() -> AsyncIterator[Any]:
        try:
            for n in range(10):
                async with asyncio.timeout(1000):
                    yield await ctx.call("echo", n)
        finally:
            ctx.execution.random.random()

    seen = []
    async for page in pages():
        seen.append(page)
        if page == 2:
            break
    return [seen, [page async for page in pages() if page % 2]]


@case()
async def context_variables(ctx: Context, value: Any) -> Any:
    variable: contextvars.ContextVar[int] = contextvars.ContextVar("variable", default=0)

    async def work(n: int) -> Any:
        variable.set(n)
        await ctx.call("echo", n)
        return variable.get()

    return [await asyncio.gather(*[work(n) for n in range(1, 4)]), variable.get()]


@case()
async def sets_of_tasks(ctx: Context, value: Any) -> Any:
    tasks = {asyncio.create_task(twice(ctx, n)) for n in range(20)}
    for task in tasks:
        task.add_done_callback(tasks.discard)
    while len(tasks) > 10:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.sleep(0)
    for task in tasks:
        task.cancel()
    return None
