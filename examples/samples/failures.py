"""Failures: left alone, caught, and made good by a compensation.

The bank is a folder for each account, with a file for each movement, named by its idempotency key: an activity that
runs a second time, because a process was lost at the wrong moment, finds that its movement is made.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import ray_durable as durable
from samples import journal


@durable.activity
def raise_exception() -> None:
    """Fail."""
    raise RuntimeError("This activity failed")


@durable.orchestrator
async def rethrow_activity_exception(ctx: durable.OrchestrationContext) -> None:
    """What is not caught fails the instance, with the whole chain in its failure."""
    await ctx.call_activity(raise_exception)


@durable.orchestrator
async def catch_activity_exception(ctx: durable.OrchestrationContext) -> str:
    """A failed activity is an exception like any other."""
    try:
        await ctx.call_activity(raise_exception)
    except durable.ActivityError as error:
        return f"Caught exception: {error}"
    return "No exception"


@dataclass(frozen=True)
class Transfer:
    """Money from one account to another; both are folders."""

    source: str
    destination: str
    amount: int


def balance(account: str) -> int:
    """What is in an account."""
    return sum(int(movement.read_text()) for movement in Path(account).iterdir())


@durable.activity
def debit_account(account: str, amount: int) -> None:
    """Take money out. LookupError if there is no such account."""
    journal.note(f"debit {Path(account).name}")
    _move(account, -amount)


@durable.activity
def credit_account(account: str, amount: int) -> None:
    """Put money in. LookupError if there is no such account."""
    journal.note(f"credit {Path(account).name}")
    _move(account, amount)


def _move(account: str, amount: int) -> None:
    if not Path(account).is_dir():
        raise LookupError(f"There is no account {Path(account).name}")
    key = durable.current_activity().idempotency_key.replace(":", "-")
    (Path(account) / key).write_text(str(amount))


@durable.orchestrator
async def transfer_funds(ctx: durable.OrchestrationContext, transfer: Transfer) -> str:
    """Debit here, credit there; if that fails, credit here again."""
    await ctx.call_activity(debit_account, transfer.source, transfer.amount)
    try:
        await ctx.call_activity(credit_account, transfer.destination, transfer.amount)
    except durable.ActivityError:
        await ctx.call_activity(credit_account, transfer.source, transfer.amount)
        return "returned"
    return "transferred"
