"""Instances that call instances: results, failures, cancellation, termination, and the loss of anybody."""

from __future__ import annotations

from typing import Any

import pytest

from ray_durable.authoring import Orchestrator
from ray_durable.engine import (
    EventSent,
    ExecutionCompleted,
    OutboxDelivered,
    RuntimeStatus,
    SubOrchestrationInstanceCompleted,
    SubOrchestrationInstanceCreated,
    SubOrchestrationInstanceFailed,
)
from tests.runtime import model
from tests.support.skipping_loop import simulate, simulated
from tests.support.town import Town


@simulated
async def test_a_call_is_an_instance_of_its_own_and_gives_its_result() -> None:
    """Its id is derived from the parent's, and it knows who called it."""
    town = Town()
    await town.start(model.caller, "a")
    assert await town.result_of() == "<AA2>"
    await town.settled()
    history = await town.history_of()
    (created,) = [event for event in history if isinstance(event, SubOrchestrationInstanceCreated)]
    (completed,) = [event for event in history if isinstance(event, SubOrchestrationInstanceCompleted)]
    assert completed.task == created.number
    child_id = f"one:1:{created.number}"
    started = await town.hub.started(child_id)
    assert (started.parent, started.depth) == (("one", 1, created.number), 1)
    end = (await town.history_of(child_id))[-1]
    assert completed.message == f"{end.number}.1.{child_id}"


@simulated
async def test_many_calls_run_side_by_side_and_nest() -> None:
    town = Town()
    model.reset()
    await town.start(model.clan, 4)
    assert await town.result_of() == [f"<C{n}C{n}2>" for n in range(4)]
    await town.settled()
    assert set(model.runs.values()) == {1}


@simulated
async def test_a_failure_propagates_with_its_chain() -> None:
    """Each level names itself; the innermost cause is the activity's own."""
    town = Town()
    model.reset()
    model.broken.add("work a")
    await town.start(model.caller, "a")
    await town.ended()
    failure = await town.failure()
    assert failure.type_name == "SubOrchestrationError"
    assert failure.message.startswith(
        "Sub-orchestrator function 'child' failed: ActivityError: Activity function 'work' failed: "
    )
    chain = [failure.type_name]
    while failure.cause is not None:
        failure = failure.cause
        chain.append(failure.type_name)
    assert chain == ["SubOrchestrationError", "ActivityError", "ValueError"]


@simulated
async def test_a_failure_can_be_caught() -> None:
    """The error names the instance that failed, whose id nobody had asked for."""
    town = Town()
    model.reset()
    model.broken.add("work a2")
    await town.start(model.careful_parent, "a")
    result = await town.result_of()
    failed, _, _ = result.partition(": ")
    assert "a2 is broken" in result
    assert (await town.hub.started(failed)).parent == ("one", 1, int(failed.split(":")[-1]))
    assert (await town.status(failed)).runtime_status == RuntimeStatus.FAILED


@simulated
async def test_a_call_is_retried_as_another_instance() -> None:
    """By the policy; each attempt is an instance, and the waits are durable."""
    town = Town()
    model.reset()
    model.broken.add("work a2")
    await town.start(model.patient_parent, "a")
    await town.until(lambda: model.runs["work a2"] == 2)
    model.broken.clear()
    assert await town.result_of() == "AA2"
    history = await town.history_of()
    created = [event for event in history if isinstance(event, SubOrchestrationInstanceCreated)]
    assert [(event.attempt, event.retry_of) for event in created] == [
        (1, None),
        (2, created[0].number),
        (3, created[0].number),
    ]
    for event, status in zip(created, ["Failed", "Failed", "Completed"], strict=True):
        assert (await town.status(f"one:1:{event.number}")).runtime_status == status


@simulated
async def test_an_id_may_be_given_and_one_that_runs_is_refused() -> None:
    """The instance that has it goes on undisturbed."""
    town = Town()
    await town.start(model.awaits_event, "Go", instance_id="taken")
    await town.start(model.named_parent, "mine", instance_id="p1")
    await town.start(model.named_parent, "taken", instance_id="p2")
    assert await town.result_of("p1") == "XX2"
    assert (await town.hub.started("mine")).parent is not None
    await town.ended("p2")
    assert "already exists" in (await town.failure("p2")).message
    assert (await town.status("taken")).runtime_status == RuntimeStatus.RUNNING


@simulated
async def test_an_id_whose_instance_has_ended_is_used_again() -> None:
    town = Town()
    for parent_id in ("p1", "p2"):
        await town.start(model.named_parent, "same", instance_id=parent_id)
        assert await town.result_of(parent_id) == "XX2"
        await town.settled()
    assert (await town.status("same")).execution == 2


@simulated
async def test_termination_reaches_children_and_their_children() -> None:
    town = Town()
    await town.start(model.grandparent_of_waiting, "leaf")
    await town.until(lambda: town.living("leaf"))
    await town.command("one", "terminate", "enough", "r1", True)
    await town.settled()
    statuses = [(await town.status(name)).runtime_status for name in ("one", "mid-leaf", "leaf")]
    assert statuses == [RuntimeStatus.TERMINATED] * 3


