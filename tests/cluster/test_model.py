"""Instances that call instances, and instances that begin anew, through the loss of any of them, on a real Ray."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

import ray_durable as durable
from ray_durable.engine import SubOrchestrationInstanceCompleted
from tests.cluster import flows
from tests.cluster.harness import (
    Terminal,
    executions,
    failure_of,
    is_over,
    kill,
    kill_owner,
    repeated,
    wait_for_executions,
    wait_until,
)


def owner_pid(handle: durable.Handle[Any]) -> int:
    """The process that owns the instance; waits for the first."""
    return wait_until(handle.owner, f"{handle} has an owner").pid


def run_folders(hub: durable.Hub) -> int:
    """How many executions have objects in storage, apart from their starts."""
    return sum(1 for _ in Path(hub.address.root).glob(f"{hub.address.hub}/runs/*/*"))


def test_family_survives_kills(hub: durable.Hub, instance_id: str) -> None:
    """A parent waits for five children; it is killed, then a child, then both at the same moment. The result is right,
    and every step was made once."""
    children, steps = 5, 3
    parent = hub.start(flows.family, children, steps, instance_id=instance_id)
    handles = [hub.get(f"{instance_id}-{number}") for number in range(children)]
    for phase, victims in enumerate([[parent], [handles[0]], [parent, handles[1]]], start=1):
        for child in handles:
            wait_for_executions(child.instance_id, phase)
        for pid in [owner_pid(victim) for victim in victims]:
            kill(pid)
        for child in handles:
            child.raise_event("Next")
    assert parent.result(60) == [steps] * children
    for child in handles:
        assert len(executions(child.instance_id)) == steps
        assert not repeated(child.instance_id)
    completed = [event for event in parent.history() if isinstance(event, SubOrchestrationInstanceCompleted)]
    assert len(completed) == children


def test_failure_names_its_chain(hub: durable.Hub, instance_id: str) -> None:
    """The failure of an activity of a child fails the parent, with every name on the way."""
    text = failure_of(hub.start(flows.family_with_a_gap, instance_id=instance_id))
    for part in ("family_with_a_gap", "marches_over_a_gap", "works_once_mended", "ValueError: 1 is broken"):
        assert part in text
    assert hub.get(f"{instance_id}-gap").status().runtime_status == "Failed"


@pytest.mark.parametrize("recursive", [True, False])
def test_termination_over_three_levels(hub: durable.Hub, instance_id: str, recursive: bool) -> None:
    """It reaches children, their children and a running activity; or, if that is wanted, the instance alone."""
    root = hub.start(flows.three_levels, 3, instance_id=instance_id)
    below = [hub.get(f"{instance_id}+"), hub.get(f"{instance_id}++")]
    (execution,) = wait_for_executions(below[-1].instance_id, 1)
    root.terminate("enough", recursive=recursive)
    assert root.status().runtime_status == "Terminated"
    if not recursive:
        assert [handle.status().runtime_status for handle in below] == ["Running"] * 2
        assert not is_over(execution, below[-1].instance_id)
        below[0].terminate()
    for handle in below:
        with pytest.raises(durable.OrchestrationTerminatedError):
            handle.result(60)
    wait_until(lambda: is_over(execution, below[-1].instance_id), "the activity is over")


@pytest.fixture(scope="module")
def small(hub: durable.Hub) -> Iterator[durable.Hub]:
    """A hub with room for two instances, which keeps what has been continued for a second."""
    grace = timedelta(seconds=1)
    with durable.connect(hub.address.root, hub="small", live_instances_max=2, grace=grace) as small:
        yield small


def test_more_parents_than_there_is_room_for(small: durable.Hub, instance_id: str) -> None:
    """Four parents wait for a child each where two instances have room: all end."""
    names = [f"{instance_id}-{number}" for number in range(4)]
    parents = [small.start(flows.family, 1, 1, instance_id=name) for name in names]
    waiting = {f"{name}-0" for name in names}

    def begun() -> list[str]:
        return [name for name in waiting if executions(name)]

    while waiting:
        # Which of them have room first is not said.
        for name in wait_until(begun, f"one of {waiting} has begun"):
            small.get(name).raise_event("Next")
            waiting.remove(name)
    assert [parent.result(60) for parent in parents] == [[1]] * 4


def test_rounds_survive_kills(small: durable.Hub, instance_id: str) -> None:
    """Two hundred rounds with two kills: every step recorded once, one live execution at any moment, and storage that
    does not grow with the rounds."""
    count = 200
    handle = small.start(flows.rounds, 0, count, instance_id=instance_id)
    for begun in (60, 130):
        wait_for_executions(instance_id, begun)
        kill_owner(handle)
    assert handle.result(60) == count
    assert handle.status().execution == count
    # A local activity that was under way at a kill runs again.
    assert count <= len(executions(instance_id)) <= count + 2
    wait_until(lambda: run_folders(small) < 20, "what was continued is removed")
    with pytest.raises(durable.InstanceNotFoundError):
        handle.history(execution=1)
    assert [one.instance_id for one in small.instances(prefix=instance_id)] == [instance_id]


def test_events_cross_rounds_under_fire(hub: durable.Hub, instance_id: str) -> None:
    """Events are sent as fast as they are taken, while the instance begins anew with each and is killed twice: each
    arrives once, in order."""
    count = 40
    handle = hub.start(flows.collects_in_rounds, [], count, instance_id=instance_id)
    for number in range(count):
        if number in (15, 30):
            kill_owner(handle)
        handle.raise_event("Number", number, event_id=f"number {number}")
        if number == 20:
            handle.raise_event("Number", number, event_id=f"number {number}")
    assert handle.result(60) == list(range(count))


def test_parents_and_children_go_on_with_another_ray(
    root: Path, terminals: Callable[..., Terminal], ray_init: dict[str, Any], instance_id: str
) -> None:
    """The script ends, and its Ray with it; another one connects to the same root, and all go on."""
    first = terminals("first")
    first.ask("connect", root=str(root), ray_init=ray_init)
    first.ask("start", name="family", args=[2, 2], instance_id=instance_id)
    names = [f"{instance_id}-{number}" for number in range(2)]
    for name in names:
        wait_for_executions(name, 1)
    first.ask("close")
    second = terminals("second")
    second.ask("connect", root=str(root), ray_init=ray_init)
    for phase in (1, 2):
        for name in names:
            wait_for_executions(name, phase)
            second.ask("raise_event", instance_id=name, name="Next", value=None)
    assert second.ask("result", instance_id=instance_id) == [2, 2]
    assert Counter(len(executions(name)) for name in names) == {2: 2}
