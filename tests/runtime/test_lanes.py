"""Lanes: how calls are cut into slices, and what becomes of each when workers report, die, or are not wanted."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_durable.codec import Codec
from ray_durable.failure import Failure
from ray_durable.payload import Payload
from ray_durable.reference import FunctionReference
from ray_durable.runtime.lanes import MapLane, SlicePolicy, TaskLane
from ray_durable.runtime.messages import (
    MapOutcomes,
    MapRequest,
    Outcome,
    SliceReport,
    SliceWork,
    TaskOutcome,
    TaskRequest,
)
from ray_durable.target import ActivityTarget

CODEC = Codec()
LOST = Failure(kind="system", type_name="WorkerLostError", message="lost")
TIMED_OUT = Failure(kind="timeout", type_name="ActivityTimeoutError", message="")
FINAL = replace(LOST, non_retryable=True)
"""Of a call that had all its tries."""


def target(losses_max: int = 3, **options: object) -> ActivityTarget:
    return ActivityTarget(
        reference=FunctionReference(name="f"),
        options=options,
        is_local=False,
        key="f",
        system_failures_max=losses_max,
    )


def request(task: int, attempt: int = 1) -> TaskRequest:
    return TaskRequest(
        task=task, attempt=attempt, submission=1, origin=task, input=CODEC.encode([task], where="x"), target=target()
    )


def task_lane(count: int, policy: SlicePolicy | None = None, losses_max: int = 3, **options: object) -> TaskLane:
    """Tasks 1 to `count`."""
    lane = TaskLane("run", "one", target(losses_max, **options), policy or SlicePolicy())
    lane.add([request(task) for task in range(1, count + 1)])
    return lane


def map_request(*ranges: tuple[int, int], count: int, attempt: int = 1, losses_max: int = 3) -> MapRequest:
    items = CODEC.encode_batch(list(range(count)), where="items")
    return MapRequest(map=5, attempt=attempt, submission=1, items=items, ranges=ranges, target=target(losses_max))


def map_lane(count: int, policy: SlicePolicy | None = None, losses_max: int = 3) -> MapLane:
    wanted = map_request((0, count), count=count, losses_max=losses_max)
    lane = MapLane("run", "one", wanted, policy or SlicePolicy())
    lane.add(wanted)
    return lane


def done(work: SliceWork, count: int | None = None, elapsed_s: float = 0.001) -> SliceReport:
    """A report on the first `count` calls of the slice."""
    count = work.count if count is None else count
    if work.batch is not None:
        results = CODEC.encode_batch(list(range(count)), where="results")
        return SliceReport(done=count, elapsed_s=elapsed_s, results=results)
    return SliceReport(done=count, elapsed_s=elapsed_s, outcomes=[Payload.of("json", b"1")] * count)


def tasks_of(outcomes: list[Outcome]) -> list[int]:
    return [outcome.task for outcome in outcomes if isinstance(outcome, TaskOutcome)]


class TestCutting:
    """How large a slice is."""

    def test_idle_slots_share_what_waits(self) -> None:
        """Ten calls and five free slots: two each."""
        assert task_lane(10).take(1, free_slots=5).count == 2

    def test_few_are_tried_while_nothing_is_known_of_their_duration(self) -> None:
        """A first slice is never large, however much waits."""
        assert task_lane(10_000, SlicePolicy(first_count=64)).take(1, free_slots=1).count == 64

    def test_later_slices_are_aimed_at_the_time_budget(self) -> None:
        """A call took 10 ms: 20 of them are 200 ms."""
        lane = task_lane(10_000, SlicePolicy(first_count=10, budget_s=0.2))
        lane.report(1, done(lane.take(1, free_slots=1), elapsed_s=0.1))
        assert lane.take(2, free_slots=1).count == 20

    def test_long_calls_go_one_by_one(self) -> None:
        """A call over the budget makes a slice of its own."""
        lane = task_lane(100)
        lane.report(1, done(lane.take(1, free_slots=100), elapsed_s=60.0))
        assert lane.take(2, free_slots=1).count == 1

    def test_no_slice_is_over_the_limits(self) -> None:
        """Neither the policy's nor the activity's own."""
        lane = task_lane(10_000, SlicePolicy(first_count=10_000, count_max=500))
        assert lane.take(1, free_slots=1).count == 500
        assert task_lane(100, max_slice=3).take(1, free_slots=1).count == 3

    def test_the_rest_of_a_slice_is_next(self) -> None:
        """What the budget did not suffice for keeps its place at the front."""
        lane = task_lane(10, SlicePolicy(first_count=4))
        outcomes = lane.report(1, done(lane.take(1, free_slots=1), count=2))
        assert tasks_of(outcomes) == [1, 2]
        assert [call.bytes for call in lane.take(2, free_slots=1).calls][:1] == [b"[3]"]

    def test_work_names_attempts_and_idempotency_keys(self) -> None:
        """The key has the run and the first attempt's task."""
        lane = TaskLane("run", "one", target(), SlicePolicy())
        retry = TaskRequest(task=9, attempt=2, submission=1, origin=4, input=Payload.of("json", b"[]"), target=target())
        lane.add([request(1), retry])
        work = lane.take(1, free_slots=1)
        assert (work.attempts, work.keys) == ([1, 2], ["run:1", "run:4"])


