"""The simulation finds protocol mistakes: each mutant is caught by one of the first seeds, and the real code is not.

A mutant that is not caught is a hole in the simulation.
"""

from __future__ import annotations

import pytest

from tests.simulation.catching import catch
from tests.simulation.command import in_processes
from tests.simulation.mutants import MUTANTS
from tests.simulation.running import Tally


@pytest.mark.timeout(400)
def test_every_mutant_is_caught() -> None:
    assert len(MUTANTS) >= 25
    tally = Tally()
    # The ones that take longest first.
    for part in in_processes(catch, iter(sorted(MUTANTS, key=lambda name: "any" not in name)), 2):
        tally.add(part)
    assert not tally.failures, "\n".join(tally.failures)
