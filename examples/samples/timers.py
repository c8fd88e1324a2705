"""Durable timers, and the other things that must be the same in a replay: time, ids, and what is logged once."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from datetime import datetime, timedelta

import ray_durable as durable
from samples import journal


@durable.activity
def send_billing_event(number: int) -> datetime:
    """Send a bill; when."""
    journal.note(f"bill {number}")
    return datetime.now().astimezone()


@durable.orchestrator
async def issue_bills(ctx: durable.OrchestrationContext, every_s: float = 24 * 3600, count: int = 10) -> list[datetime]:
    """A bill a day. The days need no process that stays alive; when each bill was sent."""
    sent = []
    for number in range(count):
        await ctx.create_timer(timedelta(seconds=every_s))
        sent.append(await ctx.call_activity(send_billing_event, number))
    return sent


@dataclass(frozen=True)
class Moment:
    """What an orchestrator saw at one of its steps."""

    at: datetime
    id: uuid.UUID


@durable.orchestrator
async def replay_safe(ctx: durable.OrchestrationContext, word: str) -> list[Moment]:
    """Time and ids that no replay changes, and lines that are logged once."""
    moments = []
    for step in range(3):
        moments.append(Moment(at=ctx.current_utc_datetime, id=ctx.new_uuid()))
        ctx.set_custom_status([str(moment.id) for moment in moments])
        ctx.logger.warning("%s logged %s.", word, step)
        if not ctx.is_replaying:
            print(f"{word} printed {step}.", flush=True)  # durable: ok
        await ctx.call_activity(take_step, step)
    return moments


@durable.activity
def take_step(step: int) -> None:
    """Do nothing."""
    journal.note(str(step))
