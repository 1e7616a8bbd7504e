"""Stored responses become the destination's records and its errors file.

Responses are read once, in the order in which they lie on disk; what they give is spooled,
then written in input order. Memory is flat, and the same state always gives the same bytes.
"""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from runner import results, rowtable
from runner.errors import StateUnreadable
from runner.model import Answer, Destination, Json, Outcome, Spec, Stored
from runner.outputs import jsonl
from runner.results import Judge
from runner.rowtable import KnownRow
from runner.store import Store

_SCHEMA = """
CREATE TABLE want (
    request_id TEXT PRIMARY KEY, token TEXT, part INTEGER, member INTEGER, at INTEGER, length INTEGER,
    jobs INTEGER
) WITHOUT ROWID;
CREATE TABLE answer (request_id TEXT PRIMARY KEY, outcome TEXT, jobs INTEGER, body BLOB) WITHOUT ROWID;
"""


@dataclass(frozen=True, slots=True)
class Written:
    """What an export wrote."""

    files: Mapping[str, tuple[str, int]]
    """Destination path as in the spec -> (SHA-256 hex, byte size)."""
    rows: Mapping[str, int]
    """Rows per outcome; `in_flight` and `held_back` for those that have none yet."""
    place: Callable[[], None]
    """Moves the files to their places; until then nothing can be seen of them."""


def errors_path(destination: str) -> str:
    """Where failures go: beside the first destination, `<stem>.errors.jsonl`."""
    path = Path(destination)
    return (path.parent / f"{path.stem}.errors.jsonl").as_posix()


def row_outcome(row: KnownRow, outcome: Callable[[str], str]) -> str:
    """The class of a row over all its requests: the first that is not ok; empty while one is open.

    `outcome` gives a request's class, empty where it has none.
    """
    if row.problem:
        return Outcome.BAD_INPUT
    classes = [outcome(wanted.request_id) for wanted in row.wanted]
    if "" in classes:
        return ""
    broken = [Outcome(name) for name in classes if name != Outcome.OK]
    return min(broken, key=list(Outcome).index) if broken else Outcome.OK


def write(
    spec: Spec,
    store: Store,
    rows: Callable[[], Iterator[KnownRow]],
    stored: Callable[[str], Stored | None],
    live: Callable[[str], str | None],
    workspace: Path,
    held: ExitStack,
) -> Written:
    """Write records and failures, in input order, beside their places; `Written.place` moves them.

    The caller names what will be there in the state first, so that a run that is killed in
    between leaves a state that sees the difference. `rows` gives the rows in input order, twice.
    What is not placed is removed when `held` is closed.

    Raises:
        StateUnreadable: a response that an outcome refers to is gone or damaged.
        GbrunError: a destination cannot be written.
    """
    db = rowtable.connect(workspace / "export.sqlite")
    try:
        db.executescript(_SCHEMA)
        with rowtable.transaction(db):
            _collect_wanted(db, rows(), stored)
            _judge_all(db, spec, store)
        return _write_files(db, spec, rows(), live, held)
    finally:
        db.close()
        for suffix in ("", "-journal"):
            Path(f"{workspace / 'export.sqlite'}{suffix}").unlink(missing_ok=True)


def _collect_wanted(
    db: sqlite3.Connection, rows: Iterable[KnownRow], stored: Callable[[str], Stored | None]
) -> None:
    """Note where each wanted response lies; a request without one is told by its outcome alone."""
    for row in rows:
        for wanted in row.wanted:
            found = stored(wanted.request_id)
            if found is None:
                continue
            if found.ref is None:
                body = _failure_body(found.code, found.message, None)
                db.execute(
                    "INSERT OR IGNORE INTO answer VALUES (?,?,?,?)",
                    (found.request_id, found.outcome, found.jobs, body),
                )
                continue
            ref = found.ref
            place = (found.request_id, found.token, ref.part, ref.member, ref.offset, ref.length, found.jobs)
            db.execute("INSERT OR IGNORE INTO want VALUES (?,?,?,?,?,?,?)", place)


def _judge_all(db: sqlite3.Connection, spec: Spec, store: Store) -> None:
    judge = Judge(spec.output_schema)
    has_schema = spec.output_schema is not None
    include = {name for d in spec.destinations for name in d.include}
    files = db.execute("SELECT DISTINCT token, part FROM want ORDER BY token, part").fetchall()
    for token, part in files:
        places = db.execute(
            "SELECT member, at, length, request_id, jobs FROM want"
            " WHERE token = ? AND part = ? ORDER BY member, at",
            (token, part),
        ).fetchall()
        answers = _answers(store, token, part, places, judge)
        db.executemany(
            "INSERT INTO answer VALUES (?,?,?,?)",
            (
                (answer.request_id, answer.outcome, jobs, _body(answer, has_schema, include, token))
                for answer, jobs in answers
            ),
        )


