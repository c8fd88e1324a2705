"""Every store against the one contract, and what is particular to the local and the memory store."""

from __future__ import annotations

import asyncio
import errno
import itertools
import multiprocessing
import os
import stat
import threading
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import pytest

from ray_durable.errors import StoreError, StoreUnavailableError, UnsupportedStoreError
from ray_durable.storage import ObjectStore, open_store, probe
from ray_durable.storage.local import LocalStore
from ray_durable.storage.memory import MemoryStore
from ray_durable.storage.remote import RemoteStore
from tests.storage.store_contract import OpenRoot, StoreContract
from tests.support.faults import Overwriting
from tests.support.racing import race, watch
from tests.support.s3_server import S3Server

_numbers = itertools.count()


class TestLocalStore(StoreContract):
    """A folder whose file system has files without a name."""

    @pytest.fixture
    def root(self, tmp_path: Path) -> OpenRoot:
        return lambda: open_store(str(tmp_path / "root"))


class TestLocalStoreWithNamedTemporaries(StoreContract):
    """A folder whose file system has none."""

    @pytest.fixture
    def root(self, tmp_path: Path) -> OpenRoot:
        async def open_root() -> ObjectStore:
            return LocalStore.open((tmp_path / "root").as_uri(), has_nameless_files=False)

        return open_root


class TestMemoryStore(StoreContract):
    """This process's memory."""

    @pytest.fixture
    def root(self) -> OpenRoot:
        name = f"memory://contract-{next(_numbers)}"
        return lambda: open_store(name)


class TestS3OnMoto(StoreContract):
    """S3 as AWS speaks it: conflicts name the condition that failed."""

    @pytest.fixture
    def root(self, moto_server: S3Server) -> OpenRoot:
        url = f"s3://{moto_server.create_bucket()}/some/root"
        return lambda: open_store(url, storage_options=moto_server.storage_options)


