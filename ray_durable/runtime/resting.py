"""The idle instances that have no process: what the supervisor knows of their hints, and when one is due.

Kept in memory, so that they cost no request while they wait. A clock tells when the first is due; it may be set
meanwhile, and the instance itself decides that a timer is due, so one that is woken too early leaves again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from dataclasses import dataclass
from heapq import heapify, heappop, heappush

from ray_durable.runtime.alarm import Alarm
from ray_durable.runtime.ports import Clock

__all__ = ["Rest", "Resting"]

_LEAD_US = 1_000_000
"""A process takes so long to start: who is woken a little early is ready in time."""

_STALE_MAX = 1_000
"""Places in the queue of those that were woken before they were due."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rest:
    """A hint that holds: nothing is to be done before `due_us` (None: at no time), while there is no `next_key`."""

    due_us: int | None
    next_key: str


class Resting:
    """See the module."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._rests: dict[str, Rest] = {}
        self._queue: list[tuple[int, str]] = []
        self._rang = asyncio.Event()
        self._alarm = Alarm(clock, self._rang.set)

    def __len__(self) -> int:
        return len(self._rests)

    def __contains__(self, instance_id: str) -> bool:
        return instance_id in self._rests

    def add(self, instance_id: str, rest: Rest) -> None:
        """This one rests."""
        self._rests[instance_id] = rest
        if rest.due_us is not None:
            heappush(self._queue, (rest.due_us - _LEAD_US, instance_id))
            if len(self._queue) > 2 * len(self._rests) + _STALE_MAX:
                self._queue = [place for place in self._queue if self._is_current(*place)]
                heapify(self._queue)
            self._set_alarm()

    def discard(self, instance_id: str) -> None:
        """It does not rest, or nobody knows."""
        self._rests.pop(instance_id, None)

    def keep(self, instance_ids: Collection[str]) -> None:
        """The others do not rest any more."""
        if len(self._rests.keys() - instance_ids):
            self._rests = {id_: rest for id_, rest in self._rests.items() if id_ in instance_ids}

    def clear(self) -> None:
        """Know nothing."""
        self._rests.clear()
        self._queue.clear()

    def next_to_check(self) -> tuple[str, Rest] | None:
        """One of them, another each time: the one that was not asked for the longest."""
        if not self._rests:
            return None
        instance_id = next(iter(self._rests))
        rest = self._rests[instance_id] = self._rests.pop(instance_id)
        return instance_id, rest

    async def wait_due(self) -> None:
        """Returns when one is due."""
        self._set_alarm()
        await self._rang.wait()
        self._rang.clear()

    def take_due(self) -> list[str]:
        """Those that are due, the first one first: they do not rest any more."""
        due: list[str] = []
        while self._queue and self._queue[0][0] <= self._clock.now_us():
            wake_us, instance_id = heappop(self._queue)
            if self._is_current(wake_us, instance_id):
                del self._rests[instance_id]
                due.append(instance_id)
        self._set_alarm()
        return due

    def _set_alarm(self) -> None:
        while self._queue and not self._is_current(*self._queue[0]):
            heappop(self._queue)
        self._alarm.set(self._queue[0][0] if self._queue else None)

    def _is_current(self, wake_us: int, instance_id: str) -> bool:
        rest = self._rests.get(instance_id)
        return rest is not None and rest.due_us is not None and rest.due_us - _LEAD_US == wake_us
