"""An instance's messages to others: those of its present execution, and those that executions before it still owe.

Joins what the log says of messages (`correspondence`) with their delivery (`outbox`, `delivery`). What arrived is noted
along with the next inputs; a note never causes a segment of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ray_durable.engine import Event, ExecutionStarted, OutboxDelivered
from ray_durable.errors import ClusterConnectionError, InstanceNotFoundError
from ray_durable.runtime.correspondence import Correspondence, Message, ReportEnd, owed
from ray_durable.runtime.delivery import Courier
from ray_durable.runtime.hub import OpenHub
from ray_durable.runtime.outbox import Outbox
from ray_durable.runtime.ports import Clock, InstanceDirectory
from ray_durable.storage import latest_execution, persist

__all__ = ["Mail"]


class Mail:
    """See the module. `answer` gets what calls come to without an instance that would tell; `tell` is called when the
    `problem` is another one."""

    def __init__(
        self,
        hub: OpenHub,
        instances: InstanceDirectory,
        clock: Clock,
        answer: Callable[[ReportEnd], None],
        tell: Callable[[], None],
    ) -> None:
        self._hub = hub
        self._outbox = Outbox(Courier(hub, instances, clock, self._answered).deliver, tell)
        self._answer = answer
        # Calls whose answer is an input by now. It shows that they arrived, and a note could be in the log before it.
        self._answers: set[str] = set()
        self._correspondence = Correspondence()
        self._run = ""
        # Of executions before, in the order of sending: what was not known to have arrived when this one began.
        self._older: dict[str, Message] = {}
        self._is_older_to_be_noted = False

    @property
    def problem(self) -> str | None:
        """What keeps a message from arriving, if anything does."""
        return self._outbox.problem

    @property
    def owes(self) -> bool:
        """Whether a message may still have to be delivered."""
        return not self._outbox.is_empty

    @property
    def owes_older(self) -> bool:
        """Whether a message of an execution before this one may still have to be delivered."""
        return not self._run or any(map(self._outbox.has, self._older))

    def child_id(self, number: int) -> str:
        """The id of the instance that event `number` called."""
        return self._correspondence.child_id(number)

    async def begin(self, started: ExecutionStarted, history: Sequence[Event]) -> None:
        """Another execution: read what its log says, and what those before it owe."""
        # Who brought the last one here knows already.
        delivered = {message.id for message in self._outbox.take_delivered()}
        before = self._correspondence.started
        is_next = before is not None and started.previous == (before.instance_id, before.execution, before.run)
        known = [*self._older.values(), *self._correspondence.pending]
        self._correspondence = Correspondence()
        self._correspondence.take(history)
        self._is_older_to_be_noted = not self._correspondence.are_older_delivered
        self._older = {}
        if self._is_older_to_be_noted:
            older = owed(known, is_rewound=bool(started.lineage)) if is_next else await self._owed_before(started)
            self._older = {message.id: message for message in older if message.id not in delivered}
        self._answers.clear()
        self._run = started.run

    def open(self) -> None:
        """The log is ours: bring everything that is not known to have arrived."""
        self._outbox.send(self._older.values())
        self._outbox.send(self._correspondence.pending)

    def release(self, records: Sequence[Event]) -> None:
        """These are durable: bring what they send."""
        sent = self._correspondence.take(records)
        if sent:
            self._outbox.send(sent)

    def note(self) -> list[Event]:
        """What has arrived since the last note, as an input; nothing if there is nothing to say."""
        numbers: list[int] = []
        for message in self._outbox.take_delivered():
            if message.run != self._run:
                self._older.pop(message.id, None)
            elif message.id not in self._answers:
                numbers.append(message.number)
        if self._is_older_to_be_noted and not self._older:
            self._is_older_to_be_noted = False
            numbers.append(0)
        return [OutboxDelivered(messages=tuple(sorted(numbers)))] if numbers else []

    async def is_of_the_past(self, report: ReportEnd) -> bool:
        """Whether a report is of an end that was rewound: the called instance goes on, and will tell of another.

        Raises:
            ClusterConnectionError: that is not known before the called instance has been told of the rewind.
        """
        started, task = self._correspondence.started, report.task
        if started is None or not started.lineage or task > started.lineage[-1][0]:
            return False
        if report.ended is None or report.failure is None:
            return False
        call = f"{task}.{report.execution}.{started.instance_id}"
        if self._outbox.has(call):
            raise ClusterConnectionError(
                f"Instance {started.instance_id!r} was rewound and has yet to say so: ask again"
            )
        try:
            child_id = self.child_id(task)
        except KeyError:
            return True  # nobody waits for it
        latest = await persist(lambda: latest_execution(self._hub.store, self._hub.keys, child_id))
        return latest is None or latest > report.ended

    def _answered(self, report: ReportEnd) -> None:
        if report.run == self._run:
            self._answers.add(report.id)
            self._answer(report)

    async def wait_delivered(self, timeout_s: float) -> bool:
        """Whether everything has arrived, at the latest after `timeout_s`."""
        return await self._outbox.wait_empty(timeout_s)

    def close(self) -> None:
        """Bring nothing more."""
        self._outbox.close()

    async def _owed_before(self, started: ExecutionStarted) -> list[Message]:
        """What the executions before this one have not delivered for all that their logs say, the oldest first."""
        found: list[Message] = []
        while started.owes and started.previous is not None and started.previous[0] == started.instance_id:
            try:
                _, history = await self._hub.read_log(started.instance_id, started.previous[1])
            except InstanceNotFoundError:
                break  # removed, which is done only with what owes nothing
            correspondence = Correspondence()
            correspondence.take(history)
            found = [*owed(correspondence.pending, is_rewound=bool(started.lineage)), *found]
            first = history[0]
            if correspondence.are_older_delivered or not isinstance(first, ExecutionStarted):
                break
            started = first
        return found
