"""Catching mutants: a death at every step of one case, then one seed after the other, until something is broken.

Those that show when a cluster is replaced are caught by a takeover at every step.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from functools import partial

from ray_durable.testing.simulation import Simulation
from tests.simulation.corpus import CASES
from tests.simulation.crashes import deaths_of, singles
from tests.simulation.mutants import MUTANTS, Mutant
from tests.simulation.running import Tally, calm, run_deaths, run_seed
from tests.simulation.takeovers import takeovers

__all__ = ["catch"]

SEEDS = 400
UNTIL_S = 12_000.0
STEPS_MAX = 40_000


def catch(name: str) -> Tally:
    """Try a mutant until a run of it fails. That run must not fail without it."""
    mutant, tally = MUTANTS[name], Tally()
    for told, run in list(_runs(mutant)):
        tally.runs += 1
        if tally.runs % 25 == 0:
            gc.collect()
        with mutant.applied():
            is_caught = _error_of(run) is not None
        if is_caught:
            error = _error_of(run)
            if error is not None:
                tally.failures.append(f"{name}: {told} fails without the mutant, too: {error}")
            return tally
    tally.failures.append(f"{name}: not caught by {tally.runs} runs of {', '.join(mutant.cases)}")
    return tally


def _error_of(run: Callable[[], Simulation]) -> Exception | None:
    try:
        run()
    except Exception as error:
        return error
    return None


def _runs(mutant: Mutant) -> Iterator[tuple[str, Callable[[], Simulation]]]:
    for case_name in mutant.cases:
        calm(case_name)
    first = CASES[mutant.cases[0]]
    if mutant.is_of_takeovers:
        yield from takeovers(first)
        return
    for plan in singles(first):
        yield f"a death at step {plan[0][0]} of {first.name}", partial(run_deaths, first, deaths_of(plan))
    for seed in range(SEEDS):
        case = CASES[mutant.cases[seed % len(mutant.cases)]]
        yield f"seed {seed} of {case.name}", partial(run_seed, seed, case, until_s=UNTIL_S, steps_max=STEPS_MAX)
