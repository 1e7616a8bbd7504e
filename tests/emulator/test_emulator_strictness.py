"""What the service refuses, the emulator refuses: at create, naming the line, with no job left behind."""

from __future__ import annotations

import json

import pytest
from google.genai import errors

OK = {"contents": [{"role": "user", "parts": [{"text": "hello"}]}]}
JSON = {"responseMimeType": "application/json"}


def with_config(**config):
    return {**OK, "generationConfig": config}


def with_schema(schema):
    return with_config(responseMimeType="application/json", responseSchema=schema)


OBJECT = {"type": "OBJECT", "properties": {"a": {"type": "STRING"}}}

REFUSED = [
    ({**OK, "thinking_config": {}}, "no such field: 'thinking_config'"),
    ({**OK, "temperature": 1}, "no such field: 'temperature'"),
    ({**OK, "systemInstruction": "be nice"}, "expected '{'"),
    ({**OK, "system_instruction": [{"text": "x"}]}, "unexpected character: '['; expected '{'"),
    ({**OK, "systemInstruction": {"parts": []}}, "parts must not be empty"),
    ({}, "contents is not specified"),
    ({"contents": []}, "contents is not specified"),
    ({"contents": "hello"}, "expected '['"),
    ({"contents": [{"role": "user"}]}, "parts must not be empty"),
    ({"contents": [{"parts": [{}]}]}, "oneof field 'data'"),
    ({"contents": [{"parts": [{"text": "a", "inlineData": {"data": "aGk="}}]}]}, "already set"),
    ({"contents": [{"parts": [{"inlineData": {"data": "*"}}]}]}, "base64"),
    ({"contents": [{"role": "system", "parts": [{"text": "a"}]}]}, "valid role: user, model"),
    ({"contents": [{"parts": [{"text": 1}]}]}, "expected a string"),
    ({"contents": [{"parts": [{"text": "a", "displayName": "x"}]}]}, "no such field: 'displayName'"),
    ({**OK, "labels": {"a": 1}}, "expected a string"),
    ({**OK, "safetySettings": [{"category": "HARM", "threshold": "OFF"}]}, "expected one of"),
    ({**OK, "safetySettings": [{"method": "SEVERITY"}]}, "no such field: 'method'"),
    ({**OK, "tools": [{"retrieval": {}}]}, "no such field: 'retrieval'"),
    ({**OK, "tools": [{"functionDeclarations": [{"name": "1x"}]}]}, "Invalid function name"),
    (with_config(temperature="hot"), "expected a number"),
    (with_config(temperature=3), "range"),
    (with_config(topP=1.5), "range"),
    (with_config(maxOutputTokens=0), "range"),
    (with_config(maxOutputTokens=1.5), "32-bit integer"),
    (with_config(maxOutputTokens=True), "32-bit integer"),
    (with_config(stopSequences=list("abcdef")), "stop sequences"),
    (with_config(response_schema=OBJECT), "response_mime_type must be"),
    (with_config(responseJsonSchema={}), "response_mime_type must be"),
    (with_config(responseMimeType="text/html"), "allowed mimetypes"),
    (with_config(**JSON, responseSchema=OBJECT, responseJsonSchema={}), "only one of"),
    (with_config(thinkingConfig={"thinkingLevel": "EXTREME"}), "expected one of"),
    (with_config(thinkingConfig={"thinkingLevel": "LOW", "thinkingBudget": 1}), "only set only one"),
    (with_config(maxTokens=5), "no such field: 'maxTokens'"),
    (with_config(temperature=1, max_output_tokens=5, maxOutputTokens=6), "given twice"),
    (with_schema({"type": "object", "additionalProperties": False}), "no such field: 'additionalProperties'"),
    (with_schema({"$ref": "#/$defs/a"}), "no such field: '$ref'"),
    (with_schema({"type": ["string", "null"]}), "expected one of"),
    (with_schema({"oneOf": []}), "no such field: 'oneOf'"),
    (with_schema({"type": "STRING", "const": "a"}), "no such field: 'const'"),
    (with_schema({}), "must be specified"),
    (with_schema({"type": "ARRAY"}), "missing field"),
    (with_schema({"type": "OBJECT"}), "should be non-empty for OBJECT type"),
    (with_schema({**OBJECT, "required": ["b"]}), "property is not defined"),
    (with_schema({"type": "INTEGER", "enum": ["1"]}), "only allowed for STRING type"),
    (with_schema({"type": "STRING", "enum": ["a", ""]}), "cannot be empty"),
    (with_schema({"type": "STRING", "enum": [1]}), "expected a string"),
    (with_schema({"type": "ARRAY", "items": {"type": "STRING", "minLength": "x"}}), "64-bit integer"),
]


