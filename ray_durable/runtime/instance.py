"""An orchestration instance: loads its log, claims it, and runs turns until it ends.

A turn: take all inputs that have arrived; let the engine apply them; append ONE segment with the inputs and everything
they caused; then, durable, acknowledge the callers and release the commands (submit activities, arm timers). Inputs
that arrive meanwhile form the next turn.

Invariants: nothing leaves the instance before the segment that holds it is durable; one append at a time; an execution
whose append failed for good is discarded, never fed again. All of it runs on one event loop, which no control call
waits for: the host answers those on another. A plain class over ports; it knows no Ray.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence

from ray_durable import registry
from ray_durable.context import Orchestration
from ray_durable.engine import (
    ContinueAsNew,
    Event,
    EventRaised,
    Execution,
    ExecutionCompleted,
    ExecutionStarted,
    OwnerClaimed,
    RuntimeStatus,
    TimerFired,
)
from ray_durable.errors import (
    DurableError,
    FencedError,
    InstanceNotFoundError,
    NonDeterminismError,
    PayloadTooLargeError,
    StoreUnavailableError,
)
from ray_durable.failure import Failure
from ray_durable.runtime.activities import Activities
from ray_durable.runtime.alarm import Alarm
from ray_durable.runtime.controls import Controls
from ray_durable.runtime.correspondence import Message, ReportEnd
from ray_durable.runtime.delivery import received
from ray_durable.runtime.explanation import Explanation, explain_execution, explain_stored, waiting_fields
from ray_durable.runtime.hub import OpenHub
from ray_durable.runtime.idleness import Idleness, is_waiting
from ray_durable.runtime.inbox import Arrival, Inbox, identity_of
from ray_durable.runtime.interpreter import PYTHON, with_python
from ray_durable.runtime.lifecycle import create_linked, create_successor, open_entry, started_of
from ray_durable.runtime.mail import Mail
from ray_durable.runtime.messages import CallState
from ray_durable.runtime.past import PastExecutions
from ray_durable.runtime.ports import Clock, DispatcherLostError, DispatcherPort, InstanceDirectory
from ray_durable.runtime.problems import Problems
from ray_durable.runtime.records import encode_events
from ray_durable.runtime.room import Room, RoomMax
from ray_durable.runtime.status import InstanceStatus, Owner, summarize
from ray_durable.runtime.succession import continued, link_of
from ray_durable.storage import ClaimLostError, RunLog, WakeHint

__all__ = ["Instance"]

logger = logging.getLogger(__name__)

_PAUSE_S_MAX = 3.0
"""Longer between an append and its release, and the owner first looks whether the log is still its own."""

_PROBLEM_RETRY_S = 5.0
_LEAVING_LOOK_S = 10.0


class Instance(Controls):
    """See the module. One object serves one id, through all of its executions."""

    def __init__(
        self,
        instance_id: str,
        *,
        hub: OpenHub,
        dispatcher: DispatcherPort,
        instances: InstanceDirectory,
        clock: Clock,
        host: str,
        pid: int,
        idle_s: float | None = None,
        room_max: RoomMax | None = None,
    ) -> None:
        super().__init__(instance_id)
        self.ended = asyncio.Event()
        self.left: WakeHint | None = None
        """What its owner left in the open set when it let the idle instance go."""
        self._hub = hub
        self._dispatcher = dispatcher
        self._instances = instances
        self._clock = clock
        self._host = host
        self._pid = pid
        self._room_max = room_max or RoomMax()
        self._problems = Problems(hub, instance_id)
        self._alarm = Alarm(clock, self._fire)
        self._idleness = Idleness(clock, idle_s, lambda: self._inbox.nudge())
        self._past = PastExecutions(
            hub, instance_id, clock, lambda: not hasattr(self, "_mail") or self._mail.owes_older
        )
        # The number of the execution to load; None: the newest, whichever that is.
        self._execution_number: int | None = None
        # Those of the execution before, when this owner made the present one.
        self._before: Activities | None = None
        self._is_over = False
        # Run and epoch of the last claim.
        self._claimed: tuple[str, int] | None = None
        # Made by `_load`; but for the mail, of the present execution.
        self._mail: Mail
        self._log: RunLog
        self._started: ExecutionStarted
        self._orchestration: Orchestration
        self._execution: Execution
        self._room: Room
        self._activities: Activities
        self._warnings: tuple[str, ...] = ()

    @property
    def problem(self) -> str | None:
        """What keeps it from going on, if anything does."""
        return self._problems.problem or self._hub.store.problem

    @property
    def store_problem(self) -> str | None:
        """The problem, if it is the store's."""
        return self._hub.store.problem or (self._problems.problem if self._problems.is_of_store else None)

    async def run(self) -> None:
        """Own the instance until it ends, through all of its executions, or until it has been idle for long (`left`).

        Raises:
            FencedError: a newer owner has the log, or another cluster the hub; nothing more may be done here.
            InstanceNotFoundError: there is no such instance.
        """
        try:
            while not self.ended.is_set() and self.left is None:
                # Code that never waits is not to keep control calls from their turn.
                await asyncio.sleep(0)
                await self._load_when_possible()
                await self._serve_while_possible()
        except BaseException as error:
            self._abandon(error)
            raise
        finally:
            self._idleness.stop()

    async def explain(self) -> Explanation:
        """What it waits for, and which worker is at it."""
        if self._is_over or not hasattr(self, "_mail") or not self._is_loaded():
            if self.store_problem is not None:
                # Whoever asks is not to wait as long.
                text = f"Instance {self.instance_id!r} is not loaded yet: {self.store_problem}"
                raise StoreUnavailableError(text, url=self._hub.store.url)
            return await explain_stored(self._hub, self.instance_id)
        try:
            calls = await self._dispatcher.explain(self._started.run)
        except DispatcherLostError:
            calls = []
        return self._explain(calls)

    def _explain(self, calls: Sequence[CallState]) -> Explanation:
        status = InstanceStatus.from_summary(self._summary(self._log.epoch), problem=self.problem)
        return explain_execution(status, self._execution, self._mail.child_id, calls, self._clock.now_us())

    def _is_loaded(self) -> bool:
        return hasattr(self, "_execution") and self._execution.started is not None

    async def _load_when_possible(self) -> None:
        """Load and claim; what an operator can mend (code that cannot be imported, a damaged object) is waited for.

        So is what nobody expected: an instance that ends by a fault of ours would be lost, and one that tries again at
        once a burden.
        """
        while True:
            try:
                await self._load()
                await self._problems.report(None)
                return
            except ClaimLostError:
                continue  # somebody else took the slot: read on, and claim after it
            except (FencedError, InstanceNotFoundError):
                raise
            except (Exception, SystemExit) as error:
                # SystemExit: loading runs the user's module.
                self._discard()
                await self._problems.report_error(error)
                if await self._wanted_ends.record_unloaded(self._hub, self.instance_id, self._clock.now_us()):
                    self._claimed = None
                else:
                    await asyncio.sleep(_PROBLEM_RETRY_S)

    async def _serve_while_possible(self) -> None:
        """Serve to the end, or to trouble: then the log has to be loaded anew."""
        try:
            await self._serve()
        except (FencedError, InstanceNotFoundError):
            raise
        except Exception as error:
            text = f"{type(error).__name__}: {error}"
            self._inbox.refuse_taken(lambda: StoreUnavailableError(f"Outcome unknown: {text}", url=self._hub.store.url))
            self._discard()
            await self._problems.report_error(error)
            await asyncio.sleep(_PROBLEM_RETRY_S)

    async def _load(self) -> None:
        """Read the log, replay it, claim it, and release what an earlier owner could not."""
        hub, self._is_over = self._hub, False
        if self._inbox.is_closed:
            # An end that another execution follows.
            self._inbox = Inbox()
        history = await self._read()
        started = self._started
        self._activities = Activities(self._dispatcher, started, hub, self._inbox)
        await self._mail.begin(started, history)
        last = history[-1]
        if isinstance(last, ExecutionCompleted):
            # Its owner may have died before it told the dispatcher, and whoever waits for the end.
            await self._activities.leave(self._log.epoch)
            self._mail.open()
            await self._finish(last.status)
            return
        if started.previous is not None and self._before is None:
            await hub.keep_open(open_entry(started, started.time_us))
        await hub.load_blobs(started.run, history)
        started = self._started = started_of(history)
        orchestration = await hub.load_orchestration(started)
        changed = registry.changed_source(orchestration.reference)
        self._warnings = () if changed is None else (changed,)
        self._execution = Execution(orchestration.main)
        self._room = Room(self._execution, self._room_max)
        self._orchestration = orchestration
        self._activities.begin(self._execution, orchestration)
        try:
            caused = self._execution.apply(history)
            if started.carried and self._log.next_seq == 1:
                # Nobody has run this execution before.
                caused += self._execution.apply(started.carried)
            self._activities.recall(history)
            await self._claim(caused)
        except NonDeterminismError as error:
            await self._end_failed(last.number + 1, with_python(error, history), is_claim=True)
        except PayloadTooLargeError as error:
            await self._end_failed(last.number + 1, error, is_claim=True)

    async def _read(self) -> list[Event]:
        """The history of the newest execution; the next one is made where there is only the link to it."""
        number, self._execution_number = self._execution_number, None
        self._log, history = await self._hub.read_log(self.instance_id, number)
        while (link := link_of(history)) is not None:
            # None: the newest, since somebody else has made another.
            number = await create_successor(self._hub, self._log, history, link)
            self._log, history = await self._hub.read_log(self.instance_id, number)
        await self._require_unclaimed()
        self._started = started_of(history)
        if not hasattr(self, "_mail"):
            self._mail = Mail(self._hub, self._instances, self._clock, self._answer, lambda: self._inbox.nudge())
            await self._past.look(self._started.execution)
        return history

    async def _require_unclaimed(self) -> None:
        """FencedError if somebody claimed the log after this owner did: two that claim in turn would never rest.

        Also if another cluster has the hub by now, or wrote to the log. An owner of the newer cluster that only waits
        would not learn that this one had claimed the log behind it, and wait for ever for what was told to this one.
        """
        if self._before is None:  # else it owns the execution before
            await self._hub.require_held()
        newest = max(segment.header.hub_epoch for segment in self._log.segments)
        if newest > self._hub.epoch:
            raise FencedError(
                f"Hub epoch {newest} has the log of instance {self.instance_id!r}, and this is {self._hub.epoch}",
                key=self._log.tail.key,
            )
        if self._claimed is None:
            return
        run, epoch = self._claimed
        if self._log.epoch > (epoch if self._log.run == run else 0):
            raise FencedError(f"A newer owner has the log of instance {self.instance_id!r}", key=self._log.tail.key)

    def _answer(self, report: ReportEnd) -> None:
        self._inbox.put(Arrival(events=[], message=report))

    async def _claim(self, caused: Sequence[Event]) -> None:
        """Append OwnerClaimed with the attempts that are submitted again, after what replay added; then release it."""
        before, self._before = self._before, None
        activities = self._activities
        attachment = await activities.attach(self._problems.report) if before is None else activities.follow(before)
        attempts = activities.resubmit(attachment, released_next={event.number for event in caused})
        claimed = OwnerClaimed(
            time_us=self._clock.now_us(),
            epoch=self._log.epoch + 1,
            hub_epoch=self._hub.epoch,
            host=self._host,
            pid=self._pid,
            attempts=attempts,
            python=PYTHON,
        )
        records = list(caused)
        if not self._execution.ended:
            # An orchestrator that ended before its first await needs no owner: its end stays the last event.
            records += self._execution.apply([claimed])
        records = await self._append(records, epoch=self._log.epoch + 1, is_claim=True)
        activities.open(self._log.epoch)
        self._mail.open()
        await self._release(records)

    async def _serve(self) -> None:
        """Turn after turn, until the end of the execution, or until nothing is to be expected."""
        self._idleness.note()
        while not self._is_over:
            await self._activities.run_local()
            try:
                arrivals = await self._inbox.take()
            except DispatcherLostError as error:
                await self._reattach(error)
                continue
            if arrivals:
                self._idleness.note()
                await self._turn(arrivals)
            elif await self._leave_idle():
                return
            if self._is_over:
                # Its entry in the open set is gone, or about to be another execution's.
                self._problems.problem = None
            else:
                await self._problems.report(self._activities.problem or self._mail.problem)

    async def _turn(self, arrivals: Sequence[Arrival]) -> None:
        for arrival in arrivals:
            if arrival.message is not None:
                await self._receive(arrival, arrival.message)
        now_us, is_note_due = self._clock.now_us(), True
        records: list[Event] = []
        for portion in self._room.portions(arrivals):
            if portion and is_note_due:
                portion += self._mail.note()
                is_note_due = False
            inputs = [await self._hub.load_input(self._started.run, event.stamped(0, now_us)) for event in portion]
            records += self._execution.apply(inputs)
        if records:
            try:
                records = await self._append(records)
            except PayloadTooLargeError as error:
                # Nothing was written; the execution is ahead of its log and cannot go on.
                await self._end_failed(records[0].number, error)
                return
        await self._acknowledge(arrivals, records)
        await self._release(records)

    async def _receive(self, arrival: Arrival, message: Message) -> None:
        """Make the message the input that it is to this execution, with its payload where this run can have it."""
        arrival.events = []
        try:
            event = received(message, self._started)
            if isinstance(message, ReportEnd) and event is not None and await self._mail.is_of_the_past(message):
                event = None
            if isinstance(event, EventRaised) and (refusal := self._room.refusal(event)) is not None:
                # Before its value is read, however often it is brought.
                arrival.refusal = refusal
                return
            if event is not None:
                arrival.events = [self._hub.detached(await self._hub.load_input(message.run, event))]
        except DurableError as error:
            if arrival.done is None:
                raise
            # A message that cannot be read is its sender's trouble, and not to keep this instance from going on.
            arrival.refuse(error)

    async def _append(
        self, records: Sequence[Event], *, epoch: int | None = None, is_claim: bool = False
    ) -> list[Event]:
        """Make `records` durable; returns them with large payloads replaced by references to their blobs."""
        hub, run = self._hub, self._started.run
        began_s = self._clock.monotonic_s()
        stored = await hub.store_payloads(run, records)
        lines, sections = encode_events(stored)
        status = self._summary(epoch or self._log.epoch)
        write = self._log.claim if is_claim else self._log.append
        await write(lines, sections, first=records[0].number, status=status, hub_epoch=hub.epoch)
        self._claimed = run, self._log.epoch
        if self._clock.monotonic_s() - began_s > _PAUSE_S_MAX:
            await self._log.verify_ownership()
        return stored

    def _summary(self, epoch: int) -> dict[str, object]:
        execution, started = self._execution, self._started
        custom = execution.custom_status
        is_continued = execution.status is RuntimeStatus.CONTINUED_AS_NEW
        return summarize(
            instance_id=self.instance_id,
            name=started.name,
            execution=started.execution,
            request_id=started.request_id,
            # A fork is younger than the start that it copied.
            created_us=self._log.tail.header.status["created_us"],
            updated_us=execution.now_us,
            due_us=started.due_us,
            # The instance goes on.
            runtime_status=RuntimeStatus.RUNNING if is_continued else execution.status,
            custom_status=custom.bytes if custom is not None else None,
            counts=execution.counts,
            owner=Owner(host=self._host, pid=self._pid, epoch=epoch),
            warnings=self._warnings,
        )

    async def _acknowledge(self, arrivals: Iterable[Arrival], records: Sequence[Event]) -> None:
        """Tell callers. What came after the end is refused; where another execution follows, it waits for that one."""
        recorded = set(map(identity_of, records))
        if not records and any(arrival.done is not None and not arrival.done.done() for arrival in arrivals):
            # "That is so already" may be said only by whoever still owns the log.
            await self._log.verify_ownership()
        too_early: list[Arrival] = []
        for arrival in arrivals:
            self._activities.settle(arrival.settles)
            if arrival.done is None:
                continue
            if arrival.refusal is not None:
                arrival.refuse(arrival.refusal)
                continue
            is_settled = not arrival.events or identity_of(arrival.events[0]) in recorded
            if is_settled or not self._execution.ended:
                arrival.accept()
            elif self._execution.status is RuntimeStatus.CONTINUED_AS_NEW:
                too_early.append(arrival)
            else:
                arrival.refuse(self._ended_error(self._execution.status))
        self._inbox.put_back(too_early)

    async def _release(self, records: Sequence[Event]) -> None:
        """The step is durable: let its log lines and commands go."""
        if self._orchestration.context is not None:
            self._orchestration.context.logger.release()
        self._activities.release(records)
        self._mail.release(records)
        if self._execution.ended:
            await self._activities.leave(self._log.epoch)
            if isinstance(records[-1], ContinueAsNew):
                await self._continue(records[-1])
            else:
                await self._finish(self._execution.status)
            return
        self._alarm.set(self._execution.next_timer_us)
        self._activities.flush()

    async def _reattach(self, error: DispatcherLostError) -> None:
        """The dispatcher was lost: what it does not know any more is submitted again, by a claim that counts it."""
        logger.warning("%s: %s; attaching again", self.instance_id, error)
        await self._require_unclaimed()
        try:
            await self._claim([])
        except ClaimLostError as lost:
            raise FencedError(f"A newer owner has the log of instance {self.instance_id!r}", key=lost.key) from lost
        # A new dispatcher finds out anew.
        self._activities.problem = None
        await self._problems.report(None)

    def _fire(self) -> None:
        due = self._execution.due_timers(self._clock.now_us())
        self._inbox.put(Arrival(events=[TimerFired(timer=timer) for timer in due]))

    async def _end_failed(self, number: int, error: DurableError, *, is_claim: bool = False) -> None:
        """Record that the execution cannot go on, without the engine."""
        epoch = self._log.epoch + 1 if is_claim else self._log.epoch
        now_us = max(self._clock.now_us(), self._execution.now_us)
        end = ExecutionCompleted(
            number=number,
            time_us=now_us,
            status=RuntimeStatus.FAILED,
            failure=Failure.from_exception(error, kind="system", non_retryable=True),
        )
        status = self._summary(epoch) | {"runtime_status": RuntimeStatus.FAILED.value, "updated_us": now_us}
        lines, sections = encode_events([end])
        write = self._log.claim if is_claim else self._log.append
        await write(lines, sections, first=number, status=status, hub_epoch=self._hub.epoch)
        await self._activities.leave(self._log.epoch)
        self._mail.open()
        self._mail.release([end])
        await self._finish(RuntimeStatus.FAILED)

    async def _continue(self, link: ContinueAsNew) -> None:
        """The link is in the log: make the next execution, which is to be loaded."""
        execution, started = self._execution, self._started
        owes = self._mail.owes
        events = continued(started, link, execution.unread_events, execution.recent_event_ids, owes=owes)
        self._alarm.set(None)
        await create_linked(self._hub, started.run, events)
        self._inbox.drop_unasked()
        self._execution_number, self._before = started.execution + 1, self._activities
        await self._past.add(started.execution)
        self._is_over = True

    async def _finish(self, status: RuntimeStatus) -> None:
        """The end is in the log: leave the open set, once all messages have arrived.

        Idempotent, so that whoever finds an ended log repeats it. Somebody may have begun the next execution by then.
        """
        self._alarm.set(None)
        self._inbox.close(lambda: self._ended_error(status))
        is_followed = False
        while not is_followed and not await self._mail.wait_delivered(_LEAVING_LOOK_S):
            # The next execution is not to wait for a receiver of this one's messages; it has them, too.
            is_followed = not await self._log.is_at_end()
        if not is_followed:
            await self._past.hand_over(self._started.execution)
        self._is_over = True
        if not is_followed and await self._record_end():
            self.ended.set()
        else:
            self._discard()

    async def _record_end(self) -> bool:
        started = self._started
        previous = started.execution - 1 if started.execution > 1 else None
        return await self._hub.record_end(self._log, open_entry(started, started.time_us), previous)

    async def _leave_idle(self) -> bool:
        """Leave word of when to wake the instance, and leave it; whether that came to pass.

        Its hint comes last, so that it names the end of the log. What arrives by then keeps the owner; what comes later
        is refused, and asked again of the next one.
        """
        if not self._may_leave():
            return False
        note = self._mail.note()
        if note:
            # Else the next owner brings it all again, and wakes others with it.
            await self._turn([Arrival(events=note)])
        await self._log.verify_ownership()
        await self._past.hand_over(self._started.execution)
        hint = WakeHint(
            due_us=self._execution.next_timer_us,
            execution=self._started.execution,
            tail_seq=self._log.tail.header.seq,
            waiting=waiting_fields(self._explain(())),
        )
        await self._hub.leave_hint(open_entry(self._started, self._started.time_us), hint)
        if not self._may_leave():
            return False
        self._inbox.close(lambda: FencedError(f"Instance {self.instance_id!r} was idle: its owner has left it", key=""))
        self.left = hint
        self._discard()
        return True

    def _may_leave(self) -> bool:
        return (
            self._idleness.is_long
            and self._idleness.is_worth_it(self._execution.next_timer_us)
            and is_waiting(self._execution)
            and self._inbox.is_empty
            and not self._mail.owes
            and self.problem is None
        )

    def _abandon(self, error: BaseException) -> None:
        """Whatever callers wait for has an unknown outcome."""
        self._discard()
        self._past.close()
        self._inbox.close(
            lambda: FencedError(f"The owner of {self.instance_id!r} stood down; outcome unknown: {error}", key="")
        )

    def _discard(self) -> None:
        """Nothing of the present execution goes on here."""
        self._alarm.set(None)
        self._idleness.stop()
        self._before = None
        self._inbox.drop_unasked()
        if hasattr(self, "_mail"):
            self._mail.close()
            del self._mail
        if hasattr(self, "_activities"):
            self._activities.close()
        if hasattr(self, "_execution"):
            self._execution.close()
