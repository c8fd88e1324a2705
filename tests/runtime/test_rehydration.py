"""Owners that are lost at every place, and the next one: the same result, nothing recorded run again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from ray_durable.authoring import Orchestrator
from ray_durable.engine import (
    Event,
    EventRaised,
    ExecutionCompleted,
    OwnerClaimed,
    TaskCompleted,
    TaskFailed,
    TaskScheduled,
)
from ray_durable.errors import FencedError
from tests.runtime import flows
from tests.support.skipping_loop import simulate, simulated
from tests.support.world import Owner, SpyStore, World, never

MIXED_RESULT = [1, [0, 2, 4], 101, [4, 5, 6], 2, "go"]
Case = tuple[Orchestrator[..., Any], tuple[Any, ...], object]

CASES: dict[str, Case] = {
    "chain": (flows.chain, (4,), 4),
    "fan": (flows.fan, (5,), 20),
    "map": (flows.mapped, (5,), 20),
    "map with retries at once": (flows.map_retried, (6, 0), [0, 1, 2, 3, 4, 5]),
    "map with retries": (flows.map_retried, (6, 30), [0, 1, 2, 3, 4, 5]),
    "retries": (flows.retried, (2,), 3),
    "local": (flows.local_chain, (2,), 4),
    "large": (flows.large, ("x" * 70_000,), 350_001),
    "mixed": (flows.mixed, (), MIXED_RESULT),
}


async def finish(world: World, owner: Owner) -> object:
    """Own the instance to its end, raising the event that it may wait for."""
    value = world.hub.codec.encode("go", where="test")

    async def raise_event() -> None:
        try:
            await owner.instance.raise_event("Go", value, "go")
        except Exception:
            assert owner.task.done() or owner.instance.ended.is_set()

    raising = asyncio.create_task(raise_event())
    await owner.ended()
    raising.cancel()
    return await world.result()


async def run_with_deaths(case: Case, deaths: list[Callable[[SpyStore, Owner], asyncio.Future[None]]]) -> int:
    """Run a case with an owner that dies for each of `deaths`; how many did die before the end."""
    flows.runs.clear()
    flows.keys.clear()
    function, args, expected = case
    world = World()
    await world.start(function, *args)
    died = 0
    for death in deaths:
        store = SpyStore(world.objects)
        owner = world.own(store=store)
        dying = death(store, owner)
        finishing = asyncio.create_task(finish(world, owner))
        parties: set[asyncio.Future[Any]] = {finishing, dying}
        await asyncio.wait(parties, return_when=asyncio.FIRST_COMPLETED)
        died += dying.done()
        await owner.kill()
        await asyncio.gather(finishing, return_exceptions=True)
    assert await finish(world, world.own()) == expected
    history = await world.history()
    check_history(history)
    check_executions(history)
    open_entry = world.hub.keys.open_entry("one")
    assert await world.objects.get(open_entry) is None
    await world.close()
    return died


def check_history(history: Any) -> None:
    """Linear and dense; one outcome a task; epochs rise one by one; the end is last."""
    events: list[Event] = list(history)
    assert [event.number for event in events] == list(range(1, len(events) + 1))
    epochs = [event.epoch for event in events if isinstance(event, OwnerClaimed)]
    assert epochs == list(range(1, len(epochs) + 1))
    scheduled = [event.number for event in events if isinstance(event, TaskScheduled)]
    outcomes = [event.task for event in events if isinstance(event, TaskCompleted | TaskFailed)]
    assert sorted(outcomes) == scheduled
    assert [event for event in events if isinstance(event, ExecutionCompleted)] == events[-1:]


def check_executions(history: Any) -> None:
    """While the dispatcher lives nothing runs twice, but local activities whose outcome was lost with their owner."""
    resubmitted = sum(len(event.attempts) for event in history if isinstance(event, OwnerClaimed))
    expected = {"fails_first 2": 3, "fails_first 1": 2}
    for call, count in flows.runs.items():
        name, _, argument = call.partition(" ")
        most = expected.get(call, 2 if name == "odd_fails_first" and int(argument) % 2 else 1)
        assert count <= most + (resubmitted if name.startswith("local") else 0), call
        assert len(flows.keys[call]) == 1, "every attempt of a call sees one idempotency key"


def at_operation(number: int, *, done: bool) -> Callable[[SpyStore, Owner], asyncio.Future[None]]:
    """Die in the n-th operation of the store, after or before it took effect."""

    def arrange(store: SpyStore, owner: Owner) -> asyncio.Future[None]:
        dying = asyncio.get_running_loop().create_future()

        async def stop(operation: str, key: str) -> None:
            if len(store.calls) >= number:
                if not dying.done():
                    dying.set_result(None)
                await never()

        if done:
            store.after = stop
        else:
            store.before = stop
        return dying

    return arrange


def after_steps(steps: int) -> Callable[[SpyStore, Owner], asyncio.Future[None]]:
    """Die after so many passes of the event loop, wherever that is."""

    def arrange(store: SpyStore, owner: Owner) -> asyncio.Future[None]:
        async def wait() -> None:
            for _ in range(steps):
                await asyncio.sleep(0)

        return asyncio.ensure_future(wait())

    return arrange


@pytest.mark.parametrize("done", [False, True], ids=["before the effect", "after the effect"])
@pytest.mark.parametrize("name", CASES)
def test_an_owner_lost_at_any_operation_of_the_store_changes_nothing(name: str, done: bool) -> None:
    """For every k: the owner dies in its k-th operation, and the next one ends with the same result."""
    number = 1
    while simulate(run_with_deaths(CASES[name], [at_operation(number, done=done)])):
        number += 1
    assert number > 8, "the owner was lost at least at loading, claiming, appending and ending"


def test_an_owner_lost_at_any_moment_of_a_chain_changes_nothing() -> None:
    """For every n: the owner dies after n passes of the loop, at whatever await it stands."""
    steps = 0
    while simulate(run_with_deaths(CASES["chain"], [after_steps(steps)])):
        steps += 1
    assert steps > 30


@pytest.mark.parametrize("offset", range(4))
def test_an_owner_lost_at_any_moment_of_a_mixed_run_changes_nothing(offset: int) -> None:
    """For every n up to where it waits for its timer: the owner dies after n passes of the loop."""
    for steps in range(offset, 60, 4):
        simulate(run_with_deaths(CASES["mixed"], [after_steps(steps)]))


@pytest.mark.parametrize("name", ["chain", "map with retries at once"])
def test_two_owners_lost_one_after_the_other_change_nothing(name: str) -> None:
    """For every pair: the first owner dies in operation j, the second in operation k."""
    for first in range(3, 18, 2):
        second = 1
        while (
            simulate(run_with_deaths(CASES[name], [at_operation(first, done=True), at_operation(second, done=False)]))
            == 2
            and second < 40
        ):
            second += 1


@simulated
async def test_running_activities_are_attached_not_submitted_again() -> None:
    """What the dispatcher still runs goes on: the new owner's claim counts no attempt, and the worker is the same."""
    world = World()
    world.workers.holds = lambda work: True
    await world.start(flows.fan, 3)
    first = world.own()
    await world.until(lambda: len(world.workers.held) == 3)
    await first.kill()
    second = world.own()
    await world.until(lambda: second.store.segments)
    await world.settle()
    assert len(world.workers.launched) == 3
    for held in list(world.workers.held):
        held.finish()
    await second.ended()
    assert await world.result() == 6
    assert len(world.workers.launched) == 3
    history = await world.history()
    assert [event.attempts for event in history if isinstance(event, OwnerClaimed)] == [(), ()]


