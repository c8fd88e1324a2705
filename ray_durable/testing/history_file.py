"""A history as a file, to be kept beside the tests: JSON lines, payloads included.

The first line says what it is; then comes one event a line, as storage/FORMAT.md has them. Blobs and binary sections
stand in the lines as base64, so that the file is text and whole.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ray_durable.engine import Event, ExecutionStarted
from ray_durable.errors import CorruptLogError
from ray_durable.runtime.records import decode_events, encode_events
from ray_durable.storage import FORMAT_VERSION

__all__ = ["read_history", "write_history"]

_KIND = "ray_durable history"


def write_history(path: str | os.PathLike[str], events: Sequence[Event]) -> None:
    """Write the events of one execution, all of their payloads loaded."""
    started = events[0]
    assert isinstance(started, ExecutionStarted), "a history begins with its start"
    header = {
        "kind": _KIND,
        "v": FORMAT_VERSION,
        "instance": started.instance_id,
        "execution": started.execution,
        "name": started.name,
        "count": len(events),
    }
    lines, sections = encode_events(events)
    texts = [line if b'"section":' not in line else _whole(line, sections) for line in lines]
    Path(path).write_bytes(b"\n".join([json.dumps(header).encode(), *texts, b""]))


def read_history(path: str | os.PathLike[str]) -> list[Event]:
    """The events of a file that `write_history` made.

    Raises:
        CorruptLogError: it is no such file, of a later version, or cut off.
    """
    header_line, *lines = Path(path).read_bytes().splitlines()
    try:
        header = json.loads(header_line)
    except ValueError:
        header = {}
    if not isinstance(header, dict) or header.get("kind") != _KIND:
        raise CorruptLogError(f"{os.fspath(path)} is no history: export one with export_history", key=os.fspath(path))
    if header.get("v") != FORMAT_VERSION:
        raise CorruptLogError(
            f"{os.fspath(path)} has format version {header.get('v')}, and this is {FORMAT_VERSION}: use the version of "
            "ray_durable that wrote it, or a later one",
            key=os.fspath(path),
        )
    events = decode_events(lines, (), key=os.fspath(path))
    if len(events) != header.get("count"):
        raise CorruptLogError(
            f"{os.fspath(path)} has {len(events)} events of {header.get('count')}: it was cut off; export it again",
            key=os.fspath(path),
        )
    return events


def _whole(line: bytes, sections: Sequence[bytes]) -> bytes:
    return json.dumps(_with_sections(json.loads(line), sections)).encode()


def _with_sections(part: Any, sections: Sequence[bytes]) -> Any:
    """The part of a line with its sections in their places. What is below "json" is the user's own."""
    if isinstance(part, list):
        return [_with_sections(one, sections) for one in part]
    if not isinstance(part, dict):
        return part
    if part.keys() == {"encoding", "section", "size"}:
        return {part["encoding"]: base64.b64encode(sections[part["section"]]).decode()}
    return {name: one if name == "json" else _with_sections(one, sections) for name, one in part.items()}
