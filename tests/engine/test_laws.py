"""The laws of replay, over the whole corpus: a history decides everything, however it is cut and batched."""

from __future__ import annotations

import os
import pickle
import random
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ray_durable.engine import Event, Execution, ExecutionCompleted, Input, OwnerClaimed, RuntimeStatus

from .corpus import CORPUS, Case
from .kit import main_of
from .world import World, state_of

CASES = [pytest.param(case, id=name) for name, case in CORPUS.items()]
LAWS = settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
SEEDS = st.integers(0, 2**32)


def in_batches(events: list[Event], chance: random.Random) -> list[list[Event]]:
    """The events, cut at random places; some batches are empty."""
    cuts = sorted(chance.randint(0, len(events)) for _ in range(chance.randint(0, 6)))
    bounds = [0, *cuts, len(events)]
    return [events[start:stop] for start, stop in pairwise(bounds)]


def test_the_corpus_is_broad() -> None:
    assert len(CORPUS) >= 25


@pytest.mark.parametrize("case", CASES)
def test_every_case_ends_as_it_should(case: Case) -> None:
    """A law about runs that go nowhere, or fail at once, would say nothing."""
    history = World(case, seed=1).run().history
    last = history[-1]
    assert isinstance(last, ExecutionCompleted)
    assert last.status is (RuntimeStatus.TERMINATED if case.termination else case.end), last.failure
    assert [event.number for event in history] == list(range(1, len(history) + 1))
    assert all(left.time_us <= right.time_us for left, right in pairwise(history))


@pytest.mark.parametrize("case", CASES)
@LAWS
@given(seed=SEEDS)
def test_any_prefix_in_any_batching_brings_back_commands_and_state(case: Case, seed: int) -> None:
    """A prefix of a history, however it is batched, gives the rest of its last step and the state after it."""
    run, chance = World(case, seed).run(), random.Random(seed)
    cut = chance.randint(1, len(run.history))
    step_end = min(position for position in run.states if position >= cut)
    execution = Execution(main_of(case.orchestrator))

    returned = [event for batch in in_batches(run.history[:cut], chance) for event in execution.apply(batch)]

    # Batches that end within a step return its rest early, and only once.
    assert returned[len(returned) - (step_end - cut) :] == run.history[cut:step_end]
    assert [event.number for event in returned] == sorted({event.number for event in returned})
    assert state_of(execution) == run.states[step_end]
    execution.close()


@pytest.mark.parametrize("case", CASES)
@LAWS
@given(seed=SEEDS)
def test_a_rehydrated_execution_lives_on_like_the_first(case: Case, seed: int) -> None:
    """After a prefix, the inputs that followed give the rest of the history again, in any batching."""
    run, chance = World(case, seed).run(), random.Random(seed)
    cut = chance.randint(1, len(run.history))
    step_end = min(position for position in run.states if position >= cut)
    execution = Execution(main_of(case.orchestrator))
    execution.apply(run.history[:cut])
    after: list[Event] = [
        event.stamped(0, event.time_us) for event in run.history[step_end:] if isinstance(event, Input)
    ]

    lived = [event for batch in in_batches(after, chance) for event in execution.apply(batch)]

    assert lived == run.history[step_end:]
    assert state_of(execution) == run.states[len(run.history)]
    assert execution.ended
    late = execution.apply(list(run.inputs))
    assert all(isinstance(event, OwnerClaimed) for event in late), "after the end, only who owns the log is news"


@pytest.mark.parametrize("case", CASES)
@LAWS
@given(seed=SEEDS)
def test_live_batches_do_not_matter(case: Case, seed: int) -> None:
    """The same fresh inputs, delivered one by one or many at a time, make the same history."""
    run, chance = World(case, seed).run(), random.Random(seed)
    execution = Execution(main_of(case.orchestrator))
    made = [event for batch in in_batches(list(run.inputs), chance) for event in execution.apply(batch)]
    assert made == run.history
    assert state_of(execution) == run.states[len(run.history)]


def test_another_process_with_another_hash_seed_replays_to_the_same(tmp_path: Path) -> None:
    """Addresses and string hashes differ in another process; commands, state and order do not."""
    runs = [(name, World(case, seed).run()) for name, case in CORPUS.items() for seed in range(4)]
    file = tmp_path / "runs.pickle"
    file.write_bytes(pickle.dumps([(name, list(run.inputs), run.history, run.states) for name, run in runs]))
    tests = Path(__file__).parents[1]
    script = (
        f"import sys; sys.path[:0] = [{str(tests)!r}, {str(tests.parent)!r}]\n"
        "from engine.replay_runs import replay_runs; replay_runs(sys.argv[1])"
    )
    for hash_seed in ("1", "77"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        done = subprocess.run(
            [sys.executable, "-c", script, str(file)], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == f"{len(runs)} runs replayed"
