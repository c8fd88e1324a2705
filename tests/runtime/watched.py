"""A worker's main thread, in a process of its own: `python -m tests.runtime.watched <scenario>`.

Each scenario runs slices under a real watch and prints one JSON object with what became of them. What the watch tells
the dispatcher is printed too, one JSON line each, as it happens: the process may end with it.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import random
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import ray_durable as durable
from ray_durable.codec import Codec
from ray_durable.failure import Failure
from ray_durable.payload import Payload
from ray_durable.reference import FunctionReference
from ray_durable.runtime import watch as watching
from ray_durable.runtime.messages import Heartbeats, SliceReport, SliceWork, Withdrawal
from ray_durable.runtime.watch import INTERRUPT_SIGNAL, Watch
from ray_durable.runtime.worker import run_slice
from ray_durable.target import ActivityTarget
from tests.runtime.test_worker import Workshop

CODEC = Codec()

noted: list[str] = []


def work(
    function: durable.Activity[Any, Any],
    *values: Any,
    timeout_s: float | None = None,
    heartbeat_timeout_s: float | None = None,
    grace_s: float = 5.0,
    heartbeats: dict[int, Payload] | None = None,
) -> SliceWork:
    target = ActivityTarget(
        reference=FunctionReference(name=function.name),
        options={},
        is_local=False,
        key="k",
        timeout_s=timeout_s,
        heartbeat_timeout_s=heartbeat_timeout_s,
    )
    count = len(values)
    return SliceWork(
        run="run",
        instance_id="one",
        target=target,
        budget_s=60.0,
        count=count,
        attempts=[1] * count,
        keys=[f"run:{number}" for number in range(2, 2 + count)],
        calls=[CODEC.encode_call(function.calls, (value,), {}, where="x") for value in values],
        heartbeats=heartbeats or {},
        grace_s=grace_s,
    )


def outcomes(report: SliceReport) -> list[Any]:
    """Values, and failures as "kind type"."""
    return [
        f"{one.kind} {one.type_name}" if isinstance(one, Failure) else CODEC.decode(one, where="x")
        for one in report.outcomes
    ]


class PrintedLine:
    """`Line` that prints what it is told; `say` lets something come."""

    def __init__(self) -> None:
        self.slice = 1
        self._coming: list[object] = []
        self._read_end, self._write_end = os.pipe()

    def fileno(self) -> int:
        return self._read_end

    def say(self, message: object) -> None:
        self._coming.append(message)
        os.write(self._write_end, b".")

    def hear(self) -> object:
        os.read(self._read_end, 1)
        return self._coming.pop(0)

    def tell(self, message: object) -> None:
        told: dict[str, Any]
        if isinstance(message, Heartbeats):
            told = {"heartbeats": {offset: said and said.bytes.decode() for offset, said in message.details.items()}}
        else:
            assert isinstance(message, tuple)
            report, is_last = message
            told = {
                "done": report.done,
                "outcomes": outcomes(report),
                "condemned": [(offset, failure.kind) for offset, failure in report.condemned],
                "last": is_last,
                "said": {offset: said.bytes.decode() for offset, said in report.heartbeats.items()},
            }
        print(json.dumps(told), flush=True)


@durable.activity
def computes(seconds: float) -> str:
    end_s = time.perf_counter() + seconds
    while time.perf_counter() < end_s:
        pass
    return "computed"


@durable.activity
def dozes(seconds: float) -> str:
    noted.append(f"begins {seconds:g}")
    time.sleep(seconds)
    return "slept"


@durable.activity
async def sleeps_and_cleans_up(seconds: float) -> str:
    try:
        await asyncio.sleep(seconds)
    finally:
        await asyncio.sleep(0.01)
        noted.append(f"cleaned up {seconds:g}")
    return "slept"


@durable.activity
async def blocks_its_loop(seconds: float) -> str:
    time.sleep(seconds)
    return "slept"


@durable.activity
def makes_the_best_of_it(seconds: float) -> str:
    try:
        time.sleep(seconds)
    except durable.ActivityCancelled:
        return "partial"
    return "slept"


@durable.activity
def stumbles_over_its_cleanup(seconds: float) -> str:
    try:
        time.sleep(seconds)
    finally:
        raise KeyError("cleanup")


@durable.activity
def ignores_everything(seconds: float) -> str:
    """No signal gets through, and the interpreter's lock is free: only force ends it."""
    durable.current_activity().heartbeat({"at": seconds})
    if seconds > 1:
        signal.pthread_sigmask(signal.SIG_BLOCK, [INTERRUPT_SIGNAL])
        end_s = time.monotonic() + seconds
        while time.monotonic() < end_s:
            ctypes.CDLL(None).usleep(1_000)
    return "slept"


