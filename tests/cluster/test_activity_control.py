"""Activities that are ended on a real Ray: timeouts, heartbeats, cancellations."""

from __future__ import annotations

import pytest

import ray_durable as durable
from tests.cluster import controlled
from tests.cluster.harness import executions, is_alive, kill, wait_until


def words(instance_id: str) -> list[str]:
    """What its activities said."""
    path = controlled.words_path(instance_id)
    return path.read_text().splitlines() if path.exists() else []


def test_a_call_that_sleeps_is_ended_in_time_and_retried(hub: durable.Hub, instance_id: str) -> None:
    """Within a second of its deadline; its worker lives on and takes the second attempt."""
    handle = hub.start(controlled.calls_with_retry, "oversleeps_once", 1_000, instance_id=instance_id)
    assert handle.result(60) == 2
    began_s, ended_s = map(float, words(instance_id))
    assert 1.0 <= ended_s - began_s < 2.0


def test_a_call_that_cannot_be_interrupted_is_ended_with_its_process(hub: durable.Hub, instance_id: str) -> None:
    """After the grace; the next attempt has another process."""
    handle = hub.start(controlled.calls_with_retry, "cannot_be_interrupted", 7, instance_id=instance_id)
    assert handle.result(60) == 7
    first, second = executions(instance_id)
    assert (first.attempt, second.attempt) == (1, 2)
    assert first.pid != second.pid
    wait_until(lambda: not is_alive(first.pid), "the first process has ended")


def test_a_process_that_can_do_nothing_is_ended_from_outside(hub: durable.Hub, instance_id: str) -> None:
    """Some seconds later still."""
    handle = hub.start(controlled.calls_with_retry, "keeps_the_lock", 7, instance_id=instance_id)
    assert handle.result(60) == 7
    first, second = executions(instance_id)
    assert (first.attempt, second.attempt) == (1, 2)
    wait_until(lambda: not is_alive(first.pid), "the first process has ended")


def test_an_async_call_cleans_up(hub: durable.Hub, instance_id: str) -> None:
    """Its cleanup awaits; the orchestrator is told of the timeout."""
    handle = hub.start(controlled.calls_cleans_up, instance_id=instance_id)
    assert handle.result(60) == "timeout ActivityTimeoutError"
    assert words(instance_id) == ["cleaned up"]


def test_the_next_attempt_reads_what_a_killed_one_said(hub: durable.Hub, instance_id: str) -> None:
    """SIGKILL of the worker: it is the same attempt, and goes on where the last one was."""
    handle = hub.start(controlled.calls_the_same_again, 500, instance_id=instance_id)
    (first,) = wait_until(lambda: executions(instance_id), "it runs")

    # What was said within the last quarter of a second may be on its way.
    wait_until(lambda: "last heartbeat 1 s ago" in str(handle.explain()), "it has said all, a second ago")
    kill(first.pid)
    assert handle.result(60) == [{"position": 499}, 1]
    assert executions(instance_id)[1].pid != first.pid


def test_an_attempt_that_falls_silent_is_ended_and_its_words_are_in_the_log(hub: durable.Hub, instance_id: str) -> None:
    """The next attempt reads them."""
    handle = hub.start(controlled.calls_with_retry, "falls_silent", 1, instance_id=instance_id)
    assert handle.result(60) == "here"
    assert [execution.attempt for execution in executions(instance_id)] == [1, 2]


@pytest.mark.parametrize("count", [1, 3])
def test_termination_cancels_what_runs(hub: durable.Hub, instance_id: str, count: int) -> None:
    """Each activity is told, and their workers live on."""
    handle = hub.start(controlled.runs_for_ever, count, instance_id=instance_id)
    wait_until(lambda: len(executions(instance_id)) == count, "all run")
    handle.terminate("enough")
    wait_until(lambda: len(words(instance_id)) == count, "all were cancelled")
    assert sorted(words(instance_id)) == [f"cancelled {number}" for number in range(count)]


def test_a_map_that_is_given_up_cancels_what_runs(hub: durable.Hub, instance_id: str) -> None:
    """Its items are told too; the instance goes on."""
    handle = hub.start(controlled.maps_for_ever, 2, instance_id=instance_id)
    wait_until(lambda: executions(instance_id), "it runs")
    handle.raise_event("Enough", None)
    wait_until(lambda: words(instance_id), "it was cancelled")
    handle.raise_event("Go", None)
    assert handle.result(60) == "given up"


def test_a_neighbour_in_the_same_slice_is_unharmed(hub: durable.Hub, instance_id: str) -> None:
    """Of two calls that share a slice one is given up: the other returns, from its only execution. So is a third, which
    waits for a worker: it never begins."""
    handle = hub.start(controlled.keeps_one_of_three, instance_id=instance_id)
    wait_until(lambda: len(executions(instance_id)) == 2, "both run")
    first, second = executions(instance_id)
    assert first.pid == second.pid
    handle.raise_event("Enough", None)
    assert handle.result(60) == 1
    assert words(instance_id) == ["cancelled 2"]
    assert len(executions(instance_id)) == 2
