"""The decorators: `@activity` and `@orchestrator`.

A decorated function keeps its meaning outside orchestrations: called, it is the plain function. The decorator adds a
registered name, options and the types that `ctx.call_activity` and its kin give back to a type checker. Mistakes in
options or in the kind of function are refused where the decorator stands, not when an instance runs.
"""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Callable, Coroutine, Generator, Mapping
from datetime import timedelta
from typing import (
    Any,
    ClassVar,
    Concatenate,
    Generic,
    NoReturn,
    ParamSpec,
    Protocol,
    TypedDict,
    TypeVar,
    Unpack,
    cast,
    overload,
)

from ray_durable.determinism import warn_about
from ray_durable.errors import ConfigurationError, InvalidOrchestratorError
from ray_durable.function import DurableFunction
from ray_durable.registry import register
from ray_durable.retry import RetryPolicy

__all__ = [
    "Activity",
    "ActivityOptions",
    "AsyncActivity",
    "GeneratorOrchestrator",
    "Mappable",
    "Orchestrator",
    "activity",
    "orchestrator",
]

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
T_contra = TypeVar("T_contra", contravariant=True)


class ActivityOptions(TypedDict, total=False):
    """The options of an activity that reach Ray: what it needs to run. Their meaning is Ray's."""

    num_cpus: float
    num_gpus: float
    memory: float
    resources: Mapping[str, float]
    accelerator_type: str
    runtime_env: Mapping[str, Any]
    scheduling_strategy: Any
    label_selector: Mapping[str, str]
    fallback_strategy: list[dict[str, Any]]


class Activity(DurableFunction, Generic[P, R_co]):
    """A function that orchestrators call by `ctx.call_activity` or `ctx.map`; it runs as a Ray task, at least once.

    `ray_options` go to Ray. `retry` is the default policy of its calls. `is_local` ones run in the orchestrator's
    process. `max_slice` bounds how many items of a map one task may take (None: no bound). An attempt that has not
    ended `timeout_s` seconds after its start on a worker, or `heartbeat_timeout_s` after its last heartbeat, is ended.
    """

    kind: ClassVar[str] = "activity"

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        name: str | None = None,
        retry: RetryPolicy | None = None,
        local: bool = False,
        max_slice: int | None = None,
        timeout_s: float | None = None,
        heartbeat_timeout_s: float | None = None,
        ray_options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(function, name=name)
        self.retry = retry
        self.timeout_s = timeout_s
        self.heartbeat_timeout_s = heartbeat_timeout_s
        self.is_local = local
        self.is_async: bool = inspect.iscoroutinefunction(function)
        self.max_slice = max_slice
        self.ray_options: Mapping[str, Any] = dict(ray_options or {})

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """Call the plain function, here and now; nothing is recorded."""
        return cast(R_co, self.function(*args, **kwargs))

    @property
    def _result(self) -> R_co:
        """Only to tell type checkers what a call gives: `__call__` of an asynchronous one gives a coroutine."""
        raise NotImplementedError


class Mappable(Protocol[T_contra, R_co]):
    """An activity to type checkers, where it is called with one item: whatever else it takes has a default."""

    @property
    def max_slice(self) -> int | None: ...

    @property
    def _result(self) -> R_co: ...

    def __call__(self, item: T_contra, /) -> object: ...


class AsyncActivity(Activity[P, R_co]):
    """An activity that is an `async def`; its result type is what the coroutine returns."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R_co]:  # type: ignore[override]
        """The plain function's coroutine."""
        return cast(Coroutine[Any, Any, R_co], self.function(*args, **kwargs))


