"""Rows of Vertex: `status` says whether they failed, and the request comes back beside the answer."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest
from builders import response_body

from runner.model import Answer, Outcome
from runner.results import Judge, without_echo

ID = "r" + "0" * 32
REQUEST = {"contents": [{"role": "user", "parts": [{"text": "What is it?", "fileData": None}]}]}


def row(status: Any = "", **more: Any) -> bytes:
    body = {
        "status": status,
        "processed_time": "2026-11-21T12:00:00.000+00:00",
        "key": ID,
        "request": REQUEST,
    }
    return orjson.dumps(body | more)


def refused(code: int, name: str, message: str = "No.", words: str = "Bad Request") -> str:
    return f"{words}: " + json.dumps({"error": {"code": code, "message": message, "status": name}})


def judged(line: bytes, judge: Judge | None = None) -> Answer:
    found = (judge or Judge(None)).line(line)
    assert isinstance(found, Answer)
    return found


def test_an_empty_status_is_an_answer() -> None:
    answer = judged(row(response=response_body("It is a shelf.")))
    assert (answer.request_id, answer.outcome, answer.text) == (ID, Outcome.OK, "It is a shelf.")


def test_a_failed_row_is_never_ok_whatever_stands_beside() -> None:
    """Neither for the fast way of reading, nor for the slow one."""
    for response in (response_body("fine"), {**response_body("fine"), "promptFeedback": {}}):
        answer = judged(row(refused(400, "INVALID_ARGUMENT"), response=response))
        assert (answer.outcome, answer.code, answer.message) == (Outcome.REJECTED, "INVALID_ARGUMENT", "No.")


@pytest.mark.parametrize(
    ("status", "outcome", "code"),
    [
        (refused(400, "INVALID_ARGUMENT"), Outcome.REJECTED, "INVALID_ARGUMENT"),
        (refused(400, "FAILED_PRECONDITION"), Outcome.TRANSIENT, "FAILED_PRECONDITION"),
        (
            refused(429, "RESOURCE_EXHAUSTED", words="Too Many Requests"),
            Outcome.TRANSIENT,
            "RESOURCE_EXHAUSTED",
        ),
        (refused(500, ""), Outcome.TRANSIENT, "INTERNAL"),
        (refused(503, "NEW_NAME"), Outcome.TRANSIENT, "UNAVAILABLE"),
        ('Bad Request: {"error": {"code": 403}}', Outcome.REJECTED, "PERMISSION_DENIED"),
        ("Bad Request: not JSON", Outcome.REJECTED, "INVALID_ARGUMENT"),
        ("Service Unavailable", Outcome.TRANSIENT, "UNAVAILABLE"),
        ("Internal", Outcome.TRANSIENT, "INTERNAL"),
        ("something else", Outcome.TRANSIENT, "UNKNOWN"),
        ('Bad Request: {"error": [1]}', Outcome.REJECTED, "INVALID_ARGUMENT"),
        ({"code": 3}, Outcome.TRANSIENT, "UNKNOWN"),
    ],
)
def test_what_a_status_says(status: Any, outcome: Outcome, code: str) -> None:
    for more in ({}, {"response": None}, {"response": response_body("x")}):
        answer = judged(row(status, **more))
        assert (answer.outcome, answer.code) == (outcome, code)
        assert answer.message


def test_an_embedding_is_a_vector() -> None:
    line = row(response={"tokenCount": "2", "embedding": {"values": [0.5, 0.5]}})
    answer = judged(line, Judge(None, embeds=True))
    assert (answer.outcome, answer.value, answer.usage) == (Outcome.OK, [0.5, 0.5], {"prompt": 2})


def test_the_echo_can_be_taken_out() -> None:
    line = row(response={"a": 1})
    assert orjson.loads(without_echo(line)) == {k: v for k, v in orjson.loads(line).items() if k != "request"}
    assert judged(without_echo(row(response=response_body("fine")))).text == "fine"
    plain = b'{"key":"r1","response":{}}'
    assert without_echo(plain) is plain
    # Numbers that do not fit into 64 bits, and lines that are cut off.
    big = row(response={"n": 0}).replace(b'"n":0', b'"n":123456789012345678901234567890')
    assert b"123456789012345678901234567890" in without_echo(big)
    assert b"What" not in without_echo(row(response={})[:-30])
