"""Protocol mistakes, one at a time: what a simulation that finds nothing in the real code must find here.

Each is a small patch of real classes, in force inside `with mutant.applied():`. `cases` are those in which it can show.

Two mistakes take more seeds to find than a test has, and have tests of their own instead: a dispatcher that believes
whoever was attached to the one before it (`tests/runtime/test_dispatcher.py`), and an owner that claims a log behind a
newer hub epoch (`tests/runtime/test_stale.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

from ray_durable.engine import Event, ExecutionCompleted, TaskCompleted, TaskFailed, TaskScheduled, TimerFired
from ray_durable.engine.execution import _HANDLERS, Execution
from ray_durable.engine.external_events import ExternalEvents
from ray_durable.errors import InstanceNotFoundError, StoreUnavailableError, TooManyEventsError
from ray_durable.runtime import index_repair, lifecycle, succession
from ray_durable.runtime.activities import Activities
from ray_durable.runtime.alarm import Alarm
from ray_durable.runtime.dispatcher import Dispatcher, _Session
from ray_durable.runtime.hub import OpenHub
from ray_durable.runtime.inbox import Arrival
from ray_durable.runtime.index_repair import RepairReport
from ray_durable.runtime.instance import Instance
from ray_durable.runtime.lease import HOLDER_PACING, LeaseKeeper
from ray_durable.runtime.mail import Mail
from ray_durable.runtime.messages import Attachment, Exchange, ExchangeReply
from ray_durable.runtime.outbox import Outbox
from ray_durable.runtime.release import Releaser
from ray_durable.runtime.tenure import TenureWatch
from ray_durable.storage import ClaimLostError, ObjectStore, Pacing, RunLog, list_ended, log, record_ended, remove_open
from ray_durable.storage.pacing import put_settled
from ray_durable.storage.segment import encode_segment

__all__ = ["MUTANTS", "Mutant"]


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """A mistake. `applied` makes it. `is_of_takeovers`: it shows in takeovers of the cases, and hardly in seeds."""

    name: str
    cases: tuple[str, ...]
    is_of_takeovers: bool
    applied: Callable[[], contextlib.AbstractContextManager[object]]


MUTANTS: dict[str, Mutant] = {}


def _mutant(
    *cases: str, is_of_takeovers: bool = False
) -> Callable[[Callable[[], Iterator[None]]], Callable[[], Iterator[None]]]:
    def register(apply: Callable[[], Iterator[None]]) -> Callable[[], Iterator[None]]:
        name = apply.__name__
        MUTANTS[name] = Mutant(name=name, cases=cases, is_of_takeovers=is_of_takeovers, applied=contextmanager(apply))
        return apply

    return register


# The log


@_mutant("collects", "loops", "suspends")
def trusts_any_412() -> Iterator[None]:
    """An object that exists is taken for one's own."""

    async def put(store: ObjectStore, key: str, data: bytes, pacing: Pacing) -> bytes | None:
        await pacing.persist(lambda: store.put_if_absent(key, data))
        return None

    with patch.object(log, "put_settled", put):
        yield


@_mutant("collects", "loops", "gates")
def takes_silence_for_success() -> Iterator[None]:
    """A write without an answer is taken for done."""

    async def put(store: ObjectStore, key: str, data: bytes, pacing: Pacing) -> bytes | None:
        with contextlib.suppress(StoreUnavailableError):
            if await store._store.put_if_absent(key, data):  # type: ignore[attr-defined]
                return None
            return await put_settled(store, key, data, pacing)
        return None

    with patch.object(log, "put_settled", put):
        yield


@_mutant("loops", "collects")
def overwrites_segments() -> Iterator[None]:
    """Segments are put, whether there is one or not: no fence."""

    async def put(store: ObjectStore, key: str, data: bytes, pacing: Pacing) -> bytes | None:
        await store.put(key, data)
        return None

    with patch.object(log, "put_settled", put):
        yield


