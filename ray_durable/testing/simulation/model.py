"""The reference model: what an orchestrator comes to in a world where nothing ever fails.

It is no engine: the function runs once, as plain asyncio code, against a context that calls activities directly, keeps
nothing and replays nothing. Whatever a hub makes of the same orchestration, through crashes and all, must be what comes
out here. Values pass through no codec, so use it with plain JSON ones; random numbers and ids differ from a hub's.
"""

from __future__ import annotations

import asyncio
import copy
import inspect
import random
import uuid
from asyncio.events import _get_running_loop, _set_running_loop
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from ray_durable import registry
from ray_durable.activity_context import ActivityInfo, activity_scope
from ray_durable.authoring import Activity, Orchestrator
from ray_durable.engine import drive_generator
from ray_durable.errors import ActivityError, SubOrchestrationError
from ray_durable.failure import Failure
from ray_durable.retry import RetryPolicy
from ray_durable.testing.simulation.scheduler import Process, Scheduler

__all__ = ["Raised", "model_outcome"]

_UNTIL_S = 10_000_000.0
_START = datetime(2025, 11, 24, 16, tzinfo=UTC)

Raised = tuple[float, str, Any]
"""An external event: after how many seconds, its name, its value."""


def model_outcome(
    function: Orchestrator[..., Any], args: Sequence[Any], events: Iterable[Raised] = (), *, instance_id: str = "one"
) -> tuple[str, Any]:
    """How an orchestration ends: ("Completed", its result) or ("Failed", type and message of its failure)."""
    scheduler = Scheduler("model")
    process = Process(scheduler, "model")  # type: ignore[abstract]
    world = _World(process)
    ending: list[tuple[str, Any]] = []

    async def run() -> None:
        for after_s, name, value in events:
            process.call_later(after_s, world.raise_event, instance_id, name, value)
        try:
            ending.append(("Completed", await world.run(function, args, instance_id)))
        except Exception as error:
            ending.append(("Failed", Failure.from_exception(error).describe()))

    process.create_task(run())
    try:
        scheduler.run(lambda: bool(ending), until_s=_UNTIL_S)
    finally:
        process.kill()
    return ending[0]


