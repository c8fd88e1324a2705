"""Messages between instances, as the sender's log tells them: what was sent, and what has not arrived for all we know.

A message is an event of its sender: a call of another instance, the end of one that was called, a termination, an
external event. It is sent once its event is durable, and sent again by every later owner until the log notes that it
arrived; the receiver knows it by its id (the sender's event number, execution and instance). Nothing here sends.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ray_durable.engine import (
    Event,
    EventSent,
    ExecutionCompleted,
    ExecutionRewound,
    ExecutionStarted,
    OutboxDelivered,
    RuntimeStatus,
    SubOrchestrationInstanceCanceled,
    SubOrchestrationInstanceCompleted,
    SubOrchestrationInstanceCreated,
    SubOrchestrationInstanceFailed,
)
from ray_durable.errors import OrchestrationTerminatedError
from ray_durable.failure import Failure
from ray_durable.payload import Payload

__all__ = ["Correspondence", "EndChild", "Message", "RaiseEvent", "ReportEnd", "StartChild", "owed", "owes"]

_CHILD_ID_CHARS_MAX = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """What one instance sends to the instance `receiver`. `number` is the sender's event; payloads lie with `run`."""

    id: str
    number: int
    receiver: str
    run: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StartChild(Message):
    """Begin an instance, called by `parent` (instance id, execution, task). `rewinds`: one that failed goes on, too."""

    name: str
    input: Payload
    reference: dict[str, Any] | None
    version: str | None
    parent: tuple[str, int, int]
    depth: int
    rewinds: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class EndChild(Message):
    """Terminate an instance that nobody waits for any more, if it is the one that `parent` called: its id may have been
    another's all the time, or be used again by now."""

    parent: tuple[str, int, int]
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RaiseEvent(Message):
    """Raise an external event."""

    name: str
    value: Payload


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportEnd(Message):
    """The instance that was called, `instance`, has ended. `execution` and `task` say who waits, `result` or `failure`
    how.

    `ended` is the execution of the called instance that tells so; None: the call itself came to this.
    """

    instance: str
    execution: int
    task: int
    ended: int | None
    result: Payload | None
    failure: Failure | None


