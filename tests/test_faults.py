"""Every misbehaviour that the emulator knows, end to end: bounded, counted, classified, recovered from."""

from __future__ import annotations

import gzip
import json
import re
import typing
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runner.emulator import faults
from runner.emulator.faults import FILE_KINDS, HttpRule, JobRule, RowRule
from runner.emulator.nearlyjson import FLAWS
from runner.model import Outcome
from runner.rowerrors import _TRANSIENT_CODES
from runner.specmodel import Failures


def kinds(rule: type) -> list[str]:
    """The kinds a rule may have, read from its type."""
    return list(typing.get_args(typing.get_type_hints(rule)["kind"]))


RETRYABLE = Failures().retry
ROW_KINDS, JOB_KINDS, HTTP_KINDS = kinds(RowRule), kinds(JobRule), kinds(HttpRule)

# What becomes of a request that a row rule hits, its code, and what is counted beside the answers.
CLASSES: dict[str, tuple[str, str, str]] = {
    "row_error": ("transient", "INTERNAL", ""),
    "missing": ("missing", "NO_LINE", ""),
    "duplicate": ("ok", "", "duplicate"),
    "null_line": ("missing", "NO_LINE", "null"),
    "extra_line": ("ok", "", "extra"),
    "truncated": ("truncated", "MAX_TOKENS", ""),
    "max_tokens_no_parts": ("truncated", "MAX_TOKENS", ""),
    "fenced": ("ok", "", ""),
    "prose": ("ok", "", ""),
    "nearly_json": ("unparseable", "NOT_JSON", ""),
    "blocked_prompt": ("blocked", "PROHIBITED_CONTENT", ""),
    "blocked_safety": ("blocked", "SAFETY", ""),
    "recitation": ("blocked", "RECITATION", ""),
    "empty_stop": ("transient", "EMPTY", ""),
    "thought_parts": ("ok", "", ""),
    "invalid_schema": ("invalid", "SCHEMA", ""),
    "unknown_fields": ("ok", "", ""),
    "shuffled": ("ok", "", ""),
    "half_line": ("missing", "NO_LINE", "unreadable"),
}
# The same for the kinds that befall embeddings alone.
EMBEDDING_CLASSES: dict[str, tuple[str, str]] = {
    "empty_embedding": ("transient", "EMPTY"),
    "short_embedding": ("invalid", "DIMENSIONS"),
}
# A rule for each kind of HTTP fault, on a call of every run. A deferred create waits a minute on the
# real clock; that one is shown with a clock moved by hand.
HTTP_RULES: dict[str, dict[str, Any]] = {
    "lost_reply": {"on": "create", "skip": 1, "times": 1},
    "reset": {"on": "get", "skip": 3, "times": 1},
    "http_429": {"on": "get", "skip": 6, "times": 1},
    "http_5xx": {"on": "upload", "times": 1},
    "slow": {"on": "download", "delay_s": 0.3, "times": 2},
    "cut_body": {"on": "download", "skip": 2, "times": 1},
    "no_file": {"on": "upload", "skip": 4, "times": 1},
}
JOB_RULES: dict[str, dict[str, Any]] = {
    "failed": {"times": 1, "code": 13, "message": "The service is sorry."},
    "expired": {"skip": 1, "times": 1, "partial": 0.5},
    "cancelled": {"skip": 2, "times": 1, "partial": 0.4},
    "stuck_pending": {"skip": 3, "times": 1, "seconds": 0.8},
    "partially_succeeded": {"skip": 4, "times": 1, "partial": 0.5},
}


def adds_up(project: Any, said: str) -> dict[str, str]:
    """Both ledgers, in what was said and in what was stored; the outcome of every key."""
    outcomes = {record["_key"]: "ok" for record in project.records()}
    failures = {failure["_key"]: failure["outcome"] for failure in project.failures()}
    assert len(outcomes) == len(project.records()), "a key has two records"
    assert len(failures) == len(project.failures()), "a key has two failures"
    assert not outcomes.keys() & failures.keys(), "a key has a record and a failure"
    inputs = {str(path.relative_to(project.folder)) for path in project.folder.glob("inputs/*.txt")}
    assert outcomes.keys() | failures.keys() == inputs
    outcomes |= failures

    rows = ledger(said, "Rows")
    assert rows == Counter(outcomes.values())
    sent = ledger(said, "Requests")
    assert sum(sent.values()) == sum(rows.values()), "each row wants a request of its own here"

    for attempt in project.attempts():
        if attempt["state"] in ("collected", "cleaned"):
            assert sum(attempt["outcomes"].values()) == attempt["request_count"], attempt
    assert project.leftovers() == []
    return outcomes


