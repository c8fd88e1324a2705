"""What arrives while an execution is suspended: recorded, kept, and delivered in order when it resumes.

What an input answers is not outstanding any more once it is held: nobody should run it again, and a second answer is no
news. For its delivery it is put back, so that the code, which may have cancelled it in between, finds everything as it
would have without the suspension.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from ray_durable.engine.children import Children
from ray_durable.engine.events import (
    EventRaised,
    Input,
    MapCompleted,
    SubOrchestrationInstanceCompleted,
    SubOrchestrationInstanceFailed,
    TaskCompleted,
    TaskFailed,
    TimerFired,
)
from ray_durable.engine.external_events import Backlog
from ray_durable.engine.maps import Maps
from ray_durable.engine.ranges import RangeSet
from ray_durable.engine.tasks import Tasks
from ray_durable.engine.timers import Timers

__all__ = ["Suspension"]

_T = TypeVar("_T")
_Restore = Callable[[], object]


class Suspension:
    """The inputs that an execution holds back, in order."""

    __slots__ = ("_children", "_held", "_maps", "_restores", "_tasks", "_timers", "backlog")

    def __init__(self, tasks: Tasks, maps: Maps, children: Children, timers: Timers) -> None:
        self.backlog = Backlog()
        self._tasks = tasks
        self._maps = maps
        self._children = children
        self._timers = timers
        self._held: deque[Input] = deque()
        self._restores: list[_Restore] = []

    def hold(self, event: Input) -> None:
        """Keep an input that is news; what it answers stops being outstanding."""
        self._held.append(event)
        if isinstance(event, EventRaised):
            self.backlog.add(event)
        self._withdraw(event)

    def restore(self) -> None:
        """What the held inputs answer is outstanding again: `take` them now."""
        for restore in self._restores:
            restore()
        self._restores.clear()

    def take(self) -> Input | None:
        """The next held input, or None if there is no more."""
        event = self._held.popleft() if self._held else None
        if isinstance(event, EventRaised):
            self.backlog.remove(event)
        return event

    def end(self) -> None:
        """The execution ended before all was taken: what is left has its outcome all the same."""
        for event in self._held:
            self._withdraw(event)

    def raised(self) -> list[EventRaised]:
        """The external events among what is held, in order."""
        return [event for event in self._held if isinstance(event, EventRaised)]

    def _withdraw(self, event: Input) -> None:
        if isinstance(event, TaskCompleted | TaskFailed):
            self._take_out(self._tasks.outstanding, event.task)
        elif isinstance(event, SubOrchestrationInstanceCompleted | SubOrchestrationInstanceFailed):
            self._take_out(self._children.outstanding, event.task)
        elif isinstance(event, TimerFired):
            self._take_out(self._timers.due_us, event.timer)
        elif isinstance(event, MapCompleted) and event.map in self._maps.outstanding:
            self._take_items_out(self._maps.outstanding[event.map].attempts, event)

    def _take_out(self, outstanding: dict[int, _T], number: int) -> None:
        if number in outstanding:
            scheduled = outstanding.pop(number)
            self._restores.append(lambda: outstanding.update({number: scheduled}))

    def _take_items_out(self, attempts: dict[int, RangeSet], event: MapCompleted) -> None:
        stop = event.start + event.count
        for attempt, ranges in attempts.items():
            parts = ranges.within(event.start, stop)
            ranges.remove(event.start, stop)
            self._restores.append(partial(_add_items, attempts, attempt, parts))


def _add_items(attempts: dict[int, RangeSet], attempt: int, parts: list[range]) -> None:
    ranges = attempts.setdefault(attempt, RangeSet())
    for part in parts:
        ranges.add(part.start, part.stop)
