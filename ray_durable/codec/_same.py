"""Whether a decoded value is the value that was encoded: equal, and of the same types all the way down.

Python's `==` calls 1, 1.0 and True equal, and two datetimes of different zones; a codec that believed it would change
values silently.
"""

from __future__ import annotations

import dataclasses
import datetime
import math
from typing import Any

from pydantic import BaseModel

__all__ = ["same"]


def same(one: Any, other: Any) -> bool:
    """Whether `other` can stand for `one`."""
    kind = type(one)
    if kind is not type(other):
        return False
    if kind is float:
        if one != one:
            return bool(other != other)
        return bool(one == other) and math.copysign(1.0, one) == math.copysign(1.0, other)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other)) and _same_attributes(one, other)
    if isinstance(one, dict):
        # Order counts: it is what iteration shows.
        return len(one) == len(other) and all(map(same, one.items(), other.items())) and _same_attributes(one, other)
    if isinstance(one, set | frozenset):
        return bool(one == other) and {type(item) for item in one} == {type(item) for item in other}
    if isinstance(one, datetime.datetime | datetime.time):
        return _same_time(one, other)
    if isinstance(one, BaseModel):
        return same(_model_state(one), _model_state(other))
    if dataclasses.is_dataclass(one):
        return all(
            same(getattr(one, field.name, _ABSENT), getattr(other, field.name, _ABSENT))
            for field in dataclasses.fields(one)
        ) and _same_attributes(one, other)
    return _equal(one, other)


_ABSENT = object()


def _equal(one: Any, other: Any) -> bool:
    try:
        # Arrays and their like answer with something that is not a bool, or raise.
        return one is other or (one == other) is True
    except Exception:
        return False


def _model_state(model: BaseModel) -> tuple[Any, ...]:
    return dict(model.__dict__), model.__pydantic_extra__, model.__pydantic_private__


def _same_attributes(one: Any, other: Any) -> bool:
    """Attributes beside the items or fields: a subclass of list, a dataclass with a value set later."""
    own: dict[str, Any] | None = getattr(one, "__dict__", None)
    return not own or same(own, getattr(other, "__dict__", None))


def _same_time(one: Any, other: Any) -> bool:
    """Equal clocks and offsets. A zone with rules (ZoneInfo) is more than the offset that ISO 8601 holds."""
    if one.replace(tzinfo=None) != other.replace(tzinfo=None):
        return False
    if _is_fixed(one.tzinfo) and _is_fixed(other.tzinfo):
        return bool(one.utcoffset() == other.utcoffset())
    # Without a fixed offset, the fold tells apart the two passes of a repeated hour.
    return bool(one.tzinfo == other.tzinfo and one.fold == other.fold)


def _is_fixed(zone: datetime.tzinfo | None) -> bool:
    return isinstance(zone, datetime.timezone) or type(zone).__module__.startswith("pydantic_core")