def ledger(said: str, name: str) -> Counter[str]:
    """`Rows 3 = 2 ok + 1 missing` as counts that add up."""
    found = re.search(rf"^{name} ([\d,]+) = (.*)$", said, re.M)
    assert found, f"no ledger of {name} in:\n{said}"
    parts = [part.split(" ") for part in found[2].split(" + ")]
    counts = Counter({word: int(number.replace(",", "")) for number, word in parts})
    assert sum(counts.values()) == int(found[1].replace(",", "")), found[0]
    return counts


def stored_responses(project: Any) -> bytes:
    return b"".join(
        gzip.decompress(path.read_bytes()) for path in sorted(project.state.glob("responses/*.gz"))
    )


# ---------------------------------------------------------------- the tables are complete


def test_no_kind_is_forgotten() -> None:
    assert sorted(ROW_KINDS) == sorted([*CLASSES, *EMBEDDING_CLASSES])
    assert set(HTTP_KINDS) == set(HTTP_RULES)
    assert set(JOB_KINDS) == set(JOB_RULES)
    assert {outcome for outcome, _, _ in CLASSES.values()} <= set(Outcome)
    assert set(ROW_KINDS) >= FILE_KINDS


DOCS = (Path(__file__).parent.parent / "docs/faults.md").read_text(encoding="utf-8")


def documented(heading: str) -> dict[str, list[str]]:
    """The table below a heading of the documentation: kind -> its other cells."""
    section = DOCS.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    rows = [
        [cell.strip() for cell in line.strip("|").split(" | ")]
        for line in section.splitlines()
        if line.startswith("| `")
    ]
    assert len({cells[0] for cells in rows}) == len(rows), "a kind stands in the table twice"
    return {cells[0].strip("`"): cells[1:] for cells in rows}


def test_the_documentation_has_every_kind_and_no_other() -> None:
    assert set(documented("Rows")) == set(ROW_KINDS)
    assert set(documented("Jobs")) == set(JOB_KINDS)
    assert set(documented("Requests over HTTP")) == set(HTTP_KINDS)


def test_the_documentation_says_what_becomes_of_a_row() -> None:
    """Class, whether it is sent again, and what is named: as the runs below have it."""
    expected = CLASSES | {kind: (*found, "") for kind, found in EMBEDDING_CLASSES.items()}
    for kind, (_, told, does) in documented("Rows").items():
        outcome, _, stray = expected[kind]
        assert told.startswith(f"`{outcome}`"), kind
        assert re.findall(r"names a stray line: (\w+)", does) == [stray] * bool(stray), kind
        if outcome != "ok":
            assert ("again" in does) == (outcome in RETRYABLE), kind
            assert ("fails it" in does) == (outcome not in RETRYABLE), kind
        assert ("`_repaired`" in does) == (kind in ("fenced", "prose", "nearly_json")), kind


def test_the_documentation_names_the_codes_that_pass() -> None:
    told = documented("Rows")["row_error"][1]
    assert set(map(int, re.findall(r"\d+", told))) == {code for code in _TRANSIENT_CODES if code <= 16}


# ---------------------------------------------------------------- one kind at a time


