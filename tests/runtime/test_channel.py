"""The direct line to the dispatcher, on real sockets."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from ray_durable.runtime import channel, dispatcher
from ray_durable.runtime.channel import ChannelServer, ExchangeChannel
from ray_durable.runtime.framing import Endpoint, seal_frame
from ray_durable.runtime.messages import Exchange, ExchangeReply
from ray_durable.runtime.ports import DispatcherLostError

HOST = "127.0.0.1"


class Touch:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def request(run: str) -> Exchange:
    return Exchange(run=run, instance_id="one", epoch=1, hub_epoch=1, incarnation="x")


async def echo(asked: Exchange) -> ExchangeReply:
    return ExchangeReply(problem=asked.run)


def within(coroutine: Coroutine[Any, Any, None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(10):
            await coroutine

    asyncio.run(bounded())


async def dial(exchange: Callable[[Exchange], Awaitable[ExchangeReply]]) -> ExchangeChannel:
    return await ExchangeChannel.connect(await ChannelServer(exchange).listen(HOST))


async def dial_peer(peer: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]) -> ExchangeChannel:
    """A channel to a peer that behaves as told."""
    server = await asyncio.start_server(peer, host=HOST, port=0)
    port = server.sockets[0].getsockname()[1]
    return await ExchangeChannel.connect(Endpoint(host=HOST, port=port, key=b"k" * 32))


def test_exchanges_overlap() -> None:
    """A parked exchange does not hold back the next one, and each gets its own answer."""

    async def main() -> None:
        let_go = asyncio.Event()

        async def park(asked: Exchange) -> ExchangeReply:
            if asked.run == "parked":
                await let_go.wait()
            return await echo(asked)

        line = await dial(park)
        parked = asyncio.create_task(line.exchange(request("parked")))
        for run in ("a", "b"):
            assert (await line.exchange(request(run))).problem == run
        assert not parked.done()
        let_go.set()
        assert (await parked).problem == "parked"
        line.close()

    within(main())


def test_a_large_message_arrives_whole() -> None:
    """Frames are larger than any buffer on the way."""

    async def main() -> None:
        line = await dial(echo)
        run = "x" * 5_000_000
        assert (await line.exchange(request(run))).problem == run
        line.close()

    within(main())


@pytest.mark.parametrize("direction", [b"request", b"reply"])
def test_a_foreign_frame_is_refused_unread(tmp_path: Path, direction: bytes) -> None:
    """Of a frame with another key, or sent in the wrong direction, nothing is unpickled; the line is closed."""

    async def main() -> None:
        endpoint = await ChannelServer(echo).listen(HOST)
        key = endpoint.key if direction == b"reply" else b"another key"
        reader, writer = await asyncio.open_connection(endpoint.host, endpoint.port)
        writer.write(seal_frame(key, direction, 1, Touch(tmp_path / "executed")))
        assert await reader.read() == b""
        writer.close()

    within(main())
    assert not (tmp_path / "executed").exists()


def test_a_foreign_header_is_refused_before_its_body_comes() -> None:
    """Nobody without the key makes the dispatcher wait for, or keep, a body."""

    async def main() -> None:
        endpoint = await ChannelServer(echo).listen(HOST)
        reader, writer = await asyncio.open_connection(endpoint.host, endpoint.port)
        header = seal_frame(b"another key", b"request", 1, b"")[:80]
        writer.write((1 << 29).to_bytes(8, "big") + header[8:])
        assert await reader.read() == b""
        writer.close()

    within(main())


def test_a_changed_body_is_refused(tmp_path: Path) -> None:
    """A true header vouches for its own body only."""

    async def main() -> None:
        endpoint = await ChannelServer(echo).listen(HOST)
        reader, writer = await asyncio.open_connection(endpoint.host, endpoint.port)
        frame = seal_frame(endpoint.key, b"request", 1, Touch(tmp_path / "executed"))
        writer.write(frame.replace(b"executed", b"Executed"))
        assert await reader.read() == b""
        writer.close()

    within(main())
    assert not list(tmp_path.iterdir())


def test_a_line_that_is_cut_fails_what_waits() -> None:
    """In the middle of a frame: all that wait learn that the dispatcher is lost, and so do later ones, at once."""

    async def main() -> None:
        async def cut(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readexactly(1)
            writer.write(seal_frame(b"k" * 32, b"reply", 1, "x" * 1_000)[:500])
            await writer.drain()
            writer.close()

        line = await dial_peer(cut)
        lost = await asyncio.gather(*(line.exchange(request(run)) for run in "ab"), return_exceptions=True)
        assert [type(one) for one in lost] == [DispatcherLostError] * 2
        with pytest.raises(DispatcherLostError):
            await line.exchange(request("c"))

    within(main())


@pytest.mark.parametrize("number", [errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ECONNRESET])
def test_a_network_that_fails_fails_what_waits(number: int) -> None:
    """Also with errors that are no ConnectionError: a route that is gone, probes that nobody answered."""

    async def main() -> None:
        async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read()

        line = await dial_peer(silent)
        waiting = asyncio.create_task(line.exchange(request("a")))
        await asyncio.sleep(0)
        # What the system tells the transport when a probe fails.
        line._writer.transport._fatal_error(OSError(number, "the network failed"))  # type: ignore[attr-defined]
        with pytest.raises(DispatcherLostError):
            await waiting

    within(main())


def test_a_silent_dispatcher_is_lost_after_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    """It holds an exchange back for ten seconds at most; much later nothing comes any more, and the line is closed."""
    assert channel._EXCHANGE_S_MAX >= 3 * dispatcher._PARK_S
    monkeypatch.setattr(channel, "_EXCHANGE_S_MAX", 0.05)

    async def main() -> None:
        hung_up = asyncio.Event()

        async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read()
            hung_up.set()

        line = await dial_peer(silent)
        with pytest.raises(DispatcherLostError, match="in time"):
            await line.exchange(request("a"))
        await hung_up.wait()

    within(main())


def test_an_exchange_that_fails_hangs_up(caplog: pytest.LogCaptureFixture) -> None:
    """The instance need not wait for the deadline when the dispatcher's own code raises."""

    async def main() -> None:
        async def fail(asked: Exchange) -> ExchangeReply:
            raise RuntimeError("a bug")

        line = await dial(fail)
        with pytest.raises(DispatcherLostError):
            await line.exchange(request("a"))

    within(main())
    assert "a bug" in caplog.text


def test_hanging_up_fails_what_waits() -> None:
    """Even before the first byte came."""

    async def main() -> None:
        line = await dial(echo)
        waiting = asyncio.create_task(line.exchange(request("a")))
        line.close()
        with pytest.raises(DispatcherLostError):
            await waiting

    within(main())


def test_lines_are_kept_alive() -> None:
    """A machine that vanished without a word is noticed by the system."""

    async def main() -> None:
        line = await dial(echo)
        await line.exchange(request("a"))
        assert line._writer.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        line.close()

    within(main())
