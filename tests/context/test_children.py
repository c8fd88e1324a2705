"""Calls of other orchestrators, as an orchestrator makes them."""

from __future__ import annotations

from typing import Any

import pytest

import ray_durable as durable
from ray_durable.engine import (
    EventSent,
    SubOrchestrationInstanceCompleted,
    SubOrchestrationInstanceCreated,
    SubOrchestrationInstanceFailed,
)
from ray_durable.failure import Failure

from .kit import T0_US, Running


@durable.orchestrator(version="7")
async def floor_area(ctx: durable.OrchestrationContext, width: int, height: float = 2.5) -> tuple[int, float]:
    return width, width * height


@durable.activity
def no_orchestrator() -> None:
    """An activity that is called by mistake."""


@durable.orchestrator
async def calls_children(ctx: durable.OrchestrationContext, way: str) -> Any:
    match way:
        case "plain":
            result = await ctx.call_sub_orchestrator(floor_area, 2)
            return [type(result).__name__, *result]
        case "named":
            return await ctx.call_sub_orchestrator("floor_area", 2, height=3.0, instance_id="child", version="8")
        case "retried":
            policy = durable.RetryPolicy(max_attempts=2)
            return await ctx.call_sub_orchestrator_with_retry(floor_area, policy, 2, instance_id="child")
        case "caught":
            try:
                return await ctx.call_sub_orchestrator(floor_area, 2)
            except durable.SubOrchestrationError as error:
                return [str(error), error.failure.message]


def created(running: Running) -> SubOrchestrationInstanceCreated:
    (event,) = running.execution.outstanding_children.values()
    return event


def test_a_child_is_called_with_checked_arguments_its_version_and_its_reference() -> None:
    """The result is decoded by the child's annotation, not as JSON would have it."""
    running = Running(calls_children, "plain")
    child = created(running)
    assert (child.name, child.input.bytes, child.instance, child.version) == ("floor_area", b"[2]", None, "7")
    assert child.reference is not None
    assert child.reference["qualname"] == "floor_area"
    running.apply(
        SubOrchestrationInstanceCompleted(
            task=2, result=running.codec.encode((2, 5.0), tuple[int, float], where="result"), time_us=T0_US
        )
    )
    assert running.result == ["tuple", 2, 5.0]


def test_a_child_by_name_with_id_and_version() -> None:
    child = created(Running(calls_children, "named"))
    assert (child.name, child.instance, child.version) == ("floor_area", "child", "8")
    assert child.input.bytes == b'{"args":[2],"kwargs":{"height":3.0}}'


def test_a_child_with_a_policy_is_called_again() -> None:
    running = Running(calls_children, "retried")
    failure = Failure(type_name="ValueError", message="why")
    running.apply(SubOrchestrationInstanceFailed(task=2, failure=failure, time_us=T0_US))
    (timer,) = running.execution.timers
    assert running.execution.timers[timer] == T0_US + 1_000_000


def test_a_failed_child_is_told_with_its_name() -> None:
    running = Running(calls_children, "caught")
    failure = Failure(type_name="ValueError", message="why")
    running.apply(SubOrchestrationInstanceFailed(task=2, failure=failure, time_us=T0_US))
    assert running.result == ["Sub-orchestrator function 'floor_area' failed: ValueError: why", "why"]


@durable.orchestrator
async def mistaken_child_calls(ctx: durable.OrchestrationContext, mistake: str) -> Any:
    match mistake:
        case "arguments":
            await ctx.call_sub_orchestrator("floor_area", 1, 2, 3)
        case "activity":
            await ctx.call_sub_orchestrator("no_orchestrator")
        case "orchestrator":
            await ctx.call_activity("floor_area")
        case "unknown":
            await ctx.call_sub_orchestrator("no such")
        case "id":
            await ctx.call_sub_orchestrator(floor_area, 1, instance_id="a/b")
        case "itself":
            await ctx.call_sub_orchestrator(floor_area, 1, instance_id=ctx.instance_id)
        case "target":
            ctx.send_event("a/b", "x")
        case "event":
            ctx.send_event("other", "")


@pytest.mark.parametrize(
    ("mistake", "error", "said"),
    [
        ("arguments", "TypeError", "floor_area"),
        ("activity", "FunctionNotFoundError", "ctx.call_activity calls it"),
        ("orchestrator", "FunctionNotFoundError", "ctx.call_sub_orchestrator calls it"),
        ("unknown", "FunctionNotFoundError", "no such"),
        ("id", "InvalidIdError", "'a/b'"),
        ("itself", "InvalidIdError", "cannot call itself"),
        ("target", "InvalidIdError", "'a/b'"),
        ("event", "InvalidIdError", "event name"),
    ],
)
def test_a_mistake_fails_at_the_call(mistake: str, error: str, said: str) -> None:
    """Nothing is asked for by it."""
    running = Running(mistaken_child_calls, mistake)
    assert running.failure.type_name == error
    assert said in running.failure.message
    assert len(running.caused) == 1


def test_a_function_of_a_script_is_found_in_the_code_of_its_caller() -> None:
    """One that was not captured with it cannot be called from an importable orchestrator."""

    @durable.orchestrator(name="local child")
    async def local(ctx: durable.OrchestrationContext) -> None:
        """Not importable."""

    running = Running(calls_local_child, local.name)
    assert running.failure.type_name == "ConfigurationError"
    from ray_durable.callees import Callees

    assert Callees({}, "digest").reference(local).code == "digest"


@durable.orchestrator
async def calls_local_child(ctx: durable.OrchestrationContext, name: str) -> Any:
    return await ctx.call_sub_orchestrator(name)


def test_recursion_without_end_is_refused_at_the_call() -> None:
    """Thirty-two callers are allowed; the error names the limit and says what to use instead."""
    assert created(Running(calls_children, "plain", depth=31)).name == "floor_area"
    running = Running(calls_children, "plain", depth=32)
    assert running.failure.type_name == "NestingTooDeepError"
    assert "32 are the most" in running.failure.message
    assert "ctx.continue_as_new" in running.failure.message


@durable.orchestrator
async def sends_news(ctx: durable.OrchestrationContext) -> str | None:
    ctx.send_event("other", "news", {"a": [1, 2]})
    ctx.send_event("other", "signal")
    return ctx.version


def test_sent_events_carry_values_and_the_version_is_that_of_the_start() -> None:
    running = Running(sends_news, version="3")
    sent = [(event.instance, event.name, event.value.bytes) for event in running.caused if isinstance(event, EventSent)]
    assert sent == [("other", "news", b'{"a":[1,2]}'), ("other", "signal", b"null")]
    assert running.result == "3"
