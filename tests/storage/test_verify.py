"""storage/verify.py finds what is wrong with a root, names it, and says nothing else.

Each test takes a sound root, recorded by the runtime, and breaks one thing in it. Where that needs a segment with other
content, its checksum and those of all behind it are made right again, as a faulty writer would have them.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import verify
from golden import record
from verify_lib import names
from verify_lib.findings import Finding
from verify_lib.roots import OBJECT_BYTES_MAX, open_root

SCRIPT = Path(__file__).parents[2] / "storage" / "verify.py"
ORPHAN = "never begun"
"""In the recorded root a start has died; that is the one finding about it."""

Event = dict[str, Any]
Break = Callable[["Root"], None]


@dataclass
class Segment:
    """One that may be changed."""

    header: dict[str, Any]
    events: list[Event]
    sections: bytes = b""


@dataclass
class EditedLog:
    """An execution to be changed; `write` makes checksums, predecessors and counts right."""

    root: Root
    segments: list[Segment] = field(default_factory=list)

    @classmethod
    def read(cls, root: Root, instance: str, execution: int = 1) -> EditedLog:
        log = cls(root)
        data = root.objects[f"{names.execution_folder(instance)}{execution:06}"]
        run, seq = json.loads(data.split(b"\n")[0])["run"], 0
        while True:
            head, _, rest = data.partition(b"\n")
            header = json.loads(head)
            lines = rest.split(b"\n", header["count"])
            log.segments.append(Segment(header, [json.loads(line) for line in lines[:-1]], lines[-1]))
            seq += 1
            following = root.read(names.segment(run, seq))
            if following is None:
                return log
            data = following

    @property
    def tail(self) -> Segment:
        return self.segments[-1]

    def event(self, kind: str, nth: int = 0) -> Event:
        return [event for segment in self.segments for event in segment.events if event["type"] == kind][nth]

    @property
    def tail_key(self) -> str:
        return self.key(self.tail)

    def append(self, *events: Event, is_claim: bool = False, **header: Any) -> None:
        """A segment more, with events that have the next numbers."""
        last = self.tail
        first = last.header["first"] + len(last.events)
        numbered = [{"n": first + place, "t": last.events[-1]["t"], **event} for place, event in enumerate(events)]
        fields = {**last.header, "seq": last.header["seq"] + 1, "first": first, "sections": []}
        fields.pop("claim", None)
        if is_claim:
            fields |= {"claim": True, "epoch": fields["epoch"] + 1, "nonce": "f" * 16}
        self.segments.append(Segment({**fields, **header}, numbered))

    def write(self, *, keeps_counts: bool = False) -> None:
        digest = None
        for segment in self.segments:
            header = segment.header
            if not keeps_counts:
                header["count"] = len(segment.events)
            if digest is not None and header.get("previous") != "kept":
                header["previous"] = digest
            header.pop("sha256", None)
            start = json.dumps(header, separators=(",", ":"), ensure_ascii=False)[:-1].encode() + b',"sha256":"'
            lines = [json.dumps(event, separators=(",", ":"), ensure_ascii=False).encode() for event in segment.events]
            body = b"\n".join((*lines, b"")) + segment.sections
            digest = hashlib.sha256(start + b"0" * 64 + b'"}\n' + body).hexdigest()
            self.root.objects[self.key(segment)] = start + digest.encode() + b'"}\n' + body

    def key(self, segment: Segment) -> str:
        start = self.segments[0].header
        if segment is self.segments[0]:
            return f"{names.execution_folder(start['instance'])}{start['execution']:06}"
        return names.segment(start["run"], self.segments.index(segment))


class Root:
    """The recorded root's objects, to be broken. A `verify_lib.roots.Root` in memory, since there are many of them."""

    def __init__(self, objects: Mapping[str, bytes]) -> None:
        self.objects = dict(objects)

    def read(self, key: str, bytes_max: int = OBJECT_BYTES_MAX) -> bytes | None:
        data = self.objects.get(key)
        return data if data is None or len(data) <= bytes_max else b""

    def names(self, folder: str) -> list[str]:
        found = {name.partition("/") for name in self.walk(folder)}
        return sorted({f"{name}{separator}" for name, separator, _ in found})

    def walk(self, folder: str) -> Iterator[str]:
        return iter(sorted(key[len(folder) :] for key in self.objects if key.startswith(folder)))

    def below(self, folder: str) -> Root:
        raise AssertionError("it is a hub, and checked as a whole")

    def log(self, instance: str, execution: int = 1) -> EditedLog:
        return EditedLog.read(self, instance, execution)

    def one(self, *parts: str) -> str:
        """The first key with these parts."""
        return min(key for key in self.objects if all(part in key for part in parts))

    def rewrite(self, key: str, **changes: Any) -> None:
        """Change fields of a JSON object."""
        self.objects[key] = json.dumps({**json.loads(self.objects[key]), **changes}).encode()

    def findings(self, **options: Any) -> list[Finding]:
        """All but the one that the recorded root has."""
        found = verify.verify_hub(self, name=record.HUB, **options).findings
        return [one for one in found if one.instances != (ORPHAN,)]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a root as the runtime writes it today, with everything in it."""
    folder = tmp_path_factory.mktemp("recorded")
    record.record(folder)
    return folder


@pytest.fixture(scope="module")
def objects(recorded: Path) -> Mapping[str, bytes]:
    """Its objects."""
    hub = recorded / record.HUB
    return {path.relative_to(hub).as_posix(): path.read_bytes() for path in hub.rglob("*") if path.is_file()}


@pytest.fixture
def root(objects: Mapping[str, bytes]) -> Root:
    """A copy of it."""
    return Root(objects)


def _edit(
    instance: str, change: Callable[[EditedLog], object], execution: int = 1, *, keeps_counts: bool = False
) -> Break:
    """Change a log and write it with right checksums."""

    def apply(root: Root) -> None:
        log = root.log(instance, execution)
        change(log)
        log.write(keeps_counts=keeps_counts)

    return apply


def _flip(root: Root, key: str, place: int) -> None:
    data = bytearray(root.objects[key])
    data[place] ^= 1
    root.objects[key] = bytes(data)


def _append(instance: str, *events: Event, execution: int = 1, is_claim: bool = False, **header: Any) -> Break:
    return _edit(instance, lambda log: log.append(*events, is_claim=is_claim, **header), execution)


def _move_segment(root: Root) -> None:
    log = root.log("chain")
    key = names.segment(log.tail.header["run"], log.tail.header["seq"] + 1)
    root.objects[key] = root.objects[log.key(log.tail)]


def _lower_epoch(log: EditedLog) -> None:
    log.append({"type": "EventRaised", "name": "x", "event_id": "", "value": {"json": 1}}, epoch=1)


def _swap(log: EditedLog, **places: Any) -> None:
    log.tail.events[0] |= places


def _claimed(**fields: Any) -> Event:
    return {"type": "OwnerClaimed", "epoch": 9, "hub_epoch": 1, "host": "h", "pid": 1, "attempts": [], **fields}


def _completed(task: int, **fields: Any) -> Event:
    return {"type": "TaskCompleted", "task": task, "attempt": 1, "result": {"json": 1}, **fields}


def _items(map: int, start: int, count: int) -> Event:
    return {"type": "MapCompleted", "map": map, "start": start, "count": count, "results": {"json": []}}


def _timed(log: EditedLog) -> None:
    log.tail.events[0]["t"] = log.segments[0].events[0]["t"] - 1


def _two_events_at_start(log: EditedLog) -> None:
    log.segments[0].events += log.segments[1].events
    del log.segments[1]
    for seq, segment in enumerate(log.segments):
        segment.header["seq"] = seq


def _before_end(log: EditedLog, event: Event) -> None:
    """An event right before the last one."""
    end = log.tail.events.pop()
    log.tail.events += [{"n": end["n"], "t": end["t"], **event}, {**end, "n": end["n"] + 1}]


def _status(log: EditedLog, **changes: Any) -> None:
    log.tail.header["status"] |= changes


def _terminated_by_nobody(log: EditedLog) -> None:
    del log.event("ExecutionTerminated")["type"]
    event = next(event for event in log.tail.events if "type" not in event)
    event |= {"type": "EventRaised", "name": "x", "event_id": "", "value": {"json": 1}}


def _claim_of_nobody(log: EditedLog) -> None:
    log.append({"type": "EventRaised", "name": "x", "event_id": "", "value": {"json": 1}}, is_claim=True)


def _skip_attempt(log: EditedLog) -> None:
    log.event("SubOrchestrationInstanceCreated", 1)["attempt"] = 3


def _truncate(root: Root) -> None:
    key = root.log("chain").tail_key
    root.objects[key] = root.objects[key][:-1]


def _without(suffix: str, instance: str, execution: int = 1) -> Break:
    """Remove an object of an instance's run."""

    def apply(root: Root) -> None:
        run = root.log(instance, execution).segments[0].header["run"]
        del root.objects[root.one(f"{run}{suffix}")]

    return apply


