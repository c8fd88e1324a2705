"""The simulated object store: what its contract promises, and nothing more.

Creation is atomic, objects are whole, and a read sees what was written before it began. Everything else is weather: see
there. `StorePort` is one process's way to it; what a process asked for may still take effect when it is dead.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ray_durable.errors import StoreUnavailableError
from ray_durable.storage import OBJECT_BYTES_MAX
from ray_durable.testing.simulation.scheduler import Process, Scheduler
from ray_durable.testing.simulation.weather import Fault, Weather

__all__ = ["Operation", "SimulatedStore", "StorePort"]

Operation = tuple[str, Any, bytes]
"""What is to be done ("create", "put", "get", "list", "tree", "delete"), with which key or keys, and which bytes."""

URL = "simulated://store"

_CHANGING_S = 60.0
"""How long a process may take from its first to its last change of the index, or to look whether it was right."""

_LATE_S_MAX = 1_800.0
"""A request that is older than that is given up wherever it waits."""


class SimulatedStore:
    """The objects, and how they change. `on_create`, `on_put` and `on_delete` are told of what takes effect."""

    def __init__(self, scheduler: Scheduler, weather: Weather) -> None:
        self.weather = weather
        self.objects: dict[str, bytes] = {}
        self.in_flight = 0
        # When the index was last changed by a request that its sender had given up, or left half changed: it may be
        # wrong since.
        self.index_disturbed_s: float | None = None
        self._has_missed_names = False
        self._index_changed_s: dict[Process, float] = {}
        self._index_removed_s: dict[Process, float] = {}
        self.before: Callable[[Process, str, str], Fault | None] = lambda process, operation, key: None
        self.on_create: Callable[[Process, str, bytes], None] = lambda process, key, data: None
        self.on_put: Callable[[Process, str, bytes], None] = lambda process, key, data: None
        self.on_delete: Callable[[Process, str], None] = lambda process, key: None
        self._scheduler = scheduler
        self._folders: dict[str, dict[str, float]] = {}
        # Creates of processes that died, which arrive just before another's create of the same key.
        self._late: dict[str, tuple[Process, bytes]] = {}

    def apply(self, process: Process, operation: str, key: str, data: bytes, lag_s: float = 0.0) -> Any:
        """Let an operation take effect; its answer."""
        if operation == "get":
            return self.objects.get(key)
        if operation == "list":
            return self._list(key, lag_s)
        if operation == "tree":
            return sorted(self._tree(key, "", lag_s))
        if operation == "create":
            self._arrive(key)
            if key in self.objects:
                return False
            self._put(key, data)
            self.on_create(process, key, data)
            return True
        if operation == "put":
            self._put(key, data)
            self.on_put(process, key, data)
            return None
        for name in key.split("\n"):
            if self.objects.pop(name, None) is not None:
                self._forget(name)
                self.on_delete(process, name)
        return None

    def fell(self, process: Process) -> None:
        """A process died or stopped: what it had begun in the index may be half done."""
        if self._is_recent(self._index_changed_s.get(process)):
            self.index_disturbed_s = self._scheduler.now_s
        if self._is_recent(self._index_removed_s.get(process)):
            self._has_missed_names = True

    def left(self, process: Process) -> None:
        """A process has gone, or has done what it wanted: it changes nothing more."""
        self._index_changed_s.pop(process, None)

    def is_index_changing(self) -> bool:
        """Whether somebody may be in the midst of its changes of the index."""
        return any(map(self._is_recent, self._index_changed_s.values()))

    def may_miss_names(self) -> bool:
        """Whether something that should be there may be missing in the index.

        A request that was late may have removed it; or a process has removed it, and did not look, or not yet, whether
        it is needed by now. Whoever only enters leaves nothing out, wherever it dies.
        """
        return self._has_missed_names or any(map(self._is_recent, self._index_removed_s.values()))

    def _is_recent(self, time_s: float | None) -> bool:
        return time_s is not None and self._scheduler.now_s - time_s < _CHANGING_S

    def is_empty(self, folder: str) -> bool:
        """Whether there is nothing below a folder."""
        return not self._folders.get(folder)

    def arrive_before_rival(self, process: Process, key: str, data: bytes) -> None:
        """Let a create take effect just before another's create of the same key, or else half an hour later."""
        self._late.setdefault(key, (process, data))
        self._scheduler.after(_LATE_S_MAX, lambda: self._arrive(key))

    def _arrive(self, key: str) -> None:
        if key in self._late:
            process, data = self._late.pop(key)
            self.apply(process, "create", key, data)

    def flush_late(self) -> None:
        """Let take effect what still waits for a rival."""
        while self._late:
            self._arrive(next(reversed(self._late)))

    def _put(self, key: str, data: bytes) -> None:
        assert data, "an object is never empty"
        if key not in self.objects:
            folder, _, name = key.rpartition("/")
            while True:
                names = self._folders.setdefault(f"{folder}/" if folder else "", {})
                if name in names:
                    break
                names[name] = self._scheduler.now_s
                folder, _, last = folder.rpartition("/")
                if not last:
                    break
                name = f"{last}/"
        self.objects[key] = data

    def _forget(self, key: str) -> None:
        folder, _, name = key.rpartition("/")
        while True:
            names = self._folders[f"{folder}/" if folder else ""]
            del names[name]
            if names:
                return
            folder, _, last = folder.rpartition("/")
            if not last:
                return
            name = f"{last}/"

    def _list(self, folder: str, lag_s: float) -> list[str]:
        names = self._folders.get(folder, {})
        if not lag_s:
            return sorted(names)
        seen_s = self._scheduler.now_s - lag_s
        return sorted(name for name, since_s in names.items() if since_s <= seen_s)

    def _tree(self, folder: str, place: str, lag_s: float) -> Iterator[str]:
        for name in self._list(folder + place, lag_s):
            if name.endswith("/"):
                yield from self._tree(folder, f"{place}{name}", lag_s)
            else:
                yield f"{place}{name}"


