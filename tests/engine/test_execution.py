"""History in, exact output out, and nothing left over."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Callable
from typing import Any

import pytest

from ray_durable.engine import (
    Counts,
    CustomStatusSet,
    Event,
    EventRaised,
    Execution,
    ExecutionClosed,
    ExecutionCompleted,
    ExecutionTerminated,
    OwnerClaimed,
    RuntimeStatus,
    TaskCanceled,
    TaskCompleted,
    TaskScheduled,
    TimerCanceled,
    TimerCreated,
)
from ray_durable.errors import ActivityError, CorruptLogError, NotDeterministicError
from ray_durable.failure import Failure
from ray_durable.payload import Payload

from .kit import (
    T0_US,
    Context,
    at,
    bare,
    begin,
    completed,
    decode,
    encode,
    failed,
    fired,
    main_of,
    retries,
    started,
)


def raised(name: str, value: object = None, event_id: str = "") -> EventRaised:
    return EventRaised(name=name, value=encode(value), event_id=event_id, time_us=at(1))


def test_a_chain_asks_for_one_step_at_a_time() -> None:
    """Each outcome is returned with its number and time, followed by what it caused."""

    async def orchestrator(ctx: Context, value: Any) -> Any:
        return await ctx.call("second", await ctx.call("first", value))

    execution = Execution(main_of(orchestrator))
    start = started("in")
    assert execution.apply([start]) == [
        start.stamped(1, T0_US),
        TaskScheduled(number=2, time_us=T0_US, name="first", input=encode("in")),
    ]
    assert execution.apply([completed(2, "mid", seconds=3)]) == [
        completed(2, "mid").stamped(3, at(3)),
        TaskScheduled(number=4, time_us=at(3), name="second", input=encode("mid")),
    ]
    assert execution.apply([completed(4, "out", seconds=4)]) == [
        completed(4, "out").stamped(5, at(4)),
        ExecutionCompleted(number=6, time_us=at(4), status=RuntimeStatus.COMPLETED, result=encode("out")),
    ]
    assert (execution.status, execution.result, execution.position) == (RuntimeStatus.COMPLETED, encode("out"), 6)
    assert not execution.outstanding_tasks


def test_time_never_goes_back() -> None:
    """An input of an earlier clock gets the time of the last event."""

    async def orchestrator(ctx: Context, value: Any) -> Any:
        await ctx.call("a")
        return ctx.execution.now_us

    execution, _ = begin(orchestrator)
    event, _ = execution.apply([completed(2, seconds=-3600)])
    assert event.time_us == T0_US
    assert execution.result == encode(T0_US)


def test_an_orchestrator_that_raises_ends_as_failed() -> None:
    """The failure has type, message and a traceback of the user's code, without the engine's frames."""

    async def orchestrator(ctx: Context, value: Any) -> Any:
        raise LookupError("where is it?")

    execution, caused = begin(orchestrator)
    assert execution.status is RuntimeStatus.FAILED
    assert isinstance(caused[-1], ExecutionCompleted)
    failure = caused[-1].failure
    assert failure is not None
    assert (failure.type_name, failure.message) == ("LookupError", "where is it?")
    assert "in orchestrator" in failure.traceback
    assert "engine/execution.py" not in failure.traceback


class OwnInterrupt(BaseException):
    """Not an Exception, and not one of Python's."""


ENDINGS = pytest.mark.parametrize("ending", [SystemExit, KeyboardInterrupt, OwnInterrupt])


@ENDINGS
def test_what_would_end_the_process_ends_the_orchestrator(ending: type[BaseException]) -> None:
    """At its start, and after a replayed wait; the execution is not dead by that."""

    async def orchestrator(ctx: Context, value: Any) -> Any:
        await ctx.call("a")
        raise ending(3)

    execution, _ = begin(orchestrator)
    caused = execution.apply([completed(2)])
    assert [type(event) for event in caused] == [TaskCompleted, ExecutionCompleted]
    assert execution.status is RuntimeStatus.FAILED
    assert execution.failure is not None
    assert execution.failure.type_name == ending.__name__
    assert execution.apply([completed(2)]) == []


