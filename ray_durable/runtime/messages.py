"""What instances, the dispatcher and workers say to each other. Plain picklable data; nothing here is stored.

An instance and the dispatcher speak by one call, `exchange`: the instance hands over what it wants started or dropped
and which outcomes it has recorded; the answer brings outcomes. At most one exchange of an instance is parked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from ray_durable.failure import Failure
from ray_durable.payload import Payload
from ray_durable.target import ActivityTarget

__all__ = [
    "Attachment",
    "CallState",
    "Exchange",
    "ExchangeReply",
    "Heartbeats",
    "MapOutcomes",
    "MapRequest",
    "Outcome",
    "SliceNews",
    "SlicePlace",
    "SliceReport",
    "SliceWork",
    "TaskOutcome",
    "TaskRequest",
    "Withdrawal",
]


@dataclass(slots=True, kw_only=True)
class TaskRequest:
    """Run one activity call. `submission` counts how often this task was handed to a dispatcher, from 1.

    `heartbeat` is what earlier attempts last said of themselves, for this one to read.
    """

    task: int
    attempt: int
    submission: int
    origin: int
    """The number of the first attempt's TaskScheduled: the stable part of the idempotency key."""
    input: Payload
    target: ActivityTarget
    heartbeat: Payload | None = None


@dataclass(slots=True, kw_only=True)
class MapRequest:
    """Run items of a map: all of `ranges` (start, stop) of `items`, as attempt `attempt`.

    `heartbeats` are what earlier attempts last said of themselves, by item.
    """

    map: int
    attempt: int
    submission: int
    items: Payload
    ranges: tuple[tuple[int, int], ...]
    target: ActivityTarget
    heartbeats: Mapping[int, Payload] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True)
class TaskOutcome:
    """The end of one activity call: a result or a failure."""

    task: int
    attempt: int
    result: Payload | None
    failure: Failure | None
    lost_workers: int = 0
    """How many workers died with this call before."""
    heartbeat: Payload | None = None
    """What the attempt last said of itself, if it failed."""


@dataclass(slots=True, kw_only=True)
class MapOutcomes:
    """The ends of the items `start` to `start + count - 1` of a map; `results` holds the successes, in order."""

    map: int
    attempt: int
    start: int
    count: int
    results: Payload
    failures: tuple[tuple[int, Failure], ...]
    lost_workers: int = 0
    heartbeats: tuple[tuple[int, Payload], ...] = ()
    """What those that failed last said of themselves, by offset from `start`."""


Outcome = TaskOutcome | MapOutcomes


@dataclass(slots=True, kw_only=True)
class Attachment:
    """The dispatcher's answer to an owner that (re)attaches: what it holds of this run, running, queued or finished.

    `maps` gives the (start, stop, attempt) ranges of items, by map. `incarnation` tells one life of the dispatcher from
    the next, which knows nothing of what the last one ran.
    """

    incarnation: str
    tasks: frozenset[int]
    maps: Mapping[int, tuple[tuple[int, int, int], ...]]


@dataclass(slots=True, kw_only=True)
class Exchange:
    """One call of an instance. `settled` are ids of outcomes that its log now holds; they are forgotten."""

    run: str
    instance_id: str
    epoch: int
    hub_epoch: int
    incarnation: str
    is_fresh: bool = False
    """First of its owner: outcomes that were delivered to others, or got lost on the way, come again."""
    tasks: list[TaskRequest] = field(default_factory=list)
    maps: list[MapRequest] = field(default_factory=list)
    cancel: list[int] = field(default_factory=list)
    settled: list[int] = field(default_factory=list)
    is_leaving: bool = False
    """The instance has ended: everything of this run is dropped."""


@dataclass(slots=True, kw_only=True)
class ExchangeReply:
    """Outcomes by id, and what keeps activities from starting, if anything does.

    `is_detached`: this incarnation does not know the run; attach again. `is_superseded`: a newer owner is attached.
    """

    outcomes: dict[int, list[Outcome]] = field(default_factory=dict)
    problem: str | None = None
    is_detached: bool = False
    is_superseded: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CallState:
    """What the dispatcher knows of an activity call, or of some items of a map, that has not ended.

    `number` is that of the task or map, `items` the range of the map's items (start, stop). A call is "waiting" for a
    worker or "running" on one (in the process `pid` of `host`, once that is known), `since_s` seconds now;
    `heartbeat_s` seconds ago it gave a heartbeat. `lost_workers` died with it before. `problem` is what keeps it from
    starting.
    """

    number: int
    items: tuple[int, int] | None
    state: Literal["waiting", "running"]
    attempt: int
    since_s: float
    host: str | None = None
    pid: int | None = None
    lost_workers: int = 0
    heartbeat_s: float | None = None
    problem: str | None = None


@dataclass(slots=True, kw_only=True)
class SliceWork:
    """What a worker gets: calls of one function, to be run in order until the time budget is spent.

    `calls` are encoded arguments, one call each, with the parallel lists `attempts` and `keys` (idempotency keys). For
    a map, `batch` holds the items instead; item i is item `first` + i of the map, `attempts` has one entry and `keys`
    one prefix. `heartbeats` are what earlier attempts last said, by offset. A call that shall end and has not ended
    `grace_s` later is ended with its process.
    """

    run: str
    instance_id: str
    target: ActivityTarget
    budget_s: float
    count: int
    attempts: list[int]
    keys: list[str]
    calls: list[Payload] = field(default_factory=list)
    batch: Payload | None = None
    first: int = 0
    heartbeats: dict[int, Payload] = field(default_factory=dict)
    grace_s: float = 5.0


@dataclass(slots=True, kw_only=True)
class SliceReport:
    """What a worker sends back: outcomes of the first `done` items, in order. The rest is untouched.

    Calls give `outcomes` (a payload or a failure each); a batch gives `results` (the successes) and `failures` by
    offset. `unresolved` tells that the function could not be loaded, `is_stale` that this worker holds an older source
    of it: in both cases nothing ran.

    `condemned` are calls of the rest that had to be ended with their process: they have failed, by offset. `heartbeats`
    are what calls without a result last said.
    """

    done: int
    elapsed_s: float
    outcomes: list[Payload | Failure] = field(default_factory=list)
    results: Payload | None = None
    failures: tuple[tuple[int, Failure], ...] = ()
    unresolved: Failure | None = None
    is_stale: bool = False
    condemned: tuple[tuple[int, Failure], ...] = ()
    heartbeats: dict[int, Payload] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True)
class SlicePlace:
    """Where a slice is: with the worker process `pid` of `host`, which begins it now, or (None) on the way to one."""

    host: str | None = None
    pid: int | None = None


@dataclass(slots=True, kw_only=True)
class Heartbeats:
    """Running calls of a slice live; by offset, what they said of themselves (None: nothing new)."""

    details: dict[int, Payload | None]


SliceNews = SlicePlace | Heartbeats | SliceReport | Failure
"""What is heard of a slice that was started. A report or a failure (its worker was lost) is the last."""


@dataclass(slots=True, kw_only=True)
class Withdrawal:
    """To a worker: nobody waits any more for these calls (offsets) of the `slice`-th slice of its session."""

    slice: int
    calls: tuple[int, ...]
