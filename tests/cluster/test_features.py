"""What orchestrators can do, on a real Ray."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest

import ray_durable as durable
from tests.cluster import flows
from tests.cluster.harness import executions, is_over, repeated, wait_until

_BROWSE = """
import json, sys
import ray_durable as durable
with durable.browse(sys.argv[1]) as hub:
    handle = hub.get(sys.argv[2])
    status = handle.status()
    seen = {
        "status": status.runtime_status, "custom": status.custom_status, "name": status.name,
        "done": status.progress.done,
        "events": [type(event).__name__ for event in handle.history()],
        "listed": [one.instance_id for one in hub.instances(prefix=sys.argv[2])],
        "result": handle.result(5),
    }
assert "ray" not in sys.modules
print(json.dumps(seen))
"""


def test_chain(hub: durable.Hub, instance_id: str) -> None:
    """Activities one after the other, each executed once."""
    assert hub.start(flows.march, 10, instance_id=instance_id).result(60) == 10
    assert [execution.name for execution in executions(instance_id)] == ["step_on"] * 10
    assert not repeated(instance_id)


def test_chain_by_generator(hub: durable.Hub, instance_id: str) -> None:
    """A generator function that yields tasks does the same."""
    assert hub.start(flows.march_by_generator, 10, instance_id=instance_id).result(60) == 10


def test_gather(hub: durable.Hub, instance_id: str) -> None:
    """A fan-out of single calls."""
    assert hub.start(flows.spread, 200, instance_id=instance_id).result(60) == 200 * 199
    assert len(executions(instance_id)) == 200
    assert not repeated(instance_id)


def test_map(hub: durable.Hub, instance_id: str) -> None:
    """A fan-out by one command, with its progress in the status."""
    handle = hub.start(flows.spread_by_map, 2_000, instance_id=instance_id)
    assert handle.result(60) == 2_000 * 1_999
    assert handle.status().progress == durable.Progress(done=2_000, failed=0, total=2_000)
    assert len(executions(instance_id)) == 2_000
    assert not repeated(instance_id)


def test_external_events_come_in_order(hub: durable.Hub, instance_id: str) -> None:
    """Events sent one after the other are received so; one sent twice under one id counts once."""
    handle = hub.start(flows.collects, 3, instance_id=instance_id)
    handle.raise_event("Number", 1)
    handle.raise_event("Number", 2, event_id="the second")
    handle.raise_event("Number", 2, event_id="the second")
    handle.raise_event("Number", 3)
    assert handle.result(60) == [1, 2, 3]


def test_timer_is_never_early(hub: durable.Hub, instance_id: str) -> None:
    """A durable timer fires at its time or later."""
    assert hub.start(flows.naps, 0.3, instance_id=instance_id).result(60) >= 0.3


def test_retry_counts_attempts(hub: durable.Hub, instance_id: str) -> None:
    """The third attempt of three succeeds; all attempts see one key."""
    assert hub.start(flows.persists, 2, instance_id=instance_id).result(60) == 3
    assert [execution.attempt for execution in executions(instance_id)] == [1, 2, 3]
    assert len({execution.key for execution in executions(instance_id)}) == 1


def test_retries_end(hub: durable.Hub, instance_id: str) -> None:
    """After the last attempt the failure reaches the orchestrator and, uncaught, the caller, with its message."""
    handle = hub.start(flows.persists, 9, instance_id=instance_id)
    with pytest.raises(durable.OrchestrationFailedError, match="attempt 3 fails"):
        handle.result(60)
    assert handle.status().runtime_status == durable.RuntimeStatus.FAILED
    assert len(executions(instance_id)) == 3


def test_custom_status(hub: durable.Hub, instance_id: str) -> None:
    """The custom status shows while the instance runs and after its end."""
    handle = hub.start(flows.shows_status, instance_id=instance_id)
    wait_until(lambda: handle.status().custom_status == {"stage": "asking", "asked": 2}, "the custom status shows")
    handle.raise_event("Go")
    assert handle.result(60) == "done"
    assert handle.status().custom_status == "answered"


def test_terminate(hub: durable.Hub, instance_id: str) -> None:
    """A terminated instance ends with the reason; its running activity is ended."""
    handle = hub.start(flows.spread_waiting, 1, instance_id=instance_id)
    (execution,) = wait_until(lambda: executions(instance_id), "the activity runs")
    handle.terminate("enough")
    with pytest.raises(durable.OrchestrationTerminatedError, match="enough"):
        handle.result(60)
    with pytest.raises(durable.InstanceEndedError):
        handle.terminate("again")
    with pytest.raises(durable.InstanceEndedError):
        handle.raise_event("Go")
    wait_until(lambda: is_over(execution, instance_id), "the activity is over")


def test_await_handle(hub: durable.Hub, instance_id: str) -> None:
    """Handles are awaited side by side on the caller's own event loop."""

    async def main() -> list[int]:
        first = hub.start(flows.march, 3, instance_id=f"{instance_id}-1")
        second = hub.start(flows.spread, 3, instance_id=f"{instance_id}-2")
        return list(await asyncio.gather(first, second))

    assert asyncio.run(main()) == [3, 6]


def test_listing(hub: durable.Hub, instance_id: str) -> None:
    """Instances are found by beginning of id, status and name."""
    waiting = hub.start(flows.asks_approval, instance_id=f"{instance_id}-waiting")
    hub.start(flows.march, 1, instance_id=f"{instance_id}-done").result(60)
    wait_until(lambda: waiting.status().runtime_status == durable.RuntimeStatus.RUNNING, "it runs")

    def ids(**filters: str) -> list[str]:
        found = hub.instances(prefix=instance_id, **filters)  # type: ignore[arg-type]
        return [one.instance_id.removeprefix(f"{instance_id}-") for one in found]

    wait_until(lambda: ids(status="Completed") == ["done"], "the ended one is listed as such")
    assert ids() == ["waiting", "done"]
    assert ids(status="Running") == ["waiting"]
    assert ids(name="march") == ["done"]
    waiting.terminate()


def test_browse_needs_no_ray(hub: durable.Hub, instance_id: str) -> None:
    """Another process reads status, history, listing and result without ever importing Ray."""
    handle = hub.start(flows.shows_status, instance_id=instance_id)
    handle.raise_event("Go")
    handle.result(60)
    command = [sys.executable, "-c", _BROWSE, hub.address.root, instance_id]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(hub.address.root))
    seen = json.loads(done.stdout)
    assert seen["events"][0] == "ExecutionStarted"
    assert seen["events"][-1] == "ExecutionCompleted"
    del seen["events"]
    assert seen == {
        "status": "Completed",
        "custom": "answered",
        "name": "shows_status",
        "done": 0,
        "listed": [instance_id],
        "result": "done",
    }


def test_simultaneous_starts_of_one_id(hub: durable.Hub, instance_id: str) -> None:
    """Of many starts under one id, one wins; the others are told, and can use the same handle."""

    async def main() -> list[object]:
        starts = (asyncio.to_thread(hub.start, flows.march, 2, instance_id=instance_id) for _ in range(5))
        return list(await asyncio.gather(*starts, return_exceptions=True))

    outcomes = asyncio.run(main())
    assert sum(isinstance(outcome, durable.Handle) for outcome in outcomes) == 1
    assert sum(isinstance(outcome, durable.InstanceExistsError) for outcome in outcomes) == 4
    assert hub.get(instance_id).result(60) == 2
