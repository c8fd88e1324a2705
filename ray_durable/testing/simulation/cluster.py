"""A simulated Ray cluster: named actors of one hub epoch, and what makes, loses and finds them.

Each actor is a process that hosts the plain class of production. Ray makes a process that died again, unless it gives
the actor up; a name is free before the old process is dead, so two lives of one actor are normal. What is mirrored here
is the little that `runtime/actors` does around those classes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from ray_durable.errors import (
    ClusterConnectionError,
    FencedError,
    InstanceEndedError,
    InstanceNotFoundError,
)
from ray_durable.runtime.chores import RemoveRetired
from ray_durable.runtime.correspondence import Message
from ray_durable.runtime.dispatcher import Dispatcher
from ray_durable.runtime.firing import FireSchedules
from ray_durable.runtime.hub import OpenHub
from ray_durable.runtime.index_repair import IndexRepair, RepairReport
from ray_durable.runtime.instance import Instance
from ray_durable.runtime.lease import HOLDER_PACING, Lease, LeaseKeeper
from ray_durable.runtime.messages import Attachment, CallState, Exchange, ExchangeReply
from ray_durable.runtime.ports import DispatcherLostError
from ray_durable.runtime.supervisor import Supervisor
from ray_durable.runtime.tenure import TenureWatch
from ray_durable.testing.simulation.network import UnreachableError
from ray_durable.testing.simulation.scheduler import Process
from ray_durable.testing.simulation.workers import SimulatedWorkers
from ray_durable.testing.workers import InlineWorkshop

if TYPE_CHECKING:
    from ray_durable.testing.simulation.simulation import Simulation

__all__ = ["DISPATCHER", "SUPERVISOR", "Actor", "Cluster", "ProcessClock", "ask_instance", "hosted_by", "owner_name"]

T = TypeVar("T")

DISPATCHER, SUPERVISOR = "dispatcher", "supervisor"

_RESTART_S = 1.0
_LINGER_S = 1.0
_NEXT_CONNECT_S = 30.0
_ANSWER_S_MAX = 15.0
_RAY_S = 0.002
_LIVE_MAX = 100
_REPAIR_PAUSE_S = 300.0


def owner_name(instance_id: str) -> str:
    """The name of an instance's actor."""
    return f"instance:{instance_id}"


class ProcessClock:
    """`Clock` of one process, which may be wrong."""

    def __init__(self, process: Process, start_us: int) -> None:
        self._process = process
        self._start_us = start_us

    def now_us(self) -> int:
        """See `Clock`."""
        return self._start_us + self._process.skew_us + round(self._process.scheduler.now_s * 1_000_000)

    def monotonic_s(self) -> float:
        """See `Clock`."""
        return self._process.scheduler.now_s


class Actor:
    """A named actor: its present process, and what that hosts, once it has begun."""

    def __init__(
        self, cluster: Cluster, name: str, host: Callable[[Actor, Process], Coroutine[Any, Any, None]]
    ) -> None:
        self.name = name
        self._cluster = cluster
        self._host = host
        self.process = self._begin(cluster.simulation.weather.start_s())

    @property
    def is_named(self) -> bool:
        """Whether its name leads to it."""
        return self._cluster.actors.get(self.name) is self

    def forget(self) -> None:
        """Free its name; its process goes on."""
        if self.is_named:
            del self._cluster.actors[self.name]

    def replace(self) -> Process:
        """Ray believes it to be dead: another process takes its place, while the old one goes on. Returns the old."""
        old, self.process = self.process, self._begin(_RESTART_S)
        return old

    def _begin(self, delay_s: float) -> Process:
        process = self._cluster.simulation.new_process(self.name)
        process.on_death.append(lambda: self._died(process))
        process.call_later(delay_s, lambda: process.create_task(self._live(process)))
        return process

    async def _live(self, process: Process) -> None:
        process.began_s = process.scheduler.now_s
        await self._host(self, process)
        # It left of its own will: Ray does not make it again.
        if self.process is process:
            self.forget()
        process.leave()

    def _died(self, process: Process) -> None:
        if self.process is process and self.is_named and self._cluster.is_alive:
            if self._cluster.simulation.gives_up_actor(self.name):
                self.forget()
                if self.name == SUPERVISOR:
                    # Whoever connects next makes it.
                    self._cluster.simulation.scheduler.after(_NEXT_CONNECT_S, self._cluster.keep_supervisor)
            else:
                self.process = self._begin(_RESTART_S)


