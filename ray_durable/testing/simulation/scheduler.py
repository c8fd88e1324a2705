"""Processes on virtual time, in an order that one seed decides. No threads, no I/O, no waiting.

A process is an event loop: what runs in it is ordinary asyncio code. Between processes nothing happens but events of
the scheduler, each at its time: an operation of the store that takes effect, a message that arrives, a timer that is
due. Events of one time come in an order drawn from the seed. So does everything else that is chance, and the same seed
gives the same run, bit by bit: `digest` tells two runs apart.

A process that is killed does nothing any more; one that is stopped goes on later, with everything that it was told
meanwhile, as after SIGSTOP and SIGCONT.
"""

from __future__ import annotations

import asyncio
import hashlib
import heapq
import itertools
import random
from asyncio.events import _get_running_loop, _set_running_loop
from collections import deque
from collections.abc import Callable
from contextvars import Context
from typing import Any, TypeVarTuple

__all__ = ["EndlessError", "Process", "Scheduler"]

_Ts = TypeVarTuple("_Ts")

_CALLBACKS_AT_ONCE_MAX = 200_000
"""More without time passing is a loop without end."""

_TASKS_KEPT_MIN = 32
_CLOSE_ATTEMPTS_MAX = 8


class EndlessError(AssertionError):
    """Something goes on for ever: a process without waiting, or the whole run beyond its bounds."""


class Scheduler:
    """See the module. `trace` is what happened, as far as `note` was told; times are seconds from the beginning."""

    def __init__(self, seed: int | str) -> None:
        self.random = random.Random(f"scheduler {seed}")
        self.now_s = 0.0
        self.trace: list[tuple[float, str]] = []
        # The process whose code runs.
        self.running: Process | None = None
        self._order = itertools.count()
        self._events: list[tuple[float, float, int, Process | None, Callable[[], object] | asyncio.TimerHandle]] = []
        self._runnable: deque[Process] = deque()

    def note(self, what: str) -> None:
        """Add to the trace."""
        self.trace.append((self.now_s, what))

    def digest(self) -> str:
        """What tells this run from others."""
        text = "\n".join(f"{time_s!r} {what}" for time_s, what in self.trace)
        return hashlib.sha256(text.encode()).hexdigest()

    def after(self, delay_s: float, act: Callable[[], object]) -> None:
        """Let something happen, outside of all processes."""
        self._push(self.now_s + delay_s, None, act)

    def make_runnable(self, process: Process) -> None:
        """A process has something to do."""
        self._runnable.append(process)

    def set_timer(self, process: Process, handle: asyncio.TimerHandle) -> None:
        """Give a process its timer when it is due."""
        self._push(max(handle.when(), self.now_s), process, handle)

    def _push(self, when_s: float, process: Process | None, what: Callable[[], object] | asyncio.TimerHandle) -> None:
        heapq.heappush(self._events, (when_s, self.random.random(), next(self._order), process, what))

    def run(self, is_over: Callable[[], bool], *, until_s: float) -> None:
        """Go on until `is_over`, asked whenever time is about to pass.

        Raises:
            EndlessError: it is not over by `until_s`, or nothing will ever happen.
        """
        while True:
            while self._runnable:
                self._runnable.popleft().run()
            if is_over():
                return
            if not self._events:
                raise EndlessError("nothing will ever happen any more, and it is not over")
            when_s, _, _, process, what = heapq.heappop(self._events)
            if when_s > until_s:
                raise EndlessError(f"it is not over after {until_s:.0f} s")
            self.now_s = when_s
            if process is None:
                assert not isinstance(what, asyncio.TimerHandle)
                what()
            else:
                assert isinstance(what, asyncio.TimerHandle)
                if not what.cancelled():
                    process.make_ready(what)


