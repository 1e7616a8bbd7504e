"""Every declared fault does what its table says, as often as it says, and nothing else."""

from __future__ import annotations

import json
import re
import time
import typing
from collections import Counter

import httpx2
import jsonschema_rs
import pytest
from google.genai import errors, types

from runner.answer_json import extract_json
from runner.emulator import faults, nearlyjson
from runner.errors import UsageInvalid

SCHEMA = {
    "type": "OBJECT",
    "properties": {"team": {"type": "STRING", "enum": ["billing", "bug"]}, "n": {"type": "INTEGER"}},
    "required": ["team", "n"],
}
CONFIG = {"responseMimeType": "application/json", "responseSchema": SCHEMA}


def text_of(row):
    return row["response"]["candidates"][0]["content"]["parts"][-1]["text"]


@pytest.fixture
def lines(line):
    return [line(f"r{n}", f"Ticket {n} is about a bug.", **CONFIG) for n in range(40)]


# ------------------------------------------------------------ http


def test_a_lost_create_reply_leaves_a_job(start, line):
    driver = start({"http": [{"on": "create", "kind": "lost_reply", "times": 1}]})
    file = driver.upload([line("a", "x")])
    with pytest.raises(httpx2.TransportError):
        driver.client.batches.create(model=driver.model, src=file.name, config={"display_name": "lost"})
    assert [job.display_name for job in driver.client.batches.list()] == ["lost"]
    driver.client.batches.create(model=driver.model, src=file.name, config={"display_name": "second"})
    assert len(list(driver.client.batches.list())) == 2


def test_a_reset_create_leaves_none(start, line):
    driver = start({"http": [{"on": "create", "kind": "reset", "times": 1}]})
    file = driver.upload([line("a", "x")])
    with pytest.raises(httpx2.TransportError):
        driver.client.batches.create(model=driver.model, src=file.name)
    assert list(driver.client.batches.list()) == []


@pytest.mark.parametrize("status", [500, 502, 503, 504])
def test_5xx_and_429_refuse_before_the_work(start, line, status):
    driver = start(
        {
            "http": [
                {"on": "create", "kind": "http_5xx", "status": status, "times": 1},
                {"on": "create", "kind": "http_429", "skip": 1, "times": 1},
            ]
        }
    )
    file = driver.upload([line("a", "x")])
    with pytest.raises(errors.ServerError) as caught:
        driver.client.batches.create(model=driver.model, src=file.name)
    assert caught.value.code == status
    with pytest.raises(errors.ClientError) as caught:
        driver.client.batches.create(model=driver.model, src=file.name)
    assert (caught.value.code, caught.value.status) == (429, "RESOURCE_EXHAUSTED")
    assert list(driver.client.batches.list()) == []
    driver.client.batches.create(model=driver.model, src=file.name)


def test_a_lost_finalize_leaves_the_file(start, line):
    driver = start({"http": [{"on": "upload", "kind": "lost_reply", "times": 1}]})
    with pytest.raises(httpx2.TransportError):
        driver.upload([line("a", "x")], name="once")
    assert driver.client.files.get(name="files/once").state == types.FileState.ACTIVE


def test_uploads_refused_and_finalized_without_a_file(start, line):
    driver = start(
        {
            "http": [
                {"on": "upload", "kind": "http_429", "times": 1},
                {"on": "upload", "kind": "no_file", "times": 1},
                {"on": "upload", "kind": "reset", "skip": 1, "times": 1},
            ]
        }
    )
    with pytest.raises(errors.ClientError) as caught:
        driver.upload([line("a", "x")])
    assert caught.value.code == 429
    with pytest.raises(KeyError):
        driver.upload([line("a", "x")], name="there")
    assert driver.client.files.get(name="there").size_bytes
    with pytest.raises(httpx2.TransportError):
        driver.upload([line("a", "x")], name="not-there")
    assert driver.http("GET", "files/not-there")[0] == 403
    assert driver.upload([line("a", "x")]).name


