"""One execution, from segment 0 to its end: FORMAT.md, section 6. Segments are read one at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from verify_lib import names
from verify_lib.findings import DamageError, Report
from verify_lib.histories import History
from verify_lib.roots import CONTENT_BYTES_MAX, OBJECT_BYTES_MAX, Root
from verify_lib.segments import Event, Segment, decode_segment, payloads_of

__all__ = ["Log", "events_of", "note_stray", "read_log"]


@dataclass(slots=True)
class Log:
    """An execution, read to its end without damage. `seq` is the number of its last segment."""

    key: str
    instance: str
    execution: int
    run: str
    history: History
    seq: int = 0
    digest: str = ""
    epoch: int = 0
    nonce: str = ""
    status: dict[str, Any] = field(default_factory=dict)
    blobs: dict[str, int] = field(default_factory=dict)


def read_log(root: Root, key: str, report: Report) -> Log:
    """The execution whose segment 0 is `key`. DamageError at the first thing that cannot be."""
    start = _read(root, key)
    header = start.header
    log = Log(key, header["instance"], header["execution"], header["run"], History(start))
    expected = f"{names.execution_folder(log.instance)}{log.execution:06}"
    if key != expected:
        raise DamageError("place", key, f"it belongs at {expected}")
    stored = _stored(root, log, report)
    _follow(log, start, 0)
    report.segments += 1
    for seq in range(1, stored.end + 1):
        _follow(log, _read(root, names.segment(log.run, seq), stored.end), seq)
        report.segments += 1
    for remarked, text in log.history.sending.remarks:
        report.add_note("message", remarked, text, log.instance)
    report.events += log.history.number
    _check_blobs(root, log, stored.blobs, report)
    return log


def events_of(root: Root, instance: str, execution: int) -> Iterator[Event]:
    """The events of an execution, without a look at how they follow one another; nothing if it is not there."""
    key, seq = f"{names.execution_folder(instance)}{execution:06}", 0
    while (data := root.read(key)) is not None:
        segment = decode_segment(key, data)
        yield from segment.events
        seq += 1
        key = names.segment(segment.header["run"], seq)


@dataclass(slots=True)
class _Stored:
    """What lies below a run: the highest segment, and the blobs."""

    end: int = 0
    blobs: set[str] = field(default_factory=set)


def _stored(root: Root, log: Log, report: Report) -> _Stored:
    stored, folder = _Stored(), names.run_folder(log.run)
    for name in root.walk(folder):
        found = names.IN_RUN.fullmatch(name)
        if found is None:
            note_stray(report, f"{folder}{name}", log.instance)
        elif found["blob"]:
            stored.blobs.add(found["blob"])
        elif found["seq"]:
            seq = int(found["seq"])
            stored.end = max(stored.end, seq)
            if names.segment(log.run, seq) != f"{folder}{name}":
                report.add_note("stray", f"{folder}{name}", "a segment is never looked for there", log.instance)
    return stored


def note_stray(report: Report, key: str, *instances: str) -> None:
    """An object that is none of the format's."""
    if key.rpartition("/")[2].startswith("."):
        report.add_note("temporary", key, "a file that a writer did not finish; it may be deleted", *instances)
    else:
        report.add_note("stray", key, "nothing of this name belongs there", *instances)


def _read(root: Root, key: str, end: int = 0) -> Segment:
    data = root.read(key)
    if data is None:
        raise DamageError("gap", key, f"missing, and segment {end} exists")
    if not data:
        raise DamageError("size", key, f"it is empty, or has more than the {OBJECT_BYTES_MAX} bytes of a segment")
    return decode_segment(key, data)


def _follow(log: Log, segment: Segment, seq: int) -> None:
    """Take the segment of slot `seq` into the log. DamageError if it cannot lie there."""
    header, key = segment.header, segment.key
    place = {"instance": log.instance, "execution": log.execution, "run": log.run, "seq": seq}
    for name, value in place.items():
        if header[name] != value:
            raise DamageError("place", key, f"{name} is {header[name]!r}, its place says {value!r}")
    if header.get("previous") != (log.digest or None):
        raise DamageError("previous", key, "it does not follow the segment before it")
    _check_owner(log, segment, seq)
    if header["first"] != log.history.number + 1:
        raise DamageError("numbering", key, f"it begins with event {header['first']}, {log.history.number + 1} is next")
    log.seq, log.digest, log.epoch, log.nonce = seq, segment.digest, header["epoch"], header["nonce"]
    log.history.take(segment)
    log.status = header["status"]
    for event in segment.events:
        for payload in payloads_of(event):
            if "blob" in payload:
                log.blobs[payload["blob"]] = payload["size"]


def _check_owner(log: Log, segment: Segment, seq: int) -> None:
    """Who may write this segment: anybody the first one, the next owner a claim, the present one the rest."""
    header, key, epoch = segment.header, segment.key, segment.header["epoch"]
    if seq == 0:
        if epoch != 0 or segment.is_claim:
            raise DamageError("epoch", key, "segment 0 has no epoch and claims nothing")
    elif epoch < log.epoch:
        raise DamageError("fencing", key, f"it is of epoch {epoch}, after epoch {log.epoch} was claimed")
    elif segment.is_claim:
        if epoch != log.epoch + 1:
            raise DamageError("epoch", key, f"it claims epoch {epoch} after {log.epoch}")
    elif epoch != log.epoch or log.epoch == 0:
        raise DamageError("epoch", key, f"its writer does not own epoch {epoch}, which nobody claimed")
    elif header["nonce"] != log.nonce:
        raise DamageError("nonce", key, f"its writer is another one than the one that claimed epoch {epoch}")


def _check_blobs(root: Root, log: Log, stored: set[str], report: Report) -> None:
    """Each has the size of the payload that refers to it and the digest of its name; none is superfluous."""
    for digest, size in log.blobs.items():
        key = names.blob(log.run, digest)
        data = root.read(key, min(size, CONTENT_BYTES_MAX))
        if data is None:
            raise DamageError("blob", key, "missing, and an event refers to it")
        if len(data) != size or hashlib.sha256(data).hexdigest() != digest:
            raise DamageError("blob", key, "its bytes are not those that it was named for")
        report.blobs += 1
    for digest in sorted(stored - log.blobs.keys()):
        key = names.blob(log.run, digest)
        report.add_note(
            "superfluous-blob", key, "no event refers to it: its writer was lost before it could", log.instance
        )
