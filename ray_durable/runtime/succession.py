"""The next execution of an instance: what its segment 0 holds, made of the link and of the history before it.

The link is the last event of an execution's log: ContinueAsNew, which the code asked for, or ExecutionRestarted behind
the end. Whoever finds a link creates what it names; the same link always gives the same instance, execution and run, so
that any number of processes may do it at once, and a process that dies in between is no loss.

A rewind copies the history up to the failure, and hands on the outcomes that were recorded afterwards for what had been
asked for before it. A fork copies any beginning of another instance's history. Nothing here reads or writes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence

from ray_durable.codec import open_batch
from ray_durable.engine import (
    ContinueAsNew,
    Event,
    EventRaised,
    ExecutionCompleted,
    ExecutionRestarted,
    ExecutionResumed,
    ExecutionRewound,
    ExecutionStarted,
    ExecutionSuspended,
    ExecutionTerminated,
    Input,
    MapCompleted,
    MapItemsScheduled,
    MapScheduled,
    OwnerClaimed,
    RuntimeStatus,
    SubOrchestrationInstanceCompleted,
    SubOrchestrationInstanceCreated,
    SubOrchestrationInstanceFailed,
    TaskCompleted,
    TaskFailed,
    TaskScheduled,
    TimerFired,
)
from ray_durable.failure import Failure

__all__ = ["Link", "continued", "fork", "link_of", "plan_rewind", "successor"]

Link = ContinueAsNew | ExecutionRestarted

RECENT_IDS_MAX = 1_000
"""Ids of external events, suspensions and resumptions that go along, so that a repetition is known in the next
execution too."""

_NOT_RECORDED_AGAIN = ("NonDeterminismError", "PayloadTooLargeError")


def link_of(history: Sequence[Event]) -> Link | None:
    """The link to the next execution, if the history ends with one."""
    last = history[-1]
    return last if isinstance(last, ContinueAsNew | ExecutionRestarted) else None


def successor(history: Sequence[Event], link: Link, *, owes: bool) -> list[Event]:
    """The events of the next execution's segment 0. `owes`: messages of this one may still have to be delivered."""
    started = _started(history)
    if isinstance(link, ContinueAsNew):
        unread = [history[number - 1] for number in link.carried]
        return continued(started, link, [*unread, *_untaken(history)], _recent_ids(history), owes=owes)
    if link.kind == "rewind":
        return _rewound(history, link, owes=owes)
    assert link.name is not None, "a restart says what it starts"
    assert link.input is not None, "a restart says with what it starts"
    return [
        dataclasses.replace(
            _next(started, link, link.request_id, owes=owes),
            name=link.name,
            input=link.input,
            reference=link.reference,
            version=link.version,
            parent=link.parent,
            depth=link.depth,
            due_us=link.due_us,
        )
    ]


def continued(
    started: ExecutionStarted, link: ContinueAsNew, carried: Iterable[Event], recent: Iterable[str], *, owes: bool
) -> list[Event]:
    """`successor` of an execution that continues as new, by an owner that has it in memory.

    `carried` are its unread events: also those that were handed on to it and that it ended before.
    """
    request_id = f"{link.number}.{started.execution}.{started.instance_id}"
    return [
        dataclasses.replace(
            _next(started, link, request_id, owes=owes),
            input=link.input,
            carried=tuple(_fresh(event) for event in carried if isinstance(event, EventRaised)),
            recent=tuple(recent)[-RECENT_IDS_MAX:],
        )
    ]


def fork(
    history: Sequence[Event], *, instance_id: str, run: str, request_id: str, through: int, now_us: int
) -> list[Event]:
    """The events of a new instance that goes on from the first `through` events of another's history.

    A step is copied as a whole or runs again: in the middle of what an input caused, the copy ends with that input.
    """
    source, through = _started(history), _whole_steps(history, through)
    started = dataclasses.replace(
        source,
        instance_id=instance_id,
        run=run,
        execution=1,
        request_id=request_id,
        parent=None,
        depth=0,
        previous=(source.instance_id, source.execution, source.run),
        owes=False,
        carried=(),
        origin=source.origin or source.run,
        lineage=(),
        foreign=through,
    )
    reason = f"forked from {source.instance_id} at event {through}"
    return _copied(started, history, through, reason=reason, now_us=now_us)


def plan_rewind(history: Sequence[Event]) -> tuple[int, tuple[int, ...]]:
    """How a failed execution is rewound: the number of the last event to copy, and the outcomes behind it to keep.

    A failed activity or instance that the failure names is as if it had not been answered, and so is one that failed
    since the code asked for anything the last time: code that looks at what failed and then raises an error of its own
    names nothing. Where only the code failed, the step in which it did runs again. A termination is as if it had not
    come.
    """
    end = history[-1]
    assert isinstance(end, ExecutionCompleted), "only what has ended is rewound"
    if end.status is RuntimeStatus.TERMINATED:
        return next(event.number for event in reversed(history) if isinstance(event, ExecutionTerminated)) - 1, ()
    assert end.failure is not None, "only what has failed is rewound"
    culprit = _culprit(history, end.failure)
    if culprit is None and end.failure.type_name in _NOT_RECORDED_AGAIN and end.failure.kind == "system":
        return end.number - 1, ()
    culprit = culprit or _failed_last(history)
    if culprit is None:
        return next(event.number for event in reversed(history) if isinstance(event, Input)), ()
    through = culprit - 1
    asked = {event.number for event in history[:through] if not isinstance(event, Input)}
    kept = tuple(event.number for event in history[through:] if _is_kept(event, asked))
    return through, kept


