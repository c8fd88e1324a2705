"""Control of instances: suspend, rewind, restart, fork, purge, explain, and the end of code that will not end."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

import ray_durable as durable
from ray_durable.engine import TaskCompleted
from tests.cluster import flows
from tests.cluster.harness import executions, failure_of, is_alive, is_over, kill_owner, wait_for_executions, wait_until


def test_suspend_and_resume(hub: durable.Hub, instance_id: str) -> None:
    """Nothing happens while it is suspended, also not after a kill; what arrived meanwhile is taken in order."""
    handle = hub.start(flows.marches_on_request, 3, instance_id=instance_id)
    wait_for_executions(instance_id, 1)
    handle.suspend("lunch")
    handle.suspend("lunch, again")
    assert handle.status().runtime_status == "Suspended"
    for _ in range(2):
        handle.raise_event("Next")
    kill_owner(handle)
    handle.raise_event("Next")
    assert len(executions(instance_id)) == 1
    assert handle.status().runtime_status == "Suspended"
    handle.resume()
    assert handle.result(60) == 3
    assert len(executions(instance_id)) == 3


def test_suspended_instance_is_terminated(hub: durable.Hub, instance_id: str) -> None:
    handle = hub.start(flows.asks_approval, instance_id=instance_id)
    handle.suspend()
    handle.terminate("not needed")
    with pytest.raises(durable.OrchestrationTerminatedError, match="not needed"):
        handle.result(60)


def test_rewind(hub: durable.Hub, instance_id: str, go: Callable[[str], None]) -> None:
    """Once the activity is mended, the failed instance goes on; what was done before is not done again."""
    handle = hub.start(flows.marches_over_a_gap, 3, instance_id=instance_id)
    assert "3 is broken" in failure_of(handle)
    go(instance_id)
    handle.rewind("mended")
    assert handle.result(60) == 4
    names = [execution.name for execution in executions(instance_id)]
    assert names == ["step_on"] * 3 + ["works_once_mended"] * 2 + ["step_on"]
    assert handle.status().execution == 2
    with pytest.raises(durable.ConfigurationError, match="only a failed one"):
        handle.rewind()


def test_rewind_of_a_parent(hub: durable.Hub, instance_id: str, go: Callable[[str], None]) -> None:
    """The child that failed goes on from where it failed, the others keep their results."""
    handle = hub.start(flows.family_with_a_gap, instance_id=instance_id)
    assert "1 is broken" in failure_of(handle)
    go(f"{instance_id}-gap")
    handle.rewind("mended")
    assert handle.result(60) == [2, 2, 2]
    assert [len(executions(f"{instance_id}-{name}")) for name in ("0", "1", "gap")] == [2, 2, 4]


def test_restart(hub: durable.Hub, instance_id: str) -> None:
    """Under the same id only after the end; under another at any time, with the same input."""
    handle = hub.start(flows.marches_on_request, 1, instance_id=instance_id)
    with pytest.raises(durable.InstanceActiveError):
        handle.restart()
    other = handle.restart(f"{instance_id}-other")
    for one in (handle, other):
        one.raise_event("Next")
        assert one.result(60) == 1
    assert handle.restart(reason="once more").instance_id == instance_id
    handle.raise_event("Next")
    assert handle.result(60) == 1
    assert handle.status().execution == 2
    assert len(executions(instance_id)) == 2


def test_fork(hub: durable.Hub, instance_id: str) -> None:
    """From a point of another's history: what was done up to there is not done again, the other is not touched."""
    handle = hub.start(flows.march, 4, instance_id=instance_id)
    assert handle.result(60) == 4
    second = [event.number for event in handle.history() if isinstance(event, TaskCompleted)][1]
    fork = handle.fork(f"{instance_id}-fork", after=second)
    assert fork.result(60) == 4
    assert len(executions(fork.instance_id)) == 2
    assert len(executions(instance_id)) == 4
    with pytest.raises(durable.InstanceExistsError):
        handle.fork(fork.instance_id)
    with pytest.raises(durable.ConfigurationError, match="not after 1000"):
        handle.fork(after=1_000)


