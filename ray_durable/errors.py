"""Every error of the library.

An error carries its facts as fields, survives pickling, and its text says what to do next. Errors derive from
`DurableError`; those that stand for a mistake in the caller's arguments are ValueErrors or TypeErrors too.
"""

from __future__ import annotations

from typing import Any

from ray_durable.failure import Failure

__all__ = [
    "ActivityError",
    "ClosedError",
    "ClusterConnectionError",
    "ConfigurationError",
    "CorruptLogError",
    "DurableError",
    "FencedError",
    "FunctionNotFoundError",
    "HubHeldError",
    "InstanceActiveError",
    "InstanceEndedError",
    "InstanceExistsError",
    "InstanceNotFoundError",
    "InvalidIdError",
    "InvalidOrchestratorError",
    "NestingTooDeepError",
    "NonDeterminismError",
    "NotDeterministicError",
    "OrchestrationFailedError",
    "OrchestrationTerminatedError",
    "PayloadTooLargeError",
    "ScheduleNotFoundError",
    "SerializationError",
    "StoreError",
    "StoreUnavailableError",
    "SubOrchestrationError",
    "TooManyEventsError",
    "UnsupportedStoreError",
]


def _rebuild(cls: type[DurableError], fields: dict[str, Any]) -> DurableError:
    return cls(**fields)


class DurableError(Exception):
    """Base of all errors of ray_durable. Keyword fields given to it become attributes and survive pickling."""

    def __init__(self, message: str, **fields: Any) -> None:
        super().__init__(message)
        self._fields = {"message": message, **fields}
        for name, value in fields.items():
            setattr(self, name, value)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self._fields)


class ConfigurationError(DurableError, ValueError):
    """A setting or argument that cannot work."""


class InvalidIdError(DurableError, ValueError):
    """An instance id, hub name or event name that is not allowed."""


class InvalidOrchestratorError(DurableError, TypeError):
    """A function that cannot be an orchestrator or activity."""


class FunctionNotFoundError(DurableError, LookupError):
    """An orchestrator or activity that is not registered, or cannot be imported. `name`."""

    name: str


class InstanceNotFoundError(DurableError, LookupError):
    """No instance has this id. `instance_id`."""

    instance_id: str


class ScheduleNotFoundError(DurableError, LookupError):
    """No schedule has this id. `schedule_id`."""

    schedule_id: str


class InstanceExistsError(DurableError, ValueError):
    """The id is taken. `instance_id`."""

    instance_id: str


class InstanceActiveError(DurableError):
    """The instance has not ended, and what was asked for needs that. `instance_id`, `runtime_status`."""

    instance_id: str
    runtime_status: str


class InstanceEndedError(DurableError):
    """The instance has ended; it takes no more events or control calls. `instance_id`, `runtime_status`."""

    instance_id: str
    runtime_status: str


class TooManyEventsError(DurableError):
    """Too many external events wait for the instance to take them; this one was not recorded, and the instance takes
    others once its code has taken some. `instance_id`, `name` (of the event), `count` and `size_bytes` (of those that
    wait)."""

    instance_id: str
    name: str
    count: int
    size_bytes: int


class SerializationError(DurableError, TypeError):
    """A value that cannot be encoded or decoded. `where` names the function, `type_name` the type."""

    where: str
    type_name: str


class PayloadTooLargeError(DurableError, ValueError):
    """A payload over a limit. `where`, `size_bytes`, `limit_bytes`."""

    where: str
    size_bytes: int
    limit_bytes: int


class StoreError(DurableError, OSError):
    """The object store refused or failed for good. `url`."""

    url: str


class StoreUnavailableError(StoreError):
    """The store did not answer clearly (timeout, throttling, ambiguous response): trying again may succeed.

    `waited_s` is for how long that was tried before it was given up; None: it was not tried again.
    """

    waited_s: float | None = None


class UnsupportedStoreError(StoreError):
    """The store has no atomic create-if-absent, or cannot be used for another lasting reason."""


class CorruptLogError(DurableError):
    """An object of the log that is damaged or does not belong where it lies. `key`."""

    key: str


class FencedError(DurableError):
    """A newer owner has the log: nothing more may be appended. What was in flight has an unknown outcome. `key`."""

    key: str


class HubHeldError(DurableError):
    """Another living cluster holds the task hub. `holder` describes it."""

    holder: str


class ClosedError(DurableError):
    """The hub was closed in this process; what it was asked to do may or may not have happened."""


class ClusterConnectionError(DurableError, ConnectionError):
    """The Ray cluster that should be running cannot be reached."""


class NonDeterminismError(DurableError):
    """Replay asked for something else than the history holds.

    `expected` is what the history has, `actual` what the code asked for, `position` the event's number, `source` the
    line of the code ("file:line").
    """

    expected: str
    actual: str
    position: int
    source: str


class NotDeterministicError(DurableError, RuntimeError):
    """Something was used inside an orchestrator that cannot be replayed (threads, sockets, ...)."""


class _FailureError(DurableError):
    """An error that carries the description of the failure that it reports."""

    failure: Failure


class ActivityError(_FailureError):
    """An activity failed for good. `name`, `failure` (type, message, traceback), `attempt`."""

    name: str
    attempt: int

    def __init__(self, message: str = "", *, name: str, failure: Failure, attempt: int = 1) -> None:
        text = message or f"Activity function '{name}' failed: {failure.describe()}"
        super().__init__(text, name=name, failure=failure, attempt=attempt)


class SubOrchestrationError(_FailureError):
    """An instance that was called failed for good. `name`, `instance_id`, `failure`, `attempt`."""

    name: str
    instance_id: str
    attempt: int

    def __init__(self, message: str = "", *, name: str, instance_id: str, failure: Failure, attempt: int = 1) -> None:
        text = message or f"Sub-orchestrator function '{name}' failed: {failure.describe()}"
        super().__init__(text, name=name, instance_id=instance_id, failure=failure, attempt=attempt)


class OrchestrationFailedError(_FailureError):
    """The instance ended as Failed. `instance_id`, `failure`."""

    instance_id: str


class NestingTooDeepError(DurableError, RecursionError):
    """Instances call instances without end. `depth` is how many callers there are already."""

    depth: int


class OrchestrationTerminatedError(DurableError):
    """The instance was terminated. `instance_id`, `reason`."""

    instance_id: str
    reason: str
