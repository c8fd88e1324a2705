"""The world of `ray_durable.testing`, with what our own tests ask of it."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Sequence
from typing import Any

from ray_durable import registry
from ray_durable.authoring import Orchestrator
from ray_durable.engine import Event
from ray_durable.failure import Failure
from ray_durable.runtime.lifecycle import Start, start_instance
from ray_durable.runtime.status import InstanceStatus
from ray_durable.testing.spy_store import Call, Hook, SpyStore
from ray_durable.testing.workers import Slice, Workers
from ray_durable.testing.world import LoopClock, Owner, never
from ray_durable.testing.world import World as InProcessHub

__all__ = ["Call", "Hook", "LoopClock", "Owner", "Slice", "SpyStore", "Workers", "World", "never"]

_CONDITION_PATIENCE_S = 20_000.0


class World(InProcessHub):
    """A task hub without Ray. Make it on the loop on which it is used."""

    async def start(
        self, function: Orchestrator[..., Any], *args: Any, instance_id: str = "one", due_s: float | None = None
    ) -> str:
        """Write what a client writes to start an instance, due in so many seconds; its id."""
        start = Start(
            instance_id=instance_id,
            name=function.name,
            input=self.hub.codec.encode_call(function.calls, args, {}, where="arguments"),
            request_id=uuid.uuid4().hex,
            reference=registry.reference_of(function).to_json(),
            version=function.version,
            due_us=None if due_s is None else self.clock.now_us() + round(due_s * 1_000_000),
        )
        await start_instance(self.hub, start, now_us=self.clock.now_us())
        return instance_id

    async def run(self, function: Orchestrator[..., Any], *args: Any, instance_id: str = "one") -> Any:
        """Start an instance, own it to its end, and return its result."""
        await self.start(function, *args, instance_id=instance_id)
        await self.own(instance_id).ended()
        return await self.result(instance_id)

    async def result(self, instance_id: str = "one") -> Any:
        """The result of an instance that completed."""
        end = await self.hub.end(instance_id)
        assert end is not None, "the instance has not ended"
        assert end.result is not None, end.failure
        return self.hub.codec.decode(end.result, Any, where="result")

    async def failure(self, instance_id: str = "one") -> Failure:
        """Why an instance failed."""
        end = await self.hub.end(instance_id)
        assert end is not None
        assert end.failure is not None
        return end.failure

    async def history(self, instance_id: str = "one") -> Sequence[Event]:
        return await self.hub.history(instance_id)

    async def status(self, instance_id: str = "one") -> InstanceStatus:
        return await self.hub.status(instance_id)

    async def until(self, condition: Callable[[], object]) -> None:
        """Let everything else go on until `condition` holds."""
        deadline_s = asyncio.get_running_loop().time() + _CONDITION_PATIENCE_S
        idle = 0
        while not condition():
            # What is ready comes first; time passes only when nothing is.
            idle = idle + 1
            await asyncio.sleep(0 if idle % 200 else 0.25)
            assert asyncio.get_running_loop().time() < deadline_s, "it does not happen"

    async def settle(self) -> None:
        """Let everything that is ready run."""
        for _ in range(300):
            await asyncio.sleep(0)
