"""Schedules: each firing starts one instance, whatever dies and whoever else looks; overlaps, gaps and changes."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from ray_durable import registry
from ray_durable.engine import RuntimeStatus
from ray_durable.errors import ClusterConnectionError, PayloadTooLargeError, ScheduleNotFoundError
from ray_durable.runtime.firing import FireSchedules
from ray_durable.runtime.hub import OpenHub
from ray_durable.runtime.lifecycle import purge_instance
from ray_durable.runtime.schedules import (
    Overlap,
    Schedule,
    ScheduleStatus,
    define_schedule,
    delete_schedule,
    load_schedule,
    pause_schedule,
    resume_schedule,
    schedule_statuses,
    status_of,
    trigger_schedule,
)
from ray_durable.runtime.status import InstanceStatus
from ray_durable.storage import list_ended, list_open
from tests.runtime import model
from tests.support.checking import complaints
from tests.support.skipping_loop import simulate, simulated
from tests.support.town import Town
from tests.support.world import SpyStore, never

DAY_US = 24 * 3_600 * 1_000_000


class Instances:
    """`ScheduledInstances` of a town. `deaf`: nobody answers."""

    def __init__(self, town: Town) -> None:
        self.town = town
        self.deaf = False

    async def admit(self, instance_id: str) -> None:
        if self.deaf:
            raise ClusterConnectionError("nobody answers")
        self.town.admit(instance_id)

    async def terminate(self, instance_id: str, reason: str, request_id: str) -> None:
        if self.deaf:
            raise ClusterConnectionError("nobody answers")
        await self.town.command(instance_id, "terminate", reason, request_id)


class Calendar:
    """A town whose supervisor fires schedules."""

    def __init__(self) -> None:
        model.reset()
        self.town = Town()
        self.hub = self.town.hub
        self.instances = Instances(self.town)
        self.supervising: list[asyncio.Task[None]] = []
        self.supervise()

    def supervise(self, hub: OpenHub | None = None) -> asyncio.Task[None]:
        """Another supervisor's chore."""
        chore = FireSchedules(hub or self.hub, self.town.clock, self.instances)
        self.supervising.append(asyncio.get_running_loop().create_task(chore.run()))
        return self.supervising[-1]

    async def lose_supervisors(self) -> None:
        for task in self.supervising:
            task.cancel()
        await asyncio.gather(*self.supervising, return_exceptions=True)

    async def define(
        self, cron: str = "* * * * *", function: Any = model.child, *args: Any, overlap: Overlap = "skip", **fields: Any
    ) -> None:
        now_us = self.town.clock.now_us()
        schedule = Schedule(
            schedule_id="s",
            cron=cron,
            timezone="UTC",
            overlap=overlap,
            catch_up_us=DAY_US,
            name=function.name,
            input=self.hub.codec.encode_call(function.calls, args or ("x",), {}, where="arguments"),
            created_us=now_us,
            from_us=now_us,
            reference=registry.reference_of(function).to_json(),
        )
        await define_schedule(self.hub, dataclasses.replace(schedule, **fields))

    async def status(self) -> ScheduleStatus:
        return status_of(await load_schedule(self.hub, "s"), self.town.clock.now_us())

    async def instances_of(self) -> list[InstanceStatus]:
        """What the schedule started, in order."""
        page = await list_ended(self.hub.store, self.hub.keys)
        ids = {entry.instance_id for entry in await list_open(self.hub.store, self.hub.keys)}
        ids |= {summary["instance"] for summary in page.summaries}
        return [await self.hub.status(one) for one in sorted(ids)]

    async def ids(self) -> list[str]:
        return [one.instance_id for one in await self.instances_of()]


@contextlib.asynccontextmanager
async def calendar() -> AsyncIterator[Calendar]:
    """Virtual time begins at 2025-11-24 16:00:00 UTC."""
    made = Calendar()
    try:
        yield made
    finally:
        await made.lose_supervisors()
        await made.town.close()


