"""storage/FORMAT.md is what the code does, and storage/verify.py agrees with the library on what is damaged.

The checker imports nothing of ray_durable, so wherever both judge the same bytes, each is the other's oracle.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import verify
from ray_durable.engine import events
from ray_durable.errors import CorruptLogError
from ray_durable.storage import (
    HubKeys,
    OpenEntry,
    RunLog,
    add_open,
    create_execution,
    create_hub,
    decode_segment,
    open_store,
    put_blob,
)
from verify_lib import names
from verify_lib.segments import EVENT_TYPES

FORMAT_DIR = Path(__file__).parents[2] / "storage"
FORMAT_TEXT = (FORMAT_DIR / "FORMAT.md").read_text(encoding="utf-8")
RUN = "0123456789abcdef0123456789abcdef"
KEYS = HubKeys("prod")
BLOB = b"a large result" * 100
START = {
    "instance": "order-1",
    "run": RUN,
    "execution": 1,
    "name": "review",
    "request_id": "r",
    "input": {"json": []},
}


def line(number: int, kind: str, **fields: Any) -> bytes:
    """An event line."""
    return json.dumps({"n": number, "t": 1_000 + number, "type": kind, **fields}).encode()


def claimed(number: int, epoch: int) -> bytes:
    """The event of a claim."""
    return line(number, "OwnerClaimed", epoch=epoch, hub_epoch=epoch, host="here", pid=1, attempts=[])


def summary(runtime_status: str) -> dict[str, Any]:
    """A status summary."""
    return {
        "instance": "order-1",
        "name": "review",
        "execution": 1,
        "request_id": "r",
        "runtime_status": runtime_status,
        "created_us": 1_001,
        "updated_us": 2_000,
    }


async def write_root(root: Path) -> None:
    """A hub with one instance: started, claimed, taken over by a second owner; one blob, one section."""
    store = await open_store(str(root))
    await create_hub(store, KEYS, {})
    await add_open(store, KEYS, OpenEntry(instance_id="order-1", name="review", request_id="r", entered_us=1_000))
    await create_execution(
        store,
        KEYS,
        instance_id="order-1",
        execution=1,
        run=RUN,
        lines=[line(1, "ExecutionStarted", **START)],
        sections=[],
        status=summary("Pending"),
        hub_epoch=1,
    )
    first = await RunLog.read(store, KEYS, "order-1", 1)
    await first.claim([claimed(2, 1)], [], first=2, status=summary("Running"), hub_epoch=1)
    section = line(3, "TaskScheduled", name="f", attempt=1, input={"encoding": "arrow", "section": 0, "size": 5})
    await first.append([section], [b"five\n"], first=3, status=summary("Running"), hub_epoch=1)
    second = await RunLog.read(store, KEYS, "order-1", 1)
    await second.claim([claimed(4, 2)], [], first=4, status=summary("Running"), hub_epoch=2)
    blob = await put_blob(store, KEYS, RUN, BLOB)
    result = {"encoding": "pickle", "blob": blob, "size": len(BLOB)}
    lines = [line(5, "TaskCompleted", task=3, attempt=1, result=result)]
    await second.append(lines, [], first=5, status=summary("Running"), hub_epoch=2)
    await store.close()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root with one hub, `prod`, of one unfinished instance."""
    asyncio.run(write_root(tmp_path))
    return tmp_path


def segment_path(root: Path, seq: int) -> Path:
    """The file of a segment of the one instance."""
    run = KEYS.segment(RUN, seq) if seq else KEYS.execution("order-1", 1)
    return root / run


def library_refuses(root: Path) -> bool:
    """Whether the library calls the log of the one instance damaged."""

    async def read() -> None:
        store = await open_store(str(root))
        try:
            await RunLog.read(store, KEYS, "order-1", 1)
        finally:
            await store.close()

    try:
        asyncio.run(read())
    except CorruptLogError:
        return True
    return False


def checker_refuses(root: Path) -> bool:
    """Whether the checker finds damage."""
    return bool(verify.verify_hub(root / "prod").damage)


def _update(fields: dict[str, Any], header: dict[str, Any]) -> None:
    header.update(fields)