class StorePort:
    """`ObjectStore` of one process."""

    def __init__(self, store: SimulatedStore, process: Process) -> None:
        self.url = URL
        self.private_path: Path | None = None
        self._store = store
        self._process = process

    async def put_if_absent(self, key: str, data: bytes) -> bool:
        """See `ObjectStore`."""
        created: bool = await self._do("create", key, data)
        return created

    async def put(self, key: str, data: bytes) -> None:
        """See `ObjectStore`."""
        await self._do("put", key, data)

    async def get(self, key: str, bytes_max: int = OBJECT_BYTES_MAX) -> bytes | None:
        """See `ObjectStore`."""
        found: bytes | None = await self._do("get", key, b"")
        return found

    async def list_folder(self, folder: str) -> list[str]:
        """See `ObjectStore`."""
        names: list[str] = await self._do("list", folder, b"")
        return names

    async def list_tree(self, folder: str) -> list[str]:
        """See `ObjectStore`."""
        names: list[str] = await self._do("tree", folder, b"")
        return names

    async def delete_many(self, keys: list[str]) -> None:
        """See `ObjectStore`."""
        await self._do("delete", "\n".join(keys), b"")

    async def close(self) -> None:
        """See `ObjectStore`."""

    def _do(self, operation: str, key: str, data: bytes) -> asyncio.Future[Any]:
        process, store = self._process, self._store
        scheduler = process.scheduler
        answer = process.create_future()
        if not process.is_alive:
            return answer
        fate = store.weather.of_operation(scheduler.now_s, operation, key)
        scheduler.trace.append((scheduler.now_s, f"{process.name} {operation} {key} {fate.fault.name}"))
        forced = store.before(process, operation, key)
        fault = fate.fault if forced is None else forced
        if fault is Fault.LATE and operation == "create" and not process.is_alive:
            # The caller is dead. The worst moment is that in which its successor wants the same key.
            store.arrive_before_rival(process, key, data)
            return answer

        def reply(result: Any) -> None:
            if process.is_alive and not answer.done():
                if isinstance(result, BaseException):
                    answer.set_exception(result)
                else:
                    answer.set_result(result)

        def act() -> None:
            store.in_flight -= 1
            if operation in ("put", "delete") and "/index/" in key:
                store._index_changed_s[process] = scheduler.now_s
                if operation == "delete":
                    store._index_removed_s[process] = scheduler.now_s
                if fault is Fault.LATE or not process.is_alive:
                    store.index_disturbed_s = scheduler.now_s
                    store._has_missed_names = True
            result = store.apply(process, operation, key, data, fate.lag_s)
            if fault is Fault.NONE:
                scheduler.after(fate.back_s, lambda: reply(result))
            elif fault is Fault.RESENT:
                again = store.apply(process, operation, key, data)
                scheduler.after(fate.back_s, lambda: reply(again))

        if fault in (Fault.NONE, Fault.ANSWER_LOST, Fault.LATE, Fault.RESENT):
            store.in_flight += 1
            scheduler.after(fate.there_s, act)
        if fault in (Fault.LOST, Fault.ANSWER_LOST, Fault.LATE):
            if process in store._index_removed_s:
                # It takes longer until it has looked.
                store._index_removed_s[process] += _CHANGING_S
            error = StoreUnavailableError("no answer came", url=URL)
            scheduler.after(fate.patience_s, lambda: reply(error))
        return answer
