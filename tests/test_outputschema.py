from __future__ import annotations

import random
from typing import Any

import pytest

from runner import outputschema, response_schema
from runner.marks import Place

KEYWORDS = [
    "type",
    "properties",
    "items",
    "required",
    "enum",
    "const",
    "$ref",
    "$defs",
    "anyOf",
    "allOf",
    "not",
    "if",
    "pattern",
    "patternProperties",
    "additionalProperties",
    "minimum",
    "multipleOf",
    "format",
    "$schema",
    "$id",
    "$anchor",
    "$dynamicRef",
    "default",
    "uniqueItems",
    "prefixItems",
    "contains",
    "dependentSchemas",
    "definitions",
    "dependencies",
]
VALUES: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    1.5,
    "",
    "string",
    "object",
    "#",
    "#/$defs/a",
    "#x",
    "file:///etc/hostname",
    "(",
    "\\p{L}",
    "[",
    [],
    {},
    ["string", "null"],
    "http://json-schema.org/draft-07/schema#",
    "urn:x",
    1 << 63,
    "#/%zz",
    "#/a~2b",
)


def problems(schema: dict[str, Any]) -> list[tuple[str, Place]]:
    found: list[tuple[str, Place]] = []
    outputschema.check(schema, lambda place, code, message, hint: found.append((code, place)))
    return found


def made(chooser: random.Random, depth: int) -> Any:
    if depth == 0 or chooser.random() < 0.35:
        return chooser.choice(VALUES)
    names = KEYWORDS if chooser.random() < 0.8 else "abc"
    return {chooser.choice(names): made(chooser, depth - 1) for _ in range(chooser.randrange(1, 5))}


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"type": "object", "properties": {"_id": {}, "pattern": {"type": "string"}}},
        {"properties": {"a": {"$ref": "#/$defs/x"}}, "$defs": {"x": {"type": "string"}}},
        {"properties": {"a": {"$ref": "#/properties/b"}, "b": {"$ref": "#x"}, "c": {"$anchor": "x"}}},
        {"properties": {"next": {"$ref": "#"}}},
        {"$id": "https://example.com/a", "$ref": "b", "$defs": {"b": {"$id": "b", "type": "string"}}},
        {"pattern": "^\\p{L}+(?=x)\\d$"},
        {"const": {"$ref": "nowhere", "pattern": "("}, "default": {"pattern": "("}},
        {"$schema": "http://json-schema.org/draft-07/schema#", "definitions": {"a": {}}},
        {"properties": {"default": {"pattern": "^a$"}}},
        {"x-note": {"$ref": "nowhere", "pattern": "("}},
        {"$defs": {"a": {"$id": "https://example.com/a", "$ref": "#/$defs/b", "$defs": {"b": {}}}}},
    ],
)
def test_sound_schemas(schema: dict[str, Any]) -> None:
    assert problems(schema) == []


@pytest.mark.parametrize(
    ("schema", "found"),
    [
        ({"type": "objct"}, [("GB311", ("type",))]),
        ({"properties": {"a": {"required": [1]}}}, [("GB311", ("properties", "a", "required", 0))]),
        ({"properties": {"default": {"pattern": "("}}}, [("GB312", ("properties", "default", "pattern"))]),
        ({"patternProperties": {"[": {}}}, [("GB312", ("patternProperties", "["))]),
        ({"anyOf": [{"$ref": "#/$defs/x"}]}, [("GB313", ("anyOf", 0, "$ref"))]),
        ({"$ref": "https://example.com/x.json"}, [("GB313", ("$ref",))]),
        ({"properties": {"_key": {}}}, [("GB314", ("properties", "_key"))]),
        ({"$schema": "urn:x"}, [("GB311", ())]),
        ({"$schema": "http://json-schema.org/draft-07/schema#", "items": [{}]}, [("GB311", ("items",))]),
        ({"$schema": {}}, [("GB311", ("$schema",))]),
        ({"$defs": {"a": {"$ref": "#/$defs/z"}}}, [("GB313", ("$defs", "a", "$ref"))]),
        ({"$defs": {"a": {"items": {"pattern": "("}}}}, [("GB312", ("$defs", "a", "items", "pattern"))]),
        ({"if": {"$ref": "#/$defs/z"}}, [("GB313", ("if", "$ref"))]),
        ({"$defs": {"a": {"$ref": "file:///etc/hostname"}}}, [("GB313", ("$defs", "a", "$ref"))]),
        ({"$ref": "#/x/a", "x": {"a": {"pattern": "["}}}, [("GB312", ("x", "a", "pattern"))]),
    ],
)
def test_every_problem_has_its_place(schema: dict[str, Any], found: list[tuple[str, Place]]) -> None:
    assert problems(schema) == found


def test_all_problems_come_in_one_run() -> None:
    schema = {"type": "x", "pattern": "(", "anyOf": [{"$ref": "a.json"}], "properties": {"_key": {}}}
    assert {code for code, _ in problems(schema)} == {"GB311", "GB312", "GB313", "GB314"}


def test_noise_is_judged_and_what_passes_can_be_sent() -> None:
    chooser = random.Random(11)
    passed = 0
    for _ in range(1500):
        schema = made(chooser, 4)
        if isinstance(schema, dict) and not problems(schema):
            response_schema.lower(schema)
            passed += 1
    assert passed > 20
