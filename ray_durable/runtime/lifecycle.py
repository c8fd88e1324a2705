"""Beginning, beginning again, and removing instances: what is done in storage alone, by whoever asks for it.

An id has one line of executions. The first is created if absent; each later one is named by a link at the end of the
log before it, so that all who want to begin one contend for a single key. A process that dies on the way leaves an
entry in the open set, and the instance's next owner goes on from there. Every operation takes a request id: asked again
with the same one, it finds what it did.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ray_durable.engine import Event, ExecutionCompleted, ExecutionRestarted, ExecutionStarted, RuntimeStatus
from ray_durable.errors import (
    ConfigurationError,
    CorruptLogError,
    InstanceActiveError,
    InstanceExistsError,
    InstanceNotFoundError,
)
from ray_durable.payload import Payload
from ray_durable.runtime.correspondence import owes
from ray_durable.runtime.hub import OpenHub
from ray_durable.runtime.records import encode_events
from ray_durable.runtime.status import InstanceStatus, summarize
from ray_durable.runtime.succession import Link, fork, link_of, plan_rewind, successor
from ray_durable.storage import (
    ClaimLostError,
    OpenEntry,
    Retired,
    RunLog,
    WakeHint,
    bury,
    create_execution,
    find_open,
    list_executions,
    persist,
    retire,
)

__all__ = [
    "Start",
    "create_linked",
    "create_successor",
    "fork_instance",
    "open_entry",
    "purge_instance",
    "restart_instance",
    "rewind_instance",
    "start_instance",
    "started_of",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """What is to be started: `reference` finds the orchestrator `name`, `run` holds the blob of `input`, if it is one.

    `parent` is (instance id, execution, task) of the caller, `depth` how many callers there are. With `due_us`, the
    code begins no sooner.
    """

    instance_id: str
    name: str
    input: Payload
    request_id: str
    run: str = ""
    reference: dict[str, Any] | None = None
    version: str | None = None
    parent: tuple[str, int, int] | None = None
    depth: int = 0
    due_us: int | None = None


async def start_instance(hub: OpenHub, start: Start, *, now_us: int, reuses_ended: bool = True) -> None:
    """Start an instance; durable when this returns. One of the same id that has ended is followed by it.

    Raises:
        InstanceExistsError: an instance of this id runs, or has ended and is not to be followed.
    """
    while True:
        executions = await persist(lambda: list_executions(hub.store, hub.keys, start.instance_id))
        if executions.latest is None:
            if await _create_first(hub, start, executions.next, now_us):
                return
            continue
        if not reuses_ended:
            # Whoever asks twice finds what it started.
            if (await hub.started(start.instance_id)).request_id == start.request_id:
                return
            raise _exists(await hub.status(start.instance_id))
        try:
            await _begin_next(
                hub,
                start.instance_id,
                start.request_id,
                lambda history: _link_of_start(hub, start, now_us),
                start=start,
            )
            return
        except InstanceActiveError:
            raise _exists(await hub.status(start.instance_id)) from None
        except InstanceNotFoundError:
            continue  # it was purged meanwhile


async def restart_instance(hub: OpenHub, instance_id: str, request_id: str, *, reason: str, now_us: int) -> None:
    """Run an instance that has ended once more, from the beginning, with the same input.

    Raises:
        InstanceActiveError: it has not ended.
        InstanceNotFoundError: there is none.
    """

    def link(history: Sequence[Event]) -> ExecutionRestarted:
        started = started_of(history)
        return ExecutionRestarted(
            time_us=now_us,
            kind="restart",
            run=hub.new_run(),
            request_id=request_id,
            reason=reason,
            name=started.name,
            input=started.input,
            reference=started.reference,
            version=started.version,
        )

    await _begin_next(hub, instance_id, request_id, link)


async def rewind_instance(
    hub: OpenHub, instance_id: str, request_id: str, *, reason: str, now_us: int, is_ended_by_caller: bool = False
) -> None:
    """Let a failed instance go on from where it was before its failure: what failed runs again, nothing else.

    `is_ended_by_caller`: also one that was terminated, since whoever called it takes that back.

    Raises:
        InstanceActiveError: it has not ended.
        ConfigurationError: it has not failed.
        InstanceNotFoundError: there is none.
    """

    def link(history: Sequence[Event]) -> ExecutionRestarted:
        end = history[-1]
        assert isinstance(end, ExecutionCompleted), "only what has ended is followed"
        is_taken_back = is_ended_by_caller and end.status is RuntimeStatus.TERMINATED
        if end.status is not RuntimeStatus.FAILED and not is_taken_back:
            raise ConfigurationError(
                f"Instance {instance_id!r} is {end.status}: only a failed one is rewound. restart() runs it from the "
                "beginning"
            )
        through, kept = plan_rewind(history)
        return ExecutionRestarted(
            time_us=now_us,
            kind="rewind",
            run=hub.new_run(),
            request_id=request_id,
            reason=reason,
            through=through,
            kept=kept,
        )

    await _begin_next(hub, instance_id, request_id, link)


async def fork_instance(
    hub: OpenHub,
    source_id: str,
    instance_id: str,
    request_id: str,
    *,
    through: int | None,
    now_us: int,
    execution: int | None = None,
) -> None:
    """Start an instance that goes on from the first `through` events (None: all) of an execution of another (None: the
    newest).

    Raises:
        InstanceExistsError: the id of the new instance is taken.
        ConfigurationError: the history has no such event.
        InstanceNotFoundError: there is no such instance, or execution, to fork from.
    """
    if execution is not None:
        await hub.require_execution(source_id, execution)
    log, history = await hub.read_log(source_id, execution)
    ends = isinstance(history[-1], ExecutionCompleted) or link_of(history) is not None
    last = next(
        event.number for event in reversed(history) if not (ends and isinstance(event, ExecutionCompleted | Link))
    )
    wanted = last if through is None else through
    if not 1 <= wanted <= last:
        raise ConfigurationError(
            f"The history of instance {source_id!r} can be forked after events 1 to {last}, not after {wanted}"
        )
    run = hub.new_run()
    events = fork(history, instance_id=instance_id, run=run, request_id=request_id, through=wanted, now_us=now_us)
    executions = await persist(lambda: list_executions(hub.store, hub.keys, instance_id))
    if executions.latest is None:
        started = dataclasses.replace(started_of(events), execution=executions.next)
        await hub.enter(_resting(open_entry(started, now_us), started))
        events = await transplant(hub, log.run, run, [started, *events[1:]])
        if await _create(hub, events, created_us=now_us):
            return
    raise _exists(await hub.status(instance_id))


async def purge_instance(
    hub: OpenHub, instance_id: str, *, now_us: int, is_wanted: Callable[[InstanceStatus], bool] = lambda status: True
) -> None:
    """Remove an instance that has ended: it is gone at once, its objects after the grace period.

    Nothing is done unless `is_wanted`, asked about the status in its log.

    Raises:
        InstanceActiveError: it has not ended, or still has messages to deliver.
        InstanceNotFoundError: there is none.
    """
    segment = await hub.tail(instance_id)
    status = segment.header.status
    is_ended = isinstance(hub.events_of(segment)[-1], ExecutionCompleted)
    if not is_ended or await persist(lambda: find_open(hub.store, hub.keys, instance_id)) is not None:
        advice = (
            "it still has messages to bring to other instances, so it can be purged in a moment"
            if is_ended
            else "it can be purged once it has ended: terminate it first"
        )
        raise _active(InstanceStatus.from_summary(status), advice)
    if not is_wanted(InstanceStatus.from_summary(status)):
        return
    through = segment.header.execution
    due_us = now_us + await hub.grace_us()
    retired = Retired(instance_id=instance_id, through=through, due_us=due_us)
    # First what makes sure that the rest is done.
    await persist(lambda: retire(hub.store, hub.keys, retired))
    await persist(lambda: bury(hub.store, hub.keys, instance_id, through))
    await hub.forget_end(status)


async def create_successor(hub: OpenHub, log: RunLog, history: Sequence[Event], link: Link) -> int | None:
    """Create the execution that `link` names, unless that was done; its number. `history` is that of `log`, with it.

    None: the instance was purged meanwhile, and another has this number.
    """
    started = started_of(history)
    is_rewound = isinstance(link, ExecutionRestarted) and link.kind == "rewind"
    events = successor(history, link, owes=owes(history, is_rewound=is_rewound))
    end = history[-2]
    if isinstance(end, ExecutionCompleted):
        await hub.forget_end(
            summarize(
                instance_id=started.instance_id,
                name=started.name,
                execution=started.execution,
                request_id=started.request_id,
                created_us=log.tail.header.status["created_us"],
                updated_us=end.time_us,
                runtime_status=end.status,
            )
        )
    return started.execution + 1 if await create_linked(hub, started.run, events) else None


async def create_linked(hub: OpenHub, old_run: str, events: Sequence[Event]) -> bool:
    """Create an execution from the events of its segment 0, whose blobs still lie with `old_run`; idempotent.

    False if there is another one of its number.
    """
    run = started_of(events).run
    return await _create(hub, await transplant(hub, old_run, run, events), created_us=started_of(events).time_us)


async def transplant(hub: OpenHub, old_run: str, run: str, events: Sequence[Event]) -> list[Event]:
    """The events with their blobs copied from one run to another."""
    moved = list(events)
    if old_run:
        await hub.load_blobs(old_run, moved)
    return await hub.store_payloads(run, [hub.detached(event) for event in moved])


async def _create_first(hub: OpenHub, start: Start, execution: int, now_us: int) -> bool:
    """Start is two writes: the entry of the open set, then segment 0. False if somebody else was quicker."""
    started = ExecutionStarted(
        number=1,
        time_us=now_us,
        instance_id=start.instance_id,
        run=hub.new_run(),
        execution=execution,
        name=start.name,
        input=start.input,
        request_id=start.request_id,
        reference=start.reference,
        version=start.version,
        parent=start.parent,
        depth=start.depth,
        due_us=start.due_us,
    )
    await hub.enter(_resting(open_entry(started, now_us), started))
    return await _create(hub, await transplant(hub, start.run, started.run, [started]), created_us=now_us)


async def _create(hub: OpenHub, events: Sequence[Event], *, created_us: int) -> bool:
    """Write segment 0; whether it is ours. One with our request id is: it is the same start, sent twice."""
    started = started_of(events)
    lines, sections = encode_events(events)
    existing = await create_execution(
        hub.store,
        hub.keys,
        instance_id=started.instance_id,
        execution=started.execution,
        run=started.run,
        lines=lines,
        sections=sections,
        status=summarize(
            instance_id=started.instance_id,
            name=started.name,
            execution=started.execution,
            request_id=started.request_id,
            created_us=created_us,
            updated_us=max(created_us, events[-1].time_us),
            due_us=started.due_us,
        ),
        hub_epoch=hub.epoch,
        pacing=hub.store.pacing,
    )
    return existing is None


async def _begin_next(
    hub: OpenHub,
    instance_id: str,
    request_id: str,
    make_link: Callable[[Sequence[Event]], ExecutionRestarted],
    *,
    start: Start | None = None,
) -> None:
    """Append a link behind the end of the newest execution, and create what it names.

    Raises:
        InstanceActiveError: the newest execution has not ended.
    """
    while True:
        log, history = await hub.read_log(instance_id)
        started = started_of(history)
        if started.request_id == request_id:
            return
        found = link_of(history)
        if found is not None:
            await create_successor(hub, log, history, found)
            continue
        if not isinstance(history[-1], ExecutionCompleted):
            status = InstanceStatus.from_summary(log.tail.header.status)
            raise _active(status, "wait for its end, or terminate it first")
        link = await _with_input(hub, started.run, make_link(history), start)
        link = link.stamped(history[-1].number + 1, max(link.time_us, history[-1].time_us))
        successor_start = started_of(successor([*history, link], link, owes=False))
        entry = open_entry(successor_start, link.time_us)
        await hub.enter(entry)
        lines, sections = encode_events([link])
        summary = {**log.tail.header.status, "runtime_status": RuntimeStatus.PENDING.value, "updated_us": link.time_us}
        summary.pop("due_us", None)
        if successor_start.due_us is not None:
            summary["due_us"] = successor_start.due_us
        try:
            await log.claim(lines, sections, first=link.number, status=summary, hub_epoch=hub.epoch)
        except ClaimLostError:
            continue
        if await create_successor(hub, log, [*history, link], link) is None:
            continue
        # The owner of what ended may have left the open set meanwhile.
        await hub.enter(_resting(entry, successor_start))
        return


async def _with_input(hub: OpenHub, run: str, link: ExecutionRestarted, start: Start | None) -> ExecutionRestarted:
    """The link with its input where the link's own run has it."""
    if start is None or link.input is None:
        return link
    (moved,) = await transplant(hub, start.run, run, [link])
    assert isinstance(moved, ExecutionRestarted), "moving changes payloads only"
    return moved


