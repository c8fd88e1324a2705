"""How a function is called: its parameters, and the codec of each one's type."""

from __future__ import annotations

import inspect
import types
from collections.abc import Mapping
from typing import Any

from ray_durable.codec._types import TypeCodec, type_codec

__all__ = ["CallSignature"]

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_EMPTY = inspect.Parameter.empty


class CallSignature:
    """How a function is called and what types its arguments and result have. One per function; it caches.

    `name` and `kind` ("activity", "orchestrator") name the function in errors; `annotations` are resolved types by
    parameter name, `result` that of the result.
    """

    def __init__(
        self,
        *,
        name: str,
        kind: str,
        signature: inspect.Signature,
        annotations: Mapping[str, Any],
        result: Any = Any,
    ) -> None:
        self.name = name
        self.kind = kind
        self.signature = signature
        self.annotations = annotations
        self.result = result
        parameters = signature.parameters.values()
        self._positional = [parameter for parameter in parameters if parameter.kind in _POSITIONAL]
        self._rest = _name_of(signature, inspect.Parameter.VAR_POSITIONAL)
        self._rest_by_name = _name_of(signature, inspect.Parameter.VAR_KEYWORD)
        # How many positional arguments are a whole call; None where keywords are needed for one.
        keywords_needed = any(p.kind is inspect.Parameter.KEYWORD_ONLY and p.default is _EMPTY for p in parameters)
        self._count_min = None if keywords_needed else sum(p.default is _EMPTY for p in self._positional)
        self._count_max = len(self._positional)
        self._codecs: dict[int, tuple[TypeCodec, ...]] = {}
        self._tuples: dict[int, TypeCodec] = {}

    @classmethod
    def unknown(cls, name: str, kind: str = "activity") -> CallSignature:
        """For a function known by name only: any arguments, of any JSON type."""
        return cls(name=name, kind=kind, signature=inspect.signature(_anything), annotations={})

    @property
    def exact_count(self) -> int | None:
        """The number of positional arguments if every call without keywords has the same number."""
        return self._count_max if self._rest is None and self._count_min == self._count_max else None

    def check(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """TypeError, naming the function, unless it can be called with these arguments."""
        if not kwargs and self._count_min is not None and self._count_min <= len(args) <= self._count_max:
            return
        try:
            self.signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{self.kind} '{self.name}{self.signature}': {error}") from None

    def codecs(self, count: int) -> tuple[TypeCodec, ...]:
        """The codecs of the first `count` positional arguments."""
        found = self._codecs.get(count)
        if found is None:
            found = tuple(type_codec(self._annotation(index)) for index in range(count))
            self._codecs[count] = found
        return found

    def keyword_codec(self, name: str) -> TypeCodec:
        """The codec of a keyword argument."""
        known = name in self.signature.parameters and name not in (self._rest, self._rest_by_name)
        return type_codec(self.annotations.get(name if known else self._rest_by_name or "", Any))

    def tuple_codec(self, count: int) -> TypeCodec:
        """The codec of the first `count` positional arguments as one tuple; `is_any` if their types do not combine."""
        found = self._tuples.get(count)
        if found is None:
            annotations = tuple(self._annotation(index) for index in range(count))
            found = self._tuples[count] = type_codec(types.GenericAlias(tuple, annotations))
        return found

    def argument_name(self, index: int) -> str:
        """What the error about the argument at `index` calls it."""
        if index < len(self._positional):
            return self._positional[index].name
        return f"{self._rest}[{index - len(self._positional)}]"

    def _annotation(self, index: int) -> Any:
        name = self._positional[index].name if index < len(self._positional) else self._rest
        return self.annotations.get(name or "", Any)


def _anything(*args: Any, **kwargs: Any) -> Any:
    """The signature of a function that nobody here has seen."""


def _name_of(signature: inspect.Signature, kind: Any) -> str | None:
    return next((parameter.name for parameter in signature.parameters.values() if parameter.kind is kind), None)
