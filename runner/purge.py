"""A person's rows out of every part of a state, leaving all else readable.

New parts first, then the roots that name them, then the old parts, the snapshots last: these say
which requests the rows had, so a purge that was killed is completed by running it again.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice, zip_longest
from pathlib import Path

from msgspec import structs

from runner import index, keys, parts, rowtable, statefile
from runner.ledger import Ledger
from runner.model import Answer, ResponseRef, State
from runner.results import Judge
from runner.rowtable import KnownRow
from runner.store import Store

_SCHEMA = """
CREATE TABLE known (request_id TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE unknown (request_id TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE moved (token TEXT, part INTEGER, member INTEGER, at INTEGER, new_part INTEGER,
    new_member INTEGER, new_at INTEGER, PRIMARY KEY (token, part, member, at)) WITHOUT ROWID;
CREATE TABLE used (token TEXT, part INTEGER, member INTEGER, at INTEGER,
    PRIMARY KEY (token, part, member, at)) WITHOUT ROWID;
"""
_RESPONSES = re.compile(r"responses/(.+)\.(\d+)\.jsonl\.gz")


@dataclass(slots=True)
class Subject:
    """Whose rows go, and what belongs to them."""

    keys: set[str] = field(default_factory=set)
    """Keys that were picked."""
    former: set[str] = field(default_factory=set)
    """Keys under which the same documents stood before they were renamed."""
    inputs: set[str] = field(default_factory=set)
    """Digests of the documents."""
    row_count: int = 0
    """Rows of the newest snapshot."""
    requests: set[str] = field(default_factory=set)
    shared: dict[str, str] = field(default_factory=dict)
    """Requests that stay, because the row of another key wants them too -> that key."""
    unknown_count: int = 0
    """Stored requests that no snapshot names, so that whose they are is not known."""


class Purge:
    """One purge. For use under the lock, with nothing in flight: `look`, then `run`."""

    def __init__(
        self, store: Store, picked: Callable[[str], bool], workspace: Path, *, unknown: bool
    ) -> None:
        """`picked` says which keys go; `unknown` also takes what no snapshot names."""
        self._store = store
        self._picked = picked
        self._unknown = unknown
        self._db = rowtable.scratch(workspace / "purge.sqlite")
        self._db.executescript(_SCHEMA)
        self._subject = Subject()
        self._remedied_by: dict[str, set[str]] = {}
        """Request -> those that were sent to remedy it."""
        self._renamed: dict[str, str] = {}
        """Old part -> the new one that stands in its place."""
        self._shards: dict[str, str] = {}
        """Shard file with something of the subject -> its shard id."""

    def close(self) -> None:
        """Close the scratch file."""
        self._db.close()

    def look(self, state: State) -> Subject:
        """Find what has to go; changes nothing."""
        subject = self._subject
        for name in state.outcomes:
            for line in islice(self._store.lines(name), 1, None):
                outcome = parts.load_outcome(line)
                if outcome.remedied_by:
                    self._remedied_by.setdefault(outcome.request_id, set()).add(outcome.remedied_by)
        with rowtable.transaction(self._db):
            for name in self._store.blobs.list("rows/"):
                for row in self._rows(name):
                    ids = self._requests(row)
                    self._db.executemany("INSERT OR IGNORE INTO known VALUES (?)", ((i,) for i in ids))
                    if self._picked(row.key):
                        subject.keys.add(row.key)
                        subject.requests.update(ids)
                        subject.row_count += name == state.rows
                        subject.inputs |= {row.input} - {""}
        others = self._others()
        here = {row.key for row in self._rows(state.rows) if row.key in others} if state.rows else set()
        for key in others.keys() - here:
            subject.former.add(key)
            subject.requests |= others[key]
        for key in sorted(here):
            subject.shared |= dict.fromkeys(others[key] & subject.requests, key)
        subject.requests -= subject.shared.keys()
        self._look_into_shards()
        return subject

    def _requests(self, row: KnownRow) -> set[str]:
        """What a row wants, and what was sent to remedy it."""
        found: set[str] = set()
        left = [wanted.request_id for wanted in row.wanted]
        while left:
            request_id = left.pop()
            found.add(request_id)
            left += self._remedied_by.get(request_id, set()) - found
        return found

    def _others(self) -> dict[str, set[str]]:
        """Keys with the same documents or requests as the subject, in any snapshot -> their requests."""
        subject = self._subject
        found: dict[str, set[str]] = {}
        for name in self._store.blobs.list("rows/"):
            for row in self._rows(name):
                ids = self._requests(row)
                if row.key not in subject.keys and (row.input in subject.inputs or ids & subject.requests):
                    found.setdefault(row.key, set()).update(ids)
        return found

    def _look_into_shards(self) -> None:
        with rowtable.transaction(self._db):
            for name in self._store.blobs.list("shards/"):
                for line in self._store.lines(name):
                    request_id = parts.request_id(line)
                    if not self._is_known(request_id):
                        self._db.execute("INSERT OR IGNORE INTO unknown VALUES (?)", (request_id,))
                    if self._goes(request_id):
                        self._shards[name] = name.split("/")[1].partition(".")[0]
        self._subject.unknown_count = self._db.execute("SELECT count(*) FROM unknown").fetchone()[0]

    # ------------------------------------------------------------ acting

    def run(self, ledger: Ledger) -> None:
        """Take it all out. `ledger` is open; its root is replaced."""
        shard_ids = set(self._shards.values())
        tokens = {a.token for a in ledger.attempts.values() if a.shard_id in shard_ids}
        with rowtable.transaction(self._db):
            self._note_used()
            responses = self._rewrite_responses(tokens)
            outcomes = self._rewrite_outcomes()
        shards = self._rewrite_shards()
        rows = self._rewrite_rows()
        self._replace_roots(ledger)
        for name in (*responses, *outcomes, *shards):
            self._store.blobs.delete(name)
        for one in list(self._store.blobs.unfinished()):
            self._store.blobs.delete_unfinished(one.name)
        index.discard(self._store)
        for name in rows:
            self._store.blobs.delete(name)

    def _note_used(self) -> None:
        """Note which response lines the outcomes that stay refer to."""
        for name in self._store.blobs.list("outcomes/"):
            lines = self._store.lines(name)
            next(lines)
            for stored in map(parts.load_outcome, lines):
                if stored.ref is not None and not self._goes(stored.request_id):
                    self._db.execute(
                        "INSERT OR IGNORE INTO used VALUES (?,?,?,?)", _place(stored.token, stored.ref)
                    )

    def _rewrite_responses(self, tokens: set[str]) -> list[str]:
        """Of these attempts only lines that an outcome refers to stay: any other may be of the subject."""
        judge = Judge(None)
        gone = []
        for name in list(self._store.blobs.list("responses/")):
            match = _RESPONSES.fullmatch(name)
            if match is None:
                continue
            token, part = match[1], int(match[2])
            strict = token in tokens
            stay = {self._stays(judge, strict, token, *found) for found in self._responses(token, part)}
            if False in stay:
                gone.append(name)
            if stay == {False, True}:
                self._copy_responses(judge, strict, token, part)
        return gone

    def _copy_responses(self, judge: Judge, strict: bool, token: str, part: int) -> None:
        places: list[ResponseRef] = []

        def lines() -> Iterator[bytes]:
            for line, ref in self._responses(token, part):
                if self._stays(judge, strict, token, line, ref):
                    places.append(ref)
                    yield line + b"\n"

        def moved(line: bytes, new: ResponseRef) -> None:
            # Blank lines are no answers, and are not handed on.
            old = places.pop(0)
            self._db.execute(
                "INSERT INTO moved VALUES (?,?,?,?,?,?,?)",
                (*_place(token, old), new.part, new.member, new.offset),
            )

        self._store.put_responses(token, lines(), moved)

    def _responses(self, token: str, part: int) -> Iterator[tuple[bytes, ResponseRef]]:
        for member, data in self._store.response_members(token, part):
            at = 0
            for line in data.split(b"\n"):
                if line:
                    yield line, ResponseRef(part=part, member=member, offset=at, length=len(line))
                at += len(line) + 1

    def _stays(self, judge: Judge, strict: bool, token: str, line: bytes, ref: ResponseRef) -> bool:
        answer = judge.line(line)
        if isinstance(answer, Answer) and self._goes(answer.request_id):
            return False
        if not strict:
            return True
        query = "SELECT 1 FROM used WHERE token = ? AND part = ? AND member = ? AND at = ?"
        return self._db.execute(query, _place(token, ref)).fetchone() is not None

    def _rewrite_outcomes(self) -> list[str]:
        gone = []
        for name in list(self._store.blobs.list("outcomes/")):
            now = (line + b"\n" for line in self._store.lines(name))
            if any(new != old for new, old in zip_longest(self._outcomes(name), now)):
                self._renamed[name] = self._store.put_segment(self._outcomes(name))
                gone.append(name)
        return gone

    def _outcomes(self, name: str) -> Iterator[bytes]:
        """The lines of a segment as they have to be."""
        lines = self._store.lines(name)
        yield next(lines) + b"\n"
        query = (
            "SELECT new_part, new_member, new_at FROM moved"
            " WHERE token = ? AND part = ? AND member = ? AND at = ?"
        )
        for line in lines:
            stored = parts.load_outcome(line)
            if self._goes(stored.request_id):
                continue
            ref = stored.ref
            found = self._db.execute(query, _place(stored.token, ref)).fetchone() if ref else None
            if ref is None or found is None:
                yield line + b"\n"
                continue
            part, member, offset = found
            moved = ResponseRef(part=part, member=member, offset=offset, length=ref.length)
            yield parts.dump_outcome(structs.replace(stored, ref=moved))

    def _rewrite_shards(self) -> list[str]:
        for shard_id in sorted(set(self._shards.values())):
            current = self._store.shard_name(shard_id)
            if current in self._shards:
                lines = (line + b"\n" for line in self._store.lines(current))
                self._store.put_shard_rest(
                    shard_id, (line for line in lines if not self._goes(parts.request_id(line)))
                )
        return list(self._shards)

    def _rewrite_rows(self) -> list[str]:
        gone = []
        for name in list(self._store.blobs.list("rows/")):
            leaving = [row for row in self._rows(name) if self._leaves(row)]
            if leaving:
                self._renamed[name] = self._store.put_rows(self._snapshot(name, leaving))
                gone.append(name)
        return gone

    def _snapshot(self, name: str, leaving: list[KnownRow]) -> Iterator[bytes]:
        lines = self._store.lines(name)
        yield next(lines) + b"\n"
        for row in keys.without(map(rowtable.from_line, lines), leaving):
            yield row.line()

    def _replace_roots(self, ledger: Ledger) -> None:
        for name, old, version in list(self._store.history()):
            new = self._with_new_names(old)
            if new != old:
                self._store.blobs.replace(name, statefile.dump_state(new), version)
        new = self._with_new_names(ledger.state)
        if new != ledger.state:
            ledger.save(new)

    def _with_new_names(self, state: State) -> State:
        def new(name: str) -> str:
            return self._renamed.get(name, name)

        # `export` still names the old snapshot: the next apply writes the destinations again.
        return replace(state, rows=new(state.rows), outcomes=tuple(map(new, state.outcomes)))

    # ------------------------------------------------------------ helpers

    def _rows(self, name: str) -> Iterator[KnownRow]:
        lines = self._store.lines(name)
        next(lines)
        return map(rowtable.from_line, lines)

    def _is_known(self, request_id: str) -> bool:
        found = self._db.execute("SELECT 1 FROM known WHERE request_id = ?", (request_id,)).fetchone()
        return found is not None

    def _leaves(self, row: KnownRow) -> bool:
        subject = self._subject
        return row.key in subject.keys or (row.key in subject.former and row.input in subject.inputs)

    def _goes(self, request_id: str) -> bool:
        return request_id in self._subject.requests or (self._unknown and not self._is_known(request_id))


def _place(token: str, ref: ResponseRef) -> tuple[str, int, int, int]:
    return token, ref.part, ref.member, ref.offset
