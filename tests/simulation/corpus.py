"""The reference orchestrations: what clients do with them, and how each may end.

How a case ends is the reference model's word, unless clients do more to it than raise events, or an event races with a
timer: then the case says which ends there are.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from typing import Any

from ray_durable import registry
from ray_durable.authoring import Orchestrator
from ray_durable.engine import RuntimeStatus
from ray_durable.errors import DurableError
from ray_durable.runtime.schedules import (
    Overlap,
    ScheduleOptions,
    define_schedule,
    delete_schedule,
    load_schedule,
)
from ray_durable.testing.simulation import Client, ClientCode, Simulation, model_outcome
from tests.runtime import flows, model
from tests.simulation import orchestrators as own

__all__ = ["CASES", "Case"]

Outcome = tuple[str, Any]


@dataclass(frozen=True, kw_only=True)
class Case:
    """An orchestration with its clients. `ends` are its possible ends, by instance; None: the reference model's."""

    name: str
    clients: Sequence[ClientCode]
    model: Callable[[], Outcome] | None = None
    ends: dict[str, Sequence[Outcome]] | None = None

    @cached_property
    def expected(self) -> dict[str, list[str]]:
        """The possible ends, comparable."""
        _reset()
        told = {"one": [self.model()]} if self.model is not None else {}
        return {name: [json.dumps(end) for end in ends] for name, ends in {**told, **(self.ends or {})}.items()}

    def prepare(self) -> None:
        """Begin as if nothing had ever run."""
        assert self.expected, "a case says how it may end"
        _reset()

    def check(self, simulation: Simulation) -> None:
        """It ended as it should."""
        for instance_id, ends in self.expected.items():
            found = json.dumps(simulation.outcome(instance_id))
            assert found in ends, f"{self.name}: {instance_id!r} ended as {found} instead of {' or '.join(ends)}"


def _reset() -> None:
    flows.runs.clear()
    flows.keys.clear()
    model.reset()
    own.broken.clear()


def _client(
    function: Orchestrator[..., Any], args: Sequence[Any], events: Sequence[tuple[float, str, Any]]
) -> ClientCode:
    async def work(client: Client) -> None:
        await client.start(function, *args)
        passed_s = 0.0
        for after_s, name, value in events:
            await asyncio.sleep(after_s - passed_s)
            passed_s = after_s
            await client.raise_event(name, value)
        await client.read()
        await client.ended()

    return work


CASES: dict[str, Case] = {}


def _add(case: Case) -> None:
    assert case.name not in CASES, case.name
    CASES[case.name] = case


def _case(
    function: Orchestrator[..., Any],
    *args: Any,
    events: Sequence[tuple[float, str, Any]] = (),
    ends: Sequence[Outcome] | None = None,
    name: str = "",
) -> None:
    _add(
        Case(
            name=name or function.name.rpartition(".")[2],
            clients=[_client(function, args, events)],
            model=None if ends is not None else lambda: model_outcome(function, args, events),
            ends=None if ends is None else {"one": ends},
        )
    )


