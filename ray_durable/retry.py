"""When a failed activity is tried again, and after how long. Pure: time and randomness are given.

Two kinds of failures are counted apart. Those of the user's code, timeouts among them, use up attempts. Failures of
the system (a worker killed, a node lost, memory exhausted, a store that refuses a result) say nothing of the code: they
have a limit of their own, in a row, and use up none.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

from ray_durable.failure import Failure

__all__ = ["RetryPolicy"]

_RETRY_INTERVAL_MAX = timedelta(minutes=5)

_POWER_MAX = 64
"""A larger power overflows a float long before anybody waits for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """A retry policy, with the terms of Durable Functions.

    `max_attempts` counts the first attempt. The wait before attempt n + 1 is `first_retry_interval` times
    `backoff_coefficient` to the power n - 1, never over `max_retry_interval` (None: 5 minutes, or the first interval
    where that is longer). No attempt begins once `retry_timeout` has passed since the first was scheduled (None: no
    limit). `jitter` shortens each wait by a random share of up to that fraction (0 to 1).

    `retry_on` and `give_up_on` name exception types, by class or class name; a base class stands for all below it.
    `handler` gets the failure and may refuse a retry by returning False; it must answer the same in a replay. A failure
    marked non-retryable is never retried, nor is a cancellation.

    `max_system_failures` is how often in a row the system may fail with one call before the call fails, whatever the
    other settings say; those failures use up none of `max_attempts`. A lost worker runs the call again at once, other
    failures of the system after the waits above.

    Raises:
        ValueError: a number that cannot work.
        TypeError: an argument of another type, such as seconds where a timedelta belongs.
    """

    max_attempts: int = 1
    first_retry_interval: timedelta = timedelta(seconds=1)
    backoff_coefficient: float = 2.0
    max_retry_interval: timedelta | None = None
    retry_timeout: timedelta | None = None
    jitter: float = 0.0
    retry_on: tuple[str | type[BaseException], ...] | None = None
    give_up_on: tuple[str | type[BaseException], ...] = ()
    handler: Callable[[Failure], bool] | None = None
    max_system_failures: int = 3

    def __post_init__(self) -> None:
        _check_count("max_attempts", self.max_attempts, "the first attempt counts")
        _check_count("max_system_failures", self.max_system_failures, "the first failure counts")
        _check_duration("first_retry_interval", self.first_retry_interval)
        if self.max_retry_interval is not None:
            _check_duration("max_retry_interval", self.max_retry_interval)
            if self.max_retry_interval < self.first_retry_interval:
                raise ValueError(
                    f"max_retry_interval is {self.max_retry_interval}, less than first_retry_interval, "
                    f"{self.first_retry_interval}, so that no wait could be that long: make it longer, or leave it out"
                )
        if self.retry_timeout is not None:
            _check_duration("retry_timeout", self.retry_timeout)
        _check_number("backoff_coefficient", self.backoff_coefficient)
        if self.backoff_coefficient < 1:
            raise ValueError(f"backoff_coefficient is {self.backoff_coefficient}: give 1 (equal waits) or more")
        _check_number("jitter", self.jitter)
        if not 0 <= self.jitter <= 1:
            raise ValueError(f"jitter is {self.jitter}: give a fraction between 0 and 1")
        if self.retry_on is not None:
            _check_types("retry_on", self.retry_on)
        _check_types("give_up_on", self.give_up_on)
        if self.handler is not None and not callable(self.handler):
            raise TypeError(f"handler is {self.handler!r}: give a function that takes a Failure and returns a bool")

    def delay_us(
        self, failure: Failure, *, attempt: int, elapsed_us: int, rng: random.Random, system_failures: int = 0
    ) -> int | None:
        """The wait before the next attempt in microseconds, or None to give up.

        `attempt` counts the attempts that ended so far (from 1), without those that the system failed; `elapsed_us` is
        the time since the first was scheduled. `system_failures` is 0 for a failure that uses up attempts, else how
        many of the system there were in a row, this one among them. `rng` must be deterministic where the answer has
        to be.
        """
        if failure.non_retryable or failure.kind == "cancelled":
            return None
        if system_failures:
            if system_failures >= self.max_system_failures:
                return None
        elif attempt >= self.max_attempts or not self._is_wanted(failure):
            return None
        power = min((system_failures or attempt) - 1, _POWER_MAX)
        wait_s = self.first_retry_interval.total_seconds() * self.backoff_coefficient**power
        longest = self.max_retry_interval
        if longest is None:
            longest = max(self.first_retry_interval, _RETRY_INTERVAL_MAX)
        wait_s = min(longest.total_seconds(), wait_s)
        if self.jitter:
            wait_s *= 1 - self.jitter * rng.random()
        wait_us = int(wait_s * 1_000_000)
        if self.retry_timeout is not None and elapsed_us + wait_us > self.retry_timeout.total_seconds() * 1_000_000:
            return None
        return wait_us

    def _is_wanted(self, failure: Failure) -> bool:
        """Whether the settings that look at the failure let it be retried."""
        if self.retry_on is not None and not _matches(failure, self.retry_on):
            return False
        return not _matches(failure, self.give_up_on) and (self.handler is None or bool(self.handler(failure)))


def _matches(failure: Failure, types: tuple[str | type[BaseException], ...]) -> bool:
    names = (failure.type_name, *failure.bases)
    return any((wanted if isinstance(wanted, str) else wanted.__name__) in names for wanted in types)


def _check_count(name: str, count: object, why: str) -> None:
    if isinstance(count, bool) or not isinstance(count, int):
        raise TypeError(f"{name} is {count!r}: give a whole number")
    if count < 1:
        raise ValueError(f"{name} is {count}: {why}, so give at least 1")


def _check_number(name: str, number: object) -> None:
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise TypeError(f"{name} is {number!r}: give a number")
    if not math.isfinite(number):
        raise ValueError(f"{name} is {number}: give a finite number")


def _check_duration(name: str, duration: object) -> None:
    if not isinstance(duration, timedelta):
        raise TypeError(f"{name} is {duration!r}: give a timedelta, such as timedelta(seconds=5)")
    if duration < timedelta(0):
        raise ValueError(f"{name} is {duration}: give a duration of zero or more")


def _check_types(name: str, types: object) -> None:
    known = isinstance(types, tuple) and all(
        isinstance(one, str) or (isinstance(one, type) and issubclass(one, BaseException)) for one in types
    )
    if not known:
        raise TypeError(f"{name} is {types!r}: give a tuple of exception classes or their names, such as (OSError,)")