def _scheduled() -> Event:
    return {"type": "TaskScheduled", "name": "work", "attempt": 1, "input": {"json": []}}


def _section(place: int) -> Event:
    return {"encoding": "batch", "section": place, "size": 5}


def _again(map: int, items: list[int], attempt: int) -> Event:
    return {"type": "MapItemsScheduled", "map": map, "items": items, "attempt": attempt}


def _canceled(what: str, number: int) -> Event:
    return {"type": f"{what}Canceled", "map" if what == "Map" else "task": number}


def _link() -> Event:
    start = {"name": "chain", "input": {"json": []}}
    return {"type": "ExecutionRestarted", "kind": "restart", "run": "0" * 32, "request_id": "r", **start}


def _control(kind: str) -> Event:
    return {"type": kind, "reason": "", "request_id": "r"}


def _raised(event_id: str) -> Event:
    return {"type": "EventRaised", "name": "Go", "event_id": event_id, "value": {"json": 1}}


# What is broken, and the rule that says so. Names of instances are those of golden/record.py.
LOG_DAMAGE: list[tuple[str, str, Break]] = [
    ("a flipped bit", "digest", lambda root: _flip(root, root.log("chain").tail_key, 700)),
    ("a first line that is none", "digest", lambda root: _flip(root, "instances/94/chain/000001", 1)),
    ("a truncated object", "digest", lambda root: _truncate(root)),
    ("a wrong count", "header", _edit("chain", lambda log: log.tail.header.update(count=9), keeps_counts=True)),
    ("sections that are not there", "header", _edit("chain", lambda log: log.tail.header.update(sections=[9_999]))),
    ("a header without a nonce", "header", _edit("chain", lambda log: log.tail.header.pop("nonce"))),
    ("a later format", "version", _edit("chain", lambda log: log.tail.header.update(v=2))),
    ("another instance's segment", "place", _edit("chain", lambda log: log.tail.header.update(instance="x"))),
    ("another run's segment", "place", _edit("chain", lambda log: log.tail.header.update(run="0" * 32))),
    ("another number's segment", "place", _move_segment),
    ("a missing segment", "gap", _without("/log/000000000/000000000002", "chain")),
    ("another predecessor", "previous", _edit("chain", lambda log: log.tail.header.update(previous="kept"))),
    ("an epoch that nobody claimed", "epoch", _edit("chain", lambda log: log.tail.header.update(epoch=2))),
    ("a claim that skips an epoch", "epoch", _append("waiting", _claimed(epoch=3), is_claim=True, epoch=3)),
    ("a segment 0 with an epoch", "epoch", _edit("chain", lambda log: log.segments[0].header.update(epoch=1))),
    ("a write of an older owner", "fencing", _edit("sleeper", _lower_epoch)),
    ("another writer", "nonce", _edit("chain", lambda log: log.tail.header.update(nonce="0" * 16))),
    ("a segment that leaves out an event", "numbering", _edit("chain", lambda log: log.tail.header.update(first=99))),
    ("an event out of order", "numbering", _edit("chain", lambda log: _swap(log, n=99))),
    ("time that goes back", "time", _edit("chain", _timed)),
    ("an unknown event", "event", _append("waiting", {"type": "Surprise"})),
    ("an event without a field", "event", _append("waiting", {"type": "TimerFired"})),
    ("a field of another type", "event", _append("waiting", _completed(2, attempt="1"))),
    ("a payload in no section", "payload", _edit("columns", lambda log: _swap(log, results=_section(7)))),
    ("a heartbeat in no section", "payload", _edit("columns", lambda log: _swap(log, heartbeats=[[0, _section(7)]]))),
    ("a heartbeat without a place", "event", _edit("columns", lambda log: _swap(log, heartbeats=[_section(0)]))),
    ("a payload in no known form", "payload", _edit("chain", lambda log: _swap(log, result={"pickle": "?"}))),
    ("a second start", "start", _edit("waiting", lambda log: log.append({**log.segments[0].events[0], "n": 3}))),
    ("a start with more in it", "start", _edit("chain", _two_events_at_start)),
    ("a start of another run", "start", _edit("chain", lambda log: log.segments[0].events[0].update(run="0" * 32))),
    ("a second outcome", "outcome", _edit("chain", lambda log: _before_end(log, _completed(2)))),
    ("an outcome of nothing", "outcome", _edit("chain", lambda log: _before_end(log, _completed(3)))),
    ("an outcome of what was cancelled", "outcome", _append("takes back", _completed(2))),
    ("an outcome of a cancelled map", "outcome", _append("takes back", _items(3, 0, 1))),
    ("a second outcome of items", "outcome", _edit("columns", lambda log: _before_end(log, _items(2, 0, 1)))),
    ("items that were not asked for", "outcome", _edit("columns", lambda log: _before_end(log, _items(2, 99, 2)))),
    ("a second firing", "outcome", _edit("teller", lambda log: _before_end(log, {"type": "TimerFired", "timer": 3}))),
    ("an attempt left out", "attempt", _edit("persistent parent", lambda log: _skip_attempt(log))),
    ("a retry of nothing", "attempt", _append("waiting", {**_scheduled(), "attempt": 2, "retry_of": 1})),
    ("an outcome of another attempt", "attempt", _edit("chain", lambda log: _swap(log, attempt=2))),
    (
        "a submission of what is done",
        "attempt",
        _append("waiting", _claimed(epoch=2, attempts=[[1, 2]]), is_claim=True),
    ),
    (
        "a submission that is not counted",
        "attempt",
        _append("waiting", _scheduled(), _claimed(epoch=2, attempts=[[3, 3]]), is_claim=True),
    ),
    ("items again that did not fail", "attempt", _edit("columns", lambda log: _before_end(log, _again(2, [0], 2)))),
    (
        "items in a wrong attempt",
        "attempt",
        _edit("everything", lambda log: log.event("MapItemsScheduled").update(attempt=3)),
    ),
    ("a timer that fires early", "timer", _append("sleeper", {"type": "TimerFired", "timer": 2})),
    ("a cancellation of nothing", "cancel", _append("waiting", {"type": "TaskCanceled", "task": 1})),
    ("a cancellation of what is done", "cancel", _edit("chain", lambda log: _before_end(log, _canceled("Task", 2)))),
    ("a second cancellation", "cancel", _append("takes back", _canceled("Task", 2))),
    ("a second cancellation of a map", "cancel", _append("takes back", _canceled("Map", 3))),
    ("a claim without an owner", "claim", _edit("waiting", _claim_of_nobody)),
    ("an owner without a claim", "claim", _append("waiting", _claimed(epoch=1))),
    ("an owner of another epoch", "claim", _append("waiting", _claimed(epoch=7), is_claim=True)),
    ("a status of another instance", "status", _edit("chain", lambda log: _status(log, instance="x"))),
    (
        "a status that the events contradict",
        "status",
        _edit("waiting", lambda log: _status(log, runtime_status="Failed")),
    ),
    ("an event behind the end", "end", _append("chain", _scheduled())),
    ("an end without a result", "end", _edit("chain", lambda log: log.event("ExecutionCompleted").pop("result"))),
    ("a termination by nobody", "end", _edit("stopped", _terminated_by_nobody)),
    ("a link before the end", "link", _append("waiting", _link(), is_claim=True)),
    ("a link without a claim", "link", _append("chain", _link())),
    ("a suspension of what is suspended", "suspended", _append("suspended", _control("ExecutionSuspended"))),
    ("a resumption of what runs", "suspended", _append("waiting", _control("ExecutionResumed"))),
    ("an event raised twice", "message", _edit("everything", lambda log: _before_end(log, _raised("go-1")))),
    ("a note of what was not sent", "message", _append("waiting", {"type": "OutboxDelivered", "messages": [1]})),
    ("a note of what is not owed", "message", _append("waiting", {"type": "OutboxDelivered", "messages": [0]})),
]