def test_downloads_break_and_heal(start, line):
    driver = start(
        {
            "http": [
                {"on": "download", "kind": "cut_body", "times": 1},
                {"on": "download", "kind": "lost_reply", "skip": 1, "times": 1},
                {"on": "download", "kind": "http_5xx", "skip": 2, "times": 1},
            ]
        }
    )
    operation = driver.wait(driver.create([line("a", "x")]))
    for kind in (httpx2.TransportError, httpx2.TransportError, errors.ServerError):
        with pytest.raises(kind):
            driver.output(operation)
    assert driver.output(operation)


def test_every_operation_can_be_struck(start, line):
    rules = [{"on": on, "kind": "http_5xx"} for on in ("get", "list", "delete", "cancel", "generate")]
    driver = start({"http": rules})
    name = driver.create([line("a", "x")])
    assert driver.http("GET", name)[0] == 503
    assert driver.http("GET", "batches")[0] == 503
    assert driver.http("POST", f"{name}:cancel")[0] == 503
    assert driver.http("DELETE", name)[0] == 503
    assert driver.http("POST", f"models/{driver.model}:countTokens", {})[0] == 503


def test_slow_every_and_skip(start):
    driver = start(
        {"http": [{"on": "list", "kind": "slow", "delay_s": 0.2, "skip": 1, "every": 2, "times": 2}]}
    )
    slow = []
    for _ in range(7):
        begin = time.monotonic()
        driver.http("GET", "batches")
        slow.append(time.monotonic() - begin > 0.15)
    assert slow == [False, True, False, True, False, False, False]


def test_counts_outlive_a_restart(start, line):
    plan = {"http": [{"on": "list", "kind": "http_5xx", "times": 1}]}
    assert start(plan).http("GET", "batches")[0] == 503
    assert start(plan).http("GET", "batches")[0] == 200
    assert start({"http": [{**plan["http"][0], "status": 500}]}).http("GET", "batches")[0] == 500


# ------------------------------------------------------------ jobs


@pytest.mark.parametrize(
    ("rule", "state", "error"),
    [
        ({"kind": "failed"}, "FAILED", {"code": 13, "message": "Internal error encountered."}),
        ({"kind": "failed", "code": 8, "message": "quota"}, "FAILED", {"code": 8, "message": "quota"}),
        ({"kind": "expired"}, "EXPIRED", None),
        ({"kind": "cancelled"}, "CANCELLED", {"code": 13, "message": "Batch was cancelled."}),
    ],
)
def test_jobs_end_badly_once(start, lines, rule, state, error):
    driver = start({"jobs": [{**rule, "times": 1}]})
    operation, output = driver.run(lines)
    assert operation["metadata"]["state"] == f"BATCH_STATE_{state}"
    assert operation.get("error") == error
    assert operation["metadata"]["batchStats"] == {"requestCount": "40", "pendingRequestCount": "40"}
    assert output == []
    assert "output" not in operation["metadata"]
    assert len(driver.run(lines)[1]) == 40


def test_part_of_a_bad_job_comes_back(start, lines):
    driver = start({"jobs": [{"kind": "expired", "partial": 0.25}]})
    operation, output = driver.run(lines)
    assert operation["metadata"]["state"] == "BATCH_STATE_EXPIRED"
    assert [row["key"] for row in output] == [f"r{n}" for n in range(10)]
    assert operation["metadata"]["batchStats"]["pendingRequestCount"] == "30"


def test_every_second_job_is_stuck(start, line):
    driver = start({"jobs": [{"kind": "stuck_pending", "seconds": 60, "every": 2}]})
    stuck, free = driver.create([line("a", "x")]), driver.create([line("a", "x")])
    driver.wait(free)
    assert driver.http("GET", stuck)[1]["metadata"]["state"] == "BATCH_STATE_PENDING"


# ------------------------------------------------------------ rows


def spoiled(start, lines, kind, **options):
    """The rows that a rule on every fourth row hits, by key."""
    operation, output = start({"rows": [{"kind": kind, "every": 4, **options}]}).run(lines)
    assert operation["metadata"]["state"] == "BATCH_STATE_SUCCEEDED"
    hit = {f"r{n}" for n in range(0, 40, 4)}
    spared = [row for row in output if row and row["key"] not in hit]
    assert len(spared) >= 30
    for row in spared[:30]:
        assert json.loads(text_of(row))["team"] == "bug"
    return operation, output, [row for row in output if row and row["key"] in hit]


