"""Repair of the index: whatever is lost, false or put back there, instances go on and are listed, and logs decide."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import ray_durable as durable
from ray_durable.runtime.index_repair import IndexRepair, RepairReport, repair_index
from ray_durable.runtime.lifecycle import purge_instance
from ray_durable.storage import (
    encode_segment,
    ended_names,
    find_open,
    list_ended,
    list_executions,
    list_instances,
    list_open,
    remove_open,
)
from tests.runtime import flows, model
from tests.support.checking import complaints
from tests.support.skipping_loop import simulated
from tests.support.town import Town
from tests.support.world import SpyStore

GRACE_S = 600.0
LONG_ID = "photos of the year, " * 12


@durable.orchestrator
async def awaits_two(ctx: durable.OrchestrationContext) -> None:
    """Waits for two events."""
    for _ in range(2):
        await ctx.wait_for_external_event("Go")


class Mender:
    """The chore and the operator's command, over one town."""

    def __init__(self, town: Town, store: SpyStore | None = None) -> None:
        self.town = town
        self.store = store or SpyStore(town.objects)
        self.hub = town.open_hub(self.store)
        self.hub._settings = {"grace_s": GRACE_S}
        self.woken: list[str] = []
        self.chore = IndexRepair(self.hub, town.clock, self._entries, self._wake)

    async def _entries(self) -> Any:
        return await list_open(self.store, self.hub.keys)

    async def _wake(self, instance_id: str) -> None:
        self.woken.append(instance_id)
        await self.town.supervisor.admit(instance_id)

    async def by_names(self) -> RepairReport:
        return await self.chore.look_through()

    async def by_logs(self) -> RepairReport:
        return await repair_index(self.hub, self.town.clock, self._wake)

    @property
    def writes(self) -> int:
        return len(self.store.writes)


@pytest.fixture(autouse=True)
def _fresh_model() -> None:
    model.reset()


async def listed(town: Town) -> dict[str, str]:
    """The ended instances that a listing shows, and how they ended."""
    page = await list_ended(town.objects, town.hub.keys)
    counts = Counter(summary["instance"] for summary in page.summaries)
    assert set(counts.values()) <= {1}
    return {summary["instance"]: summary["runtime_status"] for summary in page.summaries}


async def is_open(town: Town, instance_id: str = "one") -> bool:
    return await find_open(town.objects, town.hub.keys, instance_id) is not None


async def drop_owner(town: Town, instance_id: str = "one") -> None:
    """Its actor dies, and nobody makes another one: nobody knows of it."""
    owner = town.living(instance_id)
    assert owner is not None
    await owner.kill()


async def change(town: Town, key: str, **fields: Any) -> None:
    """Overwrite fields of an object of the index."""
    found = json.loads(await town.objects.get(key) or b"{}")
    await town.objects.put(key, json.dumps({**found, **fields}).encode())


async def until_passive(town: Town, instance_id: str = "one") -> None:
    """Wait until an instance rests."""
    async with asyncio.timeout(600):
        while True:
            entry = await find_open(town.objects, town.hub.keys, instance_id)
            if entry is not None and entry.wake is not None and town.living(instance_id) is None:
                return
            await asyncio.sleep(0.5)


