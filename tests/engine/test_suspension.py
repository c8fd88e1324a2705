"""Suspended executions: everything is recorded, nothing is delivered before the execution resumes."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from ray_durable.engine import (
    Event,
    EventRaised,
    Execution,
    ExecutionCompleted,
    ExecutionRewound,
    MapCompleted,
    OutboxDelivered,
    OwnerClaimed,
    RuntimeStatus,
    SubOrchestrationInstanceCanceled,
    TaskCanceled,
    TaskScheduled,
    TimerCreated,
)
from ray_durable.errors import CorruptLogError

from .kit import (
    Context,
    at,
    bare,
    begin,
    child_completed,
    completed,
    encode,
    failed,
    fired,
    main_of,
    raised,
    replay_from_every_prefix,
    resumed,
    started,
    suspended,
    terminated,
)


def items(number: int, start: int, results: list[Any]) -> MapCompleted:
    return MapCompleted(map=number, start=start, count=len(results), results=encode(results))


async def two_steps(ctx: Context, value: Any) -> Any:
    return await ctx.call("second", await ctx.call("first"))


def test_what_arrives_while_suspended_is_recorded_and_delivered_on_resume() -> None:
    """What it causes follows the resumption, at its time."""
    execution, _ = begin(two_steps)
    assert bare(execution.apply([suspended(1)])) == bare([suspended().stamped(3, 0)])
    assert execution.status is RuntimeStatus.SUSPENDED
    assert bare(execution.apply([completed(2, "x", 2)])) == bare([completed(2, "x").stamped(4, 0)])
    out = execution.apply([resumed(3)])
    assert bare(out) == [
        *bare([resumed().stamped(5, 0)]),
        TaskScheduled(number=6, name="second", input=encode("x")),
    ]
    assert out[1].time_us == at(3)
    assert str(execution.status) == "Running"
    replay_from_every_prefix(
        main_of(two_steps), [started(), suspended(1), completed(2, "x", 2), resumed(3), completed(6)]
    )


def test_held_inputs_are_delivered_one_by_one_in_order() -> None:
    """The code runs until it is quiet after each, as it would have without the suspension."""

    async def orchestrator(ctx: Context, value: Any) -> Any:
        seen: list[Any] = []

        async def follow(name: str) -> None:
            seen.append(await ctx.call(name))
            seen.append(f"{name} went on")
            await ctx.call(f"{name} again")

        group = asyncio.gather(follow("a"), follow("b"))
        seen.append(await ctx.event("x"))
        await group
        return seen

    inputs = [started(), suspended(), completed(3, "B"), raised("x", "X"), completed(2, "A"), resumed(2)]
    history = replay_from_every_prefix(main_of(orchestrator), [*inputs, completed(9), completed(10)])
    assert [event.name for event in history if isinstance(event, TaskScheduled)] == ["a", "b", "b again", "a again"]
    assert isinstance(history[-1], ExecutionCompleted)
    assert history[-1].result == encode(["B", "b went on", "X", "A", "a went on"])


def test_a_second_suspension_and_a_resumption_of_what_runs_are_no_news() -> None:
    execution, _ = begin(two_steps)
    assert execution.apply([resumed()]) == []
    assert len(execution.apply([suspended(), suspended()])) == 1
    assert len(execution.apply([resumed(), resumed()])) == 1
    assert len(execution.apply([suspended(request_id="s2")])) == 1


def test_a_request_that_comes_again_after_the_next_one_changes_nothing() -> None:
    """An owner that was stopped may record what another one did meanwhile, and what was taken back since."""
    execution, _ = begin(two_steps)
    execution.apply([suspended(), resumed()])
    assert execution.apply([suspended()]) == []
    assert len(execution.apply([suspended(request_id="s2")])) == 1
    assert execution.apply([resumed()]) == []
    assert execution.status is RuntimeStatus.SUSPENDED
    assert execution.recent_event_ids == ["s", "r", "s2"]


async def many_kinds(ctx: Context, value: Any) -> Any:
    waiting = [ctx.call("a"), ctx.child("b"), ctx.timer(5), ctx.map("c", [1, 2, 3]), ctx.event("e")]
    return await asyncio.gather(*waiting)


ALL_KINDS = [completed(2, "a"), child_completed(3, "b"), fired(4, 5), items(5, 0, [1, 2]), items(5, 2, [3])]


def test_a_second_outcome_of_what_has_a_held_one_is_no_news() -> None:
    """Of a task, a child, a timer, items of a map, and an external event with an id."""
    execution, _ = begin(many_kinds)
    event = raised("e", "e", "id")
    execution.apply([suspended(), *ALL_KINDS, event])
    again = [failed(2), completed(2), child_completed(3), fired(4, 6), items(5, 0, [9]), items(5, 1, [8, 9]), event]
    assert execution.apply(again) == []
    execution.apply([resumed(7)])
    assert execution.result == encode(["a", "b", None, [1, 2, 3], "e"])


def test_what_has_a_held_outcome_is_not_outstanding() -> None:
    """Nobody shall run it again; a timer whose firing is held is not due. The rest still is."""
    execution, caused = begin(many_kinds)
    assert [event.number for event in caused] == [2, 3, 4, 5]
    execution.apply([suspended()])
    assert execution.due_timers(at(5)) == [4]
    execution.apply(ALL_KINDS[:4])
    assert not execution.outstanding_tasks
    assert not execution.outstanding_children
    assert (execution.due_timers(at(99)), execution.next_timer_us) == ([], None)
    assert list(execution.outstanding_maps[5].remaining()) == [(2, 3, 1)]
    assert execution.status is RuntimeStatus.SUSPENDED


def test_map_items_that_overlap_a_held_answer_are_recorded_for_what_is_missing() -> None:
    """The first answer of each item counts."""

    async def orchestrator(ctx: Context, value: Any) -> Any:
        return await ctx.map("m", list(range(5)))

    inputs = [started(), suspended(), items(2, 1, ["b", "c"]), items(2, 0, ["A", "B", "C", "D"]), resumed()]
    history = replay_from_every_prefix(main_of(orchestrator), [*inputs, items(2, 0, ["x"] * 5)])
    assert isinstance(history[-1], ExecutionCompleted)
    assert history[-1].result == encode(["A", "b", "c", "D", "x"])


def test_external_events_are_unread_until_they_are_delivered() -> None:
    """In the order of their arrival, behind those that came before."""

    async def orchestrator(ctx: Context, value: Any) -> Any:
        await ctx.call("a")
        return [await ctx.event("x"), await ctx.event("x")]

    execution, _ = begin(orchestrator)
    execution.apply([raised("x", 1), suspended(), raised("x", 2), raised("y", 3)])
    assert [event.number for event in execution.unread_events] == [3, 5, 6]
    execution.apply([resumed(), completed(2)])
    assert execution.result == encode([1, 2])
    assert [event.name for event in execution.unread_events] == ["y"]


def test_what_is_cancelled_by_the_time_it_would_be_delivered_is_skipped() -> None:
    """Each kind: an earlier input lets the code cancel it. The cancellation is recorded as ever."""

    async def orchestrator(ctx: Context, value: Any) -> Any:
        waiting = [ctx.call("a"), ctx.child("b"), ctx.timer(5), ctx.map("c", [1, 2, 3])]
        await ctx.event("stop")
        for one in waiting:
            one.cancel()
        return await ctx.event("never")

    inputs: list[Event] = [started(), suspended(), raised("stop"), completed(2), child_completed(3), fired(4, 6)]
    history = replay_from_every_prefix(main_of(orchestrator), [*inputs, items(5, 0, [1, 2]), resumed(7)])
    assert [type(event).__name__ for event in history[-4:]] == [
        "TaskCanceled",
        "SubOrchestrationInstanceCanceled",
        "TimerCanceled",
        "MapCanceled",
    ]
    execution = Execution(main_of(orchestrator))
    execution.apply(history)
    assert not execution.outstanding_tasks
    assert not execution.outstanding_children
    assert not execution.outstanding_maps
    assert not execution.timers


def test_an_execution_that_ends_while_it_resumes_drops_the_rest() -> None:
    """What has its outcome is not outstanding after the end; external events stay unread."""

    async def orchestrator(ctx: Context, value: Any) -> Any:
        ctx.call("left"), ctx.child("left"), ctx.map("left", [1])
        return await ctx.call("b")

    inputs = [started(), suspended(), completed(5, "end"), completed(2), child_completed(3), items(4, 0, [1])]
    history = replay_from_every_prefix(main_of(orchestrator), [*inputs, raised("x", event_id="e"), resumed(3)])
    assert [type(event) for event in history[-1:]] == [ExecutionCompleted]
    execution = Execution(main_of(orchestrator))
    execution.apply(history)
    assert not execution.outstanding_tasks
    assert not execution.outstanding_children
    assert [list(one.remaining()) for one in execution.outstanding_maps.values()] == [[]]
    assert [event.name for event in execution.unread_events] == ["x"]


def test_termination_works_while_suspended() -> None:
    """Children without a held outcome are ended, too."""

    async def orchestrator(ctx: Context, value: Any) -> Any:
        await asyncio.gather(ctx.child("a"), ctx.child("b"))

    inputs = [started(), suspended(), child_completed(2), terminated(2)]
    history = replay_from_every_prefix(main_of(orchestrator), inputs)
    assert bare(history[-2:-1]) == [SubOrchestrationInstanceCanceled(number=7, task=3)]
    assert isinstance(history[-1], ExecutionCompleted)
    assert history[-1].status is RuntimeStatus.TERMINATED


def test_who_owns_the_log_and_what_was_delivered_is_recorded_at_once() -> None:
    """Neither is the code's, nor does it wait for a resumption; after the end, only the owner is recorded."""
    claim = OwnerClaimed(epoch=2, hub_epoch=1, host="h", pid=1)
    delivered = OutboxDelivered(messages=(2,))
    inputs: list[Event] = [started(), claim, delivered, suspended(), claim, delivered, resumed(), completed(2)]
    history = replay_from_every_prefix(main_of(two_steps), inputs)
    assert [type(event) for event in history if isinstance(event, OwnerClaimed | OutboxDelivered)] == [
        OwnerClaimed,
        OutboxDelivered,
    ] * 2
    execution = Execution(main_of(two_steps))
    execution.apply([*history, completed(10)])
    assert execution.ended
    assert execution.apply([delivered]) == []
    assert len(execution.apply([claim])) == 1


