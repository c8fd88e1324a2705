"""What a worker does with a slice: load the function, run call after call until the time budget is spent, report.

No call fails the slice: what a call raises is its outcome, and so is what goes wrong with its arguments or its result.
An escape would look like a lost worker, and run its neighbours again. Results over the inline limit are stored as blobs
from here, so that the bytes never pass through the orchestrator. No Ray here.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any, Protocol

from ray_durable import registry
from ray_durable.activity_context import ActivityInfo, activity_scope
from ray_durable.authoring import Activity
from ray_durable.codec import Codec
from ray_durable.errors import DurableError, FunctionNotFoundError, StoreError
from ray_durable.failure import Failure
from ray_durable.function import DurableFunction
from ray_durable.payload import Payload
from ray_durable.reference import FunctionReference
from ray_durable.runtime.messages import SliceReport, SliceWork

__all__ = ["Workshop", "run_activity", "run_slice"]

_ASYNC_CALLS_MAX = 100
"""How many calls of an async activity run at the same time in one slice."""


class Workshop(Protocol):
    """What a worker needs of its hub; blocking."""

    codec: Codec

    def load(self, reference: FunctionReference) -> DurableFunction:
        """The function; FunctionNotFoundError or SerializationError if it cannot be had."""

    def fetch(self, run: str, payload: Payload) -> Payload:
        """The payload with its bytes loaded."""

    def offload(self, run: str, payload: Payload) -> Payload:
        """The payload, stored as a blob if it is over the inline limit."""


def run_slice(work: SliceWork, workshop: Workshop) -> SliceReport:
    """Run calls of `work` in order until its budget is spent; at least one."""
    started_s = time.perf_counter()
    try:
        if registry.is_stale(work.target.reference):
            return SliceReport(done=0, elapsed_s=0.0, is_stale=True)
        function = workshop.load(work.target.reference)
        if not isinstance(function, Activity):
            raise FunctionNotFoundError(f"{function!r} is no activity", name=work.target.reference.name)
    except (Exception, SystemExit) as error:
        # Loading runs the user's module.
        return SliceReport(done=0, elapsed_s=0.0, unresolved=Failure.from_exception(error, kind="system"))
    deadline_s = started_s + work.budget_s
    if work.batch is not None:
        return _run_batch(work, workshop, function, started_s, deadline_s)
    calls = (_Call(function, workshop, work, index) for index in range(work.count))
    outcomes = [_encoded(call, outcome) for call, outcome in _run_all(function, calls, deadline_s)]
    return SliceReport(done=len(outcomes), elapsed_s=time.perf_counter() - started_s, outcomes=outcomes)


def run_activity(
    function: Activity[Any, Any], args: tuple[Any, ...], kwargs: dict[str, Any], info: ActivityInfo
) -> Any:
    """Run one call as the current activity, in this thread; async ones on a loop of their own."""
    with activity_scope(info):
        if function.is_async:
            return asyncio.run(function.function(*args, **kwargs))
        return function.function(*args, **kwargs)


class _Call:
    """One call of a slice."""

    __slots__ = ("function", "index", "item", "work", "workshop")

    def __init__(
        self, function: Activity[Any, Any], workshop: Workshop, work: SliceWork, index: int, item: Any = None
    ) -> None:
        self.function = function
        self.workshop = workshop
        self.work = work
        self.index = index
        self.item = item

    def info(self) -> ActivityInfo:
        work, batched = self.work, self.work.batch is not None
        key = f"{work.keys[0]}:{work.first + self.index}" if batched else work.keys[self.index]
        return ActivityInfo(
            name=self.function.name,
            instance_id=work.instance_id,
            task_id=key.split(":")[1],
            attempt=work.attempts[0 if batched else self.index],
            idempotency_key=key,
            item=work.first + self.index if batched else None,
        )

    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if self.work.batch is not None:
            return (self.item,), {}
        payload = self.workshop.fetch(self.work.run, self.work.calls[self.index])
        where = f"arguments of activity {self.function.name!r}"
        return self.workshop.codec.decode_call(self.function.calls, payload, where=where)

    def run(self) -> Any:
        args, kwargs = self.arguments()
        return run_activity(self.function, args, kwargs, self.info())

    async def run_async(self) -> Any:
        args, kwargs = self.arguments()
        with activity_scope(self.info()):
            return await self.function.function(*args, **kwargs)


_Outcome = tuple[_Call, Any]
"""A call and what became of it: a value, or `_Raised`."""


class _Raised:
    __slots__ = ("failure",)

    def __init__(self, error: BaseException) -> None:
        self.failure = _failure_of(error)


def _run_all(function: Activity[Any, Any], calls: Iterator[_Call], deadline_s: float) -> Iterator[_Outcome]:
    if function.is_async:
        yield from asyncio.run(_run_concurrently(calls, deadline_s))
        return
    for call in calls:
        try:
            yield call, call.run()
        except BaseException as error:
            # SystemExit and KeyboardInterrupt of one call must not take the others with it.
            yield call, _Raised(error)
        if time.perf_counter() >= deadline_s:
            return


async def _run_concurrently(calls: Iterator[_Call], deadline_s: float) -> list[_Outcome]:
    """Run async calls side by side; none starts after the deadline, those that started are waited for."""
    outcomes: list[_Outcome] = []
    running: set[asyncio.Task[None]] = set()

    async def run(call: _Call, position: int) -> None:
        try:
            outcomes[position] = (call, await call.run_async())
        except BaseException as error:
            outcomes[position] = (call, _Raised(error))

    for position, call in enumerate(calls):
        if position and time.perf_counter() >= deadline_s:
            break
        outcomes.append((call, None))
        running.add(asyncio.create_task(run(call, position)))
        await asyncio.sleep(0)
        while len(running) >= _ASYNC_CALLS_MAX:
            _, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
    if running:
        await asyncio.wait(running)
    return outcomes


def _encoded(call: _Call, outcome: Any) -> Payload | Failure:
    if isinstance(outcome, _Raised):
        return outcome.failure
    try:
        payload = call.workshop.codec.encode(outcome, call.function.result_annotation, where=_result_of(call.function))
        return call.workshop.offload(call.work.run, payload)
    except BaseException as error:
        return _failure_of(error)


def _run_batch(
    work: SliceWork, workshop: Workshop, function: Activity[Any, Any], started_s: float, deadline_s: float
) -> SliceReport:
    assert work.batch is not None
    annotation = next(iter(function.calls.annotations.values()), Any)
    try:
        items = workshop.codec.decode_batch(work.batch, annotation, where=f"items of activity {function.name!r}")
    except BaseException as error:
        # Nothing of it can be told apart: none runs.
        done, successes = work.count, []
        failures = dict.fromkeys(range(work.count), _failure_of(error))
    else:
        calls = (_Call(function, workshop, work, index, item) for index, item in enumerate(items))
        outcomes = list(_run_all(function, calls, deadline_s))
        done = len(outcomes)
        failures = {call.index: outcome.failure for call, outcome in outcomes if isinstance(outcome, _Raised)}
        successes = [(call.index, outcome) for call, outcome in outcomes if not isinstance(outcome, _Raised)]
    results = _store_results(work, workshop, function, successes, failures)
    return SliceReport(
        done=done,
        elapsed_s=time.perf_counter() - started_s,
        results=results,
        failures=tuple(sorted(failures.items())),
    )


def _store_results(
    work: SliceWork,
    workshop: Workshop,
    function: Activity[Any, Any],
    successes: list[tuple[int, Any]],
    failures: dict[int, Failure],
) -> Payload:
    """All results as one batch; those that cannot be encoded or stored become failures of their own items."""
    try:
        return workshop.offload(work.run, _encode_results(workshop.codec, function, successes, failures))
    except BaseException as error:
        failure = _failure_of(error)
        for index, _ in successes:
            failures.setdefault(index, failure)
        return workshop.codec.encode_batch([], function.result_annotation, where=_result_of(function))


def _encode_results(
    codec: Codec, function: Activity[Any, Any], successes: list[tuple[int, Any]], failures: dict[int, Failure]
) -> Payload:
    annotation, where = function.result_annotation, _result_of(function)
    try:
        return codec.encode_batch([value for _, value in successes], annotation, where=where)
    except BaseException:
        kept: list[Any] = []
        for index, value in successes:
            try:
                codec.encode(value, annotation, where=where)
                kept.append(value)
            except BaseException as error:
                failures[index] = _failure_of(error)
        return codec.encode_batch(kept, annotation, where=where)


def _failure_of(error: BaseException) -> Failure:
    """The failure of a call: the store's trouble is the system's, and any other error of ours will not go away."""
    if isinstance(error, StoreError):
        return Failure.from_exception(error, kind="system")
    return Failure.from_exception(error, non_retryable=isinstance(error, DurableError))


def _result_of(function: Activity[Any, Any]) -> str:
    return f"result of activity {function.name!r}"
