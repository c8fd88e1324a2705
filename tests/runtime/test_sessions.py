"""Worker sessions on real sockets: the dispatcher's side on the test's loop, each worker in a thread."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from ray_durable.failure import Failure
from ray_durable.reference import FunctionReference
from ray_durable.runtime import sessions
from ray_durable.runtime.framing import Endpoint, seal_frame
from ray_durable.runtime.messages import Heartbeats, SliceNews, SlicePlace, SliceReport, SliceWork, Withdrawal
from ray_durable.runtime.sessions import Session, SessionEnd, SessionServer, serve_session
from ray_durable.target import ActivityTarget

HOST = "127.0.0.1"
KEY = ("f", None)


def slice_of(run: str) -> SliceWork:
    target = ActivityTarget(reference=FunctionReference(name="f"), options={}, is_local=False, key="f")
    return SliceWork(run=run, instance_id="one", target=target, budget_s=1.0, count=1, attempts=[1], keys=["k"])


class Workers:
    """Starts each session's task as a thread, and tells the server of its end, as the launcher does with Ray's."""

    def __init__(self) -> None:
        self.server = SessionServer(self._restart)
        self.ran: list[str] = []
        self.restarted: list[str] = []
        self.reports: asyncio.Queue[SliceReport | Failure] = asyncio.Queue()
        self.news: list[SlicePlace | Heartbeats] = []
        self.tasks: list[asyncio.Task[SessionEnd]] = []
        self.run: Callable[[SliceWork], SliceReport] = self._run

    def start(self, run: str, key: tuple[str, str | None] = KEY) -> Session:
        session = self.server.begin(key, slice_of(run), self.hear)
        self._launch(session, slice_of(run))
        return session

    def send(self, run: str) -> Session | None:
        return self.server.send(KEY, slice_of(run), self.hear)

    def hear(self, news: SliceNews) -> None:
        if isinstance(news, SliceReport | Failure):
            self.reports.put_nowait(news)
        else:
            self.news.append(news)

    async def end_all(self) -> None:
        while any(not task.done() for task in self.tasks):
            await asyncio.wait(self.tasks)
        await asyncio.sleep(0)

    def _launch(self, session: Session, work: SliceWork) -> None:
        async def task() -> SessionEnd:
            end: SessionEnd | Failure
            try:
                end = await asyncio.to_thread(serve_session, self.server.endpoint, session.number, work, self.run)
            except Exception as error:
                end = Failure(kind="system", type_name="WorkerLostError", message=str(error))
            self.server.ended(session, end)
            return end  # type: ignore[return-value]

        self.tasks.append(asyncio.create_task(task()))

    def _restart(self, ended: Session, work: SliceWork, tell: sessions.Tell) -> None:
        self.restarted.append(work.run)
        self._launch(self.server.begin(ended.key, work, tell), work)

    def _run(self, work: SliceWork) -> SliceReport:
        self.ran.append(work.run)
        return SliceReport(done=1, elapsed_s=0.0)


def with_workers(test: Callable[[Workers], Coroutine[Any, Any, None]], *, listens: bool = True) -> None:
    async def main() -> None:
        workers = Workers()
        if listens:
            await workers.server.listen(HOST)
        async with asyncio.timeout(10):
            await test(workers)
            await workers.end_all()
        assert workers.reports.empty(), "each slice is reported once"

    asyncio.run(main())


def linger_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "_LINGER_S", 10.0)
    monkeypatch.setattr(sessions, "_SESSION_S_MAX", 10.0)


def test_a_session_takes_a_second_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Work of the same function goes to the worker that waits; no task is started for it."""
    linger_long(monkeypatch)

    async def test(workers: Workers) -> None:
        session = workers.start("a")
        await workers.reports.get()
        for run in "bc":
            assert workers.send(run) is session
            await workers.reports.get()
        assert workers.ran == ["a", "b", "c"]
        workers.server.begin(("other", None), slice_of("x"), lambda _: None)
        assert await workers.tasks[0] == 3
        assert len(workers.tasks) == 1

    with_workers(test)