class TestFiring:
    @simulated
    async def test_each_time_starts_one_instance(self) -> None:
        """Named by its time, with the schedule's arguments; on time."""
        async with calendar() as times:
            await times.define()
            await asyncio.sleep(185)
            assert await times.ids() == ["s@20251124T160100Z", "s@20251124T160200Z", "s@20251124T160300Z"]
            for one in await times.instances_of():
                assert one.runtime_status is RuntimeStatus.COMPLETED
                assert await times.town.result(one.instance_id) == "XX2"
                assert (one.created_at.second, one.created_at.microsecond < 500_000) == (0, True)
            status = await times.status()
            assert (status.started, status.skipped) == (3, 0)
            assert (status.last_instance_id, f"{status.last_at:%H:%M}") == ("s@20251124T160300Z", "16:03")
            assert f"{status.next_at:%H:%M:%S}" == "16:04:00"

    @simulated
    async def test_two_supervisors_start_what_one_would(self) -> None:
        """As when one was paused and another has taken over."""
        async with calendar() as times:
            await times.define()
            times.supervise()
            await asyncio.sleep(610)
            assert len(await times.ids()) == 10
            assert set(model.runs.values()) == {10}
            assert (await times.status()).started == 10

    @simulated
    async def test_a_supervisor_that_was_stopped_starts_nothing_again(self) -> None:
        """Stopped right before its start is written, until the instance has ended, was purged and is removed."""
        async with calendar() as times:
            times.hub._settings = {"grace_s": 1_800.0}
            await times.lose_supervisors()
            spy = SpyStore(times.town.objects)
            stopped, go = asyncio.Event(), asyncio.Event()

            async def before(operation: str, key: str) -> None:
                if operation == "put_if_absent" and "/instances/" in key and not stopped.is_set():
                    stopped.set()
                    await go.wait()

            spy.before = before
            await times.define("0 17 24 11 *")
            times.supervise(times.town.open_hub(spy))
            await asyncio.wait_for(stopped.wait(), 10_000)
            times.supervise()
            await asyncio.sleep(5)
            await times.town.ended("s@20251124T170000Z")
            await times.town.settled()
            await purge_instance(times.hub, "s@20251124T170000Z", now_us=times.town.clock.now_us())
            await asyncio.sleep(2 * 1_800)
            assert await times.town.objects.list_tree("hub/runs/") == []
            go.set()
            await asyncio.sleep(5_000)
            assert set(model.runs.values()) == {1}
            assert (await times.status()).started == 1

    @simulated
    async def test_what_was_started_and_purged_is_not_started_again(self) -> None:
        """A supervisor died before it noted the firing; its instance ended and was purged before the next one came."""
        async with calendar() as times:
            await times.lose_supervisors()
            spy, stopped = SpyStore(times.town.objects), asyncio.Event()

            async def before(operation: str, key: str) -> None:
                if operation == "put_if_absent" and "/schedules/" in key:
                    stopped.set()
                    await never()

            spy.before = before
            await times.define("0 17 24 11 *")
            times.supervise(times.town.open_hub(spy))
            await asyncio.wait_for(stopped.wait(), 10_000)
            await times.lose_supervisors()
            await times.town.ended("s@20251124T170000Z")
            await times.town.settled()
            await purge_instance(times.hub, "s@20251124T170000Z", now_us=times.town.clock.now_us())
            times.supervise()
            await asyncio.sleep(60)
            assert set(model.runs.values()) == {1}
            assert (await times.status()).last_instance_id == "s@20251124T170000Z"

    def test_a_death_at_any_moment_starts_none_twice_and_none_less(self) -> None:
        """At every operation of the supervisor's, before and after its effect."""

        async def run(death: int, is_done: bool) -> int:
            async with calendar() as times:
                await times.lose_supervisors()
                await times.define()
                operations = 0
                spy = SpyStore(times.town.objects)

                async def count(operation: str, key: str) -> None:
                    nonlocal operations
                    operations += 1
                    if operations == death and not is_done:
                        await die()

                async def look(operation: str, key: str) -> None:
                    if operations == death and is_done:
                        await die()

                async def die() -> None:
                    asyncio.get_running_loop().call_later(5, times.supervise)
                    dying.cancel()
                    await never()

                spy.before, spy.after = count, look
                dying = times.supervise(times.town.open_hub(spy))
                await asyncio.sleep(130)
                assert await times.ids() == ["s@20251124T160100Z", "s@20251124T160200Z"]
                await times.town.settled()
                assert set(model.runs.values()) == {2}
                assert (await times.status()).last_instance_id == "s@20251124T160200Z"
                return operations

        total = simulate(run(0, False))
        assert total > 20
        for number in range(1, total + 1):
            simulate(run(number, bool(number % 2)))

    @simulated
    async def test_one_that_fails_keeps_no_other_from_its_times(self) -> None:
        """Whose arguments are damaged, or whose zone is not known on that machine; it is heard again once mended."""
        async with calendar() as times:
            await times.define()
            await times.define("* * * * *", schedule_id="lost", timezone="Middle/Earth")
            await asyncio.sleep(70)
            assert await times.ids() == ["s@20251124T160100Z"]
            await times.define("* * * * *", schedule_id="lost")
            await asyncio.sleep(60)
            assert "lost@20251124T160200Z" in await times.ids()


