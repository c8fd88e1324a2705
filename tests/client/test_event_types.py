"""Events whose values are no plain JSON, on a hub that trusts no pickle: the type is said on both sides."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from datetime import date
from typing import Any

import pytest

import ray_durable as durable
from ray_durable.errors import SerializationError
from ray_durable.testing import Environment


@dataclass(frozen=True)
class Order:
    id: uuid.UUID
    at: date


ORDER = Order(uuid.UUID(int=7), date(2026, 3, 1))
TYPES: dict[str, Any] = {"order": Order, "orders": list[Order], "pair": tuple[int, date], "set": set[int]}


@durable.orchestrator
async def awaits_typed(ctx: durable.OrchestrationContext, kind: str) -> str:
    return repr(await ctx.wait_for_external_event("Value", TYPES[kind]))


@durable.orchestrator
async def sends_an_order(ctx: durable.OrchestrationContext, receiver: str) -> None:
    ctx.send_event(receiver, "Value", ORDER, type=Order)


@pytest.mark.parametrize(
    ("kind", "value"), [("order", ORDER), ("orders", [ORDER]), ("pair", (1, ORDER.at)), ("set", {1, 2})]
)
def test_a_value_of_a_type_that_was_said_arrives_as_it_was(kind: str, value: Any) -> None:
    """And without its type it is refused, with a word on that."""
    with Environment(allows_pickle=False) as env:
        handle = env.start(awaits_typed, kind)
        with pytest.raises(SerializationError, match=r"for an event by type="):
            handle.raise_event("Value", value)
        handle.raise_event("Value", value, type=TYPES[kind])
        assert handle.result() == repr(value)


def test_another_instance_sends_it_alike() -> None:
    with Environment(allows_pickle=False) as env:
        handle = env.start(awaits_typed, "order")
        env.start(sends_an_order, handle.instance_id).result()
        assert handle.result() == repr(ORDER)


@pytest.mark.parametrize("allows_pickle", [False, True])
def test_a_value_of_another_type_than_was_said_is_refused(allows_pickle: bool) -> None:
    """Wherever the hub lies, before anything is recorded."""
    with Environment(allows_pickle=allows_pickle) as env:
        handle = env.start(awaits_typed, "order")
        with pytest.raises(SerializationError, match=r"value of event 'Value': expected .*Order, not str"):
            handle.raise_event("Value", "an order", type=Order)
        assert len(handle.history()) == 2
