"""Simulated workers: slices take virtual time, then the worker's own code runs, here and now.

`executions` counts how often each call was executed, by idempotency key and attempt; `lost` those executions of which
nobody heard, since the worker died with them.
"""

from __future__ import annotations

from asyncio.events import _get_running_loop, _set_running_loop
from collections import Counter
from collections.abc import Callable, Iterator

from ray_durable.failure import Failure
from ray_durable.runtime.messages import SliceNews, SlicePlace, SliceReport, SliceWork
from ray_durable.runtime.worker import run_slice
from ray_durable.target import ActivityTarget
from ray_durable.testing.simulation.scheduler import Process
from ray_durable.testing.simulation.weather import Weather
from ray_durable.testing.workers import InlineWorkshop, through_process_boundary

__all__ = ["Ledger", "SimulatedWorkers"]

Call = tuple[str, int]
"""An idempotency key and the number of the attempt."""

_SLOTS = 4
_LOSSES_MAX = 2


class Ledger:
    """What was executed in all of a simulation."""

    def __init__(self) -> None:
        self.executions: Counter[Call] = Counter()
        self.lost: Counter[Call] = Counter()
        self.losses: Counter[Call] = Counter()


class SimulatedWorkers:
    """`Launcher` of one dispatcher's process: its slices die with it. `on_launch` is called for each."""

    def __init__(
        self,
        process: Process,
        workshop: InlineWorkshop,
        weather: Weather,
        ledger: Ledger,
        *,
        on_launch: Callable[[], None],
    ) -> None:
        self.process = process
        self.on_launch = on_launch
        self.workshop = workshop
        self.weather = weather
        self.ledger = ledger

    def launch(self, work: SliceWork, generation: str | None, tell: Callable[[SliceNews], None]) -> _Slice:
        """See `Launcher`."""
        self.on_launch()
        started = _Slice(self, through_process_boundary(work), tell)
        self.process.call_later(self.weather.slice_s(), started.run)
        return started

    def slots(self, target: ActivityTarget) -> int:
        """See `Launcher`."""
        return _SLOTS


class _Slice:
    def __init__(self, workers: SimulatedWorkers, work: SliceWork, tell: Callable[[SliceNews], None]) -> None:
        self._workers = workers
        self._work = work
        self._tell: Callable[[SliceNews], None] | None = tell

    def withdraw(self, calls: tuple[int, ...]) -> bool:
        """See `RunningSlice`: nobody can ask it."""
        return False

    def cancel(self) -> None:
        """See `RunningSlice`."""
        cancelled = Failure(kind="cancelled", type_name="CancelledError", message="cancelled")
        self._workers.process.call_soon(self._end, cancelled)

    def run(self) -> None:
        """Its time has come."""
        if self._tell is None:
            return
        workers, work = self._workers, self._work
        self._tell(SlicePlace(host="worker", pid=1))
        asked = list(_calls(work, work.count))
        # A call whose worker is lost each time fails, which is another story.
        has_luck = any(workers.ledger.losses[call] >= _LOSSES_MAX for call in asked)
        loss = None if has_luck else workers.weather.loses_worker()
        if loss is not None:
            workers.ledger.losses.update(asked)
        if loss != "before":
            report = self._execute()
            calls = list(_calls(work, report.done))
            workers.ledger.executions.update(calls)
            if loss is None:
                self._end(report)
                return
            workers.ledger.lost.update(calls)
        self._end(Failure(kind="system", type_name="WorkerLostError", message="the worker was lost"))

    def _execute(self) -> SliceReport:
        outer = _get_running_loop()
        # An async activity starts a loop of its own.
        _set_running_loop(None)
        try:
            return run_slice(self._work, self._workers.workshop)
        finally:
            _set_running_loop(outer)

    def _end(self, news: SliceReport | Failure) -> None:
        tell, self._tell = self._tell, None
        if tell is not None:
            tell(through_process_boundary(news))


def _calls(work: SliceWork, done: int) -> Iterator[Call]:
    for offset in range(done):
        if work.batch is not None:
            yield f"{work.keys[0]}:{work.first + offset}", work.attempts[0]
        else:
            yield work.keys[offset], work.attempts[offset]
