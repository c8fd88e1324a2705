"""Comparing what the history holds with what the code asked for, and showing where they differ.

Two caused events match when they are of one kind and say the same. Payloads are compared only if both are JSON, as
values: other encodings need not be canonical, and a blob that was not loaded cannot be looked into. Failures and texts
meant for people are not compared.
"""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any, NamedTuple

from ray_durable.engine.events import Event, ExecutionCompleted
from ray_durable.failure import Failure
from ray_durable.payload import Payload

__all__ = ["Mismatch", "describe_event", "find_mismatch", "show_context", "show_difference"]

_TEXT_CHARS_MAX = 200


class Mismatch(NamedTuple):
    """The first difference: the field ("" for the kind of event) and what is on each side.

    `path` leads from the field to the difference, where the field is a JSON value: "['name'][0]".
    """

    field: str
    recorded: str
    generated: str
    path: str = ""


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
        if isinstance(left, Payload) and isinstance(right, Payload):
            mismatch = _payload_mismatch(name, left, right)
            if mismatch is not None:
                return mismatch
        elif left != right:
            return Mismatch(name, _describe(left), _describe(right))
    return None


def _payload_mismatch(name: str, left: Payload, right: Payload) -> Mismatch | None:
    if left.encoding != "json" or right.encoding != "json" or left.data is None or right.data is None:
        return None
    if left.data == right.data:
        return None
    path, here, there = _first_difference(json.loads(left.data), json.loads(right.data))
    return None if here == there else Mismatch(name, _shorten(repr(here)), _shorten(repr(there)), path)


def _first_difference(left: Any, right: Any) -> tuple[str, Any, Any]:
    """The way to the innermost value in which two JSON values differ first, and both. Equal: two equal values."""
    path = ""
    while left != right:
        if isinstance(left, dict) and isinstance(right, dict) and left.keys() == right.keys():
            key = next(key for key in left if left[key] != right[key])
        elif isinstance(left, list) and isinstance(right, list) and len(left) == len(right):
            key = next(index for index, pair in enumerate(zip(left, right, strict=True)) if pair[0] != pair[1])
        else:
            break
        path, left, right = f"{path}[{key!r}]", left[key], right[key]
    return path, left, right


def show_difference(recorded: Event, generated: Event | str, mismatch: Mismatch | None) -> list[str]:
    """Lines that show both sides as a diff, with the field in which they differ marked.

    `generated` is the event that the code caused, or what the code does instead.
    """
    code = describe_event(generated) if isinstance(generated, Event) else generated
    lines = [_line("- history:", recorded.number, describe_event(recorded)), _line("+ code:", recorded.number, code)]
    if mismatch is not None and mismatch.field and isinstance(generated, Event):
        mark = _mark(generated, mismatch.field)
        if mark:
            lines.append(_line("?", None, mark))
        sides = f"{mismatch.recorded} in the history, {mismatch.generated} from the code"
        lines.append(f"{mismatch.field}{mismatch.path}: {sides}.")
    return lines


def show_context(event: Event) -> str:
    """The line of a diff for an event in which both sides agree."""
    return _line("", event.number, describe_event(event))


def _line(label: str, number: int | None, text: str) -> str:
    return f"  {label:<10} {number or '':>4}  {text}"


def _mark(event: Event, field: str) -> str:
    """Carets below the field in the event's description; "" if it is left out there."""
    at = len(type(event).__name__) + 1
    for said in _said(event):
        if said.startswith(f"{field}="):
            return " " * at + "^" * len(said)
        at += len(said) + len(", ")
    return ""


def describe_event(event: Event) -> str:
    """One line for a person: the kind of the event and what it says. What is empty is left out."""
    return f"{type(event).__name__}({', '.join(_said(event))})"


def _said(event: Event) -> list[str]:
    shown = ((field.name, getattr(event, field.name)) for field in fields(event) if field.repr)
    return [
        f"{name}={_describe(value)}"
        for name, value in shown
        if name not in ("number", "time_us") and value not in (None, "", ())
    ]


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
    return _shorten(text)


def _shorten(text: str) -> str:
    return text if len(text) <= _TEXT_CHARS_MAX else f"{text[:_TEXT_CHARS_MAX]}... ({len(text)} characters)"
