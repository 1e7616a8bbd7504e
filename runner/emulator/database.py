"""The emulator's SQLite file, shared by every process on one folder.

Survives kill -9 at any instant (WAL); a power cut may lose the last writes, which an emulator may
afford. Holds no bytes of files: those lie beside it, put in place by rename.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_TABLES = """
CREATE TABLE IF NOT EXISTS files (
    seq INTEGER PRIMARY KEY, name TEXT UNIQUE NOT NULL, display_name TEXT NOT NULL, mime_type TEXT NOT NULL,
    byte_count INTEGER NOT NULL, sha256 TEXT NOT NULL, created_ns INTEGER NOT NULL,
    expires_ns INTEGER NOT NULL, blob TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS uploads (
    id TEXT PRIMARY KEY, name TEXT NOT NULL, display_name TEXT NOT NULL, mime_type TEXT NOT NULL,
    byte_count INTEGER NOT NULL, received INTEGER NOT NULL, file TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS jobs (
    seq INTEGER PRIMARY KEY, id TEXT UNIQUE NOT NULL, display_name TEXT NOT NULL, model TEXT NOT NULL,
    input_file TEXT NOT NULL, state TEXT NOT NULL, created_ns INTEGER NOT NULL, updated_ns INTEGER NOT NULL,
    ended_ns INTEGER NOT NULL, starts_at REAL NOT NULL, started_at REAL NOT NULL, running_s REAL NOT NULL,
    rows INTEGER NOT NULL, ok INTEGER NOT NULL, failed INTEGER NOT NULL, seed INTEGER NOT NULL,
    row_rules BLOB NOT NULL, ending BLOB NOT NULL, computed INTEGER NOT NULL, output INTEGER NOT NULL,
    cancelled INTEGER NOT NULL, kept_rows INTEGER NOT NULL, claim TEXT NOT NULL, claimed_until REAL NOT NULL);
CREATE INDEX IF NOT EXISTS open_jobs ON jobs (starts_at) WHERE state IN ('PENDING', 'RUNNING');
CREATE TABLE IF NOT EXISTS tallies (name TEXT PRIMARY KEY, count INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS attempts (
    rule TEXT NOT NULL, mark BLOB NOT NULL, job TEXT NOT NULL, PRIMARY KEY (rule, mark, job));
"""


class Database:
    """One connection, used by all threads of the process in turn."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._lock = threading.RLock()
        self._connection = sqlite3.connect(
            folder / "emulator.sqlite", timeout=30, isolation_level=None, check_same_thread=False
        )
        self._connection.row_factory = sqlite3.Row
        # Another process may be creating the file at this moment, which WAL answers with "locked".
        self._connection.execute("PRAGMA busy_timeout = 30000")
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = NORMAL")
        with self.write() as connection:
            for statement in _TABLES.split(";\n"):
                connection.execute(statement)

    @contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """A transaction that no other process writes beside."""
        with self._lock:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")

    def rows(self, statement: str, *values: Any) -> list[sqlite3.Row]:
        """All rows of a query."""
        with self._lock:
            return self._connection.execute(statement, values).fetchall()

    def tally(self, name: str) -> int:
        """Count an event under a name; how many there were before."""
        with self.write() as connection:
            connection.execute("INSERT OR IGNORE INTO tallies VALUES (?, 0)", (name,))
            connection.execute("UPDATE tallies SET count = count + 1 WHERE name = ?", (name,))
            found = connection.execute("SELECT count FROM tallies WHERE name = ?", (name,)).fetchone()
        return int(found[0]) - 1

    def attempt(self, rule: str, mark: bytes, job: str) -> int:
        """Note that a rule met a request in a job; the how-manieth such job it is, from 1.

        Asking again for the same job, as after a crash, gives the same number.
        """
        with self.write() as connection:
            connection.execute("INSERT OR IGNORE INTO attempts VALUES (?, ?, ?)", (rule, mark, job))
            found = connection.execute(
                "SELECT COUNT(*) FROM attempts WHERE rule = ?1 AND mark = ?2 AND rowid <= "
                "(SELECT rowid FROM attempts WHERE rule = ?1 AND mark = ?2 AND job = ?3)",
                (rule, mark, job),
            ).fetchone()
        return int(found[0])

    def close(self) -> None:
        """Close the connection."""
        with self._lock:
            self._connection.close()
