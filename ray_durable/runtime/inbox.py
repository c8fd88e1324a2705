"""What has arrived for an instance and is not in its log yet.

Arrivals are taken in order, as many at a time as fit into one segment. Whoever waits for one gets an answer in any
case: once it is durable, or once the inbox is closed, which refuses what waits, what was taken without an answer, and
everything later.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from ray_durable.engine import (
    Event,
    EventRaised,
    ExecutionResumed,
    ExecutionSuspended,
    ExecutionTerminated,
    MapCompleted,
    TaskCompleted,
    TaskFailed,
)
from ray_durable.failure import Failure
from ray_durable.payload import Payload
from ray_durable.runtime.correspondence import Message

__all__ = ["Arrival", "Inbox", "identity_of"]

_TURN_BYTES_MAX = 16 * 1024 * 1024
"""Of inputs in one turn. What they cause comes on top, and a segment holds four times as much."""

_EVENT_BYTES = 200


@dataclass(slots=True, kw_only=True, eq=False)
class Arrival:
    """Inputs that came together, or a message, which is an input to the execution that is under way when it is taken.

    `settles` are the dispatcher's ids of the outcomes that end with them; `done` is resolved once they are durable, or
    with `refusal`, which says why they were not taken, once it is certain that this owner may say so.
    """

    events: list[Event]
    message: Message | None = None
    settles: tuple[int, ...] = ()
    done: asyncio.Future[None] | None = None
    refusal: Exception | None = None

    def accept(self) -> None:
        """Tell whoever waits that it is done."""
        if self.done is not None and not self.done.done():
            self.done.set_result(None)

    def refuse(self, error: Exception) -> None:
        """Tell whoever waits that it will not be done."""
        if self.done is not None and not self.done.done():
            self.done.set_exception(error)


class Inbox:
    """See the module."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[Arrival, int]] = deque()
        self._taken: list[Arrival] = []
        self._error: Exception | None = None
        self._refusal: Callable[[], Exception] | None = None
        self._has_news = asyncio.Event()

    @property
    def is_closed(self) -> bool:
        """Whether it refuses everything."""
        return self._refusal is not None

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits to be taken, and everything is as it should be."""
        return not self._waiting and self._error is None and not self.is_closed

    def put(self, arrival: Arrival) -> None:
        """Let it wait for its turn."""
        if self._refusal is not None:
            arrival.refuse(self._refusal())
            return
        self._waiting.extend(_parts(arrival))
        self._has_news.set()

    def fail(self, error: Exception) -> None:
        """The line to the dispatcher is cut: `take` raises `error` after all that arrived before."""
        self._error = self._error or error
        self._has_news.set()

    def nudge(self) -> None:
        """Let `take` return, with nothing if there is nothing."""
        self._has_news.set()

    async def take(self) -> list[Arrival]:
        """Wait for arrivals, or a nudge, and take those of the next turn."""
        await self._has_news.wait()
        self._taken = []
        size = 0
        while self._waiting and (not self._taken or size + self._waiting[0][1] <= _TURN_BYTES_MAX):
            arrival, arrival_size = self._waiting.popleft()
            self._taken.append(arrival)
            size += arrival_size
        if not self._taken and self._error is not None:
            error, self._error = self._error, None
            raise error
        if not self._waiting and self._error is None:
            self._has_news.clear()
        return self._taken

    def put_back(self, arrivals: Sequence[Arrival]) -> None:
        """Let what was taken wait again, before everything else."""
        self._waiting.extendleft((arrival, 0) for arrival in reversed(arrivals))
        self._taken = [arrival for arrival in self._taken if arrival not in arrivals]
        if arrivals:
            self._has_news.set()

    def drop_unasked(self) -> None:
        """The log is read anew: what nobody waits for is of the execution as it was, and comes again if need be."""
        self._waiting = deque((arrival, size) for arrival, size in self._waiting if arrival.done is not None)
        self._error = None
        if not self._waiting:
            self._has_news.clear()

    def refuse_taken(self, refusal: Callable[[], Exception]) -> None:
        """Refuse what was taken and has no answer yet. What waits goes on waiting."""
        for arrival in self._taken:
            arrival.refuse(refusal())
        self._taken = []

    def close(self, refusal: Callable[[], Exception]) -> None:
        """Refuse everything that has no answer yet, and everything to come, with the error that `refusal` makes."""
        self._refusal = self._refusal or refusal
        self._taken += [arrival for arrival, _ in self._waiting]
        self._waiting.clear()
        self.refuse_taken(self._refusal)


def _parts(arrival: Arrival) -> Iterator[tuple[Arrival, int]]:
    """The arrival with its size, cut where it is too large for one turn; it is settled with its last part."""
    events: list[Event] = []
    size = 0
    for event in arrival.events:
        event_size = _size(event)
        if events and size + event_size > _TURN_BYTES_MAX:
            yield Arrival(events=events), size
            events, size = [], 0
        events.append(event)
        size += event_size
    yield Arrival(events=events, message=arrival.message, settles=arrival.settles, done=arrival.done), size


def _size(event: Event) -> int:
    """About how many bytes of a segment the input takes."""
    if isinstance(event, TaskCompleted):
        return _EVENT_BYTES + _payload_size(event.result)
    if isinstance(event, TaskFailed):
        return _EVENT_BYTES + _failure_size(event.failure)
    if isinstance(event, MapCompleted):
        failures = sum(_failure_size(failure) for _, failure in event.failures)
        said = sum(_EVENT_BYTES + payload.size for _, payload in event.heartbeats)
        return _EVENT_BYTES + _payload_size(event.results) + failures + said
    return _EVENT_BYTES + (_payload_size(event.value) if isinstance(event, EventRaised) else 0)


def _payload_size(payload: Payload) -> int:
    return 0 if payload.blob is not None else payload.size


def _failure_size(failure: Failure) -> int:
    own = _EVENT_BYTES + len(failure.message) + len(failure.traceback)
    return own + (_failure_size(failure.cause) if failure.cause is not None else 0)


def identity_of(event: Event) -> tuple[object, ...]:
    """What tells one request or message from another."""
    if isinstance(event, EventRaised):
        return EventRaised, event.event_id
    if isinstance(event, ExecutionTerminated | ExecutionSuspended | ExecutionResumed):
        return type(event), event.request_id
    return type(event), getattr(event, "task", None)
