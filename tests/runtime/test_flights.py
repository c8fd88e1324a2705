"""Slices in flight: how calls are withdrawn, when a worker is ended from here, what is known of each call."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from ray_durable.failure import Failure
from ray_durable.payload import Payload
from ray_durable.runtime import dispatcher as dispatching
from ray_durable.runtime.messages import (
    Heartbeats,
    MapOutcomes,
    SlicePlace,
    SliceReport,
    TaskOutcome,
    TaskRequest,
)
from tests.runtime.test_dispatcher import Bench, items, outcome_tasks, settle, target, task
from tests.support.skipping_loop import simulated

HERE = SlicePlace(host="host", pid=4711)
LOST = Failure(kind="system", type_name="WorkerLostError", message="lost")
GRACE_S, BACKSTOP_S, BUDGET_S = 5.0, 5.0, 0.2


def now_s() -> float:
    return asyncio.get_running_loop().time()


def limited(number: int, **limits: Any) -> TaskRequest:
    return replace(task(number), target=replace(target(), **limits))


def said(text: str) -> Payload:
    return Payload.of("json", f'"{text}"'.encode())


async def begun(bench: Bench, *requests: TaskRequest) -> None:
    """All of them run in one slice, on a worker that listens."""
    bench.send(tasks=list(requests))
    await settle()
    (launched,) = bench.launched
    assert launched.work.count == len(requests)
    launched.listens = True
    launched.tell(HERE)


class TestWithdrawing:
    """Calls that nobody wants any more."""

    @simulated
    async def test_a_worker_is_asked_to_end_the_call_and_no_other(self) -> None:
        """It lives on, and what it reports of the others counts."""
        bench = Bench(slots=1, first_count=3)
        await begun(bench, task(1), task(2), task(3))
        reply = bench.send(cancel=[2])
        await settle()
        (launched,) = bench.launched
        assert launched.withdrawn == [(1,)]
        launched.finish()
        assert outcome_tasks(await reply) == [1, 2, 3]
        await asyncio.sleep(60)
        assert not launched.is_cancelled

    @simulated
    async def test_a_worker_that_does_not_end_it_is_ended(self) -> None:
        """Some seconds after the grace; the neighbours run elsewhere, and no loss is counted."""
        bench = Bench(slots=1, first_count=3)
        await begun(bench, task(1), task(2), task(3))
        (launched,) = bench.launched
        bench.send(cancel=[2])
        await settle()
        await asyncio.sleep(GRACE_S + BACKSTOP_S - 0.1)
        assert not launched.is_cancelled
        await asyncio.sleep(0.2)
        assert launched.is_cancelled
        launched.end(LOST)
        assert [call.bytes for call in bench.launched[1].work.calls] == [b"[1]"]
        reply = bench.send()
        await settle()
        bench.launched[1].finish()
        outcome = next(one for group in (await reply).outcomes.values() for one in group)
        assert isinstance(outcome, TaskOutcome)
        assert outcome.lost_workers == 0

    @simulated
    async def test_a_worker_that_cannot_be_asked_is_ended_if_nothing_else_is_wanted_of_it(self) -> None:
        """With others in its hands it is left alone."""
        bench = Bench(slots=1, first_count=2)
        bench.send(tasks=[task(1), task(2)])
        await settle()
        bench.send(cancel=[1])
        await settle()
        assert not bench.launched[0].is_cancelled
        bench.send(cancel=[2])
        await settle()
        assert bench.launched[0].is_cancelled

    @simulated
    async def test_a_worker_that_turns_up_later_is_asked_then(self) -> None:
        """The call was cancelled while its slice was on the way."""
        bench = Bench(slots=1, first_count=2)
        bench.send(tasks=[task(1), task(2)])
        await settle()
        bench.send(cancel=[1])
        await settle()
        (launched,) = bench.launched
        launched.listens = True
        launched.tell(HERE)
        assert launched.withdrawn[-1] == (0,)

    @simulated
    async def test_the_calls_of_a_run_that_leaves_are_withdrawn(self) -> None:
        """Its workers are ended only if they do not end the calls; what they still say is nobody's business."""
        bench = Bench(slots=4, first_count=1)
        bench.send(tasks=[task(1), task(2)])
        await settle()
        obeys, does_not = bench.launched
        for launched in bench.launched:
            launched.listens = True
            launched.tell(HERE)
        await bench.exchange(is_leaving=True)
        assert [one.withdrawn for one in bench.launched] == [[(0,)], [(0,)]]
        obeys.tell(Heartbeats(details={0: None}))
        obeys.finish()
        await asyncio.sleep(GRACE_S + BACKSTOP_S + 1)
        assert (obeys.is_cancelled, does_not.is_cancelled) == (False, True)
        assert bench.dispatcher.snapshot()["slices_in_flight"] == 0


