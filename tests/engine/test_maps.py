"""Maps: one command, outcomes in ranges, retries of single items, and the three meanings of a failure."""

from __future__ import annotations

import random
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_durable.engine import (
    Counts,
    Execution,
    ExecutionCompleted,
    MapCanceled,
    MapCompleted,
    MapItemsScheduled,
    MapScheduled,
    TimerCanceled,
    TimerCreated,
)
from ray_durable.engine.ranges import RangeSet
from ray_durable.errors import ActivityError
from ray_durable.failure import Failure

from .kit import T0_US, Context, Orchestrator, at, bare, begin, encode, fired, retries


def mapping(count: int, **options: Any) -> Orchestrator:
    async def orchestrator(ctx: Context, value: Any) -> Any:
        try:
            results = await ctx.map("work", list(range(count)), **options)
        except ActivityError as error:
            return [error.name, error.attempt, error.failure.message]
        return [str(result) if isinstance(result, Exception) else result for result in results]

    return orchestrator


def outcomes(start: int, values: list[Any], seconds: float = 0) -> MapCompleted:
    """The outcomes of the items from `start` on; an exception stands for a failure."""
    return MapCompleted(
        map=2,
        start=start,
        count=len(values),
        results=encode([value for value in values if not isinstance(value, Exception)]),
        failures=tuple(
            (offset, Failure(type_name=type(value).__name__, message=str(value)))
            for offset, value in enumerate(values)
            if isinstance(value, Exception)
        ),
        time_us=at(seconds),
    )


def remaining(execution: Execution) -> list[tuple[int, int, int]]:
    return list(execution.outstanding_maps[2].remaining())


def test_a_map_is_one_command_and_its_ranges_may_come_in_any_order() -> None:
    execution, caused = begin(mapping(6))
    assert bare(caused) == [MapScheduled(number=2, name="work", items=encode([0, 1, 2, 3, 4, 5]), count=6)]
    assert execution.outstanding_maps[2].scheduled.target == "work"
    execution.apply([outcomes(4, [40, 50])])
    assert remaining(execution) == [(0, 4, 1)]
    execution.apply([outcomes(1, [10])])
    assert remaining(execution) == [(0, 1, 1), (2, 4, 1)]
    assert execution.counts == Counts(map_items_total=6, map_items_completed=3)
    execution.apply([outcomes(2, [20, 30]), outcomes(0, [0])])
    assert execution.result == encode([0, 10, 20, 30, 40, 50])
    assert not execution.outstanding_maps


def test_a_map_of_nothing_asks_for_nothing() -> None:
    execution, caused = begin(mapping(0))
    assert [type(event) for event in caused] == [ExecutionCompleted]
    assert execution.result == encode([])


def test_items_keep_their_first_outcome() -> None:
    """A range that says nothing new is dropped; of one that overlaps, only the rest counts."""
    execution, _ = begin(mapping(4))
    execution.apply([outcomes(1, ["first", "first"])])
    assert execution.apply([outcomes(1, ["second"]), outcomes(1, ["second", "second"])]) == []
    out = execution.apply([outcomes(0, ["third", "third", "third", "third"])])
    assert len(out) == 2
    assert execution.result == encode(["third", "first", "first", "third"])


def test_the_first_final_failure_fails_the_map_and_cancels_the_rest() -> None:
    execution, _ = begin(mapping(4))
    out = execution.apply([outcomes(0, [0, ValueError("one")])])
    assert bare(out[1:2]) == [MapCanceled(number=4, map=2)]
    assert execution.result == encode(["work", 1, "one"])
    assert not execution.outstanding_maps
    assert execution.counts == Counts(map_items_total=4, map_items_completed=1, map_items_failed=1)


def test_a_failure_of_the_last_item_leaves_nothing_to_cancel() -> None:
    execution, _ = begin(mapping(2))
    out = execution.apply([outcomes(0, [0, ValueError("one")])])
    assert [type(event) for event in out] == [MapCompleted, ExecutionCompleted]


def test_exceptions_may_take_the_items_places() -> None:
    execution, _ = begin(mapping(3, return_exceptions=True))
    execution.apply([outcomes(0, [0, ValueError("one"), 2])])
    assert execution.result == encode([0, "Activity function 'work' failed: ValueError: one", 2])