class TestGaps:
    @simulated
    async def test_after_a_gap_the_latest_is_made_up_for(self) -> None:
        """Of those that were missed while nobody supervised; found again from storage."""
        async with calendar() as times:
            await times.define("0 * * * *")
            await asyncio.sleep(3_700)
            await times.lose_supervisors()
            await asyncio.sleep(5 * 3_600)
            times.supervise()
            await asyncio.sleep(60)
            assert await times.ids() == ["s@20251124T170000Z", "s@20251124T220000Z"]

    @simulated
    async def test_what_is_too_old_is_not(self) -> None:
        async with calendar() as times:
            await times.define("30 16 * * *", catch_up_us=3_600 * 1_000_000)
            await times.lose_supervisors()
            await asyncio.sleep(5 * 3_600)
            times.supervise()
            await asyncio.sleep(60)
            assert await times.ids() == []
            assert f"{(await times.status()).next_at:%d %H:%M}" == "25 16:30"


class TestOverlap:
    """The instance of each firing waits for an event that nobody raises, unless the test does."""

    @simulated
    async def test_skip(self) -> None:
        """Nothing is started while one runs; the next one is, once that has ended."""
        async with calendar() as times:
            await times.define("* * * * *", model.awaits_event, "Go")
            await asyncio.sleep(190)
            assert await times.ids() == ["s@20251124T160100Z"]
            await times.town.raise_event("Go", 1, "e1", "s@20251124T160100Z")
            await asyncio.sleep(60)
            assert await times.ids() == ["s@20251124T160100Z", "s@20251124T160400Z"]
            status = await times.status()
            assert (status.started, status.skipped) == (2, 2)

    @simulated
    async def test_allow(self) -> None:
        async with calendar() as times:
            await times.define("* * * * *", model.awaits_event, "Go", overlap="allow")
            await asyncio.sleep(190)
            assert [one.runtime_status for one in await times.instances_of()] == ["Running"] * 3

    @simulated
    async def test_cancel_previous(self) -> None:
        """The one before is terminated, durably, before the next one starts; nobody answers at first."""
        async with calendar() as times:
            await times.define("* * * * *", model.awaits_event, "Go", overlap="cancel_previous")
            await asyncio.sleep(70)
            times.instances.deaf = True
            await asyncio.sleep(70)
            assert len(await times.ids()) == 1
            times.instances.deaf = False
            await asyncio.sleep(20)
            first, second = await times.instances_of()
            assert (first.runtime_status, second.runtime_status) == ("Terminated", "Running")
            assert first.updated_at <= second.created_at
            end = await times.hub.end(first.instance_id)
            assert end is not None
            assert "next firing of schedule 's'" in str(end.failure)

    @simulated
    async def test_buffer_one(self) -> None:
        """The first that comes meanwhile starts when the one before ends; others are skipped."""
        async with calendar() as times:
            await times.define("* * * * *", model.awaits_event, "Go", overlap="buffer_one")
            await asyncio.sleep(200)
            assert await times.ids() == ["s@20251124T160100Z"]
            await times.town.raise_event("Go", 1, "e1", "s@20251124T160100Z")
            await asyncio.sleep(5)
            assert await times.ids() == ["s@20251124T160100Z", "s@20251124T160200Z"]
            status = await times.status()
            assert (status.started, status.skipped) == (2, 1)

    @simulated
    async def test_what_waits_survives_the_supervisor(self) -> None:
        async with calendar() as times:
            await times.define("* * * * *", model.awaits_event, "Go", overlap="buffer_one")
            await asyncio.sleep(130)
            await times.lose_supervisors()
            await times.town.raise_event("Go", 1, "e1", "s@20251124T160100Z")
            times.supervise()
            await asyncio.sleep(5)
            assert await times.ids() == ["s@20251124T160100Z", "s@20251124T160200Z"]


