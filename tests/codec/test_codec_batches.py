"""Many values in one payload: columns, ranges, and what a dispatcher may do without decoding."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_durable.codec import Codec, Limits, Trust, batch_length, concat_batches, open_batch, slice_batch
from ray_durable.errors import PayloadTooLargeError, SerializationError
from ray_durable.payload import Payload
from tests.support.ids import named

WHERE = "items of activity 'work'"
PUBLIC = Codec()
PRIVATE = Codec(trust=Trust.PRIVATE_LOCAL_ROOT)


@dataclasses.dataclass(frozen=True)
class Job:
    path: Path
    size: int = 0


def round_trip(values: list[Any], annotation: Any = Any, codec: Codec = PUBLIC) -> list[Any]:
    return codec.decode_batch(codec.encode_batch(values, annotation, where=WHERE), annotation, where=WHERE)


@given(
    st.one_of(
        st.lists(st.integers()),
        st.lists(st.floats(allow_nan=False)),
        st.lists(st.text()),
        st.lists(st.booleans()),
        st.lists(st.none()),
        st.lists(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()),
        st.lists(st.dictionaries(st.text(), st.integers())),
    )
)
def test_plain_values_come_back_exactly(values: list[Any]) -> None:
    """Columns of one type, mixed ones and empty ones survive with their Python types."""
    decoded = round_trip(values)
    assert decoded == values
    assert list(map(type, decoded)) == list(map(type, values))


@pytest.mark.parametrize(
    ("values", "annotation", "items"),
    [
        ([1, 2], int, "native"),
        ([1.5, -0.0], float, "native"),
        (["a", ""], str, "native"),
        ([True], bool, "native"),
        ([None, None], None, "native"),
        ([1, 2**64], int, "json"),
        ([1, True], Any, "json"),
        ([Job(Path("a")), Job(Path("b"), 2)], Job, "json"),
        ([1, 2.0], float, "payload"),
        (["caf\udce9"], str, "payload"),
        ([1.0, math.inf, None], float | None, "payload"),
    ],
    ids=named,
)
def test_each_kind_of_values_has_its_column(values: list[Any], annotation: Any, items: str) -> None:
    """Arrow's own type where all values have it, JSON texts next, single payloads last; no value changes."""
    payload = PUBLIC.encode_batch(values, annotation, where=WHERE)
    assert open_batch(payload).items == items
    decoded = PUBLIC.decode_batch(payload, annotation, where=WHERE)
    assert decoded == values
    assert list(map(type, decoded)) == list(map(type, values))


def test_items_without_an_annotation_are_converted_by_the_readers() -> None:
    """As with single values: who calls by name writes plain items, the function's types are applied on reading."""
    named = PUBLIC.encode_batch(["a", "b"], where=WHERE)
    assert PUBLIC.decode_batch(named, Path, where=WHERE) == [Path("a"), Path("b")]
    with pytest.raises(SerializationError, match="expected list"):
        PUBLIC.decode_batch(named, int, where=WHERE)


def test_pickled_items_need_trust_both_ways() -> None:
    """The refusal names the item; nothing is unpickled without trust."""
    values = [1, (1, 2)]
    with pytest.raises(SerializationError, match="item 1 of items of activity 'work'"):
        PUBLIC.encode_batch(values, where=WHERE)
    payload = PRIVATE.encode_batch(values, where=WHERE)
    assert PRIVATE.decode_batch(payload, where=WHERE) == values
    with pytest.raises(SerializationError, match="refused unread"):
        PUBLIC.decode_batch(payload, where=WHERE)


@given(st.lists(st.integers() | st.text(), min_size=1, max_size=20), st.data())
def test_any_range_of_a_batch_is_a_batch(values: list[Any], data: st.DataObject) -> None:
    """Slices, selections and joined slices hold the items that the list would."""
    payload = PUBLIC.encode_batch(values, where=WHERE)
    start = data.draw(st.integers(0, len(values)))
    stop = data.draw(st.integers(start, len(values)))
    chosen = data.draw(st.lists(st.integers(0, len(values) - 1)))
    opened = open_batch(payload)
    assert len(opened) == batch_length(payload) == len(values)
    assert PUBLIC.decode_batch(slice_batch(payload, start, stop), where=WHERE) == values[start:stop]
    assert PUBLIC.decode_batch(opened.take(chosen), where=WHERE) == [values[index] for index in chosen]
    halves = [opened.slice(0, start), opened.slice(start, len(values))]
    (joined,) = concat_batches(halves)
    assert PUBLIC.decode_batch(joined, where=WHERE) == values


