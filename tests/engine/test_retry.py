"""Retry policies: what is tried again, how often, after how long; the system's failures apart from the user's."""

from __future__ import annotations

import random
from datetime import timedelta
from typing import Any

import pytest

from ray_durable.engine import (
    Event,
    Execution,
    ExecutionCompleted,
    MapCompleted,
    MapItemsScheduled,
    TaskScheduled,
    TimerCreated,
)
from ray_durable.errors import ActivityError
from ray_durable.failure import Failure
from ray_durable.retry import RetryPolicy

from .kit import SECOND_US, Context, begin, decode, encode, failed, fired, retries

RNG = random.Random(1)


def delay_s(policy: RetryPolicy, failure: Failure, *, attempt: int = 1, **fields: Any) -> float | None:
    wait_us = policy.delay_us(failure, attempt=attempt, elapsed_us=fields.pop("elapsed_us", 0), rng=RNG, **fields)
    return None if wait_us is None else wait_us / SECOND_US


def failure_of(error: BaseException) -> Failure:
    return Failure.from_exception(error)


class TestTypes:
    """`retry_on` and `give_up_on`."""

    @pytest.mark.parametrize("wanted", [OSError, "OSError", Exception, ConnectionError, ConnectionResetError])
    def test_a_base_class_stands_for_those_below_it(self, wanted: Any) -> None:
        """By class or by name, however far up."""
        failure = failure_of(ConnectionResetError("reset"))
        assert delay_s(retries(2, retry_on=(wanted,)), failure) == 1
        assert delay_s(retries(2, give_up_on=(wanted,)), failure) is None

    def test_a_class_below_does_not_stand_for_its_base(self) -> None:
        """OSError is no ConnectionError."""
        assert delay_s(retries(2, retry_on=(ConnectionError,)), failure_of(OSError("no"))) is None

    def test_a_failure_names_its_bases_up_to_exception(self) -> None:
        """Those of an interrupt, which is no Exception, are none."""
        assert failure_of(KeyError("x")).bases == ("LookupError", "Exception")
        assert failure_of(KeyboardInterrupt()).bases == ()

    def test_a_handler_may_refuse(self) -> None:
        """It gets the failure."""
        policy = retries(2, handler=lambda failure: "again" in failure.message)
        assert delay_s(policy, failure_of(ValueError("again"))) == 1
        assert delay_s(policy, failure_of(ValueError("never"))) is None


class TestLimits:
    """How often, and for how long."""

    def test_system_failures_have_a_limit_of_their_own(self) -> None:
        """Whatever else the policy says of attempts and types; their waits grow like the others'."""
        lost = Failure(kind="system", type_name="StoreError", message="full")
        policy = RetryPolicy(max_system_failures=3, retry_on=(KeyError,), give_up_on=("StoreError",))
        assert [delay_s(policy, lost, system_failures=count) for count in (1, 2, 3)] == [1, 2, None]

    @pytest.mark.parametrize("kind", ["timeout", "cancelled"])
    def test_a_timeout_uses_up_attempts_and_a_cancellation_ends_them(self, kind: Any) -> None:
        """Nobody wants the result of what was cancelled."""
        failure = Failure(kind=kind, type_name="E", message="")
        assert delay_s(retries(2), failure) == (1 if kind == "timeout" else None)

    def test_a_first_wait_is_as_long_as_it_was_asked_for(self) -> None:
        """Waits grow to five minutes, or to the first one, unless another limit is given."""
        failure, hour = failure_of(ValueError("no")), timedelta(hours=1)
        usual, slow = RetryPolicy(max_attempts=20), RetryPolicy(max_attempts=20, first_retry_interval=hour)
        limited = RetryPolicy(max_attempts=20, first_retry_interval=hour, max_retry_interval=timedelta(hours=3))
        at_once = RetryPolicy(max_attempts=20, first_retry_interval=timedelta(0), max_retry_interval=timedelta(0))
        assert [delay_s(usual, failure, attempt=attempt) for attempt in (1, 2, 15)] == [1, 2, 300]
        assert [delay_s(slow, failure, attempt=attempt) for attempt in (1, 2)] == [3_600, 3_600]
        assert [delay_s(limited, failure, attempt=attempt) for attempt in (1, 2, 3)] == [3_600, 7_200, 10_800]
        assert delay_s(at_once, failure, attempt=2) == 0

    def test_no_attempt_begins_after_the_retry_timeout(self) -> None:
        """The wait counts, and holds for the system's failures too."""
        policy = retries(9, retry_timeout=timedelta(seconds=10))
        lost = Failure(kind="system", type_name="E", message="")
        assert delay_s(policy, failure_of(ValueError()), elapsed_us=9 * SECOND_US) == 1
        assert delay_s(policy, failure_of(ValueError()), elapsed_us=9 * SECOND_US + 1) is None
        assert delay_s(policy, lost, elapsed_us=9 * SECOND_US + 1, system_failures=1) is None


