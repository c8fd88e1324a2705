"""The code census as a user runs it: a process of its own, a real Ray, a real kill."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import code_census
from census_report import count_executions

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

FILES = 300


class Census:
    """Runs of the script over one tree, with one output and a private root of their own."""

    def __init__(self, folder: Path) -> None:
        self.tree = folder / "tree"
        self.output = folder / "census.parquet"
        self._environment = {
            **os.environ,
            "XDG_DATA_HOME": str(folder / "data"),
            "PYTHONPATH": str(Path(code_census.__file__).parents[1]),
        }
        # A large module, so that the work takes seconds: time enough to interrupt it.
        source = Path(argparse.__file__).read_bytes()
        self.tree.mkdir()
        for number in range(FILES):
            (self.tree / f"module_{number:03}.py").write_bytes(source)

    def start(self, *options: str) -> subprocess.Popen[str]:
        """The script, running."""
        command = [
            sys.executable,
            code_census.__file__,
            "--root",
            str(self.tree),
            "--output",
            str(self.output),
            *options,
        ]
        return subprocess.Popen(
            command,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            # Shells let what they run in the background ignore Ctrl-C, and that is inherited.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def keep(self, count: int) -> None:
        """Leave so many files in the tree."""
        for path in sorted(self.tree.iterdir())[count:]:
            path.unlink()

    def executions(self) -> int:
        """How many files the activities say that they have parsed."""
        ledger = Path(f"{self.output}.ledger")
        return sum(count_executions(str(run)).total() for run in ledger.glob("*"))

    def table_is_right(self) -> bool:
        """Whether the written table is the one that a plain computation gives."""
        files = code_census.find_files([str(self.tree)])
        expected = code_census.make_table([code_census.read_facts(path) for path in files])
        return bool(pq.read_table(self.output).equals(expected))


@pytest.fixture
def census(tmp_path: Path) -> Census:
    return Census(tmp_path)


def test_a_killed_orchestrator_costs_nothing(census: Census) -> None:
    """After SIGKILL half-way another process goes on, the table is the same, and no file was parsed twice. The run is
    finished then: the next one of the same command is a new instance."""
    process = census.start("--kill-halfway")
    text, _ = process.communicate()
    assert process.returncode == 0, text
    assert "Killed the orchestrator" in text
    assert f"{FILES} files, {FILES} executions, 0 parsed twice" in text
    assert census.table_is_right()
    assert "-0001:" in text
    census.keep(10)
    text, _ = census.start().communicate()
    assert "-0002:" in text
    assert census.table_is_right()


def test_an_interrupted_run_goes_on(census: Census) -> None:
    """Ctrl-C ends the script and its Ray; the same command finds the run and ends it, with the right table."""
    process = census.start()
    wait_until_parsing(process, census)
    process.send_signal(signal.SIGINT)
    text, _ = process.communicate()
    assert process.returncode == 130, text
    assert "Interrupted, not lost" in text
    instance_id = text.partition("Started ")[2].partition(":")[0]

    again = census.start()
    text, _ = again.communicate()
    assert again.returncode == 0, text
    assert f"Going on with {instance_id}:" in text
    assert census.table_is_right()


def wait_until_parsing(process: subprocess.Popen[str], census: Census) -> None:
    """Return once some files were parsed and most were not."""
    deadline_s = time.monotonic() + 120
    while census.executions() < 10:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline_s, "the census did not begin to parse"
        time.sleep(0.05)
