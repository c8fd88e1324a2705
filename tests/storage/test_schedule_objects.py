"""Schedules as objects: revisions for which writers contend, and of which the highest that can be read counts."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from ray_durable.storage import (
    HubKeys,
    ObjectStore,
    ScheduleRecord,
    Signer,
    create_schedule_revision,
    find_schedule,
    list_schedules,
    open_store,
)

KEYS = HubKeys("hub")
SIGNED = HubKeys("hub", Signer([b"0123456789abcdef0123456789abcdef"]))

Test = Callable[[ObjectStore], Coroutine[Any, Any, None]]


def revision(number: int, text: str = "", schedule_id: str = "s") -> ScheduleRecord:
    return ScheduleRecord(schedule_id=schedule_id, revision=number, fields={"text": text})


def run(test: Test) -> None:
    """With a store in memory."""

    async def opened() -> None:
        await test(await open_store(f"memory://{uuid.uuid4().hex}"))

    asyncio.run(opened())


@pytest.mark.parametrize("keys", [KEYS, SIGNED], ids=["unsigned", "signed"])
def test_of_those_who_write_a_revision_one_succeeds(keys: HubKeys) -> None:
    """The same bytes again are the same change; the revision before is removed."""

    async def test(store: ObjectStore) -> None:
        assert await find_schedule(store, keys, "s") is None
        assert await create_schedule_revision(store, keys, revision(1))
        results = await asyncio.gather(
            *(create_schedule_revision(store, keys, revision(2, str(who))) for who in range(8))
        )
        assert results.count(True) == 1
        winner = results.index(True)
        assert await create_schedule_revision(store, keys, revision(2, str(winner)))
        assert await find_schedule(store, keys, "s") == revision(2, str(winner))
        assert await store.list_folder(keys.schedules) == ["s.000000000002"]

    run(test)


def test_a_writer_that_was_stopped_does_not_believe_that_its_change_counts() -> None:
    """Its number is free again, since what was there was followed and removed."""

    async def test(store: ObjectStore) -> None:
        for number in (1, 2, 3):
            assert await create_schedule_revision(store, KEYS, revision(number))
        assert not await create_schedule_revision(store, KEYS, revision(2, "late"))
        assert await find_schedule(store, KEYS, "s") == revision(3)
        assert await list_schedules(store, KEYS) == [revision(3)]
        assert await store.list_folder(KEYS.schedules) == ["s.000000000003"]

    run(test)


def test_a_cache_saves_reading_what_was_read() -> None:
    """New revisions are read, and what is gone is forgotten."""

    async def test(store: ObjectStore) -> None:
        await create_schedule_revision(store, KEYS, revision(1, schedule_id="Á"))
        await create_schedule_revision(store, KEYS, revision(1))
        cache: dict[str, ScheduleRecord] = {}
        assert len(await list_schedules(store, KEYS, cache=cache)) == 2
        await store.put(KEYS.schedule("s", 1), b"not read again")
        assert len(await list_schedules(store, KEYS, cache=cache)) == 2
        await create_schedule_revision(store, KEYS, revision(2, schedule_id="Á"))
        assert revision(2, schedule_id="Á") in await list_schedules(store, KEYS, cache=cache)
        await store.delete_many([KEYS.schedule("s", 1)])
        assert await list_schedules(store, KEYS, cache=cache) == [revision(2, schedule_id="Á")]

    run(test)


def test_a_deleted_schedule_keeps_its_number() -> None:
    """So that whoever was stopped in the middle of a change cannot bring it back."""

    async def test(store: ObjectStore) -> None:
        await create_schedule_revision(store, KEYS, revision(1))
        gone = ScheduleRecord(schedule_id="s", revision=2, fields=None)
        assert await create_schedule_revision(store, KEYS, gone)
        assert await find_schedule(store, KEYS, "s") == gone
        assert not await create_schedule_revision(store, KEYS, revision(2, "late"))
        assert await create_schedule_revision(store, KEYS, revision(3))

    run(test)


@pytest.mark.parametrize("data", [b"garbage", b"[1]", b'{"v": 2}', b'{"v": 1, "schedule": "t", "revision": 3}'])
@pytest.mark.parametrize("keys", [KEYS, SIGNED], ids=["unsigned", "signed"])
def test_what_is_no_schedule_is_skipped_and_written_over(keys: HubKeys, data: bytes) -> None:
    """Damaged, foreign, of another place, without the hub's signature."""

    async def test(store: ObjectStore) -> None:
        await create_schedule_revision(store, keys, revision(1))
        await create_schedule_revision(store, keys, revision(2))
        for name in (keys.schedule("s", 3), f"{keys.schedules}README", f"{keys.schedules}s.x"):
            await store.put(name, data)
        assert await find_schedule(store, keys, "s") == revision(2)
        assert await list_schedules(store, keys) == [revision(2)]
        assert await create_schedule_revision(store, keys, revision(3, "mine"))
        assert await list_schedules(store, keys) == [revision(3, "mine")]

    run(test)


def test_a_revision_without_the_key_counts_for_nothing() -> None:
    """Whoever can write to the store starts nothing by it."""

    async def test(store: ObjectStore) -> None:
        await create_schedule_revision(store, KEYS, revision(1, "forged"))
        assert await list_schedules(store, SIGNED) == []
        assert await create_schedule_revision(store, SIGNED, revision(1, "mine"))
        assert await find_schedule(store, SIGNED, "s") == revision(1, "mine")

    run(test)
