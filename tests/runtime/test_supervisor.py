"""The supervisor over real storage: who gets an actor, who waits, and when it stands down."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Sequence

import pytest

from ray_durable.errors import ClusterConnectionError, FencedError, StoreError, StoreUnavailableError
from ray_durable.runtime.chores import Chore
from ray_durable.runtime.hub import OpenHub
from ray_durable.runtime.lease import HOLDER_PACING, Lease, LeaseKeeper, find_lease
from ray_durable.runtime.lifecycle import open_entry
from ray_durable.runtime.supervisor import Supervisor
from ray_durable.storage import (
    OpenEntry,
    claim_hub_epoch,
    find_open,
    read_lease,
)
from tests.runtime import flows
from tests.support.skipping_loop import simulated
from tests.support.world import SpyStore, World

HOUR_S = 3_600


class Directory:
    """`ActorDirectory` of names."""

    def __init__(self) -> None:
        self.actors: list[str] = []
        self.dispatchers_kept = 0

    async def live(self) -> set[str]:
        await asyncio.sleep(0)
        return set(self.actors)

    async def keep_dispatcher(self) -> None:
        await asyncio.sleep(0)
        self.dispatchers_kept += 1

    async def create(self, instance_ids: Sequence[str]) -> None:
        await asyncio.sleep(0)
        self.actors += [instance_id for instance_id in instance_ids if instance_id not in self.actors]


class Office:
    """A supervisor of epoch 1 with its surroundings."""

    def __init__(self, *, live_max: int = 10, chores: Sequence[Chore] = ()) -> None:
        self.world = World()
        self.store = SpyStore(self.world.objects)
        self.hub = OpenHub(self.world.address, self.store, epoch=1, pacing=HOLDER_PACING)
        self.directory = Directory()
        lease = Lease(epoch=1, cluster="10.0.0.1:6379", host="here", boot="", pid=0)
        self.keeper = LeaseKeeper(self.hub, lease, self.world.clock)
        self.supervisor = Supervisor(self.keeper, self.directory, self.world.clock, live_max=live_max, chores=chores)

    async def start(self, *instance_ids: str) -> None:
        for instance_id in instance_ids:
            await self.world.start(flows.approval, instance_id=instance_id)
            await asyncio.sleep(0.001)

    async def enter_orphan(self, instance_id: str) -> None:
        """What a start leaves that dies between its two writes."""
        await self.hub.enter(
            OpenEntry(instance_id=instance_id, name="approval", request_id="r", entered_us=self.world.clock.now_us())
        )

    async def is_entered(self, instance_id: str) -> bool:
        return await find_open(self.world.objects, self.hub.keys, instance_id) is not None


@simulated
async def test_every_open_instance_without_an_actor_gets_one() -> None:
    """Also those whose actor died, or whose client died before it asked for one."""
    office = Office()
    await office.start("a", "b", "c")
    office.directory.actors = ["b"]
    await office.supervisor.round()
    assert sorted(office.directory.actors) == ["a", "b", "c"]
    office.directory.actors.remove("a")
    await office.supervisor.round()
    assert sorted(office.directory.actors) == ["a", "b", "c"]


@simulated
async def test_ended_instances_get_none() -> None:
    """They have left the open set."""
    office = Office()
    await office.world.run(flows.chain, 1)
    await office.supervisor.round()
    assert office.directory.actors == []


@simulated
async def test_a_cap_leaves_the_youngest_waiting_until_there_is_room() -> None:
    """Two at a time, oldest first; the status of the rest is Pending."""
    office = Office(live_max=2)
    await office.start("z", "y", "x", "w")
    await office.supervisor.round()
    assert office.directory.actors == ["z", "y"]
    assert (await office.world.status("x")).runtime_status == "Pending"
    await office.supervisor.round()
    assert office.directory.actors == ["z", "y"]
    office.directory.actors.remove("z")
    log, _ = await office.hub.read_log("z")
    await office.hub.record_end(log, open_entry(await office.hub.started("z"), 0), None)
    await office.supervisor.round()
    assert office.directory.actors == ["y", "x"]


@simulated
async def test_starts_at_the_same_moment_do_not_share_room() -> None:
    """Five starts, and a round among them, where two have room: two get an actor."""
    office = Office(live_max=2)
    names = ["a", "b", "c", "d", "e"]
    await office.start(*names)
    await asyncio.gather(*map(office.supervisor.admit, names[:3]), office.supervisor.round())
    await asyncio.gather(*map(office.supervisor.admit, names[2:]))
    assert len(office.directory.actors) == 2


@simulated
async def test_a_start_is_admitted_at_once_if_there_is_room() -> None:
    """No round is waited for; over the cap the next round decides."""
    office = Office(live_max=1)
    await office.start("a", "b")
    await office.supervisor.admit("a")
    await office.supervisor.admit("b")
    await office.supervisor.admit("a")
    assert office.directory.actors == ["a"]


@simulated
async def test_somebody_who_wants_to_talk_gets_the_actor_over_the_cap() -> None:
    """Terminating a waiting instance must be possible while others fill the cap."""
    office = Office(live_max=1)
    await office.start("a", "b")
    await office.supervisor.round()
    await office.supervisor.activate("b")
    assert office.directory.actors == ["a", "b"]


@simulated
async def test_an_entry_without_an_instance_gets_no_actor_and_takes_no_room() -> None:
    """A start is under way, or died: nobody knows yet."""
    office = Office(live_max=1)
    await office.enter_orphan("never")
    await office.start("a")
    await office.supervisor.round()
    assert office.directory.actors == ["a"]
    assert await office.is_entered("never")


@simulated
async def test_an_entry_without_an_instance_is_removed_after_an_hour() -> None:
    """No sooner, and not because a clock jumped."""
    office = Office()
    await office.enter_orphan("never")
    await office.supervisor.round()
    office.world.clock.skew_us += HOUR_S * 1_000_000
    await asyncio.sleep(HOUR_S - 10)
    await office.supervisor.round()
    assert await office.is_entered("never")
    await asyncio.sleep(20)
    await office.supervisor.round()
    assert not await office.is_entered("never")


@simulated
async def test_an_entry_that_a_new_start_has_rewritten_is_kept() -> None:
    """The old start died, a new one has just begun: its entry is not the old one."""
    office = Office()
    await office.enter_orphan("late")
    await office.supervisor.round()
    await asyncio.sleep(HOUR_S + 10)
    orphan_key = office.hub.keys.executions("late")

    async def start_again(operation: str, key: str) -> None:
        if operation == "list" and key == orphan_key:
            office.store.after = None
            await office.enter_orphan("late")

    office.store.after = start_again
    await office.supervisor.round()
    assert await office.is_entered("late")


@simulated
async def test_a_start_that_finishes_after_an_hour_gets_its_entry_back() -> None:
    """Its segment 0 appears while the entry is being removed: the instance must be found."""
    office = Office()
    await office.start("slow")
    segment_key = office.hub.keys.execution("slow", 1)
    segment = await office.world.objects.get(segment_key)
    assert segment is not None
    await office.world.objects.delete_many([segment_key])
    await office.supervisor.round()
    await asyncio.sleep(HOUR_S + 10)

    async def land(operation: str, key: str) -> None:
        if operation == "delete":
            await office.world.objects.put(segment_key, segment)

    office.store.before = land
    await office.supervisor.round()
    assert await office.is_entered("slow")
    await office.supervisor.round()
    assert office.directory.actors == ["slow"]


@simulated
async def test_each_round_renews_the_lease() -> None:
    """With the time of the holder's clock."""
    office = Office()
    await office.supervisor.round()
    lease = await read_lease(office.world.objects, office.hub.keys)
    assert lease is not None
    assert lease["renewed_us"] == office.world.clock.now_us()


