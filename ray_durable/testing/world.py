"""A task hub in one process, without Ray: the real instances, dispatcher, worker code and storage, on virtual time.

Only the processes are missing. What would cross from one to another is pickled. Owners, workers and the dispatcher can
be lost on command; each owner has a store of its own that can count, block, fail or stop for ever.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import uuid
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from ray_durable.errors import ClusterConnectionError, FencedError, InstanceEndedError
from ray_durable.runtime.address import HubAddress
from ray_durable.runtime.correspondence import Message
from ray_durable.runtime.dispatcher import Dispatcher
from ray_durable.runtime.hub import OpenHub
from ray_durable.runtime.instance import Instance
from ray_durable.runtime.lanes import SlicePolicy
from ray_durable.runtime.messages import Attachment, CallState, Exchange, ExchangeReply
from ray_durable.runtime.ports import DispatcherLostError
from ray_durable.runtime.room import RoomMax
from ray_durable.storage import ObjectStore, open_store
from ray_durable.testing.spy_store import SpyStore
from ray_durable.testing.workers import InlineWorkshop, Workers, finish, through_process_boundary

__all__ = ["T0_US", "LoopClock", "Owner", "World", "never"]

T = TypeVar("T")

T0_US = 1_764_000_000_000_000
"""Where virtual time begins, unless told otherwise: in November 2025."""

_LOOP_T0_S = 1_000
_PATIENCE_S = 400_000.0
"""Virtual seconds; whatever has not happened by then does not happen."""


async def never() -> None:
    """Wait for ever: a process that is gone."""
    await asyncio.get_running_loop().create_future()


class LoopClock:
    """`Clock` that follows the running loop's time, from `start_us` on; `skew_us` sets it wrong."""

    def __init__(self, *, start_us: int = T0_US) -> None:
        self.skew_us = 0
        self._start_us = start_us

    def now_us(self) -> int:
        """See `Clock`."""
        return self.time_us(self.monotonic_s())

    def time_us(self, loop_s: float) -> int:
        """The time at a time of the loop, in microseconds since the Unix epoch."""
        return self._start_us + self.skew_us + round((loop_s - _LOOP_T0_S) * 1_000_000)

    def monotonic_s(self) -> float:
        """See `Clock`."""
        return asyncio.get_running_loop().time()


class _Line:
    """`DispatcherPort`: whoever calls may go away, the call goes on; a dispatcher that dies takes its calls along."""

    def __init__(self, world: World) -> None:
        self._world = world

    async def attach(self, run: str, instance_id: str) -> Attachment:
        return await self._call(lambda dispatcher: dispatcher.attach(run, instance_id))

    async def exchange(self, request: Exchange) -> ExchangeReply:
        sent = through_process_boundary(request)
        self._world.exchanges.append(sent)
        return through_process_boundary(await self._call(lambda dispatcher: dispatcher.exchange(sent)))

    async def explain(self, run: str) -> list[CallState]:
        return await self._call(lambda dispatcher: dispatcher.explain(run))

    async def _call(self, call: Callable[[Dispatcher], Coroutine[Any, Any, T]]) -> T:
        dispatcher, lost = self._world.dispatcher, self._world.dispatcher_lost
        if dispatcher is None:
            raise DispatcherLostError("The dispatcher is down")
        answer = asyncio.get_running_loop().create_task(call(dispatcher))
        parties: set[asyncio.Future[Any]] = {answer, lost}
        await asyncio.wait(parties, return_when=asyncio.FIRST_COMPLETED)
        if lost.done():
            answer.cancel()
            raise DispatcherLostError("The dispatcher died")
        return answer.result()


class _Instances:
    """`InstanceDirectory`: who is not there is made an owner, as the supervisor would."""

    def __init__(self, world: World) -> None:
        self._world = world

    async def deliver(self, message: Message) -> None:
        receiver = message.receiver
        if self._world.living(receiver) is None:
            status = await self._world.hub.status(receiver)
            if status.is_ended:
                raise InstanceEndedError("it has ended", instance_id=receiver, runtime_status=status.runtime_status)
        sent = through_process_boundary(message)
        await self._world.ask(receiver, lambda instance: instance.deliver(sent))

    async def admit(self, instance_id: str) -> None:
        self._world.admit(instance_id)


