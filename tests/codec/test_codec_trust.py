"""Pickle is read and written only where trust allows it."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ray_durable.codec import CallSignature, Codec, Trust
from ray_durable.codec.batch import item_batch
from ray_durable.errors import SerializationError
from ray_durable.payload import Payload

WHERE = "event 'Approval'"


class Exploit:
    """Unpickling it creates a file: the proof that code ran."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def read_value(codec: Codec, data: bytes) -> Any:
    return codec.decode(Payload.of("pickle", data), where=WHERE)


def read_argument(codec: Codec, data: bytes) -> Any:
    head = b'{"args":[["pickle",%d]],"kwargs":{}}\n' % len(data)
    return codec.decode_call(CallSignature.unknown("work"), Payload.of("multipart", head + data), where=WHERE)


def read_item(codec: Codec, data: bytes) -> Any:
    return codec.decode_batch(item_batch("payload", [b"pickle\n" + data]).to_payload(), where=WHERE)


READERS = [read_value, read_argument, read_item]


@pytest.mark.parametrize("read", READERS)
def test_no_byte_reaches_unpickling_without_trust(tmp_path: Path, read: Callable[[Codec, bytes], Any]) -> None:
    """A payload that proves its execution proves nothing."""
    proof = tmp_path / "executed"
    with pytest.raises(SerializationError, match="refused unread"):
        read(Codec(trust=Trust.NONE), pickle.dumps(Exploit(proof)))
    assert not proof.exists()


@pytest.mark.parametrize("trust", [Trust.PRIVATE_LOCAL_ROOT, Trust.SIGNING_KEY])
@pytest.mark.parametrize("read", READERS)
def test_the_proof_of_execution_works(tmp_path: Path, read: Callable[[Codec, bytes], Any], trust: Trust) -> None:
    """The same bytes do run where pickle is trusted: the test above cannot pass for another reason."""
    proof = tmp_path / "executed"
    read(Codec(trust=trust), pickle.dumps(Exploit(proof)))
    assert proof.exists()


def test_trust_is_not_assumed() -> None:
    """A codec that nobody vouched for trusts nothing."""
    assert Codec().trust is Trust.NONE
    assert not Trust.NONE.allows_pickle


def test_a_damaged_pickle_is_a_clear_error() -> None:
    """Even where pickle is trusted, junk is our error."""
    with pytest.raises(SerializationError, match=WHERE):
        Codec(trust=Trust.PRIVATE_LOCAL_ROOT).decode(Payload.of("pickle", b"junk"), where=WHERE)
