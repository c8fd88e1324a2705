"""Check the logs of a task hub in a local folder: `python storage/verify.py ROOT [--hub NAME]`.

It follows storage/FORMAT.md (version 1) and nothing else: it imports nothing of ray_durable, only the standard library,
so that it can judge what ray_durable wrote. It changes nothing. For every execution it checks the checksum of each
segment, that each lies where it says, that numbers have no gaps, that each names its predecessor, that epochs were
claimed and kept by one writer each, that events are numbered without gaps and end with the end, that no task or timer
has two outcomes, and that blobs exist and are what their names say. Then it compares the open set and the
summaries of ended instances with the logs.

Each finding is one line: DAMAGE for a log that must not be used, NOTE for what the supervisor repairs, or what changed
while it was looked at: run again on a hub at rest. Exit status: 0 no damage, 1 damage, 2 there is no such root or hub.
A bucket is checked as a copy in a folder.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_VERSION = 1
_ZEROS = b"0" * 64
_HEADER_END = re.compile(rb'(,"sha256":")([0-9a-f]{64})("}\n)\Z')
_SEGMENTS_PER_FOLDER = 1_000

EVENT_TYPES = frozenset(
    {
        "ExecutionStarted",
        "OwnerClaimed",
        "TaskScheduled",
        "TaskCompleted",
        "TaskFailed",
        "TaskCanceled",
        "MapScheduled",
        "MapItemsScheduled",
        "MapCompleted",
        "MapCanceled",
        "TimerCreated",
        "TimerFired",
        "TimerCanceled",
        "EventRaised",
        "CustomStatusSet",
        "ExecutionTerminated",
        "ExecutionCompleted",
        "ExecutionSuspended",
        "ExecutionResumed",
        "ExecutionRewound",
        "ExecutionRestarted",
        "EventSent",
        "SubOrchestrationInstanceCreated",
        "SubOrchestrationInstanceCompleted",
        "SubOrchestrationInstanceFailed",
        "SubOrchestrationInstanceCanceled",
        "OutboxDelivered",
        "ContinueAsNew",
        "MarkerRecorded",
    }
)
"""Those of version 1."""

_ENDS = frozenset({"ExecutionCompleted", "ContinueAsNew"})
_LINKS = frozenset({"ContinueAsNew", "ExecutionRestarted"})

_OUTCOMES = {
    "TaskCompleted": ("task", frozenset({"TaskScheduled"})),
    "TaskFailed": ("task", frozenset({"TaskScheduled"})),
    "TimerFired": ("timer", frozenset({"TimerCreated", "ExecutionStarted"})),
    "SubOrchestrationInstanceCompleted": ("task", frozenset({"SubOrchestrationInstanceCreated"})),
    "SubOrchestrationInstanceFailed": ("task", frozenset({"SubOrchestrationInstanceCreated"})),
}
"""Events that settle another: the field that names it, and what it may be. Each is settled once at most."""


class DamageError(Exception):
    """Why a log cannot be used, beginning with the object's key."""


