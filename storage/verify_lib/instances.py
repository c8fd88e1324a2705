"""All that belongs to one instance: its executions in order, its tombstones, its entries in the index."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from urllib.parse import unquote

from verify_lib import names
from verify_lib.findings import DamageError, Report
from verify_lib.index import check_entries
from verify_lib.ledger import Ledger
from verify_lib.logs import Log, note_stray, read_log
from verify_lib.roots import SMALL_BYTES_MAX, Root
from verify_lib.segments import VERSION
from verify_lib.sending import Call
from verify_lib.successions import check_copy, check_first, check_succession

__all__ = ["Instance", "Scope", "check_instance"]

_NEVER, _ANSWERED = -1, -2
"""Of a call: not delivered, and not to be; delivered, as its answer shows, which is looked at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """What is checked, at which time, and where the outcome goes. `grace_us` is how long past executions stay."""

    root: Root
    report: Report
    ledger: Ledger
    now_us: int
    grace_us: int


@dataclass(slots=True)
class Instance:
    """What lies in an instance's folder, by the numbers of the executions."""

    folder: str
    executions: list[int] = field(default_factory=list)
    purged: int = 0
    # Of the first execution that is there, to the newest.
    is_whole: bool = False
    is_steady: bool = True
    is_sound: bool = True

    @property
    def name(self) -> str:
        """The id, encoded."""
        return self.folder.split("/")[-2]

    def id_of(self, root: Root, execution: int) -> str:
        """The id, also where that execution cannot be read."""
        # A name that was too long does not say all of it.
        return _run_of(root, self.key(execution))[1] or unquote(self.name)

    def key(self, execution: int) -> str:
        """Segment 0 of an execution."""
        return f"{self.folder}{execution:06}"


def check_instance(scope: Scope, folder: str, found: Iterable[str]) -> None:
    """Check the instance whose objects in `folder` have these names."""
    instance = _list(scope, folder, found)
    present = [number for number in instance.executions if number > instance.purged]
    _enter_purged(scope, instance)
    scope.report.instances += bool(present)
    before: Log | None = None
    for number in present:
        log = _read(scope, instance, number, present[-1])
        if log is not None:
            instance.is_sound = _check_order(scope, instance, before, log, present) and instance.is_sound
            _enter_log(scope.ledger, log)
        before = log
    if before is not None and before.execution == present[-1]:
        is_open = check_entries(scope.root, scope.report, scope.ledger, before)
        _enter_instance(scope.ledger, instance, before, is_single=len(present) == 1, is_open=is_open)
    elif present:
        _enter_damaged(scope, instance, present[-1])


def _list(scope: Scope, folder: str, found: Iterable[str]) -> Instance:
    instance = Instance(folder)
    for name in found:
        tombstone = names.TOMBSTONE.fullmatch(name)
        if tombstone is not None:
            instance.purged = max(instance.purged, int(tombstone[1]))
            _check_tombstone(scope, f"{folder}{name}", int(tombstone[1]))
        elif names.EXECUTION.fullmatch(name):
            instance.executions.append(int(name))
        else:
            note_stray(scope.report, f"{folder}{name}")
    instance.executions.sort()
    return instance


def _check_tombstone(scope: Scope, key: str, through: int) -> None:
    try:
        fields = json.loads(scope.root.read(key, SMALL_BYTES_MAX) or b"")
        folder = names.execution_folder(fields["instance"])
        is_right = fields["v"] == VERSION and fields["through"] == through and key.startswith(folder)
        scope.ledger.enter("tombs", (fields["instance"], through))
    except (KeyError, TypeError, ValueError):
        is_right = False
    if not is_right:
        scope.report.add_damage("tombstone", key, "the tombstone does not say what its name says")


def _enter_purged(scope: Scope, instance: Instance) -> None:
    """What is below a tombstone is being removed, and may be there in parts."""
    dead = [number for number in instance.executions if number <= instance.purged]
    for number in dead:
        run, instance_id = _run_of(scope.root, instance.key(number))
        scope.ledger.enter("runs", (run,))
        if instance_id:
            scope.ledger.enter("remains", (instance_id, number, instance.key(number)))


def _run_of(root: Root, key: str) -> tuple[str, str]:
    """Run and instance of an execution that is not checked."""
    try:
        header = json.loads((root.read(key) or b"").split(b"\n", 1)[0])
        return str(header["run"]), str(header["instance"])
    except (KeyError, TypeError, ValueError):
        return "", ""


def _read(scope: Scope, instance: Instance, number: int, newest: int) -> Log | None:
    """An execution; None if it is damaged, and the report says where."""
    scope.report.executions += 1
    try:
        return read_log(scope.root, instance.key(number), scope.report)
    except DamageError as damage:
        instance.is_sound = False
        run, instance_id = _run_of(scope.root, instance.key(number))[0], instance.id_of(scope.root, number)
        scope.ledger.enter("runs", (run,))
        if number < newest and _is_past(scope, instance, number):
            text = f"parts of a past execution are missing, which is being removed: {damage.text}"
            scope.report.add_note("removal", damage.key, text, instance_id)
        else:
            scope.report.add_damage(damage.rule, damage.key, damage.text, instance_id)
        return None


