"""What goes on beside the supervisor's rounds: nothing that happens to one chore hinders anything else."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from ray_durable.errors import FencedError, StoreUnavailableError
from ray_durable.runtime.chores import RemoveRetired
from ray_durable.storage import Retired, bury, retire
from tests.runtime import flows
from tests.runtime.test_supervisor import Office
from tests.support.skipping_loop import simulated
from tests.support.world import World


class Errand:
    """A chore that does what it is told, and counts how often it was begun."""

    name = "errand"

    def __init__(self, do: Callable[[], Awaitable[None]]) -> None:
        self.begun = 0
        self._do = do

    async def run(self) -> None:
        self.begun += 1
        await self._do()


async def _hangs() -> None:
    await asyncio.get_running_loop().create_future()


async def _fails() -> None:
    raise ZeroDivisionError("a bug")


async def _is_unlucky() -> None:
    raise StoreUnavailableError("503", url="")


async def _is_fenced() -> None:
    raise FencedError("hub epoch 2 replaced 1", key="")


@simulated
async def test_one_that_fails_or_hangs_hinders_nobody() -> None:
    """Rounds go on, and those that failed are begun again."""
    errands = [Errand(do) for do in (_hangs, _fails, _is_unlucky)]
    office = Office(chores=errands)
    running = asyncio.create_task(office.supervisor.run())
    await asyncio.sleep(60)
    assert office.supervisor.rounds >= 29
    hung, failed, unlucky = (errand.begun for errand in errands)
    assert hung == 1
    assert failed > 3
    assert unlucky > 3
    running.cancel()


@simulated
async def test_one_that_is_fenced_ends_the_supervisor() -> None:
    """And the other chores with it."""
    hung = Errand(_hangs)
    office = Office(chores=[hung, Errand(_is_fenced)])
    before = asyncio.all_tasks()
    with pytest.raises(FencedError):
        await asyncio.wait_for(office.supervisor.run(), 60)
    assert hung.begun == 1
    assert asyncio.all_tasks() == before


@simulated
async def test_they_begin_once_the_hub_is_known_to_be_ours() -> None:
    """A supervisor that cannot renew its lease does nothing else either."""
    errand = Errand(_hangs)
    office = Office(chores=[errand])

    async def down(operation: str, key: str) -> None:
        raise StoreUnavailableError("503", url=office.store.url)

    office.store.before = down
    running = asyncio.create_task(office.supervisor.run())
    await asyncio.sleep(60)
    assert errand.begun == 0
    office.store.before = None
    await asyncio.sleep(5)
    assert errand.begun == 1
    running.cancel()


@simulated
async def test_what_is_retired_is_removed_once_it_is_due() -> None:
    """No sooner, and within a few seconds."""
    world = World()
    await world.run(flows.chain, 1)
    due_us = world.clock.now_us() + 60_000_000
    keys, objects = world.hub.keys, world.objects
    await retire(objects, keys, Retired(instance_id="one", through=1, due_us=due_us))
    await bury(objects, keys, "one", 1)
    running = asyncio.create_task(RemoveRetired(world.hub, world.clock).run())
    await asyncio.sleep(59)
    assert await objects.list_folder(keys.executions("one")) == ["000001", "purged.000001"]
    await asyncio.sleep(12)
    assert await objects.list_folder(keys.executions("one")) == ["purged.000001"]
    assert await objects.list_folder(keys.retired) == []
    running.cancel()
