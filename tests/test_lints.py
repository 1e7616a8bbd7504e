from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import orjson
import pytest

from runner import lints, spec

TEXT = """\
version: 1
name: tickets
backend: local
inputs: data/*.txt
model: gemini-3.5-flash-lite
prompt: |
  Which team?
  {{ input.text }}
destination: out/tickets.jsonl
"""


def lint(folder: Path, text: str) -> list[tuple[str, int]]:
    (folder / "spec.yaml").write_text(text, encoding="utf-8")
    found = lints.lint(spec.load(folder / "spec.yaml", environ={}))
    assert all(diagnostic.severity == "warning" for diagnostic in found)
    return [(diagnostic.code, diagnostic.line) for diagnostic in found]


def test_a_good_spec_has_no_warning(tmp_path: Path) -> None:
    assert lint(tmp_path, TEXT) == []
    rich = TEXT.replace(
        "{{ input.text }}", "{% for x in input.text.split() %}{{ loop.index }} {{ x }}{% endfor %}"
    )
    rich += """\
variables: {tone: formal, model: gemini-3.8-flash, all: [a]}
system_instruction: |
  {% set tone = var["tone"] %}{% macro say(what, how=1) %}{{ what }}{{ how }}{{ varargs }}{% endmacro %}
  {{ say(tone) }} {{ env }} {{ range(3) | list }} {{ var.all | join }} {{ input["name"] }} ${not.ours}
description: ${var.model}
output_schema: {type: object, additionalProperties: false, properties: {team: {type: string}}}
generation_config: {max_output_tokens: 1024, thinking_config: {thinking_budget: 512}}
"""
    assert lint(tmp_path, rich) == []


@pytest.mark.parametrize(
    ("model", "codes"),
    [
        ("gemini-3.8-flash", []),
        ("gemini-4-neon", []),
        ("gemini-2.5-flash-lite", []),
        ("gemini-2.0-flash-001", ["GB901"]),
        ("gemini-1.5-flash-8b", ["GB901"]),
        ("text-embedding-004", ["GB901"]),
        ("gemini-3.7-flash", ["GB902"]),
        ("gemini-flash-latest", ["GB902"]),
        ("gemini-9-flash", ["GB903"]),
        ("gemini-embedding-2", ["GB904"]),
        ("gemini-2.5-flash", ["GB914"]),
    ],
)
def test_model_ids(tmp_path: Path, model: str, codes: list[str]) -> None:
    assert lint(tmp_path, TEXT.replace("gemini-3.5-flash-lite", model)) == [(code, 5) for code in codes]


@pytest.mark.parametrize(
    ("model", "config", "codes"),
    [
        ("gemini-3.8-flash", "thinking_config: {thinking_level: minimal}", ["GB904"]),
        ("gemini-3.7-flash", "thinking_config: {thinking_level: MINIMAL}", ["GB902", "GB904"]),
        ("gemini-3.8-flash", "thinking_config: {thinking_level: low}", []),
        ("gemini-4-argon", "candidate_count: 1", []),
        ("gemini-4-argon", "candidate_count: 2", ["GB904"]),
        ("gemini-4-argon", "top_k: 0", ["GB905"]),
        ("gemini-3.6-flash", "candidate_count: 2", []),
        ("gemini-3.6-flash", "max_output_tokens: 1023", ["GB911"]),
        ("gemini-3.6-flash", "{max_output_tokens: 100, thinking_config: {thinking_budget: 0}}", []),
        ("gemini-2.5-flash-lite", "max_output_tokens: 100", []),
        (
            "gemini-9-flash",
            "{max_output_tokens: 2000, thinking_config: {thinking_budget: 2000}}",
            ["GB903", "GB911"],
        ),
    ],
)
def test_settings_that_a_model_does_not_take(
    tmp_path: Path, model: str, config: str, codes: list[str]
) -> None:
    written = config if config.startswith("{") else f"{{{config}}}"
    text = TEXT.replace("gemini-3.5-flash-lite", model) + f"generation_config: {written}\n"
    assert [code for code, _ in lint(tmp_path, text)] == codes


def test_warnings_about_a_template_file_are_in_that_file(tmp_path: Path) -> None:
    (tmp_path / "p.j2").write_text("one\n{{ input.txt }}\n")
    (tmp_path / "spec.yaml").write_text(
        TEXT.replace("prompt: |\n  Which team?\n  {{ input.text }}\n", "prompt: {file: p.j2}\n")
    )
    (found,) = lints.lint(spec.load(tmp_path / "spec.yaml", environ={}))
    assert (found.path.rsplit("/", 1)[-1], found.line, found.column, found.length) == ("p.j2", 2, 4, 9)
    assert found.hint == 'did you mean "text"?'


def test_a_variable_chosen_at_run_time_may_be_any(tmp_path: Path) -> None:
    text = TEXT.replace("{{ input.text }}", "{{ input.text }}{{ var[input.stem] }}")
    assert lint(tmp_path, text + "variables: {a: 1}\n") == []


def test_a_spec_that_came_from_no_file_is_linted_too(tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").write_text(TEXT.replace("input.text", "input.txt") + "labels: {a: b}\n")
    made = replace(spec.load(tmp_path / "spec.yaml", environ={}), origin=None)
    found = lints.lint(made)
    assert [(d.code, d.path, d.line) for d in found] == [
        ("GB907", "spec.yaml", 8),
        ("GB912", "spec.yaml", 10),
    ]


def test_the_table_of_models_is_dated_and_whole() -> None:
    table = orjson.loads((Path(lints.__file__).parent / "data" / "models.json").read_bytes())
    assert len(table["as_of"]) == 10
    for name, facts in table["models"].items():
        assert facts.get("family", "gemini-4") in table["families"], name
        for key in ("answered_by", "then_answered_by", "use"):
            assert facts.get(key, "gemini-3.8-flash") in table["models"], name
