"""Code by value: functions of the running script or notebook, made into bytes that another process can run.

A bundle is a pickle. Loading one runs code, so `load_bundle` asks for the trust under which it was read.
"""

from __future__ import annotations

from ray_durable.codec import Trust
from ray_durable.function import DurableFunction

__all__ = ["Bundle", "capture_bundle", "load_bundle"]


class Bundle(dict[str, DurableFunction]):
    """Functions by registered name. `left_out` names those that could not be captured, with the reason."""

    left_out: dict[str, str]


def capture_bundle(started: DurableFunction | None = None) -> bytes:
    """All registered functions that cannot be imported, and `started`. SerializationError if `started` cannot."""
    raise NotImplementedError


def load_bundle(data: bytes, *, trust: Trust) -> Bundle:
    """The functions of a bundle, ready to run. SerializationError unless `trust` allows code by value."""
    raise NotImplementedError
