"""Kill real processes, nodes and clusters under a mixed load, and see that nothing is lost: `python -m tests.chaos`.

It starts its own Ray clusters of several nodes and a hub of its own, keeps some instances of every kind going, and
kills what it is told to, in an order and with pauses that come from the seed. Then it lets all instances end, and holds
the logs against a ledger of what really ran (see `tests.chaos.audit`). Exit status: 0 nothing was lost or done twice,
1 something was; then root and outputs are kept, and the report says where.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import ray_durable as durable
from tests.chaos.audit import Audit, verify_format
from tests.chaos.cluster import Cluster, Settings
from tests.chaos.flows import LEDGER_VARIABLE, read_ledger
from tests.chaos.kills import KINDS, Killer
from tests.chaos.load import Load, Violation
from tests.chaos.roots import Root, local_root, s3_root
from tests.support.processes import adopt_orphans, processes_below, title_of

FULL = {
    "orchestrator": 200,
    "worker": 200,
    "dispatcher": 50,
    "supervisor": 50,
    "node": 30,
    "cluster": 10,
    "takeover": 5,
    "zombie": 20,
}
QUICK = {
    "orchestrator": 6,
    "worker": 6,
    "dispatcher": 1,
    "supervisor": 1,
    "node": 1,
    "cluster": 1,
    "takeover": 1,
    "zombie": 1,
}

_BARE_EVERY = 5
_QUICK_SIZE = 0.3
_WARM_S_MAX = 180.0
_DRAIN_S_MAX = 180.0


@dataclass(slots=True, kw_only=True)
class Findings:
    """What a run found."""

    seed: int
    lasted_s: float = 0.0
    violations: list[Violation] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)


def options_of(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__.split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="a few kills of each kind")
    parser.add_argument("--only", nargs="+", choices=list(KINDS), metavar="KIND", help=f"of {', '.join(KINDS)}")
    parser.add_argument("--kills", nargs="+", default=[], metavar="KIND=N", help="how many of a kind")
    parser.add_argument("--seed", type=int, default=None, help="of load and kills (default: a random one)")
    parser.add_argument("--root", choices=["local", "s3"], default="local", help="s3: a server of its own")
    parser.add_argument("--duration-s", type=float, default=float("inf"), help="no kill begins later")
    parser.add_argument("--pause-s", type=float, default=0.3, help="between two kills, on average")
    parser.add_argument("--instances", type=int, default=12, help="how many are under way at a time")
    parser.add_argument("--total", type=int, default=None, help="how many there are in all (default: no limit)")
    parser.add_argument("--size", type=float, default=None, help="of an instance: 1 is about 20 s of work")
    parser.add_argument("--nodes", type=int, default=2, help="besides the head")
    options = parser.parse_args(arguments)
    if options.size is None:
        options.size = _QUICK_SIZE if options.quick else 1.0
    wanted = QUICK if options.quick else FULL
    for given in options.kills:
        kind, _, count = given.partition("=")
        if kind not in KINDS or not count.isdecimal():
            parser.error(f"--kills {given}: give KIND=N, with one of {', '.join(KINDS)}")
        wanted = {**wanted, kind: int(count)}
    options.wanted = {kind: count for kind, count in wanted.items() if not options.only or kind in options.only}
    if options.seed is None:
        options.seed = random.SystemRandom().randrange(10**6)
    return options


async def run(options: argparse.Namespace, root: Root, folder: Path) -> Findings:
    """Load, kills, the end of all instances, and the checks."""
    ledger = folder / "ledger"
    settings = Settings(
        folder,
        root=root.url,
        storage_options=root.options_source,
        environment={**root.environment, LEDGER_VARIABLE: str(ledger)},
        nodes=options.nodes,
    )
    began_s = time.monotonic()
    findings = Findings(seed=options.seed)
    cluster = Cluster(settings)
    killer: Killer | None = None
    try:
        await cluster.start()
        await cluster.connect()
        with durable.browse(root.url, storage_options=root.options_source) as reader:
            load = Load(
                reader, prefix=f"s{options.seed}", live_max=options.instances, total=options.total, size=options.size
            )
            killer = Killer(random.Random(options.seed), settings, load, cluster)
            await _kill(options, load, killer)
            await load.drain(_DRAIN_S_MAX)
            await killer.rest()
            await killer.see_off()
            findings.violations += await _leave(killer)
            audit = Audit(jobs=load.jobs, runs=read_ledger(ledger), killed=killer.pids)
            audit.check(reader)
    finally:
        await (killer.cluster if killer is not None else cluster).kill_all()
    stored, checked = verify_format(root.copied(folder))
    findings.violations += [*load.violations, *killer.violations, *audit.violations, *stored]
    findings.lasted_s = time.monotonic() - began_s
    findings.lines = [*_kill_lines(options.wanted, killer), "", *_load_lines(load, audit), checked]
    return findings


async def _kill(options: argparse.Namespace, load: Load, killer: Killer) -> None:
    """All kills that are wanted, in random order, under the load."""
    rng, began_s = random.Random(f"{options.seed} order"), time.monotonic()
    order = [kind for kind, count in options.wanted.items() for _ in range(count)]
    rng.shuffle(order)
    loading = asyncio.create_task(load.run())
    try:
        await load.wait_running(options.instances, _WARM_S_MAX)
        print(f"{options.instances} instances are under way after {time.monotonic() - began_s:.0f} s", flush=True)
        for number, kind in enumerate(order):
            while killer.killed[kind] < options.wanted[kind] and time.monotonic() - began_s < options.duration_s:
                await asyncio.sleep(min(rng.expovariate(1 / options.pause_s), 10 * options.pause_s))
                if await killer.kill(kind):
                    break
            if number % _BARE_EVERY == 0:
                killer.watch(killer.measure_bare_actor())
            if loading.done():
                loading.result()
    finally:
        loading.cancel()
        print(f"the kills are made after {time.monotonic() - began_s:.0f} s", flush=True)


async def _leave(killer: Killer) -> list[Violation]:
    """End the last cluster: no actor of an instance is left, and no process."""
    found = []
    actors = await killer.actors_left()
    if actors:
        found.append(Violation(what="actors are left", instance="", details=", ".join(actors)))
    left = await killer.cluster.end()
    if left:
        titles = ", ".join(f"{pid} {title_of(pid)}" for pid in left)
        found.append(Violation(what="processes are left", instance="", details=titles))
    return found


def _kill_lines(wanted: Mapping[str, int], killer: Killer) -> Iterator[str]:
    yield f"{'kill':28} {'wanted':>7} {'made':>7}   there again after (median, p99, longest)"
    for kind, count in wanted.items():
        yield f"{kind:28} {count:7} {killer.killed[kind]:7}   {_spread(killer.back_s.get(kind, []))}"
    for kind in sorted(killer.back_s.keys() - wanted.keys()):
        yield f"{kind:28} {'':7} {len(killer.back_s[kind]):7}   {_spread(killer.back_s[kind])}"
    ours, bare = killer.back_s.get("orchestrator", []), killer.back_s.get("bare actor", [])
    if ours and bare:
        apart_s = statistics.median(ours) - statistics.median(bare)
        yield (
            f"An instance goes on {statistics.median(ours) / statistics.median(bare):.2f} times as long after its kill "
            f"as Ray takes to restart an actor that does nothing: {apart_s:+.2f} s (the bar: +1 s)"
        )


def _spread(seconds: list[float]) -> str:
    if not seconds:
        return ""
    ordered = sorted(seconds)
    p99 = ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]
    return f"{statistics.median(ordered):6.2f} s {p99:6.2f} s {ordered[-1]:6.2f} s"


def _load_lines(load: Load, audit: Audit) -> Iterator[str]:
    yield f"instances {len(load.jobs)}, executions {audit.executions}, activities that ran {len(audit.runs)}"
    yield (
        f"outcomes recorded {audit.outcomes}; runs beyond the first of their attempt {audit.repeated}, of which only a "
        f"lost dispatcher had counted {audit.uncounted}"
    )
    yield f"events acknowledged {audit.events}; clients told to ask again: {dict(load.troubles)}"


def main(arguments: list[str] | None = None) -> int:
    """See the module."""
    options = options_of(arguments)
    adopt_orphans()
    # On the disk of the home folder: a temporary folder may be in memory.
    folder = Path(tempfile.mkdtemp(prefix=".ray_durable_chaos_", dir=Path.home()))
    print(f"seed {options.seed}, {options.root} root, kills {options.wanted}", flush=True)
    with s3_root() if options.root == "s3" else local_root(folder) as root:
        os.environ.update(root.environment)
        findings = asyncio.run(run(options, root, folder))
    left = processes_below(os.getpid())
    if left:
        titles = ", ".join(f"{pid} {title_of(pid)}" for pid in left)
        findings.violations.append(Violation(what="processes are left", instance="", details=titles))
    print("\n".join(findings.lines))
    for violation in findings.violations:
        print(f"VIOLATION {violation.instance}: {violation.what}\n  {violation.details}")
    print(f"seed {findings.seed}: {len(findings.violations)} violations in {findings.lasted_s:.0f} s")
    if findings.violations:
        print(f"Root, ledger and outputs are kept in {folder}")
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
