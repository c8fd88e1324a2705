"""Durable timers and the alarm: never early by the owner's clock, never forgotten."""

from __future__ import annotations

import asyncio
from datetime import datetime

from hypothesis import given, settings
from hypothesis import strategies as st

from ray_durable.engine import TimerCreated, TimerFired
from ray_durable.runtime.alarm import Alarm
from tests.runtime import flows
from tests.support.skipping_loop import simulate, simulated
from tests.support.world import LoopClock, World


@simulated
async def test_a_timer_fires_at_its_time() -> None:
    """The orchestrator goes on at the due time, and the log says when that was."""
    world = World()
    began_us = world.clock.now_us()
    shown = datetime.fromisoformat(await world.run(flows.sleeps, 3_600))
    history = await world.history()
    created = next(event for event in history if isinstance(event, TimerCreated))
    fired = next(event for event in history if isinstance(event, TimerFired))
    assert created.due_us == began_us + 3_600_000_000
    assert created.due_us <= fired.time_us < created.due_us + 1_000_000
    assert shown.timestamp() * 1_000_000 == fired.time_us


@simulated
async def test_a_timer_that_came_due_while_nobody_owned_the_instance_fires_at_once() -> None:
    """The time is in the log: a day without an owner costs a day, and nothing more."""
    world = World()
    await world.start(flows.sleeps, 3_600)
    first = world.own()
    await world.until(lambda: first.store.segments)
    await first.kill()
    await asyncio.sleep(86_400)
    before_us = world.clock.now_us()
    await world.own().ended()
    fired = next(event for event in await world.history() if isinstance(event, TimerFired))
    assert fired.time_us - before_us < 1_000_000


@simulated
async def test_a_timer_waits_for_a_clock_that_was_set_back() -> None:
    """The wall clock is what counts: an hour back is an hour more."""
    world = World()
    await world.start(flows.sleeps, 3_600)
    owner = world.own()
    await world.until(lambda: owner.store.segments)
    world.clock.skew_us = -3_600_000_000
    await asyncio.sleep(3_700)
    assert not owner.instance.ended.is_set()
    await asyncio.sleep(3_600)
    await owner.ended()


@simulated
async def test_a_clock_that_was_set_forward_is_noticed_soon() -> None:
    """An alarm of months looks at the clock now and then."""
    world = World()
    await world.start(flows.sleeps, 86_400 * 90)
    owner = world.own()
    await world.until(lambda: owner.store.segments)
    world.clock.skew_us = 86_400 * 90 * 1_000_000
    await asyncio.sleep(700)
    assert owner.instance.ended.is_set()


@simulated
async def test_an_event_in_time_cancels_the_timeout() -> None:
    """72 hours for an approval: it comes after one, and no timer fires."""
    world = World()
    await world.start(flows.approval_or_timeout, 72)
    owner = world.own()
    await asyncio.sleep(3_600)
    await owner.instance.raise_event("Approval", world.hub.codec.encode("yes", where="test"), "e1")
    await owner.ended()
    assert await world.result() == "yes"
    assert not any(isinstance(event, TimerFired) for event in await world.history())


@simulated
async def test_the_timeout_of_an_event_that_never_comes() -> None:
    """The orchestrator goes its other way."""
    world = World()
    assert await world.run(flows.approval_or_timeout, 72) == "too late"


@settings(max_examples=50, deadline=None)
@given(
    due_s=st.floats(0, 5_000),
    skews=st.lists(st.tuples(st.floats(0.1, 900), st.floats(-3_000, 3_000)), max_size=6),
)
def test_an_alarm_never_rings_early(due_s: float, skews: list[tuple[float, float]]) -> None:
    """Whatever happens to the clock meanwhile, when it rings the clock shows the time or later; and it does ring."""

    async def scenario() -> None:
        clock = LoopClock()
        rung_us: list[int] = []
        alarm = Alarm(clock, lambda: rung_us.append(clock.now_us()))
        due_us = clock.now_us() + round(due_s * 1e6)
        alarm.set(due_us)
        for wait_s, skew_s in skews:
            await asyncio.sleep(wait_s)
            clock.skew_us = round(skew_s * 1e6)
        await asyncio.sleep(10_000)
        assert len(rung_us) == 1
        assert rung_us[0] >= due_us

    simulate(scenario())


@simulated
async def test_an_alarm_rings_at_the_last_time_that_was_set() -> None:
    """Setting another time, or none, forgets the one before."""
    clock = LoopClock()
    rung: list[int] = []
    alarm = Alarm(clock, lambda: rung.append(1))
    now_us = clock.now_us()
    alarm.set(now_us + 1_000_000)
    alarm.set(now_us + 5_000_000)
    await asyncio.sleep(4)
    assert rung == []
    await asyncio.sleep(2)
    assert rung == [1]
    alarm.set(clock.now_us() + 1_000_000)
    alarm.set(None)
    await asyncio.sleep(10)
    assert rung == [1]


@simulated
async def test_an_alarm_rings_on_the_loop_not_in_set() -> None:
    """A time that is past rings soon, and never from within the call that set it."""
    clock = LoopClock()
    rung: list[int] = []
    Alarm(clock, lambda: rung.append(1)).set(0)
    assert rung == []
    await asyncio.sleep(0.001)
    assert rung == [1]
