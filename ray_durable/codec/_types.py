"""JSON by annotation: one `TypeCodec` for each annotated type, kept for the life of the process.

A value goes to JSON only if decoding gives it back exactly. Types that JSON maps one to one are checked by their Python
types alone; everything else is encoded, decoded and compared. Decoding is strict: JSON of another shape is an error,
never a guess ("12" is no int).
"""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Sequence
from typing import Any

import pydantic_core
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic_core import CoreSchema, SchemaSerializer, core_schema
from typing_extensions import TypeAliasType

from ray_durable.codec._plain import SCALARS, has_long_number, is_plain, json_encoding, to_json
from ray_durable.codec._same import same

__all__ = ["TypeCodec", "describe_mismatch", "join", "type_codec"]

_CONFIG = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64", ser_json_inf_nan="constants")
# Enough for any program's own annotations; a program that makes types without end pays again instead of leaking.
_CACHED_MAX = 4096

_Check = Callable[[Any], bool]


class TypeCodec:
    """JSON of one annotated type.

    `scalar` is the type itself where JSON needs no help (int, float, str, bool, None). `is_any`: no usable annotation,
    or (`is_foreign`) one that JSON knows nothing of.
    """

    __slots__ = ("_check", "_serializer", "_validator", "annotation", "is_any", "is_foreign", "scalar")

    def __init__(self, annotation: Any) -> None:
        self.annotation = annotation
        is_concrete = annotation is not Any and annotation is not object
        adapter = _adapter(annotation) if is_concrete else None
        self.is_any = adapter is None
        self.is_foreign = is_concrete and adapter is None
        self.scalar: type | None = annotation if annotation in SCALARS else None
        self._check = is_plain if adapter is None else _exact_check(annotation)
        self._validator = adapter.validator if adapter is not None else None
        self._serializer = _serializer(adapter) if adapter is not None and self._check is None else None

    def encode(self, value: Any) -> tuple[str, bytes] | None:
        """Encoding ("json" or "json-nonfinite") and text, or None if JSON would not give the value back."""
        if type(value) is self.scalar:
            return to_json(value)
        if self._check is not None:
            return to_json(value) if self._check(value) else None
        data = self._dump(value)
        if data is None or not self._gives_back(value, data):
            data = self._dump_nonfinite(value)
            if data is None or not self._gives_back(value, data):
                return None
        return json_encoding(data), data

    def encode_many(self, values: Sequence[Any]) -> list[bytes] | None:
        """The standard JSON text of each value, verified in one go; None unless all of them go to standard JSON."""
        try:
            if self._check is not None:
                if not all(map(self._check, values)):
                    return None
                texts = [pydantic_core.to_json(value, inf_nan_mode="constants") for value in values]
            else:
                texts = [data for value in values if (data := self._dump(value)) is not None]
        except ValueError:
            return None
        joined = join(texts)
        if len(texts) != len(values) or json_encoding(joined) != "json" or has_long_number(joined):
            return None
        if self._check is None:
            try:
                decoded = type_codec(list[self.annotation]).decode(joined)  # type: ignore[name-defined]
            except ValueError:
                return None
            if not same(list(values), decoded):
                return None
        return texts

    def decode(self, data: bytes) -> Any:
        """The value. ValidationError (a ValueError) says what was expected."""
        if self._validator is None:
            return pydantic_core.from_json(data)
        return self._validator.validate_json(data, strict=True, by_alias=True, by_name=True)

    def decode_many(self, texts: Sequence[bytes]) -> list[Any]:
        """The values of many texts at once. ValueError if a text holds more or less than one value."""
        decoded = type_codec(list[self.annotation]).decode(join(texts))  # type: ignore[name-defined]
        if len(decoded) != len(texts):
            raise ValueError(f"{len(texts)} items hold {len(decoded)} values")
        return typing.cast(list[Any], decoded)

    def convert(self, plain: Any) -> Any:
        """A plain value, parsed from JSON before, as a value of this type."""
        if self.is_any or type(plain) is self.scalar:
            return plain
        return self.decode(pydantic_core.to_json(plain, inf_nan_mode="constants"))

    def _dump(self, value: Any) -> bytes | None:
        assert self._serializer is not None
        try:
            # Fields by name, not alias: the aliases of input and output may differ, names never do.
            return self._serializer.to_json(value, by_alias=False, round_trip=True, warnings="error")
        except Exception:
            return None

    def _dump_nonfinite(self, value: Any) -> bytes | None:
        """A model's own settings turn NaN into null; floats taken out as Python objects keep it."""
        assert self._serializer is not None
        try:
            plain = self._serializer.to_python(value, mode="json", by_alias=False, round_trip=True, warnings="error")
            return pydantic_core.to_json(plain, inf_nan_mode="constants")
        except Exception:
            return None

    def _gives_back(self, value: Any, data: bytes) -> bool:
        try:
            return same(value, self.decode(data))
        except Exception:
            return False


