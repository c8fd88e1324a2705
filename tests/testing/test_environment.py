"""The environment, used as in tests of orchestrations."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, assert_type
from unittest.mock import AsyncMock, Mock

import pytest

import ray_durable as durable
from ray_durable.testing import Environment, StuckError
from tests.testing import flows


@pytest.fixture
def env() -> Iterator[Environment]:
    with Environment() as environment:
        yield environment


def sent(to: str) -> str:
    return f"mail to {to}"


def test_an_approval_of_three_days_takes_no_time(env: Environment) -> None:
    """Virtual time skips: the deadline of 72 hours passes in well under a second."""
    env.replace(flows.send_mail, sent)
    began, began_s = env.now, time.perf_counter()
    handle = env.start(flows.vet, "ann")
    assert handle.result() == "escalated"
    assert env.now - began == timedelta(hours=72)
    assert time.perf_counter() - began_s < 2


def test_time_stands_still_until_it_is_let_go(env: Environment) -> None:
    """Short of the deadline the instance waits; an event then decides."""
    env.replace("send_mail", sent)
    handle = env.start(flows.vet, "ann", instance_id="a")
    env.advance(timedelta(hours=71))
    assert handle.status().runtime_status == "Running"
    handle.raise_event("Approval", True)
    assert handle.status().runtime_status == "Completed"
    assert handle.result() == "mail to ann: approved"
    assert env.now == datetime(2025, 1, 3, 23, tzinfo=UTC)


def test_calls_of_activities_are_recorded(env: Environment) -> None:
    """Each attempt that ran, with arguments, attempt and virtual time; of one activity, or of all."""
    env.replace(flows.send_mail, sent)
    env.start(flows.vet, "ann", instance_id="a")
    env.start(flows.basket, ["pen", "paper"])
    (call,) = env.calls(flows.send_mail)
    assert (call.args, call.instance_id, call.attempt, call.at) == (("ann",), "a", 1, env.now)
    assert [(call.args, call.item) for call in env.calls("price")] == [(("pen",), 0), (("paper",), 1)]
    assert len(env.calls()) == 3


def test_a_replacement_that_raises_is_retried_by_policy(env: Environment) -> None:
    """The waits between attempts are virtual; all attempts share their idempotency key."""
    env.replace(flows.send_mail, Mock(side_effect=[OSError("busy"), OSError("busy"), "at last"]))
    handle = env.start(flows.patient_mail, "ann")
    assert [call.attempt for call in env.calls(flows.send_mail)] == [1]
    assert handle.result() == "at last"
    calls = env.calls(flows.send_mail)
    assert [call.attempt for call in calls] == [1, 2, 3]
    assert len({call.idempotency_key for call in calls}) == 1


def test_the_failure_of_an_instance_is_raised_by_its_result(env: Environment) -> None:
    """As by a handle of a real hub."""
    handle = env.start(flows.vet, "ann")
    with pytest.raises(durable.OrchestrationFailedError, match="tests send no mail"):
        handle.result()


def test_asynchronous_activities_and_replacements_run(env: Environment) -> None:
    """Also in place of a synchronous one, and with local=True."""
    env.replace(flows.send_mail, AsyncMock(return_value="later"))
    env.replace(flows.note, lambda text: "elsewhere")
    assert env.start(flows.patient_mail, "ann").result() == "later"
    assert env.start(flows.jot).result() == ("elsewhere", 3)
    assert [call.args for call in env.calls(flows.note)] == [("it",)]
    env.restore(flows.note)
    assert env.start(flows.jot).result() == ("noted it", 3)


def test_results_of_replacements_pass_through_the_codec(env: Environment) -> None:
    """What cannot be stored cannot be a result, here as in production."""
    env.replace(flows.price, lambda item: threading.Lock())
    with pytest.raises(durable.OrchestrationFailedError, match="result of activity 'price'"):
        env.start(flows.basket, ["pen"]).result()


def test_functions_of_the_test_itself_work(env: Environment) -> None:
    """Nobody has to import them: they are found in this process."""
    lines: list[str] = []

    @durable.activity
    def write(line: str) -> int:
        lines.append(line)
        return len(lines)

    @durable.orchestrator
    async def inner(ctx: durable.OrchestrationContext) -> int:
        return await ctx.call_activity(write, "inner")

    @durable.orchestrator
    async def outer(ctx: durable.OrchestrationContext) -> tuple[int, int]:
        return await ctx.call_activity("write", "outer"), await ctx.call_sub_orchestrator(inner)

    assert env.start(outer).result() == (1, 2)
    assert lines == ["outer", "inner"]


def test_called_instances_live_in_the_same_environment(env: Environment) -> None:
    """They can be found, and told things."""
    env.replace(flows.send_mail, sent)
    handle = env.start(flows.checkout, ["ann", "bob"], instance_id="c")
    children = [status.instance_id for status in env.instances(prefix="c:")]
    assert len(children) == 2
    for child in children:
        env.get(child).raise_event("Approval", False)
    assert handle.result() == ["mail to ann: refused", "mail to bob: refused"]


def test_an_instance_that_waits_for_ever_says_for_what(env: Environment) -> None:
    """It is found out at once, and the error names the event and the line."""

    @durable.orchestrator
    async def forgotten(ctx: durable.OrchestrationContext) -> None:
        await ctx.wait_for_external_event("Never")

    handle = env.start(forgotten, instance_id="f")
    with pytest.raises(StuckError, match="Never") as caught:
        handle.result()
    assert caught.value.instance_id == "f"
    assert f"{__file__}:" in str(caught.value)


def test_an_instance_that_waits_for_a_stuck_one_is_stuck(env: Environment) -> None:
    """The caller's explanation names the instance that it called."""

    @durable.orchestrator
    async def waits(ctx: durable.OrchestrationContext) -> None:
        await ctx.wait_for_external_event("Never")

    @durable.orchestrator
    async def calls(ctx: durable.OrchestrationContext) -> None:
        await ctx.call_sub_orchestrator(waits)

    with pytest.raises(StuckError, match=r"instance 'c:1:\d+'"):
        env.start(calls, instance_id="c").result()


