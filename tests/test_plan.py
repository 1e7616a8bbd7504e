"""Old state and new rows give actions, reasons and shards; planning again after an apply gives nothing."""

from __future__ import annotations

import gc
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
from builders import Past, changes, make_attempt, make_spec, make_stored, request_ids, spooled
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from msgspec import structs

from runner.errors import InputUnreadable, UsageInvalid
from runner.globs import Selector
from runner.model import Action, AttemptState, BadRow, Outcome, Plan
from runner.plan import RowsUnreadable, Selection
from runner.specmodel import Failures, FilesSource, Guards, Samples, ShardLimits, Spec

A = Action
DOCS = {"a.txt": "alpha", "b.txt": "beta", "c.txt": "gamma"}
WITH_PATH = "{{ input.path }}: {{ input.text }}"
SKIP = (FilesSource(glob="**/*.txt", on_bad_row="skip"),)
LOOSE = Guards(max_removed_ratio=1.0, min_rows=0)


@pytest.fixture
def past(tmp_path: Path) -> Iterator[Past]:
    found = Past(tmp_path)
    yield found
    found.close()


def after(past: Past, documents: Any = DOCS, spec: Spec | None = None, **ends: Outcome) -> Past:
    """A state in which documents were applied; `ends` gives outcomes by the key's first letter."""
    made = past.plan(documents, spec)
    given = {}
    for row in spooled(made):
        outcome = ends.get(row.key[0])
        if outcome is not None and row.wanted:
            request_id = row.wanted[0].request_id
            given[request_id] = make_stored(request_id, outcome, code=outcome.upper())
    past.finish(made, given)
    return past


def counts(made: Plan) -> dict[str, int]:
    return {str(action): count for action, count in made.counts.items()}


# ---------------------------------------------------------------- one class at a time


def test_a_first_plan_is_all_new(past: Past) -> None:
    made = past.plan(DOCS)

    assert changes(made) == [(A.NEW, key, (), "") for key in DOCS]
    assert (made.row_count, made.request_count, made.prior_row_count) == (3, 3, 0)
    assert made.reexport == ("never written",)
    assert made.has_changes
    assert len(set(request_ids(made))) == 3


def test_nothing_changed(past: Past) -> None:
    made = after(past).plan(DOCS)

    assert counts(made) == {"unchanged": 3}
    assert (made.shards, made.reexport, made.rows_path) == ((), (), None)
    assert not made.has_changes


def test_a_new_row(past: Past) -> None:
    made = after(past).plan({"0.txt": "zero", **DOCS})

    assert counts(made) == {"unchanged": 3, "new": 1}
    assert changes(made) == [(A.NEW, "0.txt", (), "")]
    assert made.request_count == 1


BASE: dict[str, Any] = {
    "prompt": WITH_PATH,
    "system_instruction": "s",
    "output_schema": {"type": "object"},
    "generation_config": {"temperature": 0.1},
}


@pytest.mark.parametrize(
    ("change", "reasons"),
    [
        ({"model": "other"}, ("model",)),
        ({"prompt": "{{ input.text }} {{ input.path }}"}, ("prompt",)),
        ({"system_instruction": "t"}, ("system_instruction",)),
        ({"system_instruction": None}, ("system_instruction",)),
        ({"output_schema": {"type": "array"}}, ("output_schema",)),
        ({"output_schema": None}, ("output_schema",)),
        ({"generation_config": {"temperature": 0.2}}, ("generation_config",)),
        ({"tools": ({"google_search": {}},)}, ("tools",)),
        ({"tool_config": {"a": 1}}, ("tool_config",)),
        ({"safety_settings": ({"a": 1},)}, ("safety_settings",)),
        ({"cached_content": "x"}, ("cached_content",)),
        ({"extra_body": {"labels": {"a": "b"}}}, ("extra_body",)),
        ({"task": "embed_content"}, ("task",)),
        (
            {"model": "other", "generation_config": {}, "tools": ({"x": {}},)},
            ("model", "generation_config", "tools"),
        ),
    ],
)
def test_a_component_reruns_every_row_and_is_named(past: Past, change: Any, reasons: tuple[str, ...]) -> None:
    made = after(past, spec=make_spec(**BASE)).plan(DOCS, make_spec(**{**BASE, **change}))

    assert changes(made) == [(A.RERUN, key, reasons, "") for key in DOCS]
    assert made.request_count == 3
    assert dict(made.reasons) == {(A.RERUN, reasons): 3}


