"""The outbox of an instance: brings its messages to other instances, each until it has arrived.

Messages to one receiver go in order, one at a time; receivers do not wait for each other. A message is given to `send`
once the segment that holds it is durable; whatever arrived is told by `take_delivered`, so that the instance's next
segment notes it. A message to an instance that has ended, or that is not there, has arrived: nothing can come of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterable

from ray_durable.errors import DurableError, InstanceEndedError, InstanceNotFoundError
from ray_durable.failure import Failure
from ray_durable.runtime.correspondence import Message

__all__ = ["Outbox"]

logger = logging.getLogger(__name__)

_AT_ONCE = 32
_RETRY_S_FIRST, _RETRY_S_MAX = 0.1, 10.0


class Outbox:
    """See the module. `deliver` brings one message to its receiver; it returns when it is durable there."""

    def __init__(self, deliver: Callable[[Message], Awaitable[None]]) -> None:
        self._deliver = deliver
        self._queues: dict[str, deque[Message]] = {}
        self._ids: set[str] = set()
        self._delivered: dict[str, Message] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._places = asyncio.Semaphore(_AT_ONCE)
        self._empty = asyncio.Event()
        self._empty.set()
        self.problem: str | None = None

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
            queue = self._queues.get(message.receiver)
            if queue is not None:
                queue.append(message)
                continue
            self._queues[message.receiver] = deque([message])
            task = asyncio.get_running_loop().create_task(self._serve(message.receiver))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

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

    async def _serve(self, receiver: str) -> None:
        queue = self._queues[receiver]
        while queue:
            async with self._places:
                is_delivered = await self._try(queue[0])
            if not is_delivered:
                await self._persist(queue[0])
            message = queue.popleft()
            self._ids.discard(message.id)
            self._delivered[message.id] = message
        del self._queues[receiver]
        if not self._ids:
            self._empty.set()

    async def _persist(self, message: Message) -> None:
        wait_s = _RETRY_S_FIRST
        while True:
            # Without a place: a receiver that does not answer is not to keep others from theirs.
            await asyncio.sleep(wait_s)
            if await self._try(message):
                self.problem = None
                return
            wait_s = min(_RETRY_S_MAX, 2 * wait_s)

    async def _try(self, message: Message) -> bool:
        try:
            with contextlib.suppress(InstanceEndedError, InstanceNotFoundError):
                await self._deliver(message)
        except Exception as error:
            # Also what nobody expected: a message is never given up.
            self.problem = f"a message to instance {message.receiver!r} does not arrive: {error}"
            failure = Failure.from_exception(error)
            detail = failure.describe() if isinstance(error, DurableError) else failure.traceback
            logger.warning("message %s to %r does not arrive, trying again: %s", message.id, message.receiver, detail)
            return False
        return True
