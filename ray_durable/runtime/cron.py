"""Times of a cron expression in a time zone: which come next, and which are due.

The expressions are those of Debian's cron, read by `cronsim`: five fields, or six with seconds first. When clocks are
set forward, jobs of fixed times within the hour that does not exist run right after it; when they are set back, jobs of
fixed times run once. Times here are microseconds since the Unix epoch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from ray_durable.errors import ConfigurationError

__all__ = ["ON_TIME_US", "Cron"]

ON_TIME_US = 60 * 1_000_000
"""How late a firing may be without having been missed."""

_EPOCH = datetime.fromtimestamp(0, UTC)
_SET_BACK_MAX = timedelta(hours=3)
"""More than clocks are ever set back: an hour that comes twice is looked at from beyond it."""


@dataclass(frozen=True, slots=True)
class Cron:
    """A cron expression in a time zone. Made by `parse`."""

    expression: str
    zone: ZoneInfo

    @classmethod
    def parse(cls, expression: str, timezone: str, now_us: int) -> Cron:
        """The expression, in the zone of this name.

        Raises:
            ConfigurationError: it is none, there is no such zone, or it names no time to come.
        """
        try:
            zone = ZoneInfo(timezone)
        except (OSError, ValueError, TypeError, LookupError):
            raise ConfigurationError(
                f"There is no time zone {timezone!r}: give a name of the IANA database, such as 'UTC' or "
                "'Europe/Berlin'. Where the system has no such database, install the package tzdata"
            ) from None
        cron = cls(expression, zone)
        try:
            cron.next_us(now_us)
        except (CronSimError, AttributeError) as error:
            raise ConfigurationError(
                f"{expression!r} is no cron expression ({error}): give five fields (minute, hour, day of the month, "
                "month, day of the week), or six with the second first, such as '0 2 * * MON-FRI'"
            ) from None
        except StopIteration:
            raise ConfigurationError(f"The cron expression {expression!r} names no time that ever comes") from None
        return cron

    def next_us(self, after_us: int) -> int:
        """The first time behind `after_us`. StopIteration if there is none within fifty years."""
        return next(self._forward(after_us))

    def due_us(self, after_us: int, now_us: int, catch_up_us: int) -> list[int]:
        """The times behind `after_us` that are to be carried out now, in order.

        Those that are on time, or else the latest that was missed, if it is no older than `catch_up_us`.
        """
        due: list[int] = []
        for time_us in self._forward(max(after_us, now_us - ON_TIME_US)):
            if time_us > now_us:
                break
            due.append(time_us)
        if due:
            return due
        latest_us = next(self._backward(now_us), None)
        is_missed = latest_us is not None and after_us < latest_us and now_us - latest_us <= catch_up_us
        return [latest_us] if latest_us is not None and is_missed else []

    def _forward(self, after_us: int) -> Iterator[int]:
        start = self._local(after_us)
        if start.fold:
            # Jobs of fixed times count the hour that comes twice once, the first time.
            start = self._local(after_us - _SET_BACK_MAX // timedelta(microseconds=1))
        for time in CronSim(self.expression, start):
            if (time_us := _to_us(time)) > after_us:
                yield time_us

    def _backward(self, now_us: int) -> Iterator[int]:
        """Times up to now, the latest first."""
        # One microsecond on, since the search begins before its start.
        start = self._local(now_us + 1)
        if start.fold:
            start = self._local(now_us + _SET_BACK_MAX // timedelta(microseconds=1))
        for time in CronSim(self.expression, start, reverse=True):
            if (time_us := _to_us(time)) <= now_us:
                yield time_us

    def _local(self, time_us: int) -> datetime:
        return (_EPOCH + timedelta(microseconds=time_us)).astimezone(self.zone)


def _to_us(time: datetime) -> int:
    return (time.astimezone(UTC) - _EPOCH) // timedelta(microseconds=1)
