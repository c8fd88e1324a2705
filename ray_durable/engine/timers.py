"""Durable timers that have neither fired nor been cancelled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Literal

from ray_durable.engine.events import TimerCanceled, TimerCreated
from ray_durable.engine.futures import CommandFuture, resolve
from ray_durable.engine.journal import Journal
from ray_durable.engine.loop import EventLoop
from ray_durable.engine.source import Source, calling_source

__all__ = ["Retried", "Timers"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Retried:
    """What a timer lets begin that no code awaits by itself: attempt `attempt` of a call, or of items of a map."""

    kind: Literal["activity", "map", "sub-orchestration"]
    name: str
    attempt: int
    item_count: int = 0


@dataclass(frozen=True, slots=True)
class _Pending:
    callback: Callable[[], object]
    source: Source | None
    retried: Retried | None


class _Wait:
    __slots__ = ("number", "timers")

    def __init__(self, timers: Timers, number: int) -> None:
        self.timers = timers
        self.number = number

    def revoke(self) -> None:
        self.timers.cancel(self.number)


class Timers:
    """Durable timers. `due_us` maps the number of each pending timer to its time."""

    __slots__ = ("_journal", "_loop", "_pending", "_queue", "due_us")

    def __init__(self, journal: Journal, loop: EventLoop) -> None:
        self._journal = journal
        self._loop = loop
        self._pending: dict[int, _Pending] = {}
        self._queue: list[tuple[int, int]] = []
        self.due_us: dict[int, int] = {}

    def create(
        self, due_us: int, callback: Callable[[], object], source: Source | None, retried: Retried | None = None
    ) -> int:
        """Ask for a timer that calls `callback` once; returns its number."""
        number = self._journal.next_number()
        self._await(number, due_us, _Pending(callback, source, retried))
        self._journal.record(TimerCreated(number=number, time_us=self._journal.time_us, due_us=due_us), source)
        return number

    def expect(self, number: int, due_us: int, callback: Callable[[], object]) -> None:
        """A timer that no code asked for: it comes with the event of this number, which is recorded already."""
        self._await(number, due_us, _Pending(callback, None, None))

    def wait(self, due_us: int, source: Source | None) -> CommandFuture:
        """A future that is done at `due_us`: at once, without a timer, if that is past."""
        future = self._loop.create_command_future()
        if due_us <= self._journal.time_us:
            resolve(future, None)
        else:
            future.command = _Wait(self, self.create(due_us, lambda: resolve(future, None), source))
        return future

    def cancel(self, number: int) -> None:
        """Take a timer back, unless it is past."""
        if number in self._pending and self._loop.may_ask():
            del self._pending[number]
            del self.due_us[number]
            canceled = self._journal.next_number()
            event = TimerCanceled(number=canceled, time_us=self._journal.time_us, timer=number)
            self._journal.record(event, calling_source())

    def fire(self, number: int) -> None:
        """The time of a pending timer has come."""
        del self.due_us[number]
        self._pending.pop(number).callback()

    def clear(self) -> None:
        """Nobody waits any more: the execution has ended."""
        self._pending.clear()
        self._queue.clear()
        self.due_us.clear()

    def next_due_us(self) -> int | None:
        """The time of the earliest pending timer, or None."""
        queue = self._queue
        while queue and queue[0][1] not in self.due_us:
            heappop(queue)
        return queue[0][0] if queue else None

    def due(self, now_us: int) -> list[int]:
        """The pending timers whose time has come by `now_us`, earliest first."""
        next_due_us = self.next_due_us()
        if next_due_us is None or next_due_us > now_us:
            return []
        return [number for due_us, number in sorted((due, n) for n, due in self.due_us.items() if due <= now_us)]

    def _await(self, number: int, due_us: int, pending: _Pending) -> None:
        self._pending[number] = pending
        self.due_us[number] = due_us
        heappush(self._queue, (due_us, number))

    def source_of(self, number: int) -> Source | None:
        """The line that asked for a pending timer."""
        return self._pending[number].source if number in self._pending else None

    def retried(self, number: int) -> Retried | None:
        """What a pending timer lets be tried again; None if that is not what it is for."""
        return self._pending[number].retried if number in self._pending else None
