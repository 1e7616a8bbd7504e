"""The file of the local index: shared by runs at once, made anew only by one that has it to itself.

SQLite finds its journals by name, so a file that is replaced under a run that has it open would get that
run's journals. Each run holds a shared lock for as long as it has the file open; who makes the file anew
needs the lock alone, and does without a file where it cannot have it.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import time
from contextlib import suppress
from pathlib import Path

from runner import rowtable

_TRIES = 40
_PAUSE_S = 0.05


class IndexFile:
    """Opens one index, again after it was found damaged; `path` None is memory alone."""

    def __init__(self, path: Path | None, schema: str, version: str) -> None:
        """`schema` has a table `meta`, in which the version stands."""
        self._path = path
        self._schema = schema
        self._version = version
        self._guard: int | None = None

    def open(self, *, check: bool) -> sqlite3.Connection:
        """The index, made where there is none that is sound. `check` reads the whole file for that."""
        if self._path is None:
            return self._made(None)
        self._guard = _guard(self._path)
        for _ in range(_TRIES):
            fcntl.flock(self._guard, fcntl.LOCK_SH)
            db = self._sound(self._path, check)
            if db is not None:
                return db
            fcntl.flock(self._guard, fcntl.LOCK_UN)
            if _alone(self._guard):
                # Another run may have made it between the two locks.
                db = self._sound(self._path, check) or self._made(self._path)
                fcntl.flock(self._guard, fcntl.LOCK_SH)
                return db
            time.sleep(_PAUSE_S)
        return self._made(None)

    def renew(self, db: sqlite3.Connection) -> sqlite3.Connection:
        """An empty index in the place of a damaged one: in memory while other runs have the file open."""
        db.close()
        if self._path is None or self._guard is None:
            return self._made(None)
        fcntl.flock(self._guard, fcntl.LOCK_UN)
        for _ in range(_TRIES):
            if _alone(self._guard):
                made = self._made(self._path)
                fcntl.flock(self._guard, fcntl.LOCK_SH)
                return made
            time.sleep(_PAUSE_S)
        return self._made(None)

    def close(self) -> None:
        """Give the lock back, once the connection is closed."""
        if self._guard is not None:
            os.close(self._guard)
            self._guard = None

    def _sound(self, path: Path, check: bool) -> sqlite3.Connection | None:
        if not path.exists():
            return None
        db = None
        try:
            db = rowtable.connect(path)
            db.execute("PRAGMA journal_mode=WAL")
            found = db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
            version = db.execute("SELECT value FROM meta WHERE name='version'").fetchone() if found else None
            sound = not check or db.execute("PRAGMA quick_check(1)").fetchone() == ("ok",)
            if version == (self._version,) and sound:
                return db
        except sqlite3.DatabaseError:
            pass
        if db is not None:
            db.close()
        return None

    def _made(self, path: Path | None) -> sqlite3.Connection:
        if path is not None:
            _unlink(path)
        db = rowtable.connect(path)
        if path is not None:
            db.execute("PRAGMA journal_mode=WAL")
            path.chmod(0o600)
        db.executescript(self._schema)
        db.execute("INSERT INTO meta VALUES ('version', ?)", (self._version,))
        return db


def discard(path: Path) -> None:
    """Delete an index; of one that another run has open, all that it holds."""
    if not path.exists():
        return
    guard = _guard(path)
    try:
        if _alone(guard):
            _unlink(path)
            return
        with suppress(sqlite3.DatabaseError):
            db = rowtable.connect(path)
            tables = db.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
            with rowtable.transaction(db):
                for (table,) in tables:
                    db.execute(f'DELETE FROM "{table}"')
            db.execute("VACUUM")
            db.close()
    finally:
        os.close(guard)


def _guard(path: Path) -> int:
    return os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _alone(guard: int) -> bool:
    try:
        fcntl.flock(guard, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _unlink(path: Path) -> None:
    for suffix in ("", "-wal", "-shm", "-journal"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)
