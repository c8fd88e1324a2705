"""One execution after another: continue-as-new, what is handed on, copied histories, and what follows an end."""

from __future__ import annotations

from typing import Any

import pytest

from ray_durable.engine import (
    ContinueAsNew,
    Event,
    EventRaised,
    Execution,
    ExecutionCompleted,
    ExecutionRestarted,
    ExecutionRewound,
    ExecutionStarted,
    OwnerClaimed,
    RuntimeStatus,
    SubOrchestrationInstanceCreated,
    TaskCanceled,
    TaskScheduled,
    TimerCreated,
)
from ray_durable.errors import CorruptLogError, NonDeterminismError

from .kit import (
    T0_US,
    Context,
    Orchestrator,
    at,
    begin,
    child_failed,
    completed,
    decode,
    encode,
    failed,
    fired,
    main_of,
    raised,
    replay_from_every_prefix,
    resumed,
    retries,
    started,
    suspended,
)


async def counting(ctx: Context, value: Any) -> Any:
    await ctx.call("work")
    ctx.continue_as_new(value + 1)


def test_continuing_as_new_is_the_last_event() -> None:
    """Instead of a completion: the next input, the id of the next run, and the events that nobody took."""
    inputs = [started(1), raised("x", "kept", "a"), raised("y", "kept", "b"), completed(2)]
    history = replay_from_every_prefix(main_of(counting), inputs)
    last = history[-1]
    assert isinstance(last, ContinueAsNew)
    assert (last.number, last.input, last.carried) == (6, encode(2), (3, 4))
    execution = Execution(main_of(counting))
    execution.apply(history)
    assert (execution.status, execution.result) == (RuntimeStatus.CONTINUED_AS_NEW, None)
    assert execution.ended
    assert execution.successor == last.run
    assert execution.apply([completed(2), raised("late")]) == []


def test_the_next_run_depends_on_the_run_alone() -> None:
    """Whoever ends an execution names the same successor; another run has another."""

    def successor(run: str) -> str | None:
        execution = Execution(main_of(counting))
        execution.apply([started(1, run=run), completed(2)])
        return execution.successor

    assert successor("one") == successor("one")
    assert len({successor("one"), successor("two"), "one"}) == 3


def test_the_last_call_counts_and_a_failure_beats_it() -> None:
    async def orchestrator(ctx: Context, value: Any) -> Any:
        ctx.continue_as_new(1)
        ctx.continue_as_new(2)
        if value:
            raise ValueError("not so")
        return "ignored"

    execution, caused = begin(orchestrator)
    assert isinstance(caused[-1], ContinueAsNew)
    assert caused[-1].input == encode(2)
    failing, _ = begin(orchestrator, True)
    assert failing.status is RuntimeStatus.FAILED
    assert failing.successor is None
    assert execution.result is None


def test_held_events_are_carried_over() -> None:
    """An execution that ends while it resumes hands on what it did not come to."""
    inputs = [started(1), suspended(), completed(2), raised("x"), raised("y"), resumed()]
    last = replay_from_every_prefix(main_of(counting), inputs)[-1]
    assert isinstance(last, ContinueAsNew)
    assert last.carried == (5, 6)


@pytest.mark.parametrize(
    "code",
    [
        pytest.param(lambda ctx, value: ctx.continue_as_new(value + 2), id="another input"),
        pytest.param(lambda ctx, value: None, id="a completion"),
        pytest.param(lambda ctx, value: ctx.event("x"), id="an event taken"),
    ],
)
def test_another_continuation_is_divergence(code: Any) -> None:
    async def other(ctx: Context, value: Any) -> Any:
        await ctx.call("work")
        code(ctx, value)
        if code(ctx, value) is not None:
            ctx.continue_as_new(value + 1)

    history = Execution(main_of(counting)).apply([started(1), raised("x"), completed(2)])
    with pytest.raises(NonDeterminismError) as caught:
        Execution(main_of(other)).apply(history)
    assert caught.value.position == 5


# What is handed on


async def takes_one(ctx: Context, value: Any) -> Any:
    await ctx.call("work")
    return await ctx.event("x")


