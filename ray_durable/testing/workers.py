"""Workers without Ray: slices run in threads of this process, with the worker's own code.

What crosses a process boundary is pickled, as Ray would.
"""

from __future__ import annotations

import asyncio
import pickle
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from ray_durable.errors import FunctionNotFoundError
from ray_durable.failure import Failure
from ray_durable.function import DurableFunction
from ray_durable.payload import Payload
from ray_durable.reference import FunctionReference
from ray_durable.runtime.hub import OpenHub
from ray_durable.runtime.messages import SliceNews, SlicePlace, SliceReport, SliceWork
from ray_durable.runtime.worker import run_slice
from ray_durable.target import ActivityTarget

__all__ = ["InlineWorkshop", "Slice", "Workers", "finish", "through_process_boundary"]

T = TypeVar("T")

_WORKER_PID = 1


def finish(coroutine: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that awaits nothing real: those of the memory store do not."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        result: T = stop.value
        return result
    raise AssertionError("the coroutine waits for something")


def through_process_boundary(value: T) -> T:
    """A copy, made the way another process would get it."""
    copy: T = pickle.loads(pickle.dumps(value))
    return copy


class InlineWorkshop:
    """`Workshop` over a hub whose store is in memory. Functions named in `missing` cannot be loaded."""

    def __init__(self, hub: OpenHub) -> None:
        self._hub = hub
        self.codec = hub.codec
        self.missing: set[str] = set()

    def load(self, reference: FunctionReference) -> DurableFunction:
        """See `Workshop`."""
        if reference.name in self.missing:
            raise FunctionNotFoundError(f"Function {reference.name!r} was not found: not deployed", name=reference.name)
        return finish(self._hub.load_function(reference))

    def fetch(self, run: str, payload: Payload) -> Payload:
        """See `Workshop`."""
        return finish(self._hub.fetch(run, payload))

    def offload(self, run: str, payload: Payload) -> Payload:
        """See `Workshop`."""
        stored = finish(self._hub.offload(run, payload))
        return (
            stored
            if stored.blob is None
            else Payload(encoding=stored.encoding, data=None, size=stored.size, blob=stored.blob)
        )


class Slice:
    """A slice on its worker: `finish` runs it there, `lose` takes the worker away."""

    def __init__(self, workers: Workers, work: SliceWork, tell: Callable[[SliceNews], None]) -> None:
        self.work = work
        self.is_cancelled = False
        self._workers = workers
        self._tell: Callable[[SliceNews], None] | None = tell

    @property
    def is_wanted(self) -> bool:
        """Whether somebody still waits for it."""
        return self._tell is not None

    def begin(self) -> None:
        """Its worker is there."""
        if self._tell is None:
            return
        self._tell(SlicePlace(host="here", pid=_WORKER_PID))
        if self._workers.is_poisoned(self.work):
            self.lose()
        elif self._workers.holds(self.work):
            self._workers.hold(self)
        else:
            self.finish()

    def finish(self) -> None:
        """Do the work, and report it."""
        if self.is_wanted:
            self._workers.execute(self)

    def lose(self) -> None:
        """The worker dies."""
        self.end(Failure(kind="system", type_name="WorkerLostError", message="the worker was lost"))

    def withdraw(self, calls: tuple[int, ...]) -> bool:
        """See `RunningSlice`: nobody can ask it."""
        return False

    def cancel(self) -> None:
        """See `RunningSlice`."""
        self.is_cancelled = True
        asyncio.get_running_loop().call_soon(
            self.end, Failure(kind="cancelled", type_name="CancelledError", message="cancelled")
        )

    def vanish(self) -> None:
        """The owner of the slice died, and the slice with it."""
        self._tell = None

    def end(self, report: SliceReport | Failure) -> None:
        """This is what became of it, if nothing else did before."""
        tell, self._tell = self._tell, None
        if self in self._workers.held:
            self._workers.held.remove(self)
        if tell is not None:
            tell(through_process_boundary(report))


class Workers:
    """`Launcher` whose workers are threads of this process.

    `holds` says which slices wait for `finish` or `lose`, `is_poisoned` which lose their worker at once.
    """

    def __init__(self, workshop: InlineWorkshop) -> None:
        self.workshop = workshop
        self.slot_count = 4
        self.launched: list[Slice] = []
        self.held: list[Slice] = []
        self.holds: Callable[[SliceWork], bool] = lambda work: False
        self.is_poisoned: Callable[[SliceWork], bool] = lambda work: False

    @property
    def missing(self) -> set[str]:
        """The names of functions that cannot be loaded."""
        return self.workshop.missing

    def launch(self, work: SliceWork, generation: str | None, tell: Callable[[SliceNews], None]) -> Slice:
        """See `Launcher`."""
        started = Slice(self, through_process_boundary(work), tell)
        self.launched.append(started)
        asyncio.get_running_loop().call_soon(started.begin)
        return started

    def slots(self, target: ActivityTarget) -> int:
        """See `Launcher`."""
        return self.slot_count

    def hold(self, started: Slice) -> None:
        """Let a slice wait."""
        self.held.append(started)

    def execute(self, started: Slice) -> None:
        """Run a slice, here and now."""
        reports: list[SliceReport] = []
        # A thread, since an async activity starts a loop of its own.
        thread = threading.Thread(target=lambda: reports.append(run_slice(started.work, self.workshop)))
        thread.start()
        thread.join()
        started.end(reports[0])

    def vanish(self) -> None:
        """Nobody waits for any slice any more."""
        for started in self.launched:
            started.vanish()
        self.held.clear()
