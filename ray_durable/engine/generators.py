"""Orchestrators written as generators, in the manner of Durable Functions: `result = yield awaitable`.

A yielded list or tuple of awaitables is awaited as a whole and answered with the list of results. The generator runs
inside of the driving coroutine, so a command's source line is the line of the generator.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Generator
from typing import Any

__all__ = ["drive_generator"]


async def drive_generator(generator: Generator[Any, Any, Any]) -> Any:
    """Run `generator` to its end: each awaitable that it yields is awaited, and its outcome sent or thrown back in.

    Returns what the generator returns. Something yielded that cannot be awaited is thrown back as a TypeError.
    """
    value: Any = None
    error: BaseException | None = None
    while True:
        try:
            yielded = generator.send(value) if error is None else generator.throw(error)
        except StopIteration as stop:
            return stop.value
        value = error = None
        try:
            value = await _awaitable(yielded)
        except BaseException as raised:
            # Also what closes the coroutine: the generator's cleanup is to see it too.
            error = raised


def _awaitable(yielded: object) -> Awaitable[Any]:
    if isinstance(yielded, (list, tuple)):
        return asyncio.gather(*yielded)
    if isinstance(yielded, Awaitable):
        return yielded
    raise TypeError(
        f"The orchestrator yielded {type(yielded).__name__}, which cannot be awaited: yield what the context's methods "
        "return (context.call_activity(...), context.create_timer(...)), or a list of them."
    )
