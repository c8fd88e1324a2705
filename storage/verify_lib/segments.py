"""One segment: FORMAT.md, sections 3 to 5. What can be said of it without its neighbours."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from verify_lib.findings import DamageError
from verify_lib.names import DIGEST

__all__ = ["EVENT_TYPES", "VERSION", "Event", "Segment", "decode_segment", "payloads_of"]

VERSION = 1

Event = dict[str, Any]

_ZEROS = b"0" * 64
_HEADER_END = re.compile(rb'(,"sha256":")([0-9a-f]{64})("}\n)\Z')
_TEXTS = ("run", "instance", "nonce")
_COUNTS = ("execution", "seq", "epoch", "hub_epoch", "first", "count", "written_us")

STATUSES = frozenset({"Pending", "Running", "Suspended", "Completed", "Failed", "Terminated", "ContinuedAsNew"})

# The fields of each event type: its name, a colon, what it holds; a ? where it may be absent. P is a payload, F a
# failure, n a number, s a text, b a truth value, ns numbers, nns lists of numbers, pairs lists of a number and a
# payload, o an object, l a list.
_FIELDS = {
    "ExecutionStarted": "instance:s run:s execution:n name:s request_id:s input:P reference?:o version?:s parent?:o "
    "depth?:n due?:n previous?:o owes?:b carried?:l recent?:l origin?:s lineage?:l foreign?:n",
    "OwnerClaimed": "epoch:n hub_epoch:n host:s pid:n python?:s attempts:nns",
    "TaskScheduled": "name:s attempt:n retry_of?:n input:P",
    "TaskCompleted": "task:n attempt:n lost_workers?:n result:P",
    "TaskFailed": "task:n attempt:n lost_workers?:n failure:F heartbeat?:P",
    "TaskCanceled": "task:n",
    "MapScheduled": "name:s count:n items:P",
    "MapItemsScheduled": "map:n attempt:n items:ns",
    "MapCompleted": "map:n start:n count:n results:P failures?:l heartbeats?:pairs lost_workers?:n",
    "MapCanceled": "map:n",
    "TimerCreated": "due:n",
    "TimerFired": "timer:n",
    "TimerCanceled": "timer:n",
    "EventRaised": "name:s event_id:s value:P",
    "CustomStatusSet": "value:P",
    "ExecutionTerminated": "reason:s request_id:s recursive?:b",
    "ExecutionSuspended": "reason:s request_id:s",
    "ExecutionResumed": "reason:s request_id:s",
    "ExecutionRewound": "reason:s request_id:s",
    "EventSent": "instance:s name:s value:P",
    "SubOrchestrationInstanceCreated": "name:s input:P attempt:n instance?:s retry_of?:n reference?:o version?:s",
    "SubOrchestrationInstanceCompleted": "task:n result:P message:s",
    "SubOrchestrationInstanceFailed": "task:n failure:F message:s instance?:s",
    "SubOrchestrationInstanceCanceled": "task:n",
    "OutboxDelivered": "messages:ns",
    "MarkerRecorded": "kind:s id?:s value?:P",
    "ExecutionCompleted": "status:s result?:P failure?:F",
    "ContinueAsNew": "input:P run:s carried?:ns",
    "ExecutionRestarted": "kind:s run:s request_id:s reason?:s name?:s input?:P reference?:o version?:s parent?:o "
    "depth?:n due?:n through?:n kept?:ns",
}

EVENT_TYPES = frozenset(_FIELDS)
"""Those of version 1."""


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 0


def _are_counts(value: object) -> bool:
    return isinstance(value, list) and all(map(_is_count, value))


def _is_pair(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and _is_count(value[0]) and isinstance(value[1], dict)


_KINDS: dict[str, Callable[[Any], bool]] = {
    "n": _is_count,
    "s": lambda value: isinstance(value, str),
    "b": lambda value: isinstance(value, bool),
    "o": lambda value: isinstance(value, dict),
    "l": lambda value: isinstance(value, list),
    "ns": _are_counts,
    "nns": lambda value: isinstance(value, list) and all(map(_are_counts, value)),
    "pairs": lambda value: isinstance(value, list) and all(map(_is_pair, value)),
    "P": lambda value: isinstance(value, dict) and len(value) > 0,
    "F": lambda value: isinstance(value, dict) and {"kind", "type", "message"} <= value.keys(),
}


def _parsed(fields: str) -> list[tuple[str, bool, str]]:
    """(name, whether it must be there, kind)."""
    pairs = (field.split(":") for field in fields.split())
    return [(name.rstrip("?"), not name.endswith("?"), kind) for name, kind in pairs]


_SCHEMA = {name: _parsed(fields) for name, fields in _FIELDS.items()}
_PAYLOADS = {
    name: [field for field, _, kind in fields if kind == "P"]
    for name, fields in _SCHEMA.items()
    if any(kind == "P" for _, _, kind in fields)
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A segment whose digest and lengths are right, and whose events have the fields of their types."""

    key: str
    header: dict[str, Any]
    events: list[Event]
    section_sizes: list[int]
    digest: str
    is_claim: bool


