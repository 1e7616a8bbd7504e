"""The table of rows: its lines are those of a snapshot, and outcomes are written down by their order."""

from __future__ import annotations

import sqlite3
from contextlib import closing

from hypothesis import given
from hypothesis import strategies as st

from runner import rowtable
from runner.model import BadRow, Wanted
from runner.rowtable import KnownRow

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
PROBLEMS = st.just("") | st.builds(
    lambda words, line: rowtable.dump_problem(BadRow("k", "code", words, words, line)),
    TEXTS,
    st.integers(0, 9),
)


def table(rows: list[KnownRow]) -> closing[sqlite3.Connection]:
    db = rowtable.connect(None)
    db.executescript(rowtable.ROW_SCHEMA)
    rowtable.insert(db, rows)
    return closing(db)


def make_row(ordinal: int, key: str, problem: str = "", outcome: str = "ok") -> KnownRow:
    wanted = rowtable.dump_wanted([Wanted(0, 0, "r" + "0" * 32)])
    return KnownRow(ordinal, key, "d" * 64, "c1", wanted, outcome, problem, None)


@given(st.lists(st.tuples(TEXTS, PROBLEMS, TEXTS), unique_by=lambda found: found[0]))
def test_lines_are_those_of_the_rows(found: list[tuple[str, str, str]]) -> None:
    rows = [make_row(at, key, problem, outcome) for at, (key, problem, outcome) in enumerate(found)]
    with table(rows) as db:
        assert list(rowtable.lines(db)) == [row.line() for row in rowtable.rows(db, order="key")]
        assert [(row.key, row.ids, row.bad) for row in rowtable.asked(db)] == [
            (row.key, row.ids, row.bad) for row in rows
        ]
    assert [rowtable.from_line(row.line()) for row in rows] == rows


@given(st.lists(st.sampled_from(["ok", "invalid", ""])), st.lists(st.integers(1, 3), min_size=30))
def test_outcomes_are_written_down_in_order(names: list[str], counts: list[int]) -> None:
    classes = list(zip(names, counts, strict=False))
    wanted = [name for name, count in classes for _ in range(count)]
    with table([make_row(at, f"k{at:03}", outcome="old") for at in range(len(wanted))]) as db:
        rowtable.settle(db, classes)
        assert [row.outcome for row in rowtable.rows(db)] == wanted


def test_ids_are_those_of_the_wanted_requests() -> None:
    for wanted in (
        [Wanted(0, 0, "r" + "1" * 32)],
        [Wanted(0, 0, "r" + "1" * 32), Wanted(0, 1, "r" + "2" * 32)],
        [Wanted(0, 0, "r1"), Wanted(0, 1, "r2")],
        [],
    ):
        row = make_row(0, "k")._replace(requests=rowtable.dump_wanted(wanted))
        assert row.ids == [one.request_id for one in wanted]
        assert list(row.wanted) == wanted
