"""Sub-orchestrations: an orchestrator that calls another, which is an instance with a history of its own."""

from __future__ import annotations

import ray_durable as durable
from samples.chaining import say_hello


@durable.orchestrator
async def greet_from_below(ctx: durable.OrchestrationContext, name: str) -> str:
    """Called by the one below; it may as well be started by itself."""
    return await ctx.call_activity(say_hello, name)


@durable.orchestrator
async def greet_through_another(ctx: durable.OrchestrationContext) -> str:
    """Wait for the result of another orchestrator, wherever and how often either is lost on the way."""
    return await ctx.call_sub_orchestrator(greet_from_below, "Seattle")
