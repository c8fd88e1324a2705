"""Orchestrators whose tasks wait for each other: queues, locks, semaphores, conditions, barriers, bare futures."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from ray_durable.errors import ActivityError

from ..kit import Context
from .cases import case, twice


@case()
async def priority_queue(ctx: Context, value: Any) -> Any:
    queue: asyncio.PriorityQueue[tuple[int, str]] = asyncio.PriorityQueue()
    taken: list[Any] = []

    async def produce(name: str) -> None:
        for n in range(3):
            await queue.put((await ctx.call("echo", (n * 7 + len(name)) % 5), f"{name}{n}"))

    async def consume() -> None:
        while len(taken) < 6:
            taken.append(await queue.get())
            await ctx.call("taken", taken[-1])

    await asyncio.gather(produce("a"), produce("bb"), consume())
    return taken


@case()
async def lifo_queue(ctx: Context, value: Any) -> Any:
    stack: asyncio.LifoQueue[int] = asyncio.LifoQueue(maxsize=3)
    order: list[int] = []

    async def push(start: int) -> None:
        for n in range(start, start + 4):
            await stack.put(n)
            await ctx.call("pushed", n)

    pushing = asyncio.gather(push(0), push(10))
    while len(order) < 8:
        order.append(await stack.get())
        await asyncio.sleep(0)
    await pushing
    return order


@case()
async def queue_joined(ctx: Context, value: Any) -> Any:
    queue: asyncio.Queue[int] = asyncio.Queue()
    results: list[Any] = []

    async def work(name: str) -> None:
        while True:
            item = await queue.get()
            try:
                results.append([name, await ctx.call("odd", item)])
            except ActivityError:
                if item < 20:
                    queue.put_nowait(item + 21)
            finally:
                queue.task_done()

    workers = [asyncio.create_task(work(name)) for name in "abc"]
    for n in range(6):
        queue.put_nowait(n)
    await queue.join()
    for worker in workers:
        worker.cancel()
    await asyncio.gather(*workers, return_exceptions=True)
    return results


@case()
async def queue_with_impatient_getters(ctx: Context, value: Any) -> Any:
    queue: asyncio.Queue[Any] = asyncio.Queue(maxsize=1)
    taken: list[Any] = []

    async def take(n: int) -> None:
        try:
            async with asyncio.timeout(1 + n / 2):
                taken.append([n, await queue.get()])
        except TimeoutError:
            taken.append([n, None])

    takers = [asyncio.create_task(take(n)) for n in range(4)]
    for n in range(3):
        result = await ctx.call("slow", n)
        with contextlib.suppress(asyncio.QueueFull):
            queue.put_nowait(result)
    await asyncio.gather(*takers)
    return [taken, queue.qsize()]


@case()
async def barrier(ctx: Context, value: Any) -> Any:
    meeting, order = asyncio.Barrier(3), []

    async def walk(n: int) -> None:
        for stage in range(2):
            await ctx.call("walk", [n, stage])
            async with meeting as position:
                order.append([stage, n, position])

    await asyncio.gather(*[walk(n) for n in range(3)])
    return order


@case()
async def barrier_broken(ctx: Context, value: Any) -> Any:
    meeting = asyncio.Barrier(3)

    async def walk(n: int) -> Any:
        await ctx.call("walk", n)
        try:
            return await meeting.wait()
        except asyncio.BrokenBarrierError:
            return await ctx.call("home", n)

    walking = asyncio.gather(walk(0), walk(1))
    await ctx.timer(2)
    await meeting.abort()
    first = await walking
    await meeting.reset()
    return [first, await asyncio.gather(walk(2), walk(3), walk(4))]


@case()
async def bounded_semaphore(ctx: Context, value: Any) -> Any:
    seats, order = asyncio.BoundedSemaphore(2), []

    async def sit(n: int) -> None:
        async with seats:
            order.append(await ctx.call("sit", n))

    await asyncio.gather(*[sit(n) for n in range(5)])
    try:
        seats.release()
    except ValueError as error:
        order.append(str(error))
    return order


@case()
async def semaphore_with_cancelled_waiters(ctx: Context, value: Any) -> Any:
    seats, order = asyncio.Semaphore(1), []

    async def sit(n: int) -> None:
        async with seats:
            order.append(await ctx.call("sit", n))

    sitting = [asyncio.create_task(sit(n)) for n in range(6)]
    await ctx.timer(1)
    for task in sitting[::2]:
        task.cancel()
    await asyncio.gather(*sitting, return_exceptions=True)
    return [order, seats.locked()]


@case()
async def lock_with_deadlines(ctx: Context, value: Any) -> Any:
    lock, order = asyncio.Lock(), []

    async def work(n: int) -> None:
        try:
            async with asyncio.timeout(1 + n):
                await lock.acquire()
        except TimeoutError:
            order.append([n, "late"])
            return
        try:
            order.append([n, await twice(ctx, n)])
        finally:
            lock.release()

    await asyncio.gather(*[work(n) for n in range(4)])
    return order


@case()
async def condition_between_two(ctx: Context, value: Any) -> Any:
    changed, stock, order = asyncio.Condition(), [0], []

    async def consume(n: int) -> None:
        async with changed:
            while stock[0] < n:
                await changed.wait()
            stock[0] -= n
            order.append(n)
        await ctx.call("consumed", n)

    async def produce() -> None:
        for n in range(6):
            await ctx.call("produce", n)
            async with changed:
                stock[0] += 1
                changed.notify(2)

    await asyncio.gather(consume(3), consume(1), consume(2), produce())
    return order


@case()
async def event_set_and_cleared(ctx: Context, value: Any) -> Any:
    open_, passed = asyncio.Event(), []

    async def pass_through(n: int) -> None:
        for round_ in range(2):
            await open_.wait()
            passed.append([n, round_])
            await ctx.call("passed", [n, round_])

    async def tend() -> None:
        while len(passed) < 6:
            await ctx.timer(0.5)
            open_.set()
            await asyncio.sleep(0)
            open_.clear()

    await asyncio.gather(tend(), *[pass_through(n) for n in range(3)])
    return passed


@case()
async def futures_by_hand(ctx: Context, value: Any) -> Any:
    loop = asyncio.get_running_loop()
    promises: dict[int, asyncio.Future[Any]] = {n: loop.create_future() for n in range(5)}

    async def keep(n: int) -> None:
        result = await ctx.call("odd", n)
        promises[n].set_result(result)

    async def keep_or_break(n: int) -> None:
        try:
            await keep(n)
        except ActivityError as error:
            promises[n].set_exception(error)

    keeping = [asyncio.create_task(keep_or_break(n)) for n in promises]
    promises[4].cancel()
    done, _ = await asyncio.wait(promises.values())
    kept = [n for n, promise in promises.items() if not promise.cancelled() and promise.exception() is None]
    outcomes = await asyncio.gather(*keeping, return_exceptions=True)
    return [kept, len(done), [type(outcome).__name__ for outcome in outcomes]]


@case()
async def shared_results(ctx: Context, value: Any) -> Any:
    known: dict[int, asyncio.Task[Any]] = {}

    def look_up(n: int) -> asyncio.Task[Any]:
        if n not in known:
            known[n] = asyncio.create_task(compute(n))
        return known[n]

    async def compute(n: int) -> Any:
        if n < 2:
            return await ctx.call("echo", n)
        return await look_up(n - 1) + await look_up(n - 2)

    return [await look_up(7), list(known)]


@case()
async def readers_and_writers(ctx: Context, value: Any) -> Any:
    lock, readers, log = asyncio.Lock(), [0], []
    empty = asyncio.Event()
    empty.set()

    async def read(n: int) -> None:
        async with lock:
            readers[0] += 1
            empty.clear()
        log.append(["read", await ctx.call("read", n)])
        readers[0] -= 1
        if not readers[0]:
            empty.set()

    async def write(n: int) -> None:
        async with lock:
            await empty.wait()
            log.append(["write", readers[0], await ctx.call("write", n)])

    await asyncio.gather(*[write(n) if n % 3 == 1 else read(n) for n in range(7)])
    return log


@case()
async def rate_limited(ctx: Context, value: Any) -> Any:
    tokens, order = asyncio.Semaphore(0), []

    async def refill() -> None:
        while True:
            await asyncio.sleep(0.5)
            tokens.release()

    async def work(n: int) -> None:
        await tokens.acquire()
        order.append(await ctx.call("echo", n))

    refilling = asyncio.create_task(refill())
    await asyncio.gather(*[work(n) for n in range(4)])
    refilling.cancel()
    return order
