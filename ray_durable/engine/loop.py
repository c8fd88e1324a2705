"""The deterministic asyncio event loop on which an orchestrator's coroutines run.

Contract: callbacks run in the order in which they were scheduled, on the caller's thread, within `run`; time is what
`now_us` was set to; a delay is a durable timer, asked for through the two functions given to the constructor; futures
and tasks hash by order of creation. So the same inputs make the same coroutines take the same steps in every process.

It does no I/O and starts no thread: what asyncio offers beyond coroutines, futures and timers raises
NotDeterministicError with a word on what to use instead. It knows nothing of events and commands.
"""

from __future__ import annotations

import asyncio
import asyncio.tasks
import math
import sys
from asyncio.events import _get_running_loop, _set_running_loop
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextvars import Context, copy_context
from itertools import count
from typing import Any, NoReturn, ParamSpec, TypeVar, TypeVarTuple

from ray_durable.engine.collecting import is_collecting
from ray_durable.engine.futures import OWN_CONSTRUCTORS, CommandFuture, OrderedFuture, OrderedTask, Origin, require_turn
from ray_durable.engine.interrupts import ExecutionClosed
from ray_durable.engine.ordering import adopt_future, as_completed_caller, order_task_group, ordered_awaitables
from ray_durable.errors import NotDeterministicError

__all__ = ["EventLoop"]

_P = ParamSpec("_P")
_R = TypeVar("_R")
_Ts = TypeVarTuple("_Ts")

_CLOSE_ATTEMPTS_MAX = 100
_TASKS_KEPT_MIN = 64
_WRAP_FUTURE = asyncio.wrap_future.__code__
# The year 10000, which no timer outlives: what is due then or later is never due.
_NEVER_US = 253_402_300_800_000_000


class _Handle(asyncio.Handle):
    __slots__ = ()

    def __init__(
        self, callback: Callable[..., object], args: tuple[Any, ...], loop: EventLoop, context: Context | None
    ) -> None:
        # The base class's constructor, without its question for the debug mode.
        self._context = copy_context() if context is None else context
        self._loop = loop
        self._callback = callback
        self._args = args
        self._cancelled = False
        self._repr = None
        self._source_traceback = None


class _TimerHandle(asyncio.TimerHandle):
    __slots__ = ("timer",)

    timer: int | None


