"""Arrow IPC streams, looked at before Arrow reads them.

Reading a stream does two things that bytes of unknown origin must not command: it allocates what compressed buffers
claim to hold, and it runs the code of registered extension types (some, Ray Data's among them, unpickle). So the frame
is read here first: message headers, declared sizes, extension names. Nothing is decompressed.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from ray_durable.codec.limits import Limits
from ray_durable.errors import PayloadTooLargeError

__all__ = ["StreamFacts", "check_expansion", "inspect_stream"]

_CONTINUATION = 0xFFFFFFFF
_DICTIONARY_BATCH, _RECORD_BATCH = 2, 3
_EXTENSION_KEY = b"ARROW:extension:name"


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamFacts:
    """What a stream declares: rows over all batches, bytes once decompressed, and whether it has extension types."""

    rows: int
    expanded_bytes: int
    has_extensions: bool


def inspect_stream(data: bytes) -> StreamFacts:
    """Read the frame of an IPC stream. ValueError if it is not one, or is damaged."""
    rows = expanded = 0
    extensions = False
    try:
        for header, body in _messages(memoryview(data)):
            # Only schemas have the key, but looking into all headers costs nothing and cannot miss one.
            extensions = extensions or _EXTENSION_KEY in bytes(header)
            kind, batch = _record_batch(header)
            if batch is None:
                continue
            if kind == _RECORD_BATCH:
                rows += batch.length
            expanded += _expanded_bytes(batch, body)
    except (struct.error, IndexError) as error:
        raise ValueError("damaged Arrow stream") from error
    return StreamFacts(rows=rows, expanded_bytes=expanded, has_extensions=extensions)


def check_expansion(
    facts: StreamFacts, data: bytes, limits: Limits, *, rows_max: int | None = None, where: str
) -> None:
    """Raise PayloadTooLargeError if reading the stream would take more memory, or give more rows, than is allowed."""
    bytes_max = min(limits.payload_bytes_max, max(limits.expansion_free_bytes, len(data) * limits.expansion_ratio_max))
    # Columns of nothing but nulls have rows and no bytes; a row with a value has at least a bit.
    rows_max = rows_max if rows_max is not None else 8 * facts.expanded_bytes + limits.batch_items_max
    for unit, count, limit in (("bytes", facts.expanded_bytes, bytes_max), ("rows", facts.rows, rows_max)):
        if count > limit:
            raise PayloadTooLargeError(
                f"{where}: a payload of {len(data)} bytes would grow to {count} {unit}, over the limit of {limit}; if "
                "it is yours, raise the limits",
                where=where,
                size_bytes=count,
                limit_bytes=limit,
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Batch:
    length: int
    buffers: list[tuple[int, int]]
    compressed: bool


def _messages(view: memoryview) -> Iterator[tuple[memoryview, memoryview]]:
    position = 0
    while position + 8 <= len(view):
        marker, header_length = struct.unpack_from("<Ii", view, position)
        if marker != _CONTINUATION or header_length < 0:
            raise ValueError("not an Arrow stream")
        if header_length == 0:
            return
        position += 8
        header = view[position : position + header_length]
        position += header_length
        (body_length,) = _scalar(header, _root(header), 3, "<q", 0)
        if body_length < 0 or len(header) < header_length or position + body_length > len(view):
            raise ValueError("truncated Arrow stream")
        yield header, view[position : position + body_length]
        position += body_length


def _record_batch(header: memoryview) -> tuple[int, _Batch | None]:
    """The message's kind and, for record and dictionary batches, the batch. Field numbers are those of Message.fbs."""
    message = _root(header)
    (kind,) = _scalar(header, message, 1, "<B", 0)
    if kind not in (_RECORD_BATCH, _DICTIONARY_BATCH):
        return kind, None
    table = _table(header, message, 2)
    if kind == _DICTIONARY_BATCH and table is not None:
        table = _table(header, table, 1)
    if table is None:
        raise ValueError("damaged Arrow stream")
    (length,) = _scalar(header, table, 0, "<q", 0)
    buffers: list[tuple[int, int]] = []
    vector = _table(header, table, 2)
    if vector is not None:
        (count,) = struct.unpack_from("<I", header, vector)
        if count * 16 > len(header):
            raise ValueError("damaged Arrow stream")
        buffers = [struct.unpack_from("<qq", header, vector + 4 + 16 * index) for index in range(count)]
    return kind, _Batch(length=length, buffers=buffers, compressed=_table(header, table, 3) is not None)


def _expanded_bytes(batch: _Batch, body: memoryview) -> int:
    if batch.length < 0:
        raise ValueError("damaged Arrow stream")
    total = 0
    for offset, length in batch.buffers:
        if offset < 0 or length < 0 or offset + length > len(body):
            raise ValueError("damaged Arrow stream")
        if batch.compressed and length >= 8:
            # A compressed buffer begins with its size once decompressed; -1 says that it was left as it is.
            (declared,) = struct.unpack_from("<q", body, offset)
            total += declared if declared >= 0 else length
        else:
            total += length
    return total


# The few operations of FlatBuffers that the header needs: a table begins with the distance to its vtable, which holds
# two sizes and then, for each field number, the field's offset in the table (0: absent). Distances are unsigned and
# point forward, so nothing here can loop.


def _root(view: memoryview) -> int:
    return int(struct.unpack_from("<I", view, 0)[0])


def _field(view: memoryview, table: int, number: int) -> int | None:
    vtable = table - struct.unpack_from("<i", view, table)[0]
    if vtable < 0:
        raise ValueError("damaged Arrow stream")
    (vtable_size,) = struct.unpack_from("<H", view, vtable)
    slot = 4 + 2 * number
    if slot + 2 > vtable_size:
        return None
    (offset,) = struct.unpack_from("<H", view, vtable + slot)
    return table + offset if offset else None


def _scalar(view: memoryview, table: int, number: int, form: str, default: int) -> tuple[int]:
    position = _field(view, table, number)
    return (default,) if position is None else (int(struct.unpack_from(form, view, position)[0]),)


def _table(view: memoryview, table: int, number: int) -> int | None:
    """Where the table or vector that a field points to begins."""
    position = _field(view, table, number)
    return None if position is None else position + int(struct.unpack_from("<I", view, position)[0])
