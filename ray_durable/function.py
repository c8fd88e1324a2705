"""What activities and orchestrators have in common: a function with a registered name.

A `DurableFunction` pickles by reference when another process can import it (`module` and `qualname` lead back to it),
else by value: its code travels. Nothing here runs the function or knows of Ray.
"""

from __future__ import annotations

import copyreg
import importlib
import inspect
import sys
import typing
from collections.abc import Callable, Mapping
from typing import Any

from ray_durable.codec import CallSignature
from ray_durable.determinism import muted

__all__ = ["DurableFunction", "find_function"]


class DurableFunction:
    """A named function that instances refer to. Made by the decorators, not by hand.

    `name` is the registered name, `function` the plain function, `module` and `qualname` say where it was defined.
    """

    kind: typing.ClassVar[str] = "function"
    # Orchestrators leave their first parameter, the context, out of the signature that callers see.
    _leading_parameters: typing.ClassVar[int] = 0

    def __init__(self, function: Callable[..., Any], *, name: str | None) -> None:
        self.function = function
        self.name: str = name if name is not None else function.__name__
        self.module: str = function.__module__
        self.qualname: str = function.__qualname__
        self.__doc__ = function.__doc__
        self._calls: CallSignature | None = None

    @property
    def calls(self) -> CallSignature:
        """How calls are bound and which types their arguments have; resolved on first use."""
        if self._calls is None:
            self._calls = _call_signature(self)
        return self._calls

    @property
    def signature(self) -> inspect.Signature:
        """The signature that callers see: an orchestrator's is without its context."""
        return self.calls.signature

    @property
    def result_annotation(self) -> Any:
        """The annotated type of the result; `Any` when there is none or it cannot be resolved."""
        return self.calls.result

    @property
    def is_importable(self) -> bool:
        """Whether another process finds this function by importing its module."""
        if self.module == "__main__" or "<locals>" in self.qualname or "<lambda>" in self.qualname:
            return False
        return find_function(sys.modules.get(self.module), self.qualname, self.name) is self

    def __reduce__(self) -> tuple[Any, ...]:
        if self.is_importable:
            return _import_function, (self.module, self.qualname, self.name)
        # The state is set after the object exists: a function whose globals lead back to itself must not recurse.
        state = {key: value for key, value in vars(self).items() if key != "_calls"}
        return copyreg.__newobj__, (type(self),), {**state, "_calls": None}  # type: ignore[attr-defined]

    def __repr__(self) -> str:
        return f"<{self.kind} {self.name!r} ({self.module}.{self.qualname})>"


def find_function(module: Any, qualname: str, name: str) -> DurableFunction | None:
    """The durable function that `module` defines at `qualname`, or keeps under any global name as `name`."""
    if module is None:
        return None
    found: Any = module
    for part in qualname.split("."):
        found = getattr(found, part, None)
    if isinstance(found, DurableFunction):
        return found
    # `rescore = activity(score)` leaves the plain function at its own name: look for the object itself.
    for value in vars(module).values():
        if isinstance(value, DurableFunction) and (value.name, value.qualname) == (name, qualname):
            return value
    return None


def _import_function(module: str, qualname: str, name: str) -> DurableFunction:
    with muted():
        imported = importlib.import_module(module)
    found = find_function(imported, qualname, name)
    if found is None:
        raise AttributeError(f"module {module!r} has no activity or orchestrator {qualname!r}")
    return found


def _call_signature(function: DurableFunction) -> CallSignature:
    signature = inspect.signature(function.function)
    hints = _annotations(function.function)
    skipped = function._leading_parameters
    parameters = list(signature.parameters.values())[skipped:]
    result = _result_type(function.function, hints.get("return", Any))
    return CallSignature(
        name=function.name,
        kind=function.kind,
        signature=signature.replace(parameters=parameters),
        annotations={parameter.name: hints.get(parameter.name, Any) for parameter in parameters},
        result=result,
    )


def _annotations(function: Callable[..., Any]) -> Mapping[str, Any]:
    """Resolved annotations. One that cannot be resolved (a name known to type checkers only) becomes Any."""
    try:
        return typing.get_type_hints(function, include_extras=True)
    except Exception:
        return {name: _resolve_one(function, hint) for name, hint in inspect.get_annotations(function).items()}


def _resolve_one(function: Callable[..., Any], hint: Any) -> Any:
    if not isinstance(hint, str):
        return type(None) if hint is None else hint
    holder = type("_holder", (), {"__annotations__": {"it": hint}})
    try:
        return typing.get_type_hints(holder, globalns=getattr(function, "__globals__", {}), include_extras=True)["it"]
    except Exception:
        return Any


def _result_type(function: Callable[..., Any], annotation: Any) -> Any:
    """A generator's result is what it returns: the last argument of `Generator[Y, S, R]`."""
    if not inspect.isgeneratorfunction(function):
        return annotation
    arguments = typing.get_args(annotation)
    return arguments[2] if len(arguments) == 3 else Any
