"""An HTTP proxy in front of a real S3 server that does to requests what networks and busy stores do.

Requests are forwarded as they came, host and signature too, so that the server checks them as it always does. What
becomes of each is decided by the proxy's `plan`: written down, or drawn from a seed in a way that depends on the
request alone and not on the order in which requests happen to arrive. The proxy runs on a thread of its own; every
process of this machine can use it.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import Enum, auto

import aiohttp
from aiohttp import web
from yarl import URL

from tests.support.s3_server import S3Server

__all__ = ["FaultProxy", "Mishap", "Plan", "Seen", "drawn", "fault_proxy", "in_turn"]

_LATE_S = 0.3
_DRIP_S = 0.02
_HOP_BY_HOP = frozenset({"connection", "keep-alive", "transfer-encoding", "te", "upgrade", "expect", "content-length"})


class Mishap(Enum):
    """What becomes of a request."""

    NONE = auto()
    """It is carried out and answered."""
    SLOW_DOWN = auto()
    """503 SlowDown; not carried out."""
    FAILED = auto()
    """500; not carried out."""
    CONFLICT = auto()
    """409 ConditionalRequestConflict; not carried out."""
    CUT = auto()
    """The connection is reset; not carried out."""
    SILENT = auto()
    """No answer ever comes; not carried out."""
    APPLIED_FAILED = auto()
    """It is carried out; the answer is a 500."""
    APPLIED_CUT = auto()
    """It is carried out; the connection is reset instead of an answer."""
    APPLIED_SILENT = auto()
    """It is carried out; no answer ever comes."""
    LATE = auto()
    """The connection is reset; it is carried out a while later."""
    TWICE = auto()
    """It is carried out twice, and the second answer is given."""
    SLOW = auto()
    """It is carried out; the answer takes its time."""
    DRIPPING = auto()
    """It is carried out; the answer's body comes in small pieces, with pauses."""
    BROKEN_BODY = auto()
    """It is carried out; the connection is reset in the middle of the answer's body."""
    CUT_SHORT = auto()
    """It is carried out; the connection is closed in the middle of the answer's body, in good order."""
    SHORTENED = auto()
    """It is carried out; half of the answer's body is missing, and nothing in the answer tells."""
    GARBLED = auto()
    """It is carried out; a byte of the answer's body is another, and a checksum in the answer tells."""


