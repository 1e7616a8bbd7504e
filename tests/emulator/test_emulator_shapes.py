"""Bodies have exactly the keys and types of the recorded ones.

Each file in `shapes/` is one body. A string there that begins with `~` is a pattern, any other string
is meant literally, numbers stand for their type; the first item of a list stands for all, unless the
list has several.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

SHAPES = Path(__file__).parent / "shapes"
ROWS = ["Tell me about apples.", "Tell me about pears."]


def differences(shape, body, place="$"):
    """Where a body leaves its shape."""
    if isinstance(shape, dict):
        if not isinstance(body, dict):
            return [f"{place}: {body!r} is no object"]
        found = [f"{place}.{name}: missing" for name in shape.keys() - body.keys()]
        found += [f"{place}.{name}: not recorded" for name in body.keys() - shape.keys()]
        for name in shape.keys() & body.keys():
            found += differences(shape[name], body[name], f"{place}.{name}")
        return found
    if isinstance(shape, list):
        if not isinstance(body, list) or not body:
            return [f"{place}: {body!r} is no filled list"]
        shapes = shape if len(shape) > 1 else shape * len(body)
        return [
            line
            for n, (one, item) in enumerate(zip(shapes, body, strict=True))
            for line in differences(one, item, f"{place}[{n}]")
        ]
    if isinstance(shape, str):
        if isinstance(body, str) and (
            re.fullmatch(shape[1:], body, re.DOTALL) if shape.startswith("~") else shape == body
        ):
            return []
        return [f"{place}: {body!r} is not {shape!r}"]
    return [] if type(shape) is type(body) else [f"{place}: {body!r} is not like {shape!r}"]


def assert_shape(name, body):
    assert differences(json.loads((SHAPES / f"{name}.json").read_text()), body) == []


def test_the_comparison_finds_differences():
    shape = {"a": [{"b": "~[0-9]+", "c": 1}], "d": "x"}
    assert differences(shape, {"a": [{"b": "12", "c": 5}], "d": "x"}) == []
    for body in (
        {"a": [{"b": "12", "c": 5}]},
        {"a": [{"b": "12", "c": 5}], "d": "x", "e": 1},
        {"a": [{"b": "1x", "c": 5}], "d": "x"},
        {"a": [{"b": "12", "c": "5"}], "d": "x"},
        {"a": [], "d": "x"},
        {"a": [{"b": "12", "c": True}], "d": "x"},
    ):
        assert differences(shape, body)


def test_operations(start, line):
    rows = [line(f"r{n}", text) for n, text in enumerate(ROWS)]
    driver = start({"timing": {"pending_s": 60}}, folder="pending")
    name = driver.create(rows)
    driver.create(rows)
    assert_shape("operation_pending", driver.http("GET", name)[1])
    assert_shape("list", driver.http("GET", "batches?pageSize=1")[1])
    assert_shape("file", driver.http("GET", "files")[1]["files"][0])
    driver.http("POST", f"{name}:cancel")
    assert_shape("operation_cancelled", driver.http("GET", name)[1])

    driver = start({"timing": {"pending_s": 0, "running_s": 60}}, folder="running")
    name = driver.create(rows)
    while driver.http("GET", name)[1]["metadata"]["state"] == "BATCH_STATE_PENDING":
        pass
    assert_shape("operation_running", driver.http("GET", name)[1])
    driver.http("POST", f"{name}:cancel")
    for row in driver.output(driver.wait(name)).splitlines():
        assert_shape("line_cancelled", json.loads(row))

    driver = start({"jobs": [{"kind": "failed", "code": 8, "skip": 1}]}, folder="ended")
    operation, output = driver.run(rows)
    assert_shape("operation_succeeded_file", operation)
    assert (
        operation["metadata"]["createTime"]
        < operation["metadata"]["updateTime"]
        < operation["metadata"]["endTime"]
    )
    for row in output:
        assert_shape("line_success", row)
    assert_shape("operation_failed", driver.wait(driver.create(rows)))


def test_an_inline_operation(emulator, line):
    requests = [{"request": line("", text)["request"], "metadata": {"key": text}} for text in ROWS]
    body = {"batch": {"displayName": "job", "inputConfig": {"requests": {"requests": requests}}}}
    _, created = emulator.http("POST", f"models/{emulator.model}:batchGenerateContent", body)
    assert_shape("operation_succeeded_inline", emulator.wait(created["name"]))


@pytest.mark.parametrize("kind", ["thought_parts", "blocked_prompt", "max_tokens_no_parts"])
def test_spoiled_lines(start, line, kind):
    for row in start({"rows": [{"kind": kind}]}).run([line("a", ROWS[0])])[1]:
        assert_shape(f"line_{kind}", row)


def test_row_errors(start, line):
    assert_shape("line_error", start({"rows": [{"kind": "row_error"}]}).run([line("a", ROWS[0])])[1][0])


def test_error_bodies(start, line):
    driver = start({"http": [{"on": "list", "kind": "http_429"}]})
    file = driver.upload([{"key": "a", "request": {"contents": [], "systemInstruction": []}}])
    body = {"batch": {"inputConfig": {"fileName": file.name}}}
    for name, call in {
        "error_create": ("POST", f"models/{driver.model}:batchGenerateContent", body),
        "error_model": ("POST", "models/gemini-1.5-pro:batchGenerateContent", body),
        "error_output_get": ("GET", f"files/batch-{'x' * 36}"),
        "error_file_gone": ("DELETE", "files/nothing"),
        "error_batch_gone": ("DELETE", "batches/nothing"),
        "error_quota": ("GET", "batches"),
    }.items():
        status, answer = driver.http(*call)
        assert status == answer["error"]["code"]
        assert_shape(name, answer)
