"""What goes wrong around an instance: it waits, says why, goes on once that is mended, and harms no other."""

from __future__ import annotations

import asyncio
import importlib
import sys
from pathlib import Path
from typing import Any

import pytest

from ray_durable import registry
from ray_durable.authoring import Orchestrator
from ray_durable.engine import ExecutionCompleted, OwnerClaimed, RuntimeStatus, TaskScheduled
from ray_durable.errors import InstanceNotFoundError, StoreError, StoreUnavailableError
from ray_durable.runtime.lifecycle import Start, open_entry, start_instance
from ray_durable.storage import decode_segment, find_open
from tests.runtime import flows
from tests.support.skipping_loop import simulate, simulated
from tests.support.world import SpyStore, World


async def noted_problem(world: World, instance_id: str = "one") -> str | None:
    """What the open set says."""
    entry = await find_open(world.objects, world.hub.keys, instance_id)
    return entry.problem if entry is not None else None


@simulated
async def test_a_function_that_cannot_be_loaded_keeps_its_calls_waiting() -> None:
    """The status names it; once the workers have it, the calls run, and the problem is gone."""
    world = World()
    world.workers.missing.add("add_one")
    await world.start(flows.chain, 1)
    owner = world.own()
    await asyncio.sleep(100)
    problem = (await world.status()).problem
    assert problem is not None
    assert "'add_one' cannot be loaded" in problem
    assert not owner.task.done()
    world.workers.missing.clear()
    await asyncio.sleep(60)
    await owner.ended()
    assert await world.result() == 1
    assert (await world.status()).problem is None
    assert owner.instance.problem is None


@simulated
async def test_a_function_that_cannot_be_loaded_holds_up_no_other() -> None:
    """Calls of other functions run meanwhile, and the problem stays visible."""
    world = World()
    world.workers.missing.add("double")
    await world.start(flows.two_functions)
    owner = world.own()
    await asyncio.sleep(20)
    assert flows.runs == {"add_one 1": 1}
    problem = (await world.status()).problem
    assert problem is not None
    assert "'double'" in problem
    world.workers.missing.clear()
    await owner.ended()
    assert await world.result() == [2, 2]


@simulated
async def test_tries_to_load_a_function_become_rare() -> None:
    """An hour of waiting costs about a hundred and twenty tries, not thousands."""
    world = World()
    world.workers.missing.add("add_one")
    await world.start(flows.chain, 1)
    owner = world.own()
    await asyncio.sleep(3_600)
    assert 60 < len(world.workers.launched) < 150
    await owner.kill()


@simulated
async def test_replay_of_changed_code_ends_as_failed_with_the_difference() -> None:
    """NonDeterminismError shows both sides and the line; the history before it is untouched."""
    world = World()
    await world.start(flows.versioned)
    first = world.own()
    await world.until(lambda: len(first.store.segments) == 2)
    await first.kill()
    before = await world.history()
    flows.Version.number = 2
    second = world.own()
    await second.ended()
    failure = await world.failure()
    assert failure.type_name == "NonDeterminismError"
    assert "TaskScheduled(name='add_one'" in failure.message
    assert "TaskScheduled(name='double'" in failure.message
    assert "flows.py:" in failure.message
    history = await world.history()
    assert history[: len(before)] == before
    assert [type(event) for event in history[len(before) :]] == [ExecutionCompleted]
    assert (await world.status()).runtime_status is RuntimeStatus.FAILED
    assert await find_open(world.objects, world.hub.keys, "one") is None


@simulated
async def test_replay_of_changed_code_ends_the_activities_of_the_instance() -> None:
    """Nobody waits for them any more: the dispatcher forgets the run."""
    world = World()
    world.workers.holds = lambda work: True
    await world.start(flows.versioned)
    first = world.own()
    await world.until(lambda: world.workers.held)
    await first.kill()
    flows.Version.number = 2
    await world.own().ended()
    await world.settle()
    assert world.workers.launched[0].is_cancelled
    assert world.dispatcher is not None
    assert world.dispatcher.snapshot()["runs"] == 0


MODULE = """
import ray_durable as durable

@durable.orchestrator
async def of_a_module(ctx):
    return "mended"
"""