def decode_segment(key: str, data: bytes) -> Segment:
    """The segment in `data`. DamageError if its bytes contradict each other."""
    header_end = data.find(b"\n") + 1
    end = _HEADER_END.search(data, 0, header_end)
    if end is None:
        raise DamageError("digest", key, "the first line is no header with a checksum")
    hashed = hashlib.sha256(data[: end.start(2)])
    hashed.update(_ZEROS)
    hashed.update(memoryview(data)[end.end(2) :])
    if hashed.hexdigest() != end[2].decode():
        raise DamageError("digest", key, "the checksum does not match the bytes")
    try:
        header = json.loads(data[:header_end])
        _check_header(key, header)
        sizes = header["sections"]
        events = [json.loads(line) for line in _lines(key, header, data, header_end)]
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise DamageError("header", key, f"no segment ({error!r})") from error
    segment = Segment(
        key=key,
        header=header,
        events=events,
        section_sizes=sizes,
        digest=end[2].decode(),
        is_claim=header.get("claim", False),
    )
    for event in events:
        _check_event(segment, event)
    return segment


def _check_header(key: str, header: Any) -> None:
    if header["v"] != VERSION:
        raise DamageError("version", key, f"format version {header['v']!r}, this checker knows {VERSION}")
    for name in _TEXTS:
        if not isinstance(header[name], str):
            raise TypeError(f"{name} is {header[name]!r}")
    for name in _COUNTS:
        if not _is_count(header[name]):
            raise TypeError(f"{name} is {header[name]!r}")
    if not _are_counts(header["sections"]) or not isinstance(header["status"], dict):
        raise TypeError("sections or status of another type")
    if header.get("claim", True) is not True:
        raise TypeError("claim is true or absent")


def _lines(key: str, header: dict[str, Any], data: bytes, header_end: int) -> list[bytes]:
    sizes, count = header["sections"], header["count"]
    text_end = len(data) - sum(sizes)
    lines = data[header_end : max(text_end, header_end)].split(b"\n")
    if lines.pop() != b"" or len(lines) != count or not lines or text_end < header_end:
        raise DamageError("header", key, f"{count} events and sections of {sizes} bytes are not what lies there")
    return lines


def _check_event(segment: Segment, event: Any) -> None:
    """Its type is known, its fields are there, and so are the payloads that the segment holds."""
    kind = event.get("type") if isinstance(event, dict) else None
    number: Any = event.get("n") if isinstance(event, dict) else None
    if kind not in _SCHEMA:
        raise DamageError("event", segment.key, f"event {number!r} is of the unknown type {kind!r}")
    if not _is_count(number) or not _is_count(event.get("t")):
        raise DamageError("event", segment.key, f"event {number!r} has no number or no time")
    for name, is_required, wanted in _SCHEMA[kind]:
        if name not in event:
            if is_required:
                raise DamageError("event", segment.key, f"event {number} is {kind} without {name}")
        elif not _KINDS[wanted](event[name]):
            raise DamageError("event", segment.key, f"event {number} is {kind} with {name} = {event[name]!r:.80}")
    for payload in _own_payloads(event):
        _check_payload(segment, number, payload)
    if kind == "ExecutionStarted":
        for carried in event.get("carried", ()):
            _check_event(segment, carried)


def _check_payload(segment: Segment, number: int, payload: dict[str, Any]) -> None:
    """One of the four forms; a section must be there with its size."""
    if "encoding" in payload:
        sizes, size, index = segment.section_sizes, payload.get("size"), payload.get("section")
        if isinstance(payload.get("blob"), str) and DIGEST.fullmatch(payload["blob"]) and _is_count(size):
            return
        if type(index) is int and 0 <= index < len(sizes) and sizes[index] == size:
            return
        raise DamageError("payload", segment.key, f"a payload of event {number} is in section {index!r} of {sizes}")
    if "json" in payload:
        return
    try:
        ((_, encoded),) = payload.items()
        base64.b64decode(encoded, validate=True)
    except (TypeError, ValueError, binascii.Error) as error:
        raise DamageError("payload", segment.key, f"a payload of event {number} is in no known form") from error


def payloads_of(event: Event) -> Iterator[dict[str, Any]]:
    """The payloads of an event, with those of the events that it hands on."""
    yield from _own_payloads(event)
    if event["type"] == "ExecutionStarted":
        for carried in event.get("carried", ()):
            yield from payloads_of(carried)


def _own_payloads(event: Event) -> Iterator[dict[str, Any]]:
    for name in _PAYLOADS.get(event["type"], ()):
        if name in event:
            yield event[name]
    for _, payload in event.get("heartbeats", ()):
        yield payload
