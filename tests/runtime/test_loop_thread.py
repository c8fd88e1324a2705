"""A loop on a thread: whoever waits for it is answered, also when it ends."""

from __future__ import annotations

import asyncio
import inspect
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from ray_durable.errors import ClosedError
from ray_durable.runtime.loop_thread import LoopThread


async def answer() -> int:
    return 42


def test_a_coroutine_runs_on_the_threads_loop() -> None:
    """The result comes back, from another thread than the caller's."""

    async def where() -> str:
        return threading.current_thread().name

    thread = LoopThread(name="test")
    assert thread.run(where()) == "ray_durable test"
    thread.stop()


def test_what_is_submitted_to_a_stopped_loop_is_refused() -> None:
    """It does not wait for ever, and its coroutine is closed rather than never awaited."""
    thread = LoopThread(name="test")
    thread.stop()
    for _ in range(2):
        coroutine = answer()
        with pytest.raises(ClosedError, match="connect again"):
            thread.run(coroutine)
        assert inspect.getcoroutinestate(coroutine) == inspect.CORO_CLOSED


def test_a_waiting_caller_learns_of_the_end() -> None:
    """A call that another thread waits for raises ClosedError, and its coroutine could clean up."""
    thread, has_begun, cleaned = LoopThread(name="test"), threading.Event(), []

    async def wait_for_ever() -> None:
        has_begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            cleaned.append(True)

    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(thread.run, wait_for_ever())
        assert has_begun.wait(5)
        thread.stop()
        assert isinstance(waiting.exception(timeout=5), ClosedError)
    assert cleaned == [True]


def test_a_call_submitted_just_before_the_end_is_answered() -> None:
    """Whatever the loop had not begun yet, its future ends: with the result or with ClosedError."""
    for _ in range(50):
        thread = LoopThread(name="test")
        futures: list[Future[int]] = [thread.submit(answer()) for _ in range(5)]
        thread.stop()
        for future in futures:
            assert isinstance(future.exception(timeout=5), ClosedError | None)


def test_a_call_that_will_not_be_cancelled_is_answered_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """A coroutine that swallows its cancellation keeps neither its caller nor the end waiting."""
    monkeypatch.setattr("ray_durable.runtime.loop_thread._END_S_MAX", 0.1)
    thread = LoopThread(name="test")

    async def stubborn() -> None:
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                continue

    future = thread.submit(stubborn())
    began_s = time.monotonic()
    thread.stop()
    assert isinstance(future.exception(timeout=1), ClosedError)
    assert time.monotonic() - began_s < 2


def test_the_last_thing_happens_once_and_after_all_others() -> None:
    """Connections are given back when nobody uses them any more; a second stop is harmless."""
    thread, order = LoopThread(name="test"), []

    async def use() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            order.append("used")

    async def give_back() -> None:
        order.append("given back")

    future = thread.submit(use())
    for _ in range(2):
        thread.stop(give_back)
    assert order == ["used", "given back"]
    assert isinstance(future.exception(timeout=1), ClosedError)
    assert thread.loop.is_closed()


def test_an_interrupted_caller_cancels_its_call() -> None:
    """After a timeout the coroutine does not go on by itself, and that is no ClosedError."""
    thread, cancelled = LoopThread(name="test"), threading.Event()

    async def wait_for_ever() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    with pytest.raises(TimeoutError):
        thread.run(wait_for_ever(), timeout_s=0.05)
    assert cancelled.wait(5)
    thread.stop()
