"""Every point at which a process can die, one after the other, and every pair of them.

A point is a step of a calm run: an operation of the store about to have its effect, or a message about to arrive. The
process that takes it dies there; of a write in flight, three things can come: it is lost, it is carried out and nobody
hears of it, or it is carried out late, just before another's write to the same place. Instead of that process, the
dispatcher, the supervisor or the whole cluster may die at the same moment.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ray_durable.testing.simulation import Deaths, Fault, Victim
from ray_durable.testing.simulation.scheduler import Process
from tests.simulation.corpus import CASES, Case
from tests.simulation.running import COMMAND, Tally, in_calm, run_deaths

__all__ = ["PAIRED_STEPS_MAX", "Batch", "Plan", "batches", "deaths_of", "pairs", "run_batch", "singles"]

PAIRED_STEPS_MAX = 52
"""Cases of more steps have too many pairs of them. The hub itself takes some twelve."""

Plan = tuple[tuple[int, Victim, Fault], ...]
"""Deaths, by step."""

Batch = tuple[str, tuple[Plan, ...]]
"""Some runs of a case."""

_WRITES = ("create", "put", "delete")
_OUTCOMES = (Fault.LOST, Fault.ANSWER_LOST, Fault.LATE)
_BATCH = 100


@dataclass(frozen=True, slots=True)
class _Step:
    number: int
    operation: str


class _Recorded(Deaths):
    """Notes the steps of a run."""

    def __init__(self, deaths: Mapping[int, tuple[Victim, Fault]]) -> None:
        super().__init__(deaths)
        self.steps: list[_Step] = []

    def step(self, number: int, process: Process, operation: str, key: str) -> Fault | None:
        self.steps.append(_Step(number, operation))
        return super().step(number, process, operation, key)


def singles(case: Case, victims: tuple[Victim, ...] = ("doer",)) -> list[Plan]:
    """Each point of a case once, for each of the victims and outcomes."""
    return [((number, victim, fault),) for number, victim, fault in _points(_steps(case, ()), victims)]


def pairs(case: Case) -> Iterator[Plan]:
    """Each point of a case followed by each point of the run that follows from it."""
    for first in _points(_steps(case, ()), ("doer",)):
        later = [step for step in _steps(case, (first,)) if step.number > first[0]]
        for second in _points(later, ("doer",)):
            yield (first, second)


def run_batch(batch: Batch) -> Tally:
    """Run some plans, and go on when one fails."""
    name, plans = batch
    tally = Tally()
    for plan in plans:
        try:
            tally.steps += run_deaths(CASES[name], deaths_of(plan)).steps
        except Exception as broken:
            told = ", ".join(f"{victim} at step {number}, {fault.name}" for number, victim, fault in plan)
            command = " ".join(f"--death {number}:{victim}:{fault.name}" for number, victim, fault in plan)
            tally.failures.append(
                f"{name} ({told}): {type(broken).__name__}: {broken}\nrepeat it with: {COMMAND} --case {name} {command}"
            )
        tally.runs += 1
    return tally


def batches(name: str, plans: Iterator[Plan]) -> Iterator[Batch]:
    """The plans of a case in batches."""
    batch: list[Plan] = []
    for plan in plans:
        batch.append(plan)
        if len(batch) == _BATCH:
            yield name, tuple(batch)
            batch = []
    if batch:
        yield name, tuple(batch)


def _points(steps: list[_Step], victims: tuple[Victim, ...]) -> Iterator[tuple[int, Victim, Fault]]:
    for step in steps:
        for victim in victims:
            for fault in _OUTCOMES if step.operation in _WRITES else (Fault.NONE,):
                yield step.number, victim, fault


def _steps(case: Case, plan: Plan) -> list[_Step]:
    recorded = _Recorded(deaths_of(plan))
    case.prepare()
    in_calm(case, recorded).run()
    return recorded.steps


def deaths_of(plan: Plan) -> dict[int, tuple[Victim, Fault]]:
    """The plan, as `Deaths` wants it."""
    return {number: (victim, fault) for number, victim, fault in plan}
