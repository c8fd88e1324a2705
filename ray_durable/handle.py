"""A handle on one instance: ask, wait, raise events, end it. Made by the client; safe to make anew from the id."""

from __future__ import annotations

from collections.abc import Generator
from datetime import timedelta
from typing import Any, Generic, Protocol, TypeVar

from ray_durable.engine import Event
from ray_durable.errors import ConfigurationError
from ray_durable.runtime.explanation import Explanation
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
    async def history(self, instance_id: str, execution: int | None) -> list[Event]: ...
    async def result(self, instance_id: str, timeout_s: float | None) -> Any: ...
    async def raise_event(self, instance_id: str, name: str, value: Any, event_id: str | None, type: Any) -> None: ...
    async def terminate(self, instance_id: str, reason: str, recursive: bool) -> None: ...
    async def suspend(self, instance_id: str, reason: str) -> None: ...
    async def resume(self, instance_id: str, reason: str) -> None: ...
    async def rewind(self, instance_id: str, reason: str) -> None: ...
    async def restart(self, instance_id: str, new_id: str | None, reason: str) -> str: ...
    async def fork(self, instance_id: str, new_id: str | None, after: int | None, execution: int | None) -> str: ...
    async def purge(self, instance_id: str) -> None: ...
    async def explain(self, instance_id: str) -> Explanation: ...


