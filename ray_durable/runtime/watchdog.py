"""Ending processes that are stopped and still look alive, so that others take their place.

Ray takes a process for alive as long as its connections stand; one that was stopped, or hangs below Python, keeps them.
Each process is asked again and again for a sign of life. Its host answers on a loop of its own, also while user code
blocks the turns: who does not answer for long does nothing else either. What it still does once it goes on, the logs
refuse.

Processes that start are not asked for anything. Whoever watches may itself have been stopped, or have had no processor:
what it did not hear then counts for nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from ray_durable.errors import ClusterConnectionError
from ray_durable.runtime.ports import Clock

__all__ = ["Processes", "Watchdog"]

logger = logging.getLogger(__name__)

_ASKED_TIMES = 3
"""So often in a row a process is asked before it is given up."""

_AT_ONCE = 32
_LATE_S_MAX = 1.0


class Processes(Protocol):
    """The processes of actors. Every method raises ClusterConnectionError if the cluster does not answer."""

    async def names(self) -> Sequence[str]:
        """The actors to watch."""

    async def ask(self, name: str) -> None:
        """Returns when the actor's process has answered. ClusterConnectionError if there is none."""

    async def process(self, name: str) -> str | None:
        """What tells this process of the actor from others; None if it has none yet, or none any more."""

    async def replace(self, name: str) -> None:
        """End the process, whatever it does, and let another one take its place."""


@dataclass(frozen=True, slots=True)
class _Silence:
    process: str
    times: int


class Watchdog:
    """The chore of watching processes; one that has not answered for about `silence_s` is replaced."""

    name = "watching processes"

    def __init__(self, processes: Processes, clock: Clock, *, silence_s: float) -> None:
        self._processes = processes
        self._clock = clock
        self._patience_s = silence_s / _ASKED_TIMES
        self._silences: dict[str, _Silence] = {}
        self._places = asyncio.Semaphore(_AT_ONCE)

    async def run(self) -> None:
        """See `Chore`."""
        while True:
            await self.look()
            if not self._silences:
                await asyncio.sleep(self._patience_s)

    async def look(self) -> None:
        """Ask each process once."""
        names = await self._processes.names()
        self._silences = {name: silence for name, silence in self._silences.items() if name in names}
        await asyncio.gather(*map(self._look_at, names))

    async def _look_at(self, name: str) -> None:
        async with self._places:
            began_s = self._clock.monotonic_s()
            try:
                async with asyncio.timeout(self._patience_s):
                    await self._processes.ask(name)
            except ClusterConnectionError:
                self._silences.pop(name, None)
                return
            except TimeoutError:
                if self._clock.monotonic_s() - began_s > self._patience_s + _LATE_S_MAX:
                    return  # it was we who were late
            else:
                self._silences.pop(name, None)
                return
        with contextlib.suppress(ClusterConnectionError):
            await self._note_silence(name)

    async def _note_silence(self, name: str) -> None:
        process = await self._processes.process(name)
        if process is None:
            self._silences.pop(name, None)
            return
        known = self._silences.get(name)
        times = known.times + 1 if known is not None and known.process == process else 1
        self._silences[name] = _Silence(process, times)
        if times >= _ASKED_TIMES:
            logger.warning("%s: its process (%s) is stopped, or hangs; another one takes its place", name, process)
            del self._silences[name]
            await self._processes.replace(name)
