"""What a request is called and which bytes it has: pinned, because a change re-runs everybody's rows."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import orjson
import pytest
from builders import make_row, make_spec, make_template
from hypothesis import example, given
from hypothesis import strategies as st

from runner.model import BadRow, Request
from runner.render import COMPONENTS, Renderer, digest
from runner.response_schema import lower, ordered

GOLDEN = Path(__file__).parent / "golden" / "identity"
SCHEMA = {
    "type": "object",
    "properties": {"topic": {"type": "string"}, "mood": {"type": "string", "enum": ["good", "bad"]}},
    "required": ["topic"],
}
HOSTILE = 'quote " backslash \\ tab \t nul-free \u2028\u2029\u0085 emoji 😀👩‍👩‍👧 CJK 漢字 RTL \u202eabc'


def render(row: Any = None, **spec: Any) -> Request:
    found = Renderer(make_spec(**spec)).requests(row or make_row())
    assert isinstance(found, tuple), found
    return found[0]


# ---------------------------------------------------------------- golden vectors

VECTORS: dict[str, tuple[dict[str, Any], Any]] = {
    "plain": ({"prompt": "Which team? {{ input.text }}\n"}, make_row(text="My invoice is wrong.\r\n")),
    "emoji-and-separators": ({}, make_row(text="😀 \u2028 \u2029 \u0085 👩‍👩‍👧 \x7f \x1f")),
    "cjk-and-path": (
        {"prompt": "{{ input.path }}: {{ input.text }}"},
        make_row("日本/東京.txt", "漢字かな交じり文"),
    ),
    "config-floats": (
        {
            "generation_config": {
                "temperature": 0.1,
                "top_p": 1.0,
                "top_k": 40,
                "max_output_tokens": 1024,
                "frequency_penalty": 1e-7,
                "stop_sequences": ["END", "\u2028"],
                "thinking_config": {"thinking_budget": 0},
            }
        },
        make_row(),
    ),
    "schema-order": ({"output_schema": SCHEMA}, make_row()),
    "system-instruction": (
        {"system_instruction": "Answer in {{ var.language }}.", "variables": {"language": "français"}},
        make_row(),
    ),
    "tools": (
        {
            "tools": ({"google_search": {}}, {"function_declarations": [{"name": "look_up"}]}),
            "tool_config": {"function_calling_config": {"mode": "ANY"}},
            "safety_settings": ({"category": "HARM_CATEGORY_HARASSMENT", "threshold": "BLOCK_NONE"},),
            "cached_content": "cachedContents/abc",
        },
        make_row(),
    ),
    "extra-body": (
        {
            "extra_body": {"generationConfig": {"newKnob": [1, 2.5, None]}, "labels": {"team": "ops"}},
            "generation_config": {"temperature": 0.2},
        },
        make_row(),
    ),
}


@pytest.mark.parametrize("name", VECTORS)
def test_golden_vectors(name: str) -> None:
    """These files never change: an edit here means that every user pays again."""
    spec, row = VECTORS[name]
    found = render(row, **spec)
    pinned = (GOLDEN / f"{name}.jsonl").read_bytes()

    assert found.line == pinned
    assert found.request_id == orjson.loads(pinned)["key"]


def test_every_golden_vector_is_one_line_with_an_id_of_its_own() -> None:
    files = sorted(GOLDEN.glob("*.jsonl"))
    lines = [file.read_bytes() for file in files]

    assert [file.stem for file in files] == sorted(VECTORS)
    assert all(line.count(b"\n") == 1 and line.endswith(b"\n") for line in lines)
    assert len({orjson.loads(line)["key"] for line in lines}) == len(lines)


def test_the_id_is_the_digest_of_what_was_asked_for() -> None:
    identity = {
        "cached_content": "cachedContents/abc",
        "contents": [{"parts": [{"text": "Sort: hello"}], "role": "user"}],
        "idv": 1,
        "model": "m",
        "task": "generate_content",
    }
    canonical = json.dumps(identity, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()

    found = render(model="m", cached_content="cachedContents/abc")
    assert found.request_id == "r" + hashlib.sha256(canonical).hexdigest()[:32]


# ---------------------------------------------------------------- what is part of it, and what is not

SAME: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    (
        "key order of a mapping",
        {
            "generation_config": {"temperature": 0.1, "top_p": 0.9},
            "extra_body": {"a": 1, "b": {"c": 2, "d": 3}},
        },
        {
            "generation_config": {"top_p": 0.9, "temperature": 0.1},
            "extra_body": {"b": {"d": 3, "c": 2}, "a": 1},
        },
    ),
    (
        "key order of a schema's keywords",
        {"output_schema": {"type": "object", "properties": {"a": {"type": "string", "minLength": 1}}}},
        {"output_schema": {"properties": {"a": {"minLength": 1, "type": "string"}}, "type": "object"}},
    ),
    ("what is empty", {"tools": (), "generation_config": {}}, {}),
    ("the name of the spec", {"name": "other", "description": "words", "labels": {"a": "b"}}, {}),
    ("how it is run", {"max_jobs": 3, "cleanup": "all", "env": "prod"}, {}),
    ("a variable that the text does not show", {"variables": {"unused": 1}}, {}),
    (
        "where the same text comes from",
        {"prompt": make_template("Sort: {{ input['text'] }}", "prompts/x.j2", 1)},
        {},
    ),
]


@pytest.mark.parametrize(("spec", "other"), [case[1:] for case in SAME], ids=[case[0] for case in SAME])
def test_does_not_change_a_request(spec: dict[str, Any], other: dict[str, Any]) -> None:
    assert render(**spec) == render(**other)


DIFFERENT: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("model", {"model": "a"}, {"model": "b"}),
    ("prompt", {"prompt": "a"}, {"prompt": "b"}),
    ("trailing newline", {"prompt": "a"}, {"prompt": "a\n"}),
    ("system_instruction", {"system_instruction": "a"}, {"system_instruction": "b"}),
    ("a system_instruction at all", {"system_instruction": ""}, {}),
    (
        "generation_config",
        {"generation_config": {"temperature": 0.1}},
        {"generation_config": {"temperature": 0.2}},
    ),
    ("schema", {"output_schema": SCHEMA}, {}),
    (
        "order of list items",
        {"generation_config": {"stop_sequences": ["a", "b"]}},
        {"generation_config": {"stop_sequences": ["b", "a"]}},
    ),
    ("tools", {"tools": ({"google_search": {}},)}, {}),
    ("tool_config", {"tool_config": {"a": 1}}, {}),
    ("safety_settings", {"safety_settings": ({"a": 1},)}, {}),
    ("cached_content", {"cached_content": "x"}, {}),
    ("extra_body", {"extra_body": {"labels": {"a": "b"}}}, {}),
    (
        "variables",
        {"prompt": "{{ var.a }}", "variables": {"a": 1}},
        {"prompt": "{{ var.a }}", "variables": {"a": 2}},
    ),
    (
        "a variable that is picked by the row",
        {"prompt": "{{ var[input.name[0]] }}", "variables": {"a": 1}},
        {"prompt": "{{ var[input.name[0]] }}", "variables": {"a": 2}},
    ),
    (
        "a variable by another name",
        {"prompt": "{% set all = var %}{{ all.a }}", "variables": {"a": 1}},
        {"prompt": "{% set all = var %}{{ all.a }}", "variables": {"a": 2}},
    ),
    ("env", {"prompt": "{{ env }}", "env": "a"}, {"prompt": "{{ env }}", "env": "b"}),
    ("no env", {"prompt": "{{ env }}", "env": "a"}, {"prompt": "{{ env }}"}),
    ("task", {"task": "a"}, {"task": "b"}),
]


@pytest.mark.parametrize(("spec", "other"), [case[1:] for case in DIFFERENT], ids=[c[0] for c in DIFFERENT])
def test_changes_a_request_and_a_component(spec: dict[str, Any], other: dict[str, Any]) -> None:
    before, now = Renderer(make_spec(**spec)).components, Renderer(make_spec(**other)).components

    assert render(**spec).request_id != render(**other).request_id
    assert [name for name in COMPONENTS if before.get(name) != now.get(name)]


def test_without_an_environment_a_template_reads_what_the_spec_reads() -> None:
    assert render(prompt="in {{ env }}").request_id == render(prompt="in default").request_id


def test_the_order_of_properties_is_what_a_schema_asks_for() -> None:
    turned = {**SCHEMA, "properties": dict(reversed(SCHEMA["properties"].items()))}
    first, second = render(output_schema=SCHEMA), render(output_schema=turned)

    assert first.request_id != second.request_id
    asked = [orjson.loads(r.line)["request"]["generationConfig"]["responseSchema"] for r in (first, second)]
    assert [schema["propertyOrdering"] for schema in asked] == [["topic", "mood"], ["mood", "topic"]]


@given(st.permutations(["a", "b", "c", "properties"]), st.permutations(["a", "b", "c", "properties"]))
def test_ordered_schemas_differ_exactly_where_their_properties_do(one: list[str], two: list[str]) -> None:
    schemas = [{"properties": {name: {"type": "string"} for name in names}} for names in (one, two)]
    left, right = (orjson.dumps(ordered(schema), option=orjson.OPT_SORT_KEYS) for schema in schemas)

    assert (left == right) == (one == two)


def test_moving_a_file_changes_a_request_only_where_the_prompt_shows_the_path() -> None:
    here, there = make_row("a/x.txt"), make_row("b/y.txt")

    assert render(here) == render(there)
    assert render(here, prompt="{{ input.path }}") != render(there, prompt="{{ input.path }}")


def test_the_folder_of_the_spec_is_no_part_of_a_request() -> None:
    row = make_row()
    found = [
        Renderer(make_spec(Path(folder), system_instruction="S")).requests(row) for folder in ("/a", "/b/c")
    ]

    assert found[0] == found[1]


def test_names_are_sent_as_the_service_spells_them() -> None:
    line = render(generation_config={"max_output_tokens": 5, "thinking_config": {"thinking_budget": 1}}).line

    assert orjson.loads(line)["request"]["generationConfig"] == {
        "maxOutputTokens": 5,
        "thinkingConfig": {"thinkingBudget": 1},
    }


def test_extra_body_has_the_last_word() -> None:
    line = render(
        generation_config={"temperature": 1}, extra_body={"generationConfig": {"temperature": 2}}
    ).line

    assert orjson.loads(line)["request"]["generationConfig"] == {"temperature": 2}


# ---------------------------------------------------------------- rows that cannot be requests


def test_a_template_that_breaks_on_a_row_names_its_own_line() -> None:
    prompt = make_template("one\n{{ input.text }}\n{{ input.title }}", "prompts/p.j2", 10)
    found = Renderer(make_spec(prompt=prompt)).requests(make_row("k"))

    assert isinstance(found, BadRow)
    assert (found.key, found.code, found.path, found.line) == ("k", "template", "prompts/p.j2", 12)
    assert "input has no field 'title'" in found.message


def test_a_system_instruction_that_breaks_names_its_own_file() -> None:
    system = make_template("{{ input.title }}", "prompts/s.j2", 3)
    found = Renderer(make_spec(system_instruction=system)).requests(make_row())

    assert isinstance(found, BadRow)
    assert (found.path, found.line) == ("prompts/s.j2", 3)


def test_a_lone_surrogate_is_not_text() -> None:
    found = Renderer(make_spec()).requests(make_row("k", "x \ud800"))

    assert isinstance(found, BadRow)
    assert found.code == "surrogate"


# ---------------------------------------------------------------- filling is encoding

TEXT = st.text() | st.sampled_from(
    ["gbrun-hole-0-prompt", '"gbrun-hole-0-prompt"', "gbrun-hole-0-key", 'x"gbrun-hole-1-prompt', HOSTILE]
)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)


def whole(values: Any) -> bytes:
    return orjson.dumps(values, option=orjson.OPT_SORT_KEYS)


def check_filling(text: str, system: str | None, constants: list[Any]) -> None:
    """The line and the id are those of encoding the whole value at once."""
    extra = {"extra": constants} if constants else {}
    changes: dict[str, Any] = {"prompt": "{{ input.text }}", "extra_body": extra}
    if system is not None:
        changes |= {"system_instruction": "{{ input.system }}"}
    found = render(make_row(text=text, system=system or ""), **changes)
    contents = [{"parts": [{"text": text}], "role": "user"}]
    identity = {
        "idv": 1,
        "task": "generate_content",
        "model": "gemini-3.5-flash-lite",
        "contents": contents,
        **({"extra_body": extra} if extra else {}),
        **({"system_instruction": system} if system is not None else {}),
    }
    request = {
        "contents": contents,
        **({"systemInstruction": {"parts": [{"text": system}]}} if system is not None else {}),
        **extra,
    }

    assert found.request_id == "r" + hashlib.sha256(whole(identity)).hexdigest()[:32]
    assert found.line == whole({"key": found.request_id, "request": request}) + b"\n"


@given(TEXT, st.none() | TEXT, st.lists(JSON, max_size=3))
@example("gbrun-hole-0-prompt", "gbrun-hole-0-system", ["gbrun-hole-0-prompt", {"gbrun-hole-1-key": 1}])
@example("x", "y", ['"gbrun-hole-0-system"', 'a"gbrun-hole-0-prompt', "gbrun-hole-0-zzz"])
def test_filling_a_skeleton_equals_encoding_the_whole(
    text: str, system: str | None, constants: list[Any]
) -> None:
    check_filling(text, system, constants)


def test_a_constant_that_looks_like_a_hole_that_is_not_there() -> None:
    check_filling("x", None, ["gbrun-hole-0-system"])


@given(st.lists(TEXT, min_size=1, max_size=5))
def test_one_renderer_gives_the_same_as_a_fresh_one(texts: list[str]) -> None:
    renderer = Renderer(make_spec(output_schema=SCHEMA))
    for text in texts:
        assert renderer.requests(make_row(text=text)) == (render(make_row(text=text), output_schema=SCHEMA),)


def test_what_is_lowered_is_sent_and_is_no_part_of_the_id() -> None:
    body = orjson.loads(render(output_schema=SCHEMA).line)["request"]["generationConfig"]

    assert body == {"responseMimeType": "application/json", "responseSchema": lower(SCHEMA)[0]}


def test_digest_ignores_the_order_of_keys() -> None:
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1}) == "43258cff783fe703"