class Correspondence:
    """The messages of one execution. `take` its events, in order, from the first."""

    def __init__(self) -> None:
        self._started: ExecutionStarted | None = None
        self._pending: dict[int, Message] = {}
        self._children: dict[int, SubOrchestrationInstanceCreated] = {}
        self._foreign = 0
        self.are_older_delivered = True

    @property
    def pending(self) -> Sequence[Message]:
        """What is not known to have arrived, in the order of sending."""
        return list(self._pending.values())

    def take(self, events: Iterable[Event]) -> list[Message]:
        """Go on with these events; returns what they send."""
        sent: list[Message] = []
        for event in events:
            messages = self._read(event)
            self._pending.update((message.number, message) for message in messages)
            sent += messages
        return sent

    @property
    def started(self) -> ExecutionStarted | None:
        """The start of the execution; None before it was taken."""
        return self._started

    def child_id(self, number: int) -> str:
        """The id of the instance that event `number` calls, or called. KeyError if nobody waits for it any more."""
        return self._child_id(self._children[number])

    def _read(self, event: Event) -> list[Message]:
        if isinstance(event, ExecutionStarted):
            self._started = event
            self._foreign = event.foreign
            self.are_older_delivered = not event.owes
        elif isinstance(event, SubOrchestrationInstanceCreated):
            self._children[event.number] = event
            return [self._start(event)]
        elif isinstance(event, SubOrchestrationInstanceCompleted | SubOrchestrationInstanceFailed):
            # An answer shows that the call arrived.
            self._children.pop(event.task, None)
            self._pending.pop(event.task, None)
        elif isinstance(event, SubOrchestrationInstanceCanceled):
            return self._end(event)
        elif isinstance(event, EventSent):
            return [
                RaiseEvent(**self._address(event.number), receiver=event.instance, name=event.name, value=event.value)
            ]
        elif isinstance(event, OutboxDelivered):
            for number in event.messages:
                self._pending.pop(number, None)
            self.are_older_delivered = self.are_older_delivered or 0 in event.messages
        elif isinstance(event, ExecutionRewound):
            return self._rewind(event)
        elif isinstance(event, ExecutionCompleted):
            return self._report(event)
        return []

    @property
    def _start_event(self) -> ExecutionStarted:
        assert self._started is not None, "a history begins with its start"
        return self._started

    def _address(self, number: int) -> dict[str, Any]:
        started = self._start_event
        execution, _ = started.author_of(number)
        return {"id": f"{number}.{execution}.{started.instance_id}", "number": number, "run": started.run}

    def _start(self, event: SubOrchestrationInstanceCreated, *, rewinds: bool = False) -> StartChild:
        return StartChild(
            **self._address(event.number),
            receiver=self._child_id(event),
            name=event.name,
            input=event.input,
            reference=event.reference,
            version=event.version,
            parent=self._parent_of(event),
            depth=self._start_event.depth + 1,
            rewinds=rewinds,
        )

    def _parent_of(self, event: SubOrchestrationInstanceCreated) -> tuple[str, int, int]:
        started = self._start_event
        execution, _ = started.author_of(event.number)
        return started.instance_id, execution, event.number

    def _end(self, event: SubOrchestrationInstanceCanceled) -> list[Message]:
        child = self._children.pop(event.task, None)
        if child is None:
            return []
        parent = self._parent_of(child)
        reason = f"the instance {parent[0]!r} that called it does not wait for it any more"
        return [EndChild(**self._address(event.number), receiver=self._child_id(child), parent=parent, reason=reason)]

    def _rewind(self, event: ExecutionRewound) -> list[Message]:
        """What was copied has been sent by others; the instances that it waits for have to go on, or begin anew."""
        started = self._start_event
        # A rewind says who made what it copied; a fork does not, and may have been rewound since.
        is_fork = event.number - 1 not in [through for through, _, _ in started.lineage]
        if is_fork:
            # Forks of earlier versions do not tell it in their start.
            self._foreign = max(self._foreign, event.number - 1)
        self._pending.clear()
        # What was copied may note what an execution delivered for those before it: not for the one that was copied.
        self.are_older_delivered = not started.owes
        return [self._start(child, rewinds=not is_fork) for child in self._children.values()]

    def _report(self, event: ExecutionCompleted) -> list[Message]:
        started = self._start_event
        if started.parent is None:
            return []
        instance_id, execution, task = started.parent
        return [
            ReportEnd(
                **self._address(event.number),
                receiver=instance_id,
                instance=started.instance_id,
                execution=execution,
                task=task,
                ended=started.execution,
                result=event.result if event.status is RuntimeStatus.COMPLETED else None,
                failure=None if event.status is RuntimeStatus.COMPLETED else event.failure or _UNKNOWN,
            )
        ]

    def _child_id(self, event: SubOrchestrationInstanceCreated) -> str:
        started = self._start_event
        # What a fork copied has its instances already: its own must be others, also where an id was asked for.
        if event.instance is not None and event.number > self._foreign:
            return event.instance
        execution, _ = started.author_of(event.number)
        derived = f"{started.instance_id}:{execution}:{event.number}"
        if len(derived) <= _CHILD_ID_CHARS_MAX:
            return derived
        digest = hashlib.sha256(started.instance_id.encode("utf-8", "surrogatepass")).hexdigest()[:32]
        return f"{started.instance_id[:100]}~{digest}:{execution}:{event.number}"


_UNKNOWN = Failure(kind="system", type_name=OrchestrationTerminatedError.__name__, message="it ended without a word")


def owes(history: Iterable[Event], *, is_rewound: bool) -> bool:
    """Whether messages of this history, or of executions before it, may still have to be delivered.

    Of a failure that is rewound nobody is told: what was called will end in another way.
    """
    correspondence = Correspondence()
    correspondence.take(history)
    return bool(owed(correspondence.pending, is_rewound=is_rewound)) or not correspondence.are_older_delivered


def owed(pending: Iterable[Message], *, is_rewound: bool) -> list[Message]:
    """What an execution still owes to others when the next one begins.

    A rewind makes the calls of the copied history itself, and takes back those that it cuts off.
    """
    return [message for message in pending if not (is_rewound and isinstance(message, ReportEnd | StartChild))]
