"""Registered names, and the way from a stored reference back to a function.

The decorators register every activity and orchestrator of the process, under one name each. A definition that is run
again (a notebook cell, a reloaded module) replaces the older one; two modules cannot hold one name. Nothing is
unpickled here: bundles are loaded by whom `resolve` is told to ask.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import NoReturn, TypeVar

from ray_durable.determinism import muted
from ray_durable.errors import ConfigurationError, FunctionNotFoundError
from ray_durable.function import DurableFunction, find_function
from ray_durable.reference import FunctionReference

__all__ = [
    "changed_source",
    "is_stale",
    "lookup",
    "reference_of",
    "register",
    "registered",
    "resolve",
    "source_digest",
]

F = TypeVar("F", bound=DurableFunction)

_functions: dict[str, DurableFunction] = {}
# The source of each module as it was when its functions registered: the file may change while the process lives. A
# module imported anew is another object.
_digests: dict[str, tuple[ModuleType | None, str | None]] = {}


def register(function: F) -> F:
    """Enter `function` under its name; a definition run again replaces the older one.

    Raises:
        ConfigurationError: a function that another module defines, and still has, holds the name.
    """
    holder = _functions.get(function.name)
    if holder is not None and _defined_elsewhere(holder, function):
        raise ConfigurationError(
            f"The name {function.name!r} is taken: {holder.module}.{holder.qualname} has it, and "
            f"{function.module}.{function.qualname} wants it. Give one of them another, "
            f"such as @{function.kind}(name={f'{function.module}.{function.name}'!r})",
            name=function.name,
        )
    if holder is not None and _is_same_place(holder, function):
        # The module is being executed again: it is made of what is on disk now.
        _digests.pop(function.module, None)
    _functions[function.name] = function
    source_digest(function.module)
    return function


def registered() -> Mapping[str, DurableFunction]:
    """All registered functions by name (a snapshot)."""
    return dict(_functions)


def lookup(name: str) -> DurableFunction:
    """The function registered as `name`. Raises FunctionNotFoundError, naming close matches."""
    found = _functions.get(name)
    if found is None:
        close = difflib.get_close_matches(name, _functions, n=3)
        hint = f"Did you mean {' or '.join(map(repr, close))}?" if close else "Nothing of a similar name is registered."
        raise FunctionNotFoundError(
            f"No activity or orchestrator is registered as {name!r}. {hint} Import the module that defines it first, "
            "or give the function itself instead of its name.",
            name=name,
        )
    return found


def source_digest(module: str) -> str | None:
    """SHA-256 of the file of an imported module, as it was when its functions registered; None without a file."""
    loaded = sys.modules.get(module)
    known = _digests.get(module)
    if known is None or known[0] is not loaded:
        known = _digests[module] = (loaded, _digest_on_disk(module))
    return known[1]


def reference_of(function: DurableFunction, bundle_digest: str | None = None) -> FunctionReference:
    """How another process finds `function`.

    Raises:
        ConfigurationError: it cannot be imported, and no digest of a bundle that holds its code was given.
    """
    if function.is_importable:
        return FunctionReference(
            name=function.name,
            module=function.module,
            qualname=function.qualname,
            source=source_digest(function.module),
            path=_import_folder(function.module),
        )
    if bundle_digest is None:
        raise ConfigurationError(
            f"{function.kind.capitalize()} {function.name!r} cannot be imported by another process, and its code was "
            "not captured: move it to the top level of a module, or start it from a hub on a private local root",
            name=function.name,
        )
    return FunctionReference(name=function.name, code=bundle_digest)


def resolve(
    reference: FunctionReference, load_bundle: Callable[[str], Mapping[str, DurableFunction]]
) -> DurableFunction:
    """The function that `reference` names: imported, taken from a bundle, or by its name alone.

    `load_bundle` gives the functions of the bundle with a digest. The reference's folder is appended to `sys.path` only
    when the import fails without it.

    Raises:
        FunctionNotFoundError: with the module and the reason. Whatever `load_bundle` raises passes through.
    """
    if reference.code is not None:
        return _from_bundle(reference, load_bundle(reference.code))
    if reference.module is None or reference.qualname is None:
        return lookup(reference.name)
    # Who wrote the function has been warned where it was written and started.
    with muted():
        module = _import(reference, reference.module)
    found = find_function(module, reference.qualname, reference.name)
    if found is None:
        origin = getattr(module, "__file__", None) or "no file"
        _not_found(
            reference,
            f"module {reference.module!r} ({origin}) defines no activity or orchestrator {reference.qualname!r}; it "
            "was renamed, removed or lost its decorator. Put it back, or keep the old name beside the new one",
        )
    return found


def is_stale(reference: FunctionReference) -> bool:
    """Whether this process loaded an older source than the one `reference` names, which now lies on disk.

    A process that is stale must not run the function: a fresh one will load the right source.
    """
    if reference.module is None or reference.source is None or reference.module not in sys.modules:
        return False
    return source_digest(reference.module) != reference.source == _digest_on_disk(reference.module)


def changed_source(reference: FunctionReference) -> str | None:
    """A warning, when the module that this process has loaded is not the one that `reference` was made of.

    It compares the one file of the function's module, nothing that it imports. None when they are the same, or when
    there is nothing to compare: captured code, a module without a file, a module that is not loaded here (it is not
    imported for this).
    """
    if reference.module is None or reference.source is None or reference.module not in sys.modules:
        return None
    present = source_digest(reference.module)
    if present is None or present == reference.source:
        return None
    return (
        f"Module {reference.module!r} of {reference.name!r} has changed: its source was {reference.source[:12]} when "
        f"the instance started and is {present[:12]} now. Replay runs the code of now, so steps that differ from the "
        "history end in a NonDeterminismError; ctx.patched and ctx.version keep older instances on their way"
    )


def _defined_elsewhere(holder: DurableFunction, function: DurableFunction) -> bool:
    """Whether another module defines `holder` and still has it; functions inside functions come and go."""
    if holder.module == function.module:
        return False
    # One file may be known by two module names: a script that is `__main__` and is imported as well.
    same_file = holder.function.__code__.co_filename == function.function.__code__.co_filename
    if same_file and holder.qualname == function.qualname:
        return False
    return find_function(sys.modules.get(holder.module), holder.qualname, holder.name) is holder


def _is_same_place(holder: DurableFunction, function: DurableFunction) -> bool:
    same = (holder.module, holder.qualname) == (function.module, function.qualname)
    return same and "<locals>" not in function.qualname


def _file_of(module: str) -> Path | None:
    file = getattr(sys.modules.get(module), "__file__", None)
    return Path(file) if isinstance(file, str) else None


def _digest_on_disk(module: str) -> str | None:
    file = _file_of(module)
    try:
        return None if file is None else hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError:
        return None


def _import_folder(module: str) -> str | None:
    """The folder that `sys.path` must hold for `module` to be importable; None when it is not there as a plain path."""
    file = _file_of(module)
    if file is None:
        return None
    levels = module.count(".") + (1 if file.name == "__init__.py" else 0)
    folder = file.resolve().parents[levels]
    on_path = {Path(entry or ".").resolve() for entry in sys.path}
    return str(folder) if folder in on_path else None


def _import(reference: FunctionReference, name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as missing:
        if reference.path is None or reference.path in sys.path:
            _import_failed(reference, missing)
    except Exception as error:
        _import_failed(reference, error)
    sys.path.append(reference.path)
    importlib.invalidate_caches()
    try:
        return importlib.import_module(name)
    except Exception as error:
        sys.path.remove(reference.path)
        _import_failed(reference, error)


def _import_failed(reference: FunctionReference, error: Exception) -> NoReturn:
    reason = f"importing module {reference.module!r} raised {type(error).__name__}: {error}"
    folder = f" It was in {reference.path} when the instance started." if reference.path else ""
    advice = "Install it, or put it on PYTHONPATH or into runtime_env, on every node; the instance goes on after that"
    _not_found(reference, f"{reason}.{folder} {advice}", cause=error)


def _from_bundle(reference: FunctionReference, bundle: Mapping[str, DurableFunction]) -> DurableFunction:
    found = bundle.get(reference.name)
    if found is None:
        left_out: Mapping[str, str] = getattr(bundle, "left_out", {})
        reason = left_out.get(reference.name)
        _not_found(
            reference,
            f"its code could not be captured from the script: {reason}"
            if reason is not None
            else f"the captured code holds {', '.join(sorted(bundle)) or 'nothing'}. Define it before the start",
        )
    return found


def _not_found(reference: FunctionReference, reason: str, cause: Exception | None = None) -> NoReturn:
    raise FunctionNotFoundError(f"Function {reference.name!r} was not found: {reason}.", name=reference.name) from cause