class Cluster:
    """See the module. `epoch` is the hub epoch that it holds, or held."""

    def __init__(self, simulation: Simulation, epoch: int) -> None:
        self.simulation = simulation
        self.epoch = epoch
        self.is_alive = True
        self.actors: dict[str, Actor] = {}
        self.address = f"cluster-{epoch}"
        self.keep_dispatcher()
        self.keep_supervisor()

    def keep_dispatcher(self) -> None:
        """Make a dispatcher if there is none."""
        self._keep(DISPATCHER, self._host_dispatcher)

    def keep_supervisor(self) -> None:
        """Make a supervisor if there is none."""
        self._keep(SUPERVISOR, self._host_supervisor)

    def keep_owner(self, instance_id: str) -> None:
        """Make an owner of an instance if there is none."""
        self._keep(owner_name(instance_id), lambda actor, process: self._host_owner(actor, process, instance_id))

    def _keep(self, name: str, host: Callable[[Actor, Process], Coroutine[Any, Any, None]]) -> None:
        if self.is_alive and name not in self.actors:
            self.actors[name] = Actor(self, name, host)

    def owners(self) -> list[Actor]:
        """The actors of instances."""
        return [actor for name, actor in self.actors.items() if name.startswith(owner_name(""))]

    def find(self, name: str) -> Actor | None:
        """The actor of this name."""
        return self.actors.get(name)

    def lose(self) -> None:
        """Everything dies, and nothing is made again."""
        self.is_alive = False
        for actor in list(self.actors.values()):
            actor.process.kill()
        self.actors.clear()

    def forget_all(self) -> list[Process]:
        """Nobody finds its actors any more, and they go on. Returns their processes."""
        self.is_alive = False
        processes = [actor.process for actor in self.actors.values()]
        self.actors.clear()
        return processes

    def _end(self, caller: Actor) -> None:
        """A newer epoch holds the hub: this cluster stands down. Who found out leaves by itself."""
        self.is_alive = False
        for other in list(self.actors.values()):
            if other is not caller:
                other.forget()
                other.process.kill()

    async def _host_dispatcher(self, actor: Actor, process: Process) -> None:
        simulation = self.simulation
        workshop = InlineWorkshop(simulation.open_hub_of_workers())
        workers = SimulatedWorkers(
            process,
            workshop,
            simulation.weather,
            simulation.ledger,
            on_launch=lambda: simulation.watcher.see_launch(self.epoch, process, simulation.trust_s),
        )
        tenure = TenureWatch(
            simulation.clock_of(process),
            on_certain=lambda: dispatcher.go_on(),
            look_s=simulation.supervisor_interval_s,
            trust_s=simulation.trust_s,
        )
        process.hosted = dispatcher = Dispatcher(workers, hub_epoch=self.epoch, tenure=tenure)
        try:
            await tenure.keep(simulation.open_hub(process, epoch=self.epoch, pacing=HOLDER_PACING))
        except FencedError:
            dispatcher.stand_down()
            await asyncio.sleep(_LINGER_S)
            self._end(actor)

    async def _host_supervisor(self, actor: Actor, process: Process) -> None:
        simulation, clock = self.simulation, self.simulation.clock_of(process)
        hub = simulation.open_hub(process, epoch=self.epoch, pacing=HOLDER_PACING)
        lease = Lease(epoch=self.epoch, cluster=self.address, host=self.address, boot="", pid=0)
        while True:
            try:
                directory = _Directory(self, process)
                keeper = LeaseKeeper(hub, lease, clock)
                process.hosted = Supervisor(
                    keeper,
                    directory,
                    clock,
                    live_max=_LIVE_MAX,
                    interval_s=simulation.supervisor_interval_s,
                    chores=[
                        RemoveRetired(hub, clock),
                        FireSchedules(
                            hub,
                            clock,
                            _Instances(self, process, hub),
                            look_s=simulation.supervisor_interval_s,
                        ),
                        _NotedRepair(
                            simulation, hub, clock, keeper.open_instances, lambda id_: hosted_by(process, "admit", id_)
                        ),
                    ],
                )
                await process.hosted.run()
            except FencedError:
                self._end(actor)
                return
            except Exception as error:
                if not process.is_alive:
                    return  # it is being closed
                simulation.report_error(error)
                await asyncio.sleep(_LINGER_S)

    async def _host_owner(self, actor: Actor, process: Process, instance_id: str) -> None:
        simulation = self.simulation
        hub = simulation.open_hub(process, epoch=self.epoch)
        instance = Instance(
            instance_id,
            hub=hub,
            dispatcher=_DispatcherLine(self, process),
            instances=_Instances(self, process, hub),
            clock=simulation.clock_of(process),
            host=self.address,
            pid=len(simulation.processes),
            idle_s=simulation.idle_s,
            room_max=simulation.room_max,
        )
        process.hosted = instance
        try:
            await instance.run()
            if instance.left is None:
                await asyncio.sleep(_LINGER_S)
        except (FencedError, InstanceNotFoundError):
            return
        except Exception as error:
            if not process.is_alive:
                return
            simulation.report_error(error)
            await asyncio.sleep(_LINGER_S)


