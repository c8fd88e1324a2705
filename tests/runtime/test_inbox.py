"""The inbox: in order, as much as fits into a turn, and an answer for everybody who waits."""

from __future__ import annotations

import asyncio

import pytest

from ray_durable.engine import EventRaised, TaskCompleted
from ray_durable.errors import FencedError
from ray_durable.payload import Payload
from ray_durable.runtime.inbox import Arrival, Inbox
from ray_durable.runtime.ports import DispatcherLostError
from tests.support.skipping_loop import Deadlock, simulate, simulated

MIB = 1024 * 1024


def outcome(task: int, size: int = 1) -> TaskCompleted:
    return TaskCompleted(task=task, result=Payload.of("json", b"1" * size))


def waiting(event_id: str) -> Arrival:
    event = EventRaised(name="e", value=Payload.of("json", b"1"), event_id=event_id)
    return Arrival(events=[event], done=asyncio.get_running_loop().create_future())


@simulated
async def test_what_waits_is_taken_together_and_in_order() -> None:
    """One turn takes all that arrived."""
    inbox = Inbox()
    arrivals = [Arrival(events=[outcome(task)]) for task in range(1_000)]
    for arrival in arrivals:
        inbox.put(arrival)
    taken = await inbox.take()
    assert [event for arrival in taken for event in arrival.events] == [outcome(task) for task in range(1_000)]


def test_without_arrivals_it_waits() -> None:
    """And for ever, if nothing comes."""

    async def take() -> None:
        await Inbox().take()

    with pytest.raises(Deadlock):
        simulate(take())


@simulated
async def test_a_turn_takes_no_more_than_fits() -> None:
    """Ten of 4 MiB are taken in three turns; nothing is lost, and the order is kept."""
    inbox = Inbox()
    for task in range(10):
        inbox.put(Arrival(events=[outcome(task, 4 * MIB)], settles=(task,)))
    turns = [await inbox.take() for _ in range(4)]
    assert [[settled for one in turn for settled in one.settles] for turn in turns] == [
        [0, 1, 2],
        [3, 4, 5],
        [6, 7, 8],
        [9],
    ]


@simulated
async def test_one_arrival_may_need_several_turns() -> None:
    """The outcomes of one slice are too large together: they are settled with the last of them."""
    inbox = Inbox()
    inbox.put(Arrival(events=[outcome(task, 6 * MIB) for task in range(5)], settles=(7,)))
    turns = [await inbox.take() for _ in range(3)]
    assert [[one.settles for one in turn] for turn in turns] == [[()], [()], [(7,)]]
    assert [len(one.events) for turn in turns for one in turn] == [2, 2, 1]


@simulated
async def test_what_is_too_large_alone_is_taken_alone() -> None:
    """Whether it can be recorded is for the log to say."""
    inbox = Inbox()
    inbox.put(Arrival(events=[outcome(1, 20 * MIB)]))
    inbox.put(Arrival(events=[outcome(2)]))
    assert [len(await inbox.take()), len(await inbox.take())] == [1, 1]


@simulated
async def test_what_arrived_comes_before_the_news_that_the_line_is_cut() -> None:
    """An outcome that was delivered is recorded, and so not asked for again."""
    inbox = Inbox()
    inbox.put(Arrival(events=[outcome(1)]))
    inbox.fail(DispatcherLostError("gone"))
    inbox.put(Arrival(events=[outcome(2)]))
    assert len(await inbox.take()) == 2
    with pytest.raises(DispatcherLostError):
        await inbox.take()
    inbox.put(Arrival(events=[outcome(3)]))
    assert len(await inbox.take()) == 1


@simulated
async def test_closing_answers_everybody() -> None:
    """Taken without an answer, waiting, or still to come."""
    inbox = Inbox()
    taken, waits, late = waiting("1"), waiting("2"), waiting("3")
    inbox.put(taken)
    await inbox.take()
    inbox.put(waits)
    inbox.close(lambda: FencedError("stood down", key=""))
    inbox.put(late)
    for arrival in (taken, waits, late):
        assert arrival.done is not None
        with pytest.raises(FencedError):
            await arrival.done


@simulated
async def test_an_answer_stays_as_it_was_given() -> None:
    """Accepted before the inbox was closed is accepted; a caller that went away is no trouble."""
    inbox = Inbox()
    accepted, gone = waiting("1"), waiting("2")
    inbox.put(accepted)
    inbox.put(gone)
    for arrival in await inbox.take():
        arrival.accept()
    assert gone.done is not None
    inbox.close(lambda: FencedError("stood down", key=""))
    assert accepted.done is not None
    await accepted.done
    left = waiting("3")
    assert left.done is not None
    left.done.cancel()
    left.accept()
    left.refuse(FencedError("stood down", key=""))
    assert left.done.cancelled()