_case(flows.chain, 3)
_case(flows.fan, 4)
_case(flows.fan_async, 2)
_case(flows.mapped, 5)
_case(flows.approval, events=[(1, "Approval", "a"), (20, "Approval", "b")])
_case(
    flows.approval_or_timeout,
    1,
    events=[(30, "Approval", "yes")],
    ends=[("Completed", "yes"), ("Completed", "too late")],
)
_case(flows.retried, 2)
_case(flows.failing, 1)
_case(flows.map_collects, 5)
_case(flows.map_tolerates, 5, 2)
_case(flows.map_retried, 4, 5)
_case(flows.local_chain, 2)
_case(flows.local_fan, 3)
_case(flows.local_failing)
_case(flows.two_functions)
_case(flows.large, "x" * 40_000)
_case(flows.mixed, events=[(0.5, "Go", "x")])
_case(model.caller, "a")
_case(model.clan, 3)
_case(model.named_parent, "kid")
_case(model.goes_round, 3, 0)
_case(model.gathers_items, 3, [], events=[(1, "Item", "a"), (2, "Item", "b"), (9, "Item", "c")])
_case(model.parent_of_rounds, 2)
_case(model.side_by_side, ["a", "b", "c"])
_case(model.map_of_work, ["a", "b", "c"])
_case(model.gates, events=[(1, "Gate", 1), (40, "Gate", 2)])
_case(own.two_stages, 6)
_case(own.queues, 10)
_case(own.generator_chain, "a")
_case(own.generator_fan, 3)
_case(own.generator_catches)
_case(own.races)
_case(own.timers_in_order)
_case(own.side_effects)
_case(own.patched)
_case(own.chance)
_case(own.statuses, 3)
_case(own.retries_all)
_case(own.gives_up)
_case(own.unordered, 4)
_case(own.collects, 3, events=[(0.1, "Number", 2), (0.2, "Number", 3), (12, "Number", 4)])
_case(own.two_doors, events=[(0.5, "Right", "r"), (0.6, "Left", "l")])
_case(own.accumulates, 0, 3, events=[(0.1, "Number", 1), (0.2, "Number", 2), (0.3, "Number", 3)])
_case(own.loops, 3)
_case(own.tree, 2)
_case(own.children_with_trouble)
_case(own.child_retried)
_case(own.cancels_child)
_case(own.locals_and_others)
_case(own.cleans_up)
_case(own.group_fails)
_case(own.queue_of_work, 4)
_case(own.asks_child_by_event)


def _controlled(name: str, *clients: ClientCode, **ends: Sequence[Outcome]) -> None:
    _add(Case(name=name, clients=clients, ends=ends))


async def _talks_to_child(client: Client) -> None:
    await client.start(model.parent_of_waiting, "kid")
    await client.there("kid")
    await client.raise_event("Go", "hello", instance_id="kid")
    await client.ended()


async def _talks_to_left_child(client: Client) -> None:
    await client.start(model.leaves_children, "kid")
    await client.ended()
    await client.there("kid")
    await client.raise_event("Go", "hello", instance_id="kid")
    await client.ended("kid")


async def _waits_for_three(client: Client) -> None:
    await client.start(own.collects, 3)
    await client.there("sender")
    await client.ended()


async def _sends_three(client: Client) -> None:
    await client.there("one")
    await client.start(own.sends_to, "one", 3, instance_id="sender")
    await client.ended("sender")


async def _accumulates_at_once(client: Client) -> None:
    """All events come together, so that some wait while the next execution begins."""
    await client.start(own.accumulates_slowly, 0, 4)
    await asyncio.gather(*(client.raise_event("Number", number) for number in range(1, 5)))
    await client.ended()


async def _terminates(client: Client) -> None:
    await client.start(own.waits_with_child)
    await asyncio.sleep(2)
    await client.command("terminate", "enough", True)
    await client.ended()


async def _terminates_loop(client: Client) -> None:
    """It may have come to its end before: its clock may be an hour ahead, or nobody can ask it for as long."""
    await client.start(own.loops, 50)
    await asyncio.sleep(3)
    if await client.command("terminate", "enough", True):
        client.notes.add("terminated")
    end = await client.ended()
    assert end.status is RuntimeStatus.TERMINATED or "terminated" not in client.notes


async def _suspends(client: Client) -> None:
    await client.start(own.loops, 2)
    await client.command("suspend", "a moment")
    await asyncio.sleep(7)
    await client.command("resume", "go on")
    await client.ended()


async def _rewinds(client: Client, function: Orchestrator[..., Any]) -> None:
    """What is broken is mended after the first failure, and nothing fails any more."""
    own.broken.add("second")
    await client.start(function)
    end = await client.ended()
    own.broken.clear()
    while end.status is RuntimeStatus.FAILED:
        with contextlib.suppress(DurableError):
            await client.hub.rewind("one", "mended")
        end = await client.ended()


async def _rewinds_calls(client: Client) -> None:
    await _rewinds(client, own.mends)


async def _rewinds_children(client: Client) -> None:
    await _rewinds(client, own.mends_with_children)


async def _restarts(client: Client) -> None:
    await client.start(own.two_stages, 3)
    await client.ended()
    await client.attempt(lambda: client.hub.restart("one", None, "again"))
    await client.ended()


