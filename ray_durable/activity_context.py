"""What a running activity may know about itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from ray_durable.errors import DurableError

__all__ = ["ActivityInfo", "activity_scope", "current_activity"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivityInfo:
    """One attempt of an activity.

    `attempt` counts from 1. `idempotency_key` is the same for all attempts of one call and for no other call: hand it
    to the systems that you change, so that an attempt that runs again changes nothing twice. `item` is the position
    in the map that this call belongs to, None for a single call.
    """

    name: str
    instance_id: str
    task_id: str
    attempt: int
    idempotency_key: str
    item: int | None = None


_current: ContextVar[ActivityInfo | None] = ContextVar("ray_durable_activity", default=None)


def current_activity() -> ActivityInfo:
    """The running activity's info. Outside an activity: DurableError."""
    info = _current.get()
    if info is None:
        raise DurableError(
            "current_activity() works inside a running activity only; the plain function called directly has none"
        )
    return info


@contextmanager
def activity_scope(info: ActivityInfo) -> Iterator[None]:
    """Make `info` the current activity; for the worker and for tests."""
    token = _current.set(info)
    try:
        yield
    finally:
        _current.reset(token)
