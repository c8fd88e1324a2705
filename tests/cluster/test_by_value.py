"""Functions and types that only the running script has."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.cluster.harness import Terminal, executions, wait_until


def test_functions_of_a_script_are_resumed_by_another_run_of_it(
    root: Path, terminals: Callable[..., Terminal], ray_init: dict[str, Any], instance_id: str
) -> None:
    """An orchestrator, an activity with a closure, a dataclass and a pydantic model of `__main__` work on a private
    local root; after SIGKILL of the script a second run of it goes on with the same instance by its id."""
    first = terminals("first")
    first.ask("connect", root=str(root), ray_init=ray_init)
    first.ask("buy", item="lamp", count=2, instance_id=instance_id)
    wait_until(lambda: len(executions(instance_id)) == 1, "the order is priced")
    first.kill()
    second = terminals("second")
    second.ask("connect", root=str(root), ray_init=ray_init)
    second.ask("approve", item="bulb", count=1, instance_id=instance_id)
    assert second.ask("receipt", instance_id=instance_id) == [True, "lamp+bulb", 3 * 7 * 3]
    assert len(executions(instance_id)) == 2
