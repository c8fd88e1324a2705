"""What listing and recovery need: the open set of unfinished instances, and summaries of ended ones.

All of it is derived from the logs and never trusted over them. Objects that are no entries (half-written by somebody,
foreign, of another place, in a signed hub not signed) are skipped.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from itertools import repeat
from typing import Any, TypeGuard, TypeVar

from ray_durable.storage.keys import HubKeys, encode_id, escape, is_instance_id
from ray_durable.storage.objects import pack_object, read_bounded, unpack_object
from ray_durable.storage.segment import FORMAT_VERSION
from ray_durable.storage.store import ObjectStore

__all__ = [
    "EndedPage",
    "OpenEntry",
    "WakeHint",
    "add_open",
    "ended_key",
    "ended_names",
    "find_ended",
    "find_open",
    "forget_ended",
    "list_ended",
    "list_open",
    "record_ended",
    "remove_ended",
    "remove_open",
]

T = TypeVar("T")

_READS_AT_ONCE = 32
_NO_ENTRIES_AT_ONCE = 100
_NAMES_IN_A_TURN = 5_000
_COUNT_END = 2**53
"""Above every count and time in microseconds that there can be: the year 2255."""
_DAY = re.compile(r"[0-9]{8}/")
_ENDED = re.compile(r"(?P<created_ms>[0-9]{13,})\.(?P<status>[a-z]+)\.(?P<id>[a-z0-9_%-]+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class WakeHint:
    """Left by an owner that let its idle instance go: nothing is to be done before `due_us`, unless something arrives
    for it (None: before that).

    It counts only while segment `tail_seq` + 1 of that execution does not exist. `waiting` is what the instance waits
    for, in words of whoever left it.
    """

    due_us: int | None
    execution: int
    tail_seq: int
    waiting: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenEntry:
    """An unfinished instance.

    `entered_us` is when its start began, `depth` how many instances called one another down to it. `problem` says what
    keeps it from going on, if anything does; `wake` is the hint of its last owner.
    """

    instance_id: str
    name: str
    request_id: str
    entered_us: int
    depth: int = 0
    problem: str | None = None
    wake: WakeHint | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EndedPage:
    """Summaries of ended instances, oldest first, and where the next page begins (None: this was the last)."""

    summaries: tuple[Mapping[str, Any], ...]
    next_token: str | None


async def add_open(store: ObjectStore, keys: HubKeys, entry: OpenEntry) -> None:
    """Enter an instance, or replace its entry."""
    fields: dict[str, Any] = {
        "v": FORMAT_VERSION,
        "instance": entry.instance_id,
        "name": entry.name,
        "request_id": entry.request_id,
        "entered_us": entry.entered_us,
    }
    if entry.depth:
        fields["depth"] = entry.depth
    if entry.problem is not None:
        fields["problem"] = entry.problem
    if entry.wake is not None:
        fields["wake"] = _wake_fields(entry.wake)
    key = keys.open_entry(entry.instance_id)
    await store.put(key, pack_object(keys, key, fields))


async def remove_open(store: ObjectStore, keys: HubKeys, instance_id: str) -> None:
    """The instance is finished and owes nothing to others."""
    await store.delete_many([keys.open_entry(instance_id)])


async def find_open(store: ObjectStore, keys: HubKeys, instance_id: str) -> OpenEntry | None:
    """The entry of an instance; None if it is not in the open set."""
    key = keys.open_entry(instance_id)
    return _open_entry(keys, key, await read_bounded(store, key))


async def list_open(
    store: ObjectStore, keys: HubKeys, *, cache: dict[str, OpenEntry | None] | None = None
) -> list[OpenEntry]:
    """The whole open set, oldest first.

    A caller that looks again and again keeps a `cache`: only names that are new are read, so that a look costs one
    listing. What changed in an entry since it was read is then not seen. Of what was no entry, 100 are read again each
    time: an instance may have got its entry there, and a flood of foreign objects is not to cost a request each.
    """
    cache = {} if cache is None else cache
    names = [name for name in await store.list_folder(keys.open_set) if not name.endswith("/")]
    for name in [name for name, entry in cache.items() if entry is None][:_NO_ENTRIES_AT_ONCE]:
        del cache[name]
    new = [name for name in names if name not in cache]
    paths = [f"{keys.open_set}{name}" for name in new]
    found = map(_open_entry, repeat(keys), paths, await _in_groups(partial(read_bounded, store), paths))
    present = set(names)
    for name in [name for name in cache if name not in present]:
        del cache[name]
    # What was read now comes last, so that the next looks read others again.
    cache.update(zip(new, found, strict=True))
    entries = [entry for entry in cache.values() if entry is not None]
    return sorted(entries, key=lambda entry: (entry.entered_us, entry.instance_id))


def _open_entry(keys: HubKeys, key: str, data: bytes | None) -> OpenEntry | None:
    """The entry in `data`. What it tells beside its identity is a hint, and left out if it makes no sense."""
    fields = unpack_object(keys, key, data)
    instance_id, entered_us, depth = fields.get("instance"), fields.get("entered_us"), fields.get("depth")
    texts = [fields.get(name) for name in ("name", "request_id")]
    problem = fields.get("problem")
    if fields.get("v") != FORMAT_VERSION or not is_instance_id(instance_id) or keys.open_entry(instance_id) != key:
        return None
    if not all(isinstance(text, str) for text in texts) or not _is_count(entered_us):
        return None
    return OpenEntry(
        instance_id=instance_id,
        name=fields["name"],
        request_id=fields["request_id"],
        entered_us=entered_us,
        depth=depth if _is_count(depth) else 0,
        problem=problem if isinstance(problem, str) else None,
        wake=_wake_hint(fields.get("wake")),
    )


def _wake_fields(hint: WakeHint) -> dict[str, Any]:
    fields: dict[str, Any] = {"execution": hint.execution, "tail_seq": hint.tail_seq}
    if hint.due_us is not None:
        fields["due_us"] = hint.due_us
    if hint.waiting:
        fields["waiting"] = [dict(one) for one in hint.waiting]
    return fields


def _wake_hint(fields: object) -> WakeHint | None:
    """The hint; None if it is none that this version understands: then its instance is seen to."""
    if not isinstance(fields, dict):
        return None
    due_us, execution, tail_seq = (fields.get(name) for name in ("due_us", "execution", "tail_seq"))
    if not _is_count(execution) or not _is_count(tail_seq) or not (due_us is None or _is_count(due_us)):
        return None
    waiting = fields.get("waiting", [])
    shown = tuple(one for one in waiting if isinstance(one, dict)) if isinstance(waiting, list) else ()
    return WakeHint(due_us=due_us, execution=execution, tail_seq=tail_seq, waiting=shown)


def _is_count(value: object) -> TypeGuard[int]:
    return type(value) is int and 0 <= value < _COUNT_END


async def record_ended(store: ObjectStore, keys: HubKeys, summary: Mapping[str, Any]) -> None:
    """Leave the summary of an ended instance (the status in the header of its last segment)."""
    key = keys.ended_entry(summary["instance"], summary["created_us"], summary["runtime_status"])
    await store.put(key, pack_object(keys, key, {"v": FORMAT_VERSION, **summary}))


def ended_key(keys: HubKeys, summary: Mapping[str, Any]) -> str | None:
    """Where this summary lies; None if no entry can be of it: another program wrote the log that it is from."""
    if not _is_summary(summary):
        return None
    return keys.ended_entry(summary["instance"], summary["created_us"], summary["runtime_status"])


async def forget_ended(store: ObjectStore, keys: HubKeys, summary: Mapping[str, Any]) -> None:
    """Remove the summary of an execution that is purged, or that another one follows.

    Not that of a later one, which has the same name if it was rewound and ended in the same way.
    """
    key = ended_key(keys, summary)
    if key is None:
        return
    if unpack_object(keys, key, await read_bounded(store, key)).get("execution") == summary.get("execution"):
        await store.delete_many([key])


async def ended_names(store: ObjectStore, keys: HubKeys) -> dict[str, list[str]]:
    """The keys of all summaries by the encoded id in their names. Takes some 300 bytes of memory for each."""
    found: dict[str, list[str]] = {}
    for folder in await store.list_folder(keys.ended):
        if not _DAY.fullmatch(folder):
            continue
        names = await store.list_folder(f"{keys.ended}{folder}")
        for begin in range(0, len(names), _NAMES_IN_A_TURN):
            # Days may have many names: others are to have their turn in between.
            await asyncio.sleep(0)
            for name in names[begin : begin + _NAMES_IN_A_TURN]:
                parts = _ENDED.fullmatch(name)
                if parts is not None:
                    found.setdefault(parts["id"], []).append(f"{keys.ended}{folder}{name}")
    return found


async def find_ended(store: ObjectStore, keys: HubKeys, key: str) -> Mapping[str, Any] | None:
    """The summary with this key; None if there is none, or none that can be read."""
    return _summary(keys, key, await read_bounded(store, key))


async def remove_ended(store: ObjectStore, key: str) -> None:
    """Remove what lies at the key of a summary."""
    await store.delete_many([key])


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

    `created_from_us` and `created_to_us` are included. `prefix` is one of the id; `token` is the `next_token` of the
    page before. Pages are stable: instances that end meanwhile appear at their place, and none is skipped or shown
    twice. A page may have fewer than `limit` summaries and not be the last.
    """
    wanted = {status.lower() for status in statuses} if statuses is not None else None
    first_day, last_day = _day(created_from_us), _day(created_to_us)
    found: list[str] = []
    for folder in await store.list_folder(keys.ended):
        day = folder.rstrip("/")
        if not _DAY.fullmatch(folder) or (first_day and day < first_day) or (last_day and day > last_day):
            continue
        if token is not None and day < token.partition("/")[0]:
            continue
        for name in await store.list_folder(f"{keys.ended}{folder}"):
            path = f"{folder}{name}"
            if (token is None or path > token) and _matches(name, wanted, prefix, created_from_us, created_to_us):
                found.append(path)
        if len(found) > limit:
            break
    page = found[:limit]
    paths = [f"{keys.ended}{path}" for path in page]
    summaries = map(_summary, repeat(keys), paths, await _in_groups(partial(read_bounded, store), paths))
    return EndedPage(
        summaries=tuple(
            summary
            for summary in summaries
            # Names hold milliseconds, and of long ids the beginning only.
            if summary is not None
            and summary["instance"].startswith(prefix)
            and (created_from_us is None or summary["created_us"] >= created_from_us)
            and (created_to_us is None or summary["created_us"] <= created_to_us)
        ),
        next_token=page[-1] if len(found) > limit else None,
    )


