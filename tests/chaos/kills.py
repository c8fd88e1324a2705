"""Kills: the processes of a running cluster, its nodes and the whole of it, by SIGKILL; and SIGSTOP beyond detection.

Victims and moments come from a seed. What happens in between does not, so that a seed gives the same kills in the same
order to the same load, and not the same run.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import ray_durable as durable
from tests.chaos.cluster import DISPATCHER, ORCHESTRATOR, SUPERVISOR, Cluster, HostError, HostLostError, Settings, until
from tests.chaos.load import Load, Violation
from tests.support.processes import is_alive, kill, title_of

__all__ = ["KINDS", "Killer"]

KINDS = {
    "orchestrator": "SIGKILL of an instance's process",
    "worker": "SIGKILL of a process that runs activities",
    "dispatcher": "SIGKILL of the dispatcher",
    "supervisor": "SIGKILL of the supervisor",
    "node": "SIGKILL of a node that is not the head: its raylet and all processes below it, or its raylet alone",
    "cluster": "SIGKILL of all processes of the cluster, the head included; another one takes over",
    "takeover": "no kill: another cluster takes the hub from one that works, which has to stand down",
    "zombie": "SIGSTOP of the processes of a node until others own its instances, then SIGCONT",
}

_WORKER = "ray::chaos."
_UNDISTURBING = frozenset({"orchestrator", "worker"})
"""Kills beside which an instance that goes on after one of its own still takes only its own time."""

_BACK_S_MAX = 180.0
_FAREWELL_S_MAX = 60.0


class Killer:
    """Kills as it is told, one after the other, and measures how long it takes until all goes on."""

    def __init__(self, rng: random.Random, settings: Settings, load: Load, cluster: Cluster) -> None:
        self.killed: Counter[str] = Counter()
        self.pids: set[int] = set()
        """All processes that were killed, or continued to find themselves replaced."""
        self.back_s: dict[str, list[float]] = defaultdict(list)
        """Seconds until what was killed was there again, by kind; "bare actor" is Ray's own share."""
        self.violations: list[Violation] = []
        self.cluster = cluster
        self._rng = rng
        self._settings = settings
        self._load = load
        self._watching: set[asyncio.Task[None]] = set()
        self._farewells: set[asyncio.Task[None]] = set()
        self._disturbances = 0
        self._journal = settings.folder / "kills"
        load.use(cluster)
        self._ways: Mapping[str, Callable[[], Awaitable[int]]] = {
            "orchestrator": self._kill_orchestrator,
            "worker": self._kill_worker,
            "dispatcher": lambda: self._kill_keeper(DISPATCHER, "dispatcher"),
            "supervisor": lambda: self._kill_keeper(SUPERVISOR, "supervisor"),
            "node": self._kill_node,
            "cluster": self._kill_cluster,
            "takeover": self._take_over,
            "zombie": self._stop_node,
        }

    async def kill(self, kind: str) -> bool:
        """One kill, if the victim that was chosen is still there; returns when the next may follow."""
        count = await self._ways[kind]()
        self.killed[kind] += count
        self._disturbances += kind not in _UNDISTURBING
        self._note(f"{kind} x {count}: done")
        return count > 0

    async def rest(self) -> None:
        """Wait until all that was killed goes on."""
        if self._watching:
            await asyncio.wait(self._watching)

    async def see_off(self) -> None:
        """Wait until nothing is left of killed nodes."""
        if self._farewells:
            await asyncio.wait(self._farewells)

    async def actors_left(self) -> list[str]:
        """The actors of instances that are there although all have ended."""
        names: list[str] = []
        for _ in range(100):
            names = [name for name in await self.cluster.ask("actors") if name.startswith("instance:")]
            if not names:
                break
            await asyncio.sleep(0.1)
        return names

    async def measure_bare_actor(self) -> None:
        """What Ray itself takes to restart an actor, here and now."""
        with contextlib.suppress(HostLostError):
            self.back_s["bare actor"].append(await self.cluster.ask("restart_bare_actor"))

    async def _kill_orchestrator(self) -> int:
        pid = await self._choose(lambda: self.cluster.processes(ORCHESTRATOR))
        owned = [status for status in await self._owned() if _pid(status) == pid]
        if not self._kill(pid):
            return 0
        if not owned:
            # It was about to go on after an earlier kill, perhaps.
            self._disturbances += 1
        for status in owned:
            self.watch(self._see_resumed(status, "orchestrator"))
        return 1

    async def _kill_worker(self) -> int:
        pid = await self._choose(lambda: self.cluster.processes(_WORKER))
        return self._kill(pid)

    async def _kill_keeper(self, title: str, kind: str) -> int:
        """The dispatcher or the supervisor; there is another one before anything else is killed."""
        pid = await self._choose(lambda: self.cluster.processes(title))
        began_s = time.monotonic()
        if not self._kill(pid):
            return 0
        await self._see(lambda: set(self.cluster.processes(title)) - {pid}, f"another {kind}", kind, began_s)
        return 1

    async def _kill_node(self) -> int:
        """Half of the time the raylet alone: what it started has to notice by itself, and is in the way meanwhile."""
        nodes = await self.cluster.ask("nodes")
        name = self._rng.choice(sorted(nodes))
        below = self.cluster.below(nodes[name])
        began_s = time.monotonic()
        for pid in [nodes[name], *(below if self._rng.random() < 0.5 else ())]:
            self._kill(pid)
        self.pids.update(below)
        left = self._see(lambda: not any(map(is_alive, below)), f"the processes of a dead raylet ({below}) have ended")
        _keep(self._farewells, left)
        await self._replace(name)
        self.back_s["node"].append(time.monotonic() - began_s)
        return 1

    async def _kill_cluster(self) -> int:
        """Once all that was killed before goes on: else there is little to lose."""
        await self.rest()
        self._load.pause()
        owned = await self._owned()
        self.pids.update(self.cluster.processes())
        await self.cluster.kill_all()
        self.cluster = Cluster(self._settings)
        await self.cluster.start()
        began_s = time.monotonic()
        await self.cluster.connect()
        self.back_s["connect after a cluster kill"].append(time.monotonic() - began_s)
        self._load.use(self.cluster)
        for status in owned:
            self.watch(self._see_resumed(status, "cluster"))
        return 1

    async def _take_over(self) -> int:
        """Two clusters on one root: the older one stands down, and tells its callers."""
        await self.rest()
        newer = Cluster(self._settings)
        await newer.start()
        self.pids.update(self.cluster.processes())
        owned, older, self.cluster = await self._owned(), self.cluster, newer
        await newer.connect(takeover=True)
        self._load.use(newer)
        for status in owned:
            self.watch(self._see_resumed(status, "takeover"))
        await self._see(lambda: not older.processes(ORCHESTRATOR), "the older cluster has stood down")
        for status in owned[:3]:
            await self._require_refusal(older, status.instance_id)
        await older.kill_all()
        return 1

    async def _require_refusal(self, older: Cluster, instance: str) -> None:
        """A cluster that lost the hub acknowledges nothing."""
        try:
            await older.ask("nudge", instance_id=instance)
            told = "it was acknowledged"
        except HostError as error:
            if error.name in ("HubHeldError", "InstanceEndedError"):
                return
            told = str(error)
        self.violations.append(
            Violation(what="a cluster that lost the hub did not say so", instance=instance, details=told)
        )

    async def _stop_node(self) -> int:
        """All of a node's processes stand still until Ray has given it up and others own its instances."""
        nodes = await self.cluster.ask("nodes")
        candidates = {name: self.cluster.below(pid, ORCHESTRATOR) for name, pid in nodes.items()}
        owned = {_pid(status): status for status in await self._owned()}
        name = max(candidates, key=lambda one: sum(pid in owned for pid in candidates[one]))
        zombies = [pid for pid in candidates[name] if pid in owned]
        if not zombies:
            return 0
        stopped = [nodes[name], *self.cluster.below(nodes[name])]
        self.pids.update(stopped)
        self._note(f"SIGSTOP {stopped}, zombies to be {zombies}")
        _signal(stopped, signal.SIGSTOP)
        try:
            await asyncio.gather(*(self._see_resumed(owned[pid], "zombie") for pid in zombies))
        finally:
            self._note("SIGCONT")
            _signal(stopped, signal.SIGCONT)
        successors = await self._owned()
        await self._see(
            lambda: not any(map(is_alive, zombies)), f"the zombies {zombies} have gone", timeout_s=_FAREWELL_S_MAX
        )
        await self._replace(name)
        await self._require_untouched({owned[pid].instance_id for pid in zombies}, successors)
        return len(zombies)

    async def _require_untouched(self, instances: set[str], successors: Sequence[durable.InstanceStatus]) -> None:
        """Whoever owned them when the zombies came back still does."""
        for before in successors:
            status = await self._load.status(before.instance_id)
            if before.instance_id not in instances or status is None or status.is_ended:
                continue
            if status.execution == before.execution and _place(status) > _place(before):
                self.violations.append(
                    Violation(
                        what="a zombie cost its successor its life",
                        instance=before.instance_id,
                        details=f"when it came back: {before}\nwhen it had gone: {status}",
                    )
                )

    async def _owned(self) -> list[durable.InstanceStatus]:
        """The instances that a living process owns; one that rests has none."""
        living = set(self.cluster.processes(ORCHESTRATOR))
        return [status for status in await self._load.owned() if _pid(status) in living]

    async def _replace(self, name: str) -> None:
        await self.cluster.ask("remove_node", name=name)
        await self.cluster.ask("add_node")

    async def _see_resumed(self, before: durable.InstanceStatus, kind: str) -> None:
        """Another owner has claimed the instance, or it has gone on to its next execution or its end."""
        began_s, disturbances = time.monotonic(), self._disturbances
        while time.monotonic() - began_s < _BACK_S_MAX:
            status = await self._load.status(before.instance_id)
            if status is not None and _place(status) > _place(before):
                is_alone = kind != "orchestrator" or disturbances == self._disturbances
                measured = kind if is_alone else f"{kind}, and more killed"
                self.back_s[measured].append(time.monotonic() - began_s)
                return
            if status is not None and status.is_ended:
                return
            await asyncio.sleep(0.02)
        self.violations.append(
            Violation(
                what=f"it did not go on after a kill ({kind})",
                instance=before.instance_id,
                details=f"before: {before}\n{_BACK_S_MAX:.0f} s later: {status}",
            )
        )

    async def _see(
        self,
        found: Callable[[], object],
        what: str,
        kind: str = "",
        began_s: float = 0.0,
        *,
        timeout_s: float = _BACK_S_MAX,
    ) -> None:
        try:
            await until(found, what, timeout_s=timeout_s)
        except TimeoutError as error:
            self.violations.append(Violation(what="not seen", instance="", details=str(error)))
            return
        if kind:
            self.back_s[kind].append(time.monotonic() - began_s)

    def watch(self, seeing: Coroutine[Any, Any, None]) -> None:
        """See to its end what goes on beside the next kills."""
        _keep(self._watching, seeing)

    def _note(self, line: str) -> None:
        """A line in the file of kills, for whoever looks further."""
        with self._journal.open("a") as journal:
            print(datetime.now(UTC).isoformat(timespec="milliseconds"), line, file=journal)

    async def _choose(self, found: Callable[[], list[int]]) -> int:
        return int(self._rng.choice(await until(found, "there is somebody to kill", timeout_s=_BACK_S_MAX)))

    def _kill(self, pid: int) -> int:
        """1; 0 if it has gone by itself."""
        if not is_alive(pid):
            return 0
        self.pids.add(pid)
        self._note(f"SIGKILL {pid} {title_of(pid)[:60]!r}")
        try:
            kill(pid)
        except ProcessLookupError:
            return 0
        return 1


def _keep(tasks: set[asyncio.Task[None]], work: Coroutine[Any, Any, None]) -> None:
    """Let it go on beside, until it has ended: loops hold their tasks weakly."""
    task = asyncio.create_task(work)
    tasks.add(task)
    task.add_done_callback(tasks.discard)


def _pid(status: durable.InstanceStatus) -> int:
    return status.owner.pid if status.owner is not None else 0


def _place(status: durable.InstanceStatus) -> tuple[int, int]:
    """Grows with each owner: every execution has epochs of its own."""
    return status.execution, status.owner.epoch if status.owner is not None else 0


def _signal(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
