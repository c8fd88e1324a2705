"""Side effects and patches: what the code must find again in replay."""

from __future__ import annotations

from itertools import count
from typing import Any

import pytest

from ray_durable.engine import Event, Execution, ExecutionCompleted, MarkerRecorded, TaskScheduled
from ray_durable.errors import NonDeterminismError

from .kit import (
    Context,
    Orchestrator,
    at,
    bare,
    begin,
    completed,
    encode,
    main_of,
    raised,
    replay_from_every_prefix,
    resumed,
    started,
    suspended,
)


def effect(number: int, value: object) -> MarkerRecorded:
    return MarkerRecorded(number=number, kind="side_effect", value=encode(value))


def patch(number: int, id: str) -> MarkerRecorded:
    return MarkerRecorded(number=number, kind="patch", id=id)


# Side effects


async def effects(ctx: Context, value: Any) -> Any:
    first = ctx.side_effect(lambda: ctx.execution.position)
    await ctx.call("a", first)
    return [first, ctx.side_effect(lambda: ctx.execution.position), ctx.side_effect(lambda: ctx.execution.position)]


def test_side_effects_are_commands_in_the_order_of_asking() -> None:
    history = replay_from_every_prefix(main_of(effects), [started(), completed(3)])
    assert bare(history[1:3]) == [effect(2, 1), TaskScheduled(number=3, name="a", input=encode(1))]
    assert bare(history[4:6]) == [effect(5, 4), effect(6, 5)]
    assert isinstance(history[-1], ExecutionCompleted)
    assert history[-1].result == encode([1, 4, 5])


def test_replay_finds_the_value_and_does_not_call_the_function() -> None:
    """Whatever it would return now; what comes behind the history is called for."""
    counter = count(1)

    async def orchestrator(ctx: Context, value: Any) -> Any:
        values = [ctx.side_effect(lambda: next(counter)), ctx.side_effect(lambda: next(counter))]
        await ctx.call("a")
        return [*values, ctx.side_effect(lambda: next(counter))]

    history = Execution(main_of(orchestrator)).apply([started()])
    again = Execution(main_of(orchestrator))
    assert again.apply(history) == []
    again.apply([completed(4)])
    assert again.result == encode([1, 2, 3])


def test_a_side_effect_of_an_input_that_was_held_is_found_behind_the_resumption() -> None:
    inputs = [started(), suspended(), completed(3), resumed()]
    history = replay_from_every_prefix(main_of(effects), inputs)
    assert bare(history[6:8]) == [effect(7, 6), effect(8, 7)]


