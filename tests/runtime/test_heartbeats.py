"""Heartbeat details from one attempt to the next, through the log, whoever owns the instance by then."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest

import ray_durable as durable
from ray_durable.engine import MapCompleted, TaskFailed
from tests.support.skipping_loop import simulated
from tests.support.world import World

POLICY = durable.RetryPolicy(max_attempts=3, first_retry_interval=timedelta(minutes=1))


@durable.activity
def gets_further(value: int) -> list[Any]:
    """Says how far it came, except in its second attempt, and fails twice."""
    info = durable.current_activity()
    if info.attempt != 2:
        info.heartbeat({"attempt": info.attempt})
    if info.attempt < 3:
        raise ConnectionError("cut off")
    return [info.attempt, info.heartbeat_details]


@durable.activity
def tells_what_it_knows(value: int) -> Any:
    """The last attempt reads what the one before said."""
    info = durable.current_activity()
    known = info.heartbeat_details
    if info.attempt < 3:
        info.heartbeat([*(known or []), info.attempt])
        raise ConnectionError("cut off")
    return known


@durable.orchestrator
async def persists_over_heartbeats(ctx: durable.OrchestrationContext, name: str) -> Any:
    return await ctx.call_activity_with_retry(name, POLICY, 1)


@durable.orchestrator
async def maps_over_heartbeats(ctx: durable.OrchestrationContext, name: str) -> Any:
    return await ctx.map(name, [1, 2, 3], retry=POLICY)


@simulated
async def test_each_attempt_reads_what_those_before_said() -> None:
    """One that says nothing hands on what it was given."""
    world = World()
    assert await world.run(persists_over_heartbeats, "tells_what_it_knows") == [1, 2]
    world = World()
    await world.run(persists_over_heartbeats, "gets_further")
    said = [event.heartbeat for event in await world.history() if isinstance(event, TaskFailed)]
    assert [payload and payload.bytes for payload in said] == [b'{"attempt":1}', b'{"attempt":1}']


@simulated
async def test_each_attempt_at_an_item_of_a_map_reads_what_those_before_said() -> None:
    """As a single call does; one that says nothing hands on what it was given."""
    world = World()
    assert await world.run(maps_over_heartbeats, "tells_what_it_knows") == [[1, 2]] * 3
    world = World()
    await world.run(maps_over_heartbeats, "gets_further")
    said = [dict(event.heartbeats) for event in await world.history() if isinstance(event, MapCompleted)]
    assert [payload.bytes for items in said for payload in items.values()] == [b'{"attempt":1}'] * 6


@pytest.mark.parametrize("orchestrator", [persists_over_heartbeats, maps_over_heartbeats])
@pytest.mark.parametrize("loses_dispatcher", [False, True])
def test_a_new_owner_finds_them_in_the_log(
    loses_dispatcher: bool, orchestrator: durable.Orchestrator[[str], Any]
) -> None:
    """Lost while the policy waits; with the dispatcher or without."""

    @simulated
    async def scenario() -> None:
        world = World()
        # All items go to one worker.
        world.workers.slot_count = 1
        await world.start(orchestrator, "tells_what_it_knows")
        for attempt in (1, 2):
            owner = world.own()
            await asyncio.sleep(30)
            failed = [event for event in await world.history() if isinstance(event, TaskFailed | MapCompleted)]
            assert (len(world.workers.launched), len(failed)) == (attempt, attempt)
            await owner.kill()
            if loses_dispatcher:
                world.lose_dispatcher()
                world.start_dispatcher()
            await asyncio.sleep(300)
        await world.own().ended()
        assert await world.result() in ([1, 2], [[1, 2]] * 3)

    scenario()
