"""Seeing that an orchestrator keeps its thread: code that computes, sleeps or waits without giving the loop its turn.

Nothing can happen in the instance meanwhile: no outcome is taken, no event, no control call. The watch lives on another
thread's loop. It asks the turns' loop for a sign of life, and where none comes for a while it tells the line and the
stack of the code; once a sign comes again, it tells that too.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Awaitable, Callable

__all__ = ["LoopWatch"]

logger = logging.getLogger(__name__)

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep

_PAUSE_S = 1.0
_BLOCKED_S = 5.0


class LoopWatch:
    """See the module. `loop` runs on another thread; `report` gets the stack of one that blocks, then None."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        report: Callable[[str | None], Awaitable[None]],
        *,
        blocked_s: float = _BLOCKED_S,
    ) -> None:
        self._loop = loop
        self._report = report
        self._blocked_s = blocked_s
        self._thread = 0
        self._seen_s = time.monotonic()
        self._is_reported = False

    @property
    def is_blocked(self) -> bool:
        """Whether the loop has given no sign of life for a while."""
        return time.monotonic() - self._seen_s > self._blocked_s

    def stack(self) -> str | None:
        """Where the code is that blocks the loop; None if it does not block."""
        frame = sys._current_frames().get(self._thread) if self.is_blocked else None
        return None if frame is None else "".join(traceback.format_list(_of_the_user(traceback.extract_stack(frame))))

    async def run(self) -> None:
        """Watch, for ever."""
        answered = True
        while True:
            if answered:
                answered = False
                asked = threading.Event()
                self._loop.call_soon_threadsafe(self._sign, asked)
            slept_s = time.monotonic()
            await asyncio.sleep(_PAUSE_S)
            answered = asked.is_set()
            if time.monotonic() - slept_s > self._blocked_s:
                # It was the process that stood still, this watch included: that says nothing of the code.
                self._seen_s = time.monotonic()
            if self.is_blocked != self._is_reported:
                self._is_reported = not self._is_reported
                await self._tell(self.stack())

    async def _tell(self, stack: str | None) -> None:
        try:
            await self._report(stack)
        except Exception:
            logger.exception("what the watch found cannot be told")

    def _sign(self, asked: threading.Event) -> None:
        self._thread = threading.get_ident()
        self._seen_s = time.monotonic()
        asked.set()


def _of_the_user(frames: list[traceback.FrameSummary]) -> list[traceback.FrameSummary]:
    """The frames of the code that the library called; all of them, if it is the library's own that blocks."""
    own = [place for place, frame in enumerate(frames) if frame.filename.startswith(_PACKAGE)]
    called = frames[own[-1] + 1 :] if own else frames
    return called or frames
