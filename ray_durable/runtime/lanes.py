"""Calls of one function, of one run, that wait for workers: what is next, how much of it, and what came of it.

A lane holds its calls by index and thinks in ranges of indices, so that ten thousand calls cost no more than one. It is
cut into slices: a worker takes a range, works on it until a time budget is spent and returns the rest, which goes to
the front again. A range whose worker died is a suspect: it is halved until the poisonous call stands alone, and a call
that loses its worker too often fails. What a call said of itself (its heartbeats) is kept for whoever runs it next.

A lane knows no Ray, no clock and no I/O. `TaskLane` holds single activity calls, `MapLane` the items of one map.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from ray_durable.codec import Batch, open_batch
from ray_durable.engine.ranges import RangeSet
from ray_durable.failure import Failure
from ray_durable.payload import Payload
from ray_durable.runtime.messages import (
    Heartbeats,
    MapOutcomes,
    MapRequest,
    Outcome,
    SliceReport,
    SliceWork,
    TaskOutcome,
    TaskRequest,
)
from ray_durable.target import ActivityTarget

__all__ = ["Lane", "MapLane", "Range", "SlicePolicy", "TaskLane"]

Range = tuple[int, int]
"""Indices from the first up to, not including, the second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SlicePolicy:
    """How calls are cut into slices. A slice is aimed at `budget_s` seconds of work and never over `count_max` calls;
    before the first report nothing is known of the calls' duration, so `first_count` of them are tried. A call that
    shall end is ended by force `grace_s` seconds later."""

    budget_s: float = 0.2
    count_max: int = 5_000
    first_count: int = 64
    grace_s: float = 5.0


