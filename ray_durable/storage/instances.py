"""Which instances a hub has, by the names of their objects alone: for whoever looks after all of them."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import AsyncIterator
from dataclasses import dataclass

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

    A name that was shortened is not decoded: then the newest execution says whose it is.
    """
    instance_id = decode_id(names.name)
    if instance_id is None and names.executions:
        header = (await store.get(f"{names.folder}{names.executions[-1]:06}") or b"").partition(b"\n")[0]
        try:
            fields = json.loads(header)
        except (ValueError, RecursionError):
            return None
        found = fields.get("instance") if isinstance(fields, dict) else None
        instance_id = found if is_instance_id(found) and encode_id(found) == names.name else None
    if instance_id is None or keys.executions(instance_id) != names.folder:
        return None
    return instance_id