@pytest.mark.parametrize("name", ["variables", "env"])
def test_a_value_that_the_prompt_shows_is_a_component(past: Past, name: str) -> None:
    prompt = "{{ var.tone }} {{ env }} {{ input.text }}"
    before = make_spec(prompt=prompt, variables={"tone": "warm", "other": 1}, env="dev")
    change = {"variables": {"tone": "cold", "other": 2}} if name == "variables" else {"env": "prod"}
    made = after(past, spec=before).plan(DOCS, replace(before, **change))

    assert {c[2] for c in changes(made)} == {(name,)}


def test_what_a_request_does_not_show_reruns_nothing(past: Past) -> None:
    before = make_spec(prompt="{{ input.text }}", variables={"a": 1})
    now = replace(before, variables={"a": 2}, description="d", max_jobs=1, env="other")
    made = after(past, spec=before).plan(DOCS, now)

    assert counts(made) == {"unchanged": 3}
    assert not made.has_changes


def test_an_input_that_changed_reruns_its_row_alone(past: Past) -> None:
    made = after(past).plan({**DOCS, "b.txt": "BETA"})

    assert changes(made) == [(A.RERUN, "b.txt", ("input",), "")]
    assert made.request_count == 1


def test_component_and_input(past: Past) -> None:
    made = after(past).plan({**DOCS, "b.txt": "BETA"}, make_spec(model="other"))

    assert [c[2] for c in changes(made)] == [("model",), ("model", "input"), ("model",)]


def test_a_move_costs_nothing_where_the_prompt_does_not_show_the_path(past: Past) -> None:
    made = after(past).plan({"a.txt": "alpha", "b.txt": "beta", "z.txt": "gamma"})

    assert changes(made) == [(A.REUSED, "z.txt", (), "c.txt")]
    assert counts(made) == {"unchanged": 2, "reused": 1}
    assert (made.shards, made.refusals) == ((), ())
    assert made.has_changes


def test_a_move_reruns_where_the_prompt_shows_the_path(past: Past) -> None:
    spec = make_spec(prompt=WITH_PATH)
    made = after(past, spec=spec).plan({"a.txt": "alpha", "b.txt": "beta", "z.txt": "gamma"}, spec)

    assert changes(made) == [(A.RERUN, "z.txt", ("input",), "c.txt")]
    assert counts(made) == {"unchanged": 2, "rerun": 1}
    assert made.refusals == ()


@pytest.mark.parametrize("outcome", [Outcome.REJECTED, Outcome.TRANSIENT])
def test_the_move_of_a_row_that_failed_is_no_removal(past: Past, outcome: Outcome) -> None:
    made = after(past, c=outcome).plan({"a.txt": "alpha", "b.txt": "beta", "z.txt": "gamma"})

    assert A.REMOVED not in made.counts
    assert made.refusals == ()


def test_a_reverted_prompt_finds_its_old_results(past: Past) -> None:
    first, second = make_spec(prompt="1 {{ input.text }}"), make_spec(prompt="2 {{ input.text }}")
    after(after(past, spec=first), spec=second)
    made = past.plan(DOCS, first)

    assert counts(made) == {"reused": 3}
    assert made.shards == ()


def test_identical_documents_are_one_request(past: Past) -> None:
    made = past.plan({"a.txt": "same", "b.txt": "same", "c.txt": "other"})

    assert changes(made) == [
        (A.NEW, "a.txt", (), ""),
        (A.NEW, "b.txt", (), "a.txt"),
        (A.NEW, "c.txt", (), ""),
    ]
    assert made.request_count == 2


def test_a_document_that_another_key_paid_for_is_reused(past: Past) -> None:
    made = after(past).plan({**DOCS, "d.txt": "alpha"})

    assert changes(made) == [(A.REUSED, "d.txt", (), "a.txt")]
    assert made.shards == ()


def test_a_removed_row(past: Past) -> None:
    made = after(past).plan({"a.txt": "alpha", "c.txt": "gamma"}, make_spec(guards=LOOSE))

    assert changes(made) == [(A.REMOVED, "b.txt", (), "")]
    assert counts(made) == {"unchanged": 2, "removed": 1}
    assert made.has_changes
    assert [r.key for r in spooled(made)] == ["a.txt", "c.txt"]


