"""Instances whose start is durable at once and whose code begins later: through losses, and in all that may precede."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path

import pytest

from ray_durable.engine import ExecutionStarted, RuntimeStatus, TaskScheduled, TimerFired
from ray_durable.runtime.explanation import at, explain_history
from ray_durable.runtime.lifecycle import fork_instance, purge_instance, restart_instance
from ray_durable.storage import OpenEntry, WakeHint, find_open
from tests.runtime import model
from tests.support.checking import complaints
from tests.support.skipping_loop import simulate, simulated
from tests.support.town import Town
from tests.support.world import World

HOUR_S = 3_600.0


async def entry(world: World) -> OpenEntry:
    """The instance's entry in the open set."""
    found = await find_open(world.objects, world.hub.keys, "one")
    assert found is not None
    return found


async def began_us(world: World, instance_id: str = "one") -> int:
    """When the code asked for its first activity."""
    history = await world.history(instance_id)
    return next(event.time_us for event in history if isinstance(event, TaskScheduled))


@simulated
async def test_it_is_durable_at_once_and_needs_nobody_until_it_is_due() -> None:
    """Listed as Pending with its time; the open entry says when to look, and what the log was then."""
    world = World()
    due_us = world.clock.now_us() + round(HOUR_S * 1_000_000)
    await world.start(model.child, "x", due_s=HOUR_S)
    status = await world.status()
    assert (status.runtime_status, status.start_at) == (RuntimeStatus.PENDING, at(due_us))
    assert (await entry(world)).wake == WakeHint(due_us=due_us, execution=1, tail_seq=0)
    (waiting,) = explain_history(status, await world.history()).waiting
    assert (waiting.kind, waiting.due) == ("start", at(due_us))


@simulated
async def test_an_owner_that_comes_early_waits_for_the_time() -> None:
    """Pending all the while; then the code begins, at the time of the firing."""
    world = World()
    model.reset()
    began_at = world.clock.now_us()
    await world.start(model.child, "x", due_s=HOUR_S)
    owner = world.own()
    await asyncio.sleep(HOUR_S - 100)
    status = await world.status()
    assert (status.runtime_status, status.owner is not None) == (RuntimeStatus.PENDING, True)
    (waiting,) = (await owner.instance.explain()).waiting
    assert (waiting.kind, waiting.due) == ("start", status.start_at)
    await owner.ended()
    assert await world.result() == "XX2"
    history = await world.history()
    (fired,) = [event for event in history if isinstance(event, TimerFired)]
    assert (fired.timer, fired.time_us) == (1, await began_us(world))
    assert fired.time_us >= began_at + round(HOUR_S * 1_000_000)
    assert (await world.status()).start_at == status.start_at


@simulated
async def test_it_is_terminated_and_purged_before_it_begins() -> None:
    """Its code never runs, and nothing of it is left to be seen."""
    town = Town()
    model.reset()
    await town.start(model.child, "x", due_s=HOUR_S)
    await town.command("one", "terminate", "not needed", "t1")
    assert (await town.status()).runtime_status is RuntimeStatus.TERMINATED
    await town.settled()
    await purge_instance(town.hub, "one", now_us=town.clock.now_us())
    assert not await town.hub.store.get(town.hub.keys.open_entry("one"))
    assert not model.runs
    await town.close()


@simulated
async def test_an_id_that_has_ended_begins_again_later() -> None:
    """The next execution is Pending until it is due, and its entry says so."""
    world = World()
    await world.run(model.child, "x")
    due_us = world.clock.now_us() + round(HOUR_S * 1_000_000)
    await world.start(model.child, "y", due_s=HOUR_S)
    status = await world.status()
    assert (status.execution, status.runtime_status, status.start_at) == (2, RuntimeStatus.PENDING, at(due_us))
    assert (await entry(world)).wake == WakeHint(due_us=due_us, execution=2, tail_seq=0)
    await world.own().ended()
    assert await world.result() == "YY2"
    assert await began_us(world) >= due_us


@simulated
async def test_what_follows_it_does_not_wait_again() -> None:
    """A restart, and what continues as new, begin at once; a rewind goes on where the first execution was."""
    world = World()
    model.reset()
    await world.start(model.goes_round, 1, 0, due_s=HOUR_S)
    await world.own().ended()
    starts = [(await world.hub.history("one", execution))[0] for execution in (1, 2)]
    assert [start.due_us is not None for start in starts if isinstance(start, ExecutionStarted)] == [True, False]
    await restart_instance(world.hub, "one", "r1", reason="", now_us=world.clock.now_us())
    assert (await world.status()).start_at is None
    asked_us = world.clock.now_us()
    await world.own().ended()
    assert await began_us(world) < asked_us + 10_000_000


@simulated
async def test_a_rewind_keeps_the_time_that_is_past() -> None:
    """The copied history holds the firing, and what failed runs again."""
    town = Town()
    model.reset()
    model.broken.add("work x2")
    await town.start(model.child, "x", due_s=HOUR_S)
    await town.ended()
    await town.settled()
    model.broken.clear()
    await town.rewind()
    assert await town.result_of() == "XX2"
    assert model.runs == {"work x": 1, "work x2": 2}
    await town.close()


@pytest.mark.parametrize("after", [1, None])
@simulated
async def test_a_fork_of_what_has_not_begun_begins_at_the_same_time(after: int | None) -> None:
    world = World()
    await world.start(model.child, "x", due_s=HOUR_S)
    due = (await world.status()).start_at
    await fork_instance(world.hub, "one", "two", "f1", through=after, now_us=world.clock.now_us())
    assert ((await world.status("two")).start_at, (await world.status("two")).runtime_status) == (due, "Pending")
    await world.own("two").ended()
    assert await world.result("two") == "XX2"
    assert due is not None
    assert at(await began_us(world, "two")) - due < timedelta(seconds=5)


@simulated
async def test_the_checker_of_roots_knows_such_starts(tmp_path: Path) -> None:
    """One that begins later, one that has begun, and one that was ended before."""
    world = World()
    for instance_id in ("one", "two", "three"):
        await world.start(model.child, "x", instance_id=instance_id, due_s=HOUR_S)
    await world.own("two").ended()
    owner = world.own("three")
    await owner.instance.terminate("not needed", "t1")
    await owner.ended()
    assert complaints(world, tmp_path) == []


def test_a_death_at_any_moment_changes_nothing() -> None:
    """Events that came before the beginning are there, the code begins when it is due, and each activity runs once."""

    async def run(deaths: dict[int, bool]) -> int:
        model.reset()
        town = Town(deaths=deaths.items())
        due_us = town.clock.now_us() + 60_000_000
        await town.start(model.gates, due_s=60)
        await town.raise_event("Gate", 1, "e1")
        await town.command("one", "suspend", "wait", "s1")
        await town.raise_event("Gate", 2, "e2")
        await town.command("one", "resume", "go", "r1")
        assert (await town.status()).runtime_status is RuntimeStatus.PENDING
        assert await town.result_of() == [1, "GATE0", 2, "GATE1"]
        await town.settled()
        assert await began_us(town) >= due_us
        assert set(model.runs.values()) == {1}
        assert [event.timer for event in await town.history_of() if isinstance(event, TimerFired)].count(1) == 1
        await town.close()
        return town.operations

    for number in range(1, simulate(run({})) + 1):
        simulate(run({number: bool(number % 2)}))
