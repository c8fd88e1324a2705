"""Tables, columns and arrays."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from ray_durable.codec import Codec, Trust
from ray_durable.errors import PayloadTooLargeError, SerializationError
from ray_durable.payload import Payload

WHERE = "result of activity 'load'"
PUBLIC = Codec()
PRIVATE = Codec(trust=Trust.PRIVATE_LOCAL_ROOT)
ROOT = Path(__file__).parents[2]


def round_trip(value: Any, encoding: str, annotation: Any = Any) -> Any:
    payload = PUBLIC.encode(value, annotation, where=WHERE)
    assert payload.encoding == encoding
    return PUBLIC.decode(payload, annotation, where=WHERE)


@given(
    npst.arrays(
        dtype=npst.boolean_dtypes()
        | npst.integer_dtypes(endianness="?")
        | npst.floating_dtypes(endianness="?")
        | npst.complex_number_dtypes()
        | npst.datetime64_dtypes()
        | npst.timedelta64_dtypes()
        | npst.byte_string_dtypes()
        | npst.unicode_string_dtypes()
        | npst.array_dtypes(),
        shape=npst.array_shapes(min_dims=0, min_side=0, max_side=3),
    )
)
def test_numpy_arrays_come_back_bit_for_bit(array: np.ndarray[Any, Any]) -> None:
    """Any dtype without objects, structured ones included, any shape."""
    restored = round_trip(array, "ndarray")
    assert (restored.dtype, restored.shape) == (array.dtype, array.shape)
    assert restored.tobytes() == array.tobytes()


def test_memory_order_is_kept_and_arrays_are_writable() -> None:
    """A column-major array stays one; the receiver may write into its copy."""
    array = np.asfortranarray(np.arange(6).reshape(2, 3))
    restored = round_trip(array, "ndarray", np.ndarray)
    assert restored.flags.f_contiguous
    assert (restored == array).all()
    restored[0, 0] = 9


@pytest.mark.parametrize("scalar", [np.float64(1.5), np.int8(3), np.bool_(True), np.str_("x"), np.datetime64("2024")])
def test_numpy_scalars_keep_their_type(scalar: Any) -> None:
    """An activity annotated float that returns numpy's float gives exactly that."""
    restored = round_trip(scalar, "ndarray", float)
    assert (type(restored), restored) == (type(scalar), scalar)


@pytest.mark.parametrize(
    "array",
    [
        np.array([object()]),
        np.zeros(1, dtype=[("a", "O")]),
        np.ma.masked_array([1], [True]),
        np.array([[1]]).view(np.matrix),
    ],
    ids=["objects", "object field", "masked", "matrix"],
)
def test_arrays_that_raw_bytes_cannot_hold_are_refused_without_trust(array: Any) -> None:
    """Objects are pointers, subclasses more than their bytes."""
    with pytest.raises(SerializationError):
        PUBLIC.encode(array, where=WHERE)


@pytest.mark.parametrize(
    "head",
    [
        {"dtype": "O", "shape": [1], "order": "C"},
        {"dtype": "<i8", "shape": [2], "order": "C"},
        {"dtype": "<i8", "shape": [-1], "order": "C"},
        {"dtype": "<i8", "shape": [1], "order": "K"},
        {"dtype": "nonsense", "shape": [1], "order": "C"},
        {"shape": [1]},
        [],
        {"dtype": [["a", "O"]], "shape": [1], "order": "C"},
        {"dtype": 5, "shape": 1, "order": "C"},
    ],
    ids=str,
)
def test_damaged_or_hostile_arrays_are_refused(head: Any) -> None:
    """Sizes and dtypes are checked before memory is made of the bytes."""
    with pytest.raises(SerializationError):
        PUBLIC.decode(Payload.of("ndarray", json.dumps(head).encode() + b"\n" + bytes(8)), where=WHERE)


TABLE = pa.table({"a": [1, None, 3], "b": ["x", "y", None]}, metadata={"source": "census"})


@pytest.mark.parametrize(
    "value",
    [
        TABLE,
        TABLE.slice(1, 1),
        pa.table({}),
        TABLE.to_batches()[0],
        TABLE.to_batches()[0].slice(3),
        pa.array([1, 2, None]),
        pa.array([], pa.string()),
        pa.array([[1], None, [2, 3]]).slice(1),
        pa.array(["a", "b", "a"]).dictionary_encode(),
        pa.chunked_array([[1, 2], [3]]),
        pa.array([{"a": 1, "b": None}]),
    ],
    ids=lambda value: f"{type(value).__name__}-{len(value)}",
)
def test_arrow_values_come_back_as_they_were(value: Any) -> None:
    """Tables, batches and arrays keep class, schema, metadata and values."""
    restored = round_trip(value, "arrow")
    assert type(restored) is type(value)
    assert restored.equals(value)
    if hasattr(value, "schema"):
        assert restored.schema.equals(value.schema, check_metadata=True)


