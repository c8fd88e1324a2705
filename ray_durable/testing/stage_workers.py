"""An environment's workers: one slice after the other, on a thread for which virtual time waits."""

from __future__ import annotations

import asyncio
import queue
import threading

from ray_durable.runtime.messages import SliceReport, SliceWork
from ray_durable.runtime.running_call import timeout_failure
from ray_durable.runtime.worker import run_slice
from ray_durable.testing.virtual_time import SkippingLoop
from ray_durable.testing.workers import InlineWorkshop, Slice, Workers

__all__ = ["StageWorkers", "is_in_activity"]

_END_S_MAX = 2.0
_NOTHING_DONE = SliceReport(done=0, elapsed_s=0.0)

_thread = threading.local()


def is_in_activity() -> bool:
    """Whether an activity asks, for which virtual time stands still."""
    return getattr(_thread, "is_in_activity", False)


class StageWorkers(Workers):
    """Workers that take one slice after the other on a thread of their own, for which virtual time waits.

    `held` are names of activities whose calls wait; `losses` counts, by name, the workers that are still to be lost.
    """

    def __init__(self, workshop: InlineWorkshop, loop: SkippingLoop) -> None:
        super().__init__(workshop)
        self.held_names: set[str] = set()
        self.losses: dict[str, int] = {}
        self.holds = lambda work: work.target.reference.name in self.held_names
        self.is_poisoned = self._takes_worker
        self._loop = loop
        self._timeouts: dict[Slice, asyncio.TimerHandle] = {}
        self._queue: queue.SimpleQueue[Slice | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="ray_durable activities", daemon=True)
        self._thread.start()

    def execute(self, started: Slice) -> None:
        """See `Workers`; reports later."""
        self._loop.begin_outside()
        self._queue.put(started)

    def hold(self, started: Slice) -> None:
        """See `Workers`. What waits for too long times out, as it would on its worker."""
        super().hold(started)
        target = started.work.target
        limits_s = [limit_s for limit_s in (target.timeout_s, target.heartbeat_timeout_s) if limit_s is not None]
        if limits_s:
            self._timeouts[started] = self._loop.call_later(min(limits_s), self._time_out, started)

    @property
    def next_timeout_s(self) -> float | None:
        """When the next held activity times out, on the loop's clock."""
        return min((alarm.when() for held, alarm in self._timeouts.items() if held in self.held), default=None)

    def release(self, name: str) -> None:
        """Let the held calls of an activity go on."""
        self.held_names.discard(name)
        for held in [one for one in self.held if one.work.target.reference.name == name]:
            self.held.remove(held)
            held.finish()

    def close(self) -> None:
        """End the thread; an activity that does not end is left behind."""
        self._queue.put(None)
        self._thread.join(_END_S_MAX)

    def _time_out(self, started: Slice) -> None:
        del self._timeouts[started]
        if started in self.held:
            failure = timeout_failure(started.work.target.reference.name, "it was held")
            calls = tuple((offset, failure) for offset in range(started.work.count))
            started.end(SliceReport(done=0, elapsed_s=0.0, condemned=calls))

    def _takes_worker(self, work: SliceWork) -> bool:
        name = work.target.reference.name
        left = self.losses.get(name, 0)
        self.losses[name] = max(0, left - 1)
        return left > 0

    def _work(self) -> None:
        _thread.is_in_activity = True
        while (started := self._queue.get()) is not None:
            # What died with its dispatcher while it waited for its turn does not run any more.
            report = run_slice(started.work, self.workshop) if started.is_wanted else _NOTHING_DONE
            self._loop.call_soon_threadsafe(self._report, started, report)

    def _report(self, started: Slice, report: SliceReport) -> None:
        self._loop.end_outside()
        started.end(report)
