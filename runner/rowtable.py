"""The SQLite table of rows that a plan spools and the index keeps, and its JSON lines form.

One row per input in input order. SQLite is only the place on disk that keeps memory flat; the
rows snapshots of the state are the authority.
"""

from __future__ import annotations

import contextlib
import itertools
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import orjson

from runner.model import Action, BadRow, Change, Json, Wanted

_PAGE_ROWS = 1000
ROW_SCHEMA = """
CREATE TABLE row (
    ordinal INTEGER PRIMARY KEY,
    key TEXT NOT NULL UNIQUE,
    input TEXT NOT NULL,
    components TEXT NOT NULL,
    requests TEXT NOT NULL,
    outcome TEXT NOT NULL,
    problem TEXT NOT NULL,
    size INTEGER, mtime_ns INTEGER, ctime_ns INTEGER, inode INTEGER
);
"""
PAGE_SCHEMA = """
CREATE TABLE page (last INTEGER PRIMARY KEY, body BLOB NOT NULL);
"""
CHANGE_SCHEMA = """
CREATE TABLE change (
    key TEXT PRIMARY KEY,
    ordinal INTEGER NOT NULL,
    action TEXT NOT NULL,
    reasons TEXT NOT NULL,
    requests TEXT NOT NULL,
    was TEXT NOT NULL,
    same_as TEXT NOT NULL,
    input TEXT NOT NULL,
    components TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE wanted_live (request_id TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE pending (request_id TEXT PRIMARY KEY, key TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE rejudged (request_id TEXT PRIMARY KEY, line BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE link (of TEXT PRIMARY KEY, request_id TEXT NOT NULL, settings TEXT NOT NULL) WITHOUT ROWID;
"""
_ONE_REQUEST_CHARS = len('[[0,0,""]]') + 33
"""Length of `KnownRow.requests` where a row wants one request, as nearly all do."""
_COLUMNS = "ordinal, key, input, components, requests, outcome, problem, size, mtime_ns, ctime_ns, inode"
_INSERT = f"INSERT INTO row ({_COLUMNS}) VALUES (?,?,?,?,?,?,?,?,?,?,?)"


class AskedRow(NamedTuple):
    """What an export needs of a row."""

    key: str
    requests: str
    problem: str

    @property
    def ids(self) -> list[str]:
        """See `KnownRow.ids`."""
        return _ids(self.requests)

    @property
    def bad(self) -> BadRow | None:
        """See `KnownRow.bad`."""
        return _bad(self.key, self.problem)


class KnownRow(NamedTuple):
    """A row as the state knows it from the last finished apply, or as a plan spooled it."""

    ordinal: int
    key: str
    input: str
    """Digest of the input's bytes."""
    components: str
    """Id of the component digests the row was rendered under."""
    requests: str
    """The wanted requests as JSON: [[part, sample, request_id], ...]."""
    outcome: str
    """The row's outcome when the snapshot was written, empty where it was not final."""
    problem: str
    """A bad row as JSON [code, message, path, line], empty for a good one."""
    signature: tuple[int, int, int, int] | None

    @property
    def ids(self) -> list[str]:
        """Ids of the wanted requests."""
        return _ids(self.requests)

    @property
    def wanted(self) -> tuple[Wanted, ...]:
        """The wanted requests."""
        return tuple(Wanted(*item) for item in orjson.loads(self.requests))

    @property
    def bad(self) -> BadRow | None:
        """Why the row is none, where it is none."""
        return _bad(self.key, self.problem)

    def line(self) -> bytes:
        """The row as a line of a rows snapshot; signatures stay on this machine."""
        body: dict[str, Any] = {
            "key": self.key,
            "ordinal": self.ordinal,
            "input": self.input,
            "components": self.components,
            "requests": orjson.Fragment(self.requests),
            "outcome": self.outcome,
        }
        if self.problem:
            body["problem"] = orjson.Fragment(self.problem)
        return orjson.dumps(body) + b"\n"


def _ids(requests: str) -> list[str]:
    if len(requests) == _ONE_REQUEST_CHARS:
        return [requests[7:-3]]
    return [item[2] for item in orjson.loads(requests)]


def _bad(key: str, problem: str) -> BadRow | None:
    return BadRow(key, *orjson.loads(problem)) if problem else None


Glance = tuple[int, str, str, str, tuple[int, int, int, int] | None]
"""(ordinal, key, components id, outcome, signature); no components id unless settled, good and signed."""


