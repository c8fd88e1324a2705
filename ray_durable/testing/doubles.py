"""What stands in for activities in a test: recorders, and replacements.

Every activity that runs is recorded. A replacement is any function that takes the activity's arguments; arguments and
results still pass through the codec by the activity's own types, as they do in production.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from ray_durable.activity_context import current_activity
from ray_durable.authoring import Activity

__all__ = ["ActivityCall", "Doubles"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivityCall:
    """One attempt of an activity that ran, real or replaced.

    `args` and `kwargs` are what it was called with, `attempt` counts from 1, `item` is the position in the map that the
    call belongs to, `at` the virtual time. `idempotency_key` is the same for all attempts of one call.
    """

    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    instance_id: str
    attempt: int
    item: int | None
    idempotency_key: str
    at: datetime


class Doubles:
    """The doubles of one environment. `now` tells the virtual time; calls come from the activities' own threads."""

    def __init__(self, now: Callable[[], datetime]) -> None:
        self.calls: list[ActivityCall] = []
        self.on_call: Callable[[ActivityCall], None] | None = None
        self._now = now
        self._replacements: dict[str, Callable[..., Any]] = {}
        self._made: dict[str, tuple[Activity[..., Any], _Double]] = {}
        self._lock = threading.Lock()

    def replace(self, name: str, replacement: Callable[..., Any] | None) -> None:
        """Let the activity of this name do something else from now on; None: what it did before."""
        with self._lock:
            self._made.pop(name, None)
            if replacement is None:
                self._replacements.pop(name, None)
            else:
                self._replacements[name] = replacement

    def of(self, activity: Activity[..., Any]) -> Activity[..., Any]:
        """What runs instead of `activity`."""
        with self._lock:
            original, double = self._made.get(activity.name, (None, None))
            if original is not activity or double is None:
                replacement = self._replacements.get(activity.name, activity.function)
                double = _Double(activity, self._recorded(replacement))
                self._made[activity.name] = activity, double
            return double

    def _recorded(self, behaviour: Callable[..., Any]) -> Callable[..., Any]:
        if inspect.iscoroutinefunction(behaviour):

            async def run_async(*args: Any, **kwargs: Any) -> Any:
                self._record(args, kwargs)
                return await behaviour(*args, **kwargs)

            return run_async

        def run(*args: Any, **kwargs: Any) -> Any:
            self._record(args, kwargs)
            value = behaviour(*args, **kwargs)
            return asyncio.run(_awaited(value)) if inspect.isawaitable(value) else value

        return run

    def _record(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        info = current_activity()
        call = ActivityCall(
            name=info.name,
            args=args,
            kwargs=kwargs,
            instance_id=info.instance_id,
            attempt=info.attempt,
            item=info.item,
            idempotency_key=info.idempotency_key,
            at=self._now(),
        )
        with self._lock:
            self.calls.append(call)
        if self.on_call is not None:
            self.on_call(call)


class _Double(Activity[..., Any]):
    """An activity with another function; for everybody else it is the same one."""

    def __init__(self, original: Activity[..., Any], function: Callable[..., Any]) -> None:
        # Its types are those of the original.
        assert original.calls is not None
        vars(self).update(vars(original))
        self.function = function
        self.is_async = inspect.iscoroutinefunction(function)
        self._original = original

    @property
    def is_importable(self) -> bool:
        return self._original.is_importable


async def _awaited(value: Awaitable[Any]) -> Any:
    return await value
