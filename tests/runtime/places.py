"""An orchestrator with a payload in every place of its log where one can stand."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any

import ray_durable as durable


@dataclasses.dataclass
class Order:
    """Only pickle holds it where nothing is annotated."""

    item: str


@durable.activity
def hand_back(value: Any) -> Any:
    return value


@durable.activity
def tells_and_fails(value: Any) -> None:
    durable.current_activity().heartbeat(value)
    raise ValueError("no")


@durable.orchestrator
async def handed_back(ctx: durable.OrchestrationContext, value: Any) -> Any:
    return value


@durable.orchestrator
async def everything(ctx: durable.OrchestrationContext, value: Any) -> Any:
    """A payload in every place where one can stand; then it waits, and looks at what it got."""
    seen = [await ctx.call_activity(hand_back, value), *await ctx.map(hand_back, [value, value])]
    with contextlib.suppress(durable.ActivityError):
        await ctx.call_activity(tells_and_fails, value)
    ctx.set_custom_status("here")
    seen.append(ctx.side_effect(lambda: value))
    seen.append(await ctx.call_sub_orchestrator(handed_back, value))
    ctx.send_event(f"{ctx.instance_id}:nobody", "Hello", value)
    seen.append(await ctx.wait_for_external_event("First"))
    seen.append(await ctx.wait_for_external_event("Go"))
    return seen


@durable.orchestrator(name="places.rounds")
async def rounds(ctx: durable.OrchestrationContext, value: Any, left: int) -> Any:
    if left:
        ctx.continue_as_new(value, left - 1)
        return None
    await ctx.wait_for_external_event("Go")
    return value


@durable.orchestrator
async def everything_but_events(ctx: durable.OrchestrationContext, value: Any) -> Any:
    return await ctx.call_activity(hand_back, value)
