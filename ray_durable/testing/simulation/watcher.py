"""What must hold of every run, whatever happens in it. `Watcher` sees each write as it takes effect, and the end.

Of each log: segments are written once, in the order of their numbers, each naming the one before; no segment of a lower
epoch behind a claim; nothing behind the end but a link; at most one outcome of each task, timer and item; a timer never
fires before its time by its owner's clock. Of the whole: no activity is submitted before the log holds it, or by an
owner that has read its outcome; activities are executed no more often than they were submitted, by what the logs say,
and once where the dispatcher and its workers lived; what was acknowledged is there, once; whoever read a history read
the beginning of the final one; a cluster that lost the hub does not go on renewing its lease, starts no activity once
its dispatcher had time to see that, and claims nothing by a process that began later.

It reads the objects by itself, after storage/FORMAT.md, and believes nothing that the runtime says of them.
"""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from ray_durable.engine import Event
from ray_durable.runtime.messages import Exchange
from ray_durable.testing.simulation.scheduler import Process
from ray_durable.testing.simulation.workers import Ledger

__all__ = ["Log", "Violation", "Watcher"]

_OUTCOMES = {
    "TaskCompleted": "task",
    "TaskFailed": "task",
    "SubOrchestrationInstanceCompleted": "task",
    "SubOrchestrationInstanceFailed": "task",
    "TimerFired": "timer",
}


_STANDING_DOWN_S = 60.0
_LATE_RENEWALS_MAX = 6


class Violation(AssertionError):
    """Something happened that must never happen."""


@dataclass(slots=True)
class Log:
    """One execution, as far as its segments were written."""

    instance: str
    execution: int
    run: str
    digest: str = ""
    epoch: int = 0
    nonce: str = ""
    seq: int = 0
    is_ended: bool = False
    is_linked: bool = False
    is_removed: bool = False
    events: list[dict[str, Any]] = field(default_factory=list)
    outcomes: dict[int, int] = field(default_factory=dict)
    """The epoch that recorded the outcome of a task or timer, by its number."""
    done_items: dict[int, dict[int, int]] = field(default_factory=lambda: defaultdict(dict))
    """The same for the items of maps that ended well."""


