"""Whether a value can stand where an annotation says, by Python's own rules: subclasses, and numbers for wider ones.

Asked only of what JSON does not take as it is, so a wrong argument is refused wherever the hub lies. What an annotation
means that is not understood here is not denied.
"""

from __future__ import annotations

import collections.abc
import numbers
import types
import typing
from typing import Any

import typing_extensions

__all__ = ["fits"]

_NUMBERS = {int: numbers.Integral, float: numbers.Real, complex: numbers.Complex}
_BYTES = (bytes, bytearray, memoryview)
_WRAPPERS = (typing.Annotated, typing.Final, typing.ClassVar, typing.Required, typing.NotRequired)
_ALIASES = tuple({typing_extensions.TypeAliasType, getattr(typing, "TypeAliasType", typing_extensions.TypeAliasType)})


def fits(value: Any, annotation: Any) -> bool:
    """Whether `value` is what `annotation` says; True where that cannot be told."""
    if annotation is None or annotation is type(None):
        return value is None
    if annotation is Any or annotation is object or isinstance(annotation, typing.TypeVar):
        return True
    if isinstance(annotation, _ALIASES):
        return fits(value, annotation.__value__)
    if isinstance(annotation, typing.NewType):
        return fits(value, annotation.__supertype__)
    origin = typing.get_origin(annotation)
    if origin is None:
        return _fits_class(value, annotation) if isinstance(annotation, type) else True
    arguments = typing.get_args(annotation)
    if origin in _WRAPPERS:
        return fits(value, arguments[0])
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, member) for member in arguments)
    if origin is typing.Literal:
        return any(type(value) is type(member) and value == member for member in arguments)
    return _fits_class(value, origin) and _fit_items(value, origin, arguments) if isinstance(origin, type) else True


def _fits_class(value: Any, wanted: type) -> bool:
    if typing_extensions.is_typeddict(wanted):
        return isinstance(value, collections.abc.Mapping)
    if wanted is bool:
        return isinstance(value, bool) or (
            type(value).__module__ == "numpy" and type(value).__name__ in ("bool", "bool_")
        )
    if wanted is bytes:
        return isinstance(value, _BYTES)
    try:
        return isinstance(value, _NUMBERS.get(wanted, wanted)) or _is_of_a_copy(value, wanted)
    except Exception:
        # A protocol that is not for runtime, or a class with an opinion of its own.
        return True


def _is_of_a_copy(value: Any, wanted: type) -> bool:
    """Whether the value's class is a copy of the wanted one: classes of a script travel by value, and a notebook's cell
    may run again."""
    name = (wanted.__module__, wanted.__qualname__)
    return any((base.__module__, base.__qualname__) == name for base in type(value).__mro__)


def _fit_items(value: Any, origin: type, arguments: tuple[Any, ...]) -> bool:
    """Whether the items of a container fit; other generic classes say nothing of theirs."""
    if issubclass(origin, tuple):
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return all(fits(item, arguments[0]) for item in value)
        return len(value) == len(arguments) and all(map(fits, value, arguments))
    if issubclass(origin, collections.abc.Mapping) and len(arguments) == 2:
        return all(fits(key, arguments[0]) and fits(item, arguments[1]) for key, item in value.items())
    if len(arguments) == 1 and isinstance(value, list | tuple | set | frozenset | collections.deque):
        return all(fits(item, arguments[0]) for item in value)
    return True
