"""Who holds the hub, as the dispatcher sees it: what it starts, and when it stops."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from ray_durable.errors import FencedError, StoreError, StoreUnavailableError
from ray_durable.runtime.hub import OpenHub
from ray_durable.runtime.tenure import LOOK_S, TRUST_S, TenureWatch
from ray_durable.storage import claim_hub_epoch
from tests.runtime.test_dispatcher import Bench, settle, task
from tests.support.skipping_loop import simulated
from tests.support.world import World


class Post:
    """A dispatcher of hub epoch 1 with its watch, on a store that may be stopped from answering."""

    def __init__(self) -> None:
        self.world = World()
        self.store = self.world.make_store()
        self.is_answering = True
        self.refusal: Exception | None = None
        self.looks = 0
        self.store.before = self._before
        self.certainties = 0
        self.tenure = TenureWatch(self.world.clock, on_certain=self._go_on)
        self.bench = Bench(tenure=self.tenure)
        self.hub: OpenHub = self.world.open_hub(self.store)
        self.keeping: asyncio.Task[None] | None = None

    async def _before(self, operation: str, key: str) -> None:
        self.looks += 1
        if self.refusal is not None:
            raise self.refusal
        if not self.is_answering:
            raise StoreUnavailableError("the store is gone", url="memory://")

    def _go_on(self) -> None:
        self.certainties += 1
        self.bench.dispatcher.go_on()

    async def begin(self) -> None:
        self.keeping = asyncio.create_task(self.tenure.keep(self.hub))
        await settle()

    async def take_over(self) -> None:
        assert await claim_hub_epoch(self.world.objects, self.hub.keys, 2, {"cluster": "there"})

    async def end(self) -> None:
        if self.keeping is not None:
            self.keeping.cancel()
            with contextlib.suppress(asyncio.CancelledError, FencedError):
                await self.keeping
        await self.world.close()


@simulated
async def test_nothing_is_started_before_the_first_look() -> None:
    """A dispatcher that Ray started again may be of a cluster that was replaced meanwhile."""
    post = Post()
    parked = post.bench.send(tasks=[task(1)])
    await settle()
    assert post.bench.launched == []
    await post.begin()
    assert len(post.bench.launched) == 1
    post.bench.launched[0].finish()
    assert (await parked).outcomes
    await post.end()


@simulated
async def test_a_look_is_one_request_every_few_seconds_whatever_there_is_to_do() -> None:
    post = Post()
    await post.begin()
    await asyncio.sleep(20 * LOOK_S - 1)
    assert post.looks == 20
    assert post.certainties == 1
    await post.end()


@simulated
async def test_a_newer_hub_epoch_is_seen_by_the_next_look() -> None:
    post = Post()
    await post.begin()
    assert post.keeping is not None
    await post.take_over()
    with pytest.raises(FencedError, match="hub epoch 2 replaced 1"):
        await asyncio.wait_for(post.keeping, LOOK_S + 0.1)
    await post.end()


@simulated
async def test_while_the_store_does_not_answer_nothing_is_started_after_a_while() -> None:
    """Another cluster may have the hub by then. Whoever waits is told why, and all goes on once the store answers."""
    post = Post()
    await post.begin()
    post.is_answering = False
    await asyncio.sleep(TRUST_S - 1)
    await post.bench.exchange(tasks=[task(1)])
    assert len(post.bench.launched) == 1, "the last look still counts"
    await asyncio.sleep(1.1)
    reply = await post.bench.exchange(tasks=[task(2)])
    assert len(post.bench.launched) == 1
    assert reply.problem is not None
    assert "whether this cluster still holds the hub" in reply.problem
    assert "the store is gone" in reply.problem
    parked = post.bench.send()
    await settle()
    post.is_answering = True
    assert (await parked).problem is None
    assert len(post.bench.launched) == 2
    await post.end()


@simulated
async def test_a_store_that_refuses_is_asked_again_and_named() -> None:
    """Expired credentials are mended by somebody."""
    post = Post()
    post.refusal = StoreError("the token has expired", url="memory://")
    await post.begin()
    reply = await post.bench.exchange(tasks=[task(1)])
    assert post.bench.launched == []
    assert reply.problem is not None
    assert "the token has expired" in reply.problem
    post.refusal = None
    await asyncio.sleep(LOOK_S + 1)
    assert len(post.bench.launched) == 1
    await post.end()


@simulated
async def test_who_stood_still_starts_nothing_before_it_has_looked() -> None:
    """However short a time it had left until its next look."""
    post = Post()
    await post.begin()
    assert post.keeping is not None
    post.keeping.cancel()
    await asyncio.sleep(3_600)
    parked = post.bench.send(tasks=[task(1)])
    await settle()
    assert post.bench.launched == []
    await post.take_over()
    with pytest.raises(FencedError):
        await post.tenure.keep(post.hub)
    post.bench.dispatcher.stand_down()
    assert (await parked).is_superseded
    assert post.bench.launched == []
    await post.end()


@simulated
async def test_an_answer_that_took_too_long_does_not_count() -> None:
    """The store kept it back for longer than a look is trusted: the question is asked again."""
    post = Post()
    slow_s = [TRUST_S + 1]

    async def before(operation: str, key: str) -> None:
        await asyncio.sleep(slow_s.pop() if slow_s else 0.0)

    post.store.before = before
    await post.begin()
    await asyncio.sleep(TRUST_S)
    assert not post.tenure.is_certain
    await asyncio.sleep(2)
    assert post.tenure.is_certain
    await post.end()


@simulated
async def test_a_dispatcher_that_stands_down_ends_what_runs_and_refuses_all() -> None:
    bench = Bench()
    bench.slot_count = 1
    parked = bench.send(tasks=[task(1), task(2)])
    other = bench.send("b", tasks=[task(3)])
    await settle()
    running = len(bench.launched)
    bench.dispatcher.stand_down()
    assert (await parked).is_superseded
    assert (await other).is_superseded
    assert all(one.is_cancelled for one in bench.launched), "their workers could not be asked"
    for one in bench.launched:
        one.finish()
    await settle()
    assert len(bench.launched) == running, "what was queued never starts"
    assert (await bench.exchange("c", tasks=[task(4)])).is_superseded
    with pytest.raises(FencedError, match="Another cluster has taken the hub over"):
        await bench.dispatcher.attach("d", "d")
    bench.dispatcher.go_on()
    assert len(bench.launched) == running
