"""Two schemas made one, and what a schema means without saying it."""

from __future__ import annotations

from typing import Any

import pytest

from runner.schemaparts import JOINED, add, joined, listed, types_of

TEXT = {"type": "string"}


@pytest.mark.parametrize(
    ("schema", "types"),
    [
        ({"type": "string"}, ["string"]),
        ({"type": ["string", "null"], "enum": [1]}, ["string", "null"]),
        ({"properties": {}}, ["object"]),
        ({"prefixItems": []}, ["array"]),
        ({"enum": [1, 2.0, 0.5, True, None, "a"]}, ["integer", "number", "boolean", "null", "string"]),
        ({"const": {}}, [""]),
        ({"description": "d"}, []),
    ],
)
def test_types(schema: dict[str, Any], types: list[str]) -> None:
    assert types_of(schema) == types


def test_listed_values() -> None:
    assert listed({"const": None}) == [None]
    assert listed({"enum": ["a", 1]}) == ["a", 1]
    assert listed({"type": "string"}) == []


def test_a_part_adds_what_does_not_overlap() -> None:
    merged: dict[str, Any] = {"type": "object", "properties": {"a": TEXT, "b": TEXT}, "required": ["a"]}
    part = {
        "type": "string",
        "title": "t",
        "properties": {"a": TEXT, "b": {"minLength": 1}, "c": True},
        "required": ["c", "a"],
    }
    add(merged, part)
    assert merged == {
        "type": "object",
        "title": "t",
        "properties": {"a": TEXT, "b": {JOINED: [TEXT, {"minLength": 1}]}, "c": True},
        "required": ["a", "c"],
    }


def test_a_branch_comes_behind_what_stands_beside_it() -> None:
    rest = {"type": "object", "properties": {"a": TEXT, "b": TEXT}}
    found = joined(rest, {"properties": {"c": TEXT, "b": {"minLength": 1}}, "required": ["c"]})
    assert list(found["properties"]) == ["a", "b", "c"]
    assert found["properties"]["b"] == {JOINED: [{"minLength": 1}, TEXT]}
    assert found["required"] == ["c"]
    assert found[JOINED] == [{"type": "object"}]
    assert joined(rest, True) == rest
    assert joined(rest, False) is False
