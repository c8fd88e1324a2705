"""A task hub without Ray: the real instance, dispatcher, worker code and storage; only the processes are missing.

Everything runs on one virtual-time loop (`skipping_loop`). What crosses a process boundary is pickled, as Ray would.
Owners, workers and the dispatcher can be lost on command; a store can count, block, fail or stop for ever.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import pickle
import threading
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, TypeVar

from ray_durable import registry
from ray_durable.authoring import Orchestrator
from ray_durable.engine import Event
from ray_durable.errors import ClusterConnectionError, FencedError, FunctionNotFoundError, InstanceEndedError
from ray_durable.failure import Failure
from ray_durable.function import DurableFunction
from ray_durable.payload import Payload
from ray_durable.reference import FunctionReference
from ray_durable.runtime.address import HubAddress
from ray_durable.runtime.correspondence import Message
from ray_durable.runtime.dispatcher import Dispatcher
from ray_durable.runtime.hub import OpenHub
from ray_durable.runtime.instance import Instance
from ray_durable.runtime.lanes import SlicePolicy
from ray_durable.runtime.lifecycle import Start, start_instance
from ray_durable.runtime.messages import Attachment, Exchange, ExchangeReply, SliceReport, SliceWork
from ray_durable.runtime.ports import DispatcherLostError
from ray_durable.runtime.status import InstanceStatus
from ray_durable.runtime.worker import run_slice
from ray_durable.storage import ObjectStore, open_store
from ray_durable.target import ActivityTarget

__all__ = ["Call", "Hook", "LoopClock", "Owner", "Slice", "SpyStore", "Workers", "World", "never"]

T = TypeVar("T")

T0_US = 1_764_000_000_000_000
_PATIENCE_S = 400_000.0
"""Virtual seconds; whatever has not happened by then does not happen."""

_CONDITION_PATIENCE_S = 20_000.0

Call = tuple[str, str]
"""An operation of the store and its key."""

Hook = Callable[[str, str], Awaitable[None]]


async def never() -> None:
    """Wait for ever: a process that is gone."""
    await asyncio.get_running_loop().create_future()


def _finish(coroutine: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that awaits nothing real: those of the memory store do not."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        result: T = stop.value
        return result
    raise AssertionError("the coroutine waits for something")


def _through_process_boundary(value: T) -> T:
    copy: T = pickle.loads(pickle.dumps(value))
    return copy


class LoopClock:
    """`Clock` that follows the loop's time; `skew_us` sets it wrong."""

    def __init__(self) -> None:
        self.skew_us = 0

    def now_us(self) -> int:
        return T0_US + self.skew_us + round((asyncio.get_running_loop().time() - 1_000) * 1_000_000)

    def monotonic_s(self) -> float:
        return asyncio.get_running_loop().time()


class SpyStore:
    """`ObjectStore` over another. `calls` are all calls that began, `segments` the keys of those that were appended.

    `before` and `after` may delay a call, fail it or never return.
    """

    def __init__(self, inner: ObjectStore) -> None:
        self.inner = inner
        self.url = inner.url
        self.private_path: Path | None = inner.private_path
        self.calls: list[Call] = []
        self.segments: list[str] = []
        self.before: Hook | None = None
        self.after: Hook | None = None

    @property
    def writes(self) -> list[Call]:
        """The calls that change something."""
        return [call for call in self.calls if call[0] in ("put_if_absent", "put", "delete")]

    async def put_if_absent(self, key: str, data: bytes) -> bool:
        async def create() -> bool:
            created = await self.inner.put_if_absent(key, data)
            if created and "/log/" in key:
                self.segments.append(key)
            return created

        return await self._do("put_if_absent", key, create)

    async def put(self, key: str, data: bytes) -> None:
        await self._do("put", key, lambda: self.inner.put(key, data))

    async def get(self, key: str) -> bytes | None:
        return await self._do("get", key, lambda: self.inner.get(key))

    async def list_folder(self, folder: str) -> list[str]:
        return await self._do("list", folder, lambda: self.inner.list_folder(folder))

    async def delete_many(self, keys: list[str]) -> None:
        await self._do("delete", ",".join(keys), lambda: self.inner.delete_many(keys))

    async def close(self) -> None:
        await self.inner.close()

    async def _do(self, operation: str, key: str, act: Callable[[], Awaitable[T]]) -> T:
        self.calls.append((operation, key))
        # Every operation takes its time: whatever else is ready runs meanwhile.
        await asyncio.sleep(0)
        if self.before is not None:
            await self.before(operation, key)
        result = await act()
        if self.after is not None:
            await self.after(operation, key)
        return result


