"""The public API as a user writes it, for type checkers: mypy and pyright accept every line and know every type.

Never run; `test_typing.py` has both checkers read it, as strictly as they can.
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any, assert_type
from uuid import UUID

import ray_durable as durable


@dataclass
class Photo:
    """A value of the user's own."""

    path: str
    likes: int = 0


# Activities


@durable.activity
def score(path: str, weight: float = 1.0) -> float:
    """A plain function."""
    return len(path) * weight


@durable.activity
async def fetch(url: str) -> bytes:
    """A coroutine function."""
    return url.encode()


@durable.activity(
    name="photos.load",
    num_cpus=2,
    num_gpus=0.5,
    resources={"disk": 1},
    runtime_env={"env_vars": {"A": "b"}},
    label_selector={"market-type": "spot"},
    fallback_strategy=[{"label_selector": {"market-type": "on-demand"}}],
    retry=durable.RetryPolicy(max_attempts=3, first_retry_interval=timedelta(seconds=1)),
)
def load(path: str, *, large: bool = False) -> Photo:
    """With options, and a parameter by keyword."""
    return Photo(path)


@durable.activity(local=True)
async def announce(photos: Sequence[Photo]) -> None:
    """Without a result."""


def plainly(number: int) -> str:
    """Decorated below, by a call."""
    return str(number)


as_text = durable.activity(plainly)


def outside_orchestrations() -> None:
    """A decorated function is called like the plain one."""
    assert_type(score("a", weight=2), float)
    assert_type(load("a", large=True), Photo)
    assert_type(as_text(3), str)
    assert_type(score.name, str)
    assert_type(score.retry, durable.RetryPolicy | None)


async def outside_orchestrations_asynchronously() -> None:
    """A coroutine function's result is awaited."""
    assert_type(await fetch("a"), bytes)
    assert_type(await announce([]), None)


def inside_an_activity() -> None:
    """What a running activity may know of its call."""
    running = durable.current_activity()
    assert_type(running, durable.ActivityInfo)
    assert_type(running.idempotency_key, str)
    assert_type(running.attempt, int)


# Orchestrators


@durable.orchestrator
async def calls(ctx: durable.OrchestrationContext, folder: str, *, deep: bool = False) -> float:
    """Calls of activities, one after the other and side by side."""
    assert_type(await ctx.call_activity(score, folder), float)
    assert_type(await ctx.call_activity(score, folder, weight=0.5), float)
    assert_type(await ctx.call_activity(fetch, "url"), bytes)
    assert_type(await ctx.call_activity(load, folder, large=deep), Photo)
    assert_type(await ctx.call_activity(announce, [Photo("a")]), None)
    assert_type(await ctx.call_activity(as_text, 3), str)
    assert_type(await ctx.call_activity("photos.load", folder), Any)
    assert_type(ctx.call_activity(score, folder), asyncio.Future[float])

    policy = durable.RetryPolicy(max_attempts=5)
    assert_type(await ctx.call_activity_with_retry(score, policy, folder, weight=2), float)
    assert_type(await ctx.call_activity_with_retry(fetch, policy, "url"), bytes)
    assert_type(await ctx.call_activity_with_retry("photos.load", policy, folder), Any)

    assert_type(await ctx.map(fetch, ["a", "b"]), list[bytes])
    assert_type(await ctx.map(score, ["a", "b"]), list[float])  # its other parameter has a default
    assert_type(await ctx.map(load, ["a"], return_exceptions=True), list[Photo | durable.ActivityError])
    assert_type(await ctx.map(as_text, range(3), tolerated_failures=1), list[str | None])
    assert_type(await ctx.map("photos.load", ["a"], return_exceptions=True), list[Any])
    assert_type(await ctx.map(as_text, (n for n in (1, 2)), retry=policy), list[str])

    one, two = await asyncio.gather(ctx.call_activity(score, "a"), ctx.call_activity(fetch, "b"))
    assert_type(one, float)
    assert_type(two, bytes)
    assert_type(await ctx.task_all([ctx.call_activity(score, "a"), ctx.call_activity(score, "b")]), list[float])
    first = await ctx.task_any([ctx.call_activity(score, "a"), ctx.call_activity(score, "b")])
    assert_type(first, asyncio.Future[float])
    assert_type(await first, float)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(calls(ctx, folder, deep=True))
    assert_type(task.result(), float)
    return one


