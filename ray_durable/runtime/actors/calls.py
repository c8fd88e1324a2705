"""Calls of an instance's actor: found by name, made by the supervisor if it is missing."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import ray.exceptions

from ray_durable.errors import ClusterConnectionError, DurableError, FencedError, InstanceEndedError
from ray_durable.runtime.actors.cluster import SUPERVISOR, Cluster, instance_name
from ray_durable.runtime.correspondence import Message
from ray_durable.runtime.hub import OpenHub

__all__ = ["LATE_S_MAX", "InstanceActors", "admit", "answer", "ask_instance", "find", "wait_woken"]

T = TypeVar("T")

_ANSWER_S_MAX = 15.0

LATE_S_MAX = 1.0
"""How much longer than agreed an answer that was to wait may take."""


class InstanceActors:
    """`InstanceDirectory` and `ScheduledInstances` over the cluster's named actors, for the loop that `hub` is of."""

    def __init__(self, cluster: Cluster, hub: OpenHub) -> None:
        self._cluster = cluster
        self._hub = hub

    async def deliver(self, message: Message) -> None:
        """See `InstanceDirectory`."""
        receiver = message.receiver
        if await find(self._cluster, instance_name(receiver)) is None:
            # Nobody is to be made an actor of what is not there.
            await self._require_running(receiver)
        try:
            await ask_instance(self._cluster, receiver, lambda actor: actor.deliver.remote(message))
        except InstanceEndedError as error:
            # The actor of what has ended stays for a moment; the instance may have begun anew.
            await self._require_running(receiver)
            raise ClusterConnectionError(f"Instance {receiver!r} begins anew") from error

    async def admit(self, instance_id: str) -> None:
        """See `InstanceDirectory`."""
        await admit(self._cluster, instance_id)

    async def terminate(self, instance_id: str, reason: str, request_id: str) -> None:
        """See `ScheduledInstances`."""
        await self._require_running(instance_id)
        await ask_instance(self._cluster, instance_id, lambda actor: actor.terminate.remote(reason, request_id, True))

    async def _require_running(self, instance_id: str) -> None:
        status = await self._hub.status(instance_id)
        if status.is_ended:
            raise InstanceEndedError(
                f"Instance {instance_id!r} has ended ({status.runtime_status})",
                instance_id=instance_id,
                runtime_status=str(status.runtime_status),
            )


async def find(cluster: Cluster, name: str) -> Any | None:
    """The actor with this name; None if there is none. ClusterConnectionError if Ray does not answer."""
    try:
        return await asyncio.to_thread(cluster.find, name)
    except Exception as error:  # Ray raises many kinds when its cluster is gone
        raise ClusterConnectionError(f"Ray did not answer: {error}") from error


async def admit(cluster: Cluster, instance_id: str) -> None:
    """Tell the supervisor of an instance that should run. ClusterConnectionError if it cannot be reached."""
    # Nobody waits for the answer: what is to run is in the open set, and the supervisor looks for itself.
    (await _supervisor(cluster)).admit.remote(instance_id)


async def wait_woken(cluster: Cluster, instance_id: str, timeout_s: float) -> None:
    """Wait until an instance that has no actor gets one, or ends, at most so long. Returns early where that is unknown.

    Raises:
        ClusterConnectionError: the supervisor does not answer.
    """
    await answer((await _supervisor(cluster)).wait_woken.remote(instance_id, timeout_s), timeout_s + LATE_S_MAX)


async def ask_instance(cluster: Cluster, instance_id: str, call: Callable[[Any], Awaitable[T]]) -> T:
    """Call the instance's actor, having it made if need be.

    Raises:
        ClusterConnectionError: it did not answer; whether it did what was asked is unknown.
    """
    actor = await find(cluster, instance_name(instance_id))
    if actor is None:
        await answer((await _supervisor(cluster)).activate.remote(instance_id), _ANSWER_S_MAX)
        actor = await find(cluster, instance_name(instance_id))
        if actor is None:
            raise ClusterConnectionError(f"The actor of instance {instance_id!r} is not there yet")
    return await answer(call(actor), _ANSWER_S_MAX)


async def answer(reference: Awaitable[T], deadline_s: float) -> T:
    """Await an actor's answer. Our own errors come as themselves, Ray's and silence as ClusterConnectionError."""
    try:
        async with asyncio.timeout(deadline_s):
            return await reference
    except TimeoutError as error:
        raise ClusterConnectionError(f"No answer after {deadline_s:.0f} s: its process is stopped or busy") from error
    except ray.exceptions.RayTaskError as error:
        cause = getattr(error, "cause", None)
        if isinstance(cause, FencedError):
            raise ClusterConnectionError(f"The instance's owner stood down: {cause}") from error
        raise (cause if isinstance(cause, DurableError) else error) from None
    except ray.exceptions.RayError as error:
        raise ClusterConnectionError(f"Ray did not answer: {type(error).__name__}") from error


async def _supervisor(cluster: Cluster) -> Any:
    supervisor = await find(cluster, SUPERVISOR)
    if supervisor is None:
        raise ClusterConnectionError("The hub's supervisor is not running")
    return supervisor
