"""Values to payloads and back.

The first encoding of this list under which the value comes back equal and of the same type is taken:

- "json": standard JSON in UTF-8, compact, one line; the reader's annotation gives the types
- "json-nonfinite": the same with the constants NaN and Infinity, which standard JSON lacks
- "arrow": tables and columns of pyarrow and pandas (`_arrow`)
- "ndarray": arrays and scalars of numpy (`_ndarray`)
- "json-as-is": JSON in ASCII of a plain value that does not match its annotation (an int for a float), or that
  standard JSON cannot hold (lone surrogates); the reader's annotation is not applied
- "pickle": anything else, only where trust allows it

Calls are "json" (an array, or an object of "args" and "kwargs") if all arguments are, else "multipart" (`_parts`).
Many values are a "batch" (`batch`). No type ever comes from the data.
"""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Mapping, Sequence
from typing import Any

import pydantic_core

from ray_durable.codec._calls import CallSignature
from ray_durable.codec._columns import NATIVE_COLUMNS, native_column
from ray_durable.codec._fit import fits
from ray_durable.codec._parts import Part, pack_parts, unpack_parts
from ray_durable.codec._plain import JSON_DEPTH_MAX, is_plain, plain_as_is, plain_from_as_is
from ray_durable.codec._types import TypeCodec, describe_mismatch, join, type_codec
from ray_durable.codec.batch import Batch, item_batch, native_batch, open_batch
from ray_durable.codec.limits import Limits, Trust
from ray_durable.codec.pickling import dump_pickle
from ray_durable.errors import DurableError, PayloadTooLargeError, SerializationError
from ray_durable.payload import Payload

__all__ = ["Codec"]

_COLUMN_SCALARS = {column: scalar for scalar, column in NATIVE_COLUMNS.items()}