@ENDINGS
@pytest.mark.parametrize("wait_for", ["task", "gather", "group"])
def test_what_would_end_the_process_reaches_whoever_awaits_the_task(ending: type[BaseException], wait_for: str) -> None:
    """Of a task, of one that is gathered, and of one in a group; it can be caught there."""

    async def child(ctx: Context) -> None:
        await ctx.call("a")
        raise ending

    async def wait(ctx: Context) -> None:
        if wait_for == "task":
            await asyncio.create_task(child(ctx))
        elif wait_for == "gather":
            await asyncio.gather(child(ctx), ctx.event("never"))
        else:
            async with asyncio.TaskGroup() as group:
                group.create_task(child(ctx))
                group.create_task(asyncio.sleep(60))

    async def orchestrator(ctx: Context, value: Any) -> Any:
        try:
            await wait(ctx)
        except (ending, BaseExceptionGroup) as caught:
            return (caught.exceptions[0] if isinstance(caught, BaseExceptionGroup) else caught).__class__.__name__

    execution, caused = begin(orchestrator)
    task = next(event.number for event in caused if isinstance(event, TaskScheduled))
    execution.apply([completed(task)])
    assert execution.result == encode(ending.__name__)


@ENDINGS
def test_a_retry_handler_that_would_end_the_process_fails_the_call(ending: type[BaseException]) -> None:
    """As anything else that it raises does."""

    def handle(failure: Failure) -> bool:
        raise ending

    async def orchestrator(ctx: Context, value: Any) -> Any:
        await ctx.call("a", retry=retries(3, handler=handle))

    execution, _ = begin(orchestrator)
    execution.apply([failed(2)])
    assert execution.failure is not None
    assert execution.failure.type_name == ending.__name__


def test_cleanup_that_would_end_the_process_does_not_hinder_the_end() -> None:
    """Also of a coroutine that is closed because the execution was terminated."""

    async def orchestrator(ctx: Context, value: Any) -> Any:
        try:
            await ctx.call("a")
        finally:
            raise KeyboardInterrupt

    execution, _ = begin(orchestrator)
    execution.apply([ExecutionTerminated(reason="enough", request_id="r", time_us=at(1))])
    assert execution.status is RuntimeStatus.TERMINATED


def test_an_orchestrator_that_cancels_itself_has_failed_by_cancellation() -> None:
    async def orchestrator(ctx: Context, value: Any) -> Any:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await ctx.call("a")

    execution, caused = begin(orchestrator)
    assert [type(event) for event in caused] == [TaskScheduled, TaskCanceled, ExecutionCompleted]
    assert execution.failure is not None
    assert execution.failure.kind == "cancelled"


def test_cancelling_a_call_is_a_command_and_its_late_outcome_is_dropped() -> None:
    """Dropped means: neither numbered nor returned, and time does not pass by it."""

    async def orchestrator(ctx: Context, value: Any) -> Any:
        calling = ctx.call("a")
        await ctx.event("stop")
        calling.cancel()
        calling.cancel()
        return await ctx.call("b")

    execution, _ = begin(orchestrator)
    caused = execution.apply([raised("stop")])[1:]
    assert bare(caused) == [TaskCanceled(number=4, task=2), TaskScheduled(number=5, name="b", input=encode(None))]
    assert execution.apply([completed(2, seconds=100), failed(2, seconds=100), completed(77)]) == []
    assert (execution.position, execution.now_us) == (5, at(1))
    assert list(execution.outstanding_tasks) == [5]


def test_repeated_outcomes_timers_events_and_starts_are_dropped() -> None:
    async def orchestrator(ctx: Context, value: Any) -> Any:
        await ctx.call("a")
        await asyncio.sleep(5)
        await ctx.event("never")

    execution, _ = begin(orchestrator)
    execution.apply([completed(2), raised("x", event_id="e"), fired(4, 5)])
    again = [started(), completed(2), raised("x", event_id="e"), fired(4, 5), fired(99, 9)]
    assert execution.apply(again) == []
    assert len(execution.apply([raised("x"), raised("x")])) == 2, "events without an id are all different"


