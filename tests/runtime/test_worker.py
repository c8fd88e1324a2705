"""What a worker does with a slice: budget, outcomes, failures, and what each call may know of itself."""

from __future__ import annotations

import asyncio
import pickle
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import ray_durable as durable
from ray_durable import registry
from ray_durable.codec import Codec
from ray_durable.errors import FunctionNotFoundError, StoreError
from ray_durable.failure import Failure
from ray_durable.function import DurableFunction
from ray_durable.payload import Payload
from ray_durable.reference import FunctionReference
from ray_durable.runtime.address import HubAddress
from ray_durable.runtime.hub import OpenHub
from ray_durable.runtime.loop_thread import LoopThread
from ray_durable.runtime.messages import SliceReport, SliceWork
from ray_durable.runtime.worker import run_slice
from ray_durable.runtime.workshop import HubWorkshop
from ray_durable.target import ActivityTarget
from tests.runtime import flows

CODEC = Codec()


@durable.activity
def describes_itself(value: int) -> dict[str, Any]:
    info = durable.current_activity()
    return {
        "task": info.task_id,
        "attempt": info.attempt,
        "key": info.idempotency_key,
        "item": info.item,
        "instance": info.instance_id,
    }


@durable.activity
def takes_a_while(value: int) -> int:
    time.sleep(0.02)
    return value


@durable.activity
async def sleeps_beside_others(value: int) -> int:
    await asyncio.sleep(0.02)
    return value


@durable.activity
def raises_one_kind_each(value: int) -> int:
    if value == 1:
        raise KeyboardInterrupt
    if value == 2:
        raise SystemExit(2)
    raise ValueError(f"no {value}")


@durable.activity
def returns_what_cannot_be_stored(value: int) -> Any:
    return object() if value == 1 else value


class Workshop:
    """`Workshop` of this process: results over 100 bytes count as stored."""

    def __init__(self) -> None:
        self.codec = CODEC
        self.stored: list[Payload] = []

    def load(self, reference: FunctionReference) -> DurableFunction:
        return registry.lookup(reference.name)

    def fetch(self, run: str, payload: Payload) -> Payload:
        return payload if payload.data is not None else payload.with_data(b"[7]")

    def offload(self, run: str, payload: Payload) -> Payload:
        if payload.size > 100:
            self.stored.append(payload)
        return payload


def target(function: DurableFunction, **changes: Any) -> ActivityTarget:
    reference = registry.reference_of(function)
    fields = {**reference.to_json(), **changes}
    return ActivityTarget(reference=FunctionReference.from_json(fields), options={}, is_local=False, key="k")


def calls(function: DurableFunction, *values: Any, budget_s: float = 10.0) -> SliceWork:
    return SliceWork(
        run="run",
        instance_id="one",
        target=target(function),
        budget_s=budget_s,
        count=len(values),
        attempts=[1] * len(values),
        keys=[f"run:{number}" for number in range(2, 2 + len(values))],
        calls=[CODEC.encode_call(function.calls, (value,), {}, where="x") for value in values],
    )


def batch(function: DurableFunction, *values: Any, first: int = 0, attempt: int = 1) -> SliceWork:
    return SliceWork(
        run="run",
        instance_id="one",
        target=target(function),
        budget_s=10.0,
        count=len(values),
        attempts=[attempt],
        keys=["run:5"],
        batch=CODEC.encode_batch(list(values), int, where="x"),
        first=first,
    )


def values_of(report: SliceReport) -> list[Any]:
    return [one.type_name if isinstance(one, Failure) else CODEC.decode(one, Any, where="x") for one in report.outcomes]


def test_calls_run_in_order() -> None:
    """One outcome each."""
    report = run_slice(calls(flows.same, 1, 2, 3), Workshop())
    assert (report.done, values_of(report)) == (3, [1, 2, 3])