@pytest.mark.parametrize(
    ("outcome", "jobs", "action"),
    [
        (Outcome.TRANSIENT, 1, A.RETRY),
        (Outcome.MISSING, 2, A.RETRY),
        (Outcome.TRANSIENT, 3, A.FAILED),
        (Outcome.MISSING, 4, A.FAILED),
        (Outcome.INVALID, 1, A.FAILED),
        (Outcome.UNPARSEABLE, 1, A.FAILED),
        (Outcome.TRUNCATED, 1, A.FAILED),
        (Outcome.BLOCKED, 1, A.FAILED),
        (Outcome.REJECTED, 1, A.FAILED),
    ],
)
def test_what_did_not_end_well(past: Past, outcome: Outcome, jobs: int, action: Action) -> None:
    first = past.plan(DOCS)
    (request_id, *_) = request_ids(first)
    past.finish(first, {request_id: make_stored(request_id, outcome, jobs=jobs, code="WHY")})
    made = past.plan(DOCS)

    assert made.counts == {A.UNCHANGED: 2, action: 1}
    assert request_ids(made) == ([request_id] if action is A.RETRY else [])
    assert dict(made.failed) == ({} if action is A.RETRY else {outcome: 1})
    assert made.has_changes == (action is A.RETRY)
    if action is A.RETRY:
        assert changes(made) == [(A.RETRY, "a.txt", ("WHY",), "")]


def test_attempts_are_counted_against_the_spec_of_now(past: Past) -> None:
    after(past, a=Outcome.TRANSIENT)

    assert past.plan(DOCS, make_spec(failures=Failures(max_attempts=1))).counts[A.FAILED] == 1
    assert past.plan(DOCS, make_spec(failures=Failures(max_attempts=2))).counts[A.RETRY] == 1


@pytest.mark.parametrize(
    "documents",
    [
        {**DOCS, "a.txt": BadRow("a.txt", "encoding", "m")},
        {**DOCS, "z.txt": BadRow("z.txt", "encoding", "m")},
    ],
    ids=["was ok", "is new"],
)
def test_a_row_that_turned_bad_changes_the_destination(past: Past, documents: Any) -> None:
    spec = make_spec(inputs=SKIP)
    made = after(past, spec=spec).plan(documents, spec)

    assert made.counts[A.FAILED] == 1
    assert made.has_changes


def test_a_failed_row_is_told_wherever_it_stands(past: Past) -> None:
    after(past, b=Outcome.REJECTED)
    changed_before = past.plan({**DOCS, "a.txt": "ALPHA"})
    changed_after = past.plan({**DOCS, "c.txt": "GAMMA"})

    assert (A.FAILED in changed_before.samples) == (A.FAILED in changed_after.samples)


# ---------------------------------------------------------------- in flight


def test_rows_in_flight_wait(past: Past) -> None:
    (attempt,) = past.launch(past.plan(DOCS))
    made = past.plan({**DOCS, "d.txt": "delta"})

    assert counts(made) == {"in_flight": 3, "new": 1}
    assert made.live_tokens == {attempt.token}
    assert (made.superseded_count, made.request_count) == (0, 1)
    assert made.has_changes


def test_what_is_in_flight_and_no_longer_wanted_is_superseded(past: Past) -> None:
    past.launch(past.plan(DOCS))
    made = past.plan({**DOCS, "a.txt": "ALPHA"})

    assert counts(made) == {"in_flight": 2, "new": 1}
    assert made.superseded_count == 1
    back = past.plan(DOCS)
    assert (counts(back), back.superseded_count) == ({"in_flight": 3}, 0)


@pytest.mark.parametrize("state", [s for s in AttemptState if not s.live])
def test_an_attempt_that_ended_holds_nothing(past: Past, state: AttemptState) -> None:
    (attempt,) = past.launch(past.plan(DOCS))
    past.attempts = [replace(attempt, state=state)]

    assert counts(past.plan(DOCS)) == {"new": 3}


# ---------------------------------------------------------------- selectors


def select(**patterns: str) -> Selection:
    return Selection(**{name: Selector(f"--{name}", [pattern]) for name, pattern in patterns.items()})


