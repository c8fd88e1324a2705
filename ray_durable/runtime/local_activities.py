"""Activities with local=True: run in the orchestrator's own process, between turns. No task, no dispatcher.

They share the thread of the turns, so they should be short. Those scheduled together run one after the other; after a
while their outcomes are recorded together, and the rest goes on.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Iterable

from ray_durable.activity_context import ActivityInfo, activity_scope
from ray_durable.context import Orchestration
from ray_durable.engine import Event, ExecutionStarted, TaskCompleted, TaskFailed, TaskScheduled
from ray_durable.errors import DurableError
from ray_durable.failure import Failure
from ray_durable.runtime.hub import OpenHub

__all__ = ["LocalActivities"]

_BUDGET_S = 0.05


class LocalActivities:
    """The local activities of one execution that wait to be run."""

    def __init__(self, orchestration: Orchestration, started: ExecutionStarted, hub: OpenHub) -> None:
        self._orchestration = orchestration
        self._started = started
        self._hub = hub
        self._waiting: deque[TaskScheduled] = deque()

    @property
    def is_waiting(self) -> bool:
        """Whether any is to be run."""
        return bool(self._waiting)

    def add(self, tasks: Iterable[TaskScheduled]) -> None:
        """Let these wait; their schedule is durable."""
        self._waiting.extend(tasks)

    def drop(self, tasks: Iterable[int]) -> None:
        """Nobody waits for these any more."""
        unwanted = set(tasks)
        if unwanted and self._waiting:
            self._waiting = deque(task for task in self._waiting if task.number not in unwanted)

    async def run_some(self) -> list[Event]:
        """Run waiting ones, at least one, until a time budget is spent; their outcomes."""
        deadline_s = time.perf_counter() + _BUDGET_S
        outcomes: list[Event] = []
        while self._waiting and (not outcomes or time.perf_counter() < deadline_s):
            outcomes.append(await self._run(self._waiting.popleft()))
        return outcomes

    async def _run(self, task: TaskScheduled) -> Event:
        function = self._orchestration.callees.activity(task.name)
        codec, origin = self._orchestration.codec, task.retry_of or task.number
        info = ActivityInfo(
            name=function.name,
            instance_id=self._started.instance_id,
            task_id=str(origin),
            attempt=task.attempt,
            idempotency_key=f"{self._started.run}:{origin}",
        )
        try:
            args, kwargs = codec.decode_call(
                function.calls, task.input, where=f"arguments of activity {function.name!r}"
            )
            with activity_scope(info):
                value = function.function(*args, **kwargs)
                if function.is_async:
                    value = await value
            result = codec.encode(value, function.result_annotation, where=f"result of activity {function.name!r}")
        except BaseException as error:
            # Also what would end the process: it is not the activity's to end.
            if _is_of_the_owner(error):
                raise
            failure = Failure.from_exception(error, non_retryable=isinstance(error, DurableError))
            return TaskFailed(task=task.number, failure=failure, attempt=task.attempt)
        return TaskCompleted(task=task.number, result=result, attempt=task.attempt)


def _is_of_the_owner(error: BaseException) -> bool:
    """Whether it is the turn that is cancelled or discarded, and not something of the activity's own."""
    if isinstance(error, GeneratorExit):
        return True
    owner = asyncio.current_task() if isinstance(error, asyncio.CancelledError) else None
    return owner is not None and owner.cancelling() > 0
