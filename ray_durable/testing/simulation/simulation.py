"""One run of a scenario: a hub with its processes, clients, a store, weather and mischief, from one seed.

The engine, the log, the instances, the dispatcher, the supervisor, the lease, the client's code and the worker's code
are those of production. Processes are event loops of the scheduler, clusters are collections of processes, and time is
virtual. What chance decides, the seed decides.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from ray_durable.engine import RuntimeStatus
from ray_durable.runtime.address import HubAddress
from ray_durable.runtime.hub import OpenHub
from ray_durable.runtime.lease import Lease
from ray_durable.runtime.room import RoomMax
from ray_durable.storage import OBJECT_BYTES_MAX, Pacing, claim_hub_epoch, create_hub, current_hub_epoch, write_lease
from ray_durable.testing.simulation.chance import seeded
from ray_durable.testing.simulation.clients import CLIENT, Client
from ray_durable.testing.simulation.cluster import DISPATCHER, SUPERVISOR, Cluster, ProcessClock, hosted_by
from ray_durable.testing.simulation.mischief import Mischief
from ray_durable.testing.simulation.network import Network
from ray_durable.testing.simulation.scheduler import EndlessError, Process, Scheduler
from ray_durable.testing.simulation.store import URL, SimulatedStore, StorePort
from ray_durable.testing.simulation.watcher import Violation, Watcher
from ray_durable.testing.simulation.weather import Weather
from ray_durable.testing.simulation.workers import Ledger
from ray_durable.testing.workers import finish, through_process_boundary

__all__ = ["ClientCode", "Simulation"]

T = TypeVar("T")

ClientCode = Callable[[Client], Coroutine[Any, Any, None]]
"""What a client does."""

START_US = 1_764_000_000_000_000
_TRACE_SHOWN = 80
_TAKEOVER_S = 2.0
_NEXT_CLIENT_S = 1.0


class Simulation:
    """See the module. Make it, `run` it once, and look at it.

    `mischief` is called with the number of each step of the run (an operation of the store, or a message that arrives)
    and the process that takes it, just before it has an effect. All must be over by `until_s`, and within
    `steps_max` steps. A dispatcher looks as often as a supervisor does a round, and trusts a look for `trust_s`, three
    times as long. `idle_s` is how long an instance waits before its process lets it go (None: for ever); more than
    `room_max` of events that nobody waits for are refused.
    """

    def __init__(
        self,
        seed: int | str,
        clients: Iterable[ClientCode],
        *,
        weather: Weather | None = None,
        mischief: Mischief | None = None,
        grace_s: float = 24 * 3_600,
        supervisor_interval_s: float = 2.0,
        idle_s: float | None = None,
        room_max: RoomMax | None = None,
        until_s: float = 30_000.0,
        steps_max: int = 150_000,
    ) -> None:
        self.seed = seed
        self.weather = weather or Weather()
        self.scheduler = Scheduler(seed)
        self.store = SimulatedStore(self.scheduler, self.weather)
        self.network = Network(self.scheduler, self.weather)
        self.ledger = Ledger()
        self.watcher = Watcher(self.latest_us, self.ledger)
        self.processes: list[Process] = []
        self.steps = 0
        self.notes: set[str] = set()
        self.errors: list[BaseException] = []
        self.supervisor_interval_s = supervisor_interval_s
        self.trust_s = 3 * supervisor_interval_s
        self.mischief = mischief or Mischief()
        self.mischief.simulation = self
        self.index_looked_at_s = 0.0
        self._grace_s = grace_s
        self.idle_s = idle_s
        self.room_max = room_max
        self._until_s = until_s
        self._steps_max = steps_max
        self._clients = list(clients)
        self._working = 0
        self._numbers = 0
        self.store.on_create = self.watcher.created
        self.store.on_put = self.watcher.put
        self.store.on_delete = self.watcher.deleted
        self.store.before = self._step
        self.network.before = lambda process, what: self._step(process, "message", what)
        self.cluster: Cluster
        self.clusters: list[Cluster] = []

    # The world's parts

    def new_process(self, name: str) -> Process:
        """A new process. Its clock may be wrong."""
        process = Process(self.scheduler, f"{name}#{len(self.processes)}", skew_us=self.mischief.skew_us())  # type: ignore[abstract]
        process.on_fall.append(lambda: self.store.fell(process))
        process.on_death.append(lambda: self.store.left(process))
        self.processes.append(process)
        return process

    def clock_of(self, process: Process) -> ProcessClock:
        """The clock of a process."""
        return ProcessClock(process, START_US)

    def latest_us(self, process: Process) -> int:
        """The latest time that the clock of a process ever showed."""
        return max(process.latest_us, START_US + process.skew_us + round(self.scheduler.now_s * 1_000_000))

    def open_hub(self, process: Process, *, epoch: int, pacing: Pacing | None = None) -> OpenHub:
        """The hub, as a process sees it."""
        return self._hub(StorePort(self.store, process), epoch, pacing)

    def open_hub_of_workers(self) -> OpenHub:
        """The hub, as workers see it, for whom no operation takes time."""
        return self._hub(_InstantStore(self.store, self.processes[0]), 0)

    def _hub(self, store: Any, epoch: int, pacing: Pacing | None = None) -> OpenHub:
        hub = OpenHub(HubAddress(root=URL, hub="hub"), store, epoch=epoch, pacing=pacing)
        hub._settings = {"grace_s": self._grace_s}
        return hub

    def send(self, value: T) -> T:
        """A copy, as another process would get it."""
        return through_process_boundary(value)

    def next_number(self) -> int:
        """A number that nothing else has."""
        self._numbers += 1
        return self._numbers

    def admit(self, cluster: Cluster, caller: Process, instance_id: str) -> None:
        """Tell the supervisor of an instance; nobody waits for that."""
        supervisor = cluster.find(SUPERVISOR)
        if supervisor is not None:
            process = supervisor.process
            answer = self.network.call(
                caller, process, lambda: hosted_by(process, "admit", instance_id), f"admit {instance_id}"
            )
            answer.add_done_callback(lambda done: done.cancelled() or done.exception())  # type: ignore[attr-defined]

    def gives_up_actor(self, name: str) -> bool:
        """Whether Ray does not make an actor again that died."""
        return self.mischief.gives_up_actor()

    def report_error(self, error: BaseException) -> None:
        """A process met what it should never meet."""
        self.errors.append(error)

    # The run

    def run(self) -> None:
        """Run to the end, and check it.

        Raises:
            Violation, EndlessError: safety or liveness is broken; the text ends with the last steps.
        """
        with self._surroundings():
            try:
                self._begin()
                self.scheduler.run(self._is_over, until_s=self._until_s)
                self.store.flush_late()
                self._check()
            except (Violation, EndlessError) as broken:
                raise type(broken)(f"{broken}\n{self.describe()}") from None
            finally:
                self._close()

    def _close(self) -> None:
        for cluster in self.clusters:
            cluster.is_alive = False
        for process in self.processes:
            process.on_death.clear()
            process.leave()

    @property
    def now_us(self) -> int:
        """The time, by a clock that is right."""
        return START_US + round(self.scheduler.now_s * 1_000_000)

    def outcome(self, instance_id: str = "one") -> tuple[str, Any]:
        """How an instance ended: its status, and its result or why it has none."""
        hub = self.open_hub_of_workers()
        end = finish(hub.end(instance_id))
        if end is None:
            return "Running", None
        if end.result is not None:
            return str(end.status), hub.codec.decode(end.result, Any, where=f"result of {instance_id}")
        failure = end.failure
        if failure is None:
            return str(end.status), None
        return str(end.status), failure.message if end.status is RuntimeStatus.TERMINATED else failure.describe()

    def describe(self) -> str:
        """The last steps, for people."""
        shown = self.scheduler.trace[-_TRACE_SHOWN:]
        return "\n".join(f"  {time_s:10.3f} {what}" for time_s, what in shown)

    def digest(self) -> str:
        """What tells this run from any other."""
        return self.scheduler.digest()

    @contextmanager
    def _surroundings(self) -> Any:
        logger = logging.getLogger("ray_durable")
        level = logger.level
        logger.setLevel(logging.CRITICAL + 1)
        try:
            with seeded(self.seed, now_us=self._now_us, monotonic_s=lambda: self.scheduler.now_s):
                yield
        finally:
            logger.setLevel(level)

    def _now_us(self) -> int:
        running = self.scheduler.running
        skew_us = 0 if running is None else running.skew_us
        return START_US + skew_us + round(self.scheduler.now_s * 1_000_000)

    def _begin(self) -> None:
        operator = self.new_process("operator")
        store = _InstantStore(self.store, operator)
        keys = self._hub(store, 0).keys
        finish(create_hub(store, keys, {"grace_s": self._grace_s}))
        self.use_new_cluster()
        for code in self._clients:
            self._working += 1
            self._start_client(code)

    def _start_client(self, code: ClientCode) -> None:
        process = self.new_process(CLIENT)

        async def work() -> None:
            await code(Client(self, process))
            self._working -= 1
            # Nobody misses it.
            process.on_death.clear()
            self.store.left(process)

        def ended(task: Any) -> None:
            if not task.cancelled() and task.exception() is not None:
                self.errors.append(task.exception())

        # A client that died is missed by nobody, but somebody else may come and ask for the same.
        process.on_death.append(lambda: self.scheduler.after(_NEXT_CLIENT_S, lambda: self._start_client(code)))
        task = process.create_task(work())
        task.add_done_callback(ended)

    def use_new_cluster(self) -> None:
        """What `connect` does: claim the next hub epoch, and make dispatcher and supervisor."""
        store = _InstantStore(self.store, self.processes[0])
        keys = self._hub(store, 0).keys
        epoch = 1 + finish(current_hub_epoch(store, keys))
        lease = Lease(epoch=epoch, cluster=f"cluster-{epoch}", host=f"cluster-{epoch}", boot="", pid=0)
        assert finish(claim_hub_epoch(store, keys, epoch, lease.to_json())), "nobody else claims at this moment"
        finish(write_lease(store, keys, lease.to_json()))
        self.scheduler.note(f"cluster {epoch} takes the hub over")
        self.cluster = Cluster(self, epoch)
        self.clusters.append(self.cluster)

    def replace_cluster(self) -> None:
        """Another cluster takes the hub over, whatever became of the last one."""
        self.scheduler.after(_TAKEOVER_S, self.use_new_cluster)

    def _step(self, process: Process, operation: str, key: str) -> Any:
        self.steps += 1
        return self.mischief.step(self.steps, process, operation, key)

    def _is_over(self) -> bool:
        if self.watcher.broken:
            raise self.watcher.broken[0]
        if self.steps > self._steps_max:
            raise EndlessError(f"it is not over after {self.steps} steps")
        if self.errors:
            raise Violation(f"a process met what it should never meet: {self.errors[0]!r}") from self.errors[0]
        return (
            self._working == 0
            and not self.store.in_flight
            and self.store.is_empty("hub/index/open/")
            and not self.store.is_index_changing()
            and self._is_index_repaired()
            and self.mischief.is_over()
        )

    def _is_index_repaired(self) -> bool:
        """Whether the supervisor has looked at the index since it was last disturbed."""
        disturbed_s = self.store.index_disturbed_s
        return disturbed_s is None or self.index_looked_at_s > disturbed_s

    def _check(self) -> None:
        for process in self.processes:
            if process.errors:
                raise Violation(f"{process.name}: {process.errors[0]!r}") from process.errors[0]
        dispatchers = [process for process in self.processes if process.name.startswith(DISPATCHER)]
        self.watcher.check_end(kept_dispatcher=len(dispatchers) == 1)


class _InstantStore:
    """The store for whom no operation takes time."""

    def __init__(self, store: SimulatedStore, process: Process) -> None:
        self.url = URL
        self.private_path: Path | None = None
        self._store = store
        self._process = process

    async def put_if_absent(self, key: str, data: bytes) -> bool:
        return bool(self._store.apply(self._process, "create", key, data))

    async def put(self, key: str, data: bytes) -> None:
        self._store.apply(self._process, "put", key, data)

    async def get(self, key: str, bytes_max: int = OBJECT_BYTES_MAX) -> bytes | None:
        found: bytes | None = self._store.apply(self._process, "get", key, b"")
        return found

    async def list_folder(self, folder: str) -> list[str]:
        names: list[str] = self._store.apply(self._process, "list", folder, b"")
        return names

    async def list_tree(self, folder: str) -> list[str]:
        names: list[str] = self._store.apply(self._process, "tree", folder, b"")
        return names

    async def delete_many(self, keys: list[str]) -> None:
        self._store.apply(self._process, "delete", "\n".join(keys), b"")

    async def close(self) -> None:
        return None
