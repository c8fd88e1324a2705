"""Orchestrations of a made-up shop, which the tests of the testing kit run."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import ray_durable as durable

QUICK_RETRY = durable.RetryPolicy(first_retry_interval=timedelta(seconds=30), max_attempts=3)


@durable.activity
def send_mail(to: str) -> str:
    raise RuntimeError("tests send no mail")


@durable.activity
def price(item: str) -> int:
    return len(item)


@durable.activity(local=True)
def note(text: str) -> str:
    return f"noted {text}"


@durable.activity
async def stock(item: str) -> int:
    await asyncio.sleep(0)
    return 3


@durable.orchestrator
async def vet(ctx: durable.OrchestrationContext, applicant: str) -> str:
    receipt = await ctx.call_activity(send_mail, applicant)
    try:
        approved = await ctx.wait_for_external_event("Approval", bool, timeout=timedelta(hours=72))
    except TimeoutError:
        return "escalated"
    return f"{receipt}: {'approved' if approved else 'refused'}"


@durable.orchestrator
async def patient_mail(ctx: durable.OrchestrationContext, to: str) -> str:
    return await ctx.call_activity_with_retry(send_mail, QUICK_RETRY, to)


@durable.orchestrator
async def basket(ctx: durable.OrchestrationContext, items: list[str]) -> int:
    return sum(await ctx.map(price, items))


@durable.orchestrator
async def jot(ctx: durable.OrchestrationContext) -> tuple[str, int]:
    return await ctx.call_activity(note, "it"), await ctx.call_activity(stock, "pen")


@durable.orchestrator
async def checkout(ctx: durable.OrchestrationContext, customers: list[str]) -> list[str]:
    calls = [ctx.call_sub_orchestrator(vet, customer) for customer in customers]
    return await asyncio.gather(*calls)


@durable.orchestrator
async def round_robin(ctx: durable.OrchestrationContext, left: int) -> str:
    await ctx.create_timer(timedelta(hours=1))
    if left:
        ctx.continue_as_new(left - 1)
        return ""
    return "done"


@durable.orchestrator
async def dice(ctx: durable.OrchestrationContext) -> int:
    return ctx.random.randrange(1_000_000)


@durable.orchestrator
async def zoned(ctx: durable.OrchestrationContext, timezone: str) -> str:
    return timezone
