"""Single activity calls: scheduled, retried by policy, answered, or cancelled.

A call has one future, and at any moment one thing under way: a task (the number of its TaskScheduled) or the timer
before its next attempt. Attempts are numbered through; those that the system failed, and those before a rewind, do not
count against the policy.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from ray_durable.engine.events import TaskCanceled, TaskCompleted, TaskFailed, TaskScheduled
from ray_durable.engine.external_events import decode_into
from ray_durable.engine.futures import CommandFuture, fail
from ray_durable.engine.journal import Journal
from ray_durable.engine.loop import EventLoop
from ray_durable.engine.source import Source, calling_source
from ray_durable.engine.timers import Retried, Timers
from ray_durable.errors import ActivityError
from ray_durable.failure import Failure
from ray_durable.payload import Payload
from ray_durable.retry import RetryPolicy

__all__ = ["SYSTEM_FAILURES_ONLY", "Tasks"]

SYSTEM_FAILURES_ONLY = RetryPolicy()
"""What holds for a call without a policy: one attempt, and more only where the system failed."""


class _Call:
    __slots__ = (
        "decode",
        "future",
        "latest",
        "origin",
        "retry",
        "since_us",
        "source",
        "system_failures",
        "tasks",
        "timer",
        "uncounted",
    )

    def __init__(
        self,
        tasks: Tasks,
        origin: TaskScheduled,
        future: CommandFuture,
        decode: Callable[[Payload], Any],
        retry: RetryPolicy | None,
        source: Source | None,
    ) -> None:
        self.tasks = tasks
        self.origin = origin
        self.latest = origin
        self.future = future
        self.decode = decode
        self.retry = retry or SYSTEM_FAILURES_ONLY
        self.source = source
        self.timer: int | None = None
        # The attempts that do not count against the policy, and the system's failures in a row.
        self.uncounted = self.system_failures = 0
        self.since_us = origin.time_us

    def revoke(self) -> None:
        self.tasks.cancel(self)

    def delay_us(self, failure: Failure, now_us: int, rng: random.Random) -> int | None:
        """The wait before the next attempt; None to give up."""
        if failure.kind == "system":
            self.uncounted += 1
            self.system_failures += 1
        else:
            self.system_failures = 0
        return self.retry.delay_us(
            failure,
            attempt=self.latest.attempt - self.uncounted,
            elapsed_us=now_us - self.since_us,
            rng=rng,
            system_failures=self.system_failures,
        )


class Tasks:
    """The activity calls of an execution. `outstanding` has those that nobody answered or cancelled yet."""

    __slots__ = (
        "_calls",
        "_journal",
        "_loop",
        "_random",
        "_timers",
        "_waiting",
        "cancelled",
        "completed",
        "failed",
        "outstanding",
        "scheduled",
    )

    def __init__(self, journal: Journal, loop: EventLoop, timers: Timers, rng: random.Random) -> None:
        self._journal = journal
        self._loop = loop
        self._timers = timers
        self._random = rng
        self._calls: dict[int, _Call] = {}
        # Between two attempts, by the number of the timer.
        self._waiting: dict[int, _Call] = {}
        self.outstanding: dict[int, TaskScheduled] = {}
        self.scheduled = self.completed = self.failed = self.cancelled = 0

    def schedule(
        self,
        name: str,
        payload: Payload,
        decode: Callable[[Payload], Any],
        retry: RetryPolicy | None,
        target: object,
        source: Source | None,
    ) -> CommandFuture:
        """Ask for an activity; the future gets its decoded result, or ActivityError."""
        journal = self._journal
        number = journal.next_number()
        event = TaskScheduled(number=number, time_us=journal.time_us, name=name, input=payload, target=target)
        future = self._loop.create_command_future()
        call = _Call(self, event, future, decode, retry, source)
        future.command = call
        self.scheduled += 1
        self._begin(call, event)
        return future

    def complete(self, event: TaskCompleted) -> None:
        """The activity returned."""
        call = self._end(event.task)
        self.completed += 1
        decode_into(call.future, call.decode, event.result)

    def fail(self, event: TaskFailed) -> None:
        """The activity failed: begin the next attempt, or the wait before it, or give up."""
        call = self._end(event.task)
        try:
            delay_us = call.delay_us(event.failure, self._journal.time_us, self._random)
        except BaseException as error:
            # The policy's own handler is the user's code.
            self.failed += 1
            fail(call.future, error)
            return
        if delay_us is None:
            self.failed += 1
            final = ActivityError(name=call.origin.name, failure=event.failure, attempt=call.latest.attempt)
            fail(call.future, final)
        elif delay_us == 0:
            self._retry(call)
        else:
            following = Retried(kind="activity", name=call.origin.name, attempt=call.latest.attempt + 1)
            due_us = self._journal.time_us + delay_us
            call.timer = self._timers.create(due_us, lambda: self._retry(call), call.source, following)
            self._waiting[call.timer] = call

    def cancel(self, call: _Call) -> None:
        """Nobody waits for the call any more."""
        journal = self._journal
        if not self._loop.may_ask():
            return
        self.cancelled += 1
        if call.timer is not None:
            del self._waiting[call.timer]
            self._timers.cancel(call.timer)
        else:
            self._end(call.latest.number)
            event = TaskCanceled(number=journal.next_number(), time_us=journal.time_us, task=call.latest.number)
            journal.record(event, calling_source())

    def rewound(self) -> None:
        """From now on, attempts that have ended do not count against the policies, and elapsed time starts anew."""
        for call in self._calls.values():
            call.uncounted = call.latest.attempt - 1
        for call in self._waiting.values():
            call.uncounted = call.latest.attempt
        for call in (*self._calls.values(), *self._waiting.values()):
            call.system_failures = 0
            call.since_us = self._journal.time_us

    def source_of(self, number: int) -> Source | None:
        """The line that asked for an outstanding task."""
        return self._calls[number].source if number in self._calls else None

    def _begin(self, call: _Call, event: TaskScheduled) -> None:
        call.latest = event
        self._calls[event.number] = call
        self.outstanding[event.number] = event
        self._journal.record(event, call.source)

    def _end(self, number: int) -> _Call:
        del self.outstanding[number]
        return self._calls.pop(number)

    def _retry(self, call: _Call) -> None:
        if call.timer is not None:
            del self._waiting[call.timer]
            call.timer = None
        origin, journal = call.origin, self._journal
        event = TaskScheduled(
            number=journal.next_number(),
            time_us=journal.time_us,
            name=origin.name,
            input=origin.input,
            attempt=call.latest.attempt + 1,
            retry_of=origin.number,
            target=origin.target,
        )
        self._begin(call, event)