def test_a_timer_does_not_fire_early() -> None:
    """An early firing is dropped and the timer stays; the engine's clock counts, which never goes back."""

    async def orchestrator(ctx: Context, value: Any) -> Any:
        await ctx.timer(10)
        return "rung"

    execution, caused = begin(orchestrator)
    assert bare(caused) == [TimerCreated(number=2, due_us=at(10))]
    assert execution.due_timers(at(9)) == []
    assert execution.apply([fired(2, 9.999)]) == []
    assert (execution.timers, execution.next_timer_us) == ({2: at(10)}, at(10))
    assert execution.due_timers(at(10)) == [2]
    assert len(execution.apply([fired(2, 10)])) == 2
    assert (execution.timers, execution.next_timer_us) == ({}, None)


def test_due_timers_come_in_the_order_of_their_times() -> None:
    async def orchestrator(ctx: Context, value: Any) -> Any:
        await asyncio.gather(ctx.timer(3), ctx.timer(1), ctx.timer(2), ctx.timer(1))

    execution, _ = begin(orchestrator)
    assert execution.due_timers(at(2)) == [3, 5, 4]


def test_a_timeout_in_time_takes_its_timer_back() -> None:
    async def orchestrator(ctx: Context, value: Any) -> Any:
        async with asyncio.timeout(60):
            return await ctx.call("a")

    execution, caused = begin(orchestrator)
    assert bare(caused) == [
        TimerCreated(number=2, due_us=at(60)),
        TaskScheduled(number=3, name="a", input=encode(None)),
    ]
    out = execution.apply([completed(3, 1, seconds=1)])
    assert bare(out[1:]) == [
        TimerCanceled(number=5, timer=2),
        ExecutionCompleted(number=6, status=RuntimeStatus.COMPLETED, result=encode(1)),
    ]


def test_a_timer_that_is_past_needs_no_command() -> None:
    """Neither a delay of zero, nor one below, nor a past time is recorded."""

    async def orchestrator(ctx: Context, value: Any) -> Any:
        loop = asyncio.get_running_loop()
        loop.call_at(loop.time() - 1, lambda: None)
        loop.call_later(0, lambda: None)
        await ctx.timer(0)
        await ctx.timer(-5)
        await asyncio.sleep(0)

    _, caused = begin(orchestrator)
    assert [type(event) for event in caused] == [ExecutionCompleted]


def test_a_retry_waits_and_then_schedules_the_next_attempt() -> None:
    """The wait is an ordinary timer; the new task names the first; giving up raises ActivityError."""

    async def orchestrator(ctx: Context, value: Any) -> Any:
        try:
            return await ctx.call("a", 1, retry=retries(3, 2))
        except ActivityError as error:
            return [error.attempt, error.failure.message]

    execution, _ = begin(orchestrator)
    assert bare(execution.apply([failed(2, "one")])[1:]) == [TimerCreated(number=4, due_us=at(2))]
    assert not execution.outstanding_tasks
    assert bare(execution.apply([fired(4, 2)])[1:]) == [
        TaskScheduled(number=6, name="a", input=encode(1), attempt=2, retry_of=2)
    ]
    assert execution.outstanding_tasks[6].target == "a"
    assert bare(execution.apply([failed(6, "two", seconds=2)])[1:]) == [TimerCreated(number=8, due_us=at(6))]
    assert bare(execution.apply([fired(8, 6)])[1:]) == [
        TaskScheduled(number=10, name="a", input=encode(1), attempt=3, retry_of=2)
    ]
    execution.apply([failed(10, "three", seconds=7)])
    assert execution.result == encode([3, "three"])
    assert execution.counts == Counts(tasks_scheduled=1, tasks_failed=1)