class Orchestrator(DurableFunction, Generic[P, R_co]):
    """A coroutine function that orchestrates. `P` are its parameters without the context.

    `version` is the version of its code, which each start records: `ctx.version` tells an instance which one it began
    with. None if it has none.
    """

    kind: ClassVar[str] = "orchestrator"
    _leading_parameters: ClassVar[int] = 1
    is_generator: ClassVar[bool] = False

    def __init__(self, function: Callable[..., Any], *, name: str | None = None, version: str | None = None) -> None:
        super().__init__(function, name=name)
        self.version = version

    def __call__(self, ctx: Any, /, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R_co]:
        """The plain function's coroutine, to be awaited inside another orchestrator with its context."""
        return cast(Coroutine[Any, Any, R_co], self.function(ctx, *args, **kwargs))


class GeneratorOrchestrator(Orchestrator[P, R_co]):
    """An orchestrator that is a generator function: it yields tasks and returns its result."""

    is_generator: ClassVar[bool] = True

    def __call__(  # type: ignore[override]
        self, ctx: Any, /, *args: P.args, **kwargs: P.kwargs
    ) -> Generator[Any, Any, R_co]:
        """The plain function's generator, for `yield from`."""
        return cast(Generator[Any, Any, R_co], self.function(ctx, *args, **kwargs))


class _ActivityDecorator(Protocol):
    @overload
    def __call__(self, function: Callable[P, Coroutine[Any, Any, R]], /) -> AsyncActivity[P, R]: ...
    @overload
    def __call__(self, function: Callable[P, R], /) -> Activity[P, R]: ...


class _OrchestratorDecorator(Protocol):
    @overload
    def __call__(self, function: Callable[Concatenate[Any, P], Coroutine[Any, Any, R]], /) -> Orchestrator[P, R]: ...
    @overload
    def __call__(
        self, function: Callable[Concatenate[Any, P], Generator[Any, Any, R]], /
    ) -> GeneratorOrchestrator[P, R]: ...


@overload
def activity(function: Callable[P, Coroutine[Any, Any, R]], /) -> AsyncActivity[P, R]: ...
@overload
def activity(function: Callable[P, R], /) -> Activity[P, R]: ...
@overload
def activity(
    *,
    name: str | None = None,
    retry: RetryPolicy | None = None,
    local: bool = False,
    max_slice: int | None = None,
    timeout: timedelta | float | None = None,
    heartbeat_timeout: timedelta | float | None = None,
    **ray_options: Unpack[ActivityOptions],
) -> _ActivityDecorator: ...
def activity(
    function: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    retry: RetryPolicy | None = None,
    local: bool = False,
    max_slice: int | None = None,
    timeout: timedelta | float | None = None,
    heartbeat_timeout: timedelta | float | None = None,
    **ray_options: Any,
) -> Any:
    """Make an activity of a function, plain or `async def`; bare or with options.

    `timeout` (seconds, or a timedelta) is the time that each attempt has, from its start on a worker: waiting for one
    does not count. `heartbeat_timeout` is the time that it has from one `current_activity().heartbeat()` to the next.
    An attempt whose time is up is interrupted, and fails with ActivityTimeoutError; the retry policy decides what
    follows. Both are kept to about 0.05 s.

    Raises:
        ConfigurationError: an unknown option, a value that cannot work, or a name that another module has taken.
        InvalidOrchestratorError: the object is not a function.
    """
    _check_options(name=name, retry=retry, max_slice=max_slice, ray_options=ray_options)
    timeout_s = _seconds("timeout", timeout, is_local=local)
    heartbeat_timeout_s = _seconds("heartbeat_timeout", heartbeat_timeout, is_local=local)

    def decorate(function: Callable[..., Any]) -> Activity[Any, Any]:
        _check_activity(function)
        made = AsyncActivity if inspect.iscoroutinefunction(function) else Activity
        return register(
            made(
                function,
                name=name,
                retry=retry,
                local=local,
                max_slice=max_slice,
                timeout_s=timeout_s,
                heartbeat_timeout_s=heartbeat_timeout_s,
                ray_options=ray_options,
            )
        )

    return decorate if function is None else decorate(function)


