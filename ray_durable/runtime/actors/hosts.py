"""The classes that become actors: each hosts one plain class of the runtime, on a thread of its own."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Any, TypeVar

import ray
import ray.util
from ray._private import state as ray_state

from ray_durable.engine import ExecutionTerminated
from ray_durable.errors import FencedError, InstanceNotFoundError
from ray_durable.payload import Payload
from ray_durable.runtime.actors.calls import InstanceActors
from ray_durable.runtime.actors.cluster import DISPATCHER, SUPERVISOR, Cluster, instance_name
from ray_durable.runtime.actors.exchange import DispatcherHandle
from ray_durable.runtime.actors.launcher import RayLauncher
from ray_durable.runtime.actors.processes import ActorProcesses
from ray_durable.runtime.address import HubAddress
from ray_durable.runtime.channel import ChannelServer
from ray_durable.runtime.chores import Chore, RemoveRetired, pursue
from ray_durable.runtime.correspondence import Message
from ray_durable.runtime.dispatcher import Dispatcher
from ray_durable.runtime.explanation import Explanation, explain_stored
from ray_durable.runtime.firing import FireSchedules
from ray_durable.runtime.framing import Endpoint
from ray_durable.runtime.hub import OpenHub
from ray_durable.runtime.index_repair import IndexRepair
from ray_durable.runtime.instance import Instance
from ray_durable.runtime.lease import HOLDER_PACING, Lease, LeaseKeeper, find_lease
from ray_durable.runtime.loop_thread import LoopThread
from ray_durable.runtime.loop_watch import LoopWatch
from ray_durable.runtime.messages import Attachment, CallState, Exchange, ExchangeReply
from ray_durable.runtime.ports import SystemClock
from ray_durable.runtime.retention import PurgeEnded
from ray_durable.runtime.supervisor import Supervisor
from ray_durable.runtime.tenure import TenureWatch
from ray_durable.runtime.termination import record_termination
from ray_durable.runtime.upkeep import Upkeep
from ray_durable.runtime.watchdog import Watchdog
from ray_durable.storage import ClaimLostError

__all__ = ["DispatcherActor", "OrchestrationActor", "SupervisorActor"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

_LOOK_S = 0.5
_BLOCK_ADVICE = "computations and time.sleep belong into activities, waits are awaited. terminate() ends it."

_LINGER_S = 1.0
"""How long the actor of an ended instance stays, for callers that wait for the end."""


class OrchestrationActor:
    """Hosts one instance. Turns run on a thread of their own; control calls are answered on Ray's loop."""

    def __init__(self, address: HubAddress, hub_epoch: int, instance_id: str, upkeep: Upkeep) -> None:
        self._address = address
        self._hub_epoch = hub_epoch
        self._instance_id = instance_id
        self._upkeep = upkeep
        self._instance: Instance | None = None
        self._hub: OpenHub | None = None
        # Of Ray's loop, on which `__init__` runs: whoever waits for the end does not wait for the turns' thread.
        self._loop = asyncio.get_running_loop()
        self._over = asyncio.Event()
        self._turns = LoopThread(name="turns")
        self._watch = LoopWatch(self._turns.loop, self._report_block)
        # Kept, since loops hold their tasks weakly.
        self._watching = self._loop.create_task(self._watch.run())
        self._turns.submit(self._live())

    async def raise_event(self, name: str, value: Payload, event_id: str) -> None:
        """See `Instance.raise_event`."""
        await self._ask(lambda instance: instance.raise_event(name, value, event_id))

    async def terminate(self, reason: str, request_id: str, recursive: bool) -> None:
        """See `Instance.terminate`. While user code blocks the turns, the end is written from here, past it."""
        asked = asyncio.ensure_future(self._ask(lambda instance: instance.terminate(reason, request_id, recursive)))
        while not (await asyncio.wait({asked}, timeout=_LOOK_S))[0]:
            if self._watch.is_blocked and await self._end_blocked(reason, request_id, recursive):
                asked.cancel()
                return
        await asked

    async def suspend(self, reason: str, request_id: str) -> None:
        """See `Instance.suspend`."""
        await self._ask(lambda instance: instance.suspend(reason, request_id))

    async def resume(self, reason: str, request_id: str) -> None:
        """See `Instance.resume`."""
        await self._ask(lambda instance: instance.resume(reason, request_id))

    async def deliver(self, message: Message) -> None:
        """See `Instance.deliver`."""
        await self._ask(lambda instance: instance.deliver(message))

    async def wait_ended(self, timeout_s: float) -> bool:
        """Whether the instance has ended, at the latest after `timeout_s`, even while user code blocks the turns."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._over.wait(), timeout_s)
        return self._over.is_set() and self._instance is not None and self._instance.left is None

    async def explain(self) -> Explanation:
        """See `Instance.explain`. While user code blocks the turns: what storage tells, and where the code is."""
        asked = asyncio.ensure_future(self._ask(lambda instance: instance.explain()))
        while not (await asyncio.wait({asked}, timeout=_LOOK_S))[0]:
            stack = self._watch.stack()
            if stack is not None:
                asked.cancel()
                told = await explain_stored(await self._own_hub(), self._instance_id)
                return dataclasses.replace(told, stack=stack)
        return await asked

    async def describe(self) -> dict[str, Any]:
        """What the host knows without asking the turn's thread: it answers even when user code blocks that."""
        instance = self._instance
        return {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "problem": instance.problem if instance else None,
            "store": self._address.root,
            "store_problem": instance.store_problem if instance else None,
        }

    async def _open_hub(self) -> OpenHub:
        return await OpenHub.open(self._address, epoch=self._hub_epoch, who=f"instance {self._instance_id}")

    async def _own_hub(self) -> OpenHub:
        """The hub, opened for Ray's loop."""
        if self._hub is None:
            self._hub = await self._open_hub()
        return self._hub

    async def _report_block(self, stack: str | None) -> None:
        """Say in the log and in the status where the code is that blocks; or that it goes on."""
        problem = None
        if stack is not None:
            logger.error("%s", f"instance {self._instance_id}: its code keeps the thread, at\n{stack}")
            problem = f"its code keeps the thread, so nothing else can happen: {_BLOCK_ADVICE} It is at\n{stack}"
        await (await self._own_hub()).note_problem(self._instance_id, problem)

    async def _end_blocked(self, reason: str, request_id: str, recursive: bool) -> bool:
        """Terminate past the code that blocks, which cannot go on: a new process does what is left to do."""
        event = ExecutionTerminated(reason=reason, request_id=request_id, recursive=recursive)
        try:
            hub = await self._own_hub()
            if not await record_termination(hub, self._instance_id, event, SystemClock().now_us()):
                return False
        except ClaimLostError:
            return False  # it was not blocked for good: ask again
        logger.warning("instance %s: terminated while its code kept the thread", self._instance_id)
        # After the answer is on its way.
        self._loop.call_later(_LOOK_S, os._exit, 1)
        return True

    async def _ask(self, question: Callable[[Instance], Awaitable[T]]) -> T:
        async def ask() -> T:
            while self._instance is None:
                await asyncio.sleep(0.01)
            return await question(self._instance)

        return await asyncio.wrap_future(self._turns.submit(ask()))

    async def _live(self) -> None:
        """Serve the instance until there is nothing to do, then leave. A supervisor makes a new actor if there is."""
        try:
            hub = await self._open_hub()
            self._instance = Instance(
                self._instance_id,
                hub=hub,
                dispatcher=DispatcherHandle(self._address),
                instances=InstanceActors(Cluster(self._address, self._hub_epoch), hub),
                clock=SystemClock(),
                host=socket.gethostname(),
                pid=os.getpid(),
                idle_s=self._upkeep.idle_s,
                room_max=self._upkeep.room_max,
            )
            await self._instance.run()
            self._loop.call_soon_threadsafe(self._over.set)
            if self._instance.left is None:
                await asyncio.sleep(_LINGER_S)
        except (FencedError, InstanceNotFoundError) as error:
            logger.warning("instance %s stands down: %s", self._instance_id, error)
        except BaseException:
            logger.exception("instance %s: its actor stops and will be made again", self._instance_id)
            await asyncio.sleep(_LINGER_S)
        _leave()


