"""Slices in flight: those that were handed to a launcher and have not ended.

A flight ends once: with the worker's report, with the loss of the worker, or overdue. Calls that nobody wants any more
are withdrawn: their worker is asked to end them, and is ended itself if it cannot be asked, or has not done so some
seconds after the grace. A worker ends calls whose time is up; a flight is overdue when it should have and has not. That
happens when code keeps it from doing anything at all, or the machine stands still. How long a slice is under way to a
worker does not count.

On one event loop. Knows lanes, and nothing of instances and exchanges.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Generic, Protocol, TypeVar

from ray_durable.failure import Failure
from ray_durable.runtime.lanes import Lane
from ray_durable.runtime.messages import Heartbeats, SliceNews, SlicePlace, SliceReport, SliceWork
from ray_durable.runtime.running_call import timeout_failure
from ray_durable.target import ActivityTarget

__all__ = ["Flight", "Flights", "Launcher", "RunningSlice"]

_BACKSTOP_S = 5.0
"""How much later than its worker would a call is ended from here: that takes the results of its neighbours along."""


class RunningSlice(Protocol):
    """A slice that was launched."""

    def withdraw(self, calls: tuple[int, ...]) -> bool:
        """Have its worker end these calls (offsets) and no other; False if the worker cannot be asked now."""

    def cancel(self) -> None:
        """End it by force; its report or loss may still arrive."""


class Launcher(Protocol):
    """Starts slices on workers."""

    def launch(self, work: SliceWork, generation: str | None, tell: Callable[[SliceNews], None]) -> RunningSlice:
        """Start `work`. `tell` is called on the dispatcher's loop: with places and heartbeats as they are known, and
        once with the end, a report or why the worker was lost.

        `generation` keeps the work away from workers that hold older sources (None: any worker will do).
        """

    def slots(self, target: ActivityTarget) -> int:
        """How many slices of this function the cluster can run at the same time (at least 1)."""


Owner = TypeVar("Owner")


@dataclass(slots=True)
class Flight(Generic[Owner]):
    """One slice in flight, of `owner`'s lane. Times are the loop's; `begun_s` is None while no worker has it."""

    slice_id: int
    owner: Owner
    lane: Lane
    work: SliceWork
    launched_s: float
    slice: RunningSlice
    place: SlicePlace = field(default_factory=SlicePlace)
    begun_s: float | None = None
    heard_s: float = 0.0
    heartbeats_s: dict[int, float] = field(default_factory=dict)
    """When calls gave their last heartbeat, by offset."""
    alarm: asyncio.TimerHandle | None = None

    def due_s(self) -> float | None:
        """When it is overdue; None as long as it cannot be."""
        target, work = self.work.target, self.work
        if self.begun_s is None or (target.timeout_s is None and target.heartbeat_timeout_s is None):
            return None
        # No call begins once the budget is spent.
        times_s = [] if target.timeout_s is None else [self.begun_s + target.timeout_s]
        if target.heartbeat_timeout_s is not None:
            times_s.append(self.heard_s + target.heartbeat_timeout_s)
        return min(times_s) + work.budget_s + work.grace_s + _BACKSTOP_S


class Flights(Generic[Owner]):
    """See the module. `on_end` gets each flight that ended, unless its owner was abandoned, and how; `on_overdue` those
    whose worker is being ended, with the failure of its calls."""

    def __init__(
        self,
        launcher: Launcher,
        *,
        on_end: Callable[[Flight[Owner], SliceReport | Failure], None],
        on_overdue: Callable[[Flight[Owner], Failure], None],
    ) -> None:
        self._launcher = launcher
        self._on_end = on_end
        self._on_overdue = on_overdue
        self._ids = itertools.count(1)
        self._flights: dict[int, Flight[Owner]] = {}
        self._abandoned: dict[int, Flight[Owner]] = {}

    def __len__(self) -> int:
        return len(self._flights)

    def of(self, owner: Owner) -> Iterator[Flight[Owner]]:
        """The flights of one owner, the oldest first."""
        return (flight for flight in self._flights.values() if flight.owner is owner)

    def launch(self, owner: Owner, lane: Lane, *, free_slots: int) -> None:
        """Start the next slice of a lane."""
        slice_id = next(self._ids)
        work = lane.take(slice_id, free_slots=free_slots)
        loop = asyncio.get_running_loop()
        flight = Flight(slice_id, owner, lane, work, loop.time(), _NotLaunched())
        self._flights[slice_id] = flight
        try:
            flight.slice = self._launcher.launch(work, lane.generation, partial(self._hear, flight))
        except Exception as error:
            # Options that cannot work, for one: it fails the calls, not the exchange that brought them.
            loop.call_soon(self._hear, flight, Failure.from_exception(error, kind="system"))

    def withdraw(self, slice_ids: Iterable[int]) -> None:
        """Have the calls of these slices ended that their lanes do not want any more."""
        for slice_id in slice_ids:
            flight = self._flights[slice_id]
            calls = flight.lane.unwanted(slice_id)
            self._withdraw(flight, calls, or_else=len(calls) == flight.work.count)

    def abandon(self, owner: Owner) -> None:
        """Have all calls of an owner ended; nothing more is said of them."""
        for flight in list(self.of(owner)):
            self._abandoned[flight.slice_id] = self._flights.pop(flight.slice_id)
            self._silence(flight)
            self._withdraw(flight, tuple(range(flight.work.count)), or_else=True)

    def _withdraw(self, flight: Flight[Owner], calls: tuple[int, ...], *, or_else: bool) -> None:
        """Ask the worker to end `calls`; `or_else` end the worker, if it cannot be asked."""
        if flight.slice.withdraw(calls):
            patience_s = flight.work.grace_s + _BACKSTOP_S
            asyncio.get_running_loop().call_later(patience_s, self._force, flight)
        elif or_else:
            flight.slice.cancel()

    def _force(self, flight: Flight[Owner]) -> None:
        """The worker was asked to end calls and had time to."""
        slice_id = flight.slice_id
        if slice_id in self._abandoned or (slice_id in self._flights and flight.lane.unwanted(slice_id)):
            flight.slice.cancel()

    def _hear(self, flight: Flight[Owner], news: SliceNews) -> None:
        if self._abandoned and self._abandoned.get(flight.slice_id) is flight:
            if isinstance(news, SliceReport | Failure):
                del self._abandoned[flight.slice_id]
        elif self._flights.get(flight.slice_id) is not flight:
            return  # it was overdue
        elif isinstance(news, SlicePlace):
            self._place(flight, news)
        elif isinstance(news, Heartbeats):
            flight.heard_s = asyncio.get_running_loop().time()
            flight.heartbeats_s.update(dict.fromkeys(news.details, flight.heard_s))
            flight.lane.hear(flight.slice_id, news)
        else:
            del self._flights[flight.slice_id]
            self._silence(flight)
            self._on_end(flight, news)

    def _place(self, flight: Flight[Owner], place: SlicePlace) -> None:
        flight.place = place
        flight.heard_s = asyncio.get_running_loop().time()
        flight.begun_s = None if place.host is None else flight.heard_s
        self._silence(flight)
        self._arm(flight)
        if flight.begun_s is not None and flight.lane.unwanted(flight.slice_id):
            # Nobody could be asked before.
            self.withdraw([flight.slice_id])

    def _arm(self, flight: Flight[Owner]) -> None:
        due_s = flight.due_s()
        if due_s is not None:
            flight.alarm = asyncio.get_running_loop().call_at(due_s, self._check, flight)

    def _check(self, flight: Flight[Owner]) -> None:
        due_s = flight.due_s()
        if due_s is None or asyncio.get_running_loop().time() < due_s:
            self._arm(flight)
            return
        del self._flights[flight.slice_id]
        flight.slice.cancel()
        why = "it did not end in time, and its worker could do nothing about that"
        self._on_overdue(flight, timeout_failure(flight.work.target.reference.name, why))

    def _silence(self, flight: Flight[Owner]) -> None:
        if flight.alarm is not None:
            flight.alarm.cancel()
            flight.alarm = None


class _NotLaunched:
    """A slice that no worker got."""

    def withdraw(self, calls: tuple[int, ...]) -> bool:
        """There is nobody to ask."""
        return False

    def cancel(self) -> None:
        """Nothing runs."""
