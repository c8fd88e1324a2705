"""The outbox of an instance: brings its messages to other instances, each until it has arrived.

Messages to one receiver go in order, one at a time; receivers do not wait for each other. An event that the receiver
has no room for steps aside: events of its name wait behind it, and whatever else is for that receiver goes on, since
that may be what the receiver waits for. A message is given to `send` once the segment that holds it is durable;
whatever arrived is told by `take_delivered`, so that the instance's next segment notes it. A message to an instance
that has ended, or that is not there, has arrived: nothing can come of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from typing import NamedTuple

from ray_durable.errors import DurableError, InstanceEndedError, InstanceNotFoundError, TooManyEventsError
from ray_durable.failure import Failure
from ray_durable.runtime.correspondence import Message, RaiseEvent

__all__ = ["Outbox"]

logger = logging.getLogger(__name__)

_AT_ONCE = 32
_RETRY_S_FIRST, _RETRY_S_MAX = 0.1, 10.0


class _Lane(NamedTuple):
    """What waits for one another: all for a receiver, or its events of one name that stepped aside."""

    receiver: str
    event: str | None = None


class _Outcome(enum.Enum):
    ARRIVED = enum.auto()
    FAILED = enum.auto()
    NO_ROOM = enum.auto()


class Outbox:
    """See the module. `deliver` brings one message to its receiver; it returns when it is durable there. `tell` is
    called when the `problem` is another one."""

    def __init__(self, deliver: Callable[[Message], Awaitable[None]], tell: Callable[[], None] = lambda: None) -> None:
        self._deliver = deliver
        self._tell = tell
        self._queues: dict[_Lane, deque[Message]] = {}
        self._ids: set[str] = set()
        self._delivered: dict[str, Message] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._places = asyncio.Semaphore(_AT_ONCE)
        self._empty = asyncio.Event()
        self._empty.set()
        # What keeps the first message of a lane from arriving, the longest first.
        self._problems: dict[_Lane, str] = {}

    @property
    def problem(self) -> str | None:
        """What keeps a message from arriving, if anything does."""
        return next(iter(self._problems.values()), None)

    @property
    def is_empty(self) -> bool:
        """Whether everything that was sent has arrived."""
        return not self._ids

    def send(self, messages: Iterable[Message]) -> None:
        """Bring these to their receivers, but for those that are on their way, or have arrived since the last look."""
        for message in messages:
            if message.id in self._ids or message.id in self._delivered:
                continue
            self._ids.add(message.id)
            self._empty.clear()
            self._queue(_Lane(message.receiver), message)

    def take_delivered(self) -> list[Message]:
        """What has arrived since the last call."""
        delivered, self._delivered = self._delivered, {}
        return list(delivered.values())

    def has(self, message_id: str) -> bool:
        """Whether this message was sent and has not arrived."""
        return message_id in self._ids

    async def wait_empty(self, timeout_s: float) -> bool:
        """Whether everything has arrived, at the latest after `timeout_s`."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._empty.wait(), timeout_s)
        return self.is_empty

    def close(self) -> None:
        """Bring nothing more."""
        for task in self._tasks:
            task.cancel()
        self._queues.clear()
        self._ids.clear()
        self._problems.clear()

    def _queue(self, lane: _Lane, message: Message) -> None:
        queue = self._queues.get(lane)
        if queue is not None:
            queue.append(message)
            return
        self._queues[lane] = deque([message])
        task = asyncio.get_running_loop().create_task(self._serve(lane))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, lane: _Lane) -> None:
        queue = self._queues[lane]
        while queue:
            message = queue[0]
            aside = _aside(lane, message)
            if aside is not None and (aside in self._queues or not await self._bring(lane, message, gives_way=True)):
                self._queue(aside, queue.popleft())
                if lane in self._problems:
                    self._problems[aside] = self._problems.pop(lane)
                continue
            if aside is None:
                await self._bring(lane, message)
            queue.popleft()
            self._ids.discard(message.id)
            self._delivered[message.id] = message
        del self._queues[lane]
        if not self._ids:
            self._empty.set()

    async def _bring(self, lane: _Lane, message: Message, *, gives_way: bool = False) -> bool:
        """Try until it has arrived. False: the receiver has no room for it, and it `gives_way` then."""
        async with self._places:
            outcome = await self._try(lane, message)
        wait_s = _RETRY_S_FIRST
        while outcome is not _Outcome.ARRIVED:
            if gives_way and outcome is _Outcome.NO_ROOM:
                return False
            # Without a place: a receiver that does not answer is not to keep others from theirs.
            await asyncio.sleep(wait_s)
            outcome = await self._try(lane, message)
            wait_s = min(_RETRY_S_MAX, 2 * wait_s)
        return True

    async def _try(self, lane: _Lane, message: Message) -> _Outcome:
        try:
            with contextlib.suppress(InstanceEndedError, InstanceNotFoundError):
                await self._deliver(message)
        except Exception as error:
            # Also what nobody expected: a message is never given up.
            self._report(lane, message, error)
            return _Outcome.NO_ROOM if isinstance(error, TooManyEventsError) else _Outcome.FAILED
        if self._problems.pop(lane, None) is not None:
            self._tell()
        return _Outcome.ARRIVED

    def _report(self, lane: _Lane, message: Message, error: Exception) -> None:
        problem = f"a message to instance {message.receiver!r} does not arrive: {error}"
        is_new, self._problems[lane] = problem != self._problems.get(lane), problem
        if is_new:
            self._tell()
        elif isinstance(error, TooManyEventsError):
            return  # that may last, and nothing is out of order
        failure = Failure.from_exception(error)
        detail = failure.describe() if isinstance(error, DurableError) else failure.traceback
        logger.warning("message %s to %r does not arrive, trying again: %s", message.id, message.receiver, detail)


def _aside(lane: _Lane, message: Message) -> _Lane | None:
    """Where a message of `lane` waits for room; None if it does not leave the lane."""
    return _Lane(message.receiver, message.name) if lane.event is None and isinstance(message, RaiseEvent) else None
