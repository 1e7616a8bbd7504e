"""The state's files as every version wrote them: pinned bytes that must load for ever.

A change that fails here is a change of the format: raise `statefile.VERSION`, upgrade while reading,
and pin the files of the new version in a folder beside `v1`. These never change.
"""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest

from runner import parts, rowtable, statefile
from runner.model import (
    Attempt,
    AttemptState,
    Export,
    JobState,
    Outcome,
    ResponseRef,
    State,
    Stored,
)
from runner.rowtable import KnownRow

GOLDEN = Path(__file__).parent / "golden/state"
VERSIONS = sorted(path.name for path in GOLDEN.iterdir())
TOKEN = "gb1-01234567-89abcdef01234567-a2"
STATE = State(
    lineage="0123456789abcdef0123456789abcdef",
    serial=41,
    name="tickets",
    env="prod",
    spec_digest="5" * 32,
    principal="gemini:generativelanguage.googleapis.com:1a2b3c4d",
    rows="rows/7.jsonl.gz",
    outcomes=("outcomes/1.jsonl.gz", "outcomes/3.jsonl.gz"),
    export=Export(
        rows="rows/7.jsonl.gz",
        outcome_count=2,
        judge="j" * 32,
        files={"out/tickets.jsonl": ("d" * 64, 1234), "out/tickets.errors.jsonl": ("e" * 64, 56)},
    ),
    last_apply_at=1_800_000_000.25,
)
ATTEMPT = Attempt(
    token=TOKEN,
    shard_id="89abcdef01234567" * 4,
    number=2,
    state=AttemptState.CLEANED,
    model="gemini-3.5-flash-lite",
    request_count=3,
    byte_count=456,
    created_at=1_800_000_000.0,
    upload_name=f"files/{TOKEN}",
    posted_at=1_800_000_001.5,
    deferrals=1,
    job_name="batches/abc",
    job_state=JobState.SUCCEEDED,
    output_name="files/batch-abc",
    adopted=True,
    clean_listings=1,
    outcomes={"ok": 2, "missing": 1},
    strays={"null": 1},
)
ROWS = [
    KnownRow(1, "inputs/a.txt", "a" * 64, "c0ffee", f'[[0,0,"r{"1" * 32}"]]', "ok", "", None),
    KnownRow(0, "inputs/é 𝄞.txt", "b" * 64, "c0ffee", f'[[0,0,"r{"2" * 32}"]]', "missing", "", None),
    KnownRow(
        2, "inputs/z.txt", "", "c0ffee", "[]", "bad_input", '["encoding","not UTF-8","inputs/z.txt",0]', None
    ),
]
OUTCOMES = [
    Stored(
        request_id="r" + "1" * 32,
        outcome=Outcome.OK,
        token=TOKEN,
        jobs=1,
        ref=ResponseRef(part=1, member=0, offset=0, length=321),
        usage={"prompt": 11, "output": 5, "thoughts": 3},
        model_version="gemini-3.5-flash-lite",
        finish_reason="STOP",
    ),
    Stored(
        request_id="r" + "2" * 32,
        outcome=Outcome.MISSING,
        token=TOKEN,
        jobs=3,
        code="JOB_EXPIRED",
        message="the job expired before this request was answered",
        accepted=True,
    ),
    Stored(
        request_id="r" + "3" * 32,
        outcome=Outcome.INVALID,
        token=TOKEN,
        jobs=1,
        code="SCHEMA",
        message="/mood: é is not one of good, bad",
        ref=ResponseRef(part=2, member=1048, offset=77, length=9),
    ),
]
every_version = pytest.mark.parametrize("version", VERSIONS)


def test_every_version_is_pinned() -> None:
    assert [f"v{number}" for number in range(1, statefile.VERSION + 1)] == VERSIONS


@every_version
def test_a_root_of_any_version_loads(version: str) -> None:
    assert statefile.load_state((GOLDEN / version / "state.json").read_bytes(), "state.json") == STATE


@every_version
def test_an_attempt_of_any_version_loads(version: str) -> None:
    assert statefile.load_attempt((GOLDEN / version / "attempt.json").read_bytes(), "a.json") == ATTEMPT


@every_version
def test_a_rows_snapshot_of_any_version_loads(version: str) -> None:
    header, *lines = (GOLDEN / version / "rows.jsonl").read_bytes().splitlines()
    assert orjson.loads(header)["components"]["c0ffee"] == {
        "spec": "5" * 32,
        "digests": {"model": "m1", "prompt": "p1"},
    }
    assert [rowtable.from_line(line) for line in lines] == ROWS


@every_version
def test_an_outcomes_segment_of_any_version_loads(version: str) -> None:
    header, *lines = (GOLDEN / version / "outcomes.jsonl").read_bytes().splitlines()
    assert orjson.loads(header)["token"] == TOKEN
    assert orjson.loads(header)["summary"]["strays"] == {"null": 1}
    assert [parts.load_outcome(line) for line in lines] == OUTCOMES


def test_the_newest_version_is_what_is_written() -> None:
    """Byte for byte, but for the headers of the parts: those have tests of their own."""
    folder = GOLDEN / VERSIONS[-1]
    assert statefile.dump_state(STATE) == (folder / "state.json").read_bytes()
    assert statefile.dump_attempt(ATTEMPT) == (folder / "attempt.json").read_bytes()
    rows = b"".join(row.line() for row in ROWS)
    assert rows == (folder / "rows.jsonl").read_bytes().partition(b"\n")[2]
    outcomes = b"".join(map(parts.dump_outcome, OUTCOMES))
    assert outcomes == (folder / "outcomes.jsonl").read_bytes().partition(b"\n")[2]
