"""A process dies at every step of the reference orchestrations, with each outcome of the write in flight."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.simulation.command import in_processes
from tests.simulation.corpus import CASES
from tests.simulation.crashes import Batch, batches, run_batch, singles
from tests.simulation.running import Tally, calm

STEPS_MAX = 60
"""Longer cases are tried by `make exhaustive`, and so are deaths of others at the same moments, and pairs of deaths."""


@pytest.mark.timeout(300)
def test_wherever_a_process_dies_nothing_is_lost() -> None:
    def all_batches() -> Iterator[Batch]:
        for name, case in CASES.items():
            if calm(name).steps <= STEPS_MAX:
                yield from batches(name, iter(singles(case)))

    tally = Tally()
    for part in in_processes(run_batch, all_batches(), 2):
        tally.add(part)
    assert not tally.failures, "\n\n".join(tally.failures[:5])
    assert tally.runs > 1_000