def test_replace_runs_again_what_is_settled(past: Past) -> None:
    made = after(past).plan(DOCS, selection=select(replace="[ab].txt"))

    assert changes(made) == [(A.RERUN, "a.txt", ("replace",), ""), (A.RERUN, "b.txt", ("replace",), "")]
    assert made.request_count == 2


def test_replace_leaves_what_is_in_flight(past: Past) -> None:
    past.launch(past.plan(DOCS))

    assert counts(past.plan(DOCS, selection=select(replace="*"))) == {"in_flight": 3}


def test_target_narrows(past: Past) -> None:
    made = after(past).plan(
        {"a.txt": "ALPHA", "c.txt": "GAMMA", "d.txt": "delta"}, selection=select(target="[ad].txt")
    )

    assert changes(made) == [(A.RERUN, "a.txt", ("input",), ""), (A.NEW, "d.txt", (), "")]
    assert counts(made) == {"unchanged": 2, "rerun": 1, "new": 1}
    assert sorted(r.key for r in spooled(made)) == ["a.txt", "b.txt", "c.txt", "d.txt"]
    assert past.read_keys == ["a.txt", "d.txt"]


def test_target_removes_only_what_it_names(past: Past) -> None:
    documents = {"c.txt": "gamma"}
    spec = make_spec(guards=LOOSE)
    made = after(past).plan(documents, spec, selection=select(target="[ac].txt"))

    assert counts(made) == {"unchanged": 2, "removed": 1}
    assert changes(made) == [(A.REMOVED, "a.txt", (), "")]


@pytest.mark.parametrize("name", ["target", "replace"])
def test_a_selector_that_matches_nothing_is_an_error(past: Past, name: str) -> None:
    with pytest.raises(UsageInvalid, match="matches no key"):
        after(past).plan(DOCS, selection=select(**{name: "z*"}))


# ---------------------------------------------------------------- bad rows

BAD = {**DOCS, "b.txt": BadRow("b.txt", "encoding", "is not utf-8")}


def test_a_bad_row_stops_the_plan(past: Past) -> None:
    with pytest.raises(RowsUnreadable) as caught:
        past.plan({**BAD, "d.txt": BadRow("d.txt", "nul_byte", "m")})

    assert [row.key for row in caught.value.rows] == ["b.txt", "d.txt"]
    assert caught.value.count == 2
    assert "on_bad_row: skip" in caught.value.hint


def test_a_plan_that_is_stopped_leaves_no_file_open(past: Past) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ResourceWarning)
        with pytest.raises(RowsUnreadable):
            past.plan(BAD)
        gc.collect()

    assert [w.message for w in caught] == []


def test_many_bad_rows_are_counted_and_some_shown(past: Past) -> None:
    with pytest.raises(RowsUnreadable) as caught:
        past.plan({f"{n}.txt": BadRow(f"{n}.txt", "encoding", "m") for n in range(50)})

    assert (len(caught.value.rows), caught.value.count) == (20, 50)


def test_a_bad_row_is_skipped_where_the_source_says_so(past: Past) -> None:
    spec = make_spec(inputs=SKIP)
    made = past.plan(BAD, spec)

    assert counts(made) == {"failed": 1, "new": 2}
    assert dict(made.failed) == {"bad_input": 1}
    assert made.request_count == 2
    past.finish(made)
    again = past.plan(BAD, spec)
    assert counts(again) == {"unchanged": 2, "failed": 1}
    assert not again.has_changes


def test_a_bad_row_that_was_mended_runs(past: Past) -> None:
    spec = make_spec(inputs=SKIP)
    made = after(past, BAD, spec).plan(DOCS, spec)

    assert made.request_count == 1
    assert [c[:2] for c in changes(made)] == [(A.RERUN, "b.txt")]


def test_data_that_breaks_the_template_is_a_bad_row(past: Past) -> None:
    spec = make_spec(prompt="{{ 10 // (input.text|length - 5) }}", inputs=SKIP)
    made = past.plan({"a.txt": "alpha", "b.txt": "beta"}, spec)
    (bad,) = [row.bad for row in spooled(made) if row.bad]

    assert (bad.key, bad.code, bad.line) == ("a.txt", "template", 7)


