"""Sub-orchestrations: instances that were called, retried by policy, answered, or cancelled.

A call has one future, and at any moment one thing under way: an instance (the number of its
SubOrchestrationInstanceCreated) or the timer before the next attempt. What runs for a number, and under which id, is
the caller's business; here it is a message that was sent, and an outcome that comes back.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from ray_durable.engine.events import (
    SubOrchestrationInstanceCanceled,
    SubOrchestrationInstanceCompleted,
    SubOrchestrationInstanceCreated,
    SubOrchestrationInstanceFailed,
)
from ray_durable.engine.external_events import decode_into
from ray_durable.engine.futures import CommandFuture, fail
from ray_durable.engine.journal import Journal
from ray_durable.engine.loop import EventLoop
from ray_durable.engine.source import Source, calling_source
from ray_durable.engine.timers import Retried, Timers
from ray_durable.errors import SubOrchestrationError
from ray_durable.failure import Failure
from ray_durable.payload import Payload
from ray_durable.retry import RetryPolicy

__all__ = ["Children"]


class _Call:
    __slots__ = (
        "attempts_before",
        "children",
        "decode",
        "future",
        "latest",
        "origin",
        "retry",
        "since_us",
        "source",
        "timer",
    )

    def __init__(
        self,
        children: Children,
        origin: SubOrchestrationInstanceCreated,
        future: CommandFuture,
        decode: Callable[[Payload], Any],
        retry: RetryPolicy | None,
        source: Source | None,
    ) -> None:
        self.children = children
        self.origin = origin
        self.latest = origin
        self.future = future
        self.decode = decode
        self.retry = retry
        self.source = source
        self.timer: int | None = None
        # What the policy does not count: attempts before a rewind, and the time before it.
        self.attempts_before = 0
        self.since_us = origin.time_us

    def revoke(self) -> None:
        self.children.cancel(self)


class Children:
    """The sub-orchestrations of an execution. `outstanding` has those that nobody answered or cancelled yet."""

    __slots__ = (
        "_calls",
        "_journal",
        "_loop",
        "_open",
        "_random",
        "_timers",
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
        # By the number of the first attempt: also those that wait for the next one.
        self._open: dict[int, _Call] = {}
        self.outstanding: dict[int, SubOrchestrationInstanceCreated] = {}
        self.scheduled = self.completed = self.failed = self.cancelled = 0

    def schedule(
        self,
        name: str,
        payload: Payload,
        decode: Callable[[Payload], Any],
        *,
        instance: str | None,
        reference: dict[str, Any] | None,
        version: str | None,
        retry: RetryPolicy | None,
        source: Source | None,
    ) -> CommandFuture:
        """Call an orchestrator; the future gets its decoded result, or SubOrchestrationError."""
        journal = self._journal
        event = SubOrchestrationInstanceCreated(
            number=journal.next_number(),
            time_us=journal.time_us,
            name=name,
            input=payload,
            instance=instance,
            reference=reference,
            version=version,
        )
        future = self._loop.create_command_future()
        call = _Call(self, event, future, decode, retry, source)
        future.command = call
        self.scheduled += 1
        self._open[event.number] = call
        self._begin(call, event)
        return future

    def complete(self, event: SubOrchestrationInstanceCompleted) -> None:
        """The instance completed."""
        call = self._end(event.task)
        self._close(call)
        self.completed += 1
        decode_into(call.future, call.decode, event.result)

    def fail(self, event: SubOrchestrationInstanceFailed) -> None:
        """The instance failed or was terminated: begin the next attempt, or the wait before it, or give up."""
        call = self._end(event.task)
        error: BaseException
        try:
            delay_us = self._delay_us(call, event.failure)
        except BaseException as raised:
            # The policy's own handler is the user's code.
            delay_us, error = None, raised
        else:
            error = SubOrchestrationError(
                name=call.origin.name,
                instance_id=event.instance or call.origin.instance or "",
                failure=event.failure,
                attempt=call.latest.attempt,
            )
        if delay_us is None:
            self._close(call)
            self.failed += 1
            fail(call.future, error)
        elif delay_us == 0:
            self._retry(call)
        else:
            following = Retried(kind="sub-orchestration", name=call.origin.name, attempt=call.latest.attempt + 1)
            due_us = self._journal.time_us + delay_us
            call.timer = self._timers.create(due_us, lambda: self._retry(call), call.source, following)

    def cancel(self, call: _Call) -> None:
        """Nobody waits for the call any more."""
        if not self._loop.may_ask():
            return
        self.cancelled += 1
        self._close(call)
        if call.timer is not None:
            self._timers.cancel(call.timer)
        else:
            self._end(call.latest.number)
            self._record_canceled(call.latest.number, calling_source())

    def cancel_all(self) -> None:
        """The execution is terminated: every instance that it called and that runs is to be, too."""
        for number in list(self.outstanding):
            self.cancelled += 1
            self._close(self._end(number))
            self._record_canceled(number, None)

    def rewound(self) -> None:
        """Unfinished calls have all of their attempts and time again."""
        for call in self._open.values():
            call.attempts_before = call.latest.attempt - (call.timer is None)
            call.since_us = self._journal.time_us

    def source_of(self, number: int) -> Source | None:
        """The line that asked for an outstanding instance."""
        return self._calls[number].source if number in self._calls else None

    def _begin(self, call: _Call, event: SubOrchestrationInstanceCreated) -> None:
        call.latest = event
        self._calls[event.number] = call
        self.outstanding[event.number] = event
        self._journal.record(event, call.source)

    def _end(self, number: int) -> _Call:
        del self.outstanding[number]
        return self._calls.pop(number)

    def _close(self, call: _Call) -> None:
        del self._open[call.origin.number]

    def _record_canceled(self, number: int, source: Source | None) -> None:
        journal = self._journal
        event = SubOrchestrationInstanceCanceled(number=journal.next_number(), time_us=journal.time_us, task=number)
        journal.record(event, source)

    def _retry(self, call: _Call) -> None:
        call.timer = None
        origin, journal = call.origin, self._journal
        event = SubOrchestrationInstanceCreated(
            number=journal.next_number(),
            time_us=journal.time_us,
            name=origin.name,
            input=origin.input,
            instance=origin.instance,
            attempt=call.latest.attempt + 1,
            retry_of=origin.number,
            reference=origin.reference,
            version=origin.version,
        )
        self._begin(call, event)

    def _delay_us(self, call: _Call, failure: Failure) -> int | None:
        if call.retry is None:
            return None
        attempt = call.latest.attempt - call.attempts_before
        elapsed_us = self._journal.time_us - call.since_us
        return call.retry.delay_us(failure, attempt=attempt, elapsed_us=elapsed_us, rng=self._random)
