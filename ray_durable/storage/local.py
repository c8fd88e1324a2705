"""Objects as files below a folder of this machine (or of a disk that all nodes share).

An object is written to a nameless file, synced, linked to its name (which fails if the name exists), and the folder is
synced: after a loss of power it is there whole or not at all. Operations run where they are called: they take a third
of a millisecond, less than a thread's hand-over would add to each step; the runtime gives logs a loop of their own.

A root that was seen and is gone, say with its disk, is not taken for an empty one: what is not found is looked for
only below the folder that was there before. `disk_trouble` tells what the errors of a disk mean.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

from ray_durable.errors import StoreError
from ray_durable.storage import disk_trouble
from ray_durable.storage.store import OBJECT_BYTES_MAX, too_large

__all__ = ["LocalStore"]

_TEMPORARY = ".tmp-"
_FOLDERS_OPEN_MAX = 64
_FOLDERS_KNOWN_MAX = 10_000
_NO_NAMELESS_FILES = frozenset({errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOSYS, errno.EXDEV})


class LocalStore:
    """`ObjectStore` on a local folder. Made by `open`."""

    def __init__(self, root: Path, *, has_nameless_files: bool = True) -> None:
        self.url = root.as_uri()
        self.private_path: Path | None = root
        self._root = str(root)
        # Open folders, for the sync of a new name; the least recently used is closed.
        self._folders: OrderedDict[str, int] = OrderedDict()
        # Folders that lie durably in the folders above them.
        self._durable_folders: set[str] = set()
        # Device and number of the folder that is the root, once it was seen.
        self._identity: tuple[int, int] | None = None
        self._has_nameless_files = has_nameless_files and hasattr(os, "O_TMPFILE") and Path("/proc/self/fd").exists()

    @classmethod
    def open(cls, url: str, *, has_nameless_files: bool = True) -> LocalStore:
        """The store below a path or file:// URL. Nothing is made: the first write makes the folder, for its owner only.

        Where files without a name do not exist, or `has_nameless_files` is False, unfinished files have a hidden one.
        """
        path = Path(unquote(urlsplit(url).path) if url.startswith("file:") else url).expanduser().absolute()
        store = cls(path, has_nameless_files=has_nameless_files)
        try:
            store._look_at_root()
        except FileNotFoundError:
            pass
        except OSError as error:
            raise store._trouble(error, "") from error
        return store

    async def put_if_absent(self, key: str, data: bytes) -> bool:
        """See `ObjectStore`."""
        assert data, "an object is never empty"
        path = self._path(key)
        try:
            return self._create(path, data)
        except StoreError:
            raise
        except OSError as error:
            raise self._trouble(error, key) from error

    async def put(self, key: str, data: bytes) -> None:
        """See `ObjectStore`."""
        assert data, "an object is never empty"
        path = self._path(key)
        try:
            self._replace(path, data)
        except StoreError:
            raise
        except OSError as error:
            raise self._trouble(error, key) from error

    async def get(self, key: str, bytes_max: int = OBJECT_BYTES_MAX) -> bytes | None:
        """See `ObjectStore`."""
        try:
            data = _read(self._path(key), key, bytes_max)
        except (FileNotFoundError, NotADirectoryError):
            self._require_root()
            return None
        except OSError as error:
            raise self._trouble(error, key) from error
        if self._identity is None and data is not None:
            with contextlib.suppress(OSError):
                self._look_at_root()
        return data

    async def list_folder(self, folder: str) -> list[str]:
        """See `ObjectStore`."""
        try:
            with os.scandir(self._path(folder)) as entries:
                return sorted(
                    f"{entry.name}/" if entry.is_dir(follow_symlinks=False) else entry.name
                    for entry in entries
                    if not entry.name.startswith(_TEMPORARY)
                )
        except (FileNotFoundError, NotADirectoryError):
            self._require_root()
            return []
        except OSError as error:
            raise self._trouble(error, folder) from error

    async def list_tree(self, folder: str) -> list[str]:
        """See `ObjectStore`."""
        found: list[str] = []
        waiting = [folder]
        while waiting:
            place = waiting.pop()
            for name in await self.list_folder(place):
                if name.endswith("/"):
                    waiting.append(f"{place}{name}")
                else:
                    found.append(f"{place}{name}"[len(folder) :])
        return sorted(found)

    async def delete_many(self, keys: list[str]) -> None:
        """See `ObjectStore`. After a loss of power that follows at once, what was removed may be there again."""
        for key in keys:
            try:
                if key.endswith("/"):
                    self._remove_empty(self._path(key[:-1]))
                else:
                    os.unlink(self._path(key))
            except (NotADirectoryError, FileNotFoundError):
                self._require_root()
            except OSError as error:
                raise self._trouble(error, key) from error

    async def close(self) -> None:
        """See `ObjectStore`."""
        self._forget_folders()

    def _remove_empty(self, path: str) -> None:
        descriptor = self._folders.pop(path, None)
        if descriptor is not None:
            os.close(descriptor)
        self._durable_folders.discard(path)
        with contextlib.suppress(OSError), os.scandir(path) as entries:
            # What a writer left that was killed.
            for entry in entries:
                if entry.name.startswith(_TEMPORARY):
                    os.unlink(entry.path)
        try:
            os.rmdir(path)
        except OSError as error:
            if error.errno != errno.ENOTEMPTY:
                raise

    def _path(self, key: str) -> str:
        assert ".." not in key.split("/"), f"key {key!r} leaves the root"
        assert key[:1] not in ("", "/"), f"key {key!r} leaves the root"
        return f"{self._root}/{key}"

    def _create(self, path: str, data: bytes) -> bool:
        parent = path.rpartition("/")[0]
        folder = self._folder(parent)
        try:
            created = self._link(path, parent, folder, data)
        except FileNotFoundError:
            # The folder was removed behind our back: make it again.
            folder = self._folder_again(parent)
            created = self._link(path, parent, folder, data)
        # A loser syncs too: whoever is told that the name exists may rely on it.
        os.fsync(folder)
        return created

    def _link(self, path: str, parent: str, folder: int, data: bytes) -> bool:
        if self._has_nameless_files:
            try:
                return _link_nameless(path, parent, folder, data)
            except OSError as error:
                if error.errno not in _NO_NAMELESS_FILES:
                    raise
                self._has_nameless_files = False
        return _link_temporary(path, parent, data)

    def _replace(self, path: str, data: bytes) -> None:
        parent = path.rpartition("/")[0]
        folder = self._folder(parent)
        try:
            _rename_temporary(path, parent, data)
        except FileNotFoundError:
            folder = self._folder_again(parent)
            _rename_temporary(path, parent, data)
        os.fsync(folder)

    def _folder(self, path: str) -> int:
        """An open descriptor of a folder below the root, made if it is missing."""
        descriptor = self._folders.get(path)
        if descriptor is not None:
            self._folders.move_to_end(path)
            return descriptor
        self._make_durable(path)
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._folders[path] = descriptor
        if len(self._folders) > _FOLDERS_OPEN_MAX:
            os.close(self._folders.popitem(last=False)[1])
        return descriptor

    def _folder_again(self, path: str) -> int:
        descriptor = self._folders.pop(path, None)
        if descriptor is not None:
            os.close(descriptor)
        self._durable_folders.clear()
        return self._folder(path)

    def _make_durable(self, path: str) -> None:
        """Make a folder and those above it. Each is synced, whoever made it: what lies in it is durable only then."""
        if path in self._durable_folders:
            return
        if path == self._root:
            if self._identity is None:
                _make_folders(Path(path))
                self._look_at_root()
            else:
                self._require_root()
            return
        parent = path.rpartition("/")[0]
        self._make_durable(parent)
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, 0o700)
        _sync_folder(parent)
        if len(self._durable_folders) >= _FOLDERS_KNOWN_MAX:
            self._durable_folders.clear()
        self._durable_folders.add(path)

    def _look_at_root(self) -> None:
        found = os.stat(self._root)
        if not stat.S_ISDIR(found.st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), self._root)
        self._identity = found.st_dev, found.st_ino

    def _require_root(self) -> None:
        """Something was not found. StoreUnavailableError if that is because the root that was there is gone.

        Another folder with something in it is the root from now on: its disk was mounted again, or it was restored.
        """
        known = self._identity
        if known is None:
            return
        try:
            self._look_at_root()
            if self._identity == known:
                return
            with os.scandir(self._root) as entries:
                is_gone = next(entries, None) is None
        except FileNotFoundError:
            is_gone = True
        except OSError as error:
            raise self._trouble(error, "") from error
        self._forget_folders()
        if is_gone:
            self._identity = known
            raise disk_trouble.explain_gone(root=self._root, url=self.url) from None

    def _forget_folders(self) -> None:
        self._durable_folders.clear()
        while self._folders:
            os.close(self._folders.popitem()[1])

    def _trouble(self, error: OSError, key: str) -> StoreError:
        if error.errno == errno.EMFILE:
            self._forget_folders()
        return disk_trouble.explain(error, root=self._root, url=self.url, key=key)


def _write_synced(descriptor: int, data: bytes) -> None:
    """Write all, and sync."""
    written = os.write(descriptor, data)
    while written < len(data):
        written += os.write(descriptor, memoryview(data)[written:])
    os.fsync(descriptor)


def _link_nameless(path: str, parent: str, folder: int, data: bytes) -> bool:
    descriptor = os.open(parent, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    try:
        _write_synced(descriptor, data)
        # With a folder given, Python calls linkat and follows the link in /proc to the nameless file.
        name = path[len(parent) + 1 :]
        os.link(f"/proc/self/fd/{descriptor}", name, dst_dir_fd=folder, follow_symlinks=True)
    except FileExistsError:
        return False
    finally:
        os.close(descriptor)
    return True


def _read(path: str, key: str, bytes_max: int) -> bytes | None:
    """The bytes of a file; None of a folder. Whatever else may lie there has no end, or makes whoever reads it wait."""
    # A pipe would be waited for by its opening.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        found = os.fstat(descriptor)
        if stat.S_ISDIR(found.st_mode):
            return None
        if not stat.S_ISREG(found.st_mode) or found.st_size > bytes_max:
            raise too_large(key, bytes_max)
        parts: list[bytes] = []
        left = found.st_size
        while left and (part := os.read(descriptor, left)):
            parts.append(part)
            left -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)
    finally:
        os.close(descriptor)


def _link_temporary(path: str, parent: str, data: bytes) -> bool:
    with _temporary(parent, data) as temporary:
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
    return True


def _rename_temporary(path: str, parent: str, data: bytes) -> None:
    with _temporary(parent, data) as temporary:
        temporary.replace(path)


@contextlib.contextmanager
def _temporary(parent: str, data: bytes) -> Iterator[Path]:
    """A synced file with a name that listings skip; gone afterwards."""
    temporary = Path(parent, f"{_TEMPORARY}{secrets.token_hex(8)}")
    descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    try:
        try:
            _write_synced(descriptor, data)
        finally:
            os.close(descriptor)
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def _make_folders(path: Path) -> None:
    """Make the root and its parents, each synced into its parent."""
    if path.is_dir():
        return
    if path.parent != path:
        _make_folders(path.parent)
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        if not path.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "is no folder", str(path)) from None
    _sync_folder(str(path.parent))


def _sync_folder(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