def test_a_timer_that_is_cancelled_after_a_suspension_does_not_fire() -> None:
    """The heap of timers bears what was put back."""

    async def orchestrator(ctx: Context, value: Any) -> Any:
        await ctx.timer(5)
        await ctx.timer(5)

    execution, _ = begin(orchestrator)
    execution.apply([suspended()])
    assert execution.next_timer_us == at(5)
    execution.apply([fired(2, 5)])
    assert execution.next_timer_us is None
    out = execution.apply([resumed(8)])
    assert bare(out[1:]) == [TimerCreated(number=6, due_us=at(13))]
    assert (execution.next_timer_us, dict(execution.timers)) == (at(13), {6: at(13)})


def test_a_copied_suspension_goes_on() -> None:
    """A rewind says nothing to the code, so it need not wait."""
    execution, caused = begin(two_steps)
    history = [*([execution.started] if execution.started else []), *caused, *execution.apply([suspended()])]
    again = Execution(main_of(two_steps))
    rewound = ExecutionRewound(number=4, time_us=at(1), reason="", request_id="r")
    assert again.apply([*history, rewound]) == []
    assert again.status is RuntimeStatus.SUSPENDED
    assert [type(event) for event in again.apply([completed(2), resumed()])][-1] is TaskScheduled


@pytest.mark.parametrize("event", [suspended(), raised("x"), completed(2)])
def test_a_recorded_input_that_cannot_be_is_corrupt_also_while_suspended(event: Event) -> None:
    """An outcome of what has a held one, and a suspension of what is suspended; any event may be raised."""
    history: list[Event] = begin_suspended()
    execution = Execution(main_of(two_steps))
    following = event.stamped(len(history) + 1, at(3))
    if isinstance(event, EventRaised):
        assert execution.apply([*history, following]) == []
    else:
        with pytest.raises(CorruptLogError, match="cannot follow"):
            execution.apply([*history, following])


def begin_suspended() -> list[Event]:
    execution = Execution(main_of(two_steps))
    return execution.apply([started(), suspended(1), completed(2, "x", 2)])


def test_many_held_inputs_cost_no_more_each_than_few() -> None:
    """Ten thousand outcomes are held and delivered."""

    async def orchestrator(ctx: Context, count: Any) -> Any:
        return len(await asyncio.gather(*[ctx.call("a") for _ in range(count)]))

    execution, caused = begin(orchestrator, 10_000)
    execution.apply([suspended()])
    for event in caused:
        execution.apply([completed(event.number)])
        assert event.number not in execution.outstanding_tasks
    execution.apply([resumed()])
    assert execution.result == encode(10_000)


def test_cancelled_tasks_of_a_resumed_execution_are_told() -> None:
    """A held outcome does not hide that the code withdrew its call."""

    async def orchestrator(ctx: Context, value: Any) -> Any:
        call = ctx.call("a")
        await ctx.event("stop")
        call.cancel()
        await ctx.event("never")

    execution, _ = begin(orchestrator)
    execution.apply([suspended(), raised("stop"), completed(2)])
    assert bare(execution.apply([resumed()])[1:]) == [TaskCanceled(number=7, task=2)]