def test_what_is_handed_on_is_delivered_behind_the_start() -> None:
    """Fresh the first time, with ids that are among the recent ones; a repetition after that is none."""
    handed_on = (raised("x", 1, "a"), raised("x", 2, "b"))
    start = started(carried=handed_on, recent=("old", "a", "b"))
    history = replay_from_every_prefix(main_of(takes_one), [start, *handed_on, completed(2)])
    assert [event.event_id for event in history if isinstance(event, EventRaised)] == ["a", "b"]
    execution = Execution(main_of(takes_one))
    execution.apply(history[:4])
    assert execution.apply([*handed_on, raised("x", 0, "old")]) == []
    assert execution.recent_event_ids == ["old", "a", "b"]
    assert execution.apply([completed(2)])[-1:] == history[-1:]


def test_a_start_with_what_it_hands_on_is_no_replay() -> None:
    """Nobody ran it before; with anything recorded behind it, somebody did."""
    seen: list[bool] = []

    async def orchestrator(ctx: Context, value: Any) -> Any:
        seen.append(ctx.execution.is_replaying)
        await ctx.event("x")
        seen.append(ctx.execution.is_replaying)

    event = raised("x")
    start = started(carried=(event,)).stamped(1, T0_US)
    first = Execution(main_of(orchestrator))
    caused = first.apply([start, event])
    assert seen == [False, False]
    seen.clear()
    assert Execution(main_of(orchestrator)).apply([start, *caused]) == []
    assert seen == [True, True]


def test_what_was_handed_on_and_not_taken_is_handed_on_again() -> None:
    """An execution may continue as new before anything is delivered to it: the events have no number yet."""

    async def orchestrator(ctx: Context, value: Any) -> Any:
        ctx.continue_as_new()

    handed_on = (raised("x", 1, "a"), raised("x", 2, "b"))
    execution = Execution(main_of(orchestrator))
    out = execution.apply([started(carried=handed_on), *handed_on])
    assert isinstance(out[-1], ContinueAsNew)
    assert out[-1].carried == ()
    assert execution.unread_events == list(handed_on)
    taking, _ = begin(takes_one)
    assert taking.unread_events == []


def test_the_recent_ids_are_the_last_thousand() -> None:
    """Those of earlier executions first; an event without an id has none."""
    execution = Execution(main_of(takes_one))
    execution.apply([started(recent=tuple(f"old-{n}" for n in range(900)))])
    execution.apply([raised("y", n, f"new-{n}") for n in range(200)] + [raised("y")])
    ids = execution.recent_event_ids
    assert (len(ids), ids[0], ids[799], ids[800], ids[-1]) == (1_000, "old-100", "old-899", "new-0", "new-199")
    assert execution.apply([raised("y", 0, "old-0")]) == [], "what is not handed on is known here all the same"


# Copied histories


async def drawing(ctx: Context, value: Any) -> Any:
    draws = [await draw(ctx), await draw(ctx)]
    await ctx.call("last")
    return [*draws, await draw(ctx)]


async def draw(ctx: Context) -> list[Any]:
    await ctx.call("draw")
    return [str(ctx.execution.new_uuid()), ctx.execution.random.random()]


def rewound(history: list[Event], through: int, run: str, **fields: Any) -> list[Event]:
    """The first events of an execution that begins as a copy of `history`."""
    first = history[0]
    assert isinstance(first, ExecutionStarted)
    origin = first.origin or first.run
    start = started(decode(first.input), run=run, origin=origin, **fields).stamped(1, first.time_us)
    copied = [start, *history[1:through]]
    return [*copied, ExecutionRewound(number=through + 1, time_us=copied[-1].time_us, reason="", request_id=run)]


def answer_all(execution: Execution) -> list[Event]:
    out: list[Event] = []
    while not execution.ended:
        out += execution.apply([completed(number) for number in list(execution.outstanding_tasks)])
    return out


def result_of(history: list[Event]) -> Any:
    last = history[-1]
    assert isinstance(last, ExecutionCompleted)
    assert last.result is not None
    return decode(last.result)


