"""Activities and orchestrators of the tests on a real Ray.

Every execution of an activity leaves one line in the ledger of its instance, a file outside the log that is only ever
appended to: what really ran can so be held against what the log says.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import ray_durable as durable

LEDGERS_VARIABLE = "RAY_DURABLE_TEST_LEDGERS"
"""Environment variable with the folder of the ledgers, inherited by all processes of a test's Ray."""

_GO_S_MAX = 100.0


def ledger_path(instance_id: str) -> Path:
    """The ledger of an instance."""
    return Path(os.environ[LEDGERS_VARIABLE]) / f"{instance_id}.ledger"


def go_path(instance_id: str) -> Path:
    """The file for which `waits_for_go` of an instance waits."""
    return Path(os.environ[LEDGERS_VARIABLE]) / f"{instance_id}.go"


def left_path(instance_id: str) -> Path:
    """The file that `waits_for_go` of an instance leaves when it is over, unless its process is killed."""
    return Path(os.environ[LEDGERS_VARIABLE]) / f"{instance_id}.left"


def note() -> None:
    """One line for this execution: name, key, process id, attempt."""
    info = durable.current_activity()
    line = f"{info.name} {info.idempotency_key} {os.getpid()} {info.attempt}\n"
    descriptor = os.open(ledger_path(info.instance_id), os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)


@durable.activity
def step_on(value: int) -> int:
    note()
    return value + 1


@durable.activity
def twice(value: int) -> int:
    note()
    return 2 * value


@durable.activity
def twice_slowly(value: int) -> int:
    """Two milliseconds an item, so that a map takes long enough to be interrupted."""
    note()
    time.sleep(0.002)
    return 2 * value


@durable.activity
def works_slowly(value: int) -> int:
    """Long enough that others queue behind it."""
    note()
    time.sleep(0.25)
    return value


@durable.activity(num_cpus=0.1)
def waits_for_go(value: int) -> int:
    """Runs until the test says so, and leaves a file when it is over; gives its process id."""
    note()
    deadline_s = time.monotonic() + _GO_S_MAX
    instance_id = durable.current_activity().instance_id
    try:
        while not go_path(instance_id).exists():
            if time.monotonic() > deadline_s:
                raise TimeoutError("the test did not say go")
            time.sleep(0.02)
        return os.getpid()
    finally:
        left_path(instance_id).touch()


@durable.activity
def stumbles(times: int) -> int:
    """Fails in as many attempts."""
    note()
    attempt = durable.current_activity().attempt
    if attempt <= times:
        raise ValueError(f"attempt {attempt} fails")
    return attempt


@durable.activity
def raises(message: str) -> None:
    note()
    raise ValueError(message)


@durable.activity
def leaves(way: str) -> str:
    """Ends its process, or tries to, in one of several ways."""
    note()
    if way == "sys.exit":
        sys.exit(3)
    if way == "os._exit":
        os._exit(3)
    os.kill(os.getpid(), signal.SIGKILL)
    return "unreachable"


@durable.activity
def dies_at_seven(value: int) -> int:
    note()
    if value == 7:
        os._exit(1)
    return value


@durable.activity
def returns_a_lock() -> Any:
    note()
    return threading.Lock()


@durable.activity
def measure(text: str) -> int:
    return len(text)


@durable.activity
def takes_anything(value: Any) -> str:
    return type(value).__name__


@durable.orchestrator
async def march(ctx: durable.OrchestrationContext, count: int) -> int:
    value = 0
    for _ in range(count):
        value = await ctx.call_activity(step_on, value)
    return value


@durable.orchestrator
def march_by_generator(ctx: durable.OrchestrationContext, count: int) -> Any:
    value = 0
    for _ in range(count):
        value = yield ctx.call_activity(step_on, value)
    return value


@durable.orchestrator
async def spread(ctx: durable.OrchestrationContext, count: int) -> int:
    return sum(await asyncio.gather(*(ctx.call_activity(twice, value) for value in range(count))))


@durable.orchestrator
async def spread_by_map(ctx: durable.OrchestrationContext, count: int) -> int:
    return sum(await ctx.map(twice, range(count)))


@durable.orchestrator
async def spread_slowly(ctx: durable.OrchestrationContext, count: int) -> int:
    return sum(await ctx.map(twice_slowly, range(count)))


@durable.orchestrator
async def spread_waiting(ctx: durable.OrchestrationContext, count: int) -> list[int]:
    return list(await asyncio.gather(*(ctx.call_activity(waits_for_go, value) for value in range(count))))


@durable.orchestrator
async def queues_up(ctx: durable.OrchestrationContext, count: int) -> int:
    return sum(await asyncio.gather(*(ctx.call_activity(works_slowly, value) for value in range(count))))