class EventLoop(asyncio.AbstractEventLoop):
    """A deterministic event loop.

    `create_timer(due_us, callback)` returns the number of a durable timer that calls `callback` once; `cancel_timer`
    takes the number back, and must bear numbers of timers that are past. `now_us` is the time. `find_origin` may be set
    to what tells which code creates a task: its tasks ask when they begin.
    """

    def __init__(
        self, create_timer: Callable[[int, Callable[[], object]], int], cancel_timer: Callable[[int], None]
    ) -> None:
        self.now_us = 0
        self.closing = False
        self.unhandled: list[BaseException] = []
        self.find_origin: Callable[[], Origin | None] = lambda: None
        self._create_timer = create_timer
        self._cancel_timer = cancel_timer
        self._ready: deque[asyncio.Handle] = deque()
        self._ordinals = count(1)
        self._task_number = 0
        self._tasks: list[OrderedTask] = []
        self._tasks_kept_max = _TASKS_KEPT_MIN
        self._as_completed: dict[int, OrderedTask] = {}
        self._strays: list[AsyncGenerator[Any, Any]] = []
        self._halted = False
        self._closed = False

    def begin_order(self, first: int) -> None:
        """Number futures and tasks from `first` on. Different loops should count in different regions: asyncio keeps
        all tasks of the process in one set."""
        self._ordinals = count(first)

    def run(self, function: Callable[_P, _R], *args: _P.args, **kwargs: _P.kwargs) -> _R:
        """Call `function` with this loop as the running one. May be called inside of a task of another loop."""
        outer = _get_running_loop()
        outer_task = None if outer is None else asyncio.current_task(outer)
        if outer is not None and outer_task is not None:
            asyncio.tasks._leave_task(outer, outer_task)
        hooks = sys.get_asyncgen_hooks()
        sys.set_asyncgen_hooks(firstiter=None, finalizer=self._close_asyncgen)
        _set_running_loop(self)
        try:
            return function(*args, **kwargs)
        finally:
            _set_running_loop(outer)
            sys.set_asyncgen_hooks(*hooks)
            if outer is not None and outer_task is not None:
                asyncio.tasks._enter_task(outer, outer_task)

    def run_until_quiet(self) -> None:
        """Run callbacks until none is ready, or `halt` was called."""
        ready = self._ready
        while ready and not self._halted:
            handle = ready.popleft()
            if not handle._cancelled:
                try:
                    handle._run()
                except (SystemExit, KeyboardInterrupt):
                    # The task that raised it has it as its exception; the process is not the orchestrator's to end.
                    continue

    def halt(self) -> None:
        """Run nothing more after the present callback."""
        self._halted = True

    def shut_down(self) -> None:
        """Close all unfinished coroutines, in order of creation, without letting them go on. To be called in `run`."""
        self._halted = self.closing = True
        for task in self._tasks:
            if not task.done():
                task._log_destroy_pending = False
                _close(task.get_coro())
            elif task._log_traceback:
                self._note_unhandled(task)
        for generator in self._strays:
            self._close_asyncgen(generator)
        self._strays.clear()
        self._tasks.clear()
        self._as_completed.clear()
        self._ready.clear()
        self._closed = True

    def current_origin(self) -> Origin | None:
        """Which code created the task that runs, or, where that was asyncio's own, the task that created it."""
        task = asyncio.current_task(self)
        return task.origin if isinstance(task, OrderedTask) else None

    def unfinished(self) -> list[OrderedTask]:
        """The tasks that are not done, in the order of their creation."""
        return [task for task in self._tasks if not task.done()]

    def may_ask(self) -> bool:
        """Whether the running code may ask for something: not while coroutines are being closed.

        Raises:
            NotDeterministicError: It is not the orchestrator's code, or not in its turn.
        """
        if _get_running_loop() is self:
            return not self.closing
        if self.closing:
            return False
        require_turn(self)
        return True

    def time(self) -> float:
        """The time of the input that is being processed, in seconds since the Unix epoch."""
        return self.now_us / 1_000_000

    def call_soon(
        self, callback: Callable[[*_Ts], object], *args: *_Ts, context: Context | None = None
    ) -> asyncio.Handle:
        handle = _Handle(callback, args, self, context)
        if _get_running_loop() is self:
            self._ready.append(handle)
        elif not self._closed:
            require_turn(self)
        return handle

    def call_later(
        self, delay: float, callback: Callable[[*_Ts], object], *args: *_Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """Call `callback` after `delay` seconds: in this turn, without a timer, if that is none.

        A delay that ends after the year 9999 never does, and asks for no timer.

        Raises:
            ValueError: The delay is not a number.
        """
        return self._call_at(self.now_us + _microseconds(delay), callback, args, context)

    def call_at(
        self, when: float, callback: Callable[[*_Ts], object], *args: *_Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """Call `callback` at `when`, in seconds of `time`. See `call_later`."""
        return self._call_at(_microseconds(when), callback, args, context)

    def _call_at(
        self, due_us: int, callback: Callable[..., object], args: tuple[Any, ...], context: Context | None
    ) -> asyncio.TimerHandle:
        require_turn(self)
        handle = _TimerHandle(due_us / 1_000_000, callback, args, self, context)
        handle.timer = None
        if due_us <= self.now_us:
            self._ready.append(handle)
        elif due_us < _NEVER_US:
            handle.timer = self._create_timer(due_us, lambda: self._ready.append(handle))
        return handle

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        assert isinstance(handle, _TimerHandle)
        if handle.timer is not None:
            self._cancel_timer(handle.timer)

    def create_future(self) -> OrderedFuture:
        require_turn(self)
        if sys._getframe(1).f_code is _WRAP_FUTURE:
            # It would be done from another thread, and its waiter never told.
            raise NotDeterministicError(
                "The results of threads, executors and Ray tasks (ObjectRef) come when a replay cannot know, so an "
                "orchestrator cannot await them: call an activity."
            )
        return OrderedFuture(next(self._ordinals), self)

    def create_command_future(self) -> CommandFuture:
        """A future that takes its command back when it is cancelled."""
        return CommandFuture(next(self._ordinals), self)

    def create_task(
        self, coro: Any, *, name: object = None, context: Context | None = None, **options: Any
    ) -> OrderedTask:
        caller = sys._getframe(1)
        order_task_group(caller)
        as_completed = as_completed_caller(caller)
        if as_completed is None:
            return self._start_task(coro, name, context, options)
        if id(coro) not in self._as_completed:
            for coroutine in ordered_awaitables(as_completed):
                if id(coroutine) not in self._as_completed:
                    self._as_completed[id(coroutine)] = self._start_task(coroutine, None, None, {})
        task = self._as_completed.pop(id(coro), None)
        if task is None:
            raise NotDeterministicError(
                "asyncio.as_completed would start its awaitables in an order that a replay cannot repeat: give it "
                "tasks from asyncio.ensure_future."
            )
        return task

    def _start_task(
        self, coroutine: Coroutine[Any, Any, Any], name: object, context: Context | None, options: dict[str, Any]
    ) -> OrderedTask:
        require_turn(self)
        self._task_number += 1
        # asyncio's own default counts the tasks of the whole process.
        text = f"Task-{self._task_number}" if name is None else str(name)
        task = OrderedTask(next(self._ordinals), coroutine, loop=self, name=text, context=context, **options)
        task.origin = self.find_origin() or self.current_origin()
        # A task that waits for something nobody else holds would be garbage, collected at an arbitrary time.
        self._tasks.append(task)
        if len(self._tasks) > self._tasks_kept_max:
            self._tasks = [kept for kept in self._tasks if not kept.done() or kept._log_traceback]
            self._tasks_kept_max = 2 * len(self._tasks) + _TASKS_KEPT_MIN
        return task

    def get_debug(self) -> bool:
        """False. Asked in every future's constructor, which is the one chance to see futures that are not ours."""
        frame = sys._getframe(1)
        if frame.f_code not in OWN_CONSTRUCTORS:
            adopt_future(frame, self._ordinals.__next__)
        return False

    def is_running(self) -> bool:
        return _get_running_loop() is self

    def is_closed(self) -> bool:
        return self._closed

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Keep the exception of a callback for the runtime to log. What the garbage collector reports is ignored:
        when it does is chance, and unfinished or unawaited tasks are looked through at the end."""
        error = context.get("exception")
        if error is not None and "future" not in context:
            self.unhandled.append(error)

    def default_exception_handler(self, context: dict[str, Any]) -> None:
        self.call_exception_handler(context)

    def get_exception_handler(self) -> None:
        return None

    def get_task_factory(self) -> None:
        return None

    def _note_unhandled(self, task: OrderedTask) -> None:
        error = task.exception()
        if error is not None:
            self.unhandled.append(error)

    def _close_asyncgen(self, generator: AsyncGenerator[Any, Any]) -> None:
        # Called when an unfinished async generator is freed, possibly by the garbage collector on any thread.
        inside, before = _get_running_loop() is self, self.closing
        if not before and (not inside or is_collecting()):
            # At a moment that no replay repeats. Its cleanup, which may free a lock, waits for the end.
            self._strays.append(generator)
            return
        if inside:
            self.closing = True
        try:
            closing = generator.aclose()
            closing.send(None)
            closing.close()
        except BaseException:
            return
        finally:
            if inside:
                self.closing = before


def _microseconds(seconds: float) -> int:
    if math.isnan(seconds):
        raise ValueError("A delay or time of NaN seconds is none: give a number.")
    return round(min(max(seconds * 1_000_000, -_NEVER_US), _NEVER_US))


def _close(coroutine: Any) -> None:
    """End a coroutine, quietly, and again at each await of its cleanup.

    Not by `close`: a GeneratorExit that an inner coroutine answers with an await leaves that one behind, unfinished.
    """
    for _ in range(_CLOSE_ATTEMPTS_MAX):
        try:
            coroutine.throw(ExecutionClosed("The execution has ended."))
        except BaseException:
            return


_INSTEAD = {
    "run_in_executor": "call an activity",
    "call_soon_threadsafe": "raise an external event",
    "run_forever": "await, in the orchestrator's coroutine",
    "run_until_complete": "await, in the orchestrator's coroutine",
    "subprocess_exec": "start processes in an activity",
    "subprocess_shell": "start processes in an activity",
    "add_signal_handler": "raise an external event",
    "remove_signal_handler": "raise an external event",
    "set_task_factory": "create tasks with asyncio.create_task",
    "set_exception_handler": "await your tasks, and catch what they raise",
    "stop": "return from the orchestrator",
    "close": "return from the orchestrator",
    "set_debug": "test orchestrators with their history instead",
}


# What people call, where that is not the loop's own method.
_KNOWN_AS = {
    "run_in_executor": "asyncio.to_thread",
    "call_soon_threadsafe": "asyncio.run_coroutine_threadsafe",
    "create_connection": "asyncio.open_connection",
    "create_unix_connection": "asyncio.open_unix_connection",
    "create_server": "asyncio.start_server",
    "create_unix_server": "asyncio.start_unix_server",
    "subprocess_exec": "asyncio.create_subprocess_exec",
    "subprocess_shell": "asyncio.create_subprocess_shell",
}


def _refusal(name: str) -> Callable[..., NoReturn]:
    instead = _INSTEAD.get(name, "do input and output in an activity")
    user = f", which {_KNOWN_AS[name]} calls," if name in _KNOWN_AS else ""

    def refuse(self: EventLoop, *args: Any, **kwargs: Any) -> NoReturn:
        raise NotDeterministicError(
            f"{name}() of the event loop{user} cannot be replayed, so an orchestrator cannot use it: {instead}."
        )

    refuse.__name__ = name
    return refuse


for _name, _method in vars(asyncio.AbstractEventLoop).items():
    if callable(_method) and not _name.startswith("__") and _name not in vars(EventLoop):
        setattr(EventLoop, _name, _refusal(_name))
