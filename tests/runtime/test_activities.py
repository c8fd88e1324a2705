"""Activities of all kinds, from the orchestrator's call to the outcome in the log: local, retried, mapped, large."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from ray_durable.engine import (
    MapCanceled,
    MapCompleted,
    MapItemsScheduled,
    MapScheduled,
    TaskCanceled,
    TaskCompleted,
    TaskFailed,
    TaskScheduled,
    TimerCreated,
)
from ray_durable.payload import Payload
from ray_durable.runtime.lanes import SlicePolicy
from tests.runtime import flows
from tests.support.skipping_loop import simulated
from tests.support.world import SpyStore, World


class TestLocal:
    """Activities with local=True."""

    def test_they_run_in_the_owner_at_one_write_a_step(self) -> None:
        """No task, no dispatcher; async ones too."""

        @simulated
        async def scenario() -> None:
            world = World()
            await world.start(flows.local_chain, 3)
            owner = world.own()
            await owner.ended()
            assert await world.result() == 6
            assert world.workers.launched == []
            assert not any(exchange.tasks for exchange in world.exchanges)
            assert len(owner.store.segments) == 1 + 6

        scenario()

    def test_they_run_only_after_their_schedule_is_durable(self) -> None:
        """While the store holds the segment back, nothing runs."""

        @simulated
        async def scenario() -> None:
            world = World()
            await world.start(flows.local_chain, 1)
            spy, let_go = SpyStore(world.objects), asyncio.Event()

            async def hold(operation: str, key: str) -> None:
                if operation == "put_if_absent":
                    await let_go.wait()

            spy.before = hold
            owner = world.own(store=spy)
            await world.until(lambda: spy.writes)
            await world.settle()
            assert flows.runs == {}
            let_go.set()
            await owner.ended()
            assert await world.result() == 2

        scenario()

    def test_those_called_together_are_recorded_together(self) -> None:
        """One append for all that ran within a while."""

        @simulated
        async def scenario() -> None:
            world = World()
            await world.start(flows.local_fan, 50)
            owner = world.own()
            await owner.ended()
            assert await world.result() == sum(range(1, 51))
            assert len(owner.store.segments) < 10

        scenario()

    def test_what_they_raise_is_their_outcome(self) -> None:
        """ActivityError with type, message and traceback; the instance goes on."""

        @simulated
        async def scenario() -> None:
            world = World()
            assert await world.run(flows.local_failing) == "ValueError: no 1"
            failed = next(event for event in await world.history() if isinstance(event, TaskFailed))
            assert "flows.py" in failed.failure.traceback

        scenario()

    def test_a_cancellation_of_their_own_is_their_outcome(self) -> None:
        """An async one that is cancelled from within does not take its owner with it."""

        @simulated
        async def scenario() -> None:
            world = World()
            assert await world.run(flows.local_cancelling) == "CancelledError"

        scenario()

    def test_what_would_end_the_process_is_their_outcome(self) -> None:
        """Recorded as a failure; the owner goes on."""

        @simulated
        async def scenario() -> None:
            world = World()
            names = await world.run(flows.local_interrupting)
            assert names == ["KeyboardInterrupt", "SystemExit", "OwnInterrupt"]
            assert sum(isinstance(event, TaskFailed) for event in await world.history()) == 3

        scenario()

    def test_events_are_taken_between_them(self) -> None:
        """A long row of local activities does not keep a caller waiting to its end."""

        @simulated
        async def scenario() -> None:
            world = World()
            await world.start(flows.local_chain, 50)
            owner = world.own()
            await world.until(lambda: owner.store.segments)
            payload = world.hub.codec.encode("x", where="test")
            await owner.instance.raise_event("Other", payload, "e1")
            assert not owner.instance.ended.is_set()
            await owner.ended()

        scenario()


class TestRetries:
    """Retries of single calls."""

    def test_attempts_and_the_waits_between_them_are_in_the_log(self) -> None:
        """Each attempt is an event with its number; each wait a timer of the policy's length."""

        @simulated
        async def scenario() -> None:
            world = World()
            began_s = asyncio.get_running_loop().time()
            assert await world.run(flows.retried, 2) == 3
            history = await world.history()
            attempts = [event for event in history if isinstance(event, TaskScheduled)]
            assert [(event.attempt, event.retry_of) for event in attempts] == [(1, None), (2, 2), (3, 2)]
            waits = [event.due_us - event.time_us for event in history if isinstance(event, TimerCreated)]
            assert waits == [10_000_000, 20_000_000]
            assert asyncio.get_running_loop().time() - began_s >= 30

        scenario()

    def test_a_wait_outlives_its_owner(self) -> None:
        """The owner dies during the wait; the next attempt comes at its time, with its number."""

        @simulated
        async def scenario() -> None:
            world = World()
            await world.start(flows.retried, 1)
            first = world.own()
            await world.until(lambda: len(first.store.segments) == 2)
            await first.kill()
            await asyncio.sleep(60)
            await world.own().ended()
            assert await world.result() == 2
            assert flows.runs == {"fails_first 1": 2}
            assert len(flows.keys["fails_first 1"]) == 1

        scenario()

    def test_the_last_failure_ends_the_call(self) -> None:
        """Three attempts, as the policy says; the failure tells what the activity raised."""

        @simulated
        async def scenario() -> None:
            world = World()
            await world.start(flows.retried, 5)
            await world.own().ended()
            failure = await world.failure()
            assert failure.type_name == "ActivityError"
            assert failure.cause is not None
            assert failure.cause.message == "attempt 3 fails"
            assert flows.runs == {"fails_first 5": 3}

        scenario()

    def test_without_a_policy_the_first_failure_counts(self) -> None:
        """Nothing is retried that nobody asked to retry."""

        @simulated
        async def scenario() -> None:
            world = World()
            await world.start(flows.failing, 1)
            await world.own().ended()
            assert (await world.failure()).type_name == "ActivityError"
            assert flows.runs == {"fails_first 1": 1}

        scenario()

    def test_an_activity_that_exits_fails_and_harms_nobody(self) -> None:
        """SystemExit is an outcome, in a worker too."""

        @simulated
        async def scenario() -> None:
            world = World()
            assert await world.run(flows.survives_exit) == "SystemExit"

        scenario()


