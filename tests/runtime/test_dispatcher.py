"""The dispatcher over workers that obey: what it starts, keeps, hands over, forgets, and whom it believes."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from ray_durable.codec import Codec
from ray_durable.failure import Failure
from ray_durable.payload import Payload
from ray_durable.reference import FunctionReference
from ray_durable.runtime.dispatcher import Dispatcher
from ray_durable.runtime.lanes import SlicePolicy
from ray_durable.runtime.messages import (
    Exchange,
    ExchangeReply,
    MapOutcomes,
    MapRequest,
    SliceNews,
    SliceReport,
    SliceWork,
    TaskOutcome,
    TaskRequest,
)
from ray_durable.runtime.tenure import Tenure
from ray_durable.target import ActivityTarget
from tests.runtime import flows
from tests.support.skipping_loop import simulated
from tests.support.world import World

CODEC = Codec()
HUB_EPOCH = 7


def target(name: str = "f") -> ActivityTarget:
    reference = FunctionReference(name=name, module="m", qualname=name, source="new source")
    return ActivityTarget(reference=reference, options={}, is_local=False, key=name)


def task(number: int, name: str = "f") -> TaskRequest:
    payload = Payload.of("json", b"[%d]" % number)
    return TaskRequest(task=number, attempt=1, submission=1, origin=number, input=payload, target=target(name))


def items(number: int, count: int) -> MapRequest:
    batch = CODEC.encode_batch(list(range(count)), where="items")
    return MapRequest(map=number, attempt=1, submission=1, items=batch, ranges=((0, count),), target=target("mapped"))


class Launched:
    """A slice on a worker that does what the test says."""

    def __init__(self, work: SliceWork, generation: str | None, tell: Callable[[SliceNews], None]) -> None:
        self.work = work
        self.generation = generation
        self.end = self.tell = tell
        self.is_cancelled = False
        self.withdrawn: list[tuple[int, ...]] = []
        self.listens = False

    def withdraw(self, calls: tuple[int, ...]) -> bool:
        self.withdrawn.append(calls)
        return self.listens

    def cancel(self) -> None:
        self.is_cancelled = True

    def finish(self) -> None:
        count = self.work.count
        if self.work.batch is not None:
            results = CODEC.encode_batch(list(range(count)), where="results")
            self.end(SliceReport(done=count, elapsed_s=0.001, results=results))
        else:
            self.end(SliceReport(done=count, elapsed_s=0.001, outcomes=[Payload.of("json", b"1")] * count))


class Bench:
    """A dispatcher with its launcher, and exchanges in the name of instances."""

    def __init__(self, *, slots: int = 4, first_count: int = 1, tenure: Tenure | None = None) -> None:
        self.launched: list[Launched] = []
        self.slot_count = slots
        self.refusal: Exception | None = None
        policy = SlicePolicy(first_count=first_count)
        self.dispatcher = Dispatcher(self, hub_epoch=HUB_EPOCH, policy=policy, tenure=tenure)
        self.incarnation = ""

    def launch(self, work: SliceWork, generation: str | None, tell: Callable[[SliceNews], None]) -> Launched:
        if self.refusal is not None:
            raise self.refusal
        self.launched.append(Launched(work, generation, tell))
        return self.launched[-1]

    def slots(self, wanted: ActivityTarget) -> int:
        return self.slot_count

    async def exchange(
        self, run: str = "a", *, epoch: int = 1, hub_epoch: int = HUB_EPOCH, **what: Any
    ) -> ExchangeReply:
        if not self.incarnation:
            self.incarnation = (await self.dispatcher.attach(run, run)).incarnation
        incarnation = what.pop("incarnation", self.incarnation)
        request = Exchange(run=run, instance_id=run, epoch=epoch, hub_epoch=hub_epoch, incarnation=incarnation, **what)
        return await self.dispatcher.exchange(request)

    def send(self, run: str = "a", **what: Any) -> asyncio.Task[ExchangeReply]:
        return asyncio.create_task(self.exchange(run, **what))


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def outcome_tasks(reply: ExchangeReply) -> list[int]:
    return [one.task for group in reply.outcomes.values() for one in group if isinstance(one, TaskOutcome)]


@simulated
async def test_an_exchange_answers_as_soon_as_there_is_an_outcome() -> None:
    """It is parked until then."""
    bench = Bench()
    parked = bench.send(tasks=[task(1)])
    await settle()
    assert not parked.done()
    bench.launched[0].finish()
    assert outcome_tasks(await parked) == [1]


@simulated
async def test_a_parked_exchange_answers_after_a_while_although_nothing_came() -> None:
    """So that a lost caller is noticed."""
    bench = Bench()
    began_s = asyncio.get_running_loop().time()
    assert await bench.exchange(tasks=[task(1)]) == ExchangeReply()
    assert asyncio.get_running_loop().time() - began_s == pytest.approx(10)


@simulated
async def test_a_newer_exchange_takes_the_place_of_the_parked_one() -> None:
    """The older answers with nothing; outcomes go to the newer."""
    bench = Bench()
    older = bench.send(tasks=[task(1)])
    await settle()
    newer = bench.send()
    assert (await older).outcomes == {}
    bench.launched[0].finish()
    assert outcome_tasks(await newer) == [1]


@simulated
async def test_a_task_that_is_known_is_not_submitted_again() -> None:
    """Waiting, running or finished and not settled: it is the same call."""
    bench = Bench(slots=1)
    bench.send(tasks=[task(1), task(2)])
    await settle()
    bench.send(tasks=[task(1), task(2)])
    await settle()
    bench.launched[0].finish()
    await settle()
    bench.send(tasks=[task(1), task(2)])
    await settle()
    for launched in bench.launched[1:]:
        launched.finish()
    await settle()
    assert Counter(call.bytes for one in bench.launched for call in one.work.calls) == {b"[1]": 1, b"[2]": 1}


@simulated
async def test_a_cancellation_that_overtakes_its_submission_counts() -> None:
    """Calls between actors are not ordered: the submission that comes later starts nothing."""
    bench = Bench()
    bench.send(cancel=[1, 9])
    await settle()
    bench.send(tasks=[task(1), task(2)], maps=[items(9, 4)])
    await settle()
    assert [one.work.calls[0].bytes for one in bench.launched] == [b"[2]"]


@simulated
async def test_a_lower_epoch_changes_nothing_and_is_told_so() -> None:
    """The owner of epoch 2 is attached; what the older one sends is not done."""
    bench = Bench()
    bench.send(epoch=2, tasks=[task(1)])
    await settle()
    reply = await bench.exchange(epoch=1, tasks=[task(2)], cancel=[1])
    assert reply.is_superseded
    leaving = await bench.exchange(epoch=1, is_leaving=True)
    assert leaving.is_superseded
    assert len(bench.launched) == 1
    assert not bench.launched[0].is_cancelled


@pytest.mark.parametrize("hub_epoch", [HUB_EPOCH - 1, HUB_EPOCH + 1])
def test_another_hub_epoch_changes_nothing(hub_epoch: int) -> None:
    """Instances of another cluster's epoch are refused, older or newer."""

    @simulated
    async def scenario() -> None:
        bench = Bench()
        reply = await bench.exchange(hub_epoch=hub_epoch, tasks=[task(1)])
        assert reply.is_superseded
        assert bench.launched == []

    scenario()


