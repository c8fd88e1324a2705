"""Small payloads that would take all memory or all time are refused in little of both.

They are read in a process of their own that may take 200 MB more than it has after its imports, and ten seconds of the
processor for all of them.
"""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from ray_durable.codec.batch import native_batch
from tests.support.segments import rechecked, remade

_READER = """
import json, resource, sys
from pathlib import Path
import numpy, pandas, pyarrow
from ray_durable.codec import CallSignature, Codec
from ray_durable.codec import _arrow, _ndarray
from ray_durable.errors import DurableError
from ray_durable.payload import Payload
from ray_durable.runtime.records import decode_events
from ray_durable.storage import HubKeys, decode_segment
from ray_durable.storage.objects import unpack_object

codec, call = Codec(), CallSignature.unknown("f")

def read(way, data):
    if way == "line":
        decode_events([data], [], key="k")
    elif way == "segment":
        decode_segment("k", data)
    elif way == "object":
        return "read" if unpack_object(HubKeys("hub"), "k", data) else "skipped"
    elif way in ("call", "multipart"):
        codec.decode_call(call, Payload.of("json" if way == "call" else way, data), where="w")
    elif way == "batch":
        codec.decode_batch(Payload.of("batch", data), where="w")
    else:
        codec.decode(Payload.of(way, data), where="w")
    return "read"

pages = int(Path("/proc/self/statm").read_text().split()[0])
limit = pages * resource.getpagesize() + 200_000_000
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
resource.setrlimit(resource.RLIMIT_CPU, (10, 10))
for path in sorted(Path(sys.argv[1]).iterdir()):
    way, _, data = path.read_bytes().partition(b" ")
    try:
        told = read(way.decode(), data)
    except DurableError as error:
        told = type(error).__name__
    print(json.dumps([path.name, told]), flush=True)
"""

_DEEP = b"[" * 5_000_000
_LONG = b"[" + b"9" * 5_000_000 + b"]"
_EVENT = b'{"n":1,"t":1,"type":"EventRaised","name":"x","event_id":"","value":%b}'


def _segment(**fields: Any) -> bytes:
    """A segment that is right but for these fields of its header."""
    texts = {"run": "0" * 32, "instance": "i", "nonce": "n"}
    counts = dict.fromkeys(("execution", "seq", "epoch", "hub_epoch", "first", "written_us"), 1)
    return remade({"v": 1, **texts, **counts, "sections": [], "status": {}, **fields}, [b"{}"], b"")


def _column(size: int) -> bytes:
    """A batch of so many zeros, compressed to almost nothing."""
    values = pa.array(np.zeros(size // 8, np.int64))
    schema = pa.schema(
        [pa.field("values", pa.int64())], metadata={b"ray_durable.items": b"native", b"ray_durable.reader": b"exact"}
    )
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_batch(pa.record_batch([values], schema=schema))
    data: bytes = sink.getvalue().to_pybytes()
    return data


def _lying_column() -> bytes:
    """A compressed buffer that says that it holds a terabyte."""
    data = _column(80_000)
    place = data.index(struct.pack("<q", 80_000))
    return data[:place] + struct.pack("<q", 2**40) + data[place + 8 :]


def _nulls() -> bytes:
    """More rows than memory has room for, and no bytes."""
    data = native_batch(pa.nulls(1_000), annotated=False).to_payload().bytes
    return data.replace(struct.pack("<q", 1_000), struct.pack("<q", 2**40))


def _map(count: int) -> bytes:
    event = {"n": 1, "t": 1, "type": "MapScheduled", "name": "f", "count": count, "items": {"json": []}}
    return json.dumps(event).encode()


BOMBS: dict[str, tuple[str, Callable[[], bytes]]] = {
    "deep JSON": ("json", lambda: _DEEP),
    "deep JSON as it is": ("json-as-is", lambda: _DEEP),
    "deep arguments": ("call", lambda: _DEEP),
    "a deep line": ("line", lambda: _EVENT % (b'{"json":' + _DEEP)),
    "a deep header": ("segment", lambda: _segment(status={"x": 1}).replace(b'{"x":1}', _DEEP, 1)),
    "a deep object": ("object", lambda: b'{"v":' + _DEEP),
    "a long number as it is": ("json-as-is", lambda: _LONG),
    "a line with a long number": ("line", lambda: _EVENT % (b'{"json":' + _LONG + b"}")),
    "an object with a long number": ("object", lambda: b'{"v":' + _LONG + b"}"),
    "a map of very many items": ("line", lambda: _map(10**15)),
    "sections that lie": ("segment", lambda: _segment(sections=[2**63 - 1])),
    "sections that cancel out": ("segment", lambda: _segment(sections=[2**40, -(2**40)])),
    "a column that grows": ("batch", lambda: _column(400_000_000)),
    "a table that grows": ("arrow", lambda: _column(400_000_000)),
    "a column that lies": ("batch", _lying_column),
    "a table that lies": ("arrow", _lying_column),
    "rows without bytes": ("batch", _nulls),
    "an array that lies": ("ndarray", lambda: b'{"dtype":"<f8","shape":[1099511627776],"order":"C"}\n'),
    "a type that lies": ("ndarray", lambda: b'{"dtype":"|V2147483647","shape":[1],"order":"C"}\n'),
    "deep types": ("ndarray", lambda: b'{"dtype":' + b'[["a",' * 400 + b'"<f8"' + b"]]" * 400 + b',"shape":[1]}\n'),
    "parts that lie": ("multipart", lambda: b'{"args":[["json",9223372036854775807]],"kwargs":{}}\n1'),
}


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What became of each."""
    folder = tmp_path_factory.mktemp("bombs")
    for name, (way, make) in BOMBS.items():
        data = make()
        (folder / name).write_bytes(way.encode() + b" " + (rechecked(data) if way == "segment" else data))
    command = [sys.executable, "-c", _READER, str(folder)]
    read = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert read.returncode == 0, (read.stdout[-500:], read.stderr[-2_000:])
    return dict(json.loads(line) for line in read.stdout.splitlines())


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_in_little_memory_and_time(name: str, told: dict[str, str]) -> None:
    """By an error of ours; the process lives. An object of the index is skipped."""
    assert told[name] in ("SerializationError", "PayloadTooLargeError", "CorruptLogError", "skipped")
