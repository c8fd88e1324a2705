"""Record a root as today's code writes it: `python storage/golden/record.py NAME [--ray]`. See README.md.

Histories hold the paths of the code that made them, so the project must lie at `PLACE`, wherever it is recorded.

Without Ray the real runtime runs on virtual time: instances, dispatcher, worker code and storage. Random ids differ
from one recording to the next.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [folder for folder in (str(HERE.parent), str(HERE.parents[1])) if folder not in sys.path]

import ray_durable as durable  # noqa: E402
from golden import flows  # noqa: E402
from ray_durable import registry  # noqa: E402
from ray_durable.codec import Limits  # noqa: E402
from ray_durable.reader import browse  # noqa: E402
from ray_durable.runtime.hub import OpenHub  # noqa: E402
from ray_durable.runtime.lifecycle import Start, fork_instance, purge_instance, start_instance  # noqa: E402
from ray_durable.storage import ObjectStore, OpenEntry, add_open, create_hub  # noqa: E402
from ray_durable.storage.memory import MemoryStore  # noqa: E402
from ray_durable.testing.virtual_time import simulate  # noqa: E402
from tests.support.town import Town  # noqa: E402

__all__ = ["HUB", "PLACE", "GoldenTown", "finish_open", "record", "record_on_ray", "summarize_root"]

HUB = "hub"

PLACE = Path("/srv/durable-py")
"""Where the project lies for a recording: nothing in a root is to speak of somebody's machine."""

_INLINE_BYTES_MAX = 2_048
"""Low, so that blobs stay small."""


_IDLE_S = 60.0
"""After so long without anything to do, owners leave; a wake hint stays."""

_YEARS_US = 50 * 366 * 86_400 * 1_000_000


class GoldenTown(Town):
    """A town whose objects can be read from a folder and written to one."""

    def __init__(self, folder: Path | None = None) -> None:
        super().__init__(idle_s=_IDLE_S)
        if folder is not None:
            self._objects().update({_key(folder, path): path.read_bytes() for path in _files(folder)})

    def open_hub(self, store: ObjectStore, *, epoch: int = 1) -> OpenHub:
        hub = super().open_hub(store, epoch=epoch)
        hub.limits = Limits(inline_bytes_max=_INLINE_BYTES_MAX)
        return hub

    def write(self, folder: Path) -> None:
        """All objects, as the files of a local root."""
        for key, data in self._objects().items():
            path = folder / key
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)

    def _objects(self) -> dict[str, bytes]:
        assert isinstance(self.objects, MemoryStore)
        return self.objects._objects


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.parent != folder)


def _key(folder: Path, path: Path) -> str:
    return path.relative_to(folder).as_posix()


def record(folder: Path) -> None:
    """Write a root in which everything of the format occurs."""

    async def run() -> None:
        town = GoldenTown()
        await create_hub(town.objects, town.hub.keys, {"grace_s": town.grace_s})
        await _end_some(town)
        await _begin_again(town)
        await _leave_some(town)
        # Whatever can go on has come to rest, and owners have left what waits.
        await asyncio.sleep(5 * _IDLE_S)
        await _leave_traces(town)
        town.write(folder)
        await town.close()

    flows.broken.clear()
    simulate(run())


