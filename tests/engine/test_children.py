"""Instances that an orchestrator calls, and events that it sends: history in, exact output out."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from ray_durable.engine import (
    Counts,
    EventSent,
    Execution,
    ExecutionCompleted,
    RuntimeStatus,
    SubOrchestrationInstanceCanceled,
    SubOrchestrationInstanceCreated,
    TimerCanceled,
    TimerCreated,
)
from ray_durable.errors import NonDeterminismError, SubOrchestrationError

from .kit import (
    Context,
    at,
    bare,
    begin,
    child_completed,
    child_failed,
    completed,
    encode,
    fired,
    main_of,
    raised,
    replay_from_every_prefix,
    retries,
    started,
    terminated,
)


def created(number: int, name: str = "child", value: object = None, **fields: Any) -> SubOrchestrationInstanceCreated:
    return SubOrchestrationInstanceCreated(number=number, name=name, input=encode(value), **fields)


async def calls_one(ctx: Context, value: Any) -> Any:
    return await ctx.child("child", value, "given-id")


def test_a_child_is_created_and_its_result_awaited() -> None:
    """Its completion is an input like an activity's; a second one is no news."""
    execution, caused = begin(calls_one, "in")
    assert bare(caused) == [created(2, value="in", instance="given-id")]
    assert list(execution.outstanding_children) == [2]
    assert execution.source_of(2) != ""
    out = execution.apply([child_completed(2, "out")])
    assert bare(out[1:]) == [ExecutionCompleted(number=4, status=RuntimeStatus.COMPLETED, result=encode("out"))]
    assert not execution.outstanding_children
    assert execution.counts == Counts(tasks_scheduled=1, tasks_completed=1)


def test_outcomes_of_no_child_are_dropped() -> None:
    """Unknown numbers, repetitions, and the outcome of a child that is an activity's number."""

    async def orchestrator(ctx: Context, value: Any) -> Any:
        await ctx.child("child")
        await ctx.call("activity")

    execution, _ = begin(orchestrator)
    assert execution.apply([child_completed(9), completed(2), child_failed(1)]) == []
    assert len(execution.apply([child_completed(2), child_completed(2), child_failed(2), child_completed(4)])) == 2


def test_a_failed_child_raises_with_its_facts() -> None:
    """Name, id as it was given, attempt, and the failure with its chain."""

    async def orchestrator(ctx: Context, value: Any) -> Any:
        try:
            await ctx.child("child", instance=value)
        except SubOrchestrationError as error:
            return [error.name, error.instance_id, error.attempt, error.failure.message]

    for instance in ("given", None):
        execution, _ = begin(orchestrator, instance)
        execution.apply([child_failed(2, "why")])
        assert execution.result == encode(["child", instance or "", 1, "why"])


def test_a_child_is_retried_by_policy_under_the_id_it_was_given() -> None:
    """A timer between attempts; a retry names the first, and asks for the same id or none."""

    async def orchestrator(ctx: Context, value: Any) -> Any:
        return await ctx.child("child", 1, value, retry=retries(3, 2))

    for instance in ("given", None):
        inputs = [started(instance), child_failed(2), fired(4, 2), child_failed(6, seconds=2), fired(8, 6)]
        history = replay_from_every_prefix(main_of(orchestrator), [*inputs, child_completed(10, "ok", 7)])
        caused = [event for event in bare(history) if not event.number % 2]
        assert caused == [
            created(2, value=1, instance=instance),
            TimerCreated(number=4, due_us=at(2)),
            created(6, value=1, instance=instance, attempt=2, retry_of=2),
            TimerCreated(number=8, due_us=at(6)),
            created(10, value=1, instance=instance, attempt=3, retry_of=2),
            ExecutionCompleted(number=12, status=RuntimeStatus.COMPLETED, result=encode("ok")),
        ]


def test_a_child_whose_attempts_are_used_up_fails_the_call() -> None:
    async def orchestrator(ctx: Context, value: Any) -> Any:
        await ctx.child("child", retry=retries(2, 0))

    execution, _ = begin(orchestrator)
    assert bare(execution.apply([child_failed(2)])[1:]) == [created(4, attempt=2, retry_of=2)]
    execution.apply([child_failed(4, "again")])
    assert execution.failure is not None
    assert execution.failure.describe() == (
        "SubOrchestrationError: Sub-orchestrator function 'child' failed: ValueError: again"
    )
    assert execution.counts == Counts(tasks_scheduled=1, tasks_failed=1)


