"""Replays recorded runs in a process of its own, and compares. Used by test_laws."""

from __future__ import annotations

import asyncio
import gc
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ray_durable.engine import Event, Execution, Input

from .corpus import CORPUS, Case
from .kit import main_of
from .world import Run, state_of

__all__ = ["cuts_of", "fresh_inputs", "replay_runs", "step_end"]


def cuts_of(case: Case, run: Run) -> Sequence[int]:
    """Where a history may end: the numbers of the last events."""
    return range(1, len(run.history) + 1) if case.cut_in_steps else sorted(run.states)


def step_end(run: Run, cut: int) -> int:
    """The number of the last event of the step that holds event `cut`."""
    return min(position for position in run.states if position >= cut)


def fresh_inputs(events: list[Event]) -> list[Event]:
    """The inputs among recorded events, as they were before they were recorded."""
    return [event.stamped(0, event.time_us) for event in events if isinstance(event, Input)]


def replay_runs(file: str) -> None:
    """Each run in `file`, live, and continued from each prefix of its history, is the same here."""
    asyncio.run(_replay_runs(pickle.loads(Path(file).read_bytes())))


async def _replay_runs(runs: list[tuple[str, Run]]) -> None:
    # Objects in the way, so that addresses fall differently from those of the recording process; and tasks of another
    # loop, which share asyncio's own registers with ours.
    ballast: list[Any] = [object() for _ in range(hash("ballast") % 50_000)]
    others = [asyncio.create_task(asyncio.sleep(3600)) for _ in range(hash("others") % 50)]
    # The collector comes at other moments in each process, and to what the cases make alone.
    gc.freeze()
    gc.set_threshold(50 + hash("collector") % 5_000)
    prefixes = 0
    for name, run in runs:
        case = CORPUS[name]
        live = Execution(main_of(case.orchestrator))
        assert live.apply(run.inputs) == run.history, f"{name}: the same inputs made another history"
        for cut in cuts_of(case, run):
            _replay_prefix(case, run, cut)
            prefixes += 1
        del ballast[:100]
    for task in others:
        task.cancel()
    print(f"{prefixes} prefixes replayed")


def _replay_prefix(case: Case, run: Run, cut: int) -> None:
    where = f"{case.name}, replayed from the first {cut} events"
    end = step_end(run, cut)
    execution = Execution(main_of(case.orchestrator))
    assert execution.apply(run.history[:cut]) == run.history[cut:end], f"{where}: another rest of the step"
    assert state_of(execution) == run.states[end], f"{where}: another state"
    lived = execution.apply(fresh_inputs(run.history[end:]))
    assert lived == run.history[end:], f"{where}: another life from there"
    assert state_of(execution) == run.states[len(run.history)], f"{where}: another end"
    execution.close()
