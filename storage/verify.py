"""Check a root: are its objects all there, unchanged, and written by the rules of FORMAT.md (version 1)?

It knows that page and nothing else: it imports nothing of ray_durable, so that it can judge what ray_durable wrote, and
for a root in a folder only the standard library. It changes nothing. To use it elsewhere, copy this file and the folder
verify_lib beside it.

Each finding is one line. DAMAGE is what no program that follows the rules leaves behind, wherever it is stopped:
objects were lost, changed, or written against the rules. NOTE is what such a program may leave when it is stopped
half-way, and what the hub puts right by itself. Of a log, what follows its first damage is not looked at.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

# Wherever it is started from, or loaded by.
sys.path[:0] = [folder for folder in [str(Path(__file__).resolve().parent)] if folder not in sys.path]

from verify_lib.findings import Report  # noqa: E402
from verify_lib.hubs import HubCheck, hub_names  # noqa: E402
from verify_lib.roots import Folder, Root, open_root  # noqa: E402
from verify_lib.signatures import read_keys  # noqa: E402

__all__ = ["main", "verify_hub"]

_PROGRESS_S = 5.0

_EPILOG = """
examples:
  python storage/verify.py ~/.local/share/ray_durable     all hubs of a folder, at rest
  python storage/verify.py ROOT --hub prod --instance nightly-42
  python storage/verify.py ROOT --live 5                  while a cluster works on it: what is found is looked at
                                                          again 5 seconds later, and told if it is still so
  python storage/verify.py s3://bucket/durable --json     a bucket, with s3fs installed; for programs
  python storage/verify.py ROOT --hub prod --key-file KEY a signed hub: whether all of it is signed, for its place
  python storage/verify.py BACKUP --now 2026-03-01T06:00  a copy, judged as of the time when it was made

exit status: 0 no damage, 1 damage, 2 there is no such root or hub, or it cannot be read
"""


def verify_hub(
    hub: Path | Root,
    *,
    name: str = "",
    now_us: int | None = None,
    live_s: float | None = None,
    only: str | None = None,
    keys: Mapping[str, bytes] | None = None,
) -> Report:
    """Check a hub, given as its folder. `only` is an instance's id; `live_s` see --live; `keys` are of `read_keys`."""
    root = Folder(hub) if isinstance(hub, Path) else hub
    name = name or (hub.name if isinstance(hub, Path) else "")
    return _verify(HubCheck(root, name, now_us or time.time_ns() // 1_000, only, keys=keys), now_us, live_s)


def _verify(check: HubCheck, now_us: int | None, live_s: float | None) -> Report:
    try:
        report = check.run()
        if live_s is not None and report.findings:
            time.sleep(live_s)
            check.now_us = now_us or time.time_ns() // 1_000
            again = {instance for finding in report.findings for instance in finding.instances}
            report.keep_only(check.run(again).findings)
        return report
    finally:
        check.close()


def main(arguments: Sequence[str] | None = None) -> int:
    """See the module."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.key_file and options.instance:
        parser.error("--key-file checks all of a hub, and --instance one instance: give one of them")
    try:
        root = open_root(options.root)
        hubs = [options.hub] if options.hub else hub_names(root)
        hubs = [hub for hub in hubs if root.names(f"{hub}/")]
        if not hubs:
            what = f"no hub {options.hub!r}" if options.hub else "no hub"
            print(f"There is {what} in {options.root}: give the folder or URL that holds it", file=sys.stderr)
            return 2
        reports = [_verify_one(root, hub, options) for hub in hubs]
    except (ImportError, OSError, ValueError) as error:
        print(f"{options.root} cannot be read: {error}", file=sys.stderr)
        return 2
    if options.json:
        print(json.dumps([report.to_json() for report in reports], indent=2))
    else:
        for report in reports:
            _print(report)
    return 1 if any(report.damage for report in reports) else 0


def _verify_one(root: Root, hub: str, options: argparse.Namespace) -> Report:
    said_s = time.monotonic()

    def progress(count: int) -> None:
        nonlocal said_s
        if time.monotonic() - said_s >= _PROGRESS_S:
            said_s = time.monotonic()
            print(f"{hub}: {count} instances so far", file=sys.stderr)

    now_us, keys = options.now or time.time_ns() // 1_000, read_keys(options.key_file) if options.key_file else None
    check = HubCheck(root.below(f"{hub}/"), hub, now_us, options.instance, progress, keys)
    return _verify(check, options.now, options.live)


def _print(report: Report) -> None:
    for finding in report.findings:
        print(f"{'DAMAGE' if finding.is_damage else 'NOTE'} {report.hub}/{finding} [{finding.rule}]")
    print(
        f"{report.hub}: {report.instances} instances, {report.executions} executions, {report.segments} segments, "
        f"{report.events} events, {report.blobs} blobs checked; damaged: {len(report.damage)}, "
        f"notes: {len(report.notes)}"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="verify.py", description=__doc__, epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("root", help="the folder or URL that holds the hub, or several")
    parser.add_argument("--hub", metavar="NAME", help="check only this one")
    parser.add_argument("--instance", metavar="ID", help="check only this instance, without what is between instances")
    parser.add_argument("--key-file", metavar="PATH", help="the hub is signed, with the keys in this file")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--live", type=float, metavar="SECONDS", help="a cluster works on it: look again after so long")
    parser.add_argument("--now", type=_time_us, metavar="TIME", help="judge ages as of this time, in ISO 8601 (UTC)")
    return parser


def _time_us(text: str) -> int:
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return int(moment.timestamp() * 1_000_000)


if __name__ == "__main__":
    sys.exit(main())