def rewrite(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a segment's header and make its checksum right again, as a faulty writer would."""
    head, _, body = path.read_bytes().partition(b"\n")
    header = json.loads(head)
    change(header)
    del header["sha256"]
    start = json.dumps(header, separators=(",", ":"))[:-1].encode() + b',"sha256":"'
    digest = hashlib.sha256(start + b"0" * 64 + b'"}\n' + body).hexdigest()
    path.write_bytes(start + digest.encode() + b'"}\n' + body)


class TestFormatPage:
    """The page against the code."""

    def test_the_example_is_a_log_that_the_library_reads(self, tmp_path: Path) -> None:
        """Each object of the example decodes, and together they are one log of three segments."""
        example = re.findall(r"    # (\S+)\n((?:    \{.*\n)+)", FORMAT_TEXT.partition("## 11.")[2])
        assert len(example) == 3
        for key, text in example:
            data = "".join(f"{row[4:]}\n" for row in text.splitlines()).encode()
            decode_segment(key, data)
            (tmp_path / "prod" / key).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "prod" / key).write_bytes(data)

        async def read() -> RunLog:
            store = await open_store(str(tmp_path))
            return await RunLog.read(store, KEYS, "nightly-42", 1)

        log = asyncio.run(read())
        assert [segment.header.seq for segment in log.segments] == [0, 1, 2]
        assert log.epoch == 1

    def test_the_vocabulary_is_the_checkers_and_holds_the_engines(self) -> None:
        """Every event type of the engine is on the page, and the checker knows exactly the page's."""
        section = FORMAT_TEXT.partition("## 4.")[2].partition("## 5.")[0]
        on_the_page = {
            name for row in re.findall(r"^\| (`[A-Z].*?) \|", section, re.M) for name in re.findall(r"`(\w+)`", row)
        }
        bases = {"Caused", "Command", "Event", "Input", "RuntimeStatus"}
        known = set(events.__all__) - bases
        assert known <= on_the_page
        assert on_the_page == EVENT_TYPES

    @pytest.mark.parametrize("instance_id", ["a", "Order 1", "ä/", "%", "x" * 150, "X" * 256, "日" * 30, "é" * 100])
    def test_checker_and_library_name_an_instance_alike(self, instance_id: str) -> None:
        """Two programs that follow the page look for an id in the same place."""
        assert KEYS.executions(instance_id) == f"prod/{names.execution_folder(instance_id)}"
        assert KEYS.open_entry(instance_id) == f"prod/{names.open_entry(instance_id)}"
        ended = names.ended_entry(instance_id, 1_000_000, "Failed")
        assert KEYS.ended_entry(instance_id, 1_000_000, "Failed") == f"prod/{ended}"


class TestChecker:
    """Checker and library call the same logs damaged. tests/storage/test_verify.py has all that the checker finds."""

    def test_a_sound_log_is_none(self, root: Path) -> None:
        """Two owners, a section and a blob: neither has anything to say."""
        assert verify.verify_hub(root / "prod").findings == []
        assert not library_refuses(root)

    @pytest.mark.parametrize("seq", [0, 2, 4])
    def test_every_flipped_byte_is_found(self, root: Path, seq: int) -> None:
        """No byte of a segment can change unnoticed, by checker or library."""
        path = segment_path(root, seq)
        data = path.read_bytes()
        for position in range(len(data)):
            path.write_bytes(data[:position] + bytes([data[position] ^ 0x01]) + data[position + 1 :])
            assert checker_refuses(root), position
            if position % 16 == 0:
                assert library_refuses(root), position

    @pytest.mark.parametrize("seq", [0, 1, 4])
    def test_every_truncation_is_found(self, root: Path, seq: int) -> None:
        """Neither a shorter object nor an empty one passes."""
        path = segment_path(root, seq)
        data = path.read_bytes()
        for size in range(0, len(data), 7):
            path.write_bytes(data[:size])
            assert checker_refuses(root), size
            assert library_refuses(root), size

    def test_a_gap_is_found(self, root: Path) -> None:
        """A segment that is missing, with a later one there, is damage."""
        segment_path(root, 2).unlink()
        assert checker_refuses(root)
        assert library_refuses(root)

    def test_a_segment_in_anothers_place_is_found(self, root: Path) -> None:
        """A copy under the next number has a right checksum and lies nevertheless wrong."""
        segment_path(root, 5).write_bytes(segment_path(root, 4).read_bytes())
        assert checker_refuses(root)
        assert library_refuses(root)

    @pytest.mark.parametrize(
        ("seq", "change"),
        [
            pytest.param(4, {"previous": "0" * 64}, id="another predecessor"),
            pytest.param(4, {"epoch": 3}, id="an epoch that nobody claimed"),
            pytest.param(4, {"nonce": "f" * 16}, id="a writer that did not claim"),
            pytest.param(4, {"first": 6}, id="an event left out"),
            pytest.param(4, {"first": 4}, id="an event twice"),
            pytest.param(4, {"instance": "order-2"}, id="another instance"),
            pytest.param(4, {"run": "f" * 32}, id="another run"),
            pytest.param(4, {"execution": 2}, id="another execution"),
            pytest.param(4, {"count": 2}, id="a count that is wrong"),
            pytest.param(4, {"sections": [3]}, id="sections that are not there"),
            pytest.param(4, {"v": 2}, id="a later format"),
            pytest.param(3, {"epoch": 4}, id="a claim that skips an epoch"),
        ],
    )
    def test_a_faulty_writer_is_found(self, root: Path, seq: int, change: dict[str, Any]) -> None:
        """The checksum is right, the content is not: checker and library agree."""
        rewrite(segment_path(root, seq), lambda header: header.update(change))
        assert checker_refuses(root)
        assert library_refuses(root)

    def test_a_write_of_a_lower_epoch_behind_a_claim_is_found(self, root: Path) -> None:
        """No owner can have written it by the rules, whatever it names as its predecessor."""
        late, digest = segment_path(root, 5), json.loads(segment_path(root, 4).read_bytes().split(b"\n")[0])["sha256"]
        late.write_bytes(segment_path(root, 2).read_bytes())
        for previous in ("0" * 64, digest):
            place = {"seq": 5, "first": 6, "previous": previous}
            rewrite(late, functools.partial(_update, place))
            assert checker_refuses(root)
            assert library_refuses(root)
