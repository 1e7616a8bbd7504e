"""Records that are held while answers come in are those that the stored answers give."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import orjson
import pytest
from builders import Outcomes, error_line, make_attempt, make_spec, make_stored, ok_line
from hypothesis import given
from hypothesis import strategies as st

from runner import judged, parts
from runner.blobs.memory import MemoryBlobs
from runner.ingest import Collector
from runner.model import Answer, JobState, Outcome, ResponseRef, Stored
from runner.recordspool import RecordSpool
from runner.results import Judge
from runner.rowtable import KnownRow
from runner.specmodel import Samples, Spec
from runner.store import Store

SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
"""What the answers below are judged by."""
IDS = ["r1", "r2", "r3"]


def make_answer(request_id: str, value: Any) -> Answer:
    return Answer(request_id=request_id, outcome=Outcome.OK, value=value)


class Taken:
    """Lines taken in by a run that holds their records."""

    def __init__(self, spec: Spec, records: RecordSpool, lines: Sequence[bytes], token: str = "t-a1") -> None:
        self.store = Store(MemoryBlobs(), None, "state")
        self.spec, self.records = spec, records
        self.stored: dict[str, Stored] = {}
        self.take(lines, token)

    def take(self, lines: Sequence[bytes], token: str) -> None:
        attempt = make_attempt(token, job_state=JobState.SUCCEEDED)
        shard = [orjson.dumps({"key": key}) for key in IDS]
        collector = Collector(
            attempt, Judge.of(self.spec), shard, Outcomes(self.stored), records=self.records.attempt(token)
        )
        self.store.put_responses(token, [b"\n".join([*lines, b""])], collector.line)
        found = map(parts.load_outcome, collector.finish().lines)
        self.stored |= {one.request_id: one for one in found}

    def rows(self, records: RecordSpool | None) -> list[tuple[str, bytes]]:
        """What an export writes: one row for each request, or one for all as its samples."""
        many = self.spec.samples.count > 1
        wanted = [[[0, at, key] for at, key in enumerate(IDS)]] if many else [[[0, 0, key]] for key in IDS]
        rows = [KnownRow(at, f"k{at}", "d", "c", json.dumps(w), "", "", None) for at, w in enumerate(wanted)]
        answered = Outcomes(self.stored).stored_among
        runs = judged.runs(self.spec, self.store, rows, answered, lambda _: None, records)
        return [(run.outcome, line) for run in runs for line in run.lines]


TEXTS = st.sampled_from(
    ['{"n":1}', '{"n":2,"_key":"x"}', '{"_key":1}', "{}", '{"n":"x"}', '```\n{"n":3}\n```', "no"]
)
LINES = st.lists(
    st.builds(ok_line, st.sampled_from([*IDS, "x"]), TEXTS)
    | st.builds(error_line, st.sampled_from(IDS), st.sampled_from([3, 13]))
    | st.sampled_from([b"null", b"", b"{"]),
    max_size=8,
)


@given(LINES, LINES, st.sampled_from([None, SCHEMA]), st.sampled_from([1, 3]))
def test_held_records_are_those_of_the_stored_answers(
    first: list[bytes], second: list[bytes], schema: Any, samples: int
) -> None:
    spec = make_spec(output_schema=schema, samples=Samples(count=samples))
    with closing(RecordSpool(spec)) as records:
        taken = Taken(spec, records, first)
        taken.take(second, "t-a2")
        assert taken.rows(records) == taken.rows(None)


def test_answers_are_not_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = make_spec(output_schema=SCHEMA)
    with closing(RecordSpool(spec)) as records:
        taken = Taken(spec, records, [ok_line(key, '{"n":1}') for key in IDS])
        before = taken.rows(None)

        def gone(*_: object) -> bytes:
            raise AssertionError("a stored answer was read")

        monkeypatch.setattr(taken.store, "response_member", gone)
        assert taken.rows(records) == before
        assert [line for _, line in before] == [b'{"_key":"k%d","n":1}\n' % at for at in range(3)]


def test_a_record_that_tells_of_a_remedy_is_not_held() -> None:
    spec = make_spec(output_schema=SCHEMA)
    failed = make_stored("r9", Outcome.INVALID, remedied_by="r2")

    class Remedied(Outcomes):
        def remedied(self, request_id: str) -> Stored | None:
            return failed if request_id == "r2" else None

    with closing(RecordSpool(spec)) as records:
        attempt = make_attempt("t-a1", job_state=JobState.SUCCEEDED)
        shard = [orjson.dumps({"key": key}) for key in IDS]
        collector = Collector(attempt, Judge.of(spec), shard, Remedied(), records=records.attempt("t-a1"))
        for at, key in enumerate(IDS):
            line = ok_line(key, '{"n":1}')
            collector.line(line, ResponseRef(part=1, member=0, offset=at, length=len(line)))
        collector.finish()
        assert [place is not None for place in records.take(IDS)] == [True, False, True]


def test_an_output_that_is_read_anew_is_held_anew() -> None:
    """A download that broke off left records of lines that may not be there the next time."""
    spec = make_spec(output_schema=SCHEMA)
    with closing(RecordSpool(spec)) as records:
        Taken(spec, records, [ok_line("r1", '{"n":1}'), ok_line("r2", '{"n":2}')])
        again = Taken(spec, records, [ok_line("r3", '{"n":"x"}'), ok_line("r2", '{"n":3}')])
        assert again.rows(records) == again.rows(None)
        assert again.rows(None)[1][1] == b'{"_key":"k1","n":3}\n'


def test_what_broke_off_is_not_held() -> None:
    spec = make_spec(output_schema=SCHEMA)
    with closing(RecordSpool(spec)) as records:
        half = records.attempt("t-a1")
        assert half is not None
        half.add(make_answer("r1", {"n": 1}))
        assert records.take(["r1"]) == [None]


def test_a_request_that_was_answered_twice_is_read_from_the_state() -> None:
    spec = make_spec(output_schema=SCHEMA)
    with closing(RecordSpool(spec)) as records:
        taken = Taken(spec, records, [ok_line(key, '{"n":1}') for key in IDS])
        taken.take([ok_line("r2", '{"n":2}')], "t-a2")
        rows = taken.rows(records)
        assert rows == taken.rows(None)
        assert rows[1][1] == b'{"_key":"k1","n":2}\n'


def test_what_a_second_job_answers_leaves_the_records_of_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = make_spec(output_schema=SCHEMA)
    with closing(RecordSpool(spec)) as records:
        taken = Taken(
            spec, records, [ok_line("r1", '{"n":1}'), error_line("r2", 13), ok_line("r3", '{"n":3}')]
        )
        taken.take([ok_line("r2", '{"n":2}')], "t-a2")
        monkeypatch.delattr(Store, "response_member")
        assert [line for _, line in taken.rows(records)] == [
            b'{"_key":"k%d","n":%d}\n' % (n, n + 1) for n in range(3)
        ]


def test_records_are_given_whatever_order_they_came_in() -> None:
    spec = make_spec(output_schema=SCHEMA)
    ids = [f"r{n}" for n in range(3000)]
    shuffled = random.Random(1).sample(ids, len(ids))
    with closing(RecordSpool(spec)) as records:
        adder = records.attempt("t-a1")
        assert adder is not None
        for request_id in shuffled:
            adder.add(make_answer(request_id, {"n": int(request_id[1:])}))
        adder.seal(ids)
        for request_id, place in zip(ids, records.take(ids), strict=True):
            assert place is not None
            assert json.loads(records.fields(place)) == {"n": int(request_id[1:])}
        assert records.take(ids) == [None] * len(ids)


SHORT_RECORDS = """
import resource
from contextlib import closing
from builders import make_spec, ok_line
from runner.recordspool import RecordSpool
from runner.results import Judge

spec = make_spec(output_schema={"type": "object"})
judge = Judge.of(spec)
with closing(RecordSpool(spec)) as records:
    adder = records.attempt("t-a1")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(40_000):
        adder.add(judge.line(ok_line(f"r{number:032}", '{"n":1}')))
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_short_records_take_little_memory() -> None:
    here = Path(__file__).resolve().parent
    environ = {**os.environ, "PYTHONPATH": f"{here}{os.pathsep}{here.parent}"}
    got = subprocess.run(
        [sys.executable, "-c", SHORT_RECORDS], env=environ, capture_output=True, text=True, check=True
    )
    assert int(got.stdout) < 25, got.stdout
