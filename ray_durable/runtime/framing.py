"""Authenticated frames on a TCP connection inside a cluster.

A frame is the length of its body and a number, an HMAC-SHA256 over direction, number and body, and the body, a pickle.
The body is opened only after its HMAC was checked; keys are random, live as long as a process, and travel by Ray alone.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import pickle
import struct
from dataclasses import dataclass
from typing import Any

__all__ = ["HEADER", "Endpoint", "ForeignFrameError", "open_frame", "read_frame", "seal_frame", "write_frame"]

HEADER = struct.Struct(">QQ32s")
_FRAME_BYTES_MAX = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where a process listens, and the key of its lines."""

    host: str
    port: int
    key: bytes

    def __repr__(self) -> str:
        return f"<Endpoint {self.host}:{self.port}>"


class ForeignFrameError(Exception):
    """A frame that nobody with the key wrote."""


def seal_frame(key: bytes, direction: bytes, number: int, message: object) -> bytes:
    """The bytes of a frame."""
    body = pickle.dumps(message, protocol=5)
    return HEADER.pack(len(body), number, _seal(key, direction, number, body)) + body


def open_frame(key: bytes, direction: bytes, number: int, seal: bytes, body: bytes) -> Any:
    """The message of a frame; ForeignFrameError, and nothing unpickled, if its seal is wrong."""
    if not hmac.compare_digest(seal, _seal(key, direction, number, body)):
        raise ForeignFrameError
    return pickle.loads(body)


def write_frame(writer: asyncio.StreamWriter, key: bytes, direction: bytes, number: int, message: object) -> None:
    """Send a message."""
    writer.write(seal_frame(key, direction, number, message))


async def read_frame(reader: asyncio.StreamReader, key: bytes, direction: bytes) -> tuple[int, Any]:
    """The next message and its number. IncompleteReadError at the end, ForeignFrameError for what is not ours."""
    size, number, seal = HEADER.unpack(await reader.readexactly(HEADER.size))
    if size > _FRAME_BYTES_MAX:
        raise ForeignFrameError
    return number, open_frame(key, direction, number, seal, await reader.readexactly(size))


def _seal(key: bytes, direction: bytes, number: int, body: bytes) -> bytes:
    sealed = hmac.new(key, direction + number.to_bytes(8, "big"), hashlib.sha256)
    sealed.update(body)
    return sealed.digest()
