"""Processes of this machine, as /proc shows them; and signals to them."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
from pathlib import Path

__all__ = ["adopt_orphans", "children_of", "is_alive", "kill", "processes_below", "reap", "title_of"]

_PR_SET_CHILD_SUBREAPER = 36


def kill(pid: int) -> None:
    """SIGKILL."""
    os.kill(pid, signal.SIGKILL)


def is_alive(pid: int) -> bool:
    """Whether the process runs (one that has ended and was not waited for does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def title_of(pid: int) -> str:
    """The command line; empty once the process has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0 ").decode(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""


def children_of(pid: int) -> set[int]:
    """The living processes whose parent is `pid`."""
    return {child for child in _children().get(pid, ()) if is_alive(child)}


def processes_below(pid: int) -> set[int]:
    """The living processes that descend from `pid`."""
    children = _children()
    found, border = set[int](), {pid}
    while border := {child for parent in border for child in children.get(parent, ())}:
        found |= border
    return {child for child in found if is_alive(child)}


def adopt_orphans() -> None:
    """From now on, what descends from this process stays below it when its parent dies, and can be accounted for."""
    # Not to be had otherwise: the standard library has no call for it.
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER) failed")


def reap(pids: set[int]) -> None:
    """Ask after adopted processes that have ended, so that they leave the table of processes."""
    for pid in pids:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)


def _children() -> dict[int, list[int]]:
    """The children of each process, by its id."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(entry.name))
    return children