@simulated
async def test_another_incarnation_is_told_to_attach_again() -> None:
    """What it believes to run here does not."""
    bench = Bench()
    reply = await bench.exchange(incarnation="an earlier life", tasks=[task(1)])
    assert reply.is_detached
    assert bench.launched == []


@simulated
async def test_attach_tells_what_is_known_and_changes_nothing() -> None:
    """Tasks that wait, run, or finished without being settled; ranges of maps with their attempts."""
    bench = Bench(slots=1)
    bench.send(tasks=[task(1), task(2), task(3)], maps=[items(9, 4)])
    await settle()
    bench.launched[0].finish()
    await settle()
    attachment = await bench.dispatcher.attach("a", "a")
    assert attachment.tasks == {1, 2, 3}
    assert attachment.maps == {9: ((1, 4, 1), (0, 1, 1))}
    assert (await bench.dispatcher.attach("b", "b")).tasks == frozenset()
    assert bench.dispatcher.snapshot()["runs"] == 1


@simulated
async def test_outcomes_are_kept_until_they_are_settled() -> None:
    """A fresh owner gets again what the last one did not settle; what was settled is forgotten."""
    bench = Bench()
    bench.send(tasks=[task(1), task(2)])
    await settle()
    bench.launched[0].finish()
    first = await bench.exchange()
    bench.launched[1].finish()
    second = await bench.exchange(settled=list(first.outcomes))
    assert outcome_tasks(second) == [2]
    again = await bench.exchange(epoch=2, is_fresh=True)
    assert again.outcomes == second.outcomes
    assert (await bench.dispatcher.attach("a", "a")).tasks == {2}
    last = bench.send(epoch=2, settled=list(again.outcomes))
    await settle()
    assert (await bench.dispatcher.attach("a", "a")).tasks == frozenset()
    last.cancel()


