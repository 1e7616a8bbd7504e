"""The story of a row: nothing of what was asked, paid and answered is left out."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from builders import make_stored

from runner import story
from runner.model import Outcome
from runner.results import Judge
from runner.story import Chapter


def told(response: bytes, outcome: Outcome = Outcome.OK, **stored: Any) -> list[str]:
    answer = Judge(None).line(response) if response else None
    return story.tell(
        "k", outcome, None, [Chapter("r1", make_stored("r1", outcome, **stored), None, b"", response, answer)]
    )


@pytest.mark.parametrize(
    ("kind", "parts"),
    [
        (
            "truncated",
            ["outcome: truncated MAX_TOKENS", "finish reason: MAX_TOKENS", '{"topic":', "tokens: "],
        ),
        ("invalid_schema", ["outcome: invalid SCHEMA", "because: /mood: 12345 is not of type"]),
        ("row_error", ["outcome: transient INTERNAL", '"error":{"code":13,"message":"Internal error']),
        ("blocked_prompt", ["outcome: blocked PROHIBITED_CONTENT", 'feedback: {"blockReason": "PROHIBITED']),
        ("fenced", ["outcome: ok", "JSON found in fence", "```json", "response id: "]),
        ("missing", ["outcome: missing NO_LINE", "no line came back"]),
        ("thought_parts", ["outcome: ok", "133 thoughts"]),
    ],
)
def test_what_came_back_is_told(kind: str, parts: list[str], project: Any, cli: Callable[..., Any]) -> None:
    project.gbrun = cli
    project.inputs(1)
    project.faults(timing={"pending_s": 0}, rows=[{"kind": kind}])
    project.spec(failures={"max_attempts": 1}, system_instruction="Be short.")
    project.apply(code=None)
    said = project.run("show", "job.yaml", "--key", "inputs/000.txt").stdout
    for part in ("Be short.", "Note 0: the shelf has 0 boards.", "attempt gb1-", *parts):
        assert part in said, said


def test_an_answer_that_is_no_text_is_shown_as_its_line() -> None:
    call = {"content": {"parts": [{"functionCall": {"name": "look"}}]}, "finishReason": "STOP"}
    line = json.dumps({"key": "r1", "response": {"candidates": [call], "responseId": "abc"}}).encode()
    said = told(line)
    assert "  response id: abc" in said
    assert said[-2:] == [f"  line that came back ({len(line):,} bytes):", f"    {line.decode()}"]


@pytest.mark.parametrize("line", [b'{"key":"r1","response":{"a":NaN}}', b'{"key":"r1","x":"\xff"}', b"[1]"])
def test_a_line_that_cannot_be_read_is_shown(line: bytes) -> None:
    assert told(line)[-1] == f"    {line.decode(errors='replace')}"


def test_a_long_line_is_cut() -> None:
    line = b'{"key":"r1","response":{"embedding":{"values":[' + b"0.5," * 5_000 + b"0.5]}}}"
    assert len(told(line)[-1]) < 2_100
    assert told(line)[-1].endswith("...")
    assert told(line)[-2] == f"  line that came back ({len(line):,} bytes):"
