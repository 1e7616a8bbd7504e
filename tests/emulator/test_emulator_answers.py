"""Answers conform to their schemas, depend on the request alone, and are quick to make."""

from __future__ import annotations

import json
import random
import re
import time

import jsonschema_rs
import orjson
import pytest

from runner.emulator import answers, patterns, values
from runner.emulator.messages import check

TREE = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "children": {"type": "array", "items": {"$ref": "#"}}},
    "required": ["name", "children"],
}
SCHEMAS = [
    {"type": "string"},
    {"type": "string", "enum": ["billing", "bug", "other"]},
    {"type": "string", "minLength": 200, "maxLength": 210},
    {"type": "string", "maxLength": 3},
    {"type": "string", "pattern": "^[A-Z]{3}-\\d{4}$"},
    {"type": "string", "pattern": "^(foo|ba[rz])+\\.(txt|md)$", "minLength": 12, "maxLength": 20},
    {"type": "string", "pattern": "[^a-z ]", "minLength": 30},
    {"type": "string", "format": "date"},
    {"type": "string", "format": "date-time"},
    {"type": "string", "format": "uuid"},
    {"type": "integer", "minimum": 3, "maximum": 4},
    {"type": "integer", "maximum": -7},
    {"type": "number", "minimum": 0.25, "maximum": 0.26},
    {"type": "number", "minimum": 1e6},
    {"type": "boolean"},
    {"type": ["integer", "null"]},
    {"type": "array", "items": {"type": "string", "enum": ["a", "b"]}, "minItems": 4, "maxItems": 5},
    {"type": "array", "items": {"type": "integer"}, "maxItems": 0},
    {"type": "array", "prefixItems": [{"type": "string"}, {"type": "integer"}], "items": {"type": "boolean"}},
    {"type": "object", "properties": {}, "additionalProperties": {"type": "integer"}, "minProperties": 2},
    {
        "type": "object",
        "properties": {name: {"type": "string"} for name in "abcdefgh"},
        "required": ["c"],
        "minProperties": 3,
        "maxProperties": 4,
        "additionalProperties": False,
    },
    {"anyOf": [{"type": "string", "maxLength": 2}, {"type": "integer", "minimum": 5}, {"type": "null"}]},
    {
        "type": "object",
        "properties": {"kind": {"type": "string"}},
        "required": ["kind"],
        "oneOf": [
            {"properties": {"kind": {"enum": ["x"]}, "x": {"type": "integer"}}, "required": ["x"]},
            {"properties": {"kind": {"enum": ["y"]}, "y": {"type": "string"}}, "required": ["y"]},
        ],
    },
    TREE,
    {
        "$defs": {
            "node": {
                "type": "object",
                "properties": {"next": {"$ref": "#/$defs/node"}, "v": {"type": "number"}},
            }
        },
        "type": "object",
        "properties": {"head": {"$ref": "#/$defs/node"}},
        "required": ["head"],
    },
    {
        "type": "object",
        "properties": {
            "team": {"enum": ["billing", "bug"]},
            "tags": {"type": "array", "items": {"type": "string"}, "minItems": 1},
            "who": {"type": "object", "properties": {"email": {"type": "string", "format": "email"}}},
        },
        "required": ["team", "tags", "who"],
    },
]


def make_request(text: str, **config):
    body = {"contents": [{"parts": [{"text": text}]}]}
    if config:
        body["generationConfig"] = config
    return check("GenerateContentRequest", body)


def answer(request):
    return answers.response(request, answers.digest(request), answers.prompt_of(request))


def text_of(response):
    return response["candidates"][0]["content"]["parts"][0]["text"]


@pytest.mark.parametrize("schema", SCHEMAS, ids=[str(n) for n in range(len(SCHEMAS))])
def test_answers_conform_to_json_schemas(schema):
    validator = jsonschema_rs.validator_for(schema, validate_formats=True)
    for number in range(150):
        request = make_request(
            f"Ticket {number}.\nMy invoice number {number} is wrong.",
            responseMimeType="application/json",
            responseJsonSchema=schema,
        )
        found = json.loads(text_of(answer(request)))
        assert validator.is_valid(found), found


