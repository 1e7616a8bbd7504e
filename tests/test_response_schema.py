"""The user's schema as the service can enforce it: rules may get lost, no answer may be forbidden."""

from __future__ import annotations

from typing import Any

import jsonschema_rs
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.emulator import values
from runner.response_schema import MAX_PARTS, lower

S = {"type": "STRING"}
I = {"type": "INTEGER"}  # noqa: E741
NULLABLE_S, NULLABLE_I = {**S, "nullable": True}, {**I, "nullable": True}


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ({"type": "string"}, S),
        ({"type": "number"}, {"type": "NUMBER"}),
        (
            {"type": "boolean", "description": "d", "title": "t"},
            {"type": "BOOLEAN", "description": "d", "title": "t"},
        ),
        ({"type": ["string", "null"]}, {"type": "STRING", "nullable": True}),
        (
            {"type": ["null", "integer"], "minimum": 1, "maximum": 9},
            {"type": "INTEGER", "nullable": True, "minimum": 1, "maximum": 9},
        ),
        ({"type": ["string", "integer"]}, {"anyOf": [S, I]}),
        ({"type": ["string", "integer", "null"]}, {"anyOf": [NULLABLE_S, NULLABLE_I]}),
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, {"type": "STRING", "nullable": True}),
        ({"anyOf": [{"type": "string"}, {"type": "integer"}]}, {"anyOf": [S, I]}),
        (
            {"anyOf": [{"type": "string"}, {"type": "integer"}, {"type": "null"}]},
            {"anyOf": [NULLABLE_S, NULLABLE_I]},
        ),
        ({"oneOf": [{"type": "string"}, {"type": "integer"}]}, {"anyOf": [S, I]}),
        ({"enum": ["a", "b"]}, {"type": "STRING", "enum": ["a", "b"]}),
        ({"type": "string", "enum": ["a", None]}, {"type": "STRING", "enum": ["a"], "nullable": True}),
        ({"const": "a"}, {"type": "STRING", "enum": ["a"]}),
        ({"type": "integer", "enum": [5, 1, 2]}, {**I, "minimum": 1, "maximum": 5}),
        ({"type": "integer", "enum": [1, 2], "maximum": 9}, {**I, "minimum": 1, "maximum": 9}),
        ({"type": "string", "format": "date-time"}, {"type": "STRING", "format": "date-time"}),
        ({"type": "string", "format": "email"}, S),
        ({"type": "integer", "format": "int64"}, {"type": "INTEGER", "format": "int64"}),
        (
            {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": 3},
            {"type": "ARRAY", "items": S, "minItems": 1, "maxItems": 3},
        ),
        (
            {"type": "string", "minLength": 1, "maxLength": 2, "pattern": "^a"},
            {"type": "STRING", "minLength": 1, "maxLength": 2, "pattern": "^a"},
        ),
        (
            {
                "type": "object",
                "properties": {"b": {"type": "string"}, "a": {"type": "integer"}},
                "required": ["a", "zz"],
            },
            {
                "type": "OBJECT",
                "properties": {"b": S, "a": I},
                "propertyOrdering": ["b", "a"],
                "required": ["a"],
            },
        ),
        (
            {
                "type": "object",
                "properties": {"b": {"type": "string"}, "a": {"type": "integer"}},
                "propertyOrdering": ["a", "b"],
            },
            {"type": "OBJECT", "properties": {"b": S, "a": I}, "propertyOrdering": ["a", "b"]},
        ),
        (
            {
                "$defs": {"m": {"type": "string", "enum": ["x"]}},
                "type": "object",
                "properties": {"m": {"$ref": "#/$defs/m", "description": "d"}},
            },
            {
                "type": "OBJECT",
                "properties": {"m": {"type": "STRING", "enum": ["x"], "description": "d"}},
                "propertyOrdering": ["m"],
            },
        ),
        ({"$defs": {"a/b~c": {"type": "string"}}, "$ref": "#/$defs/a~1b~0c"}, S),
        (
            {
                "$schema": "https://json-schema.org/draft/2020-12/schema",
                "$id": "x",
                "type": "string",
                "default": "",
                "examples": [1],
            },
            S,
        ),
        (
            {
                "allOf": [
                    {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]},
                    {"properties": {"b": {"type": "integer"}}},
                ]
            },
            {
                "type": "OBJECT",
                "properties": {"a": S, "b": I},
                "propertyOrdering": ["a", "b"],
                "required": ["a"],
            },
        ),
    ],
)
def test_lowered(schema: dict[str, Any], expected: dict[str, Any]) -> None:
    assert lower(schema)[0] == expected


