"""SIGKILL of the orchestrator's process: the instance goes on by itself, and nothing that is recorded runs again."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

import ray_durable as durable
from tests.cluster import flows
from tests.cluster.harness import executions, is_alive, kill_owner, repeated, wait_for_executions, wait_until

STEPS = 1_000
KILLS = 3


def test_chain_survives_kills(
    hub: durable.Hub, instance_id: str, record_property: Callable[[str, object], None]
) -> None:
    """A chain of a thousand steps completes though its process is killed again and again."""
    handle = hub.start(flows.march, STEPS, instance_id=instance_id)
    for number in range(1, KILLS + 1):
        wait_for_executions(instance_id, STEPS * number // (KILLS + 1))
        killed = kill_owner(handle)
        before, began_s = len(executions(instance_id)), time.monotonic()
        # One activity may still have been running; the second that begins was asked for by the new owner.
        wait_for_executions(instance_id, before + 2)
        record_property(f"resumed_after_s_{number}", round(time.monotonic() - began_s, 2))
        owner = handle.owner()
        assert owner is not None
        assert owner.pid != killed
    assert handle.result(120) == STEPS
    assert sum(count - 1 for count in repeated(instance_id).values()) <= KILLS
    assert len({execution.key for execution in executions(instance_id)}) == STEPS


def test_running_activities_are_not_interrupted(hub: durable.Hub, instance_id: str, go: Callable[[str], None]) -> None:
    """Six activities that run when the orchestrator is killed go on in their processes, and run once."""
    handle = hub.start(flows.spread_waiting, 6, instance_id=instance_id)
    wait_until(lambda: len(executions(instance_id)) == 6, "all six run")
    killed = kill_owner(handle)
    wait_until(lambda: (owner := handle.owner()) and owner.pid != killed, "the instance has a new owner")
    assert all(is_alive(execution.pid) for execution in executions(instance_id))
    go(instance_id)
    pids = handle.result(60)
    assert sorted(pids) == sorted(execution.pid for execution in executions(instance_id))
    assert len(pids) == 6


def test_activities_that_end_meanwhile_are_not_repeated(
    hub: durable.Hub, instance_id: str, go: Callable[[str], None]
) -> None:
    """Outcomes that arrive while nobody owns the instance wait for the next owner."""
    handle = hub.start(flows.spread_waiting, 3, instance_id=instance_id)
    wait_until(lambda: len(executions(instance_id)) == 3, "all three run")
    go(instance_id)
    kill_owner(handle)
    assert len(handle.result(60)) == 3
    assert len(executions(instance_id)) == 3


def test_fan_out_repeats_nothing(hub: durable.Hub, instance_id: str) -> None:
    """A map over five thousand items whose orchestrator is killed twice executes each item once."""
    count = 5_000
    handle = hub.start(flows.spread_slowly, count, instance_id=instance_id)
    killed = None
    for begun in (500, 2_000):
        # The map goes on without an owner: the next one may not be there yet.
        wait_for_executions(instance_id, begun)
        killed = kill_owner(handle, after=killed)
    assert handle.result(120) == count * (count - 1)
    assert len(executions(instance_id)) == count
    assert not repeated(instance_id)


def test_event_is_kept(hub: durable.Hub, instance_id: str) -> None:
    """An acknowledged event is there after the kill; one that is sent while nobody is there is delivered."""
    handle = hub.start(flows.collects, 2, instance_id=instance_id)
    handle.raise_event("Number", 1)
    kill_owner(handle)
    handle.raise_event("Number", 2)
    assert handle.result(60) == [1, 2]


def test_result_call_outlives_the_owner(hub: durable.Hub, instance_id: str, go: Callable[[str], None]) -> None:
    """Whoever waits for the result when the orchestrator is killed gets it from its successor."""
    import asyncio

    async def main() -> list[int]:
        handle = hub.start(flows.spread_waiting, 1, instance_id=instance_id)
        await asyncio.to_thread(wait_until, lambda: executions(instance_id), "it runs")
        waiting = asyncio.ensure_future(_awaited(handle))
        await asyncio.to_thread(kill_owner, handle)
        go(instance_id)
        return await asyncio.wait_for(waiting, 60)

    assert asyncio.run(main()) == [executions(instance_id)[0].pid]


async def _awaited(handle: durable.Handle[list[int]]) -> list[int]:
    return await handle


def test_timer_goes_on(hub: durable.Hub, instance_id: str) -> None:
    """A timer keeps its time when its owner is killed."""
    handle = hub.start(flows.naps, 2.0, instance_id=instance_id)
    wait_until(lambda: any("TimerCreated" in type(event).__name__ for event in handle.history()), "the timer is set")
    kill_owner(handle)
    assert handle.result(60) >= 2.0


@pytest.mark.parametrize("kills", [0, 2])
def test_lines_of_the_logger_are_heard_once(hub: durable.Hub, ray_folder: Path, instance_id: str, kills: int) -> None:
    """A line of ctx.logger is heard once, whether its code runs again or not; a print, if no code runs again."""
    word = f"word-{kills}"
    handle = hub.start(flows.speaks, word, 2, instance_id=instance_id)

    def heard(text: str) -> int:
        logs = (ray_folder / "session_latest" / "logs").glob("worker-*")
        return sum(log.read_text(errors="replace").count(f"{word} {text}.") for log in logs)

    for step in range(2):
        wait_for_executions(instance_id, step + 1)
        wait_until(partial(heard, f"logged {step}"), "its line is heard")
        if step < kills:
            kill_owner(handle)
        handle.raise_event("Next")
    handle.result(60)
    wait_until(lambda: heard("logged 2"), "the last line is heard")
    assert [heard(f"logged {step}") for step in range(3)] == [1, 1, 1]
    if not kills:
        assert [heard(f"printed {step}") for step in range(3)] == [1, 1, 1]