def test_a_request_over_the_limit_is_a_bad_row(past: Past) -> None:
    spec = make_spec(inputs=SKIP, shards=ShardLimits(max_requests=9, max_bytes=500))
    made = past.plan({"a.txt": "x" * 1000, "b.txt": "beta"}, spec)

    assert counts(made) == {"failed": 1, "new": 1}
    assert [row.bad.code for row in spooled(made) if row.bad] == ["too_large"]


# ---------------------------------------------------------------- guards


@pytest.mark.parametrize(
    ("documents", "guards", "words"),
    [
        (
            {},
            Guards(),
            ("guards.min_rows is 1, and the inputs give 0 row(s)", "3 of 3 rows would be removed"),
        ),
        (DOCS, Guards(min_rows=4), ("guards.min_rows is 4, and the inputs give 3 row(s)",)),
        (DOCS, Guards(min_rows=3, max_removed_ratio=0.0), ()),
        (
            {"a.txt": "alpha", "b.txt": "beta"},
            Guards(),
            ("1 of 3 rows would be removed, 33%; guards.max_removed_ratio is 0.2",),
        ),
        ({"a.txt": "alpha", "b.txt": "beta"}, Guards(max_removed_ratio=0.34), ()),
        ({"x.txt": "alpha", "y.txt": "beta", "z.txt": "gamma"}, Guards(), ()),
        ({"x.txt": "alpha", "y.txt": "beta", "z.txt": "new"}, Guards(), ("1 of 3 rows would be removed",)),
    ],
)
def test_guards(past: Past, documents: Any, guards: Guards, words: tuple[str, ...]) -> None:
    made = after(past).plan(documents, make_spec(guards=guards))

    assert len(made.refusals) == len(words)
    assert all(w in told for w, told in zip(words, made.refusals, strict=True))


def test_rows_that_cannot_be_used_any_more_count_as_removed(past: Past) -> None:
    # A slip in a template empties the destination as surely as an empty folder does.
    slip = make_spec(prompt="{{ input.txt }}", inputs=SKIP)
    made = after(past, DOCS, make_spec(inputs=SKIP)).plan(DOCS, slip)

    assert made.refusals == (
        "guards.min_rows is 1, and the inputs give 3 row(s), 3 of them unusable",
        "3 of 3 rows would be removed, 100%, 3 of them because they cannot be used any more;"
        " guards.max_removed_ratio is 0.2",
    )
    past.finish(past.plan(DOCS, make_spec(prompt="{{ input.txt }}", inputs=SKIP, guards=LOOSE)))
    assert len(past.plan(DOCS, make_spec(prompt="{{ input.txt }}", inputs=SKIP)).refusals) == 1


# ---------------------------------------------------------------- order, keys, destinations


def test_a_new_order_writes_the_destination_again(past: Past) -> None:
    made = after(past).plan(DOCS, keys=["c.txt", "a.txt", "b.txt"])

    assert counts(made) == {"unchanged": 3}
    assert made.reexport == ("the order of the rows changed",)
    assert [(r.ordinal, r.key) for r in spooled(made)] == [(0, "c.txt"), (1, "a.txt"), (2, "b.txt")]
    past.finish(made)
    assert not past.plan(DOCS, keys=["c.txt", "a.txt", "b.txt"]).has_changes


@pytest.mark.parametrize(
    "known",
    [True, False],
)
def test_two_inputs_with_one_key_are_an_error(past: Past, known: bool) -> None:
    if known:
        after(past)
    with pytest.raises(InputUnreadable, match=r"two inputs have the key 'b\.txt'"):
        past.plan(DOCS, keys=["a.txt", "b.txt", "c.txt", "b.txt"])


@pytest.mark.parametrize(
    ("lies", "reexport"),
    [
        ({"out.jsonl": ("d" * 64, 10)}, ()),
        ({"out.jsonl": ("d" * 64, 10), "out.errors.jsonl": None}, ()),
        ({"out.jsonl": None}, ("out.jsonl is missing",)),
        ({"out.jsonl": ("e" * 64, 10)}, ("out.jsonl was altered",)),
        ({"out.jsonl": ("d" * 64, 11)}, ("out.jsonl was altered",)),
    ],
)
def test_a_destination_that_is_not_as_written_is_a_change(past: Past, lies: Any, reexport: Any) -> None:
    made = after(past).plan(DOCS, destinations=lies)

    assert made.reexport == reexport
    assert made.has_changes == bool(reexport)
    assert counts(made) == {"unchanged": 3}


