"""Mutated objects, payloads, ids and frames: only typed errors, never code, never a silent misread.

`FUZZ_RUNS=1000000` for a long run, `FUZZ_SEED=n` for one again. Each test prints its seed.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pickle
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from ray_durable.codec import Codec, Trust
from ray_durable.codec.batch import concat_batches
from ray_durable.errors import CorruptLogError, DurableError, PayloadTooLargeError, SerializationError
from ray_durable.payload import Payload
from ray_durable.runtime.framing import ForeignFrameError, read_frame, seal_frame
from ray_durable.runtime.lease import Lease
from ray_durable.runtime.records import decode_events, encode_events
from ray_durable.runtime.status import InstanceStatus
from ray_durable.storage import (
    HubKeys,
    Signer,
    add_open,
    check_instance_id,
    create_hub,
    decode_segment,
    encode_segment,
    find_open,
    list_ended,
    list_open,
    list_retired,
    open_store,
    read_lease,
    read_settings,
    record_ended,
    retire,
    write_lease,
)
from ray_durable.storage.catalog import OpenEntry
from ray_durable.storage.keys import encode_id, is_instance_id
from ray_durable.storage.memory import MemoryStore
from ray_durable.storage.removal import Retired
from tests.runtime.places import everything
from tests.support.mutator import Mutator
from tests.support.segments import parts_of, rechecked, remade
from tests.support.skipping_loop import simulate
from tests.support.world import World

RUNS = int(os.environ.get("FUZZ_RUNS", "1500"))
KEYS = HubKeys("hub")
SIGNED = HubKeys("hub", Signer([b"k" * 32]))


class Exploit:
    """Unpickling it creates a file."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.proof,)


@pytest.fixture
def seed() -> int:
    """Printed, so that a failure can be had again."""
    chosen = int(os.environ.get("FUZZ_SEED", secrets.randbelow(2**32)))
    print(f"FUZZ_SEED={chosen} FUZZ_RUNS={RUNS}")
    return chosen


@pytest.fixture
def proof(tmp_path: Path) -> Iterator[Path]:
    """The file that must not be there in the end."""
    yield tmp_path / "executed"
    assert not (tmp_path / "executed").exists(), "bytes of unknown origin were unpickled"


def mutations(mutator: Mutator) -> Iterator[bytes]:
    """As many as are to be tried."""
    for _ in range(RUNS):
        yield mutator.sample()


async def _log_of_everything() -> list[bytes]:
    world = World()
    await world.start(everything, {"a": [1, "text", None], "b": 0.5})
    owner = world.own()
    value = world.hub.codec.encode([float("nan"), "x" * 600], where="test")
    await owner.instance.raise_event("First", value, "e1")
    await owner.instance.raise_event("Go", value, "e2")
    await owner.ended()
    objects: dict[str, bytes] = world.objects._objects  # type: ignore[attr-defined]
    return [data for key, data in objects.items() if "/instances/" in key or "/log/" in key]


@pytest.fixture(scope="module")
def segments() -> list[bytes]:
    """The log of an instance that did everything."""
    return simulate(_log_of_everything())


def test_mutated_segments_are_refused_or_read_as_they_are(segments: list[bytes], seed: int) -> None:
    """Blind changes: refused, whatever they are. Under a right checksum, as anybody can make one: refused, or read as
    events that are written as they were read."""
    mutator, accepted = Mutator(seed, segments), 0
    for data in mutations(mutator):
        mutated = mutator.blind(data)
        if mutated != data:
            with pytest.raises(CorruptLogError):
                decode_segment("k", mutated)
        if mutator.random.random() < 0.5:
            mutated = rechecked(mutated)
        else:
            header, lines, sections = parts_of(data)
            place = mutator.random.randrange(len(lines) + 1)
            if place == len(lines):
                with contextlib.suppress(ValueError, RecursionError):
                    header = json.loads(mutator.json_text(header))
                if not isinstance(header, dict):
                    continue
            else:
                lines[place] = mutator.json_text(json.loads(lines[place])).replace(b"\n", b" ")
            mutated = remade(header, lines, sections)
        with contextlib.suppress(CorruptLogError):
            segment = decode_segment("k", mutated)
            events = decode_events(segment.lines, segment.sections, key="k")
            assert len(events) == segment.header.count
            assert decode_events(*encode_events(events), key="k") == events
            InstanceStatus.from_summary(segment.header.status)
            accepted += 1
    assert accepted, "some changes make sense: else the mutator tests nothing"


