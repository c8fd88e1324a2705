"""Activities and orchestrators of the tests that end activities on a real Ray."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import ray_durable as durable
from ray_durable.runtime.watch import INTERRUPT_SIGNAL
from tests.cluster.flows import LEDGERS_VARIABLE, note

AT_ONCE = durable.RetryPolicy(max_attempts=2, first_retry_interval=timedelta(0))


def words_path(instance_id: str) -> Path:
    """What activities of an instance had to say, a line each."""
    return Path(os.environ[LEDGERS_VARIABLE]) / f"{instance_id}.words"


def say(words: str) -> None:
    """Write a line for the test to read."""
    descriptor = os.open(words_path(durable.current_activity().instance_id), os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(descriptor, f"{words}\n".encode())
    finally:
        os.close(descriptor)


@durable.activity(timeout=1.0)
def oversleeps_once(seconds: float) -> int:
    """The first attempt does not end by itself; tells when it began and how it ended."""
    note()
    attempt = durable.current_activity().attempt
    if attempt == 1:
        say(f"{time.time()}")
        try:
            time.sleep(seconds)
        finally:
            say(f"{time.time()}")
    return attempt


@durable.activity(timeout=1.0)
def cannot_be_interrupted(value: int) -> int:
    """Lets no signal through in its first attempt. The interpreter's lock is free."""
    note()
    if durable.current_activity().attempt == 1:
        signal.pthread_sigmask(signal.SIG_BLOCK, [INTERRUPT_SIGNAL])
        while True:
            ctypes.CDLL(None).usleep(10_000)
    return value


@durable.activity(timeout=1.0)
def keeps_the_lock(value: int) -> int:
    """Keeps the interpreter's lock in its first attempt: nothing in the process runs."""
    note()
    if durable.current_activity().attempt == 1:
        ctypes.PyDLL(None).sleep(1_000)
    return value


@durable.activity(timeout=timedelta(seconds=1))
async def cleans_up(value: int) -> int:
    note()
    try:
        await asyncio.sleep(1_000)
    finally:
        await asyncio.sleep(0.01)
        say("cleaned up")
    return value


@durable.activity(num_cpus=0.1)
def goes_on_where_the_last_one_was(count: int) -> list[Any]:
    """Gives heartbeats, and waits to be killed in the first attempt."""
    info = durable.current_activity()
    before = info.heartbeat_details
    for position in range(count):
        info.heartbeat({"position": position})
    note()
    if before is None:
        time.sleep(1_000)
    return [before, info.attempt]


@durable.activity(heartbeat_timeout=0.5)
def falls_silent(value: int) -> Any:
    """Says where it was, then nothing; the next attempt tells what it knows of that."""
    note()
    info = durable.current_activity()
    if info.attempt == 1:
        info.heartbeat("here")
        time.sleep(1_000)
    return info.heartbeat_details


@durable.activity(num_cpus=0.1)
def notes_its_end(value: int) -> int:
    """Never ends by itself."""
    note()
    try:
        time.sleep(1_000)
    except durable.ActivityCancelled:
        say(f"cancelled {value}")
        raise
    return value


@durable.activity(num_cpus=2)
async def notes_its_end_beside_others(value: int) -> int:
    """The even ones never end by themselves."""
    note()
    try:
        await asyncio.sleep(1_000 if value % 2 == 0 else 5)
    except asyncio.CancelledError:
        say(f"cancelled {value}")
        raise
    return value


@durable.orchestrator
async def calls_with_retry(ctx: durable.OrchestrationContext, name: str, value: float) -> Any:
    return await ctx.call_activity_with_retry(name, AT_ONCE, value)


@durable.orchestrator
async def calls_cleans_up(ctx: durable.OrchestrationContext) -> str:
    try:
        await ctx.call_activity(cleans_up, 1)
    except durable.ActivityError as error:
        return f"{error.failure.kind} {error.failure.type_name}"
    return "returned"


@durable.orchestrator
async def calls_the_same_again(ctx: durable.OrchestrationContext, count: int) -> Any:
    return await ctx.call_activity(goes_on_where_the_last_one_was, count)


@durable.orchestrator
async def runs_for_ever(ctx: durable.OrchestrationContext, count: int) -> list[int]:
    return list(await asyncio.gather(*(ctx.call_activity(notes_its_end, value) for value in range(count))))


@durable.orchestrator
async def maps_for_ever(ctx: durable.OrchestrationContext, count: int) -> str:
    """A map that is given up once the test says so."""
    mapping = ctx.map(notes_its_end, range(count))
    await ctx.wait_for_external_event("Enough")
    mapping.cancel()
    await ctx.wait_for_external_event("Go")
    return "given up"


@durable.orchestrator
async def keeps_one_of_three(ctx: durable.OrchestrationContext) -> int:
    """The first of three calls, of which two share a slice and the third finds no worker."""
    calls = [ctx.call_activity(notes_its_end_beside_others, value) for value in (1, 2, 4)]
    await ctx.wait_for_external_event("Enough")
    calls[1].cancel()
    calls[2].cancel()
    return await calls[0]
