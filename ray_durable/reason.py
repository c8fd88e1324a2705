"""Why somebody controls an instance, in words: what may be said."""

from __future__ import annotations

from ray_durable.errors import ConfigurationError

__all__ = ["check_reason"]

_CHARS_MAX = 8_000
"""It goes into the log, and a termination's into the failure that callers are told."""


def check_reason(reason: object) -> None:
    """Raise ConfigurationError unless it is text of at most 8,000 characters."""
    if not isinstance(reason, str):
        raise ConfigurationError(f"The reason is {reason!r:.80}: give text")
    if len(reason) > _CHARS_MAX:
        raise ConfigurationError(f"The reason has {len(reason):,} characters: give at most {_CHARS_MAX:,}")
