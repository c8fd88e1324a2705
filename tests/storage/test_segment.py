"""Segments: what is encoded is decoded, and nothing else is."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_durable.errors import CorruptLogError, PayloadTooLargeError
from ray_durable.storage import Segment, SegmentHeader, decode_segment, encode_segment
from ray_durable.storage.segment import SEGMENT_BYTES_MAX


def joined(text: str) -> str:
    """`text` with every surrogate pair as the one character that it means, which is how JSON reads it."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")


any_text = st.text(st.characters() | st.characters(categories=["Cs"]), max_size=20).map(joined)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | any_text,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text('abcé\n"\udc80', max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)
numbers = st.integers(0, 2**53)
digests = st.text("0123456789abcdef", min_size=64, max_size=64)
event_lines = st.lists(st.binary(max_size=40).map(lambda data: data.replace(b"\n", b"")), min_size=1, max_size=5)


@st.composite
def segments(draw: st.DrawFn) -> Segment:
    """Any segment; its digest is not set."""
    lines = draw(event_lines)
    header = SegmentHeader(
        run=draw(any_text),
        instance=draw(any_text),
        execution=draw(numbers),
        seq=draw(numbers),
        epoch=draw(numbers),
        hub_epoch=draw(numbers),
        nonce=draw(any_text),
        first=draw(numbers),
        count=len(lines),
        written_us=draw(numbers),
        status=draw(st.dictionaries(st.text("abc", max_size=3), json_values, max_size=3)),
        claim=draw(st.booleans()),
        previous=draw(st.none() | digests),
    )
    sections = tuple(draw(st.lists(st.binary(max_size=60), max_size=3)))
    return Segment(key="a/key", header=header, lines=tuple(lines), sections=sections, digest="")


def sample() -> bytes:
    """A small segment with text, newlines in a section, and all fields."""
    header = SegmentHeader(
        run="0123456789abcdef0123456789abcdef",
        instance="Größe",
        execution=1,
        seq=7,
        epoch=2,
        hub_epoch=3,
        nonce="0123456789abcdef",
        first=9,
        count=2,
        written_us=1,
        status={"custom_status": 'a "text"\n'},
        claim=True,
        previous="f" * 64,
    )
    return encode_segment("a/key", header, [b'{"n":9}', b'{"n":10}'], [b"\n\n\x00\xff", b""])[0]


class TestRoundTrip:
    """Encoding and decoding."""

    @given(segments())
    def test_what_was_encoded_is_decoded(self, segment: Segment) -> None:
        """Header, lines and sections come back, and the writer knew what readers will see."""
        data, written = encode_segment("a/key", segment.header, segment.lines, segment.sections)
        read = decode_segment("a/key", data)
        assert read == written == dataclasses.replace(segment, digest=read.digest)

    @given(segments(), segments())
    def test_a_digest_names_one_segment(self, one: Segment, other: Segment) -> None:
        """Different bytes, different names; equal bytes, equal names."""
        one_data, one_written = encode_segment("a", one.header, one.lines, one.sections)
        other_data, other_written = encode_segment("b", other.header, other.lines, other.sections)
        assert (one_data == other_data) == (one_written.digest == other_written.digest)

    def test_a_person_can_read_it(self) -> None:
        """Without sections every line is JSON, the header first, in the text's own characters."""
        header = decode_segment("k", sample()).header
        data, _ = encode_segment("k", header, [b'{"n":9}', b'{"n":10}'], [])
        head, *lines = data.decode().splitlines()
        assert next(iter(json.loads(head))) == "v"
        assert list(json.loads(head))[-1] == "sha256"
        assert "Größe" in head
        assert [json.loads(line)["n"] for line in lines] == [9, 10]

    def test_fields_of_later_versions_are_ignored(self) -> None:
        """A header may gain fields within a format version."""
        assert decode_segment("k", resealed(sample(), {"mac": "later", "new": {"x": 1}})).header.instance == "Größe"