def test_all_of_a_reference_keeps_its_types() -> None:
    base = {"type": "object", "properties": {"a": {"type": "string"}, "n": {"type": ["integer", "null"]}}}
    schema = {"$defs": {"base": base}, "allOf": [{"$ref": "#/$defs/base"}], "description": "d"}

    assert lower(schema)[0] == {**lower(base)[0], "description": "d"}


@pytest.mark.parametrize(
    ("schema", "notes"),
    [
        ({"type": "string", "format": "email"}, ("/: format `email` is checked locally only",)),
        (
            {"type": "object", "properties": {"a": {"type": "string"}}, "additionalProperties": False},
            ("/: `additionalProperties` is checked locally only",),
        ),
        (
            {"type": "object", "properties": {"a": {"type": "string", "not": {}}}},
            ("/properties/a: `not` is checked locally only",),
        ),
        (
            {"type": "array", "items": {"type": "integer", "exclusiveMinimum": 0}},
            ("/items: `exclusiveMinimum` is checked locally only",),
        ),
        ({"oneOf": [{"type": "string"}, {"type": "integer"}]}, ("/: `oneOf` is sent as anyOf",)),
        ({"type": "integer", "enum": [1]}, ("/: values that are not text cannot be an enum at the service",)),
        (
            {"allOf": [{"type": "string"}]},
            ("/: `allOf` is merged; rules that overlap are checked locally only",),
        ),
        ({"type": "string", "minLength": 1, "$comment": "x", "default": "y"}, ()),
    ],
)
def test_what_only_the_local_check_enforces_is_said(schema: dict[str, Any], notes: tuple[str, ...]) -> None:
    assert lower(schema)[1] == notes


def test_rules_beside_a_reference_are_noted() -> None:
    schema = {"$defs": {"s": {"type": "string"}}, "$ref": "#/$defs/s", "minLength": 3}

    lowered, notes = lower(schema)
    assert "minLength" in lowered or any("minLength" in note for note in notes)


NO_FORM = "no schema is sent, only that JSON is wanted"


@pytest.mark.parametrize(
    ("part", "note"),
    [
        ({}, "/properties/a: anything goes"),
        (True, "/properties/a: anything goes"),
        (False, "/properties/a: `false`"),
        ({"type": "object"}, "/properties/a: an object of any properties"),
        ({"type": "array"}, "/properties/a: an array of anything"),
        ({"type": "null"}, "/properties/a: a value without a type"),
        ({"description": "d"}, "/properties/a: a value without a type"),
        ({"type": ["object", "string"]}, "/properties/a: a value that is object or string"),
        ({"$ref": "#/$defs/gone"}, "/properties/a: #/$defs/gone is resolved locally only"),
        (
            {"type": "array", "items": {"$ref": "#"}},
            "/properties/a/items/properties/a/items: a cycle through #",
        ),
    ],
)
def test_a_part_without_a_form_at_the_service_keeps_the_whole_schema_here(part: Any, note: str) -> None:
    schema = {"type": "object", "properties": {"a": part, "b": {"type": "string"}}}

    lowered, notes = lower(schema)
    assert lowered == {}
    assert notes[0] == f"{note}: {NO_FORM}"


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#"},
        {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}},
        {"allOf": [{"$ref": "#"}]},
        {"anyOf": [{"$ref": "#"}, {"type": "null"}]},
        {"$ref": "#/title/0", "title": "words"},
        {"$ref": "https://example.com/other.json"},
        {"$ref": "#/anyOf/7", "anyOf": []},
        {"type": "array", "items": False},
        {"type": "array", "items": [{"type": "string"}]},
        {"properties": {"properties": {"properties": {"items": {"type": "string"}}}}},
    ],
)
def test_odd_schemas_are_lowered_to_something(schema: dict[str, Any]) -> None:
    lowered, _ = lower(schema)

    assert isinstance(lowered, dict)