@overload
def orchestrator(function: Callable[Concatenate[Any, P], Coroutine[Any, Any, R]], /) -> Orchestrator[P, R]: ...
@overload
def orchestrator(function: Callable[Concatenate[Any, P], Generator[Any, Any, R]], /) -> GeneratorOrchestrator[P, R]: ...
@overload
def orchestrator(
    *, name: str | None = None, version: str | None = None, check: bool = True
) -> _OrchestratorDecorator: ...
def orchestrator(
    function: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    version: str | None = None,
    check: bool = True,
    **unknown: Any,
) -> Any:
    """Make an orchestrator of an `async def` or generator function whose first parameter is the context.

    `version` (1 to 100 printable characters) is recorded by each start; code that must treat older instances in the
    older way asks `ctx.version`. Uses of what a replay does not repeat (clock, chance, files, ...) are warned of, as
    DeterminismWarning, unless `check` is false.

    Raises:
        ConfigurationError: an unknown option, a value that cannot work, or a name that another module has taken.
        InvalidOrchestratorError: the function is of another kind; the message says what to write instead.
    """
    if unknown:
        _refuse_option(next(iter(unknown)), valid=["name", "version", "check"], decorator="orchestrator")
    _check_text("name", name, length_max=256)
    _check_text("version", version, length_max=100)

    def decorate(function: Callable[..., Any]) -> Orchestrator[Any, Any]:
        _check_orchestrator(function)
        made = GeneratorOrchestrator if inspect.isgeneratorfunction(function) else Orchestrator
        registered: Orchestrator[Any, Any] = register(made(function, name=name, version=version))
        if check:
            warn_about(function, name=registered.name, is_activity=lambda value: isinstance(value, Activity))
        return registered

    return decorate if function is None else decorate(function)


# Ray has these, but here they would undo what the log promises; each has its own way.
_RAY_OPTIONS_REPLACED = {
    "max_retries": "attempts are counted in the history: give retry=RetryPolicy(max_attempts=...)",
    "retry_exceptions": "give retry=RetryPolicy(retry_on=(...,))",
    "num_returns": "an activity returns one value: return a tuple",
    "max_calls": "worker processes belong to the dispatcher",
    "concurrency_groups": "those are for actors",
    "lifetime": "those are for actors",
}
_OWN_OPTIONS = ("name", "retry", "local", "max_slice", "timeout", "heartbeat_timeout")


def _check_options(
    *,
    name: object,
    retry: object,
    max_slice: object,
    ray_options: Mapping[str, Any],
) -> None:
    valid = [*_OWN_OPTIONS, *ActivityOptions.__annotations__]
    for option in ray_options:
        if option not in ActivityOptions.__annotations__:
            _refuse_option(option, valid=valid, decorator="activity")
    _check_text("name", name, length_max=256)
    if retry is not None and not isinstance(retry, RetryPolicy):
        raise ConfigurationError(f"retry is {retry!r}: give a RetryPolicy, such as RetryPolicy(max_attempts=5)")
    if max_slice is not None and (not isinstance(max_slice, int) or max_slice < 1):
        raise ConfigurationError(f"max_slice is {max_slice!r}: give the most items that one task may take, at least 1")
    for option in ("num_cpus", "num_gpus", "memory"):
        amount = ray_options.get(option, 0)
        if isinstance(amount, bool) or not isinstance(amount, int | float) or amount < 0:
            raise ConfigurationError(f"{option} is {amount!r}: give a number, 0 or more")
    fallbacks = ray_options.get("fallback_strategy", [])
    if not isinstance(fallbacks, list) or not all(isinstance(one, Mapping) for one in fallbacks):
        raise ConfigurationError(
            f"fallback_strategy is {fallbacks!r}: give a list of what to try next, such as "
            '[{"label_selector": {"market-type": "on-demand"}}]'
        )
    for option in ("resources", "runtime_env", "label_selector"):
        mapping = ray_options.get(option, {})
        if not isinstance(mapping, Mapping):
            raise ConfigurationError(f"{option} is {mapping!r}: give a dict")


