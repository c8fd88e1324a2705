"""One execution after the other: continue-as-new, restart, rewind, reuse of an id, fork, purge; and suspension."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

import ray_durable as durable
from ray_durable.engine import EventRaised, ExecutionRestarted, ExecutionRewound, RuntimeStatus, TaskCompleted
from ray_durable.errors import (
    ConfigurationError,
    InstanceActiveError,
    InstanceEndedError,
    InstanceExistsError,
    InstanceNotFoundError,
)
from ray_durable.runtime.lifecycle import Start, fork_instance, purge_instance, start_instance
from ray_durable.storage import list_ended, list_executions, list_open
from tests.runtime import model
from tests.support.checking import complaints
from tests.support.skipping_loop import simulate, simulated
from tests.support.town import Town


async def executions(town: Town) -> tuple[int, ...]:
    """The executions of the instance that are in storage."""
    return (await list_executions(town.objects, town.hub.keys, "one")).numbers


async def runs_stored(town: Town) -> list[str]:
    """The folders of runs that are in storage."""
    return await town.objects.list_folder(f"{town.hub.keys.hub}/runs/")


async def summaries(town: Town) -> list[tuple[str, int]]:
    """The ended instances that are listed, with their executions."""
    page = await list_ended(town.objects, town.hub.keys)
    return [(one["instance"], one["execution"]) for one in page.summaries]


def ran_again() -> set[str]:
    """The calls that were executed more than once."""
    return {call for call, count in model.runs.items() if count > 1}


class TestContinueAsNew:
    @simulated
    async def test_each_round_begins_afresh_with_its_input(self) -> None:
        """One id, one log a round; the last round's result is the instance's."""
        town = Town()
        model.reset()
        await town.start(model.goes_round, 3, 0)
        assert await town.result_of() == 3
        await town.settled()
        assert await executions(town) == (1, 2, 3, 4)
        assert model.runs == {f"work round{n}": 1 for n in range(4)}
        assert max([len(await town.history_of("one", n)) for n in range(1, 5)]) < 8

    @simulated
    async def test_the_instance_runs_all_the_while(self) -> None:
        """Nobody sees an end between two rounds."""
        town = Town()
        await town.start(model.gathers_items, 4, [])
        seen = set()
        for number in range(4):
            for _ in range(30):
                seen.add((await town.status()).runtime_status)
                await asyncio.sleep(0)
            await town.raise_event("Item", f"i{number}", f"e{number}")
        assert await town.result_of() == ["i0", "i1", "i2", "i3"]
        assert seen <= {RuntimeStatus.PENDING, RuntimeStatus.RUNNING}

    @simulated
    async def test_unread_events_go_along_and_repetitions_are_known(self) -> None:
        """Raised before they are awaited; each with an id that is sent again later."""
        town = Town()
        await town.start(model.gathers_items, 4, [])
        for number in range(3):
            await town.raise_event("Item", f"i{number}", f"e{number}")
        for number in range(3):
            await town.raise_event("Item", "again", f"e{number}")
        await town.raise_event("Item", "i3", "e3")
        assert await town.result_of() == ["i0", "i1", "i2", "i3"]

    @simulated
    async def test_old_executions_are_removed_after_the_grace_period(self) -> None:
        """While the instance goes on, by its owner; not before."""
        town = Town(grace_s=3_600)
        await town.start(model.gathers_items, 5, [])
        for number in range(4):
            await town.raise_event("Item", f"i{number}", f"e{number}")
        await asyncio.sleep(3_000)
        assert await executions(town) == (1, 2, 3, 4, 5)
        await asyncio.sleep(1_500)
        assert await executions(town) == (5,)
        assert len(await runs_stored(town)) == 1
        await town.raise_event("Item", "i4", "e4")
        assert await town.result_of() == ["i0", "i1", "i2", "i3", "i4"]

    @simulated
    async def test_another_owner_removes_what_the_first_left(self) -> None:
        town = Town(grace_s=3_600)
        await town.start(model.gathers_items, 3, [])
        await town.raise_event("Item", "i0", "e0")
        await asyncio.sleep(10)
        await town.owners[-1].kill()
        assert await executions(town) == (1, 2)
        await asyncio.sleep(4_500)
        assert await executions(town) == (2,)

    @simulated
    async def test_what_an_ended_instance_left_is_removed_by_the_hub(self) -> None:
        """Its last execution stays until it is purged."""
        town = Town(grace_s=600)
        await town.start(model.goes_round, 3, 0)
        await town.result_of()
        await town.settled()
        await asyncio.sleep(700)
        assert await executions(town) == (4,)
        assert await town.result() == 3

    @simulated
    async def test_a_thousand_rounds_leave_what_one_does(self) -> None:
        """Storage does not grow, once the grace period is over."""
        town = Town(grace_s=0)
        await town.start(model.goes_round, 1_000, 0)
        assert await town.result_of() == 1_000
        await town.settled()
        await asyncio.sleep(5)
        assert await executions(town) == (1001,)
        assert len(await runs_stored(town)) == 1

    @simulated
    async def test_a_termination_that_comes_between_two_rounds_ends_the_next(self) -> None:
        """Whenever it comes, exactly one execution is the last, and it is terminated."""
        for delay in range(0, 60, 3):
            town = Town()
            await town.start(model.goes_round, 50, 0)
            for _ in range(delay):
                await asyncio.sleep(0)
            await town.command("one", "terminate", "stop", "r1", True)
            await town.settled()
            end = await town.hub.end("one")
            assert end is not None
            assert end.status is RuntimeStatus.TERMINATED
            await town.close()


async def collect(deaths: dict[int, bool]) -> int:
    """Three rounds with an event each, owners dying; how many operations that took."""
    model.reset()
    town = Town(deaths=deaths.items(), grace_s=5)
    await town.start(model.gathers_items, 3, [])

    async def raise_all() -> None:
        for number in range(3):
            await town.raise_event("Item", f"i{number}", f"e{number}")

    raising = asyncio.create_task(raise_all())
    assert await town.result_of() == ["i0", "i1", "i2"]
    await town.settled()
    raising.cancel()
    assert await list_open(town.objects, town.hub.keys) == []
    assert await summaries(town) == [("one", 3)]
    await town.close()
    return town.operations


def test_a_death_at_any_moment_leaves_one_line_of_executions() -> None:
    """At every operation, before and after its effect, and several in a row, while events are raised."""
    total = simulate(collect({}))
    for number in range(1, total + 1):
        for is_done in (False, True):
            simulate(collect({number: is_done}))
    for number in range(1, total + 1, 4):
        simulate(collect({number: True, number + 2: False, number + 5: True}))


class TestRestart:
    @simulated
    async def test_it_runs_again_with_the_same_input(self) -> None:
        town = Town()
        model.reset()
        await town.start(model.three_steps, ["a", "b"])
        await town.result_of()
        await town.settled()
        await town.restart()
        assert not (await town.status()).is_ended
        assert await town.result_of() == ["A", "B"]
        await town.settled()
        assert model.runs == {"work a": 2, "work b": 2}
        assert (await town.status()).execution == 2
        assert isinstance((await town.history_of("one", 1))[-1], ExecutionRestarted)

    @simulated
    async def test_asked_again_with_the_same_request_it_is_done_once(self) -> None:
        town = Town()
        await town.start(model.three_steps, ["a"])
        await town.result_of()
        await asyncio.gather(*(town.restart(request_id="same") for _ in range(3)))
        await town.result_of()
        await town.settled()
        await town.restart(request_id="same")
        assert (await town.status()).execution == 2

    @simulated
    async def test_of_racing_restarts_one_begins(self) -> None:
        """The others are told that it runs."""
        town = Town()
        await town.start(model.awaits_event, "Go")
        await town.raise_event("Go", 1, "e")
        await town.result_of()
        await town.settled()
        answers = await asyncio.gather(*(town.restart() for _ in range(4)), return_exceptions=True)
        assert sorted(type(answer).__name__ for answer in answers) == ["InstanceActiveError"] * 3 + ["NoneType"]
        assert (await town.status()).execution == 2

    @simulated
    async def test_what_runs_is_not_restarted(self) -> None:
        town = Town()
        await town.start(model.awaits_event, "Go")
        with pytest.raises(InstanceActiveError, match=r"'one' is (Pending|Running)"):
            await town.restart()

    @simulated
    async def test_one_that_begins_while_the_last_owner_leaves_is_not_lost(self) -> None:
        """Whatever the owner of the ended execution still does to the index."""
        for delay in range(40):
            town = Town()
            await town.start(model.three_steps, ["a"])
            await town.ended()
            for _ in range(delay):
                await asyncio.sleep(0)
            await town.restart()
            assert await town.result_of() == ["A"]
            await town.settled()
            assert await summaries(town) == [("one", 2)]
            await town.close()


class TestReuse:
    @staticmethod
    async def start(town: Town, text: str, *, reuses_ended: bool = True) -> None:
        encoded = town.hub.codec.encode_call(model.three_steps.calls, ([text],), {}, where="test")
        start = Start(instance_id="one", name="three_steps", input=encoded, request_id=f"start {text}")
        await start_instance(town.hub, start, now_us=town.clock.now_us(), reuses_ended=reuses_ended)

    @simulated
    async def test_an_ended_instance_is_followed_by_another_orchestrator(self) -> None:
        town = Town()
        await town.start(model.caller, "a")
        await town.result_of()
        await town.settled()
        await self.start(town, "b")
        assert await town.result_of() == ["B"]
        assert (await town.status()).name == "three_steps"

    @simulated
    async def test_what_runs_keeps_its_id(self) -> None:
        town = Town()
        await town.start(model.awaits_event, "Go")
        with pytest.raises(InstanceExistsError, match="already exists"):
            await self.start(town, "b")

    @simulated
    async def test_ended_ones_keep_theirs_if_asked(self) -> None:
        town = Town()
        await self.start(town, "a", reuses_ended=False)
        await town.result_of()
        await self.start(town, "a", reuses_ended=False)
        with pytest.raises(InstanceExistsError, match="already exists"):
            await self.start(town, "b", reuses_ended=False)
        assert (await town.status()).execution == 1


class TestRewind:
    @simulated
    async def test_only_what_failed_runs_again(self) -> None:
        town = Town()
        model.reset()
        model.broken.add("work b")
        await town.start(model.three_steps, ["a", "b", "c"])
        await town.ended()
        await town.settled()
        model.broken.clear()
        await town.rewind()
        assert await town.result_of() == ["A", "B", "C"]
        assert model.runs == {"work a": 1, "work b": 2, "work c": 1}
        assert any(isinstance(event, ExecutionRewound) for event in await town.history_of())

    @simulated
    async def test_results_that_came_beside_the_failure_are_kept(self) -> None:
        """Of calls side by side, only those run again that have no recorded result."""
        town = Town()
        model.reset()
        model.broken |= {"work b", "work d"}
        await town.start(model.side_by_side, ["a", "b", "c", "d"])
        await town.ended()
        await town.settled()
        model.broken.clear()
        await town.rewind()
        assert await town.result_of() == ["A", "B", "C", "D"]
        history = await town.history_of("one", 1)
        kept = sum(isinstance(event, TaskCompleted) for event in history)
        assert kept >= 1
        assert len(ran_again()) <= 4 - kept

    @simulated
    async def test_items_of_a_map_that_succeeded_are_kept(self) -> None:
        town = Town()
        # All items go to one worker, which brings all outcomes at once.
        town.workers.slot_count = 1
        model.reset()
        model.broken |= {"work n3"}
        names = [f"n{number}" for number in range(8)]
        await town.start(model.map_of_work, names)
        await town.ended()
        await town.settled()
        model.broken.clear()
        await town.rewind()
        assert await town.result_of() == [name.upper() for name in names]
        assert ran_again() == {"work n3"}

    @pytest.mark.parametrize("orchestrator", [model.compensates, model.conceals, model.counts_failures])
    @simulated
    async def test_what_failed_runs_again_though_the_code_raised_an_error_of_its_own(
        self, orchestrator: durable.Orchestrator[[list[str]], list[str]]
    ) -> None:
        """Whether that error shows what it came from or not."""
        town = Town()
        model.reset()
        model.broken.add("work b")
        await town.start(orchestrator, ["a", "b", "c"])
        await town.ended()
        await town.settled()
        model.broken.clear()
        await town.rewind()
        assert await town.result_of() == ["A", "B", "C"]
        assert ran_again() == {"work b"}

    @simulated
    async def test_a_failed_child_is_rewound_with_its_parent(self) -> None:
        town = Town()
        model.reset()
        model.broken.add("work c12")
        await town.start(model.clan, 3)
        await town.ended()
        await town.settled()
        model.broken.clear()
        await town.rewind()
        assert await town.result_of() == [f"<C{n}C{n}2>" for n in range(3)]
        await town.settled()
        assert ran_again() == {"work c12"}
        assert model.runs["work c12"] == 2

    @simulated
    async def test_it_can_be_done_again_and_again(self) -> None:
        town = Town()
        model.reset()
        model.broken |= {"work a", "work b"}
        await town.start(model.three_steps, ["a", "b", "c"])
        for mended in ("work a", "work b"):
            await town.ended()
            await town.settled()
            model.broken.discard(mended)
            await town.rewind()
        assert await town.result_of() == ["A", "B", "C"]
        assert model.runs == {"work a": 2, "work b": 2, "work c": 1}

    @simulated
    async def test_only_failed_instances_are_rewound(self) -> None:
        town = Town()
        await town.start(model.three_steps, ["a"])
        await town.result_of()
        with pytest.raises(ConfigurationError, match="only a failed one is rewound"):
            await town.rewind()

    def test_a_death_at_any_moment_changes_nothing(self) -> None:
        async def run(deaths: dict[int, bool]) -> int:
            model.reset()
            model.broken.add("work c12")
            town = Town(deaths=deaths.items())
            await town.start(model.clan, 2)
            await town.ended()
            await town.settled()
            model.broken.clear()
            await town.rewind()
            assert await town.result_of() == ["<C0C02>", "<C1C12>"]
            await town.settled()
            assert ran_again() == {"work c12"}
            await town.close()
            return town.operations

        for number in range(1, simulate(run({})) + 1):
            simulate(run({number: bool(number % 2)}))


class TestFork:
    @staticmethod
    async def fork(town: Town, new_id: str, through: int | None = None) -> None:
        await fork_instance(town.hub, "one", new_id, f"fork {new_id}", through=through, now_us=town.clock.now_us())

    @simulated
    async def test_it_goes_on_from_the_chosen_event(self) -> None:
        """What is before is not run again; what follows is, as often as anybody forks."""
        town = Town()
        model.reset()
        await town.start(model.three_steps, ["a", "b", "c"])
        await town.result_of()
        history = await town.history_of()
        first = next(event for event in history if isinstance(event, TaskCompleted))
        await self.fork(town, "two", first.number)
        assert await town.result_of("two") == ["A", "B", "C"]
        assert model.runs == {"work a": 1, "work b": 2, "work c": 2}
        await self.fork(town, "three")
        assert await town.result_of("three") == ["A", "B", "C"]
        assert model.runs == {"work a": 1, "work b": 2, "work c": 2}

    @simulated
    async def test_it_goes_on_from_an_earlier_execution(self) -> None:
        """As long as that is in storage: from before a rewind, or from a round that is over."""
        town = Town()
        model.reset()
        await town.start(model.goes_round, 3, 0)
        assert await town.result_of() == 3
        await town.settled()
        model.reset()
        await fork_instance(town.hub, "one", "two", "fork two", through=None, now_us=town.clock.now_us(), execution=3)
        assert await town.result_of("two") == 3
        assert model.runs == {"work round0": 1}, "the last round, behind the one that was copied with its result"
        with pytest.raises(InstanceNotFoundError, match="no execution 9 in storage"):
            await fork_instance(
                town.hub, "one", "three", "fork three", through=None, now_us=town.clock.now_us(), execution=9
            )

    @simulated
    async def test_the_source_goes_on_undisturbed(self) -> None:
        """Also when the fork waits for the same event."""
        town = Town()
        model.reset()
        await town.start(model.gates)
        await town.raise_event("Gate", "g0", "e0")
        await asyncio.sleep(10)
        await self.fork(town, "two")
        await town.raise_event("Gate", "theirs", "e1", "two")
        await town.raise_event("Gate", "ours", "e1")
        assert await town.result_of("two") == ["g0", "GATE0", "theirs", "GATE1"]
        assert await town.result_of("one") == ["g0", "GATE0", "ours", "GATE1"]

    @simulated
    async def test_a_fork_has_children_of_its_own(self) -> None:
        """Also where the call asked for an id."""
        town = Town()
        await town.start(model.parent_of_waiting, "leaf")
        await town.until(lambda: town.living("leaf"))
        await self.fork(town, "two")
        await asyncio.sleep(10)
        (theirs,) = {owner.instance.instance_id for owner in town.owners if ":" in owner.instance.instance_id}
        assert theirs.startswith("two:")
        await town.raise_event("Go", "theirs", "e", theirs)
        assert await town.result_of("two") == "theirs"
        await town.raise_event("Go", "ours", "e", "leaf")
        assert await town.result_of("one") == "ours"

    @simulated
    async def test_a_fork_that_is_rewound_keeps_its_children(self, tmp_path: Path) -> None:
        """What it copied called an instance by its id: that one is the original's, and stays so."""
        town = Town()
        model.reset()
        await town.start(model.waits_for_named_and_works, "kid")
        await town.until(lambda: town.living("kid"))
        await self.fork(town, "two")
        await asyncio.sleep(10)
        (theirs,) = {owner.instance.instance_id for owner in town.owners if ":" in owner.instance.instance_id}
        model.broken.add("work side")
        await town.raise_event("Work", None, "w", "two")
        await town.ended("two")
        await town.until(lambda: town.living("two") is None)
        model.broken.clear()
        await town.rewind("two")
        await asyncio.sleep(10)
        owner = town.living("two")
        assert owner is not None
        waits = [waiting.instance_id for waiting in (await owner.instance.explain()).waiting if waiting.instance_id]
        assert waits == [theirs]
        await town.raise_event("Go", "theirs", "e", theirs)
        assert await town.result_of("two") == ["SIDE", "theirs"]
        await town.raise_event("Work", None, "w")
        await town.raise_event("Go", "ours", "e", "kid")
        assert await town.result_of() == ["SIDE", "ours"]
        await town.settled()
        assert complaints(town, tmp_path) == []

    @pytest.mark.parametrize("is_rewound", [False, True])
    @simulated
    async def test_a_fork_of_a_failure_keeps_its_children(self, is_rewound: bool, tmp_path: Path) -> None:
        """Rewound, it loses the end of what it copied, also where that was rewound before."""
        town = Town()
        model.reset()
        model.broken.add("work side")
        await town.start(model.waits_for_named_and_works, "kid")
        await town.raise_event("Work", None, "w")
        await town.ended()
        if is_rewound:
            await town.until(lambda: town.living("one") is None)
            await town.rewind()
            await town.ended()
        await self.fork(town, "two")
        await town.ended("two")
        await town.until(lambda: town.living("two") is None)
        model.broken.clear()
        await town.rewind("two")
        await asyncio.sleep(10)
        (theirs,) = {owner.instance.instance_id for owner in town.owners if ":" in owner.instance.instance_id}
        await town.raise_event("Go", "theirs", "e", theirs)
        assert await town.result_of("two") == ["SIDE", "theirs"]
        await town.raise_event("Go", "ours", "e", "kid")
        await town.settled()
        assert complaints(town, tmp_path) == []

    @simulated
    async def test_a_fork_is_as_old_as_itself(self, tmp_path: Path) -> None:
        """It was created when it was forked: before its first owner, with it, and at its end."""
        town = Town()
        model.reset()
        await town.start(model.awaits_event, "Go")
        await asyncio.sleep(1_000)
        forked_us = town.clock.now_us()
        await self.fork(town, "two")
        created = {(await town.status("two")).created_us}
        await asyncio.sleep(100)
        created.add((await town.status("two")).created_us)
        await town.raise_event("Go", 1, "e", "two")
        await town.ended("two")
        created.add((await town.status("two")).created_us)
        await town.raise_event("Go", 1, "e")
        await town.settled()
        assert created == {forked_us}
        assert [instance for instance, _ in await summaries(town)] == ["one", "two"]
        await town.restart("two")
        await town.raise_event("Go", 1, "e2", "two")
        await town.settled()
        assert [instance for instance, _ in await summaries(town)] == ["one", "two"]
        assert complaints(town, tmp_path) == []

    @simulated
    async def test_events_that_are_not_there_are_named(self) -> None:
        town = Town()
        await town.start(model.three_steps, ["a"])
        await town.result_of()
        with pytest.raises(ConfigurationError, match="after events 1 to"):
            await self.fork(town, "two", 1_000)
        with pytest.raises(InstanceExistsError):
            await self.fork(town, "one")


