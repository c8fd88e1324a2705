"""A tiny random world: it answers commands in random order, late, twice and in slices, raises external events, and
suspends and resumes.

What an activity does depends on its name and input alone; when things happen depends on the seed. A run is a list of
steps, each one fresh input and the state after it, so that laws can be stated about any part of it.
"""

from __future__ import annotations

import json
import random
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from zlib import crc32

from ray_durable.engine import (
    Event,
    EventRaised,
    Execution,
    ExecutionResumed,
    ExecutionSuspended,
    ExecutionTerminated,
    MapCompleted,
    OutboxDelivered,
    OwnerClaimed,
    RuntimeStatus,
    SubOrchestrationInstanceCompleted,
    SubOrchestrationInstanceFailed,
    TaskCompleted,
    TaskFailed,
    TimerFired,
)
from ray_durable.failure import Failure

from .corpus import Case
from .kit import SECOND_US, T0_US, decode, encode, main_of, started

STEPS_MAX = 400


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A run of a case: the fresh inputs, the history they made, and the state after each event that ended a step."""

    inputs: Sequence[Event]
    history: list[Event]
    states: dict[int, dict[str, Any]]


def state_of(execution: Execution) -> dict[str, Any]:
    """Everything about an execution that a replay must bring back."""
    numbers = [
        *execution.outstanding_tasks,
        *execution.outstanding_maps,
        *execution.outstanding_children,
        *execution.timers,
    ]
    _, random_words, random_gauss = execution.random.getstate()
    return {
        "status": execution.status,
        "position": execution.position,
        "now_us": execution.now_us,
        "tasks": dict(execution.outstanding_tasks),
        "targets": [task.target for task in execution.outstanding_tasks.values()],
        "maps": {number: list(mapped.remaining()) for number, mapped in execution.outstanding_maps.items()},
        "children": dict(execution.outstanding_children),
        "timers": dict(execution.timers),
        "next_timer_us": execution.next_timer_us,
        "waiting_for": execution.waiting_for,
        "unread": execution.unread_events,
        "recent": execution.recent_event_ids,
        "counts": execution.counts,
        "custom_status": execution.custom_status,
        "result": execution.result,
        "failure": execution.failure,
        "random": (crc32(array("L", random_words)), random_gauss),
        "sources": [execution.source_of(number) for number in numbers],
        "unhandled": [repr(error) for error in execution.unhandled_errors],
    }


def outcome_of(name: str, value: Any, attempt: int) -> Any | Failure:
    """What the activity `name` makes of `value`: "fail" always fails, "flaky" does so twice, others answer."""
    if name.startswith("fail") or (name.startswith("flaky") and attempt <= 2):
        return Failure(type_name="ValueError", message=f"{name}({value}) attempt {attempt}")
    if name.startswith("odd") and value % 2:
        return Failure(type_name="OddError", message=f"{value} is odd")
    return value * 2 if name == "double" else value


class World:
    """Drives one case."""

    def __init__(self, case: Case, seed: int) -> None:
        self.case = case
        self.random = random.Random(seed)
        self.now_us = T0_US
        self.execution = Execution(main_of(case.orchestrator))
        self.to_raise = [
            EventRaised(name=name, value=encode(value), event_id=f"event-{n}")
            for n, (name, value) in enumerate(case.events)
        ]
        self.past: list[Event] = []
        self.suspends = seed % 3 == 0

    def run(self) -> Run:
        """Live to the end, or until nothing can happen any more."""
        inputs: list[Event] = []
        history: list[Event] = []
        states: dict[int, dict[str, Any]] = {}
        due_us = None if self.case.due_s is None else T0_US + round(self.case.due_s * SECOND_US)
        event: Event | None = started(self.case.input, due_us=due_us)
        while event is not None and len(inputs) < STEPS_MAX:
            inputs.append(event)
            history += self.execution.apply([event])
            states[self.execution.position] = state_of(self.execution)
            event = self.next_input()
        return Run(inputs=inputs, history=history, states=states)

    def next_input(self) -> Event | None:
        """Something that could happen next, at its time. None once nothing can."""
        if self.execution.ended:
            return None
        self.now_us += self.random.choice((0, 1, SECOND_US // 3, 2 * SECOND_US))
        if self.past and self.random.random() < 0.1:
            return self.random.choice(self.past)
        if self.random.random() < 0.03:
            return OwnerClaimed(epoch=2, hub_epoch=1, host="h", pid=1, time_us=self.now_us)
        if self.random.random() < 0.03:
            return OutboxDelivered(messages=(self.execution.position,), time_us=self.now_us)
        candidates: list[Any] = [
            *self.execution.outstanding_tasks,
            *self.execution.outstanding_maps,
            *self.execution.outstanding_children,
            *self.to_raise[:1],
        ]
        if (control := self.control(are_others=bool(candidates))) is not None:
            return control
        due = self.execution.due_timers(self.now_us)
        timer = due[0] if due else None
        if timer is None and not candidates and self.execution.timers:
            timer = min(self.execution.timers, key=lambda number: (self.execution.timers[number], number))
            self.now_us = self.execution.timers[timer]
        if timer is not None and (not candidates or self.random.random() < 0.5):
            return self.happened(TimerFired(timer=timer, time_us=self.now_us))
        if not candidates:
            return None
        if self.random.random() < self.case.termination:
            return ExecutionTerminated(reason="enough", request_id="t", time_us=self.now_us)
        return self.happened(self.answer(self.random.choice(candidates)))

    def control(self, *, are_others: bool) -> Event | None:
        """Somebody suspends the execution, or resumes it, at last if nothing else can happen."""
        is_suspended = self.execution.status is RuntimeStatus.SUSPENDED
        if is_suspended and (not are_others or self.random.random() < 0.2):
            return ExecutionResumed(reason="go", request_id="r", time_us=self.now_us)
        if self.suspends and self.random.random() < 0.05:
            return ExecutionSuspended(reason="look", request_id="s", time_us=self.now_us)
        return None

    def happened(self, event: Event) -> Event:
        self.past.append(event)
        return event

    def answer(self, candidate: int | EventRaised) -> Event:
        if isinstance(candidate, EventRaised):
            self.to_raise.remove(candidate)
            return candidate.stamped(0, self.now_us)
        if candidate in self.execution.outstanding_maps:
            return self.answer_items(candidate)
        if candidate in self.execution.outstanding_children:
            return self.answer_child(candidate)
        task = self.execution.outstanding_tasks[candidate]
        outcome = outcome_of(task.name, decode(task.input), task.attempt)
        if isinstance(outcome, Failure):
            return TaskFailed(task=candidate, failure=outcome, attempt=task.attempt, time_us=self.now_us)
        return TaskCompleted(task=candidate, result=encode(outcome), attempt=task.attempt, time_us=self.now_us)

    def answer_child(self, number: int) -> Event:
        child = self.execution.outstanding_children[number]
        outcome = outcome_of(child.name, decode(child.input), child.attempt)
        if isinstance(outcome, Failure):
            return SubOrchestrationInstanceFailed(task=number, failure=outcome, time_us=self.now_us)
        return SubOrchestrationInstanceCompleted(task=number, result=encode(outcome), time_us=self.now_us)

    def answer_items(self, number: int) -> Event:
        mapped = self.execution.outstanding_maps[number]
        remaining = list(mapped.remaining())
        if not remaining:
            # All of its items wait for a retry: the timers go on, or what holds them back ends.
            timer = next((timer for timer in mapped.timers if timer in self.execution.timers), None)
            if timer is None:
                return ExecutionResumed(reason="go", request_id="r", time_us=self.now_us)
            self.now_us = max(self.now_us, self.execution.timers[timer])
            return TimerFired(timer=timer, time_us=self.now_us)
        start, stop, attempt = self.random.choice(remaining)
        first = self.random.randrange(start, stop)
        last = self.random.randrange(first, stop)
        items = json.loads(mapped.scheduled.items.bytes)[first : last + 1]
        outcomes = [outcome_of(mapped.scheduled.name, item, attempt) for item in items]
        return MapCompleted(
            map=number,
            start=first,
            count=len(outcomes),
            results=encode([outcome for outcome in outcomes if not isinstance(outcome, Failure)]),
            failures=tuple((offset, out) for offset, out in enumerate(outcomes) if isinstance(out, Failure)),
            time_us=self.now_us,
        )