def from_line(line: bytes) -> KnownRow:
    """The inverse of KnownRow.line."""
    body = orjson.loads(line)
    problem = body.get("problem")
    return KnownRow(
        body["ordinal"],
        body["key"],
        body["input"],
        body["components"],
        orjson.dumps(body["requests"]).decode(),
        body["outcome"],
        orjson.dumps(problem).decode() if problem else "",
        None,
    )


def header(components: Mapping[str, Mapping[str, Any]]) -> bytes:
    """The first line of a rows snapshot: components id -> {spec, digests}."""
    return orjson.dumps({"version": 1, "components": components}) + b"\n"


def dump_wanted(wanted: Iterable[Wanted]) -> str:
    """Wanted requests as the text that the table holds."""
    return orjson.dumps([[w.part, w.sample, w.request_id] for w in wanted]).decode()


def dump_problem(bad: BadRow) -> str:
    """A bad row as the text that the table holds."""
    return orjson.dumps([bad.code, bad.message, bad.path, bad.line]).decode()


def connect(path: Path | None) -> sqlite3.Connection:
    """A connection for a file that may be lost: no journal on disk, no fsync. None is in memory."""
    db = sqlite3.connect(":memory:" if path is None else path, isolation_level=None, timeout=5.0)
    db.execute("PRAGMA synchronous=OFF")
    db.execute("PRAGMA cache_size=-8192")
    return db


def scratch(path: Path) -> sqlite3.Connection:
    """A connection for a file that ends with its run: unlike an index, it is never found half written."""
    db = connect(path)
    db.execute("PRAGMA journal_mode=MEMORY")
    return db


def planned(path: Path) -> sqlite3.Connection:
    """A connection for the file that a plan left: it is read in order, and of no use once a write failed."""
    db = connect(path)
    # A journal would hold every row in memory when all of them are settled.
    db.execute("PRAGMA journal_mode=OFF")
    db.execute("PRAGMA cache_size=-2048")
    return db


@contextlib.contextmanager
def transaction(db: sqlite3.Connection, kind: str = "IMMEDIATE") -> Iterator[None]:
    """All of a block or nothing of it; `DEFERRED` gives one consistent view for reading."""
    db.execute(f"BEGIN {kind}")
    try:
        yield
    except BaseException:
        db.execute("ROLLBACK")
        raise
    db.execute("COMMIT")


def insert(db: sqlite3.Connection, rows: Iterable[KnownRow]) -> None:
    """Append rows. Raises sqlite3.IntegrityError for a key that is there already."""
    db.executemany(
        _INSERT,
        (
            (
                r.ordinal, r.key, r.input, r.components, r.requests, r.outcome, r.problem,
                *(r.signature or (None, None, None, None)),
            )
            for r in rows
        ),
    )  # fmt: skip


def settle(db: sqlite3.Connection, classes: Sequence[tuple[str, int]]) -> None:
    """Write down the outcomes of all rows: by ordinal, as (outcome, how many rows have it)."""
    counts: dict[str, int] = {}
    for outcome, count in classes:
        counts[outcome] = counts.get(outcome, 0) + count
    commonest = max(counts, key=counts.__getitem__, default="")
    db.execute("UPDATE row SET outcome = ?", (commonest,))
    first = 0
    for outcome, count in classes:
        if outcome != commonest:
            span = "UPDATE row SET outcome = ? WHERE ordinal >= ? AND ordinal < ?"
            db.execute(span, (outcome, first, first + count))
        first += count


def component_ids(db: sqlite3.Connection) -> list[str]:
    """Ids of the component sets that rows refer to, sorted."""
    return [name for (name,) in db.execute("SELECT DISTINCT components FROM row ORDER BY components")]


def rows(db: sqlite3.Connection, from_ordinal: int = 0, order: str = "ordinal") -> Iterator[KnownRow]:
    """Rows from an ordinal on, by `ordinal` or by `key`."""
    cursor = db.execute(f"SELECT {_COLUMNS} FROM row WHERE ordinal >= ? ORDER BY {order}", (from_ordinal,))
    cursor.arraysize = 512
    while batch := cursor.fetchmany():
        yield from map(_row, batch)


def asked(db: sqlite3.Connection) -> Iterator[AskedRow]:
    """Rows by ordinal, as an export needs them: in two fifths of the time."""
    cursor = db.execute("SELECT key, requests, problem FROM row ORDER BY ordinal")
    cursor.arraysize = 512
    while batch := cursor.fetchmany():
        yield from map(AskedRow._make, batch)


