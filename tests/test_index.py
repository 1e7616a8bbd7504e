"""The index is a cache: whatever becomes of its file, the answers are those of the state."""

from __future__ import annotations

import sqlite3
import stat
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
from builders import LINEAGE, make_attempt, make_state, make_stored

from runner import rowtable
from runner.blobs.memory import MemoryBlobs
from runner.index import Index
from runner.model import AttemptState, Export, Outcome, State
from runner.parts import dump_outcome
from runner.rowtable import KnownRow
from runner.store import Store

COUNT = 300
SHARD = "f" * 64


def row(number: int) -> KnownRow:
    requests = f'[[0,0,"r{number}"]]'
    return KnownRow(number, f"k{number:04d}", "digest", "c1", requests, "ok", "", None)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    folder = tmp_path / "state"
    folder.mkdir()
    found = Store(MemoryBlobs(), folder, "state")
    lines = tmp_path / "shard.jsonl"
    lines.write_bytes(b"".join(orjson.dumps({"key": f"live{n}", "request": {}}) + b"\n" for n in range(3)))
    found.put_shard(SHARD, lines)
    return found


@pytest.fixture
def state(store: Store) -> State:
    rows = store.put_rows(
        [rowtable.header({"c1": {"spec": "s", "digests": {}}}), *(row(n).line() for n in range(COUNT))]
    )
    one = store.put_outcomes(
        "t-a1", {"outcomes": {"ok": COUNT}}, [dump_outcome(make_stored(f"r{n}")) for n in range(COUNT)]
    )
    two = store.put_outcomes(
        "t-a2", {"outcomes": {"blocked": 1}}, [dump_outcome(make_stored("r7", Outcome.BLOCKED, token="t-a2"))]
    )
    export = Export(rows=rows, outcome_count=2, judge="j", files={})
    return make_state(rows=rows, outcomes=(one, two), export=export)


LIVE = [make_attempt("t-a3", shard_id=SHARD, state=AttemptState.SUBMITTED)]


def answers(store: Store, state: State, attempts: Any = LIVE) -> dict[str, Any]:
    index = Index(store)
    try:
        index.sync(state, attempts)
        return {
            "rows": [r.line() for r in index.rows()],
            "by key": [r.key for r in index.rows(order="key")],
            "from": [r.key for r in index.rows(from_ordinal=COUNT - 2)],
            "row": index.row("k0005"),
            "no row": index.row("gone"),
            "count": index.row_count,
            "key_of": (index.key_of('[[0,0,"r9"]]'), index.key_of("[]")),
            "stored": [index.stored(f"r{n}") for n in (0, 7, COUNT)],
            "outcome": [index.outcome(f"r{n}") for n in (0, 7, COUNT)],
            "live": (index.live("live1"), index.live("r0"), index.live_count),
            "ingested": (index.ingested("t-a2"), index.ingested("t-a3")),
            "components": index.components,
            "settled": index.settled,
        }
    finally:
        index.close()


def test_what_it_answers(store: Store, state: State) -> None:
    found = answers(store, state)

    assert len(found["rows"]) == found["count"] == COUNT
    assert found["from"] == ["k0298", "k0299"]
    assert found["row"] == row(5)
    assert found["no row"] is None
    assert found["key_of"] == ("k0009", None)
    assert [s and s.outcome for s in found["stored"]] == ["ok", "blocked", None]
    assert found["outcome"] == ["ok", "blocked", ""]
    assert found["live"] == ("t-a3", None, 3)
    assert found["ingested"] == ({"outcomes": {"blocked": 1}}, None)
    assert found["components"] == {"c1": {"spec": "s", "digests": {}}}
    assert not found["settled"]
    assert answers(store, state, [])["settled"]


def test_settled_means_that_the_export_is_the_newest(store: Store, state: State) -> None:
    for change in (
        {"export": None},
        {
            "export": replace(
                state.export or Export(rows="", outcome_count=0, judge="", files={}), outcome_count=1
            )
        },
        {"rows": ""},
    ):
        assert not answers(store, replace(state, **change), [])["settled"]


def test_the_file_is_for_the_owner_and_is_used_again(store: Store, state: State) -> None:
    expected = answers(store, state)
    path = store.cache_folder
    assert path is not None
    assert stat.S_IMODE((path / "index.sqlite").stat().st_mode) == 0o600
    blobs = store.blobs
    assert isinstance(blobs, MemoryBlobs)
    for name in list(blobs.list("rows/")) + list(blobs.list("outcomes/")):
        blobs.delete(name)

    assert answers(store, state) == expected


