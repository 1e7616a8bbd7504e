"""Whole runs on the emulator's Vertex: the same spec gives the same records as on the Developer API."""

from __future__ import annotations

import gzip
import json
import sqlite3
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_faults import CLASSES, RETRYABLE, adds_up, ledger, stored_responses
from test_stdlib import PROMPT, copy_library

from runner import principal
from runner.emulator.faults import FILE_KINDS
from runner.errors import StateForeign

VERTEX = {"type": "local", "like": "vertex", "request_timeout_s": 10, "settle_s": 0.1}


@pytest.fixture
def project(project: Any, cli: Callable[..., Any]) -> Any:
    project.gbrun = cli
    project.settings["backend"] = dict(VERTEX)
    return project


def staged(project: Any) -> list[str]:
    """Names of all objects in the emulator's bucket, below the staging folder."""
    with sqlite3.connect(f"file:{project.state}/emulator/emulator.sqlite?mode=ro", uri=True) as db:
        names = [name for (name,) in db.execute("SELECT name FROM objects ORDER BY name")]
    db.close()
    return [name.removeprefix("staging/") for name in names]


def jobs_left(project: Any) -> list[dict[str, Any]]:
    """What the jobs that are still there were made from."""
    with sqlite3.connect(f"file:{project.state}/emulator/emulator.sqlite?mode=ro", uri=True) as db:
        bodies = [json.loads(body) for (body,) in db.execute("SELECT body FROM vertex_jobs")]
    db.close()
    return bodies


# ---------------------------------------------------------------- the same on both


def test_the_standard_library_gives_the_same_records_on_both_services(
    new_project: Callable[..., Any], cli: Callable[..., Any]
) -> None:
    found = {}
    for like in ("gemini", "vertex"):
        project = new_project(like)
        project.gbrun = cli
        count = copy_library(project.folder / "lib")
        project.write("lib/odd_latin.py", b"# coding: latin-1\nname = 'Andr\xe9'\n")
        project.spec(
            name="stdlib",
            backend={**VERTEX, "like": like},
            inputs=[{"files": {"glob": "lib/**/*.py"}, "on_bad_row": "skip"}],
            prompt=PROMPT,
            destination="out/stdlib.jsonl",
            shards={"max_requests": 250},
            failures={"max_ratio": 0.05},
        )
        assert count > 600
        project.apply()
        assert "No changes" in project.apply().stdout
        sent = project.requests_sent()
        assert len(sent) == len(set(sent)) > 500
        records = (project.folder / "out/stdlib.jsonl").read_bytes()
        found[like] = (records, project.failures(), sent, project.leftovers())
    assert found["gemini"] == found["vertex"]
    assert len(found["vertex"][1]) == 1
    # On Vertex rows come back in an order of their own.
    assert b'"status":""' in stored_responses(project)


def test_embeddings_are_the_same_on_both(new_project: Callable[..., Any], cli: Callable[..., Any]) -> None:
    found = []
    for like in ("gemini", "vertex"):
        project = new_project(like)
        project.gbrun = cli
        project.inputs(5)
        config = {"output_dimensionality": 8, "task_type": "RETRIEVAL_DOCUMENT", "title": "{{ input.name }}"}
        project.spec(
            backend={**VERTEX, "like": like},
            task="embed_content",
            model="gemini-embedding-001",
            embed_content_config=config,
            output_schema=None,
        )
        project.apply()
        found.append(project.records())
    assert found[0] == found[1]
    assert {len(record["embedding"]) for record in found[1]} == {8}


def test_answers_of_one_service_serve_the_other(project: Any) -> None:
    project.inputs(3)
    project.spec(backend={**VERTEX, "like": "gemini"})
    project.apply()
    project.spec(backend=VERTEX)
    got = project.apply()
    assert "3 unchanged" in got.stdout
    assert len(project.jobs()) == 1
    project.inputs(4)
    project.apply()
    assert len(project.records()) == 4
    assert len(project.jobs()) == 2


def test_direct_calls(project: Any) -> None:
    project.inputs(3)
    project.spec(backend={**VERTEX, "mode": "direct"})
    project.apply()
    assert len(project.records()) == 3
    assert project.jobs() == []


# ---------------------------------------------------------------- what a job carries, and what is left


def test_labels_and_the_token_reach_the_job(project: Any) -> None:
    project.inputs(2)
    project.spec(labels={"team": "support"})
    project.apply()
    (attempt,) = project.attempts()
    (body,) = jobs_left(project)
    assert body["labels"] == {"team": "support", "gbrun_token": attempt["token"]}
    assert body["displayName"] == attempt["token"]
    prefix = body["outputConfig"]["gcsDestination"]["outputUriPrefix"]
    assert prefix == f"gs://gbrun-local/staging/out/{attempt['token']}"
    assert attempt["upload_name"] == f"gs://gbrun-local/staging/{attempt['token']}.jsonl"


