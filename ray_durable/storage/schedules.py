"""Schedules as objects of a hub: each change is a new revision, created if absent, so that no change is lost.

Knows names and numbers; what a schedule says is for others to read. Objects that are no schedules (damaged, foreign, in
a signed hub not signed) are skipped: the highest revision that can be read counts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ray_durable.storage.keys import HubKeys, encode_id, is_instance_id
from ray_durable.storage.objects import pack_object, read_bounded, unpack_object
from ray_durable.storage.segment import FORMAT_VERSION
from ray_durable.storage.store import OBJECT_BYTES_MAX, ObjectStore

__all__ = ["ScheduleRecord", "create_schedule_revision", "find_schedule", "list_schedules"]

_NAME = re.compile(r"(?P<id>[a-z0-9_%-]+)\.(?P<revision>[0-9]{12,15})")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleRecord:
    """A revision of a schedule, from 1. `fields` is all that it says; None: it was deleted."""

    schedule_id: str
    revision: int
    fields: Mapping[str, Any] | None


async def list_schedules(
    store: ObjectStore, keys: HubKeys, *, cache: dict[str, ScheduleRecord] | None = None
) -> list[ScheduleRecord]:
    """The newest revision of every schedule, deleted ones included, by name; older ones are removed on the way.

    A caller that looks again and again keeps a `cache`: only revisions that are new are read.
    """
    cache = {} if cache is None else cache
    found: dict[str, ScheduleRecord] = {}
    outdated: list[str] = []
    for revisions in _revisions(await store.list_folder(keys.schedules)).values():
        newest = await _newest(store, keys, revisions, cache)
        if newest is not None:
            name, found[name] = newest
            outdated += revisions[revisions.index(name) + 1 :]
    cache.clear()
    cache.update(found)
    if outdated:
        await store.delete_many([f"{keys.schedules}{name}" for name in outdated])
    return list(found.values())


async def find_schedule(store: ObjectStore, keys: HubKeys, schedule_id: str) -> ScheduleRecord | None:
    """The newest revision of one schedule; None if there never was one."""
    while True:
        revisions = _revisions(await store.list_folder(keys.schedules)).get(encode_id(schedule_id), [])
        newest = await _newest(store, keys, revisions, {})
        if newest is not None:
            return newest[1]
        if _revisions(await store.list_folder(keys.schedules)).get(encode_id(schedule_id), []) == revisions:
            return None
        # What was listed was removed before it was read, since there is a newer one.


async def create_schedule_revision(store: ObjectStore, keys: HubKeys, record: ScheduleRecord) -> bool:
    """Write the next revision; False if there is another one by now. The one before is removed.

    Revisions below the highest may have been removed: that this one could be created does not say that it counts.
    """
    fields = {"deleted": True} if record.fields is None else dict(record.fields)
    body = {"v": FORMAT_VERSION, "schedule": record.schedule_id, "revision": record.revision, **fields}
    key = keys.schedule(record.schedule_id, record.revision)
    data = pack_object(keys, key, body, bytes_max=OBJECT_BYTES_MAX)
    if not await store.put_if_absent(key, data):
        present = await read_bounded(store, key, OBJECT_BYTES_MAX)
        if present is not None and present != data:
            if _record(keys, key, present) is not None:
                return False
            # Damaged, or written by somebody without the hub's key: it is skipped by all.
            await store.put(key, data)
    newest = await find_schedule(store, keys, record.schedule_id)
    if newest is None or newest.revision != record.revision:
        return False
    if record.revision > 1:
        await store.delete_many([keys.schedule(record.schedule_id, record.revision - 1)])
    return True


def _revisions(names: Iterable[str]) -> dict[str, list[str]]:
    """The names of each schedule's revisions, the highest first."""
    found: dict[str, list[tuple[int, str]]] = {}
    for name in names:
        parts = _NAME.fullmatch(name)
        if parts is not None:
            found.setdefault(parts["id"], []).append((int(parts["revision"]), name))
    return {encoded: [name for _, name in sorted(revisions, reverse=True)] for encoded, revisions in found.items()}


async def _newest(
    store: ObjectStore, keys: HubKeys, revisions: Iterable[str], cache: Mapping[str, ScheduleRecord]
) -> tuple[str, ScheduleRecord] | None:
    """The first of these names under which there is a revision, and that."""
    for name in revisions:
        key = f"{keys.schedules}{name}"
        record = cache.get(name) or _record(keys, key, await read_bounded(store, key, OBJECT_BYTES_MAX))
        if record is not None:
            return name, record
    return None


def _record(keys: HubKeys, key: str, data: bytes | None) -> ScheduleRecord | None:
    body = unpack_object(keys, key, data)
    schedule_id, revision = body.get("schedule"), body.get("revision")
    if body.get("v") != FORMAT_VERSION or not is_instance_id(schedule_id) or type(revision) is not int:
        return None
    if key != keys.schedule(schedule_id, revision):
        return None
    fields = {field: value for field, value in body.items() if field not in ("v", "schedule", "revision", "mac")}
    return ScheduleRecord(schedule_id=schedule_id, revision=revision, fields=None if "deleted" in body else fields)
