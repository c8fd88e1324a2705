"""Losing processes in an environment: owners, workers, the dispatcher."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ray_durable.testing import Environment
from tests.testing import flows


@pytest.fixture
def env() -> Iterator[Environment]:
    with Environment() as environment:
        environment.replace(flows.send_mail, lambda to: f"mail to {to}")
        yield environment


def test_a_lost_owner_is_followed_by_another(env: Environment) -> None:
    """It replays, and finished activities do not run again."""
    handle = env.start(flows.vet, "ann")
    epoch = handle.status().owner
    env.lose_owner(handle)
    handle.raise_event("Approval", True)
    assert handle.result() == "mail to ann: approved"
    assert handle.status().owner != epoch
    assert len(env.calls(flows.send_mail)) == 1


def test_a_lost_worker_is_no_failure_of_the_activity(env: Environment) -> None:
    """The call runs elsewhere."""
    env.lose_worker(flows.send_mail, times=2)
    handle = env.start(flows.vet, "ann")
    handle.raise_event("Approval", True)
    assert handle.result() == "mail to ann: approved"


def test_a_lost_dispatcher_lets_activities_in_flight_run_again(env: Environment) -> None:
    """With the same idempotency key; the held call of the lost one is gone with it."""
    env.hold(flows.send_mail)
    handle = env.start(flows.vet, "ann")
    env.lose_dispatcher()
    env.release(flows.send_mail)
    handle.raise_event("Approval", True)
    assert handle.result() == "mail to ann: approved"


@pytest.mark.parametrize("moment", ["before", "after"])
def test_an_owner_dies_at_an_operation_of_the_store(env: Environment, moment: str) -> None:
    """Before or after it took effect; either way the instance comes to its end."""
    handle = env.start(flows.vet, "ann")
    count = len(env.operations)
    (env.crash_before if moment == "before" else env.crash_after)(1)
    handle.raise_event("Approval", True)
    assert handle.result() == "mail to ann: approved"
    assert env.operations[count].operation == "put_if_absent"
    assert handle.status().owner is not None
    assert len(env.calls(flows.send_mail)) == 1