@pytest.mark.parametrize(
    ("fields", "failure"),
    [
        ({"retry_on": ("KeyError",)}, {}),
        ({"give_up_on": ("ValueError",)}, {}),
        ({"handler": lambda failure: False}, {}),
        ({}, {"non_retryable": True}),
        ({}, {"kind": "cancelled"}),
    ],
)
def test_what_the_policy_does_not_retry_fails_at_once(fields: dict[str, Any], failure: dict[str, Any]) -> None:
    async def orchestrator(ctx: Context, value: Any) -> Any:
        await ctx.call("a", retry=retries(9, **fields))

    execution, _ = begin(orchestrator)
    assert [type(event) for event in execution.apply([failed(2, **failure)])[1:]] == [ExecutionCompleted]


def test_an_error_in_the_policys_handler_reaches_the_code() -> None:
    def handler(failure: Failure) -> bool:
        raise ZeroDivisionError(failure.message)

    async def orchestrator(ctx: Context, value: Any) -> Any:
        await ctx.call("a", retry=retries(9, handler=handler))

    execution, _ = begin(orchestrator)
    execution.apply([failed(2, "why")])
    assert execution.failure is not None
    assert execution.failure.describe() == "ZeroDivisionError: why"


def test_cancelling_a_call_that_waits_for_its_retry_takes_the_timer_back() -> None:
    async def orchestrator(ctx: Context, value: Any) -> Any:
        calling = ctx.call("a", retry=retries(3, 5))
        await ctx.event("stop")
        calling.cancel()

    execution, _ = begin(orchestrator)
    caused = execution.apply([failed(2), raised("stop")])
    assert TimerCanceled(number=6, time_us=at(1), timer=4) in caused
    assert execution.counts == Counts(tasks_scheduled=1, tasks_cancelled=1)


@pytest.mark.parametrize("error", [ValueError("bad bytes"), StopIteration("odd")])
def test_an_error_of_decoding_reaches_the_awaiting_code(error: Exception) -> None:
    """Also StopIteration, which a future would refuse."""

    def broken(payload: Payload) -> Any:
        raise error

    async def orchestrator(ctx: Context, value: Any) -> Any:
        try:
            await ctx.execution.schedule_task(name="a", input=encode(1), decode=broken)
        except Exception as caught:
            return str(caught.__cause__ or caught)

    execution, _ = begin(orchestrator)
    execution.apply([completed(2)])
    assert execution.result == encode(str(error))


def test_events_are_kept_by_name_and_handed_out_in_order() -> None:
    """Early events wait; waiters get them in the order of asking; a cancelled waiter takes none."""

    async def orchestrator(ctx: Context, value: Any) -> Any:
        await ctx.event("go")
        first = await ctx.event("x")
        waiters = [ctx.event("x") for _ in range(3)]
        waiters[0].cancel()
        return [first, await waiters[1], await waiters[2]]

    execution, caused = begin(orchestrator)
    assert caused == []
    assert execution.waiting_for == ["go"]
    execution.apply([raised("x", 1), raised("y", "unread")])
    assert [event.name for event in execution.unread_events] == ["x", "y"]
    execution.apply([raised("go")])
    assert execution.waiting_for == ["x"]
    execution.apply([raised("x", 2), raised("x", 3)])
    assert execution.result == encode([1, 2, 3])
    assert [event.name for event in execution.unread_events] == ["y"]
    assert execution.waiting_for == []


def test_custom_status_is_a_command_and_a_state() -> None:
    async def orchestrator(ctx: Context, value: Any) -> Any:
        ctx.status("half-way")
        await ctx.event("never")

    execution, caused = begin(orchestrator)
    assert bare(caused) == [CustomStatusSet(number=2, value=encode("half-way"))]
    assert execution.custom_status == encode("half-way")


