"""Instances by the names of their objects alone: what is listed, and whose folder it is."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from ray_durable.storage import HubKeys, InstanceNames, find_instance_id, list_instances
from ray_durable.storage.memory import MemoryStore

KEYS = HubKeys("hub")


def listed(*keys: str) -> list[InstanceNames]:
    async def main() -> list[InstanceNames]:
        store = MemoryStore("test-instances")
        store._objects.clear()
        for key in keys:
            await store.put(key, b"x")
        return [names async for names in list_instances(store, KEYS)]

    return asyncio.run(main())


def test_executions_and_tombstones_are_told_apart() -> None:
    """Of several tombstones the highest counts; what is below it remains to be removed."""
    keys = [KEYS.execution("Über", number) for number in (1, 2, 3)] + [KEYS.purged("Über", n) for n in (1, 2)]
    (names,) = listed(*keys)
    assert (names.executions, names.purged, names.present, names.remains) == ((1, 2, 3), 2, (3,), (1, 2))


def test_a_folder_in_another_place_is_nobodys() -> None:
    """An id has one place: what lies elsewhere under its name was not written by these rules."""
    (names,) = listed(KEYS.execution("one", 1))
    elsewhere = replace(names, folder=names.folder.replace("/instances/", "/instances/zz"))
    store = MemoryStore("test-instances")
    assert asyncio.run(find_instance_id(store, KEYS, names)) == "one"
    assert asyncio.run(find_instance_id(store, KEYS, elsewhere)) is None