@pytest.mark.parametrize("kind", CLASSES)
def test_a_row_fault(kind: str, project: Any, cli: Callable[..., Any]) -> None:
    """Two of five rows are hit (of a file that ends too early, the last one)."""
    outcome, code, stray = CLASSES[kind]
    project.gbrun = cli
    project.inputs(5)
    rule = {"kind": kind} if kind in FILE_KINDS else {"kind": kind, "match": "hit me"}
    for number in () if kind in FILE_KINDS else (1, 3):
        project.write(f"inputs/{number:03}.txt", f"Note {number}, hit me.\n")
    project.faults(timing={"pending_s": 0}, rows=[rule])
    project.spec(failures={"max_attempts": 1})

    got = project.apply(code=0 if outcome == "ok" else 4)
    outcomes = adds_up(project, got.stdout)
    hit = {"half_line": ["inputs/004.txt"], "shuffled": []}.get(kind, ["inputs/001.txt", "inputs/003.txt"])
    assert outcomes == {f"inputs/{n:03}.txt": "ok" for n in range(5)} | dict.fromkeys(hit, outcome)
    for failure in project.failures():
        assert (failure["outcome"], failure["code"]) == (outcome, code)
        assert failure["message"]
        assert failure["attempts"] == 1
    (attempt,) = project.attempts()
    assert attempt["strays"] == ({stray: len(hit)} if stray else {})
    repaired = [record["_key"] for record in project.records() if "_repaired" in record]
    assert repaired == (hit if kind in ("fenced", "prose") else [])
    assert stored_responses(project)

    # Without the fault: what may be tried again converges, everything else stays as it is.
    jobs = len(project.jobs())
    project.faults(timing={"pending_s": 0})
    project.spec(failures={"max_attempts": 2})
    again = outcome in RETRYABLE
    got = project.apply(code=0 if again or outcome == "ok" else 4)
    assert len(project.jobs()) == jobs + again
    if again:
        assert ledger(got.stdout, "Requests") == Counter(ok=len(hit))
        assert [record["_key"] for record in project.records()] == sorted(outcomes)
        assert project.failures() == []
    assert project.leftovers() == []


@pytest.mark.parametrize("repair", [False, True])
def test_answers_that_are_nearly_json(repair: bool, project: Any, cli: Callable[..., Any]) -> None:
    """Each flaw on a row of its own, and one row whose flaw the text decides."""
    properties = {
        "topic": {"type": "string", "minLength": 1},
        "urgent": {"type": "boolean"},
        "tags": {"type": "array", "items": {"type": "string"}, "minItems": 1},
    }
    schema = {"type": "object", "properties": properties, "required": list(properties)}
    project.gbrun = cli
    project.inputs(1)
    names = [*sorted(FLAWS), "any"]
    for name in names:
        project.write(f"inputs/{name}.txt", f"Don't read <{name}> twice, it is about boards.\n")
    rules = [
        {"kind": "nearly_json", "match": f"<{name}>"} | ({"flaw": name} if name in FLAWS else {})
        for name in names
    ]
    project.faults(timing={"pending_s": 0}, rows=rules)
    project.spec(output_schema=schema, failures={"repair": repair})
    got = project.apply(code=0 if repair else 4)
    outcomes = adds_up(project, got.stdout)
    hit = [f"inputs/{name}.txt" for name in names]
    assert outcomes == {"inputs/000.txt": "ok"} | dict.fromkeys(hit, "ok" if repair else "unparseable")
    assert {failure["code"] for failure in project.failures()} == (set() if repair else {"NOT_JSON"})
    marked = {record["_key"]: record.get("_repaired") for record in project.records()}
    assert marked == {"inputs/000.txt": None} | (dict.fromkeys(hit, "library") if repair else {})
    texts = sound_texts(stored_responses(project))
    assert len(texts) == 1, "all but one answer must be no JSON"
    if repair:
        # The same values as without the flaw.
        project.faults(timing={"pending_s": 0})
        project.spec(state="sound")
        repaired = [{k: v for k, v in one.items() if k != "_repaired"} for one in project.records()]
        project.apply("--overwrite")
        assert project.records() == repaired
    else:
        # The answers are paid for: to repair them costs nothing.
        project.spec(failures={"repair": True})
        assert ledger(project.apply().stdout, "Rows") == Counter(ok=len(names) + 1)
        assert len(project.jobs()) == 1


def sound_texts(responses: bytes) -> list[str]:
    """The texts of answers that are JSON."""
    texts = [
        json.loads(line)["response"]["candidates"][0]["content"]["parts"][0]["text"]
        for line in responses.splitlines()
    ]
    return [text for text in texts if is_json(text)]