class TestS3OnSeaweedFS(StoreContract):
    """S3 as most others speak it: a conflict is a bare 412."""

    races = 2

    @pytest.fixture
    def root(self, seaweedfs_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> OpenRoot:
        url = f"s3://{seaweedfs_server.create_bucket()}"
        # Racing writers poll for a lock of its own, on a busy machine for longer than a deadline.
        monkeypatch.setattr(RemoteStore, "deadline_s", 60.0)
        options = {**seaweedfs_server.storage_options, "config_kwargs": {"read_timeout": 60}}
        return lambda: open_store(url, storage_options=options)


class TestLocalRoots:
    """What only files and folders can get wrong."""

    @pytest.mark.parametrize("has_nameless_files", [True, False])
    def test_of_racing_processes_one_wins(self, tmp_path: Path, has_nameless_files: bool) -> None:
        """Two writers, 200 rounds: one winner each, and a reader that looks on sees the winner's bytes or nothing."""
        rounds = 200
        context = multiprocessing.get_context("spawn")
        with context.Manager() as manager, ProcessPoolExecutor(3, mp_context=context) as pool:
            barrier = manager.Barrier(3)
            racers = [pool.submit(race, tmp_path, has_nameless_files, barrier, rounds, who) for who in (1, 2)]
            watcher = pool.submit(watch, tmp_path, barrier, rounds)
            first, second = (racer.result(timeout=60) for racer in racers)
            writers = watcher.result(timeout=60)
        assert [a + b for a, b in zip(first, second, strict=True)] == [1] * rounds
        assert writers == [1 if won else 2 for won in first]

    def test_a_new_root_is_for_its_owner_only(self, tmp_path: Path) -> None:
        """Nobody else on the machine reads histories."""
        root = tmp_path / "new" / "root"
        store = LocalStore.open(str(root))
        asyncio.run(store.put_if_absent("a/b", b"x"))
        assert stat.S_IMODE(root.stat().st_mode) == 0o700
        assert stat.S_IMODE((root / "a").stat().st_mode) == 0o700
        assert stat.S_IMODE((root / "a" / "b").stat().st_mode) == 0o600
        assert store.private_path == root

    def test_opening_and_reading_make_nothing(self, tmp_path: Path) -> None:
        """A root that does not exist is empty, and stays away until something is written."""
        store = LocalStore.open(str(tmp_path / "new" / "root"))
        assert asyncio.run(store.get("a/b")) is None
        assert asyncio.run(store.list_folder("a/")) == []
        assert not list(tmp_path.iterdir())

    def test_a_root_that_vanished_is_not_made_again(self, tmp_path: Path) -> None:
        """What was written there is gone from sight, as with an unmounted disk: an error, rather than an empty root."""
        root, away = tmp_path / "root", tmp_path / "away"
        store = LocalStore.open(str(root))
        asyncio.run(store.put_if_absent("a/b", b"x"))
        root.rename(away)
        with pytest.raises(StoreError, match="root"):
            asyncio.run(store.put_if_absent("c/d", b"x"))
        assert not root.exists()

    @pytest.mark.parametrize("form", ["path", "url", "home"])
    def test_a_root_is_a_path_or_a_file_url(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
        """Spaces and other characters of a path survive, and ~ is the home."""
        monkeypatch.setenv("HOME", str(tmp_path))
        root = tmp_path / "a b#c%20ä"
        spelled = {"path": str(root), "url": root.as_uri(), "home": "~/a b#c%20ä"}[form]
        asyncio.run(LocalStore.open(spelled).put_if_absent("key", b"x"))
        assert (root / "key").read_bytes() == b"x"

    def test_a_root_below_a_file_is_refused(self, tmp_path: Path) -> None:
        """The error names the place and says to choose another."""
        (tmp_path / "file").write_bytes(b"x")
        for root in (tmp_path / "file", tmp_path / "file" / "root"):
            with pytest.raises(StoreError, match=r"file.*choose another root") as refused:
                LocalStore.open(str(root))
            assert not isinstance(refused.value, StoreUnavailableError)

    @pytest.mark.skipif(not hasattr(os, "geteuid"), reason="needs users")
    def test_a_root_that_cannot_be_written_is_refused(self, tmp_path: Path) -> None:
        """A clear error for lack of permission, at the first write to a new root and to an old one."""
        if os.geteuid() == 0:
            root = Path("/proc/ray-durable-root")
            with pytest.raises(StoreError, match=r"ray-durable-root.*root"):
                asyncio.run(LocalStore.open(str(root)).put_if_absent("a/b", b"x"))
            return
        locked = tmp_path / "locked"
        locked.mkdir(mode=0o500)
        with pytest.raises(StoreError, match="right to write"):
            asyncio.run(LocalStore.open(str(locked / "root")).put_if_absent("a/b", b"x"))
        with pytest.raises(StoreError, match="right to write"):
            asyncio.run(LocalStore.open(str(locked)).put_if_absent("a/b", b"x"))

    @pytest.mark.parametrize(
        ("number", "is_passing"),
        [(errno.ENOSPC, True), (errno.EIO, True), (errno.ESTALE, True), (errno.EACCES, False), (errno.EROFS, False)],
    )
    def test_a_failing_disk_is_passing_or_not(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, is_passing: bool
    ) -> None:
        """A full disk can be waited out, a missing right cannot; nothing half-written is left under the name."""

        def fail(_: int) -> None:
            raise OSError(number, os.strerror(number))

        store = LocalStore.open(str(tmp_path))
        asyncio.run(store.put_if_absent("a/before", b"x"))
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fail)
            for write in (store.put_if_absent, store.put):
                with pytest.raises(StoreError, match="a/key") as failed:
                    asyncio.run(write("a/key", b"x"))
                assert isinstance(failed.value, StoreUnavailableError) is is_passing
        assert asyncio.run(store.list_folder("a/")) == ["before"]
        assert [path.name for path in (tmp_path / "a").iterdir()] == ["before"]

    def test_a_folder_that_was_removed_is_made_again(self, tmp_path: Path) -> None:
        """Somebody cleans up empty folders while the store is open."""
        store = LocalStore.open(str(tmp_path))
        for write in (store.put_if_absent, store.put):
            asyncio.run(write("a/b/key", b"x"))
            (tmp_path / "a/b/key").unlink()
            (tmp_path / "a/b").rmdir()
            (tmp_path / "a").rmdir()
            asyncio.run(write("a/b/key", b"y"))
            assert (tmp_path / "a/b/key").read_bytes() == b"y"

    def test_more_folders_than_may_be_open_are_used(self, tmp_path: Path) -> None:
        """Open folders are bounded, and closed with the store."""

        def open_files() -> int:
            return len(list(Path("/proc/self/fd").iterdir()))

        before = open_files()
        store = LocalStore.open(str(tmp_path))
        for number in range(200):
            asyncio.run(store.put_if_absent(f"{number}/key", b"x"))
        assert open_files() - before <= 64
        asyncio.run(store.close())
        assert open_files() == before

    @pytest.mark.parametrize("key", ["../out", "a/../../out", "/etc/out", "a/..", ""])
    def test_no_key_leads_out_of_the_root(self, tmp_path: Path, key: str) -> None:
        """A programmer's mistake, found at once."""
        store = LocalStore.open(str(tmp_path / "root"))
        for operation in (
            store.get(key),
            store.put(key, b"x"),
            store.put_if_absent(key, b"x"),
            store.delete_many([key]),
        ):
            with pytest.raises(AssertionError):
                asyncio.run(operation)


class TestMemoryRoots:
    """Memory is shared by name."""

    def test_of_racing_threads_one_wins(self) -> None:
        """Eight threads, 500 rounds, a loop and a store each."""
        name, rounds, width = f"race-{next(_numbers)}", 500, 8
        barrier = threading.Barrier(width)

        def work(who: int) -> list[bool]:
            async def main() -> list[bool]:
                store = MemoryStore(name)
                outcomes = []
                for number in range(rounds):
                    barrier.wait()
                    outcomes.append(await store.put_if_absent(str(number), bytes([who])))
                return outcomes

            return asyncio.run(main())

        with ThreadPoolExecutor(width) as pool:
            outcomes = list(pool.map(work, range(width)))
        assert [sum(of_round) for of_round in zip(*outcomes, strict=True)] == [1] * rounds
        for number in range(rounds):
            (winner,) = [who for who in range(width) if outcomes[who][number]]
            assert asyncio.run(MemoryStore(name).get(str(number))) == bytes([winner])

    def test_other_names_are_other_roots(self) -> None:
        """Tests that run side by side do not meet."""
        one, other = (MemoryStore(f"apart-{next(_numbers)}") for _ in range(2))
        asyncio.run(one.put("key", b"x"))
        assert asyncio.run(other.get("key")) is None


class TestProbe:
    """`connect` refuses a store on which two owners could overwrite each other."""

    def test_a_store_that_overwrites_is_refused(self, tmp_path: Path) -> None:
        """The error says what to use instead, and the probe's object is gone."""
        store = Overwriting(LocalStore.open(str(tmp_path)))
        with pytest.raises(UnsupportedStoreError, match="If-None-Match") as refused:
            asyncio.run(probe(store, "hub/probe/1"))
        assert refused.value.url == store.url
        assert asyncio.run(store.list_folder("hub/probe/")) == []

    def test_a_store_that_forgets_is_refused(self, tmp_path: Path) -> None:
        """What was written must be readable at once."""

        class Forgetful(Overwriting):
            async def put_if_absent(self, key: str, data: bytes) -> bool:
                return True

        with pytest.raises(UnsupportedStoreError, match="does not give it back"):
            asyncio.run(probe(Forgetful(LocalStore.open(str(tmp_path))), "hub/probe/1"))

    def test_a_client_that_resends_is_no_reason_to_refuse(self, tmp_path: Path) -> None:
        """The first write met itself and is reported as a conflict; its bytes tell."""

        class Resending(Overwriting):
            async def put_if_absent(self, key: str, data: bytes) -> bool:
                await self._store.put_if_absent(key, data)
                return False

        asyncio.run(probe(Resending(LocalStore.open(str(tmp_path))), "hub/probe/1"))