_NOT_APPLIED = {
    Mishap.SLOW_DOWN: (503, "SlowDown"),
    Mishap.FAILED: (500, "InternalError"),
    Mishap.CONFLICT: (409, "ConditionalRequestConflict"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A request. `count` tells the how many-th it is of those with this method and path, from 1."""

    method: str
    path: str
    is_create: bool
    count: int


Plan = Callable[[Seen], Mishap]


def in_turn(mishaps: Iterable[Mishap], *, of: Callable[[Seen], bool] = lambda seen: True) -> Plan:
    """These, one after the other, for the requests that `of` selects; then none."""
    left = iter(mishaps)
    return lambda seen: next(left, Mishap.NONE) if of(seen) else Mishap.NONE


def drawn(seed: int, rate: float, mishaps: Sequence[Mishap]) -> Plan:
    """One of these for so many of the requests, by a seed."""

    def plan(seen: Seen) -> Mishap:
        chance = random.Random(f"{seed} {seen.method} {seen.path} {seen.count}")
        return chance.choice(mishaps) if chance.random() < rate else Mishap.NONE

    return plan


class FaultProxy:
    """See the module. Made by `fault_proxy`. `met` counts the mishaps; `connections_peak` is the most open at once."""

    def __init__(self, server: S3Server) -> None:
        self.plan: Plan = lambda seen: Mishap.NONE
        self.met: Counter[Mishap] = Counter()
        self.requests: list[Seen] = []
        self.connections_peak = 0
        self._server = server
        self._outage: Mishap | None = None
        self._counts: Counter[tuple[str, str]] = Counter()
        self._connections: set[asyncio.Transport] = set()
        self._late: set[asyncio.Task[None]] = set()
        self._port = 0

    @property
    def server(self) -> S3Server:
        """The server as it is reached through the proxy."""
        return replace(self._server, endpoint_url=f"http://127.0.0.1:{self._port}")

    @property
    def connections(self) -> int:
        """How many are open."""
        return sum(not transport.is_closing() for transport in self._connections)

    @contextlib.contextmanager
    def outage(self, mishap: Mishap) -> Iterator[None]:
        """All requests meet this, whatever the plan is."""
        self._outage = mishap
        try:
            yield
        finally:
            self._outage = None

    @contextlib.asynccontextmanager
    async def listen(self) -> AsyncIterator[None]:
        """Serve, on the running loop."""
        async with aiohttp.ClientSession(auto_decompress=False) as self._session:
            runner = web.ServerRunner(web.Server(self._handle), access_log=None, shutdown_timeout=0.1)
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            (self._port,) = {address[1] for address in runner.addresses}
            try:
                yield
                while self._late:
                    await asyncio.wait(self._late)
            finally:
                for transport in self._connections:
                    transport.abort()
                await runner.cleanup()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        self._note_connection(request)
        body = await _body(request)
        seen = self._see(request)
        mishap = self._outage or self.plan(seen)
        self.met[mishap] += 1
        if mishap in _NOT_APPLIED:
            return _refusal(*_NOT_APPLIED[mishap])
        if mishap in (Mishap.CUT, Mishap.LATE):
            if mishap is Mishap.LATE:
                self._forward_later(request, body)
            return _reset(request)
        if mishap is Mishap.SILENT:
            return await self._never(request)
        answer = await self._forward(request, body)
        if mishap is Mishap.TWICE:
            answer = await self._forward(request, body)
        if mishap is Mishap.APPLIED_FAILED:
            return _refusal(500, "InternalError")
        if mishap is Mishap.APPLIED_CUT:
            return _reset(request)
        if mishap is Mishap.APPLIED_SILENT:
            return await self._never(request)
        if mishap is Mishap.SLOW:
            await asyncio.sleep(_LATE_S)
        try:
            return await _answer(request, answer, mishap)
        except ConnectionError:
            # Whoever asked has gone.
            return web.Response()

    def _note_connection(self, request: web.BaseRequest) -> None:
        assert request.transport is not None
        self._connections = {transport for transport in self._connections if not transport.is_closing()}
        self._connections.add(request.transport)
        self.connections_peak = max(self.connections_peak, len(self._connections))

    def _see(self, request: web.BaseRequest) -> Seen:
        path = request.raw_path
        self._counts[request.method, path] += 1
        count, is_create = self._counts[request.method, path], "If-None-Match" in request.headers
        self.requests.append(Seen(method=request.method, path=path, is_create=is_create, count=count))
        return self.requests[-1]

    def _forward_later(self, request: web.BaseRequest, body: bytes) -> None:
        async def forward() -> None:
            await asyncio.sleep(_LATE_S)
            await self._forward(request, body)

        task = asyncio.get_running_loop().create_task(forward())
        self._late.add(task)
        task.add_done_callback(self._late.discard)

    async def _forward(self, request: web.BaseRequest, body: bytes) -> _Answer:
        url = URL(self._server.endpoint_url + request.raw_path, encoded=True)
        headers = [(name, value) for name, value in request.headers.items() if name.lower() not in _HOP_BY_HOP]
        own = ("User-Agent", "Accept", "Accept-Encoding", "Content-Type")
        async with self._session.request(
            request.method, url, headers=headers, data=body or None, allow_redirects=False, skip_auto_headers=own
        ) as response:
            kept = [(name, value) for name, value in response.headers.items() if name.lower() not in _HOP_BY_HOP]
            return _Answer(status=response.status, headers=kept, body=await response.read())

    async def _never(self, request: web.BaseRequest) -> web.StreamResponse:
        while request.transport is not None and not request.transport.is_closing():
            await asyncio.sleep(0.02)
        return web.Response()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answer:
    status: int
    headers: list[tuple[str, str]]
    body: bytes


@contextlib.contextmanager
def fault_proxy(server: S3Server) -> Iterator[FaultProxy]:
    """A proxy before `server`, on a thread of its own."""
    proxy, ready, loop = FaultProxy(server), threading.Event(), asyncio.new_event_loop()
    over = asyncio.Event()

    async def serve() -> None:
        async with proxy.listen():
            ready.set()
            await over.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()), name="fault proxy")
    thread.start()
    try:
        assert ready.wait(10), "the proxy did not start"
        yield proxy
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join()
        loop.close()


async def _body(request: web.BaseRequest) -> bytes:
    if request.headers.get("Expect", "").lower() == "100-continue":
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0
    return b"".join([chunk async for chunk in request.content.iter_any()])


def _refusal(status: int, code: str) -> web.Response:
    body = f"<Error><Code>{code}</Code><Message>as the plan wants it</Message></Error>"
    return web.Response(status=status, body=body.encode(), content_type="application/xml")


def _reset(request: web.BaseRequest) -> web.StreamResponse:
    if request.transport is not None:
        # Closing with no time to linger is a reset.
        with contextlib.suppress(OSError):
            own: socket.socket = request.transport.get_extra_info("socket")
            own.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        request.transport.abort()
    return web.Response()


async def _answer(request: web.BaseRequest, answer: _Answer, mishap: Mishap) -> web.StreamResponse:
    body, half = answer.body, len(answer.body) // 2
    if mishap is Mishap.SHORTENED:
        body = body[:half]
    if mishap is Mishap.GARBLED and body:
        body = bytes([body[0] ^ 1]) + body[1:]
    response = web.StreamResponse(status=answer.status)
    for name, value in answer.headers:
        if mishap is not Mishap.SHORTENED or not name.lower().startswith("x-amz-checksum-"):
            response.headers.add(name, value)
    response.content_length = len(body)
    if mishap in (Mishap.BROKEN_BODY, Mishap.CUT_SHORT) and not half:
        return _reset(request)
    await response.prepare(request)
    if mishap is Mishap.DRIPPING:
        size = max(1, len(body) // 10)
        for begin in range(0, len(body), size):
            await response.write(body[begin : begin + size])
            await asyncio.sleep(_DRIP_S)
    elif mishap in (Mishap.BROKEN_BODY, Mishap.CUT_SHORT):
        await response.write(body[:half])
        await asyncio.sleep(_DRIP_S)
        if mishap is Mishap.BROKEN_BODY:
            return _reset(request)
        assert request.transport is not None
        request.transport.close()
        return response
    else:
        await response.write(body)
    await response.write_eof()
    return response