class Lane(ABC):
    """See the module. Every index is in exactly one place: pending, suspect, in flight, or finished."""

    def __init__(self, run: str, instance_id: str, target: ActivityTarget, policy: SlicePolicy) -> None:
        self.run = run
        self.instance_id = instance_id
        self.target = target
        self.in_flight: dict[int, Range] = {}
        self.blocked_until_s = 0.0
        self.block_count = 0
        self.problem: str | None = None
        self.generation: str | None = None
        self._policy = policy
        self._pending: deque[Range] = deque()
        self._suspects: deque[Range] = deque()
        # Workers that died with a call: in whatever company, and alone.
        self._lost: dict[int, int] = {}
        self._losses: dict[int, int] = {}
        # In flight, and nobody waits for them any more.
        self._unwanted: set[int] = set()
        # What calls last said of themselves.
        self._details: dict[int, Payload] = {}
        self._call_s: float | None = None

    @property
    def pending_count(self) -> int:
        """Calls that wait for a worker."""
        return sum(stop - start for start, stop in self._pending) + sum(stop - start for start, stop in self._suspects)

    @property
    def is_waiting(self) -> bool:
        """Whether a call waits for a worker."""
        return bool(self._pending or self._suspects)

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits and nothing runs."""
        return not (self._pending or self._suspects or self.in_flight)

    def take(self, slice_id: int, *, free_slots: int) -> SliceWork:
        """Put the next range in flight as `slice_id`: idle slots share what is left, none gets more than a budget."""
        if self._suspects:
            start, stop = self._suspects.popleft()
        else:
            count = self._slice_count(free_slots)
            start, stop = self._pending.popleft()
            if start + count < stop:
                self._pending.appendleft((start + count, stop))
                stop = start + count
        self.in_flight[slice_id] = (start, stop)
        work = self._work(start, stop)
        work.grace_s = self._policy.grace_s
        for index in range(start, stop) if self._details else ():
            if index in self._details:
                work.heartbeats[index - start] = self._details[index]
        return work

    def hear(self, slice_id: int, heartbeats: Heartbeats) -> None:
        """Running calls said something of themselves."""
        start, _ = self.in_flight[slice_id]
        for offset, details in heartbeats.details.items():
            if details is not None:
                self._details[start + offset] = details

    def report(self, slice_id: int, report: SliceReport) -> list[Outcome]:
        """A worker's report: the outcomes of what it did; the rest waits again."""
        start, stop = self.in_flight.pop(slice_id)
        middle = start + report.done
        self._details.update((start + offset, details) for offset, details in report.heartbeats.items())
        self._unwanted.difference_update(range(start, middle) if self._unwanted else ())
        condemned = [(start + offset, failure) for offset, failure in report.condemned]
        self._wait_again(middle, stop, without={index for index, _ in condemned})
        failed = [self._failed(index, failure) for index, failure in condemned]
        if not report.done:
            return failed
        call_s = max(report.elapsed_s / report.done, 1e-6)
        self._call_s = call_s if self._call_s is None else 0.5 * self._call_s + 0.5 * call_s
        for index in range(start, middle) if self._losses else ():
            self._losses.pop(index, None)
        self.block_count = 0
        self.problem = None
        return [*self._outcomes(start, middle, report), *failed]

    def lose(self, slice_id: int, failure: Failure) -> list[Outcome]:
        """The worker died: halve the range, or count the loss against the one call, which fails in the end."""
        start, stop = self.in_flight.pop(slice_id)
        if not self._unwanted.isdisjoint(range(start, stop)):
            # Ended on purpose: that says nothing of the calls that are still wanted.
            self._wait_again(start, stop)
            return []
        for index in range(start, stop):
            self._lost[index] = self._lost.get(index, 0) + 1
        if stop - start > 1:
            middle = (start + stop) // 2
            self._suspects.extend(((start, middle), (middle, stop)))
            return []
        losses = self._losses[start] = self._losses.get(start, 0) + 1
        if losses < self.target.system_failures_max:
            self._suspects.append((start, stop))
            return []
        del self._losses[start]
        # It had all the tries that its policy allows for.
        return [self._failed(start, replace(failure, non_retryable=True))]

    def expire(self, slice_id: int, failure: Failure) -> list[Outcome]:
        """The slice lasts longer than its calls may, and its worker is ended: the one call fails, many are halved.

        Nothing is counted against calls that were in the same slice.
        """
        start, stop = self.in_flight.pop(slice_id)
        kept, dropped = _without((start, stop), self._unwanted)
        self._unwanted.difference_update(dropped)
        self._drop(dropped)
        if not dropped and stop - start == 1:
            return [self._failed(start, failure)]
        for part_start, part_stop in kept:
            middle = (part_start + part_stop) // 2
            self._suspects.extend(part for part in ((part_start, middle), (middle, part_stop)) if part[0] < part[1])
        return []

    def unwanted(self, slice_id: int) -> tuple[int, ...]:
        """The calls of a slice in flight, by offset, that nobody waits for any more."""
        start, stop = self.in_flight[slice_id]
        return tuple(index - start for index in range(start, stop) if index in self._unwanted) if self._unwanted else ()

    def lost_workers(self, index: int) -> int:
        """The workers that died with a call."""
        return self._lost.get(index, 0)

    def waiting(self) -> list[Range]:
        """What waits for a worker."""
        return [*self._suspects, *self._pending]

    def put_back(self, slice_id: int) -> None:
        """Nothing of the slice ran: it waits again, at the front."""
        self._wait_again(*self.in_flight.pop(slice_id))

    def _wait_again(self, start: int, stop: int, *, without: set[int] | None = None) -> None:
        """Let what is still wanted of a range wait, at the front; those that ended, `without` others, do not."""
        kept, dropped = _without((start, stop), self._unwanted | (without or set()))
        self._pending.extendleft(reversed(kept))
        self._unwanted.difference_update(dropped)
        self._drop(index for index in dropped if not without or index not in without)

    def _slice_count(self, free_slots: int) -> int:
        share = math.ceil(self.pending_count / max(1, free_slots))
        fitting = self._policy.first_count if self._call_s is None else int(self._policy.budget_s / self._call_s)
        wanted_max: int = self.target.options.get("max_slice", share)
        return max(1, min(share, fitting, self._policy.count_max, wanted_max))

    def _drop_pending(self, indices: set[int]) -> list[int]:
        """Take `indices` out of what waits; returns those that waited."""
        dropped: list[int] = []
        for queue in (self._pending, self._suspects):
            kept: list[Range] = []
            for part in queue:
                kept_of_part, dropped_of_part = _without(part, indices)
                kept += kept_of_part
                dropped += dropped_of_part
            queue.clear()
            queue.extend(kept)
        return dropped

    def _slices_of(self, indices: set[int]) -> list[int]:
        """The slices in flight that have any of these calls."""
        if not indices:
            return []
        return [slice_id for slice_id, part in self.in_flight.items() if not indices.isdisjoint(range(*part))]

    @abstractmethod
    def describe(self, index: int) -> tuple[int, int | None, int]:
        """The task's or the map's number, the item of the map, and the attempt."""

    @abstractmethod
    def _drop(self, indices: Iterable[int]) -> None: ...

    @abstractmethod
    def _work(self, start: int, stop: int) -> SliceWork: ...

    @abstractmethod
    def _outcomes(self, start: int, stop: int, report: SliceReport) -> list[Outcome]: ...

    @abstractmethod
    def _failed(self, index: int, failure: Failure) -> Outcome: ...


