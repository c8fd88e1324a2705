"""Single values: what goes to which encoding, and that it comes back as it was."""

from __future__ import annotations

import dataclasses
import datetime
import enum
import json
import math
import typing
import uuid
import zoneinfo
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from ray_durable.codec import Codec, Limits, Trust
from ray_durable.errors import PayloadTooLargeError, SerializationError
from ray_durable.payload import Payload
from tests.support.ids import named

WHERE = "result of activity 'score'"
PUBLIC = Codec()
PRIVATE = Codec(trust=Trust.PRIVATE_LOCAL_ROOT)


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1


class Point(typing.NamedTuple):
    x: int
    y: float


@dataclasses.dataclass
class Reading:
    at: datetime.datetime
    value: float
    tags: set[str] = dataclasses.field(default_factory=set)
    raw: bytes = b""


class Order(BaseModel):
    number: int = Field(alias="orderNumber", validation_alias="nr")
    total: float = 0.0
    parts: list[Reading] = []


class RushOrder(Order):
    days: int = 1


class Opaque:
    """A type that neither JSON nor pydantic knows."""

    def __init__(self, value: int) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Opaque) and other.value == self.value

    __hash__ = None  # type: ignore[assignment]


NOON = datetime.datetime(2024, 5, 1, 12, tzinfo=datetime.UTC)

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda items: st.lists(items, max_size=4) | st.dictionaries(st.text(), items, max_size=4),
    max_leaves=12,
)
TYPED: list[tuple[Any, st.SearchStrategy[Any]]] = [
    (int, st.integers()),
    (float, st.floats()),
    (str, st.text()),
    (bytes, st.binary()),
    (bool, st.booleans()),
    (int | None, st.none() | st.integers()),
    (int | float | str, st.integers() | st.floats() | st.text()),
    (list[float], st.lists(st.floats())),
    (tuple[int, str], st.tuples(st.integers(), st.text())),
    (tuple[int, ...], st.lists(st.integers()).map(tuple)),
    (dict[str, list[int]], st.dictionaries(st.text(), st.lists(st.integers()))),
    (dict[int, float], st.dictionaries(st.integers(-(2**63), 2**63 - 1), st.floats())),
    (set[str], st.sets(st.text())),
    (frozenset[int], st.frozensets(st.integers())),
    (
        datetime.datetime,
        st.datetimes(timezones=st.just(datetime.UTC)) | st.datetimes().map(lambda t: t.replace(fold=0)),
    ),
    (datetime.date, st.dates()),
    (datetime.timedelta, st.timedeltas()),
    (uuid.UUID, st.uuids()),
    (Decimal, st.decimals(allow_nan=False, allow_infinity=False)),
    (Path, st.just(Path("photos/ä.jpg"))),
    (Color, st.sampled_from(Color)),
    (Level, st.sampled_from(Level)),
    (Literal["a", "b"], st.sampled_from(["a", "b"])),
    (Point, st.builds(Point, x=st.integers(), y=st.floats())),
    (Reading, st.builds(Reading, at=st.just(NOON), value=st.floats(), tags=st.sets(st.text()), raw=st.binary())),
]


def exactly(one: Any, other: Any) -> bool:
    """Equality that tells 1 from True and 1.0, -0.0 from 0.0, and takes NaN for itself."""
    if isinstance(one, float) and isinstance(other, float):
        same_sign = math.copysign(1, one) == math.copysign(1, other)
        return (math.isnan(one) and math.isnan(other)) or (one == other and same_sign)
    if type(one) is not type(other):
        return False
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(exactly, one, other))
    if isinstance(one, dict):
        return exactly(list(one.items()), list(other.items()))
    if dataclasses.is_dataclass(one):
        return exactly(vars(one), vars(other))
    return bool(one == other)


def round_trip(value: Any, annotation: Any, codec: Codec = PUBLIC) -> Any:
    return codec.decode(codec.encode(value, annotation, where=WHERE), annotation, where=WHERE)


@given(plain)
def test_plain_values_come_back_exactly_without_an_annotation(value: Any) -> None:
    """None, bool, int, float, str, list and dict survive, NaN, -0.0 and huge ints among them."""
    assert exactly(round_trip(value, Any), value)


