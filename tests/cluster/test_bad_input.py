"""What cannot work is refused with a typed error that says what to do, and nothing else is harmed."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import ray_durable as durable
from ray_durable.engine import ExecutionStarted
from tests.cluster import flows
from tests.cluster.harness import executions, kill_owner, wait_until


@pytest.fixture(autouse=True)
def unharmed(hub: durable.Hub, instance_id: str) -> Iterator[None]:
    """An instance that was there before the mishap, and one that starts after it, complete."""
    neighbour = hub.start(flows.asks_approval, instance_id=f"neighbour of {hash(instance_id)}")
    yield
    neighbour.raise_event("Approval", "well")
    assert neighbour.result(60) == "well"
    assert hub.start(flows.march, 1).result(60) == 1


@pytest.mark.parametrize(
    ("orchestrator", "texts"),
    [
        (flows.passes_a_lock, ["SerializationError", "argument 'value' of activity 'takes_anything'", "lock"]),
        (flows.gets_a_lock, ["SerializationError", "result of activity 'returns_a_lock'", "lock"]),
        (flows.ends_with_a_lock, ["SerializationError", "result of orchestrator 'ends_with_a_lock'", "lock"]),
        (flows.passes_too_much, ["PayloadTooLargeError", "arguments of activity 'measure'"]),
        (flows.calls_unknown, ["FunctionNotFoundError", "step_onn", "Did you mean 'step_on'"]),
    ],
    ids=lambda value: value.name if isinstance(value, durable.Orchestrator) else "",
)
def test_bad_value_fails_its_instance(
    hub: durable.Hub, instance_id: str, orchestrator: durable.Orchestrator[..., Any], texts: list[str]
) -> None:
    """A value that cannot travel, or a name that nobody has, fails the instance where it was used; a call that was
    made has run once."""
    handle = hub.start(orchestrator, instance_id=instance_id)
    with pytest.raises(durable.OrchestrationFailedError) as caught:
        handle.result(60)
    for text in texts:
        assert text in str(caught.value)
    assert len(executions(instance_id)) <= 1


def test_activity_that_raises(hub: durable.Hub, instance_id: str) -> None:
    """What an activity raises arrives with type, message and traceback."""
    with pytest.raises(durable.OrchestrationFailedError, match="ValueError: no such photo") as caught:
        hub.start(flows.calls_raises, "no such photo", instance_id=instance_id).result(60)
    assert "Activity function 'raises' failed" in str(caught.value)
    assert caught.value.failure.type_name == "ActivityError"


def test_bad_arguments_of_a_start(hub: durable.Hub, instance_id: str) -> None:
    """They are refused at the call, and the id stays free."""
    with pytest.raises(durable.SerializationError, match="argument 'word' of orchestrator 'speaks': expected str"):
        hub.start(flows.speaks, threading.Lock(), 1, instance_id=instance_id)
    with pytest.raises(TypeError, match="count"):
        hub.start(flows.march, instance_id=instance_id)
    with pytest.raises(durable.PayloadTooLargeError, match=r"limit|at most"):
        hub.start(flows.speaks, "x" * (256 * 1024 * 1024), 1, instance_id=instance_id)
    assert not hub.instances(prefix=instance_id)
    assert hub.start(flows.march, 1, instance_id=instance_id).result(60) == 1


def test_bad_event(hub: durable.Hub, instance_id: str) -> None:
    """An event that cannot travel, or has no proper name, is refused; one for nobody, too."""
    handle = hub.start(flows.asks_approval, instance_id=instance_id)
    with pytest.raises(durable.SerializationError, match="value of event 'Approval'"):
        handle.raise_event("Approval", threading.Lock())
    for name in ("", "two\nlines", "x" * 257):
        with pytest.raises(durable.InvalidIdError):
            handle.raise_event(name, "yes")
    with pytest.raises(durable.InstanceNotFoundError, match="nobody"):
        hub.get("nobody").raise_event("Approval", "yes")
    handle.raise_event("Approval", "yes")
    assert handle.result(60) == "yes"


def test_event_of_the_wrong_type_fails_the_wait(hub: durable.Hub, instance_id: str) -> None:
    """A value that is not what the orchestrator waits for fails it with both types."""
    handle = hub.start(flows.collects, 1, instance_id=instance_id)
    handle.raise_event("Number", "seven")
    with pytest.raises(durable.OrchestrationFailedError, match="event 'Number'"):
        handle.result(60)


@pytest.mark.parametrize(
    "given", [lambda ctx: None, flows.note, flows.step_on, 3], ids=["lambda", "function", "activity", "number"]
)
def test_no_orchestrator(hub: durable.Hub, instance_id: str, given: Any) -> None:
    """Only orchestrators can be started."""
    with pytest.raises(durable.InvalidOrchestratorError, match="is no orchestrator"):
        hub.start(given, instance_id=instance_id)


def test_unknown_orchestrator_name(hub: durable.Hub, instance_id: str) -> None:
    """A name that nobody has is refused with a close one."""
    with pytest.raises(durable.FunctionNotFoundError, match="Did you mean 'march'"):
        hub.start("marsh", instance_id=instance_id)


def test_duplicate_id(hub: durable.Hub, instance_id: str) -> None:
    """An id is taken while its instance lives, and afterwards if that is wanted; its instance is unharmed."""
    handle = hub.start(flows.asks_approval, instance_id=instance_id)
    with pytest.raises(durable.InstanceExistsError, match="already exists"):
        hub.start(flows.march, 1, instance_id=instance_id)
    handle.raise_event("Approval", "yes")
    assert handle.result(60) == "yes"
    with pytest.raises(durable.InstanceExistsError, match="Completed"):
        hub.start(flows.march, 1, instance_id=instance_id, reuse="never")
    assert handle.result(60) == "yes"


@pytest.mark.parametrize("name", ["", "line\nbreak", "nul\0", "x" * 300])
def test_id_that_is_not_allowed(hub: durable.Hub, name: str) -> None:
    """Ids have 1 to 256 printable characters."""
    with pytest.raises(durable.InvalidIdError):
        hub.start(flows.march, 1, instance_id=name)
    with pytest.raises(durable.InvalidIdError):
        hub.get(name)


@pytest.mark.parametrize("name", ["a/b", "../../etc", "..", ".", "photos of Zoë", "a%2Fb", "x" * 256])
def test_id_with_an_odd_look(hub: durable.Hub, name: str) -> None:
    """Any other id works as it is, or is refused; none leaves its folder."""
    before = set(Path(hub.address.root).parent.iterdir())
    try:
        handle = hub.start(flows.collects, 0, instance_id=name)
    except durable.InvalidIdError:
        pass
    else:
        assert handle.result(60) == []
        assert [one.instance_id for one in hub.instances(prefix=name) if one.instance_id == name] == [name]
    assert set(Path(hub.address.root).parent.iterdir()) == before


def test_root_that_cannot_be_written(tmp_path: Path) -> None:
    """A file in the way, or a file system that takes no files."""
    (tmp_path / "file").write_text("in the way")
    for root in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/ray_durable")):
        with pytest.raises(durable.StoreError, match="root"):
            durable.connect(root)


@pytest.mark.parametrize("root", ["ftp://127.0.0.1:9/root", "memory://root"])
def test_store_that_cannot_hold_a_hub(root: str) -> None:
    """One that cannot create atomically, or that other processes do not see, is refused with those that will do."""
    with pytest.raises(durable.UnsupportedStoreError, match=r"(?i)s3"):
        durable.connect(root)


def test_damaged_log_stops_its_instance_alone(hub: durable.Hub, instance_id: str) -> None:
    """An instance whose log is damaged says so in its status and waits; once mended, it goes on."""
    handle = hub.start(flows.steps_then_approval, 5, instance_id=instance_id)
    wait_until(lambda: handle.status().progress.done == 5, "the steps are made")
    run = next(event.run for event in handle.history() if isinstance(event, ExecutionStarted))
    segment = next(Path(hub.address.root).rglob(f"runs/*/{run}/log/*/*{2:012}"))
    sound = segment.read_bytes()
    segment.write_bytes(sound.replace(b"step_on", b"step_no"))
    kill_owner(handle)
    problem = wait_until(lambda: handle.status().problem, "the status shows the problem")
    assert "CorruptLogError" in problem
    assert f"{2:012}" in problem
    segment.write_bytes(sound)
    handle.raise_event("Approval", "mended")
    assert handle.result(60) == "mended after 5"
