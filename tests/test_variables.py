from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import orjson
import pytest

from runner import diagnostics, lints, spec
from runner.errors import SpecInvalid
from runner.specmodel import Spec

TEXT = """\
version: 1
name: tickets
backend: local
inputs: data/*.txt
model: gemini-3.5-flash-lite
prompt: "{{ input.text }}"
destination: out/tickets.jsonl
"""
Load = Callable[..., Spec]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Writes TEXT plus `more`, and `files`, and loads it."""

    def run(more: str = "", files: Mapping[str, str] | None = None, **args: Any) -> Spec:
        for name, content in (files or {}).items():
            (tmp_path / name).write_text(content, encoding="utf-8")
        (tmp_path / "spec.yaml").write_text(TEXT + more, encoding="utf-8")
        args.setdefault("environ", {})
        args["variable_files"] = [tmp_path / name for name in args.get("variable_files", ())]
        return spec.load(tmp_path / "spec.yaml", **args)

    return run


def problems(load: Load, *args: Any, **given: Any) -> list[tuple[str, str, int]]:
    with pytest.raises(SpecInvalid) as caught:
        load(*args, **given)
    return [(found.code, found.path.rsplit("/", 1)[-1], found.line) for found in caught.value.diagnostics]


# ------------------------------------------------------------------- where values come from


def test_each_source_wins_over_the_one_before(load: Load) -> None:
    text = "variables: {x: default}\nenvironments: {prod: {variables: {x: environment}}}\n"
    args: dict[str, Any] = {}
    for more, value in (
        ({}, "default"),
        ({"env": "prod"}, "environment"),
        ({"environ": {"GBRUN_VAR_x": "shell"}}, "shell"),
        ({"variable_files": ["v.yaml"]}, "file"),
        ({"variable_files": ["v.yaml", "w.json"]}, "second file"),
        ({"variables": {"x": "command line"}}, "command line"),
    ):
        args |= more
        files = {"v.yaml": "x: file\n", "w.json": '{"x": "second file"}'}
        assert load(text, files, **args).variables == {"x": value}


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        ("string", "5", "5"),
        ("string", "", ""),
        ("integer", "-5", -5),
        ("number", "5", 5),
        ("number", "1e-3", 0.001),
        ("boolean", "true", True),
        ("boolean", "false", False),
        ("list", "a, b,c", ["a", "b", "c"]),
        ("list", "", []),
        ("list", '["a", 1]', ["a", 1]),
    ],
)
def test_texts_are_converted_to_the_declared_type(load: Load, kind: str, text: str, value: object) -> None:
    declared = f"variables: {{x: {{type: {kind}}}}}\n"
    for given in ({"variables": {"x": text}}, {"environ": {"GBRUN_VAR_x": text}}):
        found = load(declared, **given).variables["x"]
        assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("integer", "5.0"),
        ("integer", "05"),
        ("integer", " 5"),
        ("integer", "9" * 30),
        ("number", "five"),
        ("number", "NaN"),
        ("number", "1e999"),
        ("boolean", "yes"),
        ("boolean", "True"),
        ("list", "[a]"),
        ("list", '[{"a": 1}]'),
        ("string", "caf\udce9"),
        ("list", "caf\udce9,b"),
    ],
)
def test_texts_that_do_not_fit_are_refused(load: Load, kind: str, text: str) -> None:
    found = problems(load, f"variables: {{x: {{type: {kind}}}}}\n", variables={"x": text})
    assert found == [("GB403", "--var x", 0)]


def test_values_of_files_keep_their_type(load: Load) -> None:
    declared = "variables:\n  n: {type: integer}\n  s: {type: string}\n  b: true\n"
    files = {"v.yaml": 'n: "5"\ns: 5\nb: "true"\n'}
    assert problems(load, declared, files, variable_files=["v.yaml"]) == [
        ("GB403", "v.yaml", 1),
        ("GB403", "v.yaml", 2),
        ("GB403", "v.yaml", 3),
    ]


def test_the_type_follows_from_the_default(load: Load) -> None:
    declared = "variables: {s: x, n: 1, b: false, l: [a]}\n"
    given = {"s": "1", "n": "1.5", "b": "true", "l": "b,c"}
    assert load(declared, variables=given).variables == {"s": "1", "n": 1.5, "b": True, "l": ["b", "c"]}


def test_names_that_nothing_declares(load: Load) -> None:
    declared = "variables: {region: eu}\nenvironments: {prod: {variables: {regin: us}}}\n"
    assert problems(
        load,
        declared,
        {"v.json": '{"Region": "us"}'},
        env="prod",
        variables={"regoin": "us"},
        variable_files=["v.json"],
    ) == [("GB401", "spec.yaml", 9), ("GB401", "--var regoin", 0), ("GB401", "v.json", 1)]


def test_a_variable_of_the_shell_may_be_meant_for_another_spec(load: Load) -> None:
    assert load(environ={"GBRUN_VAR_other": "x"}).variables == {}


def test_a_variable_without_a_value(load: Load) -> None:
    assert problems(load, "variables:\n  x: {type: string}\n  y: {}\n") == [
        ("GB402", "spec.yaml", 9),
        ("GB402", "spec.yaml", 10),
    ]


# ------------------------------------------------------------------- ${...}


def test_references_are_filled_in_with_their_type(load: Load) -> None:
    found = load(
        """\
