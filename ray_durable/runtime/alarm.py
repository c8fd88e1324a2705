"""Waking an instance when a timer is due: one alarm, checked against the clock when it rings."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from ray_durable.runtime.ports import Clock

__all__ = ["Alarm"]

_SLEEP_S_MAX = 600.0
"""A wall clock may be set while an alarm of months runs: look again now and then."""


class Alarm:
    """Calls `ring` when `clock` has reached the set time, never earlier."""

    def __init__(self, clock: Clock, ring: Callable[[], None]) -> None:
        self._clock = clock
        self._ring = ring
        self._due_us: int | None = None
        self._handle: asyncio.TimerHandle | None = None

    def set(self, due_us: int | None) -> None:
        """Ring at `due_us` (microseconds since the epoch), and at no other time; None: never."""
        if due_us == self._due_us and self._handle is not None:
            return
        self._due_us = due_us
        self._arm()

    def _arm(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        if self._due_us is not None:
            wait_s = max(0.0, (self._due_us - self._clock.now_us()) / 1_000_000)
            self._handle = asyncio.get_running_loop().call_later(min(wait_s, _SLEEP_S_MAX), self._look)

    def _look(self) -> None:
        self._handle = None
        if self._due_us is not None and self._clock.now_us() >= self._due_us:
            self._due_us = None
            self._ring()
        else:
            self._arm()