class Watcher:
    """See the module."""

    def __init__(self, now_us: Callable[[Process], int], ledger: Ledger) -> None:
        self.logs: dict[str, Log] = {}
        self.by_execution: dict[tuple[str, int], str] = {}
        self.acknowledged: list[tuple[str, str, str]] = []
        self.broken: list[Violation] = []
        self._now_us = now_us
        self._ledger = ledger
        # When each hub epoch was claimed, and what older ones were renewed with late.
        self._hub_epochs: dict[int, float] = {}
        self._late_renewals: dict[int, set[bytes]] = defaultdict(set)
        self._seen: list[tuple[str, Sequence[Event]]] = []

    # While it happens

    def created(self, process: Process, key: str, data: bytes) -> None:
        """An object was created."""
        parts = key.split("/")
        if parts[1] == "instances" and parts[-1].isdigit():
            self._begin(data)
        elif parts[1] == "runs" and parts[4] == "log":
            self._take(process, parts[3], key, data)
        elif parts[1:3] == ["lease", "epochs"]:
            self._hub_epochs[int(parts[3])] = process.scheduler.now_s

    def deleted(self, process: Process, key: str) -> None:
        """An object is gone."""
        parts = key.split("/")
        if parts[1] == "runs":
            log = self.logs.get(parts[3])
            if log is not None:
                if not log.is_ended:
                    raise Violation(f"{key}: removed, and its execution has not ended")
                log.is_removed = True

    def see_exchange(self, request: Exchange) -> None:
        """An owner hands over activities. It would survive an error here, so that is kept in `broken`."""
        log = self.logs.get(request.run)
        if log is None:
            self._break(f"activities of run {request.run}, which is not there")
            return
        for task in request.tasks:
            self._require_scheduled(log, task.task, "TaskScheduled")
            if log.outcomes.get(task.task, request.epoch + 1) <= request.epoch:
                self._break(f"{log.instance}: task {task.task} is submitted again, and its outcome is recorded")
        for wanted in request.maps:
            self._require_scheduled(log, wanted.map, "MapScheduled")
            done = log.done_items[wanted.map]
            for start, stop in wanted.ranges:
                for item in range(start, stop):
                    if done.get(item, request.epoch + 1) <= request.epoch:
                        self._break(f"{log.instance}: item {item} of map {wanted.map} is submitted again")

    def see_launch(self, hub_epoch: int, process: Process, trust_s: float) -> None:
        """A dispatcher starts a slice, and may believe for `trust_s` that its cluster holds the hub."""
        lost_s = self._lost_s(hub_epoch)
        if process.scheduler.now_s - lost_s > trust_s:
            self._break(f"hub epoch {hub_epoch} was replaced at {lost_s:.1f} s, and starts an activity")

    def _lost_s(self, hub_epoch: int) -> float:
        """When this hub epoch was replaced; infinite if it was not."""
        return min((since_s for newer, since_s in self._hub_epochs.items() if newer > hub_epoch), default=math.inf)

    def _require_scheduled(self, log: Log, number: int, kind: str) -> None:
        if number > len(log.events) or log.events[number - 1]["type"] != kind:
            self._break(f"{log.instance}: task {number} is submitted, and the log does not hold it yet")

    def _break(self, what: str) -> None:
        self.broken.append(Violation(what))

    def put(self, process: Process, key: str, data: bytes) -> None:
        """An object was created or replaced."""
        parts = key.split("/")
        if parts[1] == "runs" or (parts[1] == "instances" and parts[-1].isdigit()):
            raise Violation(f"{key} is no object that may be replaced")
        if key.endswith("/lease/holder"):
            epoch, now_s = json.loads(data)["epoch"], process.scheduler.now_s
            # A process that stood still may renew it in the round in which it did, a few times while the store is slow.
            if now_s - self._lost_s(epoch) > _STANDING_DOWN_S:
                self._late_renewals[epoch].add(data)
            if len(self._late_renewals[epoch]) > _LATE_RENEWALS_MAX:
                raise Violation(f"hub epoch {epoch} was replaced, and goes on renewing its lease")

    def acknowledge(self, kind: str, instance_id: str, request_id: str) -> None:
        """A client was told that this is done."""
        self.acknowledged.append((kind, instance_id, request_id))

    def saw(self, run: str, history: Sequence[Event]) -> None:
        """Somebody read this."""
        self._seen.append((run, history))

    def _begin(self, data: bytes) -> None:
        header, events = _parse(data)
        run, place = header["run"], (header["instance"], header["execution"])
        if place in self.by_execution or run in self.logs:
            raise Violation(f"execution {place} was created twice")
        log = self.logs[run] = Log(*place, run, digest=header["sha256"])
        self.by_execution[place] = run
        self._enter(log, events, None)

    def _take(self, process: Process, run: str, key: str, data: bytes) -> None:
        log = self.logs.get(run)
        header, events = _parse(data)
        if log is None:
            raise Violation(f"{key}: there is no such execution")
        if header["seq"] != log.seq + 1 or int(key.rpartition("/")[2]) != header["seq"]:
            raise Violation(f"{key}: segment {header['seq']} follows {log.seq}")
        if header["previous"] != log.digest:
            raise Violation(f"{key}: it does not name the segment before it")
        is_claim = header.get("claim", False)
        if header["epoch"] != log.epoch + is_claim:
            raise Violation(f"{key}: epoch {header['epoch']} after {log.epoch}")
        if is_claim and header["hub_epoch"] and process.began_s > self._lost_s(header["hub_epoch"]):
            raise Violation(f"{key}: a claim of hub epoch {header['hub_epoch']}, by a process that began without it")
        if not is_claim and header["nonce"] != log.nonce:
            raise Violation(f"{key}: its writer did not claim epoch {log.epoch}")
        log.seq, log.digest, log.epoch, log.nonce = header["seq"], header["sha256"], header["epoch"], header["nonce"]
        self._enter(log, events, process)

    def _enter(self, log: Log, events: list[dict[str, Any]], process: Process | None) -> None:
        for event in events:
            kind = event["type"]
            if event["n"] != len(log.events) + 1:
                raise Violation(f"{log.instance}: event {event['n']} follows {len(log.events)}")
            if log.is_linked or (log.is_ended and kind != "ExecutionRestarted"):
                raise Violation(f"{log.instance}: {kind} behind the end")
            log.events.append(event)
            name = _OUTCOMES.get(kind)
            if name is not None:
                number = event[name]
                if number in log.outcomes:
                    raise Violation(f"{log.instance}: a second outcome of {name} {number}")
                log.outcomes[number] = log.epoch
                if kind == "TimerFired" and process is not None:
                    self._check_timer(log, event, process)
            elif kind == "MapCompleted":
                self._take_items(log, event)
            elif kind in ("ExecutionCompleted", "ContinueAsNew"):
                log.is_ended = True
            log.is_linked = kind in ("ContinueAsNew", "ExecutionRestarted")

    def _check_timer(self, log: Log, event: dict[str, Any], process: Process) -> None:
        due_us = log.events[event["timer"] - 1]["due"]
        early_us = due_us - min(event["t"], self._now_us(process))
        if early_us > 0:
            raise Violation(f"{log.instance}: timer {event['timer']} fires {early_us} us early")

    def _take_items(self, log: Log, event: dict[str, Any]) -> None:
        failed = {offset for offset, _ in event.get("failures", ())}
        done = log.done_items[event["map"]]
        for offset in range(event["count"]):
            if offset in failed:
                continue
            item = event["start"] + offset
            if item in done:
                raise Violation(f"{log.instance}: a second result of item {item} of map {event['map']}")
            done[item] = log.epoch

    # In the end

    def check_end(self, *, kept_dispatcher: bool) -> None:
        """Look at what is there when all is over. `kept_dispatcher`: one dispatcher served all of the run."""
        if kept_dispatcher:
            self._check_single_executions()
        for log in self.logs.values():
            if not log.is_ended:
                raise Violation(f"execution {log.execution} of {log.instance} has not ended")
            self._check_executions(log)
        self._check_acknowledged()
        for run, history in self._seen:
            final = self.logs[run].events
            if len(history) > len(final):
                raise Violation(f"{self.logs[run].instance}: somebody read {len(history)} events of {len(final)}")
            for event, stored in zip(history, final, strict=False):
                if (event.number, event.time_us, type(event).__name__) != (stored["n"], stored["t"], stored["type"]):
                    raise Violation(f"{self.logs[run].instance}: somebody read another event {event.number}")

    def _check_single_executions(self) -> None:
        """Where neither the dispatcher nor the worker was lost, owners that die cause no execution."""
        for call, count in self._ledger.executions.items():
            if count > 1 + self._ledger.losses[call]:
                raise Violation(f"{call} was executed {count} times, and the dispatcher had it all the time")

    def _check_executions(self, log: Log) -> None:
        """No call was executed more often than its owners submitted it, as the log counts that."""
        own_from = max((event["n"] for event in log.events if event["type"] == "ExecutionRewound"), default=0)
        again: Counter[int] = Counter(
            task
            for event in log.events
            if event["type"] == "OwnerClaimed" and event["n"] > own_from
            for task, _ in event["attempts"]
        )
        executions, lost = self._ledger.executions, self._ledger.lost
        for event in log.events:
            number, is_own = event["n"], event["n"] > own_from
            if event["type"] == "TaskScheduled":
                call = f"{log.run}:{event.get('retry_of') or number}", event["attempt"]
                allowed = is_own + again[number] + lost[call]
                if executions[call] > allowed:
                    raise Violation(
                        f"{log.instance}: task {number} was executed {executions[call]} times and submitted {allowed}"
                    )
            elif event["type"] == "MapScheduled":
                for item in range(event["count"]):
                    for call in list(self._attempts_of(log.run, number, item)):
                        if executions[call] > 1 + again[number] + lost[call]:
                            raise Violation(f"{log.instance}: item {item} of map {number} ran too often")

    def _attempts_of(self, run: str, number: int, item: int) -> Iterator[tuple[str, int]]:
        attempt = 1
        while (call := (f"{run}:{number}:{item}", attempt)) in self._ledger.executions:
            yield call
            attempt += 1

    def _check_acknowledged(self) -> None:
        recorded: dict[str, set[str]] = defaultdict(set)
        for log in self.logs.values():
            # What one execution hands on to the next is there once in each.
            ids = Counter((event["type"], event["event_id"]) for event in log.events if event.get("event_id"))
            doubled = [event_id for (_, event_id), count in ids.items() if count > 1]
            if doubled:
                raise Violation(f"{log.instance}: events {doubled} were recorded twice")
            recorded[log.instance].update(event_id for _, event_id in ids)
            recorded[log.instance].update(event["request_id"] for event in log.events if "request_id" in event)
        for kind, instance_id, request_id in self.acknowledged:
            if kind == "start":
                if (instance_id, 1) not in self.by_execution:
                    raise Violation(f"the start of {instance_id} was acknowledged, and is lost")
            elif request_id not in recorded[instance_id]:
                raise Violation(f"{kind} {request_id!r} of {instance_id} was acknowledged, and is lost")


def _parse(data: bytes) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Header and events of a segment."""
    lines = data.split(b"\n")
    header = json.loads(lines[0])
    return header, [json.loads(line) for line in lines[1 : header["count"] + 1]]