variables: {t: 0.5, n: 3, on: true, tags: [a, b], who: team}
description: "${var.who} ${ env } ${var.n} ${var.on} $${var.who} $5 {x}"
labels: {all: "${var.who}"}
generation_config: {temperature: "${var.t}", stop_sequences: "${var.tags}"}
allow_outside: ${var.on}
extra_body: {list: ["${var.n}", "x${var.n}"]}
"""
    )
    assert found.description == "team default 3 true ${var.who} $5 {x}"
    assert found.labels == {"all": "team"}
    assert found.generation_config == {"temperature": 0.5, "stop_sequences": ["a", "b"]}
    assert found.allow_outside is True
    assert found.extra_body == {"list": [3, "x3"]}


def test_env_is_the_chosen_environment(load: Load) -> None:
    text = "description: ${env}\nenvironments: {prod: {}}\n"
    assert load(text).description == "default"
    found = load(text, env="prod")
    assert (found.description, found.env, found.state.name) == ("prod", "prod", "prod-local")


def test_templates_keep_their_text(load: Load) -> None:
    text = "variables: {x: 1}\nsystem_instruction: 'a ${var.x} $${var.x} {{ var.x }}'\n"
    system = load(text).system_instruction
    assert system is not None
    assert system.text == "a ${var.x} $${var.x} {{ var.x }}"


def test_the_path_of_a_template_is_filled_in(load: Load) -> None:
    text = "variables: {lang: de}\nsystem_instruction: {file: 's.${var.lang}.md'}\n"
    system = load(text, {"s.de.md": "Kurz."}).system_instruction
    assert system is not None
    assert (system.text, system.path) == ("Kurz.", "s.de.md")


def test_one_missing_value_gives_one_problem(load: Load) -> None:
    text = "variables: {x: {type: number}}\ngeneration_config: {temperature: '${var.x}'}\nstate: '${var.x}'\n"
    assert problems(load, text) == [("GB402", "spec.yaml", 8)]


@pytest.mark.parametrize("text", ["${x}", "${var.}", "${var.x", "a ${} b", "${env.x}", "${VAR.x}"])
def test_malformed_references(load: Load, text: str) -> None:
    code = "GB401" if text == "${var.}" else "GB405"
    assert problems(load, f"description: '{text}'\n") == [(code, "spec.yaml", 8)]


# ------------------------------------------------------------------- environments and parents


def test_an_environment_merges_mappings_and_replaces_the_rest(load: Load) -> None:
    text = """\
