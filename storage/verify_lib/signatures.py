"""Signatures: FORMAT.md, section 12. Every object of a signed hub is looked at once more, with the hub's keys alone."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from verify_lib.findings import Report
from verify_lib.roots import Root

__all__ = ["check_signatures", "read_keys"]

KEY_BYTES_MIN = 32

_ZEROS = b"0" * 64
_IN_HEADER = re.compile(rb',"mac":"([0-9a-f]{8})\.([0-9a-f]{64})","sha256":"([0-9a-f]{64})"\}\n')
_AT_END = re.compile(rb',"mac":"([0-9a-f]{8})\.([0-9a-f]{64})"\}\Z')
_SEGMENT = re.compile(r"instances/[^/]+/[^/]+/\d{6,}|runs/[^/]+/[^/]+/log/\d{9,}/\d{12,}")
_BY_DIGEST = re.compile(r"runs/[^/]+/[^/]+/blobs/[^/]+|code/[^/]+|probe/[^/]+")


def read_keys(path: str) -> dict[str, bytes]:
    """The keys of a file, by id: one a line, `#` before comments, `hex:` before digits. ValueError if there is none."""
    lines = [line.strip() for line in Path(path).read_text().splitlines()]
    keys = [
        bytes.fromhex(line.removeprefix("hex:")) if line.startswith("hex:") else line.encode()
        for line in lines
        if line and not line.startswith("#")
    ]
    if not keys or min(map(len, keys)) < KEY_BYTES_MIN:
        raise ValueError(f"{path} holds no signing key of at least {KEY_BYTES_MIN} bytes")
    return {hmac.digest(key, b"ray_durable key id", "sha256").hex()[:8]: key for key in keys}


def check_signatures(root: Root, hub: str, keys: Mapping[str, bytes], report: Report) -> None:
    """Damage for every object that nobody with one of the keys wrote for its place."""
    for key in _signed_objects(root):
        data = root.read(key)
        if data is not None and (fault := _fault(data, f"{hub}/{key}", _SEGMENT.fullmatch(key) is not None, keys)):
            report.add_damage("signature", key, fault)


def _signed_objects(root: Root) -> Iterable[str]:
    return (
        key for key in root.walk("") if not _BY_DIGEST.fullmatch(key) and not key.rpartition("/")[2].startswith(".")
    )


def _fault(data: bytes, place: str, is_segment: bool, keys: Mapping[str, bytes]) -> str | None:
    """What is wrong with an object's signature; None if it is right."""
    if is_segment:
        end = data.find(b"\n") + 1
        found = _IN_HEADER.search(data, max(0, end - 256), end)
    else:
        end = len(data)
        found = _AT_END.search(data)
    if found is None or found.end() != end:
        return "it is not signed"
    key = keys.get(found[1].decode())
    if key is None:
        return f"it is signed with the key {found[1].decode()}, which was not given"
    blank = data[: found.start(2)] + _ZEROS + data[found.end(2) :]
    if is_segment:
        blank = blank[: found.start(3)] + _ZEROS + blank[found.end(3) :]
    mac = hmac.new(key, b"ray_durable 1\n" + place.encode() + b"\n", hashlib.sha256)
    mac.update(blank)
    if not hmac.compare_digest(mac.hexdigest().encode(), found[2]):
        return "its signature is not for these bytes at this place"
    return None