def test_outcomes_that_came_after_the_export_are_a_change(past: Past) -> None:
    after(past).store_outcomes([make_stored("other")])

    assert past.plan(DOCS).reexport == ("newer outcomes",)


def test_shards_hold_the_requests_in_row_order(past: Past) -> None:
    documents = {f"{n:02d}.txt": f"text {n}" for n in range(10)}
    spec = make_spec(shards=ShardLimits(max_requests=4, max_bytes=10_000))
    made = past.plan(documents, spec)

    assert [shard.request_count for shard in made.shards] == [4, 4, 2]
    assert request_ids(made) == [row.wanted[0].request_id for row in spooled(made)]
    assert made.byte_count == sum(shard.path.stat().st_size for shard in made.shards)


# ---------------------------------------------------------------- the stat signature

SIGNS = {key: (5, 1000 + n, 2000, n) for n, key in enumerate(DOCS)}


def test_what_looks_as_it_did_is_not_read(past: Past) -> None:
    past.finish(past.plan(DOCS, signatures=SIGNS))
    made = past.plan({}, keys=DOCS, signatures=SIGNS)  # reading any of them raises KeyError

    assert past.read_keys == []
    assert counts(made) == {"unchanged": 3}
    assert not made.has_changes


def test_failed_rows_that_look_as_they_did_are_not_read_either(past: Past) -> None:
    first = past.plan(DOCS, signatures=SIGNS)
    bad = request_ids(first)[0]
    past.finish(first, {bad: make_stored(bad, Outcome.REJECTED)})
    made = past.plan({}, keys=DOCS, signatures=SIGNS)

    assert counts(made) == {"unchanged": 2, "failed": 1}
    assert past.read_keys == []


@pytest.mark.parametrize("field", range(4))
def test_what_looks_different_is_read(past: Past, field: int) -> None:
    past.finish(past.plan(DOCS, signatures=SIGNS))
    sign = list(SIGNS["b.txt"])
    sign[field] += 1
    made = past.plan({"b.txt": "BETA"}, keys=DOCS, signatures={**SIGNS, "b.txt": tuple(sign)})

    assert past.read_keys == ["b.txt"]
    assert changes(made) == [(A.RERUN, "b.txt", ("input",), "")]


def test_a_touched_file_is_read_once(past: Past) -> None:
    past.finish(past.plan(DOCS, signatures=SIGNS))
    touched = {**SIGNS, "b.txt": (5, 9999, 9999, 1)}

    assert counts(past.plan(DOCS, signatures=touched)) == {"unchanged": 3}
    assert past.read_keys == ["b.txt"]
    past.plan({}, keys=DOCS, signatures=touched)
    assert past.read_keys == []


@pytest.mark.parametrize("racy", [(5, 5000, 0, 1), (5, 0, 5000, 1)], ids=["mtime", "ctime"])
def test_a_file_that_changed_just_before_is_read_again(past: Past, racy: Any) -> None:
    signs = {**SIGNS, "b.txt": racy}
    past.finish(past.plan(DOCS, signatures=signs, trusted_before_ns=4999))
    past.plan(DOCS, signatures=signs)

    assert past.read_keys == ["b.txt"]


def test_another_spec_reads_everything(past: Past) -> None:
    past.finish(past.plan(DOCS, signatures=SIGNS))
    past.plan(DOCS, make_spec(model="other"), signatures=SIGNS)

    assert past.read_keys == list(DOCS)


def test_a_retry_reads_what_it_sends(past: Past) -> None:
    first = past.plan(DOCS, signatures=SIGNS)
    lost = request_ids(first)[1]
    past.finish(first, {lost: make_stored(lost, Outcome.MISSING)})
    made = past.plan(DOCS, signatures=SIGNS)

    assert request_ids(made) == [lost]
    assert past.read_keys == ["b.txt"]


def test_an_input_that_changes_under_the_plan_stops_it(past: Past) -> None:
    first = past.plan(DOCS, signatures=SIGNS)
    lost = request_ids(first)[1]
    past.finish(first, {lost: make_stored(lost, Outcome.MISSING)})
    with pytest.raises(InputUnreadable, match=r"b\.txt changed while the plan was made"):
        past.plan({**DOCS, "b.txt": "BETA"}, signatures=SIGNS)


