"""A local root on a disk that fails, for real: full, read-only, forbidden, gone, and a process at its limits.

Whatever goes wrong, nothing is half there, unfinished files do not pile up, and the error names the root and says what
to do. Once the trouble is over, the same open store goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ray_durable.errors import StoreError, StoreUnavailableError
from ray_durable.storage.local import LocalStore
from tests.support.disks import BALLAST, disk, fill, relieve, remount

BODY = bytes(20_000)


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own."""
    with disk(tmp_path / "disk") as folder:
        yield folder


@pytest.fixture(params=[True, False], ids=["nameless", "named"])
def opened(request: pytest.FixtureRequest, mounted: Path) -> Iterator[LocalStore]:
    """A store whose root is that file system, with both ways to write."""
    store = LocalStore.open(str(mounted), has_nameless_files=request.param)
    asyncio.run(store.put_if_absent("a/before", b"x"))
    yield store
    asyncio.run(store.close())


def files(root: Path) -> list[str]:
    """All files below a root, unfinished ones too."""
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file() and path.name != BALLAST)


def refusals(store: LocalStore, pattern: str, *, key: str = "a/key") -> list[StoreError]:
    """What both ways to write raise, which must name the root and say what to do."""
    errors = []
    for write in (store.put_if_absent, store.put):
        with pytest.raises(StoreError, match=pattern) as caught:
            asyncio.run(write(key, BODY))
        assert Path(str(store.private_path)).name in str(caught.value)
        errors.append(caught.value)
    return errors


def is_passing(errors: list[StoreError]) -> bool:
    """Whether all of them can be waited out; or none."""
    kinds = {isinstance(error, StoreUnavailableError) for error in errors}
    assert len(kinds) == 1
    return kinds.pop()


def test_a_full_disk_takes_nothing_and_goes_on_once_there_is_space(opened: LocalStore, mounted: Path) -> None:
    """It can be waited out; what is there stays readable, and a hundred tries leave no file behind."""
    fill(mounted)
    for number in range(50):
        assert is_passing(refusals(opened, "no space is left.*free some", key=f"a/{number}"))
    assert is_passing(refusals(opened, "no space is left", key="a/new/folder/key"))
    assert files(mounted) == ["a/before"]
    assert asyncio.run(opened.get("a/before")) == b"x"
    assert asyncio.run(opened.get("a/key")) is None
    relieve(mounted)
    assert asyncio.run(opened.put_if_absent("a/key", BODY)) is True
    asyncio.run(opened.put("a/new/folder/key", BODY))
    assert files(mounted) == ["a/before", "a/key", "a/new/folder/key"]


def test_a_read_only_root_refuses_and_goes_on_once_it_is_writable(opened: LocalStore, mounted: Path) -> None:
    """Nobody waits for it in silence; reading goes on."""
    remount(mounted, "ro")
    assert not is_passing(refusals(opened, "read-only: mount it for writing"))
    assert not is_passing(refusals(opened, "read-only", key="new/key"))
    with pytest.raises(StoreError, match="read-only"):
        asyncio.run(opened.delete_many(["a/before"]))
    assert asyncio.run(opened.get("a/before")) == b"x"
    remount(mounted, "rw")
    assert asyncio.run(opened.put_if_absent("a/key", BODY)) is True
    assert files(mounted) == ["a/before", "a/key"]


def test_a_disk_that_is_not_mounted_is_not_an_empty_root(opened: LocalStore, mounted: Path, tmp_path: Path) -> None:
    """The empty folder in its place is neither read as one without instances nor written; mounted again, it goes on."""
    kept = tmp_path / "kept"
    kept.mkdir()
    assert subprocess.run(["mount", "--move", str(mounted), str(kept)], check=False).returncode == 0 or _bind(
        mounted, kept
    )
    try:
        assert list(mounted.iterdir()) == []
        assert is_passing(refusals(opened, "gone, or an empty folder.*mounted"))
        for read in (opened.get("a/before"), opened.get("b/key"), opened.list_folder("a/")):
            with pytest.raises(StoreUnavailableError, match="gone, or an empty folder"):
                asyncio.run(read)
        with pytest.raises(StoreUnavailableError, match="gone"):
            asyncio.run(opened.delete_many(["a/before"]))
        assert list(mounted.iterdir()) == []
    finally:
        assert subprocess.run(["mount", "--move", str(kept), str(mounted)], check=False).returncode == 0 or _bind(
            kept, mounted
        )
    assert asyncio.run(opened.get("a/before")) == b"x"
    assert asyncio.run(opened.put_if_absent("a/key", BODY)) is True


def _bind(source: Path, target: Path) -> bool:
    """Where mounts are shared, they cannot be moved: mount it there too, and take it away here."""
    subprocess.run(["mount", "--bind", str(source), str(target)], check=True)
    subprocess.run(["umount", "--lazy", str(source)], check=True)
    return True