class TestChanges:
    @simulated
    async def test_a_pause_ends_firings_and_a_resumption_makes_up_for_none(self) -> None:
        async with calendar() as times:
            await times.define()
            await asyncio.sleep(70)
            await pause_schedule(times.hub, "s", "holidays")
            await asyncio.sleep(3_600)
            status = await times.status()
            assert (status.paused, status.note, status.next_at, status.started) == (True, "holidays", None, 1)
            await resume_schedule(times.hub, "s", times.town.clock.now_us())
            await asyncio.sleep(60)
            assert await times.ids() == ["s@20251124T160100Z", "s@20251124T170200Z"]

    @simulated
    async def test_defining_it_again_changes_what_follows(self) -> None:
        """The past stays, and so does the pause; with the same times, no firing is lost."""
        async with calendar() as times:
            await times.define()
            await asyncio.sleep(70)
            await times.define("*/5 * * * *", model.child, "y")
            await asyncio.sleep(240)
            assert await times.ids() == ["s@20251124T160100Z", "s@20251124T160500Z"]
            assert await times.town.result("s@20251124T160500Z") == "YY2"
            assert (await times.status()).started == 2
            await times.lose_supervisors()
            await asyncio.sleep(310)
            await times.define("*/5 * * * *", model.child, "z")
            times.supervise()
            await asyncio.sleep(10)
            assert await times.town.result("s@20251124T161000Z") == "ZZ2"
            await pause_schedule(times.hub, "s", "why")
            await times.define("*/5 * * * *", model.child, "z")
            assert (await times.status()).note == "why"

    @simulated
    async def test_a_deleted_one_fires_no_more_and_can_be_made_anew(self) -> None:
        """What it started goes on."""
        async with calendar() as times:
            await times.define("* * * * *", model.awaits_event, "Go")
            await asyncio.sleep(70)
            await delete_schedule(times.hub, "s")
            await asyncio.sleep(130)
            assert [one.runtime_status for one in await times.instances_of()] == ["Running"]
            assert await schedule_statuses(times.hub, times.town.clock.now_us()) == []
            for gone in (delete_schedule(times.hub, "s"), pause_schedule(times.hub, "s", "")):
                with pytest.raises(ScheduleNotFoundError, match="no schedule 's'"):
                    await gone
            await times.define()
            await asyncio.sleep(60)
            assert len(await times.ids()) == 2
            assert (await times.status()).started == 1

    @simulated
    async def test_changes_at_once_are_all_made(self) -> None:
        """Every one is a revision for which all contend: none overwrites another, and old ones go."""
        async with calendar() as times:
            await times.define("* * * * * *", overlap="allow")
            for number in range(20):
                await asyncio.gather(
                    *(pause_schedule(times.hub, "s", f"{number} {who}") for who in range(3)),
                    times.define("* * * * * *", overlap="allow", version=str(number)),
                )
                assert (await times.status()).note.startswith(f"{number} ")
                assert (await load_schedule(times.hub, "s")).version == str(number)
                await resume_schedule(times.hub, "s", times.town.clock.now_us())
                await asyncio.sleep(1.5)
            assert len(await times.hub.store.list_folder(times.hub.keys.schedules)) <= 2
            await pause_schedule(times.hub, "s", "")
            await asyncio.sleep(5)
            assert (await times.status()).started == len(await times.ids())

    @simulated
    async def test_a_trigger_starts_one_beside_the_firings(self) -> None:
        """Also while it is paused; each is another instance."""
        async with calendar() as times:
            await times.define()
            await pause_schedule(times.hub, "s", "")
            triggered = [await trigger_schedule(times.hub, "s", times.town.clock.now_us()) for _ in range(2)]
            assert len(set(triggered)) == 2
            assert all(one.startswith("s@20251124T160000.") for one in triggered)
            await times.town.settled()
            assert await times.town.result(triggered[0]) == "XX2"
            assert (await times.status()).started == 0

    @simulated
    async def test_arguments_that_are_too_large_are_refused(self) -> None:
        async with calendar() as times:
            with pytest.raises(PayloadTooLargeError, match="a schedule keeps at most"):
                await times.define("* * * * *", model.child, "x" * 17_000_000)

    @simulated
    async def test_the_checker_of_roots_has_no_complaint(self, tmp_path: Path) -> None:
        async with calendar() as times:
            await times.define()
            await asyncio.sleep(130)
            await times.town.settled()
            assert complaints(times.town, tmp_path) == []
