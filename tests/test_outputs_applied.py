"""Several destinations through the life of a job: written at once, looked after one by one."""

from __future__ import annotations

import csv
import json
import sqlite3
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

FOUR: list[Any] = [
    "out/notes.jsonl",
    {"path": "out/notes.csv", "include": ["meta"]},
    {"path": "out/notes.parquet"},
    {"path": "out/db/notes.sqlite", "columns": {"id": "$._key", "topic": "$.topic"}},
]
PATHS = ["out/notes.jsonl", "out/notes.csv", "out/notes.parquet", "out/db/notes.sqlite"]
SCHEMA = {
    "type": "object",
    "properties": {"topic": {"type": "string"}, "tags": {"type": "array", "items": {"type": "string"}}},
    "required": ["topic", "tags"],
    "additionalProperties": False,
}


@pytest.fixture
def ready(project: Any, cli: Any) -> Any:
    """Four notes in four files."""
    project.gbrun = cli
    project.inputs(4)
    project.spec(destination=FOUR, output_schema=SCHEMA)
    project.apply()
    return project


def bytes_of(project: Any) -> dict[str, bytes]:
    return {path: (project.folder / path).read_bytes() for path in PATHS}


def settled(project: Any) -> None:
    assert project.plan("--detailed-exitcode", code=0).endswith(
        "No changes. Everything the spec asks for is there.\n"
    )
    assert project.leftovers() == []
    assert len(project.requests_sent()) == 4


def test_four_files_say_the_same(ready: Any) -> None:
    settled(ready)
    folder: Path = ready.folder
    records = [json.loads(line) for line in (folder / PATHS[0]).read_text().splitlines()]
    assert len(records) == 4
    with (folder / PATHS[1]).open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["_key"] for row in rows] == [record["_key"] for record in records]
    assert [json.loads(row["tags"]) for row in rows] == [record["tags"] for record in records]
    assert all(row["_request_id"].startswith("r") and json.loads(row["_usage"]) for row in rows)
    assert pq.ParquetFile(folder / PATHS[2]).read().to_pylist() == records
    db = sqlite3.connect(folder / PATHS[3])
    assert db.execute("SELECT id, topic FROM records").fetchall() == [
        (record["_key"], record["topic"]) for record in records
    ]
    db.close()
    assert sorted(ready.root()["export"]["files"]) == sorted(PATHS)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("damage", ["missing", "altered"])
def test_each_of_them_is_looked_after(ready: Any, path: str, damage: str) -> None:
    good = bytes_of(ready)
    if damage == "missing":
        (ready.folder / path).unlink()
    else:
        (ready.folder / path).write_bytes(good[path][:-9])
    said = "is missing" if damage == "missing" else "was altered"
    assert f"re-export: {path} {said}\n" in ready.plan("--detailed-exitcode", code=2)
    ready.apply()
    assert bytes_of(ready) == good
    settled(ready)


def test_export_writes_the_same_bytes(ready: Any) -> None:
    good = bytes_of(ready)
    shown = ready.run("export", "job.yaml").stdout
    assert [line for line in shown.splitlines() if line.startswith("Wrote ")] == [
        f"Wrote {path} ({len(good[path]):,} bytes)" for path in PATHS
    ]
    assert bytes_of(ready) == good


def test_a_destination_that_is_added_is_written(ready: Any) -> None:
    good = bytes_of(ready)
    ready.spec(destination=[*FOUR, "out/more.csv"])
    assert "re-export: output settings changed\n" in ready.plan("--detailed-exitcode", code=2)
    ready.apply()
    assert bytes_of(ready) == good
    assert (ready.folder / "out/more.csv").read_text().startswith("_key,topic,tags\n")
    settled(ready)


def test_a_destination_that_is_removed_stays_and_is_forgotten(ready: Any) -> None:
    good = bytes_of(ready)
    ready.spec(destination=FOUR[:2])
    planned = ready.plan("--detailed-exitcode", code=2)
    for path in PATHS[2:]:
        assert f"re-export: {path} is no longer a destination, and stays as it is\n" in planned
    ready.apply()
    assert bytes_of(ready) == good
    settled(ready)
    # Forgotten: it is a stranger's now.
    (ready.folder / PATHS[2]).write_bytes(b"something else")
    settled(ready)
    ready.spec(destination=FOUR)
    assert f"{PATHS[2]} exists, and this state did not write it" in ready.apply(code=7).stderr


