"""The events of one execution, taken in order: FORMAT.md, section 4. What may follow what.

Nothing is known here of what code decides, only what no code can cause: an outcome of what was not asked for, a second
one, an attempt left out, a timer that fires early, an event behind the end.
"""

from __future__ import annotations

import re
from array import array
from dataclasses import dataclass, field
from typing import Any

from verify_lib.findings import DamageError
from verify_lib.segments import STATUSES, Event, Segment
from verify_lib.sending import Sending

__all__ = ["LINKS", "History"]

LINKS = frozenset({"ContinueAsNew", "ExecutionRestarted"})
"""What names the next execution."""

_ENDS = frozenset({"ExecutionCompleted", "ContinueAsNew"})
_INPUTS = frozenset(
    {
        "ExecutionStarted",
        "OwnerClaimed",
        "TaskCompleted",
        "TaskFailed",
        "MapCompleted",
        "TimerFired",
        "EventRaised",
        "ExecutionTerminated",
        "ExecutionSuspended",
        "ExecutionResumed",
        "ExecutionRewound",
        "SubOrchestrationInstanceCompleted",
        "SubOrchestrationInstanceFailed",
        "OutboxDelivered",
    }
)
"""What comes from outside; everything else is caused by the input before it."""

_OUTSTANDING, _SUCCEEDED, _FAILED = 0, 1, 2


@dataclass(slots=True)
class _Asked:
    """A task, timer or called instance: how often it was submitted, what came of it."""

    kind: str
    attempt: int = 1
    origin: int = 0
    due: int = 0
    submissions: int = 1
    outcome: str = ""
    is_canceled: bool = False


@dataclass(slots=True)
class _Map:
    """A map, item by item: its state, and the attempt that has it."""

    count: int
    states: bytearray
    attempts: array[int]
    submissions: int = 1
    is_canceled: bool = False