def test_a_suspended_instance_is_stuck_until_it_is_resumed(env: Environment) -> None:
    """Its deadline passes meanwhile, and counts once it goes on."""
    env.replace(flows.send_mail, sent)
    handle = env.start(flows.vet, "ann")
    handle.suspend("a break")
    assert handle.status().runtime_status == "Suspended"
    with pytest.raises(StuckError):
        handle.result()
    env.advance(timedelta(days=4))
    assert handle.status().runtime_status == "Suspended"
    handle.resume()
    assert handle.result() == "escalated"


def test_a_result_can_be_waited_for_only_so_long(env: Environment) -> None:
    """The timeout is virtual; the instance goes on after it."""
    env.replace(flows.send_mail, sent)
    handle = env.start(flows.vet, "ann")
    began = env.now
    with pytest.raises(TimeoutError):
        handle.result(timeout=3_600)
    assert env.now - began == timedelta(hours=1)
    assert handle.result() == "escalated"


def test_an_instance_can_be_terminated_restarted_and_purged(env: Environment) -> None:
    """The handle is the one of a real hub."""
    env.replace(flows.send_mail, sent)
    handle = env.start(flows.vet, "ann", instance_id="a")
    handle.terminate("enough")
    with pytest.raises(durable.OrchestrationTerminatedError, match="enough"):
        handle.result()
    handle.restart()
    handle.raise_event("Approval", True)
    assert handle.result() == "mail to ann: approved"
    assert len(env.calls(flows.send_mail)) == 2
    handle.purge()
    with pytest.raises(durable.InstanceNotFoundError):
        handle.status()


