"""Orchestrators with asynchronous generators, iterators, comprehensions and context managers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Generator
from typing import Any

from ray_durable.engine import drive_generator
from ray_durable.errors import ActivityError

from ..kit import Context
from .cases import case


async def _numbers(ctx: Context, count: int) -> AsyncGenerator[int, None]:
    for n in range(count):
        yield await ctx.call("echo", n)


@case()
async def pipeline_of_generators(ctx: Context, value: Any) -> Any:
    async def doubled(source: AsyncIterator[int]) -> AsyncIterator[Any]:
        async for n in source:
            yield await ctx.call("double", n)

    async def in_pairs(source: AsyncIterator[Any]) -> AsyncIterator[Any]:
        pair = []
        async for item in source:
            pair.append(item)
            if len(pair) == 2:
                yield pair
                pair = []

    return [pair async for pair in in_pairs(doubled(_numbers(ctx, 4)))]


@case()
async def generator_that_is_sent_to(ctx: Context, value: Any) -> Any:
    async def average() -> AsyncGenerator[Any, int]:
        total = count = 0
        mean: Any = None
        while True:
            total += yield mean
            count += 1
            mean = await ctx.call("echo", [total, count])

    averaging = average()
    await anext(averaging)
    means = [await averaging.asend(n) for n in (3, 5, 8)]
    await averaging.aclose()
    return means


@case()
async def generator_that_is_thrown_into(ctx: Context, value: Any) -> Any:
    async def resilient() -> AsyncGenerator[Any, None]:
        while True:
            try:
                yield await ctx.call("echo", "up")
            except LookupError as error:
                yield await ctx.call("down", str(error))

    source = resilient()
    seen = [await anext(source), await source.athrow(LookupError("look")), await anext(source)]
    with contextlib.suppress(ZeroDivisionError):
        await source.athrow(ZeroDivisionError())
    return [seen, [item async for item in source]]


@case()
async def generator_closed_with_a_call(ctx: Context, value: Any) -> Any:
    async def pages() -> AsyncGenerator[int, None]:
        try:
            async for n in _numbers(ctx, 5):
                yield n
        finally:
            await ctx.call("close", "pages")

    seen = []
    async with contextlib.aclosing(pages()) as source:
        async for page in source:
            seen.append(page)
            if page == 1:
                break
    return await ctx.call("echo", seen)


@case()
async def generator_freed_with_its_lock(ctx: Context, value: Any) -> Any:
    lock, order = asyncio.Lock(), []

    async def locked(n: int) -> AsyncIterator[Any]:
        async with lock:
            yield await ctx.call("first", n)
            yield await ctx.call("second", n)

    async def take_one(n: int) -> None:
        async for item in locked(n):
            order.append(item)
            break
        await ctx.call("took", n)

    await asyncio.gather(*[take_one(n) for n in range(3)])
    return [order, lock.locked()]


@case()
async def generator_lost_in_a_cycle(ctx: Context, value: Any) -> Any:
    """The collector finds it at some step, which is another one in each process."""
    lock, seen, kept = asyncio.Lock(), [], []

    async def locked() -> AsyncIterator[int]:
        async with lock:
            for n in range(5):
                yield n

    cycle: list[Any] = [locked()]
    cycle.append(cycle)
    await anext(cycle[0])
    del cycle
    for _ in range(8):
        kept += [[n] for n in range(300)]
        seen.append(await ctx.call("echo", lock.locked()))
    return [seen, len(kept)]


@case()
async def asynchronous_comprehensions(ctx: Context, value: Any) -> Any:
    pairs = [[a, b] async for a in _numbers(ctx, 2) async for b in _numbers(ctx, 2) if a != b]
    table = {n: [m async for m in _numbers(ctx, n)] async for n in _numbers(ctx, 3)}
    awaited = [await ctx.call("double", n) for n in range(3) if await ctx.call("echo", n) != 1]
    unique = {n // 2 async for n in _numbers(ctx, 4)}
    return [pairs, list(table.items()), awaited, sorted(unique), [x async for x in (n async for n in _numbers(ctx, 2))]]


@case()
async def merged_generators(ctx: Context, value: Any) -> Any:
    queue: asyncio.Queue[Any] = asyncio.Queue()

    async def feed(name: str) -> None:
        async for n in _numbers(ctx, 3):
            await queue.put([name, n])

    async with asyncio.TaskGroup() as group:
        feeding = [group.create_task(feed(name)) for name in "xyz"]
        merged = [await queue.get() for _ in range(9)]
    return [merged, all(task.done() for task in feeding)]


@case()
async def generator_wanted_by_two(ctx: Context, value: Any) -> Any:
    source = _numbers(ctx, 4)

    async def take(name: str) -> Any:
        try:
            return [name, await anext(source)]
        except RuntimeError as error:
            return [name, str(error)]

    first = await asyncio.gather(take("a"), take("b"))
    return [first, await take("c"), [n async for n in source]]


class _Countdown:
    def __init__(self, ctx: Context, n: int) -> None:
        self.ctx, self.n = ctx, n

    def __aiter__(self) -> _Countdown:
        return self

    async def __anext__(self) -> Any:
        if self.n == 0:
            raise StopAsyncIteration
        self.n -= 1
        return await self.ctx.call("echo", self.n)


@case()
async def iterators_of_a_class(ctx: Context, value: Any) -> Any:
    slow = _Countdown(ctx, 3)
    both = await asyncio.gather(anext(slow), anext(slow), anext(_Countdown(ctx, 9)))
    return [both, [n async for n in slow], await anext(slow, "nothing left")]


class _Resource:
    def __init__(self, ctx: Context, name: str) -> None:
        self.ctx, self.name = ctx, name

    async def __aenter__(self) -> str:
        await self.ctx.call("open", self.name)
        return self.name

    async def __aexit__(self, kind: Any, error: BaseException | None, traceback: Any) -> bool:
        await self.ctx.call("close", [self.name, type(error).__name__])
        return isinstance(error, ActivityError) and self.name == "b"


@case()
async def context_managers(ctx: Context, value: Any) -> Any:
    async with _Resource(ctx, "a") as a, _Resource(ctx, "b"), _Resource(ctx, "c"):
        await ctx.call("fail", a)
    return await ctx.call("echo", "suppressed by b")


@case()
async def stack_of_exits(ctx: Context, value: Any) -> Any:
    @contextlib.asynccontextmanager
    async def opened(n: int) -> AsyncIterator[int]:
        await ctx.call("open", n)
        try:
            yield n
        except ActivityError:
            await ctx.call("failed", n)
            raise
        finally:
            await ctx.call("close", n)

    async def use(count: int) -> Any:
        async with contextlib.AsyncExitStack() as stack:
            numbers = [await stack.enter_async_context(opened(n)) for n in range(count)]
            stack.push_async_callback(_note, ctx, numbers)
            stack.callback(numbers.clear)
            return await ctx.call("odd", count)

    outcomes = await asyncio.gather(use(2), use(3), return_exceptions=True)
    return [str(outcome) for outcome in outcomes]


async def _note(ctx: Context, numbers: list[int]) -> None:
    await ctx.call("left", numbers)


@case()
async def generator_of_a_cancelled_task(ctx: Context, value: Any) -> Any:
    async def ticks() -> AsyncIterator[int]:
        n = 0
        try:
            while True:
                await asyncio.sleep(1)
                yield n
                n += 1
        finally:
            await ctx.call("ticks", n)

    async def count() -> None:
        async for n in ticks():
            await ctx.call("tick", n)

    counting = asyncio.create_task(count())
    await ctx.timer(4.5)
    counting.cancel()
    outcome = (await asyncio.gather(counting, return_exceptions=True))[0]
    return repr(outcome)


@case()
async def generators_side_by_side(ctx: Context, value: Any) -> Any:
    def steps(n: int) -> Generator[Any, Any, Any]:
        first = yield ctx.call("double", n)
        try:
            second = yield asyncio.wait_for(ctx.call("slow", first), 1)
        except TimeoutError:
            second = yield [ctx.call("echo", "late"), ctx.timer(0.5)]
        return [first, second]

    return await asyncio.gather(*[drive_generator(steps(n)) for n in range(3)])
