"""The one module that knows Ray: makes actors and tasks of the runtime's plain classes, and finds them by name.

All actors are detached, restarted by Ray without end, need no CPU, do no I/O in `__init__` and get nothing but the
hub's address, its epoch and an id. Their work runs on an event loop that they start themselves, so that no caller's
death can end it. Facts on Ray that decide this are in docs/architecture.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import ray
import ray.exceptions
import ray.util
from ray._raylet import Config  # type: ignore[attr-defined]

from ray_durable.errors import (
    ClusterConnectionError,
    ConfigurationError,
    DurableError,
    FencedError,
    HubHeldError,
    InstanceNotFoundError,
)
from ray_durable.failure import Failure
from ray_durable.payload import Payload
from ray_durable.runtime.address import HubAddress
from ray_durable.runtime.channel import ChannelServer, Endpoint, ExchangeChannel
from ray_durable.runtime.dispatcher import Dispatcher
from ray_durable.runtime.hub import OpenHub
from ray_durable.runtime.instance import Instance
from ray_durable.runtime.lease import Lease, LeaseKeeper, find_lease, is_cluster_reachable
from ray_durable.runtime.loop_thread import LoopThread
from ray_durable.runtime.messages import Attachment, Exchange, ExchangeReply, SliceReport, SliceWork
from ray_durable.runtime.ports import DispatcherLostError, SystemClock
from ray_durable.runtime.supervisor import Supervisor
from ray_durable.runtime.worker import run_slice
from ray_durable.runtime.workshop import workshop_of
from ray_durable.storage import claim_hub_epoch, current_hub_epoch, write_lease
from ray_durable.target import ActivityTarget

__all__ = ["Cluster", "Connection", "DispatcherActor", "OrchestrationActor", "SupervisorActor"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

_LINGER_S = 1.0
"""How long the actor of an ended instance stays, for callers that wait for the end."""

_PARKED_CALLS_MAX = 100_000
_RESOURCES_AGE_S_MAX = 5.0
_REPAIR_PAUSE_S = 0.2
_RENEWALS_OF_THE_LIVING = 3
"""States of a lease that a process must see, one after the other, to believe in a holder that does not answer."""

_CPUS_FREE_SLOTS = 32
"""Slices in flight of an activity that asks for no resource at all."""

_WORKER_LOST = (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError, ray.exceptions.NodeDiedError)


def _instance_name(instance_id: str) -> str:
    return f"instance:{instance_id}"


class OrchestrationActor:
    """Hosts one instance. Turns run on a thread of their own; control calls are answered on Ray's loop."""

    def __init__(self, address: HubAddress, hub_epoch: int, instance_id: str) -> None:
        self._address = address
        self._hub_epoch = hub_epoch
        self._instance_id = instance_id
        self._instance: Instance | None = None
        self._ready = threading.Event()
        self._ended = threading.Event()
        self._turns = LoopThread(name="turns")
        self._turns.submit(self._live())

    async def raise_event(self, name: str, value: Payload, event_id: str) -> None:
        """See `Instance.raise_event`."""
        await self._ask(lambda instance: instance.raise_event(name, value, event_id))

    async def terminate(self, reason: str, request_id: str) -> None:
        """See `Instance.terminate`."""
        await self._ask(lambda instance: instance.terminate(reason, request_id))

    async def wait_ended(self, timeout_s: float) -> bool:
        """Whether the instance has ended, at the latest after `timeout_s`."""

        async def ended(instance: Instance) -> bool:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(instance.ended.wait(), timeout_s)
            return instance.ended.is_set()

        return await self._ask(ended)

    async def describe(self) -> dict[str, Any]:
        """What the host knows without asking the turn's thread: it answers even when user code blocks that."""
        instance = self._instance
        return {"pid": os.getpid(), "host": socket.gethostname(), "problem": instance.problem if instance else None}

    async def _ask(self, question: Callable[[Instance], Awaitable[T]]) -> T:
        async def ask() -> T:
            while self._instance is None:
                await asyncio.sleep(0.01)
            return await question(self._instance)

        return await asyncio.wrap_future(self._turns.submit(ask()))

    async def _live(self) -> None:
        """Serve the instance to its end, then leave. A supervisor makes a new actor if there is more to do."""
        try:
            hub = await OpenHub.open(self._address, epoch=self._hub_epoch)
            self._instance = Instance(
                self._instance_id,
                hub=hub,
                dispatcher=_DispatcherHandle(self._address),
                clock=SystemClock(),
                host=socket.gethostname(),
                pid=os.getpid(),
            )
            await self._instance.run()
            await asyncio.sleep(_LINGER_S)
        except (FencedError, InstanceNotFoundError) as error:
            logger.warning("instance %s stands down: %s", self._instance_id, error)
        except BaseException:
            logger.exception("instance %s: its actor stops and will be made again", self._instance_id)
            await asyncio.sleep(_LINGER_S)
        _leave()