@pytest.mark.parametrize("cleanup", ["inputs", "all", "keep"])
def test_what_is_left_at_the_service(cleanup: str, project: Any) -> None:
    project.inputs(5)
    project.spec(cleanup=cleanup)
    project.apply()
    (token,) = (attempt["token"] for attempt in project.attempts())
    names = staged(project)
    uploads = [name for name in names if not name.startswith("out/")]
    assert uploads == ([f"{token}.jsonl"] if cleanup == "keep" else [])
    rows = [name for name in names if name.startswith(f"out/{token}/prediction-model-")]
    assert len(rows) == len(names) - len(uploads)
    assert bool(rows) == (cleanup != "all")
    assert len(jobs_left(project)) == (cleanup != "all")


def test_a_sensitive_value_does_not_come_back_into_the_state(project: Any) -> None:
    secret = "the secret word is Ärger"
    project.inputs(2)
    project.spec(
        variables={"word": {"type": "string", "sensitive": True}},
        prompt="{{ input.text }}",
        extra_body={"labels": {"word": "${var.word}"}},
    )
    project.write("vars.yaml", json.dumps({"word": secret}))
    project.apply("--var-file", "vars.yaml")
    assert len(project.records()) == 2
    responses = stored_responses(project)
    assert b'"status":""' in responses
    assert b'"request"' not in responses
    for path in project.state.rglob("*"):
        if path.is_file() and "emulator" not in path.parts:
            data = path.read_bytes()
            data = gzip.decompress(data) if path.suffix == ".gz" else data
            assert secret.encode() not in data, path
            assert json.dumps(secret).encode()[1:-1] not in data, path


# ---------------------------------------------------------------- faults


def test_every_fault_of_a_row(project: Any) -> None:
    """Two rows of each kind in one job."""
    kinds = [kind for kind in CLASSES if kind not in FILE_KINDS]
    project.inputs(3)
    for kind in kinds:
        for number in range(2):
            project.write(f"inputs/{kind}-{number}.txt", f"Note {number} of <{kind}>.\n")
    project.faults(timing={"pending_s": 0}, rows=[{"kind": kind, "match": f"<{kind}>"} for kind in kinds])
    project.spec(failures={"max_attempts": 1})
    got = project.apply(code=4)
    outcomes = adds_up(project, got.stdout)
    for key, outcome in outcomes.items():
        kind = key.removeprefix("inputs/").rpartition("-")[0]
        assert outcome == (CLASSES[kind][0] if kind else "ok"), key
    codes = {failure["_key"]: failure["code"] for failure in project.failures()}
    assert codes["inputs/row_error-0.txt"] == "INTERNAL"
    (attempt,) = project.attempts()
    assert attempt["strays"] == {"null": 2, "extra": 2, "duplicate": 2}

    project.faults(timing={"pending_s": 0})
    project.spec(failures={"max_attempts": 2})
    again = sum(outcome in RETRYABLE for outcome in outcomes.values())
    assert sum(ledger(project.apply(code=4).stdout, "Requests").values()) == again


@pytest.mark.parametrize("kind", sorted(FILE_KINDS))
def test_a_fault_of_a_file(kind: str, project: Any) -> None:
    project.inputs(5)
    project.faults(timing={"pending_s": 0}, rows=[{"kind": kind}])
    project.spec(failures={"max_attempts": 1})
    got = project.apply(code=4 if kind == "half_line" else 0)
    counts = Counter(adds_up(project, got.stdout).values())
    assert counts == (Counter(ok=4, missing=1) if kind == "half_line" else Counter(ok=5))


JOB_CODES = {
    "failed": "INTERNAL",
    "expired": "JOB_EXPIRED",
    "cancelled": "JOB_CANCELLED",
    "partially_succeeded": "NO_LINE",
}


@pytest.mark.parametrize("kind", JOB_CODES)
@pytest.mark.parametrize("partial", [0.0, 0.5])
def test_rows_of_a_job_that_ended_early_are_kept(kind: str, partial: float, project: Any) -> None:
    project.inputs(4)
    project.faults(timing={"pending_s": 0}, jobs=[{"kind": kind, "times": 1, "partial": partial}])
    project.spec(failures={"max_attempts": 1})
    came = round(4 * partial)
    got = project.apply(code=4)
    assert Counter(adds_up(project, got.stdout).values()) == +Counter(ok=came, missing=4 - came)
    assert {failure["code"] for failure in project.failures()} == {JOB_CODES[kind]}
    project.spec(failures={"max_attempts": 2})
    got = project.apply()
    assert ledger(got.stdout, "Requests") == Counter(ok=4 - came)
    assert len(project.records()) == 4
    assert len(project.jobs()) == 2


@pytest.mark.parametrize(
    ("code", "words"), [(3, "validate --backend vertex"), (7, "gcp-sa-aiplatform"), (9, "bucket")]
)
def test_a_job_that_failed_as_a_whole_is_an_error_with_a_next_step(
    code: int, words: str, project: Any
) -> None:
    project.inputs(2)
    project.faults(timing={"pending_s": 0}, jobs=[{"kind": "failed", "times": 1, "code": code}])
    project.spec()
    assert words in project.apply(code=1).said
    assert project.records() == project.failures() == []
    assert "2 new" in project.plan()
    project.apply()
    assert len(project.records()) == 2