@_mutant("chain", "loops")
def claims_without_raising_the_epoch() -> Iterator[None]:
    """A new owner writes in the epoch of the last one."""

    async def claim(self: RunLog, lines: Any, sections: Any, *, first: int, status: Any, hub_epoch: int) -> Any:
        return await self._append(lines, sections, first, status, hub_epoch, epoch=max(1, self.epoch))

    with patch.object(RunLog, "claim", claim):
        yield


@_mutant("chain", "loops", "collects")
def claims_without_reading_again() -> Iterator[None]:
    """Beaten to its slot, a new owner takes the next one, whatever it was that came before."""

    async def claim(self: RunLog, lines: Any, sections: Any, **rest: Any) -> Any:
        while True:
            try:
                return await self._append(
                    lines, sections, rest["first"], rest["status"], rest["hub_epoch"], epoch=self.epoch + 1
                )
            except ClaimLostError:
                before = self.segments[-1].header
                data = await self._get(self.next_seq)
                assert data is not None
                self._take(self.next_seq, data)
                header = replace(self.segments[-1].header, first=before.first, count=before.count)
                self.segments[-1] = replace(self.segments[-1], header=header)

    with patch.object(RunLog, "claim", claim):
        yield


@_mutant("loops", "goes_round", "collects")
def removes_segments_behind_a_claim() -> Iterator[None]:
    """What was read and claimed is compacted away while the run lives."""
    real = RunLog.claim

    async def claim(self: RunLog, *args: Any, **rest: Any) -> Any:
        seq = self.next_seq - 1
        claimed = await real(self, *args, **rest)
        if seq:
            await self._store.delete_many([self._keys.segment(self.run, seq)])
        return claimed

    with patch.object(RunLog, "claim", claim):
        yield


@_mutant("chain", "collects")
def names_the_wrong_predecessor() -> Iterator[None]:
    """Each segment names segment 0 as the one before it, and readers do not mind."""

    def encode(key: str, header: Any, lines: Any, sections: Any, *rest: Any, **more: Any) -> Any:
        if header.seq > 1:
            header = replace(header, previous="0" * 64)
        return encode_segment(key, header, lines, sections, *rest, **more)

    with patch.object(log, "encode_segment", encode), patch.object(RunLog, "_misfit", lambda self, header: None):
        yield


# A turn


@_mutant("collects", "gates", "two_doors", "accumulates", "suspends")
def acknowledges_before_the_write() -> Iterator[None]:
    real = Instance._append

    async def append(self: Instance, *args: Any, **rest: Any) -> Any:
        for arrival in self._inbox._taken:
            arrival.accept()
        return await real(self, *args, **rest)

    with patch.object(Instance, "_append", append):
        yield


@_mutant("chain", "generator_chain", "loops")
def submits_before_the_write() -> Iterator[None]:
    real = Instance._append

    async def append(self: Instance, records: Sequence[Event], **rest: Any) -> Any:
        if not rest.get("is_claim"):
            self._activities.release(records)
            self._activities.flush()
        return await real(self, records, **rest)

    with patch.object(Instance, "_append", append):
        yield


@_mutant("chain", "fan", "loops", "side_by_side")
def settles_before_the_write() -> Iterator[None]:
    """The dispatcher forgets outcomes that no log holds yet."""
    real = Instance._append

    async def append(self: Instance, records: Sequence[Event], **rest: Any) -> Any:
        for arrival in self._inbox._taken:
            self._activities.settle(arrival.settles)
        self._activities._link.flush(is_waiting=True)
        # It is on its way before the write is.
        await asyncio.sleep(0)
        return await real(self, records, **rest)

    with patch.object(Instance, "_append", append):
        yield


@_mutant("chain", "fan", "loops", "side_by_side")
def records_a_second_outcome() -> Iterator[None]:
    """Outcomes that come again are recorded again."""

    def taken_always(kind: type[Any]) -> tuple[Any, Any]:
        is_news, take = _HANDLERS[kind]

        def take_if_news(execution: Execution, event: Any) -> None:
            if is_news(execution, event):
                take(execution, event)

        return lambda execution, event: True, take_if_news

    with patch.dict(_HANDLERS, {kind: taken_always(kind) for kind in (TaskCompleted, TaskFailed)}):
        yield


