"""Arguments of another type than their parameter's are refused, wherever the hub lies; compatible ones are not."""

from __future__ import annotations

import collections
import dataclasses
import datetime
import enum
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, NewType, Protocol, TypedDict, TypeVar

import numpy as np
import pydantic
import pytest

from ray_durable.authoring import Activity
from ray_durable.codec import CallSignature, Codec, Trust
from ray_durable.codec._fit import fits
from ray_durable.errors import SerializationError
from tests.support.ids import named

PRIVATE, SHARED = Codec(trust=Trust.PRIVATE_LOCAL_ROOT), Codec()
WHERE = "arguments of activity 'work'"

T = TypeVar("T")
UserId = NewType("UserId", int)


class Color(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    LOW = 1


@dataclasses.dataclass
class Job:
    path: Path


@dataclasses.dataclass
class NightJob(Job):
    hour: int = 3


class Model(pydantic.BaseModel):
    value: int


class Options(TypedDict):
    size: int


class Point(NamedTuple):
    x: int
    y: int


class Closes(Protocol):
    def close(self) -> None: ...


class Plain:
    """A class that pydantic does not know."""


FITTING: list[tuple[Any, Any]] = [
    (1, float),
    (True, int),
    (True, float),
    (1, complex),
    (Level.LOW, int),
    (np.int64(3), int),
    (np.float32(3), float),
    (np.bool_(True), bool),
    (bytearray(b"x"), bytes),
    (None, int | None),
    (1, str | float),
    (NightJob(Path("a")), Job),
    (Plain(), Plain),
    (object(), Any),
    (object(), object),
    (object(), T),
    (object(), Closes),
    (UserId(3), UserId),
    ("a", Literal["a", "b"]),
    (3, Annotated[float, "metres"]),
    ([1, 2.5], list[float]),
    ((1, "a"), tuple[int, str]),
    ((), tuple[int, ...]),
    ((1, 2), Sequence[int]),
    ("text", Sequence[str]),
    ({"a": 1}, Mapping[str, float]),
    ({"size": 3}, Options),
    (Point(1, 2), Point),
    (collections.defaultdict(int, a=1), dict[str, int]),
    (datetime.datetime(2026, 1, 1), datetime.date),
    (len, Callable[..., Any]),
    (int, type[int]),
    (np.arange(3), np.ndarray[Any, Any]),
    (Color.RED, Color),
]

OTHER: list[tuple[Any, Any, str, str]] = [
    ("1", int, "int", "str"),
    (1.5, int, "int", "float"),
    (1, bool, "bool", "int"),
    (1, str, "str", "int"),
    (None, int, "int", "NoneType"),
    ("red", Color, "Color", "str"),
    ("a", Path, "Path", "str"),
    ({"path": "a"}, Job, "Job", "dict"),
    ({"value": 1}, Model, "Model", "dict"),
    ([1, "2"], list[int], "list[int]", "list of int, str"),
    ((1, 2), list[int], "list[int]", "tuple of int"),
    ((1, 2, 3), tuple[int, int], "tuple[int, int]", "tuple of int"),
    ({"a": "b"}, dict[str, int], "dict[str, int]", "dict"),
    ("c", Literal["a", "b"], "Literal['a', 'b']", "str"),
    (True, Literal[1], "Literal[1]", "bool"),
    (b"x", str | None, "str | None", "bytes"),
    (Plain(), Job, "Job", "Plain"),
    (3, Plain, "Plain", "int"),
    ([1, 2], np.ndarray[Any, Any], "ndarray", "list of int"),
]


def taking(annotation: Any) -> CallSignature:
    """The signature of a function `work(thing: annotation)`."""

    def work(thing: Any) -> None: ...

    work.__annotations__["thing"] = annotation
    return Activity(work).calls


@pytest.mark.parametrize(("value", "annotation"), FITTING, ids=named)
def test_what_python_takes_for_the_type_is_passed(value: Any, annotation: Any) -> None:
    """Subclasses, numbers for wider ones, protocols, and whatever cannot be told."""
    assert fits(value, annotation)
    call = taking(annotation)
    args, _ = PRIVATE.decode_call(call, PRIVATE.encode_call(call, (value,), {}, where=WHERE), where=WHERE)
    assert len(args) == 1


@pytest.mark.parametrize(("value", "annotation", "expected", "given"), OTHER, ids=named)
@pytest.mark.parametrize("codec", [PRIVATE, SHARED], ids=["private", "shared"])
def test_another_type_is_refused_by_name(codec: Codec, value: Any, annotation: Any, expected: str, given: str) -> None:
    """The error says which parameter of what, what it takes and what it got; by position and by keyword."""
    call = taking(annotation)
    for args, kwargs in (((value,), {}), ((), {"thing": value})):
        with pytest.raises(SerializationError) as caught:
            codec.encode_call(call, args, kwargs, where=WHERE)
        text = str(caught.value)
        assert text.startswith("argument 'thing' of activity 'work': expected ")
        assert expected in text.partition(", not ")[0]
        assert given in text.partition(", not ")[2]


@pytest.mark.parametrize("codec", [PRIVATE, SHARED], ids=["private", "shared"])
@pytest.mark.parametrize(
    ("items", "annotation"), [([1, "2"], int), (["1", "2"], int), ([Job(Path("a")), {"path": "b"}], Job)]
)
def test_items_of_a_map_are_arguments_too(codec: Codec, items: list[Any], annotation: Any) -> None:
    """The first wrong one is named by its place."""
    wrong = next(index for index, item in enumerate(items) if not fits(item, annotation))
    with pytest.raises(SerializationError, match=f"item {wrong} of items of activity 'work': expected"):
        codec.encode_items(items, annotation, where="items of activity 'work'")


def test_items_that_fit_are_a_batch_as_before() -> None:
    """Ints for floats stay ints, and one scalar type is one column."""
    for items, annotation in (([1, 2], float), ([1, 2.5], float), (["a"], str), ([(1, 2)], tuple[int, int])):
        payload = SHARED.encode_items(items, annotation, where="items")
        assert payload == SHARED.encode_batch(items, annotation, where="items")
        assert SHARED.decode_batch(payload, annotation, where="items") == items
