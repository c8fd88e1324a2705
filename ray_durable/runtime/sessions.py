"""Worker sessions: a Ray task that, after its slice, stays for the next one for a moment.

Ray grants a worker anew for each task, which is most of what a short activity costs. So a task that ran a slice reports
over a direct line and waits a little for more work of the same function; one activity after the other then costs a
message each. A session ends when nothing comes, when somebody else needs the worker, or after a fraction of a second,
so that it never keeps others from their turn.

The task's own end tells how many slices it served; a slice that was sent to a session which had just ended did not run,
and is started elsewhere. While a slice runs, its heartbeats go over the line, and withdrawals of its calls come back.
`SessionServer` is the dispatcher's side, `serve_session` the worker's. No Ray here.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
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
from ray_durable.runtime.messages import Heartbeats, SliceNews, SlicePlace, SliceReport, SliceWork, Withdrawal
from ray_durable.runtime.watch import Watch

__all__ = ["Session", "SessionEnd", "SessionServer", "Tell", "serve_session"]

_LINGER_S = 0.05
_SESSION_S_MAX = 0.2
_CONNECT_S_MAX = 5.0
_FRAME_S_MAX = 60.0
_TO_WORKER, _FROM_WORKER = b"work", b"report"

SessionEnd = SliceReport | int
"""What a session's task returns: how many slices it served, or, if it found no line, the report of the one it had."""

Tell = Callable[[SliceNews], None]
"""Hears of a slice: where it is and what its calls say, any number of times, and once how it ended."""


@dataclass(slots=True)
class Session:
    """One session, as the dispatcher sees it. `current` is the slice in its hands; `place` is known once it speaks."""

    number: int
    key: tuple[str, str | None]
    current: tuple[SliceWork, Tell] | None
    sent: int = 1
    writer: asyncio.StreamWriter | None = None
    place: SlicePlace = field(default_factory=SlicePlace)
    is_line_open: bool = False
    end: SessionEnd | Failure | None = None
    cancel: Callable[[], None] = field(default=lambda: None)
    successor: Session | None = None
    """Has the slice that came too late for this one."""


class SessionServer:
    """The dispatcher's side: hands work to sessions that wait, and hears their reports. Lives on one event loop.

    `restart` starts a slice anew that was sent to a session which had already ended.
    """

    def __init__(self, restart: Callable[[Session, SliceWork, Tell], None]) -> None:
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

    def send(self, key: tuple[str, str | None], work: SliceWork, tell: Tell) -> Session | None:
        """Give `work` to a session of this function that waits; None if none does."""
        waiting = self._waiting.get(key)
        while waiting:
            session = waiting.pop()
            if session.is_line_open and session.writer is not None:
                session.current = (work, tell)
                session.sent += 1
                write_frame(session.writer, self._key, _TO_WORKER, session.number, work)
                tell(session.place)
                return session
        return None

    def withdraw(self, session: Session, work: SliceWork, calls: tuple[int, ...]) -> bool:
        """Ask the session's worker to end these calls of `work`; False if it cannot be asked, or has other work."""
        if session.current is None or session.current[0] is not work:
            return False
        if not session.is_line_open or session.writer is None:
            return False
        message = Withdrawal(slice=session.sent, calls=calls)
        write_frame(session.writer, self._key, _TO_WORKER, session.number, message)
        return True

    def begin(self, key: tuple[str, str | None], work: SliceWork, tell: Tell) -> Session:
        """A new session, whose task is about to start with `work`. Those of other functions that wait make room."""
        for other, waiting in self._waiting.items():
            while other != key and waiting:
                idle = waiting.pop()
                if idle.writer is not None:
                    write_frame(idle.writer, self._key, _TO_WORKER, idle.number, None)
        session = Session(number=next(self._numbers), key=key, current=(work, tell))
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
            number, hello = await read_frame(reader, self._key, _FROM_WORKER)
            session = self._sessions.get(number)
            if session is not None:
                session.writer, session.is_line_open = writer, True
                if isinstance(hello, SlicePlace):
                    session.place = hello
                _tell(session, session.place)
            while session is not None:
                _, message = await read_frame(reader, self._key, _FROM_WORKER)
                if isinstance(message, Heartbeats):
                    _tell(session, message)
                else:
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
            _, tell = session.current
            session.current = None
            if not is_last:
                self._waiting[session.key].append(session)
            tell(report)

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
        work, tell = session.current
        session.current = None
        if isinstance(session.end, int):
            if session.end < session.sent:
                tell(SlicePlace())
                self._restart(session, work, tell)
            else:
                tell(Failure(kind="system", type_name="WorkerLostError", message="The report of a worker was lost"))
        else:
            tell(session.end)


