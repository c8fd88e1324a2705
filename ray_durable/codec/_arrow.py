"""Tables and columns: pyarrow's Table, RecordBatch, Array and ChunkedArray; pandas' DataFrame and Series.

The form is one Arrow IPC stream whose schema metadata say under "ray_durable.kind" which of these it was. Anything that
would not come back exactly (a mixed object column, an index with a frequency) is left to the next encoding.
Extension types run code of their own when read, so they pass only where pickle may.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from ray_durable.codec._ipc import check_expansion, inspect_stream
from ray_durable.codec._same import same
from ray_durable.codec.limits import Limits

__all__ = ["decode_arrow", "encode_arrow"]

_KIND = b"ray_durable.kind"
_COLUMN = "values"
_PANDAS_KINDS = (b"dataframe", b"series")


def encode_arrow(value: Any, *, allow_extensions: bool) -> bytes | None:
    """`value` as an IPC stream; None if it is of another type or would not survive."""
    made = _to_table(value)
    if made is None:
        return None
    kind, table = made
    metadata = {**(table.schema.metadata or {}), _KIND: kind}
    table = table.replace_schema_metadata(metadata)
    sink = pa.BufferOutputStream()
    try:
        with pa.ipc.new_stream(sink, table.schema) as writer:
            for batch in table.to_batches() or [_empty_batch(table)]:
                writer.write_batch(batch)
    except pa.ArrowException:
        return None
    data: bytes = sink.getvalue().to_pybytes()
    if not allow_extensions and inspect_stream(data).has_extensions:
        return None
    return data if kind not in _PANDAS_KINDS or _pandas_survives(value, data) else None


def decode_arrow(data: bytes, limits: Limits, *, allow_extensions: bool, where: str) -> Any:
    """Inverse of `encode_arrow`. ValueError for damaged or refused streams, PayloadTooLargeError for bombs."""
    facts = inspect_stream(data)
    check_expansion(facts, data, limits, where=where)
    if facts.has_extensions and not allow_extensions:
        raise ValueError("it has Arrow extension types, which are read from a private local root only")
    return _read(data)


def _read(data: bytes) -> Any:
    with pa.ipc.open_stream(data) as reader:
        table = reader.read_all()
    table.validate(full=True)
    metadata = dict(table.schema.metadata or {})
    kind = metadata.pop(_KIND, None)
    return _from_table(kind, table.replace_schema_metadata(metadata or None))


def _to_table(value: Any) -> tuple[bytes, Any] | None:
    kind = type(value)
    if kind is pa.Table or kind is pa.RecordBatch:
        if value.num_columns == 0 and value.num_rows:
            return None
        table = value if kind is pa.Table else pa.Table.from_batches([value])
        return (b"table" if kind is pa.Table else b"record_batch"), table
    if kind is pa.ChunkedArray:
        return b"chunked_array", pa.table([value], names=[_COLUMN])
    if isinstance(value, pa.Array):
        return b"array", pa.table([value], names=[_COLUMN])
    if kind.__module__.partition(".")[0] == "pandas" and kind.__name__ in ("DataFrame", "Series"):
        return _pandas_to_table(value)
    return None


def _from_table(kind: bytes | None, table: Any) -> Any:
    if kind == b"table":
        return table
    if kind == b"record_batch":
        batches = table.combine_chunks().to_batches()
        return batches[0] if batches else pa.RecordBatch.from_pylist([], schema=table.schema)
    if kind == b"chunked_array":
        return table.column(0)
    if kind == b"array":
        column = table.column(0).combine_chunks()
        return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if kind in _PANDAS_KINDS:
        return _table_to_pandas(kind, table)
    raise ValueError(f"unknown kind of table {kind!r}")


def _pandas_to_table(value: Any) -> tuple[bytes, Any] | None:
    import pandas as pd

    try:
        if isinstance(value, pd.Series):
            kind = b"series"
            frame = value.to_frame(name=_COLUMN)
            # The column's own name may be anything; only plain strings and none are kept.
            if value.name is not None and type(value.name) is not str:
                return None
            table = pa.Table.from_pandas(frame)
            name = {b"ray_durable.name": value.name.encode()} if value.name is not None else {}
            table = table.replace_schema_metadata({**table.schema.metadata, **name})
        else:
            kind = b"dataframe"
            table = pa.Table.from_pandas(value)
    except Exception:
        # from_pandas refuses mixed columns, duplicate names and more, each with an exception of its own.
        return None
    return kind, table


def _table_to_pandas(kind: bytes, table: Any) -> Any:
    frame = table.to_pandas()
    if kind == b"dataframe":
        return frame
    name = (table.schema.metadata or {}).get(b"ray_durable.name")
    series = frame[_COLUMN].rename(name.decode() if name is not None else None)
    series.attrs = frame.attrs
    return series


def _empty_batch(table: Any) -> Any:
    """The batch of a table without rows: written all the same, since it brings the dictionaries of categories."""
    columns = [column.chunk(0) if column.num_chunks else pa.array([], column.type) for column in table.columns]
    return pa.RecordBatch.from_arrays(columns, schema=table.schema)


def _pandas_survives(one: Any, data: bytes) -> bool:
    """Whether a frame or series is read back from `data` as it was."""
    import pandas as pd

    try:
        other = _read(data)
        if isinstance(one, pd.DataFrame):
            pd.testing.assert_frame_equal(one, other, check_exact=True)
            pairs = [(one[name], other[name]) for name in one.columns]
        else:
            pd.testing.assert_series_equal(one, other, check_exact=True)
            pairs = [(one, other)]
    except Exception:
        # An AssertionError if they differ; other exceptions if their values cannot be compared.
        return False
    # An object column may hold 1 and come back with 1.0: compare its Python objects one by one.
    objects = [(left, right) for left, right in [*pairs, (one.index, other.index)] if left.dtype == object]
    return same(one.attrs, other.attrs) and all(same(left.tolist(), right.tolist()) for left, right in objects)
