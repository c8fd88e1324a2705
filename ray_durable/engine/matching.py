"""Comparing what the history holds with what the code asked for.

Two caused events match when they are of one kind and say the same. Payloads are compared only if both are JSON, as
values: other encodings need not be canonical, and a blob that was not loaded cannot be looked into. Failures and texts
meant for people are not compared.
"""

from __future__ import annotations

import json
from dataclasses import fields
from typing import NamedTuple

from ray_durable.engine.events import Event, ExecutionCompleted
from ray_durable.failure import Failure
from ray_durable.payload import Payload

__all__ = ["Mismatch", "describe_event", "find_mismatch"]

_TEXT_CHARS_MAX = 200


class Mismatch(NamedTuple):
    """The first difference: the field ("" for the kind of event) and what is on each side."""

    field: str
    recorded: str
    generated: str


_COMPARED: dict[type[Event], tuple[str, ...]] = {}


def _compared_fields(event_type: type[Event]) -> tuple[str, ...]:
    names = _COMPARED.get(event_type)
    if names is None:
        ignored = {"number", "time_us"} | ({"failure"} if event_type is ExecutionCompleted else set())
        names = tuple(field.name for field in fields(event_type) if field.compare and field.name not in ignored)
        _COMPARED[event_type] = names
    return names


def find_mismatch(recorded: Event, generated: Event) -> Mismatch | None:
    """The first difference between a recorded event and the one that the code caused, or None."""
    event_type = type(recorded)
    if event_type is not type(generated):
        return Mismatch("", event_type.__name__, type(generated).__name__)
    for name in _compared_fields(event_type):
        left, right = getattr(recorded, name), getattr(generated, name)
        if left is right:
            continue
        differ = _payloads_differ(left, right) if isinstance(left, Payload) else left != right
        if differ:
            return Mismatch(name, _describe(left), _describe(right))
    return None


def _payloads_differ(left: Payload, right: object) -> bool:
    if not isinstance(right, Payload):
        return True
    if left.encoding != "json" or right.encoding != "json" or left.data is None or right.data is None:
        return False
    return left.data != right.data and bool(json.loads(left.data) != json.loads(right.data))


def describe_event(event: Event) -> str:
    """One line for a person: the kind of the event and what it says."""
    said = ((field.name, getattr(event, field.name)) for field in fields(event) if field.repr)
    shown = (
        f"{name}={_describe(value)}" for name, value in said if name not in ("number", "time_us") and value is not None
    )
    return f"{type(event).__name__}({', '.join(shown)})"


def _describe(value: object) -> str:
    if isinstance(value, Payload):
        if value.encoding == "json" and value.data is not None:
            text = value.data.decode("utf-8", "replace")
        else:
            text = f"<{value.encoding}, {value.size} bytes>"
    elif isinstance(value, Failure):
        text = value.describe()
    else:
        text = repr(value)
    return text if len(text) <= _TEXT_CHARS_MAX else f"{text[:_TEXT_CHARS_MAX]}... ({len(text)} characters)"