LOOKS = st.dictionaries(
    st.sampled_from([f"{c}.txt" for c in "abcdefg"]),
    st.tuples(st.sampled_from("xy"), st.sampled_from([None, 1, 2])),
    max_size=7,
)


@given(LOOKS, LOOKS, st.sampled_from([None, Outcome.REJECTED, Outcome.MISSING]), st.integers(1, 4))
@example(dict.fromkeys(map("{}.txt".format, "abcdefg"), ("x", 1)), {}, None, 3)
@settings(max_examples=60, deadline=None)
def test_inputs_found_at_once_are_planned_as_if_found_one_by_one(
    before: Any, changed: Any, outcome: Any, batch: int
) -> None:
    spec = make_spec(guards=LOOSE, inputs=SKIP)
    seen = []
    for size in (0, batch):
        with tempfile.TemporaryDirectory() as workspace:
            past = Past(Path(workspace))
            lives = []
            for looks in (before, before, {**before, **changed}, changed, changed):
                documents = {key: looks[key][0] for key in sorted(looks)}
                signs = {key: (ord(text), 1, 1, looked) for key, (text, looked) in looks.items() if looked}
                made = past.plan(documents, spec, signatures=signs, batch=size)
                lives.append((made.plan_id, counts(made), made.reasons, made.failed, past.read_keys))
                sent = request_ids(made)
                past.finish(made, {sent[0]: make_stored(sent[0], outcome)} if sent and outcome else {})
            past.close()
            seen.append(lives)

    assert seen[0] == seen[1]


# ---------------------------------------------------------------- invariants

DOCUMENTS = st.dictionaries(
    st.sampled_from([f"{c}.txt" for c in "abcdef"]), st.sampled_from("xyz"), max_size=5
)
SPECS = st.sampled_from(
    [
        make_spec(guards=LOOSE, inputs=SKIP),
        make_spec(guards=LOOSE, inputs=SKIP, prompt=WITH_PATH),
        make_spec(
            guards=LOOSE, inputs=SKIP, model="other", shards=ShardLimits(max_requests=2, max_bytes=10_000)
        ),
    ]
)
ENDS = st.sampled_from([Outcome.OK, Outcome.OK, Outcome.REJECTED, Outcome.TRANSIENT, Outcome.MISSING])


def outcome_of(made: Plan, draw: Callable[[], Outcome]) -> dict[str, Any]:
    return {i: make_stored(i, draw()) for i in request_ids(made)}


