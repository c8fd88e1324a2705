"""A store that is asked again until it answers: the way in which every process of the runtime sees its store.

A request whose outcome is unclear is sent again, the same one, for as long as the process has patience. Waiting is
visible: `problem` tells of it while it lasts, and the log has one line when it becomes noticeable and one when it is
over, however many requests wait and however often they are sent. What the store refuses for good passes at once.

A create that is sent twice may meet itself, as `ObjectStore` allows: False then stands for an object with these bytes.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from ray_durable.errors import DurableError
from ray_durable.storage.pacing import Pacing
from ray_durable.storage.store import OBJECT_BYTES_MAX, ObjectStore

__all__ = ["PatientStore"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

_NOTICED_S = 1.0
"""A shorter hiccup is nobody's business."""


class PatientStore:
    """`ObjectStore` over another. `who` is whom the log names as the one that waits."""

    def __init__(self, store: ObjectStore, pacing: Pacing | None = None, *, who: str = "ray_durable") -> None:
        self.url = store.url
        self.private_path: Path | None = store.private_path
        self.pacing = pacing or Pacing()
        self._store = store
        self._who = who
        # The requests that wait to be sent again, with the last error of each and the time for which it waits.
        self._waiting: dict[object, tuple[DurableError, float]] = {}
        self._logged_s: float | None = None

    @property
    def problem(self) -> str | None:
        """What is waited for, in words; None while nothing is, or not for long."""
        error, waited_s = max(self._waiting.values(), key=lambda waiting: waiting[1], default=(None, 0.0))
        return None if waited_s < _NOTICED_S else f"waits for the store, {waited_s:.0f} s so far: {error}"

    async def put_if_absent(self, key: str, data: bytes) -> bool:
        """See `ObjectStore`."""
        return await self._persist(lambda: self._store.put_if_absent(key, data))

    async def put(self, key: str, data: bytes) -> None:
        """See `ObjectStore`."""
        await self._persist(lambda: self._store.put(key, data))

    async def get(self, key: str, bytes_max: int = OBJECT_BYTES_MAX) -> bytes | None:
        """See `ObjectStore`."""
        return await self._persist(lambda: self._store.get(key, bytes_max))

    async def list_folder(self, folder: str) -> list[str]:
        """See `ObjectStore`."""
        return await self._persist(lambda: self._store.list_folder(folder))

    async def list_tree(self, folder: str) -> list[str]:
        """See `ObjectStore`."""
        return await self._persist(lambda: self._store.list_tree(folder))

    async def delete_many(self, keys: list[str]) -> None:
        """See `ObjectStore`."""
        await self._persist(lambda: self._store.delete_many(keys))

    async def close(self) -> None:
        """See `ObjectStore`."""
        await self._store.close()

    async def _persist(self, request: Callable[[], Awaitable[T]]) -> T:
        def wait(error: DurableError, waited_s: float) -> None:
            self._waiting[request] = error, waited_s
            if waited_s >= _NOTICED_S and self._logged_s is None:
                self._logged_s = self.pacing.monotonic_s() - waited_s
                logger.warning("%s waits for its store: %s", self._who, error)

        try:
            return await self.pacing.persist(request, on_trouble=wait)
        finally:
            if self._waiting.pop(request, None) is not None and not self._waiting and self._logged_s is not None:
                waited_s, self._logged_s = self.pacing.monotonic_s() - self._logged_s, None
                logger.warning("%s waited %.0f s for its store", self._who, waited_s)