@durable.orchestrator
async def marches_past_a_gate(ctx: durable.OrchestrationContext, count: int) -> int:
    """So many steps before the gate, which the test opens, and so many behind it."""
    value = 0
    for _ in range(count):
        value = await ctx.call_activity(step_on, value)
    await ctx.call_activity(waits_for_go, value)
    for _ in range(count):
        value = await ctx.call_activity(step_on, value)
    return value


@durable.orchestrator
async def asks_approval(ctx: durable.OrchestrationContext) -> str:
    return await ctx.wait_for_external_event("Approval", str)


@durable.orchestrator
async def steps_then_approval(ctx: durable.OrchestrationContext, count: int) -> str:
    value = 0
    for _ in range(count):
        value = await ctx.call_activity(step_on, value)
    return f"{await ctx.wait_for_external_event('Approval', str)} after {value}"


@durable.orchestrator
async def collects(ctx: durable.OrchestrationContext, count: int) -> list[int]:
    """As many numbers, in the order of their events."""
    return [await ctx.wait_for_external_event("Number", int) for _ in range(count)]


@durable.orchestrator
async def naps(ctx: durable.OrchestrationContext, seconds: float) -> float:
    before = ctx.current_utc_datetime
    await ctx.create_timer(timedelta(seconds=seconds))
    return (ctx.current_utc_datetime - before).total_seconds()


@durable.orchestrator
async def persists(ctx: durable.OrchestrationContext, times: int) -> int:
    policy = durable.RetryPolicy(max_attempts=3, first_retry_interval=timedelta(milliseconds=50))
    return await ctx.call_activity_with_retry(stumbles, policy, times)


@durable.orchestrator
async def shows_status(ctx: durable.OrchestrationContext) -> str:
    ctx.set_custom_status({"stage": "asking", "asked": 2})
    await ctx.wait_for_external_event("Go")
    ctx.set_custom_status("answered")
    return "done"


@durable.orchestrator
async def calls_leaves(ctx: durable.OrchestrationContext, way: str) -> str:
    return await ctx.call_activity(leaves, way)


@durable.orchestrator
async def map_with_poison(ctx: durable.OrchestrationContext, count: int) -> list[str]:
    """What became of each item, as text."""
    outcomes: list[object] = list(await ctx.map(dies_at_seven, range(count), return_exceptions=True))
    return [str(outcome) for outcome in outcomes]


@durable.orchestrator
async def calls_raises(ctx: durable.OrchestrationContext, message: str) -> None:
    await ctx.call_activity(raises, message)


@durable.orchestrator
async def calls_unknown(ctx: durable.OrchestrationContext) -> None:
    await ctx.call_activity("step_onn", 1)


@durable.orchestrator
async def passes_a_lock(ctx: durable.OrchestrationContext) -> None:
    await ctx.call_activity(takes_anything, threading.Lock())  # durable: ok


@durable.orchestrator
async def gets_a_lock(ctx: durable.OrchestrationContext) -> None:
    await ctx.call_activity(returns_a_lock)


@durable.orchestrator
async def ends_with_a_lock(ctx: durable.OrchestrationContext) -> Any:
    return threading.Lock()  # durable: ok


@durable.orchestrator
async def passes_too_much(ctx: durable.OrchestrationContext) -> int:
    """One byte over the limit of a payload, quotes included."""
    return await ctx.call_activity(measure, "x" * (256 * 1024 * 1024))


@durable.orchestrator
async def speaks(ctx: durable.OrchestrationContext, word: str, count: int) -> None:
    """A printed and a logged line before each of `count` steps, and after the last."""
    for step in range(count):
        print(f"{word} printed {step}.", flush=True)  # durable: ok
        ctx.logger.warning("%s logged %s.", word, step)
        await ctx.call_activity(step_on, step)
        await ctx.wait_for_external_event("Next")
    print(f"{word} printed {count}.", flush=True)  # durable: ok
    ctx.logger.warning("%s logged %s.", word, count)


# Orchestrators that call orchestrators


@durable.orchestrator
async def marches_on_request(ctx: durable.OrchestrationContext, count: int) -> int:
    """A step, then the wait for an event `Next`, so many times."""
    value = 0
    for _ in range(count):
        value = await ctx.call_activity(step_on, value)
        await ctx.wait_for_external_event("Next")
    return value


@durable.orchestrator
async def family(ctx: durable.OrchestrationContext, children: int, steps: int) -> list[int]:
    """So many children that march on request, called `<id>-0`, `<id>-1` ..."""
    calls = [
        ctx.call_sub_orchestrator(marches_on_request, steps, instance_id=f"{ctx.instance_id}-{number}")
        for number in range(children)
    ]
    return list(await asyncio.gather(*calls))