@durable.orchestrator
async def parent(ctx: durable.OrchestrationContext, folders: list[str]) -> list[float]:
    """Calls of other orchestrators, and what changes or ends an execution."""
    policy = durable.RetryPolicy(max_attempts=5)
    assert_type(await ctx.call_sub_orchestrator(calls, "a", deep=True), float)
    assert_type(await ctx.call_sub_orchestrator(calls, "a", instance_id="child"), float)
    assert_type(await ctx.call_sub_orchestrator(calls, "a", version="2"), float)
    assert_type(await ctx.call_sub_orchestrator(yields, 3), str)
    assert_type(await ctx.call_sub_orchestrator("photos.approval", 3), Any)
    assert_type(await ctx.call_sub_orchestrator("photos.approval", 3, instance_id="child"), Any)
    assert_type(await ctx.call_sub_orchestrator_with_retry(calls, policy, "a", deep=True), float)
    assert_type(await ctx.call_sub_orchestrator_with_retry(calls, policy, "a", instance_id="child"), float)
    assert_type(await ctx.call_sub_orchestrator_with_retry("photos.approval", policy, 3), Any)
    ctx.send_event("other-instance", "Ready", Photo("a"), type=Photo)

    async for index, content in ctx.map_unordered(fetch, folders):
        assert_type(index, int)
        assert_type(content, bytes)
    assert_type(ctx.patched("new-limit"), bool)
    assert_type(ctx.version, str | None)
    assert_type(ctx.custom_status, Any)
    assert_type(ctx.side_effect(lambda: 3), int)
    assert_type(ctx.side_effect(outside_orchestrations_number, int), int)
    ctx.continue_as_new(folders[1:])
    return []


def outside_orchestrations_number() -> int:
    """What a side effect may be."""
    return 3


@durable.orchestrator(name="photos.approval", version="2")
async def waits(ctx: durable.OrchestrationContext, limit: int = 3) -> Photo | None:
    """Events, timers and everything else that the context knows."""
    assert_type(await ctx.wait_for_external_event("Approval", bool), bool)
    assert_type(await ctx.wait_for_external_event("Approval", Photo, timeout=timedelta(hours=72)), Photo)
    assert_type(await ctx.wait_for_external_event("Anything"), Any)
    assert_type(await ctx.create_timer(timedelta(days=30)), None)
    assert_type(await ctx.create_timer(ctx.current_utc_datetime + timedelta(days=30)), None)
    assert_type(ctx.current_utc_datetime, datetime)
    assert_type(ctx.instance_id, str)
    assert_type(ctx.parent_instance_id, str | None)
    assert_type(ctx.is_replaying, bool)
    assert_type(ctx.new_uuid(), UUID)
    assert_type(ctx.random, Random)
    ctx.set_custom_status({"limit": limit})
    ctx.logger.info("waited for %s", limit)
    return await ctx.call_activity(load, "a") if limit else None


@durable.orchestrator
def yields(ctx: durable.OrchestrationContext, start: int) -> Generator[Any, Any, str]:
    """A generator that yields tasks and returns its result."""
    total: float = yield ctx.call_activity(score, "a")
    both: list[float] = yield ctx.task_all([ctx.call_activity(score, "a"), ctx.call_activity(score, "b")])
    more = yield from yields(ctx, start - 1)
    assert_type(more, str)
    return str(total + sum(both))


@durable.orchestrator(name="photos.plain", check=False)
async def without_types(ctx, *names):  # type: ignore[no-untyped-def]  # pyright: ignore
    """Users need not annotate anything."""
    return [await ctx.call_activity(score, name) for name in names]  # pyright: ignore


# Hubs and handles


