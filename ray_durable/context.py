"""What an orchestrator sees: the context, and how its function becomes the engine's coroutine.

The context turns functions and values into commands with payloads, and payloads back into values. It holds no state of
its own that replay would not make again. Names are those of Durable Functions for Python where the concept is the same.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import random
import uuid
from collections.abc import Coroutine, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, ParamSpec, TypeVar, cast, overload

from ray_durable import registry
from ray_durable.authoring import Activity, Orchestrator
from ray_durable.codec import Codec
from ray_durable.engine import Execution, ExecutionStarted, drive_generator
from ray_durable.errors import ConfigurationError, FunctionNotFoundError, PayloadTooLargeError
from ray_durable.function import DurableFunction
from ray_durable.payload import Payload
from ray_durable.reference import FunctionReference
from ray_durable.replay_logger import ReplaySafeLogger
from ray_durable.retry import RetryPolicy
from ray_durable.target import ActivityTarget

__all__ = ["Orchestration", "OrchestrationContext"]

P = ParamSpec("P")
T = TypeVar("T")
R = TypeVar("R")

_CUSTOM_STATUS_BYTES_MAX = 16 * 1024
"""The custom status travels in the header of every segment."""

_TIMER_MAX = timedelta(days=366 * 100)


class OrchestrationContext:
    """The orchestrator's way to everything durable. Every method must be called from the orchestrator's own code."""

    def __init__(self, orchestration: Orchestration, execution: Execution, started: ExecutionStarted) -> None:
        self._orchestration = orchestration
        self._execution = execution
        self._codec = orchestration.codec
        self._started = started
        name = f"ray_durable.orchestrator.{started.name}"
        self._logger = ReplaySafeLogger(logging.getLogger(name), lambda: execution.is_replaying)

    @property
    def instance_id(self) -> str:
        """The id of this instance."""
        return self._started.instance_id

    @property
    def parent_instance_id(self) -> str | None:
        """The id of the instance that called this one, if one did."""
        return self._started.parent[0] if self._started.parent else None

    @property
    def is_replaying(self) -> bool:
        """Whether the code that runs now ran before, with the same result. Never let it decide what is called."""
        return self._execution.is_replaying

    @property
    def current_utc_datetime(self) -> datetime:
        """The time of the event that is being processed, in UTC: the same in every replay."""
        return datetime.fromtimestamp(0, UTC) + timedelta(microseconds=self._execution.now_us)

    @property
    def logger(self) -> ReplaySafeLogger:
        """A logger that is silent in replays; a line is heard once its step is durable."""
        return self._logger

    @property
    def random(self) -> random.Random:
        """Random numbers that are the same in every replay."""
        return self._execution.random

    def new_uuid(self) -> uuid.UUID:
        """A new unique id that is the same in every replay."""
        return self._execution.new_uuid()

    def get_input(self) -> Any:
        """The input that the instance was started with: its one argument, or the tuple of them (None without any)."""
        args, kwargs = self._orchestration.arguments(self._started)
        values = (*args, *kwargs.values())
        return values[0] if len(values) == 1 else (values or None)

    @overload
    def call_activity(self, activity: Activity[P, R], /, *args: P.args, **kwargs: P.kwargs) -> asyncio.Future[R]: ...
    @overload
    def call_activity(self, activity: str, /, *args: Any, **kwargs: Any) -> asyncio.Future[Any]: ...
    def call_activity(self, activity: Activity[..., Any] | str, /, *args: Any, **kwargs: Any) -> asyncio.Future[Any]:
        """Call an activity, by function or registered name; await the future for its result.

        It is scheduled at once, so calls that are made before the first await run side by side. Cancelling the future
        withdraws the call.

        Raises:
            FunctionNotFoundError: no activity is registered under the name.
            TypeError: the arguments do not fit the activity's signature.
            SerializationError: an argument cannot be encoded.
            ActivityError: (from the future) the activity failed for good.
        """
        function = self._orchestration.activity(activity)
        return self._schedule(function, function.retry, args, kwargs)

    @overload
    def call_activity_with_retry(
        self, activity: Activity[P, R], retry: RetryPolicy, /, *args: P.args, **kwargs: P.kwargs
    ) -> asyncio.Future[R]: ...
    @overload
    def call_activity_with_retry(
        self, activity: str, retry: RetryPolicy, /, *args: Any, **kwargs: Any
    ) -> asyncio.Future[Any]: ...
    def call_activity_with_retry(
        self, activity: Activity[..., Any] | str, retry: RetryPolicy, /, *args: Any, **kwargs: Any
    ) -> asyncio.Future[Any]:
        """`call_activity` with a policy of its own. Attempts and the waits between them are durable."""
        return self._schedule(self._orchestration.activity(activity), retry, args, kwargs)

    def map(
        self,
        activity: Activity[[T], R] | str,
        items: Iterable[T],
        *,
        retry: RetryPolicy | None = None,
        return_exceptions: bool = False,
        tolerated_failures: int = 0,
    ) -> asyncio.Future[list[R]]:
        """Call `activity` with each item; the future gives the results in the items' order.

        However many items there are, it is one command; workers take them in time slices. The first item that fails for
        good (after the retries of `retry`, or of the activity) fails the map and withdraws the rest, unless
        `return_exceptions` puts its ActivityError in its place, or no more than `tolerated_failures` fail: those give
        None.
        """
        function = self._orchestration.activity(activity)
        if function.is_local:
            raise ConfigurationError(
                f"Activity {function.name!r} is local: ctx.map runs on workers. Await ctx.call_activity for each item, "
                "or decorate it without local=True"
            )
        values = items if isinstance(items, list) else list(items)
        call = function.calls
        call.check((None,), {})
        annotation = next(iter(call.annotations.values()), Any)
        decode_batch, result_annotation = self._codec.decode_batch, function.result_annotation
        where = f"results of activity {function.name!r}"
        return self._execution.schedule_map(
            name=function.name,
            items=self._codec.encode_batch(values, annotation, where=f"items of activity {function.name!r}"),
            count=len(values),
            decode_results=lambda payload: decode_batch(payload, result_annotation, where=where),
            retry=retry or function.retry,
            target=self._orchestration.target(function),
            return_exceptions=return_exceptions,
            tolerated_failures=tolerated_failures,
        )

    def create_timer(self, fire_at: datetime | timedelta) -> asyncio.Future[None]:
        """A durable timer: at a time (aware, or naive in UTC) or after a delay; cancel the future to drop it.

        Raises:
            ValueError: a delay below zero, or a time more than a century away.
        """
        now = self.current_utc_datetime
        if isinstance(fire_at, timedelta):
            if fire_at < timedelta(0):
                raise ValueError(f"a timer of {fire_at} lies in the past: give a delay of zero or more")
            delay = fire_at
        else:
            delay = (fire_at if fire_at.tzinfo is not None else fire_at.replace(tzinfo=UTC)) - now
        if delay > _TIMER_MAX:
            raise ValueError(f"a timer of {delay} is more than a century away")
        return self._execution.create_timer(self._execution.now_us + delay // timedelta(microseconds=1))

    @overload
    def wait_for_external_event(
        self, name: str, type: type[T], /, *, timeout: timedelta | None = None
    ) -> asyncio.Future[T]: ...
    @overload
    def wait_for_external_event(
        self, name: str, type: Any = Any, /, *, timeout: timedelta | None = None
    ) -> asyncio.Future[Any]: ...
    def wait_for_external_event(
        self, name: str, type: Any = Any, /, *, timeout: timedelta | None = None
    ) -> asyncio.Future[Any]:
        """The next event called `name`, as a value of `type`. Events wait in order until they are asked for.

        Raises:
            TimeoutError: (from the future) `timeout` passed first. An event that comes later stays for the next wait.
            SerializationError: (from the future) the event's value is no `type`.
        """
        where, decode = f"event {name!r}", self._codec.decode
        event = self._execution.wait_for_external_event(name, lambda payload: decode(payload, type, where=where))
        if timeout is None:
            return event
        return asyncio.ensure_future(asyncio.wait_for(event, timeout.total_seconds()))

    def set_custom_status(self, value: Any) -> None:
        """Show `value` (anything that is JSON, at most 16 KiB) as the instance's custom status, until it is set again.

        Raises:
            SerializationError: the value is not JSON.
            PayloadTooLargeError: it is too large.
        """
        where = "custom status"
        payload = Codec(limits=self._codec.limits).encode(value, Any, where=where)
        if payload.encoding != "json" or payload.size > _CUSTOM_STATUS_BYTES_MAX:
            raise PayloadTooLargeError(
                f"The custom status is {payload.size} bytes of {payload.encoding}: give JSON of at most "
                f"{_CUSTOM_STATUS_BYTES_MAX} bytes, and keep larger things in activities' results",
                where=where,
                size_bytes=payload.size,
                limit_bytes=_CUSTOM_STATUS_BYTES_MAX,
            )
        self._execution.set_custom_status(payload)

    def task_all(self, tasks: Iterable[asyncio.Future[T]]) -> asyncio.Future[list[T]]:
        """All results, in order; the first failure fails it. (`asyncio.gather` does the same.)"""
        return cast("asyncio.Future[list[T]]", asyncio.gather(*tasks))

    def task_any(self, tasks: Iterable[asyncio.Future[T]]) -> asyncio.Future[asyncio.Future[T]]:
        """The task that ends first, as a task: await it, or ask for its result."""
        return asyncio.ensure_future(_first_of(list(tasks)))

    def _schedule(
        self,
        function: Activity[..., Any],
        retry: RetryPolicy | None,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> asyncio.Future[Any]:
        codec, name = self._codec, function.name
        annotation, where = function.result_annotation, f"result of activity {name!r}"
        return self._execution.schedule_task(
            name=name,
            input=codec.encode_call(function.calls, args, kwargs, where=f"arguments of activity {name!r}"),
            decode=lambda payload: codec.decode(payload, annotation, where=where),
            retry=retry,
            target=self._orchestration.target(function),
        )


async def _first_of(tasks: list[asyncio.Future[T]]) -> asyncio.Future[T]:
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    return next(task for task in tasks if task.done())


class Orchestration:
    """An orchestrator's function, ready for the engine: `main` makes the coroutine of an execution.

    `functions` are those that came with captured code, by name; other names are looked up in the registry.
    """

    def __init__(
        self,
        function: Orchestrator[..., Any],
        reference: FunctionReference,
        codec: Codec,
        functions: Mapping[str, DurableFunction] | None = None,
    ) -> None:
        self.function = function
        self.reference = reference
        self.codec = codec
        self.context: OrchestrationContext | None = None
        self._functions = functions or {}
        self._targets: dict[int, tuple[Activity[..., Any], ActivityTarget]] = {}

    def main(self, execution: Execution, started: ExecutionStarted) -> Coroutine[Any, Any, Payload]:
        """The coroutine of one execution, as `Execution` wants it."""
        self.context = OrchestrationContext(self, execution, started)
        # Errors about code that never waits name its line, too.
        execution.function = self.function.function
        return self._run(self.context, started)

    def arguments(self, started: ExecutionStarted) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of the start."""
        where = f"input of orchestrator {self.function.name!r}"
        return self.codec.decode_call(self.function.calls, started.input, where=where)

    def activity(self, activity: Activity[..., Any] | str) -> Activity[..., Any]:
        """The activity that is meant. FunctionNotFoundError if nothing, or something else, has the name."""
        found: object = activity
        if isinstance(activity, str):
            found = self._functions.get(activity) or registry.lookup(activity)
        if isinstance(found, Activity):
            return found
        name = getattr(found, "name", None) or getattr(found, "__name__", repr(found))
        raise FunctionNotFoundError(f"{found!r} is no activity: decorate the function with @activity", name=str(name))

    def target(self, function: Activity[..., Any]) -> ActivityTarget:
        """What the dispatcher needs to run `function`; made once for each."""
        made = self._targets.get(id(function))
        if made is None:
            reference = registry.reference_of(function, self.reference.code)
            options = dict(function.ray_options)
            if function.max_slice is not None:
                options["max_slice"] = function.max_slice
            text = json.dumps([reference.to_json(), options], sort_keys=True, default=repr)
            key = hashlib.sha256(text.encode()).hexdigest()[:16]
            target = ActivityTarget(reference=reference, options=options, is_local=function.is_local, key=key)
            # The function is kept so that its id stays its own.
            made = self._targets[id(function)] = (function, target)
        return made[1]

    async def _run(self, context: OrchestrationContext, started: ExecutionStarted) -> Payload:
        args, kwargs = self.arguments(started)
        running = self.function.function(context, *args, **kwargs)
        value = await (drive_generator(running) if self.function.is_generator else running)
        return self.codec.encode(
            value, self.function.result_annotation, where=f"result of orchestrator {self.function.name!r}"
        )