@pytest.mark.parametrize(("annotation", "values"), TYPED, ids=lambda case: str(case)[:40])
def test_typed_values_come_back_exactly(annotation: Any, values: st.SearchStrategy[Any]) -> None:
    """Every annotated type survives JSON without any trust."""

    @given(values)
    def check(value: Any) -> None:
        payload = PUBLIC.encode(value, annotation, where=WHERE)
        assert payload.encoding in ("json", "json-nonfinite", "json-as-is")
        assert exactly(PUBLIC.decode(payload, annotation, where=WHERE), value)

    check()


@given(plain, st.sampled_from([annotation for annotation, _ in TYPED]))
def test_a_value_that_does_not_match_its_annotation_is_not_changed(value: Any, annotation: Any) -> None:
    """An int for a float stays an int, a dict for a dataclass a dict: as in a plain call."""
    assert exactly(round_trip(value, annotation), value)


def test_models_survive_whatever_their_aliases() -> None:
    """Aliases of input and output differ; stored fields go by their names."""
    order = Order.model_validate({"nr": 7, "parts": [Reading(at=NOON, value=1.5)]})
    payload = PUBLIC.encode(order, Order, where=WHERE)
    assert payload.encoding == "json"
    assert PUBLIC.decode(payload, Order, where=WHERE) == order


def test_input_from_outside_may_use_aliases() -> None:
    """JSON that a person or another program wrote is read by the aliases that the model declares."""
    assert PUBLIC.decode(Payload.of("json", b'{"nr":7}'), Order, where=WHERE) == Order.model_validate({"nr": 7})


def test_a_models_nan_survives_although_pydantic_would_write_null() -> None:
    """The model's own settings do not lose a float."""
    payload = PUBLIC.encode(Order.model_validate({"nr": 1, "total": math.nan}), Order, where=WHERE)
    assert payload.encoding == "json-nonfinite"
    assert math.isnan(PUBLIC.decode(payload, Order, where=WHERE).total)


def test_json_is_compact_standard_and_one_line() -> None:
    """The text can be embedded into a line of the log and read with any JSON parser."""
    payload = PUBLIC.encode({"b": [1, "ä\n"], "a": None}, where=WHERE)
    assert payload.encoding == "json"
    assert payload.bytes == '{"b":[1,"ä\\n"],"a":null}'.encode()
    assert json.loads(payload.bytes) == {"b": [1, "ä\n"], "a": None}


@pytest.mark.parametrize("value", [math.nan, math.inf, [1.0, -math.inf]])
def test_what_standard_json_lacks_is_not_called_json(value: Any) -> None:
    """NaN and infinities have an encoding of their own, so that the log's lines stay JSON."""
    assert PUBLIC.encode(value, where=WHERE).encoding == "json-nonfinite"


def test_words_like_nan_in_text_are_ordinary_text() -> None:
    """The search for constants is not fooled by strings."""
    assert PUBLIC.encode(["NaN", "Infinity"], where=WHERE).encoding == "json"


@pytest.mark.parametrize("text", ["\ud800", "caf\udce9.py", "\ud83d\ude00"])
def test_lone_surrogates_survive_or_are_refused(text: str) -> None:
    """File names that are not UTF-8 survive; a pair of lone halves, which JSON would join, is refused."""
    if text == "\ud83d\ude00":
        with pytest.raises(SerializationError):
            PUBLIC.encode(text, str, where=WHERE)
    else:
        assert round_trip(text, str) == text
    assert round_trip(text, str, PRIVATE) == text


def test_sets_are_written_in_sorted_order() -> None:
    """Equal sets have equal bytes in every process, inside dataclasses too."""
    letters = [chr(97 + index) for index in range(20)]
    payload = PUBLIC.encode(Reading(at=NOON, value=0.0, tags=set(letters)), Reading, where=WHERE)
    assert json.loads(payload.bytes)["tags"] == letters


@pytest.mark.parametrize(
    ("value", "annotation"),
    [
        ((1, 2), Any),
        ({1: "a"}, Any),
        (Level.LOW, Any),
        (b"x", Any),
        ([{"a": (1,)}], list[dict[str, Any]]),
        (RushOrder.model_validate({"nr": 1}), Order),
        (datetime.datetime(2024, 5, 1, tzinfo=zoneinfo.ZoneInfo("Europe/Paris")), datetime.datetime),
        (datetime.datetime(2024, 10, 27, 2, 30, fold=1), datetime.datetime),
        (Opaque(3), Opaque),
    ],
    ids=named,
)
def test_what_json_would_change_needs_trust(value: Any, annotation: Any) -> None:
    """A tuple is not made a list, a subclass not its base, a zone not an offset: pickle if allowed, else an error."""
    with pytest.raises(SerializationError):
        PUBLIC.encode(value, annotation, where=WHERE)
    assert PRIVATE.encode(value, annotation, where=WHERE).encoding == "pickle"
    restored = round_trip(value, annotation, PRIVATE)
    assert (type(restored), restored) == (type(value), value)


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


