"""No byte of a store reaches unpickling unless it is authentic: pickles that prove their execution, in every place.

The attacker can write to the bucket and has no key. Hubs are in memory, which nobody trusts by itself.
"""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import hashlib
import json
import pickle
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

import verify
from ray_durable.engine import (
    ContinueAsNew,
    CustomStatusSet,
    Event,
    EventRaised,
    EventSent,
    ExecutionCompleted,
    ExecutionStarted,
    MapCompleted,
    MapScheduled,
    MarkerRecorded,
    SubOrchestrationInstanceCompleted,
    SubOrchestrationInstanceCreated,
    TaskCompleted,
    TaskFailed,
    TaskScheduled,
)
from ray_durable.errors import ConfigurationError, CorruptLogError, DurableError, SerializationError
from ray_durable.runtime.address import HubAddress
from ray_durable.storage import Signer
from tests.runtime.places import Order, everything, everything_but_events, handed_back, rounds
from tests.support.segments import parts_of, remade
from tests.support.skipping_loop import simulated
from tests.support.world import World
from verify_lib.signatures import read_keys

KEY_VARIABLE = "RAY_DURABLE_TEST_KEY"
KEY = "k" * 40


class Exploit:
    """Unpickling it creates a file: the proof that code ran."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.proof,)


PLACES: list[tuple[type[Event], str]] = [
    (ExecutionStarted, "input"),
    (TaskScheduled, "input"),
    (TaskCompleted, "result"),
    (TaskFailed, "heartbeat"),
    (MapScheduled, "items"),
    (MapCompleted, "results"),
    (MarkerRecorded, "value"),
    (EventRaised, "value"),
    (EventSent, "value"),
    (CustomStatusSet, "value"),
    (SubOrchestrationInstanceCreated, "input"),
    (SubOrchestrationInstanceCompleted, "result"),
]


class SignedWorld(World):
    """A hub with a signing key."""

    @staticmethod
    def address_of_new_root() -> HubAddress:
        return dataclasses.replace(World.address_of_new_root(), key_source=f"env:{KEY_VARIABLE}")


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where every process of the hub finds it."""
    monkeypatch.setenv(KEY_VARIABLE, KEY)


@pytest.fixture
def proof(tmp_path: Path) -> Iterator[Path]:
    """The file that must not be there in the end."""
    yield tmp_path / "executed"
    assert not (tmp_path / "executed").exists(), "bytes of the store were unpickled"


def objects_of(world: World) -> dict[str, bytes]:
    """What lies in the store, to be changed behind everybody's back."""
    objects: dict[str, bytes] = world.objects._objects  # type: ignore[attr-defined]
    return objects


def log_keys(world: World, instance_id: str) -> list[str]:
    """The segments of the instance's newest execution, in order."""
    starts = sorted(key for key in objects_of(world) if key.startswith(world.hub.keys.executions(instance_id)))
    run = parts_of(objects_of(world)[starts[-1]])[0]["run"]
    return [starts[-1], *sorted(key for key in objects_of(world) if key.startswith(world.hub.keys.log(run)))]


Change = Callable[[dict[str, Any], dict[str, Any]], None]
"""Changes an event line, with its segment's header."""


def forge(world: World, instance_id: str, change: Change, *, sections: bytes = b"") -> None:
    """Rewrite a log: every event line through `change`, the chain and all checksums right again."""
    previous: str | None = None
    for key in log_keys(world, instance_id):
        header, lines, present = parts_of(objects_of(world)[key])
        header.pop("mac", None)
        if previous is not None:
            header["previous"] = previous
        events = [json.loads(line) for line in lines]
        for event in events:
            change(event, header)
        if sections:
            header["sections"] = [*header["sections"], len(sections)]
        data = remade(header, [json.dumps(event).encode() for event in events], present + sections)
        objects_of(world)[key] = data
        previous = parts_of(data)[0]["sha256"]


def put_in_place(kind: type[Event], field: str, payload: dict[str, Any]) -> Change:
    def change(event: dict[str, Any], _: dict[str, Any]) -> None:
        if event["type"] == kind.__name__ and field in event:
            event[field] = payload

    return change


async def recorded(world: World, instance_id: str = "one") -> None:
    """An instance of `everything` that waits for its last event, its owner dead."""
    await world.start(everything, "text", instance_id=instance_id)
    owner = world.own(instance_id)
    value = world.hub.codec.encode("text", where="test")
    await owner.instance.raise_event("First", value, "e1")
    await world.until(lambda: len(world.owners) >= 1 and _waits(world, instance_id))
    await owner.kill()
    assert not owner.task.done() or owner.task.cancelled()


def _waits(world: World, instance_id: str) -> bool:
    text = b"".join(objects_of(world)[key] for key in log_keys(world, instance_id))
    return all(f'"type":"{kind.__name__}"'.encode() in text for kind, _ in PLACES)


