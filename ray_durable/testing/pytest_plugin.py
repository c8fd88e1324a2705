"""Fixtures for pytest: `durable_env` and `assert_replays`.

Switched on by a line in the topmost conftest.py, so that no other project's tests load anything:

    pytest_plugins = ["ray_durable.testing.pytest_plugin"]
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import pytest

from ray_durable.authoring import Orchestrator
from ray_durable.engine import Event
from ray_durable.testing.environment import Environment
from ray_durable.testing.replayer import check_history

__all__ = ["AssertReplays", "assert_replays", "durable_env"]


class AssertReplays(Protocol):
    """Fails the test, with the difference, if a history is not replayed by today's code."""

    def __call__(
        self,
        history: Sequence[Event] | str | os.PathLike[str],
        orchestrator: Orchestrator[..., Any] | None = None,
        *,
        allows_pickle: bool = False,
    ) -> None:
        """See `check_history`. A relative path begins at the folder of the test."""


@pytest.fixture
def durable_env() -> Iterator[Environment]:
    """An environment for this test alone."""
    with Environment() as env:
        yield env


@pytest.fixture
def assert_replays(request: pytest.FixtureRequest) -> AssertReplays:
    """Asserts that a recorded history fits today's code."""

    def check(
        history: Sequence[Event] | str | os.PathLike[str],
        orchestrator: Orchestrator[..., Any] | None = None,
        *,
        allows_pickle: bool = False,
    ) -> None:
        if isinstance(history, str | os.PathLike):
            history = request.path.parent / Path(history)
        found = check_history(history, orchestrator, allows_pickle=allows_pickle)
        if not found:
            pytest.fail(str(found), pytrace=False)

    return check