class DispatcherActor:
    """Hosts the dispatcher, on a loop of its own; instances exchange over a direct line, or over Ray without one.

    It watches over the supervisor, as that does over it, and over the hub: a cluster that was replaced is ended from
    here too, since its supervisor may stand still, or not reach the store.
    """

    def __init__(self, address: HubAddress, hub_epoch: int, upkeep: Upkeep) -> None:
        launcher = RayLauncher(address)
        self._address = address
        self._hub_epoch = hub_epoch
        self._tenure = TenureWatch(SystemClock(), on_certain=lambda: self._dispatcher.go_on())
        self._dispatcher = Dispatcher(launcher, hub_epoch=hub_epoch, tenure=self._tenure)
        self._loop = LoopThread(name="dispatcher")
        server = ChannelServer(self._dispatcher.exchange)
        host = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
        self._loop.submit(launcher.listen(host))
        self._endpoint = self._loop.submit(server.listen(host))
        cluster = Cluster(address, hub_epoch)
        supervisors = ActorProcesses(
            cluster,
            is_watched=lambda name: name == SUPERVISOR,
            # One that is made in a cluster that was replaced sees that, and ends what is left of it.
            make_missing=lambda: cluster.make_missing(SupervisorActor, SUPERVISOR, upkeep),
        )
        self._loop.submit(pursue(Watchdog(supervisors, SystemClock(), silence_s=upkeep.silence_s)))
        self._loop.submit(self._watch_hub())

    async def attach(self, run: str, instance_id: str) -> tuple[Attachment, Endpoint | None]:
        """See `Dispatcher.attach`; with the way to the direct line."""
        endpoint = None
        with contextlib.suppress(OSError):
            endpoint = await asyncio.wrap_future(self._endpoint)
        return await self._ask(self._dispatcher.attach(run, instance_id)), endpoint

    async def exchange(self, request: Exchange) -> ExchangeReply:
        """See `Dispatcher.exchange`."""
        return await self._ask(self._dispatcher.exchange(request))

    async def explain(self, run: str) -> list[CallState]:
        """See `Dispatcher.explain`."""
        return await self._ask(self._dispatcher.explain(run))

    async def describe(self) -> dict[str, Any]:
        """The process, for whoever wants a sign of life."""
        return {"pid": os.getpid()}

    async def snapshot(self) -> dict[str, Any]:
        """See `Dispatcher.snapshot`."""
        return {**self._dispatcher.snapshot(), "pid": os.getpid()}

    async def _watch_hub(self) -> None:
        """Serve as long as this cluster holds the hub; then end what is left of it."""
        while True:
            try:
                hub = await OpenHub.open(
                    self._address, epoch=self._hub_epoch, pacing=HOLDER_PACING, who="the dispatcher"
                )
                await self._tenure.keep(hub)
            except FencedError as error:
                logger.warning("the hub was taken over: %s; nothing more is started here", error)
                self._dispatcher.stand_down()
                # Instances are told, and calls interrupted, before their processes end.
                await asyncio.sleep(_LINGER_S)
                await _end_cluster(hub)
                return
            except Exception:
                logger.exception("the dispatcher cannot tell who holds the hub: trying again")
                await asyncio.sleep(_LINGER_S)

    async def _ask(self, question: Coroutine[Any, Any, T]) -> T:
        return await asyncio.wrap_future(self._loop.submit(question))


