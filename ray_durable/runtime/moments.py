"""Times as callers give them, in microseconds since the Unix epoch. What has no time zone is nobody's time."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from ray_durable.errors import ConfigurationError

__all__ = ["due_us", "to_us"]

_EPOCH = datetime.fromtimestamp(0, UTC)
_AHEAD_MAX = timedelta(days=100 * 366)


def to_us(moment: datetime, argument: str) -> int:
    """An aware datetime in microseconds since the epoch; ConfigurationError, which names the argument, for others."""
    if moment.utcoffset() is None:
        raise ConfigurationError(
            f"{argument} is {moment!r}, which has no time zone: give an aware datetime, for example "
            "datetime.now(timezone.utc), or moment.astimezone() for local time"
        )
    return (moment - _EPOCH) // timedelta(microseconds=1)


def due_us(at: datetime | timedelta | None, now_us: int) -> int | None:
    """When something is to begin, at an aware time or so long from now; None: at once, as what is past does too.

    Raises:
        ConfigurationError: a time without a zone, one that is over a hundred years ahead, or no time at all.
    """
    if at is None:
        return None
    if not isinstance(at, datetime | timedelta):
        raise ConfigurationError(f"at is {at!r}: give an aware datetime, or a timedelta from now")
    ahead = at if isinstance(at, timedelta) else timedelta(microseconds=to_us(at, "at") - now_us)
    if ahead > _AHEAD_MAX:
        raise ConfigurationError(f"at is {at!r}, which is over a hundred years ahead: give an earlier time")
    return now_us + ahead // timedelta(microseconds=1) if ahead > timedelta(0) else None