async def awaken(world: World, instance_id: str = "one") -> str | None:
    """A new owner loads the instance and is sent its last event; what keeps it from going on, or its failure."""
    owner = world.own(instance_id)
    value = world.hub.codec.encode("text", where="test")
    sent = asyncio.ensure_future(owner.instance.raise_event("Go", value, "e2"))
    await world.until(lambda: sent.done() or owner.instance.problem is not None)
    problem = owner.instance.problem
    if problem is None:
        await owner.ended()
        end = await world.hub.end(instance_id)
        problem = end.failure.describe() if end is not None and end.failure is not None else None
    sent.cancel()
    await owner.kill()
    return problem


@pytest.mark.parametrize("form", ["inline", "blob", "section"])
@pytest.mark.parametrize(("kind", "field"), PLACES, ids=lambda place: getattr(place, "__name__", place))
@pytest.mark.parametrize("make", [World, SignedWorld])
@simulated
async def test_a_pickle_in_any_place_of_a_log_is_refused_unread(
    make: type[World], kind: type[Event], field: str, form: str, proof: Path
) -> None:
    """Of an input, a result, a heartbeat, an event ...: in a line, in a section and as a blob. Where the hub is signed
    the log is refused for what it is; where it is not, the value is refused where somebody wants it."""
    world = make()
    await recorded(world)
    data = pickle.dumps(Exploit(proof))
    payload: dict[str, Any] = {"pickle": base64.b64encode(data).decode()}
    if form == "blob":
        digest = hashlib.sha256(data).hexdigest()
        run = parts_of(objects_of(world)[log_keys(world, "one")[0]])[0]["run"]
        objects_of(world)[world.hub.keys.blob(run, digest)] = data
        payload = {"encoding": "pickle", "blob": digest, "size": len(data)}
    elif form == "section":
        payload = {"encoding": "pickle", "section": 0, "size": len(data)}
    change = put_in_place(kind, field, payload)
    forge(world, "one", change, sections=data if form == "section" else b"")
    assert b"pickle" in b"".join(objects_of(world).values())
    problem = await awaken(world)
    if make is SignedWorld:
        assert problem is not None
        assert "not signed, and this hub is" in problem


@simulated
async def test_the_attack_works_where_pickle_is_trusted(tmp_path: Path) -> None:
    """In a hub whose bytes are trusted the same log does run code: the tests above cannot pass for another reason."""
    world = World()
    await recorded(world)
    world.open_hub = _trusting(world)  # type: ignore[method-assign]
    proof = tmp_path / "executed"
    data = base64.b64encode(pickle.dumps(Exploit(proof))).decode()
    forge(world, "one", put_in_place(EventRaised, "value", {"pickle": data}))
    await awaken(world)
    assert proof.exists()


def _trusting(world: World) -> Callable[..., Any]:
    from ray_durable.codec import Codec, Trust

    make = type(world).open_hub

    def open_hub(*args: Any, **options: Any) -> Any:
        hub = make(world, *args, **options)
        hub.codec = Codec(trust=Trust.SIGNING_KEY)
        return hub

    return open_hub


@pytest.mark.parametrize("make", [World, SignedWorld])
@simulated
async def test_a_pickled_result_is_refused_unread(make: type[World], proof: Path) -> None:
    """By whoever asks for the result of an instance that has ended."""
    world = make()
    await world.run(handed_back, "text")
    data = base64.b64encode(pickle.dumps(Exploit(proof))).decode()
    forge(world, "one", put_in_place(ExecutionCompleted, "result", {"pickle": data}))
    with pytest.raises((SerializationError, CorruptLogError)):
        await world.result()


@pytest.mark.parametrize("make", [World, SignedWorld])
@simulated
async def test_a_pickle_handed_on_is_refused_unread(make: type[World], proof: Path) -> None:
    """By the link to the next execution."""
    world = make()
    await world.start(rounds, "text", 1)
    dying = world.make_store()

    async def die_before_the_next(operation: str, key: str) -> None:
        if operation == "put_if_absent" and key.endswith("000002"):
            await asyncio.Event().wait()

    dying.before = die_before_the_next
    owner = world.own(store=dying)
    await world.until(lambda: any(ContinueAsNew.__name__.encode() in data for data in objects_of(world).values()))
    await owner.kill()
    data = base64.b64encode(pickle.dumps(Exploit(proof))).decode()
    forge(world, "one", put_in_place(ContinueAsNew, "input", {"pickle": data}))
    problem = await awaken(world)
    assert problem is not None
    assert "pickle" in problem or "not signed" in problem or "encoding of arguments" in problem


@pytest.mark.parametrize("make", [World, SignedWorld])
@simulated
async def test_captured_code_that_nobody_vouches_for_is_refused_unread(make: type[World], proof: Path) -> None:
    """A reference to a bundle that the attacker stored under its right digest."""
    world = make()
    await recorded(world)
    data = pickle.dumps({"functions": pickle.dumps(Exploit(proof)), "left_out": {}, "paths": [], "x": Exploit(proof)})
    digest = hashlib.sha256(data).hexdigest()
    objects_of(world)[world.hub.keys.code(digest)] = data

    def change(event: dict[str, Any], _: dict[str, Any]) -> None:
        if "reference" in event:
            event["reference"] = {"name": event["reference"]["name"], "code": digest}

    forge(world, "one", change)
    problem = await awaken(world)
    assert problem is not None
    assert "refused unread" in problem or "not signed" in problem