def _drop(*parts: str) -> Break:
    return lambda root: root.objects.pop(root.one(*parts))  # type: ignore[return-value]


def _put(key: str, data: bytes = b"{}") -> Break:
    return lambda root: root.objects.update({key: data})


def _rewrite(*parts: str, **changes: Any) -> Break:
    return lambda root: root.rewrite(root.one(*parts), **changes)


def _start(instance: str, execution: int = 1, **changes: Any) -> Break:
    return _edit(instance, lambda log: log.segments[0].events[0].update(changes), execution)


def _copied(log: EditedLog) -> None:
    next(event for event in log.segments[0].events if event["type"] == "TaskScheduled")["name"] = "other"


def _without_instance(root: Root, instance: str, *, keeps_entry: bool = False) -> None:
    """As if it had never been."""
    run = root.log(instance).segments[0].header["run"]
    places = [names.execution_folder(instance), names.run_folder(run)]
    entries = (
        []
        if keeps_entry
        else [key for key in root.objects if key.startswith("index/") and key.endswith(_end_of(instance))]
    )
    gone = [key for key in root.objects if key.startswith(tuple(places))] + entries
    for key in gone:
        del root.objects[key]


def _forget_purge(root: Root) -> None:
    """The first execution is gone, and nothing says why."""
    folder = names.execution_folder("purged and back")
    places = (
        names.run_folder(root.log("purged and back").segments[0].header["run"]),
        f"{folder}purged",
        f"{folder}000001",
    )
    gone = [key for key in root.objects if key.startswith(places) or ("retired" in key and key.endswith("back"))]
    for key in gone:
        del root.objects[key]


