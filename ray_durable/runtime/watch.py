"""The watch of a worker process over the calls that it runs: ends those whose time is up or that nobody wants any more.

The calls run in the main thread. One other thread looks at them every 50 ms, and sleeps while there are none: nobody
ever waits for it, so short calls cost the same with it and without. It ends a call in two steps:

1. It interrupts the call: an `async def` activity by cancelling its task, a plain one by a signal whose handler raises
   ActivityCancelled in the main thread, out of blocking calls of the system too. The handler raises only while that
   very call is in the user's code and was not interrupted before, so a signal that comes late strikes nobody. Where the
   calls do not run in the main thread, the interpreter raises there as soon as it runs Python again.
2. A call that has not ended after the grace is ended with its process. What the slice has done is reported first, with
   the failure of that call; the rest runs elsewhere.

Code that keeps the interpreter's lock keeps this thread from running, too; the dispatcher ends that process in the end.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import logging
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterable
from functools import cache
from types import FrameType
from typing import Protocol

from ray_durable.activity_context import ActivityCancelled, running_control
from ray_durable.failure import Failure
from ray_durable.runtime.messages import Heartbeats, SliceReport, Withdrawal
from ray_durable.runtime.running_call import RunningCall

__all__ = ["INTERRUPT_SIGNAL", "Line", "Watch", "WatchedSlice", "watch_of_process"]

logger = logging.getLogger(__name__)

INTERRUPT_SIGNAL = signal.SIGRTMAX - 1 if hasattr(signal, "SIGRTMAX") else signal.SIGUSR2
"""Raises ActivityCancelled in the main thread of a worker. Neither SIGUSR1 nor SIGUSR2: activities may use those."""

_TICK_S = 0.05
_IDLE_TICKS_MAX = 20
_HEARTBEAT_S = 0.25
"""Heartbeats are passed on at most this often."""

_EXIT_CODE = 75


class Line(Protocol):
    """A worker's line to the dispatcher, while a slice runs."""

    @property
    def slice(self) -> int:
        """The number of the present slice in its session."""

    def fileno(self) -> int:
        """To wait for what comes."""

    def tell(self, message: object) -> None:
        """Send. OSError if the line is of no more use."""

    def hear(self) -> object:
        """What has come. OSError, EOFError or ForeignFrameError if the line is of no more use."""


class WatchedSlice(Protocol):
    """A slice that runs, as its watch sees it.

    `current` is the call of a plain activity that is in the user's code. `withdrawn` are the offsets of calls that
    nobody wants any more.
    """

    current: RunningCall | None
    withdrawn: set[int]
    grace_s: float

    def running(self) -> Iterable[RunningCall]:
        """The calls that have begun and not ended."""

    def report(self, condemned: Iterable[tuple[int, Failure]] = ()) -> SliceReport:
        """The report of what is done, with calls that failed by the end of the process; from any thread."""