def test_a_schema_is_not_changed_by_lowering() -> None:
    schema = {"type": "object", "properties": {"a": {"allOf": [{"type": "string"}], "enum": ["x"]}}}
    before = repr(schema)
    lower(schema)

    assert repr(schema) == before


# ---------------------------------------------------------------- nothing that is valid is forbidden

KEPT = ("enum", "minItems", "maxItems", "minLength", "maxLength", "pattern", "minimum", "maximum", "required")


def as_json_schema(lowered: dict[str, Any]) -> dict[str, Any]:
    """What the service enforces, as JSON Schema: `nullable` allows null whatever else is said."""
    out = {name: lowered[name] for name in KEPT if name in lowered}
    if "type" in lowered:
        out["type"] = lowered["type"].lower()
    if "properties" in lowered:
        out["properties"] = {name: as_json_schema(sub) for name, sub in lowered["properties"].items()}
    if "items" in lowered:
        out["items"] = as_json_schema(lowered["items"])
    if "anyOf" in lowered:
        out["anyOf"] = [as_json_schema(sub) for sub in lowered["anyOf"]]
    return {"anyOf": [out, {"type": "null"}]} if lowered.get("nullable") else out


def allows(schema: dict[str, Any], value: Any) -> bool:
    return jsonschema_rs.validator_for(schema, offline=True).is_valid(value)


NAMES = st.sampled_from(["a", "b", "c"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from(["", "a", "b", "abc"]) | st.just(0.5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=5,
)
LISTED = ["a", "b", "", 1, 0.5, None]
LEAVES = (
    st.fixed_dictionaries({"type": st.sampled_from(["string", "integer", "number", "boolean", "null"])})
    | st.fixed_dictionaries(
        {
            "type": st.lists(
                st.sampled_from(["string", "integer", "null"]), min_size=1, max_size=3, unique=True
            )
        },
        optional={"minLength": st.integers(0, 2), "maximum": st.integers(-1, 2)},
    )
    | st.fixed_dictionaries(
        {"enum": st.lists(st.sampled_from(["a", "b", "", 1, 0.5, None]), min_size=1, unique=True)}
    )
    | st.fixed_dictionaries({"const": st.sampled_from(["a", 1, None, True])})
    | st.sampled_from([{}, {"$ref": "#/$defs/s"}, {"$ref": "#/$defs/o"}])
)
SCHEMAS = st.recursive(
    LEAVES,
    lambda inner: (
        st.fixed_dictionaries(
            {"type": st.just("object"), "properties": st.dictionaries(NAMES, inner, min_size=1, max_size=3)},
            optional={"required": st.lists(NAMES, max_size=2, unique=True), "description": st.just("d")},
        )
        | st.fixed_dictionaries(
            {"type": st.just("array"), "items": inner},
            optional={"minItems": st.integers(0, 1), "maxItems": st.integers(1, 2)},
        )
        | st.builds(
            lambda kind, subs: {kind: subs},
            st.sampled_from(["anyOf", "oneOf", "allOf"]),
            st.lists(inner, min_size=1, max_size=3),
        )
        | st.builds(lambda one, subs: {**one, "anyOf": subs}, inner, st.lists(inner, min_size=1, max_size=2))
        | st.builds(lambda one, ref: {**one, "$ref": ref}, inner, st.sampled_from(["#/$defs/s", "#/$defs/o"]))
    ),
    max_leaves=5,
)
DEFS = {
    "s": {"type": ["string", "null"], "maxLength": 2},
    "o": {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"$ref": "#/$defs/o"}},
        "required": ["a"],
    },
}


def nodes(lowered: dict[str, Any]) -> list[dict[str, Any]]:
    inner = [*lowered.get("properties", {}).values(), *lowered.get("anyOf", ())]
    inner += [lowered["items"]] if "items" in lowered else []
    return [lowered, *(node for one in inner for node in nodes(one))]


@given(SCHEMAS)
def test_any_of_stands_alone_and_every_node_has_a_type(schema: dict[str, Any]) -> None:
    """As Vertex demands it: "When using any_of, it must be the only field set"."""
    lowered, _ = lower({**schema, "$defs": DEFS})
    for node in nodes(lowered) if lowered else []:
        assert node.keys() == {"anyOf"} if "anyOf" in node else "type" in node, lowered


