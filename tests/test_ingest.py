"""What came back joined with what was sent: every request gets exactly one outcome."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import orjson
import pytest
from builders import Outcomes, error_line, make_attempt, make_stored, ok_line
from hypothesis import given
from hypothesis import strategies as st

from runner.ingest import ATTEMPT_ERROR_CODES, Collector, Ingested, failed_as_a_whole
from runner.model import Attempt, JobState, Outcome, ResponseRef, Stored
from runner.parts import load_outcome
from runner.results import Judge
from runner.specmodel import Failures
from runner.statefile import dump_attempt, load_attempt

DONE = make_attempt(job_state=JobState.SUCCEEDED)


def ingest(
    sent: Sequence[str],
    lines: Sequence[bytes],
    attempt: Attempt = DONE,
    before: Mapping[str, Stored] | None = None,
    schema: Any = None,
) -> tuple[Ingested, dict[str, Stored]]:
    shard = [orjson.dumps({"key": key, "request": {}}) for key in sent]
    collector = Collector(attempt, Judge(schema), shard, Outcomes(before or {}))
    for number, line in enumerate(lines):
        collector.line(line, ResponseRef(part=1, member=0, offset=number, length=len(line)))
    found = collector.finish()
    return found, {s.request_id: s for s in map(load_outcome, found.lines)}


def test_outcomes_are_in_the_order_that_was_sent() -> None:
    lines = [ok_line("r3", "c"), error_line("r1", 13), ok_line("r2", "b")]
    found, stored = ingest(["r1", "r2", "r3"], lines)

    assert list(stored) == ["r1", "r2", "r3"]
    assert found.outcomes == {"transient": 1, "ok": 2}
    assert [s.ref and s.ref.offset for s in stored.values()] == [1, 2, 0]
    assert {s.token for s in stored.values()} == {DONE.token}
    assert found.usage == {"prompt": 22, "output": 10, "thoughts": 6}


def test_counts_are_kept_with_the_attempt() -> None:
    for lines in ([], [ok_line("r1", "x"), error_line("r2", 13)]):
        found, _ = ingest(["r1", "r2"], lines)
        kept = replace(DONE, outcomes=found.outcomes, strays=found.strays)
        assert load_attempt(dump_attempt(kept), "attempt") == kept


def test_lines_that_answer_nothing_are_counted_and_named() -> None:
    lines = [b"", b"  ", b"null", b"[]", b"{", b'{"a":1}', ok_line("stranger", "x"), ok_line("r1", "x")]
    found, _ = ingest(["r1"], lines)

    assert found.outcomes == {"ok": 1}
    assert found.strays == {"null": 1, "not an object": 1, "unreadable": 1, "no key": 1, "extra": 1}


@pytest.mark.parametrize(
    ("lines", "outcome", "at", "duplicates"),
    [
        ([ok_line("r", "one"), ok_line("r", "two")], Outcome.OK, 0, 1),
        ([ok_line("r", "one"), error_line("r", 3)], Outcome.OK, 0, 1),
        ([error_line("r", 3), ok_line("r", "one"), ok_line("r", "two")], Outcome.OK, 1, 2),
        ([error_line("r", 3), error_line("r", 13)], Outcome.REJECTED, 0, 1),
        ([error_line("r", 13), error_line("r", 3)], Outcome.TRANSIENT, 0, 1),
    ],
)
def test_the_first_ok_wins(lines: list[bytes], outcome: Outcome, at: int, duplicates: int) -> None:
    found, stored = ingest(["r"], lines)

    assert stored["r"].outcome is outcome
    assert stored["r"].ref is not None
    assert stored["r"].ref.offset == at
    assert found.outcomes == {outcome: 1}
    assert found.strays == {"duplicate": duplicates}


@pytest.mark.parametrize(
    ("state", "error_code", "code"),
    [
        (JobState.SUCCEEDED, 0, "NO_LINE"),
        (JobState.PARTIAL, 0, "NO_LINE"),
        (JobState.EXPIRED, 0, "JOB_EXPIRED"),
        (JobState.CANCELLED, 0, "JOB_CANCELLED"),
        (JobState.FAILED, 0, "JOB_FAILED"),
        (JobState.FAILED, 4, "DEADLINE_EXCEEDED"),
        (JobState.FAILED, 8, "RESOURCE_EXHAUSTED"),
        (JobState.FAILED, 10, "ABORTED"),
        (JobState.FAILED, 13, "INTERNAL"),
        (JobState.FAILED, 14, "UNAVAILABLE"),
    ],
)
def test_what_did_not_come_back_is_missing(state: JobState, error_code: int, code: str) -> None:
    attempt = make_attempt(job_state=state, error_code=error_code, error="words")
    found, stored = ingest(["r1", "r2"], [ok_line("r1", "x")], attempt)

    assert not failed_as_a_whole(attempt)
    assert found.outcomes == {"ok": 1, "missing": 1}
    missing = stored["r2"]
    assert (missing.outcome, missing.code, missing.ref, missing.jobs) == (Outcome.MISSING, code, None, 1)
    assert missing.retryable(Failures().retry)
    assert missing.message


@pytest.mark.parametrize("error_code", sorted(ATTEMPT_ERROR_CODES))
def test_a_job_that_failed_as_a_whole_blames_no_row(error_code: int) -> None:
    attempt = make_attempt(job_state=JobState.FAILED, error_code=error_code)
    found, stored = ingest(["r1", "r2", "r3"], [ok_line("r2", "x")], attempt, {"r1": make_stored("r1")})

    assert failed_as_a_whole(attempt)
    assert sum(found.outcomes.values()) == len(found.lines) == 1
    assert found.outcomes == {"ok": 1}
    assert list(stored) == ["r2"]


@pytest.mark.parametrize(
    ("lines", "seen"), [([error_line("r", 3)], "rejected"), ([], "missing"), ([ok_line("r")], "transient")]
)
def test_a_failed_replacement_never_displaces_an_ok(lines: list[bytes], seen: str) -> None:
    ref = ResponseRef(part=3, member=7, offset=9, length=11)
    before = make_stored("r", token="old", jobs=2, ref=ref, usage={"prompt": 1}, model_version="m")
    found, stored = ingest(["r"], lines, before={"r": before})

    assert found.outcomes == {seen: 1}
    assert stored["r"] == make_stored(
        "r", token="old", jobs=3, ref=ref, usage={"prompt": 1}, model_version="m"
    )


@pytest.mark.parametrize("outcome", [o for o in Outcome if o is not Outcome.BAD_INPUT])
def test_an_ok_replaces_whatever_was_there(outcome: Outcome) -> None:
    _, stored = ingest(["r"], [ok_line("r", "new")], before={"r": make_stored("r", outcome, token="old")})

    assert (stored["r"].outcome, stored["r"].token, stored["r"].jobs) == (Outcome.OK, DONE.token, 2)


@pytest.mark.parametrize(("lines", "jobs"), [([error_line("r", 13)], 3), ([], 3), ([ok_line("r", "x")], 3)])
def test_finished_jobs_are_counted_per_request(lines: list[bytes], jobs: int) -> None:
    _, stored = ingest(["r"], lines, before={"r": make_stored("r", Outcome.TRANSIENT, jobs=2)})

    assert stored["r"].jobs == jobs


LINES = st.lists(
    st.builds(ok_line, st.sampled_from(["r1", "r2", "r3", "x"]), st.sampled_from(["", "{}", '{"a":1}', "no"]))
    | st.builds(error_line, st.sampled_from(["r1", "r2", "r3", "x"]), st.sampled_from([3, 13]))
    | st.sampled_from([b"null", b"", b"{", b"[]"]),
    max_size=12,
)


@given(LINES, st.sampled_from([s for s in JobState if s.terminal]), st.sampled_from([0, 3, 13]))
def test_the_counts_add_up(lines: list[bytes], state: JobState, error_code: int) -> None:
    attempt = make_attempt(job_state=state, error_code=error_code)
    schema = {"type": "object", "required": ["a"]}
    found, stored = ingest(["r1", "r2", "r3"], lines, attempt, schema=schema)

    assert sum(found.outcomes.values()) == len(found.lines) == len(stored)
    assert len(stored) == 3 or failed_as_a_whole(attempt)
    answered = sum(1 for s in stored.values() if s.outcome is not Outcome.MISSING)
    assert answered + sum(found.strays.values()) == sum(1 for line in lines if line.strip())
    for s in stored.values():
        own = [Judge(schema).line(line) for line in lines]
        classes = [a.outcome for a in own if getattr(a, "request_id", "") == s.request_id]
        expected = Outcome.OK if Outcome.OK in classes else classes[0] if classes else Outcome.MISSING
        assert s.outcome is expected


def test_a_second_failure_keeps_what_was_sent_in_its_place() -> None:
    before = make_stored("r1", Outcome.TRUNCATED, remedied_by="r2", remedy={"maxOutputTokens": 200})
    for line in ([error_line("r1", 8)], []):
        _, stored = ingest(["r1"], line, before={"r1": before})
        assert (stored["r1"].remedied_by, stored["r1"].remedy) == ("r2", {"maxOutputTokens": 200})
        assert stored["r1"].jobs == 2
    _, stored = ingest(["r1"], [ok_line("r1", "x")], before={"r1": before})
    assert stored["r1"].remedied_by == ""
