"""The small objects beside the log: one JSON object each, signed in a signed hub. storage/FORMAT.md is the norm."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ray_durable.errors import CorruptLogError, PayloadTooLargeError
from ray_durable.storage.keys import HubKeys
from ray_durable.storage.signing import MAC_CHARS
from ray_durable.storage.store import ObjectStore

__all__ = ["SMALL_BYTES_MAX", "is_authentic", "is_there", "pack_object", "read_bounded", "unpack_object"]

SMALL_BYTES_MAX = 1024 * 1024
"""Of a small object: some thousand times what they usually have."""

_ZEROS = b"0" * 64
_MAC = b',"mac":"'
_END = b'"}'
_TAIL_BYTES = len(_MAC) + MAC_CHARS + len(_END)


def pack_object(keys: HubKeys, key: str, fields: Mapping[str, Any], *, bytes_max: int = SMALL_BYTES_MAX) -> bytes:
    """The bytes of an object that is to lie at `key`; signed if the hub is. `fields` are not empty.

    Raises:
        PayloadTooLargeError: it would be larger than what is read from there.
    """
    # UTF-8 cannot hold lone surrogates; what Python writes for one is JSON's escape too.
    data = json.dumps(dict(fields), ensure_ascii=False).encode("utf-8", "backslashreplace")
    size = len(data) + (0 if keys.signer is None else _TAIL_BYTES)
    if size > bytes_max:
        raise PayloadTooLargeError(
            f"{key} would have {size:,} bytes, and such an object may have {bytes_max:,}: give shorter texts or values",
            where=key,
            size_bytes=size,
            limit_bytes=bytes_max,
        )
    if keys.signer is None:
        return data
    head = data[:-1] + _MAC + keys.signer.key_id.encode() + b"."
    return b"".join((head, keys.signer.sign(key, head, _ZEROS, _END).encode(), _END))


async def read_bounded(store: ObjectStore, key: str, bytes_max: int = SMALL_BYTES_MAX) -> bytes | None:
    """The bytes of a small object; None if there is none. Of what is too large to be one: no bytes, as it is none."""
    try:
        return await store.get(key, bytes_max)
    except CorruptLogError:
        return b""


async def is_there(store: ObjectStore, key: str) -> bool:
    """Whether there is an object, whatever it is."""
    return await read_bounded(store, key, 0) is not None


def unpack_object(keys: HubKeys, key: str, data: bytes | None) -> dict[str, Any]:
    """The fields of what was read from `key`; none if there is nothing, it is no object, or it is not authentic."""
    if data is None or not is_authentic(keys, key, data):
        return {}
    try:
        fields = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return fields if isinstance(fields, dict) else {}


def is_authentic(keys: HubKeys, key: str, data: bytes) -> bool:
    """Whether somebody with the hub's key wrote `data` for `key`. True in a hub that is not signed."""
    if keys.signer is None:
        return True
    mac = mac_of(data)
    if mac is None:
        return False
    return keys.signer.verifies(*mac, key, data[: -len(_END) - 64], _ZEROS, _END)


def mac_of(data: bytes) -> tuple[str, str] | None:
    """Key id and digits of an object's mac; None if it has none."""
    tail = data[-_TAIL_BYTES:]
    if not (tail.startswith(_MAC) and tail.endswith(_END) and tail[len(_MAC) + 8 : len(_MAC) + 9] == b"."):
        return None
    key_id, _, digits = tail[len(_MAC) : -len(_END)].decode("ascii", "replace").partition(".")
    return key_id, digits
