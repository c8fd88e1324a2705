"""Where asyncio itself keeps futures and coroutines in sets, and how they come out in a fixed order nevertheless.

Three places of the standard library would iterate by address: `as_completed` starts its coroutines from a set, a task
group cancels its tasks from a set, and the futures of `gather` hash by address. Each of them calls a method of the
running loop on the way. The loop looks there at its caller's frame, and puts order in, for itself only: asyncio is not
patched, and other loops of the process are not touched. Where a version of Python has none of these places, the
functions here do nothing.
"""

from __future__ import annotations

import asyncio
import asyncio.tasks
from collections.abc import Callable, Coroutine, Iterator, MutableSet
from types import CodeType, FrameType
from typing import Any

from ray_durable.errors import NotDeterministicError

__all__ = ["adopt_gathering", "as_completed_caller", "order_task_group", "ordered_awaitables"]


def _code_of(*path: str) -> CodeType | None:
    found: Any = asyncio.tasks
    for name in path:
        found = getattr(found, name, None)
    return getattr(found, "__code__", None)


_GatheringFuture: Any = getattr(asyncio.tasks, "_GatheringFuture", None)
_GATHERING_INIT = _code_of("_GatheringFuture", "__init__")
_AS_COMPLETED = frozenset(
    code for code in (_code_of("as_completed"), _code_of("_AsCompletedIterator", "__init__")) if code is not None
)
_TASK_GROUP_CREATE_TASK = asyncio.TaskGroup.create_task.__code__
_TASKS_FILE = asyncio.tasks.__file__
_FRAMES_TO_AS_COMPLETED = 5


if _GatheringFuture is not None:

    class _OrderedGathering(_GatheringFuture):  # type: ignore[misc]  # the private class has no type to follow
        """A future of `gather` that hashes by the order of its creation."""

        # No slots of its own: an object may change its class only for one of the same layout.
        __slots__ = ()

        def __hash__(self) -> int:
            ordinal: int = self._ordinal
            return ordinal


class _OrderedSet(MutableSet[Any]):
    """A set that iterates in the order of insertion."""

    __slots__ = ("_items",)

    def __init__(self) -> None:
        self._items: dict[Any, None] = {}

    def __contains__(self, item: object) -> bool:
        return item in self._items

    def __iter__(self) -> Iterator[Any]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def add(self, value: Any) -> None:
        self._items[value] = None

    def discard(self, value: Any) -> None:
        self._items.pop(value, None)


def adopt_gathering(frame: FrameType, next_ordinal: Callable[[], int]) -> None:
    """Give the future that `gather` constructs in `frame`, if it does, a hash by order of creation."""
    if frame.f_code is _GATHERING_INIT:
        future = frame.f_locals["self"]
        future._ordinal = next_ordinal()
        future.__class__ = _OrderedGathering


def order_task_group(frame: FrameType) -> None:
    """Let the task group that creates a task in `frame`, if it does, keep its tasks in order of creation."""
    if frame.f_code is _TASK_GROUP_CREATE_TASK:
        group = frame.f_locals["self"]
        if type(group._tasks) is set and not group._tasks:
            group._tasks = _OrderedSet()


def as_completed_caller(frame: FrameType | None) -> FrameType | None:
    """The frame of `as_completed` that asks for a task below `frame`, or None."""
    for _ in range(_FRAMES_TO_AS_COMPLETED):
        if frame is None or frame.f_code.co_filename != _TASKS_FILE:
            return None
        if frame.f_code in _AS_COMPLETED:
            return frame
        frame = frame.f_back
    return None


def ordered_awaitables(frame: FrameType) -> list[Coroutine[Any, Any, Any]]:
    """The coroutines that were given to `as_completed`, in the order given.

    Raises:
        NotDeterministicError: They came in something without an order that could be read again.
    """
    variables = frame.f_locals
    given = variables["fs"] if "fs" in variables else variables.get("aws")
    if not isinstance(given, (list, tuple)):
        raise NotDeterministicError(
            f"asyncio.as_completed was given coroutines in a {type(given).__name__}, and would start them in an order "
            "that a replay cannot repeat: give it a list, or tasks from asyncio.create_task."
        )
    return [item for item in given if asyncio.iscoroutine(item)]