@pytest.mark.parametrize(("request_body", "words"), REFUSED, ids=[str(n) for n in range(len(REFUSED))])
def test_a_bad_request_is_refused_on_its_line(shared, request_body, words):
    file = shared.upload([{"key": "a", "request": OK}, {"key": "b", "request": request_body}])
    with pytest.raises(errors.ClientError) as caught:
        shared.client.batches.create(model=shared.model, src=file.name)
    assert (caught.value.code, caught.value.status) == (400, "INVALID_ARGUMENT")
    assert caught.value.message.startswith("Error on line 2: invalid JSON, near column ")
    assert words in caught.value.message
    assert shared.http("GET", "batches")[1] == {}


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b'{"key": "a", "request": ', "Error on line 1: invalid JSON, near column"),
        (b"[1]\n", "unexpected character: '['"),
        (b'{"key": "a"}\n', "no request is given"),
        (b'{"key": 5, "request": {"contents": [{"parts": [{"text": "a"}]}]}}\n', "expected a string"),
        (b'{"custom_id": "a", "request": {"contents": [{"parts": [{"text": "a"}]}]}}\n', "'custom_id'"),
        (b'{"request": {"contents": [{"parts": [{"text": "a"}]}]}}\n\n', "Error on line 2"),
        (b'{"request": {"contents": [{"parts": [{"text": "\xff"}]}]}}\n', "Error on line 1"),
        (b'{"request": ' + b'{"a":' * 5000 + b"1" + b"}" * 5000 + b"}\n", "Error on line 1"),
        (b"", "no requests"),
    ],
)
def test_a_bad_file_is_refused(shared, data, words):
    file = shared.upload(data)
    with pytest.raises(errors.ClientError) as caught:
        shared.client.batches.create(model=shared.model, src=file.name)
    assert caught.value.code == 400
    assert words in caught.value.message


def test_the_column_is_where_the_problem_is(shared):
    text = json.dumps({"key": "a", "request": {**OK, "systemInstruction": [1]}})
    file = shared.upload(text.encode())
    with pytest.raises(errors.ClientError) as caught:
        shared.client.batches.create(model=shared.model, src=file.name)
    assert f"near column {text.index('[1]') + 1}:" in caught.value.message


ACCEPTED = [
    {"contents": [{"parts": [{"text": "a"}]}]},
    {**OK, "system_instruction": {"parts": [{"text": "x"}]}, "generation_config": {"max_output_tokens": 5}},
    {**OK, "generationConfig": None, "cachedContent": None},
    {**OK, "labels": {"team": "a"}, "toolConfig": {"functionCallingConfig": {"mode": "NONE"}}},
    {**OK, "tools": [{"googleSearch": {}}, {"codeExecution": {}}, {"urlContext": {}}]},
    {**OK, "safety_settings": [{"category": "HARM_CATEGORY_HARASSMENT", "threshold": "BLOCK_NONE"}]},
    with_config(thinkingConfig={"thinking_level": "LOW"}, mediaResolution="MEDIA_RESOLUTION_LOW", topK=40),
    with_schema(
        {"type": "object", "properties": {"a": {"type": "string", "format": "date"}}, "required": ["a"]}
    ),
    with_schema({"anyOf": [{"type": "STRING"}, {"type": "NULL"}]}),
    with_config(**JSON, responseJsonSchema={"type": ["string", "null"], "unheardOf": 1}),
    with_config(responseMimeType="text/x.enum", responseSchema={"type": "STRING", "enum": ["a", "b"]}),
    {"contents": [{"parts": [{"inlineData": {"mimeType": "image/png", "data": "aGk="}}, {"text": "what?"}]}]},
]