class TaskLane(Lane):
    """Single activity calls of one function."""

    def __init__(self, run: str, instance_id: str, target: ActivityTarget, policy: SlicePolicy) -> None:
        super().__init__(run, instance_id, target, policy)
        self._requests: dict[int, TaskRequest] = {}
        self._index_of: dict[int, int] = {}
        self._next_index = 0

    def add(self, requests: Sequence[TaskRequest]) -> None:
        """Let these calls wait for workers, in order."""
        start = self._next_index
        for request in requests:
            self._requests[self._next_index] = request
            self._index_of[request.task] = self._next_index
            if request.heartbeat is not None:
                self._details[self._next_index] = request.heartbeat
            self._next_index += 1
        self._pending.append((start, self._next_index))

    @property
    def tasks(self) -> Iterable[int]:
        """The tasks that wait or run."""
        return self._index_of.keys()

    def knows(self, task: int) -> bool:
        """Whether the task waits or runs."""
        return task in self._index_of

    def cancel(self, tasks: Iterable[int]) -> list[int]:
        """Forget waiting calls; returns the slices in flight that have others of them."""
        unwanted = {self._index_of[task] for task in tasks if task in self._index_of}
        if not unwanted:
            return []
        dropped = self._drop_pending(unwanted)
        self._drop(dropped)
        unwanted.difference_update(dropped, self._unwanted)
        self._unwanted |= unwanted
        return self._slices_of(unwanted)

    def describe(self, index: int) -> tuple[int, int | None, int]:
        """See `Lane`."""
        request = self._requests[index]
        return request.task, None, request.attempt

    def _work(self, start: int, stop: int) -> SliceWork:
        requests = [self._requests[index] for index in range(start, stop)]
        return SliceWork(
            run=self.run,
            instance_id=self.instance_id,
            target=self.target,
            budget_s=self._policy.budget_s,
            count=stop - start,
            attempts=[request.attempt for request in requests],
            keys=[f"{self.run}:{request.origin}" for request in requests],
            calls=[request.input for request in requests],
        )

    def _outcomes(self, start: int, stop: int, report: SliceReport) -> list[Outcome]:
        outcomes: list[Outcome] = []
        for index, outcome in zip(range(start, stop), report.outcomes, strict=True):
            result, failure = (outcome, None) if isinstance(outcome, Payload) else (None, outcome)
            outcomes.append(self._outcome(index, result, failure))
        return outcomes

    def _failed(self, index: int, failure: Failure) -> Outcome:
        return self._outcome(index, None, failure)

    def _outcome(self, index: int, result: Payload | None, failure: Failure | None) -> TaskOutcome:
        lost, said = self._lost.get(index, 0), self._details.get(index)
        request = self._forget(index)
        return TaskOutcome(
            task=request.task,
            attempt=request.attempt,
            result=result,
            failure=failure,
            lost_workers=lost,
            heartbeat=said if failure is not None else None,
        )

    def _drop(self, indices: Iterable[int]) -> None:
        for index in indices:
            self._forget(index)

    def _forget(self, index: int) -> TaskRequest:
        self._lost.pop(index, None)
        self._details.pop(index, None)
        request = self._requests.pop(index)
        del self._index_of[request.task]
        return request