@pytest.mark.parametrize("way", ["by_names", "by_logs"])
class TestLost:
    """What was in the index and is not any more."""

    @simulated
    async def test_the_whole_index_is_made_again(self, way: str, tmp_path: Path) -> None:
        """Everything goes on, everything that has ended is listed, and what was purged stays away."""
        town = Town(idle_s=10.0, grace_s=GRACE_S)
        await town.start(model.awaits_event, "Go")
        await town.start(model.awaits_event, "Go", instance_id=LONG_ID)
        await town.start(flows.sleeps, 5_000, instance_id="sleeper")
        await town.start(model.child, "x", instance_id="done")
        await town.start(model.clan, 2, instance_id="clan")
        await town.start(model.goes_round, 3, 0, instance_id="rounds")
        await town.start(model.child, "y", instance_id="purged")
        for instance_id in ("done", "clan", "rounds", "purged"):
            await town.ended(instance_id)
        await purge_instance(town.hub, "purged", now_us=town.clock.now_us())
        for instance_id in ("one", LONG_ID, "sleeper"):
            await until_passive(town, instance_id)
        before = await listed(town)
        index = [f"hub/index/{name}" for name in await town.objects.list_tree("hub/index/")]
        await town.objects.delete_many(index)
        town.lose_supervisor()
        await asyncio.sleep(30)
        assert town.living("sleeper") is None

        report = await getattr(Mender(town), way)()
        assert not report.unreadable
        assert report.instances == 11
        await asyncio.sleep(60)
        assert await listed(town) == before
        await town.raise_event("Go", 1, "e1")
        await town.raise_event("Go", 2, "e2", LONG_ID)
        await town.settled()
        assert await town.result() == 1
        assert await town.result(LONG_ID) == 2
        assert sorted(await listed(town)) == sorted([*before, "one", LONG_ID, "sleeper"])
        assert complaints(town, tmp_path) == []
        await asyncio.sleep(2 * GRACE_S)
        assert await town.objects.list_tree("hub/index/retired/") == []
        assert [name for name in await town.objects.list_tree("hub/instances/") if "purged" in name] != []
        await town.close()

    @simulated
    async def test_one_that_has_not_ended_is_entered(self, way: str) -> None:
        """Its entry was removed by a request that had been given up: nobody would have found it."""
        town = Town()
        await town.start(model.awaits_event, "Go")
        await asyncio.sleep(5)
        await remove_open(town.objects, town.hub.keys, "one")
        await drop_owner(town)
        await asyncio.sleep(60)
        assert town.living("one") is None
        report = await getattr(Mender(town), way)()
        assert report.mended == ("one: entered into the open set, since it has not ended",)
        await asyncio.sleep(5)
        assert town.living("one") is not None
        await town.close()

    @simulated
    async def test_one_that_was_restarted_is_entered(self, way: str) -> None:
        """The removal of its entry by the execution before came late; the false summary of that goes."""
        town = Town()
        await town.start(model.awaits_event, "Go")
        await town.raise_event("Go", 1, "e1")
        await town.settled()
        (key,) = await town.objects.list_tree("hub/index/ended/")
        summary = await town.objects.get(f"hub/index/ended/{key}")
        assert summary is not None
        await town.restart()
        await asyncio.sleep(5)
        await town.objects.put(f"hub/index/ended/{key}", summary)
        await remove_open(town.objects, town.hub.keys, "one")
        await drop_owner(town)
        report = await getattr(Mender(town), way)()
        assert len(report.mended) == 2
        await asyncio.sleep(5)
        assert town.living("one") is not None
        assert await listed(town) == {}
        await town.raise_event("Go", 2, "e2")
        await town.settled()
        assert await town.result() == 2
        await town.close()

    @simulated
    async def test_a_link_without_what_it_names_is_followed(self, way: str) -> None:
        """Whoever restarted it died before it made the next execution, and the entry was lost."""
        town = Town()
        await town.start(model.child, "x")
        await town.settled()
        hub = town.open_hub(SpyStore(town.objects))

        async def dies(operation: str, key: str) -> None:
            if key.endswith("/000002"):
                raise asyncio.CancelledError

        spy = SpyStore(town.objects)
        spy.before = dies
        hub = town.open_hub(spy)
        town.hub, whole = hub, town.hub
        with pytest.raises(asyncio.CancelledError):
            await town.restart()
        town.hub = whole
        await remove_open(town.objects, town.hub.keys, "one")
        await getattr(Mender(town), way)()
        await town.settled()
        assert await town.objects.get(town.hub.keys.execution("one", 2)) is not None
        assert await listed(town) == {"one": "Completed"}
        await town.close()

    @simulated
    async def test_the_end_of_a_child_is_brought_again(self, way: str) -> None:
        """Neither entry nor summary: whether its parent knows of its end, its own log does not tell."""
        town = Town()
        await town.start(model.caller, "x")
        await town.settled()
        (key,) = [name for name in await town.objects.list_tree("hub/index/ended/") if "one%3a" in name]
        await town.objects.delete_many([f"hub/index/ended/{key}"])
        report = await getattr(Mender(town), way)()
        assert [line.partition(": ")[2] for line in report.mended] == [
            "entered into the open set, to do what is left to do at its end"
        ]
        await town.settled()
        assert len(await listed(town)) == 2
        await town.close()

    @simulated
    async def test_what_was_purged_is_removed_after_all(self, way: str) -> None:
        """Its place in the queue of removals was lost."""
        town = Town(grace_s=GRACE_S)
        await town.start(model.child, "x")
        await town.settled()
        await purge_instance(town.hub, "one", now_us=town.clock.now_us())
        await town.objects.delete_many(
            [f"hub/index/retired/{(await town.objects.list_folder('hub/index/retired/'))[0]}"]
        )
        report = await getattr(Mender(town), way)()
        assert report.mended == ("one: queued the removal of its executions up to 1",)
        await asyncio.sleep(2 * GRACE_S)
        assert await town.objects.list_tree("hub/runs/") == []
        await town.close()

    @simulated
    async def test_executions_that_another_one_followed_are_removed_after_all(self, way: str) -> None:
        """The instance has ended, and its place in the queue of removals was lost: the last execution stays."""
        town = Town(grace_s=GRACE_S)
        await town.start(model.goes_round, 2, 0)
        await town.settled()
        (queued,) = await town.objects.list_tree("hub/index/retired/")
        await town.objects.delete_many([f"hub/index/retired/{queued}"])
        report = await getattr(Mender(town), way)()
        assert report.mended == ("one: queued the removal of its executions up to 2",)
        await asyncio.sleep(2 * GRACE_S)
        assert (await list_executions(town.objects, town.hub.keys, "one")).numbers == (3,)
        assert await town.result() == 2
        await town.close()


