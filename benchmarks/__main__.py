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
from pathlib import Path

import ray

import ray_durable as durable
from benchmarks import work
from ray_durable.storage.local import LocalStore

_STEPS = 200
_FAN_OUT = 10_000
_ROUNDS = 3


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
    verdict = "meets" if middle >= bar else "MISSES"
    print(
        f"{name}: {statistics.median(ours):,.0f}/s against {statistics.median(baseline):,.0f}/s: ratio {middle:.2f} "
        f"(from {min(ratios):.2f} to {max(ratios):.2f}), {verdict} the bar of {bar}"
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


_BENCHMARKS: dict[str, Callable[[durable.Hub, Path], None]] = {
    "sequential": sequential,
    "local": local,
    "gather": gather,
    "map": mapped,
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