def test_row_error(start, lines):
    operation, _, hit = spoiled(start, lines, "row_error", code=8, message="too much")
    assert [row["error"] for row in hit] == [{"code": 8, "message": "too much"}] * 10
    stats = {"requestCount": "40", "successfulRequestCount": "30", "failedRequestCount": "10"}
    assert operation["metadata"]["batchStats"] == stats


def test_missing(start, lines):
    assert len(spoiled(start, lines, "missing")[1]) == 30


def test_duplicate(start, lines):
    assert Counter(row["key"] for row in spoiled(start, lines, "duplicate")[2]) == {
        f"r{n}": 2 for n in range(0, 40, 4)
    }


def test_null_line(start, lines):
    _, output, hit = spoiled(start, lines, "null_line")
    assert (output.count(None), hit) == (10, [])


def test_extra_line(start, lines):
    _, output, hit = spoiled(start, lines, "extra_line")
    assert len(hit) == 10
    assert sum(row["key"].startswith("unasked-") for row in output) == 10


def test_truncated(start, lines):
    for row in spoiled(start, lines, "truncated")[2]:
        assert row["response"]["candidates"][0]["finishReason"] == "MAX_TOKENS"
        with pytest.raises(json.JSONDecodeError):
            json.loads(text_of(row))


def test_max_tokens_no_parts(start, lines):
    for row in spoiled(start, lines, "max_tokens_no_parts")[2]:
        candidate = row["response"]["candidates"][0]
        assert candidate["content"] == {"role": "model"}
        assert candidate["finishReason"] == "MAX_TOKENS"
        assert "candidatesTokenCount" not in row["response"]["usageMetadata"]


def test_fenced_and_prose(start, lines):
    for row in spoiled(start, lines, "fenced")[2]:
        assert json.loads(text_of(row).removeprefix("```json\n").removesuffix("\n```"))
    driver = start({"rows": [{"kind": "prose"}]}, folder="prose")
    for row in driver.run(lines)[1]:
        assert text_of(row).startswith("Here is")
        assert '"team":"bug"' in text_of(row)


def test_nearly_json(start, lines):
    for row in spoiled(start, lines, "nearly_json")[2]:
        with pytest.raises(json.JSONDecodeError):
            json.loads(text_of(row))
        assert re.search(r"[\"']?team[\"']?: ?[\"']bug[\"']", text_of(row))


@pytest.mark.parametrize("flaw", sorted(nearlyjson.FLAWS))
@pytest.mark.parametrize("text", ['{"a":"it\'s \\"b\\" // c","d e":[true,null,1.5]}', "[1,2]", '{"f":{}}'])
def test_every_flaw_of_any_answer_is_no_json_and_the_library_reads_it(flaw, text):
    found = nearlyjson.flawed(text, flaw)
    with pytest.raises(json.JSONDecodeError):
        json.loads(found)
    assert extract_json(found) is None
    assert extract_json(found, repair=True) == (json.loads(text), "library")


@pytest.mark.parametrize("text", ["some words", "12", '"a"', "{}", "[]"])
def test_what_is_no_object_or_array_has_no_flaw(text):
    assert nearlyjson.flawed(text, None) == text


def test_the_flaws_of_the_table_are_those_there_are():
    hints = typing.get_type_hints(faults.RowRule)["flaw"]
    assert set(typing.get_args(typing.get_args(hints)[0])) == set(nearlyjson.FLAWS)


def test_blocked_prompt(start, lines):
    for row in spoiled(start, lines, "blocked_prompt")[2]:
        assert "candidates" not in row["response"]
        assert row["response"]["promptFeedback"] == {"blockReason": "PROHIBITED_CONTENT"}


@pytest.mark.parametrize(("kind", "reason"), [("blocked_safety", "SAFETY"), ("recitation", "RECITATION")])
def test_blocked_answers(start, lines, kind, reason):
    for row in spoiled(start, lines, kind)[2]:
        candidate = row["response"]["candidates"][0]
        assert candidate["finishReason"] == reason
        assert "content" not in candidate


def test_empty_stop(start, lines):
    for row in spoiled(start, lines, "empty_stop")[2]:
        assert row["response"]["candidates"][0]["content"] == {"role": "model"}
        assert row["response"]["candidates"][0]["finishReason"] == "STOP"


