"""The client of an environment: a `Hub` whose cluster is this process and whose time is virtual.

After each call, everything has happened that can happen without time passing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import TYPE_CHECKING, Any, TypeVar, cast

from ray_durable.authoring import Orchestrator
from ray_durable.client import Hub
from ray_durable.engine import ExecutionCompleted
from ray_durable.errors import ClosedError, ConfigurationError, DurableError
from ray_durable.reference import FunctionReference
from ray_durable.runtime.explanation import Explanation
from ray_durable.runtime.loop_thread import LoopThread
from ray_durable.testing.stage import IN_PROCESS, Stage
from ray_durable.testing.stage_workers import is_in_activity
from ray_durable.testing.virtual_time import SkippingLoop

if TYPE_CHECKING:
    from ray_durable.runtime.actors import Connection

__all__ = ["InProcessHub", "StuckError", "VirtualThread"]

T = TypeVar("T")

_ANSWER_S_MAX = 60.0
"""Virtual seconds after which an instance that does not answer never will."""


class StuckError(DurableError):
    """An instance waits for what will not happen by itself. `instance_id`, `explanation` (what it waits for)."""

    instance_id: str
    explanation: Explanation


class VirtualThread(LoopThread):
    """A thread with a loop on virtual time, which passes only while somebody waits for a coroutine.

    A coroutine is done once nothing more can happen without time passing; not where an activity waits for it, for which
    time stands still.
    """

    def __init__(self) -> None:
        self.virtual = SkippingLoop(is_paced=True)
        super().__init__(name="testing", loop=self.virtual)

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> Any:
        """See `LoopThread`."""
        try:
            return super().submit(self._serve(coroutine, settles=not is_in_activity()))
        except ClosedError:
            coroutine.close()
            raise

    async def _serve(self, coroutine: Coroutine[Any, Any, T], *, settles: bool) -> T:
        with self.virtual.request():
            try:
                return await coroutine
            finally:
                if settles:
                    await self.virtual.quiet()

    async def _end(self) -> None:
        with self.virtual.request():
            await super()._end()


class InProcessHub(Hub):
    """See the module."""

    def __init__(self, stage: Stage, thread: VirtualThread) -> None:
        super().__init__(stage.address)
        self._thread.stop()
        self._thread = thread
        self._opened = stage.hub
        self._connection = cast("Connection", _InProcessConnection(stage))
        self._stage = stage

    def close(self) -> None:
        """The end of the environment."""
        self._thread.stop(self._stage.close)

    def result(self, instance_id: str, timeout_s: float | None) -> Coroutine[Any, Any, Any]:
        """See `Handle.result`: time passes until the end. `timeout_s` is virtual, too.

        Raises:
            StuckError: the end will never come.
        """
        self.refuse_in_activity("Waiting for a result")
        return self._result(instance_id, timeout_s)

    def refuse_in_activity(self, what: str) -> None:
        """ConfigurationError in an activity: time stands still while it runs, so it would wait for itself."""
        if is_in_activity():
            raise ConfigurationError(
                f"{what} inside an activity waits for ever: virtual time stands still while an activity runs. Do it "
                "in the test, outside of activities and their replacements"
            )

    async def _stuck(self, instance_id: str) -> StuckError:
        """The error that says what an instance waits for."""
        told = await self._stage.explain(instance_id)
        return StuckError(
            f"Instance {instance_id!r} will never end: nothing is due any more. Raise the event that it waits for, "
            f"release what is held, or mend the problem.\n{told}",
            instance_id=instance_id,
            explanation=told,
        )

    async def _result(self, instance_id: str, timeout_s: float | None) -> Any:
        stage = self._stage
        deadline_s = None if timeout_s is None else stage.loop.time() + timeout_s
        is_stuck = False
        while (end := await self._end_of(instance_id, looks=is_stuck)) is None:
            if deadline_s is not None and stage.loop.time() >= deadline_s:
                await self._raise_timeout(instance_id, timeout_s)
            if is_stuck:
                raise await self._stuck(instance_id)
            is_stuck = not await stage.progress(deadline_s)
        return await self._outcome(instance_id, end)

    async def _end_of(self, instance_id: str, *, looks: bool) -> ExecutionCompleted | None:
        """The end of an instance. The store is asked about one that has an owner, or rests, only if `looks`."""
        has_owner = self._stage.living(instance_id) is not None or self._stage.is_resting(instance_id)
        if has_owner and not looks:
            return None
        end = await self._stage.hub.end(instance_id)
        if end is None and not self._stage.is_resting(instance_id):
            self._stage.admit(instance_id)
        return end

    async def _start(self, *args: Any, **kwargs: Any) -> str:
        # One that is due later has its owner, too: that is what waits for the time here.
        instance_id = await super()._start(*args, **kwargs)
        self._stage.admit(instance_id)
        return instance_id

    async def _schedule(self, *args: Any) -> None:
        await super()._schedule(*args)
        self._stage.look_at_schedules()

    async def resume_schedule(self, schedule_id: str) -> None:
        await super().resume_schedule(schedule_id)
        self._stage.look_at_schedules()

    async def _reference(self, function: Orchestrator[..., Any]) -> FunctionReference:
        if function.is_importable:
            return await super()._reference(function)
        return FunctionReference(name=function.name, code=IN_PROCESS)

    def _now_us(self) -> int:
        return self._stage.clock.now_us()


class _InProcessConnection:
    """What `Hub` asks of its connection, without a cluster."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage

    async def admit(self, instance_id: str) -> None:
        self._stage.admit(instance_id)

    async def ask_instance(self, instance_id: str, call: Callable[[Any], Awaitable[T]]) -> T:
        async def ask(instance: Any) -> T:
            return await call(_Remote(instance))

        try:
            async with asyncio.timeout(_ANSWER_S_MAX):
                return await self._stage.ask(instance_id, ask)
        except TimeoutError:
            told = await self._stage.explain(instance_id)
            raise StuckError(
                f"Instance {instance_id!r} does not take it:\n{told}", instance_id=instance_id, explanation=told
            ) from None

    async def explain(self, instance_id: str) -> Explanation:
        return await self._stage.explain(instance_id)

    async def describe(self, instance_id: str) -> Mapping[str, Any]:
        """Nothing that storage does not tell: this store takes what an owner writes."""
        return {}

    async def repair(self) -> None:
        """Nothing to repair: owners are made when they are missing."""

    def close(self) -> None:
        """Nothing to give back."""


class _Remote:
    """Calls an instance as if it were an actor."""

    def __init__(self, instance: Any) -> None:
        self._instance = instance

    def __getattr__(self, name: str) -> Any:
        return _RemoteMethod(getattr(self._instance, name))


class _RemoteMethod:
    def __init__(self, method: Callable[..., Any]) -> None:
        self.remote = method