class Owner:
    """One life of an instance's actor."""

    def __init__(self, instance: Instance, store: SpyStore) -> None:
        self.instance = instance
        self.store = store
        self.task = asyncio.get_running_loop().create_task(instance.run())

    async def kill(self) -> None:
        """End it wherever it is. Nothing it would still do happens."""
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)

    async def ended(self) -> None:
        """Wait until the owner has gone, with the instance's end; one that stops with an error raises it."""
        async with asyncio.timeout(_PATIENCE_S):
            await self.task


class World:
    """See the module. Make it on the loop on which it is used."""

    def __init__(
        self,
        *,
        policy: SlicePolicy | None = None,
        clock: LoopClock | None = None,
        idle_s: float | None = None,
        room_max: RoomMax | None = None,
    ) -> None:
        self.idle_s = idle_s
        self.room_max = room_max
        self.address = self.address_of_new_root()
        self.objects = finish(open_store(self.address.root))
        self.clock = clock or LoopClock()
        self.hub = self.open_hub(self.objects)
        self.workers = self.make_workers()
        self.exchanges: list[Exchange] = []
        self.owners: list[Owner] = []
        self._policy = policy or SlicePolicy()
        self._pids = itertools.count(100)
        self.dispatcher: Dispatcher | None = None
        self.dispatcher_lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.start_dispatcher()

    @staticmethod
    def address_of_new_root() -> HubAddress:
        """A hub in memory that nobody else has."""
        return HubAddress(root=f"memory://{uuid.uuid4().hex}", hub="hub")

    def open_hub(self, store: ObjectStore, *, epoch: int = 1) -> OpenHub:
        """The hub, as another process sees it through `store`."""
        return OpenHub(self.address, store, epoch=epoch)

    def make_workers(self) -> Workers:
        """The workers of this world."""
        return Workers(InlineWorkshop(self.open_hub(self.objects)))

    def make_store(self) -> SpyStore:
        """A new owner's way to the store."""
        return SpyStore(self.objects)

    def start_dispatcher(self) -> Dispatcher:
        """A new life of the dispatcher: it knows nothing."""
        self.dispatcher = Dispatcher(self.workers, hub_epoch=1, policy=self._policy)
        self.dispatcher_lost = asyncio.get_running_loop().create_future()
        return self.dispatcher

    def lose_dispatcher(self) -> None:
        """The dispatcher dies, and with it what runs for it."""
        self.dispatcher = None
        self.workers.vanish()
        self.dispatcher_lost.set_result(None)

    def own(self, instance_id: str = "one", *, store: SpyStore | None = None, epoch: int = 1) -> Owner:
        """A new owner of an instance, as a new actor would be."""
        spy = store or self.make_store()
        instance = Instance(
            instance_id,
            hub=self.open_hub(spy, epoch=epoch),
            dispatcher=_Line(self),
            instances=_Instances(self),
            clock=self.clock,
            host="here",
            pid=next(self._pids),
            idle_s=self.idle_s,
            room_max=self.room_max,
        )
        owner = Owner(instance, spy)
        self.owners.append(owner)
        return owner

    def living(self, instance_id: str) -> Owner | None:
        """The newest owner of an instance, unless it has gone."""
        alive = [one for one in self.owners if one.instance.instance_id == instance_id and not one.task.done()]
        return alive[-1] if alive else None

    def admit(self, instance_id: str) -> None:
        """See that an instance has an owner."""
        if self.living(instance_id) is None:
            self.own(instance_id)

    async def activate(self, instance_id: str) -> Owner:
        """The owner of an instance, made if there is none.

        Raises:
            ClusterConnectionError: there is none yet.
        """
        return self.living(instance_id) or self.own(instance_id)

    async def ask(self, instance_id: str, call: Callable[[Instance], Coroutine[Any, Any, T]]) -> T:
        """Call an instance, making it an owner if need be.

        Raises:
            ClusterConnectionError: its owner went away; whether it did what was asked is unknown.
        """
        owner = await self.activate(instance_id)
        # Whoever asks may go away, the call goes on; an owner that dies does not answer.
        answer = asyncio.get_running_loop().create_task(call(owner.instance))
        answer.add_done_callback(lambda task: task.cancelled() or task.exception())
        parties: set[asyncio.Future[Any]] = {answer, owner.task}
        await asyncio.wait(parties, return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            await asyncio.sleep(0)
        if not answer.done():
            answer.cancel()
            raise ClusterConnectionError("its owner died")
        try:
            return answer.result()
        except FencedError as error:
            raise ClusterConnectionError("its owner stood down") from error

    async def close(self) -> None:
        """End what still runs."""
        for owner in self.owners:
            with contextlib.suppress(Exception):
                await owner.kill()