def test_a_failed_instance_is_rewound_with_its_replacement_mended(env: Environment) -> None:
    """What failed runs again."""
    handle = env.start(flows.vet, "ann")
    assert handle.status().runtime_status == "Failed"
    env.replace(flows.send_mail, sent)
    handle.rewind()
    handle.raise_event("Approval", True)
    assert handle.result() == "mail to ann: approved"


def test_a_fork_goes_on_from_the_history_of_another(env: Environment) -> None:
    """What had a result there is not run again."""
    env.replace(flows.send_mail, sent)
    handle = env.start(flows.vet, "ann")
    fork = handle.fork("other")
    fork.raise_event("Approval", False)
    assert fork.result() == "mail to ann: refused"
    assert handle.status().runtime_status == "Running"
    assert len(env.calls(flows.send_mail)) == 1


def test_rounds_of_continue_as_new_pass_their_time(env: Environment) -> None:
    """Ten hours, one each round, one after the other."""
    began = env.now
    handle = env.start(flows.round_robin, 9)
    assert handle.result() == "done"
    assert env.now - began == timedelta(hours=10)
    assert handle.status().execution == 10


def test_the_same_seed_gives_the_same_random_numbers() -> None:
    """Another seed gives others."""

    def roll(seed: int) -> int:
        with Environment(seed=seed) as env:
            return env.start(flows.dice).result()

    assert roll(1) == roll(1)
    assert roll(1) != roll(2)


def test_the_beginning_of_time_can_be_given() -> None:
    """It is the orchestrator's time, too."""
    start_time = datetime(2030, 5, 17, 12, tzinfo=UTC)

    @durable.orchestrator
    async def clock(ctx: durable.OrchestrationContext) -> datetime:
        return ctx.current_utc_datetime

    with Environment(start_time=start_time) as env:
        handle = env.start(clock)
        assert handle.result() == start_time
        assert handle.status().created_at == start_time
    with pytest.raises(durable.ConfigurationError, match="time zone"):
        Environment(start_time=datetime(2030, 1, 1))


def test_a_start_may_be_due_later(env: Environment) -> None:
    """Pending until then, and events wait for it; time skips to it, and the code begins at that time."""

    @durable.orchestrator
    async def clock(ctx: durable.OrchestrationContext) -> list[object]:
        return [await ctx.wait_for_external_event("Go"), ctx.current_utc_datetime]

    due = env.now + timedelta(days=2)
    handle = env.start(clock, at=timedelta(days=2))
    handle.raise_event("Go", "early")
    env.advance(timedelta(days=1))
    status = handle.status()
    assert (status.runtime_status, status.start_at) == ("Pending", due)
    assert "start, due 2025-01-03 00:00:00 UTC" in str(handle.explain())
    assert handle.result() == ["early", due]
    later = env.start(clock, at=due + timedelta(hours=1))
    later.terminate("not needed")
    with pytest.raises(durable.OrchestrationTerminatedError):
        later.result()


@pytest.mark.parametrize(
    ("when", "complaint"),
    [
        (datetime(2030, 1, 1), "no time zone"),
        (timedelta.max, "a hundred years"),
        (datetime.max.replace(tzinfo=UTC), "a hundred years"),
        (5.0, "aware datetime, or a timedelta"),
    ],
)
def test_a_start_at_no_sensible_time_is_refused(env: Environment, when: Any, complaint: str) -> None:
    """And nothing is started."""
    with pytest.raises(durable.ConfigurationError, match=complaint):
        env.start(flows.vet, "ann", at=when)
    assert env.instances() == []


@pytest.mark.parametrize("when", [timedelta(0), timedelta.min, datetime.min.replace(tzinfo=UTC)])
def test_a_start_in_the_past_begins_at_once(env: Environment, when: datetime | timedelta) -> None:
    """As if no time had been given."""
    env.replace(flows.send_mail, sent)
    status = env.start(flows.vet, "ann", at=when).status()
    assert (status.runtime_status, status.start_at) == ("Running", None)


