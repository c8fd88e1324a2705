"""The open set, the summaries of ended instances, and the hub's own objects."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_durable.errors import ConfigurationError, CorruptLogError
from ray_durable.storage import (
    HubKeys,
    ObjectStore,
    OpenEntry,
    WakeHint,
    add_open,
    claim_hub_epoch,
    create_hub,
    current_hub_epoch,
    find_open,
    list_ended,
    list_open,
    open_store,
    read_lease,
    read_settings,
    record_ended,
    remove_open,
    write_lease,
)
from ray_durable.testing.spy_store import SpyStore
from tests.storage.store_contract import OpenRoot, with_store

KEYS = HubKeys("hub")
DAY_US = 86_400_000_000
BEGAN_US = 1_764_000_000_000_000
_numbers = itertools.count()


@pytest.fixture(params=["memory", "local"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> OpenRoot:
    """An empty root."""
    url = str(tmp_path) if request.param == "local" else f"memory://catalog-{next(_numbers)}"
    return lambda: open_store(url)


def entry(instance_id: str, entered_us: int = BEGAN_US, **fields: Any) -> OpenEntry:
    """An entry of the open set."""
    return OpenEntry(instance_id=instance_id, name="review", request_id="r", entered_us=entered_us, **fields)


def summary(instance_id: str, created_us: int = BEGAN_US, runtime_status: str = "Completed") -> dict[str, Any]:
    """The summary of an ended instance."""
    return {"instance": instance_id, "name": "review", "created_us": created_us, "runtime_status": runtime_status}


async def listed(store: ObjectStore, **filters: Any) -> list[str]:
    """The ids of all pages, in their order."""
    ids: list[str] = []
    token: str | None = None
    while True:
        page = await list_ended(store, KEYS, token=token, **filters)
        ids += [one["instance"] for one in page.summaries]
        if page.next_token is None:
            return ids
        assert token is None or page.next_token > token
        token = page.next_token


class TestOpenSet:
    """Unfinished instances."""

    @with_store
    async def test_an_entry_is_found_listed_and_removed(self, store: ObjectStore) -> None:
        """With all it says; removing it twice is no error."""
        full = entry("Größe 1", problem="cannot be imported", wake=WakeHint(due_us=1, execution=1, tail_seq=9))
        await add_open(store, KEYS, full)
        assert await find_open(store, KEYS, "Größe 1") == full
        assert await find_open(store, KEYS, "other") is None
        assert await list_open(store, KEYS) == [full]
        await remove_open(store, KEYS, "Größe 1")
        await remove_open(store, KEYS, "Größe 1")
        assert await find_open(store, KEYS, "Größe 1") is None
        assert await list_open(store, KEYS) == []

    @with_store
    async def test_a_hint_comes_back_as_it_was_left(self, store: ObjectStore) -> None:
        """With what the instance waits for; one that is due at no time stays so."""
        event = {"kind": "external event", "name": "Größe", "number": 0}
        left = entry("a", wake=WakeHint(due_us=None, execution=2, tail_seq=3, waiting=(event,)))
        await add_open(store, KEYS, left)
        assert await find_open(store, KEYS, "a") == left

    @with_store
    async def test_a_hint_that_makes_no_sense_is_none(self, store: ObjectStore) -> None:
        """Its instance gets an owner, who knows better."""
        await add_open(store, KEYS, entry("a"))
        fields = json.loads(await store.get(KEYS.open_entry("a")) or b"")
        hints: list[object] = ["soon", [], {"due_us": 5}, {"due_us": "x", "execution": 1, "tail_seq": 1}]
        for hint in hints:
            await store.put(KEYS.open_entry("a"), json.dumps({**fields, "wake": hint}).encode())
            assert await find_open(store, KEYS, "a") == entry("a")

    @with_store
    async def test_an_entry_is_replaced(self, store: ObjectStore) -> None:
        """There is one entry an instance."""
        await add_open(store, KEYS, entry("a", problem="x"))
        await add_open(store, KEYS, entry("a"))
        assert await list_open(store, KEYS) == [entry("a")]

    @with_store
    async def test_the_oldest_come_first(self, store: ObjectStore) -> None:
        """Whatever their names, and more of them than are read at once."""
        entries = [entry(f"i{number * 37 % 100}", BEGAN_US + number) for number in range(100)]
        for one in reversed(entries):
            await add_open(store, KEYS, one)
        assert await list_open(store, KEYS) == entries

    @with_store
    async def test_a_second_look_with_a_cache_reads_new_names_only(self, store: ObjectStore) -> None:
        """Entries that went are forgotten, new ones are read, the others are not read again."""
        cache: dict[str, OpenEntry | None] = {}
        await add_open(store, KEYS, entry("a"))
        await add_open(store, KEYS, entry("b"))
        assert await list_open(store, KEYS, cache=cache) == [entry("a"), entry("b")]
        await remove_open(store, KEYS, "a")
        await add_open(store, KEYS, entry("c"))
        await store.put(KEYS.open_entry("b"), b"not read again")
        assert await list_open(store, KEYS, cache=cache) == [entry("b"), entry("c")]
        assert {kept.instance_id for kept in cache.values() if kept is not None} == {"b", "c"}

    @with_store
    async def test_a_flood_of_foreign_objects_is_read_once(self, store: ObjectStore) -> None:
        """Later looks read a few of them each, in turn, so that an entry which takes such a name is found."""
        spy = SpyStore(store)
        cache: dict[str, OpenEntry | None] = {}
        await add_open(store, KEYS, entry("good"))
        for number in range(350):
            await store.put(KEYS.open_entry(f"x{number}"), b"no entry")
        assert await list_open(spy, KEYS, cache=cache) == [entry("good")]
        await add_open(store, KEYS, entry("x340", BEGAN_US + 1))
        looks = 0
        while len(await list_open(spy, KEYS, cache=cache)) == 1:
            looks += 1
        assert 1 <= looks <= 3
        reads = [call for call in spy.calls if call[0] == "get"]
        assert len(reads) == 351 + 100 * (looks + 1)

    @with_store
    async def test_foreign_objects_are_skipped(self, store: ObjectStore) -> None:
        """What is no entry hides none, wherever it lies."""
        await add_open(store, KEYS, entry("good"))
        place = KEYS.open_entry("good").rpartition("/")[0]
        for number, body in enumerate(FOREIGN_BODIES):
            await store.put(f"{place}/foreign-{number}", body)
        await store.put(f"{KEYS.open_set}README", b"x")
        await store.put(f"{place}/folder/object", b"x")
        assert await list_open(store, KEYS) == [entry("good")]
        assert await list_open(store, KEYS, cache={}) == [entry("good")]
        await store.put(KEYS.open_entry("bad"), b"\x00")
        assert await find_open(store, KEYS, "bad") is None


FOREIGN_BODIES = (
    b"\xff\xfe",
    b"not json",
    b"[]",
    b"7",
    b"{}",
    b'{"v":1}',
    b'{"v":1,"instance":7,"name":"n","request_id":"r","entered_us":1,"runtime_status":"x","created_us":1}',
    b'{"v":1,"instance":"a","name":"n","request_id":"r","entered_us":"1","runtime_status":"x","created_us":"1"}',
    b'{"v":2,"instance":"a","name":"n","request_id":"r","entered_us":1,"runtime_status":"x","created_us":1}',
)


class TestEndedInstances:
    """Listing what has ended."""

    @with_store
    async def test_summaries_come_oldest_first(self, store: ObjectStore) -> None:
        """By creation, over days, with all that was recorded."""
        ages = {"c": 0, "a": 1_000, "b": DAY_US, "d": 3 * DAY_US}
        for instance_id, age_us in reversed(ages.items()):
            await record_ended(store, KEYS, summary(instance_id, BEGAN_US + age_us))
        page = await list_ended(store, KEYS)
        assert [one["instance"] for one in page.summaries] == ["c", "a", "b", "d"]
        assert summary("b", BEGAN_US + DAY_US).items() <= page.summaries[2].items()
        assert page.next_token is None

    @with_store
    async def test_an_end_that_is_recorded_twice_is_one(self, store: ObjectStore) -> None:
        """Whoever finds an ended log repeats what may be missing."""
        for _ in range(2):
            await record_ended(store, KEYS, summary("a"))
        assert await listed(store) == ["a"]

    @with_store
    async def test_filters_choose(self, store: ObjectStore) -> None:
        """By status, by beginning of the id (also of long and strange ones), by creation, and by all together."""
        long_id = "order-" + "Ä" * 100
        ages = {"order-1": 0, "order-2": 1_500, "order 3": 2 * DAY_US, long_id: 2 * DAY_US + 1, "other": 2 * DAY_US}
        statuses = {"order-2": "Failed", "other": "ContinuedAsNew"}
        for instance_id, age_us in ages.items():
            status = statuses.get(instance_id, "Completed")
            await record_ended(store, KEYS, summary(instance_id, BEGAN_US + age_us, status))
        assert await listed(store, statuses=["Failed", "ContinuedAsNew"]) == ["order-2", "other"]
        assert await listed(store, statuses=[]) == []
        assert await listed(store, prefix="order-") == ["order-1", "order-2", long_id]
        assert await listed(store, prefix="order ") == ["order 3"]
        assert await listed(store, prefix=long_id[:60]) == [long_id]
        assert await listed(store, prefix=long_id + "Ä") == []
        assert await listed(store, created_from_us=BEGAN_US + 1_500, created_to_us=BEGAN_US + 1_500) == ["order-2"]
        assert await listed(store, created_from_us=BEGAN_US + 1_501, created_to_us=BEGAN_US + DAY_US) == []
        assert await listed(store, created_to_us=BEGAN_US + 1_499) == ["order-1"]
        assert await listed(store, created_from_us=BEGAN_US + DAY_US, statuses=["Completed"], prefix="order-") == [
            long_id
        ]

    @with_store
    async def test_a_flood_of_foreign_objects_is_read_once(self, store: ObjectStore) -> None:
        """Later looks read a few of them each, in turn, so that an entry which takes such a name is found."""
        spy = SpyStore(store)
        cache: dict[str, OpenEntry | None] = {}
        await add_open(store, KEYS, entry("good"))
        for number in range(350):
            await store.put(KEYS.open_entry(f"x{number}"), b"no entry")
        assert await list_open(spy, KEYS, cache=cache) == [entry("good")]
        await add_open(store, KEYS, entry("x340", BEGAN_US + 1))
        looks = 0
        while len(await list_open(spy, KEYS, cache=cache)) == 1:
            looks += 1
        assert 1 <= looks <= 3
        reads = [call for call in spy.calls if call[0] == "get"]
        assert len(reads) == 351 + 100 * (looks + 1)

    @with_store
    async def test_foreign_objects_are_skipped(self, store: ObjectStore) -> None:
        """Wrong names and wrong contents hide nothing and stop nothing."""
        await record_ended(store, KEYS, summary("good"))
        place = KEYS.ended_entry("good", BEGAN_US, "Completed").rpartition("/")[0]
        for number, body in enumerate(FOREIGN_BODIES):
            await store.put(KEYS.ended_entry(f"foreign-{number}", BEGAN_US, "Completed"), body)
        for name in (
            "README",
            "²²²²²²²²²²²²².completed.x",
            "1.completed.x",
            "1764000000000.Com.x",
            "sub/1764000000000.c.x",
        ):
            await store.put(f"{place}/{name}", json.dumps(summary("wrong")).encode())
        await store.put(f"{KEYS.ended}odd/1764000000000.completed.x", json.dumps(summary("wrong")).encode())
        await store.put(f"{KEYS.ended}file", b"x")
        assert await listed(store) == ["good"]
        assert await listed(store, limit=2) == ["good"]

    @settings(max_examples=40, deadline=None)
    @given(
        ended=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3)), max_size=25),
        later=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3)), max_size=10),
        limit=st.integers(1, 8),
    )
    def test_pages_are_stable(self, ended: list[tuple[int, int]], later: list[tuple[int, int]], limit: int) -> None:
        """Instances that end between two pages neither hide others nor show them twice."""

        async def record(store: ObjectStore, group: str, of: list[tuple[int, int]]) -> list[str]:
            ids = [f"{group}-{number}" for number in range(len(of))]
            for instance_id, (day, offset_ms) in zip(ids, of, strict=True):
                await record_ended(store, KEYS, summary(instance_id, BEGAN_US + day * DAY_US + offset_ms * 1_000))
            return ids

        async def main() -> None:
            store = await open_store(f"memory://catalog-{next(_numbers)}")
            before = await record(store, "before", ended)
            page = await list_ended(store, KEYS, limit=limit)
            found = Counter(one["instance"] for one in page.summaries)
            assert len(page.summaries) == min(limit, len(before))
            await record(store, "later", later)
            while page.next_token is not None:
                page = await list_ended(store, KEYS, limit=limit, token=page.next_token)
                assert len(page.summaries) <= limit
                found.update(one["instance"] for one in page.summaries)
            assert set(before) <= set(found)
            assert max(found.values(), default=1) == 1

        asyncio.run(main())


class TestHub:
    """Settings, epochs and lease."""

    @with_store
    async def test_the_settings_of_a_hub_are_those_of_its_creation(self, store: ObjectStore) -> None:
        """A later opener gets them, whatever it wanted."""
        assert await read_settings(store, KEYS) is None
        assert await create_hub(store, KEYS, {"inline_limit": 1}) == {"inline_limit": 1}
        assert await create_hub(store, KEYS, {"inline_limit": 2}) == {"inline_limit": 1}
        assert await read_settings(store, KEYS) == {"inline_limit": 1}
        assert await read_settings(store, HubKeys("other")) is None

    @with_store
    async def test_a_hub_of_a_later_format_is_refused(self, store: ObjectStore) -> None:
        """The error says to upgrade."""
        await store.put(KEYS.settings, b'{"v": 2, "hub": "hub", "settings": {}}')
        for attempt in (read_settings(store, KEYS), create_hub(store, KEYS, {})):
            with pytest.raises(ConfigurationError, match=r"format version 2.*upgrade"):
                await attempt

    @with_store
    async def test_damaged_settings_are_named(self, store: ObjectStore) -> None:
        """Nothing is guessed."""
        for body in (b"{", b"[]", b"\xff"):
            await store.put(KEYS.settings, body)
            with pytest.raises(CorruptLogError, match=r"hub/hub\.json"):
                await read_settings(store, KEYS)

    @with_store
    async def test_an_epoch_is_claimed_once(self, store: ObjectStore) -> None:
        """By one holder, who may ask again whether it succeeded; the highest counts."""
        one, other = {"epoch": 1, "nonce": "a"}, {"epoch": 1, "nonce": "b"}
        assert await current_hub_epoch(store, KEYS) == 0
        assert await claim_hub_epoch(store, KEYS, 1, one) is True
        assert await claim_hub_epoch(store, KEYS, 1, other) is False
        assert await claim_hub_epoch(store, KEYS, 1, one) is True
        assert await current_hub_epoch(store, KEYS) == 1
        for epoch in range(2, 12):
            assert await claim_hub_epoch(store, KEYS, epoch, other) is True
        await store.put(f"{KEYS.hub_epochs}notes", b"x")
        assert await current_hub_epoch(store, KEYS) == 11

    @with_store
    async def test_the_lease_is_the_last_one_written(self, store: ObjectStore) -> None:
        """Renewing replaces it."""
        assert await read_lease(store, KEYS) is None
        for renewed_us in (1, 2):
            await write_lease(store, KEYS, {"epoch": 1, "renewed_us": renewed_us})
        assert await read_lease(store, KEYS) == {"epoch": 1, "renewed_us": 2}
        await store.put(KEYS.lease, b"?")
        with pytest.raises(CorruptLogError, match=r"hub/lease/holder"):
            await read_lease(store, KEYS)
