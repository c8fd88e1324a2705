"""Batches opened without decoding: for a dispatcher that hands out ranges of values that it never looks at."""

from __future__ import annotations

from collections.abc import Sequence

from ray_durable.payload import Payload

__all__ = ["Batch", "batch_length", "concat_batches", "open_batch", "slice_batch"]


class Batch:
    """An opened batch payload. Slicing and taking give new batch payloads; values stay encoded."""

    def __len__(self) -> int:
        raise NotImplementedError

    def slice(self, start: int, stop: int) -> Payload:
        """Items `start` to `stop` (exclusive)."""
        raise NotImplementedError

    def take(self, indices: Sequence[int]) -> Payload:
        """The items at `indices`, in that order."""
        raise NotImplementedError


def open_batch(payload: Payload) -> Batch:
    """Open a payload of encoding "batch"."""
    raise NotImplementedError


def batch_length(payload: Payload) -> int:
    """How many values a batch holds."""
    return len(open_batch(payload))


def slice_batch(payload: Payload, start: int, stop: int) -> Payload:
    """Items `start` to `stop` (exclusive) of a batch, as a batch."""
    return open_batch(payload).slice(start, stop)


def concat_batches(payloads: Sequence[Payload]) -> list[Payload]:
    """Adjacent batches of one column type, joined; order kept. Fewer payloads than given, at best one."""
    raise NotImplementedError
