"""Several processes on one root: they share a Ray, and whoever is left takes over."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ray_durable as durable
from tests.cluster.flows import go_path
from tests.cluster.harness import Terminal, TerminalError, executions, recorded_keys, repeated, wait_until


def test_second_terminal_joins_and_takes_over(
    root: Path, terminals: Callable[..., Terminal], ray_init: dict[str, Any], instance_id: str
) -> None:
    """A second process joins the Ray of the first, sees and awaits its instances, and starts its own; when the first
    ends, and its Ray with it, a call of the second that is under way takes over and gets its result."""
    chain, long, own = (f"{instance_id}-{kind}" for kind in ("chain", "long", "own"))
    first, second = terminals("first"), terminals("second")
    cluster = first.ask("connect", root=str(root), ray_init=ray_init)
    first.ask("start", name="steps_then_approval", args=[10], instance_id=chain)
    assert second.ask("connect", root=str(root), ray_init=ray_init) == cluster
    assert second.ask("instances").keys() == {chain}
    second.ask("start", name="march", args=[5], instance_id=own)
    assert second.ask("result", instance_id=own) == 5
    assert first.ask("result", instance_id=own) == 5
    second.ask("start", name="spread_waiting", args=[2], instance_id=long)
    wait_until(lambda: len(executions(long)) == 2, "the activities run")
    wait_until(lambda: len(executions(chain)) == 10, "the steps are made")

    second.send("result", instance_id=long)
    first.ask("close")
    first.end()
    go_path(long).touch()
    assert len(second.answer()) == 2
    assert second.ask("cluster") != cluster
    second.ask("raise_event", instance_id=chain, name="Approval", value="yes")
    assert second.ask("result", instance_id=chain) == "yes after 10"
    assert not repeated(chain)


def test_living_holder_of_another_ray_keeps_the_hub_until_it_is_taken(
    root: Path, terminals: Callable[..., Terminal], ray_init: dict[str, Any], instance_id: str
) -> None:
    """A process with another Ray is told who holds the hub; it may take it. The former holder's callers are told, its
    instances go on with the new one, and nothing is recorded twice."""
    chain, asks = f"{instance_id}-chain", f"{instance_id}-asks"
    first, second = terminals("first"), terminals("second")
    cluster = first.ask("connect", root=str(root), ray_init=ray_init)
    first.ask("start", name="steps_then_approval", args=[10], instance_id=asks)
    first.ask("start", name="march", args=[400], instance_id=chain)
    second.ask("init_ray", include_dashboard=False, **ray_init)
    with pytest.raises(TerminalError) as caught:
        second.ask("connect", root=str(root))
    assert caught.value.name == "HubHeldError"
    assert cluster in caught.value.text
    assert "takeover=True" in caught.value.text

    wait_until(lambda: len(executions(chain)) > 20, "the chain is on its way")
    with durable.browse(root) as reader:
        first.send("result", instance_id=chain)
        second.ask("connect", root=str(root), takeover=True)
        recorded = recorded_keys(reader, chain)
        assert second.ask("result", instance_id=chain) == 400
        assert first.answer() == 400, "a result is a result, whoever found it"
        assert not recorded & repeated(chain).keys()
        assert len(recorded_keys(reader, chain)) == 400
        # Until the new holder has claimed its log, the former owner's word still counts.
        wait_until(lambda: (owner := reader.get(asks).owner()) is not None and owner.epoch > 1, "it has a new owner")

    with pytest.raises(TerminalError) as caught:
        first.ask("raise_event", instance_id=asks, name="Approval", value="from the first")
    assert caught.value.name == "HubHeldError"
    second.ask("raise_event", instance_id=asks, name="Approval", value="from the second")
    assert second.ask("result", instance_id=asks) == "from the second after 10"
