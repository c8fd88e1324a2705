"""Starts that are due later: the code begins with the timer of its start, and everything else may come before."""

from __future__ import annotations

from typing import Any

import pytest

from ray_durable.engine import Execution, ExecutionCompleted, RuntimeStatus, TaskScheduled
from ray_durable.errors import NonDeterminismError

from .kit import (
    Context,
    at,
    bare,
    completed,
    encode,
    fired,
    main_of,
    raised,
    replay_from_every_prefix,
    resumed,
    started,
    suspended,
    terminated,
)


async def takes_an_event(ctx: Context, value: Any) -> Any:
    return [await ctx.event("go"), ctx.execution.now_us, await ctx.call("echo")]


def later(seconds: float = 60) -> Execution:
    """An execution whose start is recorded, and due in so many seconds."""
    execution = Execution(main_of(takes_an_event))
    assert len(execution.apply([started(due_us=at(seconds))])) == 1, "the start causes nothing"
    return execution


def test_the_code_begins_when_it_is_due_and_no_sooner() -> None:
    """An early timer is no news; the due one is, and the code's time is that of the firing."""
    execution = later()
    assert execution.status is RuntimeStatus.PENDING
    assert (execution.next_timer_us, execution.due_timers(at(59)), execution.due_timers(at(60))) == (at(60), [], [1])
    assert execution.apply([fired(1, 59)]) == []
    assert execution.waiting_for == []
    execution.apply([fired(1, 61)])
    assert (execution.status, execution.waiting_for, execution.now_us) == (RuntimeStatus.RUNNING, ["go"], at(61))
    assert (execution.next_timer_us, execution.apply([fired(1, 62)])) == (None, [])


def test_events_before_the_beginning_are_kept_for_the_code() -> None:
    """At every place the history may be cut, and replayed from there."""
    inputs = [started(due_us=at(60)), raised("go", "early", "e1", 5), fired(1, 60), completed(4, "done", 61)]
    history = replay_from_every_prefix(main_of(takes_an_event), inputs)
    assert bare(history[3:4]) == [TaskScheduled(number=4, name="echo", input=encode(None))]
    end = history[-1]
    assert isinstance(end, ExecutionCompleted)
    assert end.result == encode(["early", at(60), "done"])


def test_a_termination_before_the_beginning_ends_it() -> None:
    """The code never runs, and the timer is nobody's any more."""
    execution = later()
    end = execution.apply([terminated(5)])[-1]
    assert isinstance(end, ExecutionCompleted)
    assert end.status is RuntimeStatus.TERMINATED
    assert execution.next_timer_us is None
    assert execution.apply([fired(1, 61)]) == []
    replay_from_every_prefix(main_of(takes_an_event), [started(due_us=at(60)), terminated(5)])


@pytest.mark.parametrize("resumed_s", [10, 70])
def test_a_suspension_before_the_beginning_holds_it_back(resumed_s: float) -> None:
    """Resumed before it is due, it is Pending again; resumed after, it begins with what was held."""
    execution = later()
    execution.apply([suspended(5)])
    assert execution.status is RuntimeStatus.SUSPENDED
    inputs = [started(due_us=at(60)), suspended(5)]
    if resumed_s > 60:
        inputs += [fired(1, 60), resumed(resumed_s)]
    else:
        execution.apply([resumed(resumed_s)])
        assert str(execution.status) == "Pending"
        inputs += [resumed(resumed_s), fired(1, 60)]
    replay_from_every_prefix(main_of(takes_an_event), [*inputs, raised("go", 1, "e", 80), completed(6, "done", 90)])


def test_a_history_whose_code_began_too_early_is_refused() -> None:
    """It was not made by this code: the error says that nothing was due."""
    history = [started(due_us=at(60)).stamped(1, at(0)), TaskScheduled(number=2, name="echo", input=encode(None))]
    with pytest.raises(NonDeterminismError, match="not begun"):
        Execution(main_of(takes_an_event)).apply(history)