class Codec:
    """Encodes and decodes values under one trust and one set of limits. Keeps no state; threads may share it.

    `where` names the place for errors, such as "result of activity 'score'". All methods raise SerializationError for
    what cannot be encoded or decoded, and PayloadTooLargeError for what is over a limit.
    """

    def __init__(self, *, trust: Trust = Trust.NONE, limits: Limits | None = None) -> None:
        self.trust = trust
        self.limits = limits or Limits()

    def encode(self, value: Any, annotation: Any = Any, *, where: str) -> Payload:
        """`value` as a payload."""
        return self._payload(*self._encode(value, type_codec(annotation), where), where)

    def decode(self, payload: Payload, annotation: Any = Any, *, where: str) -> Any:
        """The value of `payload`, of the type that `annotation` says."""
        self._check_size(payload.size, where)
        return self._decode(payload.encoding, payload.bytes, type_codec(annotation), where)

    def encode_call(
        self, call: CallSignature, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, where: str
    ) -> Payload:
        """The arguments of a call. TypeError if the function cannot be called with them, SerializationError also if one
        is not of its parameter's type."""
        call.check(args, kwargs)
        codecs = call.codecs(len(args))
        parts: list[Part] = []
        for index, (value, codec) in enumerate(zip(args, codecs, strict=True)):
            part = None if codec.is_foreign else codec.encode(value)
            parts.append(part or self._encode_argument(value, codec, call.argument_name(index), where))
        named: dict[str, Part] = {}
        for name, value in kwargs.items():
            codec = call.keyword_codec(name)
            part = None if codec.is_foreign else codec.encode(value)
            named[name] = part or self._encode_argument(value, codec, name, where)
        if not all(encoding == "json" for encoding, _ in (*parts, *named.values())):
            return self._payload("multipart", pack_parts(parts, named), where)
        array = join([data for _, data in parts])
        if not named:
            return self._payload("json", array, where)
        fields = b",".join(pydantic_core.to_json(name) + b":" + data for name, (_, data) in named.items())
        return self._payload("json", b'{"args":' + array + b',"kwargs":{' + fields + b"}}", where)

    def decode_call(
        self, call: CallSignature, payload: Payload, *, where: str
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional and keyword arguments. SerializationError if they no longer fit the function."""
        self._check_size(payload.size, where)
        if payload.encoding == "multipart":
            args, kwargs = self._decode_parts(call, payload.bytes, where)
        elif payload.encoding == "json":
            args, kwargs = self._decode_json_call(call, payload.bytes, where)
        else:
            raise _unreadable(where, f"{payload.encoding!r} is no encoding of arguments")
        try:
            call.check(args, kwargs)
        except TypeError as error:
            reason = f"they do not fit {error}. Was the function changed while the instance ran? Accept the older call"
            raise _unreadable(where, reason) from None
        return args, kwargs

    def encode_typed(self, value: Any, annotation: Any, *, where: str) -> Payload:
        """`encode` of a value whose type was said: one of another type is refused."""
        if not fits(value, annotation) and type_codec(annotation).encode(value) is None:
            raise _unfit(where, value, annotation)
        return self.encode(value, annotation, where=where)

    def encode_batch(self, values: Sequence[Any], annotation: Any = Any, *, where: str) -> Payload:
        """Many values of one annotation as one columnar payload."""
        if len(values) > self.limits.batch_items_max:
            raise _too_large(where, len(values), self.limits.batch_items_max, "items")
        codec = type_codec(annotation)
        batch = _native(values, codec)
        if batch is None:
            texts = codec.encode_many(values)
            batch = item_batch("json", texts) if texts is not None else self._item_payloads(values, codec, where)
        # The reader refuses what would grow over the limit, so the size before compression counts here too.
        self._check_size(batch.column_bytes, where)
        return self._payload("batch", batch.to_payload().bytes, where)

    def encode_items(self, values: Sequence[Any], annotation: Any = Any, *, where: str) -> Payload:
        """The items of a map, each the argument of a call: `encode_batch`, which refuses those of another type."""
        codec = type_codec(annotation)
        if codec.scalar is None or not set(map(type, values)) <= {codec.scalar}:
            for index, value in enumerate(values):
                if not fits(value, annotation) and (codec.is_foreign or codec.encode(value) is None):
                    raise _unfit(f"item {index} of {where}", value, annotation)
        return self.encode_batch(values, annotation, where=where)

    def decode_batch(self, payload: Payload, annotation: Any = Any, *, where: str) -> list[Any]:
        """The values of a batch."""
        self._check_size(payload.size, where)
        batch = open_batch(payload, limits=self.limits, where=where)
        codec = type_codec(annotation)
        items = batch.to_pylist()
        if batch.items == "payload":
            return [self._decode_item(item, codec, f"item {index} of {where}") for index, item in enumerate(items)]
        try:
            if batch.items == "json":
                return codec.decode_many(items)
            if batch.reader == "exact" or codec.is_any or codec.scalar is _COLUMN_SCALARS[batch.column_type]:
                return items
            return codec.decode_many([pydantic_core.to_json(item, inf_nan_mode="constants") for item in items])
        except ValueError as error:
            raise _mismatch(where, list[codec.annotation], error) from error  # type: ignore[name-defined]

    def _encode_argument(self, value: Any, codec: TypeCodec, name: str, where: str) -> Part:
        """An argument that is not JSON as it is."""
        what = f"argument {name!r} of {_owner(where)}"
        if not fits(value, codec.annotation):
            raise _unfit(what, value, codec.annotation)
        return self._encode(value, codec, what)

    def _encode(self, value: Any, codec: TypeCodec, where: str) -> Part:
        part = codec.encode(value)
        if part is not None:
            return part
        library = type(value).__module__.partition(".")[0]
        if library in ("pyarrow", "pandas"):
            from ray_durable.codec._arrow import encode_arrow

            data = encode_arrow(value, allow_extensions=self.trust.allows_pickle)
            if data is not None:
                return "arrow", data
        elif library == "numpy":
            from ray_durable.codec._ndarray import encode_ndarray

            data = encode_ndarray(value)
            if data is not None:
                return "ndarray", data
        data = plain_as_is(value)
        return ("json-as-is", data) if data is not None else ("pickle", self._pickle(value, codec, where))

    def _pickle(self, value: Any, codec: TypeCodec, where: str) -> bytes:
        type_name = _type_name(type(value))
        if not self.trust.allows_pickle:
            raise SerializationError(
                f"{where}: {_why_not_json(value, codec)}. Ways out: annotate it with its exact type (a dataclass, a "
                "pydantic model, datetime, UUID, ...), for an event by type=...; convert it to one, or to plain JSON "
                "values; or use a private local root or a signing key, where pickle is allowed",
                where=where,
                type_name=type_name,
            )
        try:
            return dump_pickle(value)
        except Exception as error:
            raise SerializationError(
                f"{where}: {_why_not_json(value, codec)}, and it cannot be pickled ({type(error).__name__}: {error}). "
                "Pass what it was made from instead, such as a path or an id",
                where=where,
                type_name=type_name,
            ) from error

    def _decode(self, encoding: str, data: bytes, codec: TypeCodec, where: str) -> Any:
        if encoding == "json" or encoding == "json-nonfinite":
            try:
                return codec.decode(data)
            except ValueError as error:
                raise _mismatch(where, codec.annotation, error) from error
        if encoding == "pickle" and not self.trust.allows_pickle:
            raise _unreadable(where, "it is a pickle, refused unread: this root is neither private to you nor signed")
        try:
            return self._decode_other(encoding, data, where)
        except DurableError:
            raise
        except Exception as error:
            raise _unreadable(where, f"{type(error).__name__}: {error}") from error

    def _decode_other(self, encoding: str, data: bytes, where: str) -> Any:
        if encoding == "json-as-is":
            return plain_from_as_is(data)
        if encoding == "arrow":
            from ray_durable.codec._arrow import decode_arrow

            return decode_arrow(data, self.limits, allow_extensions=self.trust.allows_pickle, where=where)
        if encoding == "ndarray":
            from ray_durable.codec._ndarray import decode_ndarray

            return decode_ndarray(data)
        if encoding == "pickle":
            assert self.trust.allows_pickle
            return pickle.loads(data)
        raise ValueError(f"its encoding {encoding!r} is not known; a newer ray_durable may have written it")

    def _decode_json_call(self, call: CallSignature, data: bytes, where: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
        count = call.exact_count
        if count is not None and data.startswith(b"["):
            codec = call.tuple_codec(count)
            if not codec.is_any:
                # The usual call in one go. If it does not fit, the way argument by argument says which one is wrong.
                with contextlib.suppress(ValueError):
                    return codec.decode(data), {}
        try:
            raw = pydantic_core.from_json(data)
        except ValueError as error:
            raise _mismatch(where, f"{call.name}{call.signature}", error) from error
        args, kwargs = _split(raw, where)
        converted = [
            _convert(codec, value, f"argument {call.argument_name(index)!r} of {_owner(where)}")
            for index, (codec, value) in enumerate(zip(call.codecs(len(args)), args, strict=True))
        ]
        return tuple(converted), {
            name: _convert(call.keyword_codec(name), value, f"argument {name!r} of {_owner(where)}")
            for name, value in kwargs.items()
        }

    def _decode_parts(self, call: CallSignature, data: bytes, where: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
        try:
            parts, named = unpack_parts(data)
        except ValueError as error:
            raise _unreadable(where, str(error)) from error
        args = tuple(
            self._decode(*part, codec, f"argument {call.argument_name(index)!r} of {_owner(where)}")
            for index, (part, codec) in enumerate(zip(parts, call.codecs(len(parts)), strict=True))
        )
        return args, {
            name: self._decode(*part, call.keyword_codec(name), f"argument {name!r} of {_owner(where)}")
            for name, part in named.items()
        }

    def _item_payloads(self, values: Sequence[Any], codec: TypeCodec, where: str) -> Batch:
        items = []
        for index, value in enumerate(values):
            encoding, data = self._encode(value, codec, f"item {index} of {where}")
            items.append(encoding.encode() + b"\n" + data)
        return item_batch("payload", items)

    def _decode_item(self, item: bytes, codec: TypeCodec, where: str) -> Any:
        encoding, _, data = item.partition(b"\n")
        return self._decode(encoding.decode("ascii", "replace"), data, codec, where)

    def _payload(self, encoding: str, data: bytes, where: str) -> Payload:
        self._check_size(len(data), where)
        return Payload.of(encoding, data)

    def _check_size(self, size_bytes: int, where: str) -> None:
        if size_bytes > self.limits.payload_bytes_max:
            raise _too_large(where, size_bytes, self.limits.payload_bytes_max, "bytes")


def _native(values: Sequence[Any], codec: TypeCodec) -> Batch | None:
    """A column of Arrow's own type if all values are exactly of one Python type that it holds."""
    kinds = set(map(type, values))
    kind = kinds.pop() if len(kinds) == 1 else None
    column = native_column(kind, values) if kind in NATIVE_COLUMNS else None
    return None if column is None else native_batch(column, annotated=not codec.is_any)


def _split(raw: Any, where: str) -> tuple[list[Any], dict[str, Any]]:
    """Positional and keyword arguments of a call's JSON."""
    if isinstance(raw, list):
        return raw, {}
    if isinstance(raw, dict) and set(raw) <= {"args", "kwargs"}:
        args, kwargs = raw.get("args", []), raw.get("kwargs", {})
        if isinstance(args, list) and isinstance(kwargs, dict):
            return args, kwargs
    raise _unreadable(where, 'expected arguments as an array, or as an object of "args" and "kwargs"')


def _convert(codec: TypeCodec, plain: Any, where: str) -> Any:
    try:
        return codec.convert(plain)
    except ValueError as error:
        raise _mismatch(where, codec.annotation, error) from error


def _why_not_json(value: Any, codec: TypeCodec) -> str:
    type_name = _type_name(type(value))
    if type(value) in (list, dict) and is_plain(value, JSON_DEPTH_MAX) is False and _too_deep(value):
        return f"a {type_name} that nests deeper than {JSON_DEPTH_MAX} levels, or contains itself, cannot be JSON"
    if codec.is_any:
        return f"a value of type {type_name} cannot be JSON without an annotation"
    return f"a value of type {type_name} would not survive JSON as {_type_name(codec.annotation)}"


def _too_deep(value: Any, levels: int = JSON_DEPTH_MAX) -> bool:
    """Whether following first containers leads deeper than JSON goes; breadth is cut, this is for a message only."""
    if type(value) not in (list, dict):
        return False
    items = list(value.values() if type(value) is dict else value)[:100]
    return levels < 0 or any(_too_deep(item, levels - 1) for item in items)


def _mismatch(where: str, expected: Any, error: ValueError) -> SerializationError:
    name = expected if isinstance(expected, str) else _type_name(expected)
    return SerializationError(
        f"{where}: expected {name}, but the data is otherwise: {describe_mismatch(error)}", where=where, type_name=name
    )


def _owner(where: str) -> str:
    """Whose arguments they are."""
    return where.removeprefix("arguments of ")


def _unfit(where: str, value: Any, annotation: Any) -> SerializationError:
    given = _type_name(type(value))
    return SerializationError(
        f"{where}: expected {_type_name(annotation)}, not {_described(value, given)}. Pass what the annotation says, "
        "or change the annotation",
        where=where,
        type_name=given,
    )


def _described(value: Any, type_name: str) -> str:
    """The type of a value that does not fit; of a container, those of its items, which may be what is wrong."""
    if type(value) not in (list, tuple, set, frozenset) or not value:
        return type_name
    kinds = sorted({_type_name(type(item)) for item in value})
    return f"{type_name} of {', '.join(kinds[:3])}{' ...' if len(kinds) > 3 else ''}"


def _unreadable(where: str, reason: str) -> SerializationError:
    return SerializationError(f"{where}: the payload cannot be read: {reason}", where=where, type_name="payload")


def _too_large(where: str, size: int, limit: int, unit: str) -> PayloadTooLargeError:
    return PayloadTooLargeError(
        f"{where}: {size} {unit} are over the limit of {limit}. Write the data to storage of your own and pass its "
        "place, split it, or raise the limit",
        where=where,
        size_bytes=size,
        limit_bytes=limit,
    )


def _type_name(annotation: Any) -> str:
    if not isinstance(annotation, type) or getattr(annotation, "__args__", None):
        return str(annotation)
    module = "" if annotation.__module__ in ("builtins", "__main__") else annotation.__module__ + "."
    return f"{module}{annotation.__qualname__}"
