"""Removing executions from storage, once nobody can write to them any more.

Old executions and purged instances stay for a grace period, so that a writer that was stopped meanwhile still finds its
next key taken. What is due then stands in a queue of its own, and whoever looks at it, as often as they like, removes
it: all of a run first, its segment 0 last, so that what was interrupted is found again.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ray_durable.errors import CorruptLogError, InstanceNotFoundError
from ray_durable.storage.catalog import forget_ended
from ray_durable.storage.keys import HubKeys, encode_id, is_instance_id, numbers
from ray_durable.storage.log import list_executions, read_start, read_tail
from ray_durable.storage.objects import is_authentic, pack_object, read_bounded, unpack_object
from ray_durable.storage.segment import FORMAT_VERSION
from ray_durable.storage.store import ObjectStore

__all__ = ["Retired", "bury", "list_queued", "list_retired", "remove_execution", "remove_retired", "retire"]

_NAMES_AT_ONCE = 1_000
_DUE = re.compile(r"[0-9]{13,16}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Retired:
    """The executions of an instance up to `through` may be removed from storage from `due_us` on."""

    instance_id: str
    through: int
    due_us: int


async def bury(store: ObjectStore, keys: HubKeys, instance_id: str, through: int) -> None:
    """Leave the tombstone of the executions up to `through`: from now on they are not there for anybody."""
    key = keys.purged(instance_id, through)
    data = pack_object(keys, key, {"v": FORMAT_VERSION, "instance": instance_id, "through": through})
    if not await store.put_if_absent(key, data):
        found = await read_bounded(store, key)
        if found is not None and not is_authentic(keys, key, found):
            # Somebody without the hub's key was here before, and is not believed.
            await store.put(key, data)


async def retire(store: ObjectStore, keys: HubKeys, retired: Retired) -> None:
    """Enter executions into the queue of what is to be removed."""
    fields = {"v": FORMAT_VERSION, "instance": retired.instance_id, "through": retired.through}
    key = keys.retired_entry(retired.instance_id, retired.due_us)
    await store.put(key, pack_object(keys, key, fields))


async def list_retired(store: ObjectStore, keys: HubKeys, now_us: int) -> Sequence[tuple[str, Retired]]:
    """What is due by `now_us`: the name of each entry, and what it says.

    Objects that are no entries are skipped, and entries of another place: what they ask for cannot be undone.
    """
    due: list[tuple[str, Retired]] = []
    for name in await store.list_folder(keys.retired):
        due_ms = name.partition(".")[0]
        if not _DUE.fullmatch(due_ms) or int(due_ms) * 1_000 > now_us:
            continue
        key = f"{keys.retired}{name}"
        fields = unpack_object(keys, key, await read_bounded(store, key))
        instance_id, through = fields.get("instance"), fields.get("through")
        if is_instance_id(instance_id) and type(through) is int and name == f"{due_ms}.{encode_id(instance_id)}":
            due.append((key, Retired(instance_id=instance_id, through=through, due_us=int(due_ms) * 1_000)))
    return due


async def list_queued(store: ObjectStore, keys: HubKeys) -> set[str]:
    """The encoded ids of the instances that are named in the queue, due or not."""
    return {name.partition(".")[2] for name in await store.list_folder(keys.retired)}


async def remove_retired(store: ObjectStore, keys: HubKeys, key: str, retired: Retired) -> None:
    """Remove what an entry of the queue names, and then the entry.

    Not the newest execution of an instance that is there: its purge was given up before the tombstone.
    """
    instance_id, through = retired.instance_id, retired.through
    executions = await list_executions(store, keys, instance_id)
    if executions.latest is None or executions.latest > through:
        await _forget_summary(store, keys, instance_id, through)
        names = await store.list_folder(keys.executions(instance_id))
        for number in numbers(names, 6):
            if number <= through:
                await remove_execution(store, keys, instance_id, number)
    await store.delete_many([key])


async def _forget_summary(store: ObjectStore, keys: HubKeys, instance_id: str, execution: int) -> None:
    """Whoever purged may have died before that."""
    try:
        tail = await read_tail(store, keys, instance_id, execution)
    except (CorruptLogError, InstanceNotFoundError):
        return
    await forget_ended(store, keys, tail.header.status)


async def remove_execution(store: ObjectStore, keys: HubKeys, instance_id: str, execution: int) -> None:
    """Remove an execution with all that belongs to its run, unless it is gone. A damaged one stays, to be looked at."""
    try:
        start = await read_start(store, keys, instance_id, execution)
        folder = keys.run(start.header.run)
    except (CorruptLogError, InstanceNotFoundError):
        return
    await _remove_folder(store, folder)
    await store.delete_many([keys.execution(instance_id, execution)])


async def _remove_folder(store: ObjectStore, folder: str) -> None:
    names = await store.list_folder(folder)
    for name in names:
        if name.endswith("/"):
            await _remove_folder(store, f"{folder}{name}")
    objects = [f"{folder}{name}" for name in names if not name.endswith("/")]
    for begin in range(0, len(objects), _NAMES_AT_ONCE):
        await store.delete_many(objects[begin : begin + _NAMES_AT_ONCE])
    await store.delete_many([folder])
