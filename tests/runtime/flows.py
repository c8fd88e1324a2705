"""Activities and orchestrators of the runtime's tests. `runs` notes every execution of an activity."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import timedelta
from typing import Any

import ray_durable as durable

runs: Counter[str] = Counter()
"""How often each call was executed, by "name argument"."""

keys: dict[str, set[str]] = {}
"""The idempotency keys that each call saw."""


def note(name: str, argument: object) -> None:
    call = f"{name} {argument}"
    runs[call] += 1
    keys.setdefault(call, set()).add(durable.current_activity().idempotency_key)


@durable.activity
def add_one(value: int) -> int:
    note("add_one", value)
    return value + 1


@durable.activity
def double(value: int) -> int:
    note("double", value)
    return 2 * value


@durable.activity
async def double_async(value: int) -> int:
    note("double_async", value)
    await asyncio.sleep(0)
    return 2 * value


@durable.activity
def fails_first(times: int) -> int:
    """Fails in as many attempts."""
    note("fails_first", times)
    attempt = durable.current_activity().attempt
    if attempt <= times:
        raise ValueError(f"attempt {attempt} fails")
    return attempt


@durable.activity
def odd_fails(value: int) -> int:
    note("odd_fails", value)
    if value % 2:
        raise ValueError(f"{value} is odd")
    return value


@durable.activity
def odd_fails_first(value: int) -> int:
    """Odd values fail in their first attempt."""
    note("odd_fails_first", value)
    if value % 2 and durable.current_activity().attempt == 1:
        raise ValueError(f"{value} is odd")
    return value


@durable.activity
def exits(value: int) -> int:
    raise SystemExit(3)


@durable.activity
def repeat(text: str, count: int) -> str:
    note("repeat", count)
    return text * count


@durable.activity
def length(text: str) -> int:
    note("length", len(text))
    return len(text)


@durable.activity(local=True)
def local_add(value: int) -> int:
    note("local_add", value)
    return value + 1


@durable.activity(local=True)
async def local_async(value: int) -> int:
    note("local_async", value)
    await asyncio.sleep(0.001)
    return value + 1


@durable.activity(local=True)
def local_fails(value: int) -> int:
    note("local_fails", value)
    raise ValueError(f"no {value}")


class OwnInterrupt(BaseException):
    """Not an Exception, and not one of Python's."""


@durable.activity(local=True)
def local_interrupts(ending: str) -> int:
    raise {"KeyboardInterrupt": KeyboardInterrupt, "SystemExit": SystemExit, "OwnInterrupt": OwnInterrupt}[ending]


@durable.activity(local=True)
async def local_cancels(value: int) -> int:
    raise asyncio.CancelledError


@durable.orchestrator
async def chain(ctx: durable.OrchestrationContext, count: int) -> int:
    value = 0
    for _ in range(count):
        value = await ctx.call_activity(add_one, value)
    return value


@durable.orchestrator
async def fan(ctx: durable.OrchestrationContext, count: int) -> int:
    return sum(await asyncio.gather(*(ctx.call_activity(double, value) for value in range(count))))


@durable.orchestrator
async def fan_async(ctx: durable.OrchestrationContext, count: int) -> int:
    return sum(await asyncio.gather(*(ctx.call_activity(double_async, value) for value in range(count))))


@durable.orchestrator
async def mapped(ctx: durable.OrchestrationContext, count: int) -> int:
    return sum(await ctx.map(double, list(range(count))))


@durable.orchestrator
async def approval(ctx: durable.OrchestrationContext) -> list[str]:
    """Two approvals."""
    first = await ctx.wait_for_external_event("Approval", str)
    second = await ctx.wait_for_external_event("Approval", str)
    return [first, second]


@durable.orchestrator
async def approval_or_timeout(ctx: durable.OrchestrationContext, hours: int) -> str:
    try:
        return await ctx.wait_for_external_event("Approval", str, timeout=timedelta(hours=hours))
    except TimeoutError:
        return "too late"


@durable.orchestrator
async def sleeps(ctx: durable.OrchestrationContext, seconds: int) -> str:
    await ctx.create_timer(timedelta(seconds=seconds))
    return ctx.current_utc_datetime.isoformat()


@durable.orchestrator
async def retried(ctx: durable.OrchestrationContext, times: int) -> int:
    policy = durable.RetryPolicy(max_attempts=3, first_retry_interval=timedelta(seconds=10))
    return await ctx.call_activity_with_retry(fails_first, policy, times)


@durable.orchestrator
async def failing(ctx: durable.OrchestrationContext, times: int) -> int:
    return await ctx.call_activity(fails_first, times)


@durable.orchestrator
async def map_collects(ctx: durable.OrchestrationContext, count: int) -> list[str]:
    outcomes = await ctx.map(odd_fails, list(range(count)), return_exceptions=True)
    return [type(outcome).__name__ for outcome in outcomes]


@durable.orchestrator
async def map_tolerates(ctx: durable.OrchestrationContext, count: int, tolerated: int) -> list[int | None]:
    return list(await ctx.map(odd_fails, list(range(count)), tolerated_failures=tolerated))


@durable.orchestrator
async def map_retried(ctx: durable.OrchestrationContext, count: int, wait_s: int) -> list[int]:
    policy = durable.RetryPolicy(max_attempts=2, first_retry_interval=timedelta(seconds=wait_s))
    return await ctx.map(odd_fails_first, list(range(count)), retry=policy)