generation_config: {temperature: 0, stop_sequences: [a, b], thinking_config: {thinking_level: LOW}}
environments:
  prod:
    model: gemini-3.8-flash
    backend: {type: gemini}
    prompt: {file: p.j2}
    inputs: [other/*.txt]
    generation_config: {top_p: 1, stop_sequences: [c], thinking_config: {include_thoughts: true}}
"""
    found = load(text, {"p.j2": "{{ input.text }}!"}, env="prod")
    assert found.model == "gemini-3.8-flash"
    assert (found.backend.type, found.state.name) == ("gemini", "prod")
    assert found.prompt.text == "{{ input.text }}!"
    assert [source.glob for source in found.inputs] == ["other/*.txt"]
    assert found.generation_config == {
        "temperature": 0,
        "stop_sequences": ["c"],
        "thinking_config": {"thinking_level": "LOW", "include_thoughts": True},
        "top_p": 1,
    }
    assert load(text).model == "gemini-3.5-flash-lite"


def test_parents_are_below_the_spec_and_environments_above_both(load: Load) -> None:
    files = {
        "base.yaml": "extends: root.yaml\ncleanup: all\nlabels: {from: base, base: b}\n",
        "root.yaml": "cleanup: keep\ndescription: root\nlabels: {from: root, root: r}\n"
        "environments: {prod: {description: prod}}\n",
    }
    found = load("extends: base.yaml\nlabels: {from: spec}\n", files)
    assert (found.cleanup, found.description) == ("all", "root")
    assert found.labels == {"from": "spec", "base": "b", "root": "r"}
    assert load("extends: base.yaml\n", files, env="prod").description == "prod"
    assert "cleanup" not in found.lines
    assert found.lines["labels"] == 9


def test_problems_of_a_parent_are_shown_in_the_parent(load: Load) -> None:
    files = {"base.yaml": "x: 1\nfailures:\n  max_ratio: 5\nsystem_instruction: '{{'\n"}
    assert problems(load, "extends: base.yaml\n", files) == [
        ("GB103", "base.yaml", 1),
        ("GB105", "base.yaml", 3),
        ("GB301", "base.yaml", 4),
    ]


def test_a_broken_parent_hides_what_it_may_have_held(load: Load, tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("a: [1\n")
    (tmp_path / "spec.yaml").write_text("extends: base.yaml\ncleanup: al\nbackend: local\n")
    with pytest.raises(SpecInvalid) as caught:
        spec.load(tmp_path / "spec.yaml", environ={})
    assert [found.code for found in caught.value.diagnostics] == ["GB104", "GB006"]


@pytest.mark.parametrize(
    ("extends", "code"),
    [("none.yaml", "GB407"), ("spec.yaml", "GB407"), ("../x.yaml", "GB202"), ("b-${env}.yaml", "GB407")],
)
def test_parents_that_cannot_be(load: Load, extends: str, code: str) -> None:
    assert problems(load, f"extends: {extends}\n") == [(code, "spec.yaml", 8)]


def test_an_unknown_environment(load: Load) -> None:
    assert problems(load, env="prod") == [("GB404", "--env", 0)]


# ------------------------------------------------------------------- secrets


SECRET = "variables:\n  token: {type: string, sensitive: true, default: hunter2}\n"


def test_a_sensitive_value_is_in_no_resolved_spec(load: Load) -> None:
    text = SECRET + "extra_body: {auth: 'Bearer ${var.token}'}\n"
    one, other = load(text), load(text, variables={"token": "s3cret"})
    assert one.variables == {"token": "hunter2"}
    assert one.sensitive == {"token"}
    assert one.extra_body == {"auth": "Bearer hunter2"}
    for found, value in ((one, b"hunter2"), (other, b"s3cret")):
        assert value not in orjson.dumps(spec.resolved(found))
    assert spec.resolved(one)["variables"]["token"].startswith("sensitive:")
    assert spec.resolved(one)["extra_body"]["auth"].startswith("Bearer sensitive:")
    assert spec.digest(one) != spec.digest(other)
    assert spec.digest(one) == spec.digest(load(text))


def test_the_digest_of_a_secret_is_salted(load: Load) -> None:
    text = SECRET.replace("token:", "token: &x").replace("\n  token", "\n  other: {sensitive: true}\n  token")
    sealed = spec.resolved(load(text, variables={"other": "hunter2"}))["variables"]
    assert sealed["token"] != sealed["other"]


def test_no_message_shows_a_sensitive_value(load: Load, tmp_path: Path) -> None:
    text = (
        "variables: {token: {sensitive: true, default: hunter2, colour: red}}\n"
        "labels: {hunter2: 1, x: swordfish}\n"
        "cleanup: swordfish\n"
        "hunter2: 1\n"
        "environments: {prod: {variables: {token: [xyzzy]}, cleanup: xyzzy}}\n"
    )
    files = {"v.yaml": "token: {a: plugh}\n", "w.yaml": "token: 'plover\n"}
    with pytest.raises(SpecInvalid) as caught:
        load(
            text,
            files,
            env="prod",
            variables={"token": "swordfish"},
            environ={"GBRUN_VAR_token": "frotz"},
            variable_files=["v.yaml", "w.yaml"],
        )
    found = caught.value.diagnostics
    shown = diagnostics.text(found) + json.dumps([diagnostics.json_object(d) for d in found])
    shown += "".join(diagnostics.github(d) for d in found)
    for secret in ("hunter2", "swordfish", "xyzzy", "plugh", "plover", "frotz"):
        assert secret not in shown
    assert {"GB103", "GB104", "GB403", "GB006"} <= {d.code for d in found}


def test_a_line_that_holds_a_secret_in_other_letters_is_not_shown(load: Load) -> None:
    with pytest.raises(SpecInvalid) as caught:
        load('variables: {token: {sensitive: true, default: "hun\\x74er2", colour: red}}\n')
    assert "hun" not in diagnostics.text(caught.value.diagnostics)


def test_no_warning_shows_a_sensitive_value(load: Load) -> None:
    found = lints.lint(load("variables: {token: {sensitive: true, default: hunter2}}\n"))
    assert [d.code for d in found] == ["GB908"]
    assert "hunter2" not in diagnostics.text(found)


def test_a_sensitive_number_is_refused_without_being_shown(load: Load) -> None:
    with pytest.raises(SpecInvalid) as caught:
        load("variables: {pin: {sensitive: true, type: integer, default: 4711}}\n")
    assert [found.code for found in caught.value.diagnostics] == ["GB406"]
    assert "4711" not in diagnostics.text(caught.value.diagnostics)
