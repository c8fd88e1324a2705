"""A takeover at every step of a case, while parts of the old cluster stand still, and others begin again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from ray_durable.testing.simulation import Simulation
from tests.simulation.corpus import Case
from tests.simulation.running import calm, run_takeover

__all__ = ["takeovers"]

_STOPPED: tuple[tuple[str, ...], ...] = (
    ("supervisor",),
    ("dispatcher",),
    ("supervisor", "dispatcher"),
    ("supervisor", "dispatcher", "instance"),
)


def takeovers(case: Case) -> Iterator[tuple[str, Callable[[], Simulation]]]:
    """Each of them: what it is, and the run."""
    for step in range(1, calm(case.name).steps + 1):
        for stopped in _STOPPED:
            for kills in (False, True):
                told = f"a takeover at step {step} of {case.name}, {', '.join(stopped)} stopped, kills={kills}"
                yield told, partial(run_takeover, case, step, stopped=stopped, kills=kills)
