"""Functions of a script, carried to another process."""

from __future__ import annotations

import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ray_durable import registry
from ray_durable.authoring import activity, orchestrator
from ray_durable.capture import capture_bundle, load_bundle
from ray_durable.codec import Trust
from ray_durable.errors import FunctionNotFoundError, SerializationError
from ray_durable.reference import FunctionReference

ROOT = Path(__file__).parents[2]
PRIVATE = Trust.PRIVATE_LOCAL_ROOT

SCRIPT = """
import dataclasses
import enum
import sys
from pathlib import Path

from pydantic import BaseModel

from ray_durable.authoring import activity, orchestrator
from ray_durable.capture import capture_bundle

import helper

FACTOR = 3

class Color(enum.Enum):
    RED = 1

class Label(BaseModel):
    text: str = "none"
    color: Color = Color.RED

@dataclasses.dataclass
class Job:
    size: int
    tags: list[str] = dataclasses.field(default_factory=list)
    label: Label = dataclasses.field(default_factory=Label)

def scaled(size):
    return size * FACTOR

@activity(num_cpus=2)
def measure(job: Job) -> int:
    return helper.plus_one(scaled(job.size))

@orchestrator
async def whole(ctx, size: int) -> int:
    again = whole  # an orchestrator that knows itself
    return measure(Job(size)) + len(again.name)

if __name__ == "__main__":
    Path(sys.argv[1]).write_bytes(capture_bundle(whole))
"""

READER = """
import asyncio
import sys
from pathlib import Path

from ray_durable.capture import load_bundle
from ray_durable.codec import Codec, Trust
from ray_durable.registry import registered

bundle = load_bundle(Path(sys.argv[1]).read_bytes(), trust=Trust.PRIVATE_LOCAL_ROOT)
whole, measure = bundle["whole"], bundle["measure"]
assert not registered(), "loading does not take names"
assert not whole.is_importable
assert measure.ray_options == {"num_cpus": 2}
assert asyncio.run(whole(None, 2)) == 7 + 5
assert whole.function.__globals__["measure"] is measure, "by object and by name it is one function"
Job = measure.calls.annotations["job"]
codec = Codec()
payload = codec.encode_call(measure.calls, (Job(4),), {}, where="test")
args, kwargs = codec.decode_call(measure.calls, payload, where="test")
assert payload.bytes == b'[{"size":4,"tags":[],"label":{"text":"none","color":1}}]'
assert measure(*args, **kwargs) == 13
"""


@pytest.fixture(autouse=True)
def own_registry() -> Iterator[None]:
    """Names that a test takes are given back."""
    before = dict(registry._functions)
    yield
    registry._functions.clear()
    registry._functions.update(before)


def test_functions_of_a_script_run_in_another_process(tmp_path: Path) -> None:
    """Code, globals, classes, the script's helper modules and functions that know themselves arrive."""
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "script.py").write_text(SCRIPT, encoding="utf-8")
    (folder / "helper.py").write_text("def plus_one(x):\n    return x + 1\n", encoding="utf-8")
    (tmp_path / "reader.py").write_text(READER, encoding="utf-8")
    bundle = tmp_path / "bundle"
    environment = {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, folder / "script.py", bundle], check=True, env=environment)
    subprocess.run([sys.executable, tmp_path / "reader.py", bundle], check=True, env=environment, cwd=tmp_path)


def test_a_module_that_captured_code_needs_and_nobody_has_is_named(tmp_path: Path) -> None:
    """The error says which module to install."""
    (tmp_path / "script.py").write_text(SCRIPT, encoding="utf-8")
    (tmp_path / "helper.py").write_text("def plus_one(x):\n    return x + 1\n", encoding="utf-8")
    bundle = tmp_path / "bundle"
    subprocess.run([sys.executable, tmp_path / "script.py", bundle], check=True, env={"PYTHONPATH": str(ROOT)})
    (tmp_path / "helper.py").unlink()
    before = list(sys.path)
    with pytest.raises(FunctionNotFoundError, match="needs the module 'helper'"):
        load_bundle(bundle.read_bytes(), trust=PRIVATE)
    assert sys.path == before


def test_closures_are_captured_with_what_they_hold() -> None:
    """A function made inside a function works where only its bundle is."""
    offset = 40

    @activity(name="tests.capture.add")
    def add(x: int) -> int:
        return x + offset

    restored = load_bundle(capture_bundle(add), trust=PRIVATE)["tests.capture.add"]
    assert restored is not add
    assert restored.function(2) == 42


def test_all_functions_that_cannot_be_imported_travel_together() -> None:
    """An orchestrator that calls an activity by its name finds it in its bundle."""

    @activity(name="tests.capture.named")
    def named() -> str:
        return "found"

    @orchestrator(name="tests.capture.caller")
    async def caller(ctx: Any) -> None: ...

    bundle = load_bundle(capture_bundle(caller), trust=PRIVATE)
    assert {"tests.capture.named", "tests.capture.caller"} <= set(bundle)
    assert bundle["tests.capture.named"].function() == "found"


def test_what_cannot_be_captured_is_left_out_with_its_reason() -> None:
    """One bad function does not stop the others; asking for it later tells why it is missing."""
    lock = threading.Lock()

    @activity(name="tests.capture.locked")
    def locked() -> None:
        lock.acquire()

    @orchestrator(name="tests.capture.fine")
    async def fine(ctx: Any) -> None: ...

    bundle = load_bundle(capture_bundle(fine), trust=PRIVATE)
    assert "tests.capture.fine" in bundle
    assert "uses 'lock', a lock" in bundle.left_out["tests.capture.locked"]
    with pytest.raises(FunctionNotFoundError, match=r"could not be captured .*'lock'"):
        registry.resolve(FunctionReference(name="tests.capture.locked", code="d"), lambda digest: bundle)


def test_the_started_function_must_be_captured() -> None:
    """The error names the function and the variable, also when another function uses it."""
    lock = threading.Lock()

    def helper() -> None:
        lock.acquire()  # durable: ok

    @orchestrator(name="tests.capture.started")
    async def started(ctx: Any) -> None:
        helper()

    with pytest.raises(SerializationError) as caught:
        capture_bundle(started)
    assert "orchestrator 'tests.capture.started'" in str(caught.value)
    assert "helper uses 'lock', a lock" in str(caught.value)
    assert "inside the function" in str(caught.value)


def test_a_bundle_is_not_read_without_trust(tmp_path: Path) -> None:
    """Bytes that prove their execution prove nothing, and do where they are trusted."""
    proof = tmp_path / "executed"

    class Exploit:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (proof,)

    data = pickle.dumps(Exploit())
    with pytest.raises(SerializationError, match="refused unread"):
        load_bundle(data, trust=Trust.NONE)
    assert not proof.exists()
    with pytest.raises((SerializationError, TypeError)):
        load_bundle(data, trust=PRIVATE)
    assert proof.exists()
