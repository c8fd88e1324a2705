"""Work without end: an orchestrator that begins anew after each round, with a history that stays short, and a
singleton of it."""

from __future__ import annotations

from datetime import timedelta

import ray_durable as durable
from samples import journal


@durable.activity
def do_cleanup() -> None:
    """Clean up."""
    journal.note("cleanup")


@durable.orchestrator
async def periodic_cleanup(ctx: durable.OrchestrationContext, pause_s: float = 3600) -> None:
    """Clean up every hour, until somebody terminates it."""
    await ctx.call_activity(do_cleanup)
    await ctx.create_timer(timedelta(seconds=pause_s))
    ctx.continue_as_new(pause_s)


def start_singleton(hub: durable.Hub, instance_id: str, pause_s: float = 3600) -> tuple[durable.Handle[None], bool]:
    """The one instance with this id, and whether it was started just now. Safe to call from many places at once."""
    try:
        return hub.start(periodic_cleanup, pause_s, instance_id=instance_id), True
    except durable.InstanceExistsError:
        return hub.get(instance_id), False