class MapLane(Lane):
    """The items of one map. The items stay encoded: slicing them looks at no value."""

    def __init__(self, run: str, instance_id: str, request: MapRequest, policy: SlicePolicy) -> None:
        super().__init__(run, instance_id, request.target, policy)
        self.map = request.map
        self._batch: Batch = open_batch(request.items)
        self._attempts: dict[int, int] = {}

    def add(self, request: MapRequest) -> None:
        """Let these ranges wait for workers, except what waits or runs already: it was asked for before.

        Items of a later attempt are told apart by their own range.
        """
        for start, stop in request.ranges:
            wanted = RangeSet(start, stop)
            for part in (*self._pending, *self._suspects, *self.in_flight.values()):
                wanted.remove(*part)
            for part_wanted in wanted:
                if request.attempt > 1:
                    self._attempts.update(dict.fromkeys(part_wanted, request.attempt))
                for item in part_wanted if request.heartbeats else ():
                    if item in request.heartbeats:
                        self._details[item] = request.heartbeats[item]
                self._pending.append((part_wanted.start, part_wanted.stop))

    def cancel(self) -> list[int]:
        """Forget all that waits; returns the slices in flight."""
        self._pending.clear()
        self._suspects.clear()
        self._details.clear()
        unwanted = {index for part in self.in_flight.values() for index in range(*part)}
        self._unwanted |= unwanted
        return self._slices_of(unwanted)

    def describe(self, index: int) -> tuple[int, int | None, int]:
        """See `Lane`."""
        return self.map, index, self._attempts.get(index, 1)

    def ranges(self) -> list[tuple[int, int, int]]:
        """Everything unfinished, waiting or running: (start, stop, attempt)."""
        parts = (*self._pending, *self._suspects, *self.in_flight.values())
        return [(start, stop, self._attempts.get(start, 1)) for start, stop in parts]

    def _work(self, start: int, stop: int) -> SliceWork:
        return SliceWork(
            run=self.run,
            instance_id=self.instance_id,
            target=self.target,
            budget_s=self._policy.budget_s,
            count=stop - start,
            attempts=[self._attempts.get(start, 1)],
            keys=[f"{self.run}:{self.map}"],
            batch=self._batch.slice(start, stop),
            first=start,
        )

    def _outcomes(self, start: int, stop: int, report: SliceReport) -> list[Outcome]:
        assert report.results is not None, "a report on map items holds their results"
        return [self._map_outcomes(start, stop, report.results, report.failures)]

    def _failed(self, index: int, failure: Failure) -> Outcome:
        return self._map_outcomes(index, index + 1, self._batch.slice(0, 0), ((0, failure),))

    def _map_outcomes(
        self, start: int, stop: int, results: Payload, failures: tuple[tuple[int, Failure], ...]
    ) -> MapOutcomes:
        attempt = self._attempts.get(start, 1)
        lost = sum(self._lost.get(index, 0) for index in range(start, stop)) if self._lost else 0
        said = [(offset, self._details.get(start + offset)) for offset, _ in failures] if self._details else []
        self._drop(range(start, stop))
        return MapOutcomes(
            map=self.map,
            attempt=attempt,
            start=start,
            count=stop - start,
            results=results,
            failures=failures,
            lost_workers=lost,
            heartbeats=tuple((offset, details) for offset, details in said if details is not None),
        )

    def _drop(self, indices: Iterable[int]) -> None:
        for index in indices if self._attempts or self._lost or self._details else ():
            self._attempts.pop(index, None)
            self._lost.pop(index, None)
            self._details.pop(index, None)


def _without(part: Range, indices: set[int]) -> tuple[list[Range], list[int]]:
    """What is left of a range without `indices`, in order; and those of them that it had."""
    start, stop = part
    kept: list[Range] = []
    dropped: list[int] = []
    for index in range(start, stop) if indices else ():
        if index in indices:
            dropped.append(index)
            if start < index:
                kept.append((start, index))
            start = index + 1
    if start < stop:
        kept.append((start, stop))
    return kept, dropped