@simulated
async def test_termination_leaves_children_alone_if_told_to() -> None:
    town = Town()
    await town.start(model.parent_of_waiting, "leaf")
    await town.until(lambda: town.living("leaf"))
    await town.command("one", "terminate", "enough", "r1", False)
    await town.ended("one")
    await town.raise_event("Go", 7, "e1", "leaf")
    assert await town.result_of("leaf") == 7


@simulated
async def test_a_call_that_nobody_waits_for_any_more_is_terminated() -> None:
    """Here by a timeout around it."""
    town = Town()
    await town.start(model.impatient_parent, "leaf")
    assert await town.result_of() == "gave up"
    await town.settled()
    assert (await town.status("leaf")).runtime_status == RuntimeStatus.TERMINATED


@simulated
async def test_a_parent_that_completes_leaves_its_children_running() -> None:
    """Even a call of the last step is made, although nobody waits for it."""
    town = Town()
    await town.start(model.leaves_children, "leaf")
    assert await town.result_of() == "left"
    await town.raise_event("Go", "on", "e1", "leaf")
    assert await town.result_of("leaf") == "on"
    await town.settled()


@simulated
async def test_events_between_instances_arrive_once_and_in_order() -> None:
    """Also those of the step in which the sender ends."""
    town = Town()
    await town.start(model.receives, 4, instance_id="r")
    await town.start(model.sends, "r")
    assert await town.result_of("r") == [0, 1, 2, "last"]
    await town.settled()


@simulated
async def test_a_message_to_nobody_keeps_nobody_waiting() -> None:
    """There never was such an instance, or it has ended."""
    town = Town()
    await town.start(model.sends, "nobody", instance_id="s1")
    assert await town.result_of("s1") == "sent"
    await town.settled()
    await town.start(model.sends, "s1", instance_id="s2")
    assert await town.result_of("s2") == "sent"
    await town.settled()


@simulated
async def test_calls_without_end_are_refused_with_the_limit() -> None:
    town = Town()
    await town.start(model.endless, 0)
    await town.ended()
    failure = await town.failure()
    while failure.cause is not None:
        failure = failure.cause
    assert failure.type_name == "NestingTooDeepError"
    assert "32" in failure.message
    await town.settled()


@simulated
async def test_what_was_delivered_is_noted_and_not_sent_again() -> None:
    """The note goes along with other inputs; a later owner knows."""
    town = Town()
    await town.start(model.receives, 4, instance_id="r")
    await town.start(model.sends, "r")
    await town.result_of()
    history = await town.history_of()
    sent = [event.number for event in history if isinstance(event, EventSent)]
    notes = [event.messages for event in history if isinstance(event, OutboxDelivered)]
    assert notes == [tuple(sent[:3])], "the messages of the first step are noted with the timer"


WORKLOADS: dict[str, tuple[Orchestrator[..., Any], tuple[Any, ...], object]] = {
    "family": (model.clan, (2,), ["<C0C02>", "<C1C12>"]),
    "retry": (model.patient_parent, ("a",), None),
    "messages": (model.sends, ("r",), "sent"),
    "given up": (model.impatient_parent, ("leaf",), "gave up"),
    "continued": (model.parent_of_rounds, (2,), 102),
    "sender goes on": (model.sends_and_goes_on, ("r", 3), "done"),
}


async def run(name: str, deaths: dict[int, bool]) -> Town:
    """Run a workload to the end of everything, with these deaths; check what must hold."""
    function, args, expected = WORKLOADS[name]
    model.reset()
    town = Town(deaths=deaths.items())
    if name == "messages" or name == "sender goes on":
        await town.start(model.receives, 4, instance_id="r")
    if name == "retry":
        model.broken.add("work a2")
    await town.start(function, *args)
    if name == "retry":
        await town.until(lambda: model.runs["work a2"] >= 1)
        model.broken.clear()
        expected = "AA2"
    assert await town.result_of() == expected
    if name == "messages":
        assert await town.result_of("r") == [0, 1, 2, "last"]
    if name == "sender goes on":
        assert await town.result_of("r") == [3, 2, 1, 0]
    await town.settled()
    outcomes = (SubOrchestrationInstanceCompleted, SubOrchestrationInstanceFailed)
    history = await town.history_of()
    answered = [event.task for event in history if isinstance(event, outcomes)]
    assert len(answered) == len(set(answered)), "a call is answered once"
    assert isinstance(history[-1], ExecutionCompleted)
    allowed = 2 if name == "retry" else 1
    assert all(count <= allowed for call, count in model.runs.items()), model.runs
    await town.close()
    return town


@pytest.mark.parametrize("name", WORKLOADS)
def test_the_loss_of_any_owner_at_any_moment_changes_nothing(name: str) -> None:
    """At every operation of any owner's store, before and after it took effect: nothing lost, nothing twice."""
    total = simulate(run(name, {})).operations
    for number in range(1, total + 1):
        for is_done in (False, True):
            town = simulate(run(name, {number: is_done}))
            assert town.died == 1 or number > total - 5, f"nobody died at {number}"


@pytest.mark.parametrize("name", ["family", "sender goes on"])
def test_the_loss_of_several_owners_changes_nothing(name: str) -> None:
    """Deaths in close succession: of parent and child, and of the one that came to replace them."""
    total = simulate(run(name, {})).operations
    for number in range(1, total + 1, 3):
        simulate(run(name, {number: True, number + 1: False, number + 4: True, number + 9: False}))
