"""Columns: paths that find values, as RFC 9535 says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonpath_rfc9535
import pytest
from builders import make_spec
from hypothesis import given
from hypothesis import strategies as st

from runner import columns
from runner.columns import BadPath, compiled, field_path
from runner.specmodel import Column, Destination

RECORD: dict[str, Any] = {
    "_key": "k",
    "a": {"b": [1, {"c": None}, "x"]},
    "it's": 1,
    "n": None,
    "list": [{"id": 1}, {"id": 2}, {}],
}


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("$.a.b[0]", 1),
        ("$.a.b[-1]", "x"),
        ("$.a.b[3]", None),
        ("$.a.b[-4]", None),
        ("$.a.b[1].c", None),
        ("$.n", None),
        ("$.n.x", None),
        ("$.gone", None),
        ("$.a[0]", None),
        ("$.a.b.c", None),
        ("$['it\\'s']", 1),
        ("$", RECORD),
        ("$.list[*].id", [1, 2]),
        ("$.list[?@.id > 1].id", [2]),
        ("$.list[0:2]", [{"id": 1}, {"id": 2}]),
        ("$..c", [None]),
        ("$.gone[*]", []),
        ("$['n','_key']", [None, "k"]),
    ],
)
def test_a_path_that_may_match_more_than_once_gives_a_list(path: str, value: Any) -> None:
    assert compiled(path).value(RECORD) == value


@given(st.text(min_size=1))
def test_the_path_of_a_field_finds_that_field(name: str) -> None:
    assert compiled(field_path(name)).steps == (name,)


@given(
    st.recursive(
        st.none() | st.integers(),
        lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["a", "b"]), inner),
    ),
    st.sampled_from(["$.a", "$.a.b", "$[0]", "$[-1].a", "$.a[1].b", "$['b'][-2]"]),
)
def test_a_short_way_finds_what_the_library_finds(value: Any, path: str) -> None:
    found = jsonpath_rfc9535.compile(path).find_one(value)
    assert compiled(path).value(value) == (None if found is None else found.value)


@pytest.mark.parametrize("path", ["a", "$.", "$.a[", "$[?f(@)]", "$.a[99999999999999999999]", "$..", "$.a b"])
def test_what_is_no_path(path: str) -> None:
    with pytest.raises(BadPath) as caught:
        compiled(path)
    assert "line 1" not in str(caught.value)


def test_names_of_the_last_column_give_way(tmp_path: Path) -> None:
    schema = {"type": "object", "properties": {"_extra": {"type": "string"}, "_extra_": {"type": "string"}}}
    spec = make_spec(tmp_path, output_schema=schema)
    assert columns.layout(spec, Destination(path="x.csv"), nested=False).names == [
        "_key",
        "_extra",
        "_extra_",
        "_extra__",
    ]


def doubted(*paths: str, meta: bool = False, **changes: Any) -> list[str]:
    chosen = tuple(Column(name=path, path=path) for path in paths)
    destination = Destination(path="x.csv", columns=chosen, include=("meta",) if meta else ())
    return [paths[at] for at, _, _ in columns.doubts(make_spec(**changes), destination)]


def test_columns_that_can_only_be_empty() -> None:
    inner = {"type": "object", "properties": {"c": {}}}
    schema = {
        "type": "object",
        "properties": {
            "a": inner,
            "any": {},
            "map": {"type": "object"},
            "l": {"type": "array", "items": inner},
        },
    }
    sound = (
        "$._key",
        "$.a.c",
        "$.a.c.d",
        "$.any.x",
        "$.map.x",
        "$.l[0].c",
        "$..z",
        "$[*]",
        "$._repaired",
        "$",
    )
    assert doubted(*sound, output_schema=schema) == []
    assert doubted("$.b", "$.a.d", "$.x[*].y", output_schema=schema) == ["$.b", "$.a.d", "$.x[*].y"]
    assert doubted("$._usage.prompt", output_schema=schema) == ["$._usage.prompt"]
    assert doubted("$._usage.prompt", meta=True, output_schema=schema) == []
    assert doubted("$.text", "$.value") == ["$.value"]


@pytest.mark.parametrize(
    "more",
    [
        {"additionalProperties": True},
        {"additionalProperties": {"type": "string"}},
        {"anyOf": [{"required": ["a"]}, {"properties": {"b": {}}}]},
        {"patternProperties": {"^x": {}}},
    ],
)
def test_a_schema_that_lets_other_fields_through_raises_no_doubts(more: dict[str, Any]) -> None:
    schema = {"type": "object", "properties": {"a": {}}}
    assert doubted("$.c", output_schema=schema) == ["$.c"]
    assert doubted("$.c", output_schema={**schema, **more}) == []