def upper(schema):
    """A JSON Schema of the common subset in the dialect of responseSchema."""
    out = {}
    for name, value in schema.items():
        if name == "type":
            kinds = value if isinstance(value, list) else [value]
            out["type"] = next(kind for kind in kinds if kind != "null").upper()
            if "null" in kinds:
                out["nullable"] = True
        elif name == "properties":
            out[name] = {key: upper(child) for key, child in value.items()}
        elif name == "items":
            out[name] = upper(value)
        elif name == "anyOf":
            out[name] = [upper(child) if child["type"] != "null" else {"type": "NULL"} for child in value]
        elif name != "additionalProperties":
            out[name] = value
    return out


@pytest.mark.parametrize("schema", SCHEMAS[:17] + SCHEMAS[20:22], ids=str)
def test_answers_conform_to_response_schemas_over_http(shared, line, schema):
    validator = jsonschema_rs.validator_for(schema, validate_formats=True)
    config = {"responseMimeType": "application/json", "responseSchema": upper(schema)}
    _, output = shared.run([line(str(n), f"Row {n} of many rows.", **config) for n in range(20)])
    for row in output:
        assert validator.is_valid(json.loads(text_of(row["response"])))


def test_the_same_request_gets_the_same_answer_however_it_is_written(start, line):
    schema = {"type": "OBJECT", "properties": {"b": {"type": "STRING"}, "a": {"type": "NUMBER"}}}
    camel = line(
        "x", "Tell me about the weather.", responseMimeType="application/json", responseSchema=schema
    )
    snake = {
        "request": {
            "generation_config": {
                "response_schema": {"properties": schema["properties"], "type": "object"},
                "response_mime_type": "application/json",
            },
            "contents": [{"parts": [{"text": "Tell me about the weather."}], "role": "user"}],
        },
        "key": "other",
    }
    filler = [line(f"f{n}", f"filler {n}") for n in range(10)]
    _, first = start(folder="one").run([camel, *filler])
    _, second = start({"seed": 9}, folder="two").run([*filler, snake])
    assert first[0]["response"] == second[-1]["response"]
    assert first[0]["response"] != first[1]["response"]


def test_an_upload_counts_by_its_bytes_not_by_its_address(emulator, start):
    def ask(driver, data):
        path = driver.folder / "image.png"
        path.write_bytes(data)
        file = driver.client.files.upload(file=str(path))
        part = {"fileData": {"fileUri": file.uri, "mimeType": "image/png"}}
        _, output = driver.run(
            [{"key": "a", "request": {"contents": [{"parts": [part, {"text": "What?"}]}]}}]
        )
        return output[0]["response"]

    other = start(folder="other")
    one = ask(emulator, b"one")
    assert one == ask(other, b"one")
    assert one["responseId"] != ask(other, b"two")["responseId"]
    assert {"modality": "IMAGE", "tokenCount": 258} in one["usageMetadata"]["promptTokensDetails"]


def test_a_row_whose_upload_is_gone_fails(emulator):
    part = {"fileData": {"fileUri": f"{emulator.url}/v1beta/files/gone", "mimeType": "image/png"}}
    _, output = emulator.run([{"key": "a", "request": {"contents": [{"parts": [part]}]}}])
    assert output[0]["error"]["code"] == 7


def test_enum_values_follow_the_text():
    schema = {"type": "STRING", "enum": ["billing", "bug", "other"]}
    prompt = "Answer with one of: billing, bug, other.\n"
    for word in ("billing", "bug"):
        request = make_request(
            prompt + f"This is a {word.upper()} matter, debugging did not help.",
            responseMimeType="application/json",
            responseSchema=schema,
        )
        assert text_of(answer(request)) == f'"{word}"'
    bare = make_request(prompt + "bug", responseMimeType="text/x.enum", responseSchema=schema)
    assert text_of(answer(bare)) == "bug"


