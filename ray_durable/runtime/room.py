"""How much of external events an instance keeps for its code: what nobody waits for is refused once there is too much.

An event that the code waits for is always taken, and so is one that came before. A refused one is never in the log, so
the room is no matter of the engine's: it follows from the replayed state, whichever process has that. What counts is
what nobody has taken, also while the instance is suspended, or not begun, and what an execution was handed on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ray_durable.engine import Event, EventRaised, Execution
from ray_durable.errors import ConfigurationError, TooManyEventsError
from ray_durable.runtime.inbox import Arrival

__all__ = ["UNREAD_BYTES_MAX", "UNREAD_EVENTS_MAX", "Room", "RoomMax"]

UNREAD_EVENTS_MAX = 10_000
"""What continue-as-new hands on is one segment: of so many it holds all, whatever their names, ids and values are."""

UNREAD_BYTES_MAX = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class RoomMax:
    """So many external events may wait for one instance's code, with so many bytes of values together. One that waits
    alone may be larger."""

    events: int = UNREAD_EVENTS_MAX
    value_bytes: int = UNREAD_BYTES_MAX

    def __post_init__(self) -> None:
        if not 1 <= self.events <= UNREAD_EVENTS_MAX:
            raise ConfigurationError(f"unread_events_max is {self.events}: give 1 to {UNREAD_EVENTS_MAX:,}")
        if self.value_bytes < 1:
            raise ConfigurationError(f"unread_bytes_max is {self.value_bytes}: give at least 1")


class Room:
    """The room of one execution."""

    def __init__(self, execution: Execution, limit: RoomMax) -> None:
        self._execution = execution
        self._limit = limit
        # Of those to be applied next: they may have to wait, too.
        self._next_count = self._next_bytes = 0

    def refusal(self, event: EventRaised) -> TooManyEventsError | None:
        """Why the event is not taken; None if it is."""
        return None if self._takes(event) or self._is_expected(event) else self._full(event)

    def portions(self, arrivals: Sequence[Arrival]) -> Iterator[list[Event]]:
        """The inputs of these, in lists to be applied one after the other: what the code takes of one makes room for
        the next. Arrivals that are not taken get a `refusal`."""
        portion: list[Event] = []
        self._next_count = self._next_bytes = 0
        for arrival in arrivals:
            for event in arrival.events:
                if isinstance(event, EventRaised) and not self._takes(event):
                    # Only what is applied tells how much of it waits.
                    yield portion
                    portion = []
                    self._next_count = self._next_bytes = 0
                    arrival.refusal = self.refusal(event)
                    if arrival.refusal is not None:
                        continue
                if isinstance(event, EventRaised):
                    self._next_count += 1
                    self._next_bytes += event.value.size
                portion.append(event)
        yield portion

    def _takes(self, event: EventRaised) -> bool:
        """Whether it may wait, whatever becomes of those before it."""
        backlog = self._execution.backlog
        count, size_bytes = backlog.count + self._next_count, backlog.size_bytes + self._next_bytes
        fits = count < self._limit.events and size_bytes + event.value.size <= self._limit.value_bytes
        return fits or count == 0

    def _is_expected(self, event: EventRaised) -> bool:
        """Whether it will not wait. After an end nothing does."""
        execution = self._execution
        return execution.ended or execution.is_awaited(event.name) or execution.knows_event(event.event_id)

    def _full(self, event: EventRaised) -> TooManyEventsError:
        backlog, instance_id = self._execution.backlog, self._execution.instance_id
        return TooManyEventsError(
            f"Event {event.name!r} was not recorded: {backlog.count:,} external events of {backlog.size_bytes:,} bytes "
            f"wait for instance {instance_id!r} to take them, and with it that would be more than "
            f"{self._limit.events:,} events or {self._limit.value_bytes:,} bytes. It takes events again once its code "
            "has taken some (ctx.wait_for_external_event): raise this one later, see with handle.explain() what it "
            "waits for, resume it if it is suspended. Large values may lie elsewhere, and events refer to them",
            instance_id=instance_id,
            name=event.name,
            count=backlog.count,
            size_bytes=backlog.size_bytes,
        )