class _Directory:
    """`ActorDirectory` of the supervisor's process."""

    def __init__(self, cluster: Cluster, process: Process) -> None:
        self._cluster = cluster
        self._process = process

    async def live(self) -> set[str]:
        """See `ActorDirectory`."""
        await asyncio.sleep(_RAY_S)
        prefix = owner_name("")
        return {name.removeprefix(prefix) for name in self._cluster.actors if name.startswith(prefix)}

    async def keep_dispatcher(self) -> None:
        """See `ActorDirectory`."""
        await asyncio.sleep(_RAY_S)
        self._cluster.keep_dispatcher()

    async def create(self, instance_ids: Sequence[str]) -> None:
        """See `ActorDirectory`."""
        await asyncio.sleep(_RAY_S)
        for instance_id in instance_ids:
            self._cluster.keep_owner(instance_id)


class _NotedRepair(IndexRepair):
    """Notes which state of the index it has looked at, and that nobody is missing but for what may explain it."""

    def __init__(self, simulation: Simulation, *args: Any) -> None:
        super().__init__(*args, pause_s=_REPAIR_PAUSE_S)
        self._simulation = simulation

    async def look_through(self) -> RepairReport:
        began_s = self._simulation.scheduler.now_s
        report = await super().look_through()
        self._simulation.index_looked_at_s = began_s
        # Whoever dies leaves the open set right, unless it had removed something and could not look again; summaries
        # of what was followed may stay for a moment.
        entered = [line for line in report.mended if "entered" in line]
        if entered and not self._simulation.store.may_miss_names():
            wrong = AssertionError(f"the index was wrong, and nothing that was late or cut off explains it: {entered}")
            self._simulation.report_error(wrong)
        return report