def test_strings_quote_the_document_and_properties_keep_their_order():
    schema = {
        "type": "OBJECT",
        "properties": {name: {"type": "STRING"} for name in ("zeta", "alpha", "mid")},
        "required": ["zeta", "alpha", "mid"],
    }
    config = {"responseMimeType": "application/json"}
    text = "Summarise this.\nThe lift on floor 9 is stuck again. Please send someone."
    found = json.loads(text_of(answer(make_request(text, **config, responseSchema=schema))))
    assert list(found) == ["zeta", "alpha", "mid"]
    assert all("lift on floor 9".startswith(value[4:15]) for value in found.values())
    ordered = {**schema, "propertyOrdering": ["mid", "zeta", "alpha"]}
    assert list(json.loads(text_of(answer(make_request(text, **config, responseSchema=ordered))))) == [
        "mid",
        "zeta",
        "alpha",
    ]


def test_max_output_tokens_cuts_the_answer():
    response = answer(make_request("Say a lot about everything.", maxOutputTokens=3))
    assert response["candidates"][0]["finishReason"] == "MAX_TOKENS"
    assert len(text_of(response)) == 12
    assert response["usageMetadata"]["candidatesTokenCount"] == 3


def test_usage_adds_up_and_candidates_are_counted():
    response = answer(make_request("Say a lot about everything.", candidateCount=3))
    usage = response["usageMetadata"]
    assert [candidate["index"] for candidate in response["candidates"]] == [0, 1, 2]
    assert usage["totalTokenCount"] == usage["promptTokenCount"] + usage["candidatesTokenCount"]
    assert usage["promptTokensDetails"] == [{"modality": "TEXT", "tokenCount": 7}]


def test_a_json_schema_that_makes_no_sense_fails_its_row(emulator, line):
    bad = {"$ref": "#/$defs/nowhere"}
    _, output = emulator.run([line("a", "x", responseMimeType="application/json", responseJsonSchema=bad)])
    assert output[0]["error"]["code"] == 3


@pytest.mark.parametrize(
    "pattern",
    [
        "^a*b?c+$",
        "^[a-f0-9]{8}$",
        "\\d{2,3}",
        "^x|y$",
        "^(?:ab){2}[^\\d]$",
        "^\\w+@\\w+\\.com$",
        "\\u0041b",
        "^[]a]$",
    ],
)
def test_patterns_are_met(pattern):
    for seed in range(50):
        found = patterns.example(pattern, values.draw(seed, 1), 0, 100, "padding")
        if pattern == "^[]a]$":
            assert found is not None
        assert found is not None
        assert re.search(pattern, found)


@pytest.mark.parametrize("pattern", ["(?=a)b", "(a)\\1", "\\p{L}+", "(", "[z-a]", "a{2", ""])
def test_strange_patterns_do_no_harm(pattern):
    found = patterns.example(pattern, 5, 0, 10, "padding")
    assert found is None or re.search(pattern, found)


def test_answers_are_made_quickly():
    """A floor well under the measured speed, so that a slow machine does not fail it."""
    lines = [orjson.dumps({"request": make_request(f"Row {n} says this and that.")}) for n in range(4000)]
    best = 0.0
    for _ in range(3):
        begin = time.perf_counter()
        for raw in lines:
            request = check("Row", orjson.loads(raw))["request"]
            orjson.dumps(answer(request))
        best = max(best, len(lines) / (time.perf_counter() - begin))
    assert best > 5_000


def test_draws_spread_evenly():
    rng = random.Random(1)
    counts = [0] * 8
    for _ in range(8000):
        counts[values.draw(rng.getrandbits(64), 12345) & 7] += 1
    assert min(counts) > 850