def _link_of_start(hub: OpenHub, start: Start, now_us: int) -> ExecutionRestarted:
    return ExecutionRestarted(
        time_us=now_us,
        kind="start",
        run=hub.new_run(),
        request_id=start.request_id,
        name=start.name,
        input=start.input,
        reference=start.reference,
        version=start.version,
        parent=start.parent,
        depth=start.depth,
        due_us=start.due_us,
    )


def started_of(history: Sequence[Event]) -> ExecutionStarted:
    """The start, with which each history begins. CorruptLogError if this one does not."""
    started = history[0]
    if not isinstance(started, ExecutionStarted):
        raise CorruptLogError("A history does not begin with ExecutionStarted: run storage/verify.py", key="event 1")
    return started


def open_entry(started: ExecutionStarted, now_us: int) -> OpenEntry:
    """The entry in the open set of an instance that begins, or goes on, with this start."""
    return OpenEntry(
        instance_id=started.instance_id,
        name=started.name,
        request_id=started.request_id,
        entered_us=now_us,
        depth=started.depth,
    )


def _resting(entry: OpenEntry, started: ExecutionStarted) -> OpenEntry:
    """The entry once segment 0 is, or is about to be, all that there is: it needs no owner before it is due."""
    if started.due_us is None:
        return entry
    wake = WakeHint(due_us=started.due_us, execution=started.execution, tail_seq=0)
    return dataclasses.replace(entry, wake=wake)


def _exists(status: InstanceStatus) -> InstanceExistsError:
    return InstanceExistsError(
        f"An instance with ID {status.instance_id!r} already exists ({status.runtime_status}): use "
        f"hub.get({status.instance_id!r}) for it, or start under another id",
        instance_id=status.instance_id,
    )


def _active(status: InstanceStatus, advice: str) -> InstanceActiveError:
    return InstanceActiveError(
        f"Instance {status.instance_id!r} is {status.runtime_status}: {advice}",
        instance_id=status.instance_id,
        runtime_status=str(status.runtime_status),
    )