def test_it_stops_when_the_budget_is_spent_but_does_one_at_least() -> None:
    """The rest is untouched, and nothing says it failed."""
    assert run_slice(calls(takes_a_while, *range(100), budget_s=0.0), Workshop()).done == 1
    report = run_slice(calls(takes_a_while, *range(100), budget_s=0.05), Workshop())
    assert 2 <= report.done < 10
    assert len(report.outcomes) == report.done


def test_async_calls_run_beside_each_other() -> None:
    """A hundred that sleep take as long as a few."""
    began_s = time.perf_counter()
    report = run_slice(calls(sleeps_beside_others, *range(100)), Workshop())
    assert report.done == 100
    assert values_of(report) == list(range(100))
    assert time.perf_counter() - began_s < 1.0


def test_what_a_call_raises_is_its_outcome() -> None:
    """Also what would end the process; the calls after it run."""
    report = run_slice(calls(raises_one_kind_each, 1, 2, 3), Workshop())
    assert values_of(report) == ["KeyboardInterrupt", "SystemExit", "ValueError"]


def test_what_an_async_call_raises_is_its_outcome() -> None:
    """The calls beside it are not disturbed."""
    report = run_slice(calls(flows.async_raises, 1, 2), Workshop())
    assert values_of(report) == ["ValueError", 2]


def test_items_that_fail_are_told_by_their_place() -> None:
    """The results are of the others, in order."""
    report = run_slice(batch(flows.odd_fails_quietly, 4, 5, 6, 7, first=10), Workshop())
    assert report.done == 4
    assert [(offset, failure.message) for offset, failure in report.failures] == [(1, "5 is odd"), (3, "7 is odd")]
    assert report.results is not None
    assert CODEC.decode_batch(report.results, int, where="x") == [4, 6]


def test_a_result_that_cannot_be_stored_fails_its_call_alone() -> None:
    """SerializationError that names the type; trying again would not help."""
    report = run_slice(calls(returns_what_cannot_be_stored, 1, 2), Workshop())
    assert values_of(report) == ["SerializationError", 2]
    failure = report.outcomes[0]
    assert isinstance(failure, Failure)
    assert failure.non_retryable
    mapped = run_slice(batch(returns_what_cannot_be_stored, 1, 2), Workshop())
    assert [(offset, failure.type_name) for offset, failure in mapped.failures] == [(0, "SerializationError")]
    assert mapped.results is not None
    assert CODEC.decode_batch(mapped.results, Any, where="x") == [2]


def test_arguments_that_no_longer_fit_fail_their_call_alone() -> None:
    """The function was changed while the instance ran; the failure is not retried."""
    work = calls(flows.same, 1, 2)
    work.calls[0] = Payload.of("json", b'["not a number"]')
    report = run_slice(work, Workshop())
    assert values_of(report) == ["SerializationError", 2]


def test_arguments_that_are_a_blob_are_fetched() -> None:
    """The dispatcher hands on references alone."""
    work = calls(flows.same, 1)
    work.calls[0] = Payload(encoding="json", data=None, size=3, blob="ab" * 32)
    assert values_of(run_slice(work, Workshop())) == [7]


def test_large_results_are_stored_from_here() -> None:
    """Each call's own, and a batch as one."""
    workshop = Workshop()
    run_slice(calls(flows.letters_quietly, 10, 200), workshop)
    assert len(workshop.stored) == 1
    run_slice(batch(flows.letters_quietly, 200, 200), workshop)
    assert len(workshop.stored) == 2


def test_each_call_knows_its_task_attempt_and_key() -> None:
    """The key is stable over attempts: it is made of the run and the first attempt's task, and of the item."""
    work = calls(describes_itself, 1)
    work.attempts = [3]
    (single,) = values_of(run_slice(work, Workshop()))
    assert single == {"task": "2", "attempt": 3, "key": "run:2", "item": None, "instance": "one"}
    report = run_slice(batch(describes_itself, 1, 2, first=10, attempt=2), Workshop())
    assert report.results is not None
    assert CODEC.decode_batch(report.results, Any, where="x")[1] == {
        "task": "5",
        "attempt": 2,
        "key": "run:5:11",
        "item": 11,
        "instance": "one",
    }