class TestLosses:
    """Workers that die."""

    def test_a_lost_slice_is_halved_until_the_poison_stands_alone(self) -> None:
        """One of 64 calls kills its worker: it alone fails, after as many losses as the policy allows."""
        lane = task_lane(64, SlicePolicy(first_count=64), losses_max=3)
        poison, outcomes, losses = 37, [], 0
        for slice_id in range(1, 1_000):
            if not lane.is_waiting:
                break
            work = lane.take(slice_id, free_slots=1)
            if f"[{poison}]".encode() in [call.bytes for call in work.calls]:
                losses += 1
                outcomes += lane.lose(slice_id, LOST)
            else:
                outcomes += lane.report(slice_id, done(work))
        failed = [outcome for outcome in outcomes if isinstance(outcome, TaskOutcome) and outcome.failure is not None]
        assert [(outcome.task, outcome.failure) for outcome in failed] == [(poison, FINAL)]
        assert sorted(tasks_of(outcomes)) == list(range(1, 65))
        assert losses == 6 + 3
        assert lane.is_idle

    def test_items_of_a_map_are_isolated_too(self) -> None:
        """The poison item fails as one item of one outcome."""
        lane = map_lane(16, SlicePolicy(first_count=16), losses_max=2)
        outcomes: list[Outcome] = []
        for slice_id in range(1, 200):
            if not lane.is_waiting:
                break
            work = lane.take(slice_id, free_slots=1)
            is_poisoned = work.first <= 5 < work.first + work.count
            outcomes += lane.lose(slice_id, LOST) if is_poisoned else lane.report(slice_id, done(work))
        found = [outcome for outcome in outcomes if isinstance(outcome, MapOutcomes)]
        assert sum(outcome.count for outcome in found) == 16
        assert [(one.start, one.count, one.failures) for one in found if one.failures] == [(5, 1, ((0, FINAL),))]

    @pytest.mark.parametrize("losses_max", [1, 2, 5])
    def test_a_call_fails_once_it_has_lost_as_many_workers_as_allowed(self, losses_max: int) -> None:
        """Not one loss sooner."""
        lane = task_lane(1, losses_max=losses_max)
        for loss in range(1, losses_max + 1):
            lane.take(loss, free_slots=1)
            outcomes = lane.lose(loss, LOST)
            assert bool(outcomes) == (loss == losses_max)

    def test_a_call_that_comes_through_is_no_suspect_any_more(self) -> None:
        """Losses of a call are forgotten with its outcome; others keep theirs."""
        lane = task_lane(2, SlicePolicy(first_count=1), losses_max=2)
        lane.take(1, free_slots=1)
        lane.lose(1, LOST)
        work = lane.take(2, free_slots=1)
        assert work.calls[0].bytes == b"[1]"
        assert tasks_of(lane.report(2, done(work))) == [1]

    def test_suspects_go_before_others(self) -> None:
        """The culprit is found before more workers are risked with mixed slices."""
        lane = task_lane(8, SlicePolicy(first_count=4))
        lane.take(1, free_slots=1)
        lane.lose(1, LOST)
        assert [call.bytes for call in lane.take(2, free_slots=1).calls] == [b"[1]", b"[2]"]
        assert [call.bytes for call in lane.take(3, free_slots=1).calls] == [b"[3]", b"[4]"]
        assert [call.bytes for call in lane.take(4, free_slots=1).calls] == [b"[5]", b"[6]", b"[7]", b"[8]"]

    def test_what_was_put_back_is_next_and_unharmed(self) -> None:
        """A function that could not be loaded is no loss of the worker."""
        lane = task_lane(4, SlicePolicy(first_count=2), losses_max=1)
        lane.take(1, free_slots=1)
        lane.put_back(1)
        assert [call.bytes for call in lane.take(2, free_slots=1).calls] == [b"[1]", b"[2]"]