class _Workshop:
    """`Workshop` over the world's store."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._hub = OpenHub(world.address, world.objects)
        self.codec = self._hub.codec

    def load(self, reference: FunctionReference) -> DurableFunction:
        if reference.name in self._world.workers.missing:
            raise FunctionNotFoundError(f"Function {reference.name!r} was not found: not deployed", name=reference.name)
        return _finish(self._hub.load_function(reference))

    def fetch(self, run: str, payload: Payload) -> Payload:
        return _finish(self._hub.fetch(run, payload))

    def offload(self, run: str, payload: Payload) -> Payload:
        stored = _finish(self._hub.offload(run, payload))
        return (
            stored
            if stored.blob is None
            else Payload(encoding=stored.encoding, data=None, size=stored.size, blob=stored.blob)
        )


class Slice:
    """A slice on its worker: `finish` runs it there, `lose` takes the worker away."""

    def __init__(self, workers: Workers, work: SliceWork, done: Callable[[SliceReport | Failure], None]) -> None:
        self.work = work
        self.is_cancelled = False
        self._workers = workers
        self._done: Callable[[SliceReport | Failure], None] | None = done

    def begin(self) -> None:
        if self._workers.is_poisoned(self.work):
            self.lose()
        elif self._workers.holds(self.work):
            self._workers.held.append(self)
        else:
            self.finish()

    def finish(self) -> None:
        if self._done is None:
            return
        reports: list[SliceReport] = []
        # A thread, since an async activity starts a loop of its own.
        thread = threading.Thread(target=lambda: reports.append(run_slice(self.work, self._workers.workshop)))
        thread.start()
        thread.join()
        self._end(_through_process_boundary(reports[0]))

    def lose(self) -> None:
        self._end(Failure(kind="system", type_name="WorkerLostError", message="the worker was lost"))

    def cancel(self) -> None:
        self.is_cancelled = True
        asyncio.get_running_loop().call_soon(
            self._end, Failure(kind="cancelled", type_name="CancelledError", message="cancelled")
        )

    def vanish(self) -> None:
        """The owner of the slice died, and the slice with it."""
        self._done = None

    def _end(self, report: SliceReport | Failure) -> None:
        done, self._done = self._done, None
        if self in self._workers.held:
            self._workers.held.remove(self)
        if done is not None:
            done(report)


class Workers:
    """`Launcher` whose workers are threads of this process.

    `holds` says which slices wait for `finish` or `lose`, `is_poisoned` which lose their worker at once; functions
    named in `missing` cannot be loaded.
    """

    def __init__(self, world: World) -> None:
        self.workshop = _Workshop(world)
        self.slot_count = 4
        self.launched: list[Slice] = []
        self.held: list[Slice] = []
        self.holds: Callable[[SliceWork], bool] = lambda work: False
        self.is_poisoned: Callable[[SliceWork], bool] = lambda work: False
        self.missing: set[str] = set()

    def launch(self, work: SliceWork, generation: str | None, done: Callable[[SliceReport | Failure], None]) -> Slice:
        started = Slice(self, _through_process_boundary(work), done)
        self.launched.append(started)
        asyncio.get_running_loop().call_soon(started.begin)
        return started

    def slots(self, target: ActivityTarget) -> int:
        return self.slot_count

    def vanish(self) -> None:
        for started in self.launched:
            started.vanish()
        self.held.clear()


class _Line:
    """`DispatcherPort`: whoever calls may go away, the call goes on; a dispatcher that dies takes its calls along."""

    def __init__(self, world: World) -> None:
        self._world = world

    async def attach(self, run: str, instance_id: str) -> Attachment:
        return await self._call(lambda dispatcher: dispatcher.attach(run, instance_id))

    async def exchange(self, request: Exchange) -> ExchangeReply:
        sent = _through_process_boundary(request)
        self._world.exchanges.append(sent)
        return _through_process_boundary(await self._call(lambda dispatcher: dispatcher.exchange(sent)))

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
        world, receiver = self._world, message.receiver
        owner = world.living(receiver)
        if owner is None:
            if (await world.status(receiver)).is_ended:
                raise InstanceEndedError("it has ended", instance_id=receiver, runtime_status="")
            owner = world.own(receiver)
        # Whoever delivers may go away, the delivery goes on; an owner that dies does not answer.
        answer = asyncio.get_running_loop().create_task(owner.instance.deliver(_through_process_boundary(message)))
        parties: set[asyncio.Future[Any]] = {answer, owner.task}
        await asyncio.wait(parties, return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            await asyncio.sleep(0)
        if not answer.done():
            answer.cancel()
            raise ClusterConnectionError("its owner died")
        try:
            answer.result()
        except FencedError as error:
            raise ClusterConnectionError("its owner stood down") from error

    async def admit(self, instance_id: str) -> None:
        if self._world.living(instance_id) is None:
            self._world.own(instance_id)


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
        """Wait for the instance's end; an owner that stops with an error raises it."""
        async with asyncio.timeout(_PATIENCE_S):
            await self.task


class World:
    """See the module. Make it on the loop on which it is used."""

    def __init__(self, *, policy: SlicePolicy | None = None) -> None:
        self.address = self.address_of_new_root()
        self.objects = _finish(open_store(self.address.root))
        self.clock = LoopClock()
        self.hub = OpenHub(self.address, self.objects, epoch=1)
        self.workers = Workers(self)
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

    async def start(self, function: Orchestrator[..., Any], *args: Any, instance_id: str = "one") -> str:
        """Write what a client writes to start an instance; its id."""
        start = Start(
            instance_id=instance_id,
            name=function.name,
            input=self.hub.codec.encode_call(function.calls, args, {}, where="arguments"),
            request_id=uuid.uuid4().hex,
            reference=registry.reference_of(function).to_json(),
            version=function.version,
        )
        await start_instance(self.hub, start, now_us=self.clock.now_us())
        return instance_id

    def own(self, instance_id: str = "one", *, store: SpyStore | None = None, epoch: int = 1) -> Owner:
        """A new owner of an instance, as a new actor would be."""
        spy = store or SpyStore(self.objects)
        instance = Instance(
            instance_id,
            hub=OpenHub(self.address, spy, epoch=epoch),
            dispatcher=_Line(self),
            instances=_Instances(self),
            clock=self.clock,
            host="here",
            pid=next(self._pids),
        )
        owner = Owner(instance, spy)
        self.owners.append(owner)
        return owner

    def living(self, instance_id: str) -> Owner | None:
        """The newest owner of an instance, unless it has gone."""
        alive = [one for one in self.owners if one.instance.instance_id == instance_id and not one.task.done()]
        return alive[-1] if alive else None

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

    async def close(self) -> None:
        """End what still runs."""
        for owner in self.owners:
            with contextlib.suppress(Exception):
                await owner.kill()
