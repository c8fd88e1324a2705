"""An instance that only waits has no process; an event or a timer brings it back."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import ray

import ray_durable as durable
from ray_durable.engine import EventRaised, OwnerClaimed, TimerFired
from ray_durable.runtime.explanation import Explanation
from tests.cluster import flows
from tests.cluster.harness import is_alive, kill, wait_until

IDLE = timedelta(seconds=1)


@pytest.fixture
def idling(hub: durable.Hub, instance_id: str) -> Iterator[durable.Hub]:
    """Another hub at the same root and on the same Ray, whose instances leave soon."""
    options: dict[str, Any] = {"live_instances_max": 2, "idle_timeout": IDLE, "unread_events_max": 2}
    with durable.connect(hub.address.root, hub=instance_id[:50], **options) as idling:
        yield idling


def actors(hub: durable.Hub) -> set[str]:
    """The names of the hub's living actors."""
    listed = ray.util.list_named_actors(all_namespaces=True)
    return {entry["name"] for entry in listed if entry["namespace"] == hub.address.namespace}


def left(handle: durable.Handle[Any], hub: durable.Hub) -> int:
    """The process that owned the instance, once it has ended."""
    owner = wait_until(handle.owner, "it has had an owner")
    wait_until(lambda: f"instance:{handle.instance_id}" not in actors(hub), "its actor has left")
    wait_until(lambda: not is_alive(owner.pid), "its process has ended")
    return owner.pid


def test_events_that_nobody_waits_for_are_refused_also_once_it_is_back(idling: durable.Hub) -> None:
    """The next process counts what waits from the log; the event that the code waits for is taken."""
    handle = idling.start(flows.asks_approval, instance_id="flooded")
    for number in range(2):
        handle.raise_event("Noise", number, event_id=f"noise {number}")
    left(handle, idling)
    with pytest.raises(durable.TooManyEventsError, match="Event 'Noise' was not recorded: 2 external events") as caught:
        handle.raise_event("Noise", 2)
    assert (caught.value.instance_id, caught.value.name, caught.value.count) == ("flooded", "Noise", 2)
    handle.raise_event("Noise", 1, event_id="noise 1")
    handle.raise_event("Approval", "yes")
    assert handle.result(60) == "yes"
    assert sum(isinstance(event, EventRaised) for event in handle.history()) == 3


def test_an_event_brings_it_back(idling: durable.Hub) -> None:
    """More wait than may have an actor; status, explanation and a wait for the end wake none of them."""
    handles = [idling.start(flows.asks_approval, instance_id=f"waiting-{number}") for number in range(3)]
    pids = {left(handle, idling) for handle in handles}
    assert len(pids) == 3
    told: Explanation = handles[0].explain()
    assert [one.name for one in told.waiting if one.kind == "external event"] == ["Approval"]
    with pytest.raises(TimeoutError):
        handles[0].result(3)
    assert not {name for name in actors(idling) if name.startswith("instance:")}
    for handle in handles:
        handle.raise_event("Approval", "yes")
    assert [handle.result(60) for handle in handles] == ["yes"] * 3


def test_a_timer_brings_it_back_in_time(idling: durable.Hub) -> None:
    """Not before it is due, and soon after; the supervisor that lived when it left is gone by then."""
    handle = idling.start(flows.naps, 12.0, instance_id="sleeper")
    left(handle, idling)
    supervisor = ray.get_actor("supervisor", namespace=idling.address.namespace)
    told: Any = ray.get(supervisor.describe.remote())
    kill(told["pid"])
    assert not [name for name in actors(idling) if name == "instance:sleeper"]
    began_s = time.monotonic()
    handle.result(60)
    history = handle.history()
    (fired,) = [event for event in history if isinstance(event, TimerFired)]
    late_s = (fired.time_us - history[0].time_us) / 1_000_000 - 12
    print(f"fired {late_s:.2f} s after it was due; waited {time.monotonic() - began_s:.1f} s")
    assert 0 <= late_s < 5
    assert len(claims(handle)) == 2


def test_one_that_the_index_lost_is_found_again(idling: durable.Hub) -> None:
    """Its entry in the open set is removed while it rests, so the supervisor would not wake it when it is due."""
    handle = idling.start(flows.naps, 600.0, instance_id="lost")
    left(handle, idling)
    supervisor = ray.get_actor("supervisor", namespace=idling.address.namespace)

    def resting() -> int:
        told: Any = ray.get(supervisor.describe.remote())
        return int(told["resting"])

    wait_until(lambda: resting() == 1, "the supervisor knows that it rests")
    (Path(idling.address.root) / idling.address.hub / "index" / "open" / "lost").unlink()
    wait_until(lambda: resting() == 0, "the supervisor has seen that it is not there")
    report = idling.repair_index()
    assert report.mended == ("lost: entered into the open set, since it has not ended",)
    wait_until(lambda: len(claims(handle)) == 2, "it has an owner again")
    assert idling.repair_index().mended == ()
    handle.terminate("seen enough")


def claims(handle: durable.Handle[Any]) -> list[OwnerClaimed]:
    return [event for event in handle.history() if isinstance(event, OwnerClaimed)]
