"""Worker sessions: a Ray task that, after its slice, stays for the next one for a moment.

Ray grants a worker anew for each task, which is most of what a short activity costs. So a task that ran a slice reports
over a direct line and waits a little for more work of the same function; one activity after the other then costs a
message each. A session ends when nothing comes, when somebody else needs the worker, or after a fraction of a second,
so that it never keeps others from their turn.

The task's own end tells how many slices it served; a slice that was sent to a session which had just ended did not run,
and is started elsewhere. `SessionServer` is the dispatcher's side, `serve_session` the worker's. No Ray here.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import secrets
import socket
import time
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field

from ray_durable.failure import Failure
from ray_durable.runtime.framing import (
    Endpoint,
    ForeignFrameError,
    keep_alive,
    read_frame,
    receive_frame,
    seal_frame,
    write_frame,
)
from ray_durable.runtime.messages import SliceReport, SliceWork

__all__ = ["Session", "SessionEnd", "SessionServer", "serve_session"]

_LINGER_S = 0.05
_SESSION_S_MAX = 0.2
_CONNECT_S_MAX = 5.0
_FRAME_S_MAX = 60.0
_TO_WORKER, _FROM_WORKER = b"work", b"report"

SessionEnd = SliceReport | int
"""What a session's task returns: how many slices it served, or, if it found no line, the report of the one it had."""

Done = Callable[[SliceReport | Failure], None]


@dataclass(slots=True)
class Session:
    """One session, as the dispatcher sees it. `current` is the slice in its hands."""

    number: int
    key: tuple[str, str | None]
    current: tuple[SliceWork, Done] | None
    sent: int = 1
    writer: asyncio.StreamWriter | None = None
    is_line_open: bool = False
    end: SessionEnd | Failure | None = None
    cancel: Callable[[], None] = field(default=lambda: None)


class SessionServer:
    """The dispatcher's side: hands work to sessions that wait, and hears their reports. Lives on one event loop.

    `restart` starts a slice anew that was sent to a session which had already ended.
    """

    def __init__(self, restart: Callable[[Session, SliceWork, Done], None]) -> None:
        self._restart = restart
        self._key = secrets.token_bytes(32)
        self._numbers = itertools.count(1)
        self._sessions: dict[int, Session] = {}
        self._waiting: defaultdict[tuple[str, str | None], deque[Session]] = defaultdict(deque)
        self.endpoint: Endpoint | None = None

    async def listen(self, host: str) -> None:
        """Listen on a free port of `host`'s address. OSError if that cannot be done: then sessions serve one slice."""
        server = await asyncio.start_server(self._serve, host=host, port=0)
        self.endpoint = Endpoint(host=host, port=server.sockets[0].getsockname()[1], key=self._key)

    def send(self, key: tuple[str, str | None], work: SliceWork, done: Done) -> Session | None:
        """Give `work` to a session of this function that waits; None if none does."""
        waiting = self._waiting.get(key)
        while waiting:
            session = waiting.pop()
            if session.is_line_open and session.writer is not None:
                session.current = (work, done)
                session.sent += 1
                write_frame(session.writer, self._key, _TO_WORKER, session.number, work)
                return session
        return None

    def begin(self, key: tuple[str, str | None], work: SliceWork, done: Done) -> Session:
        """A new session, whose task is about to start with `work`. Those of other functions that wait make room."""
        for other, waiting in self._waiting.items():
            while other != key and waiting:
                idle = waiting.pop()
                if idle.writer is not None:
                    write_frame(idle.writer, self._key, _TO_WORKER, idle.number, None)
        session = Session(number=next(self._numbers), key=key, current=(work, done))
        self._sessions[session.number] = session
        return session

    def ended(self, session: Session, end: SessionEnd | Failure) -> None:
        """The session's task has ended: with what it returned, or why its worker was lost."""
        session.end = end
        if session.is_line_open:
            return  # what is still on the line comes first
        if session.current is not None and session.writer is None and end == session.sent:
            # It served over a line that nobody here has looked at yet.
            asyncio.get_running_loop().call_later(_CONNECT_S_MAX, self._settle_unless_open, session)
        else:
            self._settle(session)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        session: Session | None = None
        try:
            keep_alive(writer.get_extra_info("socket"))
            number, _ = await read_frame(reader, self._key, _FROM_WORKER)
            session = self._sessions.get(number)
            if session is not None:
                session.writer, session.is_line_open = writer, True
            while session is not None:
                _, message = await read_frame(reader, self._key, _FROM_WORKER)
                self._report(session, *message)
        except (OSError, asyncio.IncompleteReadError, ForeignFrameError):
            pass  # the worker hung up or was cut off, or is none: its task's end tells what became of it
        finally:
            writer.close()
            if session is not None:
                session.is_line_open = False
                self._settle_unless_open(session)

    def _report(self, session: Session, report: SliceReport, is_last: bool) -> None:
        if session.current is not None:
            _, done = session.current
            session.current = None
            if not is_last:
                self._waiting[session.key].append(session)
            done(report)

    def _settle_unless_open(self, session: Session) -> None:
        if session.end is not None and not session.is_line_open:
            self._settle(session)

    def _settle(self, session: Session) -> None:
        """The task has ended and nothing more comes over its line: what it still held is known now."""
        self._sessions.pop(session.number, None)
        with contextlib.suppress(ValueError):
            self._waiting[session.key].remove(session)
        if session.current is None or session.end is None:
            return
        work, done = session.current
        session.current = None
        if isinstance(session.end, int):
            if session.end < session.sent:
                self._restart(session, work, done)
            else:
                done(Failure(kind="system", type_name="WorkerLostError", message="The report of a worker was lost"))
        else:
            done(session.end)


