"""Running cases of the corpus: calm, in a storm of a seed, or with deaths at given steps. Each run is checked whole.

Every failure names what repeats it: `... python -m tests.simulation --case NAME --seed N`.
"""

from __future__ import annotations

import gc
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache

from ray_durable.runtime.room import RoomMax
from ray_durable.testing.simulation import Deaths, Fault, Havoc, Mischief, Simulation, Storm, Takeover, Victim, Weather
from tests.simulation.corpus import CASES, Case
from tests.simulation.root import findings

__all__ = ["COMMAND", "Tally", "calm", "case_of", "in_calm", "run_deaths", "run_seed", "run_seeds", "run_takeover"]

COMMAND = "PYTHONPATH=.:examples:storage python -m tests.simulation"

_COLLECT_EVERY = 25


@dataclass(slots=True)
class Tally:
    """What came of many runs: how many there were, how many steps they took, and what failed."""

    runs: int = 0
    steps: int = 0
    failures: list[str] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        """Count another's runs, too."""
        self.runs += other.runs
        self.steps += other.steps
        self.failures += other.failures


def case_of(seed: int) -> Case:
    """The case that a seed runs."""
    return CASES[random.Random(f"case {seed}").choice(sorted(CASES))]


@cache
def calm(name: str) -> Simulation:
    """A case where nothing goes wrong: what it comes to, and how many steps that takes."""
    return run_deaths(CASES[name], {})


def run_seed(seed: int, case: Case | None = None, *, until_s: float = 30_000.0, steps_max: int = 600_000) -> Simulation:
    """Run a seed: its case, its weather, its mischief. AssertionError if anything is broken.

    Where the supervisor's clock is an hour ahead of an owner's, it wakes an instance that rests again and again, until
    that hour has passed: each time costs a claim, and a look at all that were before.
    """
    chosen = case or case_of(seed)
    rng = random.Random(f"hub {seed}")
    interval_s = rng.choice([5.0, 30.0, 30.0, 60.0])
    simulation = Simulation(
        seed,
        chosen.clients,
        weather=Storm(seed),
        mischief=Havoc(seed, steps=calm(chosen.name).steps),
        supervisor_interval_s=interval_s,
        idle_s=rng.choice([None, 0.2, 2.0, 20.0]),
        room_max=rng.choice([None, RoomMax(events=1), RoomMax(events=2)]),
        until_s=until_s,
        steps_max=steps_max,
    )
    return _run(chosen, simulation)


def run_deaths(case: Case, deaths: Mapping[int, tuple[Victim, Fault]]) -> Simulation:
    """Run a case calmly, but for deaths at some steps."""
    return _run(case, in_calm(case, Deaths(deaths)))


class _SlowWork(Weather):
    """Activities take so long that those of a cluster that lost the hub are still under way when it must have seen
    that, and others wait behind them."""

    def slice_s(self) -> float:
        """See `Weather`."""
        return 20.0


def run_takeover(case: Case, step: int, *, stopped: tuple[str, ...], kills: bool) -> Simulation:
    """Run a case calmly, but for a takeover at one step; see `Takeover`."""
    mischief = Takeover(step, stopped=stopped, kills=kills, pause_s=100.0)
    return _run(case, in_calm(case, mischief, weather=_SlowWork()))


def in_calm(case: Case, mischief: Mischief, *, weather: Weather | None = None) -> Simulation:
    """A simulation of a case in which nothing goes wrong but by mischief. Instances that wait soon leave."""
    seed = f"calm {case.name}"
    return Simulation(seed, case.clients, weather=weather, mischief=mischief, supervisor_interval_s=10.0, idle_s=2.0)


def run_seeds(seeds: Iterable[int]) -> Tally:
    """Run many, and go on when one fails."""
    tally = Tally()
    was_enabled = gc.isenabled()
    # Runs leave cycles behind, which are cheaper to collect now and then than all the time.
    gc.disable()
    try:
        for seed in seeds:
            case = case_of(seed)
            try:
                tally.steps += run_seed(seed, case).steps
            except AssertionError as broken:
                tally.failures.append(_report(seed, case, broken))
            except Exception as error:
                tally.failures.append(_report(seed, case, error))
            tally.runs += 1
            if tally.runs % _COLLECT_EVERY == 0:
                gc.collect()
    finally:
        if was_enabled:
            gc.enable()
    return tally


def _report(seed: int, case: Case, error: Exception) -> str:
    command = f"{COMMAND} --case {case.name} --seed {seed}"
    return f"seed {seed} ({case.name}): {type(error).__name__}: {error}\nrepeat it with: {command}"


def _run(case: Case, simulation: Simulation) -> Simulation:
    case.prepare()
    simulation.run()
    case.check(simulation)
    found = findings(simulation)
    assert not found, f"storage/verify.py finds {found}\n{simulation.describe()}"
    return simulation