@simulated
async def test_outcomes_that_nobody_heard_come_again_to_the_next_owner() -> None:
    """An activity that finished while there was no owner is handed over, not run again."""
    world = World()
    world.workers.holds = lambda work: True
    await world.start(flows.fan, 2)
    first = world.own()
    await world.until(lambda: len(world.workers.held) == 2)
    await first.kill()
    for held in list(world.workers.held):
        held.finish()
    await world.settle()
    second = world.own()
    await second.ended()
    assert await world.result() == 2
    assert flows.runs == {"double 0": 1, "double 1": 1}


@simulated
async def test_what_a_lost_dispatcher_ran_is_submitted_again_as_a_counted_attempt() -> None:
    """A new dispatcher knows nothing; the claim names each task with its second submission."""
    world = World()
    world.workers.holds = lambda work: True
    await world.start(flows.fan, 3)
    owner = world.own()
    await world.until(lambda: len(world.workers.held) == 3)
    world.workers.held[0].finish()
    await world.until(lambda: len(owner.store.segments) == 2)
    await world.settle()
    world.lose_dispatcher()
    world.start_dispatcher()
    world.workers.holds = lambda work: False
    await owner.ended()
    assert await world.result() == 6
    history = await world.history()
    done_before = next(event.task for event in history if isinstance(event, TaskCompleted))
    tasks = [event.number for event in history if isinstance(event, TaskScheduled)]
    claims = [event for event in history if isinstance(event, OwnerClaimed)]
    assert claims[1].attempts == tuple((task, 2) for task in tasks if task != done_before)
    assert flows.runs["double 0"] == 1
    check_history(history)