def _day(time_us: int | None) -> str | None:
    return None if time_us is None else datetime.fromtimestamp(time_us / 1_000_000, UTC).strftime("%Y%m%d")


def _matches(name: str, wanted: set[str] | None, prefix: str, from_us: int | None, to_us: int | None) -> bool:
    parts = _ENDED.fullmatch(name)
    if parts is None or (wanted is not None and parts["status"] not in wanted):
        return False
    created_ms = int(parts["created_ms"])
    if from_us is not None and created_ms < from_us // 1000:
        return False
    if to_us is not None and created_ms > to_us // 1000:
        return False
    # A long id is cut in its name: then the summary tells.
    return "%%" in parts["id"] or parts["id"].startswith(escape(prefix))


def _summary(keys: HubKeys, key: str, data: bytes | None) -> Mapping[str, Any] | None:
    summary = unpack_object(keys, key, data)
    if summary.get("v") != FORMAT_VERSION or not _is_summary(summary):
        return None
    # What lies under another's name was put there by somebody else.
    name = f".{summary['runtime_status'].lower()}.{encode_id(summary['instance'])}"
    return summary if key.endswith(name) else None


def _is_summary(summary: Mapping[str, Any]) -> bool:
    """Whether it has what the name of an entry is made of."""
    instance_id, status, created_us = (summary.get(name) for name in ("instance", "runtime_status", "created_us"))
    return is_instance_id(instance_id) and isinstance(status, str) and status.isalpha() and _is_count(created_us)


async def _in_groups(read: Callable[[str], Awaitable[T]], names: Sequence[str]) -> list[T]:
    """Read all, a limited number at a time, in order."""
    results: list[T] = []
    for begin in range(0, len(names), _READS_AT_ONCE):
        results += await asyncio.gather(*map(read, names[begin : begin + _READS_AT_ONCE]))
    return results
