"""Instances that only wait have no owner, cost nothing, and go on in time: whatever dies or arrives meanwhile."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from ray_durable.engine import EventRaised, ExecutionSuspended, OutboxDelivered, TimerFired
from ray_durable.errors import DurableError
from ray_durable.runtime.explanation import explain_stored
from ray_durable.storage import OpenEntry, find_open
from tests.runtime import flows, model
from tests.support.checking import complaints
from tests.support.skipping_loop import simulate, simulated
from tests.support.town import Town
from tests.support.world import SpyStore, World

IDLE_S = 10.0
LONG_S = 300


async def at_rest(town: Town, instance_id: str = "one") -> OpenEntry:
    """Wait until the instance has no owner; its entry."""
    async with asyncio.timeout(600):
        while town.living(instance_id) is not None or not any(
            owner.instance.instance_id == instance_id for owner in town.owners
        ):
            await asyncio.sleep(0.5)
    entry = await find_open(town.objects, town.hub.keys, instance_id)
    assert entry is not None
    return entry


async def raised(town: Town, instance_id: str = "one") -> list[str]:
    """The ids of the events in the log."""
    history = await town.history_of(instance_id)
    return [event.event_id for event in history if isinstance(event, EventRaised)]


class TestLeaving:
    """When an owner goes, and what it leaves."""

    @simulated
    async def test_who_waits_for_an_event_leaves_until_it_comes(self) -> None:
        """The hint names no time, and tells what is waited for."""
        town = Town(idle_s=IDLE_S)
        await town.start(flows.approval)
        entry = await at_rest(town)
        assert entry.wake is not None
        assert entry.wake.due_us is None
        await asyncio.sleep(2 * LONG_S)
        assert len(town.owners) == 1
        await town.raise_event("Approval", "yes", "e1")
        assert len(town.owners) == 2
        assert await raised(town) == ["e1"]
        await town.close()

    @simulated
    async def test_who_waits_for_a_timer_is_back_when_it_is_due(self) -> None:
        """It fires at its time, and not before."""
        town = Town(idle_s=IDLE_S)
        await town.start(flows.sleeps, 2 * LONG_S)
        due_us = town.clock.now_us() + 2 * LONG_S * 1_000_000
        entry = await at_rest(town)
        assert entry.wake is not None
        assert entry.wake.due_us is not None
        assert 0 <= entry.wake.due_us - due_us < 1_000_000
        await town.ended()
        (fired,) = [event for event in await town.history_of() if isinstance(event, TimerFired)]
        assert 0 <= fired.time_us - entry.wake.due_us < 500_000
        assert len(town.owners) == 2
        await town.close()

    @simulated
    async def test_a_timer_that_is_due_soon_keeps_the_owner(self) -> None:
        """Leaving would not be worth it."""
        town = Town(idle_s=IDLE_S)
        await town.start(flows.sleeps, 19)
        await town.ended()
        assert len(town.owners) == 1
        await town.close()

    @simulated
    async def test_an_activity_keeps_the_owner(self) -> None:
        """However long it runs."""
        town = Town(idle_s=IDLE_S)
        town.workers.holds = lambda work: True
        await town.start(flows.chain, 1)
        await asyncio.sleep(10 * IDLE_S)
        assert town.living("one") is not None
        (started,) = town.workers.held
        started.finish()
        await town.ended()
        await town.close()

    @simulated
    async def test_a_suspended_instance_leaves(self) -> None:
        """And resumes with what came meanwhile."""
        town = Town(idle_s=IDLE_S)
        await town.start(flows.approval)
        await town.command("one", "suspend", "a break", "s1")
        await at_rest(town)
        await town.raise_event("Approval", "yes", "e1")
        await at_rest(town)
        await town.command("one", "resume", "on", "s2")
        assert any(isinstance(event, ExecutionSuspended) for event in await town.history_of())
        await town.close()

    @simulated
    async def test_activities_run_before_and_after(self) -> None:
        """The dispatcher knows the run again: each call once."""
        model.reset()
        town = Town(idle_s=IDLE_S)
        await town.start(model.gates)
        for number in range(2):
            await at_rest(town)
            await town.raise_event("Gate", number, f"e{number}")
        assert await town.result_of() == [0, "GATE0", 1, "GATE1"]
        assert model.runs == {"work gate0": 1, "work gate1": 1}
        assert len(town.owners) == 4
        await town.close()

    @simulated
    async def test_a_caller_leaves_and_hears_of_the_end(self) -> None:
        """Both rest meanwhile. What was delivered is noted before, so nobody is woken by a message sent again."""
        model.reset()
        town = Town(idle_s=IDLE_S)
        await town.start(model.parent_of_waiting, "called")
        await at_rest(town)
        await at_rest(town, "called")
        assert any(isinstance(event, OutboxDelivered) for event in await town.history_of())
        owners = len(town.owners)
        await town.command("one", "suspend", "a break", "s1")
        await at_rest(town)
        assert len(town.owners) == owners + 1
        await town.command("one", "resume", "on", "s2")
        await town.raise_event("Go", "now", "e1", "called")
        assert await town.result_of() is not None
        await town.settled()
        await town.close()

    @simulated
    async def test_what_it_waits_for_is_told_without_waking_it(self) -> None:
        """In the words of the owner that left, lines of code included."""
        town = Town(idle_s=IDLE_S)
        await town.start(flows.approval_or_timeout, 72)
        await asyncio.sleep(1)
        owner = town.living("one")
        assert owner is not None
        told = await owner.instance.explain()
        await at_rest(town)
        assert await explain_stored(town.hub, "one") == told
        assert {one.kind for one in told.waiting} == {"timer", "external event"}
        assert len(town.owners) == 1
        await town.close()

    @simulated
    async def test_past_executions_are_left_to_the_hub(self) -> None:
        """They go when they are due, though nobody owns the instance."""
        town = Town(idle_s=IDLE_S, grace_s=600)
        await town.start(model.gathers_items, 3, [])
        await town.raise_event("Item", "a", "e1")
        await at_rest(town)
        listed = town.objects.list_folder
        assert await listed(town.hub.keys.executions("one")) == ["000001", "000002"]
        await asyncio.sleep(700)
        assert await listed(town.hub.keys.executions("one")) == ["000002"]
        assert town.living("one") is None
        await town.close()


class TestHints:
    """A hint that no longer holds harms nobody."""

    @simulated
    async def test_an_owner_that_left_a_hint_and_goes_on_is_missed_when_it_dies(self) -> None:
        """Its hint is past: there is a segment behind it."""
        town = Town(idle_s=IDLE_S)
        await town.start(model.gates)
        await at_rest(town)
        town.workers.holds = lambda work: True
        await town.raise_event("Gate", "yes", "e1")
        owner = town.living("one")
        assert owner is not None
        await owner.kill()
        # The next round, which need not find out that it was wrong.
        await asyncio.sleep(2.1)
        assert town.living("one") is not None
        await town.close()

    @simulated
    async def test_a_late_hint_of_an_older_owner_changes_nothing(self) -> None:
        """It was stopped just before it wrote it; a newer owner works, and dies."""
        town = Town(idle_s=IDLE_S)
        await town.start(flows.approval)
        await asyncio.sleep(1)
        stopped = town.living("one")
        assert stopped is not None
        reached, goes_on = asyncio.Event(), asyncio.Event()

        async def stop(operation: str, key: str) -> None:
            if (operation, key) == ("put", town.hub.keys.open_entry("one")):
                reached.set()
                await goes_on.wait()

        stopped.store.before, stopped.store.after = stop, None
        await reached.wait()
        newer = town.own("one")
        await asyncio.sleep(1)
        await newer.instance.raise_event("Approval", town.encoded("yes"), "e1")
        goes_on.set()
        await asyncio.sleep(1)
        await newer.kill()
        await asyncio.sleep(10)
        assert town.living("one") is not None
        assert await raised(town) == ["e1"]
        await town.close()

    @simulated
    async def test_a_new_supervisor_wakes_nobody_without_need(self) -> None:
        """It reads each hint, and those that are due are woken in time."""
        town = Town(idle_s=IDLE_S)
        await town.start(flows.approval, instance_id="a")
        await town.start(flows.sleeps, LONG_S, instance_id="b")
        await at_rest(town, "a")
        await at_rest(town, "b")
        town.lose_supervisor()
        await asyncio.sleep(200)
        assert len(town.owners) == 2
        await town.ended("b")
        assert len(town.owners) == 3
        await town.close()

    @simulated
    async def test_what_another_cluster_went_on_with_is_found(self) -> None:
        """Its actor recorded an event behind the hint, unseen, and is gone: the hint is looked at again."""
        town = Town(idle_s=IDLE_S)
        await town.start(flows.approval)
        await at_rest(town)
        await asyncio.sleep(100)
        elsewhere = World.own(town, "one", store=SpyStore(town.objects))
        town.owners.remove(elsewhere)
        await elsewhere.instance.raise_event("Approval", town.encoded("yes"), "e1")
        await elsewhere.kill()
        await asyncio.sleep(10)
        assert town.living("one") is not None
        await town.close()


class TestCost:
    """What instances cost that wait."""

    @pytest.mark.parametrize("count", [10, 200])
    def test_a_round_costs_the_same_however_many_rest(self, count: int) -> None:
        """And none of them takes room under the cap."""

        async def run() -> None:
            town = Town(idle_s=IDLE_S, live_max=count // 2)
            for number in range(count):
                await town.start(flows.approval, instance_id=f"i{number}")
            async with asyncio.timeout(2_000):
                while town.supervisor.resting_count < count:
                    await asyncio.sleep(1)
            await asyncio.sleep(40)
            calls, rounds = len(town.supervisor_store.calls), town.supervisor.rounds
            await asyncio.sleep(100)
            per_round = (len(town.supervisor_store.calls) - calls) / (town.supervisor.rounds - rounds)
            assert per_round < 5
            await town.start(flows.chain, 1, instance_id="new")
            await town.ended("new")
            assert not [owner for owner in town.owners if not owner.task.done()]
            await town.close()

        simulate(run())


class TestDeaths:
    """Owners die at each operation of the store, on the way out and on the way back."""

    def test_events_and_timers_survive_any_death(self, tmp_path: Path) -> None:
        """Each event is recorded once, and the end is what it should be."""

        async def run(deaths: dict[int, bool]) -> int:
            town = Town(idle_s=IDLE_S, deaths=deaths.items())
            await town.start(flows.sleeps, 60)
            await asyncio.sleep(20)
            await town.raise_event("Approval", "yes", "e1")
            await town.raise_event("Approval", "yes", "e1")
            await town.ended()
            assert await raised(town) == ["e1"]
            (fired,) = [event for event in await town.history_of() if isinstance(event, TimerFired)]
            assert fired.time_us <= town.clock.now_us()
            await town.settled()
            folder = tmp_path / "-".join(f"{number}-{done}" for number, done in deaths.items())
            assert complaints(town, folder) == []
            operations = town.operations
            await town.close()
            return operations

        operations = simulate(run({}))
        for number in range(1, operations + 1):
            for takes_effect in (False, True):
                simulate(run({number: takes_effect}))

    def test_an_event_that_comes_while_the_owner_leaves_is_neither_lost_nor_doubled(self) -> None:
        """At each operation of leaving, and right behind it."""

        async def run(at: int) -> bool:
            town = Town(idle_s=IDLE_S)
            await town.start(flows.approval)
            await asyncio.sleep(1)
            owner = town.living("one")
            assert owner is not None
            begun = len(owner.store.calls)
            asked: list[asyncio.Task[None]] = []

            async def ask(operation: str, key: str) -> None:
                if len(owner.store.calls) == begun + at and not asked:
                    asked.append(asyncio.ensure_future(town.raise_event("Approval", "yes", "e1")))
                    await asyncio.sleep(0)

            owner.store.before, owner.store.after = ask, None
            await asyncio.sleep(IDLE_S + 5)
            for one in asked:
                await one
                assert await raised(town) == ["e1"]
            await town.close()
            return bool(asked)

        reached = 0
        while simulate(run(reached + 1)):
            reached += 1
        assert reached >= 3

    @simulated
    async def test_who_meets_an_owner_that_has_left_asks_the_next_one(self) -> None:
        """It is told that nothing is known of what became of its request."""
        town = Town(idle_s=IDLE_S)
        await town.start(flows.approval)
        await at_rest(town)
        gone = town.owners[-1]
        with pytest.raises(DurableError, match="has left it"):
            await gone.instance.raise_event("Approval", town.encoded("yes"), "e1")
        await town.raise_event("Approval", "yes", "e1")
        assert await raised(town) == ["e1"]
        await town.close()
