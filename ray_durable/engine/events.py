"""The events of a history, and the runtime statuses.

A history is a dense sequence of events, numbered from 1. Inputs come from outside: a start, an outcome, a fired timer,
an external event, a claim. Caused events are what the orchestrator's code asked for (its commands); a command is
recorded as the event it becomes, so `Command` is only another name for them. Every caused event follows, in the log,
the input that caused it.

Invariants: events are immutable; `number` is 0 until the engine numbers a fresh input; the id of a task, map or timer
is the number of the event that scheduled it; times are microseconds since the Unix epoch and never decrease along a
history. Nothing here encodes events: the log does that.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Self

from ray_durable.failure import Failure
from ray_durable.payload import Payload

__all__ = [
    "Caused",
    "Command",
    "ContinueAsNew",
    "CustomStatusSet",
    "Event",
    "EventRaised",
    "EventSent",
    "ExecutionCompleted",
    "ExecutionRestarted",
    "ExecutionResumed",
    "ExecutionRewound",
    "ExecutionStarted",
    "ExecutionSuspended",
    "ExecutionTerminated",
    "Input",
    "MapCanceled",
    "MapCompleted",
    "MapItemsScheduled",
    "MapScheduled",
    "MarkerRecorded",
    "OutboxDelivered",
    "OwnerClaimed",
    "RuntimeStatus",
    "SubOrchestrationInstanceCanceled",
    "SubOrchestrationInstanceCompleted",
    "SubOrchestrationInstanceCreated",
    "SubOrchestrationInstanceFailed",
    "TaskCanceled",
    "TaskCompleted",
    "TaskFailed",
    "TaskScheduled",
    "TimerCanceled",
    "TimerCreated",
    "TimerFired",
]


class RuntimeStatus(StrEnum):
    """The state of an instance, in the words of Durable Functions."""

    PENDING = "Pending"
    RUNNING = "Running"
    SUSPENDED = "Suspended"
    COMPLETED = "Completed"
    FAILED = "Failed"
    TERMINATED = "Terminated"
    CONTINUED_AS_NEW = "ContinuedAsNew"

    @property
    def is_final(self) -> bool:
        """Whether the execution has ended."""
        return self not in _UNFINISHED


_UNFINISHED = frozenset({RuntimeStatus.PENDING, RuntimeStatus.RUNNING, RuntimeStatus.SUSPENDED})


_FIELD_NAMES: dict[type[Event], tuple[str, ...]] = {}


def _field_names(event_type: type[Event]) -> tuple[str, ...]:
    names = _FIELD_NAMES.get(event_type)
    if names is None:
        names = tuple(name for name in event_type.__dataclass_fields__ if name not in ("number", "time_us"))
        _FIELD_NAMES[event_type] = names
    return names


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One event. `number` is its place in the history (0: not recorded yet), `time_us` the engine's time then."""

    number: int = 0
    time_us: int = 0

    def stamped(self, number: int, time_us: int) -> Self:
        """The same event with its place and time. (`dataclasses.replace` takes three times as long.)"""
        event_type = type(self)
        copy = object.__new__(event_type)
        put = object.__setattr__
        put(copy, "number", number)
        put(copy, "time_us", time_us)
        for name in _field_names(event_type):
            put(copy, name, getattr(self, name))
        return copy


@dataclass(frozen=True, slots=True, kw_only=True)
class Input(Event):
    """An event that comes from outside of the orchestrator."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Caused(Event):
    """An event that the orchestrator's code caused: a command."""


