"""Who is stopped is replaced; who is busy, starting, gone or answers late is not."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from ray_durable.errors import ClusterConnectionError
from ray_durable.runtime.watchdog import Watchdog
from tests.support.skipping_loop import simulated
from tests.support.world import LoopClock

SILENCE_S = 15.0


class Hall:
    """`Processes` that answer, or not: `stopped` do not, `starting` have no process yet."""

    def __init__(self, *names: str) -> None:
        self.lives = dict.fromkeys(names, 1)
        self.stopped: set[str] = set()
        self.starting: set[str] = set()
        self.replaced: list[tuple[str, float]] = []
        self.asked = 0
        self.asked_at_once_max = 0
        self._asking = 0

    async def names(self) -> Sequence[str]:
        return list(self.lives)

    async def ask(self, name: str) -> None:
        self.asked += 1
        self._asking += 1
        self.asked_at_once_max = max(self.asked_at_once_max, self._asking)
        try:
            await asyncio.sleep(0.01)
            if name not in self.lives:
                raise ClusterConnectionError("it has gone")
            if name in self.stopped | self.starting:
                await asyncio.get_running_loop().create_future()
        finally:
            self._asking -= 1

    async def process(self, name: str) -> str | None:
        await asyncio.sleep(0)
        return None if name in self.starting else f"{name} {self.lives[name]}"

    async def replace(self, name: str) -> None:
        self.replaced.append((name, asyncio.get_running_loop().time()))
        self.lives[name] += 1
        self.stopped.discard(name)


def watching(hall: Hall, clock: LoopClock | None = None) -> asyncio.Task[None]:
    """A watchdog at work."""
    watchdog = Watchdog(hall, clock or LoopClock(), silence_s=SILENCE_S)
    return asyncio.get_running_loop().create_task(watchdog.run())


@simulated
async def test_who_is_stopped_is_replaced_once() -> None:
    """After the silence that is allowed, and not much later; nobody else is."""
    hall = Hall("a", "b", "c")
    working = watching(hall)
    await asyncio.sleep(100)
    assert hall.replaced == []
    hall.stopped.add("b")
    stopped_s = asyncio.get_running_loop().time()
    await asyncio.sleep(100)
    ((name, replaced_s),) = hall.replaced
    assert name == "b"
    assert SILENCE_S <= replaced_s - stopped_s <= 1.5 * SILENCE_S
    working.cancel()


@simulated
async def test_who_answers_again_in_time_is_left_alone() -> None:
    """Each answer begins the count anew."""
    hall = Hall("a")
    working = watching(hall)
    for _ in range(10):
        hall.stopped.add("a")
        await asyncio.sleep(SILENCE_S * 0.6)
        hall.stopped.clear()
        await asyncio.sleep(SILENCE_S)
    assert hall.replaced == []
    working.cancel()


@simulated
async def test_who_starts_may_take_as_long_as_it_takes() -> None:
    """It has no process yet that could be stopped; once it has one, the count begins."""
    hall = Hall("a")
    hall.starting.add("a")
    working = watching(hall)
    await asyncio.sleep(600)
    assert hall.replaced == []
    hall.starting.clear()
    hall.stopped.add("a")
    await asyncio.sleep(2 * SILENCE_S)
    assert [name for name, _ in hall.replaced] == ["a"]
    working.cancel()


@simulated
async def test_another_process_of_the_same_name_begins_anew() -> None:
    """Ray restarted it meanwhile."""
    hall = Hall("a")
    hall.stopped.add("a")
    working = watching(hall)
    for _ in range(20):
        await asyncio.sleep(9)
        hall.lives["a"] += 1
    assert hall.replaced == []
    working.cancel()


@simulated
async def test_what_was_not_heard_while_the_watchdog_stood_still_counts_for_nothing() -> None:
    """All asks run out at once when it goes on."""
    hall, clock = Hall("a"), SlowClock()
    hall.stopped.add("a")
    working = watching(hall, clock)
    await asyncio.sleep(100)
    assert hall.replaced == []
    clock.factor = 1.0
    await asyncio.sleep(3 * SILENCE_S)
    assert len(hall.replaced) == 1
    working.cancel()


@simulated
async def test_many_are_asked_a_few_at_a_time() -> None:
    """At most once in the time that an answer may take."""
    hall = Hall(*(f"actor {number}" for number in range(200)))
    working = watching(hall)
    await asyncio.sleep(100)
    assert hall.asked_at_once_max <= 32
    assert hall.asked <= 200 * (100 / (SILENCE_S / 3) + 1)
    working.cancel()


class SlowClock(LoopClock):
    """More time has passed than the loop noticed: as if its process had been stopped in between."""

    factor = 10.0

    def monotonic_s(self) -> float:
        return super().monotonic_s() * self.factor
