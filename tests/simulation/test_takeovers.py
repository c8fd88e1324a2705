"""A cluster takes the hub from another one at every step, and whatever stands still there: the older stands down."""

from __future__ import annotations

import pytest

from tests.simulation.corpus import CASES
from tests.simulation.takeovers import takeovers


@pytest.mark.parametrize("name", ["queues", "chain"])
@pytest.mark.timeout(300)
def test_wherever_the_hub_is_taken_over_the_older_cluster_stands_down(name: str) -> None:
    """It starts nothing that is queued, claims nothing by a process that begins anew, and all ends as it should."""
    count, failures = 0, []
    for told, run in takeovers(CASES[name]):
        count += 1
        try:
            run()
        except Exception as error:
            failures.append(f"{told}: {type(error).__name__}: {error}")
    assert not failures, "\n\n".join(failures[:3])
    assert count > 100