class _World:
    """All instances there are."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.waiting: dict[tuple[str, str], deque[asyncio.Future[Any]]] = defaultdict(deque)
        self.unread: dict[tuple[str, str], deque[Any]] = defaultdict(deque)

    def raise_event(self, instance_id: str, name: str, value: Any) -> None:
        """An event arrives at an instance."""
        waiting = self.waiting[instance_id, name]
        while waiting:
            future = waiting.popleft()
            if not future.done():
                future.set_result(value)
                return
        self.unread[instance_id, name].append(value)

    def take_event(self, instance_id: str, name: str) -> asyncio.Future[Any]:
        """The next event of a name."""
        future: asyncio.Future[Any] = self.process.create_future()
        unread = self.unread[instance_id, name]
        if unread:
            future.set_result(unread.popleft())
        else:
            self.waiting[instance_id, name].append(future)
        return future

    async def run(
        self, function: Orchestrator[..., Any], args: Sequence[Any], instance_id: str, parent: str | None = None
    ) -> Any:
        """Run an instance to its end, through all of its executions."""
        while True:
            args = copy.deepcopy(args)
            context = ModelContext(self, instance_id, parent, args)
            running = function.function(context, *args)
            value = await (drive_generator(running) if function.is_generator else running)
            if context.next_args is None:
                return value
            args = context.next_args


class ModelContext:
    """The context, as the reference model has it. Names and meanings are those of `OrchestrationContext`."""

    def __init__(self, world: _World, instance_id: str, parent: str | None, args: Sequence[Any]) -> None:
        self.instance_id = instance_id
        self.parent_instance_id = parent
        self.is_replaying = False
        self.version: str | None = None
        self.random = random.Random(0)
        self.next_args: Sequence[Any] | None = None
        self._world = world
        self._args = args
        self._calls = 0

    @property
    def current_utc_datetime(self) -> datetime:
        return _START + timedelta(seconds=self._world.process.time())

    def new_uuid(self) -> uuid.UUID:
        return uuid.UUID(int=self.random.getrandbits(128), version=4)

    def get_input(self) -> Any:
        return self._args[0] if len(self._args) == 1 else (tuple(self._args) or None)

    def patched(self, id: str) -> bool:
        return True

    def side_effect(self, function: Callable[[], Any], type: Any = Any, /) -> Any:
        return function()

    def set_custom_status(self, value: Any) -> None:
        """Nobody looks."""

    @property
    def will_continue_as_new(self) -> bool:
        return self.next_args is not None

    def continue_as_new(self, *args: Any) -> None:
        self.next_args = args

    def create_timer(self, fire_at: datetime | timedelta) -> asyncio.Future[None]:
        delay = fire_at if isinstance(fire_at, timedelta) else fire_at - self.current_utc_datetime
        return asyncio.ensure_future(asyncio.sleep(max(0.0, delay.total_seconds())))

    def wait_for_external_event(
        self, name: str, type: Any = Any, /, *, timeout: timedelta | None = None
    ) -> asyncio.Future[Any]:
        event = self._world.take_event(self.instance_id, name)
        if timeout is None:
            return event
        return asyncio.ensure_future(asyncio.wait_for(event, timeout.total_seconds()))

    def send_event(self, instance_id: str, name: str, value: Any = None) -> None:
        self._world.raise_event(instance_id, name, value)

    def task_all(self, tasks: Iterable[asyncio.Future[Any]]) -> asyncio.Future[list[Any]]:
        return asyncio.gather(*tasks)

    def task_any(self, tasks: Iterable[asyncio.Future[Any]]) -> asyncio.Future[asyncio.Future[Any]]:
        waiting = [asyncio.ensure_future(task) for task in tasks]

        async def first() -> asyncio.Future[Any]:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            return next(task for task in waiting if task.done())

        return asyncio.ensure_future(first())

    def call_activity(self, activity: Activity[..., Any] | str, /, *args: Any) -> asyncio.Future[Any]:
        function = _activity(activity)
        return asyncio.ensure_future(self._attempts(function, function.retry, args))

    def call_activity_with_retry(
        self, activity: Activity[..., Any] | str, retry: RetryPolicy, /, *args: Any
    ) -> asyncio.Future[Any]:
        return asyncio.ensure_future(self._attempts(_activity(activity), retry, args))

    def map(
        self,
        activity: Activity[..., Any] | str,
        items: Iterable[Any],
        *,
        retry: RetryPolicy | None = None,
        return_exceptions: bool = False,
        tolerated_failures: int = 0,
    ) -> asyncio.Future[list[Any]]:
        function = _activity(activity)

        async def run() -> list[Any]:
            calls = [self._attempts(function, retry or function.retry, (item,)) for item in items]
            outcomes: list[Any] = list(await asyncio.gather(*calls, return_exceptions=True))
            failed = [place for place, outcome in enumerate(outcomes) if isinstance(outcome, BaseException)]
            if not return_exceptions:
                if len(failed) > tolerated_failures:
                    raise outcomes[failed[tolerated_failures]]
                for place in failed:
                    outcomes[place] = None
            return outcomes

        return asyncio.ensure_future(run())

    async def map_unordered(
        self, activity: Activity[..., Any] | str, items: Iterable[Any], **options: Any
    ) -> AsyncIterator[tuple[int, Any]]:
        for place, outcome in enumerate(await self.map(activity, items, **options)):
            yield place, outcome

    def call_sub_orchestrator(
        self, orchestrator: Orchestrator[..., Any], /, *args: Any, instance_id: str | None = None
    ) -> asyncio.Future[Any]:
        return asyncio.ensure_future(self._children(orchestrator, None, instance_id, args))

    def call_sub_orchestrator_with_retry(
        self, orchestrator: Orchestrator[..., Any], retry: RetryPolicy, /, *args: Any, instance_id: str | None = None
    ) -> asyncio.Future[Any]:
        return asyncio.ensure_future(self._children(orchestrator, retry, instance_id, args))

    async def _attempts(self, function: Activity[..., Any], retry: RetryPolicy | None, args: Sequence[Any]) -> Any:
        self._calls += 1
        key = f"model:{self._calls}"

        async def attempt(number: int) -> Any:
            info = ActivityInfo(
                name=function.name,
                instance_id=self.instance_id,
                task_id=key,
                attempt=number,
                idempotency_key=key,
            )
            with activity_scope(info):
                value = _run_plainly(lambda: function.function(*args))
                return await value if inspect.isawaitable(value) else value

        def wrap(failure: Failure, number: int) -> Exception:
            return ActivityError(name=function.name, failure=failure, attempt=number)

        return await _retried(attempt, retry, wrap)

    async def _children(
        self,
        orchestrator: Orchestrator[..., Any],
        retry: RetryPolicy | None,
        instance_id: str | None,
        args: Sequence[Any],
    ) -> Any:
        async def attempt(number: int) -> Any:
            child_id = instance_id or f"{self.instance_id}:{self._calls}:{number}"
            return await self._world.run(orchestrator, args, child_id, self.instance_id)

        self._calls += 1
        return await _retried(
            attempt,
            retry,
            lambda failure, number: SubOrchestrationError(
                name=orchestrator.name, instance_id=instance_id or "", failure=failure, attempt=number
            ),
        )


def _activity(activity: Activity[..., Any] | str) -> Activity[..., Any]:
    found = registry.lookup(activity) if isinstance(activity, str) else activity
    assert isinstance(found, Activity), f"{activity!r} is no activity"
    return found


def _run_plainly(call: Callable[[], Any]) -> Any:
    """An activity runs beside no event loop."""
    outer = _get_running_loop()
    _set_running_loop(None)
    try:
        return call()
    finally:
        _set_running_loop(outer)


async def _retried(
    attempt: Callable[[int], Coroutine[Any, Any, Any]],
    retry: RetryPolicy | None,
    wrap: Callable[[Failure, int], Exception],
) -> Any:
    loop, number = asyncio.get_running_loop(), 1
    began_s = loop.time()
    while True:
        try:
            return await attempt(number)
        except (Exception, SystemExit) as error:
            failure = Failure.from_exception(error)
            elapsed_us = round((loop.time() - began_s) * 1_000_000)
            delay_us = None
            if retry is not None:
                delay_us = retry.delay_us(failure, attempt=number, elapsed_us=elapsed_us, rng=random.Random(0))
            if delay_us is None:
                raise wrap(failure, number) from None
            await asyncio.sleep(delay_us / 1_000_000)
            number += 1