@simulated
async def test_a_newer_hub_epoch_makes_it_stand_down() -> None:
    """It raises, makes no actor any more, and leaves the newer holder's lease alone."""
    office = Office()
    running = asyncio.create_task(office.supervisor.run())
    await asyncio.sleep(5)
    assert office.supervisor.rounds > 1
    assert await claim_hub_epoch(office.world.objects, office.hub.keys, 2, {"epoch": 2})
    lease = await read_lease(office.world.objects, office.hub.keys)
    await office.start("a")
    with pytest.raises(FencedError, match="epoch 2 replaced 1"):
        await asyncio.wait_for(running, 60)
    assert office.directory.actors == []
    assert await read_lease(office.world.objects, office.hub.keys) == lease


@simulated
async def test_a_store_that_fails_for_a_while_delays_it() -> None:
    """Round after round is tried; the first that succeeds does the work."""
    office = Office()
    await office.start("a")

    async def down(operation: str, key: str) -> None:
        raise StoreUnavailableError("503", url=office.store.url)

    office.store.before = down
    running = asyncio.create_task(office.supervisor.run())
    await asyncio.sleep(3_600)
    assert office.supervisor.rounds == 0
    office.store.before = None
    await asyncio.sleep(5)
    assert office.directory.actors == ["a"]
    running.cancel()