@dataclass(slots=True)
class History:
    """What the events so far say. Made of segment 0, which says how much was copied from another history."""

    start: Segment
    started: Event = field(init=False)
    number: int = 0
    time: int = 0
    copied: int = field(init=False)
    end: Event | None = None
    link: Event | None = None
    is_suspended: bool = False
    is_terminated: bool = False
    sending: Sending = field(init=False)
    _asked: dict[int, _Asked] = field(default_factory=dict)
    _maps: dict[int, _Map] = field(default_factory=dict)
    _retries: dict[int, int] = field(default_factory=dict)
    # The external events, by their ids: number and name. The functions captured by value that are referred to.
    raised: dict[str, tuple[int, str]] = field(default_factory=dict)
    references: set[str] = field(default_factory=set)
    _recent: set[str] = field(default_factory=set)
    # What was answered while the execution was suspended may be cancelled at its resumption, before its turn comes.
    _held: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.started = self.start.events[0]
        rewinds = [event["n"] for event in self.start.events if event["type"] == "ExecutionRewound"]
        self.copied = rewinds[-1] if rewinds else 0
        """The number of the last event that was made with segment 0, if that holds a copied history."""
        if len(self.start.events) != (self.copied or 1):
            raise DamageError(
                "start", self.start.key, "segment 0 holds the start alone, or a copy up to ExecutionRewound"
            )
        self.sending = Sending(self.start.header["instance"], self.start.header["execution"], self.started, self.copied)

    @property
    def is_finished(self) -> bool:
        """Whether it has ended and no other execution follows."""
        return self.end is not None and self.link is None

    @property
    def status(self) -> str:
        """The runtime status that the summary of the last segment has to tell."""
        if self.link is not None:
            return "Running" if self.link["type"] == "ContinueAsNew" else "Pending"
        return self.end["status"] if self.end is not None else "Suspended" if self.is_suspended else "Running"

    @property
    def next_timer(self) -> int | None:
        """When the earliest timer is due that has neither fired nor been cancelled."""
        waiting = [one.due for one in self._asked.values() if one.kind == "TimerCreated" and _is_open(one)]
        return min(waiting, default=None)

    def take(self, segment: Segment) -> None:
        """Go on with the events of the next segment. DamageError at the first that cannot come there."""
        for event in segment.events:
            self._check_order(segment, event)
            check = _CHECKS.get(event["type"])
            if event["type"] in _INPUTS and event["type"] != "ExecutionResumed" and not self.is_suspended:
                self._held.clear()
            if check is not None:
                check(self, segment.key, event)
            self.sending.take(segment.key, event)
            code = event.get("reference", {}).get("code")
            if isinstance(code, str):
                self.references.add(code)
            self.number, self.time = event["n"], event["t"]
        self._check_claim(segment)
        self._check_status(segment)

    # Order

    def _check_order(self, segment: Segment, event: Event) -> None:
        key, kind, number = segment.key, event["type"], event["n"]
        if number != self.number + 1:
            raise DamageError("numbering", key, f"event {number} stands where {self.number + 1} is next")
        if (number == 1) != (kind == "ExecutionStarted"):
            raise DamageError(
                "start", key, f"event {number} is {kind}; ExecutionStarted is the first and only the first"
            )
        if self.link is not None or (self.end is not None and kind != "ExecutionRestarted"):
            raise DamageError("end", key, f"event {number} comes after the end")
        if kind == "ExecutionRestarted" and not (self.end is not None and segment.is_claim):
            raise DamageError("link", key, f"event {number} links to a next execution, and this one has not ended")
        if event["t"] < self.time:
            raise DamageError("time", key, f"event {number} has time {event['t']} after {self.time}")
        if kind == "ExecutionRewound" and segment is not self.start:
            raise DamageError("start", key, f"event {number} ends a copied history, which only segment 0 holds")

    def _check_claim(self, segment: Segment) -> None:
        """A claim says who claims, unless it ends the execution or links to the next."""
        if segment is self.start:
            return
        claims = [event for event in segment.events if event["type"] == "OwnerClaimed"]
        header = segment.header
        if not segment.is_claim and claims:
            raise DamageError("claim", segment.key, f"event {claims[0]['n']} claims the log, the segment does not")
        if segment.is_claim and len(claims) != 1 and not (self.end is not None and not claims):
            raise DamageError("claim", segment.key, f"a claim with {len(claims)} events OwnerClaimed")
        for claim in claims:
            if (claim["epoch"], claim["hub_epoch"]) != (header["epoch"], header["hub_epoch"]):
                raise DamageError("claim", segment.key, f"event {claim['n']} claims another epoch than the segment")

    def _check_status(self, segment: Segment) -> None:
        """The summary in the header is what a status query answers with."""
        status, started = segment.header["status"], self.started
        if "due_us" in status and status["due_us"] != started.get("due"):
            raise DamageError("status", segment.key, f"the status is of a start at {status['due_us']!r}")
        expected: dict[str, Any] = {name: started[name] for name in ("instance", "execution", "name", "request_id")}
        # A fork is newer than the start that it copied.
        is_younger = self.copied and status.get("created_us") == self.start.header["status"].get("created_us")
        if not is_younger:
            expected["created_us"] = started["t"]
        for name, value in expected.items():
            if status.get(name) != value:
                raise DamageError("status", segment.key, f"the status has {name} {status.get(name)!r}, not {value!r}")
        told = status.get("runtime_status")
        possible = {self.status, *(("Pending",) if self._may_be_pending(segment) else ())}
        if told not in STATUSES or (told not in possible and not (told == "ContinuedAsNew" and self.link is not None)):
            raise DamageError("status", segment.key, f"the status is {told!r}, and the events say {self.status}")

    def _may_be_pending(self, segment: Segment) -> bool:
        is_waiting = 1 in self._asked and _is_open(self._asked[1])
        return self.end is None and (segment is self.start or is_waiting)

    # What each event may say

    def _start(self, key: str, event: Event) -> None:
        header = self.start.header
        for name in ("instance", "run", "execution"):
            if event[name] != header[name]:
                raise DamageError("start", key, f"ExecutionStarted has {name} {event[name]!r}, its segment another")
        if "due" in event:
            self._asked[1] = _Asked("TimerCreated", due=event["due"])
        carried = {one.get("event_id") for one in event.get("carried", ()) if one["type"] == "EventRaised"}
        if any(one["type"] not in _INPUTS for one in event.get("carried", ())):
            raise DamageError("start", key, "what is handed on to an execution is an input")
        self._recent = {one for one in event.get("recent", ()) if one not in carried}

    def _ask(self, key: str, event: Event) -> None:
        number, kind = event["n"], event["type"]
        asked = self._asked[number] = _Asked(kind, attempt=event.get("attempt", 1), due=event.get("due", 0))
        if kind == "TimerCreated":
            return
        origin: int | None = event.get("retry_of")
        if origin is None:
            if asked.attempt != 1:
                raise DamageError("attempt", key, f"event {number} is attempt {asked.attempt} of nothing")
            return
        asked.origin = origin
        latest = self._asked.get(self._retries.get(origin, origin))
        if latest is None or latest.kind != kind or latest.origin not in (0, origin):
            raise DamageError("attempt", key, f"event {number} is a retry of {origin}, which is no such call")
        if asked.attempt != latest.attempt + 1 or latest.outcome != "failed":
            why = f"after attempt {latest.attempt}, which {latest.outcome or 'has no outcome'}"
            raise DamageError("attempt", key, f"event {number} is attempt {asked.attempt} of {origin}, {why}")
        self._retries[origin] = number

    def _settle(self, key: str, event: Event) -> None:
        kind, number = event["type"], event["n"]
        name, wanted = _OUTCOMES[kind]
        cause = event[name]
        asked = self._asked.get(cause)
        if asked is None or asked.kind != wanted:
            raise DamageError(
                "outcome", key, f"event {number} is an outcome of {name} {cause}, which was never scheduled"
            )
        if asked.is_canceled:
            raise DamageError("outcome", key, f"event {number} is an outcome of {name} {cause}, which was cancelled")
        if asked.outcome:
            raise DamageError("outcome", key, f"event {number} is a second outcome of {name} {cause}")
        if "attempt" in event and event["attempt"] != asked.attempt:
            why = f"of attempt {event['attempt']} of {name} {cause}, which was attempt {asked.attempt}"
            raise DamageError("attempt", key, f"event {number} is the outcome {why}")
        if kind == "TimerFired" and event["t"] < asked.due:
            raise DamageError("timer", key, f"event {number} fires timer {cause} before it is due")
        asked.outcome = "failed" if kind.endswith("Failed") else "succeeded"
        if self.is_suspended:
            self._held.add(cause)

    def _cancel(self, key: str, event: Event) -> None:
        name, wanted = _CANCELS[event["type"]]
        asked = self._asked.get(event[name])
        if asked is None or asked.kind != wanted:
            what = f"{name} {event[name]}, which was never scheduled"
            raise DamageError("cancel", key, f"event {event['n']} cancels {what}")
        if asked.is_canceled or (asked.outcome and event[name] not in self._held):
            why = "was cancelled" if asked.is_canceled else "has an outcome"
            raise DamageError("cancel", key, f"event {event['n']} cancels {name} {event[name]}, which {why}")
        asked.is_canceled = True

    def _map(self, key: str, event: Event) -> None:
        count = event["count"]
        self._maps[event["n"]] = _Map(count, bytearray(count), array("H", [1]) * count)

    def _map_of(self, key: str, event: Event) -> _Map:
        found = self._maps.get(event["map"])
        if found is None:
            raise DamageError("outcome", key, f"event {event['n']} is of map {event['map']}, which was never scheduled")
        return found

    def _settle_items(self, key: str, event: Event) -> None:
        mapped, number, start = self._map_of(key, event), event["n"], event["start"]
        stop = start + event["count"]
        if event["count"] == 0 or stop > mapped.count:
            raise DamageError("outcome", key, f"event {number} has outcomes of items that were never scheduled")
        if mapped.is_canceled:
            raise DamageError("outcome", key, f"event {number} has outcomes of map {event['map']}, which was cancelled")
        # One byte an item: counting them is quick however long the range is.
        if mapped.states.count(_OUTSTANDING, start, stop) != stop - start:
            raise DamageError("outcome", key, f"event {number} has second outcomes of items of map {event['map']}")
        mapped.states[start:stop] = bytes([_SUCCEEDED]) * (stop - start)
        before = -1
        for failed in event.get("failures", ()):
            if not (isinstance(failed, list) and len(failed) == 2 and type(failed[0]) is int):
                raise DamageError("event", key, f"event {number} has a failure without a place")
            if not before < failed[0] < event["count"]:
                raise DamageError("outcome", key, f"event {number} has failures that are not in order")
            before = failed[0]
            mapped.states[start + before] = _FAILED

    def _ask_items(self, key: str, event: Event) -> None:
        mapped, number = self._map_of(key, event), event["n"]
        before = -1
        for item in event["items"]:
            if not before < item < mapped.count or mapped.states[item] != _FAILED:
                raise DamageError("attempt", key, f"event {number} schedules item {item} again, which has not failed")
            if event["attempt"] != mapped.attempts[item] + 1:
                why = f"attempt {event['attempt']} of item {item}, after {mapped.attempts[item]}"
                raise DamageError("attempt", key, f"event {number} is {why}")
            before, mapped.states[item], mapped.attempts[item] = item, _OUTSTANDING, event["attempt"]

    def _cancel_map(self, key: str, event: Event) -> None:
        mapped = self._map_of(key, event)
        if mapped.is_canceled:
            raise DamageError("cancel", key, f"event {event['n']} cancels map {event['map']}, which was cancelled")
        mapped.is_canceled = True

    def _claim(self, key: str, event: Event) -> None:
        """Each submission is counted, and only what has no outcome is submitted again."""
        for pair in event["attempts"]:
            if len(pair) != 2:
                raise DamageError("event", key, f"event {event['n']} submits something without a number")
            number, submission = pair
            asked: _Asked | _Map | None = self._maps.get(number) or self._asked.get(number)
            if asked is not None and not _may_be_submitted(asked):
                asked = None
            if asked is None:
                raise DamageError(
                    "attempt", key, f"event {event['n']} submits {number} again, which is not outstanding"
                )
            if submission != asked.submissions + 1:
                why = f"its submission {submission} after {asked.submissions}"
                raise DamageError("attempt", key, f"event {event['n']} counts {number} wrongly: {why}")
            asked.submissions = submission

    def _raise(self, key: str, event: Event) -> None:
        event_id = event["event_id"]
        if not event_id:
            return
        # The start of a copied history knows the ids of the copied events, too.
        is_known = event["n"] > self.copied and event_id in self._recent
        if event_id in self.raised or is_known:
            raise DamageError("message", key, f"event {event['n']} raises the event {event_id!r} a second time")
        self.raised[event_id] = (event["n"], event["name"])

    def _suspend(self, key: str, event: Event) -> None:
        if self.is_suspended:
            raise DamageError("suspended", key, f"event {event['n']} suspends what is suspended")
        self.is_suspended = True

    def _resume(self, key: str, event: Event) -> None:
        if not self.is_suspended:
            raise DamageError("suspended", key, f"event {event['n']} resumes what is not suspended")
        self.is_suspended = False

    def _terminate(self, key: str, event: Event) -> None:
        self.is_terminated = True

    def _complete(self, key: str, event: Event) -> None:
        status, number = event["status"], event["n"]
        if status not in ("Completed", "Failed", "Terminated"):
            raise DamageError("end", key, f"event {number} ends the execution as {status!r}")
        if ("result" in event) == ("failure" in event) or (status == "Completed") != ("result" in event):
            raise DamageError("end", key, f"event {number}: what completed has a result, anything else a failure")
        if status == "Terminated" and not self.is_terminated:
            raise DamageError("end", key, f"event {number} ends as Terminated, and nobody terminated it")
        self.end = event

    def _continue(self, key: str, event: Event) -> None:
        unknown = [number for number in event.get("carried", ()) if not 1 < number < event["n"]]
        if unknown or not _RUN.fullmatch(event["run"]):
            raise DamageError("link", key, f"event {event['n']} hands on what is not there, or names no run")
        self.end = self.link = event

    def _restart(self, key: str, event: Event) -> None:
        is_rewind, number = event["kind"] == "rewind", event["n"]
        if event["kind"] not in ("rewind", "restart", "start") or not _RUN.fullmatch(event["run"]):
            raise DamageError("link", key, f"event {number} links by {event['kind']!r} to {event['run']!r}")
        if is_rewind and not 1 <= event.get("through", 0) < number:
            raise DamageError("link", key, f"event {number} rewinds to an event that is not there")
        if not is_rewind and not ("name" in event and "input" in event):
            raise DamageError("link", key, f"event {number} says not what to start, or not with what")
        if any(not event["through"] < kept < number for kept in event.get("kept", ())):
            raise DamageError("link", key, f"event {number} keeps events that it does not cut off")
        self.link = event