def test_a_session_to_which_nothing_comes_ends() -> None:
    """It lingers for a moment only, and takes no more work then."""

    async def test(workers: Workers) -> None:
        workers.start("a")
        await workers.reports.get()
        assert await workers.tasks[0] == 1
        await workers.end_all()
        while workers.server._sessions:
            await asyncio.sleep(0.001)
        assert workers.send("b") is None

    with_workers(test)


def test_a_session_of_another_function_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that waits is sent home when a task of another function starts; one of the same function stays."""
    linger_long(monkeypatch)

    async def test(workers: Workers) -> None:
        first = workers.start("a")
        await workers.reports.get()
        workers.server.begin(KEY, slice_of("same"), lambda _: None)
        assert workers.send("b") is first
        await workers.reports.get()
        workers.server.begin(("other", None), slice_of("x"), lambda _: None)
        assert workers.send("c") is None
        assert await workers.tasks[0] == 2

    with_workers(test)


def test_a_session_that_is_old_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """After its time a session ends with the report, and nothing more is sent to it."""
    monkeypatch.setattr(sessions, "_SESSION_S_MAX", -1.0)

    async def test(workers: Workers) -> None:
        workers.start("a")
        await workers.reports.get()
        assert workers.send("b") is None
        assert await workers.tasks[0] == 1

    with_workers(test)


def test_work_for_a_session_that_had_just_ended_runs_once() -> None:
    """Sent while the worker was leaving, it is started anew, exactly once."""

    async def test(workers: Workers) -> None:
        session = workers.start("a")
        await workers.reports.get()
        # The worker leaves while the dispatcher does other things: it hears of that only after it has sent.
        while not _has_hung_up(session):
            pass
        assert workers.send("b") is session
        await workers.reports.get()
        await workers.end_all()
        assert workers.ran == ["a", "b"]
        assert workers.restarted == ["b"]

    with_workers(test)


def test_a_worker_that_dies_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """The task's failure is the slice's, in the first slice as in a later one; nothing is started anew."""
    linger_long(monkeypatch)

    async def test(workers: Workers) -> None:
        def run(work: SliceWork) -> SliceReport:
            if work.run == "poison":
                raise OSError("the worker died")
            return workers._run(work)

        workers.run = run
        workers.start("poison")
        first = await workers.reports.get()
        session = workers.start("a")
        await workers.reports.get()
        assert workers.send("poison") is session
        second = await workers.reports.get()
        for failure in (first, second):
            assert isinstance(failure, Failure)
            assert failure.message == "the worker died"
        assert workers.restarted == []

    with_workers(test)


def test_without_a_line_a_session_serves_one_slice() -> None:
    """Where no connection can be made, the task's result is the report."""

    async def test(workers: Workers) -> None:
        workers.start("a")
        assert isinstance(await workers.reports.get(), SliceReport)
        assert workers.send("b") is None
        assert isinstance(await workers.tasks[0], SliceReport)

    with_workers(test, listens=False)


def test_a_report_that_is_read_after_the_tasks_end_counts() -> None:
    """A dispatcher that was busy hears of the task's end before it has looked at the session's line: no loss."""

    async def test(workers: Workers) -> None:
        session = workers.server.begin(KEY, slice_of("a"), workers.hear)
        end = serve_session(workers.server.endpoint, session.number, slice_of("a"), workers._run)
        workers.server.ended(session, end)
        assert isinstance(await workers.reports.get(), SliceReport)

    with_workers(test)


def test_a_session_says_where_it_is() -> None:
    """Once it speaks, and at once for each slice that is sent to it; a slice that has to go elsewhere is on its way."""

    async def test(workers: Workers) -> None:
        here = SlicePlace(host=socket.gethostname(), pid=os.getpid())
        session = workers.start("a")
        await workers.reports.get()
        assert workers.news == [here]
        while not _has_hung_up(session):
            pass
        assert workers.send("b") is session
        assert workers.news == [here, here]
        await workers.reports.get()
        assert workers.news == [here, here, SlicePlace(), here]

    with_workers(test)