@given(SCHEMAS, st.lists(VALUES, min_size=1, max_size=8))
def test_a_valid_answer_is_never_forbidden(schema: dict[str, Any], values: list[Any]) -> None:
    schema = {**schema, "$defs": DEFS}
    lowered = as_json_schema(lower(schema)[0])
    for value in values:
        if allows(schema, value):
            assert allows(lowered, value), (schema, lowered, value)


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ({"properties": {"a": {"type": "string"}}}, "OBJECT"),
        ({"items": {"type": "string"}}, "ARRAY"),
    ],
)
def test_what_speaks_of_properties_or_items_is_taken_for_an_object_or_array(
    schema: Any, expected: str
) -> None:
    """The one exception: read strictly, such a schema allows any other type as well."""
    assert lower(schema)[0]["type"] == expected


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"type": "array", "prefixItems": [{"type": "string"}], "items": {"type": "integer"}}, ["a", 1]),
        ({"type": "array", "prefixItems": [{"type": "string"}]}, ["a", 1]),
        (
            {
                "type": "object",
                "properties": {"a": {"type": "string"}},
                "anyOf": [{"required": ["a"]}, {"required": ["b"]}],
            },
            {"b": 1},
        ),
        ({"anyOf": [{"type": "object", "properties": {"a": {}}, "required": ["a"]}, {"type": "null"}]}, None),
        ({"type": ["string", "integer"], "enum": ["a", 1]}, 1),
        ({"allOf": [{"enum": ["a", "b"]}, {"enum": ["b", "c"]}]}, "b"),
        ({"const": None}, None),
    ],
)
def test_valid_answers_that_need_care(schema: dict[str, Any], value: Any) -> None:
    assert allows(schema, value)
    assert allows(as_json_schema(lower(schema)[0]), value)


OBJECT = {"type": "object", "properties": {"a": {"type": "string"}}}
ARRAY = {"type": "array", "items": {"type": "string"}}
TEXT: dict[str, Any] = {"type": "string"}
NUMBER: dict[str, Any] = {"type": "number"}
RULES: list[tuple[dict[str, Any], str, Any]] = [
    (OBJECT, "additionalProperties", {"type": "string"}), (OBJECT, "patternProperties", {"x": TEXT}),
    (OBJECT, "propertyNames", {"pattern": "x"}), (OBJECT, "dependentRequired", {"a": ["b"]}),
    (OBJECT, "dependentSchemas", {"a": {"required": ["b"]}}), (OBJECT, "unevaluatedProperties", False),
    (OBJECT, "minProperties", 1), (OBJECT, "maxProperties", 1), (OBJECT, "required", ["a"]),
    (OBJECT, "required", ["z"]), (OBJECT, "if", {"required": ["a"]}), (OBJECT, "then", TEXT),
    (OBJECT, "else", TEXT), (OBJECT, "not", {"required": ["a"]}), (OBJECT, "anyOf", [{"required": ["a"]}]),
    (OBJECT, "oneOf", [OBJECT, {**OBJECT, "required": ["a"]}]), (OBJECT, "allOf", [{"required": ["a"]}]),
    (OBJECT, "$dynamicRef", "#"), (ARRAY, "prefixItems", [TEXT]), (ARRAY, "contains", TEXT),
    (ARRAY, "minContains", 1), (ARRAY, "maxContains", 1), (ARRAY, "uniqueItems", True),
    (ARRAY, "minItems", 1),
    (ARRAY, "maxItems", 1), (ARRAY, "unevaluatedItems", False), (TEXT, "minLength", 1),
    (TEXT, "maxLength", 1),
    (TEXT, "pattern", "x"), (TEXT, "format", "email"), (TEXT, "format", "date-time"), (TEXT, "enum", ["a"]),
    (TEXT, "const", "a"), (TEXT, "contentEncoding", "base64"), (TEXT, "contentMediaType", "text/html"),
    (TEXT, "contentSchema", TEXT), (NUMBER, "minimum", 1), (NUMBER, "maximum", 1), (NUMBER, "multipleOf", 2),
    (NUMBER, "exclusiveMinimum", 1), (NUMBER, "exclusiveMaximum", 1), (NUMBER, "enum", [1]),
    (NUMBER, "const", 1), (NUMBER, "made-up", 1),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "keyword", "value"), RULES, ids=[rule[1] for rule in RULES])
