"""Payloads stored on their own: objects of one run, named by the digest of their bytes."""

from __future__ import annotations

import hashlib

from ray_durable.errors import CorruptLogError
from ray_durable.storage.keys import HubKeys
from ray_durable.storage.pacing import Pacing, persist
from ray_durable.storage.store import ObjectStore

__all__ = ["get_blob", "put_blob"]


async def put_blob(store: ObjectStore, keys: HubKeys, run: str, data: bytes, *, pacing: Pacing | None = None) -> str:
    """Store `data` under its digest, which is returned. What is there already is the same."""
    digest = hashlib.sha256(data).hexdigest()
    # The name is the content's own: whoever wrote it, it is right.
    await persist(lambda: store.put_if_absent(keys.blob(run, digest), data), pacing)
    return digest


async def get_blob(store: ObjectStore, keys: HubKeys, run: str, digest: str, size_bytes: int) -> bytes:
    """The blob with this digest, of so many bytes at most. CorruptLogError if it is missing or damaged."""
    key = keys.blob(run, digest)
    data = await persist(lambda: store.get(key, size_bytes))
    if data is None or hashlib.sha256(data).hexdigest() != digest:
        fault = "is missing" if data is None else "does not match its name"
        raise CorruptLogError(f"The blob {key} {fault}: restore the object from a backup", key=key)
    return data
