"""What the fields of events may hold, by their annotations: what was read may be anything that JSON can say.

Checked before an event is believed, so that a wrong type is a damaged object and not an error somewhere in the engine,
and a number that lies cannot ask for more memory or time than there is.
"""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Callable
from typing import Any

from ray_durable.codec import Limits
from ray_durable.engine import Event, MapCompleted, MapScheduled
from ray_durable.failure import Failure
from ray_durable.payload import Payload

__all__ = ["check_event", "check_failure", "check_payload"]

_INT_END = 2**63
_ITEMS_MAX = Limits().batch_items_max
_DIGEST = re.compile(r"[0-9a-f]{64}")
_KINDS = frozenset({"application", "system", "cancelled", "timeout"})

_Check = Callable[[Any], bool]
_checks: dict[type[Event], tuple[tuple[str, _Check], ...]] = {}


def check_event(event: Event) -> Event:
    """The event, if all its fields hold what they say. TypeError or ValueError otherwise."""
    for name, fits in _fields_of(type(event)):
        if not fits(getattr(event, name)):
            raise TypeError(f"field {name}")
    if isinstance(event, MapScheduled | MapCompleted) and event.count > _ITEMS_MAX:
        raise ValueError("more items than a batch has")
    return event


def check_payload(payload: Payload) -> Payload:
    """The payload, if it is one. TypeError or ValueError otherwise."""
    if type(payload.encoding) is not str or not _is_number(payload.size):
        raise TypeError("payload")
    if payload.blob is not None and not (type(payload.blob) is str and _DIGEST.fullmatch(payload.blob)):
        raise ValueError("a blob is named by a digest")
    if payload.data is not None and len(payload.data) != payload.size:
        raise ValueError("a payload has the size that it says")
    return payload


def check_failure(failure: Failure) -> Failure:
    """The failure, if it is one; its causes are checked where they are made. TypeError or ValueError otherwise."""
    texts = (failure.type_name, failure.message, failure.traceback, *failure.bases)
    if not all(type(text) is str for text in texts) or type(failure.non_retryable) is not bool:
        raise TypeError("failure")
    if failure.kind not in _KINDS:
        raise ValueError("kind of a failure")
    return failure


def _fields_of(kind: type[Event]) -> tuple[tuple[str, _Check], ...]:
    checks = _checks.get(kind)
    if checks is None:
        hints = typing.get_type_hints(kind)
        checks = tuple((name, _check_of(hint)) for name, hint in hints.items() if hint is not object)
        _checks[kind] = checks
    return checks


def _check_of(hint: Any) -> _Check:
    """Whether a value is of this annotation: what events are made of, and no more of typing than that."""
    if hint is int:
        return _is_number
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        checks = [_check_of(one) for one in arguments]
        return lambda value: any(check(value) for check in checks)
    if origin is tuple and arguments[-1] is Ellipsis:
        each = _check_of(arguments[0])
        return lambda value: type(value) is tuple and all(map(each, value))
    if origin is tuple:
        parts = [_check_of(one) for one in arguments]
        return lambda value: (
            type(value) is tuple
            and len(value) == len(parts)
            and all(check(one) for check, one in zip(parts, value, strict=True))
        )
    plain = origin or hint
    assert isinstance(plain, type), f"events have no fields of type {hint!r}"
    return lambda value: isinstance(value, plain)


def _is_number(value: object) -> bool:
    return type(value) is int and 0 <= value < _INT_END