@simulated
async def test_submissions_are_counted_across_owners_and_dispatchers() -> None:
    """The third submission is called the third, also by an owner that did not see the second."""
    world = World()
    world.workers.holds = lambda work: True
    await world.start(flows.chain, 1)
    first = world.own()
    await world.until(lambda: world.workers.held)
    world.lose_dispatcher()
    world.start_dispatcher()
    await world.until(lambda: world.workers.held)
    await first.kill()
    world.lose_dispatcher()
    world.start_dispatcher()
    world.workers.holds = lambda work: False
    second = world.own()
    await second.ended()
    claims = [event for event in await world.history() if isinstance(event, OwnerClaimed)]
    assert [claim.attempts for claim in claims] == [(), ((2, 2),), ((2, 3),)]


@simulated
async def test_an_outcome_that_arrived_is_recorded_although_the_dispatcher_died_then() -> None:
    """What was delivered is not in flight: losing the dispatcher right after does not run it again."""
    world = World()
    await world.start(flows.fan, 2)
    world.workers.holds = lambda work: True
    owner = world.own()
    await world.until(lambda: len(world.workers.held) == 2)
    let_go = asyncio.Event()

    async def hold(operation: str, key: str) -> None:
        await let_go.wait()

    owner.store.before = hold
    value = world.hub.codec.encode("x", where="test")
    raising = asyncio.create_task(owner.instance.raise_event("Other", value, "other"))
    await world.settle()
    for held in list(world.workers.held):
        held.finish()
    await world.settle()
    world.lose_dispatcher()
    world.start_dispatcher()
    world.workers.holds = lambda work: False
    await world.settle()
    let_go.set()
    await owner.ended()
    await raising
    assert await world.result() == 2
    assert flows.runs == {"double 0": 1, "double 1": 1}


@simulated
async def test_an_owner_waits_for_a_dispatcher_that_is_down_and_says_so() -> None:
    """No dispatcher: the instance is not claimed, shows why, and goes on once there is one."""
    world = World()
    world.lose_dispatcher()
    await world.start(flows.chain, 1)
    owner = world.own()
    await asyncio.sleep(3)
    assert owner.store.segments == []
    status = await world.status()
    assert status.problem is not None
    assert "dispatcher" in status.problem
    world.start_dispatcher()
    await owner.ended()
    assert await world.result() == 1
    assert owner.instance.problem is None


@simulated
async def test_of_two_owners_the_older_is_fenced_and_acknowledges_nothing() -> None:
    """The older owner's next append meets the newer one's claim: its callers learn that the outcome is unknown."""
    world = World()
    await world.start(flows.approval)
    older = world.own()
    await world.until(lambda: older.store.segments)
    newer = world.own()
    await world.until(lambda: newer.store.segments)
    value = world.hub.codec.encode("yes", where="test")
    with pytest.raises(FencedError):
        await asyncio.wait_for(older.instance.raise_event("Approval", value, "e1"), 60)
    with pytest.raises(FencedError):
        await older.ended()
    await newer.instance.raise_event("Approval", value, "e2")
    await newer.instance.raise_event("Approval", value, "e3")
    await newer.ended()
    history = await world.history()
    assert [event.event_id for event in history if isinstance(event, EventRaised)] == ["e2", "e3"]
    check_history(history)


