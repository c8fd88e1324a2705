"""Random schedules: cases of the corpus in storms of faults, each from a seed. `SIMULATIONS` is how many."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.simulation.command import in_processes
from tests.simulation.corpus import CASES
from tests.simulation.running import Tally, calm, run_seed, run_seeds

COUNT = int(os.environ.get("SIMULATIONS", "10000"))
BATCH = 100
SHOWN = 5

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(900)
def test_whatever_happens_nothing_is_lost_and_all_comes_to_its_end() -> None:
    """Also with several faults at once; a failure prints its seed, and the command that repeats it."""
    tally = Tally()
    batches = (range(first, min(COUNT, first + BATCH)) for first in range(0, COUNT, BATCH))
    for part in in_processes(run_seeds, batches, 2):
        tally.add(part)
    assert not tally.failures, "\n\n".join([f"{len(tally.failures)} of {tally.runs}", *tally.failures[:SHOWN]])
    assert tally.runs == COUNT


@pytest.mark.parametrize("name", sorted(CASES))
def test_where_nothing_goes_wrong_a_case_ends_as_the_model_says(name: str) -> None:
    assert calm(name).steps > 10


def test_a_seed_gives_the_same_run_in_every_process() -> None:
    """Bit by bit, whatever the hashes of that process are."""
    seeds = range(7, 19)
    here = {str(seed): run_seed(seed).digest() for seed in seeds}
    code = (
        "import json; from tests.simulation.running import run_seed; "
        f"print(json.dumps({{str(seed): run_seed(seed).digest() for seed in {list(reversed(seeds))}}}))"
    )
    path = os.pathsep.join(map(str, (ROOT, ROOT / "examples", ROOT / "storage")))
    for hash_seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": path}
        there = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, check=True)
        assert json.loads(there.stdout) == here
