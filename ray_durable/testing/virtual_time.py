"""An event loop on virtual time: it never sleeps, and it knows when everything waits for ever.

When nothing is ready, the next timer is due at once. So an hour of retries costs no time, and a test that would hang
fails instead, with `Deadlock`. What runs in threads meanwhile (`outside`) is waited for in real time; virtual time
stands still then. With `is_paced`, time passes only while somebody holds the loop by `request`; otherwise the loop
waits for whoever calls it from another thread.
"""

from __future__ import annotations

import asyncio
import functools
import selectors
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

__all__ = ["Deadlock", "SkippingLoop", "simulate", "simulated"]

P = ParamSpec("P")
T = TypeVar("T")


class Deadlock(Exception):
    """Nothing is ready, and no timer is set: whoever waits does so for ever."""


class _SkippingSelector(selectors.DefaultSelector):
    loop: SkippingLoop

    def select(self, timeout: float | None = None) -> list[Any]:
        ready = super().select(0)
        if ready or timeout == 0:
            return ready
        if self.loop.waits_outside:
            return super().select(None)
        if not self.loop.tell_quiet():
            self.loop.skip(timeout)
        return []


class SkippingLoop(asyncio.SelectorEventLoop):
    """See the module. `now_s` is the virtual time."""

    def __init__(self, *, is_paced: bool = False) -> None:
        selector = _SkippingSelector()
        selector.loop = self
        self.now_s = 1_000.0
        self._is_paced = is_paced
        self._requests = 0
        self._outside = 0
        self._quiet: asyncio.Future[None] | None = None
        self._skipped: asyncio.Future[bool] | None = None
        super().__init__(selector)
        # Timers within so much of now are ready. After half a year, times are further apart than the stock resolution,
        # and a timer that is due would never be.
        self._clock_resolution = 1e-7

    def time(self) -> float:
        return self.now_s

    @property
    def waits_outside(self) -> bool:
        """Whether what happens next happens in another thread."""
        return self._outside > 0 or (self._is_paced and not self._requests)

    @contextmanager
    def request(self) -> Iterator[None]:
        """Somebody waits for something that takes its time."""
        self._requests += 1
        try:
            yield
        finally:
            self._requests -= 1

    def begin_outside(self) -> None:
        """Something runs in a thread that will call back; `end_outside` when it has."""
        self._outside += 1

    def end_outside(self) -> None:
        """See `begin_outside`; to be called on the loop."""
        self._outside -= 1

    async def quiet(self) -> None:
        """Wait until nothing can happen any more without time passing."""
        if self._quiet is None or self._quiet.done():
            self._quiet = self.create_future()
        await asyncio.shield(self._quiet)

    def tell_quiet(self) -> bool:
        """Nothing is ready: wake those who wait for that; whether there were any."""
        if self._quiet is None or self._quiet.done():
            return False
        self._quiet.set_result(None)
        return True

    async def skipped(self) -> bool:
        """Wait until time has passed; False if it never will, since no timer is set."""
        if self._skipped is None or self._skipped.done():
            self._skipped = self.create_future()
        return await asyncio.shield(self._skipped)

    def skip(self, wait_s: float | None) -> None:
        """Nothing happens for so long (None: ever)."""
        if self._skipped is not None and not self._skipped.done():
            self._skipped.set_result(wait_s is not None)
        elif wait_s is None:
            raise Deadlock("everything waits, and no timer is set")
        self.now_s += wait_s or 0.0


def simulate(main: Coroutine[Any, Any, T]) -> T:
    """Run `main` to its end on virtual time."""
    with asyncio.Runner(loop_factory=SkippingLoop) as runner:
        return runner.run(main)


def simulated(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """A test that is a coroutine, run on virtual time."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        simulate(test(*args, **kwargs))

    return run
