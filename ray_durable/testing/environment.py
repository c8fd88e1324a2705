"""An environment for tests of orchestrations: in this process, without Ray and disk, on a time that never waits.

The parts are those of production: the engine, the instances with their logs, the dispatcher, the worker's code, the
codec. Only the store is in memory, the processes are objects, and the clock is virtual: it stands still until the test
lets time pass (`advance`, `result`), and then it skips from one timer to the next.

Activities run on a thread of their own, one slice after the other, and take no virtual time. After each call of the
environment or of a handle, everything has happened that can happen without time passing.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, ParamSpec, TypeVar, overload

from ray_durable import registry
from ray_durable.authoring import Activity, Orchestrator
from ray_durable.client import Hub
from ray_durable.codec import Trust
from ray_durable.engine import RuntimeStatus
from ray_durable.errors import ConfigurationError
from ray_durable.handle import Handle
from ray_durable.runtime.status import InstanceStatus
from ray_durable.testing.doubles import ActivityCall
from ray_durable.testing.in_process import InProcessHub, VirtualThread
from ray_durable.testing.stage import Crash, Operation, Stage

__all__ = ["START_TIME", "Environment"]

P = ParamSpec("P")
R = TypeVar("R")

START_TIME = datetime(2025, 1, 1, tzinfo=UTC)
"""When virtual time begins, unless a test says otherwise."""


class Environment:
    """See the module. A context manager; usable from plain tests and, `await handle` included, from asynchronous ones.

    `start_time` is when virtual time begins (aware; default: the beginning of 2025). All random numbers of
    orchestrators come from `seed`, so that a test does the same every time. `allows_pickle` says whether values and
    arguments that only pickle can hold may be used: as on a private local root (True) or on a shared store (False).
    """

    def __init__(self, *, start_time: datetime = START_TIME, seed: int = 0, allows_pickle: bool = True) -> None:
        if start_time.utcoffset() is None:
            raise ConfigurationError(
                f"start_time is {start_time!r}, which has no time zone: give an aware datetime, such as "
                "datetime(2025, 1, 1, tzinfo=timezone.utc)"
            )
        trust = Trust.PRIVATE_LOCAL_ROOT if allows_pickle else Trust.NONE
        self._thread = VirtualThread()
        self._stage = self._thread.run(_make(lambda: Stage(start=start_time, seed=seed, trust=trust)))
        self._hub = InProcessHub(self._stage, self._thread)
        self._started: Counter[str] = Counter()

    @property
    def hub(self) -> Hub:
        """The environment as a hub, for code that takes one."""
        return self._hub

    @property
    def now(self) -> datetime:
        """The virtual time, in UTC."""
        return self._stage.now()

    @overload
    def start(self, orchestrator: Orchestrator[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Handle[R]: ...
    # As for `Hub.start`: with an id or a time, only the result is typed.
    @overload
    def start(
        self,
        orchestrator: Orchestrator[..., R],
        /,
        *args: Any,
        instance_id: str | None,
        at: datetime | timedelta | None = None,
        **kwargs: Any,
    ) -> Handle[R]: ...
    @overload
    def start(
        self, orchestrator: Orchestrator[..., R], /, *args: Any, at: datetime | timedelta | None, **kwargs: Any
    ) -> Handle[R]: ...
    @overload
    def start(
        self,
        orchestrator: str,
        /,
        *args: Any,
        instance_id: str | None = None,
        at: datetime | timedelta | None = None,
        **kwargs: Any,
    ) -> Handle[Any]: ...
    def start(  # type: ignore[misc]  # No orchestrator has a parameter `instance_id`; the decorator refuses it.
        self, orchestrator: Any, /, *args: Any, instance_id: str | None = None, **kwargs: Any
    ) -> Handle[Any]:
        """Start an instance and let it run until it waits. Arguments, options and errors are those of `Hub.start`.

        Without an id, instances are called by their orchestrator and a number: "review-1".
        """
        if instance_id is None:
            name = str(getattr(orchestrator, "name", orchestrator))
            self._started[name] += 1
            instance_id = f"{name}-{self._started[name]}"
        return self._hub.start(orchestrator, *args, instance_id=instance_id, **kwargs)

    def get(self, instance_id: str) -> Handle[Any]:
        """A handle on the instance with this id, for example on one that was called by another."""
        return self._hub.get(instance_id)

    def instances(
        self, *, status: RuntimeStatus | str | Iterable[RuntimeStatus | str] | None = None, prefix: str = ""
    ) -> list[InstanceStatus]:
        """All instances, oldest first; see `HubReader.instances`."""
        return self._hub.instances(status=status, prefix=prefix)

    def advance(self, by: timedelta) -> None:
        """Let so much time pass: whatever is due by then happens, in order."""
        if by < timedelta(0):
            raise ConfigurationError(f"time cannot go back by {-by}: advance by zero or more")
        self._hub.refuse_in_activity("Letting time pass")
        self._run(self._advance(by.total_seconds()))

    def replace(self, activity: Activity[..., Any] | str, replacement: Callable[..., Any]) -> None:
        """Let `replacement` run instead of an activity, from now on: a function, sync or async, or a mock.

        It takes the activity's arguments, and its result passes through the codec by the activity's type. What it
        raises is the activity's error, and retried as such.
        """
        self._stage.doubles.replace(_name(activity), replacement)

    def restore(self, activity: Activity[..., Any] | str) -> None:
        """Let the activity itself run again."""
        self._stage.doubles.replace(_name(activity), None)

    def hold(self, activity: Activity[..., Any] | str) -> None:
        """Let calls of an activity wait on their workers, until `release`. Those that run already end."""
        self._stage.stage_workers.held_names.add(_name(activity))

    def release(self, activity: Activity[..., Any] | str) -> None:
        """Let the calls of an activity that wait, and those to come, run."""
        name = _name(activity)
        self._do(lambda: self._stage.stage_workers.release(name))

    def calls(self, activity: Activity[..., Any] | str | None = None) -> list[ActivityCall]:
        """The attempts of an activity (default: of all) that ran, in order, replaced or not."""
        name = None if activity is None else _name(activity)
        return [call for call in self._stage.doubles.calls if name is None or call.name == name]

    def lose_worker(self, activity: Activity[..., Any] | str, times: int = 1) -> None:
        """Let the next `times` workers that take calls of an activity die with them, before the calls run."""
        self._stage.stage_workers.losses[_name(activity)] = times

    def lose_dispatcher(self) -> None:
        """Let the dispatcher die, and with it what runs for it; there is a new one at once.

        Activities that were in flight run again.
        """
        self._do(self._stage.begin_new_dispatcher)

    def lose_owner(self, instance: Handle[Any] | str) -> None:
        """Let the process of an instance die; another one takes over from its log."""
        instance_id = instance.instance_id if isinstance(instance, Handle) else instance
        self._run(self._stage.lose_owner(instance_id))

    def crash_before(self, operation: int) -> None:
        """Let the owner die that does the `operation`-th operation on the store, of all owners' from now on (1: the
        next), before it has an effect. Another owner takes over."""
        self._crash(operation, "before")

    def crash_after(self, operation: int) -> None:
        """As `crash_before`, but the operation takes effect, and its owner does not live to hear of it."""
        self._crash(operation, "after")

    @property
    def stage(self) -> Stage:
        """What the environment is made of; for tools beside it."""
        return self._stage

    @property
    def operations(self) -> Sequence[Operation]:
        """The operations that owners have done on the store so far: the points at which one may crash."""
        return tuple(self._stage.operations)

    def close(self) -> None:
        """End everything. Calls that wait raise ClosedError."""
        self._hub.close()

    def __enter__(self) -> Environment:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Environment at {self.now:%Y-%m-%d %H:%M:%S} UTC>"

    def _run(self, coroutine: Coroutine[Any, Any, None]) -> None:
        self._hub.run(coroutine)

    def _do(self, action: Callable[[], object]) -> None:
        self._hub.run(_make(action))

    async def _advance(self, seconds: float) -> None:
        await self._stage.loop.quiet()
        await asyncio.sleep(seconds)

    def _crash(self, operation: int, moment: Literal["before", "after"]) -> None:
        if operation < 1:
            raise ConfigurationError(f"operation is {operation}: operations are counted from 1")
        self._stage.crash = Crash(operation=len(self._stage.operations) + operation, moment=moment)


async def _make(make: Callable[[], R]) -> R:
    return make()


def _name(activity: Activity[..., Any] | str) -> str:
    found = registry.lookup(activity) if isinstance(activity, str) else activity
    if isinstance(found, Activity):
        return found.name
    raise ConfigurationError(f"{found!r} is no activity: give a function decorated with @activity, or its name")