def test_a_function_that_cannot_be_loaded_is_no_failure_of_its_calls() -> None:
    """Nothing ran; the reason is told."""

    class Empty(Workshop):
        def load(self, reference: FunctionReference) -> DurableFunction:
            raise FunctionNotFoundError("not deployed", name=reference.name)

    report = run_slice(calls(flows.same, 1), Empty())
    assert (report.done, report.outcomes) == (0, [])
    assert report.unresolved is not None
    assert report.unresolved.message == "not deployed"


def test_a_name_that_is_an_orchestrator_now_is_not_run() -> None:
    """Somebody changed the decorator."""
    work = calls(flows.same, 1)
    work.target = target(flows.chain)
    report = run_slice(work, Workshop())
    assert report.unresolved is not None
    assert "is no activity" in report.unresolved.message


def test_a_worker_that_holds_an_older_source_runs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The module on disk is the newer one that the call names: a fresh process must do it."""
    work = calls(flows.same, 1)
    current = work.target.reference.source
    monkeypatch.setattr(registry, "source_digest", lambda module: "older")
    assert current is not None
    assert run_slice(work, Workshop()).is_stale


RUN = "5f" * 16


def test_a_worker_s_way_to_its_hub(tmp_path: Path) -> None:
    """Functions by import, payloads over the limit through the store and back; the bytes do not come along."""
    address = HubAddress(root=str(tmp_path / "root"), hub="hub")
    client = LoopThread(name="test")
    try:
        hub = client.run(OpenHub.open(address))
        client.run(hub.create())
        workshop = HubWorkshop(address)
        reference = registry.reference_of(flows.same)
        assert workshop.load(reference) is flows.same
        small, large = Payload.of("json", b"1"), Payload.of("json", b'"' + b"x" * 100_000 + b'"')
        assert workshop.offload(RUN, small) is small
        stored = workshop.offload(RUN, large)
        assert stored.data is None
        assert workshop.fetch(RUN, stored).bytes == large.bytes
        assert workshop.fetch(RUN, small) is small
        with pytest.raises(FunctionNotFoundError):
            workshop.load(FunctionReference(name="gone", module="no_such_module", qualname="gone"))
    finally:
        client.stop()


@durable.activity
def takes_numbers(value: int) -> int:
    flows.runs["takes_numbers"] += 1
    return value


@durable.activity
def utters(value: int) -> int:
    durable.current_activity().heartbeat("x" * value)
    if value == 2:
        raise ValueError("no")
    return value


@durable.activity
def listens(value: int) -> list[Any]:
    info = durable.current_activity()
    before = info.heartbeat_details
    info.heartbeat("now")
    info.heartbeat()
    return [before, info.heartbeat_details, info.is_cancelled]


@durable.activity
def pickles_its_info(value: int) -> Any:
    copy: durable.ActivityInfo = pickle.loads(pickle.dumps(durable.current_activity()))
    copy.heartbeat("unheard")
    return copy.heartbeat_details


class FullStore(Workshop):
    """Its store takes nothing."""

    def offload(self, run: str, payload: Payload) -> Payload:
        if payload.size > 100:
            raise StoreError("No space left on device", url="file:///full")
        return payload


class BrokenCodec(Codec):
    """Its writing part has a fault."""

    def encode(self, value: Any, annotation: Any = Any, *, where: str) -> Payload:
        if value == "bad":
            raise AttributeError("the fault")
        return super().encode(value, annotation, where=where)

    def encode_batch(self, values: Sequence[Any], annotation: Any = Any, *, where: str) -> Payload:
        if "bad" in values:
            raise SystemExit("the fault")
        return super().encode_batch(values, annotation, where=where)


def test_items_that_no_longer_fit_fail_and_are_not_run() -> None:
    """The function was changed while the instance ran; no worker counts as lost, so nothing runs twice."""
    work = batch(takes_numbers, 1, 2)
    work.batch = CODEC.encode_batch([["a"], ["b"]], list[str], where="x")
    report = run_slice(work, Workshop())
    assert report.done == 2
    assert [(offset, failure.type_name, failure.kind) for offset, failure in report.failures] == [
        (0, "SerializationError", "application"),
        (1, "SerializationError", "application"),
    ]
    assert report.results is not None
    assert CODEC.decode_batch(report.results, int, where="x") == []
    assert flows.runs["takes_numbers"] == 0


def test_an_item_that_no_longer_fits_fails_alone() -> None:
    """Among seven others, which run; the error names its place in the map."""
    work = batch(takes_numbers, *range(8), first=100)
    work.batch = CODEC.encode_batch([0, 1, 2, 3, 4, "five", 6, 7], Any, where="x")
    report = run_slice(work, Workshop())
    ((offset, failure),) = report.failures
    assert (offset, failure.type_name) == (5, "SerializationError")
    assert "item 105 of activity 'takes_numbers'" in failure.message
    assert report.results is not None
    assert CODEC.decode_batch(report.results, int, where="x") == [0, 1, 2, 3, 4, 6, 7]
    assert flows.runs["takes_numbers"] == 7


def test_what_failed_calls_said_last_is_reported() -> None:
    """Of those that returned it is of no more use. Details that are too large are refused."""
    report = run_slice(calls(utters, 1, 2, 20_000), Workshop())
    assert values_of(report) == [1, "ValueError", "PayloadTooLargeError"]
    assert {offset: said.bytes for offset, said in report.heartbeats.items()} == {1: b'"xx"'}


def test_a_call_reads_what_the_attempt_before_said() -> None:
    """Until it says something itself."""
    work = calls(listens, 1)
    work.heartbeats = {0: CODEC.encode({"at": 7}, where="x")}
    assert values_of(run_slice(work, Workshop())) == [[{"at": 7}, "now", False]]


def test_an_info_that_is_pickled_leaves_the_worker_behind() -> None:
    """For the processes that an activity starts: there, heartbeats do nothing."""
    assert values_of(run_slice(calls(pickles_its_info, 1), Workshop())) == [None]


def test_a_result_that_the_store_does_not_take_fails_its_call() -> None:
    """It is the system's fault, and the calls beside it keep their results; of a batch, all results are one."""
    report = run_slice(calls(flows.letters_quietly, 10, 200, 20), FullStore())
    assert values_of(report) == ["x" * 10, "StoreError", "x" * 20]
    failure = report.outcomes[1]
    assert isinstance(failure, Failure)
    assert (failure.kind, failure.non_retryable) == ("system", False)
    mapped = run_slice(batch(flows.letters_quietly, 10_000, -1), FullStore())
    assert [(offset, failure.kind) for offset, failure in mapped.failures] == [(0, "system"), (1, "system")]


