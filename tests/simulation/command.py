"""The command line of the simulation: schedules for as long as one likes, one again, or every crash point.

Without a mode it soaks: fresh seeds for so many seconds. `--case` with `--seed` or `--death` runs one case once and
shows its last steps. `--exhaustive` lets a process die at every step of every case, `--pairs` at every two of the short
ones.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from multiprocessing import get_context
from typing import Any, TypeVar, cast, get_args

from ray_durable.testing.simulation import Fault, Victim
from tests.simulation.corpus import CASES
from tests.simulation.crashes import PAIRED_STEPS_MAX, Plan, batches, pairs, run_batch, singles
from tests.simulation.running import Tally, calm, run_deaths, run_seed, run_seeds

__all__ = ["in_processes", "main"]

T = TypeVar("T")

_BATCH = 50
_TELL_S = 20.0


def main(arguments: list[str] | None = None) -> None:
    """See the module."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.simulation", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=int(time.time()), help="the first seed (default: from the clock)")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long to soak")
    parser.add_argument("--case", choices=sorted(CASES), help="run this case once")
    parser.add_argument("--death", action="append", type=_death, help="STEP:VICTIM:FAULT, as failures print it")
    parser.add_argument("--exhaustive", action="store_true", help="a death at every step of every case, of anything")
    parser.add_argument("--pairs", action="store_true", help="two deaths, at every two steps of the short cases")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args(arguments)
    if options.case is not None:
        _show(options.case, options.seed, options.death)
    elif options.exhaustive or options.pairs:
        plans = _all_pairs() if options.pairs else _all_singles()
        sys.exit(_run("crash points", in_processes(run_batch, plans, options.processes)))
    else:
        sys.exit(_soak(options.seed, options.seconds, options.processes))


def _death(text: str) -> tuple[int, Victim, Fault]:
    step, victim, fault = text.split(":")
    assert victim in get_args(Victim)
    return int(step), cast(Victim, victim), Fault[fault]


def _show(name: str, seed: int, deaths: Plan | None) -> None:
    case = CASES[name]
    if deaths is None:
        simulation = run_seed(seed, case)
    else:
        simulation = run_deaths(case, {step: (victim, fault) for step, victim, fault in deaths})
    print(simulation.describe())
    print(f"{simulation.steps} steps, digest {simulation.digest()}")


def _all_singles() -> Iterator[tuple[str, tuple[Plan, ...]]]:
    for name, case in CASES.items():
        yield from batches(name, iter(singles(case, get_args(Victim))))


def _all_pairs() -> Iterator[tuple[str, tuple[Plan, ...]]]:
    for name, case in CASES.items():
        if calm(name).steps <= PAIRED_STEPS_MAX:
            yield from batches(name, pairs(case))


def _soak(first: int, seconds: float, processes: int) -> int:
    began_s, last = time.monotonic(), first

    def seeds() -> Iterator[range]:
        nonlocal last
        while time.monotonic() - began_s < seconds:
            yield range(last, last + _BATCH)
            last += _BATCH

    is_broken = _run("schedules", in_processes(run_seeds, seeds(), processes))
    print(f"seeds {first} to {last - 1}")
    return is_broken


def _run(what: str, parts: Iterator[Tally]) -> int:
    """Tell how it goes, and what fails; whether anything did."""
    tally, began_s, told_s = Tally(), time.monotonic(), 0.0
    for part in parts:
        tally.add(part)
        for failure in part.failures:
            print(failure, flush=True)
        passed_s = time.monotonic() - began_s
        if passed_s - told_s > _TELL_S:
            told_s = passed_s
            print(f"{tally.runs:,} {what} in {passed_s:.0f} s ({tally.runs / passed_s:.0f}/s)", flush=True)
    passed_s = time.monotonic() - began_s
    print(f"{tally.runs:,} {what}, {tally.steps:,} steps in {passed_s:.0f} s: {len(tally.failures)} failed")
    return 1 if tally.failures else 0


def in_processes(run: Callable[[T], Tally], batches: Iterator[T], processes: int) -> Iterator[Tally]:
    """Run batches side by side, each process taking the next; a batch is made when there is room for it."""
    # What computes for minutes gives way to tests that wait for a real Ray beside it.
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn"), initializer=os.nice, initargs=(10,)) as pool:
        running: set[Future[Any]] = set()
        for batch in batches:
            running.add(pool.submit(run, batch))
            if len(running) > processes:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        while running:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in done)
