"""The script that started the local Ray is killed, and its Ray with it: the next connect resumes everything."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

import ray_durable as durable
from tests.cluster.flows import go_path
from tests.cluster.harness import Terminal, executions, is_alive, kill, recorded_keys, repeated, wait_until
from tests.support.processes import title_of

COUNT = 2_000
"""Of the items of the map."""

STEPS = 150
"""Of the chain."""


class Work:
    """Four unfinished instances of different kinds, in the middle of their work."""

    def __init__(self, prefix: str, root: Path) -> None:
        self.chain, self.map, self.waiting, self.approval = (
            f"{prefix}-{kind}" for kind in ("chain", "map", "waiting", "approval")
        )
        self.ids = (self.chain, self.map, self.waiting, self.approval)
        self._root = root

    @cached_property
    def reader(self) -> durable.HubReader:
        """Opened when the first terminal has made the hub."""
        return durable.browse(self._root)

    def start(self, terminal: Terminal) -> None:
        """Start all, and return when each is in the middle."""
        terminal.ask("start", name="steps_then_approval", args=[20], instance_id=self.approval)
        terminal.ask("start", name="spread_waiting", args=[2], instance_id=self.waiting)
        terminal.ask("start", name="march", args=[STEPS], instance_id=self.chain)
        wait_until(lambda: len(executions(self.waiting)) == 2, "the long activities run")
        wait_until(lambda: len(executions(self.approval)) == 20, "the steps are made")
        wait_until(lambda: len(executions(self.chain)) > 50, "the chain is on its way")
        terminal.ask("start", name="spread_slowly", args=[COUNT], instance_id=self.map)
        wait_until(lambda: len(executions(self.map)) > 300, "the map is on its way")

    def recorded(self) -> dict[str, set[str]]:
        """By instance, the keys of calls whose outcome is recorded."""
        return {instance_id: recorded_keys(self.reader, instance_id) for instance_id in self.ids}

    def check(self, recorded: dict[str, set[str]]) -> None:
        """All end rightly by themselves, and what was `recorded` ran once."""
        go_path(self.waiting).touch()
        for instance_id, result in ((self.chain, STEPS), (self.map, COUNT * (COUNT - 1))):
            assert self.reader.get(instance_id).result(90) == result
        assert len(self.reader.get(self.waiting).result(60)) == 2
        for instance_id in self.ids:
            assert not recorded[instance_id] & repeated(instance_id).keys(), instance_id
        # One step of the chain may have been under way, and was its outcome lost, the next begins there.
        assert max(Counter(execution.key for execution in executions(self.chain)).values()) <= 2
        assert len(executions(self.chain)) <= STEPS + 1


@pytest.fixture
def work(request: pytest.FixtureRequest, root: Path, ledgers: Path) -> Work:
    return Work(request.node.name, root)


def test_next_connect_resumes_all(
    work: Work, root: Path, terminals: Callable[..., Terminal], ray_init: dict[str, Any]
) -> None:
    """After SIGKILL of the script and the end of its Ray, connecting is enough: all unfinished instances go on."""
    first = terminals("first")
    first.ask("connect", root=str(root), ray_init=ray_init)
    work.start(first)
    first.kill()
    wait_until(lambda: not any(map(is_alive, _but_agents(first))), "its Ray ends by itself")
    recorded = work.recorded()
    assert 0 < len(recorded[work.map]) < COUNT
    second = terminals("second")
    second.ask("connect", root=str(root), ray_init=ray_init)
    work.check(recorded)
    second.ask("raise_event", instance_id=work.approval, name="Approval", value="yes")
    assert second.ask("result", instance_id=work.approval) == "yes after 20"


def test_connect_while_the_killed_cluster_still_dies(
    work: Work, root: Path, terminals: Callable[..., Terminal], ray_init: dict[str, Any]
) -> None:
    """Whoever connects at the very moment of the kill may meet the dying Ray; its next call takes over."""
    first, second = terminals("first"), terminals("second")
    first.ask("connect", root=str(root), ray_init=ray_init)
    work.start(first)
    recorded = work.recorded()
    first.kill()
    second.ask("connect", root=str(root), ray_init=ray_init)
    second.ask("raise_event", instance_id=work.approval, name="Approval", value="yes")
    assert second.ask("result", instance_id=work.approval) == "yes after 20"
    work.check(recorded)


def test_ray_is_killed_and_the_script_lives(
    work: Work, root: Path, terminals: Callable[..., Terminal], ray_init: dict[str, Any]
) -> None:
    """When Ray's processes are all killed under a living script, another script resumes its instances."""
    first = terminals("first")
    first.ask("connect", root=str(root), ray_init=ray_init)
    work.start(first)
    for pid in first.look():
        if is_alive(pid):
            kill(pid)
    recorded = work.recorded()
    second = terminals("second")
    second.ask("connect", root=str(root), ray_init=ray_init)
    work.check(recorded)


def _but_agents(terminal: Terminal) -> set[int]:
    """The processes of the terminal's Ray that could touch a hub: Ray's agents take longer to notice."""
    return {pid for pid in terminal.look() if not title_of(pid).endswith("Agent")}
