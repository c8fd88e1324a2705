"""What the runtime needs of the world, as protocols; the actors plug in Ray and the system's clock, tests their own."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Protocol

from ray_durable.errors import ClusterConnectionError
from ray_durable.runtime.correspondence import Message
from ray_durable.runtime.messages import Attachment, CallState, Exchange, ExchangeReply

__all__ = ["ActorDirectory", "Clock", "DispatcherLostError", "DispatcherPort", "InstanceDirectory", "SystemClock"]


class DispatcherLostError(ClusterConnectionError):
    """The dispatcher died or cannot be reached; a new one knows nothing of what the last one ran."""


class Clock(Protocol):
    """The time, as the owner of a log believes it."""

    def now_us(self) -> int:
        """Microseconds since the Unix epoch."""

    def monotonic_s(self) -> float:
        """Seconds on a clock that never jumps."""


class SystemClock:
    """The machine's clocks."""

    def now_us(self) -> int:
        """See `Clock`."""
        return time.time_ns() // 1_000

    def monotonic_s(self) -> float:
        """See `Clock`."""
        return time.monotonic()


class DispatcherPort(Protocol):
    """The way to the dispatcher. Every method raises DispatcherLostError when it cannot be reached."""

    async def attach(self, run: str, instance_id: str) -> Attachment:
        """See `Dispatcher.attach`."""

    async def exchange(self, request: Exchange) -> ExchangeReply:
        """See `Dispatcher.exchange`."""

    async def explain(self, run: str) -> list[CallState]:
        """See `Dispatcher.explain`."""


class InstanceDirectory(Protocol):
    """The way to other instances. Every method raises ClusterConnectionError when the other side does not answer."""

    async def deliver(self, message: Message) -> None:
        """Have the receiver's owner record a message; durable when this returns.

        Raises:
            InstanceEndedError, InstanceNotFoundError: nobody is there to take it.
            TooManyEventsError: it is an event, and the receiver has no room for it now.
        """

    async def admit(self, instance_id: str) -> None:
        """An instance was started, or goes on: let somebody own it. Nobody waits for that."""


class ActorDirectory(Protocol):
    """Which orchestration actors live, and how to make one."""

    async def live(self) -> set[str]:
        """The ids of the instances that have an actor."""

    async def keep_dispatcher(self) -> None:
        """Make a dispatcher if there is none: Ray gives up an actor whose process cannot start."""

    async def create(self, instance_ids: Sequence[str]) -> None:
        """Make an actor for each that has none."""
