"""A user's script in another terminal, driven by a test: requests come as JSON lines, answers go to a descriptor.

It runs as `__main__`, so what it defines can be imported by nobody and travels by value.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from pydantic import BaseModel

import ray_durable as durable
from tests.cluster import flows

FACTOR = 3


@dataclass
class Order:
    """A value of the script's own type."""

    item: str
    count: int


class Receipt(BaseModel):
    """Another, of pydantic."""

    order: str
    total: int


def make_pricing(price: int) -> durable.Activity[[Order], Receipt]:
    """An activity that closes over `price`."""

    @durable.activity(name="price_order")
    def price_order(order: Order) -> Receipt:
        flows.note()
        return Receipt(order=order.item, total=FACTOR * price * order.count)

    return price_order


pricing = make_pricing(7)


@durable.orchestrator
async def buy(ctx: durable.OrchestrationContext, order: Order) -> Receipt:
    """Prices an order, waits for its approval, and prices another by name."""
    receipt = await ctx.call_activity(pricing, order)
    approved = await ctx.wait_for_external_event("Approved", Order)
    second: Receipt = await ctx.call_activity("price_order", approved)
    return Receipt(order=f"{receipt.order}+{second.order}", total=receipt.total + second.total)


class Session:
    """The requests."""

    def __init__(self) -> None:
        self.hub: durable.Hub

    def init_ray(self, **arguments: Any) -> str:
        """Start a Ray of this process's own, as a user does who has other things to do with it."""
        import ray

        ray.init(**arguments)
        return self.cluster()

    def connect(self, root: str, answer_timeout_s: float | None = None, **arguments: Any) -> str:
        if answer_timeout_s is not None:
            arguments["answer_timeout"] = timedelta(seconds=answer_timeout_s)
        self.hub = durable.connect(root, **arguments)
        return self.cluster()

    def cluster(self) -> str:
        """The address of the Ray that this process uses."""
        import ray

        return str(ray.get_runtime_context().gcs_address)

    def start(self, name: str, args: list[Any], instance_id: str) -> None:
        self.hub.start(getattr(flows, name), *args, instance_id=instance_id)

    def buy(self, item: str, count: int, instance_id: str) -> None:
        self.hub.start(buy, Order(item, count), instance_id=instance_id)

    def approve(self, item: str, count: int, instance_id: str) -> None:
        self.hub.get(instance_id).raise_event("Approved", Order(item, count))

    def receipt(self, instance_id: str) -> list[Any]:
        """The result of `buy`, and whether it is this script's own type."""
        result = self.hub.get(instance_id).result(60)
        return [isinstance(result, Receipt), result.order, result.total]

    def result(self, instance_id: str) -> Any:
        return self.hub.get(instance_id).result(90)

    def raise_event(self, instance_id: str, name: str, value: Any) -> None:
        self.hub.get(instance_id).raise_event(name, value)

    def instances(self) -> dict[str, str]:
        return {one.instance_id: str(one.runtime_status) for one in self.hub.instances()}

    def close(self) -> None:
        self.hub.close()


def main() -> None:
    """Answer until there are no more requests."""
    session = Session()
    with os.fdopen(int(sys.argv[1]), "w") as answers:
        for line in sys.stdin:
            arguments = json.loads(line)
            call: Callable[..., Any] = getattr(session, arguments.pop("request"))
            try:
                answer = {"value": call(**arguments)}
            except Exception as error:
                answer = {"error": type(error).__name__, "text": str(error)}
            print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