def _end_of(instance: str) -> tuple[str, str]:
    return f"/{names.encode_id(instance)}", f".{names.encode_id(instance)}"


def _end(root: Root, instance: str) -> None:
    """Let an instance end, with its summary, and leave the open set."""
    log = root.log(instance)
    log.append({"type": "ExecutionCompleted", "status": "Completed", "result": {"json": 1}})
    status = log.tail.header["status"] = {**log.tail.header["status"], "runtime_status": "Completed"}
    log.write()
    key = names.ended_entry(instance, status["created_us"], "Completed")
    root.objects[key] = json.dumps({"v": 1, **status}).encode()
    del root.objects[names.open_entry(instance)]


def _lose_event(root: Root) -> None:
    """The last event that was sent to a collector is not in its log, which still waits for it."""
    log = root.log("collector", 4)
    del log.segments[2:]
    log.write()
    for key in [key for key in root.objects if log.segments[0].header["run"] in key and key > log.tail_key]:
        del root.objects[key]
    del root.objects[root.one("index/ended", "collector")]
    status = log.tail.header["status"]
    entry = {"v": 1, "instance": "collector", "name": "collects", "request_id": status["request_id"], "entered_us": 1}
    root.objects[names.open_entry("collector")] = json.dumps(entry).encode()


def _ignore_cancellation(root: Root) -> None:
    """The child that was to be terminated has not recorded it."""
    child = "takes back:1:4"
    log = root.log(child)
    (last,) = [
        place for place, segment in enumerate(log.segments) if segment.events[-1]["type"] == "ExecutionCompleted"
    ]
    for segment in log.segments[last:]:
        del root.objects[log.key(segment)]
    del root.objects[root.one("index/ended", names.encode_id(child))]
    entry = {"v": 1, "instance": child, "name": "waits", "request_id": "4.1.takes back", "entered_us": 1}
    root.objects[names.open_entry(child)] = json.dumps(entry).encode()


