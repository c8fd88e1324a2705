"""Writing pickles of values and code, with cloudpickle.

cloudpickle carries classes of a script by value, and with a dataclass its fields, whose absent defaults are the one
object `dataclasses.MISSING`. A copy of that object is a default like any other, so it is written by name.
Reading is `pickle.loads`, and belongs to those who checked the trust.
"""

from __future__ import annotations

import dataclasses
import io
from collections import ChainMap
from collections.abc import Callable
from typing import Any, ClassVar

import cloudpickle

__all__ = ["dump_pickle"]


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """A string, returned by a reducer, is the object's name in its module."""

    dispatch_table: ClassVar[ChainMap[type, Callable[[Any], Any]]] = ChainMap(
        {type(dataclasses.MISSING): lambda _: "MISSING", type(dataclasses.KW_ONLY): lambda _: "KW_ONLY"},
        cloudpickle.Pickler.dispatch_table,
    )


def dump_pickle(value: Any) -> bytes:
    """The pickle of `value`; whatever its parts raise passes through."""
    file = io.BytesIO()
    _Pickler(file, protocol=5).dump(value)
    return file.getvalue()
