"""In the engine's tests, noise is an error: an unawaited coroutine, or an exception that the garbage collector met."""

from __future__ import annotations

from pathlib import Path

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            # First, so that a test's own marks can make exceptions.
            item.add_marker(pytest.mark.filterwarnings("error"), append=False)