def test_while_a_slice_runs_its_line_carries_heartbeats_and_withdrawals(monkeypatch: pytest.MonkeyPatch) -> None:
    """Withdrawals name the slice by its number; one that comes too late is passed over."""
    linger_long(monkeypatch)
    beat = Heartbeats(details={0: None})
    heard: list[object] = []

    class Watching:
        """What a watch does with the line."""

        line: Any = None

        def run(self, work: SliceWork) -> SliceReport:
            self.line.tell(beat)
            heard.append((self.line.slice, self.line.hear()))
            return SliceReport(done=1, elapsed_s=0.0)

    async def test(workers: Workers) -> None:
        watching: Any = Watching()
        work = slice_of("a")
        session = workers.server.begin(KEY, work, workers.hear)
        assert not workers.server.withdraw(session, work, (0,)), "nobody can be asked yet"
        serving = asyncio.to_thread(
            serve_session, workers.server.endpoint, session.number, work, watching.run, watching
        )
        served = asyncio.create_task(serving)
        for number in (1, 2):
            while workers.news.count(beat) < number:
                await asyncio.sleep(0.001)
            assert session.current is not None
            current, _ = session.current
            assert not workers.server.withdraw(session, slice_of("other"), (0,))
            assert workers.server.withdraw(session, current, (0, 2))
            assert workers.server.withdraw(session, current, (1,)), "more than the watch looks at"
            await workers.reports.get()
            if number == 1:
                assert workers.send("b") is session
        workers.server.begin(("other", None), slice_of("x"), lambda _: None)
        assert await served == 2
        assert heard == [(number, Withdrawal(slice=number, calls=(0, 2))) for number in (1, 2)]
        assert watching.line is None
        workers.server.ended(session, 2)

    with_workers(test)


def test_a_foreign_line_changes_nothing() -> None:
    """Frames with another key, and sessions that nobody began, are hung up on."""

    async def test(workers: Workers) -> None:
        session = workers.server.begin(KEY, slice_of("a"), workers.hear)
        endpoint = workers.server.endpoint
        assert endpoint is not None
        for key, number in ((b"another key", session.number), (endpoint.key, 99)):
            reader, writer = await asyncio.open_connection(endpoint.host, endpoint.port)
            writer.write(seal_frame(key, b"report", number, None))
            assert await reader.read() == b""
            writer.close()
        assert not session.is_line_open

    with_workers(test)


def test_a_line_that_is_cut_ends_the_session() -> None:
    """A worker whose dispatcher hangs up in the middle of a frame keeps what it did, and ends."""

    async def main() -> None:
        key, begun = b"k" * 32, threading.Event()

        async def cut(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await asyncio.to_thread(begun.wait, 5)
            writer.write(seal_frame(key, b"work", 7, slice_of("b"))[:100])
            await writer.drain()
            writer.close()

        def run(work: SliceWork) -> SliceReport:
            begun.set()
            return SliceReport(done=1, elapsed_s=0.0)

        listening = await asyncio.start_server(cut, host=HOST, port=0)
        endpoint = Endpoint(host=HOST, port=listening.sockets[0].getsockname()[1], key=key)
        assert await asyncio.to_thread(serve_session, endpoint, 7, slice_of("a"), run) == 1

    asyncio.run(main())


def _has_hung_up(session: Session) -> bool:
    """Whether the worker has closed its end, which the loop has not looked at yet."""
    assert session.writer is not None
    line = socket.socket(fileno=socket.dup(session.writer.get_extra_info("socket").fileno()))
    with line:
        line.setblocking(False)
        try:
            return line.recv(1, socket.MSG_PEEK) == b""
        except BlockingIOError:
            return False
