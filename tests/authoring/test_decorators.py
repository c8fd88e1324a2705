"""The decorators: what they keep, what they add, and what they refuse."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, assert_type

import pytest

from ray_durable.authoring import (
    Activity,
    AsyncActivity,
    GeneratorOrchestrator,
    Orchestrator,
    activity,
    orchestrator,
)
from ray_durable.errors import ConfigurationError, InvalidOrchestratorError
from ray_durable.retry import RetryPolicy
from tests.support.ids import named

if TYPE_CHECKING:
    from decimal import Decimal

P = ParamSpec("P")
R = TypeVar("R")


@activity
def score(path: str, weight: float = 1.0) -> float:
    """Score a file."""
    return len(path) * weight


@activity(name="tests.fetch", num_cpus=2, retry=RetryPolicy(max_attempts=3))
async def fetch(url: str) -> bytes:
    return url.encode()


@orchestrator
async def review(ctx: Any, folder: str, *, deep: bool = False) -> int:
    return len(folder) + deep


@orchestrator(name="tests.classic")
def classic(ctx: Any, start: int) -> Generator[Any, Any, str]:
    got = yield start
    return str(got)


@activity
def partly_known(amount: Decimal, path: str, ratio: float | None = None) -> None: ...


async def call_activity(function: Activity[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Typed like the context's method of this name."""
    result = function.function(*args, **kwargs)
    return await result if isinstance(function, AsyncActivity) else result  # type: ignore[no-any-return]


async def call_orchestrator(function: Orchestrator[P, R], *args: P.args, **kwargs: P.kwargs) -> type[R] | None:
    """Typed like the context's call of a sub-orchestrator."""
    return None


def test_an_activity_called_directly_is_the_plain_function() -> None:
    """Outside orchestrations nothing changes."""
    assert score("abc", weight=2) == 6
    assert asyncio.run(fetch("x")) == b"x"


def test_an_orchestrator_called_with_a_context_gives_its_coroutine_or_generator() -> None:
    """Orchestrators compose like plain coroutines and generators."""
    assert asyncio.run(review(None, "ab", deep=True)) == 3
    generator = classic(None, 1)
    assert next(generator) == 1
    with pytest.raises(StopIteration) as stopped:
        generator.send(5)
    assert stopped.value.value == "5"


def test_types_reach_the_type_checker() -> None:
    """Arguments and results are the function's own; an async activity's result is what it returns."""

    async def calls() -> tuple[float, bytes]:
        return (
            assert_type(await call_activity(score, "ab", weight=0.5), float),
            assert_type(await call_activity(fetch, "x"), bytes),
        )

    async def orchestrations() -> None:
        assert_type(await call_orchestrator(review, "ab", deep=True), type[int] | None)
        assert_type(await call_orchestrator(classic, 1), type[str] | None)

    assert asyncio.run(calls()) == (1.0, b"x")
    asyncio.run(orchestrations())


def test_a_decorated_function_shows_name_options_and_signature() -> None:
    """Names default to the function's; an orchestrator's signature is what its callers see."""
    assert (score.name, fetch.name, review.name) == ("score", "tests.fetch", "review")
    assert score.__doc__ == "Score a file."
    assert fetch.ray_options == {"num_cpus": 2}
    assert fetch.retry == RetryPolicy(max_attempts=3)
    assert (fetch.is_async, score.is_async, score.is_local) == (True, False, False)
    assert list(score.signature.parameters) == ["path", "weight"]
    assert list(review.signature.parameters) == ["folder", "deep"]
    assert [type(made) for made in (score, fetch, review, classic)] == [
        Activity,
        AsyncActivity,
        Orchestrator,
        GeneratorOrchestrator,
    ]


def test_annotations_are_resolved_from_their_text() -> None:
    """A generator's result is what it returns; a name known to type checkers only becomes Any, the rest stays."""
    assert (score.result_annotation, fetch.result_annotation, review.result_annotation) == (float, bytes, int)
    assert classic.result_annotation is str
    assert partly_known.calls.annotations == {"amount": Any, "path": str, "ratio": float | None}
    assert partly_known.result_annotation is type(None)


def _generator_activity() -> Iterator[int]:
    yield 1


async def _async_generator(ctx: Any) -> AsyncIterator[int]:
    yield 1


async def _coroutine(ctx: Any) -> None: ...


async def _no_context() -> None: ...