def test_a_side_effect_that_raises_leaves_nothing_behind() -> None:
    """The code gets the error, in replay too."""

    async def orchestrator(ctx: Context, value: Any) -> Any:
        try:
            ctx.side_effect(lambda: 1 // 0)
        except ZeroDivisionError:
            return await ctx.call("after")

    history = replay_from_every_prefix(main_of(orchestrator), [started(), completed(2)])
    assert [type(event) for event in history[1:2]] == [TaskScheduled]


def test_a_side_effect_cannot_ask_for_anything() -> None:
    """A replay does not call it, so what it asked for would be missing. The error says what to do."""

    async def orchestrator(ctx: Context, value: Any) -> Any:
        ctx.side_effect(lambda: [ctx.call("inside"), 1][1])

    execution, _ = begin(orchestrator)
    assert execution.failure is not None
    assert execution.failure.type_name == "NotDeterministicError"
    assert "outside of it" in execution.failure.message


@pytest.mark.parametrize(
    ("code", "position"),
    [
        pytest.param(lambda ctx: None, 2, id="gone"),
        pytest.param(lambda ctx: ctx.call("a"), 2, id="something else"),
        pytest.param(lambda ctx: [ctx.side_effect(lambda: 1), ctx.side_effect(lambda: 2)], 3, id="another one"),
        pytest.param(lambda ctx: [ctx.call("before"), ctx.side_effect(lambda: 1)], 2, id="later"),
    ],
)
def test_a_changed_side_effect_is_divergence(code: Any, position: int) -> None:
    async def original(ctx: Context, value: Any) -> Any:
        ctx.side_effect(lambda: 1)
        await ctx.call("z")

    async def changed(ctx: Context, value: Any) -> Any:
        code(ctx)
        await ctx.call("z")

    history = Execution(main_of(original)).apply([started(), completed(3)])
    with pytest.raises(NonDeterminismError) as caught:
        Execution(main_of(changed)).apply(history)
    assert caught.value.position == position


# Patches


def version_of(patched: bool, *, early: bool = False) -> Orchestrator:
    """Code before and after a change of its second step."""

    async def orchestrator(ctx: Context, value: Any) -> Any:
        if early and patched:
            ctx.patched("second")
        first = await ctx.call("first")
        if patched and ctx.patched("second"):
            return await ctx.call("new second", first)
        return await ctx.call("second", first)

    return orchestrator


def test_a_fresh_execution_has_the_change() -> None:
    history = replay_from_every_prefix(main_of(version_of(True)), [started(), completed(2), completed(5, "end")])
    assert bare(history[3:5]) == [
        patch(4, "second"),
        TaskScheduled(number=5, name="new second", input=encode(None)),
    ]


def test_an_execution_that_came_by_before_the_change_stays_without_it() -> None:
    """Loaded into the new code it goes on as it began."""
    history = Execution(main_of(version_of(False))).apply([started(), completed(2)])
    loaded = Execution(main_of(version_of(True)))
    assert loaded.apply(history) == []
    out = loaded.apply([completed(4, "end")])
    assert [type(event) for event in out[1:]] == [ExecutionCompleted]
    assert Execution(main_of(version_of(True))).apply([*history, *out]) == []


def test_an_execution_that_had_not_come_by_gets_the_change() -> None:
    """The step in which the code asks is a new one."""
    history = Execution(main_of(version_of(False))).apply([started()])
    loaded = Execution(main_of(version_of(True)))
    assert loaded.apply(history) == []
    out = loaded.apply([completed(2)])
    assert bare(out[1:]) == [patch(4, "second"), TaskScheduled(number=5, name="new second", input=encode(None))]
    assert Execution(main_of(version_of(True))).apply([*history, *out]) == []


def test_the_first_answer_holds_for_the_whole_execution() -> None:
    """Also where the step is a new one: the execution would be half changed."""
    history = Execution(main_of(version_of(False))).apply([started()])
    raised_before = [*history, raised("x").stamped(3, at(1))]
    loaded = Execution(main_of(version_of(True, early=True)))
    assert loaded.apply(raised_before) == []
    out = loaded.apply([completed(2)])
    assert bare(out[1:]) == [TaskScheduled(number=5, name="second", input=encode(None))]


def test_a_patch_is_recorded_once_however_often_it_is_asked_for() -> None:
    async def orchestrator(ctx: Context, value: Any) -> Any:
        answers = [ctx.patched("a"), ctx.patched("a"), ctx.patched("b")]
        await ctx.call("x")
        return [*answers, ctx.patched("a")]

    history = replay_from_every_prefix(main_of(orchestrator), [started(), completed(4)])
    assert bare(history[1:3]) == [patch(2, "a"), patch(3, "b")]
    assert isinstance(history[-1], ExecutionCompleted)
    assert history[-1].result == encode([True] * 4)


def test_a_later_change_beside_an_earlier_one_is_told_apart() -> None:
    """The marker of the one is not taken for that of the other."""

    def code(changes: list[str]) -> Orchestrator:
        async def orchestrator(ctx: Context, value: Any) -> Any:
            await ctx.call("x", [change for change in changes if ctx.patched(change)])

        return orchestrator

    history = Execution(main_of(code(["old"]))).apply([started(), raised("x")])
    for changes in (["old", "new"], ["new", "old"]):
        assert Execution(main_of(code(changes))).apply(history) == []


def test_removing_a_patch_that_is_in_force_is_divergence() -> None:
    """The error shows the marker: an execution that has the change needs the call."""
    history = Execution(main_of(version_of(True))).apply([started(), completed(2)])
    with pytest.raises(NonDeterminismError, match="MarkerRecorded") as caught:
        Execution(main_of(version_of(False))).apply(history)
    assert caught.value.position == 4


def test_a_start_that_nobody_ran_has_the_change() -> None:
    """It is recorded, but with nothing behind it the code runs for the first time."""

    async def orchestrator(ctx: Context, value: Any) -> Any:
        return ctx.patched("a")

    start: Event = started().stamped(1, at(0))
    execution = Execution(main_of(orchestrator))
    execution.apply([start])
    assert execution.result == encode(True)