def test_termination_ends_without_resuming_the_code() -> None:
    """No coroutine goes on; its cleanup runs, but can ask for nothing, however it tries."""
    tried: list[str] = []

    async def orchestrator(ctx: Context, value: Any) -> Any:
        try:
            await asyncio.gather(ctx.call("a"), asyncio.sleep(9))
        except Exception:
            tried.append("except Exception")
        finally:
            for ask in (lambda: ctx.call("b"), lambda: ctx.timer(1), lambda: ctx.event("e"), lambda: ctx.status(1)):
                try:
                    ask()
                except ExecutionClosed:
                    tried.append("closed")
            await ctx.call("c")

    execution, _ = begin(orchestrator)
    event = ExecutionTerminated(reason="enough", request_id="r", time_us=at(1))
    out = execution.apply([event])
    assert out[0] == event.stamped(4, at(1))
    assert out[1:] == [
        ExecutionCompleted(
            number=5,
            time_us=at(1),
            status=RuntimeStatus.TERMINATED,
            failure=Failure(kind="cancelled", type_name="OrchestrationTerminatedError", message="enough"),
        )
    ]
    assert tried == ["closed"] * 4
    gc.collect()
    assert (execution.ended, dict(execution.timers), list(execution.outstanding_tasks)) == (True, {}, [2])


def test_after_the_end_only_a_claim_is_news() -> None:
    """Who owns the log is no matter of the code's, and must be recorded also then."""

    async def orchestrator(ctx: Context, value: Any) -> Any:
        ctx.call("left behind")

    execution, _ = begin(orchestrator)
    claim = OwnerClaimed(epoch=2, hub_epoch=1, host="h", pid=1, time_us=at(1))
    late: list[Event] = [completed(2), raised("x"), ExecutionTerminated(reason="", request_id="r"), claim]
    assert execution.apply(late) == [claim.stamped(4, at(1))]
    assert list(execution.outstanding_tasks) == [2], "what was asked for and not awaited stays outstanding"


def test_background_tasks_end_quietly_with_the_orchestrator(recwarn: pytest.WarningsRecorder) -> None:
    """Running, unstarted, failed and stubborn ones: no further commands, no warnings; what failed is told."""

    async def orchestrator(ctx: Context, value: Any) -> Any:
        async def failing() -> None:
            raise ValueError("unseen")

        async def stubborn() -> None:
            for _ in range(5):
                try:
                    await ctx.event("never")
                except BaseException:
                    continue

        tasks = [asyncio.create_task(coroutine) for coroutine in (failing(), stubborn(), asyncio.sleep(99))]
        await ctx.call("a")
        tasks.append(asyncio.create_task(ctx_call_later(ctx)))
        return len(tasks)

    execution, _ = begin(orchestrator)
    out = execution.apply([completed(2)])
    assert [type(event) for event in out[1:]] == [ExecutionCompleted]
    assert [repr(error) for error in execution.unhandled_errors] == ["ValueError('unseen')"]
    del execution
    gc.collect()
    assert [str(warning.message) for warning in recwarn] == []


async def ctx_call_later(ctx: Context) -> None:
    await ctx.call("too late")


def test_a_discarded_execution_is_closed_without_noise(
    recwarn: pytest.WarningsRecorder, capsys: pytest.CaptureFixture[str]
) -> None:
    """By hand or by the garbage collector; afterwards it takes nothing more."""

    async def orchestrator(ctx: Context, value: Any) -> Any:
        async with asyncio.TaskGroup() as group:
            group.create_task(asyncio.sleep(5))
            try:
                await ctx.call("a")
            finally:
                await ctx.call("clean up")

    closed, _ = begin(orchestrator)
    closed.close()
    closed.close()
    with pytest.raises(RuntimeError, match="closed"):
        closed.apply([completed(3)])
    forgotten, _ = begin(orchestrator)
    del forgotten
    gc.collect()
    assert [str(warning.message) for warning in recwarn] == []
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "ask",
    [
        lambda ctx: ctx.call("b"),
        lambda ctx: ctx.timer(1),
        lambda ctx: ctx.event("e"),
        lambda ctx: ctx.status(1),
        lambda ctx: ctx.map("b", [1]),
        lambda ctx: ctx.execution.new_uuid(),
    ],
)
def test_outside_of_its_turn_nothing_can_be_asked_for(ask: Callable[[Context], object]) -> None:
    """The error says how to reach an orchestrator from outside; the execution is unharmed."""
    contexts: list[Context] = []

    async def orchestrator(ctx: Context, value: Any) -> Any:
        contexts.append(ctx)
        await ctx.call("a")

    execution, _ = begin(orchestrator)
    with pytest.raises(NotDeterministicError, match="external event"):
        ask(contexts[0])
    assert execution.position == 2
    assert len(execution.apply([completed(2)])) == 2


