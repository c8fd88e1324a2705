"""Whether an instance has nothing to do, and since when: then its owner lets it go, and its process with it.

Nothing to do means that only time or somebody else can make a difference: it waits for timers, external events or
instances that it called; nothing that it sent is on its way, and nobody asks it for anything. Activities keep it, since
their outcomes come to its process.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from ray_durable.engine import Execution
from ray_durable.runtime.ports import Clock

__all__ = ["Idleness", "is_waiting"]

_AWAY_S_MIN = 5.0
"""Leaving for less would cost more than staying: who comes back starts a process and reads the log."""


_PAUSE_S_MAX = 600.0

_SLACK_S = 0.001
"""A clock's rounding is no reason to wait again."""


class Idleness:
    """Calls `tell` once an instance has been idle for `idle_s` seconds, and again and again for as long as it is.

    None: never.
    """

    def __init__(self, clock: Clock, idle_s: float | None, tell: Callable[[], None]) -> None:
        self.idle_s = idle_s
        self._clock = clock
        self._tell = tell
        self._busy_s = 0.0
        # The pause after the last time, while nothing happens.
        self._told_s = 0.0
        self._handle: asyncio.TimerHandle | None = None

    @property
    def is_long(self) -> bool:
        """Whether nothing has happened for long enough."""
        return self.idle_s is not None and self._left_s() <= _SLACK_S

    def note(self) -> None:
        """Something happens just now."""
        self._busy_s = self._clock.monotonic_s()
        if self._handle is None and self.idle_s is not None:
            # One alarm for many turns: it looks for itself whether anything has happened since.
            self._arm(self.idle_s)

    def stop(self) -> None:
        """Tell nothing before something happens again."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def is_worth_it(self, next_timer_us: int | None) -> bool:
        """Whether the next timer leaves time enough for leaving and coming back."""
        if self.idle_s is None:
            return False
        away_us = round(max(self.idle_s, _AWAY_S_MIN) * 1_000_000)
        return next_timer_us is None or next_timer_us - self._clock.now_us() >= away_us

    def _arm(self, wait_s: float) -> None:
        self._handle = asyncio.get_running_loop().call_later(wait_s, self._ring)

    def _ring(self) -> None:
        if not self.is_long:
            self._told_s = 0.0
            self._arm(self._left_s())
            return
        assert self.idle_s is not None
        # Something keeps it, an activity perhaps, and may do so for long.
        self._told_s = max(self.idle_s, min(2 * self._told_s, _PAUSE_S_MAX))
        self._arm(self._told_s)
        self._tell()

    def _left_s(self) -> float:
        assert self.idle_s is not None
        return self._busy_s + self.idle_s - self._clock.monotonic_s()


def is_waiting(execution: Execution) -> bool:
    """Whether the execution can go on by a timer or by somebody else's doing alone."""
    return not (execution.ended or execution.outstanding_tasks or execution.outstanding_maps)