class TestMaps:
    """ctx.map."""

    def test_one_command_whatever_its_length(self) -> None:
        """10,000 items: one MapScheduled, results in order, a few segments."""

        @simulated
        async def scenario() -> None:
            world = World()
            await world.start(flows.mapped, 10_000)
            owner = world.own()
            await owner.ended()
            assert await world.result() == sum(2 * value for value in range(10_000))
            history = await world.history()
            assert sum(isinstance(event, MapScheduled) for event in history) == 1
            items = sorted((event.start, event.count) for event in history if isinstance(event, MapCompleted))
            assert sum(count for _, count in items) == 10_000
            assert set(flows.runs.values()) == {1}

        scenario()

    def test_async_activities_too(self) -> None:
        """Calls of an async activity share slices like others."""

        @simulated
        async def scenario() -> None:
            world = World()
            assert await world.run(flows.fan_async, 20) == 380

        scenario()

    @pytest.mark.parametrize("wait_s", [0, 10])
    def test_failed_items_are_retried_and_no_other(self, wait_s: int) -> None:
        """At once or after the policy's wait; each item sees its own attempts and one idempotency key."""

        @simulated
        async def scenario() -> None:
            world = World(policy=SlicePolicy(first_count=4))
            assert await world.run(flows.map_retried, 10, wait_s) == list(range(10))
            assert flows.runs == {f"odd_fails_first {item}": 1 + item % 2 for item in range(10)}
            assert all(len(keys) == 1 for keys in flows.keys.values())
            assert len({key for keys in flows.keys.values() for key in keys}) == 10
            again = [event.items for event in await world.history() if isinstance(event, MapItemsScheduled)]
            assert sorted(item for items in again for item in items) == [1, 3, 5, 7, 9]

        scenario()

    def test_the_first_final_failure_fails_the_map(self) -> None:
        """ActivityError of the item; what had not begun is withdrawn."""

        @simulated
        async def scenario() -> None:
            world = World(policy=SlicePolicy(first_count=1))
            world.workers.holds = lambda work: work.first > 1
            await world.start(flows.map_tolerates, 100, 0)
            await world.own().ended()
            await world.settle()
            failure = await world.failure()
            assert failure.cause is not None
            assert failure.cause.message == "1 is odd"
            assert flows.runs == {"odd_fails 0": 1, "odd_fails 1": 1}
            assert world.workers.held == []
            assert any(isinstance(event, MapCanceled) for event in await world.history())

        scenario()

    def test_return_exceptions_puts_errors_in_their_places(self) -> None:
        """Every other item failed; the list has all."""

        @simulated
        async def scenario() -> None:
            world = World()
            assert await world.run(flows.map_collects, 4) == ["int", "ActivityError", "int", "ActivityError"]

        scenario()

    def test_tolerated_failures_leave_none(self) -> None:
        """Up to as many as were allowed."""

        @simulated
        async def scenario() -> None:
            world = World()
            assert await world.run(flows.map_tolerates, 5, 2) == [0, None, 2, None, 4]

        scenario()

    def test_a_timeout_withdraws_what_waits_and_what_runs(self) -> None:
        """Cancelled, its slices are ended and none of its items starts any more."""

        @simulated
        async def scenario() -> None:
            world = World(policy=SlicePolicy(first_count=10))
            world.workers.holds = lambda work: True
            await world.start(flows.map_cancelled, 1_000)
            owner = world.own()
            await world.until(lambda: len(world.workers.held) == 4)
            await asyncio.sleep(3_700)
            await world.settle()
            assert len(world.workers.launched) == 4
            assert all(launched.is_cancelled for launched in world.workers.launched)
            assert world.workers.held == []
            assert any(isinstance(event, MapCanceled) for event in await world.history())
            await owner.instance.raise_event("Go", world.hub.codec.encode(1, where="test"), "go")
            await owner.ended()
            assert await world.result() == "cancelled"
            assert flows.runs == {}

        scenario()

    def test_a_timeout_of_single_calls_withdraws_them(self) -> None:
        """The same for `gather` of `call_activity`."""

        @simulated
        async def scenario() -> None:
            world = World(policy=SlicePolicy(first_count=10))
            world.workers.holds = lambda work: True
            await world.start(flows.calls_cancelled, 100)
            owner = world.own()
            await world.until(lambda: len(world.workers.held) == 4)
            await asyncio.sleep(3_700)
            await world.settle()
            assert len(world.workers.launched) == 4
            assert all(launched.is_cancelled for launched in world.workers.launched)
            assert sum(isinstance(event, TaskCanceled) for event in await world.history()) == 100
            await owner.instance.raise_event("Go", world.hub.codec.encode(1, where="test"), "go")
            await owner.ended()
            assert flows.runs == {}

        scenario()


