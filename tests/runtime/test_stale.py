"""What comes late: messages, answers, reports and summaries of an execution that another one has followed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import pytest

from ray_durable.engine import (
    ExecutionRewound,
    ExecutionStarted,
    ExecutionTerminated,
    OutboxDelivered,
    RuntimeStatus,
)
from ray_durable.errors import DurableError, FencedError
from ray_durable.payload import Payload
from ray_durable.runtime.correspondence import Correspondence, ReportEnd
from ray_durable.runtime.lifecycle import (
    Start,
    purge_instance,
    restart_instance,
    rewind_instance,
    start_instance,
)
from ray_durable.runtime.ports import DispatcherLostError
from ray_durable.runtime.termination import record_termination
from ray_durable.storage import Retired, bury, claim_hub_epoch, find_open, list_ended, list_executions, retire
from tests.runtime import model
from tests.support.skipping_loop import simulate, simulated
from tests.support.town import Town
from tests.support.world import Owner, SpyStore, never


async def stopped(town: Town, instance_id: str) -> Owner:
    """An owner that never comes to anything, as of an instance whose code cannot be loaded."""
    owner = town.own(instance_id)

    async def wait(operation: str, key: str) -> None:
        await never()

    owner.store.before = wait
    return owner


class TestMessages:
    @simulated
    async def test_the_end_of_a_call_does_not_reach_another_instance_of_its_id(self) -> None:
        """Neither one that was there before, nor one that came after."""
        town = Town()
        await town.start(model.awaits_event, "Go", instance_id="leaf")
        await town.start(model.calls_and_drops, "leaf")
        assert await town.result_of() == "dropped"
        assert (await town.status("leaf")).runtime_status == RuntimeStatus.RUNNING
        await town.raise_event("Go", 7, "e", "leaf")
        assert await town.result_of("leaf") == 7

    @simulated
    async def test_an_answer_to_a_call_of_the_last_execution_is_not_taken_for_one_of_this(self) -> None:
        """Both calls have the same number, and the first one came to nothing."""
        town = Town()
        await town.start(model.awaits_event, "Go", instance_id="taken")
        await asyncio.sleep(5)
        await town.start(model.calls_and_goes_on, "taken", False)
        assert await town.result_of() == "XX2"

    def test_a_failure_that_was_rewound_is_not_told_again(self) -> None:
        """Its report may arrive at any moment after the rewind, by an owner that had no answer."""

        async def run(delay: int) -> None:
            model.reset()
            model.broken.add("work a2")
            town = Town()
            await town.start(model.caller, "a")
            await town.ended()
            await town.settled()
            child_id = "one:1:2"
            told = Correspondence()
            told.take(await town.history_of(child_id))
            (report,) = [message for message in told.pending if isinstance(message, ReportEnd)]
            model.broken.clear()
            await town.rewind()

            async def deliver() -> None:
                for _ in range(delay):
                    await asyncio.sleep(0)
                while (await town.hub.end("one")) is None:
                    owner = await town.activate("one")
                    with contextlib.suppress(DurableError):
                        await owner.instance.deliver(report)
                        return
                    await asyncio.sleep(0.5)

            await asyncio.gather(deliver(), town.ended())
            assert await town.result_of() == "<AA2>"
            assert model.runs == {"work a": 1, "work a2": 2}
            await town.settled()
            await town.close()

        for delay in range(0, 150, 5):
            simulate(run(delay))

    @simulated
    async def test_what_a_copied_execution_delivered_says_nothing_of_the_one_that_was_copied(self) -> None:
        started = ExecutionStarted(
            number=1,
            instance_id="one",
            run="r3",
            execution=3,
            name="f",
            input=Payload.of("json", b"[]"),
            request_id="r",
            previous=("one", 2, "r2"),
            owes=True,
            lineage=((2, 2, "r2"),),
        )
        told = Correspondence()
        told.take([started, OutboxDelivered(number=2, messages=(0,))])
        told.take([ExecutionRewound(number=3, reason="", request_id="r")])
        assert not told.are_older_delivered

    @simulated
    async def test_one_that_cannot_deliver_begins_anew_all_the_same(self) -> None:
        """The next execution brings what this one owes."""
        town = Town()
        model.reset()
        await town.start(model.receives, 8, instance_id="r")
        stuck = await stopped(town, "r")
        await town.start(model.sends, "r")
        await town.ended()
        await town.restart()
        await town.until(lambda: model.runs["work sent"] == 2)
        await stuck.kill()
        assert sorted(map(str, await town.result_of("r"))) == sorted(["0", "1", "2", "last"] * 2)
        await town.settled()

    @simulated
    async def test_what_has_not_arrived_is_kept_beyond_the_grace_period(self) -> None:
        """Old executions are not removed while they owe something, whoever owns the present one."""
        town = Town(grace_s=5)
        await town.start(model.receives, 4, instance_id="r")
        stuck = await stopped(town, "r")
        await town.start(model.sends_and_goes_on, "r", 3)
        await town.ended()
        for _ in range(3):
            await asyncio.sleep(2_000)
            await (await town.activate("one")).kill()
        await stuck.kill()
        assert await town.result_of("r") == [3, 2, 1, 0]
        await town.settled()
        await asyncio.sleep(10)
        assert (await list_executions(town.objects, town.hub.keys, "one")).numbers == (4,)

    @simulated
    async def test_an_owner_hands_on_what_it_owes_without_reading_it_again(self) -> None:
        """However many rounds go by while a message does not arrive."""
        town = Town()
        await town.start(model.receives, 41, instance_id="r")
        await stopped(town, "r")
        await town.start(model.sends_and_goes_on, "r", 40)
        await town.ended()
        (owner,) = [owner for owner in town.owners if owner.instance.instance_id == "one"]
        starts = [key for operation, key in owner.store.calls if operation == "get" and "/instances/" in key]
        assert len(starts) < 3 * 41


class TestRewinds:
    @simulated
    async def test_what_the_failure_cancelled_goes_on_too(self) -> None:
        """A caller terminates what it called when something else fails; a rewind takes that back, all the way down."""
        town = Town()
        model.reset()
        model.broken.add("work a")
        await town.start(model.group)
        await town.ended()
        await town.settled()
        assert (await town.status("leaf")).runtime_status == RuntimeStatus.TERMINATED
        model.broken.clear()
        await town.rewind()
        await town.until(lambda: model.runs["work a"] == 2)
        await asyncio.sleep(10)
        await town.raise_event("Go", "gone", "e", "leaf")
        assert await town.result_of() == ["gone", "A"]
        await town.settled()

    @simulated
    async def test_one_that_failed_at_once_may_be_rewound_again_and_again(self) -> None:
        """Nothing happens in between; its code runs every time."""
        town = Town()
        model.reset()
        await town.start(model.checks)
        for _ in range(3):
            await town.ended()
            await town.settled()
            await town.rewind()
        await town.ended()
        await town.settled()
        model.mended.add("checks")
        await town.rewind()
        assert await town.result_of() == "A"

    @simulated
    async def test_a_suspension_in_which_the_failure_came_is_over(self) -> None:
        town = Town()
        model.reset()
        model.broken.add("work a")
        town.workers.holds = lambda work: True
        await town.start(model.side_by_side, ["a", "b"])
        await town.until(lambda: town.workers.held)
        await town.command("one", "suspend", "wait", "s")
        for held in list(town.workers.held):
            held.finish()
        await asyncio.sleep(10)
        town.workers.holds = lambda work: False
        await town.command("one", "resume", "go", "r")
        await town.ended()
        await town.settled()
        model.broken.clear()
        await town.rewind()
        assert await town.result_of() == ["A", "B"]


class TestOwners:
    @simulated
    async def test_one_that_was_replaced_does_not_say_that_it_is_so_already(self) -> None:
        """What it knows may have changed since."""
        town = Town()
        await town.start(model.gates)
        await town.command("one", "suspend", "wait", "s1")
        old = town.living("one")
        assert old is not None
        new = town.own("one")
        await asyncio.wait_for(new.instance.resume("go", "r1"), 60)
        with pytest.raises(FencedError):
            await old.instance.suspend("wait again", "s2")
        await town.command("one", "terminate", "enough", "t", True)
        await town.settled()


Operation = Callable[[Town, SpyStore], Awaitable[None]]


async def _restart(town: Town, store: SpyStore) -> None:
    await restart_instance(town.open_hub(store), "one", "restart", reason="", now_us=town.clock.now_us())


async def _rewind(town: Town, store: SpyStore) -> None:
    await rewind_instance(town.open_hub(store), "one", "rewind", reason="", now_us=town.clock.now_us())


async def _purge(town: Town, store: SpyStore) -> None:
    await purge_instance(town.open_hub(store), "one", now_us=town.clock.now_us())


async def _start(town: Town, store: SpyStore) -> None:
    encoded = town.hub.codec.encode_call(model.three_steps.calls, (["z"],), {}, where="test")
    start = Start(instance_id="one", name="three_steps", input=encoded, request_id="start")
    await start_instance(town.open_hub(store), start, now_us=town.clock.now_us())


async def _purge_and_start(town: Town, store: SpyStore) -> None:
    await _purge(town, store)
    await _start(town, store)


async def _restart_to_its_end(town: Town, store: SpyStore) -> None:
    """Fails again: summaries of both executions may have the same name."""
    await _rewind(town, store)
    await town.ended()
    await town.settled()


OPERATIONS: dict[str, Operation] = {"restart": _restart, "rewind": _rewind, "purge": _purge, "start": _start}
OTHERS = OPERATIONS | {"purge and start": _purge_and_start, "rewind to its end": _restart_to_its_end}


async def race(first: str, second: str, moment: int) -> bool:
    """`second` is done at once before the operation `moment` of the store that `first` does; whether it came so far."""
    model.reset()
    model.broken.add("work a")
    town = Town()
    await town.start(model.three_steps, ["a"])
    await town.ended()
    await town.settled()
    store, other = SpyStore(town.objects), SpyStore(town.objects)
    acknowledged: set[str] = set()

    async def do(name: str, spy: SpyStore) -> None:
        with contextlib.suppress(DurableError):
            await OTHERS[name](town, spy)
            acknowledged.add(name)

    async def before(operation: str, key: str) -> None:
        if len(store.calls) == moment:
            await do(second, other)

    store.before = before
    await do(first, store)
    await town.settled()
    executions = await list_executions(town.objects, town.hub.keys, "one")
    starts = {
        event.request_id
        for number in range(1, executions.next)
        for event in (await town.hub.read_log("one", number))[1][:1]
        if isinstance(event, ExecutionStarted)
    }
    for name in acknowledged & {"restart", "rewind", "start"}:
        assert name in starts, f"{name} was acknowledged, and there is no such execution"
    if executions.latest is None:
        assert "purge" in acknowledged
    page = await list_ended(town.objects, town.hub.keys)
    assert [one["execution"] for one in page.summaries] == [executions.latest] * (executions.latest is not None)
    assert await find_open(town.objects, town.hub.keys, "one") is None
    await town.close()
    return len(store.calls) >= moment


@pytest.mark.parametrize("second", OTHERS)
@pytest.mark.parametrize("first", OPERATIONS)
def test_of_two_operations_at_once_each_that_is_acknowledged_has_happened(first: str, second: str) -> None:
    """On an instance that failed, whichever comes in between, and wherever."""
    moment = 1
    while simulate(race(first, second, moment)):
        moment += 1
    assert moment > 5


class TestPurges:
    @simulated
    async def test_one_that_stopped_before_the_tombstone_removes_nothing(self) -> None:
        town = Town(grace_s=10)
        model.reset()
        await town.start(model.three_steps, ["a"])
        await town.ended()
        await town.settled()
        due_us = town.clock.now_us() + 5_000_000
        await retire(town.objects, town.hub.keys, Retired(instance_id="one", through=1, due_us=due_us))
        await asyncio.sleep(60)
        assert await town.result_of() == ["A"]
        assert await town.objects.list_folder(town.hub.keys.retired) == []

    @simulated
    async def test_one_that_stopped_behind_the_tombstone_is_done_later(self) -> None:
        """With the summary."""
        town = Town(grace_s=10)
        model.reset()
        await town.start(model.three_steps, ["a"])
        await town.ended()
        await town.settled()
        due_us = town.clock.now_us() + 5_000_000
        await retire(town.objects, town.hub.keys, Retired(instance_id="one", through=1, due_us=due_us))
        await bury(town.objects, town.hub.keys, "one", 1)
        await asyncio.sleep(60)
        assert (await list_ended(town.objects, town.hub.keys)).summaries == ()
        assert await town.objects.list_folder(f"{town.hub.keys.hub}/runs/") == []


class TestLateOwners:
    @simulated
    async def test_an_owner_of_what_was_purged_leaves_the_instance_that_came_after_it_alone(self) -> None:
        """It read the end before the purge, and takes the instance out of the open set after the next one's start."""
        for pause in range(20):
            model.reset()
            town = Town()
            await town.start(model.child, "a")
            await town.settled()
            gate = asyncio.Event()
            late = _hold(town.own("one"), pause, gate)
            while len(late.store.calls) <= pause and not late.task.done():
                await asyncio.sleep(0)
            await purge_instance(town.hub, "one", now_us=town.clock.now_us())
            await town.start(model.awaits_event, "Go")
            gate.set()
            await asyncio.sleep(60)
            assert await find_open(town.objects, town.hub.keys, "one") is not None, pause
            await town.raise_event("Go", 7, "e")
            assert await town.result_of() == 7
            await town.settled()
            await town.close()

    @simulated
    async def test_an_owner_of_an_older_hub_epoch_does_not_claim_behind_one_of_a_newer(self) -> None:
        """That one may only wait, and would never hear that it has lost the log."""
        world = Town()
        world.hub.epoch = 2
        await world.start(model.awaits_event, "Go")
        newer = world.own("one", epoch=2)
        await world.until(lambda: newer.store.segments)
        older = world.own("one", epoch=1)
        with pytest.raises(FencedError, match="Hub epoch 2"):
            await older.ended()
        assert older.store.segments == []
        await world.close()

    @simulated
    async def test_an_owner_of_a_lost_hub_claims_nothing_though_nobody_else_has(self) -> None:
        """Ray may start its process again after the takeover. The log would allow the claim until the newer cluster
        comes to this instance."""
        world = Town()
        await world.start(model.awaits_event, "Go")
        assert await claim_hub_epoch(world.objects, world.hub.keys, 2, {"cluster": "there"})
        late = world.own("one")
        with pytest.raises(FencedError, match="hub epoch 2"):
            await late.ended()
        assert late.store.segments == []
        await world.close()

    @simulated
    async def test_an_owner_of_a_lost_hub_does_not_claim_again_when_its_dispatcher_is_lost(self) -> None:
        """Though the log is still its own, and there is another dispatcher."""
        world = Town()
        await world.start(model.awaits_event, "Go")
        owner = world.own("one")
        await world.until(lambda: owner.store.segments)
        assert await claim_hub_epoch(world.objects, world.hub.keys, 2, {"cluster": "there"})
        owner.instance._inbox.fail(DispatcherLostError("the dispatcher was lost"))
        with pytest.raises(FencedError, match="hub epoch 2"):
            await owner.ended()
        assert len(owner.store.segments) == 1
        await world.close()

    @simulated
    async def test_a_lost_hub_terminates_nothing_past_code_that_cannot_be_loaded(self) -> None:
        world = Town()
        await world.start(model.awaits_event, "Go")
        assert await claim_hub_epoch(world.objects, world.hub.keys, 2, {"cluster": "there"})
        asked = ExecutionTerminated(reason="enough", request_id="r")
        with pytest.raises(FencedError, match="hub epoch 2"):
            await record_termination(world.open_hub(world.objects), "one", asked, world.clock.now_us())
        assert (await world.status("one")).runtime_status == RuntimeStatus.PENDING
        await world.close()

    @simulated
    async def test_an_owner_that_was_made_while_its_cluster_lost_the_hub_leaves(self) -> None:
        """It came too late to be ended with the others, and would look for the dispatcher, which was, for ever."""
        world = Town()
        await world.start(model.awaits_event, "Go")
        world.lose_dispatcher()
        late = world.own("one")
        await world.until(lambda: late.instance.problem)
        assert await claim_hub_epoch(world.objects, world.hub.keys, 2, {"cluster": "there"})
        with pytest.raises(FencedError, match="hub epoch 2"):
            await late.ended()
        assert late.store.segments == []
        await world.close()


def _hold(owner: Owner, pause: int, gate: asyncio.Event) -> Owner:
    """Let an owner go on behind its `pause`-th operation once the gate is open."""
    before = owner.store.before
    assert before is not None

    async def wait(operation: str, key: str) -> None:
        if len(owner.store.calls) > pause:
            await gate.wait()
        await before(operation, key)

    owner.store.before = wait
    return owner