class TestPurge:
    @staticmethod
    async def purge(town: Town) -> None:
        await purge_instance(town.hub, "one", now_us=town.clock.now_us())

    @simulated
    async def test_it_is_gone_at_once_and_its_objects_after_the_grace_period(self) -> None:
        town = Town(grace_s=3_600)
        await town.start(model.goes_round, 2, 0)
        await town.result_of()
        await town.settled()
        await self.purge(town)
        with pytest.raises(InstanceNotFoundError):
            await town.status()
        assert await summaries(town) == []
        assert await runs_stored(town)
        await asyncio.sleep(4_000)
        assert await runs_stored(town) == []
        assert await town.objects.list_folder(town.hub.keys.executions("one")) == ["purged.000003"]

    @simulated
    async def test_execution_numbers_never_start_again(self) -> None:
        """An id that is used after a purge goes on where it was, before and after the grace period."""
        town = Town(grace_s=100)
        for number in (1, 2):
            await town.start(model.three_steps, ["a"])
            await town.result_of()
            await town.settled()
            assert (await town.status()).execution == number
            await self.purge(town)
            await asyncio.sleep(200 * (number - 1))
        await town.start(model.three_steps, ["b"])
        assert await town.result_of() == ["B"]
        assert (await town.status()).execution == 3

    @simulated
    async def test_what_has_not_ended_is_not_purged(self) -> None:
        town = Town()
        await town.start(model.awaits_event, "Go")
        with pytest.raises(InstanceActiveError, match="terminate it first"):
            await self.purge(town)
        with pytest.raises(InstanceNotFoundError):
            await purge_instance(town.hub, "nobody", now_us=town.clock.now_us())


