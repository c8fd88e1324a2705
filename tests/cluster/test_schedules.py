"""Later starts and schedules on a real Ray: driven by the supervisor, from storage alone."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import ray_durable as durable
from ray_durable.engine import TaskScheduled
from ray_durable.runtime.explanation import at
from tests.cluster import flows
from tests.cluster.harness import executions, kill, wait_until
from tests.cluster.test_keepers_kill import pid_of


def test_a_later_start_survives_the_supervisor(hub: durable.Hub, instance_id: str) -> None:
    """Durable and Pending at once; it begins when it is due, by a supervisor that knows of it from storage."""
    due = datetime.now(UTC) + timedelta(seconds=5)
    handle = hub.start(flows.march, 2, instance_id=instance_id, at=due)
    status = handle.status()
    assert (status.runtime_status, status.start_at) == ("Pending", due)
    kill(pid_of(hub, "supervisor"))
    assert handle.result(60) == 2
    assert len(executions(instance_id)) == 2
    began = next(event.time_us for event in handle.history() if isinstance(event, TaskScheduled))
    assert due <= at(began) < due + timedelta(seconds=20)


def test_a_schedule_of_every_second_skips_while_one_runs(hub: durable.Hub, instance_id: str) -> None:
    """One at a time: the next firing that finds the one before ended starts; a killed supervisor changes nothing."""
    schedule = hub.schedule(instance_id, "* * * * * *", flows.marches_on_request, 1, overlap="skip")

    def running(count: int) -> durable.Handle[int]:
        def newest() -> str | None:
            status = schedule.describe()
            return status.last_instance_id if status.started == count and status.skipped >= count else None

        return hub.get(wait_until(newest, f"{count} are started, and later ones skipped"))

    first = running(1)
    first.raise_event("Next")
    assert first.result(60) == 1
    kill(pid_of(hub, "supervisor"))
    second = running(2)
    schedule.delete()
    assert [one.instance_id for one in hub.instances(prefix=f"{instance_id}@")] == [
        first.instance_id,
        second.instance_id,
    ]
    second.terminate()
    assert hub.schedules() == []