HTTP_CASES = [
    *(("reset", on) for on in ("get", "list", "storage", "storage_write", "storage_read")),
    *(("http_5xx", on) for on in ("get", "list", "storage", "storage_write", "storage_read")),
    *(("lost_reply", on) for on in ("create", "storage_write", "storage_read")),
    ("http_429", "get"),
    ("http_429", "storage_write"),
    ("cut_body", "storage_read"),
    ("slow", "create"),
]


@pytest.mark.parametrize(("kind", "on"), HTTP_CASES)
def test_an_http_fault_never_costs_a_second_job(kind: str, on: str, project: Any) -> None:
    project.inputs(2)
    more = {"delay_s": 0.2} if kind == "slow" else {}
    # The first call of the storage makes the emulator's own bucket.
    skip = {"skip": 1} if on == "storage" else {}
    project.faults(timing={"pending_s": 0}, http=[{"kind": kind, "on": on, "times": 1, **more, **skip}])
    project.spec()
    got = project.apply()
    assert set(adds_up(project, got.stdout).values()) == {"ok"}
    assert len(project.jobs()) == 1
    (attempt,) = project.attempts()
    assert attempt["adopted"] == ((kind, on) == ("lost_reply", "create"))
    assert "No changes" in project.plan("--detailed-exitcode", code=0)


def test_a_lost_reply_among_other_jobs_is_adopted(project: Any) -> None:
    """The listing is trusted because it shows the job known to exist."""
    project.inputs(6)
    project.faults(
        timing={"pending_s": 0}, http=[{"kind": "lost_reply", "on": "create", "skip": 1, "times": 1}]
    )
    project.spec(shards={"max_requests": 2})
    got = project.apply()
    assert set(adds_up(project, got.stdout).values()) == {"ok"}
    assert [attempt["adopted"] for attempt in project.attempts()].count(True) == 1
    assert len(project.jobs()) == 3


# ---------------------------------------------------------------- commands


def test_a_lost_state_comes_back(project: Any) -> None:
    project.inputs(4)
    project.spec(shards={"max_requests": 2})
    project.apply()
    records = project.records()
    emulator = project.folder / "emulator"
    (project.state / "emulator").rename(emulator)
    for path in sorted(project.state.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    (project.folder / "out/notes.jsonl").unlink()
    emulator.rename(project.state / "emulator")
    project.run("import", "job.yaml", "--scan")
    assert project.records() == records
    assert "No changes" in project.apply().stdout
    assert len(project.jobs()) == 2


def test_cancel_and_destroy(project: Any) -> None:
    project.inputs(2)
    project.faults(timing={"pending_s": 60})
    project.spec()
    project.apply("--no-wait", code=3)
    project.run("cancel", "job.yaml", "--auto-approve", code=None)
    (attempt,) = project.attempts()
    assert attempt["job_state"] == "cancelled"
    state = project.state
    project.run("destroy", "job.yaml", "--auto-approve")
    assert not (state / "state.json").exists()


def test_a_spec_of_another_backend_is_held_against_the_importer(project: Any) -> None:
    project.inputs(1)
    project.spec(backend={"type": "local"}, tools=[{"google_search": {}}])
    assert "valid" in project.run("validate", "job.yaml").said
    said = project.run("validate", "job.yaml", "--backend", "vertex", code=64).said
    assert "GB503" in said
    assert "google_search" in said


def test_a_command_without_credentials_says_what_to_run(
    project: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    project.inputs(1)
    place = {"project": "my-project", "location": "us-central1", "staging_uri": "gs://shelf/notes"}
    project.spec(backend={"type": "vertex", **place})
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "none.json"))
    assert "1 new" in project.plan()
    said = project.apply("--allow-local-state", code=1).said
    assert "application-default login" in said


# ---------------------------------------------------------------- whose state it is


def test_another_project_or_location_is_another_endpoint() -> None:
    here = "vertex:us-central1-aiplatform.googleapis.com:my-project/us-central1"
    assert principal.check(here, here, live=True) == ""
    for other in (
        "vertex:us-central1-aiplatform.googleapis.com:other/us-central1",
        "vertex:aiplatform.googleapis.com:my-project/global",
        "gemini:generativelanguage.googleapis.com:0123456789ab",
    ):
        with pytest.raises(StateForeign, match="in flight"):
            principal.check(here, other, live=True)
        assert "stored results are reused" in principal.check(here, other, live=False)
    local = "vertex:localhost:local/us-central1"
    assert principal.is_loopback(local)
    assert principal.is_loopback(f"direct-{local}")
    assert principal.is_loopback("vertex:127.0.0.1:example.com%3Aproject/global")
    assert not principal.is_loopback(here)
    with pytest.raises(StateForeign, match="kept apart"):
        principal.check(local, here, live=False)
