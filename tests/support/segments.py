"""Segments as somebody writes them who can write to the bucket and has no key: the checksum is anybody's to compute."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["chained", "parts_of", "rechecked", "remade"]

_CHECKSUM = re.compile(rb'"sha256":"[^"]{64}"\}\n')
_ZEROS = b"0" * 64


def rechecked(data: bytes) -> bytes:
    """The object with the checksum that its bytes have, where it has a place for one."""
    found = _CHECKSUM.search(data)
    if found is None:
        return data
    start = found.start() + len(b'"sha256":"')
    blank = data[:start] + _ZEROS + data[start + 64 :]
    return data[:start] + hashlib.sha256(blank).hexdigest().encode() + data[start + 64 :]


def parts_of(data: bytes) -> tuple[dict[str, Any], list[bytes], bytes]:
    """Header, lines and sections (as one) of a segment."""
    head, _, body = data.partition(b"\n")
    header = json.loads(head)
    text_size = len(body) - sum(header["sections"])
    return header, body[:text_size].split(b"\n")[:-1], body[text_size:]


def remade(header: Mapping[str, Any], lines: Sequence[bytes], sections: bytes) -> bytes:
    """A segment of these parts, its checksum right; the mac stays as it was."""
    fields = {**header, "count": len(lines)}
    mac = fields.pop("mac", None)
    fields.pop("sha256", None)
    text = json.dumps(fields, ensure_ascii=False, separators=(",", ":"))[:-1]
    text += "" if mac is None else f',"mac":"{mac}"'
    return rechecked(
        b"".join(
            (
                text.encode("utf-8", "backslashreplace"),
                b',"sha256":"',
                _ZEROS,
                b'"}\n',
                *(line + b"\n" for line in lines),
                sections,
            )
        )
    )


def chained(
    before: bytes, data: bytes, *, lines: Sequence[bytes] | None = None, changes: Mapping[str, Any] | None = None
) -> bytes:
    """The segment with other lines and fields, named as the successor of `before`."""
    header, present, sections = parts_of(data)
    fields = {**header, **(changes or {}), "previous": parts_of(before)[0]["sha256"]}
    return remade(fields, present if lines is None else lines, sections)
