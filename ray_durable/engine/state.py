"""The state of an execution, to be looked at: what it waits for, how far it is, how it ended.

Nothing here changes anything. Mappings are views of the engine's own, in the order of the events' numbers: copy what
should outlive the next `apply`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ray_durable.engine.children import Children
from ray_durable.engine.events import (
    EventRaised,
    ExecutionStarted,
    Input,
    RuntimeStatus,
    SubOrchestrationInstanceCreated,
    TaskScheduled,
)
from ray_durable.engine.external_events import Backlog, ExternalEvents
from ray_durable.engine.journal import Journal
from ray_durable.engine.loop import EventLoop
from ray_durable.engine.maps import Maps, OutstandingMap
from ray_durable.engine.markers import Markers
from ray_durable.engine.randomness import Randomness
from ray_durable.engine.source import describe_source, waiting_source
from ray_durable.engine.suspension import Suspension
from ray_durable.engine.tasks import Tasks
from ray_durable.engine.timers import Retried, Timers
from ray_durable.failure import Failure
from ray_durable.payload import Payload

__all__ = ["Counts", "ExecutionState"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """How much was asked for, and how much of it ended.

    Tasks are calls of activities and of orchestrators. A call counts once, however often it is retried.
    """

    tasks_scheduled: int = 0
    tasks_completed: int = 0
    tasks_failed: int = 0
    tasks_cancelled: int = 0
    map_items_total: int = 0
    map_items_completed: int = 0
    map_items_failed: int = 0


class ExecutionState:
    """What is known of an execution. `Execution` moves it."""

    def __init__(self, loop: EventLoop, journal: Journal) -> None:
        self._loop = loop
        self._journal = journal
        self._timers = Timers(journal, loop)
        self._randomness = Randomness()
        self._tasks = Tasks(journal, loop, self._timers, self._randomness.retries)
        self._maps = Maps(journal, loop, self._timers, self._randomness.retries)
        self._children = Children(journal, loop, self._timers, self._randomness.retries)
        self._events = ExternalEvents(loop)
        self._suspension = Suspension(self._tasks, self._maps, self._children, self._timers)
        self._markers = Markers(journal)
        self._untaken: deque[Input] = deque()
        self._next_input: Payload | None = None

        self.started: ExecutionStarted | None = None
        self.status = RuntimeStatus.PENDING
        self.result: Payload | None = None
        self.failure: Failure | None = None
        self.custom_status: Payload | None = None
        self.is_replaying = False
        # The random id of the run that follows this one, once that is decided.
        self.successor: str | None = None

    @property
    def position(self) -> int:
        """The number of the last event."""
        return self._journal.number

    @property
    def now_us(self) -> int:
        """The time of the last input."""
        return self._journal.time_us

    @property
    def instance_id(self) -> str:
        """The id of the instance ("" before the start)."""
        return self._journal.instance_id

    @property
    def ended(self) -> bool:
        """Whether the execution has come to an end."""
        return self.status.is_final

    @property
    def outstanding_tasks(self) -> Mapping[int, TaskScheduled]:
        """The tasks without outcome that were not cancelled, by number, in order. A view, not a copy.

        An outcome that is recorded counts also while the execution is suspended and nobody has heard of it.
        """
        return self._tasks.outstanding

    @property
    def outstanding_maps(self) -> Mapping[int, OutstandingMap]:
        """The maps with unfinished items, by number, in order. A view, not a copy."""
        return self._maps.outstanding

    @property
    def outstanding_children(self) -> Mapping[int, SubOrchestrationInstanceCreated]:
        """The sub-orchestrations without outcome that were not cancelled, by number, in order. A view, not a copy."""
        return self._children.outstanding

    @property
    def timers(self) -> Mapping[int, int]:
        """The times of the timers that have neither fired nor been cancelled, by number. A view, not a copy."""
        return self._timers.due_us

    def retried(self, timer: int) -> Retried | None:
        """What the timer of this number lets be tried again; None if that is not what it is for."""
        return self._timers.retried(timer)

    @property
    def next_timer_us(self) -> int | None:
        """The time of the earliest timer."""
        return self._timers.next_due_us()

    def due_timers(self, now_us: int) -> list[int]:
        """The numbers of the timers that should fire by `now_us`, in the order in which they should."""
        return self._timers.due(now_us)

    @property
    def waiting_for(self) -> list[str]:
        """The names of the external events that the code waits for."""
        return self._events.waiting_for()

    @property
    def event_waits(self) -> list[tuple[str, int, str]]:
        """The external events that the code waits for: name, since when (microseconds), and "file:line" of the wait."""
        return [(name, since_us, describe_source(source)) for name, since_us, source in self._events.waits()]

    @property
    def code_waits(self) -> list[str]:
        """ "file:line" of each place at which a coroutine of the code waits, for whatever that is."""
        sources = [waiting_source(task.get_coro()) for task in self._loop.unfinished()]
        return list(dict.fromkeys(describe_source(source) for source in sources if source is not None))

    @property
    def unread_events(self) -> list[EventRaised]:
        """The external events that nobody has taken, in the order of their arrival.

        Those that were handed on at the start and are not recorded yet come last, with the number 0.
        """
        handed_on = [event for event in self._untaken if isinstance(event, EventRaised)]
        return self._events.unread() + self._suspension.raised() + handed_on

    @property
    def backlog(self) -> Backlog:
        """How many external events nobody has taken, those held in a suspension among them, and how large they are."""
        unread, held = self._events.backlog, self._suspension.backlog
        return Backlog(unread.count + held.count, unread.size_bytes + held.size_bytes)

    def is_awaited(self, name: str) -> bool:
        """Whether an external event of this name would be taken at once."""
        return self.status is not RuntimeStatus.SUSPENDED and self._events.is_awaited(name)

    def knows_event(self, event_id: str) -> bool:
        """Whether an external event of this id came before, so that another one is a repetition."""
        return self._events.is_known(event_id)

    @property
    def recent_event_ids(self) -> list[str]:
        """The ids of the last 1,000 external events, also of earlier executions, in the order of their arrival."""
        return self._events.recent_ids()

    @property
    def unhandled_errors(self) -> Sequence[BaseException]:
        """What callbacks, and background tasks that nobody awaited, raised. Tasks are looked through at the end."""
        return self._loop.unhandled

    @property
    def counts(self) -> Counts:
        """How much was asked for, and how much of it ended."""
        tasks, maps, children = self._tasks, self._maps, self._children
        return Counts(
            tasks_scheduled=tasks.scheduled + children.scheduled,
            tasks_completed=tasks.completed + children.completed,
            tasks_failed=tasks.failed + children.failed,
            tasks_cancelled=tasks.cancelled + children.cancelled,
            map_items_total=maps.total,
            map_items_completed=maps.completed,
            map_items_failed=maps.failed,
        )

    def source_of(self, number: int) -> str:
        """ "file:line" of the code that asked for what is outstanding: task, map, instance or timer ("" if unknown)."""
        keepers = (self._tasks, self._maps, self._children, self._timers, self._journal)
        found = (keeper.source_of(number) for keeper in keepers)
        return describe_source(next((source for source in found if source is not None), None))