class TestOverdue:
    """Workers that do not end what they should have ended."""

    @simulated
    async def test_a_call_whose_worker_does_nothing_fails_by_timeout(self) -> None:
        """Its time counts from the worker's beginning, not from when it was handed over."""
        bench = Bench(slots=1)
        bench.send(tasks=[limited(1, timeout_s=60.0)])
        await asyncio.sleep(1_000)
        (launched,) = bench.launched
        assert not launched.is_cancelled
        launched.tell(HERE)
        launched.tell(SlicePlace())
        await asyncio.sleep(1_000)
        assert not launched.is_cancelled, "the first worker had ended: it waits for another"
        launched.tell(HERE)
        began_s = now_s()
        while not launched.is_cancelled:
            await asyncio.sleep(0.1)
        assert now_s() - began_s == pytest.approx(60 + BUDGET_S + GRACE_S + BACKSTOP_S, abs=0.2)
        (outcome,) = (one for group in (await bench.exchange()).outcomes.values() for one in group)
        assert isinstance(outcome, TaskOutcome)
        assert outcome.failure is not None
        assert (outcome.failure.kind, outcome.failure.type_name) == ("timeout", "ActivityTimeoutError")
        assert outcome.lost_workers == 0
        launched.end(LOST)
        await settle()
        assert len(bench.launched) == 1, "what it still says changes nothing"

    @simulated
    async def test_heartbeats_hold_it_off(self) -> None:
        """With a heartbeat timeout, the last one counts."""
        bench = Bench(slots=1)
        bench.send(tasks=[limited(1, heartbeat_timeout_s=60.0)])
        await settle()
        (launched,) = bench.launched
        launched.tell(HERE)
        for _ in range(10):
            await asyncio.sleep(50)
            launched.tell(Heartbeats(details={0: None}))
        assert not launched.is_cancelled
        await asyncio.sleep(100)
        assert launched.is_cancelled

    @simulated
    async def test_of_many_calls_the_one_to_blame_is_found(self) -> None:
        """The slice is halved; the others are not charged."""
        bench = Bench(slots=1, first_count=4)
        await begun(bench, *(limited(number, timeout_s=1.0) for number in range(1, 5)))
        outcomes: dict[int, TaskOutcome] = {}
        exchanges = [bench.send()]
        for number in range(20):
            if number >= len(bench.launched):
                break
            launched = bench.launched[number]
            launched.tell(HERE)
            if b"[3]" in [call.bytes for call in launched.work.calls]:
                await asyncio.sleep(30)
                assert launched.is_cancelled
            else:
                launched.finish()
            reply = await exchanges[-1]
            exchanges.append(bench.send(settled=list(reply.outcomes)))
            await settle()
            outcomes.update(
                {one.task: one for group in reply.outcomes.values() for one in group if isinstance(one, TaskOutcome)}
            )
        await settle()
        last = await exchanges[-1]
        outcomes.update(
            {one.task: one for group in last.outcomes.values() for one in group if isinstance(one, TaskOutcome)}
        )
        assert [number for number, one in sorted(outcomes.items()) if one.failure is not None] == [3]
        assert sorted(outcomes) == [1, 2, 3, 4]
        assert not any(one.lost_workers for one in outcomes.values())


class TestHeartbeats:
    """What calls say of themselves."""

    @simulated
    async def test_the_next_run_of_a_call_gets_what_the_last_one_said(self) -> None:
        """After a lost worker it is the same attempt; later words replace earlier ones, and silence none."""
        bench = Bench(slots=1)
        bench.send(tasks=[replace(task(1), heartbeat=said("before"))])
        await settle()
        assert bench.launched[0].work.heartbeats == {0: said("before")}
        for number, details in enumerate((said("one"), None, said("three"))):
            bench.launched[number].tell(HERE)
            if details is not None:
                bench.launched[number].tell(Heartbeats(details={0: details}))
                bench.launched[number].tell(Heartbeats(details={0: None}))
            if number < 2:
                bench.launched[number].end(LOST)
        assert [one.work.heartbeats[0] for one in bench.launched[1:]] == [said("one"), said("one")]

    @simulated
    async def test_a_failure_brings_the_last_words_along(self) -> None:
        """For the log, and the next attempt. A result does not."""
        bench = Bench(slots=1, first_count=2)
        await begun(bench, task(1), task(2))
        reply = bench.send()
        await settle()
        failure = Failure(type_name="ValueError", message="no")
        last_words = {0: said("early"), 1: said("late")}
        outcomes: list[Payload | Failure] = [Payload.of("json", b"1"), failure]
        bench.launched[0].end(SliceReport(done=2, elapsed_s=0.1, outcomes=outcomes, heartbeats=last_words))
        (group,) = (await reply).outcomes.values()
        assert [one.heartbeat for one in group if isinstance(one, TaskOutcome)] == [None, said("late")]

    @simulated
    async def test_an_item_of_a_map_finds_its_own_words_in_the_next_attempt(self) -> None:
        """They go to the log with its failure, and come back with the request for the next attempt."""
        bench = Bench(slots=1, first_count=4)
        bench.send(maps=[items(1, 4)])
        reply = bench.send()
        await settle()
        failure = Failure(type_name="ValueError", message="no")
        results = bench.dispatcher._sessions["a"].maps[1]._batch.slice(0, 3)
        bench.launched[0].end(
            SliceReport(done=4, elapsed_s=0.1, results=results, failures=((2, failure),), heartbeats={2: said("two")})
        )
        (group,) = (await reply).outcomes.values()
        assert [one.heartbeats for one in group if isinstance(one, MapOutcomes)] == [((2, said("two")),)]
        again = replace(items(1, 4), attempt=2, ranges=((2, 3),), heartbeats={2: said("two")})
        bench.send(maps=[again])
        await settle()
        assert bench.launched[1].work.heartbeats == {0: said("two")}