def test_an_error_in_a_retry_handler_fails_the_call() -> None:
    def handler(failure: object) -> bool:
        raise ZeroDivisionError

    async def orchestrator(ctx: Context, value: Any) -> Any:
        await ctx.child("child", retry=retries(2, handler=handler))

    execution, _ = begin(orchestrator)
    execution.apply([child_failed(2)])
    assert execution.failure is not None
    assert execution.failure.type_name == "ZeroDivisionError"


def test_cancelling_a_call_asks_for_the_end_of_the_child() -> None:
    """Or, between attempts, takes the timer back. The late outcome is dropped."""

    async def orchestrator(ctx: Context, value: Any) -> Any:
        calls = [ctx.child("one"), ctx.child("two", retry=retries(2, 5))]
        await ctx.event("stop")
        for call in calls:
            call.cancel()
        await ctx.event("never")

    inputs = [started(), child_failed(3), raised("stop")]
    history = replay_from_every_prefix(main_of(orchestrator), inputs)
    assert bare(history[-2:]) == [
        SubOrchestrationInstanceCanceled(number=7, task=2),
        TimerCanceled(number=8, timer=5),
    ]
    execution = Execution(main_of(orchestrator))
    execution.apply(history)
    assert execution.apply([child_completed(2), fired(5, 9)]) == []
    assert execution.counts == Counts(tasks_scheduled=2, tasks_cancelled=2)


def test_a_failing_sibling_in_a_group_cancels_the_children() -> None:
    async def orchestrator(ctx: Context, value: Any) -> Any:
        async def call(name: str) -> None:
            await ctx.child(name)

        async with asyncio.TaskGroup() as group:
            for name in ("a", "b", "c"):
                group.create_task(call(name))

    history = replay_from_every_prefix(main_of(orchestrator), [started(), child_failed(3)])
    assert bare(history[5:7]) == [
        SubOrchestrationInstanceCanceled(number=6, task=2),
        SubOrchestrationInstanceCanceled(number=7, task=4),
    ]


@pytest.mark.parametrize("recursive", [True, False])
def test_a_recursive_termination_reaches_the_children(recursive: bool) -> None:
    """Each that is outstanding, in order, before the end; the others are left alone."""

    async def orchestrator(ctx: Context, value: Any) -> Any:
        calls = [ctx.child("a"), ctx.child("b"), ctx.child("c", retry=retries(2, 9))]
        await ctx.event("never")
        await asyncio.gather(*calls)

    inputs = [started(), child_failed(4), terminated(recursive=recursive)]
    history = replay_from_every_prefix(main_of(orchestrator), inputs)
    canceled = [event for event in bare(history) if isinstance(event, SubOrchestrationInstanceCanceled)]
    if recursive:
        assert canceled == [SubOrchestrationInstanceCanceled(number=8 + n, task=2 + n) for n in range(2)]
    else:
        assert canceled == []
    assert isinstance(history[-1], ExecutionCompleted)
    assert history[-1].status is RuntimeStatus.TERMINATED


def test_an_orchestrator_that_ends_leaves_its_children_running() -> None:
    async def orchestrator(ctx: Context, value: Any) -> Any:
        ctx.child("left behind")

    execution, caused = begin(orchestrator)
    assert [type(event) for event in caused] == [SubOrchestrationInstanceCreated, ExecutionCompleted]
    assert list(execution.outstanding_children) == [2]


def test_sending_an_event_is_a_command() -> None:
    async def orchestrator(ctx: Context, value: Any) -> Any:
        ctx.send("other", "news", 7)
        await ctx.event("reply")

    _, caused = begin(orchestrator)
    assert bare(caused) == [EventSent(number=2, instance="other", name="news", value=encode(7))]
    replay_from_every_prefix(main_of(orchestrator), [started(), raised("reply")])


@pytest.mark.parametrize("change", ["name", "value", "instance", "gone", "activity", "send"])
def test_a_changed_call_is_divergence(change: str) -> None:
    """What identifies a child or a sent event is compared."""

    async def orchestrator(ctx: Context, code: Any) -> Any:
        ctx.send("x", "news", "other" if change == "send" and code == "new" else 1)
        now = change if code == "new" else ""
        if now == "activity":
            await ctx.call("child", 1)
        elif now != "gone":
            await ctx.child(
                "other" if now == "name" else "child", 2 if now == "value" else 1, "b" if now == "instance" else "a"
            )
        await ctx.event("never")

    old, caused = begin(orchestrator, "old")
    assert len(caused) == 2
    with pytest.raises(NonDeterminismError) as caught:
        Execution(main_of(orchestrator)).apply([started("new").stamped(1, at(0)), *caused])
    assert caught.value.position == (2 if change == "send" else 3)
    assert old.position == 3