@pytest.mark.parametrize("function", [flows.same_quietly, flows.same_quietly_async])
def test_a_fault_in_the_encoding_of_a_result_fails_its_call_alone(function: DurableFunction) -> None:
    """Whatever kind of exception it is, the others keep their results."""
    workshop = Workshop()
    workshop.codec = BrokenCodec()
    assert values_of(run_slice(calls(function, 1, "bad", 3), workshop)) == [1, "AttributeError", 3]
    work = batch(function, 1, 2)
    work.batch, work.count = CODEC.encode_batch([1, "bad", 3], Any, where="x"), 3
    mapped = run_slice(work, workshop)
    assert [(offset, failure.type_name) for offset, failure in mapped.failures] == [(1, "AttributeError")]
    assert mapped.results is not None
    assert CODEC.decode_batch(mapped.results, Any, where="x") == [1, 3]


def test_a_module_that_exits_when_it_is_loaded_is_no_failure_of_the_calls() -> None:
    """Nothing ran; the reason is told."""

    class Exits(Workshop):
        def load(self, reference: FunctionReference) -> DurableFunction:
            raise SystemExit("no GPU")

    report = run_slice(calls(flows.same, 1), Exits())
    assert report.unresolved is not None
    assert report.unresolved.describe() == "SystemExit: no GPU"
