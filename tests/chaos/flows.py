"""What runs while processes are killed: orchestrators of every kind, whose results are known beforehand.

Each execution of an activity leaves one line in the ledger, a file outside of the hub that is only ever appended to.
What really ran can so be held against what the logs say.
"""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import ray_durable as durable

LEDGER_VARIABLE = "RAY_DURABLE_CHAOS_LEDGER"
"""Environment variable with the path of the ledger, inherited by all processes of a cluster."""

# A worker that is killed says nothing of the call that it had, however often that happens.
_PATIENT = durable.RetryPolicy(max_system_failures=10_000)
_STUBBORN = durable.RetryPolicy(
    max_attempts=3,
    first_retry_interval=timedelta(milliseconds=700),
    backoff_coefficient=1.0,
    max_system_failures=10_000,
)
_ACTIVITY_CPUS = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One line of the ledger: an attempt that began in process `pid`."""

    instance: str
    name: str
    key: str
    attempt: int
    pid: int
    began_us: int


def read_ledger(path: Path) -> list[Run]:
    """All that ran, in the order in which it began."""
    if not path.exists():
        return []
    fields = [line.split(" ") for line in path.read_text().splitlines()]
    return [
        Run(instance=instance, name=name, key=key, attempt=int(attempt), pid=int(pid), began_us=int(began_us))
        for instance, name, key, attempt, pid, began_us in fields
    ]


def _note() -> None:
    info = durable.current_activity()
    began_us = time.time_ns() // 1_000
    line = f"{info.instance_id} {info.name} {info.idempotency_key} {info.attempt} {os.getpid()} {began_us}\n"
    # One write to a file opened for appending: lines of different processes never mix.
    descriptor = os.open(os.environ[LEDGER_VARIABLE], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)


@durable.activity(name="chaos.work", num_cpus=_ACTIVITY_CPUS, retry=_PATIENT)
def work(value: int, last_ms: int) -> int:
    """The next number, after a while."""
    _note()
    time.sleep(last_ms / 1_000)
    return value + 1


@durable.activity(name="chaos.stumble", num_cpus=_ACTIVITY_CPUS, retry=_STUBBORN)
def stumble(times: int) -> int:
    """Fails in as many attempts; the attempt that does not."""
    _note()
    attempt = durable.current_activity().attempt
    if attempt <= times:
        raise ValueError(f"attempt {attempt} stumbles")
    return attempt


@durable.activity(name="chaos.work_here", local=True)
def work_here(value: int) -> int:
    """The next number, from the orchestrator's own process."""
    _note()
    return value + 1


@durable.orchestrator(name="chaos.chain")
async def chain(ctx: durable.OrchestrationContext, steps: int, last_ms: int) -> int:
    """One step after the other."""
    value = 0
    for _ in range(steps):
        value = await ctx.call_activity(work, value, last_ms)
    return value


@durable.orchestrator(name="chaos.local_chain")
async def local_chain(ctx: durable.OrchestrationContext, steps: int) -> int:
    """Steps in the orchestrator's process, with a rest after each."""
    value = 0
    for _ in range(steps):
        value = await ctx.call_activity(work_here, value)
        await asyncio.sleep(0.1)
    return value


@durable.orchestrator(name="chaos.gathered")
async def gathered(ctx: durable.OrchestrationContext, count: int, last_ms: int) -> int:
    """A fan-out of single calls."""
    return sum(await asyncio.gather(*(ctx.call_activity(work, value, last_ms) for value in range(count))))


@durable.activity(name="chaos.work_on_item", num_cpus=_ACTIVITY_CPUS, retry=_PATIENT)
def work_on_item(value: int) -> int:
    """The next number, after thirty milliseconds."""
    _note()
    time.sleep(0.03)
    return value + 1


@durable.orchestrator(name="chaos.mapped")
async def mapped(ctx: durable.OrchestrationContext, count: int) -> int:
    """A fan-out by map."""
    return sum(await ctx.map(work_on_item, range(count)))


@durable.orchestrator(name="chaos.naps")
async def naps(ctx: durable.OrchestrationContext, count: int, last_ms: int) -> int:
    """A step and a timer, so many times; how many of the timers were not early."""
    punctual = 0
    for number in range(count):
        await ctx.call_activity(work, number, 20)
        before = ctx.current_utc_datetime
        await ctx.create_timer(timedelta(milliseconds=last_ms))
        punctual += ctx.current_utc_datetime - before >= timedelta(milliseconds=last_ms)
    return punctual


@durable.orchestrator(name="chaos.collects")
async def collects(ctx: durable.OrchestrationContext, count: int) -> list[int]:
    """So many numbers from events, in order, with a step after each."""
    seen = []
    for _ in range(count):
        seen.append(await ctx.wait_for_external_event("Number", int))
        await ctx.call_activity(work, seen[-1], 50)
    return seen


@durable.orchestrator(name="chaos.collects_in_rounds")
async def collects_in_rounds(ctx: durable.OrchestrationContext, seen: list[int], count: int) -> list[int]:
    """The same, beginning anew with each number."""
    seen = [*seen, await ctx.wait_for_external_event("Number", int)]
    await ctx.call_activity(work, seen[-1], 50)
    if len(seen) < count:
        ctx.continue_as_new(seen, count)
    return seen


@durable.orchestrator(name="chaos.family")
async def family(ctx: durable.OrchestrationContext, children: int, steps: int, last_ms: int) -> int:
    """Waits for instances that it calls."""
    calls = [
        ctx.call_sub_orchestrator(chain, steps, last_ms, instance_id=f"{ctx.instance_id}-{number}")
        for number in range(children)
    ]
    return sum(await asyncio.gather(*calls))


@durable.orchestrator(name="chaos.persists")
async def persists(ctx: durable.OrchestrationContext, count: int) -> int:
    """Calls that succeed in their third attempt, several at a time: most of the time, retries are waited for."""
    return sum(await asyncio.gather(*(ctx.call_activity(stumble, 2) for _ in range(count))))


@durable.orchestrator(name="chaos.rounds")
async def rounds(ctx: durable.OrchestrationContext, value: int, count: int) -> int:
    """Two steps a round."""
    value = await ctx.call_activity(work, value, 100)
    value = await ctx.call_activity(work_here, value)
    if value < 2 * count:
        ctx.continue_as_new(value, count)
    return value
