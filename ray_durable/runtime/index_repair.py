"""Repair of the index: the open set, the summaries of ended instances and the queue of removals, held against the logs.

All of these are derived, and can be wrong for once: a request that was given up may be carried out minutes later, and
undo what was entered since; somebody may have removed a folder, or put an older one back. The chore compares names, a
listing for each thousand objects, and reads the logs of those instances alone that look wrong; an operator can have all
logs looked at. What is missing is entered, what is false removed, and a log is never changed.

Everything that a repair does may meet an owner that does the same, or goes on meanwhile: entries are added for
instances that have not ended, which an owner removes again after their end; summaries are written as an owner writes
them; and whatever was removed is looked at once more.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field

from ray_durable.engine import (
    Event,
    ExecutionCompleted,
    ExecutionStarted,
    TimerCanceled,
    TimerCreated,
    TimerFired,
)
from ray_durable.errors import CorruptLogError, InstanceNotFoundError
from ray_durable.runtime.correspondence import owes
from ray_durable.runtime.hub import OpenHub
from ray_durable.runtime.lifecycle import open_entry, started_of
from ray_durable.runtime.ports import Clock
from ray_durable.storage import (
    InstanceNames,
    OpenEntry,
    Retired,
    Segment,
    ended_key,
    ended_names,
    find_ended,
    find_instance_id,
    find_open,
    is_there,
    list_executions,
    list_instances,
    list_open,
    list_queued,
    persist,
    read_tail,
    remove_ended,
    retire,
)

__all__ = ["IndexRepair", "RepairReport", "repair_index"]

logger = logging.getLogger(__name__)

_FIRST_S = 30.0
"""What the last holder of the hub had still begun is done by then."""

_PAUSE_S = 900.0
_READS_AT_ONCE = 16
_LOOKS_MAX = 5

Wake = Callable[[str], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class RepairReport:
    """What a repair found: how many instances it looked at, what it mended, a line each, and the ids of those whose log
    it cannot read, which are left as they are (storage/verify.py says more)."""

    instances: int
    mended: tuple[str, ...]
    unreadable: tuple[str, ...]


@dataclass(slots=True)
class _Listing:
    """What the names of the index say, by encoded id."""

    entries: frozenset[str]
    summaries: dict[str, list[str]]
    queued: frozenset[str]

    def shape(self, names: InstanceNames) -> int:
        """Tells whether an instance looks as it did when it was last read."""
        summaries = tuple(self.summaries.get(names.name, ()))
        return hash((names.executions, names.purged, summaries, names.name in self.queued))

    def is_doubtful(self, names: InstanceNames) -> bool:
        """Whether names alone do not show that all is well.

        They do for instances that are open and have no summary, and for those with one summary and one execution: a
        second execution could have been begun behind the summary of the first.
        """
        summaries = self.summaries.get(names.name, ())
        if not names.present:
            return bool(summaries) or (bool(names.remains) and names.name not in self.queued)
        if names.name in self.entries:
            return bool(summaries)
        return len(summaries) != 1 or names.executions != (1,) or bool(names.purged)


class IndexRepair:
    """The chore; see the module. `wake` has the supervisor see to an instance that seems to rest.

    The first look is after `first_s`, each further one `pause_s` after the last.
    """

    name = "repairing the index"

    def __init__(
        self,
        hub: OpenHub,
        clock: Clock,
        open_instances: Callable[[], Awaitable[Sequence[OpenEntry]]],
        wake: Wake,
        *,
        first_s: float = _FIRST_S,
        pause_s: float = _PAUSE_S,
    ) -> None:
        self._hub = hub
        self._clock = clock
        self._open_instances = open_instances
        self._wake = wake
        self._first_s = first_s
        self._pause_s = pause_s
        # Instances that names alone do not clear, as they looked when they were found to be right.
        self._sound: dict[str, int] = {}

    async def run(self) -> None:
        """See `Chore`."""
        await asyncio.sleep(self._first_s)
        while True:
            await self.look_through()
            await asyncio.sleep(self._pause_s)

    async def look_through(self) -> RepairReport:
        """Mend what looks wrong by its names."""
        entries = await self._open_instances()
        return await _Repair(self._hub, self._clock, self._wake, self._sound).run(entries)


async def repair_index(hub: OpenHub, clock: Clock, wake: Wake) -> RepairReport:
    """Hold the whole index against every log of the hub."""
    entries = await list_open(hub.store, hub.keys)
    return await _Repair(hub, clock, wake, None).run(entries)


@dataclass(slots=True)
class _Repair:
    """One look. `sound` are those that need not be read again; None: all are read. It is brought up to date."""

    hub: OpenHub
    clock: Clock
    wake: Wake
    sound: dict[str, int] | None
    instances: int = 0
    mended: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)

    async def run(self, entries: Iterable[OpenEntry]) -> RepairReport:
        store, keys = self.hub.store, self.hub.keys
        listing = _Listing(
            entries=frozenset(keys.open_entry(entry.instance_id).removeprefix(keys.open_set) for entry in entries),
            summaries=await ended_names(store, keys),
            queued=frozenset(await list_queued(store, keys)),
        )
        unclaimed = set(listing.summaries)
        doubtful: list[InstanceNames] = []
        async for names in list_instances(store, keys):
            self.instances += 1
            if names.executions:
                unclaimed.discard(names.name)
            if self._is_to_be_read(names, listing):
                doubtful.append(names)
            if len(doubtful) == _READS_AT_ONCE:
                await self._check_all(doubtful, listing)
                doubtful.clear()
        await self._check_all(doubtful, listing)
        for name in unclaimed:
            # A tombstone at most: the summary of an instance that is gone, or never was.
            for key in listing.summaries[name]:
                await self._remove_summary(key, f"{name}: removed a summary that no instance stands behind")
        return RepairReport(
            instances=self.instances, mended=tuple(self.mended), unreadable=tuple(sorted(self.unreadable))
        )

    def _is_to_be_read(self, names: InstanceNames, listing: _Listing) -> bool:
        if self.sound is None:
            return True
        if not listing.is_doubtful(names):
            self.sound.pop(names.name, None)
            return False
        return self.sound.get(names.name) != listing.shape(names)

    async def _check_all(self, doubtful: Sequence[InstanceNames], listing: _Listing) -> None:
        await asyncio.gather(*(self._check(names, listing) for names in doubtful))

    async def _check(self, names: InstanceNames, listing: _Listing) -> None:
        instance_id = await find_instance_id(self.hub.store, self.hub.keys, names)
        if instance_id is None:
            return  # nobody's folder
        before = len(self.mended)
        try:
            is_open = await self._mend_while_there(instance_id, names, listing)
        except CorruptLogError:
            self.unreadable.append(instance_id)
            return
        if self.sound is not None and not is_open and len(self.mended) == before:
            self.sound[names.name] = listing.shape(names)

    async def _mend_while_there(self, instance_id: str, names: InstanceNames, listing: _Listing) -> bool:
        for _ in range(_LOOKS_MAX):
            # One that is purged or removed meanwhile is looked at as that.
            with contextlib.suppress(InstanceNotFoundError):
                return await self._mend(
                    instance_id,
                    listing.summaries.get(names.name, ()),
                    has_remains=bool(names.remains),
                    is_queued=names.name in listing.queued,
                )
        raise CorruptLogError(
            f"{names.folder} has names of executions, and none can be read: run storage/verify.py", key=names.folder
        )

    async def _mend(self, instance_id: str, summaries: Sequence[str], *, has_remains: bool, is_queued: bool) -> bool:
        """Mend what belongs to an instance; whether it is in the open set."""
        hub = self.hub
        while True:
            executions = await list_executions(hub.store, hub.keys, instance_id)
            latest, tail = executions.latest, None
            if latest is not None:
                tail = await self._tail(instance_id, latest)
            has_removed = await self._remove_false(instance_id, tail, summaries)
            if not has_removed or await self._is_still(instance_id, tail):
                break
        if tail is None:
            if has_remains:
                await self._queue_removal(instance_id, executions.purged, is_queued=is_queued)
            return False
        entry = await find_open(hub.store, hub.keys, instance_id)
        if not isinstance(hub.events_of(tail)[-1], ExecutionCompleted):
            await self._see_open(instance_id, tail, entry)
            return True
        if entry is not None:
            return True  # its owner, or the one that the supervisor makes, does what is left to do at its end
        if not await self._has_summary(tail):
            await self._finish(instance_id)
        elif len(executions.numbers) > 1:
            await self._queue_removal(instance_id, executions.numbers[-2], is_queued=is_queued)
        return False

    async def _tail(self, instance_id: str, execution: int) -> Segment:
        hub = self.hub
        return await persist(lambda: read_tail(hub.store, hub.keys, instance_id, execution))

    async def _is_still(self, instance_id: str, tail: Segment | None) -> bool:
        """Whether an instance is where it was: else something that was right by now may have been removed."""
        try:
            now = await self.hub.tail(instance_id)
        except InstanceNotFoundError:
            return tail is None
        return tail is not None and now.key == tail.key

    async def _remove_false(self, instance_id: str, tail: Segment | None, summaries: Iterable[str]) -> bool:
        """Remove summaries of what is not the end of the instance; whether there were any."""
        hub, right = self.hub, None
        if tail is not None and isinstance(hub.events_of(tail)[-1], ExecutionCompleted):
            right = self._summary_key(tail)
        has_removed = False
        for key in summaries:
            if key == right:
                continue
            summary = await find_ended(hub.store, hub.keys, key)
            if summary is not None and not await self._is_still(instance_id, tail):
                return True  # this may be its end by now
            what = f"{instance_id}: removed a summary of what is not its end"
            has_removed = await self._remove_summary(key, what) or has_removed
        return has_removed

    async def _remove_summary(self, key: str, what: str) -> bool:
        if not await is_there(self.hub.store, key):
            return False
        await remove_ended(self.hub.store, key)
        self._note(what)
        return True

    async def _see_open(self, instance_id: str, tail: Segment, entry: OpenEntry | None) -> None:
        """An instance that has not ended is in the open set, and no hint keeps it from its next timer."""
        if entry is None:
            if await self._is_still(instance_id, tail):
                started = await self.hub.started(instance_id)
                await self.hub.keep_open(open_entry(started, self.clock.now_us()))
                self._note(f"{instance_id}: entered into the open set, since it has not ended")
            return
        if entry.wake is None:
            return
        place, end = (entry.wake.execution, entry.wake.tail_seq), (tail.header.execution, tail.header.seq)
        if place < end:
            return  # it does not count
        if place == end:
            _, history = await self.hub.read_log(instance_id)
            due_us = _next_timer_us(history)
            if due_us is None or (entry.wake.due_us is not None and entry.wake.due_us <= due_us):
                return
        elif not await self._is_still(instance_id, tail):
            return  # its owner left it just now
        await self.hub.enter(dataclasses.replace(entry, wake=None))
        await self.wake(instance_id)
        self._note(f"{instance_id}: removed a hint that would have kept it from going on")

    def _summary_key(self, tail: Segment) -> str:
        key = ended_key(self.hub.keys, tail.header.status)
        if key is None:
            raise CorruptLogError(
                f"{tail.key} has a status that no summary can be made of: run storage/verify.py", key=tail.key
            )
        return key

    async def _has_summary(self, tail: Segment) -> bool:
        key = self._summary_key(tail)
        summary = await find_ended(self.hub.store, self.hub.keys, key)
        return summary is not None and all(summary.get(name) == value for name, value in tail.header.status.items())

    async def _finish(self, instance_id: str) -> None:
        """Do what the owner of an ended instance does last; have an owner made if there are messages to be brought."""
        log, history = await self.hub.read_log(instance_id)
        if not isinstance(history[-1], ExecutionCompleted):
            return  # it has gone on, and is in the open set
        started = started_of(history)
        entry = open_entry(started, started.time_us)
        if owes(history, is_rewound=False) or started.execution > 1:
            await self.hub.enter(entry)
            self._note(f"{instance_id}: entered into the open set, to do what is left to do at its end")
        elif await self.hub.record_end(log, entry, None):
            self._note(f"{instance_id}: listed among those that have ended")

    async def _queue_removal(self, instance_id: str, through: int, *, is_queued: bool) -> None:
        """Executions that nobody sees any more are removed, after the grace period."""
        if is_queued:
            return
        due_us = self.clock.now_us() + await self.hub.grace_us()
        retired = Retired(instance_id=instance_id, through=through, due_us=due_us)
        await retire(self.hub.store, self.hub.keys, retired)
        self._note(f"{instance_id}: queued the removal of its executions up to {through}")

    def _note(self, what: str) -> None:
        self.mended.append(what)
        logger.warning("the index was wrong. %s", what)


def _next_timer_us(history: Iterable[Event]) -> int | None:
    """When the next timer of a history is due, by its events alone."""
    due: dict[int, int] = {}
    for event in history:
        if isinstance(event, TimerCreated):
            due[event.number] = event.due_us
        elif isinstance(event, TimerFired | TimerCanceled):
            due.pop(event.timer, None)
        elif isinstance(event, ExecutionStarted) and event.due_us is not None:
            due[event.number] = event.due_us
    return min(due.values(), default=None)
