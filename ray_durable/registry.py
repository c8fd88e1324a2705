"""Registered names, and the way from a stored reference back to a function.

The decorators register every activity and orchestrator of the process under one name each. Nothing is imported
because a stored byte says so: a reference is resolved only when the runtime, which wrote it, asks for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

from ray_durable.function import DurableFunction
from ray_durable.reference import FunctionReference

__all__ = ["is_stale", "lookup", "reference_of", "register", "registered", "resolve", "source_digest"]

F = TypeVar("F", bound=DurableFunction)


def register(function: F) -> F:
    """Enter `function` under its name; a definition run again replaces the older one."""
    raise NotImplementedError


def registered() -> Mapping[str, DurableFunction]:
    """All registered functions by name (a snapshot)."""
    raise NotImplementedError


def lookup(name: str) -> DurableFunction:
    """The function registered as `name`. Raises FunctionNotFoundError, naming close matches."""
    raise NotImplementedError


def source_digest(module: str) -> str | None:
    """SHA-256 of the file of an imported module as it was when its first function registered; None without a file."""
    raise NotImplementedError


def reference_of(function: DurableFunction, bundle_digest: str | None = None) -> FunctionReference:
    """How another process finds `function`; one that cannot be imported needs its bundle's digest."""
    raise NotImplementedError


def resolve(
    reference: FunctionReference, load_bundle: Callable[[str], Mapping[str, DurableFunction]]
) -> DurableFunction:
    """The function that `reference` names, imported or taken from a bundle. Raises FunctionNotFoundError."""
    raise NotImplementedError


def is_stale(reference: FunctionReference) -> bool:
    """Whether this process loaded an older source than the one `reference` names, which now lies on disk."""
    raise NotImplementedError
