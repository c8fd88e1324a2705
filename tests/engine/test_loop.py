"""The event loop: what of asyncio works in an orchestrator, in which order, and what is refused."""

from __future__ import annotations

import asyncio
import asyncio.tasks
import concurrent.futures
import contextlib
import contextvars
import gc
import math
import socket
import sys
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Generator
from typing import Any

import pytest

from ray_durable.engine import (
    Event,
    EventRaised,
    Execution,
    ExecutionTerminated,
    TaskCanceled,
    TaskScheduled,
    drive_generator,
)
from ray_durable.errors import NotDeterministicError
from ray_durable.payload import Payload

from .kit import Context, begin, completed, decode, encode, main_of, started

REFUSED: dict[str, Callable[[asyncio.AbstractEventLoop], Any]] = {
    "run_in_executor": lambda loop: loop.run_in_executor(None, print),
    "to_thread": lambda loop: asyncio.to_thread(print),
    "set_default_executor": lambda loop: loop.set_default_executor(concurrent.futures.ThreadPoolExecutor()),
    "shutdown_default_executor": lambda loop: loop.shutdown_default_executor(),
    "call_soon_threadsafe": lambda loop: loop.call_soon_threadsafe(print),
    "run_coroutine_threadsafe": lambda loop: asyncio.run_coroutine_threadsafe(asyncio.sleep(0), loop),
    "wrap_future": lambda loop: asyncio.wrap_future(concurrent.futures.Future()),
    "open_connection": lambda loop: asyncio.open_connection("localhost", 1),
    "open_unix_connection": lambda loop: asyncio.open_unix_connection("/nowhere"),
    "start_server": lambda loop: asyncio.start_server(print, "localhost", 0),
    "start_unix_server": lambda loop: asyncio.start_unix_server(print, "/nowhere"),
    "create_datagram_endpoint": lambda loop: loop.create_datagram_endpoint(asyncio.DatagramProtocol, ("localhost", 0)),
    "connect_read_pipe": lambda loop: loop.connect_read_pipe(asyncio.Protocol, None),
    "connect_write_pipe": lambda loop: loop.connect_write_pipe(asyncio.Protocol, None),
    "connect_accepted_socket": lambda loop: loop.connect_accepted_socket(asyncio.Protocol, socket.socket()),
    "sock_recv": lambda loop: loop.sock_recv(socket.socket(), 1),
    "sock_sendall": lambda loop: loop.sock_sendall(socket.socket(), b""),
    "sock_connect": lambda loop: loop.sock_connect(socket.socket(), ("localhost", 1)),
    "getaddrinfo": lambda loop: loop.getaddrinfo("localhost", 1),
    "getnameinfo": lambda loop: loop.getnameinfo(("localhost", 1)),
    "create_subprocess_exec": lambda loop: asyncio.create_subprocess_exec("true"),
    "create_subprocess_shell": lambda loop: asyncio.create_subprocess_shell("true"),
    "add_reader": lambda loop: loop.add_reader(0, print),
    "remove_reader": lambda loop: loop.remove_reader(0),
    "add_writer": lambda loop: loop.add_writer(0, print),
    "remove_writer": lambda loop: loop.remove_writer(0),
    "add_signal_handler": lambda loop: loop.add_signal_handler(2, print),
    "remove_signal_handler": lambda loop: loop.remove_signal_handler(2),
    "set_task_factory": lambda loop: loop.set_task_factory(None),
    "set_exception_handler": lambda loop: loop.set_exception_handler(print),
    "set_debug": lambda loop: loop.set_debug(True),
    "run_forever": lambda loop: loop.run_forever(),
    "run_until_complete": lambda loop: loop.run_until_complete(asyncio.sleep(0)),
    "shutdown_asyncgens": lambda loop: loop.shutdown_asyncgens(),
    "stop": lambda loop: loop.stop(),
    "close": lambda loop: loop.close(),
    "Future": lambda loop: asyncio.Future(),
    "Future of a subclass": lambda loop: _OwnFuture(loop=loop),
    "Task": lambda loop: asyncio.Task(asyncio.sleep(0), loop=loop),
    "eager_task_factory": lambda loop: _eager_task(loop),
}


class _OwnFuture(asyncio.Future[Any]):
    pass


