"""The rows and changes of a plan, kept on disk so that memory stays flat.

The spool is begun by the first row that differs from the last apply, and filled with those
before it; a plan with nothing to do has none.
"""

from __future__ import annotations

import contextlib
import itertools
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import orjson

from runner import parts, rowtable
from runner.errors import InputUnreadable
from runner.model import Action, Change, Stored
from runner.remedies import Remedy
from runner.rowtable import KnownRow

_BATCH = 500
_INSERT_CHANGE = "INSERT INTO change VALUES (?,?,?,?,?,?,?,?,?)"


class PlanSpool:
    """Rows in input order, what happens to them, and the requests that are to be sent."""

    def __init__(self, path: Path, before: Callable[[], Iterator[KnownRow]]) -> None:
        """`before` gives the rows of the last apply, by ordinal."""
        self.path = path
        self._before = before
        self._db: sqlite3.Connection | None = None
        self._rows: list[KnownRow] = []
        self._changes: list[tuple[str | int, ...]] = []

    @property
    def begun(self) -> bool:
        """Whether any row differs."""
        return self._db is not None

    def begin(self, ordinal: int) -> sqlite3.Connection:
        """Begin at this ordinal, with the rows before it as they were."""
        if self._db is None:
            self._db = rowtable.scratch(self.path)
            self._db.executescript(rowtable.ROW_SCHEMA + rowtable.CHANGE_SCHEMA)
            self._db.execute("BEGIN")
            unchanged = itertools.takewhile(lambda row: row.ordinal < ordinal, self._before())
            rowtable.insert(self._db, unchanged)
        return self._db

    def add(self, row: KnownRow) -> None:
        """Append a row. Raises InputUnreadable, perhaps only at a later row, for a key that is there."""
        self.begin(row.ordinal)
        self._rows.append(row)
        if len(self._rows) >= _BATCH:
            self.flush()

    def change(self, row: KnownRow, action: Action, reasons: tuple[str, ...] = (), same_as: str = "") -> None:
        """Say what happens to a row."""
        self.begin(row.ordinal)
        text = orjson.dumps(reasons).decode()
        self._changes.append(
            (
                row.key, row.ordinal, action, text, row.requests, "", same_as,
                row.input, row.components,
            )
        )  # fmt: skip

    def pend(self, ordinal: int, request_id: str, key: str) -> str:
        """Note that a request is to be sent; the key that wanted it before, if another did."""
        db = self.begin(ordinal)
        taken = db.execute("INSERT OR IGNORE INTO pending VALUES (?, ?)", (request_id, key))
        if taken.rowcount:
            return ""
        found = db.execute("SELECT key FROM pending WHERE request_id = ?", (request_id,)).fetchone()
        return str(found[0])

    def link(self, ordinal: int, of: str, remedy: Remedy) -> None:
        """Note that a request is to stand for another that failed."""
        settings = orjson.dumps(remedy.settings, option=orjson.OPT_SORT_KEYS).decode()
        self.begin(ordinal).execute(
            "INSERT OR REPLACE INTO link VALUES (?, ?, ?)", (of, remedy.request_id, settings)
        )

    def rejudge(self, ordinal: int, stored: Stored) -> None:
        """Note that an outcome is judged otherwise than it is stored."""
        line = parts.dump_outcome(stored)
        self.begin(ordinal).execute(
            "INSERT OR REPLACE INTO rejudged VALUES (?, ?)", (stored.request_id, line)
        )

    def want_live(self, ordinal: int, request_ids: Iterable[str]) -> None:
        """Note that requests in flight are wanted."""
        db = self.begin(ordinal)
        db.executemany("INSERT OR IGNORE INTO wanted_live VALUES (?)", ((i,) for i in request_ids))

    def wanted_live_count(self) -> int:
        """Requests in flight that are wanted."""
        if self._db is None:
            return 0
        found: int = self._db.execute("SELECT count(*) FROM wanted_live").fetchone()[0]
        return found

    def flush(self) -> None:
        """Write buffered rows and changes; one statement for many is several times faster."""
        if self._db is None:
            return
        rows, self._rows = self._rows, []
        try:
            rowtable.insert(self._db, rows)
        except sqlite3.IntegrityError:
            seen: set[str] = set()
            for row in rows:
                found = rowtable.row(self._db, row.key)
                if row.key in seen or (found is not None and found.ordinal != row.ordinal):
                    raise twice(row.key) from None
                seen.add(row.key)
            raise
        self._db.executemany(_INSERT_CHANGE, self._changes)
        self._changes = []

    def pair_renames(self, pair: Callable[[Change, str], Change | None]) -> None:
        """Pair removed rows with rows that appeared with the same input, in key order.

        `pair` is given a row and the components id of a removed one with its input; it returns what
        the row is as a renamed one, None to leave both as they are.
        """
        assert self._db is not None
        db = self._db
        db.execute("CREATE INDEX change_input ON change(input, action)")
        gone = (
            "SELECT key, components FROM change WHERE input = ? AND action = 'removed' ORDER BY key LIMIT 1"
        )
        appeared = db.execute(
            "SELECT key, action, reasons, input FROM change WHERE action <> 'removed' AND input <> ''"
            " AND input IN (SELECT input FROM change WHERE action = 'removed') ORDER BY ordinal"
        ).fetchall()
        for key, action, reasons, input_digest in appeared:
            found = db.execute(gone, (input_digest,)).fetchone()
            if found is None:
                continue
            was, components = found
            now = pair(Change(Action(action), key, (), tuple(orjson.loads(reasons))), components)
            if now is None:
                continue
            db.execute("DELETE FROM change WHERE key = ?", (was,))
            db.execute(
                "UPDATE change SET action = ?, reasons = ?, was = ? WHERE key = ?",
                (now.action, orjson.dumps(now.reasons).decode(), was, key),
            )

    def changes(self) -> Iterator[Change]:
        """All changes, by ordinal."""
        if self._db is not None:
            yield from rowtable.changes(self._db)

    def close(self) -> None:
        """Write everything and close the file."""
        if self._db is not None:
            with contextlib.suppress(sqlite3.OperationalError):
                self._db.execute("COMMIT")
            self._db.close()


def twice(key: str) -> InputUnreadable:
    """The error for a key that two inputs have."""
    return InputUnreadable(f"two inputs have the key {key!r}", hint="make the globs of the sources disjoint")