class TestForce:
    """Calls that were ended with their process, by the worker itself or from outside."""

    def test_a_condemned_call_fails_and_the_rest_waits_again_uncharged(self) -> None:
        """What was done before it counts; the others run elsewhere, and no worker counts as lost."""
        lane = task_lane(5, SlicePolicy(first_count=5))
        work = lane.take(1, free_slots=1)
        report = done(work, 2)
        report.condemned = ((3, TIMED_OUT),)
        outcomes = lane.report(1, report)
        assert [(one.task, one.failure) for one in outcomes if isinstance(one, TaskOutcome)] == [
            (1, None),
            (2, None),
            (4, TIMED_OUT),
        ]
        again = lane.take(2, free_slots=1)
        assert [call.bytes for call in again.calls] == [b"[3]"]
        final = lane.report(2, done(again)) + lane.report(3, done(lane.take(3, free_slots=1)))
        assert [one.lost_workers for one in final if isinstance(one, TaskOutcome)] == [0, 0]
        assert lane.is_idle

    def test_a_condemned_item_of_a_map_fails_alone(self) -> None:
        """Also as the first of its slice."""
        lane = map_lane(4, SlicePolicy(first_count=4))
        report = done(lane.take(1, free_slots=1), 0)
        report.condemned = ((0, TIMED_OUT),)
        (outcome,) = lane.report(1, report)
        assert isinstance(outcome, MapOutcomes)
        assert (outcome.start, outcome.count, outcome.failures) == (0, 1, ((0, TIMED_OUT),))
        work = lane.take(2, free_slots=1)
        assert (work.first, work.count) == (1, 3)

    def test_of_a_slice_that_is_overdue_the_one_call_fails(self) -> None:
        """Many are halved first."""
        lane = task_lane(2, SlicePolicy(first_count=2))
        lane.take(1, free_slots=1)
        assert lane.expire(1, TIMED_OUT) == []
        lane.take(2, free_slots=1)
        (outcome,) = lane.expire(2, TIMED_OUT)
        assert isinstance(outcome, TaskOutcome)
        assert (outcome.task, outcome.failure, outcome.lost_workers) == (1, TIMED_OUT, 0)
        assert lane.take(3, free_slots=1).count == 1

    def test_what_is_not_wanted_of_an_overdue_slice_is_forgotten(self) -> None:
        """The other call runs again."""
        lane = task_lane(2, SlicePolicy(first_count=2))
        lane.take(1, free_slots=1)
        lane.cancel([1])
        assert lane.expire(1, TIMED_OUT) == []
        assert [call.bytes for call in lane.take(2, free_slots=1).calls] == [b"[2]"]
        assert list(lane.tasks) == [2]