def test_thought_parts(start, lines):
    for row in spoiled(start, lines, "thought_parts")[2]:
        parts = row["response"]["candidates"][0]["content"]["parts"]
        assert [part.get("thought", False) for part in parts] == [True, False]
        usage = row["response"]["usageMetadata"]
        assert usage["totalTokenCount"] == sum(
            usage[f"{name}TokenCount"] for name in ("prompt", "candidates", "thoughts")
        )


@pytest.mark.parametrize(
    "schema",
    [
        SCHEMA,
        {"type": "STRING"},
        {"type": "INTEGER"},
        {"type": "ARRAY", "items": {"type": "STRING"}},
        {"type": "OBJECT", "properties": {"a": {"anyOf": [{"type": "STRING"}]}}, "required": ["a"]},
    ],
)
def test_invalid_schema(start, line, schema):
    def lower(node):
        if isinstance(node, dict):
            return {key: value.lower() if key == "type" else lower(value) for key, value in node.items()}
        return [lower(item) for item in node] if isinstance(node, list) else node

    driver = start({"rows": [{"kind": "invalid_schema"}]})
    config = {"responseMimeType": "application/json", "responseSchema": schema}
    validator = jsonschema_rs.validator_for(lower(schema))
    for row in driver.run([line(str(n), f"Row {n}.", **config) for n in range(5)])[1]:
        assert not validator.is_valid(json.loads(text_of(row)))


def test_unknown_fields(start, lines):
    for row in spoiled(start, lines, "unknown_fields")[2]:
        with pytest.raises(ValueError, match=r"Extra inputs"):
            types.GenerateContentResponse.model_validate(row["response"])


def test_shuffled_and_half_line_concern_whole_files_and_counted_jobs(start, lines):
    plan = {
        "seed": 3,
        "rows": [{"kind": "shuffled", "times": 1}, {"kind": "half_line", "times": 1, "skip": 1}],
    }
    driver = start(plan)
    keys = [f"r{n}" for n in range(40)]
    first = [row["key"] for row in driver.run(lines)[1]]
    assert first != keys
    assert sorted(first) == sorted(keys)
    second = driver.output(driver.wait(driver.create(lines))).split(b"\n")
    assert len(second) == 40
    with pytest.raises(json.JSONDecodeError):
        json.loads(second[-1])
    assert [json.loads(row)["key"] for row in second[:-1]] == keys[:-1]
    assert [row["key"] for row in driver.run(lines)[1]] == keys


def test_a_ratio_hits_the_same_requests_wherever_they_stand(start, lines):
    rule = {"kind": "row_error", "ratio": 0.3}
    hit = [
        {row["key"] for row in driver.run(given)[1] if "error" in row}
        for driver, given in (
            (start({"rows": [rule]}, folder="a"), lines),
            (start({"rows": [rule]}, folder="b"), lines[::-1]),
            (start({"rows": [rule], "seed": 1}, folder="c"), lines),
        )
    ]
    assert hit[0] == hit[1] != hit[2]
    assert 4 <= len(hit[0]) <= 22


def test_keys_match_and_the_first_rule_wins(start, lines):
    driver = start(
        {
            "rows": [
                {"kind": "missing", "keys": ["r1", "r2"]},
                {"kind": "row_error", "match": "Ticket 3 "},
                {"kind": "row_error", "code": 4, "keys": ["r2", "r3", "r5"]},
            ]
        }
    )
    _, output = driver.run(lines)
    assert {row["key"]: row["error"]["code"] for row in output if "error" in row} == {"r3": 13, "r5": 4}
    assert {"r1", "r2"}.isdisjoint(row["key"] for row in output)


def test_first_attempts_spares_a_request_afterwards(start, lines):
    plan = {"rows": [{"kind": "row_error", "every": 2, "first_attempts": 2}]}
    for expected in (20, 20, 0):
        # A new process each time: the count is in the folder.
        assert sum("error" in row for row in start(plan).run(lines)[1]) == expected
    moved = [{**row, "key": f"x{row['key']}"} for row in lines]
    assert sum("error" in row for row in start(plan).run(moved)[1]) == 0


