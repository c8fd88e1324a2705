"""A client's connection: who holds the hub, and how to reach or replace them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any, TypeVar

import ray
import ray.exceptions
from ray._raylet import Config  # type: ignore[attr-defined]

from ray_durable.errors import (
    ClusterConnectionError,
    ConfigurationError,
    HubHeldError,
)
from ray_durable.runtime.actors.calls import LATE_S_MAX, admit, answer, ask_instance, find, wait_woken
from ray_durable.runtime.actors.cluster import DISPATCHER, SUPERVISOR, Cluster, instance_name
from ray_durable.runtime.actors.hosts import DispatcherActor, SupervisorActor
from ray_durable.runtime.address import HubAddress
from ray_durable.runtime.explanation import Explanation
from ray_durable.runtime.hub import OpenHub
from ray_durable.runtime.lease import Lease, find_lease, is_cluster_reachable
from ray_durable.runtime.ports import SystemClock
from ray_durable.runtime.upkeep import Upkeep
from ray_durable.storage import claim_hub_epoch, current_hub_epoch, free_hub_epoch, write_lease

__all__ = ["Connection"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

_REPAIR_PAUSE_S = 0.2
_EXPLAIN_S_MAX = 15.0
_DESCRIBE_S_MAX = 3.0
_SUPERVISOR_S_MAX = 60.0
_LEASE_S = 3.0
_RENEWALS_OF_THE_LIVING = 3
"""States of a lease that a process must see, one after the other, to believe in a holder that does not answer."""

# The connections of this process, and whether one of them started its Ray: the last one to close ends it.
_users: set[Connection] = set()
_users_lock = threading.Lock()
_started = threading.Event()


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
        upkeep: Upkeep,
        ray_init: Mapping[str, Any],
    ) -> None:
        self._address = address
        self._run = run
        self._hub = hub
        self._is_shared = is_shared
        self._upkeep = upkeep
        self._ray_init = {"include_dashboard": False, "logging_level": logging.WARNING, **ray_init}
        self._clock = SystemClock()
        self._cluster = Cluster(address, 0)
        self._joined = ""
        self._opening = threading.Lock()
        with _users_lock:
            _users.add(self)

    @staticmethod
    def is_ray_connected() -> bool:
        """Whether this process is connected to a Ray cluster."""
        return bool(ray.is_initialized())

    def open(self, *, takeover: bool, is_repair: bool = False) -> None:
        """Join the living holder of the hub, or take the hub over with the Ray of this process. Blocking.

        Raises:
            HubHeldError: a living cluster that this process cannot join holds the hub.
            ConfigurationError: a local root on several nodes.
        """
        with self._opening:
            if is_repair and ray.is_initialized() and not is_cluster_reachable(self._joined):
                # Only a cluster that is gone is forgotten: a living Ray may hold other work of the user's.
                with contextlib.suppress(Exception):
                    ray.shutdown()
            renewals: set[int] = set()
            while True:
                lease = self._run(find_lease(self._hub))
                if lease is not None and (lease.is_living(self._clock.now_us()) or self._is_served(lease)):
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
                if epoch is not None and self._replace_others(epoch):
                    self._use(epoch)
                    self._await_supervisor(epoch)
                    return

    def _replace_others(self, epoch: int) -> bool:
        """End the actors of older epochs on this cluster; False, and none is ended, if there is a newer one."""
        others = self._cluster.others()
        # Those of a newer epoch were made after it was claimed.
        if self._run(current_hub_epoch(self._hub.store, self._hub.keys)) > epoch:
            return False
        self._cluster.end(others)
        return True

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
            # Ray gives up an actor whose process cannot start: nobody else looks after the supervisor.
            if await asyncio.to_thread(self._find, SUPERVISOR) is None:
                await asyncio.to_thread(self._use, lease.epoch)
            await asyncio.sleep(_REPAIR_PAUSE_S)
        elif await asyncio.to_thread(is_cluster_reachable, self._joined):
            raise self._held(lease, "it took the hub over. Whether this call had an effect is unknown; connect again")
        else:
            await asyncio.to_thread(self._reopen)

    async def admit(self, instance_id: str) -> None:
        """Tell the supervisor of a new instance. ClusterConnectionError if it cannot be reached."""
        await admit(self._cluster, instance_id)

    async def ask_instance(self, instance_id: str, call: Callable[[Any], Awaitable[T]]) -> T:
        """Call the instance's actor, making it if need be.

        Raises:
            ClusterConnectionError: it did not answer; whether it did what was asked is unknown.
        """
        return await ask_instance(self._cluster, instance_id, call)

    async def explain(self, instance_id: str) -> Explanation | None:
        """What the instance's owner says that it waits for; None if it has none."""
        actor = await find(self._cluster, instance_name(instance_id))
        return None if actor is None else await answer(actor.explain.remote(), LATE_S_MAX + _EXPLAIN_S_MAX)

    async def describe(self, instance_id: str) -> Mapping[str, Any]:
        """What the host of the instance says of it, even while its turns do nothing; nothing if it does not answer."""
        try:
            actor = await find(self._cluster, instance_name(instance_id))
            told: Mapping[str, Any] = {} if actor is None else await answer(actor.describe.remote(), _DESCRIBE_S_MAX)
        except ClusterConnectionError:
            return {}
        return told

    async def wait_ended(self, instance_id: str, timeout_s: float) -> bool:
        """Wait for the instance's end, at most so long; False if it is not known to have ended.

        One that has no actor is not given one for that.
        """
        actor = await find(self._cluster, instance_name(instance_id))
        if actor is None:
            await wait_woken(self._cluster, instance_id, timeout_s)
            return False
        return bool(await answer(actor.wait_ended.remote(timeout_s), timeout_s + LATE_S_MAX))

    def close(self) -> None:
        """End the Ray that connections of this process started, with the last of them."""
        with _users_lock:
            _users.discard(self)
            if not _users and _started.is_set():
                _started.clear()
                if ray.is_initialized():
                    ray.shutdown()

    def _find(self, name: str) -> Any | None:
        try:
            return self._cluster.find(name)
        except Exception as error:  # Ray raises many kinds when its cluster is gone
            raise ClusterConnectionError(f"Ray did not answer: {error}") from error

    def _reopen(self) -> None:
        """Nobody holds the hub: take it over, with another cluster if this one is gone."""
        self.open(takeover=False, is_repair=True)

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

    def _is_served(self, lease: Lease) -> bool:
        """Whether the holder's supervisor lives although its lease is old: the store may not have taken a newer one."""
        was_connected = ray.is_initialized()
        if not self._join(lease):
            return False
        with contextlib.suppress(ray.exceptions.RayError):
            supervisor = self._find(SUPERVISOR)
            if supervisor is not None:
                told = ray.get(supervisor.describe.remote(), timeout=_LEASE_S)
                if told["epoch"] == lease.epoch:
                    return True
        if not was_connected:
            # A Ray that has taken the place of the holder's is not ours to use.
            ray.shutdown()
        return False

    def _log_to_driver(self) -> bool:
        return bool(self._ray_init.get("log_to_driver", True))

    def _start_ray(self) -> None:
        if not ray.is_initialized():
            # Ray warns that it asks for a token, which is as it should be.
            logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)
            ray.init(**self._ray_init)
            _started.set()
        nodes = sum(bool(node["Alive"]) for node in ray.nodes())  # type: ignore[no-untyped-call]
        if self._hub.store.private_path is not None and nodes > 1 and not self._is_shared:
            raise ConfigurationError(
                f"The root {self._address.root} is a local folder, and this Ray has {nodes} nodes: use a store that "
                "all nodes reach (s3://...), or pass shared=True if the folder is on a disk that they share"
            )

    async def _claim_epoch(self) -> int | None:
        """Claim the next hub epoch for this cluster and write its first lease; None if another was quicker."""
        hub = self._hub
        epoch = await free_hub_epoch(hub.store, hub.keys)
        lease = self._lease_of(epoch)
        # The nonce tells our claim from one that another process made at the same moment.
        claim = {**lease.to_json(), "nonce": secrets.token_hex(8)}
        if not await claim_hub_epoch(hub.store, hub.keys, epoch, claim):
            return None
        await write_lease(hub.store, hub.keys, lease.to_json())
        return epoch

    def _await_supervisor(self, epoch: int) -> None:
        """See the supervisor start, and hold its lease meanwhile.

        Raises:
            ClusterConnectionError: it does not start; the text says why.
        """
        deadline_s = self._clock.monotonic_s() + _SUPERVISOR_S_MAX
        is_older = False
        while True:
            try:
                supervisor = self._find(SUPERVISOR)
                if supervisor is None and not is_older:
                    raise ClusterConnectionError("Ray gave up the hub's supervisor: see the logs of Ray's workers")
                if supervisor is None:
                    self._use(epoch)
                    continue
                if ray.get(supervisor.describe.remote(), timeout=_LEASE_S)["epoch"] >= epoch:
                    return
                # Who claimed an older epoch has made it at this very moment: it sees that, and leaves.
                is_older = True
                time.sleep(_REPAIR_PAUSE_S)
            except ray.exceptions.GetTimeoutError as error:
                if self._clock.monotonic_s() > deadline_s:
                    raise ClusterConnectionError(
                        f"The hub's supervisor has not started after {_SUPERVISOR_S_MAX:.0f} s: has this Ray memory "
                        "and room for worker processes?"
                    ) from error
                self._run(write_lease(self._hub.store, self._hub.keys, self._lease_of(epoch).to_json()))
            except ray.exceptions.RayError as error:
                raise ClusterConnectionError(
                    "The hub's supervisor does not start on this Ray. ray_durable, and what it needs, must be "
                    f"importable on every node (install it there, or give it by runtime_env). Ray says: {error}"
                ) from error

    def _lease_of(self, epoch: int) -> Lease:
        """The lease until the supervisor renews it: it names no process."""
        return Lease(
            epoch=epoch,
            cluster=ray.get_runtime_context().gcs_address,
            host=socket.gethostname(),
            boot="",
            pid=0,
            renewed_us=self._clock.now_us(),
        )

    def _use(self, epoch: int) -> None:
        self._hub.epoch = epoch
        self._joined = ray.get_runtime_context().gcs_address
        self._cluster = Cluster(self._address, epoch)
        self._cluster.make(DispatcherActor, DISPATCHER, self._upkeep)
        self._cluster.make(SupervisorActor, SUPERVISOR, self._upkeep)


def _use_token() -> None:
    """A local Ray asks for a token by default; a process that joins it by address must be told to show one."""
    token = Path.home() / ".ray" / "auth_token"
    if "RAY_AUTH_MODE" not in os.environ and token.exists():
        os.environ["RAY_AUTH_MODE"] = "token"
        # Ray read the environment when it was imported.
        Config.initialize("")
