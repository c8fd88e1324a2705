"""Orchestrators whose code is their input, so that a random plan can be run; and one that keeps account of events."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import timedelta
from typing import Any

import ray_durable as durable

Plan = list[list[Any]]

runs: Counter[str] = Counter()
"""How often each call of an activity was executed, by its idempotency key."""

broken: set[str] = set()
"""The activities that fail while they are in here."""

LEDGER = "ledger"


@durable.activity
def toil(name: str) -> str:
    runs[durable.current_activity().idempotency_key] += 1
    if name in broken:
        raise ValueError(f"{name} is broken")
    return name


@durable.orchestrator
async def plays(ctx: durable.OrchestrationContext, rounds: list[Plan]) -> int:
    """One plan a round; the number of steps of the last one."""
    done = await _play(ctx, rounds[0])
    if len(rounds) > 1:
        ctx.continue_as_new(rounds[1:])
    return done


async def _play(ctx: durable.OrchestrationContext, plan: Plan) -> int:
    return sum([await _take(ctx, kind, arguments) for kind, *arguments in plan])


async def _take(ctx: durable.OrchestrationContext, kind: str, arguments: list[Any]) -> int:
    match kind, arguments:
        case "work", [name]:
            await ctx.call_activity(toil, name)
        case "map", [names]:
            await ctx.map(toil, names)
        case "sleep", [seconds]:
            await asyncio.sleep(seconds)
        case "child", [rounds, child_id]:
            return 1 + await ctx.call_sub_orchestrator(plays, rounds, instance_id=child_id)
        case "leave", [rounds, child_id]:
            ctx.call_sub_orchestrator(plays, rounds, instance_id=child_id)
        case "brief", [rounds, seconds]:
            try:
                await asyncio.wait_for(ctx.call_sub_orchestrator(plays, rounds), seconds)
            except TimeoutError:
                return 0
        case "try", [plan]:
            try:
                return 1 + await _play(ctx, plan)
            except (durable.ActivityError, durable.SubOrchestrationError):
                return 0
        case "gather", [left, right]:
            return sum(await asyncio.gather(_play(ctx, left), _play(ctx, right)))
        case "group", [left, right]:
            async with asyncio.TaskGroup() as group:
                parts = [group.create_task(_play(ctx, left)), group.create_task(_play(ctx, right))]
            return sum(part.result() for part in parts)
        case "hear", [name, seconds]:
            try:
                await ctx.wait_for_external_event(name, timeout=timedelta(seconds=seconds))
            except TimeoutError:
                return 0
        case "tell", [receiver, name]:
            ctx.send_event(receiver, name, str(ctx.new_uuid()))
        case _:
            raise AssertionError(f"no such step: {kind} {arguments}")
    return 1


@durable.orchestrator
async def keeps_ledger(ctx: durable.OrchestrationContext, entries: list[str]) -> list[str]:
    """Notes three events a round, until one says that it is over."""
    for _ in range(3):
        entry = await ctx.wait_for_external_event("Entry", str)
        if entry == "over":
            return entries
        entries.append(entry)
    ctx.continue_as_new(entries)
    return []
