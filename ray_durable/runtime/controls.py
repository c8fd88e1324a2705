"""What others may ask of an instance that has an owner: to take events and messages, to stand still, go on or end.

Each becomes an arrival in the inbox, which the owner takes with its next turn. Whoever asks hears when it is durable.
"""

from __future__ import annotations

import asyncio

from ray_durable.engine import (
    Event,
    EventRaised,
    ExecutionResumed,
    ExecutionSuspended,
    ExecutionTerminated,
    RuntimeStatus,
)
from ray_durable.errors import InstanceEndedError
from ray_durable.payload import Payload
from ray_durable.runtime.correspondence import Message
from ray_durable.runtime.inbox import Arrival, Inbox
from ray_durable.runtime.termination import WantedEnds

__all__ = ["Controls"]


class Controls:
    """See the module. The owner of the instance derives from it, and empties the inbox."""

    def __init__(self, instance_id: str) -> None:
        self.instance_id = instance_id
        self._inbox = Inbox()
        self._wanted_ends = WantedEnds()

    async def raise_event(self, name: str, value: Payload, event_id: str) -> None:
        """Returns when the event is durable; a repeated id changes nothing.

        Raises:
            InstanceEndedError: after the end.
            TooManyEventsError: too many wait for the code already.
        """
        await self._put(self._arrival(EventRaised(name=name, value=value, event_id=event_id)))

    async def suspend(self, reason: str, request_id: str) -> None:
        """Returns when that is durable; nothing changes if it is suspended already. InstanceEndedError at the end."""
        await self._put(self._arrival(ExecutionSuspended(reason=reason, request_id=request_id)))

    async def resume(self, reason: str, request_id: str) -> None:
        """Returns when that is durable; nothing changes if it is not suspended. InstanceEndedError after the end."""
        await self._put(self._arrival(ExecutionResumed(reason=reason, request_id=request_id)))

    async def deliver(self, message: Message) -> None:
        """Take a message of another instance; returns when it is durable.

        Raises:
            InstanceEndedError: after the end.
            TooManyEventsError: it is an event, and too many wait for the code already.
        """
        await self._put(Arrival(events=[], message=message, done=asyncio.get_running_loop().create_future()))

    async def terminate(self, reason: str, request_id: str, recursive: bool = True) -> None:
        """Returns when the end is durable. InstanceEndedError if it has ended already."""
        event = ExecutionTerminated(reason=reason, request_id=request_id, recursive=recursive)
        arrival = self._arrival(event)
        with self._wanted_ends.wanting(event, arrival):
            await self._put(arrival)

    @staticmethod
    def _arrival(event: Event) -> Arrival:
        return Arrival(events=[event], done=asyncio.get_running_loop().create_future())

    async def _put(self, arrival: Arrival) -> None:
        assert arrival.done is not None
        self._inbox.put(arrival)
        await arrival.done

    def _ended_error(self, status: RuntimeStatus) -> InstanceEndedError:
        return InstanceEndedError(
            f"Instance {self.instance_id!r} has ended ({status}): it takes no more events or commands",
            instance_id=self.instance_id,
            runtime_status=str(status),
        )