def _answers(
    store: Store, token: str, part: int, places: list[tuple[int, int, int, str, int]], judge: Judge
) -> Iterator[tuple[Answer, int]]:
    at = 0
    for offset, data in store.response_members(token, part):
        while at < len(places) and places[at][0] == offset:
            _, start, length, request_id, jobs = places[at]
            answer = judge.line(data[start : start + length])
            if not isinstance(answer, Answer) or answer.request_id != request_id:
                raise StateUnreadable(f"responses/{token}.{part}.jsonl.gz does not hold {request_id}")
            yield answer, jobs
            at += 1
    if at < len(places):
        raise StateUnreadable(f"responses/{token}.{part}.jsonl.gz ends too early")


def _body(answer: Answer, has_schema: bool, include: set[str], token: str) -> bytes:
    if answer.outcome is not Outcome.OK:
        return _failure_body(answer.code, answer.message, answer.raw)
    meta: dict[str, Json] | None = None
    if "meta" in include:
        meta = {
            "_request_id": answer.request_id,
            "_attempt": token,
            "_model_version": answer.model_version,
            "_usage": dict(answer.usage),
            "_finish_reason": answer.finish_reason,
        }
    return results.record_tail(answer, has_schema=has_schema, meta=meta)


def _failure_body(code: str, message: str, raw: Json) -> bytes:
    return results.dump_line({"code": code, "message": message, "raw": raw})


def _write_files(
    db: sqlite3.Connection,
    spec: Spec,
    rows: Iterable[KnownRow],
    live: Callable[[str], str | None],
    held: ExitStack,
) -> Written:
    destination: Destination = spec.destinations[0]
    failures_name = errors_path(destination.path)
    failures_path = spec.folder / failures_name
    counts: Counter[str] = Counter()
    records = held.enter_context(jsonl.JsonlFile(spec.folder / destination.path))
    failed = held.enter_context(jsonl.JsonlFile(failures_path))
    for row in rows:
        outcome, line = _row_line(db, row, live)
        counts[outcome] += 1
        if outcome == Outcome.OK:
            records.write(line)
        elif line:
            failed.write(line)
    files = {destination.path: records.seal()}
    if failed.line_count:
        files[failures_name] = failed.seal()
    else:
        # Before the root forgets it: a file that no root names would be a stranger's.
        failures_path.unlink(missing_ok=True)

    def place() -> None:
        records.place()
        if failed.line_count:
            failed.place()

    return Written(files, dict(counts), place)


def _row_line(db: sqlite3.Connection, row: KnownRow, live: Callable[[str], str | None]) -> tuple[str, bytes]:
    """A row's class and its line; the line is empty for a row that is not settled."""
    if row.bad is not None:
        bad = row.bad
        where = f"{bad.path}:{bad.line}: " if bad.path else ""
        line = results.failure(row.key, Outcome.BAD_INPUT, bad.code, where + bad.message, 0, None)
        return Outcome.BAD_INPUT, line
    ids = [wanted.request_id for wanted in row.wanted]
    if any(live(request_id) for request_id in ids):
        return "in_flight", b""
    query = "SELECT outcome, jobs, body FROM answer WHERE request_id = ?"
    answers = [db.execute(query, (request_id,)).fetchone() for request_id in ids]
    if any(answer is None for answer in answers):
        return "held_back", b""
    broken = [answer for answer in answers if answer[0] != Outcome.OK]
    if not broken:
        return Outcome.OK, results.record(row.key, answers[-1][2])
    outcome, jobs, body = min(broken, key=lambda answer: list(Outcome).index(Outcome(answer[0])))
    told = json.loads(body)
    return outcome, results.failure(row.key, outcome, told["code"], told["message"], jobs, told["raw"])


def destinations(spec: Spec) -> tuple[str, ...]:
    """Every file this spec may write, as paths in the spec's own form."""
    first = spec.destinations[0].path
    return (first, errors_path(first))


def look(spec: Spec) -> dict[str, tuple[str, int] | None]:
    """What lies at each destination now."""
    return {path: jsonl.look(spec.folder / path) for path in destinations(spec)}
