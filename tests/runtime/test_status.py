"""The status of an instance: from an execution, through a segment's header, to the client's eyes."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest

from ray_durable.engine import Counts, RuntimeStatus
from ray_durable.runtime.status import InstanceStatus, Owner, Progress, summarize


def test_a_summary_is_json_and_comes_back_as_status() -> None:
    """What the header of a segment holds is all that a client needs."""
    summary = summarize(
        instance_id="nightly-42",
        name="review",
        execution=2,
        request_id="r",
        created_us=1_764_000_000_123_456,
        updated_us=1_764_000_060_000_000,
        runtime_status=RuntimeStatus.RUNNING,
        custom_status=b'{"at":"chapter 3"}',
        counts=Counts(
            tasks_scheduled=5,
            tasks_completed=2,
            tasks_failed=1,
            map_items_total=100,
            map_items_completed=40,
            map_items_failed=3,
        ),
        owner=Owner(host="node-1", pid=4711, epoch=3),
    )
    status = InstanceStatus.from_summary(json.loads(json.dumps(summary)))
    assert status == InstanceStatus(
        instance_id="nightly-42",
        name="review",
        runtime_status=RuntimeStatus.RUNNING,
        execution=2,
        created_at=datetime(2025, 11, 24, 16, 0, 0, 123_456, tzinfo=UTC),
        updated_at=datetime(2025, 11, 24, 16, 1, tzinfo=UTC),
        custom_status={"at": "chapter 3"},
        progress=Progress(done=42, failed=4, total=105),
        owner=Owner(host="node-1", pid=4711, epoch=3),
    )
    assert status.created_us == 1_764_000_000_123_456


def test_a_start_is_pending_and_nobodys() -> None:
    """Segment 0 is written by the client, before there is an owner."""
    summary = summarize(instance_id="i", name="n", execution=1, request_id="r", created_us=1, updated_us=1)
    status = InstanceStatus.from_summary(summary, problem="no room")
    assert (status.runtime_status, status.owner, status.progress) == (RuntimeStatus.PENDING, None, Progress())
    assert status.problem == "no room"


@pytest.mark.parametrize(
    ("status", "is_ended"),
    [
        ("Pending", False),
        ("Running", False),
        ("Suspended", False),
        ("Completed", True),
        ("Failed", True),
        ("Terminated", True),
        ("ContinuedAsNew", True),
    ],
)
def test_which_statuses_are_an_end(status: str, is_ended: bool) -> None:
    """Whoever waits for the end waits for one of four."""
    summary = summarize(
        instance_id="i",
        name="n",
        execution=1,
        request_id="r",
        created_us=1,
        updated_us=1,
        runtime_status=RuntimeStatus(status),
    )
    assert InstanceStatus.from_summary(summary).is_ended is is_ended
