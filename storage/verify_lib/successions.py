"""From one execution of an instance to the next: FORMAT.md, section 7. Both must tell the same of the link.

Also a copied history against the one that it was copied from, if that is still there.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from verify_lib.findings import DamageError
from verify_lib.logs import Log, events_of
from verify_lib.roots import Root
from verify_lib.segments import Event

__all__ = ["check_copy", "check_first", "check_succession"]


def check_first(log: Log, purged: int, is_removed_before: bool) -> None:
    """The oldest execution that is there: the instance's first, or the ones before were removed.

    DamageError if nothing says why its number is not 1.
    """
    is_continued = _previous(log)[:1] == (log.instance,)
    if log.execution not in (1, purged + 1) and not is_continued and not is_removed_before:
        why = "no tombstone says that the ones before were purged"
        raise DamageError("succession", log.key, f"its executions begin with {log.execution}, and {why}")


def check_succession(before: Log, after: Log) -> None:
    """DamageError unless `after` is the execution that the link of `before` names."""
    link, started, key = before.history.link, after.history.started, after.key
    if link is None:
        raise DamageError("succession", key, f"execution {before.execution} does not end with a link to it")
    if after.run != link["run"]:
        raise DamageError("succession", key, f"its run is {after.run}, and the link names {link['run']}")
    expected: dict[str, Any] = {"previous": (before.instance, before.execution, before.run)}
    found: dict[str, Any] = {"previous": _previous(after)}
    older = before.history.started
    is_new = link["type"] == "ExecutionRestarted" and link["kind"] != "rewind"
    source = link if is_new else older
    for name in ("name", "reference", "version", "parent", "depth"):
        expected[name], found[name] = source.get(name) or None, started.get(name) or None
    expected["due"], found["due"] = None if link["type"] == "ContinueAsNew" else source.get("due"), started.get("due")
    if link["type"] == "ExecutionRestarted":
        expected["request_id"], found["request_id"] = link["request_id"], started["request_id"]
    if "input" in link:
        expected["input"], found["input"] = _comparable(link["input"], started["input"])
    for name, value in expected.items():
        if found[name] != value:
            raise DamageError("succession", key, f"{name} is {found[name]!r:.120}, and its link says {value!r:.120}")
    _check_lineage(before, after, link)


def _check_lineage(before: Log, after: Log, link: Event) -> None:
    """Who made the copied events, and with which random numbers."""
    started, older, key = after.history.started, before.history.started, after.key
    is_rewind = link.get("kind") == "rewind"
    if bool(after.history.copied) != is_rewind:
        raise DamageError("lineage", key, "a rewind copies a history, and nothing else does")
    if not is_rewind:
        if "lineage" in started or "origin" in started or "foreign" in started:
            raise DamageError("lineage", key, "it has a lineage, and copied nothing")
        return
    through = link["through"]
    own = [through, before.history.sending.author_of(through), _run_of_author(before, through)]
    lineage = [*(part for part in older.get("lineage", ()) if part[0] < through), own]
    if started.get("lineage") != lineage:
        raise DamageError("lineage", key, f"its lineage is {started.get('lineage')}, and its link says {lineage}")
    if started.get("origin") != older.get("origin", before.run):
        raise DamageError("lineage", key, f"its origin is {started.get('origin')!r}, not that of the one before")
    foreign = min(older.get("foreign", 0), through)
    if started.get("foreign", 0) != foreign:
        raise DamageError(
            "lineage", key, f"{started.get('foreign', 0)} events are foreign, and {foreign} of its link's"
        )
    if after.history.copied != through + 1:
        raise DamageError("lineage", key, f"it copied {after.history.copied - 1} events, and its link says {through}")


def _run_of_author(log: Log, number: int) -> str:
    for part in log.history.started.get("lineage", ()):
        if number <= part[0]:
            run: str = part[2]
            return run
    return log.run


def check_copy(root: Root, log: Log) -> None:
    """DamageError unless the copied events are those of the execution that they were copied from."""
    history = log.history
    if not history.copied:
        return
    instance, execution, run = _previous(log) or ("", 0, "")
    if not instance:
        raise DamageError("lineage", log.key, "it holds a copied history and does not say of which execution")
    is_fork = instance != log.instance
    if is_fork and ("lineage" in history.started or "parent" in history.started):
        raise DamageError("lineage", log.key, "a fork has no lineage and no parent")
    # Those of earlier versions do not say it.
    if is_fork and history.started.get("foreign", history.copied - 1) != history.copied - 1:
        raise DamageError("lineage", log.key, f"a fork copied {history.copied - 1} events, and says otherwise")
    original = events_of(root, instance, execution)
    try:
        first = next(original, None)
        if first is None or first["run"] != run:
            return  # it was removed, or is of an earlier life of that id
        _compare(log, first, original)
    except DamageError as damage:
        if damage.key == log.key:
            raise
        # The original's damage is told where that is checked.


def _compare(log: Log, first: Event, original: Iterator[Event]) -> None:
    """The copied events with those of an execution that begins with `first`."""
    history = log.history
    instance, execution, run = _previous(log)
    is_fork = instance != log.instance
    if is_fork and history.started.get("origin") != first.get("origin", run):
        raise DamageError(
            "lineage", log.key, f"its origin is {history.started.get('origin')!r}, not that of its source"
        )
    copies = history.start.events[1 : history.copied - 1]
    for copy, event in _pairs(copies, islice(original, len(copies))):
        if event is None or not _is_same(copy, event):
            what = f"event {copy['n']} is not that of execution {execution} of {instance!r}"
            raise DamageError("copy", log.key, f"{what}, from which it was copied")


def _pairs(copies: Iterable[Event], originals: Iterator[Event]) -> Iterator[tuple[Event, Event | None]]:
    for copy in copies:
        yield copy, next(originals, None)


def _previous(log: Log) -> tuple[Any, ...]:
    previous = log.history.started.get("previous") or {}
    return tuple(previous[name] for name in ("instance", "execution", "run")) if previous else ()


def _comparable(left: dict[str, Any], right: dict[str, Any]) -> tuple[object, object]:
    """Two payloads as texts, as far as they can be compared: one that is moved may be stored in another form."""
    return (_text(left), _text(right)) if left.keys() == right.keys() else (None, None)


def _is_same(copy: Event, event: Event) -> bool:
    """Whether two events are alike, but for payloads that one of them does not keep in its line."""
    if copy.keys() != event.keys():
        return False
    names = [name for name in copy if _is_in_line(copy[name]) and _is_in_line(event[name])]
    return _text([copy[name] for name in names]) == _text([event[name] for name in names])


def _is_in_line(value: object) -> bool:
    return not (isinstance(value, dict) and ("encoding" in value or (len(value) == 1 and "json" not in value)))


def _text(value: object) -> str:
    """JSON, since there is a number that does not equal itself; without the place of a section."""
    if isinstance(value, dict) and "section" in value:
        value = {name: part for name, part in value.items() if name != "section"}
    return json.dumps(value, sort_keys=True)