def test_line_faults_leave_inline_jobs_alone(start):
    driver = start({"rows": [{"kind": "missing"}, {"kind": "half_line"}, {"kind": "row_error", "code": 4}]})
    job = driver.client.batches.create(model=driver.model, src=[types.InlinedRequest(contents="Hello there")])
    found = driver.wait(job.name)["response"]["inlinedResponses"]["inlinedResponses"]
    assert found == [{"error": {"code": 4, "message": "Internal error encountered."}}]


# ------------------------------------------------------------ the fault file


def test_a_yaml_file_with_the_word_on(tmp_path):
    path = tmp_path / "faults.yaml"
    path.write_text(
        "seed: 7\nhttp:\n- {on: create, kind: lost_reply, times: 1}\nrows:\n- {kind: missing, keys: [01]}\n"
    )
    plan = faults.load(path)
    assert (plan.seed, plan.http[0].on, plan.rows[0].keys) == (7, "create", ["01"])
    path.write_text("")
    assert faults.load(path) == faults.FaultPlan()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("http: [{on: create}]", "http[0]"),
        ("http: [{on: creat, kind: reset}]", "http[0].on"),
        ("http: [{on: create, kind: rest}]", "http[0].kind"),
        ("http: [{on: create, kind: reset, time: 1}]", "`time`"),
        ("http: [{on: create, kind: reset, times: 0}]", "http[0].times"),
        ("http: [{on: create, kind: reset, status: 503}]", "http[0].status"),
        ("http: [{on: create, kind: http_5xx, status: 404}]", "http[0].status"),
        ("http: [{on: create, kind: slow}]", "needs delay_s"),
        ("http: [{on: create, kind: cut_body}]", "for download and storage_read only"),
        ("http: [{on: create, kind: no_file}]", "for upload only"),
        ("jobs: [{kind: failed, code: 99}]", "jobs[0].code"),
        ("jobs: [{kind: expired, code: 3}]", "jobs[0].code"),
        ("jobs: [{kind: stuck_pending}]", "needs seconds"),
        ("jobs: [{kind: stuck_pending, seconds: 1, partial: 0.5}]", "jobs[0].partial"),
        ("rows: [{kind: missing, ratio: 1.5}]", "rows[0].ratio"),
        ("rows: [{kind: missing, ratio: 0.5, every: 2}]", "one of ratio, every"),
        ("rows: [{kind: missing, code: 3}]", "rows[0].code"),
        ("rows: [{kind: missing, times: 3}]", "first_attempts"),
        ("rows: [{kind: fenced, flaw: python}]", "rows[0].flaw"),
        ("rows: [{kind: nearly_json, flaw: typo}]", "rows[0].flaw"),
        ("rows: [{kind: missing, skip: 3}]", "goes with every"),
        ("rows: [{kind: shuffled, ratio: 0.5}]", "whole files"),
        ("rows: [{kind: half_line, first_attempts: 1}]", "whole files"),
        ("row: []", "`row`"),
        ("timing: {pending_s: -1}", "timing.pending_s"),
        ("seed: x", "seed"),
        ("[]", "top level"),
        ("a: b: c", "not YAML"),
    ],
)
def test_a_wrong_fault_file_names_file_and_key(tmp_path, text, words):
    path = tmp_path / "faults.yaml"
    path.write_text(text)
    with pytest.raises(UsageInvalid) as caught:
        faults.load(path)
    assert str(path) in caught.value.message
    assert words in caught.value.message


def test_a_fault_file_that_is_not_there(tmp_path):
    with pytest.raises(UsageInvalid, match="cannot read"):
        faults.load(tmp_path / "none.yaml")


def test_every_kind_stands_in_the_table():
    for rule in (faults.HttpRule, faults.JobRule, faults.RowRule):
        for kind in typing.get_args(typing.get_type_hints(rule)["kind"]):
            assert kind in faults.__doc__


def test_a_bug_in_the_emulator_ends_the_job(start, line, monkeypatch, capfd):
    def explode(*_):
        raise ZeroDivisionError

    monkeypatch.setattr("runner.emulator.rows.Rows.answer", explode)
    operation, output = start().run([line("a", "x")])
    assert operation["metadata"]["state"] == "BATCH_STATE_FAILED"
    assert (operation["error"]["code"], output) == (13, [])
    assert "ZeroDivisionError" in capfd.readouterr().err
