"""Run the benchmarks: `python -m benchmarks [name ...]`. Each prints its figure, the baseline's, and the ratio.

The baselines are plain Ray, and bare synced appends to the same disk, measured in the same run and interleaved with what
is compared, because small machines are noisy.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import ray

import ray_durable as durable
from benchmarks import work

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


def sequential(hub: durable.Hub, folder: Path) -> None:
    """Activities one after the other, against ray.get(f.remote())."""
    ours, baseline = [], []
    for _ in range(_ROUNDS):
        baseline.append(_plain_sequential_per_s(_STEPS))
        handle = hub.start(work.chain, _STEPS)
        ours.append(_STEPS / handle.result(timeout=120))
    _report("sequential activities", ours, baseline, bar=0.4)
    segments = sum(1 for path in Path(folder).glob("root/default/runs/*/*/log/*/*"))
    # A claim with the first call, a segment for each outcome; the last one holds the end too.
    print(f"storage writes a step: {segments / _ROUNDS / (_STEPS + 1):.3f} ({segments} segments of {_ROUNDS} chains)")


def local(hub: durable.Hub, folder: Path) -> None:
    """local=True activities one after the other, against bare synced appends."""
    ours, baseline = [], []
    for _ in range(_ROUNDS):
        baseline.append(_bare_appends_per_s(folder, 5 * _STEPS))
        ours.append(5 * _STEPS / hub.start(work.local_chain, 5 * _STEPS).result(timeout=120))
    _report("local activities", ours, baseline, bar=0.4)


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