def test_every_rule_is_sent_or_named(schema: dict[str, Any], keyword: str, value: Any) -> None:
    plain, notes = lower(schema)
    assert notes == ()
    sent, notes = lower({**schema, keyword: value})
    assert notes or sent != plain
    # Below a property, with its place.
    below, found = lower({"type": "object", "properties": {"p": {**schema, keyword: value}}})
    assert all(note.startswith("/properties/p") for note in found)
    assert len(found) == len(notes)
    assert below["properties"]["p"] == sent


def test_a_list_of_given_length_has_a_form() -> None:
    pair = {"type": "array", "prefixItems": [{"type": "integer"}, {"type": "string"}], "maxItems": 2}
    assert lower(pair)[0]["items"] == {"anyOf": [I, S]}
    assert lower({**pair, "prefixItems": [{"type": "string"}] * 2})[0]["items"] == S
    assert lower({**pair, "maxItems": 3})[0] == {}


def test_what_forbids_nothing_is_not_named() -> None:
    node = {"$ref": "#/$defs/a", "default": "x", "examples": ["y"], "deprecated": True, "description": "d"}
    schema = {"type": "object", "properties": {"p": node}, "$defs": {"a": {"type": "string"}}}
    sent, notes = lower(schema)
    assert sent["properties"]["p"] == {"type": "STRING", "description": "d"}
    assert notes == ()


# ---------------------------------------------------------------- what an answer must have can be answered

A, B = ({"type": "object", "properties": {name: {"type": "string"}}} for name in "ab")
NEEDS_B = {**B, "required": ["b"]}


def named(lowered: dict[str, Any]) -> set[str]:
    return {name for node in nodes(lowered) for name in node.get("properties", ())}


PARTS: list[dict[str, Any]] = [
    {"$defs": {"a": A}, "$ref": "#/$defs/a", "properties": B["properties"], "required": ["b"]},
    {"$defs": {"b": NEEDS_B}, "allOf": [{"$ref": "#/$defs/b", "properties": A["properties"]}]},
    {**A, "allOf": [{"allOf": [NEEDS_B]}]},
    {**A, "anyOf": [NEEDS_B]},
    {**A, "oneOf": [NEEDS_B, {"properties": {"c": {"type": "string"}}, "required": ["c"]}]},
    {**A, "allOf": [{"anyOf": [NEEDS_B, {"required": ["a"]}]}]},
]


@pytest.mark.parametrize("schema", PARTS)
def test_properties_of_every_part_are_sent(schema: dict[str, Any]) -> None:
    """The model writes none that is not named: what is required and not sent fails in every answer."""
    lowered, _ = lower(schema)
    assert named(lowered) >= {"a", "b"}
    assert any("b" in node.get("required", ()) for node in nodes(lowered))


@pytest.mark.parametrize("schema", PARTS)
def test_an_answer_to_what_is_sent_is_one_to_what_was_asked(schema: dict[str, Any]) -> None:
    """From the emulator, which writes what it is told and nothing else, as the service does."""
    make = values.maker(orjson.dumps(lower(schema)[0]))
    for seed in range(20):
        answer = make(seed, values.Prompt("Some words.", "Some words."), 0)
        assert allows(schema, answer), answer


def test_branches_hold_what_stands_beside_them() -> None:
    branches = [{"properties": {"c": {"type": "integer"}}, "not": {}}, {"required": ["a"]}]
    lowered, notes = lower({**A, "anyOf": branches, "description": "d", "minProperties": 1, "x-y": 1})
    common = {"type": "OBJECT", "description": "d", "minProperties": 1}
    assert lowered == {
        "anyOf": [
            {**common, "properties": {"a": S, "c": I}, "propertyOrdering": ["a", "c"]},
            {**common, "properties": {"a": S}, "propertyOrdering": ["a"], "required": ["a"]},
        ]
    }
    assert notes == ("/: `x-y` is checked locally only", "/anyOf/0: `not` is checked locally only")