def _is_open(asked: _Asked) -> bool:
    return not asked.outcome and not asked.is_canceled


def _may_be_submitted(asked: _Asked | _Map) -> bool:
    if isinstance(asked, _Map):
        return not asked.is_canceled and _OUTSTANDING in asked.states
    return asked.kind == "TaskScheduled" and _is_open(asked)


_RUN = re.compile(r"[0-9a-f]{32}")

_OUTCOMES = {
    "TaskCompleted": ("task", "TaskScheduled"),
    "TaskFailed": ("task", "TaskScheduled"),
    "TimerFired": ("timer", "TimerCreated"),
    "SubOrchestrationInstanceCompleted": ("task", "SubOrchestrationInstanceCreated"),
    "SubOrchestrationInstanceFailed": ("task", "SubOrchestrationInstanceCreated"),
}
"""The field that names what an event settles, and what that has to be."""

_CANCELS = {
    "TaskCanceled": ("task", "TaskScheduled"),
    "TimerCanceled": ("timer", "TimerCreated"),
    "SubOrchestrationInstanceCanceled": ("task", "SubOrchestrationInstanceCreated"),
}

_CHECKS = {
    "ExecutionStarted": History._start,
    "OwnerClaimed": History._claim,
    "TaskScheduled": History._ask,
    "TimerCreated": History._ask,
    "SubOrchestrationInstanceCreated": History._ask,
    **dict.fromkeys(_OUTCOMES, History._settle),
    **dict.fromkeys(_CANCELS, History._cancel),
    "MapScheduled": History._map,
    "MapItemsScheduled": History._ask_items,
    "MapCompleted": History._settle_items,
    "MapCanceled": History._cancel_map,
    "EventRaised": History._raise,
    "ExecutionSuspended": History._suspend,
    "ExecutionResumed": History._resume,
    "ExecutionTerminated": History._terminate,
    "ExecutionCompleted": History._complete,
    "ContinueAsNew": History._continue,
    "ExecutionRestarted": History._restart,
}
