"""The processes of a hub's actors, as Ray knows them: asked, told apart, ended."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import ray
import ray.exceptions
from ray._private import state as ray_state

from ray_durable.errors import ClusterConnectionError
from ray_durable.runtime.actors.cluster import Cluster

__all__ = ["ActorProcesses"]

T = TypeVar("T")


class ActorProcesses:
    """`Processes` over the named actors of a hub: of those that `is_watched` says.

    `make_missing` makes the actors that are to be there at any time.
    """

    def __init__(
        self, cluster: Cluster, *, is_watched: Callable[[str], bool], make_missing: Callable[[], object]
    ) -> None:
        self._cluster = cluster
        self._is_watched = is_watched
        self._make_missing = make_missing
        self._handles: dict[str, Any] = {}

    async def names(self) -> Sequence[str]:
        """See `Processes`."""
        await self._call(self._make_missing)
        names = [name for name in await self._call(self._cluster.names) if self._is_watched(name)]
        self._handles = {name: handle for name, handle in self._handles.items() if name in names}
        return names

    async def ask(self, name: str) -> None:
        """See `Processes`."""
        handle = await self._handle(name)
        try:
            await handle.describe.remote()
        except ray.exceptions.RayError as error:
            # Another actor may have the name by now.
            self._handles.pop(name, None)
            raise ClusterConnectionError(f"The actor {name!r} did not answer: {type(error).__name__}") from error

    async def process(self, name: str) -> str | None:
        """See `Processes`."""
        handle = await self._handle(name)
        # Ray has no public call that tells which process an actor is, without asking that process.
        known: Mapping[str, Any] = await self._call(lambda: ray_state.actors(handle._actor_id.hex()))
        return f"{known['Address']['NodeID']}:{known['Pid']}" if known.get("State") == "ALIVE" else None

    async def replace(self, name: str) -> None:
        """See `Processes`. Ray frees the name at once, and ends a process that does not end itself after 5 s."""
        handle = await self._handle(name)
        self._handles.pop(name, None)
        await self._call(lambda: ray.kill(handle, no_restart=True))
        await self._call(self._make_missing)

    async def _handle(self, name: str) -> Any:
        handle = self._handles.get(name)
        if handle is None:
            handle = await self._call(lambda: self._cluster.find(name))
            if handle is None:
                raise ClusterConnectionError(f"There is no actor {name!r}")
            self._handles[name] = handle
        return handle

    @staticmethod
    async def _call(call: Callable[[], T]) -> T:
        """A blocking call of Ray's."""
        try:
            return await asyncio.to_thread(call)
        except ClusterConnectionError:
            raise
        except Exception as error:  # Ray raises many kinds when its cluster is gone
            raise ClusterConnectionError(f"Ray did not answer: {error}") from error
