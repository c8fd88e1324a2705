"""What listing and recovery need: the open set of unfinished instances, and summaries of ended ones.

All of it is derived from the logs and never trusted over them. Objects that are no entries (half-written by somebody,
foreign) are skipped.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from ray_durable.storage.keys import HubKeys, encode_id
from ray_durable.storage.store import ObjectStore

__all__ = ["EndedPage", "OpenEntry", "add_open", "find_open", "list_ended", "list_open", "record_ended", "remove_open"]

_READS_AT_ONCE = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenEntry:
    """An unfinished instance.

    `entered_us` is when its start began. `problem` says what keeps it from going on, if anything does. `wake` is left by
    an owner that let the idle instance go: due time, execution and the log's last number.
    """

    instance_id: str
    name: str
    request_id: str
    entered_us: int
    problem: str | None = None
    wake: Mapping[str, int] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EndedPage:
    """Summaries of ended instances, oldest first, and where the next page begins (None: this was the last)."""

    summaries: tuple[Mapping[str, Any], ...]
    next_token: str | None


async def add_open(store: ObjectStore, keys: HubKeys, entry: OpenEntry) -> None:
    """Enter an instance, or replace its entry."""
    fields: dict[str, Any] = {
        "v": 1,
        "instance": entry.instance_id,
        "name": entry.name,
        "request_id": entry.request_id,
        "entered_us": entry.entered_us,
    }
    if entry.problem is not None:
        fields["problem"] = entry.problem
    if entry.wake is not None:
        fields["wake"] = dict(entry.wake)
    await store.put(keys.open_entry(entry.instance_id), json.dumps(fields, ensure_ascii=False).encode())


async def remove_open(store: ObjectStore, keys: HubKeys, instance_id: str) -> None:
    """The instance is finished and owes nothing to others."""
    await store.delete_many([keys.open_entry(instance_id)])


async def find_open(store: ObjectStore, keys: HubKeys, instance_id: str) -> OpenEntry | None:
    """The entry of an instance; None if it is not in the open set."""
    return _open_entry(await store.get(keys.open_entry(instance_id)))


async def list_open(store: ObjectStore, keys: HubKeys) -> list[OpenEntry]:
    """The whole open set, oldest first."""
    folders = [name for name in await store.list_folder(keys.open_set) if name.endswith("/")]
    names = await _in_groups([store.list_folder(f"{keys.open_set}{folder}") for folder in folders])
    paths = [f"{keys.open_set}{folder}{name}" for folder, below in zip(folders, names, strict=True) for name in below]
    entries = map(_open_entry, await _in_groups([store.get(path) for path in paths]))
    return sorted(
        (entry for entry in entries if entry is not None), key=lambda entry: (entry.entered_us, entry.instance_id)
    )


def _open_entry(data: bytes | None) -> OpenEntry | None:
    try:
        fields = json.loads(data or b"")
        return OpenEntry(
            instance_id=fields["instance"],
            name=fields["name"],
            request_id=fields["request_id"],
            entered_us=fields["entered_us"],
            problem=fields.get("problem"),
            wake=fields.get("wake"),
        )
    except (KeyError, TypeError, ValueError):
        return None


async def record_ended(store: ObjectStore, keys: HubKeys, summary: Mapping[str, Any]) -> None:
    """Leave the summary of an ended instance (the status in the header of its last segment)."""
    key = keys.ended_entry(summary["instance"], summary["created_us"], summary["runtime_status"])
    await store.put(key, json.dumps(dict(summary), ensure_ascii=False).encode())


async def list_ended(
    store: ObjectStore,
    keys: HubKeys,
    *,
    statuses: Sequence[str] | None = None,
    prefix: str = "",
    created_from_us: int | None = None,
    created_to_us: int | None = None,
    limit: int = 1_000,
    token: str | None = None,
) -> EndedPage:
    """Ended instances by time of creation. Status and time are read from the names, so only a page is fetched.

    `prefix` is one of the id; `token` is the `next_token` of the page before. A page is stable: instances that end
    meanwhile appear at their place, and none is skipped or shown twice.
    """
    wanted = {status.lower() for status in statuses} if statuses is not None else None
    first_day, last_day = _day(created_from_us), _day(created_to_us)
    found: list[str] = []
    for folder in await store.list_folder(keys.ended):
        day = folder.rstrip("/")
        if (first_day and day < first_day) or (last_day and day > last_day) or (token and day < token.split("/")[0]):
            continue
        for name in await store.list_folder(f"{keys.ended}{folder}"):
            path = f"{folder}{name}"
            if (token is None or path > token) and _matches(name, wanted, prefix, created_from_us, created_to_us):
                found.append(path)
        if len(found) > limit:
            break
    page = found[:limit]
    bodies = await _in_groups([store.get(f"{keys.ended}{path}") for path in page])
    summaries = [summary for summary in map(_summary, bodies) if summary is not None]
    return EndedPage(
        summaries=tuple(summary for summary in summaries if summary["instance"].startswith(prefix)),
        next_token=page[-1] if len(found) > limit else None,
    )


def _day(time_us: int | None) -> str | None:
    return None if time_us is None else datetime.fromtimestamp(time_us / 1_000_000, UTC).strftime("%Y%m%d")


def _matches(name: str, wanted: set[str] | None, prefix: str, from_us: int | None, to_us: int | None) -> bool:
    created, _, rest = name.partition(".")
    status, _, encoded_id = rest.partition(".")
    if not created.isdigit() or (wanted is not None and status not in wanted):
        return False
    created_ms = int(created)
    if from_us is not None and created_ms < from_us // 1000 or to_us is not None and created_ms > to_us // 1000:
        return False
    # A long id is cut in its name: then the summary tells.
    return "%%" in encoded_id or not prefix or encoded_id.startswith(encode_id(prefix))


def _summary(data: bytes | None) -> Mapping[str, Any] | None:
    try:
        summary = json.loads(data or b"")
    except ValueError:
        return None
    return (
        summary
        if isinstance(summary, dict) and {"instance", "runtime_status", "created_us"} <= summary.keys()
        else None
    )


async def _in_groups(awaitables: Sequence[Any]) -> list[Any]:
    """Await all, a limited number at a time, in order."""
    results: list[Any] = []
    for begin in range(0, len(awaitables), _READS_AT_ONCE):
        results += await asyncio.gather(*awaitables[begin : begin + _READS_AT_ONCE])
    return results