class TestExplaining:
    """`Dispatcher.explain`."""

    @simulated
    async def test_it_tells_where_each_call_is(self) -> None:
        """On which worker and since when; on the way; waiting behind others; what is known of it."""
        bench = Bench(slots=1, first_count=1)
        bench.send(tasks=[task(1), task(2)])
        await asyncio.sleep(10)
        launched = bench.launched[0]
        launched.tell(HERE)
        launched.end(LOST)
        bench.launched[1].tell(HERE)
        bench.launched[1].tell(Heartbeats(details={0: None}))
        await asyncio.sleep(3)
        running, waiting = await bench.dispatcher.explain("a")
        assert (running.number, running.state, running.host, running.pid) == (1, "running", "host", 4711)
        assert (running.since_s, running.heartbeat_s, running.lost_workers) == (3, 3, 1)
        assert (waiting.number, waiting.state, waiting.pid) == (2, "waiting", None)
        assert waiting.since_s == pytest.approx(13, abs=0.1)
        assert await bench.dispatcher.explain("unknown") == []

    @simulated
    async def test_items_of_a_map_are_told_by_ranges(self) -> None:
        """However many there are."""
        bench = Bench(slots=1, first_count=10)
        bench.send(maps=[items(3, 1_000)])
        await settle()
        bench.launched[0].tell(HERE)
        states = await bench.dispatcher.explain("a")
        assert [(one.number, one.items, one.state) for one in states] == [
            (3, (0, 10), "running"),
            (3, (10, 1_000), "waiting"),
        ]


@simulated
async def test_a_run_that_was_silent_for_long_is_forgotten_and_told_if_it_lives() -> None:
    """One that ended unheard leaves nothing behind; a parked one, and one that holds nothing, is not harmed."""
    bench = Bench(slots=4)
    gone = bench.send("gone", tasks=[task(1)])
    await gone
    idle = await bench.exchange("idle", tasks=[task(1)])
    assert idle.outcomes == {}
    bench.launched[1].finish()
    reply = await bench.exchange("idle")
    bench.send("idle", settled=list(reply.outcomes))
    parked = bench.send("parked", tasks=[task(1)])
    for _ in range(round(dispatching._SILENCE_S_MAX / 9) + 10):
        await parked
        parked = bench.send("parked")
    assert bench.launched[0].is_cancelled
    assert bench.dispatcher.snapshot()["runs"] == 1
    assert (await bench.exchange("gone")).is_detached
    assert not (await bench.exchange("gone", is_fresh=True)).is_detached
    assert not (await bench.exchange("idle")).is_detached
    bench.launched[2].finish()
    assert outcome_tasks(await bench.exchange("parked")) == [1]


@simulated
async def test_items_that_are_asked_for_twice_run_once() -> None:
    """While they wait, run, or have outcomes that are not settled; those that are new run."""
    bench = Bench(slots=1, first_count=4)
    bench.send(maps=[items(1, 8)])
    await settle()
    bench.send(maps=[items(1, 8)])
    await settle()
    bench.launched[0].finish()
    reply = bench.send(maps=[items(1, 8)])
    await settle()
    for launched in bench.launched[1:]:
        launched.finish()
    await settle()
    ran = [(one.work.first, one.work.first + one.work.count) for one in bench.launched]
    assert sum(stop - start for start, stop in ran) == 8
    outcomes = [one for group in (await reply).outcomes.values() for one in group]
    assert sum(one.count for one in outcomes if isinstance(one, MapOutcomes)) <= 8