async def _keyword_context(*, ctx: Any) -> None: ...


async def _own_id(ctx: Any, *, instance_id: str) -> None: ...


async def _own_version(ctx: Any, version: str) -> None: ...


async def _own_id_by_position(ctx: Any, instance_id: str, /) -> None: ...


def _plain(ctx: Any) -> None: ...


class _Callable:
    async def __call__(self, ctx: Any) -> None: ...


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (_plain, "write `async def _plain"),
        (_no_context, "no context parameter: write `async def _no_context"),
        (_keyword_context, "no context parameter"),
        (_own_version, "has a parameter 'version'"),
        (_own_id, "make it positional-only (`instance_id, /`)"),
        (_async_generator, "write `await`, not `yield`"),
        (_Callable, "takes a function"),
        (_Callable(), "takes a function"),
        (lambda ctx: None, "is a plain function"),
        (functools.partial(_no_context), "takes a function"),
        (review, "decorated already"),
        ("review", "takes a function"),
    ],
    ids=named,
)
def test_what_cannot_be_an_orchestrator_says_what_to_write(function: Any, words: str) -> None:
    """Refused where the decorator stands."""
    with pytest.raises(InvalidOrchestratorError) as caught:
        orchestrator(function)
    assert words in str(caught.value)


def test_a_parameter_that_no_keyword_can_reach_may_have_any_name() -> None:
    """`instance_id` by position cannot be taken for the id of the instance."""
    assert list(orchestrator(name="tests.own_id")(_own_id_by_position).signature.parameters) == ["instance_id"]


@pytest.mark.parametrize("function", [_generator_activity, _async_generator, _Callable, score, 3, print], ids=named)
def test_what_cannot_be_an_activity_is_refused(function: Any) -> None:
    """Generators, classes and objects are no activities."""
    with pytest.raises(InvalidOrchestratorError):
        activity(function)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_cpu": 1}, "Did you mean num_cpus?"),
        ({"colour": "red"}, "Valid options: name, retry, local, max_slice, timeout"),
        ({"max_retries": 3}, "retry=RetryPolicy(max_attempts="),
        ({"num_returns": 2}, "return a tuple"),
        ({"num_cpus": -1}, "num_cpus is -1"),
        ({"num_gpus": "all"}, "num_gpus is 'all'"),
        ({"memory": True}, "memory is True"),
        ({"resources": ["tpu"]}, "give a dict"),
        ({"fallback_strategy": {"label_selector": {}}}, "give a list of what to try next"),
        ({"retry": 3}, "RetryPolicy(max_attempts=5)"),
        ({"max_slice": 0}, "at least 1"),
        ({"timeout": 0}, "timeout is 0: give seconds"),
        ({"timeout": "5s"}, "timedelta"),
        ({"heartbeat_timeout": timedelta(seconds=-1)}, "more than zero"),
        ({"heartbeat_timeout": float("inf")}, "heartbeat_timeout is inf"),
        ({"timeout": 5, "local": True}, "leave out local=True"),
        ({"name": ""}, "1 to 256 printable"),
        ({"name": "a\nb"}, "1 to 256 printable"),
    ],
    ids=named,
)
def test_options_that_cannot_work_are_refused_at_decoration(options: dict[str, Any], words: str) -> None:
    """The error says which option, and what is valid."""
    with pytest.raises(ConfigurationError) as caught:
        activity(**options)
    assert words in str(caught.value)


def test_an_orchestrator_takes_no_unknown_option() -> None:
    """Ray options belong to activities."""
    decorate: Callable[..., Any] = orchestrator
    with pytest.raises(ConfigurationError, match="Valid options: name, version"):
        decorate(num_cpus=1)


def test_an_orchestrator_may_have_a_version() -> None:
    """It is kept as given; without one it is None, for generators too."""
    made = orchestrator(name="tests.versioned", version="2024-11 rc.1")(_coroutine)
    assert (made.version, review.version, classic.version) == ("2024-11 rc.1", None, None)


@pytest.mark.parametrize("version", ["", "a\nb", "x" * 101, 2, b"1"], ids=named)
def test_a_version_that_cannot_be_recorded_is_refused(version: Any) -> None:
    """Versions are short and printable."""
    with pytest.raises(ConfigurationError, match=r"version is .*: give 1 to 100 printable characters"):
        orchestrator(version=version)
