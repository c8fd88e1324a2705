"""The supervisor: keeps every unfinished instance of a hub going, driven from storage alone.

Every few seconds it renews the hub's lease, reads the open set, and makes actors for the instances that have none:
after a loss of the cluster, after an actor that Ray gave up, after a start whose client died. Those whose last owner
left them idle rest, without an actor, until they are due or somebody wants to talk to them. A cap on live actors leaves
the others Pending until there is room; it counts for each depth of calls on its own, so that instances which wait for
those that they called never keep them from their turn. Chores, such as removing what is retired, go on beside the
rounds. It holds nothing that it could not read again; losing it loses nothing.

A hint is read when an instance is found without an actor, and kept in memory. It can be relied on as long as nobody but
this supervisor makes actors: so it forgets what it knows of one for which it makes an actor, or that has one. What else
might go on with an instance, such as the end of an older cluster, shows when hints are looked at again.

A plain class over ports. Invariant: once a newer hub epoch exists, it makes no actor and renews no lease.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from typing import Protocol

from ray_durable.errors import ClusterConnectionError, DurableError, FencedError
from ray_durable.runtime.chores import Chore, pursue
from ray_durable.runtime.ports import ActorDirectory, Clock
from ray_durable.runtime.resting import Rest, Resting
from ray_durable.storage import OpenEntry

__all__ = ["ORPHAN_AGE_US", "HubIndex", "Supervisor"]

logger = logging.getLogger(__name__)

ORPHAN_AGE_US = 3_600 * 1_000_000
"""An entry of the open set without an instance this old, and seen that long, belongs to a start that never happened."""

_RENEWAL_AGE_S_MAX = 5.0
"""Who has not renewed the lease for longer, since its process was stopped, does so before it makes an actor."""

_SETTLING_S = 30.0
"""What a cluster that this one replaced had still begun shows by then."""

_AT_ONCE = 32


class HubIndex(Protocol):
    """What the supervisor needs of the hub's storage."""

    async def renew_lease(self) -> None:
        """FencedError once another cluster has taken the hub over."""

    async def open_instances(self) -> Sequence[OpenEntry]:
        """The open set, oldest first. What changed in an entry since it was first listed need not show."""

    async def find_rest(self, instance_id: str) -> Rest | None:
        """The hint that its last owner left, if it holds."""

    async def holds(self, rest: Rest) -> bool:
        """Whether the hint still holds."""

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
        self._renewed_s: float | None = None
        self._began_s: float | None = None
        self._is_settled = False
        # Entries without an instance, and since when each was seen.
        self._orphans: dict[str, float] = {}
        self._depths: dict[str, int] = {}
        self._resting = Resting(clock)
        # Without an actor, and known not to rest: there was no room yet.
        self._waiting: set[str] = set()
        # Those for which an actor is being made, and those for which one was since the last look at living ones.
        self._making: Counter[str] = Counter()
        self._made: set[str] = set()
        self._watched: dict[str, asyncio.Future[None]] = {}
        # Who counts the living and makes more of them does so alone: else two would take the same room.
        self._counting = asyncio.Lock()
        self._complaint = ""
        self.rounds = 0

    @property
    def resting_count(self) -> int:
        """How many instances are known to wait without an actor."""
        return len(self._resting)

    async def run(self) -> None:
        """Round after round, with the chores beside. Raises FencedError when the hub was taken over."""
        loop = asyncio.get_running_loop()
        work = (self._go_rounds(), self._keep_lease(), self._wake_when_due(), *map(self._pursue, self._chores))
        tasks = [loop.create_task(one) for one in work]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def admit(self, instance_id: str) -> None:
        """An instance was started, or goes on: make its actor now if there is room; else it waits until there is."""
        await self._require_hub()
        self._resting.discard(instance_id)
        async with self._counting:
            live = await self._directory.live()
            if instance_id not in live and self._room(live, self._depths.get(instance_id)) > 0:
                await self._create([instance_id])

    async def activate(self, instance_id: str) -> None:
        """Make this instance's actor now, whatever the cap: somebody wants to talk to it.

        Raises:
            ClusterConnectionError: whether this cluster still holds the hub cannot be told at the moment.
        """
        await self._require_hub()
        await self._create([instance_id])

    async def wait_woken(self, instance_id: str, timeout_s: float) -> None:
        """Wait until an instance without an actor gets one, or leaves the open set, at most so long.

        Returns at once if nothing is known of such an instance.
        """
        if instance_id not in self._resting and instance_id not in self._waiting:
            return
        woken = self._watched.get(instance_id)
        if woken is None:
            woken = self._watched[instance_id] = asyncio.get_running_loop().create_future()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(woken), timeout_s)

    async def round(self) -> None:
        """One round: lease, open set, missing actors."""
        await self._renew()
        open_instances = await self._index.open_instances()
        await self._directory.keep_dispatcher()
        self._depths = {entry.instance_id: entry.depth for entry in open_instances}
        async with self._counting:
            await self._make_missing(open_instances)
        self.rounds += 1

    async def _make_missing(self, open_instances: Sequence[OpenEntry]) -> None:
        self._made = set(self._making)
        live = await self._directory.live()
        self._settle()
        missing = [entry for entry in open_instances if entry.instance_id not in live]
        self._remember({entry.instance_id for entry in missing})
        self._waiting.update(self._resting.take_due())
        await self._look_again()
        rooms: dict[int, int] = {}
        for begin in range(0, len(missing), _AT_ONCE):
            group = missing[begin : begin + _AT_ONCE]
            await self._learn(entry.instance_id for entry in group)
            chosen = [entry.instance_id async for entry in self._choose(group, live, rooms)]
            if chosen:
                await self._create(chosen)

    async def _choose(
        self, entries: Sequence[OpenEntry], live: set[str], rooms: dict[int, int]
    ) -> AsyncIterator[OpenEntry]:
        """Those that get an actor; `rooms` is what is left for each depth."""
        for entry in entries:
            if entry.instance_id not in self._waiting:
                continue
            room = rooms.setdefault(entry.depth, self._room(live, entry.depth))
            if room <= 0:
                continue
            if await self._is_forgotten(entry.instance_id, entry.entered_us):
                # Once its start comes true, its hint counts.
                self._waiting.discard(entry.instance_id)
                continue
            rooms[entry.depth] = room - 1
            yield entry

    def _remember(self, missing: set[str]) -> None:
        """Forget what has an actor or is not open any more, and tell those who wait for that."""
        self._resting.keep(missing)
        self._waiting &= missing
        self._tell_woken([instance_id for instance_id in self._watched if instance_id not in missing])

    async def _learn(self, missing: Iterable[str]) -> None:
        """Read the hints of those of which nothing is known."""
        unknown = [id_ for id_ in missing if id_ not in self._resting and id_ not in self._waiting]
        rests = await asyncio.gather(*map(self._index.find_rest, unknown))
        for instance_id, rest in zip(unknown, rests, strict=True):
            if instance_id in self._made or instance_id in self._making:
                continue  # it has an actor by now, which knows better
            if rest is None:
                self._waiting.add(instance_id)
            else:
                self._resting.add(instance_id, rest)
        self._waiting.update(self._resting.take_due())

    async def _look_again(self) -> None:
        """Look at one hint again, another one each round: an actor of another cluster may have gone on with it."""
        found = self._resting.next_to_check()
        if found is not None and not await self._index.holds(found[1]) and found[0] in self._resting:
            self._resting.discard(found[0])
            self._waiting.add(found[0])

    def _settle(self) -> None:
        """Read all hints once more when this cluster has held the hub for a moment."""
        now_s = self._clock.monotonic_s()
        if self._began_s is None:
            self._began_s = now_s
        if not self._is_settled and now_s - self._began_s >= _SETTLING_S:
            self._is_settled = True
            self._resting.clear()

    async def _create(self, instance_ids: Sequence[str]) -> None:
        for instance_id in instance_ids:
            self._resting.discard(instance_id)
            self._waiting.discard(instance_id)
        self._making.update(instance_ids)
        try:
            await self._directory.create(instance_ids)
        finally:
            self._made.update(instance_ids)
            self._making.subtract(instance_ids)
            self._making += Counter()  # drops what is zero
        self._tell_woken(instance_ids)

    def _tell_woken(self, instance_ids: Iterable[str]) -> None:
        for instance_id in instance_ids:
            woken = self._watched.pop(instance_id, None)
            if woken is not None and not woken.done():
                woken.set_result(None)

    async def _renew(self) -> None:
        await self._index.renew_lease()
        self._renewed_s = self._clock.monotonic_s()
        self._holds_hub.set()

    def _renewal_age_s(self) -> float:
        return float("inf") if self._renewed_s is None else self._clock.monotonic_s() - self._renewed_s

    async def _require_hub(self) -> None:
        if self._renewal_age_s() > _RENEWAL_AGE_S_MAX:
            try:
                await self._renew()
            except FencedError:
                raise
            except DurableError as error:
                raise ClusterConnectionError(f"The hub's supervisor cannot renew its lease: {error}") from error

    async def _go_rounds(self) -> None:
        while True:
            await self._try(self.round)
            await asyncio.sleep(self._interval_s)

    async def _keep_lease(self) -> None:
        """Renew the lease while a round takes long."""
        while True:
            await asyncio.sleep(self._interval_s)
            if self._renewal_age_s() > 2 * self._interval_s:
                await self._try(self._renew)

    async def _wake_when_due(self) -> None:
        """Make actors for those that are due, without waiting for the next round."""
        while True:
            await self._resting.wait_due()
            await self._try(self._wake)

    async def _wake(self) -> None:
        due = self._resting.take_due()
        self._waiting.update(due)
        await self._require_hub()
        async with self._counting:
            live = await self._directory.live()
            rooms: dict[int, int] = {}
            chosen = []
            for instance_id in due:
                depth = self._depths.get(instance_id, 0)
                room = rooms.setdefault(depth, self._room(live, depth))
                if room > 0 and instance_id not in live:
                    rooms[depth] = room - 1
                    chosen.append(instance_id)
            if chosen:
                await self._create(chosen)

    async def _try(self, work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
            self._complaint = ""
        except FencedError:
            raise
        except DurableError as error:
            # Trouble may last for hours: it is told once.
            if str(error) != self._complaint:
                self._complaint = str(error)
                logger.warning("supervisor: %s; trying again", error)

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
            self._orphans.pop(instance_id, None)
            return False
        # By the clock that never jumps as well: one that is an hour wrong would take a start's entry away beneath it.
        now_s = self._clock.monotonic_s()
        seen_s = now_s - self._orphans.setdefault(instance_id, now_s)
        if min(self._clock.now_us() - entered_us, seen_s * 1_000_000) > ORPHAN_AGE_US:
            await self._index.forget_orphan(instance_id)
            self._orphans.pop(instance_id, None)
        return True