async def _restarts_twice_at_once(client: Client) -> None:
    await client.start(own.loops, 1)
    await client.ended()
    await asyncio.gather(*(client.attempt(lambda: client.hub.restart("one", None, "again")) for _ in range(2)))
    await client.ended()


async def _forks(client: Client) -> None:
    await client.start(own.mends)
    await client.ended()
    await client.attempt(lambda: client.hub.fork("one", "two", 4, None))
    await client.there("two")
    await client.ended("two")


async def _purges_and_reuses(client: Client) -> None:
    if "a" not in client.notes:
        await client.start(own.leaf, "a")
        await client.ended()
        client.notes.add("a")
    await client.attempt(lambda: client.hub.purge("one"))
    await client.insist(lambda: client.hub.begin(own.leaf, "b", instance_id="one"))
    await client.ended()


async def _reuses(client: Client) -> None:
    if "a" not in client.notes:
        await client.start(own.leaf, "a")
        await client.ended()
        client.notes.add("a")
    await client.insist(lambda: client.hub.begin(own.collects, 1, instance_id="one"))
    await client.raise_event("Number", 5)
    await client.ended()


async def _schedules(client: Client, overlap: Overlap) -> None:
    """Two firings at least, and then no more."""
    hub, function = client.opened, own.loops
    options = ScheduleOptions(cron="*/10 * * * *", timezone="UTC", overlap=overlap, catch_up=timedelta(minutes=30))
    encoded = hub.codec.encode_call(function.calls, (1,), {}, where="arguments")
    if "defined" not in client.notes:
        reference, now_us = registry.reference_of(function).to_json(), client.hub.now_us()
        wanted = options.schedule("often", function, encoded, reference, now_us)
        await client.attempt(lambda: define_schedule(hub, wanted))
        client.notes.add("defined")
    while "deleted" not in client.notes:
        await asyncio.sleep(60)
        with contextlib.suppress(DurableError):
            if (await load_schedule(hub, "often")).started >= 2:
                client.notes.add("deleted")
    await client.attempt(lambda: delete_schedule(hub, "often"))
    await client.start(own.leaf, "a")
    await client.ended()


async def _schedules_one_by_one(client: Client) -> None:
    await _schedules(client, "skip")


async def _schedules_the_newest(client: Client) -> None:
    await _schedules(client, "cancel_previous")


_controlled("schedules_one_by_one", _schedules_one_by_one, one=[("Completed", "A")])
_controlled("schedules_the_newest", _schedules_the_newest, one=[("Completed", "A")])
_controlled("talks_to_child", _talks_to_child, one=[("Completed", "hello")], kid=[("Completed", "hello")])
_controlled("talks_to_left_child", _talks_to_left_child, one=[("Completed", "left")], kid=[("Completed", "hello")])
_controlled("two_instances", _waits_for_three, _sends_three, one=[("Completed", 14)], sender=[("Completed", "sent")])
_controlled("accumulates_at_once", _accumulates_at_once, one=[("Completed", 10)])
_controlled("terminates", _terminates, one=[("Terminated", "enough")])
_controlled("terminates_loop", _terminates_loop, one=[("Terminated", "enough"), ("Completed", "done")])
_controlled("suspends", _suspends, one=[("Completed", "done")])
_controlled("rewinds_calls", _rewinds_calls, one=[("Completed", ["FIRST", "SECOND", "THIRD"])])
_controlled("rewinds_children", _rewinds_children, one=[("Completed", ["FIRST", "SECOND"])])
_controlled("restarts", _restarts, one=[("Completed", 5)])
_controlled("restarts_twice_at_once", _restarts_twice_at_once, one=[("Completed", "done")])
_MENDED = ("Completed", ["FIRST", "SECOND", "THIRD"])
_controlled("forks", _forks, one=[_MENDED], two=[_MENDED])
_controlled("purges_and_reuses", _purges_and_reuses, one=[("Completed", "A"), ("Completed", "B")])
_controlled("reuses", _reuses, one=[("Completed", "A"), ("Completed", 25)])