@durable.orchestrator
async def map_cancelled(ctx: durable.OrchestrationContext, count: int) -> str:
    """The map gets an hour."""
    try:
        async with asyncio.timeout(3_600):
            await ctx.map(double, list(range(count)))
    except TimeoutError:
        pass
    await ctx.wait_for_external_event("Go")
    return "cancelled"


@durable.orchestrator
async def calls_cancelled(ctx: durable.OrchestrationContext, count: int) -> str:
    """The calls get an hour."""
    try:
        async with asyncio.timeout(3_600):
            await asyncio.gather(*(ctx.call_activity(double, value) for value in range(count)))
    except TimeoutError:
        pass
    await ctx.wait_for_external_event("Go")
    return "cancelled"


@durable.orchestrator
async def local_chain(ctx: durable.OrchestrationContext, count: int) -> int:
    value = 0
    for _ in range(count):
        value = await ctx.call_activity(local_add, value)
        value = await ctx.call_activity(local_async, value)
    return value


@durable.orchestrator
async def local_fan(ctx: durable.OrchestrationContext, count: int) -> int:
    return sum(await asyncio.gather(*(ctx.call_activity(local_add, value) for value in range(count))))


@durable.orchestrator
async def local_failing(ctx: durable.OrchestrationContext) -> str:
    try:
        await ctx.call_activity(local_fails, 1)
    except durable.ActivityError as error:
        return f"{error.failure.type_name}: {error.failure.message}"
    return "no error"


@durable.orchestrator
async def local_cancelling(ctx: durable.OrchestrationContext) -> str:
    try:
        await ctx.call_activity(local_cancels, 1)
    except durable.ActivityError as error:
        return error.failure.type_name
    return "no error"


@durable.orchestrator
async def local_interrupting(ctx: durable.OrchestrationContext) -> list[str]:
    names = []
    for ending in ("KeyboardInterrupt", "SystemExit", "OwnInterrupt"):
        try:
            await ctx.call_activity(local_interrupts, ending)
        except durable.ActivityError as error:
            names.append(error.failure.type_name)
    return names


@durable.activity
def same_quietly(value: Any) -> Any:
    return value


@durable.activity
async def same_quietly_async(value: Any) -> Any:
    return value


@durable.orchestrator
async def survives_exit(ctx: durable.OrchestrationContext) -> str:
    try:
        await ctx.call_activity(exits, 1)
    except durable.ActivityError as error:
        return error.failure.type_name
    return "no error"


@durable.orchestrator
async def large(ctx: durable.OrchestrationContext, text: str) -> int:
    """A large input, a large result, a large argument, and a map of large items."""
    longer: str = await ctx.call_activity(repeat, text, 2)
    single = await ctx.call_activity(length, f"{longer}!")
    return single + sum(await ctx.map(length, [text, longer]))


@durable.orchestrator
async def large_map_results(ctx: durable.OrchestrationContext, size: int) -> list[str]:
    return await ctx.map(letters, [size, size + 1])


@durable.activity
def letters(count: int) -> str:
    note("letters", count)
    return "x" * count


@durable.orchestrator
async def large_results(ctx: durable.OrchestrationContext, count: int, size: int) -> int:
    """Many results that are large together."""
    texts = await asyncio.gather(*(ctx.call_activity(letters, size) for _ in range(count)))
    return sum(map(len, texts))


@durable.orchestrator
async def large_calls(ctx: durable.OrchestrationContext, count: int, size: int) -> int:
    """Many calls of one turn that are too large together."""
    await ctx.wait_for_external_event("Go")
    return sum(await asyncio.gather(*(ctx.call_activity(length, "x" * size) for _ in range(count))))


@durable.orchestrator
async def large_first_calls(ctx: durable.OrchestrationContext, count: int, size: int) -> int:
    return sum(await asyncio.gather(*(ctx.call_activity(length, "x" * size) for _ in range(count))))


class Version:
    """Which code the orchestrator below has: a deployment changes it."""

    number = 1


@durable.orchestrator
async def versioned(ctx: durable.OrchestrationContext) -> int:
    value = await ctx.call_activity(add_one if Version.number == 1 else double, 1)
    await ctx.wait_for_external_event("Go")
    return value


@durable.orchestrator
async def mixed(ctx: durable.OrchestrationContext) -> list[object]:
    """Something of everything."""
    ctx.set_custom_status("begun")
    value = await ctx.call_activity(add_one, 0)
    fanned = await asyncio.gather(*(ctx.call_activity(double, number) for number in range(3)))
    local = await ctx.call_activity(local_add, 100)
    mapping = ctx.map(odd_fails_first, [4, 5, 6], retry=durable.RetryPolicy(max_attempts=2))
    retrying = ctx.call_activity_with_retry(fails_first, durable.RetryPolicy(max_attempts=2), 1)
    items, attempt = await asyncio.gather(mapping, retrying)
    await ctx.create_timer(timedelta(minutes=5))
    event = await ctx.wait_for_external_event("Go", str)
    return [value, fanned, local, items, attempt, event]


@durable.orchestrator
async def two_functions(ctx: durable.OrchestrationContext) -> list[int]:
    return list(await asyncio.gather(ctx.call_activity(add_one, 1), ctx.call_activity(double, 1)))


# These note nothing: they run where no activity is current, or where only their results matter.


@durable.activity
def same(value: int) -> int:
    return value


@durable.activity
async def async_raises(value: int) -> int:
    await asyncio.sleep(0)
    if value == 1:
        raise ValueError("no 1")
    return value


@durable.activity
def odd_fails_quietly(value: int) -> int:
    if value % 2:
        raise ValueError(f"{value} is odd")
    return value


@durable.activity
def letters_quietly(count: int) -> str:
    return "x" * count
