"""Monitor: look at something again and again, until it happens or it is too late.

The issue tracker is a folder with a file for each open issue. Where there is one, each look finds one more.
"""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import ray_durable as durable
from samples import journal

TOO_MANY = 3


@durable.activity
def too_many_open_issues(repo: str) -> bool:
    """Whether a project has more open issues than it can bear."""
    journal.note("poll")
    folder = Path(repo)
    if not folder.is_dir():
        return False
    # The same look, should it be done twice, opens the same issue.
    key = durable.current_activity().idempotency_key.replace(":", "-")
    (folder / f"issue-{key}").touch()
    return len(list(folder.iterdir())) >= TOO_MANY


@durable.activity
def send_alert(phone: str) -> None:
    """Send a message."""
    journal.note(f"alert {phone}")


@durable.orchestrator
async def monitor_issues(
    ctx: durable.OrchestrationContext, repo: str, phone: str, for_s: float = 300, every_s: float = 60
) -> str:
    """Alert somebody once a project has too many open issues; give up after `for_s` seconds."""
    expiry = ctx.current_utc_datetime + timedelta(seconds=for_s)
    polls = 0
    while ctx.current_utc_datetime < expiry:
        polls += 1
        if await ctx.call_activity(too_many_open_issues, repo):
            await ctx.call_activity(send_alert, phone)
            break
        ctx.set_custom_status(f"{polls} polls, all is well")
        await ctx.create_timer(min(expiry, ctx.current_utc_datetime + timedelta(seconds=every_s)))
    return "Monitor completed!"