@given(st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_plans_are_repeatable_and_an_apply_leaves_nothing_to_do(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    past = Past(tmp_path_factory.mktemp("past"))
    try:
        for _ in range(data.draw(st.integers(0, 2), "rounds")):
            made = past.plan(data.draw(DOCUMENTS), data.draw(SPECS))
            past.finish(made, outcome_of(made, lambda: data.draw(ENDS)))
        documents, spec = data.draw(DOCUMENTS), data.draw(SPECS)
        made, twin = past.plan(documents, spec), past.plan(documents, spec)

        assert made.plan_id == twin.plan_id
        assert [s.shard_id for s in made.shards] == [s.shard_id for s in twin.shards]
        assert (made.counts, made.reasons, made.failed) == (twin.counts, twin.reasons, twin.failed)
        assert sum(made.counts.values()) - made.counts.get(A.REMOVED, 0) == len(documents) == made.row_count
        sent = request_ids(made)
        assert len(sent) == len(set(sent))

        past.finish(made)
        again = past.plan(documents, spec)
        assert set(again.counts) <= {A.UNCHANGED, A.FAILED}
        assert not again.has_changes
        assert (again.shards, again.rows_path) == ((), None)
    finally:
        past.close()


@given(DOCUMENTS, SPECS)
@settings(max_examples=25, deadline=None)
def test_a_plan_does_not_depend_on_where_it_is_made(documents: Any, spec: Spec) -> None:
    ids = []
    for folder in ("/here/specs", "/there"):
        with tempfile.TemporaryDirectory() as workspace:
            past = Past(Path(workspace))
            moved = replace(spec, path=Path(folder) / "spec.yaml", state=Path(folder) / ".gbrun")
            ids.append(past.plan(documents, moved).plan_id)
            past.close()

    assert ids[0] == ids[1]


def test_a_plan_id_changes_with_the_shards(past: Past) -> None:
    one, two = (make_spec(shards=ShardLimits(max_requests=n, max_bytes=10_000)) for n in (1, 2))

    assert past.plan(DOCS, one).plan_id != past.plan(DOCS, two).plan_id


def test_a_plan_id_changes_with_the_state_it_was_made_from(past: Past) -> None:
    first = past.plan(DOCS)
    past.launch(first)
    second = past.plan(DOCS)
    past.attempts.append(make_attempt("other", shard_id=first.shards[0].shard_id, state=AttemptState.VOID))

    assert len({first.plan_id, second.plan_id, past.plan(DOCS).plan_id}) == 3


# ---------------------------------------------------------------- what is sent again, and how

CUT: dict[str, Any] = {"generation_config": {"max_output_tokens": 100}}
REMEDY = {"truncated": {"max_output_tokens": "x2"}}


def remedied(**failures: Any) -> Spec:
    return make_spec(**CUT, failures=Failures(**{"remedies": REMEDY, **failures}))


@pytest.mark.parametrize("outcome", [Outcome.INVALID, Outcome.UNPARSEABLE, Outcome.BLOCKED])
def test_a_class_that_the_spec_names_is_sent_again(past: Past, outcome: Outcome) -> None:
    again = make_spec(failures=Failures(retry=(outcome, "missing")))
    made = after(past, b=outcome).plan(DOCS, again)

    assert changes(made) == [(A.RETRY, "b.txt", (outcome.upper(),), "")]
    assert counts(past.plan(DOCS)) == {"unchanged": 2, "failed": 1}


def test_a_class_that_the_spec_does_not_name_is_final(past: Past) -> None:
    never = make_spec(failures=Failures(retry=()))
    assert counts(after(past, b=Outcome.TRANSIENT).plan(DOCS, never)) == {"unchanged": 2, "failed": 1}


def test_a_failure_with_a_remedy_is_another_request(past: Past) -> None:
    plain = make_spec(**CUT)
    made = after(past, spec=plain, b=Outcome.TRUNCATED).plan(DOCS, remedied())

    assert changes(made) == [(A.RETRY, "b.txt", ("TRUNCATED",), "")]
    [sent] = request_ids(made)
    assert sent not in request_ids(Past(past.workspace / "other").plan(DOCS, plain))
    line = made.shards[0].path.read_bytes()
    assert orjson.loads(line)["request"]["generationConfig"] == {"maxOutputTokens": 200}


def test_after_a_remedy_the_plan_is_empty_with_it_and_without(past: Past) -> None:
    plain = make_spec(**CUT)
    after(past, spec=plain, b=Outcome.TRUNCATED)
    made = past.plan(DOCS, remedied())
    [sent] = request_ids(made)
    first = next(r for r in spooled(made) if r.key == "b.txt").wanted[0].request_id
    failed = past.index.stored(first)
    assert failed is not None
    past.store_outcomes([structs.replace(failed, remedied_by=sent, remedy={"maxOutputTokens": 200})])
    past.finish(made)

    for spec in (remedied(), plain):
        assert counts(past.plan(DOCS, spec)) == {"unchanged": 3}, spec.failures
    assert past.index.answered(first) == past.index.stored(sent)


def test_more_samples_keep_the_first(past: Past) -> None:
    after(past)
    three = make_spec(samples=Samples(count=3))
    made = past.plan(DOCS, three)

    assert changes(made) == [(A.RERUN, key, ("samples",), "") for key in DOCS]
    assert made.request_count == 6
    past.finish(made)
    assert counts(past.plan(DOCS, three)) == {"unchanged": 3}
    assert counts(past.plan(DOCS)) == {"reused": 3}


def test_a_row_is_as_good_as_enough_of_its_samples(past: Past) -> None:
    two = make_spec(samples=Samples(count=3, min_ok=2))
    made = past.plan({"a.txt": "alpha"}, two)
    bad = request_ids(made)[1]
    past.finish(made, {bad: make_stored(bad, Outcome.INVALID)})
    assert counts(past.plan({"a.txt": "alpha"}, two)) == {"unchanged": 1}
    assert counts(past.plan({"a.txt": "alpha"}, make_spec(samples=Samples(count=3)))) == {"failed": 1}