def serve_session(
    endpoint: Endpoint | None, number: int, first: SliceWork, run: Callable[[SliceWork], SliceReport]
) -> SessionEnd:
    """Serve slices, from `first` on, until none comes; for the worker's process. Blocking."""
    began_s = time.monotonic()
    line = None if endpoint is None else _dial(endpoint, number)
    if endpoint is None or line is None:
        return run(first)
    served = 0
    work: SliceWork | None = first
    with line:
        while work is not None:
            # Outside of `_next_work`: what `run` raises is the task's failure, not the line's.
            report = run(work)
            served += 1
            is_last = time.monotonic() - began_s > _SESSION_S_MAX
            work = _next_work(line, endpoint, number, report, is_last)
    return served


def _dial(endpoint: Endpoint, number: int) -> socket.socket | None:
    """A line to the dispatcher on which the session has said its number; None if there is no way."""
    try:
        line = socket.create_connection((endpoint.host, endpoint.port), timeout=_CONNECT_S_MAX)
    except OSError:
        return None
    try:
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        keep_alive(line)
        line.sendall(seal_frame(endpoint.key, _FROM_WORKER, number, None))
    except OSError:
        line.close()
        return None
    return line


def _next_work(
    line: socket.socket, endpoint: Endpoint, number: int, report: SliceReport, is_last: bool
) -> SliceWork | None:
    """Report, and wait a moment for more; None if nothing comes, or the line is of no more use."""
    frame = seal_frame(endpoint.key, _FROM_WORKER, number, (report, is_last))
    with contextlib.suppress(OSError, ForeignFrameError, EOFError):
        line.settimeout(_FRAME_S_MAX)
        line.sendall(frame)
        if is_last:
            return None
        line.settimeout(_LINGER_S)
        line.recv(1, socket.MSG_PEEK)
        line.settimeout(_FRAME_S_MAX)
        addressee, work = receive_frame(line, endpoint.key, _TO_WORKER)
        if addressee == number and isinstance(work, SliceWork):
            return work
    return None
