"""What the engine's tests share: payloads, a small context for orchestrators, and a way to feed an execution."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

from ray_durable.engine import (
    Event,
    EventRaised,
    Execution,
    ExecutionResumed,
    ExecutionStarted,
    ExecutionSuspended,
    ExecutionTerminated,
    SubOrchestrationInstanceCompleted,
    SubOrchestrationInstanceFailed,
    TaskCompleted,
    TaskFailed,
    TimerFired,
)
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

    def child(
        self, name: str, value: object = None, instance: str | None = None, retry: RetryPolicy | None = None
    ) -> asyncio.Future[Any]:
        return self.execution.schedule_child(
            name=name, input=encode(value), decode=decode, instance=instance, retry=retry
        )

    def send(self, instance: str, name: str, value: object = None) -> None:
        self.execution.send_event(instance, name, encode(value))

    def continue_as_new(self, value: object = None) -> None:
        self.execution.continue_as_new(encode(value))

    def side_effect(self, make: Callable[[], object]) -> Any:
        return decode(self.execution.side_effect(lambda: encode(make())))

    def patched(self, id: str) -> bool:
        return self.execution.patched(id)


def main_of(orchestrator: Orchestrator) -> Main:
    """An orchestrator of values as the engine's main."""

    async def main(execution: Execution, started: ExecutionStarted) -> Payload:
        execution.function = orchestrator
        return encode(await orchestrator(Context(execution), decode(started.input)))

    return main


def started(value: object = None, run: str = "run-1", **fields: Any) -> ExecutionStarted:
    return ExecutionStarted(
        time_us=T0_US,
        instance_id="instance",
        run=run,
        execution=1,
        name="test",
        input=encode(value),
        request_id="request",
        **fields,
    )


def completed(task: int, value: object = None, seconds: float = 0) -> TaskCompleted:
    return TaskCompleted(task=task, result=encode(value), time_us=at(seconds))


def failed(task: int, message: str = "boom", seconds: float = 0, **fields: Any) -> TaskFailed:
    failure = Failure(type_name="ValueError", message=message, **fields)
    return TaskFailed(task=task, failure=failure, time_us=at(seconds))


def raised(name: str, value: object = None, event_id: str = "", seconds: float = 1) -> EventRaised:
    return EventRaised(name=name, value=encode(value), event_id=event_id, time_us=at(seconds))


def child_completed(task: int, value: object = None, seconds: float = 0) -> SubOrchestrationInstanceCompleted:
    return SubOrchestrationInstanceCompleted(task=task, result=encode(value), time_us=at(seconds))


def child_failed(task: int, message: str = "boom", seconds: float = 0, **fields: Any) -> SubOrchestrationInstanceFailed:
    failure = Failure(type_name="ValueError", message=message, **fields)
    return SubOrchestrationInstanceFailed(task=task, failure=failure, time_us=at(seconds))


def suspended(seconds: float = 0, request_id: str = "s") -> ExecutionSuspended:
    return ExecutionSuspended(reason="look", request_id=request_id, time_us=at(seconds))


def resumed(seconds: float = 0, request_id: str = "r") -> ExecutionResumed:
    return ExecutionResumed(reason="go", request_id=request_id, time_us=at(seconds))


def terminated(seconds: float = 0, **fields: Any) -> ExecutionTerminated:
    return ExecutionTerminated(reason="enough", request_id="t", time_us=at(seconds), **fields)


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


def replay_from_every_prefix(main: Main, inputs: Sequence[Event]) -> list[Event]:
    """Run the inputs live; replay each beginning of the history and live on from it. Returns the history.

    A log is cut only behind a batch of new events: what a batch holds was appended together.
    """
    execution = Execution(main)
    batches = [execution.apply([event]) for event in inputs]
    history = [event for batch in batches for event in batch]
    for count in range(1, len(batches) + 1):
        before = [event for batch in batches[:count] for event in batch]
        again = Execution(main)
        assert again.apply(before) == [], f"nothing is new after {count} batches"
        lived = [event for later in inputs[count:] for event in again.apply([later])]
        assert before + lived == history
        assert (again.status, again.result, again.position) == (execution.status, execution.result, execution.position)
        assert again.unread_events == execution.unread_events
        assert again.counts == execution.counts
        again.close()
    execution.close()
    return history
