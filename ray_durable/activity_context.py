"""What a running activity may know about itself, and how it speaks to whoever runs it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Protocol

from ray_durable.errors import DurableError

__all__ = [
    "ActivityCancelled",
    "ActivityControl",
    "ActivityInfo",
    "ActivityTimeoutError",
    "activity_scope",
    "current_activity",
    "running_control",
]


class ActivityCancelled(BaseException):
    """Raised inside a running activity that shall end: its time is up, or nobody waits for it any more.

    It comes at any point of a plain activity, also out of `time.sleep` and other blocking calls of the system; an
    `async def` one gets `asyncio.CancelledError` from its present await. Clean up and let it pass: the process of an
    activity that has not ended after a few seconds is ended by force. Not an Exception, so that `except Exception` lets
    it pass.
    """


class ActivityTimeoutError(DurableError, TimeoutError):
    """An activity did not end in its `timeout`, or gave no heartbeat for its `heartbeat_timeout`."""


class ActivityControl(Protocol):
    """The way from a running activity to whoever runs it."""

    @property
    def is_cancelled(self) -> bool:
        """Whether the activity shall end."""

    def heartbeat(self, details: Any) -> None:
        """The activity lives, and has come as far as `details` (None: says nothing new)."""

    def last_details(self) -> Any:
        """What this attempt, or the last one that said anything, said last; None if none did."""


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
    control: ActivityControl | None = field(default=None, compare=False, repr=False)

    def heartbeat(self, details: Any = None) -> None:
        """Say that the activity lives, and how far it has come; cheap enough for every round of a loop.

        `details` is any value that JSON or the hub's trust allows, at most 16 KiB. The next attempt finds the last of
        them in `heartbeat_details`, also when this one is lost with its process: then up to a quarter of a second of
        them may be missing. Without `details`, those before stay. In an activity with `local=True`, and in the plain
        function, it does nothing.

        Raises:
            ActivityCancelled: the activity shall end.
            SerializationError: the details cannot be encoded.
            PayloadTooLargeError: they are over the limit.
        """
        if self.control is not None:
            self.control.heartbeat(details)

    @property
    def heartbeat_details(self) -> Any:
        """The details of the last heartbeat: of this attempt, or else of an earlier one. None if there is none."""
        return None if self.control is None else self.control.last_details()

    @property
    def is_cancelled(self) -> bool:
        """Whether the activity shall end, for code that cannot be interrupted and asks from time to time."""
        return self.control is not None and self.control.is_cancelled


_current: ContextVar[ActivityInfo | None] = ContextVar("ray_durable_activity", default=None)


def current_activity() -> ActivityInfo:
    """The running activity's info. Outside an activity: DurableError."""
    info = _current.get()
    if info is None:
        raise DurableError(
            "current_activity() works inside a running activity only; the plain function called directly has none"
        )
    return info


def running_control() -> ActivityControl | None:
    """That of the activity to which the present task or thread belongs, if it has one."""
    info = _current.get()
    return None if info is None else info.control


@contextmanager
def activity_scope(info: ActivityInfo) -> Iterator[None]:
    """Make `info` the current activity; for the worker and for tests."""
    token = _current.set(info)
    try:
        yield
    finally:
        _current.reset(token)
