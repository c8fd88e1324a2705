"""Orchestrators that sleep, poll, tick and keep deadlines."""

from __future__ import annotations

import asyncio
import math
from typing import Any

from ..kit import Context
from .cases import case


@case()
async def fair_turns(ctx: Context, value: Any) -> Any:
    order: list[Any] = []

    async def run(n: int) -> None:
        for step in range(3):
            order.append([n, step])
            await asyncio.sleep(0 if n else -1)
        await ctx.call("ran", n)

    await asyncio.gather(*[run(n) for n in range(3)])
    return order


@case()
async def sleeps_of_years(ctx: Context, value: Any) -> Any:
    loop = asyncio.get_running_loop()
    before = loop.time()
    await asyncio.gather(asyncio.sleep(86_400 * 3_650), asyncio.sleep(1e-7), asyncio.sleep(0.000_001))
    return round((loop.time() - before) / 86_400)


@case()
async def sleeps_for_ever(ctx: Context, value: Any) -> Any:
    sleeping = asyncio.create_task(asyncio.sleep(math.inf))
    try:
        async with asyncio.timeout(math.inf):
            await asyncio.wait_for(asyncio.shield(sleeping), 3)
    except TimeoutError:
        sleeping.cancel()
    await asyncio.wait([sleeping])
    return [sleeping.cancelled(), await ctx.call("echo")]


@case()
async def ticks_until_done(ctx: Context, value: Any) -> Any:
    async def tick() -> None:
        n = 0
        while True:
            await asyncio.sleep(0.75)
            n += 1
            ctx.status({"ticks": n})

    ticking = asyncio.create_task(tick())
    try:
        return [await ctx.call("slow", n) for n in range(3)]
    finally:
        ticking.cancel()


@case()
async def polls_with_patience(ctx: Context, value: Any) -> Any:
    wait_s = 0.25
    asked: list[Any] = []
    loop = asyncio.get_running_loop()
    end = loop.time() + 30
    while loop.time() < end:
        asked.append(await ctx.call("poll", len(asked)))
        if len(asked) == 5:
            break
        await asyncio.sleep(min(wait_s, end - loop.time()))
        wait_s *= 2
    return asked


@case(events=tuple(("typed", n) for n in range(5)))
async def debounced(ctx: Context, value: Any) -> Any:
    bursts: list[Any] = []
    last: Any = None
    while True:
        try:
            last = await asyncio.wait_for(ctx.event("typed"), 1 if last is not None else 30)
        except TimeoutError:
            if last is None:
                return bursts
            bursts.append(await ctx.call("save", last))
            last = None


@case(events=tuple(("item", n) for n in range(7)))
async def collected_in_windows(ctx: Context, value: Any) -> Any:
    windows: list[Any] = []
    for _ in range(3):
        window: list[Any] = []
        end = ctx.timer(2)
        while len(window) < 3 and not end.done():
            following = ctx.event("item")
            await asyncio.wait([following, end], return_when=asyncio.FIRST_COMPLETED)
            if following.done():
                window.append(following.result())
            following.cancel()
        end.cancel()
        windows.append(await ctx.call("store", window))
    return windows


@case()
async def timers_made_anew(ctx: Context, value: Any) -> Any:
    alarm = ctx.timer(2)
    extended = 0
    for n in range(4):
        call = ctx.call("slow", n)
        await asyncio.wait([alarm, call], return_when=asyncio.FIRST_COMPLETED)
        if not alarm.done():
            alarm.cancel()
            extended += 1
        call.cancel()
        alarm = ctx.timer(2 - n / 2)
    await alarm
    return extended


@case()
async def timers_at_one_time(ctx: Context, value: Any) -> Any:
    loop = asyncio.get_running_loop()
    end, order = loop.time() + 2, []

    async def wait(n: int) -> None:
        if n % 3 == 0:
            await ctx.timer(2)
        elif n % 3 == 1:
            await asyncio.sleep(end - loop.time())
        else:
            reached = asyncio.Event()
            loop.call_at(end, reached.set)
            await reached.wait()
        order.append(n)

    await asyncio.gather(*[wait(n) for n in range(6)])
    return await ctx.call("echo", order)


@case()
async def deadline_shared_by_steps(ctx: Context, value: Any) -> Any:
    done: list[Any] = []
    try:
        async with asyncio.timeout(6) as limit:
            for n in range(8):
                left = (limit.when() or 0) - asyncio.get_running_loop().time()
                done.append(await asyncio.wait_for(ctx.call("slow", n), min(left, 1.5)))
    except TimeoutError:
        return ["late", limit.expired(), done]
    return done
