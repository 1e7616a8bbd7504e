"""Templates understood without Jinja: only those of which Jinja says the same."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from runner import plaintemplate
from runner.sandbox import CompiledTemplate

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
    assert plaintemplate.names(text) == expected == CompiledTemplate(text).names


@pytest.mark.parametrize(
    "text",
    [
        "{{ input }}", "{{ input.text|upper }}", "{{ input['x'] }}", "{{ input.a.b }}", "{{ x }}",
        "{% if env %}{% endif %}", "{# {{ input.x }} #}", "{{{ input.x }}", "{{- input.x }}", "{{ input.x",
        "{{ input.x }}{%", "{{ input.é }}", "{{ input.1 }}",
    ],
)  # fmt: skip
def test_all_else_is_left_to_jinja(text: str) -> None:
    assert plaintemplate.names(text) is None


@given(st.lists(st.sampled_from(PIECES), max_size=6).map("".join))
@example("{{{ input.x }}}}")
def test_what_is_understood_is_what_jinja_understands(text: str) -> None:
    found = plaintemplate.names(text)
    assert found is None or found == CompiledTemplate(text).names