def test_an_orchestrator_that_cannot_be_imported_waits_until_it_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The problem names it, also for later owners; the log is not touched; once it is back, the instance goes on."""
    monkeypatch.syspath_prepend(str(tmp_path))
    file = tmp_path / "module_that_comes_and_goes.py"
    file.write_text(MODULE)
    module: Any = importlib.import_module("module_that_comes_and_goes")
    function: Orchestrator[..., Any] = module.of_a_module

    async def scenario() -> None:
        world = World()
        await world.start(function)
        del sys.modules["module_that_comes_and_goes"]
        file.unlink()
        importlib.invalidate_caches()
        first = world.own()
        await asyncio.sleep(20)
        problem = (await world.status()).problem
        assert problem is not None
        assert "of_a_module" in problem
        assert first.store.segments == []
        await first.kill()
        second = world.own()
        await asyncio.sleep(20)
        file.write_text(MODULE)
        importlib.invalidate_caches()
        await second.ended()
        assert await world.result() == "mended"

    simulate(scenario())
    sys.modules.pop("module_that_comes_and_goes", None)


def test_an_orchestrator_that_cannot_be_imported_can_be_terminated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its end needs no code; a lone surrogate in the reason is no hindrance; what else waits is refused."""
    monkeypatch.syspath_prepend(str(tmp_path))
    file = tmp_path / "module_that_goes.py"
    file.write_text(MODULE)
    module: Any = importlib.import_module("module_that_goes")

    async def scenario() -> None:
        world = World()
        await world.start(module.of_a_module)
        del sys.modules["module_that_goes"]
        file.write_text("raise SystemExit('no GPU')")
        importlib.invalidate_caches()
        owner = world.own()
        await asyncio.sleep(1)
        payload = world.hub.codec.encode("yes", where="test")
        answers = await asyncio.gather(
            owner.instance.raise_event("Approval", payload, "e1"),
            owner.instance.terminate("not needed \udc80", "r1"),
            owner.instance.terminate("not needed \udc80", "r1"),
            owner.instance.terminate("late", "r2"),
            return_exceptions=True,
        )
        assert [type(answer).__name__ for answer in answers] == [
            "InstanceEndedError",
            "NoneType",
            "NoneType",
            "InstanceEndedError",
        ]
        await owner.ended()
        status, failure = await world.status(), await world.failure()
        assert status.runtime_status is RuntimeStatus.TERMINATED
        assert (failure.kind, failure.type_name) == ("cancelled", "OrchestrationTerminatedError")
        assert failure.message == "not needed \udc80"
        names = [type(event).__name__ for event in await world.history()]
        assert names == ["ExecutionStarted", "ExecutionTerminated", "ExecutionCompleted"]
        assert await find_open(world.objects, world.hub.keys, "one") is None
        await world.own().ended()

    simulate(scenario())
    sys.modules.pop("module_that_goes", None)


@simulated
async def test_a_fault_while_loading_is_said_and_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    """Neither an endless row of owners that die, nor silence: status and log tell, and it goes on once mended."""
    world = World()
    await world.start(flows.chain, 1)

    async def fault(operation: str, key: str) -> None:
        if operation == "list" and owner.instance.problem is None:
            raise ZeroDivisionError("a \udc80 fault")

    owner = world.own()
    owner.store.before = fault
    await asyncio.sleep(1)
    assert not owner.task.done()
    problem = (await world.status()).problem
    assert problem is not None
    assert "ZeroDivisionError: a \\udc80 fault" in problem
    assert "a bug in ray_durable or a damaged environment" in problem
    assert "Traceback" in caplog.text
    await owner.ended()
    assert await world.result() == 1
    assert (await world.status()).problem is None


@simulated
async def test_a_fault_while_serving_is_said_and_the_log_loaded_anew(caplog: pytest.LogCaptureFixture) -> None:
    """Whoever waits hears that the outcome is unknown, and may ask again."""
    world = World()
    await world.start(flows.approval)
    owner = world.own()
    await world.until(lambda: owner.store.segments)
    await world.settle()

    async def fault(operation: str, key: str) -> None:
        if operation == "put_if_absent":
            raise ZeroDivisionError("a fault")

    owner.store.before = fault
    payload = world.hub.codec.encode("yes", where="test")
    with pytest.raises(StoreUnavailableError, match="Outcome unknown: ZeroDivisionError"):
        await owner.instance.raise_event("Approval", payload, "e\udc80")
    owner.store.before = None
    await asyncio.sleep(1)
    problem = (await world.status()).problem
    assert problem is not None
    assert "ZeroDivisionError: a fault" in problem
    assert "Traceback" in caplog.text
    await owner.instance.raise_event("Approval", payload, "e\udc80")
    await owner.instance.raise_event("Approval", payload, "e2")
    await owner.ended()
    assert await world.result() == ["yes", "yes"]


@simulated
async def test_a_problem_that_an_earlier_owner_noted_is_cleared_by_the_next() -> None:
    """The one that noted it died; the next one has no trouble, and the status does not speak of any."""
    world = World()
    await world.start(flows.approval)
    await world.hub.note_problem("one", "the orchestrator cannot be imported")
    owner = world.own()
    await world.until(lambda: owner.store.segments)
    await world.settle()
    assert (await world.status()).problem is None
    await owner.kill()