def test_no_mutated_segment_is_authentic(segments: list[bytes], seed: int) -> None:
    """With a key only the very bytes that were signed, at their place, are read."""
    signer = SIGNED.signer
    assert signer is not None
    signed = []
    for data in segments:
        segment = decode_segment("k", data)
        signed.append(encode_segment("k", segment.header, segment.lines, segment.sections, signer=signer)[0])
    mutator = Mutator(seed, signed)
    for data in mutations(mutator):
        mutated = rechecked(mutator.blind(data))
        if mutated == data:
            continue
        with pytest.raises(CorruptLogError):
            decode_segment("k", mutated, signer=signer)


@pytest.mark.parametrize("keys", [KEYS, SIGNED], ids=["unsigned", "signed"])
def test_mutated_entries_are_skipped_or_make_sense(keys: HubKeys, seed: int) -> None:
    """Of the open set, of what has ended and of what is to be removed; the lease and the settings. In a signed hub
    none that was changed counts."""

    async def fuzz() -> None:
        store = await open_store(f"memory://fuzz-{seed}-{keys.signer is None}")
        assert isinstance(store, MemoryStore)
        entry = OpenEntry(instance_id="Ä", name="f", request_id="r", entered_us=1, depth=1, problem="p")
        await add_open(store, keys, entry)
        summary = {"instance": "Ä", "name": "f", "execution": 1, "runtime_status": "Completed", "request_id": "r"}
        await record_ended(store, keys, {**summary, "created_us": 1_000, "updated_us": 2_000, "progress": {"done": 1}})
        await retire(store, keys, Retired(instance_id="Ä", through=1, due_us=1_000))
        await write_lease(store, keys, Lease(epoch=1, cluster="c", host="h", boot="b", pid=1, renewed_us=5).to_json())
        await store.put(keys.settings, await _settings(keys))
        good = dict(store._objects)
        mutator = Mutator(seed, list(good.values()))
        for _ in range(RUNS):
            key = mutator.random.choice(list(good))
            blind = mutator.random.random() < 0.5
            mutated = mutator.blind(good[key]) if blind else mutator.json_text(json.loads(good[key]))
            store._objects[key] = mutated or b" "
            is_believed = await _look(store, keys, key)
            assert keys.signer is None or mutated == good[key] or not is_believed
            store._objects[key] = good[key]
            assert await _look(store, keys, key)

    asyncio.run(fuzz())


async def _settings(keys: HubKeys) -> bytes:
    store = await open_store(f"memory://settings-{secrets.token_hex(8)}")
    await create_hub(store, keys, {"grace_s": 1})
    return await store.get(keys.settings) or b""


async def _look(store: MemoryStore, keys: HubKeys, key: str) -> bool:
    """Read an object as the runtime does; whether it is believed."""
    try:
        if key == keys.settings:
            return await read_settings(store, keys) is not None
        if key == keys.lease:
            lease = await read_lease(store, keys)
            return lease is not None and Lease.from_json(lease) is not None
        if key.startswith(keys.open_set):
            assert await find_open(store, keys, "Ä") in [None, *await list_open(store, keys)]
            return bool(await list_open(store, keys))
        if key.startswith(keys.retired):
            return bool(await list_retired(store, keys, 10_000_000))
        return bool([InstanceStatus.from_summary(one) for one in (await list_ended(store, keys)).summaries])
    except DurableError:
        return False


