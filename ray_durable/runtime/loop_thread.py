"""An event loop on a thread of its own, for code that lives beside another loop or beside none.

Whoever waits for a coroutine gets an answer, whatever happens to the loop: its result, its error, or ClosedError once
the loop was stopped.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import threading
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from ray_durable.errors import ClosedError

__all__ = ["LoopThread"]

T = TypeVar("T")

logger = logging.getLogger(__name__)

_END_S_MAX = 5.0


class LoopThread:
    """Runs coroutines on its own daemon thread, from any other."""

    def __init__(self, *, name: str, loop: asyncio.AbstractEventLoop | None = None) -> None:
        self.loop = asyncio.new_event_loop() if loop is None else loop
        self._name = name
        self._lock = threading.Lock()
        self._is_stopped = False
        self._last: Callable[[], Awaitable[None]] | None = None
        self._unfinished: set[concurrent.futures.Future[Any]] = set()
        self._thread = threading.Thread(target=self._live, name=f"ray_durable {name}", daemon=True)
        self._thread.start()

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        """Start `coroutine` on the loop. ClosedError, now or from the future, if the loop was stopped."""
        with self._lock:
            if self._is_stopped:
                coroutine.close()
                raise self._closed()
            future = asyncio.run_coroutine_threadsafe(self._until_stopped(coroutine), self.loop)
            self._unfinished.add(future)
        future.add_done_callback(self._unfinished.discard)
        return future

    def run(self, coroutine: Coroutine[Any, Any, T], timeout_s: float | None = None) -> T:
        """Run `coroutine` on the loop and wait for its result; interrupted, it is cancelled.

        Raises:
            ClosedError: the loop was stopped, before or meanwhile.
        """
        future = self.submit(coroutine)
        try:
            return future.result(timeout_s)
        except BaseException:
            future.cancel()
            raise

    def stop(self, last: Callable[[], Awaitable[None]] | None = None) -> None:
        """Cancel what runs, then do `last`, then end the loop and its thread. Harmless the second time.

        Not to be called from the loop itself. What blocks the loop is left behind after a while.
        """
        with self._lock:
            if not self._is_stopped:
                self._is_stopped = True
                self._last = last
                self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(timeout=3 * _END_S_MAX)
        for future in tuple(self._unfinished):
            with contextlib.suppress(concurrent.futures.InvalidStateError):
                future.set_exception(self._closed())

    def _live(self) -> None:
        try:
            self.loop.run_forever()
            self.loop.run_until_complete(self._end())
        finally:
            self.loop.close()

    async def _end(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=_END_S_MAX)
        if self._last is not None:
            try:
                async with asyncio.timeout(_END_S_MAX):
                    await self._last()
            except Exception as error:
                # Whatever it gave back is gone with the process at the latest.
                logger.warning("%s: closing failed: %r", self._name, error)
        await self.loop.shutdown_asyncgens()

    async def _until_stopped(self, coroutine: Coroutine[Any, Any, T]) -> T:
        try:
            return await coroutine
        except asyncio.CancelledError:
            if self._is_stopped:
                raise self._closed() from None
            raise

    def _closed(self) -> ClosedError:
        return ClosedError("This hub is closed: connect again")
