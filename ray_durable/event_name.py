"""What an external event may be called, and how repetitions of it are known."""

from __future__ import annotations

from ray_durable.errors import InvalidIdError

__all__ = ["check_event_id", "check_event_name"]


def check_event_name(name: object) -> None:
    """Raise InvalidIdError unless events may have this name: 1 to 256 printable characters."""
    _check("name", name)


def check_event_id(event_id: object) -> None:
    """Raise InvalidIdError unless events may have this id: 1 to 256 printable characters."""
    _check("id", event_id)


def _check(what: str, text: object) -> None:
    if not (isinstance(text, str) and 1 <= len(text) <= 256 and text.isprintable()):
        raise InvalidIdError(f"The event {what} {text!r:.80} is not allowed: give 1 to 256 printable characters")