def _payloads(proof: Path) -> list[Payload]:
    codec, exploit = Codec(trust=Trust.PRIVATE_LOCAL_ROOT), Exploit(proof)
    values = [
        {"a": [1, 2.5, "x", None]},
        exploit,
        np.arange(6).reshape(2, 3),
        np.zeros(2, dtype=[("a", "i4"), ("b", "f8", (2,))]),
        pa.table({"a": [1, 2], "b": ["x", None]}),
        pa.array([{"x": 1}, None]),
        float("nan"),
    ]
    batches: list[list[Any]] = [list(range(50)), ["a", "bc"] * 20, [1, "x", exploit], [None] * 9, ["x" * 50_000] * 3]
    return [
        *(codec.encode(value, where="w") for value in values),
        *(codec.encode_batch(batch, where="w") for batch in batches),
    ]


def test_mutated_payloads_are_refused_or_decoded(seed: int, proof: Path) -> None:
    """JSON, Arrow, arrays, batches, pickles: without trust none runs code, and no error is of another kind."""
    codec, payloads = Codec(), _payloads(proof)
    mutator = Mutator(seed, [payload.bytes for payload in payloads])
    readers: list[Callable[[Payload], Any]] = [
        lambda payload: codec.decode(payload, where="w"),
        lambda payload: codec.decode(payload, dict[str, list[int]], where="w"),
        lambda payload: codec.decode_batch(payload, where="w"),
        lambda payload: concat_batches([payload, payload]),
    ]
    decoded = 0
    for _ in range(RUNS):
        payload = mutator.random.choice(payloads)
        mutated = mutator.blind(payload.bytes)
        encoding = payload.encoding if mutator.random.random() < 0.8 else mutator.random.choice(payloads).encoding
        for read in readers:
            with contextlib.suppress(SerializationError, PayloadTooLargeError):
                read(Payload.of(encoding, mutated))
                decoded += 1
    assert decoded, "some changes make sense: else the mutator tests nothing"


def test_mutated_ids_stay_in_their_place(seed: int) -> None:
    """Whatever passes for an id has one name, of one level, that no other id has."""
    samples = ["order-1", "Größe/..", "日本", "a" * 256, "@x", "%2f%%", "COM1", "\x00", "x\n", "..", "a.b:1:2"]
    mutator, names = Mutator(seed, [sample.encode() for sample in samples]), dict[str, str]()
    for data in mutations(mutator):
        text = mutator.blind(data).decode("utf-8", mutator.random.choice(["replace", "surrogateescape", "ignore"]))
        if not is_instance_id(text):
            with pytest.raises(DurableError):
                check_instance_id(text)
            continue
        name = encode_id(text)
        assert names.setdefault(name, text) == text
        assert len(name) <= 150
        assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-_%")
        assert KEYS.open_entry(text).count("/") == 3


def test_mutated_frames_are_never_opened(seed: int, proof: Path) -> None:
    """A body is a pickle: it is opened under the seal of the key, for its direction, or not at all."""
    key, direction = b"k" * 32, b"to"
    good = [seal_frame(key, direction, number, {"n": number}) for number in range(3)]
    bad = [seal_frame(b"x" * 32, direction, 1, Exploit(proof)), seal_frame(key, b"from", 1, Exploit(proof))]
    mutator = Mutator(seed, [*good, *bad, pickle.dumps(Exploit(proof))])

    async def fuzz() -> None:
        for data in mutations(mutator):
            mutated = mutator.blind(data)
            reader = asyncio.StreamReader()
            reader.feed_data(mutated)
            reader.feed_eof()
            try:
                number, message = await read_frame(reader, key, direction)
            except (ForeignFrameError, asyncio.IncompleteReadError):
                continue
            assert mutated.startswith(good[number])
            assert message == {"n": number}

    asyncio.run(fuzz())
