"""numpy arrays and scalars: one line of JSON (dtype, shape, order), then the array's bytes.

Structured dtypes are kept. Dtypes that hold Python objects are refused, in both directions: their bytes are pointers.
Subclasses of ndarray are left to the next encoding. Decoded arrays are writable.
"""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np

__all__ = ["decode_ndarray", "encode_ndarray"]


def encode_ndarray(value: Any) -> bytes | None:
    """`value` in the raw form; None if it is no array or scalar of numpy, or would not survive."""
    is_scalar = isinstance(value, np.generic)
    if type(value) is not np.ndarray and not is_scalar:
        return None
    dtype = value.dtype
    description: Any = dtype.str if dtype.names is None and dtype.subdtype is None else dtype.descr
    try:
        header = json.dumps(description)
        if dtype.hasobject or _dtype(json.loads(header)) != dtype:
            return None
    except (TypeError, ValueError):
        return None
    order = "F" if not is_scalar and value.flags.fnc and not value.flags.c_contiguous else "C"
    head = {"dtype": description, "shape": value.shape, "order": order, "scalar": is_scalar}
    body: bytes = value.tobytes(order=order)
    return json.dumps(head, separators=(",", ":")).encode() + b"\n" + body


def decode_ndarray(data: bytes) -> Any:
    """Inverse of `encode_ndarray`. ValueError for damaged or refused data."""
    line, separator, body = data.partition(b"\n")
    head = json.loads(line)
    if not separator or not isinstance(head, dict):
        raise ValueError("damaged array")
    try:
        dtype, shape, order = _dtype(head["dtype"]), tuple(head["shape"]), head["order"]
    except (KeyError, TypeError) as error:
        raise ValueError(f"damaged array header: {error}") from error
    if dtype.hasobject:
        raise ValueError("arrays of Python objects are refused")
    if not all(type(length) is int and length >= 0 for length in shape) or order not in ("C", "F"):
        raise ValueError("damaged array header")
    if math.prod(shape) * dtype.itemsize != len(body):
        raise ValueError(f"an array of {shape} {dtype} does not take {len(body)} bytes")
    array = np.ndarray(shape, dtype=dtype, buffer=bytearray(body), order=order)
    return array[()] if head.get("scalar") is True and shape == () else array


def _dtype(description: Any) -> np.dtype[Any]:
    """A dtype from its JSON description, which has lists where numpy wants tuples."""
    if isinstance(description, str):
        return np.dtype(description)
    fields: Any = [
        (
            tuple(name) if isinstance(name, list) else name,
            _field_type(kind),
            *(tuple(extent) for extent in shape),
        )
        for name, kind, *shape in description
    ]
    dtype: np.dtype[Any] = np.dtype(fields)
    return dtype


def _field_type(kind: Any) -> Any:
    return kind if isinstance(kind, str) else _dtype(kind)