@dataclass(slots=True)
class Report:
    """What was found, and how much was looked at."""

    damage: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    executions: int = 0
    segments: int = 0
    events: int = 0
    blobs: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A segment whose checksum and lengths are right."""

    key: str
    header: dict[str, Any]
    events: list[dict[str, Any]]
    section_sizes: list[int]
    digest: str


@dataclass(slots=True)
class Log:
    """An execution, as far as it was read: the state that FORMAT.md section 6 carries from slot to slot."""

    instance: str
    execution: int
    run: str
    digest: str = ""
    epoch: int = 0
    nonce: str = ""
    next_event: int = 1
    time: int = 0
    end_seq: int | None = None
    end_status: str = ""
    is_linked: bool = False
    scheduled: dict[int, dict[str, Any]] = field(default_factory=dict)
    settled: set[int] = field(default_factory=set)
    blobs: dict[str, int] = field(default_factory=dict)


def encode_id(instance_id: str) -> str:
    """The name of an instance in keys (FORMAT.md section 2)."""
    pieces = [
        character if re.fullmatch(r"[a-z0-9_-]", character) else "".join(f"%{byte:02x}" for byte in character.encode())
        for character in instance_id
    ]
    name = "".join(pieces)
    if len(name) <= 150:
        return name
    while len("".join(pieces)) > 80:
        pieces.pop()
    return f"{''.join(pieces)}%%{hashlib.sha256(instance_id.encode()).hexdigest()}"


def spread(text: str) -> str:
    """The two hex digits that stand before a name."""
    return hashlib.sha256(text.encode()).hexdigest()[:2]


def read_segment(hub: Path, key: str) -> Segment:
    """Read one segment. DamageError if its bytes contradict each other."""
    data = (hub / key).read_bytes()
    header_end = data.find(b"\n") + 1
    end = _HEADER_END.search(data, 0, header_end)
    if end is None:
        raise DamageError(f"{key}: the first line is no header with a checksum")
    if hashlib.sha256(data[: end.start(2)] + _ZEROS + data[end.end(2) :]).hexdigest() != end[2].decode():
        raise DamageError(f"{key}: the checksum does not match the bytes")
    try:
        header = json.loads(data[:header_end])
        if header["v"] != _VERSION:
            raise DamageError(f"{key}: format version {header['v']!r}, this checker knows {_VERSION}")
        sizes = header["sections"]
        lines = data[header_end : len(data) - sum(sizes)].split(b"\n")
        if lines.pop() != b"" or len(lines) != header["count"] or not lines or sum(sizes) > len(data) - header_end:
            raise DamageError(f"{key}: {header['count']} events and sections of {sizes} bytes are not what lies there")
        events = [json.loads(line) for line in lines]
    except (KeyError, TypeError, ValueError) as error:
        raise DamageError(f"{key}: no segment ({error!r})") from error
    return Segment(key=key, header=header, events=events, section_sizes=sizes, digest=end[2].decode())


def follow(log: Log, segment: Segment, seq: int) -> None:
    """Take the segment of slot `seq` into the log. DamageError if it cannot lie there."""
    header, key = segment.header, segment.key
    place = {"instance": log.instance, "execution": log.execution, "run": log.run, "seq": seq}
    for name, value in place.items():
        if header.get(name) != value:
            raise DamageError(f"{key}: {name} is {header.get(name)!r}, its place says {value!r}")
    if header.get("previous") != (log.digest or None):
        raise DamageError(f"{key}: it does not follow the segment before it")
    is_claim = header.get("claim", False)
    if seq == 0:
        if header["epoch"] != 0 or is_claim:
            raise DamageError(f"{key}: segment 0 has no epoch and claims nothing")
    elif is_claim:
        if header["epoch"] != log.epoch + 1:
            raise DamageError(f"{key}: it claims epoch {header['epoch']} after {log.epoch}")
    elif header["epoch"] != log.epoch or log.epoch == 0 or header["nonce"] != log.nonce:
        raise DamageError(f"{key}: its writer does not own epoch {header['epoch']}")
    log.digest, log.epoch, log.nonce = segment.digest, header["epoch"], header["nonce"]
    check_events(log, segment, seq)


def check_events(log: Log, segment: Segment, seq: int) -> None:
    """Numbers, times, types and payloads of a segment that counts."""
    key = segment.key
    if segment.header["first"] != log.next_event:
        raise DamageError(f"{key}: it begins with event {segment.header['first']}, {log.next_event} is next")
    for event in segment.events:
        is_restart = event.get("type") == "ExecutionRestarted" and segment.header.get("claim", False)
        if log.end_seq is not None and (log.is_linked or not is_restart):
            raise DamageError(f"{key}: event {event.get('n')!r} comes after the end")
        if log.end_seq is None and event.get("type") == "ExecutionRestarted":
            raise DamageError(f"{key}: event {event.get('n')!r} links to a next execution, and this one has not ended")
        if event.get("n") != log.next_event:
            raise DamageError(f"{key}: event {event.get('n')!r} stands where {log.next_event} is next")
        kind, time = event.get("type"), event.get("t")
        if kind not in EVENT_TYPES:
            raise DamageError(f"{key}: event {log.next_event} is of the unknown type {kind!r}")
        if (log.next_event == 1) != (kind == "ExecutionStarted"):
            raise DamageError(
                f"{key}: event {log.next_event} is {kind}; ExecutionStarted is the first and only the first"
            )
        if not isinstance(time, int) or time < log.time:
            raise DamageError(f"{key}: event {log.next_event} has time {time!r} after {log.time}")
        check_outcome(log, key, event)
        for payload in payloads_in(event):
            check_payload(log, segment, payload)
        log.time = time
        log.next_event += 1
        if kind in _ENDS:
            log.end_seq, log.end_status = seq, event.get("status", "ContinuedAsNew")
        log.is_linked = log.is_linked or kind in _LINKS


def check_outcome(log: Log, key: str, event: dict[str, Any]) -> None:
    """What an event settles was scheduled before, and nothing is settled twice."""
    kind, number = event["type"], event["n"]
    if kind.endswith(("Scheduled", "Created")) or (kind == "ExecutionStarted" and "due" in event):
        log.scheduled[number] = event
    elif kind == "MapCompleted":
        scheduled = log.scheduled.get(event["map"], {})
        if scheduled.get("type") != "MapScheduled" or event["start"] + event["count"] > scheduled["count"]:
            raise DamageError(f"{key}: event {number} has outcomes of items that were never scheduled")
    elif kind in _OUTCOMES:
        name, causes = _OUTCOMES[kind]
        cause = event[name]
        if log.scheduled.get(cause, {}).get("type") not in causes:
            raise DamageError(f"{key}: event {number} is an outcome of {name} {cause!r}, which was never scheduled")
        if cause in log.settled:
            raise DamageError(f"{key}: event {number} is a second outcome of {name} {cause}")
        log.settled.add(cause)


def payloads_in(event: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The payloads of an event that lie outside of its line."""
    for name in ("input", "result", "items", "results", "value", "heartbeat"):
        payload = event.get(name)
        if isinstance(payload, dict) and "encoding" in payload:
            yield payload
    for handed_on in event.get("carried", ()):
        if isinstance(handed_on, dict):  # a link names events by their numbers
            yield from payloads_in(handed_on)