# Activities


@_mutant("chain", "fan", "mapped", "loops")
def does_not_count_resubmissions() -> Iterator[None]:
    real = Releaser.resubmit

    def resubmit(self: Releaser, attachment: Attachment, *, released_next: Any) -> Any:
        again = real(self, attachment, released_next=released_next)
        again.attempts = ()
        return again

    with patch.object(Releaser, "resubmit", resubmit):
        yield


@_mutant("chain", "loops", "generator_chain")
def submits_what_has_an_outcome() -> Iterator[None]:
    """A new owner submits all that its log schedules."""
    real = Releaser.recall

    def recall(self: Releaser, history: Any) -> None:
        real(self, history)
        self.everything = [event for event in history if isinstance(event, TaskScheduled)]  # type: ignore[attr-defined]

    real_open = Activities.open

    def open_(self: Activities, epoch: int) -> None:
        real_open(self, epoch)
        targets = {task.name: task.target for task in self._execution.outstanding_tasks.values()}
        for event in self._releaser.everything:  # type: ignore[attr-defined]
            if event.number not in self._execution.outstanding_tasks and event.name in targets:
                again = replace(event, target=targets[event.name])
                self._link.submit([self._releaser._task_request(again)])

    with patch.object(Releaser, "recall", recall), patch.object(Activities, "open", open_):
        yield


@_mutant("chain", "loops", "fan", "statuses")
def dispatcher_takes_any_epoch() -> Iterator[None]:
    """An owner that was replaced still gets outcomes, and has its say."""
    real = Dispatcher.exchange

    async def exchange(self: Dispatcher, request: Exchange) -> ExchangeReply:
        session = self._sessions.get(request.run)
        if session is not None:
            session.epoch = min(session.epoch, request.epoch)
        return await real(self, request)

    with patch.object(Dispatcher, "exchange", exchange):
        yield


@_mutant("chain", "loops", "fan", "statuses")
def dispatcher_forgets_what_it_delivered() -> Iterator[None]:
    """An outcome is gone once it was sent, and whether it arrived is nobody's business."""
    real = Dispatcher._park

    async def park(self: Dispatcher, session: _Session) -> ExchangeReply:
        reply = await real(self, session)
        for outcome_id in reply.outcomes:
            session.unsettled.pop(outcome_id, None)
        return reply

    with patch.object(Dispatcher, "_park", park):
        yield


# Messages and events


@_mutant("caller", "named_parent", "talks_to_child", "two_instances")
def outbox_forgets_on_a_crash() -> Iterator[None]:
    """A new owner does not bring what the last one owed."""
    with patch.object(Mail, "open", lambda self: None):
        yield


@_mutant("caller", "named_parent", "two_instances", "clan")
def leaves_with_a_full_outbox() -> Iterator[None]:
    """An instance leaves the open set before its messages have arrived."""

    async def wait(self: Mail, timeout_s: float) -> bool:
        return True

    with patch.object(Mail, "wait_delivered", wait):
        yield


@_mutant("caller", "clan", "two_instances")
def gives_messages_up() -> Iterator[None]:
    """A message that was not answered is not sent again."""

    async def bring(self: Outbox, lane: Any, message: Any, *, gives_way: bool = False) -> bool:
        await self._try(lane, message)
        return True

    with patch.object(Outbox, "_bring", bring):
        yield


@_mutant("two_instances")
def takes_a_refusal_for_an_arrival() -> Iterator[None]:
    """A message that the receiver has no room for is not sent again."""
    real = Outbox._try

    async def try_(self: Outbox, lane: Any, message: Any) -> Any:
        outcome = await real(self, lane, message)
        return type(outcome).ARRIVED if outcome.name == "NO_ROOM" else outcome

    with patch.object(Outbox, "_try", try_):
        yield


