"""What every store promises (`ObjectStore`), as tests: one class, inherited by the tests of each store."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from ray_durable.errors import CorruptLogError
from ray_durable.storage import HubKeys, ObjectStore, probe
from ray_durable.storage.keys import encode_id

__all__ = ["OpenRoot", "StoreContract", "with_store"]

OpenRoot = Callable[[], Awaitable[ObjectStore]]
"""Opens one and the same root, empty at first, as often as it is called."""

_AWKWARD_IDS = ("Ä b", "%", "a.b", "-", "_x", "日本", "q" * 200, "COM1", "a+b=c&d", "'quoted'", "~", "*")
_AT_ONCE = 16


def with_store(test: Callable[[Any, ObjectStore], Awaitable[None]]) -> Callable[[Any, OpenRoot], None]:
    """A test of an open store, from a coroutine."""

    def run(self: object, root: OpenRoot) -> None:
        async def main() -> None:
            store = await root()
            try:
                await test(self, store)
            finally:
                await store.close()

        asyncio.run(main())

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


class StoreContract:
    """Inherit, and give a fixture `root` (`OpenRoot`)."""

    races = 5
    """Rounds of the race; on a server that polls its locks a round takes a second."""

    many = 1_001
    """Objects in one folder; more than S3 lists and deletes at once."""

    @with_store
    async def test_what_was_created_is_read_back(self, store: ObjectStore) -> None:
        """Bytes are bytes, few or many."""
        for size in (1, 256, 3_000_000):
            data = bytes(range(256)) * (size // 256) or b"\n"
            assert await store.put_if_absent(f"a/{size}", data) is True
            assert await store.get(f"a/{size}") == data

    @with_store
    async def test_an_object_is_created_once(self, store: ObjectStore) -> None:
        """A second create is refused, same bytes or not, and the first bytes stay."""
        assert await store.put_if_absent("a/b/c", b"first") is True
        assert await store.put_if_absent("a/b/c", b"second") is False
        assert await store.put_if_absent("a/b/c", b"first") is False
        assert await store.get("a/b/c") == b"first"

    @with_store
    async def test_what_is_not_there_is_none(self, store: ObjectStore) -> None:
        """Neither a missing object, nor a folder, nor something below an object can be read."""
        await store.put("folder/object", b"x")
        for key in ("nothing", "folder", "folder/nothing", "folder/object/below"):
            assert await store.get(key) is None

    @with_store
    async def test_more_than_may_be_there_is_not_read(self, store: ObjectStore) -> None:
        """What has just as much is. A reader asks for no more than it would believe, here down to nothing at all."""
        await store.put("a/x", b"x" * 1_000)
        assert await store.get("a/x", 1_000) == b"x" * 1_000
        for bytes_max in (999, 0):
            with pytest.raises(CorruptLogError, match=rf"a/x .* more than the {bytes_max} bytes") as caught:
                await store.get("a/x", bytes_max)
            assert caught.value.key == "a/x"
        assert await store.get("a/y", 0) is None

    @with_store
    async def test_put_creates_and_replaces(self, store: ObjectStore) -> None:
        """The later bytes count, also over an object that was created if absent."""
        await store.put("a/x", b"one")
        await store.put("a/x", b"two, longer")
        assert await store.get("a/x") == b"two, longer"
        await store.put_if_absent("a/y", b"one, long")
        await store.put("a/y", b"2")
        assert await store.get("a/y") == b"2"
        assert await store.put_if_absent("a/x", b"three") is False

    @with_store
    async def test_a_folder_lists_what_is_directly_below(self, store: ObjectStore) -> None:
        """Sorted names, folders with a slash, and nothing of neighbours with a longer name."""
        for key in ("f/b", "f/a", "f/c/deep/er", "f/c/x", "f0", "ff/z", "g"):
            await store.put(key, b"x")
        assert await store.list_folder("f/") == ["a", "b", "c/"]
        assert await store.list_folder("f/c/") == ["deep/", "x"]
        assert await store.list_folder("nothing/here/") == []
        assert await store.list_folder("g/") == []

    @with_store
    async def test_a_tree_is_listed_with_all_that_is_in_it(self, store: ObjectStore) -> None:
        """Objects at any depth are named relative to its folder, in order, and no folder is."""
        for key in ("t/a/x", "t/a/deep/y", "t/a-b", "t/z", "tree/x", "other"):
            await store.put(key, b"x")
        assert await store.list_tree("t/") == ["a-b", "a/deep/y", "a/x", "z"]
        assert await store.list_tree("t/a/") == ["deep/y", "x"]
        assert await store.list_tree("nothing/here/") == []
        await store.delete_many(["t/a/x", "t/a/deep/y", "t/a/deep/"])
        assert await store.list_tree("t/") == ["a-b", "z"]

    @with_store
    async def test_a_listing_is_never_old(self, store: ObjectStore) -> None:
        """It shows at once what was written and deleted."""
        assert await store.list_folder("f/") == []
        await store.put_if_absent("f/a", b"x")
        assert await store.list_folder("f/") == ["a"]
        await store.put("f/b", b"x")
        assert await store.list_folder("f/") == ["a", "b"]
        await store.delete_many(["f/a"])
        assert await store.list_folder("f/") == ["b"]

    @with_store
    async def test_more_names_than_a_page_are_listed_and_deleted(self, store: ObjectStore) -> None:
        """None of the objects in one folder is left out, and all go in one call."""
        names = [f"{number:06}" for number in range(self.many)]
        for begin in range(0, len(names), _AT_ONCE):
            await asyncio.gather(*(store.put(f"many/{name}", b"x") for name in names[begin : begin + _AT_ONCE]))
        assert await store.list_folder("many/") == names
        await store.delete_many([f"many/{name}" for name in names])
        assert await store.list_folder("many/") == []

    @with_store
    async def test_deleting_what_is_gone_is_no_error(self, store: ObjectStore) -> None:
        """What was deleted can be created again."""
        await store.delete_many([])
        await store.put("a/x", b"one")
        await store.delete_many(["a/x", "a/nothing", "nowhere/at/all"])
        await store.delete_many(["a/x"])
        assert await store.get("a/x") is None
        assert await store.put_if_absent("a/x", b"two") is True

    @with_store
    async def test_every_allowed_id_has_a_place(self, store: ObjectStore) -> None:
        """Names made of awkward ids are kept apart, listed and read back."""
        keys = HubKeys("hub")
        for instance_id in _AWKWARD_IDS:
            assert await store.put_if_absent(keys.execution(instance_id, 1), instance_id.encode()) is True
            await store.put(f"flat/{encode_id(instance_id)}", b"x")
        for instance_id in _AWKWARD_IDS:
            assert await store.get(keys.execution(instance_id, 1)) == instance_id.encode()
            assert await store.list_folder(keys.executions(instance_id)) == ["000001"]
        assert await store.list_folder("flat/") == sorted(map(encode_id, _AWKWARD_IDS))

    @with_store
    async def test_the_probe_accepts_it_and_leaves_nothing(self, store: ObjectStore) -> None:
        """The store is fit for a hub."""
        await probe(store, "hub/probe/1")
        assert await store.list_folder("hub/probe/") == []

    def test_of_racing_creates_one_wins(self, root: OpenRoot) -> None:
        """Four stores at once: one is told that it created the object, and its bytes are what all read."""

        async def main() -> None:
            stores = [await root() for _ in range(4)]
            for number in range(self.races):
                key = f"race/{number}"
                bodies = [bytes([who]) * 10_000 for who in range(len(stores))]
                creates = (store.put_if_absent(key, body) for store, body in zip(stores, bodies, strict=True))
                outcomes = await asyncio.gather(*creates)
                assert sum(outcomes) == 1
                winner = bodies[outcomes.index(True)]
                assert [await store.get(key) for store in stores] == [winner] * len(stores)
            for store in stores:
                await store.close()

        asyncio.run(main())

    def test_the_url_says_where_it_is(self, root: OpenRoot) -> None:
        """Two openings of one root are one place to people, too."""

        async def main() -> None:
            one, other = await root(), await root()
            assert one.url == other.url
            assert "://" in one.url
            await one.close()
            await other.close()

        asyncio.run(main())