class TestSuspension:
    @simulated
    async def test_nothing_happens_until_it_is_resumed(self) -> None:
        """Events are kept in order; then all take effect."""
        town = Town()
        model.reset()
        await town.start(model.gates)
        await town.command("one", "suspend", "wait", "s1")
        assert (await town.status()).runtime_status == RuntimeStatus.SUSPENDED
        await town.raise_event("Gate", 1, "e1")
        await town.raise_event("Gate", 2, "e2")
        await asyncio.sleep(10_000)
        assert not model.runs
        await town.command("one", "resume", "go", "r1")
        assert await town.result_of() == [1, "GATE0", 2, "GATE1"]

    @simulated
    async def test_each_command_may_be_given_twice(self) -> None:
        town = Town()
        await town.start(model.gates)
        for _ in range(2):
            await town.command("one", "suspend", "wait", "s")
        for _ in range(2):
            await town.command("one", "resume", "go", "r")
        assert (await town.status()).runtime_status == RuntimeStatus.RUNNING
        await town.command("one", "terminate", "stop", "t", True)
        with pytest.raises(InstanceEndedError):
            await town.command("one", "suspend", "late", "s2")

    @simulated
    async def test_a_suspended_instance_can_be_terminated(self) -> None:
        town = Town()
        await town.start(model.gates)
        await town.command("one", "suspend", "wait", "s")
        await town.command("one", "terminate", "stop", "t", True)
        await town.settled()
        assert (await town.status()).runtime_status == RuntimeStatus.TERMINATED

    def test_a_death_at_any_moment_changes_nothing(self) -> None:
        async def run(deaths: dict[int, bool]) -> int:
            model.reset()
            town = Town(deaths=deaths.items())
            await town.start(model.gates)
            await town.command("one", "suspend", "wait", "s1")
            await town.raise_event("Gate", 1, "e1")
            await town.raise_event("Gate", 2, "e2")
            await town.command("one", "resume", "go", "r1")
            assert await town.result_of() == [1, "GATE0", 2, "GATE1"]
            await town.settled()
            assert set(model.runs.values()) == {1}
            events = [event for event in await town.history_of() if isinstance(event, EventRaised)]
            assert len(events) == 2
            await town.close()
            return town.operations

        for number in range(1, simulate(run({})) + 1):
            simulate(run({number: bool(number % 2)}))
