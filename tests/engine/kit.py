"""What the engine's tests share: payloads, a small context for orchestrators, and a way to feed an execution."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import replace
from datetime import timedelta
from typing import Any

from ray_durable.engine import Event, Execution, ExecutionStarted, TaskCompleted, TaskFailed, TimerFired
from ray_durable.failure import Failure
from ray_durable.payload import Payload
from ray_durable.retry import RetryPolicy

T0_US = 1_700_000_000_000_000
SECOND_US = 1_000_000

Orchestrator = Callable[["Context", Any], Coroutine[Any, Any, Any]]
Main = Callable[[Execution, ExecutionStarted], Coroutine[Any, Any, Payload]]


def encode(value: object) -> Payload:
    return Payload.of("json", json.dumps(value).encode())


def decode(payload: Payload) -> Any:
    return json.loads(payload.bytes)


def retries(attempts: int, first_s: float = 1, **fields: Any) -> RetryPolicy:
    return RetryPolicy(max_attempts=attempts, first_retry_interval=timedelta(seconds=first_s), **fields)


class Context:
    """Values in and out, over an execution's payloads."""

    def __init__(self, execution: Execution) -> None:
        self.execution = execution

    def call(self, name: str, value: object = None, retry: RetryPolicy | None = None) -> asyncio.Future[Any]:
        return self.execution.schedule_task(name=name, input=encode(value), decode=decode, retry=retry, target=name)

    def map(self, name: str, items: list[Any], **options: Any) -> asyncio.Future[list[Any]]:
        return self.execution.schedule_map(
            name=name, items=encode(items), count=len(items), decode_results=decode, target=name, **options
        )

    def timer(self, seconds: float) -> asyncio.Future[None]:
        return self.execution.create_timer(self.execution.now_us + round(seconds * SECOND_US))

    def event(self, name: str) -> asyncio.Future[Any]:
        return self.execution.wait_for_external_event(name, decode)

    def status(self, value: object) -> None:
        self.execution.set_custom_status(encode(value))


def main_of(orchestrator: Orchestrator) -> Main:
    """An orchestrator of values as the engine's main."""

    async def main(execution: Execution, started: ExecutionStarted) -> Payload:
        execution.function = orchestrator
        return encode(await orchestrator(Context(execution), decode(started.input)))

    return main


def started(value: object = None, run: str = "run-1") -> ExecutionStarted:
    return ExecutionStarted(
        time_us=T0_US,
        instance_id="instance",
        run=run,
        execution=1,
        name="test",
        input=encode(value),
        request_id="request",
    )


def completed(task: int, value: object = None, seconds: float = 0) -> TaskCompleted:
    return TaskCompleted(task=task, result=encode(value), time_us=at(seconds))


def failed(task: int, message: str = "boom", seconds: float = 0, **fields: Any) -> TaskFailed:
    failure = Failure(type_name="ValueError", message=message, **fields)
    return TaskFailed(task=task, failure=failure, time_us=at(seconds))


def fired(timer: int, seconds: float) -> TimerFired:
    return TimerFired(timer=timer, time_us=at(seconds))


def at(seconds: float) -> int:
    return T0_US + round(seconds * SECOND_US)


def begin(orchestrator: Orchestrator, value: object = None) -> tuple[Execution, list[Event]]:
    """A started execution, and what its start caused."""
    execution = Execution(main_of(orchestrator))
    return execution, execution.apply([started(value)])[1:]


def bare(events: Iterable[Event]) -> list[Event]:
    """The events without time, to be compared with literals that give only what matters."""
    return [replace(event, time_us=0) for event in events]
