"""`gbrun test`: a few rows asked at once, and `mode: direct`, the whole job through such calls."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Callable
from typing import Any

import pytest
from builders import make_spec

from runner import trial
from runner.model import Request
from runner.specmodel import BackendSpec

VECTORS = {
    "task": "embed_content",
    "model": "gemini-embedding-001",
    "output_schema": None,
    "embed_content_config": {"output_dimensionality": 16},
}


def test_rows_are_asked_and_nothing_is_stored(project: Any) -> None:
    project.inputs(5)
    project.spec()
    said = project.run("test", "job.yaml", "-n", "2").stdout

    assert "inputs/000.txt  r" in said
    assert "inputs/001.txt  r" in said
    assert "inputs/002.txt" not in said
    assert "Note 1: the shelf has 1 boards." in said
    assert "Requests 2 = 2 ok" in said
    assert "free" in said
    assert not (project.folder / ".gbrun/notes/default-local/state.json").exists()
    assert not (project.folder / "out").exists()


def test_one_row_by_its_key(project: Any) -> None:
    project.inputs(3)
    project.spec()
    assert "inputs/002.txt  r" in project.run("test", "job.yaml", "--key", "inputs/002.txt").stdout
    assert "no input has the key" in project.run("test", "job.yaml", "--key", "x", code=64).stderr


def test_the_answer_is_the_one_that_a_batch_gives(project: Any) -> None:
    project.inputs(1)
    project.spec()
    said = project.run("test", "job.yaml").stdout
    project.apply()
    record = json.loads((project.folder / "out/notes.jsonl").read_text())
    del record["_key"]
    assert json.dumps(record, indent=2).replace("\n", "\n    ") in said


def test_an_answer_that_is_not_good_is_exit_4(project: Any) -> None:
    project.inputs(1)
    project.faults(rows=[{"kind": "truncated"}])
    project.spec()
    said = project.run("test", "job.yaml", code=4).stdout
    assert "truncated MAX_TOKENS" in said
    assert "Requests 1 = 1 truncated" in said


def test_what_was_asked_before_an_error_is_summed_up(project: Any) -> None:
    """It is paid for, whatever came after it."""
    project.inputs(4)
    project.faults(http=[{"on": "generate", "kind": "http_5xx", "status": 500, "skip": 2}])
    project.spec()
    ran = project.run("test", "job.yaml", "-n", "4", code=1)
    assert "Requests 2 = 2 ok" in ran.stdout
    assert re.search(r"^Tokens \d+ prompt", ran.stdout, re.M)
    assert "500 INTERNAL" in ran.stderr


def test_a_row_that_cannot_be_read_is_passed_over_where_the_spec_says_so(project: Any) -> None:
    project.inputs(3)
    project.write("inputs/001.txt", b"no UTF-8: \xff")
    project.spec(inputs=[{"files": {"glob": "inputs/*.txt"}}])
    ran = project.run("test", "job.yaml", code=1)
    assert "the input is not utf-8" in ran.stderr
    assert "Requests 1 = 1 ok" in ran.stdout
    project.spec(inputs=[{"files": {"glob": "inputs/*.txt"}, "on_bad_row": "skip"}])
    said = project.run("test", "job.yaml", code=4).stdout
    assert re.search(r"^inputs/001.txt  not asked\n  the input is not utf-8.*\[GB602\]$", said, re.M)
    assert "Requests 2 = 2 ok" in said


def test_more_rows_than_there_are(project: Any) -> None:
    project.inputs(2)
    project.spec()
    assert "Requests 2 = 2 ok" in project.run("test", "job.yaml", "-n", "100").stdout


def test_vectors_are_held_against_those_of_the_batch(project: Any) -> None:
    project.inputs(2)
    project.spec(**VECTORS)
    assert "cosine" not in project.run("test", "job.yaml").stdout
    project.apply()
    assert (
        project.run("test", "job.yaml").stdout.count("cosine to the batch's vector: 1.0000 (the same)") == 2
    )


def asked(vector: list[float], former: list[float] | None) -> trial.Trial:
    spec = make_spec(task="embed_content")
    line = json.dumps({"key": "r1", "response": {"embedding": {"values": vector}}}).encode()
    return trial.ask(spec, Request("r1", b"{}"), b"{}", lambda sent: line, former)


def test_another_vector_than_the_batch_brought_is_not_good() -> None:
    assert asked([1.0, 0.0], [1.0, 0.001]).good
    assert not asked([1.0, 0.0], [0.9, 0.5]).good
    assert not asked([1.0, 0.0], [1.0, 0.0, 0.0]).good
    assert asked([1.0, 0.0], None).good


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"n": 1%s}' % ("0" * 30), '"n": 1' + "0" * 30),
        ('{"t": "a\\\\ud800é"}', '"t": "a\\ud800\\u00e9"'),
        ('{"t": "é"}', '"t": "é"'),
    ],
)
def test_any_answer_is_shown(text: str, told: str) -> None:
    """Whole numbers of any size, and half a surrogate pair, are JSON."""
    line = (
        '{"key":"r1","response":{"candidates":[{"content":{"parts":[{"text":"%s"}]},"finishReason":"STOP"}]}}'
    )
    response = (line % text.replace('"', '\\"')).encode()
    spec = make_spec(output_schema={"type": "object"})
    request = Request("r1", b'{"key":"r1","request":{"contents":[{"parts":[{"text":"x"}]}]}}')
    found = trial.ask(spec, request, b"{}", lambda sent: response, None)
    assert found.good
    shown = "\n".join(trial.shown(spec, "k", found))
    assert told in shown
    assert shown.encode()


def test_any_error_of_a_row_is_shown() -> None:
    error = {"code": 3, "message": "no", "big": 10**30}
    response = json.dumps({"key": "r1", "error": error}).encode()
    request = Request("r1", b'{"key":"r1","request":{"contents":[]}}')
    found = trial.ask(make_spec(), request, b"{}", lambda sent: response, None)
    assert not found.good
    assert f'"big":{10**30}' in "\n".join(trial.shown(make_spec(), "k", found))


def test_cost_is_told_with_its_date_or_not_at_all() -> None:
    paid = BackendSpec(type="gemini")
    said = trial.cost(
        make_spec(backend=paid, model="gemini-3.8-flash"), {"prompt": 1_000_000, "thoughts": 1000}
    )
    assert said.startswith("about $0.753750, in a batch $0.376875 (list prices of text as of 20")
    assert trial.cost(make_spec(backend=paid, model="no-such"), {"prompt": 1}) == (
        "the price of no-such is not known"
    )
    # A model that another one answers for costs what the other does.
    assert "$1.875000" in trial.cost(make_spec(backend=paid, model="gemini-3.5-flash"), {"output": 500_000})


def test_direct_calls_give_the_records_of_a_batch(new_project: Callable[..., Any]) -> None:
    texts = []
    for backend in ({"type": "local"}, {"type": "local", "mode": "direct"}):
        project = new_project()
        project.inputs(30)
        project.spec(backend=backend)
        project.apply()
        texts.append((project.folder / "out/notes.jsonl").read_bytes())
        assert "No changes." in project.apply().stdout
    assert texts[0] == texts[1]


def test_switching_to_direct_calls_reruns_nothing(project: Any) -> None:
    project.inputs(3)
    project.spec()
    project.apply()
    project.spec(backend={"type": "local", "mode": "direct"})
    assert "No changes." in project.run("plan", "job.yaml").stdout


def test_row_faults_have_the_same_classes_in_direct_calls(project: Any) -> None:
    project.inputs(4)
    project.faults(
        rows=[{"kind": "truncated", "match": "Note 1:"}, {"kind": "recitation", "match": "Note 2:"}]
    )
    project.settings["backend"]["mode"] = "direct"
    project.spec()
    assert "Rows 4 = 2 ok + 1 blocked + 1 truncated" in project.apply(code=4).stdout
    assert not list((project.folder / ".gbrun/notes/default-local/direct").iterdir())


def test_ctrl_c_keeps_the_answers_there_are(project: Any, gbrun: Any, wait_for: Any) -> None:
    project.inputs(30)
    project.faults(http=[{"on": "generate", "kind": "slow", "delay_s": 0.4}])
    project.settings["backend"]["mode"] = "direct"
    project.spec()
    child = gbrun.start("apply", "job.yaml", "--auto-approve", cwd=project.folder)
    direct = project.folder / ".gbrun/notes/default-local/direct"

    def answered() -> int:
        return sum(path.read_bytes().count(b"\n") for path in direct.glob("*.answers"))

    wait_for(lambda: answered() >= 3)
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=30)
    assert child.returncode == 130, out + err
    assert "calls in flight are waited for" in err
    assert "what has an answer is kept, the others are asked by the next apply" in out
    kept = answered()
    assert 3 <= kept < 30
    project.faults()
    project.apply()
    assert len(project.records()) == 30
