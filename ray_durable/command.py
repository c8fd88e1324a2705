"""A command to an instance: its owner is asked again until the answer is clear, or the caller's patience is at an end.

A command has a request id, under which the log holds it once, however often it is asked for. So an answer that did not
come is no reason to give up, and one that says that the instance has ended may be the echo of the command itself: what
is recorded under the id was done.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Protocol

from ray_durable.engine import Event
from ray_durable.errors import (
    ClusterConnectionError,
    InstanceEndedError,
    InstanceNotFoundError,
    StoreUnavailableError,
)
from ray_durable.runtime.status import InstanceStatus

__all__ = ["COMMAND_S_MAX", "STORE_PATIENCE_S", "Call", "CommandPort", "OwnerPort", "command"]

STORE_PATIENCE_S = 30.0
"""How long a call waits for a store that does not answer. What runs waits for as long as it takes."""

COMMAND_S_MAX = 60.0
"""How long a call waits for an instance that does not answer."""

_PAUSE_S = 0.05

Call = Callable[[Any], Awaitable[None]]
"""Calls the instance's actor."""


class CommandPort(Protocol):
    """What a command needs of the client."""

    async def stored_status(self, instance_id: str) -> InstanceStatus: ...
    async def history(self, instance_id: str, execution: int | None) -> list[Event]: ...


class OwnerPort(Protocol):
    """The way to the instance's owner; see `Connection`."""

    async def ask_instance(self, instance_id: str, call: Call) -> None: ...
    async def describe(self, instance_id: str) -> Mapping[str, Any]: ...
    async def repair(self) -> None: ...


async def command(
    client: CommandPort, owner: OwnerPort, instance_id: str, request_id: str, call: Call, *, may_be_done: bool = False
) -> None:
    """Have the instance's owner do something that must be durable. `may_be_done`: this may not be the first try.

    Raises:
        InstanceNotFoundError, InstanceEndedError: nobody is there to take it.
        ClusterConnectionError: the owner did not answer for a minute; whether it will be done is unknown.
        StoreUnavailableError: the same, because of the store.
    """
    loop = asyncio.get_running_loop()
    began_s, is_unclear = loop.time(), may_be_done
    first: int | None = None
    while True:
        status = await client.stored_status(instance_id)
        first = first or status.execution
        # It may have been done to an execution that another one follows by now, and must not be done to that.
        is_past = is_unclear and (status.is_ended or status.execution > first)
        if is_past and await _is_recorded(client, instance_id, request_id, range(first, status.execution + 1)):
            return
        if status.is_ended:
            raise InstanceEndedError(
                f"Instance {instance_id!r} has ended ({status.runtime_status}): it takes no more events or commands",
                instance_id=instance_id,
                runtime_status=str(status.runtime_status),
            )
        try:
            await owner.ask_instance(instance_id, call)
            return
        except InstanceEndedError:
            # Its actor stays for a moment; the instance may have begun anew.
            if not is_unclear and (await client.stored_status(instance_id)).is_ended:
                raise
            await asyncio.sleep(_PAUSE_S)
        except ClusterConnectionError as error:
            is_unclear = True
            await _require_patience(owner, instance_id, loop.time() - began_s, error)
            # The outcome is unknown; the same request again is recognised by its id.
            await owner.repair()
            await asyncio.sleep(_PAUSE_S)


async def _require_patience(owner: OwnerPort, instance_id: str, waited_s: float, error: ClusterConnectionError) -> None:
    """Raise what keeps an instance from answering, once that was waited for long enough."""
    if waited_s < STORE_PATIENCE_S:
        return
    told = await owner.describe(instance_id)
    unknown = "so whether this had an effect, or will have, is unknown"
    if told.get("store_problem"):
        raise StoreUnavailableError(
            f"Instance {instance_id!r} has not recorded this for {waited_s:.0f} s, {unknown}: {told['store_problem']}",
            url=told.get("store"),
            waited_s=waited_s,
        ) from error
    if waited_s < COMMAND_S_MAX:
        return
    if told.get("problem"):
        raise ClusterConnectionError(
            f"Instance {instance_id!r} did not answer for {waited_s:.0f} s, {unknown}. It waits: {told['problem']}"
        ) from error
    raise ClusterConnectionError(
        f"Instance {instance_id!r} did not answer for {waited_s:.0f} s ({error}), {unknown}. Does its orchestrator "
        "block (time.sleep, long computations)? Those belong into activities. handle.status() tells what is recorded"
    ) from error


async def _is_recorded(client: CommandPort, instance_id: str, request_id: str, executions: Iterable[int]) -> bool:
    """Whether one of these histories holds the request, or the external event of this id."""
    for execution in executions:
        # One that is gone by now cannot tell.
        with contextlib.suppress(InstanceNotFoundError):
            for event in await client.history(instance_id, execution):
                if request_id in (getattr(event, "event_id", None), getattr(event, "request_id", None)):
                    return True
    return False