def _eager_task(loop: asyncio.AbstractEventLoop) -> Any:
    # Newer than the oldest Python that we run on.
    make = getattr(asyncio, "eager_task_factory", None)
    return asyncio.Task(asyncio.sleep(0), loop=loop) if make is None else make(loop, asyncio.sleep(0))


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited", "ignore:unclosed <socket")
@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_replayed_is_refused_with_advice(name: str) -> None:
    """The error names what to use instead, and user code may catch it."""

    async def orchestrator(ctx: Context, value: Any) -> Any:
        try:
            waiting = REFUSED[name](asyncio.get_running_loop())
            if asyncio.iscoroutine(waiting):
                await waiting
        except NotDeterministicError as error:
            return str(error)

    execution, _ = begin(orchestrator)
    assert execution.result is not None
    said = decode(execution.result)
    assert "replay" in said
    assert said.endswith(".")
    assert any(word in said for word in ("activity", "event", "await", "return", "create_task"))


KNOWN_AS = (
    "to_thread",
    "run_coroutine_threadsafe",
    "open_connection",
    "open_unix_connection",
    "start_server",
    "start_unix_server",
    "create_subprocess_exec",
    "create_subprocess_shell",
)


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")
@pytest.mark.parametrize("name", KNOWN_AS)
def test_a_refusal_names_what_the_code_called(name: str) -> None:
    """Not the loop's method alone, which most people have never heard of."""

    async def orchestrator(ctx: Context, value: Any) -> Any:
        await REFUSED[name](asyncio.get_running_loop())

    execution, _ = begin(orchestrator)
    assert execution.failure is not None
    assert execution.failure.type_name == "NotDeterministicError"
    assert f"asyncio.{name} " in execution.failure.message
    gc.collect()


BUSY: dict[str, Callable[[], Any]] = {
    "run": lambda: asyncio.run(asyncio.sleep(0)),
    "Runner": lambda: _in_runner(),
    "another loop": lambda: _in_another_loop(),
}


def _in_runner() -> None:
    with asyncio.Runner() as runner:
        runner.run(asyncio.sleep(0))


def _in_another_loop() -> None:
    loop = asyncio.new_event_loop()
    try:
        loop.run_until_complete(asyncio.sleep(0))
    finally:
        loop.close()


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")
@pytest.mark.parametrize("name", BUSY)
def test_no_other_loop_runs_inside_of_ours(name: str) -> None:
    """asyncio refuses it by itself, in its own words, and without asking our loop."""

    async def orchestrator(ctx: Context, value: Any) -> Any:
        with pytest.raises(RuntimeError, match=r"running event loop|another loop"):
            BUSY[name]()
        await ctx.call("a")

    execution, caused = begin(orchestrator)
    gc.collect()
    assert [event.name for event in caused if isinstance(event, TaskScheduled)] == ["a"]
    assert execution.apply([completed(2)])[-1].number == 4


def test_every_method_of_a_loop_works_or_is_refused() -> None:
    """None is left abstract, whatever the version of Python adds."""
    execution = Execution(main_of(_nothing))
    loop = execution._loop
    for name, method in vars(asyncio.AbstractEventLoop).items():
        if callable(method) and not name.startswith("__"):
            assert getattr(type(loop), name) is not method, name


async def _nothing(ctx: Context, value: Any) -> Any:
    return None


def test_tasks_of_a_group_are_cancelled_in_the_order_of_their_creation() -> None:
    """However many, and whatever the run's first hash: a plain set would often begin somewhere in the middle."""

    async def orchestrator(ctx: Context, value: Any) -> Any:
        async with asyncio.TaskGroup() as group:
            for n in range(100):
                group.create_task(wait(ctx, n))
            await ctx.event("go")
            raise ValueError

    async def wait(ctx: Context, n: int) -> None:
        await ctx.call("a", n)

    for run in range(10):
        execution = Execution(main_of(orchestrator))
        caused = execution.apply([started(run=f"run-{run}")])[1:]
        out = execution.apply([EventRaised(name="go", value=encode(None))])
        canceled = [event.task for event in out if isinstance(event, TaskCanceled)]
        assert canceled == [event.number for event in caused]


@pytest.mark.parametrize("container", [list, tuple])
def test_as_completed_starts_coroutines_in_the_order_given(container: Callable[[Any], Any]) -> None:
    """Its set of coroutines would start them by address."""

    async def orchestrator(ctx: Context, value: Any) -> Any:
        ballast.append([object() for _ in range(17)])
        order = container([_call(ctx, n) for n in range(50)])
        return [await following for following in asyncio.as_completed(order)]

    ballast: list[Any] = []
    for _ in range(3):
        execution, caused = begin(orchestrator)
        assert [decode(event.input) for event in caused if isinstance(event, TaskScheduled)] == list(range(50))
        execution.apply([completed(event.number, event.number) for event in reversed(caused)])
        assert execution.result == encode([event.number for event in reversed(caused)])