@simulated
async def test_a_run_that_leaves_is_forgotten_and_its_slices_end() -> None:
    """Late reports of them change nothing."""
    bench = Bench()
    parked = bench.send(tasks=[task(1), task(2)])
    await settle()
    await bench.exchange(is_leaving=True)
    assert [one.is_cancelled for one in bench.launched] == [True, True]
    for launched in bench.launched:
        launched.finish()
    await parked
    assert bench.dispatcher.snapshot() | {"incarnation": ""} == {
        "incarnation": "",
        "runs": 0,
        "slices_in_flight": 0,
        "calls_waiting": 0,
        "outcomes_unsettled": 0,
    }


@simulated
async def test_a_run_that_has_left_starts_nothing_any_more() -> None:
    """An owner may have been stopped since before the end."""
    bench = Bench()
    await bench.exchange(epoch=2, is_leaving=True)
    for epoch in (1, 3):
        reply = await bench.exchange(epoch=epoch, is_fresh=True, tasks=[task(1)])
        assert reply.is_superseded
    await bench.exchange(epoch=2, is_leaving=True)
    assert bench.launched == []


@simulated
async def test_cancelled_calls_in_flight_are_ended_and_never_start_again() -> None:
    """The forced end of their slices comes back as a loss."""
    bench = Bench()
    bench.send(tasks=[task(1)], maps=[items(9, 2)])
    await settle()
    bench.send(cancel=[1, 9])
    await settle()
    assert all(one.is_cancelled for one in bench.launched)
    for launched in list(bench.launched):
        launched.end(Failure(kind="cancelled", type_name="CancelledError", message=""))
    await settle()
    assert bench.dispatcher.snapshot()["calls_waiting"] == 0
    assert bench.dispatcher.snapshot()["slices_in_flight"] == 0


@simulated
async def test_runs_take_turns() -> None:
    """A run with 10,000 calls does not keep another one's call waiting."""
    bench = Bench(slots=2)
    bench.send("huge", tasks=[task(number) for number in range(1, 10_001)])
    await settle()
    bench.send("small", tasks=[task(1)])
    await settle()
    assert [one.work.run for one in bench.launched].count("small") == 1


@simulated
async def test_no_more_slices_run_than_there_are_slots() -> None:
    """Of one function; the next starts when one ends."""
    bench = Bench(slots=3)
    bench.send(tasks=[task(number) for number in range(1, 11)])
    await settle()
    assert len(bench.launched) == 3
    bench.launched[0].finish()
    await settle()
    assert len(bench.launched) == 4


@simulated
async def test_a_worker_with_older_source_hands_its_slice_back() -> None:
    """It goes to workers of the newer source, and nothing counts as lost."""
    bench = Bench()
    bench.send(tasks=[task(1)])
    await settle()
    assert bench.launched[0].generation is None
    bench.launched[0].end(SliceReport(done=0, elapsed_s=0.0, is_stale=True))
    await settle()
    assert bench.launched[1].generation == "new source"


