"""The turn: one append holds what arrived and what it caused, and nothing leaves before that is durable."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from ray_durable.client import Hub
from ray_durable.engine import ExecutionCompleted, OwnerClaimed, TaskCompleted, TaskScheduled
from ray_durable.runtime.hub import OpenHub
from ray_durable.runtime.lanes import SlicePolicy
from tests.runtime import flows
from tests.support.skipping_loop import simulated
from tests.support.world import SpyStore, World


@simulated
async def test_a_sequential_step_costs_one_write() -> None:
    """Claim with the first call, then one segment for each outcome, and the two writes of the end."""
    world = World()
    await world.start(flows.chain, 5)
    owner = world.own()
    await owner.ended()
    assert await world.result() == 5
    assert len(owner.store.segments) == 1 + 5
    assert [operation for operation, _ in owner.store.writes] == ["put_if_absent"] * 6 + ["put", "delete"]


@simulated
async def test_the_end_writes_segment_then_summary_then_leaves_the_open_set() -> None:
    """The order makes the open set hold every unfinished instance, whatever is lost in between."""
    world = World()
    await world.start(flows.chain, 1)
    owner = world.own()
    await owner.ended()
    last_segment, summary, removal = owner.store.writes[-3:]
    assert last_segment[0] == "put_if_absent"
    assert "/log/" in last_segment[1]
    assert summary[0] == "put"
    assert "/index/ended/" in summary[1]
    assert removal == ("delete", world.hub.keys.open_entry("one"))


def test_a_start_is_two_writes() -> None:
    """The client enters the open set, then creates segment 0; nothing else is written before `start` returns."""

    class NoCluster:
        async def admit(self, instance_id: str) -> None:
            assert instance_id == "one"

        def close(self) -> None:
            pass

    world_address = World.address_of_new_root()
    client = Hub(world_address)
    try:
        opened = client.run(OpenHub.open(world_address))
        spy = SpyStore(opened.store)
        client._opened = OpenHub(world_address, spy)
        client._connection = cast(Any, NoCluster())
        client.start(flows.chain, 3, instance_id="one")
    finally:
        client.close()
    assert [operation for operation, _ in spy.writes] == ["put", "put_if_absent"]
    assert [key.split("/")[1] for _, key in spy.writes] == ["index", "instances"]


@simulated
async def test_nothing_is_submitted_before_the_claim_is_durable() -> None:
    """While the store holds the claim back, the dispatcher hears of no call."""
    world = World()
    await world.start(flows.chain, 1)
    spy, let_go = SpyStore(world.objects), asyncio.Event()

    async def hold(operation: str, key: str) -> None:
        if operation == "put_if_absent":
            await let_go.wait()

    spy.before = hold
    owner = world.own(store=spy)
    await world.until(lambda: spy.writes)
    await world.settle()
    assert world.exchanges == []
    assert world.workers.launched == []
    let_go.set()
    await owner.ended()
    assert flows.runs == {"add_one 0": 1}


@simulated
async def test_nothing_is_submitted_between_the_write_and_its_answer() -> None:
    """An append that the store took, but has not confirmed, releases nothing."""
    world = World()
    await world.start(flows.chain, 2)
    spy, let_go = SpyStore(world.objects), asyncio.Event()

    async def hold(operation: str, key: str) -> None:
        if len(spy.segments) == 2:
            await let_go.wait()

    spy.after = hold
    owner = world.own(store=spy)
    await world.until(lambda: len(spy.segments) == 2)
    await world.settle()
    assert flows.runs == {"add_one 0": 1}
    assert sum(len(exchange.tasks) for exchange in world.exchanges) == 1
    let_go.set()
    await owner.ended()
    assert await world.result() == 2


@simulated
async def test_no_caller_is_told_before_the_append_is_durable() -> None:
    """`raise_event` and `terminate` return only after the store has confirmed."""
    world = World()
    await world.start(flows.approval)
    owner = world.own()
    await world.until(lambda: owner.store.segments)
    await world.settle()
    let_go = asyncio.Event()

    async def hold(operation: str, key: str) -> None:
        if operation == "put_if_absent":
            await let_go.wait()

    owner.store.after = hold
    value = world.hub.codec.encode("yes", where="test")
    raising = asyncio.create_task(owner.instance.raise_event("Approval", value, "e1"))
    ending = asyncio.create_task(owner.instance.terminate("enough", "r1"))
    await world.settle()
    assert len(owner.store.segments) == 2
    assert not raising.done()
    assert not ending.done()
    let_go.set()
    await asyncio.gather(raising, ending)


@simulated
async def test_outcomes_that_arrive_together_cost_one_append() -> None:
    """10,000 calls of one gather are one segment going out and one coming back."""
    world = World(policy=SlicePolicy(first_count=5_000, budget_s=60))
    world.workers.holds = lambda work: True
    world.workers.slot_count = 100
    await world.start(flows.fan, 10_000)
    owner = world.own()
    await world.until(lambda: sum(held.work.count for held in world.workers.held) == 10_000)
    # While the first outcome's append is held up, all others arrive.
    let_go = asyncio.Event()

    async def hold(operation: str, key: str) -> None:
        await let_go.wait()

    owner.store.before = hold
    for held in list(world.workers.held):
        held.finish()
    await world.settle()
    let_go.set()
    await owner.ended()
    assert await world.result() == sum(2 * value for value in range(10_000))
    assert len(owner.store.segments) == 2
    history = await world.history()
    assert sum(isinstance(event, TaskCompleted) for event in history) == 10_000


@simulated
async def test_inputs_that_arrive_during_an_append_share_the_next_one() -> None:
    """Group commit: however many wait, one segment takes them all."""
    world = World()
    await world.start(flows.approval)
    owner = world.own()
    await world.until(lambda: owner.store.segments)
    await world.settle()
    let_go = asyncio.Event()

    async def hold(operation: str, key: str) -> None:
        await let_go.wait()

    owner.store.before = hold
    value = world.hub.codec.encode("yes", where="test")
    first = asyncio.create_task(owner.instance.raise_event("Other", value, "first"))
    await world.settle()
    others = [asyncio.create_task(owner.instance.raise_event("Other", value, f"e{n}")) for n in range(100)]
    await world.settle()
    let_go.set()
    await asyncio.gather(first, *others)
    assert len(owner.store.segments) == 3


@simulated
async def test_a_turn_without_news_writes_nothing() -> None:
    """Outcomes that say nothing new are settled without a segment."""
    world = World()
    await world.start(flows.approval)
    owner = world.own()
    await world.until(lambda: owner.store.segments)
    value = world.hub.codec.encode("yes", where="test")
    await owner.instance.raise_event("Approval", value, "e1")
    written = len(owner.store.writes)
    await owner.instance.raise_event("Approval", value, "e1")
    assert len(owner.store.writes) == written


@simulated
async def test_the_history_is_linear_and_dense() -> None:
    """What a reader sees: numbers without gaps, the claim before the outcomes, the end last."""
    world = World()
    await world.run(flows.chain, 2)
    history = await world.history()
    assert [event.number for event in history] == list(range(1, len(history) + 1))
    assert [type(event).__name__ for event in history] == [
        "ExecutionStarted",
        "TaskScheduled",
        "OwnerClaimed",
        "TaskCompleted",
        "TaskScheduled",
        "TaskCompleted",
        "ExecutionCompleted",
    ]
    claimed = next(event for event in history if isinstance(event, OwnerClaimed))
    assert (claimed.epoch, claimed.hub_epoch, claimed.host, claimed.attempts) == (1, 1, "here", ())


@simulated
async def test_a_slow_append_makes_the_owner_look_before_it_releases() -> None:
    """After a pause of more than a few seconds the owner reads the next slot, and releases what is its own."""
    world = World()
    await world.start(flows.chain, 1)
    spy = SpyStore(world.objects)

    async def slow(operation: str, key: str) -> None:
        if operation == "put_if_absent" and len(spy.segments) == 1:
            await asyncio.sleep(4)

    spy.after = slow
    owner = world.own(store=spy)
    await owner.ended()
    appended = spy.calls.index(("put_if_absent", spy.segments[0]))
    assert spy.calls[appended + 1] == ("get", spy.segments[1])
    assert await world.result() == 1


@simulated
async def test_the_store_is_silent_while_an_instance_waits() -> None:
    """A day of waiting for an event costs no request, neither to the store nor to the dispatcher."""
    world = World()
    await world.start(flows.approval)
    owner = world.own()
    await world.until(lambda: owner.store.segments)
    await world.settle()
    before = (len(owner.store.calls), len(world.exchanges))
    await asyncio.sleep(86_400)
    assert (len(owner.store.calls), len(world.exchanges)) == before
    await owner.kill()


@pytest.mark.parametrize("count", [1, 3])
def test_tasks_and_completions_pair_up(count: int) -> None:
    """Each scheduled task has exactly one outcome in the log."""

    @simulated
    async def scenario() -> None:
        world = World()
        await world.run(flows.fan, count)
        history = await world.history()
        scheduled = [event.number for event in history if isinstance(event, TaskScheduled)]
        completed = [event.task for event in history if isinstance(event, TaskCompleted)]
        assert sorted(completed) == scheduled
        assert isinstance(history[-1], ExecutionCompleted)

    scenario()


@simulated
async def test_an_orchestrator_that_asks_for_nothing_ends_with_its_claim() -> None:
    """One segment: its end is the last event, so that whoever waits for the result finds it."""
    world = World()
    assert await world.run(flows.chain, 0) == 0
    assert [type(event).__name__ for event in await world.history()] == ["ExecutionStarted", "ExecutionCompleted"]
    assert len(world.owners[0].store.segments) == 1
