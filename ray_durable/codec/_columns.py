"""Arrow columns of plain Python values, made of their buffers.

`pyarrow.array` does the same, and imports pandas first wherever that is installed, to see whether it was given one of
its objects: 0.2 to 0.4 s of processor time and tens of megabytes for each process that ever reads or writes a batch.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

import pyarrow as pa

__all__ = ["NATIVE_COLUMNS", "binary_column", "native_column"]

NATIVE_COLUMNS = {int: pa.int64(), float: pa.float64(), str: pa.string(), bool: pa.bool_(), type(None): pa.null()}
"""The Arrow type of a column, by the Python type of its values."""

_BYTES_MAX = 2**31 - 1


def native_column(kind: type, values: Sequence[Any]) -> Any | None:
    """A column of values that are all exactly of type `kind`, a key of `NATIVE_COLUMNS`.

    None if Arrow cannot hold them: ints over 64 bits, lone surrogates, or more text than a column holds.
    """
    try:
        return _MAKERS[kind](values)
    except (OverflowError, UnicodeError):
        return None


def binary_column(texts: Sequence[bytes]) -> Any:
    """A column of bytes: with 32-bit offsets where they reach, since they halve what small items cost beside their
    text."""
    kind, code = (pa.binary(), "i") if sum(map(len, texts)) <= _BYTES_MAX else (pa.large_binary(), "q")
    return _texts(kind, code, texts)


def _texts(kind: Any, code: str, texts: Sequence[bytes]) -> Any:
    offsets = array(code, accumulate(map(len, texts), initial=0))
    return pa.Array.from_buffers(kind, len(texts), [None, pa.py_buffer(offsets), pa.py_buffer(b"".join(texts))])


def _strings(values: Sequence[str]) -> Any:
    # An offset over 31 bits raises OverflowError.
    return _texts(pa.string(), "i", [value.encode() for value in values])


def _numbers(kind: Any, code: str) -> Callable[[Sequence[Any]], Any]:
    def made(values: Sequence[Any]) -> Any:
        return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(array(code, values))])

    return made


def _flags(values: Sequence[bool]) -> Any:
    """One bit each, the first the lowest."""
    digits = "".join("1" if value else "0" for value in reversed(values))
    packed = int(digits or "0", 2).to_bytes((len(values) + 7) // 8, "little")
    return pa.Array.from_buffers(pa.bool_(), len(values), [None, pa.py_buffer(packed)])


_MAKERS: dict[type, Callable[[Sequence[Any]], Any]] = {
    int: _numbers(pa.int64(), "q"),
    float: _numbers(pa.float64(), "d"),
    str: _strings,
    bool: _flags,
    type(None): lambda values: pa.nulls(len(values)),
}
