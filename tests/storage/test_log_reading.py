"""Finding the end of a log, and refusing one whose objects were moved, lost or added by others."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from ray_durable.errors import CorruptLogError
from ray_durable.storage import (
    HubKeys,
    ObjectStore,
    RunLog,
    Segment,
    create_execution,
    encode_segment,
    latest_execution,
    open_store,
    read_tail,
)
from tests.storage.store_contract import OpenRoot, with_store

KEYS = HubKeys("hub")
RUN = "0123456789abcdef0123456789abcdef"
OTHER_RUN = "f" * 32
LAST = 5


@pytest.fixture
def root(tmp_path: Path) -> OpenRoot:
    """An empty local root."""
    return lambda: open_store(str(tmp_path))


async def write_log(store: ObjectStore, instance_id: str = "i", run: str = RUN) -> list[Segment]:
    """A log of segments 0 to LAST; its segments."""
    await create_execution(
        store,
        KEYS,
        instance_id=instance_id,
        execution=1,
        run=run,
        lines=[b'{"n":1}'],
        sections=[],
        status={"request_id": run},
        hub_epoch=0,
    )
    log = await RunLog.read(store, KEYS, instance_id, 1)
    segments = [log.tail, await log.claim([b'{"n":2}'], [], first=2, status={}, hub_epoch=0)]
    for number in range(3, LAST + 2):
        segments.append(await log.append([b'{"n":%d}' % number], [], first=number, status={}, hub_epoch=0))
    return segments


def path_of(store: ObjectStore, seq: int, run: str = RUN) -> Path:
    """The file of a segment."""
    assert store.private_path is not None
    return store.private_path / KEYS.segment(run, seq)


class TestFindingTheEnd:
    """The newest segment, whatever else lies around."""

    @with_store
    async def test_a_folder_without_segments_hides_none(self, store: ObjectStore) -> None:
        """A writer made the folder of the next thousand and was lost before its segment."""
        segments = await write_log(store)
        path_of(store, 1_000).parent.mkdir()
        assert await read_tail(store, KEYS, "i", 1) == segments[-1]
        assert (await RunLog.read(store, KEYS, "i", 1)).segments == segments

    @with_store
    async def test_foreign_names_are_skipped(self, store: ObjectStore) -> None:
        """A person's notes, a tool's leftovers and digits of other scripts are no segments."""
        segments = await write_log(store)
        folder = path_of(store, 1).parent
        for name in ("README", ".tmp-0123", "000000000009.bak", "²²²²²²²²²²²²", "7"):
            (folder / name).write_bytes(b"x")
        (folder.parent / "zzz").mkdir()
        (folder.parent / "²²²²²²²²²").mkdir()
        for name in ("notes", "2", "²²²²²²"):
            await store.put(f"{KEYS.executions('i')}{name}", b"x")
        assert await read_tail(store, KEYS, "i", 1) == segments[-1]
        assert (await RunLog.read(store, KEYS, "i", 1)).segments == segments
        assert await latest_execution(store, KEYS, "i") == 1

    @with_store
    async def test_a_listing_that_lags_behind_loses_nothing(self, store: ObjectStore) -> None:
        """What a listing does not show yet is found in its slot."""

        async def shows_nothing(folder: str) -> list[str]:
            return []

        segments = await write_log(store)
        store.list_folder = shows_nothing  # type: ignore[method-assign]
        assert (await RunLog.read(store, KEYS, "i", 1)).segments == segments


class TestMovedObjects:
    """Each object is whole, and the log is not."""

    @staticmethod
    async def refused(store: ObjectStore) -> str:
        """The key that reading the log names."""
        with pytest.raises(CorruptLogError) as error:
            await RunLog.read(store, KEYS, "i", 1)
        return error.value.key

    @pytest.mark.parametrize("seq", range(1, LAST))
    def test_a_lost_segment_is_named(self, root: OpenRoot, seq: int) -> None:
        """One of the middle is missing."""

        async def main() -> None:
            store = await root()
            await write_log(store)
            path_of(store, seq).unlink()
            assert await self.refused(store) == KEYS.segment(RUN, seq)

        asyncio.run(main())

    @pytest.mark.parametrize(
        "move",
        [
            pytest.param(lambda at: swap(at(2), at(4)), id="swapped"),
            pytest.param(lambda at: swap(at(1), at(2)), id="neighbours swapped"),
            pytest.param(lambda at: at(2).write_bytes(at(3).read_bytes()), id="doubled forwards"),
            pytest.param(lambda at: at(3).write_bytes(at(2).read_bytes()), id="doubled backwards"),
            pytest.param(lambda at: at(LAST + 1).write_bytes(at(LAST).read_bytes()), id="repeated at the end"),
            pytest.param(lambda at: at(LAST + 1).write_bytes(b"x"), id="rubbish at the end"),
            pytest.param(lambda at: at(LAST).write_bytes(b""), id="empty"),
        ],
    )
    def test_a_moved_segment_is_refused(self, root: OpenRoot, move: Callable[[Callable[[int], Path]], None]) -> None:
        """Its checksum is right, its place is not."""

        async def main() -> None:
            store = await root()
            await write_log(store)
            move(lambda seq: path_of(store, seq))
            assert await self.refused(store)

        asyncio.run(main())

    @with_store
    async def test_a_segment_of_another_log_is_refused(self, store: ObjectStore) -> None:
        """By readers of the whole log, of its tail and of its start."""
        await write_log(store)
        await write_log(store, "other", OTHER_RUN)
        path_of(store, LAST).write_bytes(path_of(store, LAST, OTHER_RUN).read_bytes())
        assert await self.refused(store) == KEYS.segment(RUN, LAST)
        with pytest.raises(CorruptLogError, match="another place"):
            await read_tail(store, KEYS, "i", 1)
        start = await store.get(KEYS.execution("other", 1))
        assert start is not None
        await store.put(KEYS.execution("i", 1), start)
        assert await self.refused(store) == KEYS.execution("i", 1)

    @with_store
    async def test_nobody_appends_before_the_first_claim(self, store: ObjectStore) -> None:
        """A programmer's mistake when writing, damage when read."""
        await write_log(store)
        log = await RunLog.read(store, KEYS, "i", 1)
        for seq in range(1, LAST + 1):
            path_of(store, seq).unlink()
        start = log.segments[0]
        unclaimed = dataclasses.replace(start.header, seq=1, first=2, previous=start.digest)
        path_of(store, 1).write_bytes(encode_segment("k", unclaimed, [b"{}"], [])[0])
        assert await self.refused(store) == KEYS.segment(RUN, 1)
        path_of(store, 1).unlink()
        with pytest.raises(AssertionError, match="claim the log"):
            await (await RunLog.read(store, KEYS, "i", 1)).append([b"{}"], [], first=2, status={}, hub_epoch=0)

    @with_store
    async def test_an_event_number_is_not_left_out(self, store: ObjectStore) -> None:
        """A programmer's mistake, found before it is written."""
        await write_log(store)
        log = await RunLog.read(store, KEYS, "i", 1)
        for first in (LAST + 1, LAST + 3):
            with pytest.raises(AssertionError, match="without gaps"):
                await log.claim([b"{}"], [], first=first, status={}, hub_epoch=0)
        await log.claim([b"{}"], [], first=LAST + 2, status={}, hub_epoch=0)


def swap(one: Path, other: Path) -> None:
    """Exchange the contents of two files."""
    one_data, other_data = one.read_bytes(), other.read_bytes()
    one.write_bytes(other_data)
    other.write_bytes(one_data)
