"""What must hold at the end: the logs held against the ledger of what really ran, and against what was acknowledged.

- Every instance that was asked for has ended with its result; every acknowledged start and event is in the log, once.
- Nothing ran that no log asked for, and everything that has an outcome ran.
- Nothing ran again once its outcome was recorded, and nothing has two outcomes.
- What ran more than once was submitted as often, by the log's own count: owners that submitted it again, and workers
  that died with it. A dispatcher that is lost takes its count of dead workers along; runs that only it had counted are
  told apart, and must have been in a process that was killed.
- No timer fired early, and the checker of the stored format finds nothing.
"""

from __future__ import annotations

import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import ray_durable as durable
from ray_durable.engine import (
    Event,
    EventRaised,
    ExecutionStarted,
    MapCompleted,
    MapItemsScheduled,
    MapScheduled,
    OwnerClaimed,
    TaskCompleted,
    TaskFailed,
    TaskScheduled,
    TimerCreated,
    TimerFired,
)
from tests.chaos.flows import Run
from tests.chaos.load import Job, Violation

__all__ = ["Audit", "verify_format"]

_CHECKER = Path(__file__).parents[2] / "storage" / "verify.py"

_NOTES_OF_A_LOSS = ("[open]", "[summary]", "[unsent]")
"""Notes of the checker that must not be left once all has ended. Others tell of what a kill left half done and what
nobody misses, such as a temporary file."""

Attempt = tuple[str, int]
"""The idempotency key of a call, and the number of the attempt."""


@dataclass(slots=True)
class _Account:
    """What the logs say of attempts."""

    instances: dict[Attempt, str] = field(default_factory=dict)
    submitted: Counter[Attempt] = field(default_factory=Counter)
    """How often owners submitted it."""
    lost: Counter[Attempt] = field(default_factory=Counter)
    """How many workers died with it."""
    recorded_us: dict[Attempt, int] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True)