def lines(db: sqlite3.Connection) -> Iterator[bytes]:
    """The lines of a rows snapshot, sorted by key: `KnownRow.line` of each row, in half the time."""
    cursor = db.execute(
        """SELECT CAST(
            '{"key":' || json_quote(key) || ',"ordinal":' || ordinal || ',"input":' || json_quote(input)
            || ',"components":' || json_quote(components) || ',"requests":' || requests
            || ',"outcome":' || json_quote(outcome)
            || CASE WHEN problem = '' THEN '' ELSE ',"problem":' || problem END || '}' || char(10) AS BLOB)
        FROM row ORDER BY key"""
    )
    cursor.arraysize = 512
    while batch := cursor.fetchmany():
        yield from (line for (line,) in batch)


def write_pages(db: sqlite3.Connection) -> None:
    """Write down anew, many rows to a value, what `glances` gives: reading it so is nine times as fast."""
    db.execute("DELETE FROM main.page")
    cursor = db.execute(
        "SELECT ordinal, key,"
        " CASE WHEN size IS NOT NULL AND problem = '' AND outcome <> '' THEN components ELSE '' END,"
        " outcome, size, mtime_ns, ctime_ns, inode FROM main.row ORDER BY ordinal"
    )
    while batch := cursor.fetchmany(_PAGE_ROWS):
        page = [(*found[:4], None if found[4] is None else found[4:]) for found in batch]
        db.execute("INSERT INTO main.page VALUES (?, ?)", (batch[-1][0], msgspec.msgpack.encode(page)))


def glances(db: sqlite3.Connection, from_ordinal: int = 0) -> Iterator[Glance]:
    """Rows from an ordinal on, as far as it takes to see that nothing changed."""
    found = itertools.chain.from_iterable(_pages(db, from_ordinal))
    return itertools.dropwhile(lambda glance: glance[0] < from_ordinal, found)


def _pages(db: sqlite3.Connection, from_ordinal: int) -> Iterator[list[Glance]]:
    decode = msgspec.msgpack.Decoder(list[Glance]).decode
    for (body,) in db.execute("SELECT body FROM page WHERE last >= ? ORDER BY last", (from_ordinal,)):
        try:
            yield decode(body)
        except msgspec.MsgspecError as error:
            raise sqlite3.DatabaseError(f"a page of rows is damaged: {error}") from error


def links(db: sqlite3.Connection) -> Iterator[tuple[str, str, dict[str, Json]]]:
    """Failures that a plan remedies: (request, the one that is to stand for it, what differs)."""
    for of, request_id, settings in db.execute("SELECT of, request_id, settings FROM link ORDER BY of"):
        yield of, request_id, orjson.loads(settings)


def rejudged(db: sqlite3.Connection) -> Iterator[bytes]:
    """Outcomes that a plan judges otherwise than they are stored, as lines of an outcomes part."""
    for (line,) in db.execute("SELECT line FROM rejudged ORDER BY request_id"):
        yield line


def wants(db: sqlite3.Connection, request_id: str) -> bool:
    """Whether a plan sends a request, or waits for it."""
    query = "SELECT 1 FROM pending WHERE request_id = ? UNION SELECT 1 FROM wanted_live WHERE request_id = ?"
    return db.execute(query, (request_id, request_id)).fetchone() is not None


def row(db: sqlite3.Connection, key: str) -> KnownRow | None:
    """The row with this key."""
    found = db.execute(f"SELECT {_COLUMNS} FROM row WHERE key = ?", (key,)).fetchone()
    return None if found is None else _row(found)


def changes(db: sqlite3.Connection) -> Iterator[Change]:
    """A plan's changes, by key."""
    query = "SELECT action, key, requests, reasons, was, same_as FROM change ORDER BY ordinal, key"
    for action, key, requests, reasons, was, same_as in db.execute(query):
        ids = tuple(item[2] for item in orjson.loads(requests))
        yield Change(Action(action), key, ids, tuple(orjson.loads(reasons)), was, same_as)


def unchanged(db: sqlite3.Connection) -> Iterator[KnownRow]:
    """The spooled rows that are no change, by ordinal."""
    query = f"SELECT {_COLUMNS} FROM row WHERE key NOT IN (SELECT key FROM change) ORDER BY ordinal"
    return (_row(found) for found in db.execute(query))


def _row(found: tuple[Any, ...]) -> KnownRow:
    return KnownRow._make((*found[:7], None if found[7] is None else found[7:]))
