"""Which instances a hub has, by the names of their objects alone: for whoever looks after all of them."""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from collections.abc import AsyncIterator
from dataclasses import dataclass

from ray_durable.errors import CorruptLogError
from ray_durable.storage.keys import HubKeys, decode_id, encode_id, is_instance_id, numbers
from ray_durable.storage.store import ObjectStore

__all__ = ["InstanceNames", "find_instance_id", "list_instances"]

_TOMBSTONE = "purged."


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceNames:
    """What the names below an instance's `folder` tell, whose own `name` is the encoded id.

    `executions` are those that are there, ascending; those up to `purged` are gone for every reader, if that tombstone
    counts.
    """

    folder: str
    name: str
    executions: tuple[int, ...]
    purged: int

    @property
    def present(self) -> tuple[int, ...]:
        """The executions that readers see."""
        return tuple(number for number in self.executions if number > self.purged)

    @property
    def remains(self) -> tuple[int, ...]:
        """Those that are purged and not removed yet."""
        return tuple(number for number in self.executions if number <= self.purged)


async def list_instances(store: ObjectStore, keys: HubKeys) -> AsyncIterator[InstanceNames]:
    """All instances, purged ones too, in the order of their folders. Costs a listing for each 256th of them."""
    for spread in await store.list_folder(keys.instances):
        if not spread.endswith("/"):
            continue
        # A local store does not wait for anything: others are to have their turn in between.
        await asyncio.sleep(0)
        below: dict[str, list[str]] = defaultdict(list)
        for path in await store.list_tree(f"{keys.instances}{spread}"):
            name, _, rest = path.partition("/")
            below[name].append(rest)
        for name, names in below.items():
            tombstones = (rest.removeprefix(_TOMBSTONE) for rest in names if rest.startswith(_TOMBSTONE))
            yield InstanceNames(
                folder=f"{keys.instances}{spread}{name}/",
                name=name,
                executions=tuple(numbers(names, 6)),
                purged=max(numbers(tombstones, 6), default=0),
            )


async def find_instance_id(store: ObjectStore, keys: HubKeys, names: InstanceNames) -> str | None:
    """The id of a listed instance; None if it is a folder of something else, or if nothing there tells.

    A name that was shortened is not decoded: then the executions say whose it is, the newest that can be read.
    """
    instance_id = decode_id(names.name)
    for number in () if instance_id is not None else reversed(names.executions):
        try:
            segment = await store.get(f"{names.folder}{number:06}")
        except CorruptLogError:
            continue  # too large for one
        found = _instance_in(segment or b"")
        if is_instance_id(found) and encode_id(found) == names.name:
            instance_id = found
            break
    if instance_id is None or keys.executions(instance_id) != names.folder:
        return None
    return instance_id


def _instance_in(segment: bytes) -> object:
    """What the header of a segment calls its instance."""
    try:
        header = json.loads(segment.partition(b"\n")[0])
    except (ValueError, RecursionError):
        return None
    return header.get("instance") if isinstance(header, dict) else None
