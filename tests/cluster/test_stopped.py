"""SIGSTOP: a process that is stopped looks alive to Ray. Others take its place, and once it goes on it does nothing."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
import ray

import ray_durable as durable
from ray_durable.engine import EventRaised, OwnerClaimed
from tests.cluster import flows
from tests.cluster.harness import executions, is_alive, wait_for_new_owner, wait_until

SILENCE = timedelta(seconds=3)


@pytest.fixture(scope="module")
def watched(hub: durable.Hub) -> Iterator[durable.Hub]:
    """Another hub at the same root and on the same Ray, that gives up stopped processes soon."""
    with durable.connect(hub.address.root, hub="watched", answer_timeout=SILENCE) as watched:
        yield watched


@pytest.fixture
def stop() -> Iterator[Callable[[int], None]]:
    """Stops processes; those that still are go on after the test."""
    stopped: list[int] = []

    def stop(pid: int) -> None:
        os.kill(pid, signal.SIGSTOP)
        stopped.append(pid)

    yield stop
    for pid in stopped:
        if is_alive(pid):
            os.kill(pid, signal.SIGCONT)


def pid_of(hub: durable.Hub, actor: str) -> int:
    """The process of the hub's dispatcher or supervisor, as it says."""
    told: Any = ray.get(ray.get_actor(actor, namespace=hub.address.namespace).describe.remote(), timeout=1)
    return int(told["pid"])


def new_pid(hub: durable.Hub, actor: str, *, after: int) -> int:
    """The process of an actor that took the place of another one."""

    def pid() -> int | None:
        try:
            found = pid_of(hub, actor)
        except (ValueError, ray.exceptions.RayError):
            return None
        return found if found != after else None

    return wait_until(pid, f"another {actor} answers")


def test_a_stopped_orchestrator_is_replaced(watched: durable.Hub, stop: Callable[[int], None]) -> None:
    """Another process goes on with the log; the old one, let go on, adds nothing to it, and ends."""
    handle = watched.start(flows.collects, 3, instance_id="stopped")
    handle.raise_event("Number", 1, event_id="first")
    owner = handle.owner()
    assert owner is not None
    stop(owner.pid)
    began_s = time.monotonic()
    wait_for_new_owner(handle, after=owner.pid)
    print(f"replaced after {time.monotonic() - began_s:.1f} s")
    handle.raise_event("Number", 2, event_id="second")
    if is_alive(owner.pid):
        os.kill(owner.pid, signal.SIGCONT)
    wait_until(lambda: not is_alive(owner.pid), "the old process has ended")
    handle.raise_event("Number", 3, event_id="third")
    assert handle.result(60) == [1, 2, 3]
    history = handle.history()
    assert [event.event_id for event in history if isinstance(event, EventRaised)] == ["first", "second", "third"]
    claims = [event for event in history if isinstance(event, OwnerClaimed)]
    assert [claim.epoch for claim in claims] == list(range(1, len(claims) + 1))
    assert claims[-1].pid != owner.pid


def test_a_stopped_dispatcher_is_replaced(watched: durable.Hub, stop: Callable[[int], None]) -> None:
    """The chain goes on with the next one; only the step that was in flight may run twice."""
    handle = watched.start(flows.march, 60, instance_id="marching")
    wait_until(lambda: len(executions("marching")) > 20, "it is on its way")
    pid = pid_of(watched, "dispatcher")
    stop(pid)
    assert handle.result(60) == 60
    assert len(executions("marching")) <= 61
    assert new_pid(watched, "dispatcher", after=pid)


def test_a_stopped_supervisor_is_replaced(watched: durable.Hub, stop: Callable[[int], None]) -> None:
    """By the dispatcher: nobody else may be there. Instances are started again by the next one."""
    pid = pid_of(watched, "supervisor")
    stop(pid)
    new_pid(watched, "supervisor", after=pid)
    wait_until(lambda: not is_alive(pid), "the old process has ended")
    assert watched.start(flows.march, 2, instance_id="later").result(60) == 2
