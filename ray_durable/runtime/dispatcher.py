"""The dispatcher: owns the running activities of all instances of a hub, so that they outlive the orchestrators.

Ray ends a task when the process that submitted it dies; so instances never submit tasks themselves. They hand calls to
the dispatcher by `exchange`, which parks until there are outcomes. An outcome is kept until the instance says that its
log holds it ("settled"); a rehydrated instance first asks by `attach` what is running, queued or finished here, and
submits only the rest.

A plain class on one event loop, over a `Launcher`: it knows no Ray and writes nothing. What it holds in memory is lost
with it, and then counted as attempts that run again.

Calls that nobody wants any more are withdrawn: their worker interrupts them. Where that cannot be asked for, or does
not help, the worker is ended. So is one whose calls last longer than they may, if it has not seen to that itself.

It starts calls only while its cluster is known to hold the hub. Once another has it, it stands down: what runs is
ended, and whoever asks is refused.

Invariants: a (run, task) is submitted at most once while it is known here; an exchange of a lower epoch or of another
hub epoch changes nothing; at most one exchange of a run is parked.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import uuid
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from ray_durable.engine.ranges import RangeSet
from ray_durable.errors import FencedError
from ray_durable.failure import Failure
from ray_durable.runtime.flights import Flight, Flights, Launcher, RunningSlice
from ray_durable.runtime.lanes import Lane, MapLane, SlicePolicy, TaskLane
from ray_durable.runtime.messages import (
    Attachment,
    CallState,
    Exchange,
    ExchangeReply,
    MapOutcomes,
    MapRequest,
    Outcome,
    SliceReport,
    TaskOutcome,
    TaskRequest,
)
from ray_durable.runtime.tenure import Granted, Tenure

__all__ = ["Dispatcher", "Launcher", "RunningSlice"]

logger = logging.getLogger(__name__)

_PARK_S = 10.0
"""A parked exchange answers after this time even if nothing came, so that a lost caller is noticed."""

_SLICES_IN_FLIGHT_MAX = 2_000

_LEFT_MAX = 10_000
"""So many runs that have ended are remembered, so that an owner that was stopped meanwhile starts nothing of them."""

_BLOCK_S_FIRST = 1.0
_BLOCK_S_MAX = 30.0

_SILENCE_S_MAX = 6 * 3_600.0
"""A run that was not heard of for so long, and may have ended without a word, is forgotten; if it lives, it is told."""


@dataclass(slots=True)
class _Session:
    """What the dispatcher holds of one run."""

    run: str
    instance_id: str
    tenure: Tenure
    epoch: int = 0
    lanes: dict[str, TaskLane] = field(default_factory=dict)
    maps: dict[int, MapLane] = field(default_factory=dict)
    unsettled: dict[int, list[Outcome]] = field(default_factory=dict)
    finished_tasks: set[int] = field(default_factory=set)
    withdrawn: set[int] = field(default_factory=set)
    """Numbers cancelled so far. Calls between actors may overtake each other, a cancellation its own submission."""
    undelivered: deque[int] = field(default_factory=deque)
    parked: asyncio.Future[None] | None = None
    heard_s: float = 0.0
    asked_s: dict[int, float] = field(default_factory=dict)
    """When the tasks and maps that have not ended were last handed over, by number."""
    reported_problem: str | None = None

    @property
    def problem(self) -> str | None:
        """What keeps calls from starting, as long as such calls wait."""
        problems = [lane.problem or self.tenure.problem for lane in self.all_lanes() if lane.is_waiting]
        return next((problem for problem in problems if problem is not None), None)

    def all_lanes(self) -> Iterable[Lane]:
        return itertools.chain(self.lanes.values(), self.maps.values())

    def known_tasks(self) -> frozenset[int]:
        return frozenset(itertools.chain(self.finished_tasks, *(lane.tasks for lane in self.lanes.values())))

    def knows_task(self, request: TaskRequest) -> bool:
        lane = self.lanes.get(request.target.key)
        return request.task in self.finished_tasks or (lane is not None and lane.knows(request.task))

    def keep(self, outcome_id: int, outcomes: list[Outcome]) -> None:
        self.unsettled[outcome_id] = outcomes
        self.undelivered.append(outcome_id)
        for outcome in outcomes:
            if isinstance(outcome, TaskOutcome):
                self.finished_tasks.add(outcome.task)
                self.asked_s.pop(outcome.task, None)

    def settle(self, outcome_id: int) -> None:
        for outcome in self.unsettled.pop(outcome_id, ()):
            if isinstance(outcome, TaskOutcome):
                self.finished_tasks.discard(outcome.task)

    def known_maps(self) -> dict[int, tuple[tuple[int, int, int], ...]]:
        ranges = {number: lane.ranges() for number, lane in self.maps.items()}
        for group in self.unsettled.values():
            for outcome in group:
                if isinstance(outcome, MapOutcomes):
                    part = (outcome.start, outcome.start + outcome.count, outcome.attempt)
                    ranges.setdefault(outcome.map, []).append(part)
        return {number: tuple(found) for number, found in ranges.items()}

    def not_finished(self, wanted: MapRequest) -> MapRequest:
        """The part of a request that has no outcome here."""
        finished = [
            outcome
            for group in self.unsettled.values()
            for outcome in group
            if isinstance(outcome, MapOutcomes) and outcome.map == wanted.map and outcome.attempt == wanted.attempt
        ]
        if not finished:
            return wanted
        left = [RangeSet(*part) for part in wanted.ranges]
        for outcome in finished:
            for ranges in left:
                ranges.remove(outcome.start, outcome.start + outcome.count)
        return replace(wanted, ranges=tuple((part.start, part.stop) for ranges in left for part in ranges))

    def is_holding(self) -> bool:
        """Whether anything would be lost with it."""
        return bool(self.unsettled) or any(not lane.is_idle for lane in self.all_lanes())

    def wake(self) -> None:
        if self.parked is not None:
            _resolve(self.parked)

    def has_news(self) -> bool:
        return bool(self.undelivered) or self.problem != self.reported_problem


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class Dispatcher:
    """See the module."""

    def __init__(
        self,
        launcher: Launcher,
        *,
        hub_epoch: int,
        policy: SlicePolicy | None = None,
        tenure: Tenure | None = None,
    ) -> None:
        self._launcher = launcher
        self._hub_epoch = hub_epoch
        self._tenure = tenure or Granted()
        self._is_superseded = False
        self._policy = policy or SlicePolicy()
        self._incarnation = uuid.uuid4().hex
        self._sessions: dict[str, _Session] = {}
        self._forgotten: set[str] = set()
        # Runs that have ended, in the order in which they did.
        self._left: dict[str, None] = {}
        self._swept_s = 0.0
        self._flights = Flights[_Session](launcher, on_end=self._ended, on_overdue=self._overdue)
        self._outcome_ids = itertools.count(1)

    async def attach(self, run: str, instance_id: str) -> Attachment:
        """What is known here of `run`. Changes nothing: whoever asks may still lose the claim on the log.

        Raises:
            FencedError: another cluster has taken the hub over.
        """
        if self._is_superseded:
            raise FencedError("Another cluster has taken the hub over: this one starts no activities", key=run)
        session = self._sessions.get(run)
        if session is None:
            return Attachment(incarnation=self._incarnation, tasks=frozenset(), maps={})
        return Attachment(incarnation=self._incarnation, tasks=session.known_tasks(), maps=session.known_maps())

    async def exchange(self, request: Exchange) -> ExchangeReply:
        """Take over new calls, forget settled and unwanted ones, and answer as soon as there are outcomes."""
        if request.incarnation != self._incarnation:
            return ExchangeReply(is_detached=True)
        session = self._sessions.get(request.run)
        is_old = request.hub_epoch != self._hub_epoch or (session is not None and request.epoch < session.epoch)
        if is_old or self._is_superseded:
            return ExchangeReply(is_superseded=True)
        if request.is_leaving:
            self._forget(request.run)
            self._left[request.run] = None
            if len(self._left) > _LEFT_MAX:
                del self._left[next(iter(self._left))]
            return ExchangeReply()
        if request.run in self._left:
            # It has ended: whoever asks was stopped before that.
            return ExchangeReply(is_superseded=True)
        if request.run in self._forgotten and not request.is_fresh:
            return ExchangeReply(is_detached=True)
        if session is None:
            self._forgotten.discard(request.run)
            session = self._sessions[request.run] = _Session(request.run, request.instance_id, self._tenure)
        session.epoch = request.epoch
        session.heard_s = asyncio.get_running_loop().time()
        self._sweep(session.heard_s)
        if request.is_fresh:
            session.undelivered = deque(session.unsettled)
            session.reported_problem = None
        for outcome_id in request.settled:
            session.settle(outcome_id)
        self._drop_finished(session)
        self._cancel(session, request.cancel)
        self._submit(session, request.tasks, request.maps)
        return await self._park(session)

    def go_on(self) -> None:
        """The hub is known to be this cluster's: start what waits for that."""
        self._pump()
        for session in self._sessions.values():
            if session.has_news():
                session.wake()

    def stand_down(self) -> None:
        """Another cluster has taken the hub over: end what runs, start nothing any more, refuse whoever asks."""
        self._is_superseded = True
        for run in list(self._sessions):
            self._forget(run)

    async def explain(self, run: str) -> list[CallState]:
        """What is under way here for `run`: calls on workers, the oldest first, then those that wait for one."""
        session = self._sessions.get(run)
        if session is None:
            return []
        now_s = asyncio.get_running_loop().time()
        running = [state for flight in self._flights.of(session) for state in _running_calls(flight, now_s)]
        waiting = [state for lane in session.all_lanes() for state in _waiting_calls(session, lane, now_s)]
        return running + waiting

    def snapshot(self) -> dict[str, Any]:
        """Counts, for diagnostics."""
        lanes = [lane for session in self._sessions.values() for lane in session.all_lanes()]
        return {
            "incarnation": self._incarnation,
            "runs": len(self._sessions),
            "slices_in_flight": len(self._flights),
            "calls_waiting": sum(lane.pending_count for lane in lanes),
            "outcomes_unsettled": sum(len(session.unsettled) for session in self._sessions.values()),
        }

    async def _park(self, session: _Session) -> ExchangeReply:
        session.wake()
        if not session.has_news():
            loop = asyncio.get_running_loop()
            parked = session.parked = loop.create_future()
            # A timer of our own: `wait_for` would cost each sequential step a task.
            patience = loop.call_later(_PARK_S, _resolve, parked)
            try:
                await parked
            finally:
                patience.cancel()
                if session.parked is parked:
                    session.parked = None
            if session.parked is not None:
                # A newer exchange is parked: what is new goes there.
                return ExchangeReply(problem=session.reported_problem)
        if self._is_superseded:
            return ExchangeReply(is_superseded=True)
        outcomes = {}
        while session.undelivered:
            outcome_id = session.undelivered.popleft()
            if outcome_id in session.unsettled:
                outcomes[outcome_id] = session.unsettled[outcome_id]
        session.reported_problem = session.problem
        return ExchangeReply(outcomes=outcomes, problem=session.problem)

    def _submit(self, session: _Session, tasks: list[TaskRequest], maps: list[MapRequest]) -> None:
        session.asked_s.update((request.task, session.heard_s) for request in tasks)
        session.asked_s.update((request.map, session.heard_s) for request in maps)
        by_key: dict[str, list[TaskRequest]] = {}
        for request in tasks:
            if request.task not in session.withdrawn and not session.knows_task(request):
                by_key.setdefault(request.target.key, []).append(request)
        for key, requests in by_key.items():
            lane = session.lanes.get(key)
            if lane is None:
                lane = TaskLane(session.run, session.instance_id, requests[0].target, self._policy)
                session.lanes[key] = lane
            lane.add(requests)
        for wanted in maps:
            if wanted.map in session.withdrawn:
                continue
            lane_of_map = session.maps.get(wanted.map)
            if lane_of_map is None:
                lane_of_map = MapLane(session.run, session.instance_id, wanted, self._policy)
                session.maps[wanted.map] = lane_of_map
            lane_of_map.add(session.not_finished(wanted))
        if tasks or maps:
            self._pump()

    def _cancel(self, session: _Session, numbers: list[int]) -> None:
        if not numbers:
            return
        session.withdrawn.update(numbers)
        unwanted: list[int] = []
        for lane in session.lanes.values():
            unwanted += lane.cancel(numbers)
        for number in numbers:
            if number in session.maps:
                unwanted += session.maps[number].cancel()
        for number in numbers:
            session.asked_s.pop(number, None)
        self._flights.withdraw(unwanted)

    def _forget(self, run: str) -> None:
        session = self._sessions.pop(run, None)
        if session is None:
            return
        self._flights.abandon(session)
        session.wake()
        self._pump()

    def _sweep(self, now_s: float) -> None:
        """Forget the runs that have been silent for long: one that ended while nobody could hear it never says so."""
        if now_s - self._swept_s < _SILENCE_S_MAX / 10:
            return
        self._swept_s = now_s
        for session in list(self._sessions.values()):
            if session.parked is None and now_s - session.heard_s > _SILENCE_S_MAX:
                if session.is_holding():
                    # Should it live, it has to be told that its calls are gone.
                    self._forgotten.add(session.run)
                    logger.warning("instance %s was silent for long: its activities end", session.instance_id)
                self._forget(session.run)

    def _drop_finished(self, session: _Session) -> None:
        """Maps whose items are all settled hold nothing but memory."""
        if session.maps and not session.unsettled:
            session.maps = {number: lane for number, lane in session.maps.items() if not lane.is_idle}

    def _pump(self) -> None:
        """Start slices while there are calls and slots; runs take turns, so that a huge one starves nobody."""
        if self._is_superseded or not self._tenure.is_certain:
            return
        now_s = asyncio.get_running_loop().time()
        lanes = deque(
            (session, lane) for session in self._sessions.values() for lane in session.all_lanes() if lane.is_waiting
        )
        while lanes and len(self._flights) < _SLICES_IN_FLIGHT_MAX:
            session, lane = lanes.popleft()
            slots = self._launcher.slots(lane.target)
            if len(lane.in_flight) < slots and lane.blocked_until_s <= now_s:
                self._flights.launch(session, lane, free_slots=slots - len(lane.in_flight))
                if lane.is_waiting:
                    lanes.append((session, lane))

    def _ended(self, flight: Flight[_Session], report: SliceReport | Failure) -> None:
        session, lane, slice_id = flight.owner, flight.lane, flight.slice_id
        if isinstance(report, Failure):
            outcomes = lane.lose(slice_id, report)
        elif report.is_stale:
            lane.put_back(slice_id)
            lane.generation = lane.target.reference.source
            outcomes = []
        elif report.unresolved is not None:
            lane.put_back(slice_id)
            self._block(session, lane, report.unresolved)
            outcomes = []
        else:
            outcomes = lane.report(slice_id, report)
        self._hand_over(session, outcomes)

    def _overdue(self, flight: Flight[_Session], failure: Failure) -> None:
        self._hand_over(flight.owner, flight.lane.expire(flight.slice_id, failure))

    def _hand_over(self, session: _Session, outcomes: list[Outcome]) -> None:
        if outcomes:
            session.keep(next(self._outcome_ids), outcomes)
        if session.has_news():
            session.wake()
        self._pump()

    def _block(self, session: _Session, lane: Lane, failure: Failure) -> None:
        """The function cannot be loaded: its calls wait, and are tried again after a while."""
        wait_s = min(_BLOCK_S_MAX, _BLOCK_S_FIRST * 2**lane.block_count)
        lane.block_count += 1
        loop = asyncio.get_running_loop()
        lane.blocked_until_s = loop.time() + wait_s
        loop.call_later(wait_s + 0.01, self._pump)
        lane.problem = f"activity {lane.target.reference.name!r} cannot be loaded: {failure.describe()}"
        logger.warning("instance %s: %s; trying again in %.0f s", session.instance_id, lane.problem, wait_s)