class TestLargePayloads:
    """Values over the inline limit."""

    def test_each_is_stored_once_and_loaded_on_replay(self) -> None:
        """Input, argument, result and items are blobs named by their digest; the segments stay small."""

        @simulated
        async def scenario() -> None:
            world = World()
            world.workers.holds = lambda work: work.batch is not None
            await world.start(flows.large, "x" * 70_000)
            first = world.own()
            await world.until(lambda: world.workers.held)
            await first.kill()
            world.workers.holds = lambda work: False
            for held in list(world.workers.held):
                held.finish()
            second = world.own()
            await second.ended()
            assert await world.result() == 350_001
            assert flows.runs == {"repeat 2": 1, "length 140001": 1, "length 70000": 1, "length 140000": 1}
            puts = [key for owner in (first, second) for _, key in owner.store.writes if "/blobs/" in key]
            assert len(puts) == len(set(puts)), "a blob is written once"
            for key in (*first.store.segments, *second.store.segments):
                data = await world.objects.get(key)
                assert data is not None
                assert len(data) < 5_000

        scenario()

    def test_large_results_never_pass_the_orchestrator(self) -> None:
        """The worker stores them; what the dispatcher hands over is a reference."""

        @simulated
        async def scenario() -> None:
            world = World()
            seen: list[Payload] = []
            await world.start(flows.large_results, 2, 70_000)
            owner = world.own()
            await owner.ended()
            seen = [event.result for event in await world.history() if isinstance(event, TaskCompleted)]
            assert all(payload.blob is not None and payload.data is None for payload in seen)
            assert await world.result() == 140_000
            assert not any("/blobs/" in key for _, key in owner.store.writes)

        scenario()

    def test_large_results_of_maps(self) -> None:
        """The batch of a slice is a blob when it is large."""

        @simulated
        async def scenario() -> None:
            world = World()
            lengths = [len(text) for text in await world.run(flows.large_map_results, 70_000)]
            assert lengths == [70_000, 70_001]

        scenario()

    def test_a_large_event_is_loaded_by_the_next_owner(self) -> None:
        """Its value is a blob of the run; replay has it."""

        @simulated
        async def scenario() -> None:
            world = World()
            await world.start(flows.approval)
            first = world.own()
            payload = world.hub.codec.encode("y" * 100_000, where="test")
            await first.instance.raise_event("Approval", payload, "e1")
            await first.kill()
            second = world.own()
            await second.instance.raise_event("Approval", payload, "e2")
            await second.ended()
            assert [len(text) for text in await world.result()] == [100_000, 100_000]

        scenario()


@simulated
async def test_idle_instances_let_the_dispatcher_forget_their_outcomes() -> None:
    """Waiting for an event, an instance has settled what its log holds: nothing is kept for it."""
    world = World()
    await world.start(flows.versioned)
    owner = world.own()
    await world.until(lambda: len(owner.store.segments) == 2)
    await asyncio.sleep(timedelta(minutes=1).total_seconds())
    assert world.dispatcher is not None
    assert world.dispatcher.snapshot()["outcomes_unsettled"] == 0
    before = len(world.exchanges)
    await asyncio.sleep(86_400)
    assert len(world.exchanges) == before
    await owner.kill()
