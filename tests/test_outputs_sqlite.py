"""The database as others open it."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

from test_outputs import SCHEMA, spec_of, written

from runner.outputs.sqlite import APPLICATION_ID, FORMAT
from runner.specmodel import Column, Destination


def query(path: Path, sql: str) -> list[tuple[Any, ...]]:
    db = sqlite3.connect(path)
    try:
        return db.execute(sql).fetchall()
    finally:
        db.close()


def test_the_table_has_types_and_a_key(tmp_path: Path) -> None:
    path = written(spec_of(tmp_path, Destination(path="x.sqlite")), [{"_key": "a", "score": 1}])
    told = [row[1:6] for row in query(path, "PRAGMA table_info(records)")]
    assert [(name, kind, bool(key)) for name, kind, _, _, key in told] == [
        ("_key", "TEXT", True),
        ("text", "TEXT", False),
        ("count", "INTEGER", False),
        ("score", "REAL", False),
        ("sure", "INTEGER", False),
        ("tags", "TEXT", False),
        ("place", "TEXT", False),
        ("any", "TEXT", False),
    ]
    assert query(path, "SELECT typeof(score) FROM records") == [("real",)]
    assert query(path, "SELECT name FROM sqlite_master WHERE type = 'table'") == [("records",)]


def test_the_database_is_sound_and_says_what_it_is(tmp_path: Path) -> None:
    records = [{"_key": f"k{n * 7 % 3000}", "text": "x" * n} for n in range(3000)]
    path = written(spec_of(tmp_path, Destination(path="x.sqlite")), records)
    assert query(path, "PRAGMA integrity_check") == [("ok",)]
    assert query(path, "PRAGMA application_id") == [(APPLICATION_ID,)]
    assert query(path, "PRAGMA user_version") == [(FORMAT,)]
    assert query(path, "PRAGMA journal_mode") == [("delete",)]
    assert [key for key, *_ in query(path, "SELECT * FROM records")] == [r["_key"] for r in records]
    assert query(path, "SELECT text FROM records WHERE _key = 'k14'") == [("xx",)]
    # No library's version: two builds write the same.
    assert path.read_bytes()[96:100] == (3_037_000).to_bytes(4, "big")
    # It can be written like any other.
    db = sqlite3.connect(path)
    with db:
        db.execute("DELETE FROM records WHERE _key = 'k14'")
    db.close()
    assert query(path, "PRAGMA integrity_check") == [("ok",)]


def test_odd_names_of_columns(tmp_path: Path) -> None:
    names = ['a"b', "select", "", "é ü", "a.b", "[x]", "`y`", ";--"]
    schema = {**SCHEMA, "properties": {name: {"type": "integer"} for name in names}}
    record = {"_key": "a", **{name: number for number, name in enumerate(names)}}
    path = written(spec_of(tmp_path, Destination(path="x.sqlite"), schema), [record])
    assert query(path, "SELECT * FROM records") == [("a", *range(len(names)))]


def test_the_renamed_key_is_the_primary_key(tmp_path: Path) -> None:
    columns = (Column(name="n", path="$.count"), Column(name="id", path="$['_key']"))
    path = written(
        spec_of(tmp_path, Destination(path="x.sqlite", columns=columns)), [{"_key": "a", "count": 1}]
    )
    assert [(row[1], row[2], row[5]) for row in query(path, "PRAGMA table_info(records)")] == [
        ("n", "INTEGER", 0),
        ("id", "TEXT", 1),
    ]