@simulated
async def test_a_function_that_cannot_be_loaded_is_reported_until_it_can() -> None:
    """The problem is told once, stays while another exchange takes over, and is taken back."""
    bench = Bench()
    unresolved = SliceReport(
        done=0,
        elapsed_s=0.0,
        unresolved=Failure(kind="system", type_name="FunctionNotFoundError", message="not deployed"),
    )
    parked = bench.send(tasks=[task(1)])
    await settle()
    bench.launched[0].end(unresolved)
    reply = await parked
    assert reply.problem == "activity 'f' cannot be loaded: FunctionNotFoundError: not deployed"
    older = bench.send()
    await settle()
    newer = bench.send(tasks=[task(2, "other")])
    assert (await older).problem == reply.problem
    bench.launched[1].finish()
    assert (await newer).problem == reply.problem
    mended = bench.send()
    await asyncio.sleep(1.5)
    bench.launched[2].finish()
    assert (await mended).problem is None


@simulated
async def test_a_problem_goes_with_the_calls_that_had_it() -> None:
    """Nobody waits for them any more: there is nothing to report."""
    bench = Bench()
    parked = bench.send(tasks=[task(1)])
    await settle()
    failure = Failure(kind="system", type_name="FunctionNotFoundError", message="")
    bench.launched[0].end(SliceReport(done=0, elapsed_s=0.0, unresolved=failure))
    assert (await parked).problem is not None
    assert (await bench.exchange(cancel=[1])).problem is None


@simulated
async def test_options_that_cannot_work_fail_the_calls() -> None:
    """The launcher refuses: each call ends with that reason, and the dispatcher serves on."""
    bench = Bench()
    bench.refusal = ValueError("num_cpus cannot be a banana")
    reply = await bench.exchange(tasks=[task(1)])
    (outcome,) = next(iter(reply.outcomes.values()))
    assert isinstance(outcome, TaskOutcome)
    assert outcome.failure is not None
    assert outcome.failure.message == "num_cpus cannot be a banana"
    bench.refusal = None
    parked = bench.send(tasks=[task(2)], settled=list(reply.outcomes))
    await settle()
    bench.launched[0].finish()
    assert outcome_tasks(await parked) == [2]


@simulated
async def test_map_outcomes_come_as_ranges() -> None:
    """One outcome a slice, whatever the number of its items."""
    bench = Bench(first_count=50, slots=1)
    parked = bench.send(maps=[items(9, 50)])
    await settle()
    bench.launched[0].finish()
    reply = await parked
    (outcome,) = next(iter(reply.outcomes.values()))
    assert isinstance(outcome, MapOutcomes)
    assert (outcome.map, outcome.attempt, outcome.start, outcome.count) == (9, 1, 0, 50)


@simulated
async def test_a_poisonous_call_fails_alone() -> None:
    """From the orchestrator's view: one of 40 calls kills its worker, the others have their results."""
    world = World(policy=SlicePolicy(first_count=40))
    world.workers.slot_count = 1
    world.workers.is_poisoned = lambda work: b"[17]" in [call.data for call in work.calls]
    await world.start(flows.fan, 40)
    owner = world.own()
    await owner.ended()
    failure = await world.failure()
    assert failure.cause is not None
    assert failure.cause.type_name == "WorkerLostError"
    assert set(flows.runs.values()) == {1}


@simulated
async def test_a_poisonous_item_fails_alone() -> None:
    """Of a map that collects its errors: every other item has its result, and ran once."""
    world = World(policy=SlicePolicy(first_count=64))
    world.workers.slot_count = 1
    world.workers.is_poisoned = lambda work: work.first <= 4 < work.first + work.count
    kinds = await world.run(flows.map_collects, 64)
    assert kinds[4] == "ActivityError"
    assert [kind for item, kind in enumerate(kinds) if item % 2 == 0 and item != 4] == ["int"] * 31
    assert flows.runs["odd_fails 4"] == 0
    assert set((flows.runs - Counter({"odd_fails 4": 0})).values()) == {1}