@_mutant("collects", "accumulates", "two_instances", "gathers_items")
def accepts_what_it_refuses() -> Iterator[None]:
    """Whoever raises an event that there is no room for is told that it was recorded."""
    real = Arrival.refuse

    def refuse(self: Arrival, error: Exception) -> None:
        if isinstance(error, TooManyEventsError):
            self.accept()
        real(self, error)

    with patch.object(Arrival, "refuse", refuse):
        yield


@_mutant("collects", "accumulates", "two_instances", "gathers_items")
def takes_events_twice() -> Iterator[None]:
    """External events are not known again by their ids."""
    with patch.object(ExternalEvents, "is_known", lambda self, id: False):
        yield


@_mutant("accumulates_at_once")
def drops_unread_events() -> Iterator[None]:
    """Continue-as-new does not hand on the events that nobody took."""
    real = succession.continued

    def continued(started: Any, link: Any, carried: Any, recent: Any, *, owes: bool) -> Any:
        return real(started, link, (), recent, owes=owes)

    with patch("ray_durable.runtime.instance.continued", continued), patch.object(succession, "continued", continued):
        yield


@_mutant("accumulates", "gathers_items")
def forgets_event_ids() -> Iterator[None]:
    """The next execution does not know which events were raised before it."""
    real = succession.continued

    def continued(started: Any, link: Any, carried: Any, recent: Any, *, owes: bool) -> Any:
        return real(started, link, carried, (), owes=owes)

    with patch("ray_durable.runtime.instance.continued", continued), patch.object(succession, "continued", continued):
        yield


# Timers


@_mutant("timers_in_order", "retried", "loops")
def fires_timers_early() -> Iterator[None]:
    """By a clock that is half a second fast, and believed."""

    def look(self: Alarm) -> None:
        self._handle = None
        if self._due_us is not None and self._clock.now_us() >= self._due_us - 500_000:
            self._due_us = None
            self._ring()
        else:
            self._arm()

    def fire(self: Instance) -> None:
        due = self._execution.due_timers(self._clock.now_us() + 500_000)
        self._inbox.put(Arrival(events=[TimerFired(timer=timer) for timer in due]))

    def arm(self: Alarm) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        if self._due_us is not None:
            wait_s = max(0.0, (self._due_us - 500_000 - self._clock.now_us()) / 1_000_000)
            self._handle = asyncio.get_running_loop().call_later(min(wait_s, 600.0), self._look)

    def is_due(self: Execution, event: Any) -> bool:
        return event.timer in self._timers.due_us

    handlers = {TimerFired: (is_due, _HANDLERS[TimerFired][1])}
    with (
        patch.object(Alarm, "_look", look),
        patch.object(Alarm, "_arm", arm),
        patch.object(Instance, "_fire", fire),
        patch.dict(_HANDLERS, handlers),
    ):
        yield


# Index, executions, hub


@_mutant("chain", "fan", "collects")
def starts_before_the_open_entry() -> Iterator[None]:
    """Segment 0 first, then the entry of the open set."""
    real, owed = lifecycle._create, []

    async def enter(self: OpenHub, entry: Any) -> None:
        owed.append(entry)

    real_enter = OpenHub.enter

    async def create(hub: OpenHub, events: Any, *, created_us: int) -> bool:
        done = await real(hub, events, created_us=created_us)
        while owed:
            await real_enter(hub, owed.pop())
        return done

    with patch.object(OpenHub, "enter", enter), patch.object(lifecycle, "_create", create):
        yield


@_mutant("restarts", "reuses", "rewinds_calls", "purges_and_reuses")
def takes_the_entry_of_the_next_away() -> Iterator[None]:
    """Whoever leaves the open set does not look whether another execution has begun."""

    async def record_end(self: OpenHub, of: RunLog, own: Any, previous: Any) -> bool:
        await record_ended(self.store, self.keys, of.tail.header.status)
        await remove_open(self.store, self.keys, of.instance_id)
        return True

    with patch.object(OpenHub, "record_end", record_end):
        yield