def test_a_copied_history_draws_the_numbers_of_its_origin_and_then_others() -> None:
    """The same before the copy ends, others behind it; again so when that is copied in turn, whoever does it."""
    first = Execution(main_of(drawing))
    history = first.apply([started(run="one")])
    history += answer_all(first)
    straight = result_of(history)

    second = Execution(main_of(drawing))
    seed = rewound(history, 4, "two")
    second.apply(seed)
    again = [*seed, *answer_all(second)]
    assert result_of(again)[0] == straight[0]
    assert not set(map(str, result_of(again)[1:])) & set(map(str, straight))

    third = Execution(main_of(drawing))
    seed = rewound(again, 7, "three")
    third.apply(seed)
    last = result_of([*seed, *answer_all(third)])
    assert last[:2] == result_of(again)[:2]
    assert last[2] != result_of(again)[2]


def test_a_rewound_execution_replays_from_every_prefix() -> None:
    """The copy, what ran behind it, and what was kept and handed on."""

    async def orchestrator(ctx: Context, value: Any) -> Any:
        calls = [ctx.call("good"), ctx.call("bad")]
        return [await call for call in calls]

    live = Execution(main_of(orchestrator))
    history = live.apply([started(), failed(3), completed(2, "ok")])
    assert live.status is RuntimeStatus.FAILED
    kept = completed(2, "ok")
    seed = rewound(history, 3, "two", carried=(kept,))
    again = Execution(main_of(orchestrator))
    assert again.apply([*seed]) == []
    assert list(again.outstanding_tasks) == [2, 3], "the failed one runs again, the other has a kept outcome"
    out = again.apply([kept])
    assert out == [kept.stamped(5, T0_US)]
    end = again.apply([completed(3, "now")])
    assert result_of(end) == ["ok", "now"]
    replayed = Execution(main_of(orchestrator))
    assert replayed.apply([*seed, *out]) == []
    assert replayed.apply([completed(3, "now")]) == end


def test_a_step_that_is_cut_off_runs_again_behind_the_rewind() -> None:
    """The last copied input is delivered there, so that the code may now do something else, and is no replay."""

    def code(mended: bool) -> Orchestrator:
        async def orchestrator(ctx: Context, value: Any) -> Any:
            await ctx.call("a")
            if not mended:
                raise ValueError("a mistake in the code")
            return await ctx.call("b" if ctx.patched("mended") and not ctx.execution.is_replaying else "never")

        return orchestrator

    history = Execution(main_of(code(False))).apply([started(), completed(2)])
    seed = rewound(history, 3, "two")
    again = Execution(main_of(code(True)))
    caused = again.apply(seed)
    assert [(event.number, type(event).__name__) for event in caused] == [(5, "MarkerRecorded"), (6, "TaskScheduled")]
    claim = OwnerClaimed(epoch=1, hub_epoch=1, host="h", pid=1)
    assert len(again.apply([claim])) == 1


def test_a_start_that_is_cut_off_runs_again_behind_the_rewind() -> None:
    """Also with nothing copied but the start; its numbers are others than the first time."""

    async def orchestrator(ctx: Context, value: Any) -> Any:
        await ctx.call(str(ctx.execution.new_uuid()))

    first = Execution(main_of(orchestrator)).apply([started(run="one")])
    seed = rewound(first, 1, "two")
    caused = Execution(main_of(orchestrator)).apply(seed)
    assert isinstance(caused[0], TaskScheduled)
    assert isinstance(first[1], TaskScheduled)
    assert caused[0].number == 3
    assert caused[0].name != first[1].name
    assert Execution(main_of(orchestrator)).apply([*seed, *caused]) == []


def test_attempts_before_a_rewind_do_not_count() -> None:
    """Calls of activities and of instances have all of them again, and all of their time."""

    async def orchestrator(ctx: Context, value: Any) -> Any:
        policy = retries(2, 3)
        return [await call for call in (ctx.call("a", retry=policy), ctx.child("b", retry=policy))]

    live = Execution(main_of(orchestrator))
    history = live.apply([started(), failed(2), child_failed(3), fired(5, 3), fired(7, 3)])
    assert [type(event) for event in history[-3:]] == [
        TaskScheduled,
        type(fired(1, 1)),
        SubOrchestrationInstanceCreated,
    ]
    again = Execution(main_of(orchestrator))
    again.apply(rewound(history, len(history), "two"))
    (task,), (child,) = again.outstanding_tasks, again.outstanding_children
    out = again.apply([failed(task, seconds=4), child_failed(child, seconds=4)])
    assert len([event for event in out if isinstance(event, TimerCreated)]) == 2, "the second attempt was the first now"
    out = again.apply([fired(timer, 99) for timer in list(again.timers)])
    assert [event.attempt for event in out if isinstance(event, TaskScheduled | SubOrchestrationInstanceCreated)] == [
        3,
        3,
    ]


