"""A store that is watched, and that can hold up, fail or swallow what is done to it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from ray_durable.storage import OBJECT_BYTES_MAX, ObjectStore

__all__ = ["Call", "Hook", "SpyStore"]

T = TypeVar("T")

Call = tuple[str, str]
"""An operation of the store and its key."""

Hook = Callable[[str, str], Awaitable[None]]


class SpyStore:
    """`ObjectStore` over another. `calls` are all calls that began, `segments` the keys of those that were appended.

    `before` and `after` may delay a call, fail it or never return.
    """

    def __init__(self, inner: ObjectStore) -> None:
        self.inner = inner
        self.url = inner.url
        self.private_path: Path | None = inner.private_path
        self.calls: list[Call] = []
        self.segments: list[str] = []
        self.before: Hook | None = None
        self.after: Hook | None = None

    @property
    def writes(self) -> list[Call]:
        """The calls that change something."""
        return [call for call in self.calls if call[0] in ("put_if_absent", "put", "delete")]

    async def put_if_absent(self, key: str, data: bytes) -> bool:
        """See `ObjectStore`."""

        async def create() -> bool:
            created = await self.inner.put_if_absent(key, data)
            if created and "/log/" in key:
                self.segments.append(key)
            return created

        return await self._do("put_if_absent", key, create)

    async def put(self, key: str, data: bytes) -> None:
        """See `ObjectStore`."""
        await self._do("put", key, lambda: self.inner.put(key, data))

    async def get(self, key: str, bytes_max: int = OBJECT_BYTES_MAX) -> bytes | None:
        """See `ObjectStore`."""
        return await self._do("get", key, lambda: self.inner.get(key, bytes_max))

    async def list_folder(self, folder: str) -> list[str]:
        """See `ObjectStore`."""
        return await self._do("list", folder, lambda: self.inner.list_folder(folder))

    async def list_tree(self, folder: str) -> list[str]:
        """See `ObjectStore`."""
        return await self._do("list", folder, lambda: self.inner.list_tree(folder))

    async def delete_many(self, keys: list[str]) -> None:
        """See `ObjectStore`."""
        await self._do("delete", ",".join(keys), lambda: self.inner.delete_many(keys))

    async def close(self) -> None:
        """See `ObjectStore`."""
        await self.inner.close()

    async def _do(self, operation: str, key: str, act: Callable[[], Awaitable[T]]) -> T:
        self.calls.append((operation, key))
        # Every operation takes its time: whatever else is ready runs meanwhile.
        await asyncio.sleep(0)
        if self.before is not None:
            await self.before(operation, key)
        result = await act()
        if self.after is not None:
            await self.after(operation, key)
        return result