Command = Caused


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutionStarted(Input):
    """The first event of a history.

    `run` is the random id of this execution, `execution` its ordinal within the instance (from 1), `reference` the
    opaque JSON that finds the orchestrator's function, `version` what its author calls the code's version. `parent` is
    (instance id, execution, task) of the caller, `depth` how many callers there are up to the outermost. With `due_us`,
    the code begins no sooner: TimerFired of timer 1, the number of this event, says that the time has come.

    An execution that follows another names it in `previous` (instance id, execution, run); with `owes`, messages of
    that one may still have to be delivered. `carried` are inputs that were handed on: fresh ones when the code first
    runs. `recent` are ids of external events that were raised before, so that a repetition is known. A copied
    history (rewind, fork) made its random numbers from the run `origin`; `lineage` tells whose its events are:
    (through, execution, run) for the events up to `through`. Those up to `foreign` are another instance's (fork).
    """

    instance_id: str
    run: str
    execution: int
    name: str
    input: Payload
    request_id: str
    reference: dict[str, Any] | None = field(default=None, compare=False)
    version: str | None = None
    parent: tuple[str, int, int] | None = None
    depth: int = 0
    due_us: int | None = None
    previous: tuple[str, int, str] | None = None
    owes: bool = False
    carried: tuple[Input, ...] = field(default=(), repr=False)
    recent: tuple[str, ...] = field(default=(), repr=False)
    origin: str | None = None
    lineage: tuple[tuple[int, int, str], ...] = ()
    foreign: int = 0

    def author_of(self, number: int) -> tuple[int, str]:
        """The execution and the run in which the event of this number was first made."""
        for through, execution, run in self.lineage:
            if number <= through:
                return execution, run
        return self.execution, self.run


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnerClaimed(Input):
    """A new owner took the log. `attempts` are (task, attempt) of the activities that it submits again, `python` is its
    Python's version ("3.11")."""

    epoch: int
    hub_epoch: int
    host: str
    pid: int
    attempts: tuple[tuple[int, int], ...] = ()
    python: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskCompleted(Input):
    """The activity of `task` returned.

    `attempt` is that of its TaskScheduled. `lost_workers` counts the workers that died with the call before: it may
    have run that many times more.
    """

    task: int
    result: Payload
    attempt: int = 1
    lost_workers: int = field(default=0, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskFailed(Input):
    """The activity of `task` failed. Whether it is tried again is decided by the engine, from the retry policy.

    `heartbeat` is what the attempt last said of itself, for the next one to read.
    """

    task: int
    failure: Failure
    attempt: int = 1
    lost_workers: int = field(default=0, repr=False)
    heartbeat: Payload | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MapCompleted(Input):
    """The items `start` to `start + count - 1` of `map` have outcomes.

    `failures` are (offset from `start`, failure), in ascending order; `results` encodes the list of the other items'
    results, in order. `lost_workers` adds up, over these items, the workers that died with them before. `heartbeats`
    are what those that failed last said of themselves, likewise by offset, for the next attempt to read.
    """

    map: int
    start: int
    count: int
    results: Payload
    failures: tuple[tuple[int, Failure], ...] = ()
    heartbeats: tuple[tuple[int, Payload], ...] = field(default=(), repr=False)
    lost_workers: int = field(default=0, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class TimerFired(Input):
    """The time of `timer` has come."""

    timer: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EventRaised(Input):
    """An external event. `event_id` makes a repeated delivery harmless ("": not deduplicated)."""

    name: str
    value: Payload
    event_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutionTerminated(Input):
    """Somebody ended the execution from outside; with `recursive`, the instances that it called, too."""

    reason: str
    request_id: str
    recursive: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutionSuspended(Input):
    """Inputs are kept, in order, and not delivered until ExecutionResumed."""

    reason: str
    request_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutionResumed(Input):
    """What was kept since ExecutionSuspended is delivered now."""

    reason: str
    request_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutionRewound(Input):
    """The history up to here was copied: from this instance's execution before (rewind) or another instance (fork).

    What has no outcome runs again, with all of its attempts; random numbers are no longer those of the copied run, but
    made of `request_id`.
    """

    reason: str
    request_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutionRestarted(Input):
    """The execution has ended, and another one follows: the link to it, behind the end.

    `kind` is "restart", "rewind" or "start" (the id was used again). The next execution is made of this event and of
    the history before it: `run` is its random id, `request_id` that of whoever asked. A restart and a start have
    `name`, `input`, `reference` and, if an instance calls it, `parent` and `depth`; a start may have `due_us`; a rewind
    takes the events up to `through` and the outcomes `kept` behind them.
    """

    kind: str
    run: str
    request_id: str
    reason: str = ""
    name: str | None = None
    input: Payload | None = None
    reference: dict[str, Any] | None = field(default=None, compare=False)
    version: str | None = None
    parent: tuple[str, int, int] | None = None
    depth: int = 0
    due_us: int | None = None
    through: int = 0
    kept: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SubOrchestrationInstanceCompleted(Input):
    """The instance that `task` called completed. `message` is the id of the message that said so."""

    task: int
    result: Payload
    message: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SubOrchestrationInstanceFailed(Input):
    """The instance that `task` called failed or was terminated. `message` is the id of the message that said so.

    `instance` is the id of the called one ("" in histories that do not tell).
    """

    task: int
    failure: Failure
    message: str = ""
    instance: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboxDelivered(Input):
    """The messages that these events sent have arrived: they need not be sent again. 0 stands for all of the
    executions before."""

    messages: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskScheduled(Caused):
    """Run the activity `name` with `input`.

    A retry is a new event with the next `attempt`, `retry_of` naming the first. `target` is what the caller needs to
    run it; it is opaque, never recorded, and made again by replay.
    """

    name: str
    input: Payload
    attempt: int = 1
    retry_of: int | None = None
    target: object = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskCanceled(Caused):
    """Nobody waits for `task` any more."""

    task: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MapScheduled(Caused):
    """Run the activity `name` for each of `count` items, encoded together in `items`."""

    name: str
    items: Payload
    count: int
    target: object = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class MapItemsScheduled(Caused):
    """Run these items of `map` (ascending indices) again, as attempt `attempt`."""

    map: int
    attempt: int
    items: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class MapCanceled(Caused):
    """Nobody waits for the rest of `map` any more."""

    map: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TimerCreated(Caused):
    """Wake the execution at `due_us`, not earlier."""

    due_us: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TimerCanceled(Caused):
    """`timer` is not needed any more."""

    timer: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CustomStatusSet(Caused):
    """The orchestrator's own word on its progress."""

    value: Payload


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutionCompleted(Caused):
    """The last event of an execution. `result` when it returned, `failure` when it failed or was terminated."""

    status: RuntimeStatus
    result: Payload | None = None
    failure: Failure | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SubOrchestrationInstanceCreated(Caused):
    """Call the orchestrator `name` with `input`, as an instance of its own: a message.

    `instance` is the id that was asked for; without one it is derived from this instance, execution and event. A retry
    is a new event with the next `attempt`, `retry_of` naming the first.
    """

    name: str
    input: Payload
    instance: str | None = None
    attempt: int = 1
    retry_of: int | None = None
    reference: dict[str, Any] | None = field(default=None, compare=False, repr=False)
    version: str | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class SubOrchestrationInstanceCanceled(Caused):
    """Nobody waits for the instance that `task` called any more: it is to be terminated. A message."""

    task: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EventSent(Caused):
    """Raise an external event for another instance: a message."""

    instance: str
    name: str
    value: Payload


@dataclass(frozen=True, slots=True, kw_only=True)
class MarkerRecorded(Caused):
    """Something that the code must find again in replay.

    `kind` is "side_effect" (`value`: what the function returned) or "patch" (`id`: the change that is in force).
    """

    kind: str
    id: str = ""
    value: Payload | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ContinueAsNew(Caused):
    """The last event of an execution that goes on as the next one, with `input`, under the random id `run`.

    `carried` are the numbers of the external events that nobody has taken yet: they go along.
    """

    input: Payload
    run: str
    carried: tuple[int, ...] = ()