async def _call(ctx: Context, n: int) -> Any:
    return await ctx.call("a", n)


class _Awaitable:
    def __init__(self, ctx: Context) -> None:
        self.ctx = ctx

    def __await__(self) -> Generator[Any, None, Any]:
        return self.ctx.call("a").__await__()


UNORDERED: dict[str, Callable[[Context], Any]] = {
    "set": lambda ctx: {_call(ctx, n) for n in range(3)},
    "iterator": lambda ctx: map(_call, [ctx] * 3, range(3)),
    "awaitables": lambda ctx: [_Awaitable(ctx), _Awaitable(ctx)],
    "with futures that are done": lambda ctx: [_call(ctx, 1), _done(), _done()],
}


def _done() -> asyncio.Future[Any]:
    future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    future.set_result(None)
    return future


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")
@pytest.mark.parametrize("kind", UNORDERED)
def test_as_completed_refuses_coroutines_without_an_order(kind: str) -> None:
    """Rather than to start them in an order that no replay repeats."""

    async def orchestrator(ctx: Context, value: Any) -> Any:
        return [await following for following in asyncio.as_completed(UNORDERED[kind](ctx))]

    execution, _ = begin(orchestrator)
    assert execution.failure is not None
    assert execution.failure.type_name == "NotDeterministicError"
    assert "as_completed" in execution.failure.message
    # What was refused was never awaited, and is to be reported as such here, not in another test.
    execution.close()
    del execution
    gc.collect()


def test_futures_tasks_and_gatherings_hash_by_creation() -> None:
    """So sets of them iterate alike in every process: hashes are consecutive, from a start given by the run."""

    async def orchestrator(ctx: Context, value: Any) -> Any:
        loop = asyncio.get_running_loop()
        made: list[Any] = [
            loop.create_future(),
            ctx.call("a"),
            asyncio.create_task(asyncio.sleep(9)),
            asyncio.gather(ctx.call("b")),
            ctx.event("e"),
        ]
        return [hash(future) - hash(made[0]) for future in made]

    execution, _ = begin(orchestrator)
    assert execution.result == encode([0, 1, 2, 4, 5])


def test_task_names_count_from_one_in_each_execution() -> None:
    async def orchestrator(ctx: Context, value: Any) -> Any:
        tasks = [asyncio.create_task(asyncio.sleep(0)), asyncio.create_task(asyncio.sleep(0), name="mine")]
        return [task.get_name() for task in tasks]

    for _ in range(2):
        execution, _ = begin(orchestrator)
        assert execution.result == encode(["Task-2", "mine"])


def test_a_task_that_nobody_holds_is_not_collected() -> None:
    """Garbage collection comes at any time; what an orchestrator started goes on."""

    async def orchestrator(ctx: Context, value: Any) -> Any:
        async def alone() -> None:
            await asyncio.get_running_loop().create_future()

        asyncio.create_task(alone(), name="lonely")  # noqa: RUF006  # not held: that is the point
        await ctx.call("a")
        return sorted(task.get_name() for task in asyncio.all_tasks())

    execution, _ = begin(orchestrator)
    gc.collect()
    execution.apply([completed(2)])
    assert execution.result == encode(["lonely", "orchestrator"])


def test_finished_tasks_are_let_go() -> None:
    """Memory follows the tasks that run, not those that ever ran."""

    async def orchestrator(ctx: Context, value: Any) -> Any:
        for _ in range(5_000):
            await asyncio.create_task(asyncio.sleep(0))
        await ctx.call("a")

    execution, _ = begin(orchestrator)
    assert len(execution._loop._tasks) < 200


def test_callbacks_that_raise_are_kept_and_harm_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    async def orchestrator(ctx: Context, value: Any) -> Any:
        def broken() -> None:
            raise ValueError("in a callback")

        asyncio.get_running_loop().call_soon(broken)
        await ctx.call("a")

    execution, _ = begin(orchestrator)
    assert [repr(error) for error in execution.unhandled_errors] == ["ValueError('in a callback')"]
    assert len(execution.apply([completed(2)])) == 2
    assert capsys.readouterr().err == ""


def test_a_freed_async_generator_cannot_ask_for_anything() -> None:
    """When it is freed may be chance, so that its cleanup has no say; closing it in time has."""
    tried: list[str] = []

    async def pages(ctx: Context) -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            try:
                ctx.call("clean up")
            except BaseException as error:
                tried.append(type(error).__name__)

    async def orchestrator(ctx: Context, value: Any) -> Any:
        async for _ in pages(ctx):
            break
        gc.collect()
        await ctx.call("a")

    _, caused = begin(orchestrator)
    assert [event.name for event in caused if isinstance(event, TaskScheduled)] == ["a"]
    assert tried == ["ExecutionClosed"]


