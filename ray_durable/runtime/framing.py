"""Authenticated frames on a TCP connection inside a cluster.

A frame is a header and a body, a pickle. The header holds the size of the body, a number, the body's SHA-256, and an
HMAC-SHA256 over the direction and all of these: whoever has no key gets no byte of a body read, let alone opened. Keys
are random, live as long as a process, and travel by Ray alone.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import pickle
import socket
import struct
from dataclasses import dataclass
from typing import Any

__all__ = ["Endpoint", "ForeignFrameError", "keep_alive", "read_frame", "receive_frame", "seal_frame", "write_frame"]

_FACTS = struct.Struct(">QQ32s")
_SEAL_BYTES = 32
_HEADER_BYTES = _FACTS.size + _SEAL_BYTES
_FRAME_BYTES_MAX = 1 << 30
_RECEIVE_BYTES = 1 << 20

_KEEP_ALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPALIVE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 4}
"""Seconds of silence before the first probe (by either name), seconds between probes, and unanswered probes."""


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
    facts = _FACTS.pack(len(body), number, hashlib.sha256(body).digest())
    return b"".join((facts, _seal(key, direction, facts), body))


def write_frame(writer: asyncio.StreamWriter, key: bytes, direction: bytes, number: int, message: object) -> None:
    """Send a message."""
    writer.write(seal_frame(key, direction, number, message))


async def read_frame(reader: asyncio.StreamReader, key: bytes, direction: bytes) -> tuple[int, Any]:
    """The next message and its number. IncompleteReadError at the end, ForeignFrameError for what is not ours."""
    size, number, digest = _open_header(key, direction, await reader.readexactly(_HEADER_BYTES))
    return number, _open_body(digest, await reader.readexactly(size))


def receive_frame(line: socket.socket, key: bytes, direction: bytes) -> tuple[int, Any]:
    """`read_frame` on a blocking socket. EOFError at the end, ForeignFrameError for what is not ours."""
    size, number, digest = _open_header(key, direction, _receive(line, _HEADER_BYTES))
    return number, _open_body(digest, _receive(line, size))


def keep_alive(line: Any) -> None:
    """Have the system find out within half a minute that the other machine is gone: then reading fails with OSError."""
    line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEP_ALIVE.items():
        if hasattr(socket, name):
            line.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _open_header(key: bytes, direction: bytes, header: bytes) -> tuple[int, int, bytes]:
    facts, seal = header[: _FACTS.size], header[_FACTS.size :]
    if not hmac.compare_digest(seal, _seal(key, direction, facts)):
        raise ForeignFrameError("the header's seal is not ours")
    size, number, digest = _FACTS.unpack(facts)
    if size > _FRAME_BYTES_MAX:
        raise ForeignFrameError(f"a body of {size} bytes is too large")
    return size, number, digest


def _open_body(digest: bytes, body: bytes) -> Any:
    if not hmac.compare_digest(digest, hashlib.sha256(body).digest()):
        raise ForeignFrameError("the body is not the one that was sealed")
    return pickle.loads(body)


def _seal(key: bytes, direction: bytes, facts: bytes) -> bytes:
    return hmac.digest(key, direction + facts, "sha256")


def _receive(line: socket.socket, size: int) -> bytes:
    pieces: list[bytes] = []
    while size:
        piece = line.recv(min(size, _RECEIVE_BYTES))
        if not piece:
            raise EOFError
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)