class TestDamage:
    """Nothing that is not a whole segment is taken for one."""

    def test_every_flipped_bit_is_refused(self) -> None:
        """All bits of all bytes; the error names the object."""
        data = sample()
        for position in range(len(data)):
            for bit in range(8):
                damaged = bytearray(data)
                damaged[position] ^= 1 << bit
                with pytest.raises(CorruptLogError, match=r"a/key is damaged") as refused:
                    decode_segment("a/key", bytes(damaged))
                assert refused.value.key == "a/key"

    def test_every_truncation_and_extension_is_refused(self) -> None:
        """A part of an object, or an object with something behind it."""
        data = sample()
        for size in range(len(data)):
            with pytest.raises(CorruptLogError):
                decode_segment("a/key", data[:size])
        for more in (b"\n", b"\x00", b'{"n":11}\n', data):
            with pytest.raises(CorruptLogError):
                decode_segment("a/key", data + more)

    @given(st.binary(max_size=300))
    def test_other_bytes_are_refused(self, data: bytes) -> None:
        """Never another error."""
        with pytest.raises(CorruptLogError):
            decode_segment("a/key", data)

    @pytest.mark.parametrize(
        "change",
        [
            {"sections": [5, 0]},
            {"sections": [-1, 5]},
            {"sections": [10_000]},
            {"sections": "4"},
            {"sections": None},
            {"count": 1},
            {"count": 3},
            {"count": 0},
            {"count": "2"},
            {"seq": "7"},
            {"seq": -1},
            {"epoch": 1.5},
            {"epoch": True},
            {"run": 7},
            {"instance": None},
            {"status": []},
        ],
        ids=str,
    )
    def test_a_checksum_does_not_make_sense_of_nonsense(self, change: dict[str, Any]) -> None:
        """Another program's error is refused as damage is."""
        with pytest.raises(CorruptLogError):
            decode_segment("a/key", resealed(sample(), change))

    @pytest.mark.parametrize("name", ["v", "run", "seq", "nonce", "first", "count", "status", "sections", "written_us"])
    def test_a_missing_field_is_refused(self, name: str) -> None:
        """None is guessed."""
        with pytest.raises(CorruptLogError):
            decode_segment("a/key", resealed(sample(), {}, without=name))

    def test_a_later_format_is_refused_with_advice(self) -> None:
        """The data is not called damaged beyond repair: an upgrade reads it."""
        with pytest.raises(CorruptLogError, match=r"format version is 2.*upgrade"):
            decode_segment("a/key", resealed(sample(), {"v": 2}))


class TestLimits:
    """What may be written."""

    def test_a_segment_over_the_limit_is_refused(self) -> None:
        """One byte too many; the error has the sizes and says what to do."""
        header = dataclasses.replace(decode_segment("k", sample()).header, count=1)
        size = len(encode_segment("k", header, [b"{}"], [b""])[0])
        # The length of the section takes seven digits more than that of the empty one.
        room = SEGMENT_BYTES_MAX - size - 7
        data, _ = encode_segment("k", header, [b"{}"], [bytes(room)])
        assert len(data) == SEGMENT_BYTES_MAX
        with pytest.raises(PayloadTooLargeError, match=r"ctx\.map") as refused:
            encode_segment("k", header, [b"{}"], [bytes(room + 1)])
        assert (refused.value.size_bytes, refused.value.limit_bytes) == (SEGMENT_BYTES_MAX + 1, SEGMENT_BYTES_MAX)

    @pytest.mark.parametrize("lines", [[], [b"{}"], [b"{}", b"{}\n"], [b"{}", b"{}", b"{}"]])
    def test_an_event_is_one_line_and_all_are_counted(self, lines: list[bytes]) -> None:
        """A programmer's mistake is found before it is written."""
        header = decode_segment("k", sample()).header
        assert header.count == 2
        with pytest.raises(AssertionError):
            encode_segment("k", header, lines, [])


def resealed(data: bytes, change: dict[str, Any], *, without: str | None = None) -> bytes:
    """The segment with other header fields and a right checksum, as another program may write it."""
    head, _, body = data.partition(b"\n")
    fields = json.loads(head) | change
    fields.pop("sha256")
    fields.pop(without, None)
    start = json.dumps(fields, ensure_ascii=False, separators=(",", ":"))[:-1].encode() + b',"sha256":"'
    digest = hashlib.sha256(start + b"0" * 64 + b'"}\n' + body).hexdigest().encode()
    return start + digest + b'"}\n' + body