@simulated
async def test_after_an_outage_the_lease_is_never_one_of_before(caplog: pytest.LogCaptureFixture) -> None:
    """What waited to be written for an hour would look like a lease that nobody renews; the log tells of it once."""
    office = Office()
    running = asyncio.create_task(office.supervisor.run())
    await asyncio.sleep(5)

    before = await find_lease(office.hub)

    async def full(operation: str, key: str) -> None:
        if operation == "put":
            raise StoreUnavailableError("503", url=office.store.url)

    office.store.before = full
    await asyncio.sleep(3_600)
    office.store.before = None
    seen = []
    for _ in range(500):
        await asyncio.sleep(0.01)
        lease = await find_lease(office.hub)
        assert lease is not None
        if lease != before:
            seen.append(lease)
            assert lease.is_living(office.world.clock.now_us())
    assert len(set(seen)) > 1
    assert len([record for record in caplog.records if "503" in record.getMessage()]) == 1
    running.cancel()


@simulated
async def test_every_round_keeps_a_dispatcher() -> None:
    """Ray may have given it up; whoever waits for it waits for ever otherwise."""
    office = Office()
    await office.supervisor.round()
    await office.supervisor.round()
    assert office.directory.dispatchers_kept == 2


@simulated
async def test_callers_do_not_keep_those_they_call_from_their_turn() -> None:
    """The cap counts for each depth on its own: two callers fill theirs, and the called ones still get actors."""
    office = Office(live_max=2)
    await office.start("a", "b", "c")
    for called in ("called 1", "called 2", "called 3"):
        await office.start(called)
        entry = await find_open(office.world.objects, office.hub.keys, called)
        assert entry is not None
        await office.hub.enter(dataclasses.replace(entry, depth=1))
    await office.supervisor.round()
    assert office.directory.actors == ["a", "b", "called 1", "called 2"]


@simulated
async def test_one_that_was_stopped_makes_no_actor_before_it_has_renewed_its_lease() -> None:
    """The hub may have been taken over meanwhile: whoever asks is told, and nothing is made."""
    office = Office()
    await office.start("a", "b")
    await office.supervisor.activate("a")
    assert await claim_hub_epoch(office.world.objects, office.hub.keys, 2, {"epoch": 2})
    await asyncio.sleep(60)
    with pytest.raises(FencedError, match="epoch 2 replaced 1"):
        await office.supervisor.activate("b")
    with pytest.raises(FencedError, match="epoch 2 replaced 1"):
        await office.supervisor.admit("b")
    assert office.directory.actors == ["a"]


@simulated
async def test_a_store_that_refuses_keeps_actors_from_being_made() -> None:
    """Nobody knows who holds the hub; whoever asks may ask again."""
    office = Office()

    async def refuse(operation: str, key: str) -> None:
        raise StoreError("the credentials were withdrawn", url=office.store.url)

    office.store.before = refuse
    with pytest.raises(ClusterConnectionError, match="renew its lease"):
        await office.supervisor.activate("a")
    assert office.directory.actors == []