def _answer(log: EditedLog, message: str) -> None:
    log.event("SubOrchestrationInstanceCompleted")["message"] = message


def _wake(**changes: Any) -> Break:
    """A hint that is of the present end of the log, but for the changes."""

    def apply(root: Root) -> None:
        log = root.log("sleeper")
        due = log.event("TimerCreated")["due"]
        wake = {"due_us": due, "execution": 1, "tail_seq": log.tail.header["seq"], **changes}
        root.rewrite(names.open_entry("sleeper"), wake=wake)

    return apply


def _reference(digest: str) -> Break:
    reference = {"name": "waits", "code": digest}
    return _edit("waiting", lambda log: log.segments[0].events[0].update(reference=reference))


def _with_code(root: Root) -> None:
    digest = hashlib.sha256(b"code").hexdigest()
    _reference(digest)(root)
    root.objects[f"code/{digest}"] = b"other code"


_PREVIOUS = {"instance": "rewound", "execution": 1}

BLOB = "/blobs/"
DIGEST = "ab" * 32

HUB_DAMAGE: list[tuple[str, str, Break]] = [
    ("a missing blob", "blob", _drop(BLOB)),
    ("a changed blob", "blob", lambda root: _flip(root, root.one(BLOB), 0)),
    (
        "another run than the link's",
        "succession",
        _edit("collector", lambda log: log.tail.events[-1].update(run="0" * 32)),
    ),
    ("another input than the link's", "succession", _start("collector", 3, input={"json": [4, [9]]})),
    ("another name than before", "succession", _start("restarted", 2, version="2")),
    (
        "another predecessor than the link's",
        "succession",
        _start("rewound", 2, previous={**_PREVIOUS, "run": "0" * 32}),
    ),
    ("a missing execution", "succession", _drop("/collector/000002")),
    ("executions that begin anywhere", "succession", _forget_purge),
    ("a wrong lineage", "lineage", _start("rewound", 2, lineage=[[1, 1, "0" * 32]])),
    ("a wrong origin", "lineage", _start("rewound", 2, origin="0" * 32)),
    ("copied events of nobody", "lineage", _start("rewound", 2, foreign=1)),
    ("a fork that copied less than it did", "lineage", _start("forked", foreign=1)),
    ("a fork's wrong origin", "lineage", _start("forked", origin="0" * 32)),
    ("a copied event that is another", "copy", _edit("rewound", _copied, 2)),
    ("a fork of another history", "copy", _edit("forked", _copied)),
    ("an answer of another instance", "child", _edit("parent", lambda log: _answer(log, "5.1.chain"))),
    ("an answer that nobody gave", "child", _edit("parent", lambda log: _answer(log, "99.1.parent:1:2"))),
    ("an answer of a nobody", "child", lambda root: _without_instance(root, "parent:1:2")),
    ("a caller that did not call", "child", _start("chain", parent={"instance": "teller", "execution": 1, "task": 2})),
    ("a call that is lost", "undelivered", lambda root: _without_instance(root, "named child")),
    ("an end that nobody is told of", "undelivered", lambda root: _end(root, "named child")),
    ("an event that is lost", "undelivered", _lose_event),
    ("a termination that is lost", "undelivered", _ignore_cancellation),
    ("an unfinished instance that is not open", "open", _drop("index/open/waiting")),
    ("an open entry that cannot be read", "open", _put("index/open/waiting", b"?")),
    ("an open entry of another instance", "open", _rewrite("index/open/waiting", instance="other")),
    ("a hint that wakes too late", "wake", _wake(due_us=1 << 60)),
    ("a hint that never wakes", "wake", _wake(due_us=None)),
    ("a hint of the future", "wake", _wake(tail_seq=99)),
    ("a hint that is none", "wake", _rewrite("index/open/sleeper", wake={})),
    ("a tombstone of another instance", "tombstone", _rewrite("/purged/purged", instance="other")),
    ("a tombstone that is none", "tombstone", _put("instances/94/chain/purged.000000", b"?")),
    ("settings that cannot be read", "hub", _put("hub.json", b"?")),
    ("settings of another hub", "hub", _rewrite("hub.json", hub="other")),
    ("a hub of a later version", "version", _rewrite("hub.json", v=2)),
    ("a hub epoch left out", "hub-epoch", _put("lease/epochs/000000000003", b'{"epoch":3}')),
    ("a hub epoch that claims another", "hub-epoch", _rewrite("lease/epochs/000000000001", epoch=2)),
    ("a lease that nobody claimed", "lease", _rewrite("lease/holder", epoch=2)),
    ("a lease that is none", "lease", _put("lease/holder", b"?")),
    (
        "a schedule of another name",
        "schedule",
        _put("schedules/x.000000000001", b'{"v":1,"schedule":"y","revision":1}'),
    ),
    (
        "a schedule of another revision",
        "schedule",
        _put("schedules/x.000000000002", b'{"v":1,"schedule":"x","revision":1}'),
    ),
    ("a schedule that is none", "schedule", _put("schedules/x.000000000001", b"?")),
    ("captured code that is missing", "code", _reference(DIGEST)),
    ("captured code that is another", "code", _with_code),
]

