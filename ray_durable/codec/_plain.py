"""Values that JSON holds without any type given: None, bool, int, float, str, and lists and string-keyed dicts of them.

Exact types only. A subclass (an IntEnum, a defaultdict) would come back as its base, so it is not plain.
"""

from __future__ import annotations

import json
import re
from typing import Any

import pydantic_core

from ray_durable.codec._same import same

__all__ = [
    "JSON_DEPTH_MAX",
    "SCALARS",
    "has_long_number",
    "is_plain",
    "json_encoding",
    "plain_as_is",
    "plain_from_as_is",
    "to_json",
]

# Parsers stop at 200 levels and serializers at 255: what is written must stay readable for all of them.
JSON_DEPTH_MAX = 128
# Serializers write longer ints, parsers and Python itself refuse them.
_DIGITS_MAX = 4_000
_LONG_NUMBER = re.compile(rb"[0-9]{%d}" % _DIGITS_MAX)
SCALARS = frozenset({type(None), bool, int, float, str})


def is_plain(value: Any, depth_max: int = JSON_DEPTH_MAX) -> bool:
    """Whether `value` is plain and nests no deeper than `depth_max`; a value that contains itself is not."""
    kind = type(value)
    if kind in SCALARS:
        return True
    if kind is dict:
        if not set(map(type, value)) <= {str}:
            return False
        items = value.values()
    elif kind is list:
        items = value
    else:
        return False
    if depth_max <= 0:
        return False
    # One pass in C settles flat containers, which are the large ones.
    if set(map(type, items)) <= SCALARS:
        return True
    return all(is_plain(item, depth_max - 1) for item in items)


def to_json(value: Any) -> tuple[str, bytes] | None:
    """Encoding and JSON text of a plain value; None if JSON cannot hold it (lone surrogates, ints beyond measure)."""
    try:
        data = pydantic_core.to_json(value, inf_nan_mode="constants")
    except ValueError:
        return None
    return None if has_long_number(data) else (json_encoding(data), data)


def has_long_number(data: bytes) -> bool:
    """Whether JSON text may hold a number that is too long to be parsed again."""
    return len(data) > _DIGITS_MAX and _LONG_NUMBER.search(data) is not None


def json_encoding(data: bytes) -> str:
    """ "json", or "json-nonfinite" if the text holds the constants NaN or Infinity, which standard JSON lacks."""
    if b"NaN" in data or b"Infinity" in data:
        try:
            # The words may also stand inside strings.
            pydantic_core.from_json(data, allow_inf_nan=False)
        except ValueError:
            return "json-nonfinite"
    return "json"


def plain_as_is(value: Any) -> bytes | None:
    """ASCII JSON text of a plain value, with what strict parsers refuse: lone surrogates escaped, NaN and Infinity.

    For values that must come back as they are, whatever the reader's annotation says. None if they would not.
    """
    if not is_plain(value):
        return None
    try:
        text = json.dumps(value, separators=(",", ":"))
        # Two lone surrogates in a row would come back as one character.
        return text.encode("ascii") if same(value, json.loads(text)) else None
    except (ValueError, RecursionError):
        return None


def plain_from_as_is(data: bytes) -> Any:
    """Inverse of `plain_as_is`. ValueError or RecursionError for damaged text."""
    return json.loads(data)
