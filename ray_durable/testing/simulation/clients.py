"""A client in a simulation: the real client's code, in a process of its own that may die like any other.

`acknowledged` is what the hub confirmed, so that nothing of it may be missing in the end.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar, cast

from ray_durable.authoring import Orchestrator
from ray_durable.client import Hub
from ray_durable.command import STORE_PATIENCE_S
from ray_durable.engine import Event, ExecutionCompleted
from ray_durable.errors import (
    ClusterConnectionError,
    DurableError,
    InstanceEndedError,
    InstanceExistsError,
    InstanceNotFoundError,
    StoreUnavailableError,
    TooManyEventsError,
)
from ray_durable.runtime.explanation import Explanation
from ray_durable.runtime.hub import OpenHub
from ray_durable.storage import Pacing
from ray_durable.testing.simulation.cluster import SUPERVISOR, ask_instance
from ray_durable.testing.simulation.scheduler import Process

if TYPE_CHECKING:
    from ray_durable.runtime.actors import Connection
    from ray_durable.testing.simulation.simulation import Simulation

__all__ = ["CLIENT", "Client", "SimulatedHub"]

T = TypeVar("T")

CLIENT = "client"
"""What clients' processes are called."""

_AGAIN_S = 0.5
_LOOK_S_MAX = 30.0


class SimulatedHub(Hub):
    """A `Hub` whose coroutines run in a process of a simulation. Its blocking methods are not for use there."""

    def __init__(self, simulation: Simulation, process: Process, opened: OpenHub) -> None:
        self.address = opened.address
        self._opened = opened
        self._connection = cast("Connection", _Connection(simulation, process))
        self._clock = simulation.clock_of(process)

    def _now_us(self) -> int:
        return self._clock.now_us()

    def now_us(self) -> int:
        """The time by the clock of its process."""
        return self._now_us()

    async def repair(self) -> None:
        """What a client does that waits."""
        assert self._connection is not None
        await self._connection.repair()

    async def begin(self, function: Orchestrator[..., Any], *args: Any, instance_id: str, reuse: bool = True) -> None:
        """`start`, as a coroutine."""
        await self._start(function, args, {}, instance_id, reuses_ended=reuse, at=None)


class _Connection:
    """What `Hub` asks of its connection."""

    def __init__(self, simulation: Simulation, process: Process) -> None:
        self._simulation = simulation
        self._process = process

    async def admit(self, instance_id: str) -> None:
        self._simulation.admit(self._simulation.cluster, self._process, instance_id)

    async def ask_instance(self, instance_id: str, call: Callable[[Any], Awaitable[T]]) -> T:
        return await call(_Remote(self._simulation, self._process, instance_id))

    async def explain(self, instance_id: str) -> Explanation | None:
        return None

    async def describe(self, instance_id: str) -> Mapping[str, Any]:
        return {}

    async def repair(self) -> None:
        """Ray gives up actors; a supervisor that is gone is made again by whoever misses it."""
        if self._simulation.cluster.find(SUPERVISOR) is None:
            self._simulation.cluster.keep_supervisor()
        await asyncio.sleep(0.2)


class _Remote:
    """Calls an instance as if it were an actor: `_Remote(...).method.remote(...)`."""

    def __init__(self, simulation: Simulation, process: Process, instance_id: str) -> None:
        self._simulation = simulation
        self._process = process
        self._instance_id = instance_id

    def __getattr__(self, method: str) -> Any:
        return _RemoteMethod(
            lambda *args: ask_instance(self._simulation.cluster, self._process, self._instance_id, method, *args)
        )


class _RemoteMethod:
    def __init__(self, method: Callable[..., Any]) -> None:
        self.remote = method


class Client:
    """See the module. Every method asks until it has an answer, as people do; what was acknowledged is noted.

    A client that dies is followed by another, which does the same from the beginning; `notes` is what they leave for
    each other.
    """

    def __init__(self, simulation: Simulation, process: Process) -> None:
        self.simulation = simulation
        self.process = process
        self.opened = simulation.open_hub(process, epoch=0, pacing=Pacing(patience_s=STORE_PATIENCE_S))
        self.hub = SimulatedHub(simulation, process, self.opened)
        self.notes = simulation.notes
        self._events = 0

    async def start(self, function: Orchestrator[..., Any], *args: Any, instance_id: str = "one") -> None:
        """Start an instance that nobody else starts."""
        while True:
            try:
                await self.hub.begin(function, *args, instance_id=instance_id, reuse=False)
                break
            except InstanceExistsError:
                break  # an answer was lost, and the next try met the first
            except StoreUnavailableError:
                await asyncio.sleep(_AGAIN_S)
        self.simulation.watcher.acknowledge("start", instance_id, "")

    async def raise_event(self, name: str, value: Any = None, *, instance_id: str = "one", event_id: str = "") -> bool:
        """Raise an event; whether the instance took it, and had not ended before."""
        # Whoever comes after a client that died raises the same events.
        self._events += 1
        wanted = event_id or f"{name}.{self._events}"
        done = await self._command(lambda: self.hub.raise_event(instance_id, name, value, wanted, Any))
        if done:
            self.simulation.watcher.acknowledge("event", instance_id, wanted)
        return done

    async def command(self, method: str, *args: Any, instance_id: str = "one") -> bool:
        """Terminate, suspend, resume: whether it was done."""
        return await self._command(lambda: getattr(self.hub, method)(instance_id, *args))

    async def there(self, instance_id: str) -> None:
        """Wait until there is an instance of this id."""
        while True:
            with contextlib.suppress(StoreUnavailableError, InstanceNotFoundError):
                await self.opened.started(instance_id)
                return
            await asyncio.sleep(_AGAIN_S)

    async def attempt(self, call: Callable[[], Awaitable[object]]) -> None:
        """Ask for something until it is done, or refused."""
        while True:
            try:
                await call()
                return
            except (ClusterConnectionError, StoreUnavailableError):
                await asyncio.sleep(_AGAIN_S)
            except DurableError:
                return

    async def insist(self, call: Callable[[], Awaitable[object]]) -> None:
        """Ask for something until it is done, or has been done."""
        while True:
            try:
                await call()
                return
            except InstanceExistsError:
                return
            except (ClusterConnectionError, StoreUnavailableError):
                await asyncio.sleep(_AGAIN_S)

    async def ended(self, instance_id: str = "one") -> ExecutionCompleted:
        """Wait for the instance's end."""
        pause_s = 0.1
        while True:
            with contextlib.suppress(StoreUnavailableError):
                end = await self.opened.end(instance_id)
                if end is not None:
                    return end
            await asyncio.sleep(pause_s)
            await self.hub.repair()
            pause_s = min(_LOOK_S_MAX, 2 * pause_s)

    async def read(self, instance_id: str = "one") -> None:
        """Read the history as it is now; it must be the beginning of what it is in the end."""
        with contextlib.suppress(StoreUnavailableError):
            log, history = await self.opened.read_log(instance_id)
            self.simulation.watcher.saw(log.run, history)

    async def history(self, instance_id: str = "one") -> list[Event]:
        """The history of the newest execution."""
        return await self.opened.history(instance_id)

    async def _command(self, call: Callable[[], Awaitable[None]]) -> bool:
        while True:
            try:
                await call()
                return True
            except InstanceEndedError:
                return False
            except (ClusterConnectionError, StoreUnavailableError, TooManyEventsError):
                await asyncio.sleep(_AGAIN_S)