def test_nesting_survives_up_to_the_cap_and_is_refused_beyond() -> None:
    """Whatever is written can be read again; deeper values say that they are too deep."""
    assert round_trip(nested(127), Any) == nested(127)
    with pytest.raises(SerializationError, match="nests deeper than 128"):
        PUBLIC.encode(nested(200), where=WHERE)


def test_a_value_that_contains_itself_is_refused_without_trust() -> None:
    """A cycle ends in an error, not in a recursion."""
    value: list[Any] = []
    value.append(value)
    with pytest.raises(SerializationError, match="contains itself"):
        PUBLIC.encode(value, where=WHERE)
    restored = round_trip(value, Any, PRIVATE)
    assert restored[0] is restored


def test_hostile_nesting_is_refused_on_reading() -> None:
    """Brackets without end are an error of the payload, not of the process."""
    for encoding in ("json", "json-as-is"):
        with pytest.raises(SerializationError):
            PUBLIC.decode(Payload.of(encoding, b"[" * 100_000), where=WHERE)


def test_an_int_beyond_measure_is_refused_clearly() -> None:
    """Python itself refuses to print ints of many thousand digits."""
    with pytest.raises(SerializationError, match="int"):
        PUBLIC.encode(10**5000, int, where=WHERE)
    assert round_trip(10**5000, int, PRIVATE) == 10**5000


def test_a_refusal_names_place_type_and_ways_out() -> None:
    """The error for a value that needs pickle tells what to do."""
    with pytest.raises(SerializationError) as caught:
        PUBLIC.encode(Opaque(1), where=WHERE)
    assert caught.value.where == WHERE
    assert caught.value.type_name.endswith("Opaque")
    for words in (WHERE, "Opaque", "annotate", "convert", "private local root", "signing key"):
        assert words in str(caught.value)


def test_what_cannot_be_pickled_either_is_a_clear_error() -> None:
    """A generator is named, with the reason and what to pass instead."""

    def numbers() -> Iterator[int]:
        yield 1

    with pytest.raises(SerializationError, match=r"generator.*cannot be pickled.*Pass what it was made from"):
        PRIVATE.encode(numbers(), where=WHERE)


@pytest.mark.parametrize(
    ("data", "annotation", "expected"),
    [
        (b'"12"', int, "expected int"),
        (b"1", bool, "expected bool"),
        (b'{"at":"2024-05-01T12:00:00Z"}', Reading, "value: Field required"),
        (b'["x"]', list[int], "0: Input should be a valid integer"),
        (b'"green"', Color, "'red' or 'blue'"),
        (b"{", Any, "expected"),
    ],
)
def test_json_of_the_wrong_shape_says_what_was_expected(data: bytes, annotation: Any, expected: str) -> None:
    """Decoding is strict: nothing is guessed, and the error names type and place."""
    with pytest.raises(SerializationError) as caught:
        PUBLIC.decode(Payload.of("json", data), annotation, where=WHERE)
    assert expected in str(caught.value)
    assert WHERE in str(caught.value)


def test_errors_do_not_repeat_the_data() -> None:
    """Payloads may be private: a mismatch shows the expected type only."""
    with pytest.raises(SerializationError) as caught:
        PUBLIC.decode(Payload.of("json", b'{"password":"hunter2"}'), int, where=WHERE)
    assert "hunter2" not in str(caught.value)


def test_an_unknown_encoding_is_refused() -> None:
    """A payload of a later version is not guessed at."""
    with pytest.raises(SerializationError, match="'avro' is not known"):
        PUBLIC.decode(Payload.of("avro", b"x"), where=WHERE)


def test_payloads_over_the_limit_are_refused_both_ways() -> None:
    """The error carries place, size and limit."""
    small = Codec(limits=Limits(payload_bytes_max=10))
    with pytest.raises(PayloadTooLargeError) as caught:
        small.encode("x" * 20, str, where=WHERE)
    assert (caught.value.where, caught.value.size_bytes, caught.value.limit_bytes) == (WHERE, 22, 10)
    with pytest.raises(PayloadTooLargeError):
        small.decode(PUBLIC.encode("x" * 20, where=WHERE), where=WHERE)
