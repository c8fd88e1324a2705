"""Why something failed, in a form that crosses processes and is stored: texts, never live exceptions."""

from __future__ import annotations

import traceback as _traceback
from dataclasses import dataclass
from typing import Literal

__all__ = ["Failure", "FailureKind"]

FailureKind = Literal["application", "system", "cancelled", "timeout"]

_TRACEBACK_CHARS_MAX = 16_000
_MESSAGE_CHARS_MAX = 8_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """The description of a failure.

    `kind` tells whose fault it was: the user's code ("application"), a lost worker or node ("system"), a cancellation
    or a timeout. `type_name` is the exception's class name, `traceback` the formatted text (may be empty).
    `non_retryable` failures are not retried, whatever the policy. `cause` is the failure that led to this one.
    """

    kind: FailureKind = "application"
    type_name: str
    message: str
    traceback: str = ""
    non_retryable: bool = False
    cause: Failure | None = None

    @classmethod
    def from_exception(
        cls, error: BaseException, *, kind: FailureKind = "application", non_retryable: bool = False
    ) -> Failure:
        """Describe `error`; over-long texts lose their middle (traceback) or their end (message)."""
        nested: object = getattr(error, "failure", None)
        cause = nested if isinstance(nested, Failure) else None
        if cause is None and isinstance(error.__cause__, BaseException):
            inner: object = getattr(error.__cause__, "failure", None)
            cause = inner if isinstance(inner, Failure) else None
        text = "".join(_traceback.format_exception(error))
        if len(text) > _TRACEBACK_CHARS_MAX:
            half = _TRACEBACK_CHARS_MAX // 2
            text = f"{text[:half]}\n... {len(text) - 2 * half} characters left out ...\n{text[-half:]}"
        try:
            message = str(error)
        except Exception as broken:
            message = f"<str() of the exception raised {type(broken).__name__}>"
        return cls(
            kind=kind,
            type_name=type(error).__name__,
            message=message[:_MESSAGE_CHARS_MAX],
            traceback=text,
            non_retryable=non_retryable or bool(getattr(error, "non_retryable", False)),
            cause=cause,
        )

    def describe(self) -> str:
        """One line: type and message."""
        return f"{self.type_name}: {self.message}" if self.message else self.type_name