def test_schedules_fire_in_virtual_time(env: Environment) -> None:
    """A year of them takes no time; they can be looked at, paused, triggered and deleted."""

    @durable.orchestrator
    async def report(ctx: durable.OrchestrationContext, what: str) -> str:
        return f"{what} of {ctx.current_utc_datetime:%d.%m.}"

    nightly = env.hub.schedule("nightly", "0 2 1 * *", report, "sales", timezone="Europe/Berlin")
    assert_type(nightly, durable.ScheduleHandle[str])
    env.advance(timedelta(days=365))
    started = env.instances(prefix="nightly@")
    assert [one.instance_id for one in started][:2] == ["nightly@20250101T010000Z", "nightly@20250201T010000Z"]
    assert len(started) == 12
    assert env.hub.get("nightly@20250601T000000Z").result() == "sales of 01.06."
    status = nightly.describe()
    assert (status.started, status.next_at) == (12, datetime(2026, 1, 1, 1, tzinfo=UTC))
    assert env.hub.schedules() == [status]

    nightly.pause("closed")
    env.advance(timedelta(days=90))
    assert (nightly.describe().paused, len(env.instances())) == (True, 12)
    assert nightly.trigger().result() == "sales of 01.04."
    nightly.resume()
    env.advance(timedelta(days=30))
    assert env.hub.get_schedule("nightly").describe().started == 13
    nightly.delete()
    assert env.hub.schedules() == []
    with pytest.raises(durable.ScheduleNotFoundError):
        nightly.describe()


def test_an_overlapping_firing_terminates_the_one_before(env: Environment) -> None:
    """By the policy `cancel_previous`."""
    env.replace(flows.send_mail, sent)
    env.hub.schedule("s", "0 * * * *", flows.vet, "ann", overlap="cancel_previous")
    env.advance(timedelta(hours=3))
    assert [str(one.runtime_status) for one in env.instances()] == ["Terminated", "Terminated", "Running"]


@pytest.mark.parametrize(
    ("arguments", "options", "complaint"),
    [
        (("s", "hourly", flows.vet, "ann"), {}, "cron expression"),
        (("s", "0 * * * *", flows.vet, "ann"), {"timezone": "Mars"}, "time zone 'Mars'"),
        (("s", "0 * * * *", flows.vet, "ann"), {"overlap": "wait"}, "overlap is 'wait'"),
        (("s", "0 * * * *", flows.vet, "ann"), {"catch_up": 3}, "catch_up is 3"),
        (("s", "0 * * * *", flows.vet, "ann"), {"catch_up": timedelta(-1)}, "zero or more"),
        (("s" * 201, "0 * * * *", flows.vet, "ann"), {}, "at most 200"),
        (("a/b", "0 * * * *", flows.vet, "ann"), {}, "contains '/'"),
        (("s", "0 * * * *", flows.send_mail, "ann"), {}, "no orchestrator"),
        (("s", "0 * * * *", flows.vet), {}, "applicant"),
        (("s", "0 * * * *", flows.zoned, "UTC"), {}, "has a parameter 'timezone'"),
    ],
)
def test_a_schedule_that_cannot_work_is_refused(
    env: Environment, arguments: tuple[Any, ...], options: dict[str, Any], complaint: str
) -> None:
    """Where it is defined, and nothing is stored."""
    with pytest.raises((durable.DurableError, TypeError), match=complaint):
        env.hub.schedule(*arguments, **options)
    assert env.hub.schedules() == []


def test_it_works_inside_an_asynchronous_test() -> None:
    """A handle can be awaited, and calls do not disturb the running loop."""

    async def test() -> str:
        with Environment() as env:
            env.replace(flows.send_mail, sent)
            handle = env.start(flows.vet, "ann")
            handle.raise_event("Approval", True)
            return await handle

    assert asyncio.run(test()) == "mail to ann: approved"


def test_a_replacement_may_raise_an_event(env: Environment) -> None:
    """As a person who answers at once; what would wait for itself there is refused."""
    refused: list[Exception] = []

    def answer(to: str) -> str:
        env.get("a").raise_event("Approval", True)
        try:
            env.get("a").result()
        except durable.ConfigurationError as error:
            refused.append(error)
        return "answered"

    env.replace(flows.send_mail, answer)
    assert env.start(flows.vet, "ann", instance_id="a").result() == "answered: approved"
    assert "virtual time stands still" in str(refused[0])


