"""What the activities of the samples really did: a line each, in a file of their instance that only ever grows.

The log of an instance says what was recorded; the journal says what happened. To see that nothing runs twice, kill a
process and compare. Set SAMPLES_JOURNAL to a folder that all processes of your Ray see; without it, nothing is noted.

To have time for a kill, write a number into `<instance id>.pass` in that folder: so many activities of the instance
pass, and the next one waits until the number is larger or the file is gone.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import ray_durable as durable

__all__ = ["JOURNAL_VARIABLE", "let_pass", "note", "noted"]

JOURNAL_VARIABLE = "SAMPLES_JOURNAL"

_HELD_S_MAX = 100.0


def note(line: str) -> None:
    """Note `line` for the running activity, and wait if it is held there."""
    folder, instance_id = os.environ.get(JOURNAL_VARIABLE), durable.current_activity().instance_id
    if folder is None:
        return
    # One write to a file that is opened to append: lines of several processes do not mix.
    with (Path(folder) / f"{instance_id}.journal").open("ab", buffering=0) as journal:
        journal.write(f"{line}\n".encode())
    place, began_s = len(noted(instance_id)), time.monotonic()
    while place > _allowed(Path(folder) / f"{instance_id}.pass"):
        if time.monotonic() - began_s > _HELD_S_MAX:
            raise TimeoutError(f"held for {_HELD_S_MAX:.0f} s: remove {instance_id}.pass from {folder}")
        time.sleep(0.01)


def noted(instance_id: str) -> list[str]:
    """The lines of an instance, in order."""
    try:
        return (Path(os.environ[JOURNAL_VARIABLE]) / f"{instance_id}.journal").read_text().splitlines()
    except FileNotFoundError:
        return []


def let_pass(instance_id: str, count: int | None) -> None:
    """Let so many activities of an instance pass in all, or everything (None)."""
    path = Path(os.environ[JOURNAL_VARIABLE]) / f"{instance_id}.pass"
    if count is None:
        path.unlink(missing_ok=True)
        return
    new = path.with_suffix(".new")
    new.write_text(str(count))
    new.replace(path)


def _allowed(path: Path) -> float:
    try:
        return int(path.read_text())
    except FileNotFoundError:
        return float("inf")
