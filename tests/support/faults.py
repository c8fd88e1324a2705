"""A store that fails as real ones do: before a write, after it, or with the write arriving when nobody waits any more.

Every store's contract allows each of these, so whatever is built on stores must live with them. What a `FaultyStore`
does next comes from its `plan`, so a test writes it down, or draws it from a seed.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable
from enum import Enum, auto
from pathlib import Path

from ray_durable.errors import StoreError, StoreUnavailableError
from ray_durable.storage import OBJECT_BYTES_MAX, ObjectStore

__all__ = ["Fault", "FaultyStore", "Overwriting"]


class Fault(Enum):
    """What becomes of a request."""

    NONE = auto()
    """It is carried out and answered."""
    LOST = auto()
    """It never arrives; the caller times out."""
    ANSWER_LOST = auto()
    """It is carried out; the caller times out."""
    LATE = auto()
    """The caller times out; it is carried out after other things have happened."""
    RESENT = auto()
    """It is carried out twice by the client itself, which reports what the second try met."""
    HIDDEN = auto()
    """The answer is that the object exists, though nothing was carried out."""
    REFUSED = auto()
    """The store refuses for good, and nothing was carried out."""


class FaultyStore:
    """`ObjectStore` over another, whose creates meet the faults of `plan`, one each; then none.

    `calls` counts the requests by method. `pause` is awaited before each request: the place for another's turn.
    """

    def __init__(self, store: ObjectStore, plan: Iterable[Fault] = (), *, pause: Callable[[], int] = lambda: 0) -> None:
        self.url = store.url
        self.private_path: Path | None = store.private_path
        self.calls: Counter[str] = Counter()
        self._store = store
        self._plan = iter(plan)
        self._pause = pause
        self._late: set[asyncio.Task[bool]] = set()

    async def put_if_absent(self, key: str, data: bytes) -> bool:
        """See `ObjectStore`."""
        await self._begin("put_if_absent")
        fault = next(self._plan, Fault.NONE)
        if fault is Fault.REFUSED:
            raise StoreError("the credentials were withdrawn", url=self.url)
        if fault is Fault.HIDDEN:
            return False
        if fault is Fault.LATE:
            task = asyncio.ensure_future(self._put_late(key, data))
            self._late.add(task)
        elif fault is not Fault.LOST:
            created = await self._store.put_if_absent(key, data)
            if fault is Fault.RESENT:
                return False
            if fault is Fault.NONE:
                return created
        raise StoreUnavailableError("no answer came", url=self.url)

    async def _put_late(self, key: str, data: bytes) -> bool:
        for _ in range(1 + self._pause() * 3):
            await asyncio.sleep(0)
        return await self._store.put_if_absent(key, data)

    async def put(self, key: str, data: bytes) -> None:
        """See `ObjectStore`."""
        await self._begin("put")
        await self._store.put(key, data)

    async def get(self, key: str, bytes_max: int = OBJECT_BYTES_MAX) -> bytes | None:
        """See `ObjectStore`."""
        await self._begin("get")
        return await self._store.get(key, bytes_max)

    async def list_folder(self, folder: str) -> list[str]:
        """See `ObjectStore`."""
        await self._begin("list_folder")
        return await self._store.list_folder(folder)

    async def list_tree(self, folder: str) -> list[str]:
        """See `ObjectStore`."""
        await self._begin("list_tree")
        return await self._store.list_tree(folder)

    async def delete_many(self, keys: list[str]) -> None:
        """See `ObjectStore`."""
        await self._begin("delete_many")
        await self._store.delete_many(keys)

    async def close(self) -> None:
        """Wait for what is still under way; the other store stays open."""
        while self._late:
            await self._late.pop()

    async def _begin(self, method: str) -> None:
        self.calls[method] += 1
        for _ in range(self._pause()):
            await asyncio.sleep(0)


class Overwriting(FaultyStore):
    """A store that ignores the condition, as several S3 servers do: every create succeeds."""

    async def put_if_absent(self, key: str, data: bytes) -> bool:
        """Not what `ObjectStore` asks for."""
        await self.put(key, data)
        return True
