"""The activities of one execution, as its owner sees them: started and dropped, their outcomes heard.

Those for workers go to the dispatcher over a link; local ones run between turns. What a claim submits again is held
until the claim is durable, and nothing is started before the segment that schedules it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence

from ray_durable.context import Orchestration
from ray_durable.engine import Event, Execution, ExecutionStarted
from ray_durable.runtime.hub import OpenHub
from ray_durable.runtime.inbox import Arrival, Inbox
from ray_durable.runtime.link import DispatcherLink
from ray_durable.runtime.local_activities import LocalActivities
from ray_durable.runtime.messages import Attachment, ExchangeReply
from ray_durable.runtime.ports import DispatcherLostError, DispatcherPort
from ray_durable.runtime.release import Releaser, Resubmission, outcome_event

__all__ = ["Activities"]

_RETRY_S = 0.5


class Activities:
    """See the module. Until `begin`, it can only `leave`. `problem` is what keeps calls from starting."""

    def __init__(self, port: DispatcherPort, started: ExecutionStarted, hub: OpenHub, inbox: Inbox) -> None:
        self.problem: str | None = None
        self._started = started
        self._hub = hub
        self._inbox = inbox
        self._link = DispatcherLink(
            port,
            run=started.run,
            instance_id=started.instance_id,
            hub_epoch=hub.epoch,
            on_reply=self._hear,
            on_lost=inbox.fail,
        )
        self._again = Resubmission()
        self._execution: Execution
        self._releaser: Releaser
        self._locals: LocalActivities

    def begin(self, execution: Execution, orchestration: Orchestration) -> None:
        """The execution is about to be replayed."""
        self._execution = execution
        self._releaser = Releaser(self._started, execution, orchestration)
        self._locals = LocalActivities(orchestration, self._started, self._hub)

    def recall(self, history: Iterable[Event]) -> None:
        """Learn how often earlier owners submitted what."""
        self._releaser.recall(history)

    async def attach(self, report: Callable[[str], Awaitable[None]]) -> Attachment:
        """What the dispatcher holds of the run; asked until it answers, and each trouble reported.

        FencedError once another cluster has taken the hub over: here is no dispatcher any more, and nobody else who
        would end this owner.
        """
        while True:
            try:
                return await self._link.attach()
            except DispatcherLostError as error:
                await self._hub.require_held()
                await report(f"the dispatcher cannot be reached: {error}")
                await asyncio.sleep(_RETRY_S)

    def follow(self, before: Activities) -> Attachment:
        """What it holds of a run that nobody has owned yet, which is nothing; `before` is the execution before."""
        return self._link.follow(before._link)

    def resubmit(self, attachment: Attachment, *, released_next: Iterable[int]) -> tuple[tuple[int, int], ...]:
        """The (number, submission) pairs of what is outstanding and unknown to the dispatcher: `open` starts it."""
        self._again = self._releaser.resubmit(attachment, released_next=released_next)
        return self._again.attempts

    def open(self, epoch: int) -> None:
        """The claim is durable: speak for its epoch, and start what it submits again."""
        again, self._again = self._again, Resubmission()
        self._link.open(epoch)
        self._locals.add(again.local_tasks)
        self._link.submit(again.tasks, again.maps)

    def settle(self, outcome_ids: Iterable[int]) -> None:
        """The log holds these outcomes."""
        self._link.settle(outcome_ids)

    def release(self, records: Sequence[Event]) -> None:
        """These are durable: start and drop what they schedule and cancel."""
        released = self._releaser.release(records)
        self._locals.add(released.local_tasks)
        self._link.submit(released.tasks, released.maps)
        self._link.cancel(released.canceled)
        self._locals.drop(released.canceled)

    def flush(self) -> None:
        """Send what is new, and wait for outcomes if there are any to come."""
        self._link.flush(is_waiting=bool(self._execution.outstanding_tasks or self._execution.outstanding_maps))

    async def run_local(self) -> None:
        """Run local activities for a moment, if any wait; their outcomes are inputs."""
        if self._locals.is_waiting:
            # Work that never waits is not to keep control calls from their turn.
            await asyncio.sleep(0)
            self._inbox.put(Arrival(events=await self._locals.run_some()))

    async def leave(self, epoch: int) -> None:
        """The execution has ended: the dispatcher forgets its run."""
        self._link.open(epoch)
        await self._link.leave()

    def close(self) -> None:
        """Send nothing more and hear nothing more."""
        self._link.close()

    def _hear(self, reply: ExchangeReply) -> None:
        for outcome_id, outcomes in reply.outcomes.items():
            events = [outcome_event(outcome) for outcome in outcomes if not self._releaser.is_past(outcome)]
            self._inbox.put(Arrival(events=events, settles=(outcome_id,)))
        if not reply.outcomes:
            # Nothing to record, but the next turn parks an exchange again.
            self._inbox.put(Arrival(events=[]))
        self.problem = reply.problem
