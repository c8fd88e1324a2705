"""The laws of replay, over the whole corpus: a history decides everything, however it is cut and batched."""

from __future__ import annotations

import os
import pickle
import random
import subprocess
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ray_durable.engine import (
    ContinueAsNew,
    Event,
    Execution,
    ExecutionCompleted,
    OwnerClaimed,
    RuntimeStatus,
)

from .corpus import CORPUS, Case
from .kit import main_of
from .replay_runs import cuts_of, fresh_inputs, step_end
from .world import World, state_of

CASES = [pytest.param(case, id=name) for name, case in CORPUS.items()]
LAWS = settings(max_examples=4, deadline=None, suppress_health_check=list(HealthCheck))
SEEDS = st.integers(0, 2**32)
# Of each case, in each of the fresh processes. Of three in a row, one suspends and resumes.
RUNS = 3


def in_batches(events: list[Event], chance: random.Random, cuts: Sequence[int] | None = None) -> list[list[Event]]:
    """The events, cut at random places, of `cuts` if these are given; some batches are empty."""
    allowed = range(len(events) + 1) if cuts is None else [0, *(cut for cut in cuts if cut < len(events))]
    bounds = [0, *sorted(chance.choices(allowed, k=chance.randint(0, 6))), len(events)]
    return [events[start:stop] for start, stop in pairwise(bounds)]


def test_the_corpus_is_broad() -> None:
    assert len(CORPUS) >= 100


@pytest.mark.parametrize("case", CASES)
def test_every_case_ends_as_it_should(case: Case) -> None:
    """A law about runs that go nowhere, or fail at once, would say nothing."""
    history = World(case, seed=1).run().history
    last = history[-1]
    if case.end is RuntimeStatus.CONTINUED_AS_NEW:
        assert isinstance(last, ContinueAsNew)
    else:
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
    cuts = cuts_of(case, run)
    cut = chance.choice(cuts)
    end = step_end(run, cut)
    execution = Execution(main_of(case.orchestrator))

    returned = [event for batch in in_batches(run.history[:cut], chance, cuts) for event in execution.apply(batch)]

    # Batches that end within a step return its rest early, and only once.
    assert returned[len(returned) - (end - cut) :] == run.history[cut:end]
    assert [event.number for event in returned] == sorted({event.number for event in returned})
    assert state_of(execution) == run.states[end]
    execution.close()


@pytest.mark.parametrize("case", CASES)
@LAWS
@given(seed=SEEDS)
def test_a_rehydrated_execution_lives_on_like_the_first(case: Case, seed: int) -> None:
    """After a prefix, the inputs that followed give the rest of the history again, in any batching."""
    run, chance = World(case, seed).run(), random.Random(seed)
    cut = chance.choice(cuts_of(case, run))
    end = step_end(run, cut)
    execution = Execution(main_of(case.orchestrator))
    execution.apply(run.history[:cut])
    after = fresh_inputs(run.history[end:])

    lived = [event for batch in in_batches(after, chance) for event in execution.apply(batch)]

    assert lived == run.history[end:]
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


def test_other_processes_replay_every_prefix_and_live_on_alike(tmp_path: Path) -> None:
    """Addresses, string hashes and garbage collection differ in another process; commands, state and order do not."""
    tests = Path(__file__).parents[1]
    script = (
        f"import sys; sys.path[:0] = [{str(tests)!r}, {str(tests.parent)!r}]\n"
        "from engine.replay_runs import replay_runs; replay_runs(sys.argv[1])"
    )
    processes = []
    for hash_seed in (1, 77):
        runs = [(name, World(case, hash_seed + n).run()) for name, case in CORPUS.items() for n in range(RUNS)]
        file = tmp_path / f"{hash_seed}.pickle"
        file.write_bytes(pickle.dumps(runs))
        environment = {**os.environ, "PYTHONHASHSEED": str(hash_seed)}
        command = [sys.executable, "-c", script, str(file)]
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        processes.append((process, sum(len(cuts_of(CORPUS[name], run)) for name, run in runs)))
    for process, prefixes in processes:
        said, _ = process.communicate()
        assert said.strip() == f"{prefixes} prefixes replayed", said