NOTES: list[tuple[str, str, Break]] = [
    (
        "a blob of a lost turn",
        "superfluous-blob",
        lambda root: root.objects.update({f"{root.one(BLOB)[:-64]}{DIGEST}": b"x"}),
    ),
    ("a file in a run", "stray", lambda root: root.objects.update({f"{root.one(BLOB)[:-64]}x": b"x"})),
    ("a file beside the executions", "stray", _put("instances/94/chain/backup")),
    ("a file in the open set's place", "stray", _put("index/opened/chain")),
    ("a file among the schedules", "stray", _put("schedules/x")),
    ("a file in the hub", "stray", _put("notes.txt")),
    ("an unfinished file", "temporary", _put("index/open/.tmp-0123456789abcdef")),
    ("a run of nobody", "run", _put(f"runs/{names.spread('0' * 32)}/{'0' * 32}/blobs/{DIGEST}")),
    ("a probe left behind", "probe", _put("probe/0123456789abcdef")),
    ("a start that died", "orphan", _put("index/open/x", b'{"v":1,"instance":"x","entered_us":1}')),
    ("an entry that is none", "orphan", _put("index/open/x", b"?")),
    ("an end that was not finished", "open", _put("index/open/chain", b'{"v":1}')),
    ("an ended instance without a summary", "summary", _drop("index/ended", ".completed.chain")),
    ("a summary that tells something else", "summary", _rewrite("index/ended", ".completed.chain", name="other")),
    (
        "a summary of another end",
        "summary",
        _put("index/ended/20251124/1764000000000.failed.chain", b'{"v":1,"instance":"chain"}'),
    ),
    ("remains that nobody removes", "retired", _drop("index/retired", ".purged")),
    ("an entry of the queue that is none", "retired", _put("index/retired/1774000000000.chain")),
    (
        "a message noted twice",
        "message",
        _edit("teller", lambda log: log.event("OutboxDelivered")["messages"].append(2)),
    ),
    ("an event of nobody", "unsent", _append("waiting", {**_raised("1.1.chain"), "name": "Item"})),
]