class Audit:
    """The check of one run. `killed` are the processes that were killed."""

    jobs: Sequence[Job]
    runs: Sequence[Run]
    killed: set[int]
    violations: list[Violation] = field(default_factory=list)
    executions: int = 0
    outcomes: int = 0
    repeated: int = 0
    """Runs after the first of their attempt, all of them counted in the log..."""
    uncounted: int = 0
    """... but for these, in processes that were killed, whose count was lost with the dispatcher."""
    events: int = 0
    _account: _Account = field(default_factory=_Account)

    def check(self, reader: durable.HubReader) -> None:
        """Read all logs, and check."""
        statuses = {status.instance_id: status for status in reader.instances()}
        arrived: Counter[str] = Counter()
        for instance, status in statuses.items():
            handle = reader.get(instance)
            for execution in range(1, status.execution + 1):
                self.executions += 1
                arrived.update(self._read(instance, handle.history(execution)))
        for job in self.jobs:
            if job.is_started and job.instance not in statuses:
                self._object("an acknowledged start is lost", job.instance, str(job))
            self._check_events(job, arrived)
        self.outcomes = len(self._account.recorded_us)
        self._check_runs()

    def _read(self, instance: str, history: Iterable[Event]) -> list[str]:
        """Take one execution into account; the ids of the events that arrived in it."""
        account, arrived = self._account, []
        run, carried = "", frozenset[str]()
        numbers, due_us = dict[int, Attempt](), dict[int, int]()
        for event in history:
            match event:
                case ExecutionStarted():
                    run = event.run
                    # They arrived in the execution before, and are recorded anew.
                    carried = frozenset(one.event_id for one in event.carried if isinstance(one, EventRaised))
                case TaskScheduled():
                    attempt = numbers[event.number] = (f"{run}:{event.retry_of or event.number}", event.attempt)
                    account.instances[attempt] = instance
                    account.submitted[attempt] += 1
                case MapScheduled():
                    for item in range(event.count):
                        account.instances[f"{run}:{event.number}:{item}", 1] = instance
                        account.submitted[f"{run}:{event.number}:{item}", 1] += 1
                case MapItemsScheduled():
                    raise AssertionError("no map of the load has items that fail")
                case OwnerClaimed():
                    for number, _ in event.attempts:
                        for attempt in self._attempts_of(run, number, numbers, history):
                            account.submitted[attempt] += 1
                case TaskCompleted() | TaskFailed():
                    self._record(instance, numbers[event.task], event.time_us)
                    account.lost[numbers[event.task]] += event.lost_workers
                case MapCompleted():
                    for item in range(event.start, event.start + event.count):
                        self._record(instance, (f"{run}:{event.map}:{item}", 1), event.time_us)
                        account.lost[f"{run}:{event.map}:{item}", 1] += event.lost_workers
                case TimerCreated():
                    due_us[event.number] = event.due_us
                case TimerFired():
                    if event.time_us < due_us[event.timer]:
                        self._object("a timer fired early", instance, f"{event}, due at {due_us[event.timer]}")
                case EventRaised() if event.event_id not in carried:
                    arrived.append(event.event_id)
        return arrived

    @staticmethod
    def _attempts_of(run: str, number: int, numbers: dict[int, Attempt], history: Iterable[Event]) -> Iterable[Attempt]:
        """What a claim submits again: a single call, or whatever items of a map have no outcome."""
        if number in numbers:
            return [numbers[number]]
        (mapped,) = (event for event in history if isinstance(event, MapScheduled) and event.number == number)
        return [(f"{run}:{number}:{item}", 1) for item in range(mapped.count)]

    def _record(self, instance: str, attempt: Attempt, time_us: int) -> None:
        if attempt in self._account.recorded_us:
            self._object("an outcome is recorded twice", instance, f"{attempt}")
        self._account.recorded_us[attempt] = time_us

    def _check_events(self, job: Job, arrived: Counter[str]) -> None:
        self.events += len(job.acknowledged)
        for event_id in job.acknowledged:
            if not arrived[event_id]:
                self._object("an acknowledged event is lost", job.instance, event_id)
            elif arrived[event_id] > 1:
                self._object("an event is recorded more than once", job.instance, f"{event_id}: {arrived[event_id]}")

    def _check_runs(self) -> None:
        account, runs = self._account, defaultdict[Attempt, list[Run]](list)
        for run in self.runs:
            runs[run.key, run.attempt].append(run)
        for attempt in account.recorded_us.keys() - runs.keys():
            self._object("an outcome of what never ran", account.instances[attempt], f"{attempt}")
        for attempt, its_runs in runs.items():
            instance = its_runs[0].instance
            if attempt not in account.submitted:
                self._object("it ran, and no log asked for it", instance, f"{its_runs}")
                continue
            recorded_us = account.recorded_us.get(attempt)
            if recorded_us is not None and max(run.began_us for run in its_runs) > recorded_us:
                self._object("it ran after its outcome was recorded", instance, f"recorded {recorded_us}: {its_runs}")
            self._check_count(attempt, its_runs)

    def _check_count(self, attempt: Attempt, runs: Sequence[Run]) -> None:
        """No more runs than the log counts."""
        self.repeated += len(runs) - 1
        counted = self._account.submitted[attempt] + self._account.lost[attempt]
        excess = len(runs) - counted
        if excess <= 0:
            return
        if excess <= sum(run.pid in self.killed for run in runs):
            self.uncounted += excess
        else:
            self._object("it ran more often than the log counts", runs[0].instance, f"{counted} counted: {list(runs)}")

    def _object(self, what: str, instance: str, details: str) -> None:
        self.violations.append(Violation(what=what, instance=instance, details=details))


def verify_format(folder: Path) -> tuple[list[Violation], str]:
    """What the checker of the stored format finds in a root; and its last line, which says how much it looked at."""
    checked = subprocess.run([sys.executable, str(_CHECKER), str(folder)], capture_output=True, text=True, check=False)
    lines = checked.stdout.splitlines()
    if not lines:
        return [Violation(what="the root cannot be checked", instance="", details=checked.stderr)], ""
    findings = [
        Violation(what="storage/verify.py finds something", instance="", details=line)
        for line in lines
        if line.startswith("DAMAGE") or (line.startswith("NOTE") and line.endswith(_NOTES_OF_A_LOSS))
    ]
    return findings, lines[-1]
