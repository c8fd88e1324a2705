"""Where each object belongs: FORMAT.md, section 2. Keys are relative to the hub."""

from __future__ import annotations

import hashlib
import re
from datetime import UTC, datetime

__all__ = [
    "KNOWN_FOLDERS",
    "blob",
    "encode_id",
    "ended_entry",
    "execution_folder",
    "open_entry",
    "run_folder",
    "segment",
]

SEGMENTS_PER_FOLDER = 1_000

KNOWN_FOLDERS = frozenset({"code/", "index/", "instances/", "lease/", "probe/", "runs/", "schedules/"})
"""What may lie beside hub.json."""

EXECUTION = re.compile(r"[0-9]{6,}")
TOMBSTONE = re.compile(r"purged\.([0-9]{6,})")
IN_RUN = re.compile(r"log/(?P<folder>[0-9]{9,})/(?P<seq>[0-9]{12,})|blobs/(?P<blob>[0-9a-f]{64})|checkpoint/[0-9]{12,}")
RUN = re.compile(r"[0-9a-f]{32}")
DIGEST = re.compile(r"[0-9a-f]{64}")
ENDED = re.compile(r"[0-9]{8}/[0-9]{13,}\.[a-z]+\.[a-z0-9_%-]+")
SCHEDULE = re.compile(r"(?P<id>[a-z0-9_%-]+)\.(?P<revision>[0-9]{12,})")
RETIRED = re.compile(r"(?P<due_ms>[0-9]{13,})\.(?P<id>[a-z0-9_%-]+)")

_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-_")
_NAME_CHARS_MAX, _HEAD_CHARS_MAX = 150, 80


def encode_id(instance_id: str) -> str:
    """The name of an instance in keys."""
    pieces = [
        character if character in _PLAIN else "".join(f"%{byte:02x}" for byte in character.encode())
        for character in instance_id
    ]
    name = "".join(pieces)
    if len(name) <= _NAME_CHARS_MAX:
        return name
    while len("".join(pieces)) > _HEAD_CHARS_MAX:
        pieces.pop()
    return f"{''.join(pieces)}%%{hashlib.sha256(instance_id.encode()).hexdigest()}"


def spread(text: str) -> str:
    """The two hex digits that stand before a name."""
    return hashlib.sha256(text.encode()).hexdigest()[:2]


def execution_folder(instance_id: str) -> str:
    """Of an instance's executions and tombstones; with a slash at the end."""
    return f"instances/{spread(instance_id)}/{encode_id(instance_id)}/"


def run_folder(run: str) -> str:
    """Of all that belongs to a run; with a slash at the end."""
    return f"runs/{spread(run)}/{run}/"


def segment(run: str, seq: int) -> str:
    """Seq from 1."""
    return f"{run_folder(run)}log/{seq // SEGMENTS_PER_FOLDER:09}/{seq:012}"


def blob(run: str, digest: str) -> str:
    """A payload stored on its own."""
    return f"{run_folder(run)}blobs/{digest}"


def open_entry(instance_id: str) -> str:
    """The entry of an unfinished instance."""
    return f"index/open/{encode_id(instance_id)}"


def ended_entry(instance_id: str, created_us: int, status: str) -> str:
    """The summary of an ended instance."""
    day = datetime.fromtimestamp(created_us / 1_000_000, UTC).strftime("%Y%m%d")
    return f"index/ended/{day}/{created_us // 1000:013}.{status.lower()}.{encode_id(instance_id)}"