@pytest.mark.parametrize(
    ("fields", "error", "words"),
    [
        ({"max_attempts": 0}, ValueError, "max_attempts is 0"),
        ({"max_attempts": 2.5}, TypeError, "whole number"),
        ({"max_system_failures": 0}, ValueError, "max_system_failures is 0"),
        ({"first_retry_interval": 5}, TypeError, r"timedelta\(seconds=5\)"),
        ({"max_retry_interval": timedelta(-1)}, ValueError, "max_retry_interval is -1 day"),
        (
            {"first_retry_interval": timedelta(hours=1), "max_retry_interval": timedelta(minutes=5)},
            ValueError,
            "max_retry_interval is 0:05:00, less than first_retry_interval, 1:00:00",
        ),
        ({"retry_timeout": timedelta(seconds=-1)}, ValueError, "retry_timeout"),
        ({"retry_timeout": 3.0}, TypeError, "retry_timeout is 3.0"),
        ({"backoff_coefficient": 0.5}, ValueError, "give 1"),
        ({"backoff_coefficient": float("nan")}, ValueError, "finite"),
        ({"jitter": 2}, ValueError, "between 0 and 1"),
        ({"retry_on": (3,)}, TypeError, "tuple of exception classes"),
        ({"give_up_on": OSError}, TypeError, "give_up_on"),
        ({"handler": 3}, TypeError, "takes a Failure"),
    ],
)
def test_a_policy_that_cannot_work_is_refused(fields: dict[str, Any], error: type[Exception], words: str) -> None:
    """Where it is written, with the name of the setting."""
    with pytest.raises(error, match=words):
        RetryPolicy(**fields)


async def calls_once(ctx: Context, policy: Any) -> str:
    try:
        return str(await ctx.call("work", 1, None if policy is None else retries(policy)))
    except ActivityError as error:
        return f"failed in attempt {error.attempt}"


def lost(task: int, seconds: float) -> Event:
    return failed(task, "lost", seconds, kind="system")


def waits(execution: Execution, events: list[Event], seconds: float) -> list[Event]:
    """Let the timer fire that the last failure asked for, if it did."""
    timers = [event for event in events if isinstance(event, TimerCreated)]
    return execution.apply([fired(timer.number, seconds) for timer in timers])


def ended(execution: Execution) -> Any:
    assert execution.result is not None, execution.failure
    return decode(execution.result)


def scheduled(events: list[Event]) -> TaskScheduled:
    (event,) = (event for event in events if isinstance(event, TaskScheduled))
    return event


def test_without_a_policy_the_third_system_failure_in_a_row_is_the_last() -> None:
    """The user's own failure would have been final at once."""
    execution, events = begin(calls_once)
    for attempt, seconds in enumerate((10, 20), start=1):
        task = scheduled(events)
        assert task.attempt == attempt
        events = waits(execution, execution.apply([lost(task.number, seconds)]), seconds + 5)
    execution.apply([lost(scheduled(events).number, 30)])
    assert ended(execution) == "failed in attempt 3"


def test_system_failures_use_up_no_attempt_and_are_counted_in_a_row() -> None:
    """Two attempts are allowed: both are had although the system failed five times."""
    execution, events = begin(calls_once, 2)
    seconds = 0
    for is_lost in (True, True, False, True, True):
        seconds += 100
        task = scheduled(events)
        failure = lost(task.number, seconds) if is_lost else failed(task.number, "boom", seconds)
        events = waits(execution, execution.apply([failure]), seconds + 50)
    task = scheduled(events)
    assert task.attempt == 6
    execution.apply([failed(task.number, "boom", seconds + 100)])
    assert ended(execution) == "failed in attempt 6"


