"""How far payloads are believed: size limits, and whether pickle may be read."""

from __future__ import annotations

import enum
from dataclasses import dataclass

__all__ = ["Limits", "Trust"]


class Trust(enum.Enum):
    """Where the bytes of a codec come from, which decides whether pickle is written and read.

    PRIVATE_LOCAL_ROOT is the runtime's promise that the root is a folder which only the current user can write,
    SIGNING_KEY that all bytes are authenticated with the hub's key before they reach a codec.
    """

    NONE = "none"
    PRIVATE_LOCAL_ROOT = "private_local_root"
    SIGNING_KEY = "signing_key"

    @property
    def allows_pickle(self) -> bool:
        """Whether pickled values, and functions captured by value, may pass."""
        return self is not Trust.NONE


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits of payloads.

    `inline_bytes_max`: the runtime stores larger payloads as blobs. `payload_bytes_max`: larger ones are refused, when
    written, when read, and by the size that compressed ones would grow to. `expansion_ratio_max`: compressed columns
    may not grow by more than this factor, except up to `expansion_free_bytes`, which constant columns need.
    `batch_items_max`: the most values of one batch.
    """

    inline_bytes_max: int = 64 * 1024
    payload_bytes_max: int = 256 * 1024 * 1024
    expansion_ratio_max: int = 200
    expansion_free_bytes: int = 64 * 1024 * 1024
    batch_items_max: int = 10_000_000
