"""From what a turn recorded to what leaves the instance: activities to start and to drop.

Also the other way round after a loss: what was scheduled and has no outcome, less what the dispatcher still holds, is
submitted again, and counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from ray_durable.context import Orchestration
from ray_durable.engine import (
    Event,
    Execution,
    ExecutionStarted,
    MapCanceled,
    MapCompleted,
    MapItemsScheduled,
    MapScheduled,
    OwnerClaimed,
    TaskCanceled,
    TaskCompleted,
    TaskFailed,
    TaskScheduled,
)
from ray_durable.payload import Payload
from ray_durable.runtime.messages import Attachment, MapOutcomes, MapRequest, Outcome, TaskRequest
from ray_durable.target import ActivityTarget

__all__ = ["Released", "Releaser", "Resubmission", "outcome_event"]

Range = tuple[int, int]


@dataclass(slots=True)
class Released:
    """What one turn lets go."""

    tasks: list[TaskRequest] = field(default_factory=list)
    local_tasks: list[TaskScheduled] = field(default_factory=list)
    maps: list[MapRequest] = field(default_factory=list)
    canceled: list[int] = field(default_factory=list)


@dataclass(slots=True)
class Resubmission(Released):
    """What a new owner starts again, with the (number, submission) pairs that its claim records."""

    attempts: tuple[tuple[int, int], ...] = ()


def outcome_event(outcome: Outcome) -> Event:
    """The input that an outcome is to the engine."""
    if isinstance(outcome, MapOutcomes):
        return MapCompleted(
            map=outcome.map,
            start=outcome.start,
            count=outcome.count,
            results=outcome.results,
            failures=outcome.failures,
            lost_workers=outcome.lost_workers,
            heartbeats=outcome.heartbeats,
        )
    task, attempt, lost = outcome.task, outcome.attempt, outcome.lost_workers
    if outcome.failure is not None:
        return TaskFailed(
            task=task, failure=outcome.failure, attempt=attempt, lost_workers=lost, heartbeat=outcome.heartbeat
        )
    assert outcome.result is not None, "an outcome is a result or a failure"
    return TaskCompleted(task=task, result=outcome.result, attempt=attempt, lost_workers=lost)


class Releaser:
    """See the module. Knows how often each task was submitted, and what its attempts last said of themselves."""

    def __init__(self, started: ExecutionStarted, execution: Execution, orchestration: Orchestration) -> None:
        self._started = started
        self._execution = execution
        self._orchestration = orchestration
        self._submissions: dict[int, int] = {}
        # The first attempts of retries, and what an attempt said last, by its first attempt.
        self._origins: dict[int, int] = {}
        self._heartbeats: dict[int, Payload] = {}
        # The same of items, by map and item.
        self._item_heartbeats: dict[int, dict[int, Payload]] = {}

    def recall(self, history: Iterable[Event]) -> None:
        """Learn how often earlier owners submitted what, and what failed attempts said."""
        for event in history:
            if isinstance(event, OwnerClaimed):
                self._submissions.update(event.attempts)
            else:
                self._note(event)

    def _note(self, event: Event) -> None:
        if isinstance(event, TaskScheduled):
            if event.retry_of is not None:
                self._origins[event.number] = event.retry_of
        elif isinstance(event, TaskFailed) and event.heartbeat is not None:
            self._heartbeats[self._origins.get(event.task, event.task)] = event.heartbeat
        elif isinstance(event, MapCompleted) and event.heartbeats:
            said = self._item_heartbeats.setdefault(event.map, {})
            said.update((event.start + offset, details) for offset, details in event.heartbeats)

    def release(self, records: Sequence[Event]) -> Released:
        """What the durable `records` start and drop."""
        released = Released()
        for event in records:
            self._note(event)
            if isinstance(event, TaskScheduled):
                if _target(event.target).is_local:
                    released.local_tasks.append(event)
                else:
                    released.tasks.append(self._task_request(event))
            elif isinstance(event, MapScheduled):
                released.maps.append(self._map_request(event, ((0, event.count),), attempt=1))
            elif isinstance(event, MapItemsScheduled):
                mapped = self._execution.outstanding_maps.get(event.map)
                if mapped is not None:  # else it ended in the same turn
                    ranges = _ranges(event.items)
                    released.maps.append(self._map_request(mapped.scheduled, ranges, attempt=event.attempt))
            elif isinstance(event, TaskCanceled):
                released.canceled.append(event.task)
            elif isinstance(event, MapCanceled):
                released.canceled.append(event.map)
        return released

    def is_past(self, outcome: Outcome) -> bool:
        """Whether the outcome is of an attempt at map items that ended before: it must not count for a later one."""
        if not isinstance(outcome, MapOutcomes) or outcome.map not in self._execution.outstanding_maps:
            return False
        awaited = self._execution.outstanding_maps[outcome.map].attempts.get(outcome.attempt)
        return awaited is None or not awaited.overlaps(outcome.start, outcome.start + outcome.count)

    def resubmit(self, attachment: Attachment, *, released_next: Iterable[int]) -> Resubmission:
        """What is outstanding and unknown to the dispatcher, apart from what is about to be released anyway."""
        again = Resubmission()
        skipped = set(released_next)
        attempts: list[tuple[int, int]] = []
        for number, task in self._execution.outstanding_tasks.items():
            if number in skipped or number in attachment.tasks:
                continue
            submission = self._submissions[number] = self._submissions.get(number, 1) + 1
            attempts.append((number, submission))
            if _target(task.target).is_local:
                again.local_tasks.append(task)
            else:
                again.tasks.append(self._task_request(task))
        for number, mapped in self._execution.outstanding_maps.items():
            if number in skipped:
                continue
            known = attachment.maps.get(number, ())
            for attempt, missing in _missing(mapped.remaining(), known).items():
                submission = self._submissions[number] = self._submissions.get(number, 1) + 1
                attempts.append((number, submission))
                again.maps.append(self._map_request(mapped.scheduled, missing, attempt=attempt))
        again.attempts = tuple(attempts)
        return again

    def _task_request(self, event: TaskScheduled) -> TaskRequest:
        origin = event.retry_of or event.number
        return TaskRequest(
            task=event.number,
            attempt=event.attempt,
            submission=self._submissions.get(event.number, 1),
            origin=origin,
            input=_light(event.input),
            target=_target(event.target),
            heartbeat=self._heartbeats.get(origin),
        )

    def _map_request(self, event: MapScheduled, ranges: tuple[Range, ...], *, attempt: int) -> MapRequest:
        said = self._item_heartbeats.get(event.number, {})
        items = (item for start, stop in ranges for item in range(start, stop)) if said else ()
        return MapRequest(
            map=event.number,
            attempt=attempt,
            submission=self._submissions.get(event.number, 1),
            items=event.items,
            ranges=ranges,
            target=_target(event.target),
            heartbeats={item: said[item] for item in items if item in said},
        )


def _target(target: object) -> ActivityTarget:
    assert isinstance(target, ActivityTarget), "commands of a context carry their target"
    return target


def _light(payload: Payload) -> Payload:
    """Blobs travel by reference: the worker reads them from the store."""
    return (
        payload
        if payload.blob is None
        else Payload(encoding=payload.encoding, data=None, size=payload.size, blob=payload.blob)
    )


def _ranges(items: Sequence[int]) -> tuple[Range, ...]:
    """Ascending indices as ranges."""
    if not items:
        return ()
    breaks = [index for index, (left, right) in enumerate(pairwise(items), start=1) if right != left + 1]
    bounds = [0, *breaks, len(items)]
    return tuple((items[start], items[stop - 1] + 1) for start, stop in pairwise(bounds))


def _missing(
    wanted: Iterable[tuple[int, int, int]], known: Sequence[tuple[int, int, int]]
) -> Mapping[int, tuple[Range, ...]]:
    """The wanted (start, stop, attempt) less the known ranges of the same attempt, by attempt."""
    found: dict[int, list[Range]] = {}
    taken = sorted(known)
    for start, stop, attempt in wanted:
        position = start
        for known_start, known_stop, known_attempt in taken:
            if known_attempt != attempt or known_stop <= position or known_start >= stop:
                continue
            if position < known_start:
                found.setdefault(attempt, []).append((position, known_start))
            position = max(position, known_stop)
        if position < stop:
            found.setdefault(attempt, []).append((position, stop))
    return {attempt: tuple(ranges) for attempt, ranges in found.items()}
