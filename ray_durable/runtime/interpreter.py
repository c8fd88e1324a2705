"""The version of Python, to which a history is bound: asyncio is part of the code that made it."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from ray_durable.engine import Event, OwnerClaimed
from ray_durable.errors import NonDeterminismError

__all__ = ["PYTHON", "with_python"]

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
"""The version of this process, as claims note it."""


def with_python(error: NonDeterminismError, history: Iterable[Event]) -> NonDeterminismError:
    """The error, with a word on the version of Python if that is another one than the history was made with."""
    versions = [event.python for event in history if isinstance(event, OwnerClaimed) and event.python]
    if not versions or versions[-1] == PYTHON:
        return error
    hint = f"The history was made with Python {versions[-1]}, and this is {PYTHON}, whose asyncio may take other steps."
    return NonDeterminismError(
        f"{error}\n{hint}", expected=error.expected, actual=error.actual, position=error.position, source=error.source
    )
