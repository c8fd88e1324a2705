"""Scenarios in which a process dies at every point."""

from __future__ import annotations

import itertools
from datetime import timedelta

import pytest

import ray_durable as durable
from ray_durable.testing import CrashError, Environment, crash_everywhere
from tests.testing import flows


def approve(env: Environment) -> tuple[str, int]:
    """An application that is approved after a day."""
    env.replace(flows.send_mail, lambda to: f"mail to {to}")
    handle = env.start(flows.vet, "ann")
    env.advance(timedelta(days=1))
    handle.raise_event("Approval", True)
    return handle.result(), len(env.calls(flows.send_mail))


def test_an_approval_survives_the_loss_of_its_owner_anywhere() -> None:
    """Reads are points too; each write is one lost and one applied. The mail is sent once."""
    points = crash_everywhere(approve)
    assert len(points) > 10
    assert {point.moment for point in points if point.operation.is_write} == {"before", "after"}


def test_callers_and_called_survive_the_loss_of_either() -> None:
    """The owners of all instances are counted together."""

    def scenario(env: Environment) -> list[str]:
        env.replace(flows.send_mail, lambda to: f"mail to {to}")
        return env.start(flows.checkout, ["ann"]).result()

    points = crash_everywhere(scenario)
    assert len({point.operation.instance_id for point in points}) == 2


def test_maps_retries_and_rounds_survive_the_loss_of_the_dispatcher() -> None:
    """What was recorded does not run again; what was in flight may."""

    def scenario(env: Environment) -> tuple[int, str]:
        return env.start(flows.basket, ["pen", "paper"]).result(), env.start(flows.round_robin, 1).result()

    assert crash_everywhere(scenario, victims=("dispatcher",))


def test_an_orchestrator_that_is_not_deterministic_is_found() -> None:
    """It asks for something else in the replay after a crash, and the error says at which point."""
    draws = itertools.count()

    @durable.orchestrator
    async def fickle(ctx: durable.OrchestrationContext) -> int:
        return await ctx.call_activity(flows.price, "x" * next(draws))

    with pytest.raises(CrashError, match=r"the owner dies (before|after) operation \d+ \(.*fickle-1") as caught:
        crash_everywhere(lambda env: type(env.start(fickle).result()).__name__)
    assert caught.value.point.victim == "owner"


def test_another_result_after_a_crash_is_found() -> None:
    """The error holds both results."""
    runs = itertools.count()

    @durable.orchestrator
    async def counts_runs(ctx: durable.OrchestrationContext) -> None:
        await ctx.call_activity(flows.price, "pen")

    def scenario(env: Environment) -> int:
        env.start(counts_runs).result()
        return next(runs)

    with pytest.raises(CrashError, match="gives 1 instead of 0"):
        crash_everywhere(scenario)
