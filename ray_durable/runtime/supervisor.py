"""The supervisor: keeps every unfinished instance of a hub going, driven from storage alone.

Every few seconds it renews the hub's lease, reads the open set, and makes actors for the instances that have none:
after a loss of the cluster, after an actor that Ray gave up, after a start whose client died. A cap on live actors
leaves the rest Pending until there is room; it counts for each depth of calls on its own, so that instances which wait
for those that they called never keep them from their turn. Chores, such as removing what is retired, go on beside the
rounds. It holds nothing that it could not read again; losing it loses nothing.

A plain class over ports. Invariant: once a newer hub epoch exists, it makes no actor and renews no lease.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Sequence
from typing import Protocol

from ray_durable.errors import DurableError, FencedError
from ray_durable.runtime.chores import Chore, pursue
from ray_durable.runtime.ports import ActorDirectory, Clock
from ray_durable.storage import OpenEntry

__all__ = ["ORPHAN_AGE_US", "HubIndex", "Supervisor"]

logger = logging.getLogger(__name__)

ORPHAN_AGE_US = 3_600 * 1_000_000
"""An entry of the open set without an instance this old belongs to a start that never happened."""


class HubIndex(Protocol):
    """What the supervisor needs of the hub's storage."""

    async def renew_lease(self) -> None:
        """FencedError once another cluster has taken the hub over."""

    async def open_instances(self) -> Sequence[OpenEntry]:
        """The open set, oldest first."""

    async def is_orphan(self, instance_id: str) -> bool:
        """Whether the entry has no instance behind it."""

    async def forget_orphan(self, instance_id: str) -> None:
        """Remove the entry, unless its start turns out to live."""


class Supervisor:
    """See the module."""

    def __init__(
        self,
        index: HubIndex,
        directory: ActorDirectory,
        clock: Clock,
        *,
        live_max: int,
        interval_s: float = 2.0,
        chores: Sequence[Chore] = (),
    ) -> None:
        self._index = index
        self._directory = directory
        self._clock = clock
        self._live_max = live_max
        self._interval_s = interval_s
        self._chores = chores
        self._holds_hub = asyncio.Event()
        self._depths: dict[str, int] = {}
        # Who counts the living and makes more of them does so alone: else two would take the same room.
        self._counting = asyncio.Lock()
        self.rounds = 0

    async def run(self) -> None:
        """Round after round, with the chores beside. Raises FencedError when the hub was taken over."""
        loop = asyncio.get_running_loop()
        tasks = [loop.create_task(work) for work in (self._go_rounds(), *map(self._pursue, self._chores))]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def admit(self, instance_id: str) -> None:
        """An instance was started: make its actor now if there is room; else it stays Pending until there is."""
        async with self._counting:
            live = await self._directory.live()
            if instance_id not in live and self._room(live, self._depths.get(instance_id)) > 0:
                await self._directory.create([instance_id])

    async def activate(self, instance_id: str) -> None:
        """Make this instance's actor now, whatever the cap: somebody wants to talk to it."""
        await self._directory.create([instance_id])

    async def round(self) -> None:
        """One round: lease, open set, missing actors."""
        await self._index.renew_lease()
        self._holds_hub.set()
        open_instances = await self._index.open_instances()
        await self._directory.keep_dispatcher()
        self._depths = {entry.instance_id: entry.depth for entry in open_instances}
        async with self._counting:
            await self._make_missing(open_instances)
        self.rounds += 1

    async def _make_missing(self, open_instances: Sequence[OpenEntry]) -> None:
        live = await self._directory.live()
        rooms: dict[int, int] = {}
        chosen: list[str] = []
        for entry in open_instances:
            if entry.instance_id in live:
                continue
            room = rooms.setdefault(entry.depth, self._room(live, entry.depth))
            if room <= 0 or await self._is_forgotten(entry.instance_id, entry.entered_us):
                continue
            rooms[entry.depth] = room - 1
            chosen.append(entry.instance_id)
        if chosen:
            await self._directory.create(chosen)

    async def _go_rounds(self) -> None:
        complaint = ""
        while True:
            try:
                await self.round()
                complaint = ""
            except FencedError:
                raise
            except DurableError as error:
                # Trouble may last for hours: it is told once.
                if str(error) != complaint:
                    complaint = str(error)
                    logger.warning("supervisor: %s; trying again", complaint)
            await asyncio.sleep(self._interval_s)

    async def _pursue(self, chore: Chore) -> None:
        await self._holds_hub.wait()
        await pursue(chore)

    def _room(self, live: set[str], depth: int | None) -> int:
        """How many more instances of this depth may have an actor. None: the depth is not known yet."""
        if depth is None:
            depths = Counter(self._depths.get(instance_id, 0) for instance_id in live)
            return self._live_max - max(depths.values(), default=0)
        return self._live_max - sum(self._depths.get(instance_id, 0) == depth for instance_id in live)

    async def _is_forgotten(self, instance_id: str, entered_us: int) -> bool:
        """A start writes the open entry first; one that died in between leaves an entry with nothing behind it."""
        if not await self._index.is_orphan(instance_id):
            return False
        if self._clock.now_us() - entered_us > ORPHAN_AGE_US:
            await self._index.forget_orphan(instance_id)
        return True
