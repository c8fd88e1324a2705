"""Two clusters on one root: one takes the hub from the other, whose processes stand still meanwhile, and back again."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray_durable as durable
from ray_durable.engine import OwnerClaimed, TaskCompleted
from ray_durable.reader import HubReader
from ray_durable.runtime.tenure import LOOK_S
from tests.cluster.harness import Terminal, executions, is_alive, wait_until
from tests.support.processes import processes_below, title_of

COUNT = 80

SEEN_S_MAX = LOOK_S + 10
"""A dispatcher looks who holds the hub every `LOOK_S`. The rest is for a busy machine."""


def actors(terminal: Terminal, kind: str = "") -> list[int]:
    """The processes of the hub's actors on the terminal's Ray: of all, or of those of one kind."""
    kinds = [f"ray::{one}Actor" for one in ([kind] if kind else ["Supervisor", "Dispatcher", "Orchestration"])]
    return [pid for pid in processes_below(terminal.process.pid) if title_of(pid).startswith(tuple(kinds))]


def send(pids: list[int], number: signal.Signals) -> None:
    for pid in filter(is_alive, pids):
        os.kill(pid, number)


def run_by(terminal: Terminal, instance_id: str) -> int:
    """How many activities of the instance the terminal's cluster has begun."""
    return sum(execution.pid in terminal.look() for execution in executions(instance_id))


def check_recorded_once(reader: HubReader, instance_id: str, count: int) -> None:
    """Each activity has one outcome in the log, and hub epochs follow one another."""
    history = reader.get(instance_id).history()
    outcomes = Counter(event.task for event in history if isinstance(event, TaskCompleted))
    assert sorted(outcomes.values()) == [1] * count
    hub_epochs = [event.hub_epoch for event in history if isinstance(event, OwnerClaimed)]
    assert hub_epochs == sorted(hub_epochs)
    assert len(set(hub_epochs)) > 1, "a newer cluster went on with it"


def test_a_cluster_that_lost_the_hub_stands_down_whatever_stands_still(
    root: Path, terminals: Callable[..., Terminal], ray_init: dict[str, Any], instance_id: str
) -> None:
    """The supervisor of the first cluster is stopped when the second takes the hub. Its dispatcher sees that by itself
    and starts nothing more of what is queued, all processes of its actors end, the stopped one too, and every instance
    completes with the second. Then all actors of the second are stopped, and the first takes the hub back: what goes on
    then, finds itself replaced, and leaves. Nobody takes the hub unasked."""
    first_queue, second_queue, asks = (f"{instance_id}-{kind}" for kind in ("first", "second", "asks"))
    first, second = terminals("first"), terminals("second")
    first.send("init_ray", include_dashboard=False, **ray_init)
    second.send("init_ray", include_dashboard=False, **ray_init)
    first.answer()
    # Nobody but the dispatcher is to notice.
    first.ask("connect", root=str(root), answer_timeout_s=90)
    first.ask("start", name="steps_then_approval", args=[3], instance_id=asks)
    first.ask("start", name="queues_up", args=[COUNT], instance_id=first_queue)
    wait_until(lambda: len(executions(first_queue)) > 4 and len(executions(asks)) == 3, "all are on their way")
    old, supervisors = actors(first), actors(first, "Supervisor")
    assert len(old) == 4
    assert len(supervisors) == 1
    second.answer()

    send(supervisors, signal.SIGSTOP)
    second.ask("connect", root=str(root), takeover=True)
    taken_s = time.monotonic()
    dispatcher = actors(first, "Dispatcher")
    wait_until(lambda: not any(map(is_alive, dispatcher)), "the old dispatcher stands down", timeout_s=SEEN_S_MAX)
    started = run_by(first, first_queue)
    print(f"stood down after {time.monotonic() - taken_s:.1f} s, having begun {started} of {COUNT} activities")
    assert started < COUNT
    send(supervisors, signal.SIGCONT)
    wait_until(lambda: not actors(first), "no process of the old hub's actors is left")
    assert second.ask("result", instance_id=first_queue) == COUNT * (COUNT - 1) // 2
    assert run_by(first, first_queue) == started, "the old cluster started nothing more"

    second.ask("start", name="queues_up", args=[COUNT], instance_id=second_queue)
    wait_until(lambda: len(executions(second_queue)) > 4, "it is on its way")
    with durable.browse(root) as reader:
        wait_until(
            lambda: (owner := reader.get(asks).owner()) is not None and owner.pid in actors(second), "it is, too"
        )
        stopped = actors(second)
        send(stopped, signal.SIGSTOP)
        first.ask("connect", root=str(root), takeover=True)
        first.ask("raise_event", instance_id=asks, name="Approval", value="yes")
        assert first.ask("result", instance_id=asks) == "yes after 3"
        send(stopped, signal.SIGCONT)
        wait_until(lambda: not any(map(is_alive, stopped)), "those that went on have ended")
        assert first.ask("result", instance_id=second_queue) == COUNT * (COUNT - 1) // 2
        assert not actors(second)
        check_recorded_once(reader, first_queue, COUNT)
        check_recorded_once(reader, second_queue, COUNT)
        check_recorded_once(reader, asks, 3)
    assert len(list(root.glob("*/lease/epochs/*"))) == 3