def _running_calls(flight: Flight[_Session], now_s: float) -> Iterator[CallState]:
    """One for each call; items of a map together."""
    start, stop = flight.lane.in_flight[flight.slice_id]
    since_s = flight.launched_s if flight.begun_s is None else flight.begun_s
    for index in range(start, stop):
        number, item, attempt = flight.lane.describe(index)
        beats_s = flight.heartbeats_s
        heard_s = beats_s.get(index - start) if item is None else max(beats_s.values(), default=None)
        yield CallState(
            number=number,
            items=None if item is None else (item, stop),
            state="waiting" if flight.begun_s is None else "running",
            attempt=attempt,
            since_s=now_s - since_s,
            host=flight.place.host,
            pid=flight.place.pid,
            lost_workers=flight.lane.lost_workers(index),
            heartbeat_s=None if heard_s is None else now_s - heard_s,
        )
        if item is not None:
            break


def _waiting_calls(session: _Session, lane: Lane, now_s: float) -> Iterator[CallState]:
    """One for each call; items of a map by ranges."""
    for start, stop in lane.waiting():
        for index in range(start, stop):
            number, item, attempt = lane.describe(index)
            yield CallState(
                number=number,
                items=None if item is None else (item, stop),
                state="waiting",
                attempt=attempt,
                since_s=now_s - session.asked_s.get(number, now_s),
                lost_workers=lane.lost_workers(index),
                problem=lane.problem,
            )
            if item is not None:
                break
