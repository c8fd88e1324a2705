"""Wrong uses of the public API: mypy and pyright refuse every one, on its line.

The comments name the rule that refuses; `test_typing.py` has both checkers complain about a comment without an error
and about an error without a comment. Never run.
"""

# pyright: standard, reportUnnecessaryTypeIgnoreComment=true

from __future__ import annotations

from collections.abc import Iterator

import ray_durable as durable

from .public_api import calls, fetch, score, waits, yields

# The decorators

durable.activity(3)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
durable.activity(num_cpu=2)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
durable.activity(num_cpus="2")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
durable.activity(retry=3)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
durable.activity(name=b"x")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
durable.orchestrator(num_cpus=2)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
durable.orchestrator(version=2)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
durable.orchestrator(check="no")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]


@durable.orchestrator  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType, reportCallIssue]
def plain(ctx: durable.OrchestrationContext) -> int:
    return 1


@durable.orchestrator  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType, reportCallIssue]
async def no_context() -> int:
    return 1


@durable.orchestrator  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType, reportCallIssue]
def no_result(ctx: durable.OrchestrationContext) -> Iterator[int]:
    yield 1


# Activities, called plainly

score(3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
score("a", wait=1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
"".join(score("a"))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType, reportCallIssue]


# The context


async def uses(ctx: durable.OrchestrationContext) -> None:
    policy = durable.RetryPolicy()
    ctx.call_activity(score)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    ctx.call_activity(score, 3)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    ctx.call_activity(score, "a", "b")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    ctx.call_activity(score, "a", 1.0, 2)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    ctx.call_activity(score, path="a", height=2)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    ctx.call_activity(len, "a")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    ctx.call_activity(calls, "a")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    ctx.call_activity_with_retry(score, "a", policy)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    ctx.call_activity_with_retry(score, policy)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    ctx.call_activity_with_retry(score, policy, 3)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    await ctx.map(fetch, [1, 2])  # type: ignore[misc]  # pyright: ignore[reportArgumentType, reportCallIssue]
    await ctx.map(fetch, "a", "b")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    await ctx.map(fetch, ["a"], retry=3)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    await ctx.map(calls, ["a"])  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    ctx.create_timer(3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    ctx.wait_for_external_event(3)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    ctx.wait_for_external_event("a", bool, timeout=3)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    ctx.current_utc_datetime = 3  # type: ignore[assignment, misc]  # pyright: ignore[reportAttributeAccessIssue]
    ctx.task_all(["a", "b"])  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType, reportCallIssue]
    (await ctx.call_activity(score, "a")).encode()  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    (await ctx.wait_for_external_event("a", bool)).encode()  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    (await ctx.map(fetch, ["a"]))[0].encode()  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    ctx.call_sub_orchestrator(calls)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    ctx.call_sub_orchestrator(calls, 3)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    ctx.call_sub_orchestrator(calls, "a", depe=True)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    ctx.call_sub_orchestrator(score, "a")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    ctx.call_sub_orchestrator(calls, "a", instance_id=3)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    ctx.call_sub_orchestrator_with_retry(calls, "a")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    ctx.call_sub_orchestrator_with_retry(calls, policy, 3)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    (await ctx.map(fetch, ["a"], return_exceptions=True))[0].decode()  # type: ignore[union-attr]  # pyright: ignore[reportAttributeAccessIssue]
    ctx.map_unordered(fetch, [1])  # type: ignore[misc]  # pyright: ignore[reportArgumentType, reportCallIssue]
    ctx.patched(3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    ctx.side_effect(3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    ctx.version = "2"  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
    ctx.send_event("a", 3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await calls(ctx)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await calls("a")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await fetch(3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


# Hubs and handles


def client(hub: durable.Hub, reader: durable.HubReader) -> None:
    hub.start(calls)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    hub.start(calls, 3)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    hub.start(calls, "a", "b")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    hub.start(calls, "a", depe=True)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    hub.start(calls, "a", deep="yes")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType, reportCallIssue]
    hub.start(calls, "a", instance_id=3)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    hub.start(calls, "a", instance_id="b", reuse="always")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    hub.start(calls, "a", at=3)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    hub.schedule("s", "0 2 * * *", calls)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    hub.schedule("s", "0 2 * * *", calls, 3)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    hub.schedule("s", calls, "a")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    hub.schedule("s", "0 2 * * *", calls, "a", overlap="wait")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    hub.start(waits, limit="three")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    hub.start(yields)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    hub.start(score, "a")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    hub.start(len, "a")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    hub.start(uses)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    hub.start(yields, 3).result().bit_length()  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    hub.get(3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    hub.get("a").raise_event(3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    hub.get("a").terminate(reason=3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    hub.get("a").fork(after="3")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    hub.get("a").terminate(recursive="yes")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    hub.instances(status=3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    reader.start(calls, "a")  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    durable.connect(3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    durable.connect(takeover="yes")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    durable.RetryPolicy(max_attempts="3")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    durable.RetryPolicy(first_retry_interval=3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
