"""What has to be compared between instances, kept on disk: a root of any size is checked in the memory of one instance.

The tables live in a database of SQLite that has no name and is gone with the process.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from typing import Any

__all__ = ["Ledger"]

_TABLES = """
CREATE TABLE instances (
    id TEXT PRIMARY KEY, key TEXT, is_sound, newest, is_finished, is_open, is_whole, is_steady, is_single, created,
    parent, parent_execution, parent_task);
CREATE TABLE executions (instance TEXT, number, PRIMARY KEY (instance, number)) WITHOUT ROWID;
CREATE TABLE calls (
    parent TEXT, execution, number, child TEXT, other_child TEXT, key TEXT, is_waiting, is_canceled, is_delivered,
    PRIMARY KEY (parent, execution, number)) WITHOUT ROWID;
CREATE TABLE called (
    instance TEXT, execution, key TEXT, parent TEXT, parent_execution, parent_task,
    PRIMARY KEY (instance, execution)) WITHOUT ROWID;
CREATE TABLE ends (id TEXT PRIMARY KEY, parent TEXT, execution, task, is_good) WITHOUT ROWID;
CREATE TABLE answers (
    id TEXT, sender TEXT, sender_execution, parent TEXT, execution, task, is_good, key TEXT,
    PRIMARY KEY (parent, execution, task, id)) WITHOUT ROWID;
CREATE TABLE sent (
    id TEXT PRIMARY KEY, receiver TEXT, name TEXT, time, sender TEXT, is_noted, key TEXT) WITHOUT ROWID;
CREATE TABLE raised (
    receiver TEXT, id TEXT, name TEXT, sender TEXT, sender_execution, key TEXT,
    PRIMARY KEY (receiver, id)) WITHOUT ROWID;
CREATE TABLE runs (run TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE tombs (instance TEXT, through, PRIMARY KEY (instance, through)) WITHOUT ROWID;
CREATE TABLE remains (instance TEXT, number, key TEXT, PRIMARY KEY (instance, number)) WITHOUT ROWID;
CREATE TABLE retired (instance TEXT, through, key TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE INDEX retired_instances ON retired (instance);
CREATE TABLE expected (key TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE code (digest TEXT, key TEXT, instance TEXT, PRIMARY KEY (digest, instance)) WITHOUT ROWID;
"""


class Ledger:
    """See the module."""

    def __init__(self) -> None:
        # An empty name: a private temporary file, written to only once its cache in memory is full.
        self._database = sqlite3.connect("")
        self._database.executescript(_TABLES)

    def close(self) -> None:
        """Forget everything."""
        self._database.close()

    def enter(self, table: str, *rows: tuple[Any, ...]) -> None:
        """Add rows; one that is there already is replaced."""
        if rows:
            places = ",".join("?" * len(rows[0]))
            self._database.executemany(f"INSERT OR REPLACE INTO {table} VALUES ({places})", rows)

    def clear(self, *tables: str) -> None:
        """Forget what is in these tables."""
        for table in tables:
            self._database.execute(f"DELETE FROM {table}")

    def remove(self, table: str, **values: Any) -> None:
        """Forget such rows."""
        where = " AND ".join(f"{name} = ?" for name in values)
        self._database.execute(f"DELETE FROM {table} WHERE {where}", tuple(values.values()))

    def has(self, table: str, **values: Any) -> bool:
        """Whether there is such a row."""
        where = " AND ".join(f"{name} = ?" for name in values)
        question = f"SELECT 1 FROM {table} WHERE {where} LIMIT 1"
        return self._database.execute(question, tuple(values.values())).fetchone() is not None

    def ask(self, question: str, *values: Any) -> Iterable[tuple[Any, ...]]:
        """The rows that answer a question in SQL."""
        return self._database.execute(question, values)