def _seconds(option: str, duration: object, *, is_local: bool) -> float | None:
    """A duration in seconds."""
    if duration is None:
        return None
    seconds = duration.total_seconds() if isinstance(duration, timedelta) else duration
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds < math.inf:
        raise ConfigurationError(f"{option} is {duration!r}: give seconds, or a timedelta, of more than zero")
    if is_local:
        raise ConfigurationError(
            f"{option} needs a worker that can be ended, and a local activity runs in the orchestrator's own process: "
            f"leave out local=True, or {option}",
            option=option,
        )
    return float(seconds)


def _refuse_option(option: str, *, valid: list[str], decorator: str) -> NoReturn:
    if option in _RAY_OPTIONS_REPLACED and decorator == "activity":
        raise ConfigurationError(f"@activity does not take {option}: {_RAY_OPTIONS_REPLACED[option]}", option=option)
    close = difflib.get_close_matches(option, valid, n=1)
    hint = f" Did you mean {close[0]}?" if close else ""
    raise ConfigurationError(
        f"@{decorator} does not know the option {option!r}.{hint} Valid options: {', '.join(valid)}.", option=option
    )


def _check_text(option: str, text: object, *, length_max: int) -> None:
    if text is not None and not (isinstance(text, str) and text.isprintable() and 1 <= len(text) <= length_max):
        raise ConfigurationError(f"{option} is {text!r:.80}: give 1 to {length_max} printable characters")


def _check_activity(function: Any) -> None:
    if isinstance(function, DurableFunction):
        raise InvalidOrchestratorError(f"{function!r} is decorated already: decorate the plain function once")
    if not inspect.isfunction(function):
        raise InvalidOrchestratorError(f"@activity takes a function written with def or async def, not {function!r}")
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise InvalidOrchestratorError(
            f"Activity {function.__qualname__!r} is a generator: return a list, or use @orchestrator if it yields tasks"
        )


# Keywords of `hub.start` and `ctx.call_sub_orchestrator`; an orchestrator's own of these names would never arrive.
_START_KEYWORDS = frozenset({"instance_id", "reuse", "version", "at"})


def _check_orchestrator(function: Any) -> None:
    if isinstance(function, DurableFunction):
        raise InvalidOrchestratorError(f"{function!r} is decorated already: decorate the plain function once")
    if not inspect.isfunction(function):
        raise InvalidOrchestratorError(
            f"@orchestrator takes a function, not {function!r}: write `async def name(ctx, ...)` at module level"
        )
    name = function.__qualname__
    if inspect.isasyncgenfunction(function):
        raise InvalidOrchestratorError(f"Orchestrator {name!r} is an async generator: write `await`, not `yield`")
    if not inspect.iscoroutinefunction(function) and not inspect.isgeneratorfunction(function):
        raise InvalidOrchestratorError(
            f"Orchestrator {name!r} is a plain function: write `async def {function.__name__}(ctx, ...)` and await "
            "what ctx gives, or `def` with `yield`. A function that does the work itself is an @activity"
        )
    parameters = list(inspect.signature(function).parameters.values())
    leading = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    by_keyword = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    if not parameters or parameters[0].kind not in leading:
        raise InvalidOrchestratorError(
            f"Orchestrator {name!r} has no context parameter: write `async def {function.__name__}(ctx, ...)`"
        )
    for parameter in parameters[1:]:
        if parameter.name in _START_KEYWORDS and parameter.kind in by_keyword:
            raise InvalidOrchestratorError(
                f"Orchestrator {name!r} has a parameter {parameter.name!r}, a keyword that starts and calls of "
                f"orchestrators take for themselves: rename it, or make it positional-only (`{parameter.name}, /`)"
            )
