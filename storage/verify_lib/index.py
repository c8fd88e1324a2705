"""The index against the logs: FORMAT.md, section 8. An instance's own entries, and entries without an instance."""

from __future__ import annotations

import json
from typing import Any

from verify_lib import names
from verify_lib.findings import Report
from verify_lib.ledger import Ledger
from verify_lib.logs import Log, note_stray
from verify_lib.roots import SMALL_BYTES_MAX, Root
from verify_lib.segments import VERSION

__all__ = ["check_entries", "check_orphans", "enter_retired"]

_ORPHAN_AGE_US = 3_600 * 1_000_000


def check_entries(root: Root, report: Report, ledger: Ledger, log: Log) -> bool:
    """Check the entries of the instance whose newest execution is `log`; whether it is in the open set."""
    history, key = log.history, names.open_entry(log.instance)
    ledger.enter("expected", (key,))
    entry = read_object(root, key)
    if not history.is_finished:
        _check_open(report, log, key, entry)
    elif entry is not None and not history.sending.owes:
        report.add_note("open", key, f"still there, and {log.instance!r} has ended", log.instance)
    if history.is_finished:
        _check_summary(root, report, ledger, log, is_open=entry is not None)
    return entry is not None


def read_object(root: Root, key: str, bytes_max: int = SMALL_BYTES_MAX) -> dict[str, Any] | None:
    """A JSON object; None if there is none, or it is none of this version."""
    try:
        fields = json.loads(root.read(key, bytes_max) or b"")
    except ValueError:
        return None
    return fields if isinstance(fields, dict) and fields.get("v") == VERSION else None


def _check_open(report: Report, log: Log, key: str, entry: dict[str, Any] | None) -> None:
    """Recovery reads the open set alone: an instance that it does not find never goes on."""
    texts = [(entry or {}).get(name) for name in ("instance", "name", "request_id")]
    is_readable = all(isinstance(text, str) for text in texts) and isinstance((entry or {}).get("entered_us"), int)
    if entry is None or not is_readable or entry["instance"] != log.instance:
        why = "missing or unreadable" if entry is None or not is_readable else "of another instance"
        text = f"{why}, and {log.instance!r} has not ended: recovery would not find it"
        report.add_damage("open", key, text, log.instance)
        return
    wake = entry.get("wake")
    if wake is not None:
        _check_wake(report, log, key, wake)


def _check_wake(report: Report, log: Log, key: str, wake: Any) -> None:
    """A hint that counts, since nothing was appended behind it, must not keep the instance from its next timer."""
    try:
        execution, tail_seq, due_us = wake["execution"], wake["tail_seq"], wake.get("due_us")
    except (KeyError, TypeError, AttributeError):
        report.add_damage("wake", key, f"the wake hint {wake!r:.80} is none", log.instance)
        return
    if (execution, tail_seq) > (log.execution, log.seq):
        report.add_damage("wake", key, f"the wake hint is of segment {tail_seq}, the log ends before", log.instance)
    elif (execution, tail_seq) == (log.execution, log.seq):
        timer = log.history.next_timer
        if timer is not None and (due_us is None or due_us > timer):
            text = f"the wake hint is of {due_us}, and a timer is due at {timer} already"
            report.add_damage("wake", key, text, log.instance)


def _check_summary(root: Root, report: Report, ledger: Ledger, log: Log, *, is_open: bool) -> None:
    end, status = log.history.end, log.status
    assert end is not None, "it has ended"
    key = names.ended_entry(log.instance, status["created_us"], end["status"])
    ledger.enter("expected", (key,))
    summary = read_object(root, key)
    if summary is None:
        if not is_open:
            text = f"no summary of {log.instance!r}, which has ended: listings do not show it"
            report.add_note("summary", key, text, log.instance)
        return
    different = [name for name, value in status.items() if summary.get(name) != value]
    if different:
        text = f"the summary of {log.instance!r} and its log tell different things: {', '.join(different)}"
        report.add_note("summary", key, text, log.instance)


def check_orphans(root: Root, report: Report, ledger: Ledger, now_us: int) -> None:
    """Look for entries that no instance stands behind."""
    for name in root.names("index/open/"):
        key = f"index/open/{name}"
        if name.startswith(".") or name.endswith("/"):
            note_stray(report, key)
        elif not ledger.has("expected", key=key):
            _check_orphan(root, report, key, now_us)
    for name in root.walk("index/ended/"):
        key = f"index/ended/{name}"
        if not names.ENDED.fullmatch(name):
            note_stray(report, key)
        elif not ledger.has("expected", key=key):
            _check_stale_summary(root, report, ledger, key)
    for name in root.names("index/"):
        if name not in ("open/", "ended/", "retired/"):
            note_stray(report, f"index/{name}")


def _check_stale_summary(root: Root, report: Report, ledger: Ledger, key: str) -> None:
    summary = read_object(root, key) or {}
    instance = summary.get("instance")
    if not isinstance(instance, str):
        report.add_note("summary", key, "no summary")
    elif ledger.has("instances", id=instance, is_sound=False):
        pass  # nobody knows how it ended
    elif not (ledger.has("tombs", instance=instance) and ledger.has("retired", instance=instance)):
        # Else its purge was interrupted, and goes on when the queue is worked off.
        report.add_note("summary", key, f"a summary of {instance!r}, of which this is not the end", instance)


def _check_orphan(root: Root, report: Report, key: str, now_us: int) -> None:
    entry = read_object(root, key)
    if entry is None:
        report.add_note("orphan", key, "no entry of the open set")
        return
    entered_us = entry.get("entered_us")
    is_old = isinstance(entered_us, int) and entered_us + _ORPHAN_AGE_US < now_us
    age = "for more than an hour" if is_old else "yet"
    instances = [entry["instance"]] if isinstance(entry.get("instance"), str) else []
    report.add_note("orphan", key, f"no execution behind it {age}: a start did not come to its end", *instances)


def enter_retired(root: Root, report: Report, ledger: Ledger) -> None:
    """Read the queue of what is to be removed, before the instances are looked at."""
    for name in root.names("index/retired/"):
        key, found = f"index/retired/{name}", names.RETIRED.fullmatch(name)
        if found is None:
            note_stray(report, key)
            continue
        fields = read_object(root, key) or {}
        instance, through = fields.get("instance"), fields.get("through")
        if not isinstance(instance, str) or type(through) is not int or names.encode_id(instance) != found["id"]:
            report.add_note("retired", key, "no entry of the queue: nothing is removed for it")
            continue
        ledger.enter("retired", (instance, through, key))


def check_retired(report: Report, ledger: Ledger) -> None:
    """Look for what is buried and will not be removed."""
    left = """
        SELECT r.instance, r.number, r.key FROM remains r
        LEFT JOIN retired q ON q.instance = r.instance AND q.through >= r.number WHERE q.instance IS NULL"""
    for instance, number, key in ledger.ask(left):
        text = (
            f"execution {number} of {instance!r} is purged, and nothing in index/retired/ says that it is to be removed"
        )
        report.add_note("retired", key, text, instance)