class Watch:
    """See the module. One for each process; `line` is set by whoever has one."""

    def __init__(self, *, leave: Callable[[int], object] = os._exit) -> None:
        self.line: Line | None = None
        self._leave = leave
        self._slice: WatchedSlice | None = None
        self._thread_id = 0
        self._has_handler = threading.current_thread() is threading.main_thread()
        if self._has_handler:
            signal.signal(INTERRUPT_SIGNAL, self._strike)
        # Held by whoever uses the line, and to end a slice: never while the user's code runs in the main thread.
        self._lock = threading.Lock()
        self._is_asleep = False
        self._heard_s = 0.0
        self._waker, self._wake_end = os.pipe()
        os.set_blocking(self._wake_end, False)
        self._thread = threading.Thread(target=self._keep_watch, name="watch", daemon=True)
        self._thread.start()

    def begin(self, watched: WatchedSlice) -> None:
        """Watch over a slice, which this thread runs now."""
        self._thread_id = threading.get_ident()
        self._slice = watched
        if self._is_asleep:
            self._wake()

    def end(self) -> None:
        """The slice is done: from here on, the line is its caller's alone."""
        with self._lock:
            self._slice = None

    def settle(self, call: RunningCall) -> None:
        """A call that was to end has left the user's code: what was meant to interrupt it does so now, or never.

        ActivityCancelled may still be raised here. To be called in the thread of the call.
        """
        if self._interrupts_by_signal():
            return
        while call.is_interrupting:
            time.sleep(0)
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self._thread_id), None)

    def on_heartbeat(self, call: RunningCall) -> None:
        """A call gave a heartbeat: pass it on soon. From the activity's thread, so nothing here may block."""
        if time.perf_counter() - self._heard_s > _HEARTBEAT_S:
            self._wake()

    def _wake(self) -> None:
        with contextlib.suppress(OSError):  # the pipe is full: it is awake
            os.write(self._wake_end, b".")

    def _interrupts_by_signal(self) -> bool:
        return self._has_handler and self._thread_id == threading.main_thread().ident

    def _strike(self, signum: int, frame: FrameType | None) -> None:
        """The signal's handler, in the main thread, between any two of its instructions."""
        watched = self._slice
        call = None if watched is None else watched.current or running_control()
        if isinstance(call, RunningCall) and call.ending is not None and not (call.is_struck or call.is_over):
            call.is_struck = True
            raise ActivityCancelled(call.ending.message)

    # In the watch's own thread

    def _keep_watch(self) -> None:
        seen: WatchedSlice | None = None
        idle_ticks = 0
        while True:
            watched = self._slice
            idle_ticks = idle_ticks + 1 if watched is None else 0
            if idle_ticks > _IDLE_TICKS_MAX:
                idle_ticks = 0
                self._sleep()
            elif watched is None or watched is not seen:
                # Most slices are over before anybody has to look at them.
                seen = watched
                self._pause(_TICK_S, None)
                if watched is not None and self._slice is watched:
                    self._pass_heartbeats(watched)
            else:
                self._look_after(watched)

    def _sleep(self) -> None:
        self._is_asleep = True
        if self._slice is None:
            self._pause(None, None)
        self._is_asleep = False

    def _pause(self, timeout_s: float | None, line: Line | None) -> bool:
        """Wait until the time has passed or somebody wakes us; whether anything has come over the line."""
        poll = select.poll()
        poll.register(self._waker, select.POLLIN)
        if line is not None:
            poll.register(line.fileno(), select.POLLIN)
        ready = [descriptor for descriptor, _ in poll.poll(None if timeout_s is None else timeout_s * 1_000)]
        if self._waker in ready:
            os.read(self._waker, 4_096)
        return any(descriptor != self._waker for descriptor in ready)

    def _look_after(self, watched: WatchedSlice) -> None:
        """One look at a slice that has lasted longer than a tick."""
        now_s = time.perf_counter()
        calls = [call for call in watched.running() if not call.is_over]
        condemned = []
        for call in calls:
            due_s = call.due_s()
            if call.ending is None and call.index in watched.withdrawn:
                self._end(call, withdrawn_failure())
            elif call.ending is None and due_s is not None and now_s >= due_s:
                self._end(call, call.timeout())
            elif call.ending is not None and now_s >= call.ending_s + watched.grace_s:
                condemned.append(call)
            elif call.task is not None and call.ending is not None and now_s >= call.ending_s + watched.grace_s / 2:
                # Its loop does not come round to the cancellation: it blocks.
                self._signal()
        if condemned:
            self._leave_with(watched, condemned)
        self._pass_heartbeats(watched)
        times_s = [due_s for call in calls if call.ending is None and (due_s := call.due_s()) is not None]
        wait_s = max(0.001, min([_TICK_S, *(due_s - now_s for due_s in times_s)]))
        try:
            if self._pause(wait_s, self.line):
                self._hear(watched)
        except (OSError, ValueError):
            self._hang_up(watched)

    def _end(self, call: RunningCall, why: Failure) -> None:
        """Interrupt a call."""
        call.ending_s = time.perf_counter()
        call.ending = why
        if call.task is not None:
            with contextlib.suppress(RuntimeError):  # its loop has ended
                call.task.get_loop().call_soon_threadsafe(call.task.cancel)
        elif self._interrupts_by_signal():
            self._signal()
        else:
            self._raise_in_thread(call)

    def _signal(self) -> None:
        if self._interrupts_by_signal():
            signal.pthread_kill(self._thread_id, INTERRUPT_SIGNAL)

    def _raise_in_thread(self, call: RunningCall) -> None:
        call.is_interrupting = True
        watched = self._slice
        if watched is not None and watched.current is call:
            call.is_struck = True
            thread_id, exception = ctypes.c_ulong(self._thread_id), ctypes.py_object(ActivityCancelled)
            ctypes.pythonapi.PyThreadState_SetAsyncExc(thread_id, exception)
        call.is_interrupting = False

    def _pass_heartbeats(self, watched: WatchedSlice) -> None:
        if time.perf_counter() - self._heard_s < _HEARTBEAT_S:
            return
        details = {}
        for call in watched.running():
            if call.has_spoken:
                call.has_spoken = False
                details[call.index] = call.details
        if details:
            self._heard_s = time.perf_counter()
            self._tell(watched, Heartbeats(details=details))

    def _tell(self, watched: WatchedSlice, message: object) -> None:
        with self._lock:
            if self._slice is watched and self.line is not None:
                with contextlib.suppress(OSError):  # nobody listens: the slice's own report finds out
                    self.line.tell(message)

    def _hear(self, watched: WatchedSlice) -> None:
        with self._lock:
            if self._slice is not watched or self.line is None:
                return
            try:
                message = self.line.hear()
            except Exception:
                # Cut off. The slice's own report finds out.
                self.line = None
                return
            if isinstance(message, Withdrawal) and message.slice == self.line.slice:
                watched.withdrawn.update(message.calls)

    def _hang_up(self, watched: WatchedSlice) -> None:
        with self._lock:
            if self._slice is watched:
                self.line = None

    def _leave_with(self, watched: WatchedSlice, calls: list[RunningCall]) -> None:
        """End the process, unless the calls end at the last moment; tell first what is done."""
        with self._lock:
            condemned = [(call.index, call.ending) for call in calls if not call.is_over and call.ending is not None]
            if self._slice is not watched or not condemned:
                return
            names = {call.function.name for call in calls}
            logger.warning("%s did not end within %g s: this process ends", ", ".join(names), watched.grace_s)
            with contextlib.suppress(Exception):
                faulthandler.dump_traceback()
            with contextlib.suppress(Exception):
                report = watched.report(condemned)
                if self.line is not None:
                    self.line.tell((report, True))
            self._leave(_EXIT_CODE)


def withdrawn_failure() -> Failure:
    """The outcome of a call that was ended because nobody waits for it; nobody will look at it."""
    return Failure(kind="cancelled", type_name=ActivityCancelled.__name__, message="Nobody waits for it any more")


@cache
def watch_of_process() -> Watch:
    """The one watch of this process; to be asked for in the main thread."""
    return Watch()
