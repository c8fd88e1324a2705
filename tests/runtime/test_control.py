"""What is said to an instance from outside: external events, termination, and the answers to both."""

from __future__ import annotations

import asyncio

import pytest

from ray_durable.engine import EventRaised, ExecutionTerminated, RuntimeStatus
from ray_durable.errors import FencedError, InstanceEndedError
from ray_durable.payload import Payload
from tests.runtime import flows
from tests.support.skipping_loop import simulated
from tests.support.world import Owner, SpyStore, World


def encoded(world: World, value: object) -> Payload:
    return world.hub.codec.encode(value, where="test")


async def owned(world: World) -> Owner:
    """The owner of an instance that waits for two approvals."""
    await world.start(flows.approval)
    owner = world.own()
    await world.until(lambda: owner.store.segments)
    return owner


@simulated
async def test_an_event_is_in_the_log_when_raise_event_returns() -> None:
    """Whoever reads the store right after finds it."""
    world = World()
    owner = await owned(world)
    await owner.instance.raise_event("Approval", encoded(world, "yes"), "e1")
    raised = [event for event in await world.history() if isinstance(event, EventRaised)]
    assert [(event.name, event.event_id) for event in raised] == [("Approval", "e1")]


@simulated
async def test_events_reach_the_orchestrator_in_order_and_once() -> None:
    """A repeated id changes nothing, before and after a new owner."""
    world = World()
    first = await owned(world)
    await first.instance.raise_event("Approval", encoded(world, "first"), "e1")
    await first.instance.raise_event("Approval", encoded(world, "again"), "e1")
    await first.kill()
    second = world.own()
    await second.instance.raise_event("Approval", encoded(world, "and again"), "e1")
    await second.instance.raise_event("Approval", encoded(world, "second"), "e2")
    await second.ended()
    assert await world.result() == ["first", "second"]


@simulated
async def test_the_same_event_sent_twice_in_one_turn_is_recorded_once() -> None:
    """Both senders are told that it is durable."""
    world = World()
    owner = await owned(world)
    payload = encoded(world, "yes")
    await asyncio.gather(*(owner.instance.raise_event("Approval", payload, "e1") for _ in range(2)))
    assert sum(isinstance(event, EventRaised) for event in await world.history()) == 1
    await owner.kill()


@simulated
async def test_an_event_raised_while_the_instance_loads_waits_for_its_turn() -> None:
    """The owner has not read the log yet; the event is durable when the call returns."""
    world = World()
    await world.start(flows.approval)
    owner = world.own()
    assert owner.store.calls == []
    await owner.instance.raise_event("Approval", encoded(world, "early"), "e1")
    await owner.instance.raise_event("Approval", encoded(world, "late"), "e2")
    await owner.ended()
    assert await world.result() == ["early", "late"]


@simulated
async def test_after_the_end_nothing_more_is_taken() -> None:
    """InstanceEndedError names the status; the log is as it was."""
    world = World()
    await world.run(flows.chain, 1)
    history = await world.history()
    owner = world.own()
    await owner.ended()
    for call in (
        owner.instance.raise_event("Approval", encoded(world, "late"), "e1"),
        owner.instance.terminate("late", "r1"),
    ):
        with pytest.raises(InstanceEndedError) as caught:
            await call
        assert caught.value.instance_id == "one"
        assert caught.value.runtime_status == "Completed"
    assert await world.history() == history


@simulated
async def test_an_event_that_loses_the_race_against_the_end_is_refused() -> None:
    """It arrives with the input that ends the instance, after it: its sender learns that nobody took it."""
    world = World()
    owner = await owned(world)
    calls = [
        owner.instance.raise_event("Approval", encoded(world, "first"), "e1"),
        owner.instance.raise_event("Approval", encoded(world, "second"), "e2"),
        owner.instance.raise_event("Approval", encoded(world, "third"), "e3"),
    ]
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert answers[:2] == [None, None]
    assert isinstance(answers[2], InstanceEndedError)
    await owner.ended()
    assert await world.result() == ["first", "second"]


@simulated
async def test_an_event_that_arrives_during_the_last_append_is_refused() -> None:
    """It came while the end was being written: it cannot be in the log, and its sender does not wait for ever."""
    world = World()
    owner = await owned(world)
    let_go = asyncio.Event()

    async def hold(operation: str, key: str) -> None:
        await let_go.wait()

    owner.store.before = hold
    ending = asyncio.create_task(owner.instance.terminate("enough", "r1"))
    await world.settle()
    late = asyncio.create_task(owner.instance.raise_event("Approval", encoded(world, "late"), "e1"))
    await world.settle()
    let_go.set()
    await ending
    with pytest.raises(InstanceEndedError):
        await late


@simulated
async def test_termination_ends_the_instance_and_its_running_activities() -> None:
    """Status and reason are in the log; the workers are ended, the dispatcher forgets the run."""
    world = World()
    world.workers.holds = lambda work: True
    await world.start(flows.fan, 3)
    owner = world.own()
    await world.until(lambda: len(world.workers.held) == 3)
    await owner.instance.terminate("enough", "r1")
    await owner.ended()
    await world.settle()
    assert all(launched.is_cancelled for launched in world.workers.launched)
    assert world.dispatcher is not None
    assert world.dispatcher.snapshot()["runs"] == 0
    status = await world.status()
    assert status.runtime_status is RuntimeStatus.TERMINATED
    assert (await world.failure()).message == "enough"
    reasons = [event.reason for event in await world.history() if isinstance(event, ExecutionTerminated)]
    assert reasons == ["enough"]


@simulated
async def test_two_terminations_in_one_turn_are_one() -> None:
    """The first is recorded; the second finds an instance that has ended."""
    world = World()
    owner = await owned(world)
    answers = await asyncio.gather(
        owner.instance.terminate("one", "r1"), owner.instance.terminate("two", "r2"), return_exceptions=True
    )
    assert answers[0] is None
    assert isinstance(answers[1], InstanceEndedError)
    assert (await world.failure()).message == "one"


@simulated
async def test_an_owner_that_is_stopped_leaves_its_callers_an_unknown_outcome() -> None:
    """Whoever waits for a call in flight is told, whatever stopped the owner."""
    world = World()
    owner = await owned(world)
    stopped = asyncio.Event()

    async def hold(operation: str, key: str) -> None:
        await stopped.wait()

    owner.store.before = hold
    in_turn = asyncio.create_task(owner.instance.raise_event("Approval", encoded(world, "x"), "e1"))
    await world.settle()
    waiting = asyncio.create_task(owner.instance.raise_event("Approval", encoded(world, "y"), "e2"))
    await world.settle()
    await owner.kill()
    for call in (in_turn, waiting):
        with pytest.raises(FencedError, match="outcome unknown"):
            await call


@simulated
async def test_a_store_that_lost_its_answer_does_not_repeat_the_event() -> None:
    """The append landed, its answer did not: the same bytes are found, and the caller is told once."""
    world = World()
    owner = await owned(world)

    async def lose_answer(operation: str, key: str) -> None:
        if operation == "put_if_absent":
            owner.store.after = None
            raise unclear(owner.store)

    owner.store.after = lose_answer
    await owner.instance.raise_event("Approval", encoded(world, "yes"), "e1")
    assert sum(isinstance(event, EventRaised) for event in await world.history()) == 1
    await owner.kill()


def unclear(store: SpyStore) -> Exception:
    from ray_durable.errors import StoreUnavailableError

    return StoreUnavailableError("the connection broke", url=store.url)
