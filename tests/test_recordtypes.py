"""Types of a record's fields, read from a schema."""

from __future__ import annotations

from typing import Any

import pytest
from builders import make_spec

from runner import records, recordtypes
from runner.recordtypes import Type, of_record, of_schema
from runner.specmodel import Samples


def shown(kind: Type) -> str:
    """A type in a few characters: `{a: string, b: [integer], ...}`."""
    if kind.kind == "list":
        assert kind.items is not None
        return f"[{shown(kind.items)}]"
    if kind.kind == "struct":
        fields = [f"{name}: {shown(inner)}" for name, inner in kind.fields]
        return "{" + ", ".join([*fields, *(["..."] if kind.is_open else [])]) + "}"
    return kind.kind


def closed(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "additionalProperties": False}


S, I, N, NULL = {"type": "string"}, {"type": "integer"}, {"type": "number"}, {"type": "null"}  # noqa: E741


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ({}, "json"),
        (S, "string"),
        ({"type": ["null", "string"]}, "string"),
        ({"type": ["integer", "number"]}, "number"),
        ({"type": ["string", "integer"]}, "json"),
        ({"type": "null"}, "json"),
        ({"enum": ["a", None]}, "string"),
        ({"enum": [1, 2]}, "integer"),
        ({"enum": [1, 2.5]}, "number"),
        ({"enum": [True]}, "boolean"),
        ({"enum": [1, True]}, "json"),
        ({"enum": ["a", 1]}, "json"),
        ({"const": None}, "json"),
        ({"const": [1]}, "json"),
        ({"type": "number", "const": 1}, "number"),
        ({"type": "array"}, "json"),
        ({"type": "array", "items": S}, "[string]"),
        ({"type": "array", "items": {"type": "array", "items": N}}, "[[number]]"),
        ({"type": "array", "prefixItems": [I, N], "items": False}, "[number]"),
        ({"type": "array", "prefixItems": [I, S], "items": False}, "json"),
        ({"type": "array", "prefixItems": [I]}, "json"),
        ({"type": "object"}, "object"),
        ({"type": "object", "additionalProperties": S}, "object"),
        ({"type": "object", "properties": {"a": S}}, "{a: string, ...}"),
        (closed(b=S, a=closed(c=I)), "{b: string, a: {c: integer}}"),
        ({**closed(a=S), "patternProperties": {"^x": S}}, "{a: string, ...}"),
        (closed(a=True, b=False), "{a: json, b: json}"),
        ({"properties": {"a": S}}, "{a: string, ...}"),
        ({"anyOf": [S, NULL]}, "string"),
        ({"oneOf": [S, I]}, "json"),
        ({"oneOf": [I, N]}, "number"),
        ({"anyOf": [closed(a=S), closed(a=S, b=I)]}, "{a: string, b: integer}"),
        ({"anyOf": [closed(a=S), closed(a=I)]}, "{a: json}"),
        ({"anyOf": [{"type": "array", "items": I}, {"type": "array", "items": N}]}, "[number]"),
        ({"type": "string", "anyOf": [{"minLength": 1}, {"pattern": "x"}]}, "string"),
        (
            {**closed(a=S), "oneOf": [{"required": ["a"]}, {"properties": {"a": {"const": "x"}}}]},
            "{a: string}",
        ),
        ({"allOf": [{"properties": {"a": S}}, {"properties": {"b": I}}]}, "{a: string, b: integer, ...}"),
        ({"$ref": "#/$defs/a", "$defs": {"a": S}}, "string"),
        ({"$ref": "#/$defs/a~1b", "$defs": {"a/b": I}}, "integer"),
        ({"$ref": "#/$defs/gone"}, "json"),
        ({"$ref": "https://example.com/x"}, "json"),
        ({"allOf": [{"$ref": "#/$defs/a"}], "$defs": {"a": closed(x=I)}}, "{x: integer}"),
        (
            {
                "$ref": "#/$defs/t",
                "$defs": {"t": closed(kids={"type": "array", "items": {"$ref": "#/$defs/t"}})},
            },
            "{kids: json}",
        ),
        (closed(again={"$ref": "#"}, a=I), "{again: {again: json, a: integer}, a: integer}"),
    ],
)
def test_the_type_of_a_schema(schema: dict[str, Any], expected: str) -> None:
    assert shown(of_schema(schema)) == expected


def test_a_schema_that_holds_itself_many_times_has_an_end() -> None:
    names = [f"t{n}" for n in range(40)]
    definitions = {name: closed(**{other: {"$ref": f"#/$defs/{other}"} for other in names}) for name in names}
    assert of_schema({"$ref": "#/$defs/t0", "$defs": definitions}).kind == "struct"


def fields_of(meta: bool = False, **changes: Any) -> tuple[str, str]:
    kind, others = of_record(make_spec(**changes), meta=meta)
    return shown(kind), others


NOTES = "_repaired: string, _remedied: string"


@pytest.mark.parametrize(
    ("changes", "fields", "others"),
    [
        ({}, f"{{_key: string, text: string, {NOTES}}}", ""),
        ({"tools": ({"google_search": {}},)}, f"{{_key: string, text: string, parts: json, {NOTES}}}", ""),
        ({"output_schema": closed(a=I)}, f"{{_key: string, a: integer, {NOTES}}}", ""),
        (
            {"output_schema": {"properties": {"a": I}}},
            f"{{_key: string, a: integer, {NOTES}, ...}}",
            "_extra",
        ),
        ({"output_schema": closed(_repaired=I)}, "{_key: string, _repaired: integer, _remedied: string}", ""),
        ({"output_schema": S}, f"{{_key: string, value: string, {NOTES}}}", ""),
        ({"output_schema": {"type": "object"}}, f"{{_key: string, {NOTES}, ...}}", "value"),
        ({"output_schema": {}}, f"{{_key: string, value: json, {NOTES}, ...}}", "_extra"),
        ({"task": "embed_content"}, f"{{_key: string, embedding: [float32], {NOTES}}}", ""),
        (
            {"output_schema": closed(a=I), "samples": Samples(count=2)},
            f"{{_key: string, samples: [{{a: integer, {NOTES}}}]}}",
            "",
        ),
        (
            {"output_schema": {"type": "object"}, "samples": Samples(count=2)},
            "{_key: string, samples: json}",
            "",
        ),
        (
            {"output_schema": closed(a=I, b=S), "samples": Samples(count=2, aggregate="mean")},
            f"{{_key: string, a: number, b: string, _agreement: object, {NOTES}}}",
            "",
        ),
        (
            {"output_schema": closed(a=I), "samples": Samples(count=2, aggregate="first")},
            f"{{_key: string, a: integer, {NOTES}}}",
            "",
        ),
    ],
)
def test_the_fields_of_a_record(changes: dict[str, Any], fields: str, others: str) -> None:
    assert fields_of(**changes) == (fields, others)


def test_meta_of_one_request_and_of_several() -> None:
    one = fields_of(meta=True)[0]
    usage = "_usage: {prompt: integer, cached: integer, output: integer, thoughts: integer}"
    assert one.endswith(
        "_request_id: string, _attempt: string, _model_version: string, _response_id: string,"
        f" {usage}, _finish_reason: string}}"
    )
    several = fields_of(meta=True, samples=Samples(count=2))[0]
    assert several.endswith(
        "_request_id: [string], _attempt: [string], _model_version: [string], _response_id: [string],"
        f" {usage}, _finish_reason: [string]}}"
    )


def test_every_field_of_meta_has_a_type() -> None:
    from builders import make_stored

    told = records.meta([make_stored()])
    assert list(told) == list(recordtypes.META)
