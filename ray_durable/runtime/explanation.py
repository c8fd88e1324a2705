"""Why an instance waits: everything that it asked for and has not got, each with what is known of it.

Its owner knows most. One that let the idle instance go left what it knew in the open set; else the history tells.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from ray_durable.engine import (
    Event,
    Execution,
    ExecutionStarted,
    MapCanceled,
    MapCompleted,
    MapScheduled,
    RuntimeStatus,
    SubOrchestrationInstanceCanceled,
    SubOrchestrationInstanceCompleted,
    SubOrchestrationInstanceCreated,
    SubOrchestrationInstanceFailed,
    TaskCanceled,
    TaskCompleted,
    TaskFailed,
    TaskScheduled,
    TimerCanceled,
    TimerCreated,
    TimerFired,
)
from ray_durable.runtime.correspondence import Correspondence
from ray_durable.runtime.hub import OpenHub
from ray_durable.runtime.messages import CallState
from ray_durable.runtime.status import InstanceStatus
from ray_durable.storage import find_open

__all__ = [
    "Explanation",
    "Waiting",
    "WaitingKind",
    "at",
    "explain_execution",
    "explain_history",
    "explain_stored",
    "waiting_fields",
]

_EPOCH = datetime.fromtimestamp(0, UTC)
_NOTED_MAX = 100

_SHOWN_MAX = 50
"""So many things are told one by one; of the others, how many there are of each kind."""

WaitingKind = Literal["activity", "map", "timer", "external event", "sub-orchestration", "start", "code"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """One thing that an instance waits for.

    `number` is its event in the history (0 for external events, which have none), `name` that of the activity, event or
    orchestrator. `since` tells since when, `due` when a timer fires, `attempt` which attempt it is, `source` the line
    of code ("file:line", "" if unknown). `state` is what is going on with it, in words; `worker` the process that runs
    it ("host:pid"), `instance_id` the instance that was called. Between two attempts of a call, `number` and `due` are
    those of the timer before the next one, which is `attempt`.

    "code" is a coroutine that waits for another one (a lock, a queue, an event of asyncio's) while nothing else is
    under way, so that none of them will ever go on.
    """

    kind: WaitingKind
    name: str
    number: int
    since: datetime | None = None
    due: datetime | None = None
    attempt: int | None = None
    state: str = ""
    worker: str | None = None
    instance_id: str | None = None
    source: str = ""

    def __str__(self) -> str:
        parts = [f"{self.kind} {self.name}" if self.name else self.kind]
        if self.attempt is not None and self.attempt > 1:
            parts.append(f"attempt {self.attempt}")
        if self.instance_id is not None:
            parts.append(f"instance {self.instance_id!r}")
        if self.state:
            parts.append(self.state)
        if self.worker:
            parts.append(f"on {self.worker}")
        if self.due is not None:
            parts.append(f"due {self.due:%Y-%m-%d %H:%M:%S} UTC")
        if self.since is not None:
            parts.append(f"since {self.since:%Y-%m-%d %H:%M:%S} UTC")
        return ", ".join(parts) + (f"\n      {self.source}" if self.source else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """Why an instance waits. `stack` is where its code is, if that has kept the thread for more than a few seconds."""

    status: InstanceStatus
    waiting: tuple[Waiting, ...] = ()
    stack: str | None = None

    def __str__(self) -> str:
        status = self.status
        lines = [f"{status.instance_id} ({status.name}) is {status.runtime_status}"]
        if status.problem and not self.stack:
            lines.append(f"  problem: {status.problem}")
        if self.stack:
            lines += ["  its code keeps the thread, and nothing else can happen meanwhile:", self.stack.rstrip()]
        if self.waiting:
            lines.append("  it waits for")
        lines += [f"    {waiting}" for waiting in self.waiting[:_SHOWN_MAX]]
        rest = Counter(f"{one.kind} {one.name}".rstrip() for one in self.waiting[_SHOWN_MAX:])
        lines += [f"    and {count:,} more of {what}" for what, count in rest.items()]
        return "\n".join(lines)


def at(time_us: int) -> datetime:
    """A time of the log as a datetime."""
    return _EPOCH + timedelta(microseconds=time_us)


def _time_us(moment: datetime | None) -> int | None:
    return None if moment is None else (moment - _EPOCH) // timedelta(microseconds=1)


async def explain_stored(hub: OpenHub, instance_id: str) -> Explanation:
    """What storage tells, with or without an owner. InstanceNotFoundError if there is no such instance."""
    tail = await hub.tail(instance_id)
    status = await hub.status_of(tail)
    entry = None if status.is_ended else await find_open(hub.store, hub.keys, instance_id)
    hint = None if entry is None else entry.wake
    is_current = hint is not None and (hint.execution, hint.tail_seq) == (tail.header.execution, tail.header.seq)
    if hint is not None and is_current and hint.waiting:
        return Explanation(status=status, waiting=tuple(map(_waiting, hint.waiting)))
    return explain_history(status, await hub.history(instance_id))


def waiting_fields(told: Explanation) -> tuple[dict[str, Any], ...]:
    """What an instance waits for, as an owner that leaves it writes that down: the first of very many."""
    fields = []
    for one in told.waiting[:_NOTED_MAX]:
        times = {"since_us": _time_us(one.since), "due_us": _time_us(one.due)}
        optional = {
            "state": one.state or None,
            "source": one.source or None,
            "attempt": one.attempt,
            "instance": one.instance_id,
            **times,
        }
        present = {name: value for name, value in optional.items() if value is not None}
        fields.append({"kind": one.kind, "name": one.name, "number": one.number, **present})
    return tuple(fields)


def _waiting(fields: Mapping[str, Any]) -> Waiting:
    since_us, due_us = fields.get("since_us"), fields.get("due_us")
    return Waiting(
        kind=fields.get("kind", "external event"),
        name=fields.get("name", ""),
        number=fields.get("number", 0),
        since=None if since_us is None else at(since_us),
        due=None if due_us is None else at(due_us),
        attempt=fields.get("attempt"),
        state=fields.get("state", ""),
        instance_id=fields.get("instance"),
        source=fields.get("source", ""),
    )


def explain_history(status: InstanceStatus, history: Sequence[Event]) -> Explanation:
    """What a history shows: what was asked for and has no outcome. External events are not in it until they come."""
    if status.is_ended:
        return Explanation(status=status)
    correspondence = Correspondence()
    waiting: dict[int, Waiting] = {}
    left: dict[int, int] = {}
    for event in history:
        correspondence.take([event])
        number, since = event.number, at(event.time_us)
        if isinstance(event, ExecutionStarted):
            if event.due_us is not None:
                waiting[number] = _start(event, event.due_us)
        elif isinstance(event, TaskScheduled):
            waiting[number] = Waiting(
                kind="activity", name=event.name, number=number, since=since, attempt=event.attempt
            )
        elif isinstance(event, MapScheduled):
            left[number] = event.count
            waiting[number] = Waiting(kind="map", name=event.name, number=number, since=since)
        elif isinstance(event, TimerCreated):
            waiting[number] = Waiting(kind="timer", name="", number=number, since=since, due=at(event.due_us))
        elif isinstance(event, SubOrchestrationInstanceCreated):
            waiting[number] = Waiting(
                kind="sub-orchestration",
                name=event.name,
                number=number,
                since=since,
                attempt=event.attempt,
                instance_id=correspondence.child_id(number),
            )
        elif isinstance(event, MapCompleted):
            left[event.map] = left.get(event.map, 0) - (event.count - len(event.failures))
            if left[event.map] <= 0:
                waiting.pop(event.map, None)
            elif event.map in waiting:
                waiting[event.map] = replace(waiting[event.map], state=f"{left[event.map]:,} items to go")
        elif isinstance(event, TimerFired | TimerCanceled):
            waiting.pop(event.timer, None)
        elif isinstance(event, MapCanceled):
            waiting.pop(event.map, None)
        elif isinstance(event, _ANSWERS):
            waiting.pop(event.task, None)
    return Explanation(status=status, waiting=tuple(waiting.values()))


def explain_execution(
    status: InstanceStatus,
    execution: Execution,
    child_id: Callable[[int], str],
    calls: Sequence[CallState],
    now_us: int,
) -> Explanation:
    """What the engine and the dispatcher know. `child_id` gives the instance that an event called."""
    states: dict[int, list[CallState]] = {}
    for call in calls:
        states.setdefault(call.number, []).append(call)
    waiting: list[Waiting] = []
    for number, task in execution.outstanding_tasks.items():
        shown = Waiting(
            kind="activity",
            name=task.name,
            number=number,
            since=at(task.time_us),
            attempt=task.attempt,
            source=execution.source_of(number),
        )
        waiting.append(_with_call(shown, states[number][0], now_us) if number in states else shown)
    for number, mapped in execution.outstanding_maps.items():
        parts = states.get(number, [])
        running = sum(part.items[1] - part.items[0] for part in parts if part.items and part.state == "running")
        waiting.append(
            Waiting(
                kind="map",
                name=mapped.scheduled.name,
                number=number,
                since=at(mapped.scheduled.time_us),
                state=f"{mapped.unfinished:,} of {mapped.scheduled.count:,} items to go, {running:,} on workers",
                worker=", ".join(dict.fromkeys(filter(None, map(_worker, parts)))) or None,
                source=execution.source_of(number),
            )
        )
    for number, child in execution.outstanding_children.items():
        waiting.append(
            Waiting(
                kind="sub-orchestration",
                name=child.name,
                number=number,
                since=at(child.time_us),
                attempt=child.attempt,
                instance_id=child_id(number),
                source=execution.source_of(number),
            )
        )
    waiting += [_timer(execution, number, due_us) for number, due_us in execution.timers.items()]
    waiting.sort(key=lambda one: one.number)
    for name, since_us, source in execution.event_waits:
        waiting.append(Waiting(kind="external event", name=name, number=0, since=at(since_us), source=source))
    if not waiting and execution.status is RuntimeStatus.RUNNING:
        state = "waits for code of its own that nothing will wake"
        waiting = [Waiting(kind="code", name="", number=0, state=state, source=one) for one in execution.code_waits]
    return Explanation(status=status, waiting=tuple(waiting))


def _start(started: ExecutionStarted, due_us: int) -> Waiting:
    return Waiting(kind="start", name="", number=started.number, since=at(started.time_us), due=at(due_us))


def _timer(execution: Execution, number: int, due_us: int) -> Waiting:
    if execution.started is not None and number == execution.started.number:
        return _start(execution.started, due_us)
    source, retried = execution.source_of(number), execution.retried(number)
    if retried is None:
        return Waiting(kind="timer", name="", number=number, due=at(due_us), source=source)
    what = f"{retried.item_count:,} items that failed" if retried.kind == "map" else "the last one failed"
    return Waiting(
        kind=retried.kind,
        name=retried.name,
        number=number,
        due=at(due_us),
        attempt=retried.attempt,
        state=f"not begun: {what}",
        source=source,
    )


def _with_call(shown: Waiting, call: CallState, now_us: int) -> Waiting:
    began = at(now_us - round(call.since_s * 1_000_000))
    words = ["running" if call.state == "running" else "waiting for a worker"]
    if call.lost_workers:
        words.append(f"{call.lost_workers} workers lost with it")
    if call.heartbeat_s is not None:
        words.append(f"last heartbeat {call.heartbeat_s:.0f} s ago")
    if call.problem:
        words.append(call.problem)
    return replace(shown, state=", ".join(words), worker=_worker(call), since=began, attempt=call.attempt)


def _worker(call: CallState) -> str | None:
    return None if call.host is None or call.pid is None else f"{call.host}:{call.pid}"


_ANSWERS = (
    TaskCompleted
    | TaskFailed
    | TaskCanceled
    | SubOrchestrationInstanceCompleted
    | SubOrchestrationInstanceFailed
    | SubOrchestrationInstanceCanceled
)
