"""A local index over the state: rows of the last snapshot, outcomes, requests in flight.

A cache only: it can be deleted at any time and is rebuilt from the state. It also remembers
what each input file looked like, so that a plan reads no file that did not change.
"""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import msgspec
import orjson

from runner import indexfile, parts, rowtable
from runner.indexfile import IndexFile
from runner.model import Attempt, Json, State, Stored
from runner.rowtable import KnownRow
from runner.store import Store

_NAME = "index.sqlite"
_VERSION = "7"
_LOOKUPS = 5_000
"""Requests that are looked up by one query."""
RACY_NS = 2_000_000_000
"""A file changed this shortly before it was read may change again without looking different."""
_ROW_REQUESTS = "CREATE INDEX row_requests ON row(requests)"
_SCHEMA = (
    rowtable.ROW_SCHEMA
    + rowtable.PAGE_SCHEMA
    + f"{_ROW_REQUESTS};"
    + """
CREATE TABLE outcome (request_id TEXT PRIMARY KEY, outcome TEXT NOT NULL, line BLOB NOT NULL);
CREATE TABLE remedied (request_id TEXT PRIMARY KEY, of TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE token (token TEXT PRIMARY KEY, summary TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE live (request_id TEXT, token TEXT, PRIMARY KEY (request_id, token)) WITHOUT ROWID;
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
"""
)


class _Settled(msgspec.Struct, gc=False):
    """What the index itself needs of a line of an outcomes part."""

    id: str
    outcome: str
    remedied_by: str = ""