def check_payload(log: Log, segment: Segment, payload: dict[str, Any]) -> None:
    """A section must exist with its size; blobs are noted, to be checked once each."""
    if "section" in payload:
        index = payload["section"]
        sizes = segment.section_sizes
        if not isinstance(index, int) or not 0 <= index < len(sizes) or sizes[index] != payload["size"]:
            raise DamageError(f"{segment.key}: a payload refers to section {index!r} of {sizes}")
    elif "blob" in payload:
        log.blobs[payload["blob"]] = payload["size"]


def verify_execution(hub: Path, key: str, report: Report) -> Log | None:
    """Check one execution to its end; None if it is damaged, and the report says where."""
    report.executions += 1
    try:
        start = read_segment(hub, key)
        log = Log(start.header["instance"], start.header["execution"], start.header["run"])
        expected = f"instances/{spread(log.instance)}/{encode_id(log.instance)}/{log.execution:06}"
        if key != expected:
            raise DamageError(f"{key}: it belongs at {expected}")
        follow(log, start, 0)
        report.segments += 1
        run = f"runs/{spread(log.run)}/{log.run}"
        end = last_seq(hub / run / "log")
        for seq in range(1, end + 1):
            segment_key = f"{run}/log/{seq // _SEGMENTS_PER_FOLDER:09}/{seq:012}"
            if not (hub / segment_key).exists():
                raise DamageError(f"{segment_key}: missing, and segment {end} exists")
            report.segments += 1
            follow(log, read_segment(hub, segment_key), seq)
        for digest, size in log.blobs.items():
            verify_blob(hub, f"{run}/blobs/{digest}", size)
    except DamageError as damage:
        report.damage.append(str(damage))
        return None
    except (KeyError, TypeError) as error:
        report.damage.append(f"{key}: the execution has a header with missing or wrong fields ({error!r})")
        return None
    report.events += log.next_event - 1
    report.blobs += len(log.blobs)
    return log


def last_seq(folder: Path) -> int:
    """The highest number of a log; 0 if it has only segment 0."""
    return max((int(path.name) for path in folder.glob("*/*") if path.name.isdecimal()), default=0)


def verify_blob(hub: Path, key: str, size: int) -> None:
    """A blob must exist, with the size of the payload that refers to it and the digest of its name."""
    path = hub / key
    if not path.exists():
        raise DamageError(f"{key}: missing, and an event refers to it")
    data = path.read_bytes()
    if len(data) != size or hashlib.sha256(data).hexdigest() != path.name:
        raise DamageError(f"{key}: its bytes are not those that it was named for")


