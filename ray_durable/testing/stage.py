"""Where an environment's instances play: a hub in memory whose owners, workers and time are under control.

Adds to `World` what users' tests need: functions of the test's own process, doubles of activities, activities that run
while virtual time stands still, crashes at single operations of the store, and the knowledge that nothing will happen
any more. Everything runs on one loop, a `SkippingLoop`; only activities have a thread of their own.
"""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, cast

from ray_durable import registry
from ray_durable.authoring import Activity
from ray_durable.callees import Callees
from ray_durable.capture import Bundle
from ray_durable.codec import Codec, Trust
from ray_durable.context import Orchestration
from ray_durable.engine import ExecutionStarted, RuntimeStatus
from ray_durable.function import DurableFunction
from ray_durable.reference import FunctionReference
from ray_durable.runtime.address import HubAddress
from ray_durable.runtime.chores import pursue
from ray_durable.runtime.explanation import Explanation, explain_stored
from ray_durable.runtime.firing import FireSchedules
from ray_durable.runtime.hub import OpenHub
from ray_durable.runtime.resting import Rest, Resting
from ray_durable.runtime.upkeep import IDLE_S_DEFAULT
from ray_durable.storage import ObjectStore, list_open
from ray_durable.testing.doubles import Doubles
from ray_durable.testing.spy_store import Call, SpyStore
from ray_durable.testing.stage_workers import StageWorkers
from ray_durable.testing.virtual_time import SkippingLoop
from ray_durable.testing.workers import InlineWorkshop
from ray_durable.testing.world import LoopClock, Owner, World, never

__all__ = ["IN_PROCESS", "Crash", "Operation", "Stage"]

IN_PROCESS = "in-process"
"""Stands for the digest of captured code: such functions are found in this process, by name."""

_IDLE_S_MAX = 60.0
"""Longer without a write to the store, and only a durable timer can bring the next one."""