def test_an_async_generator_found_by_the_collector_is_closed_at_the_end() -> None:
    """When the collector runs is chance, so that what the cleanup frees must stay as it is until then."""
    closed: list[str] = []

    async def pages(lock: asyncio.Lock) -> AsyncIterator[int]:
        try:
            async with lock:
                yield 1
        finally:
            closed.append("closed")

    async def orchestrator(ctx: Context, value: Any) -> Any:
        lock = asyncio.Lock()
        cycle: list[Any] = [pages(lock)]
        cycle.append(cycle)
        await anext(cycle[0])
        del cycle
        gc.collect()
        await ctx.call("a", lock.locked())
        closed.append("ended")

    execution, caused = begin(orchestrator)
    assert [decode(event.input) for event in caused if isinstance(event, TaskScheduled)] == [True]
    assert closed == []
    execution.apply([completed(2)])
    assert closed == ["ended", "closed"]


def test_all_tasks_come_in_the_order_of_their_creation() -> None:
    """asyncio looks for them in a set of all tasks of the process, which others have put in disorder."""

    async def orchestrator(ctx: Context, value: Any) -> Any:
        tasks = [asyncio.create_task(_call(ctx, n), name=str(n)) for n in range(200)]
        for n, task in enumerate(tasks):
            if n % 64:
                task.cancel()
        await asyncio.gather(*[task for n, task in enumerate(tasks) if n % 64], return_exceptions=True)
        return [task.get_name() for task in asyncio.all_tasks()]

    async def among_others(n: int) -> None:
        others = [asyncio.create_task(asyncio.sleep(0)) for _ in range(n)]
        assert len(asyncio.all_tasks()) == n + 1
        execution, _ = begin(orchestrator)
        assert execution.result is not None
        seen.add(execution.result)
        await asyncio.gather(*others)

    seen: set[Payload] = set()
    for n in range(20):
        asyncio.run(among_others(n))
    assert len(seen) == 1
    assert sorted(decode(seen.pop())) == ["0", "128", "192", "64", "orchestrator"]


@pytest.mark.parametrize("delay", [math.inf, 1e300, 9e11])
def test_a_delay_past_the_year_9999_never_ends(delay: float) -> None:
    """It asks for no timer, and may be cancelled like any other."""

    async def orchestrator(ctx: Context, value: Any) -> Any:
        async with asyncio.timeout(delay):
            sleeping = asyncio.create_task(asyncio.sleep(delay))
            await ctx.call("a")
            sleeping.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await sleeping
        return sleeping.cancelled()

    execution, caused = begin(orchestrator)
    assert [type(event) for event in caused] == [TaskScheduled]
    execution.apply([completed(2)])
    assert execution.result == encode(True)


def test_a_delay_that_is_no_number_is_refused() -> None:
    async def orchestrator(ctx: Context, value: Any) -> Any:
        with pytest.raises(ValueError, match="NaN"):
            await asyncio.sleep(math.nan)
        return "refused"

    execution, _ = begin(orchestrator)
    assert execution.result == encode("refused")


def test_asking_for_the_debug_mode_is_answered() -> None:
    """Unlike a constructor of futures that asks for it."""

    async def orchestrator(ctx: Context, value: Any) -> Any:
        return asyncio.get_running_loop().get_debug()

    execution, _ = begin(orchestrator)
    assert execution.result == encode(False)


REACHING_IN: dict[str, Callable[[Any, Any, Any, Any], object]] = {
    "set_result": lambda loop, future, task, idle: future.set_result(1),
    "set_exception": lambda loop, future, task, idle: future.set_exception(ValueError()),
    "cancel a future": lambda loop, future, task, idle: future.cancel(),
    "cancel a task": lambda loop, future, task, idle: task.cancel(),
    "create_future": lambda loop, future, task, idle: loop.create_future(),
    "create_task": lambda loop, future, task, idle: loop.create_task(idle),
    "call_soon": lambda loop, future, task, idle: loop.call_soon(print),
    "call_soon_threadsafe": lambda loop, future, task, idle: loop.call_soon_threadsafe(print),
    "call_later": lambda loop, future, task, idle: loop.call_later(1, print),
    "call_at": lambda loop, future, task, idle: loop.call_at(0, print),
    "run_coroutine_threadsafe": lambda loop, future, task, idle: asyncio.run_coroutine_threadsafe(idle, loop),
}


