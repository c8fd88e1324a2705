"""The chore of starting what schedules say, when it is due.

Per schedule, in the order of the times: start the instance, then note in a new revision that the firing is settled. A
death in between, a second supervisor, or one that was stopped for an hour: whoever comes to the firing again finds the
instance by its id, which is made of schedule and time, and starts nothing. What the overlap policy skips is decided
when it is looked at; the note is what makes it final.

A schedule that fails (its store, an instance that does not answer) keeps no other from its firings, and is tried again.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from typing import Protocol

from ray_durable.errors import (
    CorruptLogError,
    DurableError,
    FencedError,
    InstanceEndedError,
    InstanceExistsError,
    InstanceNotFoundError,
    ScheduleNotFoundError,
)
from ray_durable.runtime.hub import OpenHub
from ray_durable.runtime.lifecycle import start_instance
from ray_durable.runtime.ports import Clock
from ray_durable.runtime.schedules import Schedule, change_schedule
from ray_durable.storage import ScheduleRecord, list_executions, list_schedules

__all__ = ["FireSchedules", "ScheduledInstances"]

logger = logging.getLogger(__name__)

_LOOK_S = 2.0
_RETRY_US = 10_000_000


class ScheduledInstances(Protocol):
    """The way to instances. Every method raises ClusterConnectionError when the other side does not answer."""

    async def admit(self, instance_id: str) -> None:
        """An instance was started: let somebody own it. Nobody waits for that."""

    async def terminate(self, instance_id: str, reason: str, request_id: str) -> None:
        """Returns when the end is durable. InstanceEndedError, InstanceNotFoundError if there is nothing to end."""


@dataclasses.dataclass(slots=True)
class _Watched:
    """A schedule as it was last read, and when to look at it next."""

    revision: int
    schedule: Schedule
    next_us: int


class FireSchedules:
    """See the module. `look_s` is how often it looks for schedules that were changed; `look` makes it do so at once."""

    name = "firing schedules"

    def __init__(
        self, hub: OpenHub, clock: Clock, instances: ScheduledInstances, *, look_s: float | None = _LOOK_S
    ) -> None:
        self._hub = hub
        self._clock = clock
        self._instances = instances
        self._look_s = look_s
        self._records: dict[str, ScheduleRecord] = {}
        self._watched: dict[str, _Watched] = {}
        self._changed = asyncio.Event()

    def look(self) -> None:
        """A schedule was changed."""
        self._changed.set()

    async def run(self) -> None:
        """See `Chore`."""
        while True:
            self._changed.clear()
            await self.round()
            try:
                async with asyncio.timeout(self._pause_s()):
                    await self._changed.wait()
            except TimeoutError:
                pass

    async def round(self) -> None:
        """Read what was changed, and fire what is due."""
        await self._read()
        now_us = self._clock.now_us()
        due = [watched for watched in self._watched.values() if watched.next_us <= now_us]
        await asyncio.gather(*map(self._attend, due))

    def _pause_s(self) -> float | None:
        pauses = [max(0, watched.next_us - self._clock.now_us()) / 1_000_000 for watched in self._watched.values()]
        return min([*pauses, *([] if self._look_s is None else [self._look_s])], default=None)

    async def _read(self) -> None:
        hub = self._hub
        records = await list_schedules(hub.store, hub.keys, cache=self._records)
        present: dict[str, _Watched] = {}
        for record in records:
            known = self._watched.get(record.schedule_id)
            if known is not None and known.revision >= record.revision:
                present[record.schedule_id] = known
                continue
            try:
                schedule = Schedule.from_record(record)
            except DurableError as error:
                logger.error("%s", error)
                continue
            if schedule is not None and not schedule.paused:
                present[record.schedule_id] = _Watched(record.revision, schedule, 0)
        self._watched = present

    async def _attend(self, watched: _Watched) -> None:
        """Do what is due of one schedule; what fails is tried again later."""
        schedule_id = watched.schedule.schedule_id
        try:
            watched.schedule = await self._fire(watched.schedule)
            watched.next_us = self._next_us(watched.schedule)
        except FencedError:
            raise
        except ScheduleNotFoundError:
            self._watched.pop(schedule_id, None)
        except Exception as error:
            watched.next_us = self._clock.now_us() + _RETRY_US
            is_expected = isinstance(error, DurableError)
            logger.warning("schedule %s: %s; trying again", schedule_id, error, exc_info=not is_expected)

    def _next_us(self, schedule: Schedule) -> int:
        now_us = self._clock.now_us()
        if schedule.paused:
            return now_us + _RETRY_US
        next_us = schedule.times(now_us).next_us(max(schedule.from_us, now_us))
        # Whether the instance before has ended is not told: it is looked at.
        return next_us if schedule.waiting_us is None else min(next_us, now_us + round(_LOOK_S * 1_000_000))

    async def _fire(self, schedule: Schedule) -> Schedule:
        """Start what is due, and note it."""
        now_us = self._clock.now_us()
        due = schedule.times(now_us).due_us(schedule.from_us, now_us, schedule.catch_up_us)
        settled = schedule
        if settled.waiting_us is not None and not await self._is_running(settled):
            settled = dataclasses.replace(await self._start(settled, settled.waiting_us), waiting_us=None)
        for due_us in due:
            settled = dataclasses.replace(await self._settle(settled, due_us), from_us=due_us)
        return schedule if settled == schedule else await self._note(schedule, settled)

    async def _settle(self, schedule: Schedule, due_us: int) -> Schedule:
        """Start one firing, or do with it what the policy says."""
        if await self._was_started(schedule.instance_id(due_us)):
            return self._begun(schedule, due_us)
        if schedule.overlap != "allow" and await self._is_running(schedule):
            if schedule.overlap == "buffer_one" and schedule.waiting_us is None:
                return dataclasses.replace(schedule, waiting_us=due_us)
            if schedule.overlap != "cancel_previous":
                return dataclasses.replace(schedule, skipped=schedule.skipped + 1)
            await self._cancel_previous(schedule, due_us)
        return await self._start(schedule, due_us)

    async def _start(self, schedule: Schedule, due_us: int) -> Schedule:
        instance_id = schedule.instance_id(due_us)
        if not await self._was_started(instance_id):
            start = schedule.start(instance_id, f"schedule.{due_us}.{schedule.schedule_id}")
            try:
                await start_instance(self._hub, start, now_us=self._clock.now_us(), reuses_ended=False)
            except InstanceExistsError as error:
                logger.warning("schedule %s: %s", schedule.schedule_id, error)
            await self._admit(instance_id)
        return self._begun(schedule, due_us)

    async def _admit(self, instance_id: str) -> None:
        try:
            await self._instances.admit(instance_id)
        except DurableError:
            logger.debug("%s is found in the open set", instance_id)

    @staticmethod
    def _begun(schedule: Schedule, due_us: int) -> Schedule:
        last = schedule.instance_id(due_us), due_us
        return dataclasses.replace(schedule, last=last, started=schedule.started + 1)

    async def _was_started(self, instance_id: str) -> bool:
        """Whether there ever was an instance of this id: one that was purged has left its tombstone."""
        hub = self._hub
        return (await list_executions(hub.store, hub.keys, instance_id)).next > 1

    async def _is_running(self, schedule: Schedule) -> bool:
        """Whether the instance of the firing before has yet to end. One that is damaged has."""
        if schedule.last is None:
            return False
        try:
            return not (await self._hub.status(schedule.last[0])).is_ended
        except InstanceNotFoundError:
            return False
        except CorruptLogError:
            return True

    async def _cancel_previous(self, schedule: Schedule, due_us: int) -> None:
        assert schedule.last is not None, "what runs was started"
        request_id = f"overlap.{due_us}.{schedule.schedule_id}"
        reason = f"the next firing of schedule {schedule.schedule_id!r} is due"
        try:
            await self._instances.terminate(schedule.last[0], reason, request_id)
        except (InstanceEndedError, InstanceNotFoundError):
            return

    async def _note(self, before: Schedule, settled: Schedule) -> Schedule:
        """Make it durable that firings are settled, on top of what clients have changed meanwhile."""

        def note(present: Schedule) -> Schedule:
            if (present.last, present.started, present.skipped) != (before.last, before.started, before.skipped):
                return present  # another supervisor was quicker, or the store's answer was lost
            return dataclasses.replace(
                present,
                from_us=max(present.from_us, settled.from_us),
                last=settled.last,
                waiting_us=None if present.paused or present.overlap != "buffer_one" else settled.waiting_us,
                started=present.started + settled.started - before.started,
                skipped=present.skipped + settled.skipped - before.skipped,
            )

        return await change_schedule(self._hub, before.schedule_id, note)