def damage(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return lambda path: (path.write_bytes(change(path.read_bytes())), None)[1]


def of_another_version(path: Path) -> None:
    db = sqlite3.connect(path)
    with db:
        db.execute("UPDATE meta SET value = '0' WHERE name = 'version'")
        db.execute("DELETE FROM row")
    db.close()


PAGE = 4096
DAMAGES: dict[str, Callable[[Path], None]] = {
    "deleted": Path.unlink,
    "empty": damage(lambda data: b""),
    "another version": of_another_version,
    "garbage": damage(lambda data: b"garbage" * 1000),
    "first byte": damage(lambda data: b"x" + data[1:]),
    "50 bytes left": damage(lambda data: data[:50]),
    "a page left": damage(lambda data: data[:PAGE]),
    "half left": damage(lambda data: data[: len(data) // 2]),
    "a page less": damage(lambda data: data[:-PAGE]),
    "zeros behind the first page": damage(lambda data: data[:PAGE] + bytes(len(data) - PAGE)),
}


@pytest.mark.parametrize("harm", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_index_is_rebuilt(store: Store, state: State, harm: Callable[[Path], None]) -> None:
    expected = answers(store, state)
    assert store.cache_folder is not None
    path = store.cache_folder / "index.sqlite"
    for suffix in ("-wal", "-shm"):
        assert not Path(f"{path}{suffix}").exists()
    harm(path)

    assert answers(store, state) == expected


def test_an_index_with_any_one_page_lost_is_rebuilt(store: Store, state: State) -> None:
    expected = answers(store, state)
    assert store.cache_folder is not None
    path = store.cache_folder / "index.sqlite"
    whole = path.read_bytes()
    for at in range(0, len(whole), PAGE):
        path.write_bytes(whole[:at] + bytes(PAGE) + whole[at + PAGE :])
        assert answers(store, state) == expected, at


def test_without_a_folder_it_is_in_memory(store: Store, state: State, tmp_path: Path) -> None:
    expected = answers(store, state)
    for folder in (None, tmp_path / "not made yet"):
        assert answers(Store(store.blobs, folder, "state"), state) == expected
    assert not (tmp_path / "not made yet").exists()


def test_another_lineage_begins_anew(store: Store, state: State) -> None:
    answers(store, state)
    other = answers(store, make_state(lineage=LINEAGE[::-1]), [])

    assert (other["count"], other["stored"], other["components"]) == (0, [None] * 3, {})


def test_outcomes_of_another_lineage_are_not_taken_over(store: Store, state: State) -> None:
    answers(store, state)
    other = answers(store, replace(state, lineage=LINEAGE[::-1], outcomes=state.outcomes[:1]))

    assert other["outcome"] == ["ok", "ok", ""]


def test_no_state_is_empty(store: Store, state: State) -> None:
    answers(store, state)
    index = Index(store)
    index.sync(None, [])

    assert (index.row_count, index.stored("r0"), index.settled) == (0, None, False)
    index.close()


def test_it_follows_the_state(store: Store, state: State) -> None:
    index = Index(store)
    index.sync(replace(state, outcomes=state.outcomes[:1]), [])
    assert index.outcome("r7") == "ok"
    index.sync(state, LIVE)
    assert index.outcome("r7") == "blocked"
    assert index.live("live0") == "t-a3"
    rows = store.put_rows([rowtable.header({}), row(0).line()])
    index.sync(replace(state, rows=rows), [])
    assert (index.row_count, index.live("live0"), index.live_count) == (1, None, 0)
    index.close()


SUMMARY = {"outcomes": {"invalid": 1}}


def test_outcomes_that_were_just_written_are_not_read_back(
    store: Store, state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [dump_outcome(make_stored("r7", Outcome.INVALID, token="t-a3", remedied_by="r8"))]
    name = store.put_outcomes("t-a3", SUMMARY, lines)
    longer = replace(state, outcomes=(*state.outcomes, name))
    expected = answers(Store(store.blobs, None, "state"), longer)
    index = Index(store)
    index.sync(state, LIVE)
    index.extend(longer, "t-a3", SUMMARY, lines)
    index.close()
    monkeypatch.delattr(Store, "lines")
    assert answers(store, longer) == expected


@pytest.mark.parametrize("changes", [{"outcomes": ("outcomes/9.jsonl.gz",)}, {"lineage": LINEAGE[::-1]}])
def test_an_index_of_another_root_is_not_extended(store: Store, state: State, changes: Any) -> None:
    lines = [dump_outcome(make_stored("r7", Outcome.INVALID, token="t-a3"))]
    index = Index(store)
    index.sync(state, LIVE)
    index.extend(replace(state, **changes), "t-a3", SUMMARY, lines)
    index.sync(state, LIVE)
    assert index.outcome("r7") == "blocked"
    index.close()


@pytest.fixture
def index(store: Store, state: State) -> Iterator[Index]:
    found = Index(store)
    found.sync(state, [])
    yield found
    found.close()


def test_signatures_stay_on_this_machine(index: Index, store: Store, state: State) -> None:
    assert {r.signature for r in index.rows()} == {None}
    index.remember([("k0003", (1, 2, 3, 4)), ("gone", (5, 6, 7, 8))])
    found = index.row("k0003")

    assert found is not None
    assert found.signature == (1, 2, 3, 4)
    assert found.line() == row(3).line()


def test_a_new_snapshot_is_taken_over_with_its_signatures(
    index: Index, store: Store, state: State, tmp_path: Path
) -> None:
    rows = [row(n)._replace(signature=(n, n, n, n)) for n in range(4)]
    spool = rowtable.connect(tmp_path / "spool.sqlite")
    spool.executescript(rowtable.ROW_SCHEMA)
    rowtable.insert(spool, rows)
    spool.close()
    index.absorb("rows/9.jsonl.gz", {"c2": {}}, tmp_path / "spool.sqlite")
    index.sync(replace(state, rows="rows/9.jsonl.gz"), [])

    assert list(index.rows()) == rows
    assert index.components == {"c2": {}}
