"""The line to the dispatcher: how many calls it makes, and what it says when it is cut."""

from __future__ import annotations

import asyncio

import pytest

from ray_durable.errors import FencedError
from ray_durable.payload import Payload
from ray_durable.reference import FunctionReference
from ray_durable.runtime.link import DispatcherLink
from ray_durable.runtime.messages import Attachment, CallState, Exchange, ExchangeReply, TaskRequest
from ray_durable.runtime.ports import DispatcherLostError
from ray_durable.target import ActivityTarget
from tests.support.skipping_loop import simulated

TARGET = ActivityTarget(reference=FunctionReference(name="f"), options={}, is_local=False, key="f")
TASK = TaskRequest(task=1, attempt=1, submission=1, origin=1, input=Payload.of("json", b"[]"), target=TARGET)


class Port:
    """`DispatcherPort` that answers when told."""

    def __init__(self) -> None:
        self.requests: list[Exchange] = []
        self.answers: list[asyncio.Future[ExchangeReply]] = []
        self.attached = 0

    async def attach(self, run: str, instance_id: str) -> Attachment:
        self.attached += 1
        return Attachment(incarnation="life", tasks=frozenset(), maps={})

    async def explain(self, run: str) -> list[CallState]:
        return []

    async def exchange(self, request: Exchange) -> ExchangeReply:
        self.requests.append(request)
        self.answers.append(asyncio.get_running_loop().create_future())
        return await self.answers[-1]


class Ends:
    """Both ends of a line, and what came out of it."""

    def __init__(self) -> None:
        self.port = Port()
        self.replies: list[ExchangeReply] = []
        self.errors: list[Exception] = []
        self.link = DispatcherLink(
            self.port,
            run="run",
            instance_id="one",
            hub_epoch=7,
            on_reply=self.replies.append,
            on_lost=self.errors.append,
        )

    async def opened(self) -> Ends:
        await self.link.attach()
        self.link.open(3)
        return self


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


@simulated
async def test_one_exchange_is_parked_however_often_it_is_flushed() -> None:
    """Waiting costs one call."""
    ends = await Ends().opened()
    for _ in range(3):
        ends.link.flush(is_waiting=True)
        await settle()
    assert len(ends.port.requests) == 1


@simulated
async def test_without_anything_to_wait_for_nothing_is_sent() -> None:
    """An idle instance makes no calls."""
    ends = await Ends().opened()
    ends.link.flush(is_waiting=False)
    await settle()
    assert ends.port.requests == []


@simulated
async def test_news_goes_out_although_an_exchange_is_parked() -> None:
    """And takes what was settled along; the first of an owner says that it is."""
    ends = await Ends().opened()
    ends.link.flush(is_waiting=True)
    ends.link.submit([TASK])
    ends.link.settle([4, 5])
    ends.link.flush(is_waiting=True)
    await settle()
    assert [request.is_fresh for request in ends.port.requests] == [True, False]
    assert (ends.port.requests[1].tasks, ends.port.requests[1].settled) == ([TASK], [4, 5])
    assert [(one.run, one.epoch, one.hub_epoch, one.incarnation) for one in ends.port.requests] == [
        ("run", 3, 7, "life")
    ] * 2


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (ExchangeReply(is_superseded=True), FencedError),
        (ExchangeReply(is_detached=True), DispatcherLostError),
        (DispatcherLostError("gone"), DispatcherLostError),
        (ZeroDivisionError("a bug over there"), ZeroDivisionError),
    ],
)
def test_what_cuts_the_line_is_told(reply: ExchangeReply | Exception, kind: type[Exception]) -> None:
    """Superseded, restarted, dead, or broken in a way that nobody foresaw: the instance hears of it."""

    @simulated
    async def scenario() -> None:
        ends = await Ends().opened()
        ends.link.flush(is_waiting=True)
        await settle()
        if isinstance(reply, Exception):
            ends.port.answers[0].set_exception(reply)
        else:
            ends.port.answers[0].set_result(reply)
        await settle()
        assert [type(error) for error in ends.errors] == [kind]
        assert ends.replies == []

    scenario()


@simulated
async def test_after_a_new_opening_older_calls_are_not_heard() -> None:
    """What the new owner asked says it all; an old error must not make it attach once more."""
    ends = await Ends().opened()
    ends.link.flush(is_waiting=True)
    await settle()
    ends.link.open(4)
    await settle()
    if not ends.port.answers[0].done():
        ends.port.answers[0].set_exception(DispatcherLostError("an earlier life"))
    await settle()
    ends.link.flush(is_waiting=True)
    await settle()
    assert ends.errors == []
    assert [request.epoch for request in ends.port.requests] == [3, 4]
    assert ends.port.requests[1].is_fresh


@simulated
async def test_leaving_asks_for_the_dispatcher_if_nobody_did_yet() -> None:
    """Whoever finds an ended log never attached: it must address this life of the dispatcher all the same."""
    ends = Ends()
    ends.link.open(3)
    leaving = asyncio.create_task(ends.link.leave())
    await settle()
    assert ends.port.attached == 1
    assert (ends.port.requests[0].is_leaving, ends.port.requests[0].incarnation) == (True, "life")
    ends.port.answers[0].set_result(ExchangeReply())
    await leaving


@simulated
async def test_leaving_a_dispatcher_that_is_gone_is_done() -> None:
    """It has forgotten everything already."""
    ends = await Ends().opened()
    leaving = asyncio.create_task(ends.link.leave())
    await settle()
    ends.port.answers[0].set_exception(DispatcherLostError("gone"))
    await leaving