@simulated
async def test_a_damaged_segment_is_named_and_harms_no_other_instance() -> None:
    """Nothing is guessed and nothing written; the other instance ends; once restored, this one goes on."""
    world = World()
    await world.start(flows.approval)
    first = world.own()
    await world.until(lambda: first.store.segments)
    await first.kill()
    key = first.store.segments[0]
    good = await world.objects.get(key)
    assert good is not None
    await world.objects.put(key, good.replace(b"OwnerClaimed", b"OwnerCLaimed"))
    owner = world.own()
    assert await world.run(flows.chain, 2, instance_id="two") == 2
    await asyncio.sleep(20)
    problem = await noted_problem(world)
    assert problem is not None
    assert key in problem
    assert "CorruptLogError" in problem
    assert owner.store.segments == []
    await world.objects.put(key, good)
    payload = world.hub.codec.encode("yes", where="test")
    await owner.instance.raise_event("Approval", payload, "e1")
    await owner.instance.raise_event("Approval", payload, "e2")
    await owner.ended()


def test_a_turn_that_is_too_large_fails_the_instance_and_writes_nothing_of_it() -> None:
    """The failure names the limit; the segment before is followed by the end alone; the caller gets an answer."""

    @simulated
    async def scenario() -> None:
        world = World()
        await world.start(flows.large_calls, 17_500, 4_000)
        owner = world.own()
        await world.until(lambda: owner.store.segments)
        before = await world.history()
        payload = world.hub.codec.encode(None, where="test")
        answers = await asyncio.gather(
            owner.instance.raise_event("Go", payload, "go"),
            owner.instance.raise_event("Other", payload, "other"),
            return_exceptions=True,
        )
        assert [type(answer).__name__ for answer in answers] == ["InstanceEndedError", "InstanceEndedError"]
        await owner.ended()
        history = await world.history()
        assert history[: len(before)] == before
        assert [type(event) for event in history[len(before) :]] == [ExecutionCompleted]
        failure = await world.failure()
        assert failure.type_name == "PayloadTooLargeError"
        assert "ctx.map" in failure.message
        assert world.workers.launched == []

    scenario()


@simulated
async def test_a_first_turn_that_is_too_large_fails_the_instance() -> None:
    """What the orchestrator asks for at once belongs to the claim: that is no problem to wait for."""
    world = World()
    await world.start(flows.large_first_calls, 17_500, 4_000)
    await world.own().ended()
    assert (await world.failure()).type_name == "PayloadTooLargeError"
    assert [type(event).__name__ for event in await world.history()] == ["ExecutionStarted", "ExecutionCompleted"]


@simulated
async def test_inputs_that_are_too_large_together_are_stored_beside_the_log() -> None:
    """Each is under the inline limit; the segment that schedules them refers to blobs, and a new owner reads them."""
    world = World()
    world.workers.holds = lambda work: True
    await world.start(flows.large_calls, 1_100, 64_000)
    first = world.own()
    await world.until(lambda: first.store.segments)
    await first.instance.raise_event("Go", world.hub.codec.encode(None, where="test"), "go")
    await world.until(lambda: len(first.store.segments) == 2)
    await first.kill()
    data = await world.objects.get(first.store.segments[1])
    assert data is not None
    assert len(data) < 1_000_000
    world.workers.holds = lambda work: False
    for held in list(world.workers.held):
        held.finish()
    await world.own().ended()
    assert await world.result() == 1_100 * 64_000


@simulated
async def test_outcomes_that_are_too_large_together_are_recorded_in_several_turns() -> None:
    """Each result is small enough; that many of them arrive at once is no fault of the orchestrator's."""
    world = World()
    world.workers.slot_count = 1_200
    world.workers.holds = lambda work: True
    await world.start(flows.large_results, 1_200, 60_000)
    owner = world.own()
    await world.until(lambda: sum(held.work.count for held in world.workers.held) == 1_200)
    for held in list(world.workers.held):
        held.finish()
    await owner.ended()
    assert await world.result() == 1_200 * 60_000
    assert 5 <= len(owner.store.segments) <= 8


@simulated
async def test_a_store_that_is_down_for_an_hour_costs_an_hour() -> None:
    """The owner waits, says so, and goes on: no activity runs twice, nothing is lost."""
    world = World()
    await world.start(flows.chain, 3)
    owner = world.own()
    await world.until(lambda: len(owner.store.segments) == 2)

    async def down(operation: str, key: str) -> None:
        raise StoreUnavailableError("503 Slow Down", url=owner.store.url)

    owner.store.before = down
    await asyncio.sleep(3_600)
    assert owner.instance.problem is not None
    assert "503" in owner.instance.problem
    assert not owner.task.done()
    owner.store.before = None
    await owner.ended()
    assert await world.result() == 3
    assert set(flows.runs.values()) == {1}