FRAME = pd.DataFrame(
    {
        "n": [1, 2],
        "x": [0.5, None],
        "s": ["a", None],
        "t": pd.Series([pd.Timestamp("2024-01-01", tz="UTC"), pd.NaT]),
        "c": pd.Categorical(["u", "v"]),
    },
    index=pd.Index([10, 20], name="key"),
)


@pytest.mark.parametrize(
    "frame", [FRAME, FRAME.reset_index(), FRAME[[]], FRAME.head(0)], ids=["key", "range", "no columns", "no rows"]
)
def test_data_frames_come_back_as_they_were(frame: pd.DataFrame) -> None:
    """Columns, dtypes and index survive."""
    pd.testing.assert_frame_equal(round_trip(frame, "arrow", pd.DataFrame), frame)


@pytest.mark.parametrize("name", [None, "n", "values"])
def test_series_come_back_as_they_were(name: str | None) -> None:
    """The name may be absent, or the one that the stored column has."""
    series = FRAME["n"].rename(name)
    pd.testing.assert_series_equal(round_trip(series, "arrow"), series)


@pytest.mark.parametrize(
    "value",
    [
        pd.DataFrame({"mixed": [1, "a"]}),
        pd.DataFrame({"mixed": pd.Series([1, 2.0], dtype=object)}),
        pd.DataFrame([[1, 2]], columns=["a", "a"]),
        pd.DataFrame({"tuples": [(1, 2)]}),
        pd.Series([1], name=("a", "b")),
    ],
    ids=["mixed", "numbers", "duplicate names", "tuples", "tuple name"],
)
def test_frames_that_arrow_would_change_need_trust(value: Any) -> None:
    """Object columns are not silently made something else."""
    with pytest.raises(SerializationError):
        PUBLIC.encode(value, where=WHERE)
    payload = PRIVATE.encode(value, where=WHERE)
    assert payload.encoding == "pickle"
    assert PRIVATE.decode(payload, where=WHERE).equals(value)


def test_damaged_tables_are_refused() -> None:
    """Truncation and flipped bytes are our errors; what still reads is a table."""
    good = PUBLIC.encode(TABLE, where=WHERE).bytes
    for position in range(0, len(good), 7):
        flipped = bytearray(good)
        flipped[position] ^= 0xFF
        for data in (good[:position], bytes(flipped)):
            with contextlib.suppress(SerializationError, PayloadTooLargeError):
                assert isinstance(PUBLIC.decode(Payload.of("arrow", data), where=WHERE), pa.Table)


EXTENSION_SCRIPT = """
import sys
import pyarrow as pa
from ray_durable.codec import Codec
from ray_durable.errors import SerializationError
from ray_durable.payload import Payload

class Evil(pa.ExtensionType):
    loaded = False
    def __init__(self): super().__init__(pa.int64(), "evil")
    def __arrow_ext_serialize__(self): return b""
    @classmethod
    def __arrow_ext_deserialize__(cls, storage, serialized):
        cls.loaded = True
        return cls()

pa.register_extension_type(Evil())
table = pa.table({"a": pa.ExtensionArray.from_storage(Evil(), pa.array([1]))}).replace_schema_metadata({
    "ray_durable.kind": "table"})
sink = pa.BufferOutputStream()
with pa.ipc.new_stream(sink, table.schema) as writer:
    writer.write_table(table)
data = sink.getvalue().to_pybytes()
try:
    Codec().decode(Payload.of("arrow", data), where="x")
except SerializationError as error:
    assert "extension types" in str(error)
    assert not Evil.loaded
else:
    sys.exit("was read")
try:
    Codec().encode(table, where="x")
except SerializationError:
    pa.ipc.open_stream(data).read_all()
    assert Evil.loaded, "the proof needs Arrow to run the type's code"
else:
    sys.exit("was written")
"""


def test_extension_types_run_no_code_without_trust() -> None:
    """Arrow calls a registered type's own code for a schema that names it; such streams are refused before that."""
    subprocess.run([sys.executable, "-c", EXTENSION_SCRIPT], cwd=ROOT, check=True)


@given(st.binary(max_size=200))
def test_junk_is_no_table(junk: bytes) -> None:
    """Arbitrary bytes are refused with our error."""
    with pytest.raises(SerializationError):
        PUBLIC.decode(Payload.of("arrow", junk), where=WHERE)
