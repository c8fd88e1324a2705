"""Replays recorded runs in a process of its own, and compares. Used by test_laws."""

from __future__ import annotations

import pickle
from pathlib import Path

from ray_durable.engine import Execution

from .corpus import CORPUS
from .kit import main_of
from .world import state_of


def replay_runs(file: str) -> None:
    """Live and replayed, each run in `file` gives the history and the state that it has there."""
    # Objects in the way, so that addresses fall differently from those of the recording process.
    ballast = [object() for _ in range(hash("ballast") % 50_000)]
    runs = pickle.loads(Path(file).read_bytes())
    for name, inputs, history, states in runs:
        main = main_of(CORPUS[name].orchestrator)
        live, replayed = Execution(main), Execution(main)
        assert live.apply(inputs) == history, f"{name}: the same inputs made another history"
        assert replayed.apply(history) == [], f"{name}: replay asked for more"
        assert state_of(live) == state_of(replayed) == states[len(history)], f"{name}: another state"
        del ballast[:100]
    print(f"{len(runs)} runs replayed")