def _is_past(scope: Scope, instance: Instance, number: int) -> bool:
    """Whether it may be removed: the oldest one, whose grace period is over."""
    if number != min(one for one in instance.executions if one > instance.purged):
        return False
    try:
        data = scope.root.read(instance.key(number + 1)) or b""
        began_us = json.loads(data.split(b"\n", 1)[0])["status"]["updated_us"]
        return bool(began_us + scope.grace_us <= scope.now_us)
    except (KeyError, TypeError, ValueError):
        return False


def _check_order(scope: Scope, instance: Instance, before: Log | None, log: Log, present: list[int]) -> bool:
    """Whether the execution is what has to follow the one before it."""
    try:
        if log.execution == present[0]:
            previous = log.history.started.get("previous") or {}
            instance.is_whole = previous.get("instance") != log.instance
            retired = scope.ledger.has("retired", instance=log.instance)
            check_first(log, instance.purged, is_removed_before=retired)
        elif log.execution - 1 not in present:
            what = f"execution {log.execution - 1} is missing, and an older one is there"
            raise DamageError("succession", log.key, what)
        elif before is not None and before.history.link is None and _is_past(scope, instance, before.execution):
            text = "a past execution whose end is missing: it is being removed"
            scope.report.add_note("removal", before.key, text, log.instance)
            scope.ledger.remove("executions", instance=log.instance, number=before.execution)
            instance.is_whole = False
        elif before is not None:
            check_succession(before, log)
        if log.history.link is not None and log.history.link["type"] == "ExecutionRestarted":
            instance.is_steady = False
        check_copy(scope.root, log)
        return True
    except DamageError as damage:
        scope.report.add_damage(damage.rule, damage.key, damage.text, log.instance)
        return False


def _enter_log(ledger: Ledger, log: Log) -> None:
    """Keep what other instances have to agree with."""
    history, sending, instance = log.history, log.history.sending, log.instance
    ledger.enter("runs", (log.run,))
    ledger.enter("executions", (instance, log.execution))
    if sending.parent is not None:
        ledger.enter("called", (instance, log.execution, log.key, *sending.parent))
        end = history.end
        if end is not None and end["type"] == "ExecutionCompleted":
            row = (sending.message_id(end["n"]), *sending.parent, end["status"] == "Completed")
            ledger.enter("ends", row)
    for call in sending.calls.values():
        _enter_call(ledger, log, call)
    for sent in sending.sent.values():
        if sent.kind == "EventSent":
            message = sending.message_id(sent.number)
            ledger.enter("sent", (message, sent.receiver, sent.name, sent.time, instance, sent.is_delivered, log.key))
    # What was handed on arrived before, perhaps at the instance that this one is a fork of.
    carried = {event.get("event_id") for event in history.started.get("carried", ())}
    for event_id, (number, name) in history.raised.items():
        sender = _sender(event_id)
        if sender is not None and number > history.copied and event_id not in carried:
            ledger.enter("raised", (instance, event_id, name, *sender, log.key))
    for reference in history.references:
        ledger.enter("code", (reference, log.key, instance))


def _enter_call(ledger: Ledger, log: Log, call: Call) -> None:
    history, place = log.history, (log.instance, call.execution, call.number)
    answer, child, other = call.answer, *(*call.children, None)[:2]
    is_waiting = answer is None and not call.canceled and history.end is None
    canceled = (1 + call.is_cancel_delivered) if call.canceled else 0
    closed = call.canceled if answer is None else answer["n"]
    if 0 < closed <= history.copied:
        # Others made this call, and have come to its end.
        delivered, canceled = _NEVER, 0
    elif answer is not None:
        delivered = _ANSWERED
    elif call.is_delivered:
        delivered = 1
    else:
        # A rewind makes the calls of the copied history itself, and takes those back that it cuts off.
        is_cut_off = history.link is not None and history.link.get("kind") == "rewind"
        delivered = _NEVER if is_cut_off else 0
    ledger.enter("calls", (*place, child, other, log.key, is_waiting, canceled, delivered))
    if answer is None or delivered == _NEVER or answer["message"] == history.sending.message_id(call.number):
        return
    _, execution, sender = answer["message"].split(".", 2)
    row = (answer["message"], sender, int(execution), *place, answer["type"].endswith("Completed"), log.key)
    ledger.enter("answers", row)


def _sender(event_id: str) -> tuple[str, int] | None:
    """Instance and execution, if an event's id is that of a message."""
    number, _, rest = event_id.partition(".")
    execution, _, sender = rest.partition(".")
    is_message = number.isdecimal() and execution.isdecimal() and sender
    return (sender, int(execution)) if is_message else None


def _enter_instance(ledger: Ledger, instance: Instance, newest: Log, *, is_single: bool, is_open: bool) -> None:
    history = newest.history
    parent = history.sending.parent or (None, None, None)
    row = (newest.instance, instance.folder, instance.is_sound, newest.execution, history.is_finished, is_open)
    quality = (instance.is_whole, instance.is_steady, is_single and instance.is_whole, history.started["t"])
    ledger.enter("instances", (*row, *quality, *parent))


def _enter_damaged(scope: Scope, instance: Instance, newest: int) -> None:
    """Nothing is said about it any more: what follows from damage is no news."""
    row = (instance.id_of(scope.root, newest), instance.folder, False, newest)
    scope.ledger.enter("instances", (*row, *([None] * 9)))
    scope.ledger.enter("expected", (f"index/open/{instance.name}",))