def test_held_activities_wait_for_their_release(env: Environment) -> None:
    """Meanwhile the instance waits for them, and its timers go on."""

    @durable.orchestrator
    async def impatient(ctx: durable.OrchestrationContext) -> str:
        try:
            return await asyncio.wait_for(ctx.call_activity(flows.send_mail, "ann"), timeout=60)
        except TimeoutError:
            return "gave up"

    env.replace(flows.send_mail, sent)
    env.hold(flows.send_mail)
    assert env.start(impatient).result() == "gave up"
    handle = env.start(impatient)
    env.release(flows.send_mail)
    assert handle.result() == "mail to ann"


def test_a_held_activity_times_out_as_it_would_on_its_worker(env: Environment) -> None:
    """At its own timeout, in virtual time, and its retry policy takes over."""

    @durable.activity(timeout=timedelta(minutes=5), retry=durable.RetryPolicy(max_attempts=2))
    def slow() -> str:
        return "done"

    @durable.orchestrator
    async def waits(ctx: durable.OrchestrationContext) -> str:
        return await ctx.call_activity(slow)

    env.hold(slow)
    handle, began = env.start(waits), env.now
    assert "slow" in str(handle.explain())
    with pytest.raises(durable.OrchestrationFailedError, match="held"):
        handle.result()
    assert timedelta(minutes=10) <= env.now - began < timedelta(minutes=11)
    assert env.calls(slow) == []


def test_code_that_cannot_be_loaded_is_told_and_does_not_hang(
    env: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Waiting and telling both say what the problem is; terminating works all the same."""
    env.replace(flows.send_mail, sent)
    handle = env.start(flows.vet, "ann")
    monkeypatch.delattr(flows, "vet")
    env.lose_owner(handle)
    with pytest.raises(StuckError, match="FunctionNotFoundError"):
        handle.result()
    with pytest.raises(StuckError, match="FunctionNotFoundError"):
        handle.raise_event("Approval", True)
    handle.terminate("its code is gone")
    assert handle.status().runtime_status == "Terminated"


def test_an_instance_that_waits_for_a_held_activity_is_stuck(env: Environment) -> None:
    """The error names the activity."""
    env.hold(flows.send_mail)
    with pytest.raises(StuckError, match="activity send_mail"):
        env.start(flows.patient_mail, "ann").result()


def test_results_have_the_type_of_their_orchestrator(env: Environment) -> None:
    """To a type checker, too."""
    assert_type(env.start(flows.basket, ["pen"]).result(), int)
    assert_type(env.start(flows.jot, instance_id="j").result(), tuple[str, int])
    assert isinstance(env.hub, durable.Hub)


def test_pickle_can_be_refused_as_on_a_shared_store() -> None:
    """Arguments that only pickle can hold pass by default, and not without it."""

    @durable.orchestrator
    async def takes(ctx: durable.OrchestrationContext, value: object) -> str:
        return type(value).__name__

    with Environment() as env:
        assert env.start(takes, complex(1, 2)).result() == "complex"
    with Environment(allows_pickle=False) as env, pytest.raises(durable.SerializationError):
        env.start(takes, complex(1, 2))


def test_a_closed_environment_is_gone() -> None:
    """No thread stays behind, and calls say that it is closed."""
    before = set(threading.enumerate())
    env = Environment()
    handle = env.start(flows.round_robin, 1)
    env.close()
    with pytest.raises(durable.ClosedError):
        handle.status()
    assert set(threading.enumerate()) <= before


def test_importing_the_kit_imports_neither_ray_nor_pytest() -> None:
    """It is light, and pytest is no dependency."""
    script = "import ray_durable.testing, sys; sys.exit('ray' in sys.modules or 'pytest' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