def _tell(session: Session, news: SliceNews) -> None:
    if session.current is not None:
        _, tell = session.current
        tell(news)


def serve_session(
    endpoint: Endpoint | None,
    number: int,
    first: SliceWork,
    run: Callable[[SliceWork], SliceReport],
    watch: Watch | None = None,
) -> SessionEnd:
    """Serve slices, from `first` on, until none comes; for the worker's process. Blocking.

    `watch` gets the line while slices run.
    """
    began_s = time.monotonic()
    line = None if endpoint is None else _dial(endpoint, number)
    if line is None:
        return run(first)
    if watch is not None:
        watch.line = line
    work: SliceWork | None = first
    try:
        while work is not None:
            # Outside of `_next_work`: what `run` raises is the task's failure, not the line's.
            report = run(work)
            is_last = time.monotonic() - began_s > _SESSION_S_MAX
            work = _next_work(line, report, is_last)
    finally:
        if watch is not None:
            watch.line = None
        line.close()
    return line.slice


class _WorkerLine:
    """A worker's line to the dispatcher. `slice` counts the slices of the session, from 1."""

    def __init__(self, line: socket.socket, endpoint: Endpoint, number: int) -> None:
        self.slice = 1
        self._line = line
        self._key = endpoint.key
        self._number = number

    def fileno(self) -> int:
        """See `watch.Line`."""
        return self._line.fileno()

    def tell(self, message: object) -> None:
        """See `watch.Line`. A line on which a message was cut is closed for writing: nobody could read on."""
        self._line.settimeout(_FRAME_S_MAX)
        try:
            self._line.sendall(seal_frame(self._key, _FROM_WORKER, self._number, message))
        except OSError:
            with contextlib.suppress(OSError):
                self._line.shutdown(socket.SHUT_WR)
            raise

    def hear(self) -> object:
        """See `watch.Line`."""
        self._line.settimeout(_FRAME_S_MAX)
        addressee, message = receive_frame(self._line, self._key, _TO_WORKER)
        if addressee != self._number:
            raise ForeignFrameError("the message is for another session")
        return message

    def has_news(self, timeout_s: float) -> bool:
        """Whether anything comes within the time. OSError if not."""
        self._line.settimeout(timeout_s)
        return bool(self._line.recv(1, socket.MSG_PEEK))

    def close(self) -> None:
        """Hang up."""
        self._line.close()


def _dial(endpoint: Endpoint, number: int) -> _WorkerLine | None:
    """A line to the dispatcher on which the session has said who and where it is; None if there is no way."""
    try:
        line = socket.create_connection((endpoint.host, endpoint.port), timeout=_CONNECT_S_MAX)
    except OSError:
        return None
    opened = _WorkerLine(line, endpoint, number)
    try:
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        keep_alive(line)
        opened.tell(SlicePlace(host=socket.gethostname(), pid=os.getpid()))
    except OSError:
        opened.close()
        return None
    return opened


def _next_work(line: _WorkerLine, report: SliceReport, is_last: bool) -> SliceWork | None:
    """Report, and wait a moment for more; None if nothing comes, or the line is of no more use."""
    with contextlib.suppress(OSError, ForeignFrameError, EOFError):
        line.tell((report, is_last))
        while not is_last and line.has_news(_LINGER_S):
            message = line.hear()
            if isinstance(message, Withdrawal):
                continue  # of what has just ended
            if isinstance(message, SliceWork):
                line.slice += 1
                return message
            return None
    return None
