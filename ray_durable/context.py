"""What an orchestrator sees: the context, and how its function becomes the engine's coroutine.

The context turns functions and values into commands with payloads, and payloads back into values. It holds no state of
its own that replay would not make again. Names are those of Durable Functions for Python where the concept is the same.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import random
import uuid
from collections.abc import Callable, Coroutine, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar, cast, overload

from ray_durable.authoring import Orchestrator
from ray_durable.callees import Callees
from ray_durable.calling import CallingContext
from ray_durable.codec import Codec, fits
from ray_durable.engine import Execution, ExecutionStarted, drive_generator
from ray_durable.errors import (
    PayloadTooLargeError,
    SerializationError,
)
from ray_durable.event_name import check_event_name
from ray_durable.function import DurableFunction
from ray_durable.payload import Payload
from ray_durable.reference import FunctionReference
from ray_durable.replay_logger import ReplaySafeLogger
from ray_durable.storage import check_instance_id

__all__ = ["Orchestration", "OrchestrationContext"]

T = TypeVar("T")

_CUSTOM_STATUS_BYTES_MAX = 16 * 1024
"""The custom status travels in the header of every segment."""

_TIMER_MAX = timedelta(days=366 * 100)
_NOTHING = Payload.of("json", b"null")


class OrchestrationContext(CallingContext):
    """The orchestrator's way to everything durable. Every method must be called from the orchestrator's own code."""

    def __init__(self, orchestration: Orchestration, execution: Execution, started: ExecutionStarted) -> None:
        super().__init__(execution, started, orchestration.codec, orchestration.callees)
        self._orchestration = orchestration
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
    def version(self) -> str | None:
        """The version of the orchestrator's code with which this execution began: `@orchestrator(version=...)`."""
        return self._started.version

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

    def patched(self, id: str) -> bool:
        """Whether the change of the code that you call `id` is in force for this execution.

        True where the code runs for the first time, and from then on; False in an execution that came by here before
        there was such a change. Keep the old code in the other branch as long as such executions live.
        """
        if not id or not isinstance(id, str):
            raise ValueError(f"a change is called {id!r}: give a name that no other change of this orchestrator has")
        return self._execution.patched(id)

    def side_effect(self, function: Callable[[], T], type: Any = Any, /) -> T:
        """What `function()` returned when the code ran here for the first time: it is recorded, as a `type`.

        For short computations that differ from run to run, such as reading a setting. If the process is lost before
        the step is durable, it is called again. What may fail or wait belongs into an activity.

        Raises:
            SerializationError: the value cannot be encoded.
            NotDeterministicError: the function used the context.
        """
        codec, where = self._codec, "value of a side effect"

        def make() -> Payload:
            value = function()
            if inspect.iscoroutine(value):
                value.close()
                raise TypeError("a side effect is a plain function, and this one is async: make it an activity")
            return codec.encode(value, type, where=where)

        # Decoded the first time, too, so that the code sees what a replay will.
        return cast(T, codec.decode(self._execution.side_effect(make), type, where=where))

    @property
    def will_continue_as_new(self) -> bool:
        """Whether `continue_as_new` was called."""
        return self._execution.will_continue_as_new

    def get_input(self) -> Any:
        """The input that the instance was started with: its one argument, or the tuple of them (None without any)."""
        args, kwargs = self._orchestration.arguments(self._started)
        values = (*args, *kwargs.values())
        return values[0] if len(values) == 1 else (values or None)

    def send_event(self, instance_id: str, name: str, value: Any = None, *, type: Any = Any) -> None:
        """Raise the external event `name` for another instance. It arrives once, and waits at this one for as long as
        too many wait at the other; if there is no such instance, or it has ended, it is dropped. `type` is that of the
        value, where it is no plain JSON, as of `Handle.raise_event`.

        Raises:
            InvalidIdError: the id or the name is not allowed.
            SerializationError: the value cannot be encoded.
        """
        check_instance_id(instance_id)
        check_event_name(name)
        payload = self._codec.encode_typed(value, type, where=f"value of event {name!r}")
        self._execution.send_event(instance_id, name, payload)

    def continue_as_new(self, *args: Any, **kwargs: Any) -> None:
        """Begin anew with these arguments, under the same id and with an empty history, once the orchestrator returns:
        return right after. External events that were not taken yet go along; the last call counts.

        Raises:
            TypeError: the arguments do not fit the orchestrator's own signature.
            SerializationError: an argument cannot be encoded.
        """
        self._execution.continue_as_new(self._orchestration.encode_arguments(args, kwargs))

    def create_timer(self, fire_at: datetime | timedelta) -> asyncio.Future[None]:
        """A durable timer: at a time (aware, or naive in UTC) or after a delay; cancel the future to drop it.

        A time that is past fires at once.

        Raises:
            ValueError: a delay below zero, or a time more than a century away.
            TypeError: neither a time nor a delay.
        """
        if isinstance(fire_at, timedelta):
            delay = _checked_delay(fire_at, "a timer")
        elif isinstance(fire_at, datetime):
            due = fire_at if fire_at.tzinfo is not None else fire_at.replace(tzinfo=UTC)
            delay = _checked_delay(max(due - self.current_utc_datetime, timedelta(0)), "a timer")
        else:
            raise TypeError(f"a timer at {fire_at!r}: give a datetime, or a timedelta such as timedelta(seconds=5)")
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
            SerializationError: (from the future) the event's value is no `type`. The event stays for the next wait,
                so wait with another type then: the same one fails again, at once.
            InvalidIdError: no event can have this name.
            ValueError: `timeout` is below zero, or more than a century.
        """
        check_event_name(name)
        timeout = None if timeout is None else _checked_delay(timeout, f"a wait for event {name!r}")
        event = self._execution.wait_for_external_event(name, lambda payload: self._decode_event(name, payload, type))
        if timeout is None:
            return event
        return asyncio.ensure_future(asyncio.wait_for(event, timeout.total_seconds()))

    @property
    def custom_status(self) -> Any:
        """What this execution's last `set_custom_status` was given; None before the first."""
        shown = self._execution.custom_status
        return None if shown is None else self._codec.decode(shown, Any, where="custom status")

    def set_custom_status(self, value: Any) -> None:
        """Show `value` (anything that is JSON, at most 16 KiB) as the instance's custom status, until it is set again.

        Raises:
            SerializationError: the value is not JSON.
            PayloadTooLargeError: it is too large.
        """
        where = "custom status"
        try:
            payload = Codec(limits=self._codec.limits).encode(value, Any, where=where)
        except SerializationError as error:
            raise _no_status(value) from error
        if payload.encoding != "json":
            raise _no_status(value)
        if payload.size > _CUSTOM_STATUS_BYTES_MAX:
            raise PayloadTooLargeError(
                f"The custom status is {payload.size} bytes: give at most {_CUSTOM_STATUS_BYTES_MAX}, and keep larger "
                "things in activities' results",
                where=where,
                size_bytes=payload.size,
                limit_bytes=_CUSTOM_STATUS_BYTES_MAX,
            )
        self._execution.set_custom_status(payload)

    # The second form of each is for tasks of several types, which have no common one.
    @overload
    def task_all(self, tasks: Iterable[asyncio.Future[T]]) -> asyncio.Future[list[T]]: ...
    @overload
    def task_all(self, tasks: Iterable[asyncio.Future[Any]]) -> asyncio.Future[list[Any]]: ...
    def task_all(self, tasks: Iterable[asyncio.Future[Any]]) -> asyncio.Future[list[Any]]:
        """All results, in order; the first failure fails it. (`asyncio.gather` does the same.)"""
        return asyncio.gather(*tasks)

    @overload
    def task_any(self, tasks: Iterable[asyncio.Future[T]]) -> asyncio.Future[asyncio.Future[T]]: ...
    @overload
    def task_any(self, tasks: Iterable[asyncio.Future[Any]]) -> asyncio.Future[asyncio.Future[Any]]: ...
    def task_any(self, tasks: Iterable[asyncio.Future[Any]]) -> asyncio.Future[asyncio.Future[Any]]:
        """The task that ends first, as a task: await it, or ask for its result. The others go on.

        Raises:
            ValueError: there is no task, so that none will ever end.
        """
        waiting = [asyncio.ensure_future(task) for task in tasks]
        if not waiting:
            raise ValueError("task_any was given no task, and would wait for ever: give it at least one")
        return asyncio.ensure_future(_first_of(waiting))

    def _decode_event(self, name: str, payload: Payload, expected: Any) -> Any:
        where = f"event {name!r}"
        try:
            value = self._codec.decode(payload, expected, where=where)
        except SerializationError as error:
            raise _kept(str(error), where, error.type_name) from error
        # JSON is read as the type that is expected; other encodings bring their own.
        if payload.encoding != "json" and isinstance(expected, type) and not fits(value, expected):
            reason = f"{where}: expected {expected.__name__}, but it is of type {type(value).__name__}"
            raise _kept(reason, where, expected.__name__)
        return value


