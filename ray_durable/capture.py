"""Code by value: functions of the running script or notebook, made into bytes that another process can run.

A bundle holds every registered function that cannot be imported by name, so that a captured orchestrator finds its
captured activities, by object or by name. It is a pickle: loading one runs code, so `load_bundle` asks for the trust
under which the bytes were read, and refuses before it touches them.
"""

from __future__ import annotations

import importlib
import inspect
import pickle
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import FunctionType
from typing import Any

from ray_durable.codec import Trust
from ray_durable.codec.pickling import dump_pickle
from ray_durable.errors import FunctionNotFoundError, SerializationError
from ray_durable.function import DurableFunction
from ray_durable.registry import registered

__all__ = ["Bundle", "capture_bundle", "load_bundle"]


class Bundle(dict[str, DurableFunction]):
    """Functions by registered name. `left_out` names those that could not be captured, with the reason."""

    def __init__(self, functions: Mapping[str, DurableFunction], left_out: Mapping[str, str]) -> None:
        super().__init__(functions)
        self.left_out: dict[str, str] = dict(left_out)


def capture_bundle(started: DurableFunction | None = None) -> bytes:
    """All registered functions that cannot be imported, and `started`, with what they refer to.

    A function other than `started` that cannot be pickled is left out; the bundle keeps the reason.

    Raises:
        SerializationError: `started` cannot be pickled; the message names the variable where it can.
    """
    wanted = {name: function for name, function in registered().items() if not function.is_importable}
    if started is not None:
        wanted[started.name] = started
    left_out: dict[str, str] = {}
    try:
        functions = dump_pickle(wanted)
    except Exception:
        # One of them is the culprit: find it, and let the others go together, since they may share globals.
        kept = {}
        for name, function in wanted.items():
            reason = _why_not(function)
            if reason is None:
                kept[name] = function
            elif function is started:
                raise _cannot_capture(function, reason) from None
            else:
                left_out[name] = reason
        functions = dump_pickle(kept)
    return pickle.dumps({"functions": functions, "left_out": left_out, "paths": _script_folders()}, protocol=5)


def load_bundle(data: bytes, *, trust: Trust) -> Bundle:
    """The functions of a bundle, ready to run.

    Raises:
        SerializationError: `trust` does not allow code by value; nothing was unpickled.
        FunctionNotFoundError: the code needs a module that this process cannot import.
    """
    if not trust.allows_pickle:
        raise SerializationError(
            "Captured code was refused unread: it is a pickle, and this root is neither private to you nor signed. "
            "Import the functions from a module that every node has, or use a private local root or a signing key",
            where="captured code",
            type_name="bundle",
        )
    content = pickle.loads(data)
    return Bundle(_load_functions(content["functions"], content["paths"]), content["left_out"])


def _load_functions(data: bytes, paths: Iterable[str]) -> dict[str, DurableFunction]:
    try:
        functions: dict[str, DurableFunction] = pickle.loads(data)
        return functions
    except ModuleNotFoundError as missing:
        added = [path for path in paths if path not in sys.path]
        sys.path.extend(added)
        importlib.invalidate_caches()
        try:
            functions = pickle.loads(data)
        except ModuleNotFoundError:
            for path in added:
                sys.path.remove(path)
            raise FunctionNotFoundError(
                f"Captured code needs the module {missing.name!r}, which this process cannot import: install it on "
                "every node, or put it on PYTHONPATH",
                name=missing.name or "",
            ) from missing
        return functions


def _script_folders() -> list[str]:
    """Folders of `sys.path` that belong to the script rather than to the interpreter: its helper modules lie there."""
    prefixes = tuple({sys.prefix, sys.base_prefix, sys.exec_prefix})
    resolved = [str(Path(entry or ".").resolve()) for entry in sys.path]
    return [entry for entry in dict.fromkeys(resolved) if not entry.startswith(prefixes) and Path(entry).is_dir()]


def _cannot_capture(function: DurableFunction, reason: str) -> SerializationError:
    return SerializationError(
        f"The code of {function.kind} {function.name!r} cannot be captured from the script: {reason}. Make that object "
        "inside the function, or move the function to a module that can be imported",
        where=f"code of {function.kind} {function.name!r}",
        type_name=type(function).__name__,
    )


def _why_not(value: Any) -> str | None:
    """Why `value` cannot be pickled; None if it can. For a function, the variable it uses that is to blame."""
    try:
        dump_pickle(value)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        plain = value.function if isinstance(value, DurableFunction) else value
        culprit = _culprit(plain, seen=set()) if isinstance(plain, FunctionType) else None
        return f"{culprit} ({reason})" if culprit else reason
    return None


def _culprit(function: FunctionType, seen: set[int]) -> str | None:
    """The first variable of `function`, or of a function that it calls, that cannot be pickled."""
    seen.add(id(function))
    used = inspect.getclosurevars(function)
    defaults = {f"default {index}": value for index, value in enumerate(function.__defaults__ or ())}
    for name, value in {**used.nonlocals, **used.globals, **defaults}.items():
        plain = value.function if isinstance(value, DurableFunction) else value
        if id(plain) in seen or _pickles(value):
            continue
        if isinstance(plain, FunctionType):
            deeper = _culprit(plain, seen)
            if deeper is not None:
                return deeper
        return f"{function.__qualname__} uses {name!r}, a {type(value).__name__}"
    return None


def _pickles(value: Any) -> bool:
    try:
        dump_pickle(value)
    except Exception:
        return False
    return True