async def _idle() -> None:
    pass


@pytest.mark.parametrize("way", REACHING_IN)
def test_other_threads_cannot_reach_into_an_orchestrator(way: str) -> None:
    """The error is raised in that thread, says how to do it instead, and nothing has changed."""
    inside: list[Any] = []
    errors: list[NotDeterministicError] = []

    async def orchestrator(ctx: Context, value: Any) -> Any:
        loop = asyncio.get_running_loop()
        # Nobody waits for the future, so that nothing has to be called when it is done.
        inside.extend([loop, loop.create_future(), asyncio.create_task(_call(ctx, 1))])
        before = hash(inside[1])
        await ctx.event("go")
        return [inside[1].done(), inside[2].done(), hash(loop.create_future()) - before]

    def reach_in() -> None:
        try:
            loop, future, task = inside
            REACHING_IN[way](loop, future, task, idle)
        except NotDeterministicError as error:
            errors.append(error)

    execution, _ = begin(orchestrator)
    idle = _idle()
    thread = threading.Thread(target=reach_in)
    thread.start()
    thread.join()
    idle.close()
    assert "an external event" in str(errors[0])
    execution.apply([EventRaised(name="go", value=encode(None))])
    assert execution.result == encode([False, False, 4])


def test_apply_inside_of_a_task_of_another_loop_leaves_that_loop_as_it_was() -> None:
    """Running loop, current task and async generator hooks are the outer ones again, also after an error."""

    async def orchestrator(ctx: Context, value: Any) -> Any:
        task = asyncio.current_task()
        assert task is not None
        names.append(task.get_name())
        async with asyncio.timeout(5):
            await ctx.call("a")
        if value == "fail":
            raise ValueError

    names: list[str] = []

    async def outer() -> None:
        before = (asyncio.get_running_loop(), asyncio.current_task(), sys.get_asyncgen_hooks())
        for value in ("work", "fail"):
            execution, _ = begin(orchestrator, value)
            await asyncio.sleep(0)
            execution.apply([completed(3)])
            assert (asyncio.get_running_loop(), asyncio.current_task(), sys.get_asyncgen_hooks()) == before
        with pytest.raises(TypeError):
            begin(_nothing)[0].apply([TaskScheduled(name="a", input=encode(1))])
        assert (asyncio.get_running_loop(), asyncio.current_task(), sys.get_asyncgen_hooks()) == before
        async with asyncio.timeout(5):
            await asyncio.sleep(0)

    asyncio.run(outer())
    assert names == ["orchestrator", "orchestrator"]


def test_apply_inside_of_a_callback_of_another_loop_works_too() -> None:
    """There a loop runs, but no task."""

    async def outer() -> None:
        done: asyncio.Future[Event] = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(lambda: done.set_result(begin(_nothing)[1][0]))
        assert (await done).number == 2

    asyncio.run(outer())


def test_the_callers_context_variables_are_not_seen() -> None:
    """What happens to be set where an input is applied is not in the history."""
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")

    async def orchestrator(ctx: Context, value: Any) -> Any:
        before = variable.get()
        variable.set("set by the orchestrator")
        await ctx.call("a")
        return [before, variable.get()]

    variable.set("set by the caller")
    execution, _ = begin(orchestrator)
    execution.apply([completed(2)])
    assert execution.result == encode(["unset", "set by the orchestrator"])
    assert variable.get() == "set by the caller"


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")
@pytest.mark.parametrize("yielded", [3, "text", None, [1]])
def test_a_generator_that_yields_no_awaitable_is_told_so(yielded: object) -> None:
    """At its own yield, where it may catch it."""

    def steps() -> Any:
        try:
            yield yielded
        except TypeError as error:
            return str(error)

    def orchestrator(ctx: Context, value: Any) -> Coroutine[Any, Any, Any]:
        return drive_generator(steps())

    execution, _ = begin(orchestrator)
    assert execution.result is not None
    assert "await" in decode(execution.result)


def test_a_driven_generator_is_closed_with_its_execution() -> None:
    """Its cleanup runs once, at once."""
    closed: list[str] = []
    held: list[Any] = []

    def steps(ctx: Context) -> Any:
        try:
            yield ctx.call("a")
        finally:
            closed.append("closed")

    def orchestrator(ctx: Context, value: Any) -> Coroutine[Any, Any, Any]:
        held.append(steps(ctx))
        return drive_generator(held[0])

    execution = Execution(main_of(orchestrator))
    execution.apply([started(), ExecutionTerminated(reason="x", request_id="r")])
    assert closed == ["closed"]