def test_batches_of_different_columns_stay_apart_when_joined() -> None:
    """Order is kept; only neighbours of one form are joined."""
    groups: list[list[Any]] = [[1], [2, 3], ["a"], [4]]
    joined = concat_batches([PUBLIC.encode_batch(group, where=WHERE) for group in groups])
    assert [PUBLIC.decode_batch(payload, where=WHERE) for payload in joined] == [[1, 2, 3], ["a"], [4]]


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (2, 1), (0, 4)])
def test_a_range_outside_the_batch_is_an_index_error(start: int, stop: int) -> None:
    """A wrong range never gives other items."""
    opened = open_batch(PUBLIC.encode_batch([1, 2, 3], where=WHERE))
    with pytest.raises(IndexError):
        opened.slice(start, stop)
    with pytest.raises(IndexError):
        opened.take([0, 3])


def test_a_slice_carries_its_own_items_only() -> None:
    """Tasks receive what they work on, not the whole column."""
    opened = open_batch(PUBLIC.encode_batch([f"photos/{index}.jpg" for index in range(10_000)], where=WHERE))
    assert opened.slice(5_000, 5_010).size < 2_000


def test_large_columns_are_compact() -> None:
    """A million ints take at most 8 bytes each, in order far less."""
    assert PUBLIC.encode_batch(list(range(1_000_000)), int, where=WHERE).size <= 2_000_000


def test_what_compresses_beyond_the_readers_cap_is_stored_uncompressed() -> None:
    """The writer never produces what the reader takes for a bomb."""
    text = "x" * 70_000_000
    payload = PUBLIC.encode_batch([text], str, where=WHERE)
    assert PUBLIC.decode_batch(payload, str, where=WHERE) == [text]


def test_a_decompression_bomb_is_refused_before_it_grows() -> None:
    """A few kilobytes that claim hundreds of megabytes are refused by what they declare."""
    bomb = PUBLIC.encode_batch([0] * 4_000_000, int, where=WHERE)
    assert bomb.size < 20_000
    strict = Codec(limits=Limits(expansion_free_bytes=1_000_000))
    with pytest.raises(PayloadTooLargeError) as caught:
        strict.decode_batch(bomb, int, where=WHERE)
    assert caught.value.size_bytes >= 32_000_000


def test_too_many_items_are_refused() -> None:
    """Columns of nulls have no bytes, so the count has a limit of its own, in both directions."""
    strict = Codec(limits=Limits(batch_items_max=10))
    with pytest.raises(PayloadTooLargeError):
        strict.encode_batch([None] * 11, where=WHERE)
    with pytest.raises(PayloadTooLargeError, match="over the limit of 10"):
        strict.decode_batch(PUBLIC.encode_batch([None] * 11, where=WHERE), where=WHERE)


@given(st.binary(max_size=64), st.integers(0, 400), st.integers(0, 255))
def test_damaged_batches_are_refused(junk: bytes, position: int, byte: int) -> None:
    """Junk, truncation and flipped bytes end in our errors or in values, never in another exception."""
    good = PUBLIC.encode_batch(["a", "b"], where=WHERE).bytes
    flipped = bytearray(good)
    flipped[position % len(good)] = byte
    for data in (junk, good[: position % len(good)], bytes(flipped)):
        with contextlib.suppress(SerializationError, PayloadTooLargeError):
            assert isinstance(PUBLIC.decode_batch(Payload.of("batch", data), where=WHERE), list)


def test_another_encoding_is_no_batch() -> None:
    """A single value is not opened as a batch."""
    payload = PUBLIC.encode(1, where=WHERE)
    for use in (open_batch, batch_length):
        with pytest.raises(SerializationError, match="not a batch"):
            use(payload)


def test_items_that_hold_several_values_are_refused() -> None:
    """Joined JSON texts cannot smuggle in a further item."""
    from ray_durable.codec.batch import item_batch

    smuggled = item_batch("json", [b"1,2", b"3"]).to_payload()
    with pytest.raises(SerializationError, match="2 items hold 3 values"):
        PUBLIC.decode_batch(smuggled, where=WHERE)
    # The count alone would not notice one value spread over two items.
    balanced = item_batch("json", [b"1,2", b"3,[4", b"5]"]).to_payload()
    assert len(open_batch(balanced)) == 3


def test_batches_do_not_load_pandas() -> None:
    """Each process of a map makes and reads batches: none of them pays for importing pandas, which takes long."""
    script = """
import sys
from ray_durable.codec import Codec, concat_batches, slice_batch
codec = Codec()
for values in ([1, 2], [1.5], ["a"], [True], [None], [1, "b"], [{"a": 1}], []):
    batch = codec.encode_batch(values, where="")
    assert codec.decode_batch(concat_batches([slice_batch(batch, 0, len(values))])[0], where="") == values
sys.exit("pandas" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", script], check=False, timeout=60).returncode == 0
