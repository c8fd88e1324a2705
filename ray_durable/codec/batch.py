"""Batches: many values in one columnar payload, which can be cut up without decoding a value.

A batch (encoding "batch") is an Arrow IPC stream of one record batch with one column. The schema metadata say under
"ray_durable.items" what an item is:

- "native": the column's type is the values' type: int64, double, utf8, bool or null
- "json": each item is JSON text, to be read by the annotation
- "payload": each item is the name of an encoding, a newline, and the data

and under "ray_durable.reader" whether native items were written without an annotation ("annotation": the reader's may
still convert them, as it would JSON) or are what the writer's annotation says ("exact").

A dispatcher opens a batch and hands out ranges; no user value is decoded and nothing is unpickled here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any

import pyarrow as pa

from ray_durable.codec._columns import NATIVE_COLUMNS, binary_column, native_column
from ray_durable.codec._ipc import check_expansion, inspect_stream
from ray_durable.codec.limits import Limits
from ray_durable.errors import PayloadTooLargeError, SerializationError
from ray_durable.payload import Payload

__all__ = ["Batch", "batch_length", "concat_batches", "open_batch", "slice_batch"]

_ENCODING = "batch"
_ITEMS = b"ray_durable.items"
_READER = b"ray_durable.reader"
_COLUMN = "values"
# Below this, compressing costs more time than the bytes are worth.
_COMPRESSED_FROM_BYTES = 16 * 1024
_NATIVE_TYPES = tuple(NATIVE_COLUMNS.values())
_TEXT_TYPES = (pa.binary(), pa.large_binary())


class Batch:
    """An opened batch. Slicing and taking give new batch payloads; values stay encoded."""

    __slots__ = ("_values", "items", "reader")

    def __init__(self, values: Any, *, items: str, reader: str) -> None:
        self._values = values
        self.items = items
        self.reader = reader

    def __len__(self) -> int:
        return len(self._values)

    @property
    def column_type(self) -> Any:
        """The Arrow type of the column."""
        return self._values.type

    @property
    def column_bytes(self) -> int:
        """Size of the column in memory."""
        return int(self._values.nbytes)

    def slice(self, start: int, stop: int) -> Payload:
        """Items `start` to `stop` (exclusive). IndexError unless 0 <= start <= stop <= len."""
        if not 0 <= start <= stop <= len(self):
            raise IndexError(f"items {start} to {stop} of a batch of {len(self)}")
        return _write(self._values.slice(start, stop - start), self.items, self.reader, compress=False)

    def take(self, indices: Sequence[int]) -> Payload:
        """The items at `indices`, in that order. IndexError if one is out of range."""
        if indices and not (min(indices) >= 0 and max(indices) < len(self)):
            raise IndexError(f"items {min(indices)} to {max(indices)} of a batch of {len(self)}")
        taken = self._values.take(native_column(int, indices))
        return _write(taken, self.items, self.reader, compress=False)

    def to_pylist(self) -> list[Any]:
        """The column as Python objects: values if native, else encoded items."""
        values: list[Any] = self._values.to_pylist()
        return values

    def to_payload(self) -> Payload:
        """All of it, compressed where that pays."""
        return _write(self._values, self.items, self.reader, compress=True)


def open_batch(payload: Payload, *, limits: Limits | None = None, where: str = "batch") -> Batch:
    """Open a payload of encoding "batch".

    Raises:
        SerializationError: it is not a batch, or damaged.
        PayloadTooLargeError: it would grow over the limits.
    """
    limits = limits or Limits()
    if payload.encoding != _ENCODING:
        raise _damaged(where, f"its encoding is {payload.encoding!r}, not a batch")
    data = payload.bytes
    try:
        facts = inspect_stream(data)
        if facts.has_extensions:
            raise ValueError("it has extension types")
        check_expansion(facts, data, limits, rows_max=limits.batch_items_max, where=where)
        with pa.ipc.open_stream(data) as reader:
            table = reader.read_all()
        table.validate(full=True)
        return _from_table(table)
    except PayloadTooLargeError:
        raise
    except (ValueError, OSError, pa.ArrowException) as error:
        raise _damaged(where, str(error)) from error


def batch_length(payload: Payload) -> int:
    """How many values a batch holds; nothing is decompressed."""
    if payload.encoding != _ENCODING:
        raise _damaged("batch", f"its encoding is {payload.encoding!r}, not a batch")
    try:
        return inspect_stream(payload.bytes).rows
    except ValueError as error:
        raise _damaged("batch", str(error)) from error


def slice_batch(payload: Payload, start: int, stop: int) -> Payload:
    """Items `start` to `stop` (exclusive) of a batch, as a batch. To cut many slices, open the batch once."""
    return open_batch(payload).slice(start, stop)


def concat_batches(payloads: Iterable[Payload]) -> list[Payload]:
    """Neighbours of one column type joined, order kept: fewer payloads with the same items, at best one."""
    opened = [open_batch(payload) for payload in payloads]
    joined = []
    for (items, reader, _), group in groupby(opened, key=lambda batch: (batch.items, batch.reader, batch.column_type)):
        values = pa.concat_arrays([batch._values for batch in group])
        joined.append(_write(values, items, reader, compress=True))
    return joined


def native_batch(values: Any, *, annotated: bool) -> Batch:
    """A batch of an Arrow array of native values."""
    return Batch(values, items="native", reader="exact" if annotated else "annotation")


def item_batch(items: str, texts: Sequence[bytes]) -> Batch:
    """A batch of encoded items ("json" or "payload")."""
    return Batch(binary_column(texts), items=items, reader="annotation")


def _write(values: Any, items: str, reader: str, *, compress: bool) -> Payload:
    schema = pa.schema([pa.field(_COLUMN, values.type)], metadata={_ITEMS: items.encode(), _READER: reader.encode()})
    sink = pa.BufferOutputStream()
    worth_it = compress and values.nbytes >= _COMPRESSED_FROM_BYTES
    options = pa.ipc.IpcWriteOptions(compression="zstd" if worth_it else None)
    with pa.ipc.new_stream(sink, schema, options=options) as writer:
        writer.write_batch(pa.record_batch([values], schema=schema))
    data = sink.getvalue().to_pybytes()
    limits = Limits()
    if worth_it and values.nbytes > max(limits.expansion_free_bytes, len(data) * limits.expansion_ratio_max):
        # Compressed so well that readers would take it for a bomb.
        return _write(values, items, reader, compress=False)
    return Payload.of(_ENCODING, data)


def _from_table(table: Any) -> Batch:
    metadata = table.schema.metadata or {}
    items, reader = metadata.get(_ITEMS, b"").decode(), metadata.get(_READER, b"").decode()
    allowed = {"native": _NATIVE_TYPES, "json": _TEXT_TYPES, "payload": _TEXT_TYPES}.get(items, ())
    if table.num_columns != 1 or table.schema.field(0).type not in allowed or reader not in ("annotation", "exact"):
        raise ValueError("its column is not of a known form")
    column = table.column(0)
    chunks = column.chunks or [pa.nulls(0, column.type)]
    values = chunks[0] if len(chunks) == 1 else pa.concat_arrays(chunks)
    if values.null_count and values.type != pa.null():
        raise ValueError("it has nulls where values belong")
    return Batch(values, items=items, reader=reader)


def _damaged(where: str, reason: str) -> SerializationError:
    return SerializationError(f"{where}: the batch cannot be read: {reason}", where=where, type_name="batch")
