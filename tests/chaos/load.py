"""The load under which processes are killed: instances of every kind, started, told events and awaited as a user does.

Every instance has a result that is known beforehand. What the cluster acknowledged is noted, to be looked for in the
logs at the end.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import ray_durable as durable
from tests.chaos import flows
from tests.chaos.cluster import Cluster, HostError, HostLostError

__all__ = ["Job", "Load", "Violation", "random_job"]

_LOOK_S = 0.5
_REST_MS = 9_000
_AGAIN_S = 0.2

_PASSING = frozenset({"ClusterConnectionError", "HubHeldError", "FencedError", "StoreUnavailableError"})
"""Errors that tell a client to ask again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Violation:
    """Something that must not be: what it is, of which instance, and what is needed to look further."""

    what: str
    instance: str
    details: str


@dataclass(slots=True, kw_only=True)
class Job:
    """One instance of the load, with the result that it must have."""

    instance: str
    name: str
    args: list[Any]
    result: Any
    events: int = 0
    acknowledged: list[str] = field(default_factory=list)
    """Ids of the events that were acknowledged."""
    is_started: bool = False
    """Whether its start was acknowledged."""


def random_job(number: int, prefix: str, size: float) -> Job:
    """An instance of a random kind, the same for the same arguments: left in peace, ten to thirty seconds of work times
    `size`."""
    kinds, rng = list(_KINDS), random.Random(f"{prefix}-{number}")
    # Each kind once in as many instances as there are kinds.
    random.Random(f"{prefix} round {number // len(kinds)}").shuffle(kinds)
    kind = kinds[number % len(kinds)]
    name, args, result, events = _KINDS[kind](rng, size)
    return Job(instance=f"{prefix}-{number:04}-{kind}", name=name, args=args, result=result, events=events)


def _of(function: durable.Orchestrator[..., Any], args: list[Any], result: Any, events: int = 0) -> Any:
    return function.name, args, result, events


def _chain(rng: random.Random, size: float) -> Any:
    steps, last_ms = int(size * rng.randint(40, 120)), rng.choice([20, 100, 200])
    return _of(flows.chain, [steps, last_ms], steps)


def _local_chain(rng: random.Random, size: float) -> Any:
    steps = int(size * 100)
    return _of(flows.local_chain, [steps], steps)


