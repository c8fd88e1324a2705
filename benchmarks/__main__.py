"""Run the benchmarks: `python -m benchmarks [name ...]`. Each prints its figure, the baseline's, and the ratio.

The baselines are plain Ray, and bare synced writes to the same disk, measured in the same run and interleaved with what
is compared, because small machines are noisy.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import ray

import ray_durable as durable
from benchmarks import work
from ray_durable.storage.local import LocalStore

_STEPS = 200
_FAN_OUT = 10_000
_ROUNDS = 3
_CONTINUATIONS = 10_000
_CHILDREN = 60


@ray.remote
def _plain(number: int) -> int:
    return number


def _bare_appends_per_s(folder: Path, count: int) -> float:
    """Appends of 600 bytes to one open file, each synced."""
    descriptor = os.open(folder / "bare", os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
    try:
        began_s = time.perf_counter()
        for _ in range(count):
            os.write(descriptor, b"x" * 600)
            os.fsync(descriptor)
        return count / (time.perf_counter() - began_s)
    finally:
        os.close(descriptor)


def _plain_sequential_per_s(count: int) -> float:
    began_s = time.perf_counter()
    for number in range(count):
        ray.get(_plain.remote(number))
    return count / (time.perf_counter() - began_s)


def _plain_fan_out_per_s(count: int) -> float:
    began_s = time.perf_counter()
    ray.get([_plain.remote(number) for number in range(count)])
    return count / (time.perf_counter() - began_s)


def _report(name: str, ours: list[float], baseline: list[float], *, bar: float) -> None:
    ratios = [one / other for one, other in zip(ours, baseline, strict=True)]
    middle = statistics.median(ratios)
    verdict = f", {'meets' if middle >= bar else 'MISSES'} the bar of {bar}" if bar else ""
    print(
        f"{name}: {statistics.median(ours):,.1f}/s against {statistics.median(baseline):,.1f}/s: ratio {middle:.2f} "
        f"(from {min(ratios):.2f} to {max(ratios):.2f}){verdict}"
    )


def _segments(folder: Path) -> int:
    return sum(1 for _ in folder.glob("root/default/runs/*/*/log/*/*"))


def sequential(hub: durable.Hub, folder: Path) -> None:
    """Activities one after the other, against ray.get(f.remote())."""
    ours, baseline, writes = [], [], set()
    for _ in range(_ROUNDS):
        baseline.append(_plain_sequential_per_s(_STEPS))
        before = _segments(folder)
        ours.append(_STEPS / hub.start(work.chain, _STEPS).result(timeout=120))
        # The claim, which holds the first call; then one segment for each outcome of the warm-up and the steps.
        writes.add((_segments(folder) - before - 1) / (_STEPS + 1))
    _report("sequential activities", ours, baseline, bar=0.4)
    print(f"  segments written for each step, after the claim: {', '.join(f'{one:g}' for one in sorted(writes))}")


def local(hub: durable.Hub, folder: Path) -> None:
    """local=True activities one after the other, against bare synced appends, and against bare durable objects."""
    ours, appends, objects = [], [], []
    for number in range(_ROUNDS):
        appends.append(_bare_appends_per_s(folder, 5 * _STEPS))
        objects.append(asyncio.run(_bare_objects_per_s(folder / f"objects{number}", 5 * _STEPS)))
        ours.append(5 * _STEPS / hub.start(work.local_chain, 5 * _STEPS).result(timeout=120))
    _report("local activities, against synced appends to one open file", ours, appends, bar=0.4)
    _report("  the same, against bare create-if-absent of synced files", ours, objects, bar=0.4)


async def _bare_objects_per_s(folder: Path, count: int) -> float:
    """What the log asks of the disk at each step, without the log: a new synced file, and its synced name."""
    store = LocalStore.open(str(folder))
    began_s = time.perf_counter()
    for number in range(count):
        await store.put_if_absent(f"a/{number:012}", b"x" * 600)
    rate = count / (time.perf_counter() - began_s)
    await store.close()
    return rate


def _fan_out(
    hub: durable.Hub, name: str, orchestrator: durable.Orchestrator[[int], tuple[int, float]], *, bar: float
) -> None:
    inside, whole, baseline = [], [], []
    for _ in range(_ROUNDS):
        baseline.append(_plain_fan_out_per_s(_FAN_OUT))
        began_s = time.perf_counter()
        total, inside_s = hub.start(orchestrator, _FAN_OUT).result(timeout=300)
        whole.append(_FAN_OUT / (time.perf_counter() - began_s))
        inside.append(_FAN_OUT / inside_s)
        assert total == _FAN_OUT * (_FAN_OUT - 1) // 2
    _report(f"{name} of {_FAN_OUT:,} activities, first call to last result", inside, baseline, bar=bar)
    _report("  the same from start() to result(), a new actor included", whole, baseline, bar=bar)


def gather(hub: durable.Hub, folder: Path) -> None:
    """A gather of single calls, against one Ray task each."""
    _fan_out(hub, "gather", work.gathered, bar=3.0)


def mapped(hub: durable.Hub, folder: Path) -> None:
    """ctx.map, against one Ray task each."""
    _fan_out(hub, "map", work.mapped, bar=10.0)


def rounds(hub: durable.Hub, folder: Path) -> None:
    """continue_as_new again and again, against the three objects that a round creates; memory and storage."""
    root = Path(hub.address.root)
    with durable.connect(root, hub="rounds", grace=timedelta(0), ray_init={"log_to_driver": False}) as own:
        handle = own.start(work.goes_on, _CONTINUATIONS, 0)
        began_s, seen = time.perf_counter(), 0
        while not handle.status().is_ended:
            status = handle.status()
            if status.owner is not None and status.execution >= seen:
                print(f"  round {status.execution:,}: {_resident_mb(status.owner.pid):.0f} MB")
                seen = status.execution + _CONTINUATIONS // 5
            time.sleep(0.2)
        rate = _CONTINUATIONS / (time.perf_counter() - began_s)
        assert handle.result() == _CONTINUATIONS
        objects = sum(1 for path in (root / "rounds" / "runs").rglob("*") if path.is_file())
    bare = asyncio.run(_bare_objects_per_s(folder / "bare rounds", 3_000)) / 3
    _report("rounds of continue_as_new, against three bare objects each", [rate], [bare], bar=0.0)
    print(f"  objects of runs in storage after {_CONTINUATIONS:,} rounds without a grace period: {objects}")


def _resident_mb(pid: int) -> float:
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except OSError:
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


@ray.remote(num_cpus=0)
class _PlainActor:
    def echo(self, number: int) -> int:
        return number


def _plain_actors_per_s(count: int) -> float:
    began_s = time.perf_counter()
    actors = [_PlainActor.options(lifetime="detached", name=f"plain {number}").remote() for number in range(count)]
    ray.get([actor.echo.remote(number) for number, actor in enumerate(actors)])
    per_s = count / (time.perf_counter() - began_s)
    for actor in actors:
        ray.kill(actor)
    return per_s


def children(hub: durable.Hub, folder: Path) -> None:
    """Instances that an instance calls at once, each with an actor of its own, against as many bare Ray actors."""
    baseline = _plain_actors_per_s(_CHILDREN)
    began_s = time.perf_counter()
    handle = hub.start(work.calls_many, _CHILDREN)
    assert handle.result(timeout=600) == _CHILDREN * (_CHILDREN - 1) // 2
    ours = _CHILDREN / (time.perf_counter() - began_s)
    _report(f"{_CHILDREN} instances called at once, against detached actors", [ours], [baseline], bar=0.0)


_BENCHMARKS: dict[str, Callable[[durable.Hub, Path], None]] = {
    "sequential": sequential,
    "local": local,
    "gather": gather,
    "map": mapped,
    "rounds": rounds,
    "children": children,
}


def main() -> None:
    """Run the named benchmarks, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", choices=[[], *_BENCHMARKS], help="which (default: all)")
    names = parser.parse_args().names or list(_BENCHMARKS)
    # On the disk of the home folder: a temporary folder may be in memory.
    with tempfile.TemporaryDirectory(prefix=".ray_durable_bench_", dir=Path.home()) as name:
        folder = Path(name)
        with durable.connect(folder / "root", ray_init={"log_to_driver": False}) as hub:
            ray.get([_plain.remote(number) for number in range(200)])
            hub.start(work.gathered, 100).result(timeout=120)
            for wanted in names:
                _BENCHMARKS[wanted](hub, folder)


if __name__ == "__main__":
    main()
