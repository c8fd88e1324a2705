"""A scenario, run again and again, with a process dying at every point at which one can.

Owners of instances act on the world through the store alone, so the points are their operations on it: before the
operation takes effect, and, where it is a write, after that. Everything else of a run is the same each time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, TypeVar

from ray_durable.engine import MapCompleted, TaskCompleted, TaskScheduled
from ray_durable.errors import DurableError
from ray_durable.storage import decode_segment
from ray_durable.testing.doubles import ActivityCall
from ray_durable.testing.environment import START_TIME, Environment
from ray_durable.testing.replayer import check_hub
from ray_durable.testing.stage import Crash, Operation, Stage
from ray_durable.testing.workers import finish

__all__ = ["CrashError", "CrashPoint", "Victim", "crash_everywhere"]

R = TypeVar("R")

Victim = Literal["owner", "dispatcher"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CrashPoint:
    """Where a process dies: `moment` "before" or "after" an operation on the store takes effect."""

    operation: Operation
    moment: Literal["before", "after"]
    victim: Victim

    def __str__(self) -> str:
        return f"the {self.victim} dies {self.moment} {self.operation}"


class CrashError(DurableError, AssertionError):
    """A scenario does not come to the same when a process dies. `point` says where."""

    point: CrashPoint


def crash_everywhere(
    scenario: Callable[[Environment], R],
    *,
    victims: Sequence[Victim] = ("owner",),
    start_time: datetime = START_TIME,
    seed: int = 0,
    allows_pickle: bool = True,
) -> list[CrashPoint]:
    """Run `scenario` in an environment of its own, then once more for each point at which a process can die.

    The scenario starts instances, tells them things, and returns whatever is to be the same each time, such as their
    results. It may assert things itself; remember that an activity may run more than once when the dispatcher dies, or
    when it is local. The "owner" of an instance is its process; the "dispatcher" dies at the same points. Returns the
    points, in order; the other arguments are those of `Environment`.

    Raises:
        CrashError: after a crash the scenario returned something else or raised, an activity ran again whose result was
            recorded before, or a history is not replayed by the code that made it.
    """

    def environment() -> Environment:
        return Environment(start_time=start_time, seed=seed, allows_pickle=allows_pickle)

    with environment() as env:
        expected = scenario(env)
        operations = env.operations
    points = [point for victim in victims for operation in operations for point in _points(operation, victim)]
    for point in points:
        with environment() as env:
            _run(scenario, env, point, expected)
    return points


def _points(operation: Operation, victim: Victim) -> Iterator[CrashPoint]:
    yield CrashPoint(operation=operation, moment="before", victim=victim)
    if operation.is_write:
        # After a read is before the next operation.
        yield CrashPoint(operation=operation, moment="after", victim=victim)


def _run(scenario: Callable[[Environment], R], env: Environment, point: CrashPoint, expected: R) -> None:
    stage = env.stage
    stage.crash = Crash(operation=point.operation.number, moment=point.moment, victim=point.victim)
    records = _Records(stage)
    try:
        result = scenario(env)
    except Exception as error:
        raise CrashError(f"When {point}, the scenario fails: {error}", point=point) from error
    if result != expected:
        raise CrashError(f"When {point}, the scenario gives {result!r} instead of {expected!r}", point=point)
    if records.repeated:
        names = ", ".join(f"{call.name} of instance {call.instance_id!r}" for call in records.repeated)
        raise CrashError(f"When {point}, activities run again whose results were recorded: {names}", point=point)
    report = check_hub(env.hub, only_open=False)
    if not report:
        raise CrashError(f"When {point}, histories are not replayed: {report}", point=point)


class _Records:
    """Which results the logs hold, and which calls ran although theirs was there."""

    def __init__(self, stage: Stage) -> None:
        self.repeated: list[ActivityCall] = []
        self._stage = stage
        self._recorded: set[str] = set()
        self._first_attempts: dict[tuple[str, int], int] = {}
        stage.on_segment = self._read
        stage.doubles.on_call = self._look

    def _read(self, key: str) -> None:
        data = finish(self._stage.objects.get(key))
        assert data is not None, "it was just written"
        segment = decode_segment(key, data)
        run = segment.header.run
        for event in self._stage.hub.events_of(segment):
            if isinstance(event, TaskScheduled):
                self._first_attempts[run, event.number] = event.retry_of or event.number
            elif isinstance(event, TaskCompleted):
                self._recorded.add(f"{run}:{self._first_attempts.get((run, event.task), event.task)}")
            elif isinstance(event, MapCompleted):
                failed = {offset for offset, _ in event.failures}
                done = (event.start + offset for offset in range(event.count) if offset not in failed)
                self._recorded.update(f"{run}:{event.map}:{item}" for item in done)

    def _look(self, call: ActivityCall) -> None:
        if call.idempotency_key in self._recorded:
            self.repeated.append(call)