async def _end_some(town: GoldenTown) -> None:
    """Instances that come to their end, well or not."""
    await town.start(flows.chain, ["a", "b", "c"], instance_id="chain")
    await town.start(flows.side_by_side, ["a", "b"], instance_id="Side by side, mit Umlaut: ä")
    await town.start(flows.yields, ["a", "b"], instance_id="generator")
    await town.start(flows.everything, instance_id="everything")
    await town.start(flows.collects, 4, [], instance_id="collector")
    await town.start(flows.tells, "collector", 4, instance_id="teller")
    await town.start(flows.calls, None, "Go", instance_id="parent")
    await town.start(flows.waits, "Never", instance_id="stopped")
    await town.start(flows.columns, 100, instance_id="columns")
    await town.start(flows.waits, "Go", instance_id="resumed")
    flows.broken.add("weak")
    await town.start(flows.calls_again, ["a", "weak"], instance_id="persistent parent")
    await asyncio.sleep(5)
    flows.broken.clear()
    owner = town.living("parent")
    assert owner is not None
    await owner.kill()
    await asyncio.sleep(20)
    await town.raise_event("Go", "went", "go-1", "everything")
    await town.raise_event("Go", "went", "go-2", "parent:1:2")
    await town.command("stopped", "terminate", "not needed", "stop-1")
    await town.command("resumed", "suspend", "a pause", "suspend-0")
    await town.raise_event("Go", "meanwhile", "go-0", "resumed")
    await town.command("resumed", "resume", "", "resume-0")
    for instance_id in ("chain", "everything", "collector", "teller", "parent", "stopped", "persistent parent"):
        await town.ended(instance_id)


async def _begin_again(town: GoldenTown) -> None:
    """Rewound, restarted, forked, started under an id that was used, purged."""
    flows.broken.add("b")
    await town.start(flows.side_by_side, ["a", "b", "c"], instance_id="rewound")
    await town.start(flows.mapped, ["a", "b", "c"], instance_id="rewound map")
    await town.start(flows.chain, ["a", "b"], instance_id="restarted")
    await town.start(flows.chain, ["a", "b"], instance_id="failed")
    for instance_id in ("rewound", "rewound map", "restarted", "failed"):
        await town.ended(instance_id)
    flows.broken.clear()
    await town.rewind("rewound", "rewind-1")
    await town.rewind("rewound map", "rewind-2")
    await town.restart("restarted", "restart-1")
    await fork_instance(town.hub, "failed", "forked", "fork-1", through=3, now_us=town.clock.now_us())
    for instance_id in ("rewound", "rewound map", "restarted", "forked"):
        await town.ended(instance_id)
    for round_number in range(2):
        await town.start(flows.chain, [f"round {round_number}"], instance_id="used twice")
        await town.ended("used twice")
    await town.start(flows.chain, ["x"], instance_id="purged")
    await town.start(flows.chain, ["x"], instance_id="purged and back")
    await town.settled()
    for instance_id in ("purged", "purged and back"):
        await purge_instance(town.hub, instance_id, now_us=town.clock.now_us())
    await town.start(flows.chain, ["y"], instance_id="purged and back")
    await town.settled()


async def _leave_some(town: GoldenTown) -> None:
    """Instances that have not ended: they wait for a timer, an event, another instance, a resumption, their code."""
    await town.start(flows.sleeps, 10_000_000, instance_id="sleeper")
    await town.start(flows.waits, "Go", instance_id="waiting")
    await town.start(flows.waits, "Go", instance_id="long " + "name " * 40)
    await town.start(flows.calls, "named child", "Go", instance_id="waiting parent")
    await town.start(flows.waits, "Go", instance_id="suspended")
    await town.start(flows.takes_back, instance_id="takes back")
    town.workers.holds = lambda work: True
    await asyncio.sleep(5)
    town.workers.holds = lambda work: False
    for held in list(town.workers.held):
        held.finish()
    await town.command("suspended", "suspend", "maintenance", "suspend-1")
    await town.raise_event("Go", "while suspended", "go-3", "suspended")
    await _start_unknown(town)
    await _start_later(town, "later", 100_000_000_000_000)
    await _start_later(town, "begun later", 2_000_000)
    for _ in range(2):
        # Another owner each: claims.
        owner = town.living("sleeper")
        assert owner is not None
        await owner.kill()
        await asyncio.sleep(10)


async def _start_unknown(town: GoldenTown) -> None:
    """An instance whose code cannot be imported: its entry says so."""
    arguments = town.hub.codec.encode_call(flows.waits.calls, ("Go",), {}, where="recording")
    reference = {"name": "gone", "module": "golden.gone", "qualname": "gone"}
    start = Start(instance_id="code is gone", name="gone", input=arguments, request_id="gone-1", reference=reference)
    await start_instance(town.hub, start, now_us=town.clock.now_us())


