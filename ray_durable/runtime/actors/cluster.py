"""The named actors of a hub, on the Ray that this process is connected to."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import ray
import ray.util

from ray_durable.errors import ClusterConnectionError
from ray_durable.runtime.address import HubAddress

__all__ = ["DISPATCHER", "SUPERVISOR", "Cluster", "instance_name"]

DISPATCHER = "dispatcher"
SUPERVISOR = "supervisor"

_PARKED_CALLS_MAX = 100_000


def instance_name(instance_id: str) -> str:
    """The name of an instance's actor."""
    return f"instance:{instance_id}"


class Cluster:
    """The named actors of one hub. Every method is a blocking call of Ray's: keep it off event loops."""

    def __init__(self, address: HubAddress, hub_epoch: int) -> None:
        self._address = address
        self._hub_epoch = hub_epoch

    def others(self) -> list[Any]:
        """Handles of all actors that this hub has on this cluster now, but not the caller's own."""
        this = ray.get_runtime_context().get_actor_id() if ray.get_runtime_context().worker.mode == 1 else None
        handles = map(self.find, self.names())
        return [handle for handle in handles if handle is not None and handle._actor_id.hex() != this]

    @staticmethod
    def end(handles: Iterable[Any]) -> None:
        """End these very actors for good, whoever has their names by now."""
        for handle in handles:
            ray.kill(handle)

    def find(self, name: str) -> Any | None:
        """The handle of the actor with this name; None if there is none."""
        try:
            return ray.get_actor(name, namespace=self._address.namespace)
        except ValueError:
            return None

    def names(self) -> list[str]:
        """The names of the hub's living actors."""
        listed = ray.util.list_named_actors(all_namespaces=True)
        return [entry["name"] for entry in listed if entry["namespace"] == self._address.namespace]

    def make_missing(self, made: type, name: str, *args: Any) -> None:
        """See `make`; nothing is asked of an actor that is there."""
        if name not in self.names():
            self.make(made, name, *args)

    def make(self, made: type, name: str, *args: Any) -> Any:
        """The actor with this name, made of the class `made` if there is none: of address, epoch and `args`."""
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
                    .remote(self._address, self._hub_epoch, *args)
                )
            except ValueError as error:
                lost = error
                time.sleep(0.05 * 2**attempt)
        raise ClusterConnectionError(f"Ray did not make the actor {name!r}: {lost}") from lost
