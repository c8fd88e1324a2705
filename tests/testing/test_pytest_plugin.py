"""The fixtures, in a test session of a user's project."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from ray_durable.testing import Environment, export_history
from tests.testing import flows

SUITE = """
import pytest
from tests.testing import flows
import ray_durable as durable

def test_environment(durable_env):
    durable_env.replace(flows.send_mail, lambda to: "sent")
    handle = durable_env.start(flows.vet, "ann")
    handle.raise_event("Approval", True)
    assert handle.result() == "sent: approved"

def test_history(assert_replays):
    assert_replays("histories/vet.jsonl")

def test_events(durable_env, assert_replays):
    assert_replays(durable_env.start(flows.basket, ["pen"]).history())

@durable.orchestrator
async def changed(ctx, applicant):
    await ctx.call_activity(flows.price, applicant)

def test_changed(assert_replays):
    assert_replays("histories/vet.jsonl", changed)
"""


def test_a_project_uses_the_fixtures(tmp_path: Path) -> None:
    """One line in its conftest.py switches them on; a history that is not replayed fails its test."""
    (tmp_path / "conftest.py").write_text('pytest_plugins = ["ray_durable.testing.pytest_plugin"]\n')
    (tmp_path / "test_shop.py").write_text(SUITE)
    (tmp_path / "histories").mkdir()
    with Environment() as env:
        env.replace(flows.send_mail, lambda to: "sent")
        export_history(env.start(flows.vet, "ann"), tmp_path / "histories" / "vet.jsonl")
    project = Path(__file__).parents[2]
    completed = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(project)},
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert "1 failed, 3 passed" in completed.stdout, completed.stdout + completed.stderr
    assert "FAILED test_shop.py::test_changed" in completed.stdout
    assert "send_mail" in completed.stdout
