"""The executions that an instance has behind it: removed from storage once their grace period is over.

An owner removes what its instance left behind; when the instance ends, what is left goes into the hub's queue. Which
executions there are and when they ended is in storage, so a new owner finds what the last one left.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from ray_durable.errors import DurableError, InstanceNotFoundError
from ray_durable.runtime.hub import OpenHub
from ray_durable.runtime.ports import Clock
from ray_durable.storage import Retired, list_executions, persist, read_start, remove_execution, retire

__all__ = ["PastExecutions"]

logger = logging.getLogger(__name__)

_WAIT_S_MIN, _WAIT_S_MAX = 1.0, 600.0
_AT_ONCE = 2


@dataclass(slots=True, eq=False)
class _Past:
    execution: int
    ended_us: int | None


class PastExecutions:
    """See the module. `look` first, `add` each execution that is continued; `hand_over` at the end.

    Nothing is removed while `is_needed`: a message that has not arrived lies in the log of its sender.
    """

    def __init__(self, hub: OpenHub, instance_id: str, clock: Clock, is_needed: Callable[[], bool]) -> None:
        self._hub = hub
        self._instance_id = instance_id
        self._clock = clock
        self._is_needed = is_needed
        self._past: deque[_Past] = deque()
        self._sweeping: asyncio.Task[None] | None = None

    async def look(self, present: int) -> None:
        """Find what earlier owners left behind."""
        executions = await persist(lambda: list_executions(self._hub.store, self._hub.keys, self._instance_id))
        self._past = deque(_Past(number, None) for number in executions.numbers if number < present)
        self._sweep_soon()

    async def add(self, execution: int) -> None:
        """This one ended just now, and the next one exists. Removes some of what is due: more than one is added."""
        self._past.append(_Past(execution, self._clock.now_us()))
        grace_us = await self._hub.grace_us()
        for _ in range(_AT_ONCE):
            ended_us = self._past[0].ended_us if self._past else None
            if ended_us is None or ended_us + grace_us > self._clock.now_us() or self._is_needed():
                break
            await remove_execution(self._hub.store, self._hub.keys, self._instance_id, self._past.popleft().execution)
        self._sweep_soon()

    async def hand_over(self, present: int) -> None:
        """The instance has ended: leave what is not due yet to the hub."""
        self.close()
        if self._past:
            due_us = self._clock.now_us() + await self._hub.grace_us()
            retired = Retired(instance_id=self._instance_id, through=present - 1, due_us=due_us)
            await persist(lambda: retire(self._hub.store, self._hub.keys, retired))

    def close(self) -> None:
        """Remove nothing more here."""
        if self._sweeping is not None:
            self._sweeping.cancel()
            self._sweeping = None

    def _sweep_soon(self) -> None:
        if self._past and (self._sweeping is None or self._sweeping.done()):
            self._sweeping = asyncio.get_running_loop().create_task(self._sweep())

    async def _sweep(self) -> None:
        """Remove the oldest again and again, each when it is due."""
        grace_us = await self._hub.grace_us()
        while self._past:
            oldest = self._past[0]
            try:
                if oldest.ended_us is None:
                    oldest.ended_us = await self._began_us(oldest.execution + 1)
                wait_us = oldest.ended_us + grace_us - self._clock.now_us()
                if wait_us > 0 or self._is_needed():
                    await asyncio.sleep(min(_WAIT_S_MAX, max(_WAIT_S_MIN, wait_us / 1_000_000)))
                    continue
                await remove_execution(self._hub.store, self._hub.keys, self._instance_id, oldest.execution)
                self._forget(oldest)
            except InstanceNotFoundError:
                self._forget(oldest)  # somebody else removed it
            except DurableError as error:
                logger.warning("%s: an old execution cannot be removed yet: %s", self._instance_id, error)
                await asyncio.sleep(_WAIT_S_MAX)

    def _forget(self, past: _Past) -> None:
        with contextlib.suppress(ValueError):
            self._past.remove(past)

    async def _began_us(self, execution: int) -> int:
        """When an execution began, which is when the one before it ended."""
        segment = await read_start(self._hub.store, self._hub.keys, self._instance_id, execution)
        updated_us: int = segment.header.status["updated_us"]
        return updated_us
