"""SIGKILL of a worker: its activity runs again; one that always kills its worker fails, alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest

import ray_durable as durable
from tests.cluster import flows
from tests.cluster.harness import executions, kill, wait_until


def test_activity_runs_again(hub: durable.Hub, instance_id: str, go: Callable[[str], None]) -> None:
    """The activity of a killed worker runs again in another, with the same key."""
    handle = hub.start(flows.spread_waiting, 1, instance_id=instance_id)
    (first,) = wait_until(lambda: executions(instance_id), "it runs")
    kill(first.pid)
    wait_until(lambda: len(executions(instance_id)) == 2, "it runs again")
    go(instance_id)
    second = executions(instance_id)[1]
    assert handle.result(60) == [second.pid]
    assert second.pid != first.pid
    assert second.key == first.key


def test_neighbours_of_a_killed_worker_are_unharmed(
    hub: durable.Hub, instance_id: str, go: Callable[[str], None]
) -> None:
    """Of three activities in three workers, only that of the killed worker runs again."""
    handle = hub.start(flows.spread_waiting, 3, instance_id=instance_id)
    wait_until(lambda: len(executions(instance_id)) == 3, "all run")
    victim = executions(instance_id)[1]
    kill(victim.pid)
    wait_until(lambda: len(executions(instance_id)) == 4, "it runs again")
    go(instance_id)
    handle.result(60)
    counts = Counter(execution.key for execution in executions(instance_id))
    assert sorted(counts.values()) == [1, 1, 2]
    assert counts[victim.key] == 2


@pytest.mark.parametrize("way", ["os._exit", "SIGKILL"])
def test_poison_fails_after_a_few_tries(hub: durable.Hub, instance_id: str, way: str) -> None:
    """An activity that always ends its process fails with what happened and what to do."""
    handle = hub.start(flows.calls_leaves, way, instance_id=instance_id)
    with pytest.raises(durable.OrchestrationFailedError) as caught:
        handle.result(60)
    assert "Activity function 'leaves' failed" in str(caught.value)
    assert "worker process died" in str(caught.value)
    assert "look into the worker's log" in str(caught.value)
    assert caught.value.failure.type_name == "ActivityError"
    assert len(executions(instance_id)) == 3


def test_sys_exit_is_an_ordinary_failure(hub: durable.Hub, instance_id: str) -> None:
    """sys.exit in an activity fails that call; its worker lives on."""
    with pytest.raises(durable.OrchestrationFailedError, match="SystemExit"):
        hub.start(flows.calls_leaves, "sys.exit", instance_id=instance_id).result(60)
    assert len(executions(instance_id)) == 1


def test_only_the_poison_item_fails(hub: durable.Hub, instance_id: str) -> None:
    """In a map, the item that kills its worker is found and fails; all others have their results."""
    outcomes = hub.start(flows.map_with_poison, 40, instance_id=instance_id).result(100)
    assert [outcome for number, outcome in enumerate(outcomes) if number != 7] == [str(n) for n in range(40) if n != 7]
    assert "worker process died" in outcomes[7]
