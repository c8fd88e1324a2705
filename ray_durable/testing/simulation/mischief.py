"""What is done to processes while a scenario runs: deaths, stops, takeovers and wrong clocks.

`Havoc` draws it all from a seed; `Deaths` kill at given steps and `Takeover` replaces the cluster at one, which is how
every step is tried in turn.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Literal

from ray_durable.testing.simulation.cluster import DISPATCHER, SUPERVISOR, Actor
from ray_durable.testing.simulation.scheduler import Process
from ray_durable.testing.simulation.weather import Fault

if TYPE_CHECKING:
    from ray_durable.testing.simulation.simulation import Simulation

__all__ = ["Deaths", "Havoc", "Mischief", "Takeover", "Victim"]

Victim = Literal["doer", "dispatcher", "supervisor", "cluster"]

_WRITES = frozenset({"create", "put", "delete"})
_HOUR_US = 3_600 * 1_000_000
_STOPS_S = [0.5, 0.5, 5.0, 5.0, 20.0, 20.0, 60.0, 3_700.0]
_BEFORE_RESTART_S = 0.8
"""A little less than Ray takes to make an actor again."""

_SETTLING_S = 40.0
"""So long after the last stopped process went on, nothing that it does is still to come."""


class Mischief:
    """Nothing is done."""

    simulation: Simulation

    def step(self, number: int, process: Process, operation: str, key: str) -> Fault | None:
        """A step is about to have an effect. A `Fault` in return is what becomes of an operation of the store."""
        return None

    def skew_us(self) -> int:
        """How wrong the clock of a new process is."""
        return 0

    def gives_up_actor(self) -> bool:
        """Whether Ray does not make an actor again that died."""
        return False

    def is_over(self) -> bool:
        """Whether nothing more will come of it."""
        return True

    def kill(self, victim: Victim, process: Process) -> None:
        """Let something die."""
        simulation = self.simulation
        if victim == "doer":
            process.kill()
        elif victim == "cluster":
            if simulation.cluster.is_alive:
                simulation.cluster.lose()
                simulation.replace_cluster()
        else:
            actor = simulation.cluster.find(DISPATCHER if victim == "dispatcher" else SUPERVISOR)
            if actor is not None:
                actor.process.kill()


class Deaths(Mischief):
    """At each of some steps something dies, by number: the victim, and what becomes of the write in flight."""

    def __init__(self, deaths: Mapping[int, tuple[Victim, Fault]]) -> None:
        self.deaths = deaths

    def step(self, number: int, process: Process, operation: str, key: str) -> Fault | None:
        """See `Mischief`."""
        death = self.deaths.get(number)
        if death is None:
            return None
        victim, fault = death
        self.kill(victim, process)
        return fault if operation in _WRITES else None


class Takeover(Mischief):
    """At one step another cluster takes the hub over, while the actors of the old one whose names begin with one of
    `stopped` stand still for `pause_s`. If `kills`, the others die at that step, and Ray makes them again just after
    the takeover."""

    def __init__(self, step: int, *, stopped: tuple[str, ...], kills: bool, pause_s: float) -> None:
        self._step = step
        self._stopped = stopped
        self._kills = kills
        self._pause_s = pause_s
        self._until_s = 0.0

    def step(self, number: int, process: Process, operation: str, key: str) -> Fault | None:
        """See `Mischief`."""
        if number == self._step:
            simulation = self.simulation
            self._until_s = simulation.scheduler.now_s + self._pause_s + _SETTLING_S
            old = list(simulation.cluster.actors.values())
            for actor in old:
                if actor.name.startswith(self._stopped):
                    actor.process.stop()
                    simulation.scheduler.after(self._pause_s, actor.process.go_on)
                elif self._kills:
                    actor.process.kill()
            simulation.scheduler.after(_BEFORE_RESTART_S if self._kills else 0.0, simulation.use_new_cluster)
        return None

    def is_over(self) -> bool:
        """See `Mischief`."""
        return self.simulation.scheduler.now_s >= self._until_s


class Havoc(Mischief):
    """Anything, at any time of a run of about `steps` steps."""

    def __init__(self, seed: int | str, *, steps: int) -> None:
        rng = self._random = random.Random(f"mischief {seed}")
        count = rng.choice([0, 1, 1, 2, 2, 3, 4, 6, 10])
        deeds: list[Callable[[Process], Fault | None]] = [
            *(4 * [self._kill_doer]),
            *(2 * [self._kill_owner]),
            *(3 * [self._replace_owner]),
            self._kill_dispatcher,
            self._replace_dispatcher,
            self._kill_supervisor,
            self._replace_supervisor,
            self._lose_cluster,
            self._take_over,
            self._stop_any,
            self._set_clock,
        ]
        self._plan = {rng.randint(1, max(2, steps)): rng.choice(deeds) for _ in range(count)}
        self._clocks = rng.choice([0.0, 0.0, 0.3, 1.0])
        self._giving_up = rng.choice([0.0, 0.0, 0.3])
        self._until_s = 0.0

    def step(self, number: int, process: Process, operation: str, key: str) -> Fault | None:
        """See `Mischief`."""
        deed = self._plan.get(number)
        fault = None if deed is None else deed(process)
        return fault if operation in _WRITES else None

    def skew_us(self) -> int:
        """See `Mischief`."""
        rng = self._random
        if rng.random() >= self._clocks:
            return 0
        return rng.choice([rng.randint(-_HOUR_US, _HOUR_US), rng.randint(-5_000_000, 5_000_000)])

    def gives_up_actor(self) -> bool:
        """See `Mischief`."""
        return self._random.random() < self._giving_up

    def is_over(self) -> bool:
        """See `Mischief`."""
        return self.simulation.scheduler.now_s >= self._until_s

    def _kill_doer(self, process: Process) -> Fault | None:
        self.kill("doer", process)
        return self._random.choice([None, Fault.LOST, Fault.ANSWER_LOST, Fault.LATE])

    def _kill_owner(self, process: Process) -> Fault | None:
        actor = self._any_owner()
        if actor is not None:
            actor.process.kill()
        return None

    def _kill_dispatcher(self, process: Process) -> Fault | None:
        self.kill("dispatcher", process)
        return None

    def _kill_supervisor(self, process: Process) -> Fault | None:
        self.kill("supervisor", process)
        return None

    def _lose_cluster(self, process: Process) -> Fault | None:
        self.kill("cluster", process)
        return None

    def _replace_owner(self, process: Process) -> Fault | None:
        self._replace(self._any_owner())
        return None

    def _replace_dispatcher(self, process: Process) -> Fault | None:
        self._replace(self.simulation.cluster.find(DISPATCHER))
        return None

    def _replace_supervisor(self, process: Process) -> Fault | None:
        self._replace(self.simulation.cluster.find(SUPERVISOR))
        return None

    def _take_over(self, process: Process) -> Fault | None:
        """Another cluster takes over from one that lives; some of that one's processes stand still meanwhile."""
        for actor in list(self.simulation.cluster.actors.values()):
            if self._random.random() < 0.5:
                self._stop(actor.process)
        self.simulation.use_new_cluster()
        return None

    def _stop_any(self, process: Process) -> Fault | None:
        actors = list(self.simulation.cluster.actors.values())
        if actors:
            self._stop(self._random.choice(actors).process)
        return None

    def _set_clock(self, process: Process) -> Fault | None:
        actors = list(self.simulation.cluster.actors.values())
        if actors:
            found = self._random.choice(actors).process
            found.latest_us = self.simulation.latest_us(found)
            found.skew_us = self._random.randint(-_HOUR_US, _HOUR_US)
        return None

    def _any_owner(self) -> Actor | None:
        owners = self.simulation.cluster.owners()
        return self._random.choice(owners) if owners else None

    def _replace(self, actor: Actor | None) -> None:
        """Ray takes an actor for dead: there is another, and the old one lives, or goes on later."""
        if actor is None:
            return
        if self._random.random() < 0.7:
            self._stop(actor.process)
        self._settle_after(0.0)
        actor.replace()

    def _stop(self, process: Process) -> None:
        pause_s = self._random.choice(_STOPS_S)
        process.stop()
        self.simulation.scheduler.after(pause_s, process.go_on)
        self._settle_after(pause_s)

    def _settle_after(self, pause_s: float) -> None:
        self._until_s = max(self._until_s, self.simulation.scheduler.now_s + pause_s + _SETTLING_S)
