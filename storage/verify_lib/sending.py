"""The messages of one execution to other instances: FORMAT.md, section 10. What was sent, and noted as delivered."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

from verify_lib.findings import DamageError
from verify_lib.segments import Event

__all__ = ["Call", "Sending", "Sent"]

_CHILD_ID_CHARS_MAX = 200

Address = tuple[str, int, int]
"""Who waits for an end: instance, execution, task."""


@dataclass(slots=True)
class Sent:
    """One message. `kind` is the type of the event that it is; `execution` the one that first made the event."""

    kind: str
    number: int
    execution: int
    receiver: str
    name: str
    time: int
    task: int = 0
    is_delivered: bool = False


@dataclass(slots=True)
class Call:
    """A call of another instance. `canceled` is the event that took it back, if any.

    `children` are the ids that its instance may have: a fork's is another than the one that was asked for.
    """

    number: int
    execution: int
    children: tuple[str, ...]
    answer: Event | None = None
    is_delivered: bool = False
    canceled: int = 0
    is_cancel_delivered: bool = False


@dataclass(slots=True)
class Sending:
    """Take the events in order. `calls` are all of the history, `sent` what this execution answers for itself."""

    instance: str
    execution: int
    started: Event
    copied: int
    calls: dict[int, Call] = field(default_factory=dict)
    sent: dict[int, Sent] = field(default_factory=dict)
    # Not by the rules, and no harm: (key, text).
    remarks: list[tuple[str, str]] = field(default_factory=list)
    owes_older: bool = field(init=False)

    def __post_init__(self) -> None:
        self.owes_older = self.started.get("owes", False)

    @property
    def owes(self) -> bool:
        """Whether a message may still have to be delivered."""
        return self.owes_older or any(not one.is_delivered for one in self.sent.values())

    @property
    def parent(self) -> Address | None:
        """Who waits for the end of this execution."""
        return address_of(self.started.get("parent"))

    def author_of(self, number: int) -> int:
        """The execution in which an event was first made."""
        for part in self.started.get("lineage", ()):
            if number <= part[0]:
                execution: int = part[1]
                return execution
        return self.execution

    def message_id(self, number: int) -> str:
        """The id of the message that an event is."""
        return f"{number}.{self.author_of(number)}.{self.instance}"

    def take(self, key: str, event: Event) -> None:
        """Go on with the next event. DamageError if it notes what was never sent."""
        kind, number = event["type"], event["n"]
        if kind == "SubOrchestrationInstanceCreated":
            self.calls[number] = Call(number, self.author_of(number), self._children(event))
            self._send(event, self.calls[number].children[0], event["name"])
        elif kind in ("SubOrchestrationInstanceCompleted", "SubOrchestrationInstanceFailed"):
            call = self.calls[event["task"]]
            call.answer = event
            self._check_answer(key, call, event)
            if event["task"] in self.sent:
                # An answer shows that the call arrived.
                self.sent[event["task"]].is_delivered = True
        elif kind == "SubOrchestrationInstanceCanceled":
            call = self.calls[event["task"]]
            call.canceled = number
            self._send(event, call.children[0], "")
        elif kind == "EventSent":
            self._send(event, event["instance"], event["name"])
        elif kind == "OutboxDelivered":
            self._note(key, event)
        elif kind == "ExecutionRewound":
            self._rewind(number)
        elif kind == "ExecutionCompleted" and self.parent is not None:
            self._send(event, self.parent[0], event["status"])

    def _send(self, event: Event, receiver: str, name: str) -> None:
        number, task = event["n"], event.get("task", 0)
        self.sent[number] = Sent(event["type"], number, self.author_of(number), receiver, name, event["t"], task)

    def _rewind(self, number: int) -> None:
        """What was copied has been sent by others; the instances that it waits for are called, or told, once more."""
        self.owes_older = self.started.get("owes", False)
        waiting = [call for call in self.calls.values() if call.answer is None and not call.canceled]
        self.sent = {call.number: self._again(call, number) for call in waiting}
        for call in waiting:
            call.is_delivered = False

    def _again(self, call: Call, number: int) -> Sent:
        before = self.sent.get(call.number)
        time = before.time if before is not None else 0
        return Sent("SubOrchestrationInstanceCreated", call.number, call.execution, call.children[0], "", time)

    def _note(self, key: str, event: Event) -> None:
        for number in event["messages"]:
            if number == 0:
                # What was copied may note what another execution owed.
                if not self.owes_older and event["n"] > self.copied:
                    raise DamageError("message", key, f"event {event['n']} notes older messages that are not owed")
                self.owes_older = False
                continue
            sent, call = self.sent.get(number), self.calls.get(number)
            if sent is None:
                raise DamageError("message", key, f"event {event['n']} notes message {number}, which was never sent")
            if sent.is_delivered and (call is None or call.is_delivered or call.answer is None):
                self.remarks.append((key, f"event {event['n']} notes message {number} a second time"))
            sent.is_delivered = True
            if call is not None:
                call.is_delivered = True
            if sent.kind == "SubOrchestrationInstanceCanceled":
                self.calls[sent.task].is_cancel_delivered = True

    def _check_answer(self, key: str, call: Call, event: Event) -> None:
        """It comes from the instance that was called, or says what the call itself came to."""
        message: str = event["message"]
        sender = message.split(".", 2)[2:]
        is_own = message == f"{call.number}.{call.execution}.{self.instance}"
        if event["n"] <= self.copied and "origin" in self.started:
            return  # a fork's first answers were its source's
        if not is_own and (not sender or sender[0] not in call.children or not message.split(".")[1].isdecimal()):
            what = f"answers call {call.number} by message {message!r}, which is of another instance"
            raise DamageError("child", key, f"event {event['n']} {what}")

    def _children(self, event: Event) -> tuple[str, ...]:
        number = event["n"]
        head = self.instance
        derived = f"{head}:{self.author_of(number)}:{number}"
        if len(derived) > _CHILD_ID_CHARS_MAX:
            digest = hashlib.sha256(head.encode("utf-8", "surrogatepass")).hexdigest()[:32]
            derived = f"{head[:100]}~{digest}:{self.author_of(number)}:{number}"
        asked = event.get("instance")
        if asked is None:
            return (derived,)
        # What was copied from another instance calls instances of its own.
        return (asked, derived) if "origin" in self.started else (asked,)


def address_of(parent: Any) -> Address | None:
    """The caller that a start names."""
    return (parent["instance"], parent["execution"], parent["task"]) if parent else None