@simulated
async def test_a_fenced_owner_refuses_calls() -> None:
    """Whoever still holds the stale owner is told at once, and does not wait for ever."""
    world = World()
    await world.start(flows.approval)
    older = world.own()
    await world.until(lambda: older.store.segments)
    newer = world.own()
    await world.until(lambda: newer.store.segments)
    value = world.hub.codec.encode("yes", where="test")
    with pytest.raises(FencedError):
        await asyncio.wait_for(older.instance.raise_event("Approval", value, "e1"), 60)
    for call in (older.instance.raise_event("Approval", value, "e2"), older.instance.terminate("why", "r1")):
        with pytest.raises(FencedError):
            await asyncio.wait_for(call, 60)
    await newer.kill()


@simulated
async def test_an_older_owner_with_running_activities_stands_down_without_an_append() -> None:
    """The dispatcher tells the older owner that a newer one is attached; it stops, and writes nothing."""
    world = World()
    world.workers.holds = lambda work: True
    await world.start(flows.chain, 1)
    older = world.own()
    await world.until(lambda: world.workers.held)
    newer = world.own()
    await world.until(lambda: newer.store.segments)
    with pytest.raises(FencedError):
        await older.ended()
    assert len(older.store.segments) == 1
    world.workers.held[0].finish()
    await newer.ended()
    assert await world.result() == 1
    assert flows.runs == {"add_one 0": 1}


@simulated
async def test_an_owner_fenced_while_attaching_again_stands_down() -> None:
    """The claim that follows a lost dispatcher finds the log taken: FencedError, and no claim after the newer one."""
    world = World()
    world.workers.holds = lambda work: True
    await world.start(flows.chain, 1)
    older = world.own()
    await world.until(lambda: world.workers.held)
    await world.settle()
    let_go = asyncio.Event()

    async def hold(operation: str, key: str) -> None:
        if operation == "put_if_absent":
            await let_go.wait()

    older.store.before = hold
    claims = len(older.store.writes)
    world.lose_dispatcher()
    world.start_dispatcher()
    await world.until(lambda: len(older.store.writes) > claims)
    newer = world.own()
    await world.until(lambda: world.workers.held)
    let_go.set()
    with pytest.raises(FencedError):
        await older.ended()
    world.workers.held[0].finish()
    await newer.ended()
    assert await world.result() == 1
    epochs = [event.epoch for event in await world.history() if isinstance(event, OwnerClaimed)]
    assert epochs == [1, 2]


@simulated
async def test_owners_that_claim_at_the_same_time_take_turns() -> None:
    """Both claim; one is first, the other claims after it and fences it: one linear history, one owner at the end."""
    world = World()
    await world.start(flows.approval)
    first, second = world.own(), world.own()
    await world.until(lambda: first.store.segments and second.store.segments)
    await world.settle()
    value = world.hub.codec.encode("yes", where="test")
    accepted: list[Owner] = []
    for owner in (first, second):
        try:
            await asyncio.wait_for(owner.instance.raise_event("Approval", value, f"e{len(accepted)}"), 60)
            accepted.append(owner)
        except FencedError:
            pass
    assert len(accepted) == 1
    check_prefix(await world.history())
    await accepted[0].kill()


def check_prefix(history: Any) -> None:
    """Dense numbers and rising epochs, of a history that goes on."""
    events = list(history)
    assert [event.number for event in events] == list(range(1, len(events) + 1))
    epochs = [event.epoch for event in events if isinstance(event, OwnerClaimed)]
    assert epochs == sorted(set(epochs))


@simulated
async def test_an_end_whose_owner_died_is_finished_by_the_next() -> None:
    """Died between the last segment and the open set: the next owner records the end, and tells the dispatcher."""
    world = World()
    world.workers.holds = lambda work: work.target.reference.name == "double"
    await world.start(flows.two_functions)
    first = world.own()
    await world.until(lambda: world.workers.held and len(first.store.segments) == 2)
    terminated = len(first.store.segments) + 1

    async def stop(operation: str, key: str) -> None:
        if len(first.store.segments) == terminated:
            await never()

    first.store.after = stop
    ending = asyncio.create_task(first.instance.terminate("enough", "r1"))
    await world.until(lambda: len(first.store.segments) == terminated)
    await world.settle()
    await first.kill()
    ending.cancel()
    assert not world.workers.held[0].is_cancelled
    second = world.own()
    await second.ended()
    assert second.store.segments == []
    assert await world.objects.get(world.hub.keys.open_entry("one")) is None
    await world.settle()
    assert world.workers.launched[-1].is_cancelled
    assert world.dispatcher is not None
    assert world.dispatcher.snapshot()["runs"] == 0
