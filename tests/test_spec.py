from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest

from runner import diagnostics, lints, spec, yamlfile
from runner.errors import SpecInvalid
from runner.schemafile import schema_path
from runner.specmodel import Spec

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
Load = Callable[..., Spec]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Writes `files` and a spec of TEXT plus `more`, with (old, new) replaced, and loads it."""

    def run(
        more: str = "", *swaps: tuple[str, str], files: dict[str, str] | None = None, **args: Any
    ) -> Spec:
        text = TEXT
        for old, new in swaps:
            assert old in text
            text = text.replace(old, new)
        for name, content in (files or {}).items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content, encoding="utf-8", newline="")
        (tmp_path / "spec.yaml").write_text(text + more, encoding="utf-8")
        args.setdefault("environ", {})
        return spec.load(tmp_path / "spec.yaml", **args)

    return run


def codes(load: Load, *args: Any, **given: Any) -> list[str]:
    with pytest.raises(SpecInvalid) as caught:
        load(*args, **given)
    return [found.code for found in caught.value.diagnostics]


# ------------------------------------------------------------------- what comes back


def test_the_smallest_spec_has_its_defaults(load: Load, tmp_path: Path) -> None:
    found = load()
    assert (found.name, found.env, found.task, found.cleanup) == (
        "tickets",
        None,
        "generate_content",
        "inputs",
    )
    assert found.path == tmp_path / "spec.yaml"
    assert found.state == tmp_path / ".gbrun" / "tickets" / "default-local"
    assert [(source.glob, source.encoding, source.on_bad_row) for source in found.inputs] == [
        ("data/*.txt", "utf-8", "fail")
    ]
    assert (found.shards.max_requests, found.shards.max_bytes) == (50_000, 1_500_000_000)
    assert (found.max_jobs, found.guards.min_rows, found.failures.max_attempts) == (10, 1, 3)
    assert [(d.path, d.include) for d in found.destinations] == [("out/tickets.jsonl", ())]
    assert found.lines["prompt"] == 6
    assert found.output_schema is None


def test_every_key_arrives(load: Load, tmp_path: Path) -> None:
    found = load(
        """\
description: what for
labels: {team: support}
state: var/state
allow_outside: false
task: generate_content
system_instruction: Be brief.
generation_config:
  temperature: 0
  thinking_config: {thinking_level: low, include_thoughts: false}
  stop_sequences: [END]