class Process(asyncio.AbstractEventLoop):
    """One process: see the module. `skew_us` is how wrong its clock is, `on_death` are told when it is
    gone, `on_fall` when it dies or stops in the midst of its work. `hosted` is what others may call in it."""

    def __init__(self, scheduler: Scheduler, name: str, *, skew_us: int = 0) -> None:
        self.scheduler = scheduler
        self.name = name
        self.began_s = scheduler.now_s
        self.skew_us = skew_us
        self.latest_us = 0
        self.is_alive = True
        self.is_stopped = False
        self.hosted: Any = None
        self.on_death: list[Callable[[], object]] = []
        self.on_fall: list[Callable[[], object]] = []
        self.errors: list[BaseException] = []
        self._ready: deque[asyncio.Handle] = deque()
        self._is_listed = False
        self._tasks: list[asyncio.Task[Any]] = []
        self._tasks_kept_max = _TASKS_KEPT_MIN

    def __repr__(self) -> str:
        return f"<Process {self.name}>"

    def kill(self) -> None:
        """End it wherever it is: nothing that it would still do happens."""
        if not self.is_alive:
            return
        self.is_alive = False
        self.scheduler.note(f"{self.name} dies")
        self._ready.clear()
        for told in [*self.on_fall, *self.on_death]:
            told()
        if self.scheduler.running is not self:
            self._bury()

    def leave(self) -> None:
        """End it when its work is done."""
        self.on_fall.clear()
        self.kill()

    def stop(self) -> None:
        """Let it do nothing until `go_on`."""
        self.is_stopped = True
        for told in self.on_fall:
            told()
        self.scheduler.note(f"{self.name} is stopped")

    def go_on(self) -> None:
        """End a stop."""
        self.is_stopped = False
        self.scheduler.note(f"{self.name} goes on")
        self._list()

    def run(self) -> None:
        """Run what is ready, until nothing is."""
        self._is_listed = False
        if self.is_stopped or not self.is_alive:
            return
        ready, outer = self._ready, _get_running_loop()
        self.scheduler.running = self
        _set_running_loop(self)
        try:
            count = 0
            while ready and not self.is_stopped:
                handle = ready.popleft()
                if not handle.cancelled():
                    handle._run()
                count += 1
                if count > _CALLBACKS_AT_ONCE_MAX:
                    raise EndlessError(f"{self.name} goes on and on without letting time pass")
        finally:
            _set_running_loop(outer)
            self.scheduler.running = None
        if not self.is_alive:
            self._bury()

    def make_ready(self, handle: asyncio.Handle) -> None:
        """Let a callback run next."""
        if self.is_alive:
            self._ready.append(handle)
            self._list()

    def _list(self) -> None:
        if not self._is_listed and self._ready and not self.is_stopped:
            self._is_listed = True
            self.scheduler.make_runnable(self)

    def _bury(self) -> None:
        """Close what ran in it, in order: the garbage collector would, at some time."""
        outer = _get_running_loop()
        _set_running_loop(self)
        try:
            for task in self._tasks:
                if not task.done():
                    _close(task.get_coro())
        finally:
            _set_running_loop(outer)
        self._tasks.clear()
        self._ready.clear()

    # What asyncio asks of a loop

    def time(self) -> float:
        return self.scheduler.now_s

    def call_soon(
        self, callback: Callable[[*_Ts], object], *args: *_Ts, context: Context | None = None
    ) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        self.make_ready(handle)
        return handle

    def call_later(
        self, delay: float, callback: Callable[[*_Ts], object], *args: *_Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self.scheduler.now_s + delay, callback, *args, context=context)

    def call_at(
        self, when: float, callback: Callable[[*_Ts], object], *args: *_Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        if self.is_alive:
            self.scheduler.set_timer(self, handle)
        return handle

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """It is skipped when its time comes."""

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(
        self, coro: Any, *, name: object = None, context: Context | None = None, **options: Any
    ) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.Task(coro, loop=self, name="task", context=context, **options)
        # What is not done when the run ends, or its process, is no mistake.
        task._log_destroy_pending = False  # type: ignore[attr-defined]
        self._tasks.append(task)
        if len(self._tasks) > self._tasks_kept_max:
            self._tasks = [kept for kept in self._tasks if not kept.done()]
            self._tasks_kept_max = 2 * len(self._tasks) + _TASKS_KEPT_MIN
        return task

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return self.scheduler.running is self

    def is_closed(self) -> bool:
        return False

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Keep errors that nobody took."""
        error = context.get("exception")
        if error is not None and "task" not in context and "future" not in context:
            self.errors.append(error)


def _close(coroutine: Any) -> None:
    """End a coroutine, and again at each await of its cleanup: nobody hears of what that comes to."""
    for _ in range(_CLOSE_ATTEMPTS_MAX):
        try:
            coroutine.close()
            return
        except BaseException:
            continue