def test_a_root_that_was_moved_away_is_waited_for(tmp_path: Path) -> None:
    """Reading does not take it for an empty one; what was known is there when it is back, and so is another in it."""
    root, away = tmp_path / "root", tmp_path / "away"
    store = LocalStore.open(str(root))
    assert asyncio.run(store.get("a/key")) is None
    asyncio.run(store.put_if_absent("a/key", b"x"))
    root.rename(away)
    assert is_passing(refusals(store, "is gone.*bring it back"))
    for read in (store.get("a/key"), store.list_folder("a/")):
        with pytest.raises(StoreUnavailableError, match="is gone"):
            asyncio.run(read)
    assert not root.exists()
    away.rename(root)
    assert asyncio.run(store.get("a/key")) == b"x"
    assert asyncio.run(store.put_if_absent("a/key", b"y")) is False


def test_a_root_that_was_restored_from_a_copy_is_the_root(tmp_path: Path) -> None:
    """Another folder with something in it in the same place is used; also the folders that were open before."""
    root = tmp_path / "root"
    store = LocalStore.open(str(root))
    asyncio.run(store.put_if_absent("a/key", b"x"))
    root.rename(tmp_path / "old")
    (root / "a").mkdir(parents=True)
    (root / "a" / "other").write_bytes(b"y")
    assert asyncio.run(store.get("a/key")) is None
    assert asyncio.run(store.get("a/other")) == b"y"
    assert asyncio.run(store.put_if_absent("a/key", b"z")) is True
    assert (root / "a" / "key").read_bytes() == b"z"


@contextlib.contextmanager
def limited(kind: int, soft: int) -> Iterator[None]:
    """This process with a limit."""
    before = resource.getrlimit(kind)
    resource.setrlimit(kind, (soft, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(kind, before)


def test_a_process_with_too_many_open_files_waits_for_some_to_close(tmp_path: Path) -> None:
    """The error names the limit; the store gives its own open folders back first."""
    store = LocalStore.open(str(tmp_path))
    for number in range(30):
        asyncio.run(store.put_if_absent(f"{number}/key", b"x"))
    with limited(resource.RLIMIT_NOFILE, max(map(int, os.listdir("/proc/self/fd"))) + 4):
        taken = []
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.open("/dev/null", os.O_RDONLY))

        async def write() -> bool:
            return await store.put_if_absent("new/key", BODY)

        loop_files = taken[-6:]
        for descriptor in loop_files:
            os.close(descriptor)
        del taken[-6:]
        loop = asyncio.new_event_loop()
        try:
            with contextlib.suppress(OSError):
                while True:
                    taken.append(os.open("/dev/null", os.O_RDONLY))
            with pytest.raises(StoreUnavailableError, match=r"too many open files.*ulimit -n"):
                loop.run_until_complete(write())
            # It gave its own back.
            assert loop.run_until_complete(write()) is True
        finally:
            loop.close()
            for descriptor in taken:
                os.close(descriptor)
    assert (tmp_path / "new" / "key").read_bytes() == BODY


@pytest.mark.parametrize("has_nameless_files", [True, False])
def test_a_limit_of_the_size_of_files_is_told(tmp_path: Path, has_nameless_files: bool) -> None:
    """The limit is named, and nothing is left of the file that was too large for it. Needs no right to mount."""
    store = LocalStore.open(str(tmp_path), has_nameless_files=has_nameless_files)
    asyncio.run(store.put_if_absent("a/before", b"x"))
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with limited(resource.RLIMIT_FSIZE, 4_096):
            assert not is_passing(refusals(store, "ulimit -f"))
    finally:
        signal.signal(signal.SIGXFSZ, ignored)
    assert files(tmp_path) == ["a/before"]
    assert asyncio.run(store.put_if_absent("a/key", BODY)) is True


def as_nobody(action: Callable[[], None]) -> int:
    """The exit code of a process of another user that does this; 0 if it raised nothing."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.setgid(65_534)
            os.setuid(65_534)
            action()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another user")
def test_a_root_of_another_user_is_refused_and_nothing_is_written() -> None:
    """The right to write is what is missing, for reading too where that is forbidden: it is not an empty root."""
    with contextlib.ExitStack() as stack:
        root = Path(stack.enter_context(_public_folder())) / "root"
        owner = LocalStore.open(str(root))
        asyncio.run(owner.put_if_absent("a/before", b"x"))
        root.chmod(0o755)
        (root / "a").chmod(0o700)

        def use() -> None:
            store = LocalStore.open(str(root))
            assert not is_passing(refusals(store, "right to write"))
            for read in (store.get("a/before"), store.list_folder("a/")):
                with pytest.raises(StoreError, match="right to write"):
                    asyncio.run(read)

        assert as_nobody(use) == 0
        assert files(root) == ["a/before"]
        for folder in (root, root / "a"):
            folder.chmod(0o777)

        def write() -> None:
            assert asyncio.run(LocalStore.open(str(root)).put_if_absent("a/key", b"y"))

        assert as_nobody(write) == 0
        assert (root / "a" / "key").read_bytes() == b"y"


@contextlib.contextmanager
def _public_folder() -> Iterator[str]:
    """A folder that every user may enter, as pytest's are not."""
    with tempfile.TemporaryDirectory(prefix="ray-durable-disk-", dir="/tmp") as folder:
        os.chmod(folder, 0o755)
        yield folder