async def _start_later(town: GoldenTown, instance_id: str, wait_us: int) -> None:
    """An instance that begins later."""
    now_us = town.clock.now_us()
    start = Start(
        instance_id=instance_id,
        name=flows.waits.name,
        input=town.hub.codec.encode_call(flows.waits.calls, ("Go",), {}, where="recording"),
        request_id=f"{instance_id}-1",
        reference=registry.reference_of(flows.waits).to_json(),
        due_us=now_us + wait_us,
    )
    await start_instance(town.hub, start, now_us=now_us)


async def _leave_traces(town: GoldenTown) -> None:
    """What a start leaves whose client died between its two writes."""
    entry = OpenEntry(
        instance_id="never begun",
        name="golden.chain",
        request_id="never-1",
        entered_us=town.clock.now_us() - 7_200_000_000,
    )
    await add_open(town.objects, town.hub.keys, entry)


def record_on_ray(folder: Path) -> None:
    """Write a root with a real Ray: processes of their own, a local root, values that are pickled."""
    # Workers find the functions where this process does.
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path[:2])
    with durable.connect(str(folder), hub=HUB) as hub:
        ended = [
            hub.start(flows.chain, ["a", "b"], instance_id="chain"),
            hub.start(flows.columns, 100, instance_id="columns"),
            hub.start(flows.calls, "child", "Go", instance_id="parent"),
            hub.start(flows.pickles, instance_id="pickled"),
        ]
        waiting = hub.start(flows.waits, "Go", instance_id="waiting")
        hub.start(flows.sleeps, 1_000_000_000, instance_id="sleeper")
        while hub.get("parent").status().runtime_status != "Running" or not hub.instances(prefix="child"):
            time.sleep(0.1)
        hub.get("child").raise_event("Go", "went")
        for handle in ended:
            handle.result(timeout=120)
        while waiting.status().runtime_status != "Running" or hub.get("sleeper").status().runtime_status != "Running":
            time.sleep(0.1)
    import ray

    ray.shutdown()


def finish_open(folder: Path, events: dict[str, str | None]) -> GoldenTown:
    """Let what has not ended in a recorded root go on to its end with the code of today; the objects then.

    Many years have passed. `events` are raised: the name of the event that each of these instances waits for, None for
    one that has it and is to be resumed.
    """

    async def run() -> GoldenTown:
        town = GoldenTown(folder)
        town.clock.skew_us = _YEARS_US
        await asyncio.sleep(10)
        for instance_id, name in events.items():
            if name is None:
                await town.command(instance_id, "resume", "", f"resume {instance_id}")
            else:
                await town.raise_event(name, "at last", f"event for {instance_id}", instance_id)
        await asyncio.sleep(10_000)
        await town.close()
        return town

    flows.broken.clear()
    return simulate(run())


def summarize_root(folder: Path) -> dict[str, Any]:
    """What today's code reads of a root: for each instance its status, and its result or failure."""
    found: dict[str, Any] = {}
    with browse(folder, hub=HUB) as hub:
        for status in hub.instances():
            fields: dict[str, Any] = {"status": str(status.runtime_status), "execution": status.execution}
            if status.runtime_status == "Completed":
                fields["result"] = hub.get(status.instance_id).result(timeout=10)
            found[status.instance_id] = fields
    return dict(sorted(found.items()))


def main(arguments: list[str]) -> int:
    """See the module."""
    if arguments[1:] not in ([], ["--ray"]) or not arguments or (HERE / arguments[0]).exists():
        print(
            "usage: python storage/golden/record.py NAME [--ray]   (NAME of one that is not there yet)", file=sys.stderr
        )
        return 2
    if HERE.parents[1] != PLACE:
        print(f"A root holds the paths of its code: clone the project to {PLACE}, and record there", file=sys.stderr)
        return 2
    folder = HERE / arguments[0]
    (record_on_ray if arguments[1:] else record)(folder)
    expected = json.dumps(summarize_root(folder), indent=1, ensure_ascii=False)
    (folder / "expected.json").write_text(f"{expected}\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
