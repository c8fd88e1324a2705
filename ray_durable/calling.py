"""The calls of an orchestrator: activities, maps and other orchestrators, by function or by registered name.

Arguments are checked against the function's signature and encoded at the call, results decoded by its annotation.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ParamSpec, TypeVar, overload

from ray_durable.arrivals import Arrivals
from ray_durable.authoring import Activity, Mappable, Orchestrator
from ray_durable.callees import Callees
from ray_durable.codec import Codec
from ray_durable.engine import Execution, ExecutionStarted
from ray_durable.errors import ActivityError, ConfigurationError, InvalidIdError, NestingTooDeepError
from ray_durable.retry import RetryPolicy
from ray_durable.storage import check_instance_id

__all__ = ["CallingContext"]

P = ParamSpec("P")
T = TypeVar("T")
R = TypeVar("R")

_DEPTH_MAX = 32
"""So many instances may call one another in a chain. More is recursion without end."""


class CallingContext:
    """The part of the context that calls."""

    def __init__(self, execution: Execution, started: ExecutionStarted, codec: Codec, callees: Callees) -> None:
        self._execution = execution
        self._started = started
        self._codec = codec
        self._callees = callees

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
        function = self._callees.activity(activity)
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
        """`call_activity` with a policy of its own. Attempts and the waits between them are durable.

        Raises:
            TypeError: what stands in the policy's place is none.
        """
        _check_policy(retry)
        return self._schedule(self._callees.activity(activity), retry, args, kwargs)

    @overload
    def map(
        self, activity: Mappable[T, R], items: Iterable[T], *, retry: RetryPolicy | None = None
    ) -> asyncio.Future[list[R]]: ...
    @overload
    def map(
        self,
        activity: Mappable[T, R],
        items: Iterable[T],
        *,
        retry: RetryPolicy | None = None,
        return_exceptions: bool,
        tolerated_failures: int = 0,
    ) -> asyncio.Future[list[R | ActivityError]]: ...
    @overload
    def map(
        self,
        activity: Mappable[T, R],
        items: Iterable[T],
        *,
        retry: RetryPolicy | None = None,
        tolerated_failures: int,
    ) -> asyncio.Future[list[R | None]]: ...
    @overload
    def map(
        self,
        activity: str,
        items: Iterable[Any],
        *,
        retry: RetryPolicy | None = None,
        return_exceptions: bool = False,
        tolerated_failures: int = 0,
    ) -> asyncio.Future[list[Any]]: ...
    def map(
        self,
        activity: Any,
        items: Iterable[Any],
        *,
        retry: RetryPolicy | None = None,
        return_exceptions: bool = False,
        tolerated_failures: int = 0,
    ) -> asyncio.Future[list[Any]]:
        """Call `activity` with each item; the future gives the results in the items' order.

        However many items there are, it is one command; workers take them in time slices. The first item that fails for
        good (after the retries of `retry`, or of the activity) fails the map and withdraws the rest, unless
        `return_exceptions` puts its ActivityError in its place, or no more than `tolerated_failures` fail: those give
        None.

        Raises:
            ConfigurationError: the activity is local, or `tolerated_failures` is no number of items.
            FunctionNotFoundError, TypeError, SerializationError: as of `call_activity`.
        """
        return self._map(
            activity, items, retry, return_exceptions=return_exceptions, tolerated_failures=tolerated_failures
        )

    @overload
    def map_unordered(
        self, activity: Mappable[T, R], items: Iterable[T], *, retry: RetryPolicy | None = None
    ) -> Arrivals[R]: ...
    @overload
    def map_unordered(
        self,
        activity: Mappable[T, R],
        items: Iterable[T],
        *,
        retry: RetryPolicy | None = None,
        return_exceptions: bool,
        tolerated_failures: int = 0,
    ) -> Arrivals[R | ActivityError]: ...
    @overload
    def map_unordered(
        self,
        activity: Mappable[T, R],
        items: Iterable[T],
        *,
        retry: RetryPolicy | None = None,
        tolerated_failures: int,
    ) -> Arrivals[R | None]: ...
    @overload
    def map_unordered(
        self,
        activity: str,
        items: Iterable[Any],
        *,
        retry: RetryPolicy | None = None,
        return_exceptions: bool = False,
        tolerated_failures: int = 0,
    ) -> Arrivals[Any]: ...
    def map_unordered(
        self,
        activity: Any,
        items: Iterable[Any],
        *,
        retry: RetryPolicy | None = None,
        return_exceptions: bool = False,
        tolerated_failures: int = 0,
    ) -> Arrivals[Any]:
        """`map`, with the results one by one as they arrive: `async for index, result in ctx.map_unordered(...)`.

        It starts at once. If the map fails, the loop raises that behind the results that came before. Leaving the loop
        does not withdraw the rest; `async with contextlib.aclosing(...)` does.
        """
        arrivals: Arrivals[Any] = Arrivals()
        arrivals.follow(
            self._map(
                activity,
                items,
                retry,
                return_exceptions=return_exceptions,
                tolerated_failures=tolerated_failures,
                on_results=arrivals.on_results,
            )
        )
        return arrivals

    def _map(
        self,
        activity: Activity[..., Any] | str,
        items: Iterable[Any],
        retry: RetryPolicy | None,
        *,
        return_exceptions: bool,
        tolerated_failures: int,
        on_results: Callable[[int, list[Any]], None] | None = None,
    ) -> asyncio.Future[list[Any]]:
        function = self._callees.activity(activity)
        if retry is not None:
            _check_policy(retry)
        _check_tolerated(tolerated_failures)
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
            items=self._codec.encode_items(values, annotation, where=f"items of activity {function.name!r}"),
            count=len(values),
            decode_results=lambda payload: decode_batch(payload, result_annotation, where=where),
            retry=retry or function.retry,
            target=self._callees.target(function, retry or function.retry),
            return_exceptions=return_exceptions,
            tolerated_failures=tolerated_failures,
            on_results=on_results,
        )

    @overload
    def call_sub_orchestrator(
        self, orchestrator: Orchestrator[P, R], /, *args: P.args, **kwargs: P.kwargs
    ) -> asyncio.Future[R]: ...
    @overload
    def call_sub_orchestrator(
        self,
        orchestrator: Orchestrator[..., R],
        /,
        *args: Any,
        instance_id: str | None,
        version: str | None = None,
        **kwargs: Any,
    ) -> asyncio.Future[R]: ...
    @overload
    def call_sub_orchestrator(
        self, orchestrator: Orchestrator[..., R], /, *args: Any, version: str | None, **kwargs: Any
    ) -> asyncio.Future[R]: ...
    @overload
    def call_sub_orchestrator(
        self,
        orchestrator: str,
        /,
        *args: Any,
        instance_id: str | None = None,
        version: str | None = None,
        **kwargs: Any,
    ) -> asyncio.Future[Any]: ...
    def call_sub_orchestrator(  # type: ignore[misc]  # No orchestrator has parameters of these names.
        self,
        orchestrator: Orchestrator[..., Any] | str,
        /,
        *args: Any,
        instance_id: str | None = None,
        version: str | None = None,
        **kwargs: Any,
    ) -> asyncio.Future[Any]:
        """Call an orchestrator, by function or registered name, as an instance of its own; await the future for its
        result.

        The child has its own history, and outlives the loss of this instance's process. `instance_id` names it
        (default: an id made of this instance's); `version` is recorded as the version of its code (default: what its
        decorator says). Cancelling the future terminates the child; so does terminating this instance, unless told
        otherwise. The end of this instance leaves it running.

        Raises:
            FunctionNotFoundError: no orchestrator is registered under the name.
            TypeError: the arguments do not fit the orchestrator's signature.
            SerializationError: an argument cannot be encoded.
            InvalidIdError: the id is not allowed, or this instance's own.
            NestingTooDeepError: this instance has too many callers above it.
            SubOrchestrationError: (from the future) the child failed for good, or was terminated.
        """
        return self._call_child(orchestrator, None, instance_id, version, args, kwargs)

    @overload
    def call_sub_orchestrator_with_retry(
        self, orchestrator: Orchestrator[P, R], retry: RetryPolicy, /, *args: P.args, **kwargs: P.kwargs
    ) -> asyncio.Future[R]: ...
    @overload
    def call_sub_orchestrator_with_retry(
        self,
        orchestrator: Orchestrator[..., R],
        retry: RetryPolicy,
        /,
        *args: Any,
        instance_id: str | None,
        version: str | None = None,
        **kwargs: Any,
    ) -> asyncio.Future[R]: ...
    @overload
    def call_sub_orchestrator_with_retry(
        self,
        orchestrator: Orchestrator[..., R],
        retry: RetryPolicy,
        /,
        *args: Any,
        version: str | None,
        **kwargs: Any,
    ) -> asyncio.Future[R]: ...
    @overload
    def call_sub_orchestrator_with_retry(
        self,
        orchestrator: str,
        retry: RetryPolicy,
        /,
        *args: Any,
        instance_id: str | None = None,
        version: str | None = None,
        **kwargs: Any,
    ) -> asyncio.Future[Any]: ...
    def call_sub_orchestrator_with_retry(  # type: ignore[misc]  # No orchestrator has parameters of these names.
        self,
        orchestrator: Orchestrator[..., Any] | str,
        retry: RetryPolicy,
        /,
        *args: Any,
        instance_id: str | None = None,
        version: str | None = None,
        **kwargs: Any,
    ) -> asyncio.Future[Any]:
        """`call_sub_orchestrator` with a retry policy. Each attempt is an instance, or the next execution of the given
        one. Attempts and the waits between them are durable.

        Raises:
            TypeError: what stands in the policy's place is none.
        """
        _check_policy(retry)
        return self._call_child(orchestrator, retry, instance_id, version, args, kwargs)

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
            target=self._callees.target(function, retry),
        )

    def _call_child(
        self,
        orchestrator: Orchestrator[..., Any] | str,
        retry: RetryPolicy | None,
        instance_id: str | None,
        version: str | None,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> asyncio.Future[Any]:
        codec, function = self._codec, self._callees.orchestrator(orchestrator)
        name, caller = function.name, self._started.instance_id
        if self._started.depth + 1 > _DEPTH_MAX:
            raise NestingTooDeepError(
                f"Instance {caller!r} has {self._started.depth} callers above it and cannot call {name!r}: "
                f"{_DEPTH_MAX} are the most. Does an orchestrator call itself without end? For a loop, use "
                "ctx.continue_as_new",
                depth=self._started.depth,
            )
        if instance_id is not None:
            check_instance_id(instance_id)
            if instance_id == caller:
                raise InvalidIdError(f"Instance {instance_id!r} cannot call itself: give the child another id, or none")
        annotation, where = function.result_annotation, f"result of orchestrator {name!r}"
        return self._execution.schedule_child(
            name=name,
            input=codec.encode_call(function.calls, args, kwargs, where=f"arguments of orchestrator {name!r}"),
            decode=lambda payload: codec.decode(payload, annotation, where=where),
            instance=instance_id,
            reference=self._callees.reference(function).to_json(),
            version=function.version if version is None else version,
            retry=retry,
        )


def _check_policy(retry: object) -> None:
    if not isinstance(retry, RetryPolicy):
        raise TypeError(
            f"The retry policy is {retry!r}: give a RetryPolicy, such as RetryPolicy(max_attempts=5), and behind it "
            "the arguments of what is called"
        )


def _check_tolerated(failures: object) -> None:
    if not isinstance(failures, int) or failures < 0:
        raise ConfigurationError(f"tolerated_failures is {failures!r}: give how many items may fail, 0 or more")
