"""Objects in this process's memory: for tests. Stores of one name share their objects, across threads too."""

from __future__ import annotations

import threading
from pathlib import Path
from urllib.parse import urlsplit

from ray_durable.storage.store import OBJECT_BYTES_MAX, too_large

__all__ = ["MemoryStore"]

_lock = threading.Lock()
_roots: dict[str, dict[str, bytes]] = {}


class MemoryStore:
    """`ObjectStore` in memory."""

    def __init__(self, name: str) -> None:
        self.url = f"memory://{name}"
        self.private_path: Path | None = None
        with _lock:
            self._objects = _roots.setdefault(name, {})

    @classmethod
    def open(cls, url: str) -> MemoryStore:
        """The store named by memory://name."""
        parts = urlsplit(url)
        return cls(f"{parts.netloc}{parts.path}".strip("/"))

    async def put_if_absent(self, key: str, data: bytes) -> bool:
        """See `ObjectStore`."""
        assert data, "an object is never empty"
        with _lock:
            if key in self._objects:
                return False
            self._objects[key] = bytes(data)
            return True

    async def put(self, key: str, data: bytes) -> None:
        """See `ObjectStore`."""
        with _lock:
            self._objects[key] = bytes(data)

    async def get(self, key: str, bytes_max: int = OBJECT_BYTES_MAX) -> bytes | None:
        """See `ObjectStore`."""
        with _lock:
            data = self._objects.get(key)
        if data is not None and len(data) > bytes_max:
            raise too_large(key, bytes_max)
        return data

    async def list_folder(self, folder: str) -> list[str]:
        """See `ObjectStore`."""
        below = await self.list_tree(folder)
        return sorted({f"{name.split('/')[0]}/" if "/" in name else name for name in below})

    async def list_tree(self, folder: str) -> list[str]:
        """See `ObjectStore`."""
        with _lock:
            return sorted(key[len(folder) :] for key in self._objects if key.startswith(folder))

    async def delete_many(self, keys: list[str]) -> None:
        """See `ObjectStore`. Folders are but the beginnings of names."""
        with _lock:
            for key in keys:
                self._objects.pop(key, None)

    async def close(self) -> None:
        """See `ObjectStore`."""
