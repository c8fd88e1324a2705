"""Futures and tasks of the deterministic event loop.

Stock futures hash by address, so that a set of them iterates in an order that differs from process to process. Ours
hash by the order of their creation, and change only in the orchestrator's own turn. A future that stands for a command
also takes the command back when it is cancelled.
"""

from __future__ import annotations

import asyncio
import sys
from asyncio.events import _get_running_loop
from collections.abc import Coroutine
from contextvars import Context
from types import CodeType
from typing import Any, Protocol

from ray_durable.engine.ordering import GET_LOOP, order_all_tasks
from ray_durable.errors import NotDeterministicError

__all__ = [
    "OWN_CONSTRUCTORS",
    "CommandFuture",
    "OrderedFuture",
    "OrderedTask",
    "Origin",
    "Revocable",
    "fail",
    "require_turn",
    "resolve",
]

Origin = tuple[CodeType, int]
"""A place in code: the code and the offset into it."""

_OUTSIDE = (
    "The context, futures and tasks of an orchestrator work only in its own coroutines, while it runs. Other threads "
    "and loops reach an orchestrator by raising an external event; other work belongs into activities."
)


def require_turn(loop: asyncio.AbstractEventLoop) -> None:
    """Make sure that it is the code of `loop` that is running.

    Raises:
        NotDeterministicError: It is another thread, another loop, or no turn at all.
    """
    if _get_running_loop() is not loop:
        raise NotDeterministicError(_OUTSIDE)


class Revocable(Protocol):
    """Something asked for, that can be taken back."""

    def revoke(self) -> None:
        """Nobody waits for it any more."""


class OrderedFuture(asyncio.Future[Any]):
    """A future that hashes by the order of its creation."""

    __slots__ = ("_ordinal",)

    def __init__(self, ordinal: int, loop: asyncio.AbstractEventLoop) -> None:
        self._ordinal = ordinal
        super().__init__(loop=loop)

    def __hash__(self) -> int:
        return self._ordinal

    def set_result(self, result: Any, /) -> None:
        require_turn(self._loop)
        super().set_result(result)

    def set_exception(self, exception: type | BaseException, /) -> None:
        require_turn(self._loop)
        super().set_exception(exception)

    def cancel(self, msg: Any | None = None) -> bool:
        require_turn(self._loop)
        return super().cancel(msg)


class CommandFuture(OrderedFuture):
    """The outcome of a command. Cancelling it revokes the command."""

    __slots__ = ("command",)

    def __init__(self, ordinal: int, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(ordinal, loop)
        self.command: Revocable | None = None

    def cancel(self, msg: Any | None = None) -> bool:
        """Cancel the future and take the command back; False if the outcome is known already."""
        if not super().cancel(msg):
            return False
        command, self.command = self.command, None
        if command is not None:
            command.revoke()
        return True


class OrderedTask(asyncio.Task[Any]):
    """A task that hashes by the order of its creation. `origin` is what the loop knows of who created it."""

    __slots__ = ("_ordinal", "origin")

    _log_destroy_pending: bool
    origin: Origin | None

    def __init__(
        self,
        ordinal: int,
        coroutine: Coroutine[Any, Any, Any],
        *,
        loop: asyncio.AbstractEventLoop,
        name: str,
        context: Context | None,
        **options: Any,
    ) -> None:
        # The constructor of the base registers the task in a set, which asks for the hash.
        self._ordinal = ordinal
        self.origin = None
        super().__init__(coroutine, loop=loop, name=name, context=context, **options)

    def __hash__(self) -> int:
        return self._ordinal

    def cancel(self, msg: Any | None = None) -> bool:
        require_turn(self._loop)
        return super().cancel(msg)

    def get_loop(self) -> asyncio.AbstractEventLoop:
        """The loop. `asyncio.all_tasks` asks this of each task, which is the chance to put them in order."""
        frame = sys._getframe(1)
        if frame.f_code is GET_LOOP and order_all_tasks(frame.f_back, self):
            # Met again in its place.
            return None  # type: ignore[return-value]  # which is not the loop that is asked for
        loop: asyncio.AbstractEventLoop = super().get_loop()
        return loop


# What constructs futures that hash by order.
OWN_CONSTRUCTORS = frozenset((OrderedFuture.__init__.__code__, OrderedTask.__init__.__code__))


def resolve(future: CommandFuture, value: object) -> None:
    """Give `future` its result, unless it is done."""
    if not future.done():
        future.command = None
        # The engine calls this in the turn alone: the question whether it is one is left out.
        asyncio.Future.set_result(future, value)


def fail(future: CommandFuture, error: BaseException) -> None:
    """Give `future` its exception, unless it is done."""
    if future.done():
        return
    future.command = None
    if isinstance(error, StopIteration):
        # Futures refuse StopIteration, which would end the awaiting coroutine as if it had returned.
        cause, error = error, RuntimeError("StopIteration was raised where a result was expected")
        error.__cause__ = cause
    future.set_exception(error)
    # An outcome that nobody awaits is in the history; asyncio's warning, from the garbage collector, adds nothing.
    future._log_traceback = False
