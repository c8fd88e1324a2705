"""What all tests share.

Tests that start a real Ray carry the mark `cluster`, so that `pytest -m "not cluster"` stays quick. Everything else
runs without Ray, and finds out at once when it does not.

`make test` runs two processes of pytest: all tests with a real Ray in one, which mostly waits, and the rest beside it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests with a real Ray share one, and two Rays would be in each other's way."""
    for item in items:
        if item.get_closest_marker("cluster") is not None:
            item.add_marker(pytest.mark.xdist_group("ray"))


@pytest.fixture(autouse=True)
def no_ray_without_mark(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that connected to Ray without carrying the mark `cluster`."""
    yield
    ray = sys.modules.get("ray")
    if request.node.get_closest_marker("cluster") is None and ray is not None and ray.is_initialized():
        pytest.fail("this test connected to Ray: mark it with @pytest.mark.cluster", pytrace=False)