class DispatcherActor:
    """Hosts the dispatcher, on a loop of its own; instances exchange over a direct line, or over Ray without one."""

    def __init__(self, address: HubAddress, hub_epoch: int) -> None:
        self._dispatcher = Dispatcher(_RayLauncher(address), hub_epoch=hub_epoch)
        self._loop = LoopThread(name="dispatcher")
        server = ChannelServer(self._dispatcher.exchange)
        host = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
        self._endpoint = self._loop.submit(server.listen(host))

    async def attach(self, run: str, instance_id: str) -> tuple[Attachment, Endpoint | None]:
        """See `Dispatcher.attach`; with the way to the direct line."""
        endpoint = None
        with contextlib.suppress(OSError):
            endpoint = await asyncio.wrap_future(self._endpoint)
        return await self._ask(self._dispatcher.attach(run, instance_id)), endpoint

    async def exchange(self, request: Exchange) -> ExchangeReply:
        """See `Dispatcher.exchange`."""
        return await self._ask(self._dispatcher.exchange(request))

    async def snapshot(self) -> dict[str, Any]:
        """See `Dispatcher.snapshot`."""
        return {**self._dispatcher.snapshot(), "pid": os.getpid()}

    async def _ask(self, question: Coroutine[Any, Any, T]) -> T:
        return await asyncio.wrap_future(self._loop.submit(question))


class SupervisorActor:
    """Hosts the supervisor, on a loop of its own."""

    def __init__(self, address: HubAddress, hub_epoch: int, live_max: int) -> None:
        self._address = address
        self._hub_epoch = hub_epoch
        self._live_max = live_max
        self._supervisor: Supervisor | None = None
        self._loop = LoopThread(name="supervisor")
        self._loop.submit(self._supervise())

    async def admit(self, instance_id: str) -> None:
        """See `Supervisor.admit`."""
        await self._ask(lambda supervisor: supervisor.admit(instance_id))

    async def activate(self, instance_id: str) -> None:
        """See `Supervisor.activate`."""
        await self._ask(lambda supervisor: supervisor.activate(instance_id))

    async def describe(self) -> dict[str, Any]:
        """Process and rounds, for diagnostics."""
        return {"pid": os.getpid(), "rounds": self._supervisor.rounds if self._supervisor else 0}

    async def _ask(self, question: Callable[[Supervisor], Awaitable[T]]) -> T:
        async def ask() -> T:
            while self._supervisor is None:
                await asyncio.sleep(0.01)
            return await question(self._supervisor)

        return await asyncio.wrap_future(self._loop.submit(ask()))

    async def _supervise(self) -> None:
        while True:
            try:
                hub = await OpenHub.open(self._address, epoch=self._hub_epoch)
                cluster = Cluster(self._address, self._hub_epoch)
                lease = Lease.of_this_process(self._hub_epoch, cluster=ray.get_runtime_context().gcs_address)
                keeper = LeaseKeeper(hub, lease, SystemClock())
                self._supervisor = Supervisor(keeper, cluster, SystemClock(), live_max=self._live_max)
                await self._supervisor.run()
            except FencedError as error:
                logger.warning("the hub was taken over: %s; this cluster stands down", error)
                Cluster(self._address, self._hub_epoch).kill_others()
                _leave()
                return
            except Exception:
                logger.exception("supervisor: starts again")
                await asyncio.sleep(_LINGER_S)