def _gathered(rng: random.Random, size: float) -> Any:
    count, last_ms = rng.choice([(8, 4_000), (60, 300), (200, 50)])
    return _of(flows.gathered, [count, int(size * last_ms)], count * (count + 1) // 2)


def _mapped(rng: random.Random, size: float) -> Any:
    count = int(size * rng.randint(200, 800))
    return _of(flows.mapped, [count], count * (count + 1) // 2)


def _naps(rng: random.Random, size: float) -> Any:
    return _of(flows.naps, [8, int(size * 1_500)], 8)


def _rests(rng: random.Random, size: float) -> Any:
    """Waits longer than instances without anything to do have a process."""
    return _of(flows.naps, [1, _REST_MS], 1)


def _collects(rng: random.Random, size: float) -> Any:
    count = int(size * rng.randint(10, 25))
    return _of(flows.collects, [count], list(range(count)), count)


def _collects_in_rounds(rng: random.Random, size: float) -> Any:
    count = int(size * rng.randint(8, 16))
    return _of(flows.collects_in_rounds, [[], count], list(range(count)), count)


def _family(rng: random.Random, size: float) -> Any:
    children, steps = rng.randint(1, 3), int(size * rng.randint(10, 30))
    return _of(flows.family, [children, steps, 150], children * steps)


def _persists(rng: random.Random, size: float) -> Any:
    count = rng.randint(10, 30)
    return _of(flows.persists, [count], 3 * count)


def _rounds(rng: random.Random, size: float) -> Any:
    count = int(size * 20)
    return _of(flows.rounds, [0, count], 2 * count)


_KINDS: dict[str, Callable[[random.Random, float], Any]] = {
    "chain": _chain,
    "local": _local_chain,
    "gathered": _gathered,
    "mapped": _mapped,
    "naps": _naps,
    "rests": _rests,
    "collects": _collects,
    "collecting-rounds": _collects_in_rounds,
    "family": _family,
    "persists": _persists,
    "rounds": _rounds,
}


class Load:
    """Keeps `live_max` instances going, until `stop`; `cluster` is the one that has the hub now, or will have it."""

    def __init__(
        self, reader: durable.HubReader, *, prefix: str, live_max: int, total: int | None, size: float
    ) -> None:
        self.jobs: list[Job] = []
        self.violations: list[Violation] = []
        self.troubles: Counter[str] = Counter()
        """How often clients were told to ask again, by the reason."""
        self._reader = reader
        self._prefix = prefix
        self._total = total
        self._size = size
        self._live = asyncio.Semaphore(live_max)
        self._playing: set[asyncio.Task[None]] = set()
        self._active: dict[str, Job] = {}
        self._cluster: Cluster
        self._is_up = asyncio.Event()

    def use(self, cluster: Cluster) -> None:
        """This cluster has the hub."""
        self._cluster = cluster
        self._is_up.set()

    def pause(self) -> None:
        """Nobody has the hub."""
        self._is_up.clear()

    @property
    def active(self) -> list[str]:
        """The ids of the instances that are under way."""
        return list(self._active)

    async def run(self) -> None:
        """Start one instance after the other, until cancelled, or until there were `total` of them."""
        while self._total is None or len(self.jobs) < self._total:
            await self._live.acquire()
            job = random_job(len(self.jobs), self._prefix, self._size)
            self.jobs.append(job)
            task = asyncio.create_task(self._play(job))
            self._playing.add(task)
            task.add_done_callback(self._playing.discard)

    async def drain(self, timeout_s: float) -> None:
        """Wait until all have ended; what has not is a violation."""
        if self._playing:
            _, left = await asyncio.wait(self._playing, timeout=timeout_s)
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)
        for instance in self.active:
            status = await self._reader.relay(self._reader.status(instance))
            self.violations.append(
                Violation(
                    what="it has not ended",
                    instance=instance,
                    details=f"{timeout_s:.0f} s after the last kill: {status}\n{await self._explain(instance)}",
                )
            )

    async def wait_running(self, count: int, timeout_s: float) -> None:
        """Wait until so many instances have had an owner. TimeoutError if that takes too long."""
        async with asyncio.timeout(timeout_s):
            for number in range(count):
                while len(self.jobs) <= number or not await self._has_begun(self.jobs[number]):
                    await asyncio.sleep(_LOOK_S)

    async def _has_begun(self, job: Job) -> bool:
        status = await self.status(job.instance)
        return status is not None and (status.owner is not None or status.execution > 1)

    async def owned(self) -> list[durable.InstanceStatus]:
        """The instances that somebody owns, those that others called among them."""
        found = await asyncio.to_thread(self._reader.instances, status=["Running", "Suspended"])
        return [status for status in found if status.owner is not None]

    async def status(self, instance: str) -> durable.InstanceStatus | None:
        """The status; None if it is not there yet."""
        try:
            return await self._reader.relay(self._reader.status(instance))
        except durable.InstanceNotFoundError:
            return None

    async def insist(self, request: str, **arguments: Any) -> Any:
        """Ask until there is an answer, as somebody does whose clusters come and go."""
        while True:
            await self._is_up.wait()
            try:
                return await self._cluster.ask(request, **arguments)
            except HostLostError:
                self.troubles["cluster lost"] += 1
            except HostError as error:
                if error.name not in _PASSING:
                    raise
                self.troubles[error.name] += 1
            await asyncio.sleep(_AGAIN_S)

    async def _play(self, job: Job) -> None:
        rng = random.Random(job.instance)
        try:
            await self._start(job)
            self._active[job.instance] = job
            for number in range(job.events):
                await asyncio.sleep(rng.choice([0, 0.2, 0.5, 1.5]))
                await self._tell(job, number, times=rng.choice([1, 1, 1, 2]))
            await self._await_end(job)
        except (HostError, durable.DurableError) as error:
            self._object(job, "a call failed", f"{type(error).__name__}: {error}")
        finally:
            self._live.release()

    async def _start(self, job: Job) -> None:
        try:
            await self.insist("start", name=job.name, args=job.args, instance_id=job.instance)
        except HostError as error:
            # Its start was durable, and the cluster lost before anybody was told.
            if error.name != "InstanceExistsError":
                raise
        job.is_started = True

    async def _tell(self, job: Job, number: int, *, times: int) -> None:
        """Send the next number: now and then twice, as a client does that got no answer."""
        event_id = f"{job.instance}-{number}"
        for _ in range(times):
            try:
                await self.insist("raise_event", instance_id=job.instance, value=number, event_id=event_id)
            except HostError as error:
                # It was the last one, and had arrived before; else the result will be wrong.
                if error.name != "InstanceEndedError":
                    raise
        job.acknowledged.append(event_id)

    async def _await_end(self, job: Job) -> None:
        while (status := await self.status(job.instance)) is None or not status.is_ended:
            await asyncio.sleep(_LOOK_S)
        del self._active[job.instance]
        try:
            result = await self._reader.relay(self._reader.result(job.instance, 10))
        except durable.DurableError as error:
            self._object(job, "it did not end well", str(error))
            return
        if result != job.result:
            self._object(job, "a wrong result", f"{result!r} instead of {job.result!r}")

    def _object(self, job: Job, what: str, details: str) -> None:
        self.violations.append(Violation(what=what, instance=job.instance, details=details))

    async def _explain(self, instance: str) -> str:
        began_s = time.monotonic()
        try:
            actors = await asyncio.wait_for(self._cluster.ask("actors"), 10)
            return f"{await asyncio.wait_for(self._cluster.ask('explain', instance_id=instance), 20)}\nactors: {actors}"
        except (HostError, HostLostError, TimeoutError) as error:
            return f"not to be explained ({error!r} after {time.monotonic() - began_s:.0f} s)"