def test_after_a_rewind_attempts_and_time_begin_anew() -> None:
    """For a call under way, and for one that waits for its next attempt."""

    async def orchestrator(ctx: Context, value: Any) -> list[Any]:
        policy = retries(2, retry_timeout=timedelta(seconds=30))
        calls = [ctx.call("under way", retry=policy), ctx.call("waiting", retry=policy)]
        return [await call for call in calls]

    execution, events = begin(orchestrator)
    first, second = (event.number for event in events if isinstance(event, TaskScheduled))
    events = waits(execution, execution.apply([failed(first, "boom", 1)]), 2)
    again = scheduled(events)
    (timer,) = (e for e in execution.apply([failed(second, "boom", 20)]) if isinstance(e, TimerCreated))
    execution._journal.time_us += 3_600 * SECOND_US
    execution._tasks.rewound()
    events = execution.apply([failed(again.number, "boom", 3_640)])
    assert any(isinstance(event, TimerCreated) for event in events), "the attempt under way was the first that counts"
    task = scheduled(execution.apply([fired(timer.number, 3_641)]))
    assert (task.attempt, task.retry_of) == (2, second)
    events = execution.apply([failed(task.number, "boom", 3_642)])
    assert any(isinstance(event, TimerCreated) for event in events), "the wait ends with the first that counts"


def map_of(count: int, **options: Any) -> Any:
    async def orchestrator(ctx: Context, value: Any) -> list[str]:
        return [type(one).__name__ for one in await ctx.map("work", list(range(count)), **options)]

    return orchestrator


def item_failed(number: int, item: int, kind: Any, seconds: float) -> MapCompleted:
    failure = Failure(kind=kind, type_name="E", message="")
    return MapCompleted(map=number, start=item, count=1, results=encode([]), failures=((0, failure),), time_us=0)


def test_items_of_a_map_are_counted_one_by_one() -> None:
    """The system failed with one of two, twice; it still has its two attempts."""
    policy = retries(2, first_s=0)
    execution, events = begin(map_of(2, retry=policy, return_exceptions=True))
    number = events[0].number
    for attempt, kind in enumerate(("system", "system", "application"), start=2):
        (again,) = (e for e in execution.apply([item_failed(number, 1, kind, 0)]) if isinstance(e, MapItemsScheduled))
        assert (again.attempt, again.items) == (attempt, (1,))
    execution.apply([item_failed(number, 1, "application", 0)])
    (again,) = (
        e for e in execution.apply([item_failed(number, 0, "application", 0)]) if isinstance(e, MapItemsScheduled)
    )
    assert again.items == (0,)
    events = execution.apply([item_failed(number, 0, "application", 0)])
    assert isinstance(events[-1], ExecutionCompleted)
    assert ended(execution) == ["ActivityError", "ActivityError"]


def test_after_a_rewind_the_items_of_a_map_begin_anew() -> None:
    """Those under way in their last attempt, and those that wait for it."""
    execution, events = begin(map_of(3, retry=retries(2, first_s=1), return_exceptions=True))
    number = events[0].number
    under_way = waits(execution, execution.apply([item_failed(number, 0, "application", 0)]), 1)
    assert any(isinstance(event, MapItemsScheduled) for event in under_way)
    (timer,) = (e for e in execution.apply([item_failed(number, 1, "application", 0)]) if isinstance(e, TimerCreated))
    execution._maps.rewound()
    for item in (0, 2):
        events = execution.apply([item_failed(number, item, "application", 0)])
        assert any(isinstance(event, TimerCreated) for event in events), f"item {item} has another attempt"
    execution.apply([fired(timer.number, 5)])
    events = execution.apply([item_failed(number, 1, "application", 0)])
    assert any(isinstance(event, TimerCreated) for event in events)


def test_ranges_are_handed_over_as_they_are_settled() -> None:
    """Each item once, with what takes its place in the list; a failed one once its attempts are used up."""
    arrived: list[tuple[int, list[str]]] = []

    async def orchestrator(ctx: Context, value: Any) -> list[str]:
        results = await ctx.execution._maps.schedule(
            "work",
            encode(list(range(6))),
            6,
            decode,
            retries(2, first_s=0),
            "work",
            None,
            return_exceptions=True,
            tolerated_failures=0,
            on_results=lambda start, values: arrived.append((start, [str(value)[:8] for value in values])),
        )
        return [str(result)[:8] for result in results]

    execution, events = begin(orchestrator)
    number = events[0].number
    boom = Failure(type_name="E", message="boom")
    part = MapCompleted(map=number, start=2, count=4, results=encode([20, 50]), failures=((1, boom), (2, boom)))
    execution.apply([part])
    assert arrived == [(2, ["20"]), (5, ["50"])]
    execution.apply([MapCompleted(map=number, start=0, count=2, results=encode([0, 10]))])
    execution.apply([MapCompleted(map=number, start=3, count=2, results=encode([30]), failures=((1, boom),))])
    assert arrived[2:] == [(0, ["0", "10"]), (3, ["30", "Activity"])]
    assert ended(execution) == ["0", "10", "20", "30", "Activity", "50"]