class Cluster:
    """The hub's actors on the Ray that this process is connected to. Blocking Ray calls run in threads."""

    def __init__(self, address: HubAddress, hub_epoch: int) -> None:
        self._address = address
        self._hub_epoch = hub_epoch

    async def live(self) -> set[str]:
        """Ids of the instances that have an actor. Raises ClusterConnectionError."""
        names = await asyncio.to_thread(self._names)
        prefix = _instance_name("")
        return {name.removeprefix(prefix) for name in names if name.startswith(prefix)}

    async def create(self, instance_ids: Sequence[str]) -> None:
        """Make an actor for each that has none."""
        await asyncio.to_thread(self._create, list(instance_ids))

    def start(self, live_max: int) -> None:
        """Make the dispatcher and the supervisor, if they are missing."""
        self._make(DispatcherActor, "dispatcher", self._address, self._hub_epoch)
        self._make(SupervisorActor, "supervisor", self._address, self._hub_epoch, live_max)

    def kill_others(self) -> None:
        """End all actors of this hub on this cluster, but not the caller: a newer epoch replaces them."""
        this = ray.get_runtime_context().get_actor_id() if ray.get_runtime_context().worker.mode == 1 else None
        for name in self._names():
            handle = self.find(name)
            if handle is not None and handle._actor_id.hex() != this:
                ray.kill(handle)

    def find(self, name: str) -> Any | None:
        """The handle of the actor with this name; None if there is none."""
        try:
            return ray.get_actor(name, namespace=self._address.namespace)
        except ValueError:
            return None

    def find_instance(self, instance_id: str) -> Any | None:
        """The handle of the instance's actor; None if it has none."""
        return self.find(_instance_name(instance_id))

    def _names(self) -> list[str]:
        listed = ray.util.list_named_actors(all_namespaces=True)
        return [entry["name"] for entry in listed if entry["namespace"] == self._address.namespace]

    def _create(self, instance_ids: list[str]) -> None:
        for instance_id in instance_ids:
            self._make(OrchestrationActor, _instance_name(instance_id), self._address, self._hub_epoch, instance_id)

    def _make(self, made: type, name: str, *args: Any) -> Any:
        # `get_if_exists` may still lose the race against a dying namesake: look again.
        for attempt in range(5):
            try:
                return (
                    ray.remote(made)
                    .options(
                        name=name,
                        namespace=self._address.namespace,
                        lifetime="detached",
                        get_if_exists=True,
                        max_restarts=-1,
                        max_task_retries=0,
                        max_concurrency=_PARKED_CALLS_MAX,
                        num_cpus=0,
                    )
                    .remote(*args)
                )
            except ValueError as error:
                lost = error
                time.sleep(0.05 * 2**attempt)
        raise ClusterConnectionError(f"Ray did not make the actor {name!r}: {lost}") from lost