@pytest.mark.parametrize("way", ["by_names", "by_logs"])
class TestFalse:
    """What is in the index and is not so."""

    @simulated
    async def test_a_summary_of_what_goes_on_is_removed(self, way: str) -> None:
        """A request of the execution before was carried out late."""
        town = Town()
        await town.start(model.child, "x")
        await town.settled()
        (key,) = await town.objects.list_tree("hub/index/ended/")
        old = await town.objects.get(f"hub/index/ended/{key}")
        assert old is not None
        await asyncio.sleep(10)
        await town.restart()
        await town.settled()
        await town.objects.put(f"hub/index/ended/{key}", old)
        report = await getattr(Mender(town), way)()
        assert report.mended == ("one: removed a summary of what is not its end",)
        assert await listed(town) == {"one": "Completed"}
        assert (await town.objects.list_tree("hub/index/ended/")) != [key]
        await town.close()

    @simulated
    async def test_a_summary_of_what_was_purged_is_removed(self, way: str) -> None:
        town = Town()
        await town.start(model.child, "x")
        await town.settled()
        (key,) = await town.objects.list_tree("hub/index/ended/")
        old = await town.objects.get(f"hub/index/ended/{key}")
        assert old is not None
        await purge_instance(town.hub, "one", now_us=town.clock.now_us())
        await town.objects.put(f"hub/index/ended/{key}", old)
        ghost = key.replace(".one", ".ghost")
        await town.objects.put(f"hub/index/ended/{ghost}", old.replace(b'"one"', b'"ghost"'))
        report = await getattr(Mender(town), way)()
        assert sorted(report.mended) == [
            "ghost: removed a summary that no instance stands behind",
            "one: removed a summary of what is not its end",
        ]
        assert await town.objects.list_tree("hub/index/ended/") == []
        await town.close()

    @simulated
    async def test_an_entry_that_cannot_be_read_is_written_anew(self, way: str) -> None:
        """It is no entry for anybody, and its instance would never have gone on."""
        town = Town()
        await town.start(model.awaits_event, "Go")
        await asyncio.sleep(5)
        await town.objects.put(town.hub.keys.open_entry("one"), b"\xff not an entry")
        await drop_owner(town)
        town.lose_supervisor()
        await asyncio.sleep(30)
        assert town.living("one") is None
        await getattr(Mender(town), way)()
        await asyncio.sleep(5)
        assert town.living("one") is not None
        await town.close()