def test_good_requests_are_taken_in_both_spellings(emulator):
    lines = [{"key": str(n), "request": request} for n, request in enumerate(ACCEPTED)]
    operation, output = emulator.run(lines)
    assert operation["metadata"]["batchStats"]["successfulRequestCount"] == str(len(ACCEPTED))
    assert all("response" in row for row in output)


def test_duplicate_and_missing_keys_are_taken(emulator):
    _, output = emulator.run([{"key": "a", "request": OK}, {"key": "a", "request": OK}, {"request": OK}])
    assert [row.get("key", "none") for row in output] == ["a", "a", "none"]


def test_inline_and_synchronous_problems_name_their_place(emulator):
    bad = {**OK, "thinking_config": {}}
    body = {"batch": {"inputConfig": {"requests": {"requests": [{"request": OK}, {"request": bad}]}}}}
    path = f"models/{emulator.model}"
    status, answer = emulator.http("POST", f"{path}:batchGenerateContent", body)
    assert status == 400
    assert answer["error"]["message"] == (
        'Invalid JSON payload received. Unknown name "thinking_config" at '
        "'batch.input_config.requests.requests[1].request': Cannot find field."
    )
    status, answer = emulator.http("POST", f"{path}:generateContent", {"contents": []})
    assert status == 400
    assert answer["error"]["message"] == "* contents: contents is not specified\n"
    status, answer = emulator.http("POST", f"{path}:generateContent", with_schema({"type": "ARRAY"}))
    assert "generation_config.response_schema.items: missing field." in answer["error"]["message"]
    assert emulator.http("GET", "batches")[1] == {}


@pytest.mark.parametrize(
    "batch",
    [
        {},
        {"inputConfig": {}},
        {"inputConfig": {"fileName": "files/a", "requests": {"requests": []}}},
        {"inputConfig": {"requests": {"requests": []}}},
        {"inputConfig": {"fileName": "files/a"}, "colour": "red"},
    ],
)
def test_a_bad_create_body_is_refused(shared, batch):
    assert shared.http("POST", f"models/{shared.model}:batchGenerateContent", {"batch": batch})[0] == 400


def test_an_inline_batch_above_20_mb_is_refused(emulator):
    big = {"contents": [{"parts": [{"text": "x" * (21 << 20)}]}]}
    body = {"batch": {"inputConfig": {"requests": {"requests": [{"request": big}]}}}}
    try:
        status, answer = emulator.http("POST", f"models/{emulator.model}:batchGenerateContent", body)
    except OSError:
        # The answer was sent before the body was read, which some clients report as a broken pipe.
        pass
    else:
        assert (status, answer["error"]["status"]) == (400, "INVALID_ARGUMENT")
    assert emulator.http("GET", "batches")[1] == {}


@pytest.mark.parametrize("depth", [200, 300, 1000])
def test_deep_schemas_end_as_row_errors_or_refusals(emulator, depth):
    text = json.dumps({"key": "a", "request": with_config(**JSON, responseJsonSchema="HERE")})
    nested = '{"type": "array", "items": ' * depth + '{"type": "string"}' + "}" * depth
    file = emulator.upload(text.replace('"HERE"', nested).encode() + b"\n")
    status, answer = emulator.http(
        "POST",
        f"models/{emulator.model}:batchGenerateContent",
        {"batch": {"inputConfig": {"fileName": file.name}}},
    )
    if status == 200:
        operation = emulator.wait(answer["name"])
        assert operation["metadata"]["state"] == "BATCH_STATE_SUCCEEDED"
    else:
        assert status == 400


def test_unknown_paths_are_not_found(shared):
    assert shared.http("GET", "models")[0] == 404
    assert shared.http("POST", "files/x")[0] == 404
    assert shared.http("GET", "batches/nothing")[0] == 404
    assert shared.http("DELETE", "batches/nothing")[0] == 404
    assert shared.http("GET", "files/batch-nothing:download?alt=media")[0] == 404