class Connection:
    """A client's connection to the hub's actors: joins the cluster that holds the hub, or takes the hub over.

    `run` runs a coroutine on the loop to which `hub` belongs. Blocking methods are for the caller's own thread.
    """

    def __init__(
        self,
        address: HubAddress,
        run: Callable[[Coroutine[Any, Any, Any]], Any],
        hub: OpenHub,
        *,
        is_shared: bool,
        live_max: int,
        ray_init: Mapping[str, Any],
    ) -> None:
        self._address = address
        self._run = run
        self._hub = hub
        self._is_shared = is_shared
        self._live_max = live_max
        self._ray_init = {"include_dashboard": False, "logging_level": logging.WARNING, **ray_init}
        self._clock = SystemClock()
        self._cluster = Cluster(address, 0)
        self._joined = ""
        self._opening = threading.Lock()
        self._has_started_ray = False

    @staticmethod
    def is_ray_connected() -> bool:
        """Whether this process is connected to a Ray cluster."""
        return bool(ray.is_initialized())

    def open(self, *, takeover: bool) -> None:
        """Join the living holder of the hub, or take the hub over with the Ray of this process. Blocking.

        Raises:
            HubHeldError: a living cluster that this process cannot join holds the hub.
            ConfigurationError: a local root on several nodes.
        """
        with self._opening:
            renewals: set[int] = set()
            while True:
                lease = self._run(find_lease(self._hub))
                if lease is not None and lease.is_living(self._clock.now_us()):
                    if self._join(lease):
                        self._use(lease.epoch)
                        return
                    if not takeover:
                        renewals.add(lease.renewed_us)
                        if self._may_be_ending(lease, len(renewals)):
                            time.sleep(_REPAIR_PAUSE_S)
                            continue
                        advice = "connect to that cluster first (ray.init), or pass takeover=True to make it stand down"
                        raise self._held(lease, advice)
                self._start_ray()
                epoch = self._run(self._claim_epoch())
                if epoch is not None:
                    self._cluster.kill_others()
                    self._use(epoch)
                    return

    @staticmethod
    def _may_be_ending(lease: Lease, renewal_count: int) -> bool:
        """Whether a holder that cannot be joined may just be ending: nobody answers, and nobody keeps renewing.

        A lease is renewed every two seconds, and once more at most while its cluster falls apart.
        """
        return renewal_count < _RENEWALS_OF_THE_LIVING and not lease.is_reachable()

    def _held(self, lease: Lease, advice: str) -> HubHeldError:
        return HubHeldError(
            f"The hub {self._address.hub!r} at {self._address.root} is held by the Ray cluster at {lease.cluster} "
            f"(host {lease.host}), which this process is not connected to: {advice}",
            holder=f"{lease.cluster} on {lease.host}",
        )

    async def repair(self) -> None:
        """Something did not answer: take the hub over if its cluster is gone, join a new holder, or give it a moment.

        Raises:
            HubHeldError: another cluster has taken the hub from the one that this process uses.
        """
        lease = await find_lease(self._hub)
        if lease is None or not lease.is_living(self._clock.now_us()):
            await asyncio.to_thread(self._reopen)
        elif lease.cluster == self._joined:
            await asyncio.sleep(_REPAIR_PAUSE_S)
        elif await asyncio.to_thread(is_cluster_reachable, self._joined):
            raise self._held(lease, "it took the hub over. Whether this call had an effect is unknown; connect again")
        else:
            await asyncio.to_thread(self._reopen)

    async def admit(self, instance_id: str) -> None:
        """Tell the supervisor of a new instance. ClusterConnectionError if it cannot be reached."""
        supervisor = await asyncio.to_thread(self._cluster.find, "supervisor")
        if supervisor is None:
            raise ClusterConnectionError("The hub's supervisor is not running")
        # Nobody waits for the answer: the start is durable, and the supervisor looks for itself.
        supervisor.admit.remote(instance_id)

    async def ask_instance(self, instance_id: str, call: Callable[[Any], Awaitable[T]]) -> T:
        """Call the instance's actor, making it if need be.

        Raises:
            ClusterConnectionError: it did not answer; whether it did what was asked is unknown.
        """
        actor = await asyncio.to_thread(self._find_instance, instance_id)
        if actor is None:
            supervisor = await asyncio.to_thread(self._cluster.find, "supervisor")
            if supervisor is None:
                raise ClusterConnectionError("The hub's supervisor is not running")
            await _answer(supervisor.activate.remote(instance_id))
            actor = await asyncio.to_thread(self._find_instance, instance_id)
            if actor is None:
                raise ClusterConnectionError(f"The actor of instance {instance_id!r} is not there yet")
        return await _answer(call(actor))

    async def wait_ended(self, instance_id: str, timeout_s: float) -> bool:
        """Wait for the instance's end, at most so long; False if it is not known to have ended."""
        actor = await asyncio.to_thread(self._find_instance, instance_id)
        if actor is None:
            raise ClusterConnectionError(f"Instance {instance_id!r} has no actor")
        return bool(await _answer(actor.wait_ended.remote(timeout_s)))

    def close(self) -> None:
        """End the Ray that this connection started."""
        if self._has_started_ray and ray.is_initialized():
            ray.shutdown()
        self._has_started_ray = False

    def _find_instance(self, instance_id: str) -> Any | None:
        try:
            return self._cluster.find(_instance_name(instance_id))
        except Exception as error:  # Ray raises many kinds when its cluster is gone
            raise ClusterConnectionError(f"Ray did not answer: {error}") from error

    def _reopen(self) -> None:
        """The cluster is gone: forget it, and take the hub over with another."""
        with contextlib.suppress(Exception):
            ray.shutdown()
        self.open(takeover=False)

    def _join(self, lease: Lease) -> bool:
        """Connect to the holder's cluster, if that can be done from here."""
        if ray.is_initialized():
            return bool(ray.get_runtime_context().gcs_address == lease.cluster)
        if not lease.is_reachable():
            return False
        _use_token()
        try:
            ray.init(address=lease.cluster, logging_level=logging.WARNING, log_to_driver=self._log_to_driver())
        except (OSError, RuntimeError, ray.exceptions.RayError) as error:
            logger.warning("the cluster at %s cannot be joined: %s", lease.cluster, error)
            return False
        return True

    def _log_to_driver(self) -> bool:
        return bool(self._ray_init.get("log_to_driver", True))

    def _start_ray(self) -> None:
        if not ray.is_initialized():
            # Ray warns that it asks for a token, which is as it should be.
            logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)
            ray.init(**self._ray_init)
            self._has_started_ray = True
        nodes = sum(bool(node["Alive"]) for node in ray.nodes())  # type: ignore[no-untyped-call]
        if self._hub.store.private_path is not None and nodes > 1 and not self._is_shared:
            raise ConfigurationError(
                f"The root {self._address.root} is a local folder, and this Ray has {nodes} nodes: use a store that "
                "all nodes reach (s3://...), or pass shared=True if the folder is on a disk that they share"
            )

    async def _claim_epoch(self) -> int | None:
        """Claim the next hub epoch for this cluster and write its first lease; None if another was quicker."""
        hub = self._hub
        epoch = 1 + await current_hub_epoch(hub.store, hub.keys)
        lease = Lease(
            epoch=epoch,
            cluster=ray.get_runtime_context().gcs_address,
            host=socket.gethostname(),
            boot="",
            pid=0,
            renewed_us=self._clock.now_us(),
        )
        # The nonce tells our claim from one that another process made at the same moment.
        claim = {**lease.to_json(), "nonce": secrets.token_hex(8)}
        if not await claim_hub_epoch(hub.store, hub.keys, epoch, claim):
            return None
        await write_lease(hub.store, hub.keys, lease.to_json())
        return epoch

    def _use(self, epoch: int) -> None:
        self._hub.epoch = epoch
        self._joined = ray.get_runtime_context().gcs_address
        self._cluster = Cluster(self._address, epoch)
        self._cluster.start(self._live_max)


