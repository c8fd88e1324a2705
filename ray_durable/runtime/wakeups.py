"""Waking an instance when its timers are due: one alarm for the earliest, checked against the clock when it rings."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence

from ray_durable.runtime.ports import Clock

__all__ = ["Wakeups"]

_ALARM_S_MAX = 600.0
"""A wall clock may be set while an alarm of months runs: look again now and then."""


class Wakeups:
    """Calls `fire` with the timers that are due, never early by `clock`."""

    def __init__(self, clock: Clock, fire: Callable[[Sequence[int]], None]) -> None:
        self._clock = clock
        self._fire = fire
        self._due: Mapping[int, int] = {}
        self._alarm: asyncio.TimerHandle | None = None

    def set(self, timers: Mapping[int, int]) -> None:
        """Wait for these timers (due times in microseconds), and no others."""
        self._due = timers
        self._arm()

    def clear(self) -> None:
        """Wait for nothing."""
        self._due = {}
        self._cancel()

    def _cancel(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None

    def _arm(self) -> None:
        self._cancel()
        if self._due:
            wait_s = (min(self._due.values()) - self._clock.now_us()) / 1_000_000
            self._alarm = asyncio.get_running_loop().call_later(min(max(wait_s, 0.0), _ALARM_S_MAX), self._ring)

    def _ring(self) -> None:
        now_us = self._clock.now_us()
        due = sorted((due_us, timer) for timer, due_us in self._due.items() if due_us <= now_us)
        if due:
            # The turn that records them sets the timers anew.
            self._alarm = None
            self._fire([timer for _, timer in due])
        else:
            self._arm()
