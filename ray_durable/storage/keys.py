"""Every object name of a hub, in one place. storage/FORMAT.md is the norm.

Keys are relative to the store's root. Ids are encoded so that none leaves its place and no two meet, also where file
names ignore case. Runs and digests come from what was read, so they are looked at before they become part of a name.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import TypeGuard
from urllib.parse import unquote

from ray_durable.errors import CorruptLogError, InvalidIdError
from ray_durable.storage.signing import Signer

__all__ = [
    "SEGMENTS_PER_FOLDER",
    "HubKeys",
    "check_hub_name",
    "check_instance_id",
    "decode_id",
    "encode_id",
    "escape",
    "is_instance_id",
    "numbers",
]

SEGMENTS_PER_FOLDER = 1_000
"""Stores without a start-after listing list one folder of the log, never all of it."""

_ID_CHARS_MAX = 256
_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-_")
_ENCODED_CHARS_MAX = 150
_HEAD_CHARS = 80
_RUN = re.compile(r"[0-9a-f]{32}")
_DIGEST = re.compile(r"[0-9a-f]{64}")


def check_instance_id(instance_id: str) -> None:
    r"""Raise InvalidIdError unless the id may be used.

    1 to 256 characters; none of `/ \ # ?` and no control character or lone surrogate; not beginning with `@`, and
    without `..` (so that it cannot be mistaken for a path).
    """
    reason = _id_fault(instance_id)
    if reason is not None:
        raise InvalidIdError(
            f"The instance id {instance_id!r:.80} {reason}: give 1 to {_ID_CHARS_MAX} characters without / \\ # ? "
            "or control characters, not beginning with @ and without two dots in a row"
        )


def is_instance_id(value: object) -> TypeGuard[str]:
    """Whether `value` may be used as an instance id: what was read may be anything."""
    return _id_fault(value) is None


def check_hub_name(hub: str) -> None:
    """Raise InvalidIdError unless the name may be a hub's.

    1 to 100 of a-z 0-9 - _, beginning with a letter or digit.
    """
    if not (1 <= len(hub) <= 100 and set(hub) <= _PLAIN and hub[0] not in "-_"):
        raise InvalidIdError(
            f"The hub name {hub!r:.80} is not allowed: give 1 to 100 of a-z 0-9 - _, beginning with a letter or digit"
        )


def _id_fault(instance_id: object) -> str | None:
    if not isinstance(instance_id, str):
        return "is no string"
    if not 1 <= len(instance_id) <= _ID_CHARS_MAX:
        return f"has {len(instance_id)} characters"
    if instance_id.startswith("@"):
        return "begins with @"
    if ".." in instance_id or instance_id == ".":
        return "looks like a path"
    for character in instance_id:
        if character in "/\\#?" or unicodedata.category(character) in ("Cc", "Cs"):
            return f"contains {character!r}"
    return None


def escape(text: str) -> str:
    """a-z 0-9 - _ as they are, the bytes of other characters in UTF-8 as %xx. Beginnings stay beginnings."""
    return "".join(map(_escape_character, text))


def _escape_character(character: str) -> str:
    return character if character in _PLAIN else "".join(f"%{byte:02x}" for byte in character.encode())


def encode_id(instance_id: str) -> str:
    """The id as one name of a file: escaped; a long one cut after a whole character and ending in a digest.

    One to one: `%%` stands only before a digest, never in an escaped text.
    """
    encoded = escape(instance_id)
    if len(encoded) <= _ENCODED_CHARS_MAX:
        return encoded
    head = ""
    for character in instance_id:
        piece = _escape_character(character)
        if len(head) + len(piece) > _HEAD_CHARS:
            break
        head += piece
    return f"{head}%%{hashlib.sha256(instance_id.encode()).hexdigest()}"


def decode_id(name: str) -> str | None:
    """Inverse of `encode_id`; None for a name that was shortened, or is no id's."""
    try:
        instance_id = unquote(name, errors="strict")
    except UnicodeDecodeError:
        return None
    return instance_id if is_instance_id(instance_id) and encode_id(instance_id) == name else None


def numbers(names: Iterable[str], digits: int) -> list[int]:
    """The numbers among listed names, ascending: of objects or folders written with so many digits. Others are skipped.

    A number that needs more digits has more, and no other does.
    """
    found = (name.removesuffix("/") for name in names)
    return sorted(
        int(name)
        for name in found
        if name.isascii() and name.isdigit() and len(name) == max(digits, len(name.lstrip("0")))
    )


