"""Arguments: bound to the signature, typed one by one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ray_durable.authoring import Activity
from ray_durable.codec import CallSignature, Codec, Trust
from ray_durable.errors import SerializationError
from ray_durable.payload import Payload

WHERE = "activity 'work'"
CODEC = Codec()


@dataclasses.dataclass(frozen=True)
class Job:
    path: Path
    size: int = 0


def work(job: Job, factor: float = 1.0, *rest: int, mode: str = "fast", **extra: Path) -> None: ...


def one(text: str) -> None: ...


def needs_keyword(a: int, *, b: int) -> None: ...


def positional_only(a: int, /) -> None: ...


def table(values: np.ndarray[Any, Any], scale: float) -> None: ...


def signature_of(function: Callable[..., Any]) -> CallSignature:
    return Activity(function).calls


def round_trip(
    function: Callable[..., Any], *args: Any, **kwargs: Any
) -> tuple[Payload, tuple[Any, ...], dict[str, Any]]:
    call = signature_of(function)
    payload = CODEC.encode_call(call, args, kwargs, where=WHERE)
    return payload, *CODEC.decode_call(call, payload, where=WHERE)


def test_positional_arguments_are_a_json_array() -> None:
    """The stored form is plain and short."""
    payload, args, kwargs = round_trip(one, "photos/1.jpg")
    assert (payload.encoding, payload.bytes) == ("json", b'["photos/1.jpg"]')
    assert (args, kwargs) == (("photos/1.jpg",), {})


def test_arguments_get_their_types_from_the_signature() -> None:
    """Each parameter's annotation counts, those of *args and **kwargs for all they collect."""
    job = Job(Path("a"), 3)
    payload, args, kwargs = round_trip(work, job, 2.5, 7, 8, mode="slow", log=Path("b"))
    assert payload.encoding == "json"
    assert args == (job, 2.5, 7, 8)
    assert kwargs == {"mode": "slow", "log": Path("b")}
    assert isinstance(kwargs["log"], Path)


def test_keyword_arguments_are_an_object() -> None:
    """Keywords stay keywords."""
    payload, _, kwargs = round_trip(one, text="x")
    assert payload.bytes == b'{"args":[],"kwargs":{"text":"x"}}'
    assert kwargs == {"text": "x"}


def test_no_arguments_are_an_empty_array() -> None:
    """A function without parameters is called with nothing."""
    payload, args, kwargs = round_trip(lambda: None)
    assert (payload.bytes, args, kwargs) == (b"[]", (), {})


def test_arguments_that_json_cannot_hold_travel_beside_those_that_it_can() -> None:
    """An array is raw bytes, the float next to it JSON; an int for a float stays an int."""
    payload, args, _ = round_trip(table, np.arange(3), 2)
    assert payload.encoding == "multipart"
    assert args[0].tolist() == [0, 1, 2]
    assert type(args[1]) is int


def test_functions_known_by_name_take_plain_values() -> None:
    """Without a signature everything plain passes, and the reader's annotations give the types."""
    payload = CODEC.encode_call(CallSignature.unknown("work"), ({"path": "a", "size": 2},), {"mode": "x"}, where=WHERE)
    args, kwargs = CODEC.decode_call(signature_of(work), payload, where=WHERE)
    assert (args, kwargs) == ((Job(Path("a"), 2),), {"mode": "x"})


@pytest.mark.parametrize(
    ("function", "args", "kwargs", "words"),
    [
        (one, (), {}, "missing a required argument: 'text'"),
        (one, ("a", "b"), {}, "too many positional arguments"),
        (one, ("a",), {"color": 1}, "unexpected keyword argument 'color'"),
        (one, ("a",), {"text": "b"}, "multiple values"),
        (needs_keyword, (1,), {}, "missing a required argument: 'b'"),
        (positional_only, (), {"a": 1}, "positional"),
    ],
)
def test_wrong_arguments_are_a_type_error_that_names_the_function(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], words: str
) -> None:
    """As in a plain call, at the call."""
    with pytest.raises(TypeError) as caught:
        CODEC.encode_call(signature_of(function), args, kwargs, where=WHERE)
    assert words in str(caught.value)
    assert function.__name__ in str(caught.value)


def test_an_argument_that_cannot_be_stored_is_named() -> None:
    """The error says which argument of which function."""
    with pytest.raises(SerializationError, match="argument 'job' of activity 'work'"):
        CODEC.encode_call(signature_of(work), (object(),), {}, where=WHERE)
    with pytest.raises(SerializationError, match=r"argument 'rest\[1\]' of"):
        CODEC.encode_call(signature_of(work), (Job(Path("a")), 1.0, 1, object()), {}, where=WHERE)


def test_stored_arguments_that_no_longer_fit_say_so() -> None:
    """Code that changed under a running instance is a clear error, not a wrong call."""
    payload = CODEC.encode_call(signature_of(work), (Job(Path("a")), 1.0), {}, where=WHERE)
    with pytest.raises(SerializationError, match=r"do not fit activity .*newer.*Was the function changed"):
        CODEC.decode_call(Activity(lambda job: None, name="newer").calls, payload, where=WHERE)


def test_a_stored_argument_of_another_type_is_named() -> None:
    """The error says which argument does not fit, and what was expected."""
    with pytest.raises(SerializationError, match=r"argument 'text' of activity 'work': expected str"):
        CODEC.decode_call(signature_of(one), Payload.of("json", b"[1]"), where=WHERE)


@pytest.mark.parametrize("data", [b'"x"', b"[", b'{"a":1}', b'{"args":1}', b"[1]", b"[[1],2]"])
def test_arguments_of_the_wrong_shape_are_refused(data: bytes) -> None:
    """Input from outside is checked like any payload."""
    with pytest.raises(SerializationError):
        CODEC.decode_call(signature_of(one), Payload.of("json", data), where=WHERE)


@pytest.mark.parametrize(
    "data",
    [b"", b"{}\n", b'{"args":[["json",5]],"kwargs":{}}\n1', b'{"args":[["json",-1]],"kwargs":{}}\n', b'{"args":[1]}\n'],
)
def test_damaged_parts_are_refused(data: bytes) -> None:
    """Sizes that do not add up are an error of the payload."""
    with pytest.raises(SerializationError):
        CODEC.decode_call(signature_of(one), Payload.of("multipart", data), where=WHERE)


def test_a_pickled_argument_needs_trust_to_be_read() -> None:
    """The parts of a call obey the same rule as single values."""
    private = Codec(trust=Trust.PRIVATE_LOCAL_ROOT)
    call = signature_of(lambda thing: None)
    payload = private.encode_call(call, ((1, 2),), {}, where=WHERE)
    assert private.decode_call(call, payload, where=WHERE) == (((1, 2),), {})
    with pytest.raises(SerializationError, match="refused unread"):
        CODEC.decode_call(call, payload, where=WHERE)