def client() -> None:
    """Start, find, ask, tell, end."""
    with durable.connect("s3://bucket/hub", hub="photos") as hub:
        assert_type(hub, durable.Hub)
        handle = hub.start(calls, "photos/", deep=True)
        assert_type(handle, durable.Handle[float])
        assert_type(handle.result(), float)
        assert_type(handle.result(timeout=3), float)
        assert_type(handle.result(timedelta(minutes=1)), float)
        assert_type(hub.start(calls, "photos/", deep=True, instance_id="nightly-42"), durable.Handle[float])
        assert_type(hub.start(waits), durable.Handle[Photo | None])
        assert_type(hub.start(waits, limit=2), durable.Handle[Photo | None])
        assert_type(hub.start(waits, instance_id=None), durable.Handle[Photo | None])
        assert_type(hub.start(yields, 3), durable.Handle[str])
        assert_type(hub.start(yields, start=3, instance_id="y"), durable.Handle[str])
        assert_type(hub.start(waits, at=timedelta(hours=1)), durable.Handle[Photo | None])
        assert_type(hub.start(waits, at=datetime.now(UTC), instance_id="w"), durable.Handle[Photo | None])
        assert_type(hub.start("photos.approval", 3, at=timedelta(hours=1)), durable.Handle[Any])
        assert_type(hub.start("photos.approval", 3), durable.Handle[Any])
        assert_type(hub.start("photos.approval", 3, instance_id="a"), durable.Handle[Any])
        assert_type(hub.get("nightly-42").result(), Any)
        handle.raise_event("Approval", True, event_id="e-1")
        handle.raise_event("Photo", Photo("a"), type=Photo)
        handle.terminate("no longer wanted", recursive=False)
        handle.suspend("for a while")
        handle.resume()
        handle.rewind("mended")
        handle.purge()
        assert_type(handle.restart(), durable.Handle[float])
        assert_type(handle.fork("other", after=7, execution=1), durable.Handle[float])
        assert_type(hub.start(yields, 3, instance_id="y", reuse="never"), durable.Handle[str])
        status = handle.status()
        assert_type(status, durable.InstanceStatus)
        assert_type(status.runtime_status, durable.RuntimeStatus)
        assert_type(status.progress.done, int)
        assert_type(status.start_at, datetime | None)
        assert_type(status.custom_status, Any)
        nightly = hub.schedule("nightly", "0 2 * * *", calls, "photos/", deep=True)
        assert_type(nightly, durable.ScheduleHandle[float])
        assert_type(nightly.trigger().result(), float)
        assert_type(nightly.describe(), durable.ScheduleStatus)
        assert_type(nightly.describe().next_at, datetime | None)
        assert_type(hub.schedule("s", "0 2 * * *", waits, timezone="UTC"), durable.ScheduleHandle[Photo | None])
        assert_type(hub.schedule("s", "0 2 * * *", waits, overlap="buffer_one"), durable.ScheduleHandle[Photo | None])
        assert_type(
            hub.schedule("s", "0 2 * * *", waits, catch_up=timedelta(hours=1)), durable.ScheduleHandle[Photo | None]
        )
        assert_type(hub.schedule("s", "0 2 * * *", "photos.approval", 3), durable.ScheduleHandle[Any])
        assert_type(hub.schedules(), list[durable.ScheduleStatus])
        assert_type(hub.get_schedule("s"), durable.ScheduleHandle[Any])
        assert_type(hub.instances(status=["Running", "Failed"], prefix="nightly-"), list[durable.InstanceStatus])
    with durable.browse() as reader:
        assert_type(reader, durable.HubReader)
        assert_type(reader.instances(status=durable.RuntimeStatus.FAILED), list[durable.InstanceStatus])


async def client_that_awaits(hub: durable.Hub) -> None:
    """A handle is awaited for the result."""
    assert_type(await hub.start(calls, "photos/"), float)
    assert_type(await hub.start(waits), Photo | None)


def failures(error: durable.OrchestrationFailedError | durable.ActivityError) -> None:
    """Errors carry their facts."""
    assert_type(error.failure, durable.Failure)
    assert_type(error.failure.type_name, str)