class Index:
    """What a plan looks things up in. Implements `history.History`."""

    def __init__(self, store: Store, *, check: bool = True) -> None:
        """Open the index beside the state, or in memory where nothing may be written.

        Without `check` a damaged file may raise sqlite3.DatabaseError at any lookup; see `rebuild`.
        """
        self._store = store
        folder = store.cache_folder
        path = folder / _NAME if folder is not None and folder.is_dir() else None
        self._file = IndexFile(path, _SCHEMA, _VERSION)
        self._db = self._file.open(check=check)
        self._state: State | None = None
        self._live: frozenset[str] = frozenset()
        self._has_remedies = False
        self._rejudged: dict[str, Stored] = {}
        self.components: dict[str, dict[str, Any]] = {}
        """Components id -> {spec, digests}, from the rows snapshot."""

    def close(self) -> None:
        """Close the file."""
        self._db.close()
        self._file.close()

    def sync(self, state: State | None, attempts: Iterable[Attempt]) -> None:
        """Bring the index up to this root and these attempts."""
        self._state = state
        self._rejudged = {}
        known = list(attempts)
        try:
            with rowtable.transaction(self._db):
                self._sync(state, known)
        except sqlite3.DatabaseError:
            self.rebuild(state, known)

    def extend(self, state: State, token: str, summary: Json, lines: Iterable[bytes]) -> None:
        """Take over the last outcomes segment of a root, which was just written, without reading it back.

        `lines` are its lines, each with its newline. An index that is not at the root before stays as it is.
        """
        with contextlib.suppress(sqlite3.DatabaseError), rowtable.transaction(self._db):
            at = self._meta("lineage"), self._meta("segments")
            if at == (state.lineage, _names(state.outcomes[:-1])):
                bare = (line[:-1] for line in lines)
                self._take_outcomes(token, summary, bare, len(state.outcomes))
                self._set_meta("segments", _names(state.outcomes))

    def rebuild(self, state: State | None, attempts: Iterable[Attempt]) -> None:
        """Make the index anew from the state, because the file is damaged."""
        self._state = state
        self._db = self._file.renew(self._db)
        with rowtable.transaction(self._db):
            self._sync(state, attempts)

    def _sync(self, state: State | None, attempts: Iterable[Attempt]) -> None:
        lineage = state.lineage if state else ""
        if self._meta("lineage") != lineage:
            self._reset()
            self._set_meta("lineage", lineage)
        rows_name = state.rows if state else ""
        if self._meta("rows") != rows_name:
            self._load_rows(rows_name)
        self.components = orjson.loads(self._meta("components") or "{}")
        known = int(self._meta("outcomes") or 0)
        if known and self._meta("segments") != _names(state.outcomes[:known] if state else ()):
            # Not the segments of before and some more: the root was restored or a row purged.
            for table in ("outcome", "remedied", "token"):
                self._db.execute(f"DELETE FROM {table}")
            known = 0
        for number, name in enumerate(state.outcomes[known:] if state else (), known + 1):
            self._load_outcomes(name, number)
        names = _names(state.outcomes if state else ())
        if self._meta("segments") != names:
            self._set_meta("segments", names)
        self._load_live([a for a in attempts if a.state.live])
        self._has_remedies = self._db.execute("SELECT 1 FROM remedied LIMIT 1").fetchone() is not None

    # ------------------------------------------------------------ lookups

    def reading(self) -> AbstractContextManager[None]:
        """One consistent view of the index for the length of a block, whatever other runs do."""
        return rowtable.transaction(self._db, "DEFERRED")

    @property
    def settled(self) -> bool:
        """Whether the outcomes in the rows are the newest, with nothing in flight."""
        export = self._state.export if self._state else None
        return (
            self._state is not None
            and export is not None
            and export.rows == self._state.rows
            and export.outcome_count == len(self._state.outcomes)
            and not self._live
            and not self._rejudged
        )

    @property
    def row_count(self) -> int:
        """Rows of the last snapshot."""
        found: int = self._db.execute("SELECT count(*) FROM row").fetchone()[0]
        return found

    def rows(self, from_ordinal: int = 0, order: str = "ordinal") -> Iterator[KnownRow]:
        """Rows of the last snapshot, by `ordinal` or by `key`."""
        return rowtable.rows(self._db, from_ordinal, order)

    def glances(self, from_ordinal: int = 0) -> Iterator[rowtable.Glance]:
        """Rows of the last snapshot by ordinal, as far as it takes to see that nothing changed."""
        return rowtable.glances(self._db, from_ordinal)

    def row(self, key: str) -> KnownRow | None:
        """The last snapshot's row with this key."""
        return rowtable.row(self._db, key)

    def key_of(self, requests: str) -> str | None:
        """A key of the last snapshot that wants exactly these requests."""
        found = self._db.execute(
            "SELECT key FROM row WHERE requests = ? ORDER BY ordinal LIMIT 1", (requests,)
        ).fetchone()
        return None if found is None else str(found[0])

    def stored(self, request_id: str) -> Stored | None:
        """The latest outcome of a request."""
        if request_id in self._rejudged:
            return self._rejudged[request_id]
        if self._state is None or not self._state.outcomes:
            return None
        found = self._db.execute("SELECT line FROM outcome WHERE request_id = ?", (request_id,)).fetchone()
        return None if found is None else parts.load_outcome(found[0])

    def rejudge(self, judge: Callable[[Stored], Stored]) -> None:
        """Judge stored answers again that failed by what they say, until the next `sync`.

        `judge` gives an outcome as it is judged now.
        """
        query = "SELECT line FROM outcome WHERE outcome IN ('invalid', 'unparseable') ORDER BY request_id"
        for (line,) in self._db.execute(query):
            before = parts.load_outcome(line)
            now = judge(before)
            if now != before:
                self._rejudged[before.request_id] = now

    def rejudged(self, request_id: str) -> Stored | None:
        """The outcome of a request where it is judged otherwise than it was stored."""
        return self._rejudged.get(request_id)

    def tip(self, request_id: str) -> str:
        """The request whose answer stands for this one's: itself, or the last that was sent to remedy it."""
        while self._has_remedies:
            found = self.stored(request_id)
            if found is None or not found.remedied_by or self.stored(found.remedied_by) is None:
                break
            request_id = found.remedied_by
        return request_id

    def answered(self, request_id: str) -> Stored | None:
        """The latest outcome of what stands for a request."""
        return self.stored(self.tip(request_id))

    def stored_among(self, request_ids: Sequence[str]) -> dict[str, Stored]:
        """The latest outcomes of these requests, of those that have any; many at once are several times
        faster."""
        found: dict[str, Stored] = {}
        if self._state is None or not self._state.outcomes:
            return found
        query = "SELECT line FROM json_each(?) AS asked CROSS JOIN outcome ON request_id = asked.value"
        for at in range(0, len(request_ids), _LOOKUPS):
            ids = orjson.dumps(request_ids[at : at + _LOOKUPS]).decode()
            for (line,) in self._db.execute(query, (ids,)):
                stored = parts.load_outcome(line)
                found[stored.request_id] = stored
        return found

    def answered_among(self, request_ids: Sequence[str]) -> dict[str, Stored]:
        """Request id -> the latest outcome of what stands for it, of those that have any."""
        found = self.stored_among(request_ids)
        if self._has_remedies or self._rejudged:
            for request_id, stored in found.items():
                if stored.remedied_by or request_id in self._rejudged:
                    found[request_id] = self.answered(request_id) or stored
        return found

    def outcome(self, request_id: str) -> str:
        """The class of the latest outcome of what stands for a request, empty where it has none."""
        tip = self.tip(request_id)
        if tip in self._rejudged:
            return self._rejudged[tip].outcome
        found = self._db.execute("SELECT outcome FROM outcome WHERE request_id = ?", (tip,)).fetchone()
        return "" if found is None else str(found[0])

    def remedied(self, request_id: str) -> Stored | None:
        """The failure that a request remedies."""
        if not self._has_remedies:
            return None
        found = self._db.execute("SELECT of FROM remedied WHERE request_id = ?", (request_id,)).fetchone()
        return None if found is None else self.stored(found[0])

    def live(self, request_id: str) -> str | None:
        """The token of the live attempt that holds a request."""
        if not self._live:
            return None
        found = self._db.execute("SELECT token FROM live WHERE request_id = ?", (request_id,))
        return next((token for (token,) in found if token in self._live), None)

    def in_flight(self, request_id: str) -> str | None:
        """The token of the live attempt that holds a request, or what is to stand for it."""
        tip = self.tip(request_id)
        found = self.stored(tip) if self._has_remedies else None
        return self.live(found.remedied_by if found is not None and found.remedied_by else tip)

    @property
    def live_count(self) -> int:
        """Requests in live attempts."""
        query = "SELECT count(DISTINCT request_id) FROM live WHERE token IN (SELECT value FROM json_each(?))"
        found: int = self._db.execute(query, (orjson.dumps(sorted(self._live)).decode(),)).fetchone()[0]
        return found

    def ingested(self, token: str) -> Mapping[str, Mapping[str, int]] | None:
        """The summary of an attempt whose outcomes are part of the state: outcomes, strays, usage."""
        found = self._db.execute("SELECT summary FROM token WHERE token = ?", (token,)).fetchone()
        if found is None:
            return None
        summary: Mapping[str, Mapping[str, int]] = orjson.loads(found[0])
        return summary

    # ------------------------------------------------------------ signatures

    def absorb(self, rows_name: str, components: Mapping[str, Any], spool: Path) -> None:
        """Take a new snapshot over with its signatures from a plan's spool, without reading it back."""
        self._db.execute("ATTACH ? AS spool", (str(spool),))
        try:
            with rowtable.transaction(self._db):
                with self._rows_replaced():
                    self._db.execute("INSERT INTO main.row SELECT * FROM spool.row")
                self._set_meta("rows", rows_name)
                self._set_meta("components", orjson.dumps(components).decode())
        finally:
            self._db.execute("DETACH spool")

    def remember(self, signatures: Iterable[tuple[str, tuple[int, int, int, int]]]) -> None:
        """Take over how unchanged inputs look now, as (key, signature)."""
        with contextlib.suppress(sqlite3.OperationalError), rowtable.transaction(self._db):
            self._db.executemany(
                "UPDATE row SET size=?, mtime_ns=?, ctime_ns=?, inode=? WHERE key=?",
                ((*signature, key) for key, signature in signatures),
            )
            rowtable.write_pages(self._db)

    # ------------------------------------------------------------ loading

    def _load_rows(self, name: str) -> None:
        components: dict[str, Any] = {}
        with self._rows_replaced():
            if name:
                lines = self._store.lines(name)
                components = orjson.loads(next(lines))["components"]
                # The file is sorted by key; the table wants ordinals, in any order.
                rowtable.insert(self._db, (rowtable.from_line(line) for line in lines))
        self._set_meta("rows", name)
        self._set_meta("components", orjson.dumps(components).decode())

    @contextlib.contextmanager
    def _rows_replaced(self) -> Iterator[None]:
        """An empty table of rows for a block to fill, and what is made of its rows after it."""
        # Requests are as good as random: an index that is made of all of them at once takes a quarter of
        # the time.
        self._db.execute("DROP INDEX row_requests")
        self._db.execute("DELETE FROM main.row")
        yield
        self._db.execute(_ROW_REQUESTS)
        rowtable.write_pages(self._db)

    def _load_outcomes(self, name: str, number: int) -> None:
        lines = self._store.lines(name)
        header = orjson.loads(next(lines))
        self._take_outcomes(header["token"], header["summary"], lines, number)

    def _take_outcomes(self, token: str, summary: Json, lines: Iterable[bytes], number: int) -> None:
        self._db.execute(
            "INSERT OR REPLACE INTO token VALUES (?, ?)", (token, orjson.dumps(summary).decode())
        )
        links: list[tuple[str, str]] = []
        decode = msgspec.json.Decoder(_Settled).decode

        def outcomes() -> Iterator[tuple[str, str, bytes]]:
            for line in lines:
                found = decode(line)
                if found.remedied_by:
                    links.append((found.remedied_by, found.id))
                yield found.id, found.outcome, line

        self._db.executemany("INSERT OR REPLACE INTO outcome VALUES (?, ?, ?)", outcomes())
        self._db.executemany("INSERT OR REPLACE INTO remedied VALUES (?, ?)", links)
        self._set_meta("outcomes", str(number))

    def _load_live(self, attempts: list[Attempt]) -> None:
        self._live = frozenset(a.token for a in attempts)
        before = set(self._meta("live").split(",")) - {""}
        known = set(before)
        if not self._live:
            self._db.execute("DELETE FROM live")
            known.clear()
        # What has ended stays until all have: to take each out as it ends costs as much as to take it in.
        for attempt in attempts:
            if attempt.token not in known:
                found = map(parts.request_id, self._store.shard_lines(attempt.shard_id))
                rows = ((request_id, attempt.token) for request_id in found)
                self._db.executemany("INSERT OR IGNORE INTO live VALUES (?, ?)", rows)
                known.add(attempt.token)
        if known != before:
            self._set_meta("live", ",".join(sorted(known)))

    def _reset(self) -> None:
        for table in ("row", "page", "outcome", "remedied", "token", "live"):
            self._db.execute(f"DELETE FROM {table}")
        self._db.execute("DELETE FROM meta WHERE name <> 'version'")

    def _meta(self, name: str) -> str:
        found = self._db.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        return "" if found is None else str(found[0])

    def _set_meta(self, name: str, value: str) -> None:
        self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, value))


def discard(store: Store) -> None:
    """Delete the local index of a state; the next one is made from the state."""
    if store.cache_folder is not None:
        indexfile.discard(store.cache_folder / _NAME)


def _names(segments: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(segments).encode()).hexdigest()


def trusted_before_ns() -> int:
    """Files changed after this moment are not known by their looks (git's racy rule)."""
    return time.time_ns() - RACY_NS
