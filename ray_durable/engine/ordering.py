"""Where asyncio itself keeps futures and coroutines in sets, and how they come out in a fixed order nevertheless.

Four places of the standard library would iterate by address: `as_completed` starts its coroutines from a set, a task
group cancels its tasks from a set, `all_tasks` makes its set from one of the whole process, and the futures of `gather`
hash by address. Each of them calls a method of the running loop, or of a task, on the way. There we look at the
caller's frame, and put order in, for our own loop only: asyncio is not patched, and other loops of the process are not
touched. Where a version of Python has none of these places, the functions here do nothing.

What cannot be put in order is refused.
"""

from __future__ import annotations

import asyncio
import asyncio.tasks
from collections.abc import Callable, Coroutine, Iterator, MutableSet
from types import CodeType, FrameType
from typing import Any

from ray_durable.errors import NotDeterministicError

__all__ = [
    "GET_LOOP",
    "adopt_future",
    "as_completed_caller",
    "order_all_tasks",
    "order_task_group",
    "ordered_awaitables",
]


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
_ALL_TASKS = _code_of("all_tasks")
GET_LOOP = _code_of("futures", "_get_loop")
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


def adopt_future(frame: FrameType, next_ordinal: Callable[[], int]) -> None:
    """Give the future that `gather` constructs in `frame`, if it does, a hash by order of creation.

    Raises:
        NotDeterministicError: It is a stock future that `frame` constructs.
    """
    code = frame.f_code
    if code is _GATHERING_INIT:
        future = frame.f_locals["self"]
        future._ordinal = next_ordinal()
        future.__class__ = _OrderedGathering
    elif "get_debug" not in code.co_names:
        # Not called by the code of `frame`, but by the constructor that it called.
        raise NotDeterministicError(
            "Futures and tasks that are constructed by hand hash by address, so that a set of them comes in an order "
            "that a replay cannot repeat: make them with asyncio.get_running_loop().create_future() and "
            "asyncio.create_task()."
        )


def order_task_group(frame: FrameType) -> None:
    """Let the task group that creates a task in `frame`, if it does, keep its tasks in order of creation."""
    if frame.f_code is _TASK_GROUP_CREATE_TASK:
        group = frame.f_locals["self"]
        if type(group._tasks) is set and not group._tasks:
            group._tasks = _OrderedSet()


def order_all_tasks(frame: FrameType | None, task: asyncio.Task[Any]) -> bool:
    """Put the tasks that `all_tasks` looks through in `frame`, if it does, into the order of their creation.

    `task` is the one that it looks at, the first of our loop's. True if it has to be passed over, and will come again:
    behind it now follow all tasks of its loop, in order.
    """
    if frame is not None and frame.f_code.co_name == "<setcomp>":
        # A frame of its own before Python 3.12.
        frame = frame.f_back
    if frame is None or frame.f_code is not _ALL_TASKS:
        return False
    variables, loop = frame.f_locals, task._loop
    tasks = variables["tasks"] if "tasks" in variables else variables.get("scheduled_tasks")
    if variables["loop"] is not loop or not isinstance(tasks, list) or tasks[-1] is _IN_ORDER:
        return False
    place = next(place for place, listed in enumerate(tasks) if listed is task)
    ours = [listed for listed in tasks if type(listed) is type(task) and listed._loop is loop]
    tasks[place + 1 :] = [*sorted(ours, key=hash), _IN_ORDER]
    return True


class _InOrder:
    """The last of a list of tasks that is in order: a task of no loop."""

    def get_loop(self) -> None:
        return None


_IN_ORDER = _InOrder()


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
        NotDeterministicError: They came in something without an order that could be read again, or with futures whose
            order depends on them.
    """
    variables = frame.f_locals
    given = variables["fs"] if "fs" in variables else variables.get("aws")
    if not isinstance(given, (list, tuple)):
        raise NotDeterministicError(
            f"asyncio.as_completed was given coroutines in a {type(given).__name__}, and would start them in an order "
            "that a replay cannot repeat: give it a list, or tasks from asyncio.create_task."
        )
    done = [item for item in given if asyncio.isfuture(item) and item.done()]
    if len(done) > 1:
        # The set of all that is given decides which of the two is seen first.
        raise NotDeterministicError(
            "asyncio.as_completed was given coroutines together with several futures that are done, and would hand "
            "these out in an order that a replay cannot repeat: give it futures and tasks alone."
        )
    return [item for item in given if asyncio.iscoroutine(item)]
