"""What an external event may be called."""

from __future__ import annotations

from ray_durable.errors import InvalidIdError

__all__ = ["check_event_name"]


def check_event_name(name: object) -> None:
    """Raise InvalidIdError unless events may have this name: 1 to 256 printable characters."""
    if not (isinstance(name, str) and 1 <= len(name) <= 256 and name.isprintable()):
        raise InvalidIdError(f"The event name {name!r:.80} is not allowed: give 1 to 256 printable characters")