def test_the_words_of_a_choice_are_said_in_each_branch() -> None:
    branches = [{"type": "string", "description": "its name", "title": "Name"}, {"type": "integer"}]
    lowered, _ = lower({"anyOf": branches, "description": "the team", "title": "Team"})
    assert lowered == {
        "anyOf": [
            {**S, "description": "the team\nits name", "title": "Name"},
            {**I, "description": "the team", "title": "Team"},
        ]
    }
    assert lower({"anyOf": [*branches, {"type": "null"}]})[0] == {
        "anyOf": [{**branches[0], **NULLABLE_S}, NULLABLE_I]
    }


def test_two_schemas_of_one_property_are_merged() -> None:
    text = {"properties": {"a": {"minLength": 2, "not": {}}}}
    lowered, notes = lower({**A, "allOf": [text]})
    assert lowered["properties"] == {"a": {"type": "STRING", "minLength": 2}}
    assert "/properties/a: `not` is checked locally only" in notes


def test_rules_inside_of_all_of_are_named() -> None:
    _, notes = lower({**A, "allOf": [{"if": {"required": ["a"]}, "allOf": [{"propertyNames": {}}]}]})
    assert {"/: `if` is checked locally only", "/: `propertyNames` is checked locally only"} <= set(notes)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1, 2], [{**I, "minimum": 1, "maximum": 2}]),
        ([True], [{"type": "BOOLEAN"}]),
        (
            [1, 0.5],
            [{**I, "minimum": 0.5, "maximum": 1}, {"type": "NUMBER", "minimum": 0.5, "maximum": 1}],
        ),
        (["a", 1], [{**S, "enum": ["a"]}, {**I, "minimum": 1, "maximum": 1}]),
        ([1, None], [{**NULLABLE_I, "minimum": 1, "maximum": 1}]),
    ],
)
def test_listed_values_that_are_no_text_have_a_type(values: list[Any], expected: list[Any]) -> None:
    lowered, notes = lower({"enum": values})
    assert lowered == ({"anyOf": expected} if len(expected) > 1 else expected[0])
    assert notes == ("/: values that are not text cannot be an enum at the service",)


def test_an_empty_text_in_an_enum_is_not_sent() -> None:
    """The service refuses the whole job for it."""
    lowered, notes = lower({"type": "string", "enum": ["a", ""]})
    assert lowered == S
    assert notes == ("/: an empty text cannot stand in an enum at the service",)


def test_the_order_that_is_sent_names_every_property_once() -> None:
    schema = {**A, "properties": {**A["properties"], **B["properties"]}}
    assert lower({**schema, "propertyOrdering": ["b", "z", "b"]})[0]["propertyOrdering"] == ["b", "a"]
    assert lower({**schema, "propertyOrdering": "ba"})[0]["propertyOrdering"] == ["a", "b"]


@pytest.mark.parametrize("how", ["$ref", "allOf", "anyOf"])
def test_a_part_that_holds_itself_ends(how: str) -> None:
    again = {"$ref": "#/$defs/n"} if how == "$ref" else {how: [{"$ref": "#/$defs/n"}], "description": "d"}
    node = {"type": "object", "properties": {"v": {"type": "string"}, "n": again}}
    lowered, notes = lower({"$ref": "#/$defs/n", "$defs": {"n": node}})
    assert lowered == {}
    assert "a cycle through #/$defs/n" in notes[0]


def test_a_part_may_be_used_twice_on_one_way() -> None:
    base = {"$defs": {"a": A}}
    again = {"allOf": [{"$ref": "#/$defs/a"}], "description": "the former one"}
    schema = {**base, "allOf": [{"$ref": "#/$defs/a"}], "properties": {"former": again}}
    assert named(lower(schema)[0]) == {"a", "former"}


def test_references_that_multiply_are_given_up() -> None:
    steps = {
        f"s{n}": {"type": "object", "properties": {key: {"$ref": f"#/$defs/s{n + 1}"} for key in "xy"}}
        for n in range(40)
    }
    schema = {"$defs": {**steps, "s40": {"type": "string"}}, "$ref": "#/$defs/s0"}
    lowered, notes = lower(schema)
    assert lowered == {}
    assert notes == (f"/: more than {MAX_PARTS:,} parts, each reference followed: {NO_FORM}",)