@_mutant("restarts", "reuses")
def trusts_the_index_over_the_log() -> Iterator[None]:
    """An instance with a summary under `index/ended` has ended, and its owner looks no further."""
    real = Instance._load

    async def load(self: Instance) -> None:
        page = await list_ended(self._hub.store, self._hub.keys, prefix=self.instance_id)
        if any(summary["instance"] == self.instance_id for summary in page.summaries):
            await remove_open(self._hub.store, self._hub.keys, self.instance_id)
            raise InstanceNotFoundError("it has ended", instance_id=self.instance_id)
        await real(self)

    with patch.object(Instance, "_load", load):
        yield


@_mutant("restarts_twice_at_once", "restarts")
def begins_anew_without_the_link() -> Iterator[None]:
    """Racing restarts do not contend for the slot behind the end."""

    async def claim(self: RunLog, lines: Any, sections: Any, **rest: Any) -> Any:
        if b'"ExecutionRestarted"' in lines[0]:
            return None
        return await self._append(
            lines, sections, rest["first"], rest["status"], rest["hub_epoch"], epoch=self.epoch + 1
        )

    with patch.object(RunLog, "claim", claim):
        yield


@_mutant("loops", "gates", "retried")
def supervisor_does_not_stand_down() -> Iterator[None]:
    """It goes on renewing the lease of a hub that was taken over."""

    async def held(self: OpenHub) -> None:
        return None

    with patch.object(OpenHub, "require_held", held):
        yield


@_mutant("queues", is_of_takeovers=True)
def dispatcher_does_not_look_who_holds_the_hub() -> Iterator[None]:
    """It goes on with what it has while its supervisor stands still, and when it stood still itself."""

    async def keep(self: TenureWatch, hub: OpenHub) -> None:
        self._seen_s = math.inf
        self._on_certain()
        await asyncio.get_running_loop().create_future()

    with patch.object(TenureWatch, "keep", keep):
        yield


@_mutant("queues", is_of_takeovers=True)
def dispatcher_trusts_its_last_look() -> Iterator[None]:
    """However long ago that was: it may have stood still since."""
    with patch.object(TenureWatch, "is_certain", property(lambda self: self._seen_s is not None)):
        yield


@_mutant("chain", is_of_takeovers=True)
def owner_of_a_lost_hub_claims() -> Iterator[None]:
    """As long as nobody of the newer cluster has."""

    real = OpenHub.require_held

    async def held(self: OpenHub) -> None:
        if self.store.pacing is HOLDER_PACING:  # supervisor and dispatcher look
            await real(self)

    with patch.object(OpenHub, "require_held", held):
        yield


@_mutant("gates", "collects", "approval")
def trusts_stale_hints() -> Iterator[None]:
    """What an owner left when the instance was idle counts for ever, whatever the log says since."""

    async def holds(self: LeaseKeeper, rest: Any) -> bool:
        return True

    with patch.object(LeaseKeeper, "holds", holds):
        yield


@_mutant("restarts", "loops", "goes_round")
def repairs_nothing() -> Iterator[None]:
    """Nobody holds the index against the logs."""

    async def run(self: Any, entries: Any) -> RepairReport:
        return RepairReport(instances=0, mended=(), unreadable=())

    with patch.object(index_repair._Repair, "run", run):
        yield


@_mutant("restarts", "reuses", "loops")
def repairs_the_open_set_alone() -> Iterator[None]:
    """Whoever looks after the index takes any summary for the right one."""

    async def mend(self: Any, instance_id: str, tail: Any, summaries: Any) -> bool:
        return False

    with patch.object(index_repair._Repair, "_remove_false", mend):
        yield


@_mutant("children_with_trouble", "chain", "rewinds_calls")
def ends_without_telling_the_log() -> Iterator[None]:
    """The summary and the open set are settled before the end is durable."""
    real = Instance._append

    async def append(self: Instance, records: Sequence[Event], **rest: Any) -> Any:
        if isinstance(records[-1], ExecutionCompleted):
            await remove_open(self._hub.store, self._hub.keys, self.instance_id)
        return await real(self, records, **rest)

    with patch.object(Instance, "_append", append):
        yield
