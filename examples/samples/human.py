"""Waiting for people: a phone number that is verified by a code, an approval, and permits that need several."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Generator
from datetime import timedelta
from typing import Any

import ray_durable as durable
from samples import journal

TRIES = 3


@durable.activity
def send_sms_challenge(phone: str) -> str:
    """Send a code to a phone; the code."""
    if not phone.startswith("+"):
        raise ValueError(f"The phone number {phone!r} needs its country code, such as +1")
    code = f"{secrets.randbelow(10_000):04}"
    journal.note(f"to {phone}: your code is {code}")
    return code


@durable.orchestrator
async def verify_phone(ctx: durable.OrchestrationContext, phone: str, wait_s: float = 180) -> bool:
    """Whether somebody answers with the code that was sent to the phone, in three tries, within three minutes.

    `handle.raise_event("SmsChallengeResponse", code)` is a try.
    """
    code = await ctx.call_activity(send_sms_challenge, phone)
    expiry = ctx.create_timer(timedelta(seconds=wait_s))
    try:
        for _ in range(TRIES):
            response = ctx.wait_for_external_event("SmsChallengeResponse", str)
            winner = await ctx.task_any([response, expiry])
            if winner is expiry:
                return False
            if response.result() == code:
                return True
        return False
    finally:
        # A timer that nobody waits for keeps no instance from its end; cancelled, it is out of the history's way.
        expiry.cancel()


@durable.orchestrator
def verify_phone_by_generator(
    ctx: durable.OrchestrationContext, phone: str, wait_s: float = 180
) -> Generator[Any, Any, bool]:
    """The same as a generator function."""
    code = yield ctx.call_activity(send_sms_challenge, phone)
    expiry = ctx.create_timer(ctx.current_utc_datetime + timedelta(seconds=wait_s))
    verified = False
    for _ in range(TRIES):
        response = ctx.wait_for_external_event("SmsChallengeResponse", str)
        winner = yield ctx.task_any([response, expiry])
        if winner is expiry:
            break
        if response.result() == code:
            verified = True
            break
    if not expiry.done():
        expiry.cancel()
    return verified


@durable.activity
def record_decision(decision: str) -> str:
    """Act on a decision."""
    journal.note(decision)
    return decision


@durable.orchestrator
async def budget_approval(ctx: durable.OrchestrationContext, amount: int, wait_s: float = 72 * 3600) -> str:
    """Ask for money: it is granted, refused, or, if nobody answers, somebody else is asked."""
    ctx.set_custom_status(f"{amount} asked for")
    try:
        approved = await ctx.wait_for_external_event("Approval", bool, timeout=timedelta(seconds=wait_s))
    except TimeoutError:
        return await ctx.call_activity(record_decision, "escalated")
    return await ctx.call_activity(record_decision, "approved" if approved else "denied")


@durable.orchestrator
async def first_event(ctx: durable.OrchestrationContext) -> str:
    """Which of three events comes first."""
    names = ("Event1", "Event2", "Event3")
    waits = [ctx.wait_for_external_event(name) for name in names]
    return names[waits.index(await ctx.task_any(waits))]


@durable.orchestrator
async def building_permit(ctx: durable.OrchestrationContext, application: str) -> str:
    """A permit needs three offices, in whatever order they answer; one that is early is not forgotten."""
    await asyncio.gather(
        ctx.wait_for_external_event("CityPlanningApproval"),
        ctx.wait_for_external_event("FireDeptApproval"),
        ctx.wait_for_external_event("BuildingDeptApproval"),
    )
    return await ctx.call_activity(record_decision, f"permit for {application}")
