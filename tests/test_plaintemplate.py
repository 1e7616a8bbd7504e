"""Templates understood without Jinja: only those of which Jinja says the same."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from markupsafe import Markup

from runner import plaintemplate
from runner.sandbox import CompiledTemplate, Fields

PIECES = [
    "{{ input.text }}", "{{input.x}}", "{{ var.tone }}", "{{ env }}", "{{\tinput._9\t}}", "{{ input.if }}",
    "{{ input }}", "{{ other.x }}", "{{ input.a.b }}", "{{- input.x -}}", "{{ input.x|upper }}",
    "{{ env.x }}", "{% raw %}", "{% endraw %}", "{# note #}", "{", "}", "{{", "}}", "%}", "#}", "{%", "{#",
    " ", "\n", "\r\n", "text", "# x", "é😀", "\0", "\ud800", "'", '"', "\\",
]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", set()),
        ("no names, one { and one }", set()),
        ("To do:\n{{ input.text }}\n{{var.tone}}", {("input", "text"), ("var", "tone")}),
        ("{{\tenv }}", {("env", "")}),
        ("{{ input.x }}}", {("input", "x")}),
    ],
)  # fmt: skip
def test_text_and_names_are_understood(text: str, expected: set[tuple[str, str]]) -> None:
    found = plaintemplate.parsed(text)
    assert found is not None
    assert found.names == expected == CompiledTemplate(text).names


@pytest.mark.parametrize(
    "text",
    [
        "{{ input }}", "{{ input.text|upper }}", "{{ input['x'] }}", "{{ input.a.b }}", "{{ x }}",
        "{% if env %}{% endif %}", "{# {{ input.x }} #}", "{{{ input.x }}", "{{- input.x }}", "{{ input.x",
        "{{ input.x }}{%", "{{ input.é }}", "{{ input.1 }}",
    ],
)  # fmt: skip
def test_all_else_is_left_to_jinja(text: str) -> None:
    assert plaintemplate.parsed(text) is None


@given(st.lists(st.sampled_from(PIECES), max_size=6).map("".join))
@example("{{{ input.x }}}}")
def test_what_is_understood_is_what_jinja_understands(text: str) -> None:
    found = plaintemplate.parsed(text)
    assert found is None or found.names == CompiledTemplate(text).names


VALUES = st.text(st.sampled_from("ab\r\n{}%#\0\u2028é😀\ud800"), max_size=5) | st.sampled_from(
    [None, 1, 2.5, True, ["x"], {"x": "y"}, "{{ input.x }}", "<b>&amp;"]
)


@given(
    st.lists(st.sampled_from(PIECES), max_size=6).map("".join),
    st.dictionaries(st.sampled_from(["text", "x", "_9", "if", "_values", "__class__", "a"]), VALUES),
    st.dictionaries(st.just("tone"), VALUES),
)
@example("a\r\nb\rc{{ input.x }}\r\n", {"x": "d\r\ne"}, {})
def test_what_is_rendered_is_what_jinja_renders(
    text: str, fields: dict[str, Any], variables: dict[str, Any]
) -> None:
    found = plaintemplate.parsed(text)
    made = found and found.render({"input": fields, "var": variables, "env": {"": "dev"}})
    if made is not None:
        values = {"input": Fields("input", fields), "var": Fields("var", variables), "env": "dev"}
        assert made == CompiledTemplate(text).render(values)


def test_texts_are_rendered_and_all_else_is_left_to_jinja(monkeypatch: pytest.MonkeyPatch) -> None:
    found = plaintemplate.parsed("{{ input.x }} in {{ env }}: {{ var.x }}")
    assert found is not None
    around = {"var": {"x": "{{ loud }}"}, "env": {"": "dev"}}
    assert found.render({"input": {"x": "a"}, **around}) == "a in dev: {{ loud }}"
    for fields in ({}, {"x": None}, {"x": 1}, {"x": Markup("a")}):
        assert found.render({"input": fields, **around}) is None
    private = plaintemplate.parsed("{{ input._values }}")
    assert private is not None
    assert private.render({"input": {"_values": "a"}, **around}) is None
    monkeypatch.setattr(plaintemplate, "MAX_OUTPUT_CHARS", 20)
    assert found.render({"input": {"x": "a"}, **around}) is not None
    assert found.render({"input": {"x": "ab"}, **around}) is None
