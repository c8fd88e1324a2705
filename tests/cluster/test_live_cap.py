"""The cap on live actors."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import ray_durable as durable
from tests.cluster import flows
from tests.cluster.harness import wait_until

LIVE_MAX = 2


@pytest.fixture
def capped(hub: durable.Hub, instance_id: str) -> Iterator[durable.Hub]:
    """Another hub at the same root and on the same Ray, with room for two."""
    with durable.connect(hub.address.root, hub=instance_id, live_instances_max=LIVE_MAX) as capped:
        yield capped


def running_and_pending(hub: durable.Hub, count: int) -> tuple[list[durable.Handle[str]], list[durable.Handle[str]]]:
    """Start `count` instances that wait; those that run and those that do not, once that has come to rest."""
    handles = [hub.start(flows.asks_approval, instance_id=f"waiting-{number}") for number in range(count)]
    wait_until(lambda: len(hub.instances(status="Running")) == LIVE_MAX, "as many run as may")
    running = [handle for handle in handles if handle.status().runtime_status == "Running"]
    return running, [handle for handle in handles if handle not in running]


def test_the_rest_is_pending_until_there_is_room(capped: durable.Hub) -> None:
    """Of five waiting instances two run; the end of one makes room for the next; all end."""
    running, pending = running_and_pending(capped, 5)
    assert len(capped.instances(status="Pending")) == len(pending) == 3
    running[0].raise_event("Approval", "yes")
    assert running[0].result(60) == "yes"
    wait_until(lambda: len(capped.instances(status="Running")) == LIVE_MAX, "the next runs")
    assert len(capped.instances(status="Pending")) == 2
    for handle in (running[1], *pending):
        handle.raise_event("Approval", "yes")
    assert [handle.result(60) for handle in (*running, *pending)] == ["yes"] * 5


def test_event_to_a_pending_instance_is_delivered(capped: durable.Hub) -> None:
    """Whoever talks to a Pending instance does not wait for room."""
    running, (pending,) = running_and_pending(capped, 3)
    pending.raise_event("Approval", "at once")
    assert pending.result(60) == "at once"
    for handle in running:
        handle.terminate()


def test_pending_instance_is_terminated(capped: durable.Hub) -> None:
    """A Pending instance can be ended before it ever ran."""
    running, (pending,) = running_and_pending(capped, 3)
    pending.terminate("not needed")
    with pytest.raises(durable.OrchestrationTerminatedError, match="not needed"):
        pending.result(60)
    for handle in running:
        handle.terminate()
