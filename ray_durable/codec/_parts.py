"""Several payloads in one: a line of JSON with the encodings and sizes of the parts, then their bytes.

{"args":[["json",3],["ndarray",812]],"kwargs":{"mode":["json",6]}}\n...
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["Part", "pack_parts", "unpack_parts"]

Part = tuple[str, bytes]


def pack_parts(args: Sequence[Part], kwargs: Mapping[str, Part]) -> bytes:
    """The bytes of a multipart payload."""
    head = {
        "args": [[encoding, len(data)] for encoding, data in args],
        "kwargs": {name: [encoding, len(data)] for name, (encoding, data) in kwargs.items()},
    }
    line = json.dumps(head, separators=(",", ":")).encode()
    return b"".join([line, b"\n", *(data for _, data in args), *(data for _, data in kwargs.values())])


def unpack_parts(data: bytes) -> tuple[list[Part], dict[str, Part]]:
    """Inverse of `pack_parts`. ValueError for damaged data."""
    end = data.find(b"\n")
    head: Any = json.loads(data[: end if end >= 0 else 0])
    try:
        sizes = [*head["args"], *head["kwargs"].values()]
        names = list(head["kwargs"])
        positional = len(head["args"])
        parts, position = [], end + 1
        for encoding, size in sizes:
            if not isinstance(encoding, str) or type(size) is not int or size < 0:
                raise ValueError("damaged parts")
            parts.append((encoding, data[position : position + size]))
            position += size
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError("damaged parts") from error
    if position != len(data):
        raise ValueError(f"the parts take {position} bytes of {len(data)}")
    return parts[:positional], dict(zip(names, parts[positional:], strict=True))
