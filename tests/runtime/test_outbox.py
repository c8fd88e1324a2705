"""The outbox brings each message until it has arrived, and then no more."""

from __future__ import annotations

import asyncio

from ray_durable.errors import ClusterConnectionError
from ray_durable.runtime.correspondence import EndChild, Message
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
