"""What instances say to each other: FORMAT.md, section 10. Sender and receiver must tell the same, and nothing be lost.

All of it is asked of the ledger, once every instance was looked at. Nothing is said about instances whose logs are
damaged, or whose executions were removed.
"""

from __future__ import annotations

from verify_lib.findings import Report
from verify_lib.ledger import Ledger

__all__ = ["check_messages"]

_SKEW_US = 60 * 1_000_000
"""Clocks of different machines may differ so much: what is older than that by another's clock was there before."""

# A message counts as delivered once its sender noted that, or has left the open set, which it does only then.
_DELIVERED = "({0} = 1 OR ({0} = 0 AND p.is_finished AND NOT p.is_open))"


def check_messages(report: Report, ledger: Ledger) -> None:
    """Look for messages that were lost, and for such as nobody sent."""
    _check_answers(report, ledger)
    _check_called(report, ledger)
    _check_calls(report, ledger)
    _check_cancellations(report, ledger)
    _check_events(report, ledger)


def _check_answers(report: Report, ledger: Ledger) -> None:
    """What a caller recorded of the end of an instance is what that recorded itself."""
    question = """
        SELECT a.id, a.sender, a.parent, a.task, a.key, x.id IS NULL FROM answers a
        JOIN executions e ON e.instance = a.sender AND e.number = a.sender_execution
        LEFT JOIN ends x ON x.id = a.id
        WHERE x.id IS NULL OR x.parent <> a.parent OR x.execution <> a.execution OR x.task <> a.task
            OR x.is_good <> a.is_good"""
    for message, child, parent, task, key, is_missing in ledger.ask(question):
        why = "has no such end" if is_missing else "ended in another way, or for another caller"
        text = f"call {task} of {parent!r} is answered by message {message!r}, and {child!r} {why}"
        report.add_damage("child", key, text, parent, child)
    nobody = """
        SELECT a.id, a.sender, a.parent, a.task, a.key FROM answers a
        LEFT JOIN instances k ON k.id = a.sender LEFT JOIN tombs t ON t.instance = a.sender
        WHERE k.id IS NULL AND t.instance IS NULL"""
    for message, child, parent, task, key in ledger.ask(nobody):
        text = (
            f"call {task} of {parent!r} is answered by message {message!r}, and there never was an instance {child!r}"
        )
        report.add_damage("child", key, text, parent, child)


def _check_called(report: Report, ledger: Ledger) -> None:
    """Whoever says that it was called was called, by this id."""
    question = """
        SELECT d.instance, d.key, d.parent, d.parent_task FROM called d
        JOIN executions e ON e.instance = d.parent AND e.number = d.parent_execution
        LEFT JOIN calls c ON c.parent = d.parent AND c.execution = d.parent_execution AND c.number = d.parent_task
        WHERE c.parent IS NULL OR d.instance NOT IN (c.child, COALESCE(c.other_child, c.child))"""
    for child, key, parent, task in ledger.ask(question):
        text = f"{child!r} says that event {task} of {parent!r} called it, and that did not"
        report.add_damage("child", key, text, parent, child)


def _check_calls(report: Report, ledger: Ledger) -> None:
    """What was called is there, and who waits for an end will be told."""
    missing = f"""
        SELECT c.parent, c.number, c.child, c.key FROM calls c JOIN instances p ON p.id = c.parent
        WHERE p.is_sound AND {_DELIVERED.format("c.is_delivered")}
            AND NOT EXISTS (SELECT 1 FROM instances k WHERE k.id IN (c.child, c.other_child))
            AND NOT EXISTS (SELECT 1 FROM tombs t WHERE t.instance IN (c.child, c.other_child))"""
    for parent, number, child, key in ledger.ask(missing):
        text = f"event {number} of {parent!r} called {child!r}, that was delivered, and there is no such instance"
        report.add_damage("undelivered", key, text, parent, child)
    untold = """
        SELECT c.parent, c.number, k.id, c.key FROM calls c
        JOIN instances p ON p.id = c.parent JOIN instances k ON k.id IN (c.child, c.other_child)
        WHERE c.is_waiting AND p.is_sound AND (c.is_delivered = 1 OR c.execution = p.newest)
            AND k.is_sound AND k.is_finished AND NOT k.is_open
            AND k.parent = c.parent AND k.parent_execution = c.execution AND k.parent_task = c.number"""
    for parent, number, child, key in ledger.ask(untold):
        text = f"call {number} of {parent!r} waits for {child!r}, which has ended and tells nobody any more"
        report.add_damage("undelivered", key, text, parent, child)


def _check_cancellations(report: Report, ledger: Ledger) -> None:
    """A called instance that nobody waits for any more is terminated."""
    question = f"""
        SELECT c.parent, c.number, k.id, c.key FROM calls c
        JOIN instances p ON p.id = c.parent JOIN instances k ON k.id IN (c.child, c.other_child)
        WHERE p.is_sound AND c.is_canceled AND {_DELIVERED.format("c.is_canceled - 1")}
            AND k.is_sound AND k.is_single AND NOT k.is_finished
            AND k.parent = c.parent AND k.parent_execution = c.execution AND k.parent_task = c.number"""
    for parent, number, child, key in ledger.ask(question):
        text = f"call {number} of {parent!r} was taken back, that was delivered, and {child!r} goes on"
        report.add_damage("undelivered", key, text, parent, child)


def _check_events(report: Report, ledger: Ledger) -> None:
    """An event that one instance sent to another is in the log of that, and only such events are."""
    lost = f"""
        SELECT s.id, s.sender, s.receiver, s.key FROM sent s
        JOIN instances p ON p.id = s.sender JOIN instances r ON r.id = s.receiver
        LEFT JOIN raised x ON x.receiver = s.receiver AND x.id = s.id
        WHERE x.id IS NULL AND p.is_sound AND {_DELIVERED.format("s.is_noted")}
            AND r.is_sound AND r.is_whole AND r.is_steady AND NOT r.is_finished AND r.created + ? < s.time"""
    for message, sender, receiver, key in ledger.ask(lost, _SKEW_US):
        text = f"the event {message!r} of {sender!r} was delivered, and {receiver!r} does not have it"
        report.add_damage("undelivered", key, text, sender, receiver)
    # Whoever raises an event chooses its id, and could choose one of these.
    unsent = """
        SELECT x.id, x.sender, x.receiver, x.key FROM raised x
        JOIN executions e ON e.instance = x.sender AND e.number = x.sender_execution
        LEFT JOIN sent s ON s.id = x.id WHERE s.id IS NULL OR s.receiver <> x.receiver OR s.name <> x.name"""
    for message, sender, receiver, key in ledger.ask(unsent):
        text = f"{receiver!r} has the event {message!r}, and {sender!r} did not send it"
        report.add_note("unsent", key, text, sender, receiver)