_EPOCH = datetime.fromtimestamp(0, UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """An operation of the store that an owner did: the `number`-th of all owners', counted from 1."""

    number: int
    instance_id: str
    operation: str
    key: str

    @property
    def is_write(self) -> bool:
        """Whether it changes something."""
        return self.operation not in ("get", "list")

    def __str__(self) -> str:
        return f"operation {self.number} ({self.operation} {self.key}, by the owner of instance {self.instance_id!r})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Crash:
    """A process that is to die around an operation, counted from 1: its owner, or the dispatcher."""

    operation: int
    moment: Literal["before", "after"]
    victim: Literal["owner", "dispatcher"] = "owner"


class _StageHub(OpenHub):
    """A hub that finds functions of this process, and gives doubles of its activities."""

    def __init__(self, address: HubAddress, store: ObjectStore, *, epoch: int, stage: Stage) -> None:
        super().__init__(address, store, epoch=epoch)
        self.codec = Codec(trust=stage.trust, limits=self.limits)
        self.new_run = stage.new_run
        self._stage = stage

    async def load_orchestration(self, started: ExecutionStarted) -> Orchestration:
        orchestration = await super().load_orchestration(started)
        code = orchestration.reference.code
        orchestration.callees = _Callees(registry.registered() if code else {}, code, self._stage.doubles)
        return orchestration

    async def load_function(self, reference: FunctionReference) -> DurableFunction:
        function = await super().load_function(reference)
        return self._stage.doubles.of(function) if isinstance(function, Activity) else function

    async def _load_bundle(self, digest: str) -> Bundle:
        if digest == IN_PROCESS:
            self._bundles[digest] = Bundle(registry.registered(), {})
        return await super()._load_bundle(digest)


class _Callees(Callees):
    """Local activities run in the orchestrator's process, where no worker would put a double in their place."""

    def __init__(self, functions: Any, code: str | None, doubles: Doubles) -> None:
        super().__init__(functions, code)
        self._doubles = doubles

    def activity(self, activity: Activity[..., Any] | str) -> Activity[..., Any]:
        found = super().activity(activity)
        return self._doubles.of(found) if found.is_local else found


class _Scheduled:
    """`ScheduledInstances` of a stage."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage

    async def admit(self, instance_id: str) -> None:
        self._stage.admit(instance_id)

    async def terminate(self, instance_id: str, reason: str, request_id: str) -> None:
        await self._stage.ask(instance_id, lambda instance: instance.terminate(reason, request_id))


class Stage(World):
    """See the module. Make it on its loop, which is a `SkippingLoop`."""

    def __init__(self, *, start: datetime, seed: int, trust: Trust, idle_s: float | None = IDLE_S_DEFAULT) -> None:
        self.trust = trust
        self.operations: list[Operation] = []
        self.crash: Crash | None = None
        self.on_segment: Callable[[str], None] | None = None
        self.writes = 0
        self.loop = cast(SkippingLoop, asyncio.get_running_loop())
        self.doubles = Doubles(self.now)
        self._random = random.Random(seed)
        self._crashes: set[asyncio.Task[None]] = set()
        self._firing: asyncio.Task[None] | None = None
        self._schedules: FireSchedules
        clock = LoopClock(start_us=(start - _EPOCH) // timedelta(microseconds=1))
        super().__init__(clock=clock, idle_s=idle_s)
        self._resting = Resting(clock)
        self._waking = self.loop.create_task(self._wake_when_due())

    def now(self) -> datetime:
        """The virtual time; from any thread."""
        return _EPOCH + timedelta(microseconds=self.clock.time_us(self.loop.now_s))

    def new_run(self) -> str:
        """A random id that depends on the seed alone."""
        return uuid.UUID(int=self._random.getrandbits(128), version=4).hex

    def open_hub(self, store: ObjectStore, *, epoch: int = 1) -> OpenHub:
        """See `World`."""
        return _StageHub(self.address, store, epoch=epoch, stage=self)

    def make_workers(self) -> StageWorkers:
        """See `World`."""
        return StageWorkers(InlineWorkshop(self.open_hub(self.objects)), self.loop)

    @property
    def stage_workers(self) -> StageWorkers:
        """The workers, as this world made them."""
        assert isinstance(self.workers, StageWorkers)
        return self.workers

    def own(self, instance_id: str = "one", *, store: SpyStore | None = None, epoch: int = 1) -> Owner:
        """See `World`."""
        spy = store or self.make_store()
        self._resting.discard(instance_id)
        owner = super().own(instance_id, store=spy, epoch=epoch)
        owner.task.add_done_callback(lambda task: self._gone(owner))

        async def before(operation: str, key: str) -> None:
            done = Operation(number=len(self.operations) + 1, instance_id=instance_id, operation=operation, key=key)
            self.operations.append(done)
            self.writes += done.is_write
            if self.crash is None or self.crash.operation != done.number:
                return
            if self.crash.moment == "before":
                await self._crash(owner)
            else:
                dying.append((operation, key))

        async def after(operation: str, key: str) -> None:
            if self.on_segment is not None and operation == "put_if_absent" and "/log/" in key:
                self.on_segment(key)
            if (operation, key) in dying:
                dying.remove((operation, key))
                await self._crash(owner)

        dying: list[Call] = []
        spy.before, spy.after = before, after
        return owner

    def _gone(self, owner: Owner) -> None:
        if not owner.task.cancelled():
            owner.task.exception()  # how it ended shows in the store
        if owner.instance.left is not None:
            self._resting.add(owner.instance.instance_id, Rest(due_us=owner.instance.left.due_us, next_key=""))

    def is_resting(self, instance_id: str) -> bool:
        """Whether an instance waits without an owner, until it is due or somebody asks for it."""
        return instance_id in self._resting and self.living(instance_id) is None

    async def _wake_when_due(self) -> None:
        while True:
            await self._resting.wait_due()
            for instance_id in self._resting.take_due():
                self.admit(instance_id)

    async def lose_owner(self, instance_id: str) -> None:
        """The process of an instance dies; another one takes over."""
        owner = self.living(instance_id)
        if owner is not None:
            owner.store.before = owner.store.after = lambda operation, key: never()
            await owner.kill()
            self.own(instance_id)

    def look_at_schedules(self) -> None:
        """One was changed. Whoever fires them is there from the first one on."""
        if self._firing is None:
            self._schedules = FireSchedules(self.hub, self.clock, _Scheduled(self), look_s=None)
            self._firing = self.loop.create_task(pursue(self._schedules))
        self._schedules.look()

    def begin_new_dispatcher(self) -> None:
        """The dispatcher dies, and what runs for it; another one is there at once."""
        self.lose_dispatcher()
        self.start_dispatcher()

    async def _crash(self, owner: Owner) -> None:
        """A process dies in the middle of an operation."""
        assert self.crash is not None
        if self.crash.victim == "dispatcher":
            self.begin_new_dispatcher()
            return
        dying = self.loop.create_task(self.lose_owner(owner.instance.instance_id))
        self._crashes.add(dying)
        dying.add_done_callback(self._crashes.discard)
        await never()

    async def progress(self, deadline_s: float | None = None) -> bool:
        """Let time pass until something was recorded, or the deadline is reached (on the loop's clock).

        False if neither will ever be: everything waits for somebody else, and there is no deadline.
        """
        writes, idle_until_s = self.writes, self.loop.time() + _IDLE_S_MAX
        alarm = None if deadline_s is None else self.loop.call_at(deadline_s, lambda: None)
        try:
            while True:
                await self.loop.quiet()
                if self.writes != writes or (deadline_s is not None and self.loop.time() >= deadline_s):
                    return True
                if self.loop.time() >= idle_until_s and deadline_s is None:
                    due_s = await self._next_due_s()
                    if due_s is None:
                        return False
                    idle_until_s = max(due_s, self.loop.time()) + _IDLE_S_MAX
                if not await self.loop.skipped():
                    return False
        finally:
            if alarm is not None:
                alarm.cancel()

    async def _next_due_s(self) -> float | None:
        """When the next durable timer fires, or a held activity times out, on the loop's clock."""
        timeout_s = self.stage_workers.next_timeout_s
        due_s = [] if timeout_s is None else [timeout_s]
        for entry in await list_open(self.hub.store, self.hub.keys):
            told = await self.explain(entry.instance_id)
            if told.status.runtime_status is not RuntimeStatus.SUSPENDED and told.status.problem is None:
                due = [waiting.due for waiting in told.waiting if waiting.due is not None]
                due_s += [self.loop.time() + (one - self.now()).total_seconds() for one in due]
        return min(due_s, default=None)

    async def explain(self, instance_id: str) -> Explanation:
        """What an instance waits for; the owner knows more than the store."""
        owner = self.living(instance_id)
        if owner is not None:
            return await owner.instance.explain()
        return await explain_stored(self.hub, instance_id)

    async def close(self) -> None:
        """See `World`."""
        self._waking.cancel()
        if self._firing is not None:
            self._firing.cancel()
            await asyncio.gather(self._firing, return_exceptions=True)
        await super().close()
        self.stage_workers.close()
