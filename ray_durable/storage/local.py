"""Objects as files below a folder of this machine (or of a disk that all nodes share).

An object is written to a nameless file, synced, linked to its name (which fails if the name exists), and the folder is
synced: after a loss of power it is there whole or not at all. Operations run where they are called: they take a third
of a millisecond, less than a thread's hand-over would add to each step; the runtime gives logs a loop of their own.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections import OrderedDict
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from ray_durable.errors import StoreError, StoreUnavailableError

__all__ = ["LocalStore"]

_TEMPORARY = ".tmp-"
_FOLDERS_OPEN_MAX = 64
_PASSING = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EAGAIN, errno.EINTR, errno.ESTALE, errno.ENFILE, errno.EMFILE}
)


class LocalStore:
    """`ObjectStore` on a local folder."""

    def __init__(self, root: Path) -> None:
        self.url = root.as_uri()
        self.private_path: Path | None = root
        self._root = root
        # Open folders, for the sync of a new name; the least recently used is closed.
        self._folders: OrderedDict[str, int] = OrderedDict()
        self._has_nameless_files = hasattr(os, "O_TMPFILE")

    @classmethod
    def open(cls, url: str) -> LocalStore:
        """The store below a path or file:// URL; the folder is made if it is missing, for its owner only."""
        path = Path(unquote(urlsplit(url).path) if url.startswith("file:") else url).expanduser().absolute()
        store = cls(path)
        try:
            _make_folders(path, mode=0o700)
        except OSError as error:
            raise store._trouble(error, "") from error
        return store

    async def put_if_absent(self, key: str, data: bytes) -> bool:
        """See `ObjectStore`."""
        assert data, "an object is never empty"
        try:
            return self._create(key, data)
        except OSError as error:
            raise self._trouble(error, key) from error

    async def put(self, key: str, data: bytes) -> None:
        """See `ObjectStore`."""
        path = self._path(key)
        temporary = path.with_name(f"{_TEMPORARY}{secrets.token_hex(8)}")
        try:
            folder = self._folder(path.parent)
            try:
                descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
                _write_synced(descriptor, data)
                temporary.replace(path)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
            os.fsync(folder)
        except OSError as error:
            raise self._trouble(error, key) from error

    async def get(self, key: str) -> bytes | None:
        """See `ObjectStore`."""
        try:
            return self._path(key).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise self._trouble(error, key) from error

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
            return []
        except OSError as error:
            raise self._trouble(error, folder) from error

    async def delete_many(self, keys: list[str]) -> None:
        """See `ObjectStore`."""
        for key in keys:
            try:
                self._path(key).unlink(missing_ok=True)
            except OSError as error:
                raise self._trouble(error, key) from error

    async def close(self) -> None:
        """See `ObjectStore`."""
        while self._folders:
            os.close(self._folders.popitem()[1])

    def _path(self, key: str) -> Path:
        parts = PurePosixPath(key).parts
        assert parts and not key.startswith("/") and ".." not in parts, f"key {key!r} leaves the root"
        return self._root.joinpath(*parts)

    def _create(self, key: str, data: bytes) -> bool:
        path = self._path(key)
        folder = self._folder(path.parent)
        try:
            created = self._link(path, folder, data)
        except FileNotFoundError:
            # The folder was removed behind our back: make it again.
            self._close_folder(str(path.parent))
            folder = self._folder(path.parent)
            created = self._link(path, folder, data)
        # A loser syncs too: whoever is told that the name exists may rely on it.
        os.fsync(folder)
        return created

    def _link(self, path: Path, folder: int, data: bytes) -> bool:
        if self._has_nameless_files:
            try:
                return _link_nameless(path, folder, data)
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
                    raise
                self._has_nameless_files = False
        return _link_temporary(path, data)

    def _folder(self, path: Path) -> int:
        """An open descriptor of the folder, made and synced if it is missing."""
        name = str(path)
        descriptor = self._folders.get(name)
        if descriptor is not None:
            self._folders.move_to_end(name)
            return descriptor
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            _make_folders(path, mode=0o700)
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._folders[name] = descriptor
        if len(self._folders) > _FOLDERS_OPEN_MAX:
            os.close(self._folders.popitem(last=False)[1])
        return descriptor

    def _close_folder(self, name: str) -> None:
        descriptor = self._folders.pop(name, None)
        if descriptor is not None:
            os.close(descriptor)

    def _trouble(self, error: OSError, key: str) -> StoreError:
        place = self._root / key
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return StoreUnavailableError(f"No space is left for {place}: free some, and the work goes on", url=self.url)
        if error.errno in _PASSING:
            return StoreUnavailableError(f"{place}: {error.strerror}; trying again may succeed", url=self.url)
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            advice = "give this user the right to write there, or choose another root"
            return StoreError(f"The root cannot be written ({place}: {error.strerror}): {advice}", url=self.url)
        return StoreError(f"The root cannot be used ({place}: {error.strerror}): choose another root", url=self.url)


def _write_synced(descriptor: int, data: bytes) -> None:
    """Write all and sync, then close."""
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _link_nameless(path: Path, folder: int, data: bytes) -> bool:
    descriptor = os.open(path.parent, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]
        os.fsync(descriptor)
        # With a folder given, Python calls linkat and follows the link in /proc to the nameless file.
        os.link(f"/proc/self/fd/{descriptor}", path, src_dir_fd=folder, follow_symlinks=True)
    except FileExistsError:
        return False
    finally:
        os.close(descriptor)
    return True


def _link_temporary(path: Path, data: bytes) -> bool:
    temporary = path.with_name(f"{_TEMPORARY}{secrets.token_hex(8)}")
    try:
        _write_synced(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600), data)
        os.link(temporary, path)
    except FileExistsError:
        return False
    finally:
        temporary.unlink(missing_ok=True)
    return True


def _make_folders(path: Path, *, mode: int) -> None:
    """Make a folder and its parents, each synced into its parent."""
    if path.is_dir():
        return
    if path.parent != path:
        _make_folders(path.parent, mode=mode)
    try:
        path.mkdir(mode=mode)
    except FileExistsError:
        if not stat.S_ISDIR(path.stat().st_mode):
            raise NotADirectoryError(errno.ENOTDIR, "is no folder", str(path)) from None
    descriptor = os.open(path.parent, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