def verify_index(hub: Path, newest: dict[str, Log | None], report: Report) -> None:
    """The open set holds the unfinished instances and no others; each ended one has its summary."""
    open_keys = {path.relative_to(hub).as_posix() for path in (hub / "index/open").glob("*") if path.name[0] != "."}
    summaries = (path.name.split(".", 2) for path in (hub / "index/ended").glob("*/*.*.*"))
    statuses = {name: status for _, status, name in summaries}
    for folder, log in newest.items():
        key = f"index/open/{folder.rsplit('/', 1)[-1]}"
        is_open = key in open_keys
        open_keys.discard(key)
        if log is None:
            continue
        has_ended = log.end_seq is not None and not log.is_linked
        if not has_ended and not is_open:
            report.notes.append(f"{key}: missing, and {log.instance!r} has not ended: recovery would not find it")
        if has_ended and is_open:
            report.notes.append(f"{key}: still there, and {log.instance!r} has ended")
        status = statuses.pop(encode_id(log.instance), None)
        if not has_ended:
            if status is not None:
                report.notes.append(f"index/ended: a summary of {log.instance!r}, which has not ended")
        elif status is None:
            report.notes.append(f"index/ended: no summary of {log.instance!r}, which has ended")
        elif status != log.end_status.lower():
            report.notes.append(f"index/ended: {log.instance!r} is {status} there, and {log.end_status} in its log")
    report.notes += [f"{key}: no execution behind it, a start did not come to its end" for key in sorted(open_keys)]


def verify_hub(hub: Path) -> Report:
    """Check all executions of a hub, then its index."""
    report = Report()
    try:
        settings = json.loads((hub / "hub.json").read_bytes())
        if settings["v"] != _VERSION:
            report.damage.append(f"hub.json: format version {settings['v']!r}, this checker knows {_VERSION}")
            return report
    except (OSError, KeyError, TypeError, ValueError) as error:
        report.damage.append(f"hub.json: not readable ({error!r})")
    newest: dict[str, Log | None] = {}
    runs: set[str] = set()
    for path in sorted((hub / "instances").glob("*/*/*")):
        if not path.name.isdecimal():
            continue
        key = path.relative_to(hub).as_posix()
        if int(path.name) <= buried(path.parent):
            # It is being removed, and may be there in parts.
            runs |= run_of(path)
            continue
        log = verify_execution(hub, key, report)
        newest[key.rpartition("/")[0]] = log
        if log is not None:
            runs.add(log.run)
    if not report.damage:
        strays = (path for path in sorted((hub / "runs").glob("*/*")) if path.name not in runs)
        report.notes += [f"runs/{path.parent.name}/{path.name}: belongs to no execution" for path in strays]
    verify_index(hub, newest, report)
    return report


def buried(folder: Path) -> int:
    """The last execution of an instance that was purged; 0 if none was."""
    return max((int(path.suffix[1:]) for path in folder.glob("purged.*") if path.suffix[1:].isdecimal()), default=0)


def run_of(path: Path) -> set[str]:
    """The run of an execution that is not checked."""
    try:
        return {json.loads(path.read_bytes().split(b"\n", 1)[0])["run"]}
    except (OSError, KeyError, TypeError, ValueError):
        return set()


def main(arguments: list[str] | None = None) -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description="Check the logs of a task hub in a local folder; changes nothing.")
    parser.add_argument("root", type=Path, help="the folder that holds the hub, or several")
    parser.add_argument("--hub", help="check only this one")
    options = parser.parse_args(arguments)
    hubs = (
        [options.root / options.hub] if options.hub else sorted(path.parent for path in options.root.glob("*/hub.json"))
    )
    if not hubs or not all(hub.is_dir() for hub in hubs):
        print(f"There is no hub {options.hub or ''} in {options.root}: give the folder that holds it", file=sys.stderr)
        return 2
    is_damaged = False
    for hub in hubs:
        report = verify_hub(hub)
        for line in report.damage:
            print(f"DAMAGE {hub.name}/{line}")
        for line in report.notes:
            print(f"NOTE {hub.name}/{line}")
        print(
            f"{hub.name}: {report.executions} executions, {report.segments} segments, {report.events} events, "
            f"{report.blobs} blobs checked; damaged: {len(report.damage)}, notes: {len(report.notes)}"
        )
        is_damaged = is_damaged or bool(report.damage)
    return 1 if is_damaged else 0


if __name__ == "__main__":
    sys.exit(main())