@pytest.fixture
def brief(hub: durable.Hub) -> Iterator[durable.Hub]:
    """A hub that keeps what is purged for a second."""
    with durable.connect(hub.address.root, hub="brief", grace=timedelta(seconds=1)) as brief:
        yield brief


def test_purge(brief: durable.Hub, instance_id: str) -> None:
    """It is gone at once, its objects after the grace period; its id can be used again."""
    handle = brief.start(flows.marches_on_request, 1, instance_id=instance_id)
    with pytest.raises(durable.InstanceActiveError):
        handle.purge()
    handle.raise_event("Next")
    assert handle.result(60) == 1
    wait_until(lambda: brief.instances(status="Completed"), "it has left the open set")
    handle.purge()
    with pytest.raises(durable.InstanceNotFoundError):
        handle.status()
    assert not brief.instances()
    runs = Path(brief.address.root) / "brief" / "runs"
    # Folders go while this looks.
    wait_until(lambda: not any(files for _, _, files in os.walk(runs)), "its objects are gone")
    again = brief.start(flows.march, 1, instance_id=instance_id)
    assert again.result(60) == 1
    assert again.status().execution == 2


def line_of(text: str) -> str:
    """Where in the orchestrators' module a text stands, as `file:line`; it is there once."""
    lines = inspect.getsource(flows).splitlines()
    (number,) = [number for number, line in enumerate(lines, start=1) if text in line]
    return f"{Path(flows.__file__).name}:{number}"


def test_explanation(hub: durable.Hub, instance_id: str) -> None:
    """Everything that the instance waits for, with worker, due time and the line that asked for it."""
    handle = hub.start(flows.waits_for_everything, instance_id=instance_id)
    (execution,) = wait_for_executions(instance_id, 1)
    wait_until(lambda: hub.get(f"{instance_id}-child").owner(), "the child runs")
    explanation = handle.explain()
    found: dict[str, durable.Waiting] = {waiting.kind: waiting for waiting in explanation.waiting}
    assert len(explanation.waiting) == len(found) == 4
    activity = found["activity"]
    assert (activity.name, activity.attempt) == ("waits_for_go", 1)
    assert activity.worker is not None
    assert activity.worker.endswith(f":{execution.pid}")
    due = found["timer"].due
    assert due is not None
    assert timedelta(days=1) < due - datetime.now(UTC) <= timedelta(days=2)
    assert found["external event"].name == "Approval"
    assert found["sub-orchestration"].instance_id == f"{instance_id}-child"
    for kind, text in {
        "activity": "ctx.call_activity(waits_for_go, 1),",
        "timer": "ctx.create_timer(timedelta(days=2)),",
        "external event": 'ctx.wait_for_external_event("Approval"),',
        "sub-orchestration": "ctx.call_sub_orchestrator(asks_approval,",
    }.items():
        assert found[kind].source.endswith(line_of(text))
        assert found[kind].source in str(explanation)
    handle.terminate()


def test_code_that_keeps_its_thread(hub: durable.Hub, instance_id: str) -> None:
    """It is reported with its stack; it can be explained, and terminated."""
    handle = hub.start(flows.blocks, instance_id=instance_id)
    problem = wait_until(lambda: handle.status().problem, "it is reported", timeout_s=20)
    assert "time.sleep(1_000)" in problem
    stack = handle.explain().stack
    assert stack is not None
    assert line_of("time.sleep(1_000)").partition(":")[0] in stack
    owner = handle.owner()
    assert owner is not None
    handle.terminate("it blocks")
    with pytest.raises(durable.OrchestrationTerminatedError, match="it blocks"):
        handle.result(60)
    wait_until(lambda: not is_alive(owner.pid), "its process is gone")
    wait_until(lambda: hub.instances(prefix=instance_id, status="Terminated"), "it has left the open set")


def test_code_that_swallows_cancellation(hub: durable.Hub, instance_id: str) -> None:
    """It can be terminated all the same, and its activity ends."""
    handle = hub.start(flows.swallows_cancellation, instance_id=instance_id)
    (execution,) = wait_for_executions(instance_id, 1)
    handle.terminate("enough")
    with pytest.raises(durable.OrchestrationTerminatedError, match="enough"):
        handle.result(60)
    wait_until(lambda: is_over(execution, instance_id), "the activity is over")
