"""Results of a map, handed out as they arrive."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence
from typing import Any, Generic, TypeVar

__all__ = ["Arrivals"]

R = TypeVar("R")


class Arrivals(AsyncIterator[tuple[int, R]], Generic[R]):
    """An async iterator of (index, result), in the order of arrival; one consumer at a time.

    A map that fails raises its error behind the results that came before. Leaving the loop early leaves the map
    running: `aclose`, or `async with contextlib.aclosing(...)`, withdraws the rest.
    """

    def __init__(self) -> None:
        self._ready: deque[tuple[int, R]] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._map: asyncio.Future[list[R]] | None = None

    def follow(self, future: asyncio.Future[list[R]]) -> None:
        """`future` tells when there is no more to come."""
        self._map = future
        future.add_done_callback(self._wake)

    def on_results(self, start: int, outcomes: Sequence[R]) -> None:
        """The items from `start` on have these outcomes."""
        self._ready.extend(enumerate(outcomes, start))
        self._wake()

    async def __anext__(self) -> tuple[int, R]:
        assert self._map is not None, "nothing arrives before `follow`"
        while not self._ready:
            if self._map.done():
                if not self._map.cancelled():
                    self._map.result()
                raise StopAsyncIteration
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        return self._ready.popleft()

    async def aclose(self) -> None:
        """Withdraw what has not arrived yet, and hand out nothing more."""
        assert self._map is not None, "nothing can be withdrawn before `follow`"
        self._ready.clear()
        self._map.cancel()

    def _wake(self, _: Any = None) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
