"""The file of the index: made by one run at a time, and never replaced under another."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from runner import indexfile
from runner.indexfile import IndexFile

SCHEMA = "CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT); CREATE TABLE found (n INTEGER);"


def make(path: Path | None, version: str = "1") -> IndexFile:
    return IndexFile(path, SCHEMA, version)


def count(db: sqlite3.Connection) -> int:
    found: int = db.execute("SELECT count(*) FROM found").fetchone()[0]
    return found


def test_it_is_made_once_and_used_again(tmp_path: Path) -> None:
    path = tmp_path / "index.sqlite"
    for expected in range(3):
        file = make(path)
        db = file.open(check=True)
        assert count(db) == expected
        db.execute("INSERT INTO found VALUES (1)")
        db.close()
        file.close()


def test_many_at_once_make_one(tmp_path: Path) -> None:
    path = tmp_path / "index.sqlite"
    program = (
        "import sys, time; sys.path.insert(0, sys.argv[2]); from pathlib import Path;"
        "from tests.test_indexfile import make;"
        "f = make(Path(sys.argv[1])); db = f.open(check=True);"
        "db.execute('INSERT INTO found VALUES (1)'); time.sleep(0.2); db.close(); f.close()"
    )
    root = str(Path(__file__).parent.parent)
    for _ in range(3):
        path.write_bytes(b"damaged")
        children = [subprocess.Popen([sys.executable, "-c", program, str(path), root]) for _ in range(6)]
        assert [child.wait(60) for child in children] == [0] * 6
        file = make(path)
        db = file.open(check=True)
        assert count(db) == 6
        db.close()
        file.close()


def test_a_file_that_another_run_has_open_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(indexfile, "_TRIES", 2)
    path = tmp_path / "index.sqlite"
    first = make(path)
    db = first.open(check=True)
    db.execute("INSERT INTO found VALUES (1)")
    # Another version of gbrun finds nothing it can use, and works in memory.
    other = make(path, "2")
    aside = other.open(check=True)
    aside.execute("INSERT INTO found VALUES (1)")
    assert count(db) == 1
    second = make(path)
    renewed = second.renew(second.open(check=True))
    assert count(renewed) == 0
    assert count(db) == 1
    for each in (aside, renewed, db):
        each.close()
    for file in (other, second, first):
        file.close()
    assert sqlite3.connect(path).execute("SELECT count(*) FROM found").fetchone() == (1,)


def test_a_renewed_file_is_empty(tmp_path: Path) -> None:
    file = make(tmp_path / "index.sqlite")
    db = file.open(check=True)
    db.execute("INSERT INTO found VALUES (1)")
    db = file.renew(db)
    assert count(db) == 0
    db.execute("INSERT INTO found VALUES (1)")
    db.close()
    file.close()
    again = make(tmp_path / "index.sqlite")
    db = again.open(check=True)
    assert count(db) == 1
    db.close()
    again.close()


def test_what_is_discarded_is_gone_also_where_it_is_open(tmp_path: Path) -> None:
    path = tmp_path / "index.sqlite"
    indexfile.discard(path)
    file = make(path)
    db = file.open(check=True)
    db.execute("INSERT INTO found VALUES (77777)")
    db.close()
    file.close()
    held = file.open(check=True)
    thread = threading.Thread(target=indexfile.discard, args=(path,))
    thread.start()
    thread.join()
    assert count(held) == 0
    held.close()
    file.close()
    indexfile.discard(path)
    assert not path.exists()
