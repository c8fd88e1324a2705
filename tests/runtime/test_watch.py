"""The watch of a worker, on real threads and signals: each scenario of `watched` runs in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from ray_durable.runtime import watch as watching

_REPOSITORY = Path(__file__).parents[2]
_TIMEOUT = "timeout ActivityTimeoutError"


def run(scenario: str, *, exit_code: int = 0) -> list[dict[str, Any]]:
    """What a scenario printed."""
    command = [sys.executable, "-m", "tests.runtime.watched", scenario]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=_REPOSITORY, check=False)
    assert done.returncode == exit_code, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("scenario", ["near_the_deadline", "off_the_main_thread"])
def test_an_interruption_that_comes_late_strikes_nobody(scenario: str) -> None:
    """Of many calls that end about when their time is up, each returns or times out; no other is harmed."""
    (found,) = run(scenario)
    assert set(found["near"]) == {"computed", "slept", _TIMEOUT}
    assert sum(found["near"].values()) == 1_200
    assert found["near"][_TIMEOUT] > 100
    assert found["quiet"] == {"computed": 600}


def test_a_call_that_sleeps_is_ended_in_time_and_its_neighbours_are_not() -> None:
    """Out of `time.sleep`; the calls before and after it return."""
    (found,) = run("sleeping")
    assert found["outcomes"] == ["slept", _TIMEOUT, "slept"]
    assert 0.3 < found["took_s"] < 2.0


def test_an_async_call_is_cancelled_and_its_cleanup_may_await() -> None:
    """Beside another one, which returns."""
    (found,) = run("cleaning_up")
    assert found["outcomes"] == ["slept", _TIMEOUT]
    assert found["noted"] == ["cleaned up 0.5", "cleaned up 1000"]
    assert found["took_s"] < 3.0


def test_an_async_call_that_blocks_its_loop_is_ended_too() -> None:
    """Half of the grace later, by the means for plain calls."""
    (found,) = run("blocking")
    assert found["outcomes"] == ["slept", _TIMEOUT]
    assert found["took_s"] < 3.0


def test_what_a_call_returns_late_counts() -> None:
    """It made the best of its interruption."""
    (found,) = run("late")
    assert found["outcomes"] == ["partial"]


def test_a_cleanup_that_fails_is_told_as_the_cause() -> None:
    """The failure is the timeout."""
    (found,) = run("stumbling")
    assert found["outcomes"] == [_TIMEOUT]
    assert found["cause"] == "KeyError"
    assert "TimeoutError" in found["bases"]


def test_withdrawn_calls_are_ended_or_not_begun() -> None:
    """What was meant for another slice of the session changes nothing."""
    (found,) = run("withdrawn")
    assert found["outcomes"] == ["cancelled ActivityCancelled", "slept", "cancelled ActivityCancelled", "slept"]
    assert found["noted"] == ["begins 1000", "begins 0.01", "begins 0.02"]


def test_a_call_that_shall_end_can_ask_and_is_told_by_its_heartbeat() -> None:
    """The reason is the exception's text."""
    (found,) = run("asking")
    assert found["outcomes"] == [_TIMEOUT]
    assert found["noted"][0] == "is_cancelled: True"
    assert "did not end within its timeout of 0.2 s" in found["noted"][1]


def test_heartbeats_are_passed_on_now_and_then_and_their_end_is_noticed() -> None:
    """The last details reach the report; the attempt saw those of the one before."""
    *told, found = run("beating")
    counts = [json.loads(line["heartbeats"]["0"])["count"] for line in told]
    assert counts == sorted(set(counts))
    assert 3 <= len(counts) <= 7
    assert found["noted"][0] == "before: {'count': -1}"
    assert found["noted"][1] == f"after: {found['said']}"
    assert found["kind"] == "timeout"
    assert "gave no heartbeat for its heartbeat_timeout of 0.4 s" in found["failure"]
    assert found["took_s"] < 3.0


def test_a_call_that_cannot_be_interrupted_is_ended_with_its_process() -> None:
    """What is done is reported first, with its failure; the rest has not begun."""
    began_s = time.monotonic()
    *_, told = run("stuck", exit_code=watching._EXIT_CODE)
    assert told["outcomes"] == ["slept"]
    assert told["condemned"] == [[1, "timeout"]]
    assert (told["done"], told["last"]) == (1, True)
    assert told["said"] == {"1": '{"at":1000.0}'}
    assert time.monotonic() - began_s < 30
