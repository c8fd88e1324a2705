"""What the runtime's tests share."""

from __future__ import annotations

import pytest

from tests.runtime import flows


@pytest.fixture(autouse=True)
def fresh_ledger() -> None:
    """Each test counts its own executions."""
    flows.runs.clear()
    flows.keys.clear()
    flows.Version.number = 1
