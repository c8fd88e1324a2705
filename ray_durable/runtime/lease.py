"""Who holds the hub: a lease that the holder's supervisor renews, and an epoch that a takeover raises."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray_durable.errors import CorruptLogError, InstanceNotFoundError
from ray_durable.runtime.hub import OpenHub
from ray_durable.runtime.ports import Clock
from ray_durable.runtime.resting import Rest
from ray_durable.runtime.supervisor import ORPHAN_AGE_US
from ray_durable.storage import (
    OpenEntry,
    Pacing,
    add_open,
    current_hub_epoch,
    find_open,
    is_there,
    latest_execution,
    list_open,
    read_hub_epoch,
    read_lease,
    read_start,
    remove_open,
    write_lease,
)

__all__ = ["HOLDER_PACING", "Lease", "LeaseKeeper", "find_lease", "is_cluster_reachable"]

STALE_US = 15_000_000
"""A lease that was not renewed for this long is nobody's."""

HOLDER_PACING = Pacing(max_s=2.0)
"""How a holder asks a store that does not answer: nobody is to think, soon after an outage, that it is gone."""

_PROMPT_US = 2_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """The lease of a hub epoch. `cluster` is the address of the holder's Ray, `pid` a process that lives as long as the
    holder's node, on `host` since `boot`."""

    epoch: int
    cluster: str
    host: str
    boot: str
    pid: int
    renewed_us: int = 0

    @classmethod
    def of_this_process(cls, epoch: int, *, cluster: str) -> Lease:
        """For a process that Ray's node started: its parent lives as long as the node."""
        return cls(epoch=epoch, cluster=cluster, host=socket.gethostname(), boot=_boot_id(), pid=os.getppid())

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Lease:
        """Inverse of `to_json`. CorruptLogError for what is no lease."""
        kinds = {"epoch": int, "cluster": str, "host": str, "boot": str, "pid": int, "renewed_us": int}
        found = {name: fields.get(name) for name in kinds}
        if any(type(found[name]) is not kind for name, kind in kinds.items()):
            raise CorruptLogError("The hub's lease is damaged: remove lease/holder if nothing runs", key="lease/holder")
        return cls(**found)  # type: ignore[arg-type]  # looked at just above

    def to_json(self) -> dict[str, Any]:
        """What is stored."""
        return dataclasses.asdict(self)

    def is_living(self, now_us: int) -> bool:
        """Whether its holder may still be alive: renewed lately, and not known to be a dead process of this machine."""
        if now_us - self.renewed_us > STALE_US:
            return False
        is_here = self.host == socket.gethostname() and self.boot == _boot_id()
        return not (is_here and self.pid and not _is_alive(self.pid) and not self.is_reachable())

    def is_reachable(self) -> bool:
        """Whether the holder's Ray takes connections from here."""
        return is_cluster_reachable(self.cluster)


class LeaseKeeper:
    """The supervisor's side of the hub's storage: `HubIndex` over an open hub."""

    def __init__(self, hub: OpenHub, lease: Lease, clock: Clock) -> None:
        self._hub = hub
        self._lease = lease
        self._clock = clock
        self._open: dict[str, OpenEntry | None] = {}

    async def renew_lease(self) -> None:
        """Renew; FencedError once a higher epoch exists."""
        await self._hub.require_held()
        while True:
            now_us = self._clock.now_us()
            renewed = dataclasses.replace(self._lease, renewed_us=now_us)
            await write_lease(self._hub.store, self._hub.keys, renewed.to_json())
            # Written after an outage of the store, a lease is as old as the outage, and looks like nobody's.
            if self._clock.now_us() - now_us < _PROMPT_US:
                return

    async def open_instances(self) -> Sequence[OpenEntry]:
        """See `HubIndex`."""
        entries = await list_open(self._hub.store, self._hub.keys, cache=self._open)
        # Hints are read when they are needed, and are the largest part of an entry.
        for name, entry in self._open.items():
            if entry is not None and entry.wake is not None:
                self._open[name] = dataclasses.replace(entry, wake=None)
        return entries

    async def find_rest(self, instance_id: str) -> Rest | None:
        """See `HubIndex`."""
        store, keys = self._hub.store, self._hub.keys
        entry = await find_open(store, keys, instance_id)
        if entry is None or entry.wake is None:
            return None
        try:
            start = await read_start(store, keys, instance_id, entry.wake.execution)
        except (CorruptLogError, InstanceNotFoundError):
            return None  # its owner says what is wrong with it
        rest = Rest(due_us=entry.wake.due_us, next_key=keys.segment(start.header.run, entry.wake.tail_seq + 1))
        return rest if await self.holds(rest) else None

    async def holds(self, rest: Rest) -> bool:
        """See `HubIndex`."""
        return not await is_there(self._hub.store, rest.next_key)

    async def is_orphan(self, instance_id: str) -> bool:
        """See `HubIndex`."""
        return await latest_execution(self._hub.store, self._hub.keys, instance_id) is None

    async def forget_orphan(self, instance_id: str) -> None:
        """See `HubIndex`. A start that lives after all is put back: it may have rewritten the entry, or come true."""
        store, keys = self._hub.store, self._hub.keys
        entry = await find_open(store, keys, instance_id)
        if entry is None or self._clock.now_us() - entry.entered_us < ORPHAN_AGE_US:
            return
        await remove_open(store, keys, instance_id)
        if await latest_execution(store, keys, instance_id) is not None:
            await add_open(store, keys, entry)


def is_cluster_reachable(address: str) -> bool:
    """Whether the Ray at `address` takes connections from here."""
    host, _, port = address.rpartition(":")
    with contextlib.suppress(OSError, ValueError), socket.create_connection((host, int(port)), timeout=2):
        return True
    return False


async def find_lease(hub: OpenHub) -> Lease | None:
    """The lease of the newest epoch, as it was last renewed; None if nobody ever held the hub.

    An older holder may renew once more after it was replaced: its lease counts for nothing, the claim of the newest
    epoch does.
    """
    epoch = await current_hub_epoch(hub.store, hub.keys)
    fields = await read_lease(hub.store, hub.keys)
    if fields is None or not isinstance(fields.get("epoch"), int) or fields["epoch"] < epoch:
        fields = await read_hub_epoch(hub.store, hub.keys, epoch)
    return None if fields is None else Lease.from_json(fields)


def _boot_id() -> str:
    """Tells one run of this machine from the next; process ids begin anew with each."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    try:
        # One that has ended stays listed until its parent has asked for it, which a busy parent may never do.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return True