class _DispatcherLine:
    """`DispatcherPort` of an owner's process: exchanges go to the process that was attached to, or, where there is no
    direct line, to the dispatcher of today."""

    def __init__(self, cluster: Cluster, process: Process) -> None:
        self._cluster = cluster
        self._process = process
        self._attached: Process | None = None
        self._is_direct = cluster.simulation.weather.has_direct_line()

    async def attach(self, run: str, instance_id: str) -> Attachment:
        """See `DispatcherPort`."""
        actor = self._cluster.find(DISPATCHER)
        if actor is None or actor.process.hosted is None:
            await asyncio.sleep(_RAY_S)
            raise DispatcherLostError("there is no dispatcher")
        self._attached = actor.process
        return await self._call(lambda dispatcher: dispatcher.attach(run, instance_id), "attach")

    async def exchange(self, request: Exchange) -> ExchangeReply:
        """See `DispatcherPort`."""
        simulation = self._cluster.simulation
        sent = simulation.send(request)
        simulation.watcher.see_exchange(sent)
        return await self._call(lambda dispatcher: dispatcher.exchange(sent), "exchange")

    async def explain(self, run: str) -> list[CallState]:
        """See `DispatcherPort`."""
        return await self._call(lambda dispatcher: dispatcher.explain(run), "explain")

    async def _call(self, call: Callable[[Dispatcher], Coroutine[Any, Any, T]], what: str) -> T:
        actor = self._cluster.find(DISPATCHER)
        process = self._attached if self._is_direct or actor is None else actor.process
        if process is None or (process is not self._attached and process.hosted is None):
            raise DispatcherLostError("there is no dispatcher")
        try:
            return await self._cluster.simulation.network.call(
                self._process, process, lambda: call(process.hosted), what
            )
        except UnreachableError as error:
            raise DispatcherLostError(f"The dispatcher did not answer: {error}") from None


class _Instances:
    """`InstanceDirectory` and `ScheduledInstances` of a process."""

    def __init__(self, cluster: Cluster, process: Process, hub: OpenHub) -> None:
        self._cluster = cluster
        self._process = process
        self._hub = hub

    async def deliver(self, message: Message) -> None:
        """See `InstanceDirectory`."""
        receiver = message.receiver
        if self._cluster.find(owner_name(receiver)) is None:
            await self._require_running(receiver)
        sent = self._cluster.simulation.send(message)
        try:
            await ask_instance(self._cluster, self._process, receiver, "deliver", sent)
        except InstanceEndedError as error:
            await self._require_running(receiver)
            raise ClusterConnectionError(f"Instance {receiver!r} begins anew") from error

    async def admit(self, instance_id: str) -> None:
        """See `InstanceDirectory`."""
        self._cluster.simulation.admit(self._cluster, self._process, instance_id)

    async def terminate(self, instance_id: str, reason: str, request_id: str) -> None:
        """See `ScheduledInstances`."""
        if self._cluster.find(owner_name(instance_id)) is None:
            await self._require_running(instance_id)
        await ask_instance(self._cluster, self._process, instance_id, "terminate", reason, request_id, True)

    async def _require_running(self, instance_id: str) -> None:
        status = await self._hub.status(instance_id)
        if status.is_ended:
            raise InstanceEndedError("it has ended", instance_id=instance_id, runtime_status=str(status.runtime_status))


async def ask_instance(cluster: Cluster, caller: Process, instance_id: str, method: str, *args: Any) -> Any:
    """Call the instance's actor, having it made if need be.

    Raises:
        ClusterConnectionError: it did not answer; whether it did what was asked is unknown.
    """
    network, name = cluster.simulation.network, owner_name(instance_id)
    try:
        if cluster.find(name) is None:
            supervisor = cluster.find(SUPERVISOR)
            if supervisor is None:
                raise ClusterConnectionError("The hub's supervisor is not running")
            supervisor_process = supervisor.process
            await network.call(
                caller,
                supervisor_process,
                lambda: hosted_by(supervisor_process, "activate", instance_id),
                f"activate {instance_id}",
                timeout_s=_ANSWER_S_MAX,
            )
        actor = cluster.find(name)
        if actor is None:
            raise ClusterConnectionError(f"The actor of instance {instance_id!r} is not there yet")
        process = actor.process
        return await network.call(
            caller,
            process,
            lambda: hosted_by(process, method, *args),
            f"{method} of {instance_id}",
            timeout_s=_ANSWER_S_MAX,
        )
    except UnreachableError as error:
        raise ClusterConnectionError(str(error)) from None
    except FencedError as error:
        raise ClusterConnectionError(f"The instance's owner stood down: {error}") from None


async def hosted_by(process: Process, method: str, *args: Any) -> Any:
    """Ask what a process hosts, as soon as it hosts anything."""
    while process.hosted is None:
        await asyncio.sleep(0.01)
    return await getattr(process.hosted, method)(*args)
