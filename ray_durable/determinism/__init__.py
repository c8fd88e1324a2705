"""Warnings about code that cannot be replayed, at the place where an orchestrator is decorated.

The check reads the syntax tree of the function: calls of the clock, of chance, files, network, threads and Ray, each
with what to use instead. It names what it is sure of and is silent about the rest, so it finds the usual slips and
proves nothing; what it misses, replay reports as a NonDeterminismError. It runs no user code, imports nothing and never
fails. A comment `# durable: ok` on the line says that a use is meant.
"""

from __future__ import annotations

import contextlib
import inspect
import warnings
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from types import FunctionType
from typing import Any

from ray_durable.determinism.uses import Use, find_uses

__all__ = ["DeterminismWarning", "muted", "warn_about"]

_muted: ContextVar[bool] = ContextVar("_muted", default=False)


class DeterminismWarning(UserWarning):
    """An orchestrator uses something that a replay does not repeat; the text says what to use instead."""


@contextlib.contextmanager
def muted() -> Iterator[None]:
    """No warnings for what is decorated meanwhile: for processes that load functions which others wrote and started."""
    token = _muted.set(True)
    try:
        yield
    finally:
        _muted.reset(token)


def warn_about(function: Callable[..., Any], *, name: str, is_activity: Callable[[object], bool]) -> None:
    """Warn of each use in the orchestrator `name` that cannot be replayed, at its own file and line.

    `is_activity` tells activities, which an orchestrator must not call directly.
    """
    if _muted.get():
        return
    for use in _uses(function, is_activity):
        where = f"Orchestrator {name!r}" + (f", in {use.helper}()," if use.helper else "")
        warnings.warn_explicit(
            f"{where} {use.what}: {use.advice}",
            DeterminismWarning,
            use.file,
            use.line,
            module=function.__module__,
            registry=getattr(function, "__globals__", {}).setdefault("__warningregistry__", {}),
        )


def _uses(function: Callable[..., Any], is_activity: Callable[[object], bool]) -> list[Use]:
    try:
        plain = inspect.unwrap(function)
        return find_uses(plain, is_activity) if isinstance(plain, FunctionType) else []
    except Exception:
        # A check that cannot read some code must not keep it from running.
        return []