def is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("kind", [*EMBEDDING_CLASSES, "row_error", "missing", "unknown_fields", "truncated"])
def test_a_fault_of_an_embedding(kind: str, project: Any, cli: Callable[..., Any]) -> None:
    """One of three rows is hit, or none, where the kind is about text."""
    outcome, code = EMBEDDING_CLASSES[kind] if kind in EMBEDDING_CLASSES else CLASSES[kind][:2]
    if kind == "truncated":
        outcome = "ok"
    project.gbrun = cli
    project.inputs(3)
    project.write("inputs/001.txt", "Note 1, hit me.\n")
    project.faults(timing={"pending_s": 0}, rows=[{"kind": kind, "match": "hit me"}])
    project.spec(
        task="embed_content",
        model="gemini-embedding-001",
        embed_content_config={"output_dimensionality": 8},
        output_schema=None,
        failures={"max_attempts": 1},
    )
    got = project.apply(code=0 if outcome == "ok" else 4)
    outcomes = adds_up(project, got.stdout)
    assert outcomes == {f"inputs/{n:03}.txt": outcome if n == 1 else "ok" for n in range(3)}
    assert [failure["code"] for failure in project.failures()] == ([code] if outcome != "ok" else [])
    assert {len(record["embedding"]) for record in project.records()} == {8}


@pytest.mark.parametrize("kind", [kind for kind in JOB_KINDS if kind != "stuck_pending"])
@pytest.mark.parametrize("partial", [0.0, 0.5])
def test_a_job_fault(kind: str, partial: float, project: Any, cli: Callable[..., Any]) -> None:
    """What a failed job brought all the same is kept; the rest runs again, and nothing else."""
    project.gbrun = cli
    project.inputs(4)
    project.faults(timing={"pending_s": 0}, jobs=[{"kind": kind, "times": 1, "partial": partial}])
    project.spec(failures={"max_attempts": 1})
    came = round(4 * partial)

    got = project.apply(code=4)
    assert Counter(adds_up(project, got.stdout).values()) == +Counter(ok=came, missing=4 - came)
    codes = {
        "failed": "INTERNAL",
        "expired": "JOB_EXPIRED",
        "cancelled": "JOB_CANCELLED",
        "partially_succeeded": "NO_LINE",
    }
    assert {failure["code"] for failure in project.failures()} == {codes[kind]}
    project.spec(failures={"max_attempts": 2})
    assert f"{4 - came} retry" in project.plan("--detailed-exitcode", code=2)

    got = project.apply()
    assert ledger(got.stdout, "Requests") == Counter(ok=4 - came)
    assert len(project.records()) == 4
    assert len(project.jobs()) == 2


@pytest.mark.parametrize("code", [3, 5, 7, 9, 16])
def test_a_job_that_failed_for_the_files_sake_is_an_error_of_the_attempt(
    code: int, project: Any, cli: Callable[..., Any]
) -> None:
    project.gbrun = cli
    project.inputs(2)
    job = {"kind": "failed", "times": 1, "code": code, "message": "Cannot import the file."}
    project.faults(timing={"pending_s": 0}, jobs=[job])
    project.spec()
    got = project.apply(code=1)
    assert "Cannot import the file." in got.stdout
    assert project.records() == project.failures() == []
    assert "2 new" in project.plan()
    project.apply()
    assert len(project.records()) == 2


HTTP_CASES = [
    *(("reset", on) for on in ("upload", "get", "download", "delete")),
    *(("http_5xx", on) for on in ("upload", "get", "download", "delete")),
    *(("lost_reply", on) for on in ("create", "upload", "delete")),
    *(("http_429", on) for on in ("upload", "get")),
    ("cut_body", "download"),
    ("no_file", "upload"),
    ("slow", "create"),
]


def test_every_kind_of_http_fault_has_a_case() -> None:
    assert {kind for kind, _ in HTTP_CASES} == set(HTTP_KINDS)