class TestByLogs:
    """What names do not show."""

    @simulated
    async def test_what_is_right_is_found_right_again(self) -> None:
        """Also what was purged, and removed, long ago: only its tombstone is there, and nothing is left to remove."""
        town = Town(grace_s=GRACE_S)
        for instance_id in ("one", "gone"):
            await town.start(model.child, "x", instance_id=instance_id)
        await town.settled()
        await purge_instance(town.hub, "gone", now_us=town.clock.now_us())
        await asyncio.sleep(2 * GRACE_S)
        mender = Mender(town)
        assert await mender.by_logs() == RepairReport(instances=2, mended=(), unreadable=())
        assert mender.writes == 0
        await town.close()

    @simulated
    async def test_a_summary_of_a_long_id_that_is_gone_is_removed(self) -> None:
        """Its name was shortened, and nothing tells whose it was."""
        town = Town(grace_s=GRACE_S)
        await town.start(model.child, "x", instance_id=LONG_ID)
        await town.settled()
        (key,) = await town.objects.list_tree("hub/index/ended/")
        summary = await town.objects.get(f"hub/index/ended/{key}")
        assert summary is not None
        await purge_instance(town.hub, LONG_ID, now_us=town.clock.now_us())
        await asyncio.sleep(2 * GRACE_S)
        await town.objects.put(f"hub/index/ended/{key}", summary)
        assert len((await Mender(town).by_logs()).mended) == 1
        assert await town.objects.list_tree("hub/index/ended/") == []
        await town.close()

    @simulated
    async def test_a_summary_that_tells_something_else_is_written_anew(self) -> None:
        town = Town()
        await town.start(model.child, "x")
        await town.settled()
        (key,) = await town.objects.list_tree("hub/index/ended/")
        right = json.loads(await town.objects.get(f"hub/index/ended/{key}") or b"")
        await change(town, f"hub/index/ended/{key}", custom_status="made up", updated_us=5)
        mender = Mender(town)
        report = await mender.by_logs()
        assert report.mended == ("one: listed among those that have ended",)
        assert json.loads(await town.objects.get(f"hub/index/ended/{key}") or b"") == right
        await town.close()

    @pytest.mark.parametrize("hint", [{"due_us": None}, {"due_us": 2**52}, {"tail_seq": 99}])
    @simulated
    async def test_a_hint_that_keeps_an_instance_from_its_timer_is_removed(self, hint: dict[str, Any]) -> None:
        """It fires in time; the supervisor had read the hint already."""
        town = Town(idle_s=10.0)
        await town.start(flows.sleeps, 5_000)
        due_us = town.clock.now_us() + 5_000_000_000
        await until_passive(town)
        entry = json.loads(await town.objects.get(town.hub.keys.open_entry("one")) or b"")
        entry["wake"].update(hint)
        if hint.get("due_us", "") is None:
            del entry["wake"]["due_us"]
        await town.objects.put(town.hub.keys.open_entry("one"), json.dumps(entry).encode())
        town.lose_supervisor()
        await asyncio.sleep(100)
        assert town.living("one") is None
        mender = Mender(town)
        report = await mender.by_logs()
        assert report.mended == ("one: removed a hint that would have kept it from going on",)
        assert mender.woken == ["one"]
        await town.ended()
        assert town.clock.now_us() - due_us < 10_000_000
        await town.close()

    @simulated
    async def test_a_right_hint_is_left_alone(self) -> None:
        """Also that of one which waits for no time."""
        town = Town(idle_s=10.0)
        await town.start(flows.sleeps, 5_000)
        await town.start(model.awaits_event, "Go", instance_id="two")
        await until_passive(town)
        await until_passive(town, "two")
        mender = Mender(town)
        assert (await mender.by_logs()).mended == ()
        assert mender.writes == 0
        await town.close()


