"""The outbox brings each message until it has arrived, and then no more."""

from __future__ import annotations

import asyncio

from ray_durable.errors import ClusterConnectionError, TooManyEventsError
from ray_durable.payload import Payload
from ray_durable.runtime.correspondence import EndChild, Message, RaiseEvent
from ray_durable.runtime.outbox import Outbox
from tests.support.skipping_loop import simulate


def _message(number: int, receiver: str = "two") -> Message:
    return EndChild(id=f"{number}.1.one", number=number, receiver=receiver, run="r", parent=("one", 1, 2), reason="")


def test_what_arrived_and_is_not_noted_yet_is_not_sent_again() -> None:
    """An owner that claims its log anew sends what the log does not note; it knows what arrived meanwhile."""
    brought: list[str] = []

    async def run() -> None:
        async def deliver(message: Message) -> None:
            brought.append(message.id)

        outbox = Outbox(deliver)
        outbox.send([_message(2), _message(3)])
        assert await outbox.wait_empty(1)
        outbox.send([_message(2), _message(3), _message(4)])
        assert await outbox.wait_empty(1)
        assert [message.number for message in outbox.take_delivered()] == [2, 3, 4]
        assert outbox.take_delivered() == []

    simulate(run())
    assert brought == ["2.1.one", "3.1.one", "4.1.one"]


def test_a_message_that_does_not_arrive_is_brought_again_and_holds_up_only_its_receiver() -> None:
    """The order for one receiver stays; others do not wait."""
    brought: list[str] = []
    failures = 3

    async def run() -> None:
        async def deliver(message: Message) -> None:
            nonlocal failures
            if message.receiver == "two" and failures:
                failures -= 1
                raise ClusterConnectionError("not now")
            brought.append(message.id)

        outbox = Outbox(deliver)
        outbox.send([_message(2), _message(3), _message(4, "three")])
        await asyncio.sleep(0.01)
        assert brought == ["4.1.one"]
        assert outbox.problem is not None
        assert await outbox.wait_empty(60)
        assert outbox.problem is None

    simulate(run())
    assert brought == ["4.1.one", "2.1.one", "3.1.one"]


def _event(number: int, name: str, receiver: str = "two") -> Message:
    value = Payload.of("json", b"1")
    return RaiseEvent(id=f"{number}.1.one", number=number, receiver=receiver, run="r", name=name, value=value)


def test_an_event_without_room_steps_aside_and_events_of_its_name_stay_in_order() -> None:
    """Whatever else is for the receiver passes; nothing is given up, and the problem is told of once."""
    brought: list[int] = []
    is_full = True
    told = 0

    def tell() -> None:
        nonlocal told
        told += 1

    async def run() -> None:
        nonlocal is_full

        async def deliver(message: Message) -> None:
            if is_full and isinstance(message, RaiseEvent) and message.name == "Full":
                raise TooManyEventsError("no room", instance_id="two", name="Full", count=1, size_bytes=1)
            brought.append(message.number)

        outbox = Outbox(deliver, tell)
        outbox.send([_event(2, "Full"), _event(3, "Awaited"), _event(4, "Full"), _message(5), _event(6, "Full", "six")])
        await asyncio.sleep(50)
        assert brought == [3, 5]
        assert told == 2
        assert outbox.problem == "a message to instance 'two' does not arrive: no room"
        outbox.send([_event(7, "Full"), _message(8)])
        await asyncio.sleep(1)
        assert brought == [3, 5, 8]
        is_full = False
        assert await outbox.wait_empty(60)
        assert outbox.problem is None

    simulate(run())
    assert [number for number in brought if number in (2, 4, 7)] == [2, 4, 7]
    assert sorted(brought) == [2, 3, 4, 5, 6, 7, 8]


def test_an_event_that_first_did_not_arrive_gives_way_once_it_is_refused() -> None:
    """A receiver that did not answer, and has no room when it does."""
    brought: list[int] = []
    answers = [
        ClusterConnectionError("not now"),
        TooManyEventsError("", instance_id="", name="", count=1, size_bytes=1),
    ]

    async def run() -> None:
        async def deliver(message: Message) -> None:
            if isinstance(message, RaiseEvent) and answers:
                raise answers.pop(0)
            brought.append(message.number)

        outbox = Outbox(deliver)
        outbox.send([_event(2, "Full"), _message(3)])
        assert await outbox.wait_empty(60)

    simulate(run())
    assert sorted(brought) == [2, 3]
