"""Orchestrators that look at what is around them: tasks, names, callbacks, context variables, references."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import gc
import weakref
from typing import Any

from ray_durable.errors import NotDeterministicError

from ..kit import Context
from .cases import case, twice

_VARIABLE: contextvars.ContextVar[str] = contextvars.ContextVar("_VARIABLE", default="unset")


@case()
async def context_of_each_task(ctx: Context, value: Any) -> Any:
    async def work(n: int) -> Any:
        inherited = _VARIABLE.get()
        _VARIABLE.set(f"{inherited}/{n}")
        if n:
            return [inherited, *await asyncio.create_task(work(n - 1))]
        await ctx.call("echo", _VARIABLE.get())
        return [inherited]

    _VARIABLE.set("root")
    tasks = [asyncio.create_task(work(n)) for n in range(3)]
    _VARIABLE.set("changed later")
    return [await asyncio.gather(*tasks), _VARIABLE.get()]


@case()
async def context_handed_on(ctx: Context, value: Any) -> Any:
    async def enter(name: str) -> None:
        _VARIABLE.set(name)
        await ctx.call("echo", name)

    own = contextvars.copy_context()
    await asyncio.create_task(enter("first"), context=own)
    seen = [own.get(_VARIABLE), _VARIABLE.get()]
    await asyncio.gather(*[asyncio.create_task(enter(name), context=own) for name in ("second", "third")])
    return [seen, own.run(_VARIABLE.get)]


@case()
async def context_restored(ctx: Context, value: Any) -> Any:
    seen: list[Any] = []

    async def nested(depth: int) -> None:
        token = _VARIABLE.set(str(depth))
        try:
            if depth:
                await nested(depth - 1)
            seen.append([depth, await ctx.call("echo", _VARIABLE.get())])
        finally:
            _VARIABLE.reset(token)

    await asyncio.gather(nested(2), nested(1))
    return [seen, _VARIABLE.get()]


@case()
async def context_of_callbacks(ctx: Context, value: Any) -> Any:
    seen: list[str] = []
    loop, call = asyncio.get_running_loop(), ctx.call("echo")
    for name in ("a", "b"):
        own = contextvars.copy_context()
        own.run(_VARIABLE.set, name)
        call.add_done_callback(lambda _: seen.append(_VARIABLE.get()), context=own)
        loop.call_later(1, lambda: seen.append(_VARIABLE.get()), context=own)
    _VARIABLE.set("mine")
    loop.call_soon(lambda: seen.append(_VARIABLE.get()))
    await call
    await ctx.timer(1.5)
    return seen


@case()
async def names_of_tasks(ctx: Context, value: Any) -> Any:
    async def work() -> Any:
        task = asyncio.current_task()
        assert task is not None
        before = task.get_name()
        task.set_name(f"{before}, renamed")
        await ctx.call("echo", task.get_name())
        return [before, task.get_name()]

    named = [asyncio.create_task(work(), name=name) for name in ("left", "right")]
    return [await asyncio.gather(*named, work(), work()), sorted(task.get_name() for task in asyncio.all_tasks())]


@case()
async def tasks_looked_at(ctx: Context, value: Any) -> Any:
    tasks = [asyncio.create_task(twice(ctx, n), name=str(n)) for n in range(33)]
    for task in tasks:
        if int(task.get_name()) % 8:
            task.cancel()
    seen = []
    for _ in range(3):
        await ctx.timer(0.5)
        seen.append([task.get_name() for task in asyncio.all_tasks()])
    await asyncio.gather(*tasks, return_exceptions=True)
    return seen


@case()
async def callbacks_in_order(ctx: Context, value: Any) -> Any:
    order: list[Any] = []

    def note(name: str, future: asyncio.Future[Any]) -> None:
        order.append([name, future.cancelled()])
        if name == "a":
            future.add_done_callback(functools.partial(note, "added late"))
            asyncio.get_running_loop().call_soon(order.append, "soon")

    for calling in (ctx.call("echo"), ctx.timer(1), ctx.event("never")):
        removed = functools.partial(note, "removed")
        for name in "abc":
            calling.add_done_callback(functools.partial(note, name))
        calling.add_done_callback(removed)
        calling.remove_done_callback(removed)
        await asyncio.wait([calling], timeout=2)
        calling.cancel()
        await asyncio.sleep(0)
    return order


@case()
async def callbacks_that_ask(ctx: Context, value: Any) -> Any:
    loop = asyncio.get_running_loop()
    calls: list[asyncio.Future[Any]] = []
    now = loop.time()
    handles: list[asyncio.Handle] = [
        loop.call_later(2, lambda: calls.append(ctx.call("later", 2))),
        loop.call_at(now + 1, lambda: calls.append(ctx.call("at", 1))),
        loop.call_later(0, lambda: calls.append(ctx.call("at once"))),
        loop.call_at(now - 5, lambda: calls.append(ctx.call("long past"))),
        loop.call_later(1.5, lambda: handles[4].cancel()),
        loop.call_later(3, lambda: calls.append(ctx.call("never"))),
        loop.call_soon(lambda: handles[5].cancel()),
    ]
    await ctx.timer(4)
    return [await asyncio.gather(*calls), [handle.cancelled() for handle in handles]]


@case()
async def callbacks_that_fail(ctx: Context, value: Any) -> Any:
    def broken(_: Any) -> None:
        raise ValueError("in a callback")

    for n in range(3):
        call = ctx.call("echo", n)
        call.add_done_callback(broken)
        await call
    return "none the worse"


@case()
async def dispatched_by_type(ctx: Context, value: Any) -> Any:
    @functools.singledispatch
    def handle(item: object) -> Any:
        return ctx.call("unknown", str(item))

    @handle.register
    async def _(item: int) -> Any:
        return await twice(ctx, item)

    @handle.register
    async def _(item: list) -> Any:  # type: ignore[type-arg]  # singledispatch takes plain classes alone
        return await asyncio.gather(*[handle(part) for part in item])

    return await handle([1, "text", [2, [3, None]]])


@case()
async def weak_references(ctx: Context, value: Any) -> Any:
    class Thing:
        def __init__(self, n: int) -> None:
            self.n = n

    things = {n: Thing(n) for n in range(4)}
    known: weakref.WeakValueDictionary[int, Thing] = weakref.WeakValueDictionary(things)
    seen = []
    for n in (2, 0):
        del things[n]
        gc.collect(1)
        seen.append(await ctx.call("echo", sorted(known)))
    task: weakref.ref[asyncio.Task[Any]] = weakref.ref(asyncio.create_task(_waits(ctx)))
    gc.collect(1)
    await ctx.call("echo", task() is not None)
    return seen


async def _waits(ctx: Context) -> None:
    await asyncio.get_running_loop().create_future()


@case()
async def collected_in_the_middle(ctx: Context, value: Any) -> Any:
    async def work(n: int) -> Any:
        trap: list[Any] = [asyncio.current_task()]
        trap.append(trap)
        try:
            return await ctx.call("odd", n)
        except Exception as error:
            trap.append(error)
            gc.collect(1)
            return await ctx.call("instead", n)

    outcomes = await asyncio.gather(*[work(n) for n in range(6)])
    gc.collect(1)
    return await ctx.call("echo", outcomes)


@case()
async def sets_and_their_operations(ctx: Context, value: Any) -> Any:
    tasks = [asyncio.create_task(twice(ctx, n), name=str(n)) for n in range(24)]
    even, third = set(tasks[::2]), set(tasks[::3])
    for group in (even & third, even ^ third, even - third, even | third, frozenset(tasks) - even):
        await ctx.call("names", [task.get_name() for task in group])
    for task in even - third:
        task.cancel()
    outcomes = await asyncio.gather(*(even | third), return_exceptions=True)
    while third:
        third.pop().cancel()
    return [type(outcome).__name__ for outcome in outcomes]


@case()
async def keyed_by_futures(ctx: Context, value: Any) -> Any:
    asked = {ctx.call("echo", n): n for n in range(6)}
    waiting, order = set(asked), []
    while waiting:
        done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for call in done:
            order.append(asked.pop(call))
        again = {ctx.call("again", n): n for n in order if n > 3 and -n not in order}
        order += [-n for n in again.values()]
        asked |= again
        waiting |= again.keys()
    return [order, list(asked.values())]


@case()
async def refused_and_done_otherwise(ctx: Context, value: Any) -> Any:
    advice = []
    for attempt in (lambda: asyncio.to_thread(print), lambda: asyncio.open_connection("localhost", 1)):
        try:
            await attempt()
        except NotDeterministicError as error:
            advice.append(await ctx.call("echo", str(error)))
    try:
        asyncio.Future()
    except NotDeterministicError as error:
        advice.append(str(error))
    return advice


@case()
async def errors_with_their_past(ctx: Context, value: Any) -> Any:
    async def wrap(n: int) -> None:
        try:
            await ctx.call("fail", n)
        except Exception as error:
            error.add_note(f"note {n}")
            raise LookupError(n) from error

    outcomes = await asyncio.gather(*[wrap(n) for n in range(3)], return_exceptions=True)
    return await ctx.call("echo", [[repr(error), str(error.__cause__)] for error in outcomes if error])