@simulated
async def test_a_store_that_refuses_for_a_while_is_taken_up_again() -> None:
    """Credentials expire, and are renewed: the owner reads the log anew, claims it, and goes on."""
    world = World()
    await world.start(flows.approval)
    owner = world.own()
    await world.until(lambda: owner.store.segments)
    await world.settle()

    async def refuse(operation: str, key: str) -> None:
        if operation == "put_if_absent":
            raise StoreError("403 Forbidden: the credentials have expired", url=owner.store.url)

    owner.store.before = refuse
    payload = world.hub.codec.encode("yes", where="test")
    with pytest.raises(StoreUnavailableError, match="Outcome unknown"):
        await owner.instance.raise_event("Approval", payload, "e1")
    await asyncio.sleep(20)
    assert owner.instance.problem is not None
    assert "403" in owner.instance.problem
    owner.store.before = None
    await owner.instance.raise_event("Approval", payload, "e1")
    await owner.instance.raise_event("Approval", payload, "e2")
    await owner.ended()
    assert [event.epoch for event in await world.history() if isinstance(event, OwnerClaimed)] == [1, 2]
    assert (await world.status()).problem is None


@simulated
async def test_an_instance_that_is_not_there_is_not_waited_for() -> None:
    """Its owner stops at once, with the id."""
    world = World()
    with pytest.raises(InstanceNotFoundError) as caught:
        await world.own("nobody").ended()
    assert caught.value.instance_id == "nobody"


@simulated
async def test_a_result_whose_blob_is_missing_is_a_problem_that_names_it() -> None:
    """The worker said that it stored the result, and it is not there: the instance waits for the object."""
    world = World()
    world.workers.holds = lambda work: True
    await world.start(flows.large, "x" * 70_000)
    spy = SpyStore(world.objects)
    owner = world.own(store=spy)
    await world.until(lambda: world.workers.held)
    known = {key for _, key in spy.calls}
    held = world.workers.held[0]
    held.finish()
    stored = await world.objects.list_folder(f"{world.hub.keys.log(held.work.run)[: -len('log/')]}blobs/")
    blobs = [world.hub.keys.blob(held.work.run, digest) for digest in stored]
    (blob,) = [key for key in blobs if key not in known and key not in {call[1] for call in spy.calls}]
    data = await world.objects.get(blob)
    assert data is not None
    await world.objects.delete_many([blob])
    world.workers.holds = lambda work: False
    await asyncio.sleep(20)
    problem = await noted_problem(world)
    assert problem is not None
    assert blob in problem
    await world.objects.put(blob, data)
    await owner.ended()
    assert await world.result() == 350_001
    assert flows.runs["repeat 2"] == 1


@simulated
async def test_headers_tell_the_status_after_every_turn() -> None:
    """A reader of the last segment alone sees status, progress and owner."""
    world = World()
    await world.start(flows.fan, 3)
    owner = world.own()
    await owner.ended()
    shown = []
    for key in owner.store.segments:
        data = await world.objects.get(key)
        assert data is not None
        status = decode_segment(key, data).header.status
        shown.append((status["runtime_status"], status["progress"]["done"], status["progress"]["total"]))
    assert shown[0] == ("Running", 0, 3)
    assert shown[-1] == ("Completed", 3, 3)
    status_now = await world.status()
    assert status_now.owner is not None
    assert (status_now.owner.host, status_now.owner.epoch) == ("here", 1)
    assert sum(isinstance(event, TaskScheduled) for event in await world.history()) == 3


@simulated
async def test_a_source_that_changed_is_a_warning_in_the_status() -> None:
    """The instance goes on with the code of now; its status names the module and both digests."""
    world = World()
    reference = {**registry.reference_of(flows.chain).to_json(), "source": "0" * 64}
    start = Start(
        instance_id="one",
        name=flows.chain.name,
        input=world.hub.codec.encode_call(flows.chain.calls, (2,), {}, where="test"),
        request_id="r",
        reference=reference,
    )
    await start_instance(world.hub, start, now_us=world.clock.now_us())
    await world.own().ended()
    (warning,) = (await world.status()).warnings
    assert "tests.runtime.flows" in warning
    assert "0" * 12 in warning


@simulated
async def test_of_a_long_problem_the_beginning_is_noted() -> None:
    """Texts of errors may be of any length, and are not to be another trouble."""
    world = World()
    await world.start(flows.chain, 1)
    await world.hub.enter(open_entry(await world.hub.started("one"), 0))
    await world.hub.note_problem("one", "it is \udc80" + "\udc80" * 3_000_000)
    problem = await noted_problem(world)
    assert problem is not None
    assert problem.startswith("it is ")
    assert problem.endswith("[... 3,000,007 characters in all]")
