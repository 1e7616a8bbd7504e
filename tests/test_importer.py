"""What Vertex can load, against the emulator's own importer, which knows nothing of this one."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from builders import make_row, make_spec

from runner import importer
from runner.emulator.vertexfile import Importer, ImportFailed
from runner.model import Request
from runner.render import Renderer
from runner.specmodel import BackendSpec

VERTEX = BackendSpec(type="local", like="vertex", paid=False)
GEMINI = BackendSpec(type="local", paid=False)


def found(value: Any, depth: int = 1) -> list[tuple[tuple[Any, ...], str]]:
    return [(problem.place, problem.message) for problem in importer.problems(value, (), depth)]


def nested(count: int) -> Any:
    return {"a": nested(count - 1)} if count else 1


def loads(*requests: Any) -> bool:
    try:
        Importer().load(orjson.dumps({"key": "r1", "request": request}) + b"\n" for request in requests)
    except ImportFailed:
        return False
    return True


GOOD = {
    "plain": {"contents": [{"role": "user", "parts": [{"text": "x"}]}]},
    "15 objects": nested(15),
    "whole numbers and others": {"a": [{"n": 1}, {"n": 1.5}]},
    "lists of lists of texts": {"enum": ["a", "b"], "type": ["x"]},
}
BAD = {
    "null": {"a": [{"b": None}]},
    "empty object": {"tools": [{"google_search": {}}]},
    "16 objects": nested(16),
    "name with a space": {"properties": {"due date": 1}},
    "name with a slash": {"a/b": 1},
    "name that begins with a digit": {"1st": 1},
    "name of a reference": {"$ref": "x"},
    "empty name": {"": 1},
    "text and number": {"a": [{"b": "x"}, {"b": 1}]},
    "text and list": {"a": [{"b": "x"}, {"b": ["x"]}]},
    "object and text in a list": {"a": [{}, "x"]},
    "types inside anyOf": {"anyOf": [{"type": ["integer", "null"]}]},
}


@pytest.mark.parametrize("name", GOOD)
def test_what_can_be_loaded(name: str) -> None:
    assert found(GOOD[name]) == []
    assert loads(GOOD[name])


@pytest.mark.parametrize("name", BAD)
def test_what_cannot(name: str) -> None:
    assert found(BAD[name])
    assert not loads(BAD[name])


def test_a_problem_has_its_place_and_a_next_step() -> None:
    (problem,) = importer.problems({"tools": [{"google_search": {}}]}, ("extra_body",), 1)
    assert problem.place == ("extra_body", "tools", 0, "google_search")
    assert problem.message.startswith('"google_search" is an empty object')
    assert problem.hint


def test_what_says_nothing_is_left_out() -> None:
    assert importer.rewritten({"a": None, "generationConfig": {"thinkingConfig": {}}}) == {}
    assert importer.rewritten({"tool_config": {"function_calling_config": {}}, "x": [{"y": None}]}) == {
        "x": [{}]
    }


def test_what_means_something_stays() -> None:
    """An empty tool switches it on, and `null` in a value is a value."""
    kept = {"tools": [{"google_search": {}}], "args": {"x": None}, "default": None, "n": 0, "s": "", "l": []}
    assert importer.rewritten(kept) == kept
    assert importer.rewritten({"p": {"example": {"x": None}}}) == {"p": {"example": {"x": None}}}


# ---------------------------------------------------------------- request lines


SPECS: dict[str, dict[str, Any]] = {
    "plain": {},
    "system instruction": {"system_instruction": "Be short."},
    "schema": {"output_schema": {"type": "object", "properties": {"n": {"type": ["integer", "null"]}}}},
    "settings": {
        "generation_config": {"temperature": 0, "thinking_config": {}},
        "tool_config": {"function_calling_config": {}},
    },
    "extra": {"extra_body": {"serviceTier": "x", "generationConfig": {"seed": None}}},
    "embedding": {"task": "embed_content", "embed_content_config": {"output_dimensionality": 8}},
    "bare embedding": {"task": "embed_content"},
}


def rendered(backend: BackendSpec, name: str) -> Request:
    (made,) = Renderer(make_spec(backend=backend, **SPECS[name])).requests(make_row())  # type: ignore[misc]
    return made


@pytest.mark.parametrize("name", SPECS)
def test_a_request_has_the_same_id_on_both_services(name: str) -> None:
    one, other = rendered(GEMINI, name), rendered(VERTEX, name)
    assert one.request_id == other.request_id
    # A key that looks like a number would come back as one.
    assert one.request_id[0].isalpha()
    assert orjson.loads(other.line)["key"] == other.request_id


@pytest.mark.parametrize("name", SPECS)
def test_lines_for_vertex_can_be_loaded(name: str) -> None:
    Importer().load([rendered(VERTEX, name).line])


def test_every_content_names_its_role_on_vertex_alone() -> None:
    request = orjson.loads(rendered(VERTEX, "system instruction").line)["request"]
    assert request["systemInstruction"] == {"parts": [{"text": "Be short."}], "role": "user"}
    assert request["contents"][0]["role"] == "user"
    request = orjson.loads(rendered(GEMINI, "system instruction").line)["request"]
    assert request["systemInstruction"] == {"parts": [{"text": "Be short."}]}


def test_an_embedding_has_its_settings_in_a_config_of_their_own() -> None:
    request = orjson.loads(rendered(VERTEX, "embedding").line)["request"]
    assert request == {
        "content": {"parts": [{"text": "Sort: hello"}], "role": "user"},
        "embed_content_config": {"output_dimensionality": 8},
    }
    assert "embed_content_config" not in orjson.loads(rendered(VERTEX, "bare embedding").line)["request"]
    assert orjson.loads(rendered(GEMINI, "embedding").line)["request"] == {
        "content": {"parts": [{"text": "Sort: hello"}]},
        "output_dimensionality": 8,
    }