safety_settings: [{category: HARM_CATEGORY_HARASSMENT, threshold: OFF}]
tools: [{google_search: {}}]
tool_config: {function_calling_config: {mode: ANY}}
cached_content: cachedContents/x
extra_body: {priority: 5}
output_schema: {type: object, properties: {z: {type: string}, a: {type: string}}}
shards: {max_requests: 10, max_bytes: 14 MiB}
concurrency: {max_jobs: 2}
guards: {min_rows: 0, max_removed_ratio: 1}
failures: {max_ratio: 0.5, max_attempts: 1}
lifecycle: {prevent_destroy: true}
cleanup: keep
""",
        (
            "inputs: data/*.txt",
            "inputs:\n  - ./a/*.txt\n"
            "  - files: {glob: b/**, exclude: b/x, encoding: cp1252}\n    on_bad_row: skip",
        ),
        ("out/tickets.jsonl", "\n  - {path: out/t.jsonl, include: [meta]}"),
        ("backend: local", "backend: {type: gemini, poll_interval_s: 1.5m, settle_s: 3, api_version: v1}"),
    )
    assert found.state == tmp_path / "var" / "state"
    assert found.generation_config["thinking_config"]["thinking_level"] == "LOW"
    assert found.inputs[0].glob == "a/*.txt"
    second = found.inputs[1]
    assert (second.glob, second.exclude, second.encoding, second.on_bad_row) == (
        "b/**",
        ("b/x",),
        "cp1252",
        "skip",
    )
    assert (found.destinations[0].path, found.destinations[0].include) == ("out/t.jsonl", ("meta",))
    assert (found.backend.poll_interval_s, found.backend.settle_s, found.backend.api_version) == (
        90.0,
        3.0,
        "v1",
    )
    assert (found.shards.max_requests, found.shards.max_bytes) == (10, 14 * 1024 * 1024)
    assert (found.max_jobs, found.guards.min_rows, found.guards.max_removed_ratio) == (2, 0, 1)
    assert (found.failures.max_ratio, found.failures.max_attempts) == (0.5, 1)
    assert found.prevent_destroy
    assert found.output_schema is not None
    assert list(found.output_schema["properties"]) == ["z", "a"]
    assert found.tools == ({"google_search": {}},)
    assert found.extra_body == {"priority": 5}
    assert found.system_instruction is not None
    assert found.system_instruction.text == "Be brief."


def test_a_models_prefix_is_dropped(load: Load) -> None:
    assert load("", ("model: ", "model: models/")).model == "gemini-3.5-flash-lite"


@pytest.mark.parametrize(
    ("written", "text", "place"),
    [
        ("prompt: |\n  one\n    two\n", "one\n  two\n", (7, 3)),
        ("prompt: |  # why\n\n    one\n", "\none\n", (7, 5)),
        ("prompt: |2\n    one\n", "  one\n", (7, 3)),
        ("prompt: |-\n one\n", "one", (7, 2)),
        ("prompt: >\n  one\n  two\n", "one two\n", (7, 3)),
        ("prompt: one\n", "one", (6, 9)),
        ('prompt: "one"\n', "one", (6, 10)),
    ],
)
def test_a_template_knows_where_its_text_stands(
    load: Load, written: str, text: str, place: tuple[int, int]
) -> None:
    found = load("", ("prompt: |\n  Which team?\n  {{ input.text }}\n", written)).prompt
    assert (found.text, found.path, (found.line, found.column)) == (text, "spec.yaml", place)


def test_a_template_file_keeps_its_text(load: Load) -> None:
    files = {"prompts/t.j2": "\ufeffone\r\n{{ input.text }}\n\n"}
    prompt = load(
        "", ("prompt: |\n  Which team?\n  {{ input.text }}\n", "prompt: {file: prompts/t.j2}\n"), files=files
    ).prompt
    assert prompt.text == "one\r\n{{ input.text }}\n\n"
    assert (prompt.path, prompt.line, prompt.column) == ("prompts/t.j2", 1, 1)


def test_a_schema_file_may_be_json_or_yaml(load: Load) -> None:
    files = {"a.json": '{"properties": {"z": {}, "a": {}}}', "b.yaml": "properties: {z: {}, a: {}}\n"}
    one = load("output_schema: a.json\n", files=files).output_schema
    other = load("output_schema: b.yaml\n", files=files).output_schema
    assert one == other == {"properties": {"z": {}, "a": {}}}
    assert one is not None
    assert list(one["properties"]) == ["z", "a"]


def test_a_number_is_the_same_however_it_is_written(load: Load) -> None:
    more = "generation_config:\n  temperature: %s\n  max_output_tokens: %s\n"
    more += "  thinking_config: {thinking_budget: %s}\n"
    more += "shards: {max_requests: %s}\nextra_body: {x: 1.0}\n"
    one, other = load(more % (1, 2048, 0, 5)), load(more % ("1.0", "2.048e3", "0.0", "5.0"))
    assert one == replace(other, lines=one.lines)
    assert type(other.shards.max_requests) is int
    assert type(other.generation_config["thinking_config"]["thinking_budget"]) is int
    assert type(other.extra_body["x"]) is float
    assert spec.digest(one) == spec.digest(other)
    assert codes(load, "shards: {max_requests: 1.5}\n") == ["GB102"]


# ------------------------------------------------------------------- backends


@pytest.mark.parametrize(
    ("address", "paid"),
    [
        ("http://127.0.0.1:8080", False),
        ("http://127.5.6.7", False),
        ("http://localhost:1/x", False),
        ("http://LOCALHOST.", False),
        ("http://[::1]:8080", False),
        ("https://generativelanguage.googleapis.com", True),
        ("http://127.0.0.1.example.com", True),
        ("http://localhost.example.com", True),
        ("http://user@example.com:80@127.0.0.1", False),
        ("http://127.0.0.1@example.com", True),
        ("http://10.0.0.1", True),
        ("http://0.0.0.0", True),
    ],
)
def test_only_a_loopback_address_is_free(load: Load, address: str, paid: bool) -> None:
    found = load("", ("backend: local", f"backend: {{type: gemini, base_url: '{address}'}}"))
    assert found.backend.paid is paid
    assert found.state.name == ("default" if paid else "default-local")


@pytest.mark.parametrize(
    ("environ", "kind", "paid"),
    [
        ({"GEMINI_API_KEY": "k"}, "gemini", True),
        ({"GOOGLE_API_KEY": "k", "GOOGLE_GENAI_USE_VERTEXAI": "false"}, "gemini", True),
        ({"GEMINI_API_KEY": "k", "GOOGLE_GEMINI_BASE_URL": "http://127.0.0.1:9"}, "gemini", False),
    ],
)
def test_the_environment_chooses_the_backend(
    load: Load, environ: dict[str, str], kind: str, paid: bool
) -> None:
    found = load("", ("backend: local\n", ""), environ=environ)
    assert (found.backend.type, found.backend.paid) == (kind, paid)


@pytest.mark.parametrize(
    ("environ", "code"),
    [
        ({}, "GB501"),
        ({"GEMINI_API_KEY": ""}, "GB501"),
    ],
)
def test_no_backend(load: Load, environ: dict[str, str], code: str) -> None:
    assert codes(load, "", ("backend: local\n", ""), environ=environ) == [code]


VERTEX = {
    "GOOGLE_CLOUD_PROJECT": "p-1",
    "GOOGLE_CLOUD_LOCATION": "global",
    "GBRUN_STAGING_URI": "gs://shelf/x",
}


def test_the_environment_chooses_vertex_and_fills_it_in(load: Load) -> None:
    for name in ("GOOGLE_GENAI_USE_VERTEXAI", "GOOGLE_GENAI_USE_ENTERPRISE"):
        environ = {name: "True", "GEMINI_API_KEY": "k", **VERTEX}
        found = load("", ("backend: local\n", ""), environ=environ).backend
        assert (found.type, found.project, found.location) == ("vertex", "p-1", "global")
        assert (found.staging_uri, found.api_version, found.paid) == ("gs://shelf/x", "v1beta1", True)


def test_a_spec_of_vertex(load: Load) -> None:
    written = "backend: {type: vertex, project: example.com:p-2, location: us-central1, staging_uri: gs://shelf/a/b}"
    found = load("", ("backend: local", written), environ=VERTEX).backend
    assert (found.project, found.location, found.staging_uri) == (
        "example.com:p-2",
        "us-central1",
        "gs://shelf/a/b",
    )
    bare = load("", ("backend: local", "backend: vertex"), environ=VERTEX).backend
    assert bare.project == "p-1"
    base = {**VERTEX, "GOOGLE_VERTEX_BASE_URL": "http://[::1]:9", "GOOGLE_GEMINI_BASE_URL": "https://x"}
    found = load("", ("backend: local", "backend: vertex"), environ=base).backend
    assert (found.base_url, found.paid) == ("http://[::1]:9", False)
    # Synchronous calls put nothing into a bucket.
    direct = "backend: {type: vertex, project: p-2, location: eu, mode: direct}"
    assert load("", ("backend: local", direct)).backend.staging_uri is None
    tools = "tools: [google_search: {}]"
    assert load(tools, ("backend: local", direct)).tools == ({"google_search": {}},)
    assert codes(load, tools, ("backend: local", "backend: {type: local, like: vertex}")) == ["GB503"]
    # What the command line chooses may lack what only a connection needs.
    assert load(backend="vertex").backend.project is None
    assert codes(load, "", ("backend: local", "backend: vertex")) == ["GB101"] * 3


def test_limits_are_those_of_the_service(load: Load) -> None:
    local = ("backend: local", "backend: {type: local, like: vertex}")
    assert load("", local).shards.max_bytes == 1_000_000_000
    assert load().shards.max_bytes == 1_500_000_000
    assert codes(load, "shards: {max_requests: 200001}", local) == ["GB105"]
    assert load("shards: {max_requests: 200001}").shards.max_requests == 200_001
    assert codes(load, "shards: {max_requests: 1000001}") == ["GB105"]


def test_a_spec_that_does_not_use_vertex_has_the_digest_it_had(load: Load) -> None:
    backend = spec.resolved(load())["backend"]
    assert not {"like", "project", "location", "staging_uri"} & backend.keys()


def test_the_command_line_replaces_backend_and_state(load: Load, tmp_path: Path) -> None:
    found = load("", ("backend: local", "backend: {type: gemini, settle_s: 1}"), backend="local")
    assert (found.backend.type, found.backend.settle_s) == ("local", 120.0)
    found = load("", ("backend: local", "backend: {type: gemini, settle_s: 1}"), backend="gemini")
    assert found.backend.settle_s == 1.0
    assert load(state=tmp_path / "elsewhere").state == tmp_path / "elsewhere"
    assert codes(load, backend="gemnii") == ["GB104"]
    assert load(backend="vertex").backend.protocol == "vertex"


# ------------------------------------------------------------------- refusals


def test_problems_of_all_kinds_are_found_in_one_run(load: Load) -> None:
    found = codes(
        load,
        "output_schema: {type: objct}\nstate: ../x\nfoo: 1\nshards: {max_bytes: 9GB}\nrollout: {}\n"
        'description: "${var.x}"\n',
        ("{{ input.text }}", "{{ input.text }"),
        ("data/*.txt", "data/"),
        ("backend: local", "backend: {type: gemini, faults: x}"),
    )
    assert found == ["GB502", "GB205", "GB301", "GB311", "GB202", "GB103", "GB105", "GB107", "GB401"]


def test_links_that_lead_out_are_refused(load: Load, tmp_path: Path) -> None:
    outside = tmp_path.parent / f"{tmp_path.name}-outside"
    outside.mkdir()
    (outside / "p.j2").write_text("{{ input.text }}")
    (tmp_path / "linked").symlink_to(outside)
    (tmp_path / "p.j2").symlink_to(outside / "p.j2")
    swap = ("prompt: |\n  Which team?\n  {{ input.text }}\n", "prompt: {file: p.j2}\n")
    assert codes(load, "", swap) == ["GB202"]
    assert load("allow_outside: true\n", swap).prompt.text == "{{ input.text }}"
    assert codes(load, "", ("data/*.txt", "linked/*.txt")) == ["GB202"]
    assert codes(load, "", ("out/", "linked/")) == ["GB202"]
    assert codes(load, "state: linked/state\n") == ["GB202"]
    assert codes(load, "output_schema: linked/none.json\n") == ["GB202"]
    (tmp_path / "own").mkdir()
    (tmp_path / "inner").symlink_to(tmp_path / "own")
    assert load("state: inner/state\n").state == tmp_path / "inner" / "state"


def test_a_spec_reached_through_a_link_is_in_the_folder_of_the_link(load: Load, tmp_path: Path) -> None:
    load()
    linked = tmp_path.parent / f"{tmp_path.name}-linked"
    linked.symlink_to(tmp_path)
    assert spec.load(linked / "spec.yaml", environ={}).folder == linked


def test_paths_inside_may_be_written_with_dots(load: Load, tmp_path: Path) -> None:
    assert load("state: a/../b\n").state == tmp_path / "b"


@pytest.mark.parametrize(
    ("inputs", "clash"),
    [
        ("out/*.jsonl", True),
        ("out/tickets.jsonl", True),
        ("./out/*.jsonl", True),
        ("**/*.errors.jsonl", True),
        ("**", True),
        ("data/**", False),
        ("*.jsonl", False),
    ],
)
def test_what_gbrun_writes_is_never_an_input(load: Load, inputs: str, clash: bool) -> None:
    other = ("out/tickets.jsonl", "./out/../out/tickets.jsonl")
    swap = ("inputs: data/*.txt", f"inputs: '{inputs}'")
    if clash:
        assert codes(load, "", other, swap) == ["GB203"]
    else:
        load("", other, swap)


def test_a_schema_reads_no_other_schema(load: Load, tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text('{"type": "string"}')
    for reference in (f"file://{tmp_path}/other.json", "other.json", "./other.json#"):
        schema = f"output_schema: {{properties: {{a: {{$ref: '{reference}'}}}}}}\n"
        assert codes(load, schema) == ["GB313"]


def test_a_path_with_a_nul_character_is_refused(load: Load) -> None:
    assert codes(load, 'state: "a\\0b"\n') == ["GB202"]


def test_reading_a_spec_runs_nothing(load: Load, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    found = codes(load, f"extra_body: !!python/object/apply:pathlib.Path.touch ['{marker}']\n")
    assert "GB015" in found
    load("", ("{{ input.text }}", "{{ ''.__class__.__mro__ }}{{ cycler.__init__.__globals__ }}"))
    assert not marker.exists()


def test_a_missing_spec(tmp_path: Path) -> None:
    with pytest.raises(SpecInvalid) as caught:
        spec.load(tmp_path / "none.yaml", environ={})
    assert [found.code for found in caught.value.diagnostics] == ["GB001"]


def test_a_final_newline_does_not_slip_through_a_pattern(load: Load) -> None:
    assert codes(load, "", ("name: tickets", "name: |\n  tickets")) == ["GB106"]


def test_no_text_stands_for_a_number_once_variables_are_filled_in(load: Load) -> None:
    assert codes(load, 'generation_config: {temperature: "$${x}"}\n') == ["GB102"]


# ------------------------------------------------------------------- resolved and digest


def test_resolved_is_the_same_wherever_the_spec_lies(load: Load, tmp_path: Path) -> None:
    files = {"p.j2": "{{ input.text }}\n", "faults.yaml": "[]\n", "s.json": '{"type": "object"}'}
    swaps = (
        ("prompt: |\n  Which team?\n  {{ input.text }}\n", "prompt: {file: p.j2}\n"),
        ("backend: local", "backend: {type: local, faults: faults.yaml}"),
    )
    first = load("output_schema: s.json\n", *swaps, files=files)
    copy = tmp_path.parent / f"{tmp_path.name}-copy"
    shutil.copytree(tmp_path, copy)
    os.chdir(copy)
    second = spec.load(Path("spec.yaml"), environ={}, state=Path("/elsewhere"))
    assert spec.resolved(first) == spec.resolved(second)
    assert spec.digest(first) == spec.digest(second)
    data = orjson.dumps(spec.resolved(first))
    assert str(tmp_path).encode() not in data
    assert spec.resolved(first)["prompt"] == "{{ input.text }}\n"
    assert len(spec.digest(first)) == 32


def test_digest_follows_what_is_asked_and_not_how_it_is_written(load: Load) -> None:
    before = spec.digest(load())
    assert spec.digest(load("# a comment\n", ("version: 1", "\n\nversion: 1"))) == before
    assert spec.digest(load("cleanup: inputs\n")) == before
    assert spec.digest(load("cleanup: keep\n")) != before
    assert spec.digest(load("lifecycle: {prevent_destroy: false}\n")) == before
    assert spec.digest(load("lifecycle: {prevent_destroy: true}\n")) != before
    assert spec.digest(load("", ("Which team?", "Which team? "))) != before
    backend = "backend: {type: gemini, base_url: 'http://127.0.0.1:%s'}"
    ports = [spec.digest(load("", ("backend: local", backend % port))) for port in (1, 2)]
    assert ports[0] == ports[1]


# ------------------------------------------------------------------- the schema file


def test_the_published_schema_agrees_with_itself_in_both_validators(load: Load) -> None:
    import jsonschema
    import jsonschema_rs

    schema = orjson.loads(schema_path("spec.v1.json").read_bytes())
    jsonschema.Draft202012Validator.check_schema(schema)
    fast, slow = jsonschema_rs.Draft202012Validator(schema), jsonschema.Draft202012Validator(schema)
    cases = Path(__file__).parent / "golden" / "specs"
    values = [yamlfile.read(path, "spec.yaml").value for path in sorted(cases.glob("*/spec.yaml"))]
    assert len([value for value in values if value is not None]) > 30
    for value in values:
        assert fast.is_valid(value) == slow.is_valid(value), value


def test_every_part_of_the_published_schema_is_described() -> None:
    schema = orjson.loads(schema_path("spec.v1.json").read_bytes())
    assert all("description" in part for part in schema["$defs"].values())
    for part in schema["$defs"].values():
        assert all("description" in p or "$ref" in p for p in part.get("properties", {}).values())


def test_the_published_schema_lets_references_stand_for_values() -> None:
    import jsonschema_rs

    schema = orjson.loads(schema_path("spec.v1.json").read_bytes())
    value = {
        "version": 1,
        "name": "t-${env}",
        "inputs": "data/${var.d}/*.txt",
        "model": "${var.model}",
        "prompt": "x",
        "destination": "out.jsonl",
        "cleanup": "${var.c}",
        "generation_config": {"temperature": "${var.t}", "thinking_config": {"thinking_level": "${var.l}"}},
        "guards": {"min_rows": "${var.n}"},
    }
    assert jsonschema_rs.Draft202012Validator(schema).is_valid(value)


def test_a_good_spec_loads_no_heavy_library(tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").write_text(TEXT)
    program = (
        "import sys, pathlib; from runner import spec;"
        "assert not {'jsonschema', 'jsonschema_rs', 'jinja2'} & sys.modules.keys();"
        "spec.load(pathlib.Path(sys.argv[1]), environ={});"
        "assert not {'jsonschema', 'google', 'pydantic', 'click'} & sys.modules.keys(), 'loaded'"
    )
    root = Path(__file__).parent.parent
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "spec.yaml")], check=True, cwd=root)


def test_noise_never_raises_anything_else(load: Load, tmp_path: Path) -> None:
    chooser = random.Random(5)
    pieces = "null|[]|{}|5|true|- |: |${var.x}|${env}|\n|  |*a|&a |!!str |\t|{{|}}|{%|'|\"|[|{|x: |../|%|-1"
    text = TEXT + "variables: {x: 1}\nlabels: {a: b}\ngeneration_config:\n  temperature: 0\n"
    text += "shards: {max_bytes: 5MB}\n"
    path = tmp_path / "spec.yaml"
    loaded, shown = 0, ""
    for _ in range(600):
        broken = text
        for _ in range(chooser.randrange(1, 3)):
            at = chooser.randrange(len(broken))
            length = chooser.choice((0, 0, 1, 5, 20))
            broken = broken[:at] + chooser.choice(pieces.split("|")) + broken[at + length :]
        path.write_text(broken, encoding="utf-8")
        try:
            found = spec.load(path, environ={})
        except SpecInvalid as error:
            shown += diagnostics.text(error.diagnostics)
        else:
            lints.lint(found)
            assert spec.digest(found)
            loaded += 1
    assert loaded > 20
    assert shown.count("Error: ") > 500


@pytest.mark.parametrize(
    ("model", "config", "dimensions"),
    [
        ("gemini-embedding-001", "", 3072),
        ("models/gemini-embedding-001", "", 3072),
        ("gemini-embedding-001", "embed_content_config: {output_dimensionality: 8}\n", 8),
        ("tomorrows-embedding", "", None),
    ],
)
def test_how_long_vectors_will_be(load: Load, model: str, config: str, dimensions: int | None) -> None:
    found = load(f"task: embed_content\n{config}", ("gemini-3.5-flash-lite", model))
    assert found.dimensions == dimensions


def test_texts_have_no_dimensions(load: Load) -> None:
    assert load().dimensions is None


def test_what_is_worked_out_from_the_rest_is_in_no_digest(load: Load) -> None:
    found = load("task: embed_content\n", ("gemini-3.5-flash-lite", "gemini-embedding-001"))
    assert spec.digest(found) == spec.digest(replace(found, dimensions=None, named="elsewhere/spec.yaml"))


def test_a_spec_is_named_as_it_is_from_here(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load("environments: {prod: {}}\n", files={"p.j2": ""})
    monkeypatch.chdir(tmp_path.parent)
    here = spec.load(Path(tmp_path.name) / "spec.yaml", environ={}, env="prod")
    assert here.invocation == f"{tmp_path.name}/spec.yaml --env prod"
    assert here.shown("p.j2") == f"{tmp_path.name}/p.j2"
    assert replace(here, named="", env=None).invocation == "spec.yaml"
    assert replace(here, named="a b/spec.yaml", env=None).invocation == "'a b/spec.yaml'"