@simulated
async def test_exchanged_code_and_blobs_are_refused(proof: Path) -> None:
    """In a signed hub a name that a signed segment holds is the digest of the bytes: others under it are not opened."""
    world = SignedWorld()
    exploit = pickle.dumps(Exploit(proof))
    code = await world.hub.store_code(b"a bundle")
    objects_of(world)[world.hub.keys.code(code)] = exploit
    with pytest.raises(DurableError, match="missing or damaged"):
        await world.hub._load_bundle(code)
    large = Order("x" * 100_000)
    await world.start(everything, large)
    for key in [key for key in objects_of(world) if "/blobs/" in key]:
        objects_of(world)[key] = exploit
    problem = await awaken(world)
    assert problem is not None
    assert "does not match its name" in problem


@simulated
async def test_values_that_need_pickle_work_in_a_signed_hub() -> None:
    """In every place, over the death of an owner; every segment is signed with the hub's key."""
    world = SignedWorld()
    order = Order("lamp")
    await world.start(everything, order)
    owner = world.own()
    value = world.hub.codec.encode(order, where="test")
    await owner.instance.raise_event("First", value, "e1")
    await world.until(lambda: _waits(world, "one"))
    await owner.kill()
    assert await awaken(world) is None
    assert await world.result() == [order] * 6 + ["text"]
    signer = Signer.from_text(KEY)
    for key, data in objects_of(world).items():
        assert f'"mac":"{signer.key_id}.'.encode() in data, key


@simulated
async def test_a_segment_of_another_instance_or_time_is_refused() -> None:
    """Authentic objects, but of another place: an instance's segment in another's log, and the earlier one of two."""
    world = SignedWorld()
    for instance_id in ("one", "two"):
        await recorded(world, instance_id)
    one, two = log_keys(world, "one"), log_keys(world, "two")
    for ours, others in [(one[0], two[0]), (one[1], two[1]), (one[2], one[1])]:
        kept = objects_of(world)[ours]
        objects_of(world)[ours] = objects_of(world)[others]
        problem = await awaken(world)
        assert problem is not None
        assert ours in problem
        assert "not for these bytes at this place" in problem
        objects_of(world)[ours] = kept
    assert await awaken(world) is None


@simulated
async def test_without_the_key_a_signed_hub_shows_its_structure_and_no_pickle(proof: Path) -> None:
    """`browse` without the key: statuses and histories; values that JSON holds, none that run code."""
    world = SignedWorld()
    await world.hub.create()
    await world.run(handed_back, Order("lamp"))
    plain = dataclasses.replace(world.address, key_source=None)
    from ray_durable.runtime.hub import OpenHub

    hub = OpenHub(plain, world.objects)
    assert await hub.exists()
    assert (await hub.status("one")).runtime_status == "Completed"
    assert isinstance((await hub.history("one"))[-1], ExecutionCompleted)
    end = await hub.end("one")
    assert end is not None
    assert end.result is not None
    with pytest.raises(SerializationError, match="refused unread"):
        hub.codec.decode(end.result, where="result")
    with pytest.raises(ConfigurationError, match="is signed"):
        await hub.create()


@simulated
async def test_the_checker_finds_what_is_not_signed(tmp_path: Path) -> None:
    """storage/verify.py with the key's file: every object that was made up, changed or moved, and no other."""
    world = SignedWorld()
    await world.hub.create()
    await world.run(everything_but_events, Order("x" * 100_000))
    await world.start(handed_back, "text", instance_id="two")
    (tmp_path / "key").write_text(f"# ours\n{KEY}\n")
    (tmp_path / "other").write_text("o" * 40)
    keys = read_keys(str(tmp_path / "key"))

    def found(given: Mapping[str, bytes] = keys) -> list[str]:
        for key, data in objects_of(world).items():
            (tmp_path / key).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / key).write_bytes(data)
        report = verify.verify_hub(tmp_path / "hub", now_us=world.clock.now_us(), keys=given)
        return [finding.key for finding in report.findings if finding.rule == "signature"]

    assert found() == []
    signed = [key for key in objects_of(world) if "/blobs/" not in key]
    assert len(found(read_keys(str(tmp_path / "other")))) == len(signed) >= 6
    for key in signed:
        kept = objects_of(world)[key]
        another = next(data for other, data in objects_of(world).items() if other in signed and other != key)
        for forged in (kept.replace(b'"mac":"', b'"nac":"'), kept.replace(b"u", b"v"), another):
            assert forged != kept
            objects_of(world)[key] = forged
            assert found() == [key.removeprefix("hub/")]
        objects_of(world)[key] = kept
    assert found() == []


@simulated
async def test_a_key_that_is_not_there_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that cannot find the key does not go on without it."""
    world = SignedWorld()
    monkeypatch.delenv(KEY_VARIABLE)
    with pytest.raises(ConfigurationError, match=f"{KEY_VARIABLE} with the signing key is not set in this process"):
        world.open_hub(world.objects)