def _started(history: Sequence[Event]) -> ExecutionStarted:
    started = history[0]
    assert isinstance(started, ExecutionStarted), "a history begins with its start"
    return started


def _next(started: ExecutionStarted, link: Link, request_id: str, *, owes: bool) -> ExecutionStarted:
    return dataclasses.replace(
        started,
        time_us=link.time_us,
        run=link.run,
        execution=started.execution + 1,
        request_id=request_id,
        previous=(started.instance_id, started.execution, started.run),
        owes=owes,
        carried=(),
        recent=(),
        origin=None,
        lineage=(),
        foreign=0,
        due_us=None,
    )


def _rewound(history: Sequence[Event], link: ExecutionRestarted, *, owes: bool) -> list[Event]:
    started = _started(history)
    # The inputs handed on to this execution before it ran are in its history by now.
    following = dataclasses.replace(
        _next(started, link, link.request_id, owes=owes),
        due_us=started.due_us,
        recent=tuple(_recent_ids(history))[-RECENT_IDS_MAX:],
        origin=started.origin or started.run,
        lineage=_lineage(started, link.through),
        foreign=min(started.foreign, link.through),
        carried=tuple(_fresh(part) for number in link.kept for part in _successes(history[number - 1])),
    )
    return _copied(following, history, link.through, reason=link.reason, now_us=link.time_us)


def _copied(
    started: ExecutionStarted, history: Sequence[Event], through: int, *, reason: str, now_us: int
) -> list[Event]:
    # The copied start keeps its time: the history's times never decrease.
    copied = [dataclasses.replace(started, time_us=history[0].time_us), *history[1:through]]
    now_us = max(now_us, copied[-1].time_us)
    rewound = ExecutionRewound(number=through + 1, time_us=now_us, reason=reason, request_id=started.request_id)
    return [*copied, rewound]


def _lineage(started: ExecutionStarted, through: int) -> tuple[tuple[int, int, str], ...]:
    """Who made the first `through` events."""
    older = tuple(part for part in started.lineage if part[0] < through)
    execution, run = started.author_of(through)
    return (*older, (through, execution, run))


def _recent_ids(history: Iterable[Event]) -> Iterator[str]:
    for event in history:
        if isinstance(event, ExecutionStarted):
            yield from event.recent
        elif isinstance(event, EventRaised) and event.event_id:
            yield event.event_id
        elif isinstance(event, ExecutionSuspended | ExecutionResumed) and event.request_id:
            yield event.request_id


def _untaken(history: Sequence[Event]) -> Sequence[Input]:
    """The inputs handed on to the execution that it ended before: they come first behind what nobody had run."""
    started = _started(history)
    beginning = max(
        place for place, event in enumerate(history) if isinstance(event, ExecutionStarted | ExecutionRewound)
    )
    taken = sum(isinstance(event, Input) for event in history[beginning + 1 :])
    return started.carried[taken:]


def _whole_steps(history: Sequence[Event], through: int) -> int:
    """The number of the last event of `through` that is not in the middle of what an input caused."""
    if through < len(history) and not isinstance(history[through], Input):
        while not isinstance(history[through - 1], Input):
            through -= 1
    return through


def _fresh(event: Input) -> Input:
    return event.stamped(0, event.time_us)


def _culprit(history: Sequence[Event], failure: Failure) -> int | None:
    """The number of the earliest event without whose failed outcome the code would not have failed; None if no
    outcome is to blame.

    Failures that came together, before the code asked for anything more, are taken together.
    """
    chain: list[Failure] = []
    while failure is not None:
        chain.append(failure)
        if failure.cause is None:
            break
        failure = failure.cause
    found: int | None = None
    for event in reversed(history):
        if found is not None and isinstance(event, _CALLS):
            break
        failures = _failures(event)
        if failures and (found is not None or any(one in chain for one in failures)):
            found = event.number
    return found


def _failed_last(history: Sequence[Event]) -> int | None:
    """The number of the earliest failed outcome behind the last call that the code made."""
    found: int | None = None
    for event in reversed(history):
        if isinstance(event, _CALLS):
            break
        if _failures(event):
            found = event.number
    return found


_CALLS = TaskScheduled | MapScheduled | MapItemsScheduled | SubOrchestrationInstanceCreated


def _failures(event: Event) -> Sequence[Failure]:
    if isinstance(event, TaskFailed | SubOrchestrationInstanceFailed):
        return (event.failure,)
    if isinstance(event, MapCompleted):
        return [failure for _, failure in event.failures]
    return ()


def _is_kept(event: Event, asked: set[int]) -> bool:
    """Whether the event is good news on something that was asked for before, or came by itself."""
    if isinstance(event, TaskCompleted | SubOrchestrationInstanceCompleted):
        return event.task in asked
    if isinstance(event, MapCompleted):
        return event.map in asked and len(event.failures) < event.count
    if isinstance(event, TimerFired):
        return event.timer in asked
    # A suspension that was copied must end as it did.
    return isinstance(event, EventRaised | ExecutionSuspended | ExecutionResumed)


def _successes(event: Event) -> Iterator[Input]:
    """The event without what failed."""
    if not isinstance(event, MapCompleted):
        assert isinstance(event, Input), "only outcomes are kept"
        assert not isinstance(event, OwnerClaimed), "who owned the log is no outcome"
        yield event
        return
    batch = open_batch(event.results)
    taken, start = 0, 0
    for offset in [*(offset for offset, _ in event.failures), event.count]:
        if start < offset:
            count = offset - start
            results = batch.slice(taken, taken + count)
            yield dataclasses.replace(
                event, start=event.start + start, count=count, results=results, failures=(), heartbeats=()
            )
            taken += count
        start = offset + 1
