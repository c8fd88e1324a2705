"""What the tests on a real Ray use: ledgers, processes, and terminals (processes of their own that use a hub)."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import ray_durable as durable
from ray_durable.engine import ExecutionStarted, MapCompleted, TaskCompleted
from ray_durable.reader import HubReader
from samples.journal import noted
from tests.cluster.flows import ledger_path, left_path
from tests.support.processes import is_alive, kill, processes_below

__all__ = ["Execution", "Terminal", "executions", "is_alive", "kill", "kill_owner", "recorded_keys", "wait_until"]

T = TypeVar("T")

_TERMINAL = Path(__file__).with_name("terminal.py")

DEADLINE_S = 60.0
"""How long a test waits for what must come. Far more than it takes: the machine may be busy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    """One line of a ledger."""

    name: str
    key: str
    pid: int
    attempt: int


def executions(instance_id: str) -> list[Execution]:
    """What activities of the instance have begun to run, in order."""
    try:
        lines = ledger_path(instance_id).read_text().splitlines()
    except FileNotFoundError:
        return []
    fields = [line.split(" ") for line in lines]
    return [Execution(name=name, key=key, pid=int(pid), attempt=int(attempt)) for name, key, pid, attempt in fields]


def repeated(instance_id: str) -> dict[str, int]:
    """Keys that were executed more than once, and how often."""
    counts = Counter(execution.key for execution in executions(instance_id))
    return {key: count for key, count in counts.items() if count > 1}


def recorded_keys(hub: HubReader, instance_id: str) -> set[str]:
    """The idempotency keys of the calls whose outcome the log holds."""
    keys: set[str] = set()
    run = ""
    for event in hub.get(instance_id).history():
        if isinstance(event, ExecutionStarted):
            run = event.run
        elif isinstance(event, TaskCompleted):
            keys.add(f"{run}:{event.task}")
        elif isinstance(event, MapCompleted):
            keys |= {f"{run}:{event.map}:{item}" for item in range(event.start, event.start + event.count)}
    return keys


def wait_until(found: Callable[[], T | None], what: str, *, timeout_s: float = DEADLINE_S) -> T:
    """The first true value of `found`, asked again and again."""
    deadline_s = time.monotonic() + timeout_s
    while not (value := found()):
        assert time.monotonic() < deadline_s, f"not after {timeout_s:.0f} s: {what}"
        time.sleep(0.01)
    return value


def wait_for_executions(instance_id: str, count: int) -> list[Execution]:
    """The executions of an instance, once there are `count`."""
    wait_until(lambda: len(executions(instance_id)) >= count, f"{count} activities of {instance_id} have begun")
    return executions(instance_id)


def kill_owner(handle: durable.Handle[Any], *, after: int | None = None) -> int:
    """SIGKILL the process of the instance; its id. Waits for the first owner, or the one that follows process
    `after`."""
    pid = wait_for_new_owner(handle, after=after)
    kill(pid)
    return pid


def is_over(execution: Execution, instance_id: str) -> bool:
    """Whether an activity `waits_for_go` has ended, by itself or with its process."""
    return left_path(instance_id).exists() or not is_alive(execution.pid)


class Terminal:
    """A process of its own that uses a hub, as a user's script in another terminal does. See `terminal.py`.

    `ask` sends a request and waits for the answer; `send` and `answer` do the two apart. What goes wrong there is
    raised here as `TerminalError`.
    """

    def __init__(self, folder: Path, name: str, *, environment: dict[str, str] | None = None) -> None:
        self.output = folder / f"{name}.out"
        self._seen: set[int] = set()
        read_end, write_end = os.pipe()
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, str(_TERMINAL), str(write_end)],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=(write_end,),
                env={**os.environ, **(environment or {})},
                text=True,
            )
        os.close(write_end)
        self._answers = os.fdopen(read_end)

    def send(self, request: str, **arguments: Any) -> None:
        """Send a request."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"request": request, **arguments}) + "\n")
        self.process.stdin.flush()

    def answer(self) -> Any:
        """The answer to the oldest request without one."""
        line = self._answers.readline()
        assert line, f"the terminal ended:\n{self.output.read_text()[-3000:]}"
        answer = json.loads(line)
        if "error" in answer:
            raise TerminalError(answer["error"], answer["text"])
        return answer["value"]

    def ask(self, request: str, **arguments: Any) -> Any:
        """Send a request and wait for its answer."""
        self.send(request, **arguments)
        return self.answer()

    def look(self) -> set[int]:
        """The processes that descend from this one, remembered so that `end` can account for them."""
        self._seen |= processes_below(self.process.pid)
        return self._seen

    def kill(self) -> None:
        """SIGKILL the script alone, not its Ray."""
        self.look()
        self.process.kill()
        self.process.wait()

    def end(self) -> set[int]:
        """End the script, at once; the processes that it had."""
        self.kill()
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self._answers.close()
        return self._seen


class TerminalError(Exception):
    """What a request to a terminal raised there: `name` of its type, and its text."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(f"{name}: {text}")
        self.name = name
        self.text = text


def executed(instance_id: str, count: int) -> list[str]:
    """What the journal of a sample's instance notes, once there are `count` lines."""
    wait_until(lambda: len(noted(instance_id)) >= count, f"{count} activities of {instance_id} have begun")
    return noted(instance_id)


def wait_for_new_owner(handle: durable.Handle[Any], *, after: int | None) -> int:
    """The process that owns the instance after the one with the id `after` (None: the first)."""

    def pid() -> int | None:
        owner = handle.owner()
        return owner.pid if owner is not None and owner.pid != after else None

    return wait_until(pid, f"{handle} has an owner after {after}")


def failure_of(handle: durable.Handle[Any], *, timeout_s: float = DEADLINE_S) -> str:
    """The text with which an instance fails."""
    try:
        value = handle.result(timeout_s)
    except durable.OrchestrationFailedError as error:
        return str(error)
    raise AssertionError(f"{handle} did not fail, but gave {value!r}")
