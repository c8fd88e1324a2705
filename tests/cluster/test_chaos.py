"""The chaos command: kills under a mixed load, after which logs, ledger and acknowledgements agree."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

_REPOSITORY = Path(__file__).parents[2]
_DEADLINE_S = 400


def chaos(*options: str) -> str:
    """What the command prints, once it has found no violation."""
    ended = subprocess.run(
        [sys.executable, "-m", "tests.chaos", *options],
        cwd=_REPOSITORY,
        # Its own clusters get nothing of this process's Ray.
        env={name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=_DEADLINE_S,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout
    return ended.stdout


@pytest.mark.timeout(_DEADLINE_S)
def test_nothing_is_lost_with_a_cluster() -> None:
    """Fifty instances of all kinds are under way when all processes of their Ray are killed, the head's too. Another
    Ray connects to the root, and all go on by themselves; none is lost, and nothing that was recorded runs again."""
    options = ["--only", "cluster", "--kills", "cluster=1", "--instances", "50", "--total", "50", "--nodes", "0"]
    assert "0 violations" in chaos(*options, "--size", "0.3", "--seed", "50")


@pytest.mark.timeout(_DEADLINE_S)
def test_nothing_is_lost_with_processes_and_nodes() -> None:
    """A few kills of everything else: orchestrators, workers, dispatcher, supervisor, a node, and one that stands still
    until it has been replaced; and another cluster takes the hub."""
    options = ["--quick", "--kills", "cluster=0", "orchestrator=4", "worker=4", "--instances", "6", "--nodes", "1"]
    assert "0 violations" in chaos(*options, "--seed", "7")


def test_a_wrong_option_is_refused() -> None:
    """The command says what it does not know, before it starts anything."""
    ended = subprocess.run(
        [sys.executable, "-m", "tests.chaos", "--kills", "moon=1"],
        cwd=_REPOSITORY,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 2
    assert "give KIND=N" in ended.stderr
