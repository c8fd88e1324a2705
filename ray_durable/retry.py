"""When a failed activity is tried again, and after how long. Pure: time and randomness are given."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

from ray_durable.failure import Failure

__all__ = ["RetryPolicy"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """A retry policy, with the terms of Durable Functions.

    `max_attempts` counts the first attempt. The wait before attempt n + 1 is `first_retry_interval` times
    `backoff_coefficient` to the power n - 1, never over `max_retry_interval`. No attempt begins once `retry_timeout`
    has passed since the first was scheduled (None: no limit). `jitter` shortens each wait by a random share of up to
    that fraction (0 to 1). `retry_on` and `give_up_on` name exception types (the class name, or the class);
    `handler` may refuse a retry by returning False. A failure marked non-retryable is never retried.
    """

    max_attempts: int = 1
    first_retry_interval: timedelta = timedelta(seconds=1)
    backoff_coefficient: float = 2.0
    max_retry_interval: timedelta = timedelta(minutes=5)
    retry_timeout: timedelta | None = None
    jitter: float = 0.0
    retry_on: tuple[str | type[BaseException], ...] | None = None
    give_up_on: tuple[str | type[BaseException], ...] = ()
    handler: Callable[[Failure], bool] | None = None

    def __post_init__(self) -> None:
        if self.max_attempts < 1:
            raise ValueError(f"max_attempts is {self.max_attempts}: the first attempt counts, so give at least 1")
        if self.first_retry_interval < timedelta(0) or self.max_retry_interval < timedelta(0):
            raise ValueError("retry intervals cannot be negative")
        if self.backoff_coefficient < 1:
            raise ValueError(f"backoff_coefficient is {self.backoff_coefficient}: give 1 or more")
        if not 0 <= self.jitter <= 1:
            raise ValueError(f"jitter is {self.jitter}: give a fraction between 0 and 1")

    def delay_us(self, failure: Failure, *, attempt: int, elapsed_us: int, rng: random.Random) -> int | None:
        """The wait before the next attempt in microseconds, or None to give up.

        `attempt` is the number of the attempt that failed (from 1), `elapsed_us` the time since the first attempt
        was scheduled; `rng` must be deterministic where the answer has to be.
        """
        if attempt >= self.max_attempts or failure.non_retryable or failure.kind == "cancelled":
            return None
        if self.retry_on is not None and not _matches(failure, self.retry_on):
            return None
        if _matches(failure, self.give_up_on) or (self.handler is not None and not self.handler(failure)):
            return None
        # A large power overflows a float long before anybody waits for it.
        factor = self.backoff_coefficient ** min(attempt - 1, 64)
        wait_s = min(self.max_retry_interval.total_seconds(), self.first_retry_interval.total_seconds() * factor)
        if self.jitter:
            wait_s *= 1 - self.jitter * rng.random()
        wait_us = int(wait_s * 1_000_000)
        if self.retry_timeout is not None and elapsed_us + wait_us > self.retry_timeout.total_seconds() * 1_000_000:
            return None
        return wait_us


def _matches(failure: Failure, types: tuple[str | type[BaseException], ...]) -> bool:
    return any(failure.type_name == (wanted if isinstance(wanted, str) else wanted.__name__) for wanted in types)