def test_tolerated_failures_leave_none_and_one_more_fails_the_map() -> None:
    execution, _ = begin(mapping(3, tolerated_failures=2))
    execution.apply([outcomes(0, [ValueError("zero")]), outcomes(1, [1, ValueError("two")])])
    assert execution.result == encode([None, 1, None])
    execution, _ = begin(mapping(3, tolerated_failures=1))
    execution.apply([outcomes(0, [ValueError("zero")]), outcomes(1, [1, ValueError("two")])])
    assert execution.result == encode(["work", 1, "two"])


def test_failed_items_of_one_event_wait_together_and_are_scheduled_again() -> None:
    """One timer, one command; the new attempt is told by `remaining`, and the second wait is longer."""
    execution, _ = begin(mapping(5, retry=retries(3, 2)))
    out = execution.apply([outcomes(0, [0, ValueError("a"), 2, ValueError("b")])])
    assert bare(out[1:]) == [TimerCreated(number=4, due_us=at(2))]
    assert remaining(execution) == [(4, 5, 1)]
    assert execution.apply([outcomes(1, ["too late"])]) == [], "an item that waits for its retry has no run"
    out = execution.apply([fired(4, 2)])
    assert bare(out[1:]) == [MapItemsScheduled(number=6, map=2, attempt=2, items=(1, 3))]
    assert remaining(execution) == [(4, 5, 1), (1, 2, 2), (3, 4, 2)]
    out = execution.apply([outcomes(1, [10], 3), outcomes(3, [ValueError("c")], 3), outcomes(4, [40], 3)])
    assert bare([event for event in out if isinstance(event, TimerCreated)]) == [TimerCreated(number=9, due_us=at(7))]
    execution.apply([fired(9, 7)])
    assert remaining(execution) == [(3, 4, 3)]
    execution.apply([outcomes(3, [ValueError("d")], 8)])
    assert execution.result == encode(["work", 3, "d"])
    assert execution.counts.map_items_failed == 1


def test_jitter_of_items_that_wait_together_takes_the_longest_wait() -> None:
    """None comes too early; the random numbers are the run's own, drawn in the order of the items."""
    policy = retries(3, 10, jitter=1)
    execution, _ = begin(mapping(6, retry=policy))
    event = outcomes(0, [ValueError("again")] * 6)
    chance = random.Random("run-1/retry")
    waits_us = [policy.delay_us(failure, attempt=1, elapsed_us=0, rng=chance) or 0 for _, failure in event.failures]
    assert waits_us[-1] < max(waits_us)
    assert bare(execution.apply([event])[1:]) == [TimerCreated(number=4, due_us=T0_US + max(waits_us))]


def test_a_map_that_fails_takes_its_waiting_retries_back() -> None:
    execution, _ = begin(mapping(3, retry=retries(3, 2, give_up_on=("KeyError",))))
    execution.apply([outcomes(0, [ValueError("again")])])
    out = execution.apply([outcomes(1, [KeyError("final")])])
    assert bare(out[1:3]) == [TimerCanceled(number=6, timer=4), MapCanceled(number=7, map=2)]
    assert not execution.timers


@pytest.mark.parametrize("values", [[1], [1, 2, 3]], ids=["too few", "too many"])
def test_results_that_do_not_fit_their_range_fail_the_map(values: list[int]) -> None:
    """A worker of another version must not shift results to other items."""
    execution, _ = begin(mapping(2))
    event = MapCompleted(map=2, start=0, count=2, results=encode(values))
    out = execution.apply([event])
    assert isinstance(out[1], MapCanceled)
    assert execution.failure is not None
    assert execution.failure.type_name == "CorruptLogError"


RANGES = st.lists(st.tuples(st.booleans(), st.integers(0, 30), st.integers(0, 12)), max_size=30)


@given(RANGES, st.integers(0, 30), st.integers(0, 12))
def test_a_range_set_is_a_set(steps: list[tuple[bool, int, int]], start: int, size: int) -> None:
    """Against the plain set of integers: adding, removing, asking."""
    ranges, plain = RangeSet(), set[int]()
    for adds, low, length in steps:
        (ranges.add if adds else ranges.remove)(low, low + length)
        (plain.update if adds else plain.difference_update)(range(low, low + length))
        assert [item for part in ranges for item in part] == sorted(plain)
        assert len(ranges) == len(plain)
    asked = set(range(start, start + size))
    assert ranges.overlaps(start, start + size) == bool(asked & plain)
    assert [item for part in ranges.within(start, start + size) for item in part] == sorted(asked & plain)
    parts = list(ranges)
    assert all(left.stop < right.start for left, right in pairwise(parts)), "ranges touch"
