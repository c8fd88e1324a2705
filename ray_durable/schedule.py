"""A handle on one schedule: pause, resume, trigger, delete it, and see how it is. Made by the client."""

from __future__ import annotations

from typing import Generic, Protocol, TypeVar

from ray_durable.handle import Handle, HandlePort
from ray_durable.runtime.schedules import ScheduleStatus

__all__ = ["ScheduleHandle", "SchedulePort"]

R_co = TypeVar("R_co", covariant=True)


class SchedulePort(HandlePort, Protocol):
    """What a handle needs of its client: coroutines that run on the client's loop, and a way to run them."""

    async def schedule_status(self, schedule_id: str) -> ScheduleStatus: ...
    async def pause_schedule(self, schedule_id: str, note: str) -> None: ...
    async def resume_schedule(self, schedule_id: str) -> None: ...
    async def delete_schedule(self, schedule_id: str) -> None: ...
    async def trigger_schedule(self, schedule_id: str) -> str: ...


class ScheduleHandle(Generic[R_co]):
    """One schedule, by id. Every call raises ScheduleNotFoundError if there is none of this id.

    The instances that it starts are called by the schedule and the time that they were due, in UTC
    ("nightly@20260301T020000Z"), so `hub.instances(prefix="nightly@")` lists them.
    """

    def __init__(self, client: SchedulePort, schedule_id: str) -> None:
        self.schedule_id = schedule_id
        self._client = client

    def describe(self) -> ScheduleStatus:
        """How it is: its times, the latest firing, the next one. Read from storage; needs no Ray."""
        status: ScheduleStatus = self._client.run(self._client.schedule_status(self.schedule_id))
        return status

    def pause(self, note: str = "") -> None:
        """Start nothing until `resume`; a firing that is being started at this moment still is. `note` says why."""
        self._client.run(self._client.pause_schedule(self.schedule_id, note))

    def resume(self) -> None:
        """Go on with the firings to come. Those of the meantime are not made up for."""
        self._client.run(self._client.resume_schedule(self.schedule_id))

    def trigger(self) -> Handle[R_co]:
        """Start an instance now, beside the firings: also while the schedule is paused, and whatever else runs."""
        instance_id: str = self._client.run(self._client.trigger_schedule(self.schedule_id))
        return Handle(self._client, instance_id)

    def delete(self) -> None:
        """Remove the schedule. Instances that it started go on."""
        self._client.run(self._client.delete_schedule(self.schedule_id))

    def __repr__(self) -> str:
        return f"<ScheduleHandle of schedule {self.schedule_id!r}>"