class Handle(Generic[R_co]):
    """One instance, by id. `await handle` is its result."""

    def __init__(self, client: HandlePort, instance_id: str) -> None:
        self.instance_id = instance_id
        self._client = client

    def status(self) -> InstanceStatus:
        """The status, as storage has it; needs no Ray. What a connected hub's instance cannot write there (its
        `problem`, while the store does not answer), it is asked for.

        Raises:
            InstanceNotFoundError: there is no such instance.
            StoreUnavailableError: the store does not answer, and nobody else knows.
        """
        found: InstanceStatus = self._client.run(self._client.status(self.instance_id))
        return found

    def owner(self) -> Owner | None:
        """The process that last took the instance over; None before the first."""
        return self.status().owner

    def history(self, execution: int | None = None) -> list[Event]:
        """The events of an execution (default: the newest), in order, from storage; large payloads are not loaded.

        Earlier executions, before a continue-as-new, restart or rewind, stay for the hub's grace period.
        """
        events: list[Event] = self._client.run(self._client.history(self.instance_id, execution))
        return events

    def explain(self) -> Explanation:
        """What the instance waits for, each with the line of code that asked for it. Print it."""
        explanation: Explanation = self._client.run(self._client.explain(self.instance_id))
        return explanation

    def result(self, timeout: timedelta | float | None = None) -> R_co:
        """Wait for the end and return the orchestrator's result. `timeout` in seconds, or as a timedelta.

        Raises:
            ConfigurationError: the timeout is neither.
            TimeoutError: it has not ended yet; it goes on.
            OrchestrationFailedError: it failed.
            OrchestrationTerminatedError: it was terminated.
        """
        value: R_co = self._client.run(self._client.result(self.instance_id, _seconds(timeout)))
        return value

    def raise_event(self, name: str, value: Any = None, *, event_id: str | None = None, type: Any = Any) -> None:
        """Send an external event; returns when it is durable. The same `event_id` again changes nothing.

        `type` is that of the value, where it is no plain JSON: a dataclass, a pydantic model, `datetime`,
        `tuple[int, str]`. The waiting code names it, too: `ctx.wait_for_external_event(name, type)`. Without it, a hub
        that cannot trust pickle refuses such values.

        Raises:
            InstanceNotFoundError, InstanceEndedError: nobody is there to take it.
            TooManyEventsError: the instance does not wait for it, and too many wait for the instance already. It was
                not recorded: raise it again once the instance has taken some.
            SerializationError, PayloadTooLargeError: the value cannot be encoded.
            InvalidIdError: events cannot have this name or id: both are 1 to 256 printable characters.
            StoreUnavailableError: it could not be recorded for half a minute, and may be yet: repeat it with an
                `event_id`.
        """
        self._client.run(self._client.raise_event(self.instance_id, name, value, event_id, type))

    def terminate(self, reason: str = "", *, recursive: bool = True) -> None:
        """End the instance; running activities are ended too. Returns when that is durable.

        With `recursive`, instances that it called and still waits for are terminated as well.

        Raises:
            InstanceNotFoundError, InstanceEndedError: there is nothing to end.
        """
        self._client.run(self._client.terminate(self.instance_id, reason, recursive))

    def suspend(self, reason: str = "") -> None:
        """Let nothing more happen in the instance until `resume`; what arrives meanwhile is kept, in order.

        Running activities go on, and so do instances that it called. Suspending twice is suspending once.

        Raises:
            InstanceNotFoundError, InstanceEndedError: there is nothing to suspend.
        """
        self._client.run(self._client.suspend(self.instance_id, reason))

    def resume(self, reason: str = "") -> None:
        """Let a suspended instance go on with what was kept. Nothing changes if it is not suspended.

        Raises:
            InstanceNotFoundError, InstanceEndedError: there is nothing to resume.
        """
        self._client.run(self._client.resume(self.instance_id, reason))

    def rewind(self, reason: str = "") -> None:
        """Let a failed instance go on from before its failure: the activities and instances that failed run again.

        Results that were recorded stay. What failed is what the instance's error came from (`raise ... from`, raised in
        an `except` block, in a group), and what had failed when the code, without calling anything more, gave up. Where
        nothing did, and the orchestrator's own code failed, its last step runs again, with the code of now.

        Raises:
            InstanceNotFoundError, InstanceActiveError: there is nothing, or nothing that has ended.
            ConfigurationError: it did not fail.
        """
        self._client.run(self._client.rewind(self.instance_id, reason))

    def restart(self, instance_id: str | None = None, *, reason: str = "") -> Handle[R_co]:
        """Run it once more from the beginning, with the same input: under the same id once it has ended, or as a new
        instance with another `instance_id`, at any time.

        Raises:
            InstanceNotFoundError, InstanceActiveError: there is nothing, or nothing that has ended.
            InstanceExistsError: the other id is taken by an instance that runs.
        """
        running: str = self._client.run(self._client.restart(self.instance_id, instance_id, reason))
        return Handle(self._client, running)

    def fork(
        self, instance_id: str | None = None, *, after: int | None = None, execution: int | None = None
    ) -> Handle[R_co]:
        """Start a new instance that goes on from this one's history: from behind its event number `after` (default:
        all of it) of an execution (default: the newest). What had no outcome there runs in the new instance, too; this
        one is not touched.

        Raises:
            InstanceNotFoundError: there is nothing to fork from, or no such execution any more.
            InstanceExistsError: the new id (default: a random one) is taken.
            ConfigurationError: there is no such event.
        """
        forked: str = self._client.run(self._client.fork(self.instance_id, instance_id, after, execution))
        return Handle(self._client, forked)

    def purge(self) -> None:
        """Remove an instance that has ended, with its history: it is gone at once, its objects after the grace period.

        Raises:
            InstanceNotFoundError, InstanceActiveError: there is nothing, or nothing that has ended.
        """
        self._client.run(self._client.purge(self.instance_id))

    def __await__(self) -> Generator[Any, None, R_co]:
        return self._client.relay(self._client.result(self.instance_id, None)).__await__()

    def __repr__(self) -> str:
        return f"<Handle of instance {self.instance_id!r}>"


def _seconds(timeout: object) -> float | None:
    seconds = timeout.total_seconds() if isinstance(timeout, timedelta) else timeout
    if seconds is not None and (isinstance(seconds, bool) or not isinstance(seconds, int | float)):
        raise ConfigurationError(f"timeout is {timeout!r}: give seconds, a timedelta, or None to wait for the end")
    return seconds
