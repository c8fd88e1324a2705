"""What the next execution begins with, made of a history and its link."""

from __future__ import annotations

from typing import Any

from ray_durable.engine import (
    ContinueAsNew,
    Event,
    EventRaised,
    ExecutionCompleted,
    ExecutionRewound,
    ExecutionStarted,
    OwnerClaimed,
    RuntimeStatus,
    TaskCompleted,
    TaskScheduled,
)
from ray_durable.payload import Payload
from ray_durable.runtime.succession import fork, successor

NULL = Payload.of("json", b"null")


def started(**fields: Any) -> ExecutionStarted:
    return ExecutionStarted(
        number=1, instance_id="one", run="run-1", execution=1, name="f", input=NULL, request_id="r", **fields
    )


def raised(event_id: str, number: int = 0) -> EventRaised:
    return EventRaised(number=number, name="x", value=NULL, event_id=event_id)


def begun(history: list[Event], link: ContinueAsNew) -> ExecutionStarted:
    (event,) = successor(history, link, owes=False)
    assert isinstance(event, ExecutionStarted)
    return event


def test_unread_events_are_handed_on_in_order_without_numbers() -> None:
    link = ContinueAsNew(number=5, input=NULL, run="run-2", carried=(3, 4))
    history = [started(), raised("a", 2), raised("b", 3), raised("c", 4), link]
    following = begun(history, link)
    assert following.carried == (raised("b"), raised("c"))
    assert following.recent == ("a", "b", "c")


def test_what_an_execution_ended_before_is_handed_on_again() -> None:
    """Behind what it had taken and not read; who owned the log came after all of it."""
    carried = (raised("a"), raised("b"), raised("c"))
    link = ContinueAsNew(number=2, input=NULL, run="run-2")
    assert begun([started(carried=carried), link], link).carried == carried

    link = ContinueAsNew(number=4, input=NULL, run="run-2", carried=(3,))
    history = [started(carried=carried), raised("a", 2), raised("b", 3), link]
    assert begun(history, link).carried == (raised("b"), raised("c"))

    claim = OwnerClaimed(number=5, epoch=1, hub_epoch=1, host="h", pid=1)
    link = ContinueAsNew(number=6, input=NULL, run="run-2")
    history = [started(carried=carried), *(raised(one, n) for n, one in enumerate("abc", 2)), claim, link]
    assert begun(history, link).carried == ()


def test_a_fork_copies_whole_steps_and_hands_nothing_on_again() -> None:
    """In the middle of a step it ends with the input, which runs again; a step that ended it all does so, too."""
    end = ExecutionCompleted(number=7, status=RuntimeStatus.COMPLETED, result=NULL)
    history: list[Event] = [
        started(carried=(raised("a"),)),
        TaskScheduled(number=2, name="t", input=NULL),
        raised("a", 3),
        TaskCompleted(number=4, task=2, result=NULL),
        TaskScheduled(number=5, name="t", input=NULL),
        TaskCompleted(number=6, task=5, result=NULL),
        end,
    ]
    ends = {1: 1, 2: 2, 3: 3, 4: 4, 5: 5, 6: 6}
    for through, copied in ends.items():
        events = fork(history, instance_id="two", run="run-2", request_id="q", through=through, now_us=9)
        assert len(events) == copied + 1
        assert isinstance(events[-1], ExecutionRewound)
        assert isinstance(events[0], ExecutionStarted)
        assert (events[0].carried, events[0].origin, events[0].instance_id) == ((), "run-1", "two")

    two_calls = [*history[:5], TaskScheduled(number=6, name="t", input=NULL), *history[6:]]
    assert len(fork(two_calls, instance_id="two", run="run-2", request_id="q", through=5, now_us=9)) == 5