@durable.orchestrator
async def three_levels(ctx: durable.OrchestrationContext, levels: int) -> list[int]:
    """A chain of instances, `<id>+`, `<id>++`; the last one waits in an activity."""
    if levels == 1:
        return [await ctx.call_activity(waits_for_go, 0)]
    return await ctx.call_sub_orchestrator(three_levels, levels - 1, instance_id=f"{ctx.instance_id}+")


# Rounds


@durable.activity(local=True)
def step_on_here(value: int) -> int:
    note()
    return value + 1


@durable.orchestrator
async def rounds(ctx: durable.OrchestrationContext, value: int, count: int) -> int:
    """A step a round."""
    value = await ctx.call_activity(step_on_here, value)
    if value < count:
        ctx.continue_as_new(value, count)
    return value


@durable.orchestrator
async def collects_in_rounds(ctx: durable.OrchestrationContext, seen: list[int], count: int) -> list[int]:
    """A number a round, in the order of their events."""
    seen = [*seen, await ctx.wait_for_external_event("Number", int)]
    if len(seen) < count:
        ctx.continue_as_new(seen, count)
    return seen


# Orchestrators that are mended, looked into or ended


@durable.activity
def works_once_mended(value: int) -> int:
    """Fails until the test says go."""
    note()
    if not go_path(durable.current_activity().instance_id).exists():
        raise ValueError(f"{value} is broken")
    return value


@durable.orchestrator
async def marches_over_a_gap(ctx: durable.OrchestrationContext, count: int) -> int:
    """Steps, then one that fails until it is mended, then another step."""
    value = 0
    for _ in range(count):
        value = await ctx.call_activity(step_on, value)
    value = await ctx.call_activity(works_once_mended, value)
    return await ctx.call_activity(step_on, value)


@durable.orchestrator
async def family_with_a_gap(ctx: durable.OrchestrationContext) -> list[int]:
    """Two children that march well, and then one with a gap."""
    parts = [ctx.call_sub_orchestrator(march, 2, instance_id=f"{ctx.instance_id}-{number}") for number in range(2)]
    values = list(await asyncio.gather(*parts))
    last = ctx.call_sub_orchestrator(marches_over_a_gap, 1, instance_id=f"{ctx.instance_id}-gap")
    return [*values, await last]


@durable.orchestrator
async def waits_for_everything(ctx: durable.OrchestrationContext) -> None:
    """For an activity, a timer, an event and another instance."""
    await asyncio.gather(
        ctx.call_activity(waits_for_go, 1),
        ctx.create_timer(timedelta(days=2)),
        ctx.wait_for_external_event("Approval"),
        ctx.call_sub_orchestrator(asks_approval, instance_id=f"{ctx.instance_id}-child"),
    )


@durable.orchestrator
async def blocks(ctx: durable.OrchestrationContext) -> None:
    """Keeps its thread."""
    await ctx.call_activity(step_on, 1)
    time.sleep(1_000)  # durable: ok


@durable.orchestrator
async def swallows_cancellation(ctx: durable.OrchestrationContext) -> None:
    """Will not be cancelled."""
    while True:
        with contextlib.suppress(asyncio.CancelledError):
            await ctx.call_activity(waits_for_go, 1)


@durable.orchestrator
async def takes_what_comes(ctx: durable.OrchestrationContext) -> list[str]:
    """Waits for a number; if something else comes, takes that. What was wrong, and what it got."""
    try:
        await ctx.wait_for_external_event("Number", int)
    except durable.SerializationError as error:
        return [str(error), await ctx.wait_for_external_event("Number", str)]
    return []


@durable.orchestrator
async def asks_for_the_impossible(ctx: durable.OrchestrationContext) -> list[str]:
    """What the context says to things that cannot work."""
    attempts: list[Callable[[], object]] = [
        lambda: ctx.set_custom_status(threading.Lock()),  # durable: ok
        lambda: ctx.set_custom_status("x" * 20_000),
        lambda: ctx.create_timer(timedelta(seconds=-1)),
        lambda: ctx.create_timer(timedelta(days=400 * 365)),
        lambda: ctx.create_timer(5),  # type: ignore[arg-type]
        lambda: ctx.wait_for_external_event(""),
        lambda: ctx.call_sub_orchestrator(march, 1, instance_id=ctx.instance_id),
        lambda: ctx.call_sub_orchestrator("marsh", 1),
        lambda: ctx.continue_as_new(1, 2, 3),
        lambda: ctx.task_any([]),
    ]
    told: list[str] = []
    for attempt in attempts:
        try:
            attempt()
        except Exception as error:
            told.append(f"{type(error).__name__}: {error}")
    return told
