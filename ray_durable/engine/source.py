"""Which line of the user's code asked for something.

A source is a code object and an offset into it: cheap to take at every command, made a line number only when somebody
asks.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterator
from functools import cache
from types import FrameType
from typing import Any

from ray_durable.engine.futures import Origin
from ray_durable.engine.generators import drive_generator
from ray_durable.engine.loop import EventLoop

__all__ = [
    "Source",
    "calling_source",
    "describe_source",
    "entry_source",
    "function_source",
    "raising_source",
    "waiting_source",
]

Source = Origin

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_MACHINERY = (_PACKAGE + os.sep, os.path.dirname(os.path.abspath(asyncio.__file__)) + os.sep)
_LOOP = EventLoop.run.__code__


@cache
def _is_machinery(filename: str) -> bool:
    return filename.startswith(_MACHINERY)


def calling_source() -> Source | None:
    """The innermost line of user code that is being executed. None if asyncio or the library itself asks."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        code = frame.f_code
        if not _is_machinery(code.co_filename):
            return code, frame.f_lasti
        if code is _LOOP:
            return None
        frame = frame.f_back
    return None


def waiting_source(coroutine: Any) -> Source | None:
    """The innermost line of user code at which a suspended coroutine waits. None if there is none."""
    frames = list(_user_frames(coroutine))
    return (frames[-1].f_code, frames[-1].f_lasti) if frames else None


def entry_source(coroutine: Any) -> Source | None:
    """The first line of the outermost user code of a suspended coroutine. None if there is none."""
    return next(((frame.f_code, 0) for frame in _user_frames(coroutine)), None)


def function_source(function: Any) -> Source | None:
    """The first line of a function of user code. None if it is no such."""
    code = getattr(function, "__code__", None)
    return None if code is None or _is_machinery(code.co_filename) else (code, 0)


def raising_source(error: BaseException) -> Source | None:
    """The innermost line of user code that `error` passed. None if there is none."""
    found: Source | None = None
    traceback = error.__traceback__
    while traceback is not None:
        if not _is_machinery(traceback.tb_frame.f_code.co_filename):
            found = traceback.tb_frame.f_code, traceback.tb_lasti
        traceback = traceback.tb_next
    return found


def _user_frames(coroutine: Any) -> Iterator[FrameType]:
    """The frames of user code in a suspended coroutine, from the outermost to the innermost."""
    while coroutine is not None:
        frame = getattr(coroutine, "cr_frame", None) or getattr(coroutine, "gi_frame", None)
        if frame is None:
            return
        if frame.f_code is drive_generator.__code__:
            # A driven generator is no part of the chain of awaits: what it awaits is awaited by its driver.
            frame = frame.f_locals["generator"].gi_frame
        if frame is not None and not _is_machinery(frame.f_code.co_filename):
            yield frame
        coroutine = getattr(coroutine, "cr_await", None) or getattr(coroutine, "gi_yieldfrom", None)


def describe_source(source: Source | None) -> str:
    """ "file:line", or "" for None."""
    if source is None:
        return ""
    code, offset = source
    line = code.co_firstlineno
    for start, stop, number in code.co_lines():
        if start <= offset < stop and number is not None:
            line = number
            break
    return f"{code.co_filename}:{line}"
