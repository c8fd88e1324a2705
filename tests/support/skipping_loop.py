"""An event loop on virtual time: it never sleeps, and it knows when everything waits for ever.

When nothing is ready, the next timer is due at once. So an hour of retries costs no time, and a test that would hang
fails instead, with `Deadlock`. Only for code without threads and sockets: real I/O has no virtual time.
"""

from __future__ import annotations

import asyncio
import functools
import selectors
from collections.abc import Callable, Coroutine
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
        if not ready and timeout is None:
            raise Deadlock("everything waits, and no timer is set")
        if not ready and timeout:
            self.loop.now_s += timeout
        return ready


class SkippingLoop(asyncio.SelectorEventLoop):
    """See the module. `now_s` is the virtual time."""

    def __init__(self) -> None:
        selector = _SkippingSelector()
        selector.loop = self
        self.now_s = 1_000.0
        super().__init__(selector)

    def time(self) -> float:
        return self.now_s


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
