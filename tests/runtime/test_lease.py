"""Who holds the hub: which leases count as living, and which one is looked at."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

from ray_durable.runtime.lease import STALE_US, Lease, LeaseKeeper, find_lease
from ray_durable.storage import claim_hub_epoch, write_lease
from tests.support.skipping_loop import simulated
from tests.support.world import World

NOW_US = 1_764_000_000_000_000
NOBODY = "127.0.0.1:1"


def lease(
    *, renewed_us: int = NOW_US, host: str = "elsewhere", boot: str = "b", pid: int = 0, cluster: str = NOBODY
) -> Lease:
    return Lease(epoch=1, cluster=cluster, host=host, boot=boot, pid=pid, renewed_us=renewed_us)


def here() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def dead_pid() -> int:
    """The id of a process that has been."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_lease_lives_until_it_is_stale() -> None:
    """A holder on another machine is believed for as long as its lease is fresh."""
    assert lease(renewed_us=NOW_US - STALE_US).is_living(NOW_US)
    assert not lease(renewed_us=NOW_US - STALE_US - 1).is_living(NOW_US)


def test_a_dead_process_of_this_machine_holds_nothing() -> None:
    """Its lease is fresh, but the process is gone and its cluster does not answer: no need to wait."""
    gone = lease(host=socket.gethostname(), boot=here(), pid=dead_pid())
    assert not gone.is_living(NOW_US)


def test_a_living_process_of_this_machine_holds_the_hub() -> None:
    """Whether its cluster answers or not."""
    assert lease(host=socket.gethostname(), boot=here(), pid=os.getpid()).is_living(NOW_US)


def test_process_ids_mean_nothing_elsewhere_or_before_a_reboot() -> None:
    """The same id on another machine, or before this one was started again, is another process."""
    pid = dead_pid()
    assert lease(host="elsewhere", boot=here(), pid=pid).is_living(NOW_US)
    assert lease(host=socket.gethostname(), boot="an earlier one", pid=pid).is_living(NOW_US)


def test_a_cluster_that_answers_holds_the_hub_although_its_process_is_gone() -> None:
    """The process that renewed was replaced by another of the same cluster."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        cluster = f"127.0.0.1:{server.getsockname()[1]}"
        held = lease(host=socket.gethostname(), boot=here(), pid=dead_pid(), cluster=cluster)
        assert held.is_reachable()
        assert held.is_living(NOW_US)
    assert not held.is_living(NOW_US)


def test_an_address_that_is_none_is_not_reachable() -> None:
    """Whatever was written there."""
    assert not lease(cluster="").is_reachable()
    assert not lease(cluster="nonsense").is_reachable()


def test_a_lease_survives_storage() -> None:
    """Written and read, it is the same; fields of later versions are ignored."""
    one = lease(pid=7)
    assert Lease.from_json(one.to_json()) == one
    assert Lease.from_json({**one.to_json(), "later": 1}) == one


def test_the_lease_of_this_process_names_the_process_that_started_it() -> None:
    """Its parent lives as long as the node."""
    own = Lease.of_this_process(3, cluster="10.0.0.1:6379")
    assert (own.epoch, own.host, own.boot, own.pid) == (3, socket.gethostname(), here(), os.getppid())


@simulated
async def test_nobody_holds_a_new_hub() -> None:
    """No lease, no epoch."""
    world = World()
    assert await find_lease(world.hub) is None


@simulated
async def test_a_claim_counts_before_its_first_renewal() -> None:
    """Between the claim of an epoch and its first lease, the claim tells who holds the hub."""
    world = World()
    claimed = lease(pid=7)
    assert await claim_hub_epoch(world.objects, world.hub.keys, 1, claimed.to_json())
    assert await find_lease(world.hub) == claimed


@simulated
async def test_the_last_renewal_of_a_replaced_holder_counts_for_nothing() -> None:
    """It looked before the claim, and wrote after it: the newest epoch's holder is the one that is found."""
    world = World()
    older, newer = lease(), Lease(epoch=2, cluster="new:1", host="new", boot="", pid=0, renewed_us=NOW_US)
    assert await claim_hub_epoch(world.objects, world.hub.keys, 1, older.to_json())
    assert await claim_hub_epoch(world.objects, world.hub.keys, 2, newer.to_json())
    await write_lease(world.objects, world.hub.keys, newer.to_json())
    await write_lease(world.objects, world.hub.keys, older.to_json())
    assert await find_lease(world.hub) == newer


@simulated
async def test_a_renewal_keeps_the_holder_and_moves_the_time() -> None:
    """What others read is the same lease, renewed now."""
    world = World()
    own = lease(pid=7)
    assert await claim_hub_epoch(world.objects, world.hub.keys, 1, own.to_json())
    await LeaseKeeper(world.hub, own, world.clock).renew_lease()
    found = await find_lease(world.hub)
    assert found is not None
    assert found.renewed_us == world.clock.now_us()
    assert (found.epoch, found.pid) == (1, 7)
