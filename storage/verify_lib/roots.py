"""Reading a root, and nothing else: a local folder, or any other place through fsspec."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

__all__ = ["CONTENT_BYTES_MAX", "OBJECT_BYTES_MAX", "SMALL_BYTES_MAX", "Folder", "FsspecFolder", "Root", "open_root"]

# FORMAT.md, section 2: of payloads and code on their own; of segments and schedules; of all others.
CONTENT_BYTES_MAX = 256 * 1024 * 1024
OBJECT_BYTES_MAX = 64 * 1024 * 1024
SMALL_BYTES_MAX = 1024 * 1024


class Root(Protocol):
    """Objects below one place. Names of folders end with a slash."""

    def read(self, key: str, bytes_max: int = OBJECT_BYTES_MAX) -> bytes | None:
        """The bytes of an object; None if there is none. One with more than may lie there is not read: no bytes."""

    def names(self, folder: str) -> list[str]:
        """What lies directly in a folder, sorted."""

    def walk(self, folder: str) -> Iterator[str]:
        """All objects below a folder, relative to it, in the order of their names."""

    def below(self, folder: str) -> Root:
        """The root that this folder is."""


def open_root(url: str) -> Root:
    """The root at a path or URL. ImportError if that needs fsspec, or a client of it, that is not installed."""
    scheme, separator, path = url.partition("://")
    if not separator or scheme == "file":
        return Folder(path if separator else url)
    import fsspec  # nobody needs it for a folder

    file_system, place = fsspec.core.url_to_fs(url, use_listings_cache=False)
    return FsspecFolder(file_system, place)


class Folder:
    """A local folder."""

    def __init__(self, path: str | Path) -> None:
        self._path = str(path)

    def read(self, key: str, bytes_max: int = OBJECT_BYTES_MAX) -> bytes | None:
        """See `Root`."""
        path = f"{self._path}/{key}"
        try:
            found = os.stat(path)
            if stat.S_ISDIR(found.st_mode):
                return None
            if not stat.S_ISREG(found.st_mode) or found.st_size > bytes_max:
                return b""
            with open(path, "rb") as file:
                return file.read(found.st_size)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def names(self, folder: str) -> list[str]:
        """See `Root`."""
        try:
            with os.scandir(f"{self._path}/{folder}") as entries:
                return sorted(f"{entry.name}/" if entry.is_dir() else entry.name for entry in entries)
        except (FileNotFoundError, NotADirectoryError):
            return []

    def walk(self, folder: str) -> Iterator[str]:
        """See `Root`."""
        for name in self.names(folder):
            if name.endswith("/"):
                for deeper in self.walk(f"{folder}{name}"):
                    yield f"{name}{deeper}"
            else:
                yield name

    def below(self, folder: str) -> Folder:
        """See `Root`."""
        return Folder(f"{self._path}/{folder.rstrip('/')}")


class FsspecFolder:
    """A place that fsspec reaches."""

    def __init__(self, file_system: Any, path: str) -> None:
        self._file_system = file_system
        self._path = path.rstrip("/")

    def read(self, key: str, bytes_max: int = OBJECT_BYTES_MAX) -> bytes | None:
        """See `Root`."""
        try:
            data: bytes = self._file_system.cat_file(f"{self._path}/{key}", start=0, end=bytes_max + 1)
        except (FileNotFoundError, IsADirectoryError):
            return None
        except OSError:
            # Stores give no range of an empty object.
            if self._file_system.size(f"{self._path}/{key}"):
                raise
            return b""
        return data if len(data) <= bytes_max else b""

    def names(self, folder: str) -> list[str]:
        """See `Root`."""
        try:
            entries = self._file_system.ls(f"{self._path}/{folder}".rstrip("/"), detail=True)
        except (FileNotFoundError, NotADirectoryError):
            return []
        found = {(entry["name"].rstrip("/").rpartition("/")[2], entry["type"]) for entry in entries}
        return sorted(f"{name}/" if kind == "directory" else name for name, kind in found if name)

    def walk(self, folder: str) -> Iterator[str]:
        """See `Root`."""
        place = f"{self._path}/{folder}".rstrip("/")
        for path in sorted(self._file_system.find(place)):
            yield path.removeprefix("/" if not place.startswith("/") else "")[len(place) + 1 :]

    def below(self, folder: str) -> FsspecFolder:
        """See `Root`."""
        return FsspecFolder(self._file_system, f"{self._path}/{folder.rstrip('/')}")
