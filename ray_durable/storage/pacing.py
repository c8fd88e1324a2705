"""Trying again: how long to wait before an unclear request is sent again, and a create whose fate is made sure of."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from ray_durable.errors import DurableError, StoreUnavailableError
from ray_durable.storage.store import ObjectStore

__all__ = ["Pacing", "Trouble", "persist", "put_settled"]

T = TypeVar("T")

Trouble = Callable[[DurableError, float], None]
"""Told of a failed attempt and of the seconds spent so far."""


def _no_trouble(error: DurableError, waited_s: float) -> None:
    """Nobody listens."""


def _monotonic_s() -> float:
    """The running loop's time, which may be virtual; a memory store needs no loop."""
    try:
        return asyncio.get_running_loop().time()
    except RuntimeError:
        return time.monotonic()


@dataclass(frozen=True, slots=True, kw_only=True)
class Pacing:
    """How long to wait before an unclear request is sent again: from `first_s`, doubled up to `max_s`, with jitter.

    After `patience_s` it is given up; None: never. Clock, sleep and randomness are here so that a simulation can give
    its own.
    """

    first_s: float = 0.05
    max_s: float = 10.0
    patience_s: float | None = None
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    jitter: Callable[[], float] = random.random
    monotonic_s: Callable[[], float] = _monotonic_s
    now_us: Callable[[], int] = lambda: time.time_ns() // 1_000
    on_trouble: Trouble = _no_trouble

    async def persist(self, attempt: Callable[[], Awaitable[T]], *, on_trouble: Trouble | None = None) -> T:
        """Repeat `attempt` for as long as it raises StoreUnavailableError, or until patience is at its end.

        Nobody waits for what was waited for already: an error with `waited_s` passes.
        """
        began_s = self.monotonic_s()
        wait_s = self.first_s
        while True:
            try:
                return await attempt()
            except StoreUnavailableError as error:
                if error.waited_s is not None:
                    raise
                waited_s = self.monotonic_s() - began_s
                if self.patience_s is not None and waited_s + wait_s > self.patience_s:
                    raise _given_up(error, waited_s) from error
                (on_trouble or self.on_trouble)(error, waited_s)
                await self.sleep(wait_s * (0.5 + 0.5 * self.jitter()))
                wait_s = min(self.max_s, 2 * wait_s)


def _given_up(error: StoreUnavailableError, waited_s: float) -> StoreUnavailableError:
    advice = (
        f". This was tried for {waited_s:.0f} s and is given up here, so whether it has happened is unknown: look once "
        "the store answers. Instances that run wait for it, and go on by themselves"
    )
    return StoreUnavailableError(f"{error}{advice if waited_s >= 1 else ''}", url=error.url, waited_s=waited_s)


async def persist(attempt: Callable[[], Awaitable[T]], pacing: Pacing | None = None) -> T:
    """See `Pacing.persist`."""
    return await (pacing or Pacing()).persist(attempt)


async def put_settled(store: ObjectStore, key: str, data: bytes, pacing: Pacing) -> bytes | None:
    """Create an object and make sure of its fate: None if it holds our bytes, else the other's bytes."""

    async def attempt() -> bytes | None:
        if await store.put_if_absent(key, data):
            return None
        found = await store.get(key)
        if found is None:
            raise StoreUnavailableError(f"{key} exists and cannot be read; trying again", url=store.url)
        return None if found == data else found

    return await pacing.persist(attempt)
