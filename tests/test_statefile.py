"""The root and the attempts as bytes: what is written is read, and what was damaged is refused."""

from __future__ import annotations

import re
from typing import Any

import orjson
import pytest
from builders import LINEAGE, make_attempt, make_state
from hypothesis import given
from hypothesis import strategies as st

from runner.errors import StateUnreadable
from runner.model import Attempt, AttemptState, Export, JobState, State
from runner.statefile import dump_attempt, dump_state, load_attempt, load_state, token

TEXT = st.text(max_size=6)
COUNTS = st.dictionaries(TEXT, st.integers(0, 2**53), max_size=3)
TIME = st.floats(0, 2**40, allow_nan=False)
EXPORTS = st.builds(
    Export,
    rows=TEXT,
    outcome_count=st.integers(0, 99),
    judge=TEXT,
    files=st.dictionaries(TEXT, st.tuples(TEXT, st.integers(0, 2**53)), max_size=2),
)
STATES = st.builds(
    make_state,
    serial=st.integers(0, 2**53),
    name=TEXT,
    env=st.none() | TEXT,
    rows=TEXT,
    outcomes=st.lists(TEXT, max_size=3).map(tuple),
    export=st.none() | EXPORTS,
    last_apply_at=TIME,
)
ATTEMPTS = st.builds(
    make_attempt,
    state=st.sampled_from(AttemptState),
    job_state=st.none() | st.sampled_from(JobState),
    created_at=TIME,
    posted_at=TIME,
    deferrals=st.integers(0, 99),
    adopted=st.booleans(),
    error=TEXT,
    error_code=st.integers(0, 16),
    outcomes=COUNTS,
    strays=COUNTS,
)
FULL_STATE = make_state(
    outcomes=("outcomes/1.jsonl.gz", "outcomes/2.jsonl.gz"),
    rows="rows/1.jsonl.gz",
    export=Export(rows="rows/1.jsonl.gz", outcome_count=2, judge="j", files={"out.jsonl": ("d", 3)}),
)
FULL_ATTEMPT = make_attempt(job_state=JobState.RUNNING, job_name="batches/1", outcomes={"ok": 1})
BOTH = [(dump_state, load_state, FULL_STATE), (dump_attempt, load_attempt, FULL_ATTEMPT)]
both = pytest.mark.parametrize(("dump", "load", "value"), BOTH, ids=["state", "attempt"])


@given(STATES)
def test_states_round_trip(state: State) -> None:
    assert load_state(dump_state(state), "state.json") == state


@given(ATTEMPTS)
def test_attempts_round_trip(attempt: Attempt) -> None:
    assert load_attempt(dump_attempt(attempt), "a.json") == attempt


@both
def test_the_same_value_has_the_same_bytes(dump: Any, load: Any, value: Any) -> None:
    assert dump(value) == dump(load(dump(value), "x"))
    assert dump(value).endswith(b"}\n")


@both
def test_cut_at_any_byte(dump: Any, load: Any, value: Any) -> None:
    data = dump(value)
    for end in range(len(data) - 1):
        with pytest.raises(StateUnreadable, match=re.escape("here/x.json")):
            load(data[:end], "here/x.json")
    assert load(data[:-1], "x") == value  # without its last newline


@both
def test_an_edited_byte_is_refused_or_does_not_matter(dump: Any, load: Any, value: Any) -> None:
    data = dump(value)
    refused = 0
    for position in range(len(data)):
        for change in (0x01, 0x20):
            edited = bytearray(data)
            edited[position] ^= change
            try:
                assert load(bytes(edited), "x") == value, position
            except StateUnreadable:
                refused += 1
    assert refused > len(data)


@pytest.mark.parametrize(
    "edit",
    [
        {"serial": 2},
        {"serial": "1"},
        {"lineage": "f" * 32},
        {"outcomes": []},
        {"digest": "0" * 64},
        {"digest": None},
        {"kind": "attempt"},
        {"more": 1},
    ],
)
def test_an_edited_field_is_refused(edit: dict[str, Any]) -> None:
    body = {**orjson.loads(dump_state(FULL_STATE)), **edit}
    with pytest.raises(StateUnreadable):
        load_state(orjson.dumps(body), "state.json")


@pytest.mark.parametrize("version", [0, 2, 99, "1", None, True])
@both
def test_another_version_is_refused_with_a_next_step(dump: Any, load: Any, value: Any, version: Any) -> None:
    body = {**orjson.loads(dump(value)), "version": version}
    with pytest.raises(StateUnreadable) as caught:
        load(orjson.dumps(body), "state.json")

    if version is not True:
        assert f"format version {version!r}" in caught.value.message
        assert "newer" in caught.value.hint


@pytest.mark.parametrize(
    "data", [b"", b"null", b"[]", b"{}", b'"x"', b"\xff", b"{" * 9999, b'{"kind":"state"}']
)
@pytest.mark.parametrize("load", [load_state, load_attempt])
def test_what_is_no_file_of_gbrun_is_refused(load: Any, data: bytes) -> None:
    with pytest.raises(StateUnreadable):
        load(data, "x")


def test_a_state_is_not_taken_for_an_attempt() -> None:
    with pytest.raises(StateUnreadable):
        load_attempt(dump_state(FULL_STATE), "x")
    with pytest.raises(StateUnreadable):
        load_state(dump_attempt(FULL_ATTEMPT), "x")


@given(st.text("0123456789abcdef", min_size=64, max_size=64), st.integers(1, 99_999_999))
def test_tokens_are_legal_everywhere(shard_id: str, number: int) -> None:
    found = token(LINEAGE, shard_id, number)

    assert len(found) <= 40
    assert re.fullmatch(r"[a-z][a-z0-9-]*[a-z0-9]", found)
    assert found == f"gb1-{LINEAGE[:8]}-{shard_id[:16]}-a{number}"