@pytest.mark.parametrize(("kind", "on"), HTTP_CASES)
def test_an_http_fault(kind: str, on: str, project: Any, cli: Callable[..., Any]) -> None:
    """One broken call is repeated where that is safe, and never costs a second job."""
    project.gbrun = cli
    project.inputs(2)
    rule = {"kind": kind, "on": on, "times": 1, **({"delay_s": 0.2} if kind == "slow" else {})}
    project.faults(timing={"pending_s": 0}, http=[rule])
    project.spec()
    got = project.apply()
    assert set(adds_up(project, got.stdout).values()) == {"ok"}
    assert len(project.jobs()) == 1
    (attempt,) = project.attempts()
    assert attempt["adopted"] == ((kind, on) == ("lost_reply", "create"))
    assert "No changes" in project.plan("--detailed-exitcode", code=0)


# ---------------------------------------------------------------- all of them at once


def test_everything_goes_wrong_at_once(project: Any, cli: Callable[..., Any]) -> None:
    project.gbrun = cli
    # Four jobs of plain notes for the faults of jobs, then the rows that are hit themselves.
    project.inputs(24)
    for kind in CLASSES:
        for number in range(2):
            project.write(f"inputs/{kind}-{number}.txt", f"Note {number} of <{kind}>.\n")
    file_rules = [{"kind": kind, "skip": 3 + i, "times": 1} for i, kind in enumerate(sorted(FILE_KINDS))]
    plan = {
        "seed": 11,
        "timing": {"pending_s": 0.02, "running_s": 0.02},
        "http": [{"kind": kind, **rule} for kind, rule in HTTP_RULES.items()],
        "jobs": [{"kind": kind, **rule} for kind, rule in JOB_RULES.items()],
        "rows": file_rules
        + [{"kind": kind, "match": f"<{kind}>"} for kind in CLASSES if kind not in FILE_KINDS],
    }
    project.faults(**plan)
    loaded = faults.load(project.folder / "faults.yaml")
    assert {rule.kind for rule in loaded.rows} == set(CLASSES)
    assert {rule.kind for rule in loaded.jobs} == set(JOB_KINDS)
    assert {rule.kind for rule in loaded.http} == set(HTTP_KINDS)
    limits = {"shards": {"max_requests": 6}, "concurrency": {"max_jobs": 3}}
    project.spec(**limits, failures={"max_attempts": 1})

    got = project.apply(code=4)
    outcomes = adds_up(project, got.stdout)
    assert len(outcomes) == 24 + 2 * len(CLASSES)
    for key, outcome in outcomes.items():
        kind = key.removeprefix("inputs/").rpartition("-")[0]
        expected = CLASSES[kind][0] if kind and kind not in FILE_KINDS else "ok"
        # A job that ended early, or a file cut short, leaves rows of any kind without a line.
        assert outcome in (expected, "missing"), key
    assert {outcome for outcome, _, _ in CLASSES.values()} <= set(outcomes.values())
    assert max(Counter(project.requests_sent()).values()) == 1, "a request was sent twice"
    strays = sum((Counter(a["strays"]) for a in project.attempts()), Counter())
    assert set(strays) <= {"duplicate", "null", "extra", "unreadable"}

    # Once the service is itself again, what may be tried again is; the rest was decided.
    project.faults(timing={"pending_s": 0}, rows=plan["rows"][len(file_rules) :])
    project.spec(failures={"max_attempts": 2})
    open_count = sum(outcome in RETRYABLE for outcome in outcomes.values())
    got = project.apply(code=4)
    assert sum(ledger(got.stdout, "Requests").values()) == open_count
    project.faults(timing={"pending_s": 0})
    project.spec(failures={"max_attempts": 3})
    got = project.apply(code=4)
    final = Counter(failure["outcome"] for failure in project.failures())
    assert set(final) == {"truncated", "blocked", "invalid", "unparseable"}
    assert len(project.records()) + sum(final.values()) == len(outcomes)
    jobs = len(project.jobs())
    assert "No changes" in project.apply(code=4).stdout
    assert len(project.jobs()) == jobs
    assert json.loads((project.state / "state.json").read_bytes())["serial"] > 1
    assert project.leftovers() == []
