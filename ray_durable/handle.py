"""A handle on one instance: ask, wait, raise events, end it. Made by the client; safe to make anew from the id."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, Generic, Protocol, TypeVar

from ray_durable.engine import Event
from ray_durable.runtime.status import InstanceStatus, Owner

__all__ = ["Handle", "HandlePort"]

R_co = TypeVar("R_co", covariant=True)


class HandlePort(Protocol):
    """What a handle needs of its client: coroutines that run on the client's loop, and a way to run them."""

    def run(self, coroutine: Any) -> Any:
        """Run a coroutine of the client to its end, from any thread."""

    async def relay(self, coroutine: Any) -> Any:
        """Await a coroutine of the client from another event loop."""

    async def status(self, instance_id: str) -> InstanceStatus: ...
    async def history(self, instance_id: str) -> list[Event]: ...
    async def result(self, instance_id: str, timeout_s: float | None) -> Any: ...
    async def raise_event(self, instance_id: str, name: str, value: Any, event_id: str | None) -> None: ...
    async def terminate(self, instance_id: str, reason: str) -> None: ...


class Handle(Generic[R_co]):
    """One instance, by id. `await handle` is its result."""

    def __init__(self, client: HandlePort, instance_id: str) -> None:
        self.instance_id = instance_id
        self._client = client

    def status(self) -> InstanceStatus:
        """The status, read from storage; needs no Ray. InstanceNotFoundError if there is no such instance."""
        found: InstanceStatus = self._client.run(self._client.status(self.instance_id))
        return found

    def owner(self) -> Owner | None:
        """The process that last took the instance over; None before the first."""
        return self.status().owner

    def history(self) -> list[Event]:
        """The events of the present execution, in order, read from storage; large payloads are not loaded."""
        events: list[Event] = self._client.run(self._client.history(self.instance_id))
        return events

    def result(self, timeout: float | None = None) -> R_co:
        """Wait for the end and return the orchestrator's result. `timeout` in seconds.

        Raises:
            TimeoutError: it has not ended yet; it goes on.
            OrchestrationFailedError: it failed.
            OrchestrationTerminatedError: it was terminated.
        """
        value: R_co = self._client.run(self._client.result(self.instance_id, timeout))
        return value

    def raise_event(self, name: str, value: Any = None, *, event_id: str | None = None) -> None:
        """Send an external event; returns when it is durable. The same `event_id` again changes nothing.

        Raises:
            InstanceNotFoundError, InstanceEndedError: nobody is there to take it.
            SerializationError: the value cannot be encoded.
        """
        self._client.run(self._client.raise_event(self.instance_id, name, value, event_id))

    def terminate(self, reason: str = "") -> None:
        """End the instance; running activities are ended too. Returns when that is durable.

        Raises:
            InstanceNotFoundError, InstanceEndedError: there is nothing to end.
        """
        self._client.run(self._client.terminate(self.instance_id, reason))

    def __await__(self) -> Generator[Any, None, R_co]:
        return self._client.relay(self._client.result(self.instance_id, None)).__await__()

    def __repr__(self) -> str:
        return f"<Handle of instance {self.instance_id!r}>"