class SupervisorActor:
    """Hosts the supervisor, on a loop of its own."""

    def __init__(self, address: HubAddress, hub_epoch: int, upkeep: Upkeep) -> None:
        self._address = address
        self._hub_epoch = hub_epoch
        self._upkeep = upkeep
        self._supervisor: Supervisor | None = None
        self._loop = LoopThread(name="supervisor")
        self._loop.submit(self._supervise())

    async def admit(self, instance_id: str) -> None:
        """See `Supervisor.admit`."""
        await self._ask(lambda supervisor: supervisor.admit(instance_id))

    async def activate(self, instance_id: str) -> None:
        """See `Supervisor.activate`."""
        await self._ask(lambda supervisor: supervisor.activate(instance_id))

    async def wait_woken(self, instance_id: str, timeout_s: float) -> None:
        """See `Supervisor.wait_woken`."""
        await self._ask(lambda supervisor: supervisor.wait_woken(instance_id, timeout_s))

    async def describe(self) -> dict[str, Any]:
        """Process, hub epoch, rounds, and instances that rest, for diagnostics."""
        supervisor = self._supervisor
        rounds, resting = (supervisor.rounds, supervisor.resting_count) if supervisor is not None else (0, 0)
        return {"pid": os.getpid(), "epoch": self._hub_epoch, "rounds": rounds, "resting": resting}

    async def _ask(self, question: Callable[[Supervisor], Awaitable[T]]) -> T:
        async def ask() -> T:
            while self._supervisor is None:
                await asyncio.sleep(0.01)
            return await question(self._supervisor)

        return await asyncio.wrap_future(self._loop.submit(ask()))

    async def _supervise(self) -> None:
        while True:
            try:
                hub = await OpenHub.open(
                    self._address, epoch=self._hub_epoch, pacing=HOLDER_PACING, who="the supervisor"
                )
                directory = _Directory(Cluster(self._address, self._hub_epoch), self._upkeep)
                lease = Lease.of_this_process(self._hub_epoch, cluster=ray.get_runtime_context().gcs_address)
                keeper = LeaseKeeper(hub, lease, SystemClock())
                instances = InstanceActors(Cluster(self._address, self._hub_epoch), hub)
                chores: list[Chore] = [
                    RemoveRetired(hub, SystemClock()),
                    FireSchedules(hub, SystemClock(), instances),
                    PurgeEnded(hub, SystemClock()),
                    IndexRepair(hub, SystemClock(), keeper.open_instances, self.admit),
                    Watchdog(directory.processes(), SystemClock(), silence_s=self._upkeep.silence_s),
                ]
                self._supervisor = Supervisor(
                    keeper, directory, SystemClock(), live_max=self._upkeep.live_max, chores=chores
                )
                await self._supervisor.run()
            except FencedError as error:
                logger.warning("the hub was taken over: %s; this cluster stands down", error)
                await _end_cluster(hub)
                return
            except Exception:
                logger.exception("supervisor: starts again")
                await asyncio.sleep(_LINGER_S)