class TestCost:
    """What a look costs when all is well."""

    @simulated
    async def test_instances_that_are_as_they_should_be_are_not_read(self) -> None:
        """Ended or open: names are listed, and no object is read but the entries of the open set."""
        town = Town(idle_s=10.0)
        for number in range(20):
            await town.start(model.child, "x", instance_id=f"done {number}")
        await town.start(model.awaits_event, "Go")
        for number in range(20):
            await town.ended(f"done {number}")
        await until_passive(town)
        mender = Mender(town)
        assert await mender.by_names() == RepairReport(instances=21, mended=(), unreadable=())
        assert Counter(operation for operation, _ in mender.store.calls)["get"] == 1
        assert mender.writes == 0
        await town.close()

    @simulated
    async def test_what_names_do_not_clear_is_read_once(self) -> None:
        """One that was restarted has two executions until the first is removed."""
        town = Town()
        await town.start(model.child, "x")
        await town.settled()
        await town.restart()
        await town.settled()
        mender = Mender(town)
        assert (await mender.by_names()).mended == ()
        assert any("/instances/" in key for operation, key in mender.store.calls if operation == "get")
        mender.store.calls.clear()
        assert (await mender.by_names()).mended == ()
        assert [call for call in mender.store.calls if call[0] == "get"] == []
        await town.close()

    @simulated
    async def test_what_is_gone_is_forgotten(self) -> None:
        """A supervisor lives for months: it remembers no more than there is."""
        town = Town(grace_s=GRACE_S)
        await town.start(model.child, "x")
        await town.settled()
        await town.restart()
        await town.settled()
        mender = Mender(town)
        await mender.by_names()
        assert len(mender.chore._sound) == 1
        await purge_instance(town.hub, "one", now_us=town.clock.now_us())
        await asyncio.sleep(2 * GRACE_S)
        await mender.by_names()
        assert mender.chore._sound == {}
        await town.close()

    @simulated
    async def test_others_have_their_turn(self) -> None:
        """A look at many names does not keep the loop: who works there waits for one folder at most."""
        town = Town()
        for number in range(20_000):
            await town.objects.put(f"hub/index/ended/20251124/{number:013}.completed.x{number}", b"{}")
        for number in range(50):
            await town.objects.put(town.hub.keys.execution(f"x{number}", 1), b"{}")
        turns = 0

        async def work() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        task = asyncio.ensure_future(work())
        assert len(await ended_names(town.objects, town.hub.keys)) == 20_000
        assert turns >= 4
        turns = 0
        assert len([names async for names in list_instances(town.objects, town.hub.keys)]) == 50
        assert turns >= len(await town.objects.list_folder("hub/instances/"))
        task.cancel()
        await town.close()


