"""A cluster as the command sees it: a process to ask (`tests.chaos.host`), and all processes below it to kill."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tests.support.processes import children_of, is_alive, kill, processes_below, reap, title_of

__all__ = ["Cluster", "HostError", "HostLostError", "Settings", "until"]

_REPOSITORY = Path(__file__).parents[2]

DISPATCHER, SUPERVISOR, ORCHESTRATOR = "ray::DispatcherActor", "ray::SupervisorActor", "ray::OrchestrationActor"


class HostError(Exception):
    """What a request raised: `name` of its type, and its text."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(f"{name}: {text}")
        self.name = name


class HostLostError(Exception):
    """The cluster's process has ended; whether it did what was asked is unknown."""


async def until(found: Callable[[], Any], what: str, *, timeout_s: float = 60.0) -> Any:
    """The first true value of `found`, asked again and again. TimeoutError if there is none in time."""
    deadline_s = time.monotonic() + timeout_s
    while not (value := found()):
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"not after {timeout_s:.0f} s: {what}")
        await asyncio.sleep(0.01)
    return value


class Settings:
    """What all clusters of a run have in common."""

    def __init__(
        self, folder: Path, *, root: str, storage_options: str | None, environment: Mapping[str, str], nodes: int
    ) -> None:
        self.folder = folder
        self.root = root
        self.storage_options = storage_options
        self.nodes = nodes
        self.hosts: set[int] = set()
        """The processes that clusters were started with."""
        self.cpus = 2
        # The examples are on the path, since the tests' helpers use them.
        path = os.pathsep.join(map(str, [_REPOSITORY, _REPOSITORY / "examples"]))
        self.environment = {**os.environ, **environment, "PYTHONPATH": path}


class Cluster:
    """One cluster, from `start` to `end` or `kill_all`. For one event loop."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._numbers = itertools.count(1)
        self._asked: dict[int, asyncio.Future[Any]] = {}
        self._is_lost = False
        # Sockets have short names, and so must their folder.
        self.folder = Path(tempfile.mkdtemp(prefix="rc-", dir="/tmp"))
        self.output = settings.folder / f"{self.folder.name}.out"
        self._process: subprocess.Popen[str]
        self._listening: asyncio.Task[None]

    async def start(self) -> None:
        """Start all nodes."""
        read_end, write_end = os.pipe()
        with self.output.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.chaos.host", str(write_end)],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=(write_end,),
                # Ray's default folder is where it notes the address of the last cluster: nobody else is to find ours.
                env={**self._settings.environment, "RAY_TMPDIR": str(self.folder)},
                cwd=_REPOSITORY,
                text=True,
                start_new_session=True,
            )
        os.close(write_end)
        self._settings.hosts.add(self._process.pid)
        reader = asyncio.StreamReader(limit=2**24)
        loop = asyncio.get_running_loop()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(read_end, "rb"))
        self._listening = loop.create_task(self._listen(reader))
        await self.ask("up", nodes=self._settings.nodes, cpus=self._settings.cpus)

    async def connect(self, *, takeover: bool = False) -> None:
        """Take the hub."""
        settings = self._settings
        await self.ask("connect", root=settings.root, storage_options=settings.storage_options, takeover=takeover)

    async def ask(self, request: str, **arguments: Any) -> Any:
        """Have the host do something. HostError: it failed; HostLostError: nobody knows."""
        if self._is_lost:
            raise HostLostError(request)
        number = next(self._numbers)
        future = self._asked[number] = asyncio.get_running_loop().create_future()
        assert self._process.stdin is not None
        try:
            print(json.dumps({"number": number, "request": request, "arguments": arguments}), file=self._process.stdin)
            self._process.stdin.flush()
        except OSError as error:
            raise HostLostError(request) from error
        try:
            return await future
        finally:
            del self._asked[number]

    def processes(self, title: str = "") -> list[int]:
        """The living processes of the cluster whose title begins so, in order of their ids; and those whose parent was
        killed, in whichever cluster that was."""
        host = self._process.pid
        found = {host, *processes_below(host)}
        for child in children_of(os.getpid()):
            if child not in self._settings.hosts and not _is_store(child):
                found |= {child, *processes_below(child)}
        return [pid for pid in sorted(found) if _has(pid, title)]

    def below(self, pid: int, title: str = "") -> list[int]:
        """Those below one of them."""
        return [one for one in sorted(processes_below(pid)) if _has(one, title)]

    async def kill_all(self) -> int:
        """SIGKILL every process of the cluster; how many there were."""
        self._is_lost = True
        killed: set[int] = set()
        # What a process starts while it is about to be killed is found in the next round.
        while pids := self.processes():
            killed.update(pids)
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    kill(pid)
            await asyncio.sleep(0.01)
        await self._clear(killed)
        return len(killed)

    async def end(self) -> list[int]:
        """End the cluster in an orderly way; the processes that were still there thirty seconds later."""
        await self.ask("down")
        assert self._process.stdin is not None
        self._process.stdin.close()
        seen = set(self.processes())
        left: list[int] = []
        try:
            await until(lambda: not self.processes(), "Ray's processes have ended", timeout_s=30)
        except TimeoutError:
            left = self.processes()
        await self._clear(seen)
        return left

    async def _clear(self, pids: set[int]) -> None:
        self._is_lost = True
        await asyncio.to_thread(self._process.wait)
        reap(pids - {self._process.pid})
        self._listening.cancel()
        for future in self._asked.values():
            if not future.done():
                future.set_exception(HostLostError())
        self._keep_logs()
        _remove(self.folder)

    def _keep_logs(self) -> None:
        """Ray's logs, for whoever looks further."""
        for logs in self.folder.glob("ray/session_2*/logs"):
            with contextlib.suppress(OSError):
                shutil.move(logs, self._settings.folder / f"{self.folder.name}.logs")

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        while line := await reader.readline():
            told = json.loads(line)
            future = self._asked.get(told["number"])
            if future is None or future.done():
                continue
            if "error" in told:
                future.set_exception(HostError(told["error"], told["text"]))
            else:
                future.set_result(told["value"])


def _is_store(pid: int) -> bool:
    """Whether it is the server of a store, which the command started as well."""
    return title_of(pid).split("\0")[0].endswith("/weed")


def _has(pid: int, title: str) -> bool:
    return is_alive(pid) and title_of(pid).startswith(title)


def _remove(folder: Path) -> None:
    """Remove a folder in which a process that ends may still change something."""
    for _ in range(10):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(0.1)