@pytest.mark.parametrize(("rule", "damage"), [pytest.param(*case[1:], id=case[0]) for case in LOG_DAMAGE])
def test_damage_in_a_log_is_found(root: Root, rule: str, damage: Break) -> None:
    """It is told once, as damage, by its rule; nothing else is said."""
    damage(root)
    assert [(one.is_damage, one.rule) for one in root.findings()] == [(True, rule)]


def test_a_schedule_is_no_finding(root: Root) -> None:
    """One that says what its name says."""
    _put("schedules/x.000000000001", b'{"v":1,"schedule":"x","revision":1}')(root)
    assert root.findings() == []


def test_a_sound_root_has_no_findings(root: Root) -> None:
    """Everything that the runtime writes is as the format says."""
    assert root.findings() == []


@pytest.mark.parametrize(("rule", "damage"), [pytest.param(*case[1:], id=case[0]) for case in HUB_DAMAGE])
def test_damage_between_logs_is_found(root: Root, rule: str, damage: Break) -> None:
    """What is around the logs, and what they say of each other: told once, as damage, by its rule."""
    damage(root)
    assert [(one.is_damage, one.rule) for one in root.findings()] == [(True, rule)]


@pytest.mark.parametrize(("rule", "change"), [pytest.param(*case[1:], id=case[0]) for case in NOTES])
def test_what_is_worth_a_look_is_noted(root: Root, rule: str, change: Break) -> None:
    """It is told once, and is no damage."""
    change(root)
    assert [(one.is_damage, one.rule) for one in root.findings()] == [(False, rule)]


@pytest.mark.parametrize("wake", [{}, {"tail_seq": 1, "due_us": None}, {"due_us": 1}])
def test_a_hint_that_does_no_harm_is_none(root: Root, wake: Event) -> None:
    """One that is right, one that is past, and one that wakes too early."""
    _wake(**wake)(root)
    assert root.findings() == []