class _Directory:
    """`ActorDirectory` over the cluster's named actors."""

    def __init__(self, cluster: Cluster, upkeep: Upkeep) -> None:
        self._cluster = cluster
        self._upkeep = upkeep

    async def live(self) -> set[str]:
        """Ids of the instances that have an actor. Raises ClusterConnectionError."""
        names = await asyncio.to_thread(self._cluster.names)
        prefix = instance_name("")
        return {name.removeprefix(prefix) for name in names if name.startswith(prefix)}

    async def keep_dispatcher(self) -> None:
        """See `ActorDirectory`."""
        await asyncio.to_thread(self._make_dispatcher)

    def processes(self) -> ActorProcesses:
        """Those that the supervisor watches: all but its own."""
        return ActorProcesses(
            self._cluster, is_watched=lambda name: name != SUPERVISOR, make_missing=self._make_dispatcher
        )

    def _make_dispatcher(self) -> None:
        self._cluster.make_missing(DispatcherActor, DISPATCHER, self._upkeep)

    async def create(self, instance_ids: Sequence[str]) -> None:
        """Make an actor for each that has none."""
        await asyncio.to_thread(self._create, list(instance_ids))

    def _create(self, instance_ids: list[str]) -> None:
        for instance_id in instance_ids:
            self._cluster.make(OrchestrationActor, instance_name(instance_id), instance_id, self._upkeep)


async def _end_cluster(hub: OpenHub) -> None:
    """The hub was taken over: end its actors on this cluster, and this one.

    The newest holder may be on this very cluster, if the hub went to and fro: then it has replaced the actors. What was
    there before the look at the lease is none of its own.
    """
    cluster = Cluster(hub.address, hub.epoch)
    try:
        others = await asyncio.to_thread(cluster.others)
        holder = await find_lease(hub)
        if holder is None or holder.cluster != ray.get_runtime_context().gcs_address:
            await asyncio.to_thread(cluster.end, others)
    except Exception:
        logger.exception("a cluster that was replaced cannot be ended as a whole: this process leaves it")
    _leave()


def _leave() -> None:
    """End this actor for good: it is not restarted.

    A process that stood still while its node was given up has been replaced by another one of the same actor. It ends
    alone: to kill the actor would strike its successor.
    """
    with contextlib.suppress(Exception):
        if _is_current():
            ray.kill(ray.get_runtime_context().current_actor, no_restart=True)
            return
    os._exit(1)


def _is_current() -> bool:
    """Whether Ray takes this very process for its actor. Raises if the cluster does not answer."""
    context = ray.get_runtime_context()
    # Ray has no public call that tells which process an actor is, without asking that process.
    known: Mapping[str, Any] = ray_state.actors(context.get_actor_id())
    return (known["Pid"], known["Address"]["NodeID"]) == (os.getpid(), context.get_node_id())