def _kept(reason: str, where: str, type_name: str) -> SerializationError:
    return SerializationError(
        f"{reason}. The event is kept: wait for it with the type that it has, or without one to take it as it is",
        where=where,
        type_name=type_name,
    )


def _checked_delay(delay: timedelta, what: str) -> timedelta:
    if not isinstance(delay, timedelta):
        raise TypeError(f"{what} of {delay!r}: give a timedelta, such as timedelta(seconds=5)")
    if delay < timedelta(0):
        raise ValueError(f"{what} of {delay} lies in the past: give zero or more")
    if delay > _TIMER_MAX:
        raise ValueError(f"{what} of {delay} is more than a century: give less")
    return delay


def _no_status(value: object) -> SerializationError:
    return SerializationError(
        f"The custom status is a {type(value).__name__} that is not plain JSON: give text, finite numbers, booleans, "
        "None, and lists and dicts of them",
        where="custom status",
        type_name=type(value).__name__,
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
        self.callees = Callees(functions or {}, reference.code)
        self.context: OrchestrationContext | None = None

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

    def encode_arguments(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Payload:
        """The input of an execution of this function. TypeError if it cannot be called with them."""
        where = f"arguments of orchestrator {self.function.name!r}"
        return self.codec.encode_call(self.function.calls, args, kwargs, where=where)

    async def _run(self, context: OrchestrationContext, started: ExecutionStarted) -> Payload:
        args, kwargs = self.arguments(started)
        running = self.function.function(context, *args, **kwargs)
        value = await (drive_generator(running) if self.function.is_generator else running)
        if context.will_continue_as_new:
            # What a round returns before the next one begins is nobody's.
            return _NOTHING
        return self.codec.encode(
            value, self.function.result_annotation, where=f"result of orchestrator {self.function.name!r}"
        )
