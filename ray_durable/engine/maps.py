"""Maps: one activity over many items, answered in ranges.

Of an item that failed, the retry policy decides: it is scheduled again, together with the others of the same event,
after one timer; or it has failed for good. What a final failure means was chosen when the map was scheduled: the map
fails with the first one (the default), or the ActivityError takes the item's place in the list
(`return_exceptions`), or up to `tolerated_failures` items may fail and leave None, and the next one fails the map. A
map that fails or is cancelled while items are unfinished is cancelled as a whole.

Attempts are numbered through; those of an item that the system failed, and those before a rewind, do not count against
the policy. Work per event grows with the items in the event, not with those in the map.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

from ray_durable.engine.events import MapCanceled, MapCompleted, MapItemsScheduled, MapScheduled
from ray_durable.engine.futures import CommandFuture, fail, resolve
from ray_durable.engine.journal import Journal
from ray_durable.engine.loop import EventLoop
from ray_durable.engine.ranges import RangeSet
from ray_durable.engine.source import Source, calling_source
from ray_durable.engine.tasks import SYSTEM_FAILURES_ONLY
from ray_durable.engine.timers import Retried, Timers
from ray_durable.errors import ActivityError, CorruptLogError
from ray_durable.failure import Failure
from ray_durable.payload import Payload
from ray_durable.retry import RetryPolicy

__all__ = ["Maps", "OnResults", "OutstandingMap"]

OnResults = Callable[[int, list[Any]], None]
"""Called with the index of the first item of a range that was settled, and what came of each: its result, or what takes
its place in the list (ActivityError, None). Each item comes once; the one that fails the map does not come."""


class OutstandingMap:
    """A map with unfinished items. `scheduled` is its event; `remaining` tells which items have to be run."""

    __slots__ = (
        "attempts",
        "decode",
        "future",
        "maps",
        "on_results",
        "results",
        "retry",
        "return_exceptions",
        "scheduled",
        "since_us",
        "source",
        "system_failures",
        "timers",
        "tolerated",
        "uncounted",
        "unfinished",
    )

    def __init__(
        self,
        maps: Maps,
        scheduled: MapScheduled,
        future: CommandFuture,
        decode: Callable[[Payload], list[Any]],
        retry: RetryPolicy | None,
        source: Source | None,
        *,
        return_exceptions: bool,
        tolerated_failures: int,
        on_results: OnResults | None,
    ) -> None:
        self.maps = maps
        self.scheduled = scheduled
        self.future = future
        self.decode = decode
        self.retry = retry or SYSTEM_FAILURES_ONLY
        self.source = source
        self.on_results = on_results
        self.return_exceptions = return_exceptions
        self.tolerated = tolerated_failures
        self.results: list[Any] = [None] * scheduled.count
        self.unfinished = scheduled.count
        self.attempts: dict[int, RangeSet] = {1: RangeSet(0, scheduled.count)}
        # Before the next attempt at some items: the items and the attempt that ended.
        self.timers: dict[int, tuple[tuple[int, ...], int]] = {}
        # By item, where there are any: attempts that do not count against the policy, the system's failures in a row.
        self.uncounted: dict[int, int] = {}
        self.system_failures: dict[int, int] = {}
        self.since_us = scheduled.time_us

    def remaining(self) -> Iterator[tuple[int, int, int]]:
        """(start, stop, attempt) of the items to be run: no outcome yet, and no wait before a retry."""
        for attempt, ranges in self.attempts.items():
            for part in ranges:
                yield part.start, part.stop, attempt

    def revoke(self) -> None:
        self.maps.cancel(self)

    def delay_us(self, item: int, failure: Failure, attempt: int, now_us: int, rng: random.Random) -> int | None:
        """The wait before the next attempt at an item; None to give up."""
        if failure.kind == "system":
            self.uncounted[item] = self.uncounted.get(item, 0) + 1
            self.system_failures[item] = self.system_failures.get(item, 0) + 1
        elif self.system_failures:
            self.system_failures.pop(item, None)
        return self.retry.delay_us(
            failure,
            attempt=attempt - self.uncounted.get(item, 0),
            elapsed_us=now_us - self.since_us,
            rng=rng,
            system_failures=self.system_failures.get(item, 0),
        )

    def rewound(self, now_us: int) -> None:
        """What has ended does not count any more."""
        self.since_us = now_us
        self.system_failures.clear()
        for attempt, ranges in self.attempts.items():
            if attempt > 1:
                self.uncounted.update((item, attempt - 1) for part in ranges for item in part)
        for items, attempt in self.timers.values():
            self.uncounted.update(dict.fromkeys(items, attempt))


class Maps:
    """The maps of an execution. `outstanding` has those with unfinished items, by number."""

    __slots__ = ("_journal", "_loop", "_random", "_timers", "completed", "failed", "outstanding", "total")

    def __init__(self, journal: Journal, loop: EventLoop, timers: Timers, rng: random.Random) -> None:
        self._journal = journal
        self._loop = loop
        self._timers = timers
        self._random = rng
        self.outstanding: dict[int, OutstandingMap] = {}
        self.total = self.completed = self.failed = 0

    def schedule(
        self,
        name: str,
        items: Payload,
        count: int,
        decode: Callable[[Payload], list[Any]],
        retry: RetryPolicy | None,
        target: object,
        source: Source | None,
        *,
        return_exceptions: bool,
        tolerated_failures: int,
        on_results: OnResults | None = None,
    ) -> CommandFuture:
        """Ask for a map; the future gets the list of decoded results. A map of nothing is done at once.

        `on_results` hears of each range as it is settled, before the future.
        """
        future = self._loop.create_command_future()
        if count == 0:
            resolve(future, [])
            return future
        journal = self._journal
        number = journal.next_number()
        event = MapScheduled(number=number, time_us=journal.time_us, name=name, items=items, count=count, target=target)
        self.outstanding[number] = future.command = OutstandingMap(
            self,
            event,
            future,
            decode,
            retry,
            source,
            return_exceptions=return_exceptions,
            tolerated_failures=tolerated_failures,
            on_results=on_results,
        )
        self.total += count
        journal.record(event, source)
        return future

    def awaits(self, event: MapCompleted) -> bool:
        """Whether the event has the outcome of any item that has to be run."""
        mapped = self.outstanding.get(event.map)
        stop = event.start + event.count
        return mapped is not None and any(ranges.overlaps(event.start, stop) for ranges in mapped.attempts.values())

    def complete(self, event: MapCompleted) -> None:
        """Items have outcomes. Items that had one before keep it."""
        mapped = self.outstanding[event.map]
        try:
            values = self._decode(mapped, event)
        except BaseException as error:
            self._give_up(mapped, error)
            return
        failures, stop = dict(event.failures), event.start + event.count
        # All are looked at first: what fails now is added to the ranges of its next attempt.
        awaited = [(attempt, ranges.within(event.start, stop)) for attempt, ranges in mapped.attempts.items()]
        for ranges in mapped.attempts.values():
            ranges.remove(event.start, stop)
        settled = RangeSet()
        for attempt, parts in awaited:
            failed = self._place(mapped, event, parts, values, failures)
            for part in parts if mapped.on_results is not None else ():
                settled.add(part.start, part.stop)
            if failed and not self._settle_failures(mapped, failed, attempt, settled):
                _hand_over(mapped, settled)
                return
        mapped.attempts = {attempt: ranges for attempt, ranges in mapped.attempts.items() if ranges}
        _hand_over(mapped, settled)
        if mapped.unfinished == 0:
            del self.outstanding[event.map]
            resolve(mapped.future, mapped.results)

    def cancel(self, mapped: OutstandingMap) -> None:
        """Nobody waits for the rest of the map any more."""
        journal, number = self._journal, mapped.scheduled.number
        if number in self.outstanding and self._loop.may_ask():
            del self.outstanding[number]
            source = calling_source()
            for timer in mapped.timers:
                self._timers.cancel(timer)
            journal.record(MapCanceled(number=journal.next_number(), time_us=journal.time_us, map=number), source)

    def rewound(self) -> None:
        """From now on, attempts that have ended do not count against the policies, and elapsed time starts anew."""
        for mapped in self.outstanding.values():
            mapped.rewound(self._journal.time_us)

    def source_of(self, number: int) -> Source | None:
        """The line that asked for an outstanding map."""
        return self.outstanding[number].source if number in self.outstanding else None

    def _decode(self, mapped: OutstandingMap, event: MapCompleted) -> list[Any]:
        expected = event.count - len(event.failures)
        values = mapped.decode(event.results) if expected else []
        if len(values) != expected:
            raise CorruptLogError(
                f"Event {event.number} holds {len(values)} results of map {event.map} where {expected} belong: check "
                "the log's objects, and the version of the worker that wrote it.",
                key=f"event {event.number}",
            )
        return values

    def _place(
        self,
        mapped: OutstandingMap,
        event: MapCompleted,
        parts: list[range],
        values: list[Any],
        failures: dict[int, Failure],
    ) -> list[tuple[int, Failure]]:
        """Put the results of `parts` in their places; returns the items that failed."""
        if not failures:
            for part in parts:
                offset = part.start - event.start
                mapped.results[part.start : part.stop] = values[offset : offset + len(part)]
                self._finish(mapped, len(part), 0)
            return []
        failed = []
        succeeding = iter(values)
        places: dict[int, Any] = {}
        for offset in range(event.count):
            if offset not in failures:
                places[event.start + offset] = next(succeeding)
        for item in (item for part in parts for item in part):
            if item in places:
                mapped.results[item] = places[item]
                self._finish(mapped, 1, 0)
            else:
                failed.append((item, failures[item - event.start]))
        return failed

    def _finish(self, mapped: OutstandingMap, completed: int, failed: int) -> None:
        mapped.unfinished -= completed + failed
        self.completed += completed
        self.failed += failed

    def _settle_failures(
        self, mapped: OutstandingMap, failed: list[tuple[int, Failure]], attempt: int, settled: RangeSet
    ) -> bool:
        """Retry the failed items, or let them fail for good. False if the map ended with that.

        Of `settled`, which has all items of the event, only those are left whose place in the list is taken.
        """
        again: list[int] = []
        wait_us = 0
        now_us = self._journal.time_us
        for item, _ in failed:
            settled.remove(item, item + 1)
        for item, failure in failed:
            try:
                delay_us = mapped.delay_us(item, failure, attempt, now_us, self._random)
            except BaseException as error:
                # The policy's own handler is the user's code.
                self._give_up(mapped, error)
                return False
            if delay_us is not None:
                again.append(item)
                wait_us = max(wait_us, delay_us)
                continue
            self._finish(mapped, 0, 1)
            final = ActivityError(name=mapped.scheduled.name, failure=failure, attempt=attempt)
            if mapped.return_exceptions:
                mapped.results[item] = final
            elif mapped.tolerated > 0:
                mapped.tolerated -= 1
            else:
                self._give_up(mapped, final)
                return False
            settled.add(item, item + 1)
        if again:
            self._retry_after(mapped, tuple(again), attempt + 1, wait_us)
        return True

    def _give_up(self, mapped: OutstandingMap, error: BaseException) -> None:
        if mapped.unfinished:
            self.cancel(mapped)
        self.outstanding.pop(mapped.scheduled.number, None)
        fail(mapped.future, error)

    def _retry_after(self, mapped: OutstandingMap, items: tuple[int, ...], attempt: int, wait_us: int) -> None:
        def retry() -> None:
            mapped.timers.pop(timer, None)
            self._schedule_items(mapped, items, attempt)

        if wait_us == 0:
            self._schedule_items(mapped, items, attempt)
        else:
            following = Retried(kind="map", name=mapped.scheduled.name, attempt=attempt, item_count=len(items))
            timer = self._timers.create(self._journal.time_us + wait_us, retry, mapped.source, following)
            mapped.timers[timer] = (items, attempt - 1)

    def _schedule_items(self, mapped: OutstandingMap, items: tuple[int, ...], attempt: int) -> None:
        ranges = mapped.attempts.setdefault(attempt, RangeSet())
        for item in items:
            ranges.add(item, item + 1)
        journal = self._journal
        event = MapItemsScheduled(
            number=journal.next_number(),
            time_us=journal.time_us,
            map=mapped.scheduled.number,
            attempt=attempt,
            items=items,
        )
        journal.record(event, mapped.source)


def _hand_over(mapped: OutstandingMap, settled: RangeSet) -> None:
    on_results = mapped.on_results
    if on_results is None:
        return
    for part in settled:
        on_results(part.start, mapped.results[part.start : part.stop])
