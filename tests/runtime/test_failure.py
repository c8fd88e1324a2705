"""A failure can be made of every exception, whatever that exception's own code does."""

from __future__ import annotations

import pickle
from typing import NoReturn

import numpy as np
import pytest

from ray_durable.failure import Failure


def refuse(self: object) -> NoReturn:
    raise SystemExit("not to be asked")


class RefusesEverything(Exception):
    """Every attribute that is looked at ends the process."""

    non_retryable = property(refuse)
    failure = property(refuse)
    __cause__ = property(refuse)
    __context__ = property(refuse)
    __notes__ = property(refuse)
    __str__ = refuse
    __repr__ = refuse


class Interrupts(Exception):
    def __str__(self) -> str:
        raise KeyboardInterrupt


class NamelessType(type):
    __name__ = property(refuse)


class Nameless(Exception, metaclass=NamelessType):
    pass


class Undecided(Exception):
    non_retryable = np.array([True, False])


class Pretends(Exception):
    """What it carries is no failure."""

    failure = "none"


@pytest.mark.parametrize(
    ("error", "type_name", "message"),
    [
        (RefusesEverything(), "RefusesEverything", "<str() of the exception raised SystemExit>"),
        (Interrupts(), "Interrupts", "<str() of the exception raised KeyboardInterrupt>"),
        (Undecided("which?"), "Undecided", "which?"),
        (Pretends("p"), "Pretends", "p"),
        (ValueError("a \udc80 b"), "ValueError", "a \\udc80 b"),
        (
            FileNotFoundError(2, "No such file", b"\xff.txt".decode("utf-8", "surrogateescape")),
            "FileNotFoundError",
            None,
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_any_exception_makes_a_failure(error: BaseException, type_name: str, message: str | None) -> None:
    """Of texts that every file can hold; what cannot be asked is left out."""
    failure = Failure.from_exception(error)
    assert failure.type_name == type_name
    assert message is None or failure.message == message
    assert failure.cause is None
    assert not failure.non_retryable
    (failure.message + failure.traceback + failure.type_name).encode()
    assert pickle.loads(pickle.dumps(failure)) == failure


def test_a_type_that_does_not_tell_its_name_makes_a_failure() -> None:
    """Its message is told all the same."""
    failure = Failure.from_exception(Nameless("hello"))
    assert (failure.type_name, failure.message) == ("Exception", "hello")


def test_the_failure_that_led_to_an_error_is_kept() -> None:
    """Carried by the error itself, by its cause, or by what was handled when it was raised."""
    inner = Failure(type_name="ValueError", message="first")
    carrier = Exception("failed")
    carrier.failure = inner  # type: ignore[attr-defined]
    outer = RuntimeError("outer")
    outer.__cause__ = carrier
    assert Failure.from_exception(carrier).cause == inner
    assert Failure.from_exception(outer).cause == inner

    handled = KeyError("while that was handled")
    handled.__context__ = carrier
    assert Failure.from_exception(handled).cause == inner
    handled.__suppress_context__ = True
    assert Failure.from_exception(handled).cause is None