@pytest.mark.parametrize(
    "change",
    [{"columns": {"topic": "$.topic", "id": "$._key"}}, {"columns": ["_key"]}, {"include": ["meta"]}, {}],
)
def test_other_settings_of_one_of_them_write_it_anew(ready: Any, change: dict[str, Any]) -> None:
    good = bytes_of(ready)
    ready.spec(destination=[*FOUR[:3], {"path": PATHS[3], **change}])
    assert "re-export: output settings changed\n" in ready.plan("--detailed-exitcode", code=2)
    ready.apply()
    now = bytes_of(ready)
    assert [path for path in PATHS if now[path] != good[path]] == [PATHS[3]]
    settled(ready)


@pytest.mark.parametrize("path", [*PATHS, "out/notes.errors.jsonl"])
def test_each_of_them_is_refused_where_it_is_a_strangers(project: Any, cli: Any, path: str) -> None:
    project.gbrun = cli
    project.inputs(1)
    project.spec(destination=FOUR)
    foreign = project.write(path, "somebody's work\n")
    assert f"{path} exists, and this state did not write it" in project.apply(code=7).stderr
    assert foreign.read_text() == "somebody's work\n"
    assert project.jobs() == []


@pytest.mark.parametrize("before", range(1, 4))
def test_killed_between_two_of_them(
    project: Any, cli: Any, monkeypatch: pytest.MonkeyPatch, before: int
) -> None:
    class Died(BaseException):
        pass

    placed: list[Path] = []

    def die(folder: Path) -> None:
        placed.append(folder)
        if len(placed) == before:
            raise Died

    project.gbrun = cli
    project.inputs(4)
    project.spec(destination=FOUR, output_schema=SCHEMA)
    with monkeypatch.context() as patch:
        # What follows each rename.
        patch.setattr("runner.outputs.atomicfile.sync_folder", die)
        with pytest.raises(Died):
            project.apply()
    assert [(project.folder / path).exists() for path in PATHS] == [n < before for n in range(4)]
    project.apply()
    assert all((project.folder / path).exists() for path in PATHS)
    settled(project)


def test_a_record_that_does_not_fit_is_told_and_nothing_is_lost(project: Any, cli: Any) -> None:
    project.gbrun = cli
    project.inputs(1)
    large = {"type": "integer", "minimum": 2**63}
    schema = {"type": "object", "properties": {"n": large}, "required": ["n"]}
    project.spec(destination=["out/notes.jsonl", "out/notes.sqlite"], output_schema=schema)
    got = project.apply(code=1)
    assert (
        'out/notes.sqlite cannot hold the record of "inputs/000.txt": "n" holds 64-bit integers' in got.stderr
    )
    assert "Traceback" not in got.stderr
    assert not (project.folder / "out/notes.jsonl").exists()
    assert project.leftovers() == []

    project.spec(destination=["out/notes.jsonl", "out/notes.csv"])
    project.apply()
    assert json.loads((project.folder / "out/notes.jsonl").read_text())["n"] >= 2**63
    assert len(project.requests_sent()) == 1


def test_failures_leave_the_tables_and_go_beside_the_first(project: Any, cli: Any) -> None:
    project.gbrun = cli
    project.inputs(3)
    project.faults(rows=[{"kind": "row_error", "code": 3, "match": "Note 1:"}])
    project.spec(destination=["out/notes.csv", "other/notes.jsonl"], failures={"max_ratio": 1})
    project.apply()
    failures = (project.folder / "out/notes.errors.jsonl").read_text().splitlines()
    assert [json.loads(line)["_key"] for line in failures] == ["inputs/001.txt"]
    assert len((project.folder / "out/notes.csv").read_text().splitlines()) == 3
    assert not (project.folder / "other/notes.errors.jsonl").exists()