def test_is_replaying_follows_the_input() -> None:
    """True while the input that runs the code came from a history."""
    seen: list[bool] = []

    async def orchestrator(ctx: Context, value: Any) -> Any:
        seen.append(ctx.execution.is_replaying)
        await ctx.call("a")
        seen.append(ctx.execution.is_replaying)

    live, caused = begin(orchestrator)
    assert live.started is not None
    Execution(main_of(orchestrator)).apply([live.started, *caused, completed(2)])
    assert seen == [False, True, False]


def test_identity_depends_on_the_run_alone() -> None:
    """UUIDs and random numbers differ between runs, and between draws, and are not disturbed by retries."""

    async def orchestrator(ctx: Context, value: Any) -> Any:
        await ctx.call("a", retry=retries(2, 1, jitter=1))
        return [str(ctx.execution.new_uuid()), str(ctx.execution.new_uuid()), ctx.execution.random.random()]

    def result_of(run: str, outcomes: list[Event]) -> Any:
        execution = Execution(main_of(orchestrator))
        execution.apply([started(run=run), *outcomes])
        assert execution.result is not None
        return decode(execution.result)

    straight = result_of("one", [completed(2)])
    assert result_of("one", [failed(2), fired(4, 9), completed(6)]) == straight
    assert straight[0] != straight[1]
    assert not set(straight) & set(result_of("two", [completed(2)]))


def test_a_history_begins_with_its_start() -> None:
    with pytest.raises(CorruptLogError, match="begins with ExecutionStarted"):
        Execution(main_of(ctx_main)).apply([completed(2)])


async def ctx_main(ctx: Context, value: Any) -> Any:
    return None


def test_a_main_that_returns_no_payload_is_a_programmers_mistake() -> None:
    async def main(execution: Execution, start: object) -> Any:
        return 3

    with pytest.raises(TypeError, match="Payload"):
        Execution(main).apply([started()])


def test_apply_within_apply_is_refused() -> None:
    """Another execution may be applied from within; the same one not."""
    errors: list[str] = []

    async def orchestrator(ctx: Context, value: Any) -> Any:
        inner, _ = begin(ctx_main)
        assert inner.ended
        await ctx.call("a", asyncio.get_running_loop() is not None)
        try:
            ctx.execution.apply([])
        except RuntimeError as error:
            errors.append(str(error))

    execution, _ = begin(orchestrator)
    execution.apply([completed(2)])
    assert execution.status is RuntimeStatus.COMPLETED
    assert len(errors) == 1


def test_work_per_event_does_not_grow_with_the_history() -> None:
    """Ten times the fan-out takes about ten times as long, scheduled and completed, live and replayed."""

    async def orchestrator(ctx: Context, count: Any) -> Any:
        return len(await asyncio.gather(*[ctx.call("a", 1) for _ in range(count)]))

    def seconds(count: int) -> float:
        execution = Execution(main_of(orchestrator))
        begun_s = time.process_time()
        history = execution.apply([started(count)])
        history += execution.apply([completed(number) for number in list(execution.outstanding_tasks)])
        assert Execution(main_of(orchestrator)).apply(history) == []
        return time.process_time() - begun_s

    seconds(100)
    small = min(seconds(1_000) for _ in range(3))
    assert seconds(10_000) < 40 * small