async def _answer(reference: Awaitable[T]) -> T:
    """Await an actor's answer. Our own errors come as themselves, Ray's as ClusterConnectionError."""
    try:
        return await reference
    except ray.exceptions.RayTaskError as error:
        cause = getattr(error, "cause", None)
        if isinstance(cause, FencedError):
            raise ClusterConnectionError(f"The instance's owner stood down: {cause}") from error
        raise (cause if isinstance(cause, DurableError) else error) from None
    except ray.exceptions.RayError as error:
        raise ClusterConnectionError(f"Ray did not answer: {type(error).__name__}") from error


def _use_token() -> None:
    """A local Ray asks for a token by default; a process that joins it by address must be told to show one."""
    token = Path.home() / ".ray" / "auth_token"
    if "RAY_AUTH_MODE" not in os.environ and token.exists():
        os.environ["RAY_AUTH_MODE"] = "token"
        # Ray read the environment when it was imported.
        Config.initialize("")


class _DispatcherHandle:
    """`DispatcherPort` over the direct line to the dispatcher, or over its actor where there is none."""

    def __init__(self, address: HubAddress) -> None:
        self._address = address
        self._handle: Any = None
        self._channel: ExchangeChannel | None = None

    async def attach(self, run: str, instance_id: str) -> Attachment:
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        attachment, endpoint = await self._call("attach", run, instance_id)
        if endpoint is not None:
            try:
                self._channel = await ExchangeChannel.connect(endpoint)
            except (OSError, TimeoutError) as error:
                logger.warning("no direct line to %r (%s): exchanging over Ray, which is slower", endpoint, error)
        return attachment  # type: ignore[no-any-return]

    async def exchange(self, request: Exchange) -> ExchangeReply:
        if self._channel is not None:
            return await self._channel.exchange(request)
        return await self._call("exchange", request)  # type: ignore[no-any-return]

    async def _call(self, method: str, *args: Any) -> Any:
        try:
            if self._handle is None:
                self._handle = await asyncio.to_thread(ray.get_actor, "dispatcher", namespace=self._address.namespace)
            return await getattr(self._handle, method).remote(*args)
        except (ray.exceptions.RayError, ValueError) as error:
            self._handle = None
            raise DispatcherLostError(f"The dispatcher did not answer ({type(error).__name__})") from error


