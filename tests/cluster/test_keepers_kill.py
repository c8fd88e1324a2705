"""SIGKILL of the dispatcher and of the supervisor: in-flight activities may run again, nothing else does."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import ray

import ray_durable as durable
from ray_durable.engine import OwnerClaimed
from tests.cluster import flows
from tests.cluster.harness import executions, kill, kill_owner, recorded_keys, repeated, wait_until


def pid_of(hub: durable.Hub, actor: str) -> int:
    """The process of the hub's dispatcher or supervisor."""
    handle = ray.get_actor(actor, namespace=hub.address.namespace)
    answer: Any = ray.get(handle.snapshot.remote() if actor == "dispatcher" else handle.describe.remote())
    return int(answer["pid"])


def test_dispatcher_killed_under_a_chain(hub: durable.Hub, instance_id: str) -> None:
    """Only the one step that was in flight may run again."""
    handle = hub.start(flows.march, 200, instance_id=instance_id)
    wait_until(lambda: len(executions(instance_id)) > 50, "it is on its way")
    kill(pid_of(hub, "dispatcher"))
    assert handle.result(100) == 200
    assert len(executions(instance_id)) <= 201
    assert max(Counter(execution.key for execution in executions(instance_id)).values()) <= 2


def test_dispatcher_killed_under_a_map(hub: durable.Hub, instance_id: str) -> None:
    """No item whose outcome is recorded runs again."""
    count = 5_000
    handle = hub.start(flows.spread_slowly, count, instance_id=instance_id)
    wait_until(lambda: len(recorded_keys(hub, instance_id)) > 1_000, "a part is recorded")
    kill(pid_of(hub, "dispatcher"))
    recorded = recorded_keys(hub, instance_id)
    assert len(recorded) < count
    assert handle.result(120) == count * (count - 1)
    assert not recorded & repeated(instance_id).keys()


def test_dispatcher_killed_under_long_activities(hub: durable.Hub, instance_id: str, go: Callable[[str], None]) -> None:
    """Activities that were running run again, counted as submissions in the log, and the instance completes."""
    handle = hub.start(flows.spread_waiting, 2, instance_id=instance_id)
    wait_until(lambda: len(executions(instance_id)) == 2, "both run")
    kill(pid_of(hub, "dispatcher"))
    wait_until(lambda: len(executions(instance_id)) == 4, "both run again")
    go(instance_id)
    again = executions(instance_id)[2:]
    assert sorted(handle.result(60)) == sorted(execution.pid for execution in again)
    claims = [event for event in handle.history() if isinstance(event, OwnerClaimed)]
    assert [submission for _, submission in claims[-1].attempts] == [2, 2]


def test_supervisor_killed(hub: durable.Hub, instance_id: str) -> None:
    """Running instances do not notice, and new ones start as soon as it is back."""
    running = hub.start(flows.steps_then_approval, 50, instance_id=f"{instance_id}-running")
    old = pid_of(hub, "supervisor")
    kill(old)
    new = hub.start(flows.march, 3, instance_id=f"{instance_id}-new")
    running.raise_event("Approval", "yes")
    assert running.result(60) == "yes after 50"
    assert new.result(60) == 3
    assert pid_of(hub, "supervisor") != old
    assert not repeated(f"{instance_id}-running")


def test_all_killed_at_once(hub: durable.Hub, instance_id: str) -> None:
    """Dispatcher, supervisor and orchestrator together."""
    handle = hub.start(flows.march, 200, instance_id=instance_id)
    wait_until(lambda: len(executions(instance_id)) > 50, "it is on its way")
    for actor in ("dispatcher", "supervisor"):
        kill(pid_of(hub, actor))
    kill_owner(handle)
    assert handle.result(100) == 200
    assert len(executions(instance_id)) <= 201


def test_dispatcher_that_ray_gave_up(hub: durable.Hub, instance_id: str) -> None:
    """The supervisor makes another; Ray itself never would."""
    handle = hub.start(flows.march, 100, instance_id=instance_id)
    wait_until(lambda: len(executions(instance_id)) > 20, "it is on its way")
    ray.kill(ray.get_actor("dispatcher", namespace=hub.address.namespace), no_restart=True)
    assert handle.result(60) == 100
    assert len(repeated(instance_id)) <= 1


def test_supervisor_that_ray_gave_up(hub: durable.Hub, instance_id: str) -> None:
    """The next call makes another, on the same Ray: what else lives there is not touched."""
    mine = ray.put("kept")
    address = ray.get_runtime_context().gcs_address
    ray.kill(ray.get_actor("supervisor", namespace=hub.address.namespace), no_restart=True)
    assert hub.start(flows.march, 3, instance_id=instance_id).result(60) == 3
    assert ray.get_runtime_context().gcs_address == address
    assert ray.get(mine) == "kept"


def test_result_keeps_its_timeout_while_the_orchestrator_is_stopped(hub: durable.Hub, instance_id: str) -> None:
    """A process that is stopped, or whose orchestrator blocks, holds nobody up for longer."""
    handle = hub.start(flows.steps_then_approval, 1, instance_id=instance_id)
    wait_until(lambda: len(executions(instance_id)) == 1, "it is on its way")
    owner = handle.owner()
    assert owner is not None
    os.kill(owner.pid, signal.SIGSTOP)
    try:
        began_s = time.monotonic()
        with pytest.raises(TimeoutError):
            handle.result(1)
        assert time.monotonic() - began_s < 10
    finally:
        os.kill(owner.pid, signal.SIGCONT)
    handle.raise_event("Approval", "yes")
    assert handle.result(60) == "yes after 1"
