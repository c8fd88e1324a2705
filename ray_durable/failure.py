"""Why something failed, in a form that crosses processes and is stored: texts, never live exceptions."""

from __future__ import annotations

import traceback as _traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeVar

__all__ = ["Failure", "FailureKind"]

FailureKind = Literal["application", "system", "cancelled", "timeout"]

_TRACEBACK_CHARS_MAX = 16_000
_MESSAGE_CHARS_MAX = 8_000
_BASES_MAX = 32
_DEPTH_MAX = 8

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """The description of a failure.

    `kind` tells whose fault it was: the user's code ("application"), a lost worker or node ("system"), a cancellation
    or a timeout. `type_name` is the exception's class name, `traceback` the formatted text (may be empty).
    `non_retryable` failures are not retried, whatever the policy. `cause` is the failure that led to this one: what it
    was raised from, or while that was handled. `bases` are the class names of the exception's bases, up to Exception.
    """

    kind: FailureKind = "application"
    type_name: str
    message: str
    traceback: str = ""
    non_retryable: bool = False
    cause: Failure | None = None
    bases: tuple[str, ...] = ()

    @classmethod
    def from_exception(
        cls, error: BaseException, *, kind: FailureKind = "application", non_retryable: bool = False
    ) -> Failure:
        """Describe `error`; over-long texts lose their middle (traceback) or their end (message).

        Never raises, whatever the exception's own code does. What no file can hold of a text (lone surrogates) is shown
        escaped.
        """
        text = _plain_text(_probe(lambda: "".join(_traceback.format_exception(error)), ""))
        if len(text) > _TRACEBACK_CHARS_MAX:
            half = _TRACEBACK_CHARS_MAX // 2
            text = f"{text[:half]}\n... {len(text) - 2 * half} characters left out ...\n{text[-half:]}"
        return cls(
            kind=kind,
            type_name=_plain_text(_probe(lambda: str(type(error).__name__), "Exception")),
            message=_message(error)[:_MESSAGE_CHARS_MAX],
            traceback=text,
            non_retryable=non_retryable or _probe(lambda: bool(getattr(error, "non_retryable", False)), False),
            cause=_failure_behind(error),
            bases=_probe(lambda: _bases_of(type(error)), ()),
        )

    def describe(self) -> str:
        """One line: type and message."""
        return f"{self.type_name}: {self.message}" if self.message else self.type_name


def _probe(ask: Callable[[], _T], otherwise: _T) -> _T:
    """What `ask` returns. It runs code of somebody else's exception, which may raise anything."""
    try:
        return ask()
    except BaseException:
        return otherwise


def _message(error: BaseException) -> str:
    try:
        return _plain_text(str(error))
    except BaseException as broken:
        return f"<str() of the exception raised {type(broken).__name__}>"


def _bases_of(error_type: type[BaseException]) -> tuple[str, ...]:
    bases = [base for base in error_type.__mro__[1:] if issubclass(base, BaseException) and base is not BaseException]
    return tuple(_plain_text(str(base.__name__)) for base in bases[:_BASES_MAX])


def _failure_behind(error: BaseException, depth: int = 0) -> Failure | None:
    """The failure that an error of ours carries: this one, the first in a group, or what Python's traceback shows
    behind it."""
    found = _failure_in(error)
    if found is not None or depth == _DEPTH_MAX:
        return found
    behind = [*error.exceptions] if isinstance(error, BaseExceptionGroup) else []
    cause = _probe(lambda: error.__cause__ or (None if error.__suppress_context__ else error.__context__), None)
    behind += [] if cause is None else [cause]
    failures = (_failure_behind(one, depth + 1) for one in behind)
    return next((failure for failure in failures if failure is not None), None)


def _failure_in(error: object) -> Failure | None:
    """The failure that an error of ours carries."""

    def look() -> Failure | None:
        carried: object = getattr(error, "failure", None)
        return carried if isinstance(error, BaseException) and isinstance(carried, Failure) else None

    return _probe(look, None)


def _plain_text(text: str) -> str:
    return str.encode(text, "utf-8", "backslashreplace").decode()
