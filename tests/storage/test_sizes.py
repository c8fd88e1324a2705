"""No reader takes in more than may lie at a key: what is larger is damaged, or no object of its kind, and not read.

The objects that somebody put there have 50 GiB each. They are files with nothing but holes, so whoever read one would
need as much memory.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

import verify
from golden import record
from ray_durable.errors import CorruptLogError, FencedError, PayloadTooLargeError
from ray_durable.payload import Payload
from ray_durable.runtime.address import HubAddress
from ray_durable.runtime.hub import OpenHub
from ray_durable.storage import (
    HubKeys,
    ObjectStore,
    OpenEntry,
    Pacing,
    Retired,
    RunLog,
    ScheduleRecord,
    add_open,
    bury,
    claim_hub_epoch,
    create_hub,
    create_schedule_revision,
    current_hub_epoch,
    find_open,
    find_schedule,
    get_blob,
    latest_execution,
    list_ended,
    list_open,
    list_retired,
    list_schedules,
    open_store,
    put_blob,
    read_hub_epoch,
    read_lease,
    read_settings,
    read_start,
    read_tail,
    record_ended,
    retire,
    write_lease,
)
from tests.storage.log_kit import RUN, Owner, start
from tests.storage.test_signing import SIGNED
from verify_lib.names import execution_folder, segment

KEYS = HubKeys("hub")
HUGE_BYTES = 50 * 1024**3

Read = Callable[[ObjectStore], Awaitable[Any]]


def swell(root: Path, key: str) -> None:
    """Put so much where `key` lies."""
    path = root / key
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    with path.open("wb") as file:
        file.write(b"{")
        file.truncate(HUGE_BYTES)


def in_store(root: Path, work: Callable[[ObjectStore], Awaitable[Any]]) -> Any:
    """The result of a coroutine on the store at `root`."""

    async def main() -> Any:
        store = await open_store(str(root))
        try:
            return await work(store)
        finally:
            await store.close()

    return asyncio.run(main())


@pytest.mark.parametrize(
    ("key", "read"),
    [
        (KEYS.execution("i", 1), lambda store: read_start(store, KEYS, "i", 1)),
        (KEYS.segment(RUN, 2), lambda store: read_tail(store, KEYS, "i", 1)),
        (KEYS.segment(RUN, 2), lambda store: RunLog.read(store, KEYS, "i", 1)),
        (KEYS.settings, lambda store: read_settings(store, KEYS)),
        (KEYS.settings, lambda store: create_hub(store, KEYS, {})),
        (KEYS.lease, lambda store: read_lease(store, KEYS)),
        (KEYS.hub_epoch(1), lambda store: read_hub_epoch(store, KEYS, 1)),
        (KEYS.blob(RUN, "0" * 64), lambda store: get_blob(store, KEYS, RUN, "0" * 64, 1_000)),
    ],
)
def test_what_cannot_be_done_without_is_damaged(tmp_path: Path, key: str, read: Read) -> None:
    """The error names the object."""

    async def work(store: ObjectStore) -> None:
        await start(store)
        swell(tmp_path, KEYS.segment(RUN, 1))
        swell(tmp_path, key)
        with pytest.raises(CorruptLogError) as caught:
            await read(store)
        assert caught.value.key in (key, KEYS.segment(RUN, 1))

    in_store(tmp_path, work)


def test_an_append_into_a_slot_that_holds_too_much_is_not_acknowledged(tmp_path: Path) -> None:
    """Whatever lies there, it is not what was to be appended."""

    async def work(store: ObjectStore) -> None:
        await start(store)
        owner = await Owner.claimed(store, "a")
        swell(tmp_path, KEYS.segment(RUN, 2))
        with pytest.raises(CorruptLogError, match="more than the 67,108,864 bytes"):
            await owner.append("lost")

    in_store(tmp_path, work)


def test_whether_a_slot_is_taken_does_not_depend_on_what_lies_there(tmp_path: Path) -> None:
    """An owner that looks whether the log is still its own stands down."""

    async def work(store: ObjectStore) -> None:
        await start(store)
        owner = await Owner.claimed(store, "a")
        assert await owner.log.is_at_end()
        swell(tmp_path, KEYS.segment(RUN, 2))
        with pytest.raises(FencedError):
            await owner.log.verify_ownership()

    in_store(tmp_path, work)


def test_of_the_index_what_is_too_large_is_no_entry(tmp_path: Path) -> None:
    """It hides no other, and an instance may take its place."""

    async def work(store: ObjectStore) -> None:
        ours = OpenEntry(instance_id="ours", name="f", request_id="r", entered_us=1)
        await add_open(store, KEYS, ours)
        swell(tmp_path, KEYS.open_entry("huge"))
        assert await list_open(store, KEYS) == [ours]
        assert await find_open(store, KEYS, "huge") is None
        await add_open(store, KEYS, OpenEntry(instance_id="huge", name="f", request_id="r", entered_us=2))
        assert len(await list_open(store, KEYS)) == 2

        summary = {"instance": "ours", "runtime_status": "Completed", "created_us": 1_000_000}
        await record_ended(store, KEYS, summary)
        swell(tmp_path, KEYS.ended_entry("huge", 1_000_000, "Completed"))
        assert [one["instance"] for one in (await list_ended(store, KEYS)).summaries] == ["ours"]

        await retire(store, KEYS, Retired(instance_id="ours", through=1, due_us=1_000))
        swell(tmp_path, KEYS.retired_entry("huge", 1_000))
        assert [one.instance_id for _, one in await list_retired(store, KEYS, 10_000)] == ["ours"]

    in_store(tmp_path, work)


def test_a_schedules_revision_that_is_too_large_is_skipped_and_overwritten(tmp_path: Path) -> None:
    """The one before counts, and the next change takes its place."""

    async def work(store: ObjectStore) -> None:
        first = ScheduleRecord(schedule_id="s", revision=1, fields={"cron": "* * * * *"})
        assert await create_schedule_revision(store, KEYS, first)
        swell(tmp_path, KEYS.schedule("s", 2))
        assert await find_schedule(store, KEYS, "s") == first
        assert await list_schedules(store, KEYS) == [first]
        second = ScheduleRecord(schedule_id="s", revision=2, fields={"cron": "1 * * * *"})
        assert await create_schedule_revision(store, KEYS, second)
        assert await find_schedule(store, KEYS, "s") == second

    in_store(tmp_path, work)


def test_in_a_signed_hub_what_is_too_large_is_not_authentic(tmp_path: Path) -> None:
    """Tombstones, leases and claims of the hub that nobody with the key wrote count for nothing."""

    async def work(store: ObjectStore) -> None:
        assert await claim_hub_epoch(store, SIGNED, 1, {"epoch": 1})
        await write_lease(store, SIGNED, {"epoch": 1})
        swell(tmp_path, SIGNED.hub_epoch(2))
        assert await current_hub_epoch(store, SIGNED) == 1
        assert not await claim_hub_epoch(store, SIGNED, 2, {"epoch": 2})
        swell(tmp_path, SIGNED.lease)
        assert await read_lease(store, SIGNED) is None
        swell(tmp_path, SIGNED.execution("i", 1))
        swell(tmp_path, SIGNED.purged("i", 1))
        assert await latest_execution(store, SIGNED, "i") == 1
        await bury(store, SIGNED, "i", 1)
        assert await latest_execution(store, SIGNED, "i") is None

    in_store(tmp_path, work)


def test_code_and_payloads_are_read_up_to_their_limits(tmp_path: Path) -> None:
    """A log that refers to more than a payload may have is damaged; what may have been captured is bounded, too."""

    async def work(store: ObjectStore) -> None:
        hub = OpenHub(HubAddress(root=str(tmp_path), hub="hub"), store, pacing=Pacing(patience_s=0))
        digest = await put_blob(store, hub.keys, RUN, b"value")
        payload = Payload(encoding="json", data=None, size=5, blob=digest)
        assert (await hub.fetch(RUN, payload)).bytes == b"value"
        swell(tmp_path, hub.keys.blob(RUN, digest))
        with pytest.raises(CorruptLogError, match="more than the 5 bytes"):
            await hub.fetch(RUN, payload)
        with pytest.raises(CorruptLogError, match="refers to a blob of 53,687,091,200 bytes"):
            await hub.fetch(RUN, Payload(encoding="json", data=None, size=HUGE_BYTES, blob=digest))
        with pytest.raises(PayloadTooLargeError, match="load large data inside"):
            await hub.store_code(bytes(hub.limits.payload_bytes_max + 1))

    in_store(tmp_path, work)


def test_nothing_is_written_that_would_not_be_read(tmp_path: Path) -> None:
    """Whoever would write it is told."""

    async def work(store: ObjectStore) -> None:
        with pytest.raises(PayloadTooLargeError, match="may have 1,048,576"):
            await add_open(store, KEYS, OpenEntry(instance_id="i", name="n" * 2**20, request_id="r", entered_us=1))
        large = ScheduleRecord(schedule_id="s", revision=1, fields={"input": "x" * 64 * 2**20})
        with pytest.raises(PayloadTooLargeError, match="may have 67,108,864"):
            await create_schedule_revision(store, KEYS, large)
        fitting = ScheduleRecord(schedule_id="s", revision=1, fields={"input": "x" * 2**21})
        assert await create_schedule_revision(store, KEYS, fitting)
        assert await find_schedule(store, KEYS, "s") == fitting

    in_store(tmp_path, work)


@pytest.mark.parametrize("kind", ["endless", "pipe"])
def test_of_a_folder_only_files_are_read(tmp_path: Path, kind: str) -> None:
    """Neither a device without an end nor a pipe that nobody writes to keeps a reader."""

    async def work(store: ObjectStore) -> None:
        await start(store)
        path = tmp_path / KEYS.segment(RUN, 1)
        path.parent.mkdir(parents=True)
        if kind == "pipe":
            os.mkfifo(path)
        else:
            path.symlink_to("/dev/zero")
        with pytest.raises(CorruptLogError):
            await read_tail(store, KEYS, "i", 1)

    in_store(tmp_path, work)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a root with everything in it."""
    folder = tmp_path_factory.mktemp("recorded")
    record.record(folder)
    return folder / record.HUB


class TestVerify:
    """The checker reads no more, either, and says where it is."""

    @pytest.mark.parametrize(
        ("place", "rule"),
        [
            ("segment", "size"),
            ("start", "size"),
            ("blob", "blob"),
            ("hub.json", "hub"),
            ("lease/holder", "lease"),
            ("lease/epochs/000000000001", "hub-epoch"),
            ("index/open/sleeper", "open"),
        ],
    )
    def test_what_is_too_large_is_found(self, recorded: Path, tmp_path: Path, place: str, rule: str) -> None:
        """And everything else is looked at all the same."""
        hub = tmp_path / record.HUB
        shutil.copytree(recorded, hub)
        begun = f"{execution_folder('chain')}000001"
        places = {
            "start": begun,
            "segment": segment(json.loads((hub / begun).read_bytes().split(b"\n")[0])["run"], 1),
            "blob": min(path.relative_to(hub).as_posix() for path in hub.glob("runs/*/*/blobs/*")),
        }
        key = places.get(place, place)
        swell(hub, key)
        damaged = [(one.rule, one.key) for one in verify.verify_hub(hub).findings if one.is_damage]
        assert (rule, key) in damaged
