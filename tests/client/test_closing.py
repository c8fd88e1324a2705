"""A closed hub: it gives everything back, and says that it is closed."""

from __future__ import annotations

import asyncio
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import ray_durable as durable
from ray_durable.reader import HubReader
from tests.client.roots import make_hub


@pytest.fixture
def reader(tmp_path: Path) -> HubReader:
    """A reader of a hub with one unfinished instance, "one"."""
    return durable.browse(make_hub(tmp_path, instance_id="one"))


def test_every_call_after_close_raises(reader: HubReader) -> None:
    """Nothing hangs: handles, listings and awaits all say that the hub is closed."""
    handle = reader.get("one")
    assert handle.status().runtime_status == "Pending"
    reader.close()
    for call in (handle.status, handle.history, handle.result, reader.instances):
        with pytest.raises(durable.ClosedError, match="connect again"):
            call()

    async def wait() -> None:
        await handle

    with pytest.raises(durable.ClosedError):
        asyncio.run(wait())


def test_a_result_that_is_waited_for_ends_with_the_hub(reader: HubReader) -> None:
    """Threads and tasks that wait for a result while another closes the hub are told."""
    handle, is_looking = reader.get("one"), threading.Event()

    async def wait() -> None:
        await handle

    async def look(instance_id: str, poll_s: float, left_s: float | None) -> bool:
        is_looking.set()
        await asyncio.Event().wait()
        return False

    reader._wait_for_end = look  # type: ignore[method-assign]
    with ThreadPoolExecutor() as pool:
        waiting = [pool.submit(handle.result), pool.submit(asyncio.run, wait())]
        assert is_looking.wait(5)
        reader.close()
        for one in waiting:
            assert isinstance(one.exception(timeout=5), durable.ClosedError)


def test_closing_twice_is_harmless(reader: HubReader) -> None:
    """Also at the end of a with block that closed by hand."""
    with reader:
        reader.close()
    reader.close()


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts descriptors")
def test_readers_leave_no_descriptors_behind(tmp_path: Path) -> None:
    """Ten rounds of browse and close hold as many files open as one."""
    root = make_hub(tmp_path, instance_id="one")

    def look() -> int:
        with durable.browse(root) as reader:
            reader.instances()
        return len(os.listdir("/proc/self/fd"))

    first = look()
    assert [look() for _ in range(10)] == [first] * 10
