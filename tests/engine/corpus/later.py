"""Orchestrators that are due some time after their start: what arrives before is recorded, and waits for them."""

from __future__ import annotations

from typing import Any

from ray_durable.engine import RuntimeStatus

from ..kit import Context
from .cases import case, twice


@case(due_s=5)
async def begins_later(ctx: Context, value: Any) -> Any:
    return [await twice(ctx, 1), ctx.execution.now_us >= (ctx.execution.started.due_us or 0)]  # type: ignore[union-attr]  # it runs


@case(due_s=5, events=(("go", 1), ("go", 2)))
async def begins_later_with_events(ctx: Context, value: Any) -> Any:
    first = await ctx.event("go")
    await ctx.timer(2)
    return [first, await ctx.event("go")]


@case(due_s=5, events=(("go", 1),), termination=0.5, end=RuntimeStatus.FAILED)
async def begins_later_and_fails(ctx: Context, value: Any) -> Any:
    raise ValueError(await ctx.event("go"))