def join(texts: Sequence[bytes]) -> bytes:
    """One JSON array of many JSON texts."""
    return b"[" + b",".join(texts) + b"]"


_codecs: dict[Any, TypeCodec] = {}


def type_codec(annotation: Any) -> TypeCodec:
    """The codec of an annotation; built once if the annotation is hashable."""
    # 1 == True == 1.0: literals of different types are equal as keys, so their repr goes along.
    try:
        key = annotation if isinstance(annotation, type) else (annotation, repr(annotation))
        found = _codecs.get(key)
    except TypeError:
        return TypeCodec(annotation)
    if found is None:
        if len(_codecs) >= _CACHED_MAX:
            _codecs.clear()
        found = _codecs[key] = TypeCodec(type(None) if annotation is None else annotation)
    return found


def _adapter(annotation: Any) -> TypeAdapter[Any] | None:
    """Pydantic's view of the type; None for types that it does not know (arrays, tables, arbitrary classes)."""
    try:
        # The alias carries our settings to types that would refuse them, such as dataclasses. Models keep their own.
        alias: Any = TypeAliasType("Value", annotation)
        return TypeAdapter(alias, config=_CONFIG)
    except Exception:
        return None


def _exact_check(annotation: Any) -> _Check | None:
    """A test that JSON holds a value of this annotation one to one; None for types that need the round trip."""
    if annotation in SCALARS:
        return lambda value: type(value) is annotation
    if annotation is Any:
        return is_plain
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return _union_check(arguments)
    if origin not in (list, dict, tuple):
        return None
    if origin is dict:
        return _dict_check(arguments)
    if origin is tuple and (len(arguments) != 2 or arguments[1] is not Ellipsis):
        return _tuple_check(arguments)
    item = _exact_check(arguments[0])
    if item is None:
        return None
    if arguments[0] in SCALARS:
        only = {arguments[0]}
        return lambda value: type(value) is origin and set(map(type, value)) <= only
    return lambda value: type(value) is origin and all(map(item, value))


def _union_check(arguments: tuple[Any, ...]) -> _Check | None:
    """Unions of scalars: strict parsing tells them apart, with float and int by the decimal point."""
    members = frozenset(arguments)
    return (lambda value: type(value) in members) if members <= SCALARS else None


def _dict_check(arguments: tuple[Any, ...]) -> _Check | None:
    item = _exact_check(arguments[1])
    if item is None or arguments[0] is not str:
        return None
    return lambda value: type(value) is dict and set(map(type, value)) <= {str} and all(map(item, value.values()))


def _tuple_check(arguments: tuple[Any, ...]) -> _Check | None:
    checks = [_exact_check(argument) for argument in arguments]
    known = [check for check in checks if check is not None]
    if len(known) != len(checks):
        return None
    return lambda value: (
        type(value) is tuple
        and len(value) == len(known)
        and all(check(item) for check, item in zip(known, value, strict=True))
    )


def _serializer(adapter: TypeAdapter[Any]) -> SchemaSerializer:
    """The adapter's serializer, with sets in sorted order, so that equal values have equal bytes in every process."""
    schema, changed = _with_sorted_sets(adapter.core_schema)
    if not changed:
        return adapter.serializer
    settings = core_schema.CoreConfig(ser_json_bytes="base64", ser_json_inf_nan="constants")
    return SchemaSerializer(typing.cast(CoreSchema, schema), settings)


def _with_sorted_sets(node: Any) -> tuple[Any, bool]:
    if isinstance(node, list | tuple):
        pairs = [_with_sorted_sets(item) for item in node]
        return type(node)(item for item, _ in pairs), any(changed for _, changed in pairs)
    if not isinstance(node, dict):
        return node, False
    pairs_by_key = {key: _with_sorted_sets(item) for key, item in node.items() if key != "metadata"}
    copied = {key: item for key, (item, _) in pairs_by_key.items()}
    changed = any(changed for _, changed in pairs_by_key.values())
    if node.get("type") in ("set", "frozenset") and "serialization" not in node:
        copied["serialization"] = core_schema.wrap_serializer_function_ser_schema(_sorted_items, when_used="json")
        changed = True
    return copied, changed


def _sorted_items(value: Any, serialize: Callable[[Any], Any]) -> list[Any]:
    items = list(serialize(value))
    try:
        return sorted(items)
    except TypeError:
        return sorted(items, key=pydantic_core.to_json)


def describe_mismatch(error: ValueError) -> str:
    """What was expected and where, without the data: it may be large or private."""
    if not isinstance(error, ValidationError):
        return str(error)
    parts = [
        f"{'.'.join(map(str, line['loc'])) or 'value'}: {line['msg']}"
        for line in error.errors(include_url=False, include_input=False, include_context=False)[:3]
    ]
    more = error.error_count() - len(parts)
    return "; ".join(parts) + (f"; and {more} more" if more > 0 else "")