@durable.activity
def beats(seconds: float) -> str:
    """Ten heartbeats a second for so long, then silence."""
    info = durable.current_activity()
    noted.append(f"before: {info.heartbeat_details}")
    end_s = time.perf_counter() + seconds
    count = 0
    while time.perf_counter() < end_s:
        count += 1
        info.heartbeat({"count": count})
        time.sleep(0.1)
    noted.append(f"after: {info.heartbeat_details}")
    time.sleep(1_000)
    return "slept"


@durable.activity
def asks_whether_to_end(seconds: float) -> str:
    info = durable.current_activity()
    end_s = time.monotonic() + seconds
    try:
        while time.monotonic() < end_s:
            time.sleep(0.01)
    except durable.ActivityCancelled:
        noted.append(f"is_cancelled: {info.is_cancelled}")
    try:
        info.heartbeat()
    except durable.ActivityCancelled as error:
        noted.append(f"heartbeat: {error}")
        raise
    return "went on"


def near_the_deadline(watch: Watch) -> dict[str, Any]:
    """Many calls that end about when their time is up; between them, calls that have all the time in the world."""
    watching._TICK_S = 0.002
    timeout_s, rng = 0.004, random.Random(7)
    found: Counter[str] = Counter()
    quiet: Counter[str] = Counter()
    for number in range(12):
        function = computes if number % 2 else dozes
        values = [rng.uniform(0.3, 2.2) * timeout_s for _ in range(100)]
        report = run_slice(work(function, *values, timeout_s=timeout_s), Workshop(), watch)
        assert report.done == len(values)
        found.update(outcomes(report))
        quiet.update(outcomes(run_slice(work(computes, *[0.0001] * 50), Workshop(), watch)))
    return {"near": found, "quiet": quiet}


def off_the_main_thread(watch: Watch) -> dict[str, Any]:
    results: list[dict[str, Any]] = []
    thread = threading.Thread(target=lambda: results.append(near_the_deadline(watch)))
    thread.start()
    thread.join()
    return results[0]


def timed(run: Callable[[], SliceReport]) -> dict[str, Any]:
    began_s = time.perf_counter()
    report = run()
    return {"outcomes": outcomes(report), "took_s": time.perf_counter() - began_s, "noted": noted}


def sleeping(watch: Watch) -> dict[str, Any]:
    return timed(lambda: run_slice(work(dozes, 0.0, 1_000.0, 0.1, timeout_s=0.3), Workshop(), watch))


def cleaning_up(watch: Watch) -> dict[str, Any]:
    return timed(lambda: run_slice(work(sleeps_and_cleans_up, 0.5, 1_000.0, timeout_s=1.0), Workshop(), watch))


def blocking(watch: Watch) -> dict[str, Any]:
    return timed(lambda: run_slice(work(blocks_its_loop, 0.0, 1_000.0, timeout_s=0.2, grace_s=1.0), Workshop(), watch))


def late(watch: Watch) -> dict[str, Any]:
    return timed(lambda: run_slice(work(makes_the_best_of_it, 1_000.0, timeout_s=0.2), Workshop(), watch))


def stumbling(watch: Watch) -> dict[str, Any]:
    report = run_slice(work(stumbles_over_its_cleanup, 1_000.0, timeout_s=0.2), Workshop(), watch)
    failure = report.outcomes[0]
    assert isinstance(failure, Failure)
    assert failure.cause is not None
    return {"outcomes": outcomes(report), "cause": failure.cause.type_name, "bases": failure.bases}


def withdrawn(watch: Watch) -> dict[str, Any]:
    line = PrintedLine()
    watch.line = line
    line.say(Withdrawal(slice=7, calls=(1,)))
    line.say(Withdrawal(slice=1, calls=(0, 2)))
    return timed(lambda: run_slice(work(dozes, 1_000.0, 0.01, 2_000.0, 0.02), Workshop(), watch))


def asking(watch: Watch) -> dict[str, Any]:
    return timed(lambda: run_slice(work(asks_whether_to_end, 1_000.0, timeout_s=0.2), Workshop(), watch))


def beating(watch: Watch) -> dict[str, Any]:
    watch.line = PrintedLine()
    earlier = {0: CODEC.encode({"count": -1}, where="x")}
    slice_of_one = work(beats, 1.0, heartbeat_timeout_s=0.4, heartbeats=earlier)
    began_s = time.perf_counter()
    report = run_slice(slice_of_one, Workshop(), watch)
    failure = report.outcomes[0]
    assert isinstance(failure, Failure)
    said = CODEC.decode(report.heartbeats[0], where="x")
    return {
        "failure": failure.message,
        "kind": failure.kind,
        "noted": noted,
        "took_s": time.perf_counter() - began_s,
        "said": said,
    }


def stuck(watch: Watch) -> dict[str, Any]:
    watch.line = PrintedLine()
    run_slice(work(ignores_everything, 0.1, 1_000.0, 0.2, timeout_s=0.3, grace_s=0.5), Workshop(), watch)
    return {"unreachable": True}


def main() -> None:
    scenario = globals()[sys.argv[1]]
    print(json.dumps(scenario(Watch())), flush=True)


if __name__ == "__main__":
    main()
