"""An instance's messages to others: those of its present execution, and those that executions before it still owe.

Joins what the log says of messages (`correspondence`) with their delivery (`outbox`, `delivery`). What arrived is noted
along with the next inputs; a note never causes a segment of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ray_durable.engine import Event, ExecutionStarted, OutboxDelivered
from ray_durable.errors import InstanceNotFoundError
from ray_durable.runtime.correspondence import Correspondence, Message, owed
from ray_durable.runtime.delivery import Courier
from ray_durable.runtime.hub import OpenHub
from ray_durable.runtime.outbox import Outbox
from ray_durable.runtime.ports import Clock, InstanceDirectory

__all__ = ["Mail"]


class Mail:
    """See the module. `answer` gets inputs for the instance: calls that came to nothing."""

    def __init__(
        self, hub: OpenHub, instances: InstanceDirectory, clock: Clock, answer: Callable[[Event], None]
    ) -> None:
        self._hub = hub
        self._outbox = Outbox(Courier(hub, instances, clock, answer).deliver)
        self._correspondence = Correspondence()
        self._run = ""
        self._older: dict[str, Message] = {}

    @property
    def problem(self) -> str | None:
        """What keeps a message from arriving, if anything does."""
        return self._outbox.problem

    @property
    def owes(self) -> bool:
        """Whether a message may still have to be delivered."""
        return not self._outbox.is_empty

    def child_id(self, number: int) -> str:
        """The id of the instance that event `number` called."""
        return self._correspondence.child_id(number)

    async def begin(self, started: ExecutionStarted, history: Sequence[Event]) -> None:
        """Another execution: read what its log says, and what those before it owe."""
        self._run = started.run
        self._correspondence = Correspondence()
        self._correspondence.take(history)
        self._older = {}
        if not self._correspondence.are_older_delivered:
            for message in await self._owed_before(started):
                self._older[message.id] = message

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
            if message.run == self._run:
                numbers.append(message.number)
            elif self._older.pop(message.id, None) is not None and not self._older:
                numbers.append(0)
        return [OutboxDelivered(messages=tuple(sorted(numbers)))] if numbers else []

    async def wait_delivered(self) -> None:
        """Wait until everything has arrived."""
        await self._outbox.wait_empty()

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