class _RayLauncher:
    """`Launcher` over Ray tasks that the dispatcher's process owns."""

    def __init__(self, address: HubAddress) -> None:
        self._address = address
        self._functions: dict[tuple[str, str | None], Any] = {}
        self._resources: dict[str, float] = {}
        self._resources_at_s = -_RESOURCES_AGE_S_MAX

    def launch(
        self, work: SliceWork, generation: str | None, done: Callable[[SliceReport | Failure], None]
    ) -> _RaySlice:
        loop = asyncio.get_running_loop()
        reference = self._function(work.target, generation).remote((self._address, work))

        def finished(future: Any) -> None:
            error = future.exception()
            report = future.result() if error is None else _lost(error)
            with contextlib.suppress(RuntimeError):  # the loop is closed: the process ends
                loop.call_soon_threadsafe(done, report)

        reference.future().add_done_callback(finished)
        return _RaySlice(reference)

    def slots(self, target: ActivityTarget) -> int:
        wanted = {"CPU": float(target.options.get("num_cpus", 1)), "GPU": float(target.options.get("num_gpus", 0))}
        wanted |= {name: float(amount) for name, amount in target.options.get("resources", {}).items()}
        if "memory" in target.options:
            wanted["memory"] = float(target.options["memory"])
        fits = [self._total().get(name, 0.0) / amount for name, amount in wanted.items() if amount > 0]
        # One more than fit, so that a worker that ends finds the next slice waiting.
        return max(1, int(min(fits)) + 1) if fits else _CPUS_FREE_SLOTS

    def _total(self) -> dict[str, float]:
        now_s = time.monotonic()
        if now_s - self._resources_at_s > _RESOURCES_AGE_S_MAX:
            self._resources = ray.cluster_resources()  # type: ignore[no-untyped-call]
            self._resources_at_s = now_s
        return self._resources

    def _function(self, target: ActivityTarget, generation: str | None) -> Any:
        key = (target.key, generation)
        made = self._functions.get(key)
        if made is None:
            options = {name: value for name, value in target.options.items() if name != "max_slice"}
            if generation is not None:
                # Another environment means other workers: those that hold an older source are never asked.
                runtime_env = dict(options.get("runtime_env", {}))
                variables = {**runtime_env.get("env_vars", {}), "RAY_DURABLE_SOURCE": generation}
                options["runtime_env"] = {**runtime_env, "env_vars": variables}
            # Attempts are counted in the log: Ray must not add its own.
            made = _slice_task.options(max_retries=0, enable_task_events=False, name=target.reference.name, **options)
            self._functions[key] = made
        return made


class _RaySlice:
    """A slice that a Ray worker has."""

    def __init__(self, reference: Any) -> None:
        self._reference = reference

    def cancel(self) -> None:
        ray.cancel(self._reference, force=True)


@ray.remote
def _slice_task(job: tuple[HubAddress, SliceWork]) -> SliceReport:
    # One argument: Ray serialises each on its own.
    address, work = job
    return run_slice(work, workshop_of(address))


def _lost(error: BaseException) -> Failure:
    """Why a worker was lost, in words that tell what to do."""
    if isinstance(error, ray.exceptions.OutOfMemoryError):
        advice = "The worker was killed for using too much memory: declare memory= on the activity, or use less"
    elif isinstance(error, ray.exceptions.TaskCancelledError):
        return Failure(kind="cancelled", type_name="CancelledError", message="The activity was cancelled")
    elif isinstance(error, _WORKER_LOST):
        advice = (
            "The worker process died each time it ran this call (it was killed, crashed in native code, or called "
            "os._exit): look into the worker's log for the last lines before that, and declare memory= on the activity "
            "if the machine ran out of it"
        )
    else:
        advice = f"Ray could not run it: {type(error).__name__}: {error}"
    return Failure(kind="system", type_name="WorkerLostError", message=advice, non_retryable=False)


def _leave() -> None:
    """End this actor for good: it is not restarted."""
    with contextlib.suppress(Exception):
        ray.kill(ray.get_runtime_context().current_actor, no_restart=True)