def test_an_execution_that_is_being_removed_is_no_damage(root: Root) -> None:
    """Its grace period is over, and whoever removes it was stopped half-way; before that it is damage."""
    run = root.log("collector", 1).segments[0].header["run"]
    for key in [key for key in root.objects if run in key]:
        del root.objects[key]
    day_us = 86_400_000_000
    began_us = root.log("collector", 2).segments[0].header["status"]["updated_us"]
    assert [one.rule for one in root.findings(now_us=began_us + day_us)] == ["removal"]
    assert [one.rule for one in root.findings(now_us=began_us + day_us - 1)] == ["succession"]


def test_what_changed_meanwhile_is_not_told(root: Root) -> None:
    """With --live, what is found is looked at again: only what is still so is told."""
    chain, waiting = names.open_entry("takes back"), names.open_entry("waiting")
    entry = root.objects.pop(chain)
    del root.objects[waiting]

    class Live(Root):
        def read(self, key: str, bytes_max: int = OBJECT_BYTES_MAX) -> bytes | None:
            data = super().read(key, bytes_max)
            if key == chain:
                # Somebody was just about to write it.
                self.objects[chain] = entry
            return data

    found = [one for one in Live(root.objects).findings(live_s=0.0) if one.is_damage]
    assert [(one.rule, one.instances) for one in found] == [("open", ("waiting",))]


def test_an_instance_is_checked_alone(root: Root) -> None:
    """Damage elsewhere is not told."""
    _flip(root, root.log("chain").tail_key, 700)
    assert root.findings(only="waiting") == []
    assert [one.rule for one in root.findings(only="chain")] == ["digest"]


class TestCommand:
    """The script, as operators run it: nothing of ray_durable in reach."""

    @staticmethod
    def run(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-I", "-S", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd)

    def test_it_runs_wherever_it_is_copied(self, recorded: Path, tmp_path: Path) -> None:
        """The file and its folder, no installed package, no module of the project."""
        shutil.copy(SCRIPT, tmp_path)
        shutil.copytree(SCRIPT.parent / "verify_lib", tmp_path / "verify_lib")
        completed = self.run(tmp_path / "verify.py", recorded, cwd=tmp_path)
        assert completed.returncode == 0, completed.stderr
        assert "damaged: 0, notes: 1" in completed.stdout

    def test_damage_is_the_exit_status(self, recorded: Path, tmp_path: Path) -> None:
        """Each finding is a line with the object's key and the rule; for programs it is JSON."""
        folder = tmp_path / "root"
        shutil.copytree(recorded, folder)
        (folder / record.HUB / "lease" / "epochs" / f"{3:012}").write_text('{"epoch": 3}')
        completed = self.run(SCRIPT, folder, "--hub", record.HUB, cwd=tmp_path)
        assert completed.returncode == 1
        key = f"lease/epochs/{3:012}"
        assert f"DAMAGE {record.HUB}/{key}: the claim of epoch 2 is missing before it [hub-epoch]" in completed.stdout
        (report,) = json.loads(self.run(SCRIPT, folder, "--json", cwd=tmp_path).stdout)
        (damage,) = [one for one in report["findings"] if one["severity"] == "damage"]
        assert (damage["rule"], damage["key"], report["hub"]) == ("hub-epoch", key, record.HUB)

    def test_a_root_without_a_hub_is_a_usage_error(self, tmp_path: Path) -> None:
        """An empty folder is not called sound; nor is a place that nothing here can read."""
        assert verify.main([str(tmp_path)]) == 2
        assert verify.main([str(tmp_path), "--hub", "prod"]) == 2
        assert verify.main(["nowhere://root"]) == 2

    def test_other_places_are_read_through_fsspec(self, objects: Mapping[str, bytes]) -> None:
        """The same objects, the same answer."""
        import fsspec

        file_system = fsspec.filesystem("memory")
        for key, data in objects.items():
            file_system.pipe_file(f"/verified/{record.HUB}/{key}", data)
        try:
            root = open_root("memory://verified").below(f"{record.HUB}/")
            report = verify.verify_hub(root, name=record.HUB)
            assert [(one.rule, one.instances) for one in report.findings] == [("orphan", (ORPHAN,))]
            assert report.segments > 100
        finally:
            file_system.rm("/verified", recursive=True)