def test_a_rewind_while_a_call_waits_for_its_next_attempt_gives_all_attempts() -> None:
    async def orchestrator(ctx: Context, value: Any) -> Any:
        return await ctx.child("b", retry=retries(2, 3))

    history = Execution(main_of(orchestrator)).apply([started(), child_failed(2)])
    again = Execution(main_of(orchestrator))
    again.apply([*rewound(history, 4, "two"), fired(4, 3), child_failed(7)])
    assert len(again.timers) == 1
    again.apply([fired(9, 9), child_failed(11)])
    assert again.status is RuntimeStatus.FAILED


# What follows an end


def restarted(run: str) -> ExecutionRestarted:
    return ExecutionRestarted(kind="restart", run=run, request_id="r", time_us=at(9))


def test_a_restart_is_recorded_behind_the_end_alone_and_once() -> None:
    """It names the successor; an execution that goes on by itself has one."""

    async def orchestrator(ctx: Context, value: Any) -> Any:
        await ctx.call("a")

    execution, _ = begin(orchestrator)
    assert execution.apply([restarted("next")]) == []
    execution.apply([completed(2)])
    assert execution.apply([restarted("next"), restarted("another")]) == [restarted("next").stamped(5, at(9))]
    assert (execution.status, execution.successor) == (RuntimeStatus.COMPLETED, "next")

    continued = Execution(main_of(counting))
    continued.apply([started(1), completed(2)])
    assert continued.apply([restarted("next")]) == []


def test_a_recorded_restart_is_replayed() -> None:
    history = Execution(main_of(ends_at_once)).apply([started(), restarted("next")])
    again = Execution(main_of(ends_at_once))
    assert again.apply(history) == []
    assert again.successor == "next"
    with pytest.raises(CorruptLogError):
        Execution(main_of(waits)).apply([history[0], restarted("next").stamped(2, at(9))])


async def ends_at_once(ctx: Context, value: Any) -> Any:
    return None


async def waits(ctx: Context, value: Any) -> Any:
    await ctx.event("never")


def test_every_round_of_an_eternal_orchestration_hands_on_what_it_did_not_take() -> None:
    """A hundred rounds of one event each, raised all at once: each is taken once, in order."""

    async def orchestrator(ctx: Context, taken: Any) -> Any:
        taken = [*taken, await ctx.event("x")]
        if len(taken) == 100:
            return taken
        ctx.continue_as_new(taken)

    events = [raised("x", n, f"e{n}") for n in range(100)]
    execution = Execution(main_of(orchestrator))
    out = execution.apply([started([]), *events])
    # The first round ended with its first event: whoever raises the others does so for the next one.
    left: list[EventRaised] = events[1:]
    while isinstance(out[-1], ContinueAsNew):
        handed_on = tuple(event.stamped(0, event.time_us) for event in left)
        recent = tuple(execution.recent_event_ids)
        execution = Execution(main_of(orchestrator))
        out = execution.apply([started(decode(out[-1].input), carried=handed_on, recent=recent), *handed_on])
        left = execution.unread_events
    assert execution.result == encode(list(range(100)))


def test_cancelled_is_not_continued() -> None:
    """Commands of the last step stand before the continuation."""

    async def orchestrator(ctx: Context, value: Any) -> Any:
        call = ctx.call("a")
        await ctx.event("x")
        call.cancel()
        ctx.continue_as_new()

    history = replay_from_every_prefix(main_of(orchestrator), [started(), raised("x")])
    assert [type(event) for event in history[-2:]] == [TaskCanceled, ContinueAsNew]
