"""An encoded value, as it travels and as it is stored.

A payload is bytes plus the name of their encoding. The engine and the storage carry payloads without looking inside;
only `ray_durable.codec` makes values of them. A large payload is stored on its own (a blob); it is then known by its
digest and its bytes may not be loaded.
"""

from __future__ import annotations

import builtins
import hashlib
from dataclasses import dataclass, replace

__all__ = ["Payload"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Payload:
    """An encoded value.

    `encoding` names the form of `data` (storage/FORMAT.md lists them). `data` is None only while `blob` names a stored
    object whose bytes were not loaded. `size` is the length of the bytes, loaded or not.
    """

    encoding: str
    data: bytes | None
    size: int
    blob: str | None = None

    @classmethod
    def of(cls, encoding: str, data: bytes) -> Payload:
        """A payload of loaded bytes."""
        return cls(encoding=encoding, data=data, size=len(data))

    @property
    def bytes(self) -> bytes:
        """The loaded bytes. Reading them before the blob was loaded is a programmer's mistake."""
        assert self.data is not None, f"blob {self.blob} was not loaded"
        return self.data

    def digest(self) -> str:
        """SHA-256 of the bytes, in hex: the name of the blob that holds them."""
        return self.blob if self.blob is not None else hashlib.sha256(self.bytes).hexdigest()

    def as_blob(self) -> Payload:
        """The same payload, to be referred to by its digest."""
        return replace(self, blob=self.digest())

    def with_data(self, data: builtins.bytes) -> Payload:
        """The same payload with its bytes loaded."""
        return replace(self, data=data)