@lru_cache(maxsize=1024)
def _spread(name: str) -> str:
    """Two hex digits, first in the key, so that load spreads over a store's partitions."""
    return hashlib.sha256(name.encode()).hexdigest()[:2]


def _checked(form: re.Pattern[str], name: object, kind: str) -> str:
    if not (isinstance(name, str) and form.fullmatch(name)):
        raise CorruptLogError(
            f"{name!r:.80} is no {kind}, so an object that names it is damaged: run storage/verify.py", key=""
        )
    return name


@dataclass(frozen=True, slots=True)
class HubKeys:
    """The names of one hub's objects, and in a signed hub the `signer` that authenticates what lies there.

    Folders end with a slash. CorruptLogError for a run or digest that is none: it would name something else.
    """

    hub: str
    signer: Signer | None = None

    @property
    def settings(self) -> str:
        """Format version and settings of the hub."""
        return f"{self.hub}/hub.json"

    def probe(self, nonce: str) -> str:
        """An object that tests what the store can do."""
        return f"{self.hub}/probe/{nonce}"

    @property
    def instances(self) -> str:
        """Folder of the folders of instances' folders."""
        return f"{self.hub}/instances/"

    def executions(self, instance_id: str) -> str:
        """Folder of an instance's executions."""
        return f"{self.instances}{_spread(instance_id)}/{encode_id(instance_id)}/"

    def execution(self, instance_id: str, execution: int) -> str:
        """Segment 0 of an execution."""
        return f"{self.executions(instance_id)}{execution:06}"

    def purged(self, instance_id: str, through: int) -> str:
        """The tombstone of an instance's executions up to this one."""
        return f"{self.executions(instance_id)}purged.{through:06}"

    def run(self, run: str) -> str:
        """Folder of all that belongs to a run."""
        return f"{self.hub}/runs/{_spread(_checked(_RUN, run, 'run'))}/{run}/"

    def log(self, run: str) -> str:
        """Folder of a run's folders of segments."""
        return f"{self.run(run)}log/"

    def log_folder(self, run: str, seq: int) -> str:
        """Folder of `seq` and its neighbours."""
        return f"{self.log(run)}{seq // SEGMENTS_PER_FOLDER:09}/"

    def segment(self, run: str, seq: int) -> str:
        """A segment; seq from 1."""
        return f"{self.log_folder(run, seq)}{seq:012}"

    def blob(self, run: str, digest: str) -> str:
        """A payload stored on its own."""
        return f"{self.run(run)}blobs/{_checked(_DIGEST, digest, 'digest')}"

    def code(self, digest: str) -> str:
        """Functions captured by value."""
        return f"{self.hub}/code/{_checked(_DIGEST, digest, 'digest')}"

    @property
    def open_set(self) -> str:
        """Folder of the open set: one, so that one listing shows all that runs."""
        return f"{self.hub}/index/open/"

    def open_entry(self, instance_id: str) -> str:
        """The entry of an unfinished instance."""
        return f"{self.open_set}{encode_id(instance_id)}"

    @property
    def ended(self) -> str:
        """Folder of ended instances' summaries, a folder a day."""
        return f"{self.hub}/index/ended/"

    def ended_entry(self, instance_id: str, created_us: int, status: str) -> str:
        """The summary of an ended instance: day and time of its creation, and its status, are in the name."""
        day = datetime.fromtimestamp(created_us / 1_000_000, UTC).strftime("%Y%m%d")
        return f"{self.ended}{day}/{created_us // 1000:013}.{status.lower()}.{encode_id(instance_id)}"

    @property
    def retired(self) -> str:
        """Folder of what is to be removed from storage once its time has come."""
        return f"{self.hub}/index/retired/"

    def retired_entry(self, instance_id: str, due_us: int) -> str:
        """The entry of an instance some of whose executions are to be removed."""
        return f"{self.retired}{due_us // 1000:013}.{encode_id(instance_id)}"

    @property
    def schedules(self) -> str:
        """Folder of schedules: one, so that one listing shows every change."""
        return f"{self.hub}/schedules/"

    def schedule(self, schedule_id: str, revision: int) -> str:
        """A schedule from one of its changes on."""
        return f"{self.schedules}{encode_id(schedule_id)}.{revision:012}"

    @property
    def hub_epochs(self) -> str:
        """Folder of the hub's epochs."""
        return f"{self.hub}/lease/epochs/"

    def hub_epoch(self, epoch: int) -> str:
        """The claim of one hub epoch."""
        return f"{self.hub_epochs}{epoch:012}"

    @property
    def lease(self) -> str:
        """The lease that the holder of the newest epoch renews."""
        return f"{self.hub}/lease/holder"