class TestMeanwhile:
    """What goes on while it looks, and what it must not touch."""

    @pytest.mark.parametrize("way", ["by_names", "by_logs"])
    @pytest.mark.parametrize("number", range(1, 9))
    @simulated
    async def test_one_that_is_purged_just_now_keeps_nobody_waiting(self, way: str, number: int) -> None:
        """At any read, with a grace period that is over at once: the others are mended."""
        town = Town(grace_s=0.0)
        await town.start(model.child, "x", instance_id="one")
        await town.settled()
        await town.restart()
        await town.settled()
        await town.start(model.awaits_event, "Go", instance_id="two")
        await asyncio.sleep(20)
        await remove_open(town.objects, town.hub.keys, "two")
        mender = Mender(town)
        reads = 0

        async def purges(operation: str, key: str) -> None:
            nonlocal reads
            reads += operation == "get" or ("/instances/" in key and key.endswith("/one/"))
            if reads == number:
                reads += 100
                await purge_instance(town.hub, "one", now_us=town.clock.now_us())
                await asyncio.sleep(20)

        mender.store.before = purges
        report = await getattr(mender, way)()
        assert await is_open(town, "two")
        assert report.unreadable == ()
        await mender.by_names()
        assert await listed(town) == {}
        await town.close()

    @simulated
    async def test_a_hint_that_is_left_just_now_stays(self) -> None:
        """It names an end of the log that was not there yet."""
        town = Town(idle_s=10.0)
        await town.start(awaits_two)
        await until_passive(town)
        mender = Mender(town)
        reads = 0

        async def goes_on(operation: str, key: str) -> None:
            nonlocal reads
            reads += operation == "get" and key == town.hub.keys.open_entry("one")
            # The first is for the listing, the second after a look at the log.
            if reads == 2:
                reads += 100
                await town.raise_event("Go", 1, "e1")
                await asyncio.sleep(1)
                await until_passive(town)

        mender.store.before = goes_on
        assert (await mender.by_logs()).mended == ()
        assert reads > 100
        assert mender.woken == []
        await town.close()

    @simulated
    async def test_a_log_of_another_program_keeps_it_from_no_other(self) -> None:
        """Its bytes are right, and its status is none."""
        town = Town()
        await town.start(model.child, "x")
        await town.settled()
        tail = await town.hub.tail("one")
        header = dataclasses.replace(tail.header, status={"created_us": "yesterday"})
        data, _ = encode_segment(tail.key, header, tail.lines, tail.sections)
        await town.objects.put(tail.key, data)
        await town.start(model.awaits_event, "Go", instance_id="two")
        await asyncio.sleep(20)
        for way in ("by_names", "by_logs"):
            await remove_open(town.objects, town.hub.keys, "two")
            index = [f"hub/index/ended/{name}" for name in await town.objects.list_tree("hub/index/ended/")]
            await town.objects.delete_many(index)
            report = await getattr(Mender(town), way)()
            assert report.unreadable == ("one",)
            assert await is_open(town, "two")
        await town.close()

    @simulated
    async def test_a_long_id_is_known_by_its_older_executions(self) -> None:
        """Its name was shortened, and the newest one is damaged."""
        town = Town()
        await town.start(model.child, "x", instance_id=LONG_ID)
        await town.settled()
        await town.restart(LONG_ID)
        await town.settled()
        await town.objects.put(town.hub.keys.execution(LONG_ID, 2), b"damaged")
        assert (await Mender(town).by_logs()).unreadable == (LONG_ID,)
        await town.close()

    @simulated
    async def test_one_that_ends_just_now_is_not_left_open(self) -> None:
        """It is entered although it has ended by then: an owner is made, and takes it out again."""
        town = Town()
        await town.start(model.awaits_event, "Go")
        await asyncio.sleep(5)
        await remove_open(town.objects, town.hub.keys, "one")
        mender = Mender(town)
        done = False

        async def ends(operation: str, key: str) -> None:
            nonlocal done
            if operation == "put" and key == town.hub.keys.open_entry("one") and not done:
                done = True
                owner = town.living("one")
                assert owner is not None
                await owner.instance.raise_event("Go", town.encoded(1), "e1")
                await owner.ended()

        mender.store.before = ends
        await mender.by_names()
        assert done
        assert await is_open(town)
        await town.settled()
        assert await listed(town) == {"one": "Completed"}
        await town.close()

    @simulated
    async def test_a_new_end_of_the_same_name_is_listed_again(self) -> None:
        """The instance was rewound and failed again, just before the summary of its first failure is removed."""
        town = Town()
        model.broken.add("work x")
        await town.start(model.child, "x")
        await town.settled()
        (key,) = await town.objects.list_tree("hub/index/ended/")
        old = await town.objects.get(f"hub/index/ended/{key}")
        assert old is not None
        town.workers.holds = lambda work: True
        await town.rewind()
        await asyncio.sleep(5)
        await town.objects.put(f"hub/index/ended/{key}", old)
        mender = Mender(town)

        async def fails_again(operation: str, name: str) -> None:
            if operation == "delete" and town.workers.held:
                town.workers.holds = lambda work: False
                for started in list(town.workers.held):
                    started.finish()
                await town.settled()
                assert await listed(town) == {"one": "Failed"}

        mender.store.before = fails_again
        await mender.by_names()
        await town.settled()
        assert await listed(town) == {"one": "Failed"}
        summary = json.loads(await town.objects.get(f"hub/index/ended/{key}") or b"")
        assert summary["execution"] == 2
        await town.close()

    @simulated
    async def test_a_damaged_log_is_named_and_left(self) -> None:
        """Nobody knows whether it has ended."""
        town = Town()
        await town.start(model.child, "x")
        await town.settled()
        (key,) = await town.objects.list_tree("hub/index/ended/")
        log = [f"hub/runs/{name}" for name in await town.objects.list_tree("hub/runs/")]
        await town.objects.put(log[-1], b"damaged")
        mender = Mender(town)
        report = await mender.by_logs()
        assert report == RepairReport(instances=1, mended=(), unreadable=("one",))
        assert await town.objects.list_tree("hub/index/ended/") == [key]
        await town.close()

    @simulated
    async def test_foreign_names_are_passed_over(self) -> None:
        town = Town()
        await town.objects.put("hub/instances/zz/what/000001", b"x")
        await town.objects.put("hub/instances/zz/one/000001", b"x")
        await town.objects.put("hub/instances/note.txt", b"x")
        await town.objects.put("hub/instances/00/%zz/000001", b"x")
        await town.objects.put(f"hub/instances/00/{'a' * 60}%%{'0' * 64}/000001", b"[1]")
        await town.objects.put("hub/index/ended/20260101/what", b"x")
        await town.objects.put("hub/index/ended/notes", b"x")
        for number in ("0000001", "000001/x", "purged.0000009"):
            await town.objects.put(f"{town.hub.keys.executions('ghost')}{number}", b"x")
        for way in ("by_names", "by_logs"):
            report = await getattr(Mender(town), way)()
            assert (report.mended, report.unreadable) == ((), ())
        await town.close()