class TestWithdrawing:
    """Calls that nobody waits for any more."""

    def test_waiting_calls_are_forgotten(self) -> None:
        """They are never taken; the others are."""
        lane = task_lane(5)
        assert lane.cancel([2, 4, 99]) == []
        assert [task for task in range(1, 6) if lane.knows(task)] == [1, 3, 5]
        taken = [lane.take(slice_id, free_slots=1).calls[0].bytes for slice_id in (1, 2, 3)]
        assert taken == [b"[1]", b"[3]", b"[5]"]

    def test_a_slice_in_flight_tells_which_of_its_calls_are_not_wanted(self) -> None:
        """Each time that there are more of them; not again for those that are known."""
        lane = task_lane(3, SlicePolicy(first_count=3))
        lane.take(1, free_slots=1)
        assert (lane.cancel([1]), lane.unwanted(1)) == ([1], (0,))
        assert (lane.cancel([1]), lane.unwanted(1)) == ([], (0,))
        assert (lane.cancel([3]), lane.unwanted(1)) == ([1], (0, 2))

    def test_an_ended_slice_is_not_run_again(self) -> None:
        """Its end looks like the loss of a worker, and must not be taken for one."""
        lane = task_lane(4, SlicePolicy(first_count=4))
        lane.take(1, free_slots=1)
        lane.cancel([1, 2, 3, 4])
        assert lane.lose(1, LOST) == []
        assert lane.is_idle
        assert list(lane.tasks) == []

    def test_a_lost_slice_runs_again_without_what_was_withdrawn(self) -> None:
        """The calls that are still wanted come back, the others do not."""
        lane = task_lane(4, SlicePolicy(first_count=4))
        lane.take(1, free_slots=1)
        lane.cancel([1, 3])
        assert lane.lose(1, LOST) == []
        assert sorted(lane.tasks) == [2, 4]
        assert lane.pending_count == 2

    def test_the_rest_of_a_slice_leaves_out_what_was_withdrawn(self) -> None:
        """A worker that ran out of time brings back calls that nobody wants any more."""
        lane = task_lane(4, SlicePolicy(first_count=4))
        work = lane.take(1, free_slots=1)
        lane.cancel([2, 3])
        assert tasks_of(lane.report(1, done(work, count=1))) == [1]
        assert sorted(lane.tasks) == [4]

    def test_a_cancelled_map_leaves_nothing(self) -> None:
        """Waiting, suspect or in flight: its slices are named, and do not come back."""
        lane = map_lane(20, SlicePolicy(first_count=5))
        lane.take(1, free_slots=1)
        lane.take(2, free_slots=1)
        lane.lose(1, LOST)
        assert lane.cancel() == [2]
        assert lane.lose(2, LOST) == []
        assert lane.is_idle

    def test_a_later_attempt_is_told_apart(self) -> None:
        """Ranges and outcomes name the attempt; the worker sees it."""
        lane = map_lane(4, SlicePolicy(first_count=4))
        lane.report(1, done(lane.take(1, free_slots=1)))
        lane.add(map_request((1, 2), (3, 4), count=4, attempt=2))
        assert lane.ranges() == [(1, 2, 2), (3, 4, 2)]
        work = lane.take(2, free_slots=2)
        assert (work.first, work.count, work.attempts) == (1, 1, [2])
        (outcome,) = lane.report(2, done(work))
        assert isinstance(outcome, MapOutcomes)
        assert (outcome.attempt, outcome.start, outcome.count) == (2, 1, 1)


@settings(max_examples=200, deadline=None)
@given(data=st.data(), count=st.integers(1, 40))
def test_every_call_has_one_outcome_or_was_withdrawn(data: st.DataObject, count: int) -> None:
    """Whatever workers do: no call is lost, none has two outcomes, none that was withdrawn starts again."""
    lane = task_lane(count, SlicePolicy(first_count=8), losses_max=2)
    flying: dict[int, SliceWork] = {}
    outcomes: Counter[int] = Counter()
    withdrawn: set[int] = set()
    slice_id = 0
    while not lane.is_idle:
        choices = (
            (["report", "condemn", "lose", "expire", "put back"] if flying else [])
            + (["take"] if lane.is_waiting else [])
            + ["cancel"]
        )
        step = data.draw(st.sampled_from(choices))
        if step == "take":
            slice_id += 1
            work = flying[slice_id] = lane.take(slice_id, free_slots=data.draw(st.integers(1, 5)))
            started = {int(call.bytes.strip(b"[]")) for call in work.calls}
            assert not started & (withdrawn | outcomes.keys())
            continue
        if step == "cancel":
            chosen = data.draw(st.sets(st.integers(1, count), max_size=5))
            withdrawn |= chosen
            lane.cancel(chosen)
            continue
        ended = data.draw(st.sampled_from(sorted(flying)))
        work = flying.pop(ended)
        if step == "report":
            outcomes.update(tasks_of(lane.report(ended, done(work, data.draw(st.integers(1, work.count))))))
        elif step == "condemn":
            count_done = data.draw(st.integers(0, work.count - 1))
            report = done(work, count_done)
            report.condemned = ((data.draw(st.integers(count_done, work.count - 1)), TIMED_OUT),)
            outcomes.update(tasks_of(lane.report(ended, report)))
        elif step == "lose":
            outcomes.update(tasks_of(lane.lose(ended, LOST)))
        elif step == "expire":
            outcomes.update(tasks_of(lane.expire(ended, TIMED_OUT)))
        else:
            lane.put_back(ended)
    assert set(outcomes.values()) <= {1}
    assert outcomes.keys() | withdrawn == set(range(1, count + 1))
    assert list(lane.tasks) == []
