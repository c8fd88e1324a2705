"""A direct line between an instance's process and the dispatcher's: framed, authenticated messages over TCP.

An exchange over a Ray actor call costs two thirds of a sequential step; over a socket a tenth of that. The key of the
line is random, lives as long as the dispatcher's process, and reaches the other side by Ray alone. Where no connection
can be made, the caller falls back to Ray.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import secrets
from collections.abc import Awaitable, Callable

from ray_durable.runtime.framing import Endpoint, ForeignFrameError, keep_alive, read_frame, write_frame
from ray_durable.runtime.messages import Exchange, ExchangeReply
from ray_durable.runtime.ports import DispatcherLostError

__all__ = ["ChannelServer", "ExchangeChannel"]

logger = logging.getLogger(__name__)

_CONNECT_S_MAX = 5.0
_EXCHANGE_S_MAX = 30.0
"""Three times what the dispatcher holds back an exchange for at most."""
_REQUEST, _REPLY = b"request", b"reply"


class ChannelServer:
    """The dispatcher's end: answers exchanges, each as a task of its own."""

    def __init__(self, exchange: Callable[[Exchange], Awaitable[ExchangeReply]]) -> None:
        self._exchange = exchange
        self._key = secrets.token_bytes(32)
        self._answering: set[asyncio.Task[None]] = set()

    async def listen(self, host: str) -> Endpoint:
        """Listen on a free port of `host`'s address."""
        server = await asyncio.start_server(self._serve, host=host, port=0)
        return Endpoint(host=host, port=server.sockets[0].getsockname()[1], key=self._key)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            keep_alive(writer.get_extra_info("socket"))
            while True:
                call, request = await read_frame(reader, self._key, _REQUEST)
                task = asyncio.get_running_loop().create_task(self._answer(call, request, writer))
                self._answering.add(task)
                task.add_done_callback(self._answering.discard)
        except (OSError, asyncio.IncompleteReadError, ForeignFrameError):
            pass  # the instance hung up or was cut off, or is none
        finally:
            writer.close()

    async def _answer(self, call: int, request: Exchange, writer: asyncio.StreamWriter) -> None:
        try:
            reply = await self._exchange(request)
            with contextlib.suppress(OSError):
                write_frame(writer, self._key, _REPLY, call, reply)
                await writer.drain()
        except Exception:
            # The instance attaches anew rather than wait for what does not come.
            logger.exception("an exchange of instance %s failed", request.instance_id)
            writer.close()


class ExchangeChannel:
    """The instance's end. One connection; calls may overlap. Once cut, it stays so."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, key: bytes) -> None:
        keep_alive(writer.get_extra_info("socket"))
        self._writer = writer
        self._key = key
        self._calls = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[ExchangeReply | None]] = {}
        self._listening = asyncio.get_running_loop().create_task(self._listen(reader))
        self._listening.add_done_callback(self._give_up)

    @classmethod
    async def connect(cls, endpoint: Endpoint) -> ExchangeChannel:
        """Connect. OSError or TimeoutError if that cannot be done from here."""
        async with asyncio.timeout(_CONNECT_S_MAX):
            reader, writer = await asyncio.open_connection(endpoint.host, endpoint.port)
        return cls(reader, writer, endpoint.key)

    async def exchange(self, request: Exchange) -> ExchangeReply:
        """One exchange. DispatcherLostError when the line breaks or stays silent: its outcome is unknown."""
        if self._listening.done():
            raise DispatcherLostError("The line to the dispatcher is cut")
        call = next(self._calls)
        waiting = self._waiting[call] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(_EXCHANGE_S_MAX):
                write_frame(self._writer, self._key, _REQUEST, call, request)
                await self._writer.drain()
                reply: ExchangeReply | None = await waiting
        except TimeoutError as error:
            self.close()
            raise DispatcherLostError("The dispatcher did not answer in time") from error
        except OSError as error:
            raise DispatcherLostError(f"The line to the dispatcher was cut ({error})") from error
        finally:
            self._waiting.pop(call, None)
        if reply is None:
            raise DispatcherLostError("The line to the dispatcher was cut while an exchange was under way")
        return reply

    def close(self) -> None:
        """Hang up; exchanges that are under way raise DispatcherLostError."""
        self._listening.cancel()
        self._writer.close()

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        try:
            while True:
                call, reply = await read_frame(reader, self._key, _REPLY)
                waiting = self._waiting.get(call)
                if waiting is not None and not waiting.done():
                    waiting.set_result(reply)
        except (OSError, asyncio.IncompleteReadError, ForeignFrameError) as error:
            logger.info("the line to the dispatcher was cut: %r", error)

    def _give_up(self, _: asyncio.Task[None]) -> None:
        """Whatever ended the listening, nobody answers any more."""
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_result(None)
        self._writer.close()
