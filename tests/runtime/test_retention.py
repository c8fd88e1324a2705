"""Retention: what ended long ago is purged, by status and end; what goes on, or began anew, is not touched."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from ray_durable.errors import ConfigurationError
from ray_durable.runtime.retention import PurgeEnded, retention_settings
from ray_durable.storage import latest_execution, list_ended, record_ended
from tests.runtime import model
from tests.support.skipping_loop import simulate, simulated
from tests.support.town import Town
from tests.support.world import SpyStore, never

HOUR_S = 3_600.0


async def kept(town: Town) -> list[str]:
    """The ended instances that are listed; each of them, and no other, is in storage."""
    page = await list_ended(town.objects, town.hub.keys)
    return sorted(summary["instance"] for summary in page.summaries)


def town_of(retention: dict[str, timedelta]) -> Town:
    model.reset()
    town = Town()
    town.hub._settings = {"retention_s": retention_settings(retention)}
    return town


async def purged(town: Town) -> None:
    """What the chore does when it looks."""
    await PurgeEnded(town.hub, town.clock).look_through()


@simulated
async def test_each_status_has_its_time_counted_from_the_end() -> None:
    """One that ran for long and ended lately stays; a status without a time is kept for ever."""
    town = town_of({"Completed": timedelta(hours=5), "Failed": timedelta(hours=1)})
    model.broken.add("work bad")
    await town.start(model.child, "x", instance_id="done")
    await town.start(model.child, "bad", instance_id="failed")
    await town.start(model.awaits_event, "Go", instance_id="killed")
    await town.start(model.awaits_event, "Go", instance_id="long")
    await town.ended("done")
    await town.command("killed", "terminate", "enough", "t1")
    for hours, names in ((2, ["done", "killed"]), (4, ["killed"])):
        await asyncio.sleep(hours * HOUR_S)
        await purged(town)
        assert await kept(town) == names
    await town.raise_event("Go", 1, "e1", "long")
    await town.settled()
    await purged(town)
    assert await kept(town) == ["killed", "long"]
    await asyncio.sleep(5 * HOUR_S)
    await purged(town)
    assert await kept(town) == ["killed"]
    assert await latest_execution(town.objects, town.hub.keys, "long") is None
    await town.close()


@simulated
async def test_without_the_setting_nothing_is_looked_at() -> None:
    town = Town()
    spy = SpyStore(town.objects)
    await PurgeEnded(town.open_hub(spy), town.clock).look_through()
    assert {operation for operation, _ in spy.calls} <= {"get"}
    await town.close()


@simulated
async def test_a_summary_that_is_stale_purges_nothing() -> None:
    """What counts is the log: the instance was rewound, and waits."""
    town = town_of({"Failed": timedelta(0)})
    model.broken.add("work x2")
    await town.start(model.child, "x")
    await town.ended()
    await town.settled()
    (summary,) = (await list_ended(town.objects, town.hub.keys)).summaries
    await town.rewind()
    await record_ended(town.objects, town.hub.keys, summary)
    await purged(town)
    assert await latest_execution(town.objects, town.hub.keys, "one") == 2
    await town.close()


def test_a_death_at_any_moment_leaves_nothing_behind() -> None:
    """The next supervisor purges what is left, and nothing that is not due."""

    async def run(death: int, is_done: bool) -> int:
        town = town_of({"Completed": timedelta(minutes=1)})
        for number in range(3):
            await town.start(model.child, f"x{number}", instance_id=f"i{number}")
        await town.start(model.awaits_event, "Go", instance_id="open")
        await asyncio.sleep(90)
        await town.start(model.child, "y", instance_id="young")
        await town.ended("young")
        await town.until(lambda: town.living("young") is None)
        operations, spy = 0, SpyStore(town.objects)

        async def before(operation: str, key: str) -> None:
            nonlocal operations
            operations += 1
            if operations == death and not is_done:
                dying.cancel()
                await never()

        async def after(operation: str, key: str) -> None:
            if operations == death and is_done:
                dying.cancel()
                await never()

        spy.before, spy.after = before, after
        hub = town.open_hub(spy)
        hub._settings = town.hub._settings
        dying = asyncio.get_running_loop().create_task(PurgeEnded(hub, town.clock).look_through())
        await asyncio.gather(dying, return_exceptions=True)
        await purged(town)
        for name in ("i0", "i1", "i2"):
            assert await latest_execution(town.objects, town.hub.keys, name) is None
        assert await kept(town) == ["young"]
        await town.close()
        return operations

    total = simulate(run(0, False))
    assert total > 10
    for number in range(1, total + 1):
        simulate(run(number, bool(number % 2)))


@pytest.mark.parametrize(
    ("retention", "complaint"),
    [
        ({"Running": timedelta(1)}, "ends as one of Completed, Failed, Terminated"),
        ({"Completed": 30}, "give a timedelta"),
        ({"Failed": timedelta(-1)}, "zero or more"),
    ],
)
def test_what_is_no_retention_is_refused(retention: Any, complaint: str) -> None:
    with pytest.raises(ConfigurationError, match=complaint):
        retention_settings(retention)
