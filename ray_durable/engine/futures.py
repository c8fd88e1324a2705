"""Futures and tasks of the deterministic event loop.

Stock futures hash by address, so that a set of them iterates in an order that differs from process to process. Ours
hash by the order of their creation. A future that stands for a command also takes the command back when it is
cancelled.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextvars import Context
from typing import Any, Protocol

__all__ = ["CommandFuture", "OrderedFuture", "OrderedTask", "Revocable", "fail", "resolve"]


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
    """A task that hashes by the order of its creation."""

    __slots__ = ("_ordinal",)

    _log_destroy_pending: bool

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
        super().__init__(coroutine, loop=loop, name=name, context=context, **options)

    def __hash__(self) -> int:
        return self._ordinal


def resolve(future: CommandFuture, value: object) -> None:
    """Give `future` its result, unless it is done."""
    if not future.done():
        future.command = None
        future.set_result(value)


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
