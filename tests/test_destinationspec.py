"""The `destination` of a spec, read and refused. What is said, and where, is in tests/golden/specs."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from runner import spec
from runner.errors import SpecInvalid
from runner.specmodel import Column, Destination, Spec

SPEC = """
version: 1
name: tickets
backend: local
model: gemini-3.5-flash-lite
prompt: "{{ input.text }}"
"""


def load(folder: Path, destination: str, more: str = "inputs: data/*.txt\n") -> Spec:
    (folder / "spec.yaml").write_text(f"{SPEC}{more}destination: {destination}\n", encoding="utf-8")
    return spec.load(folder / "spec.yaml", environ={})


def codes(folder: Path, destination: str, more: str = "inputs: data/*.txt\n") -> list[str]:
    with pytest.raises(SpecInvalid) as caught:
        load(folder, destination, more)
    return [d.code for d in caught.value.diagnostics]


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("a.jsonl", [Destination(path="a.jsonl")]),
        ("[a.jsonl, b/c.csv]", [Destination(path="a.jsonl"), Destination(path="b/c.csv")]),
        ("{path: a.csv, include: [meta]}", [Destination(path="a.csv", include=("meta",))]),
        (
            '[{path: a.parquet, columns: [b, "it\'s"]}, a.sqlite]',
            [
                Destination(
                    path="a.parquet",
                    columns=(Column(name="b", path="$['b']"), Column(name="it's", path="$['it\\'s']")),
                ),
                Destination(path="a.sqlite"),
            ],
        ),
        (
            "{path: a.csv, columns: {z: $.b.c, a: '$.d[*]', _key: $._key}}",
            [
                Destination(
                    path="a.csv",
                    columns=(
                        Column(name="z", path="$.b.c"),
                        Column(name="a", path="$.d[*]"),
                        Column(name="_key", path="$._key"),
                    ),
                )
            ],
        ),
    ],
)
def test_one_or_several(tmp_path: Path, written: str, expected: list[Destination]) -> None:
    assert load(tmp_path, written).destinations == tuple(expected)


@pytest.mark.parametrize(
    "written",
    [
        "[a.csv, ./a.csv]",
        "[out/a.csv, out/../out/a.csv]",
        "[a.csv, link/a.csv]",
        "[a.jsonl, a.errors.jsonl]",
        "[a.errors.jsonl, a.csv, a.errors.jsonl]",
        "[a.csv, a.errors.jsonl]",
        "a.txt",
        "a",
        ".csv",
        "out/",
    ],
)
def test_what_cannot_be_written(tmp_path: Path, written: str) -> None:
    os.symlink(".", tmp_path / "link")
    assert codes(tmp_path, written) == ["GB206"]


@pytest.mark.parametrize(
    ("path", "errors"),
    [
        ("gs://bucket/out.jsonl", "gs://bucket/out.errors.jsonl"),
        ("gs://bucket/a/b c/v1.2.csv", "gs://bucket/a/b c/v1.2.errors.jsonl"),
    ],
)
def test_objects_of_a_bucket(tmp_path: Path, path: str, errors: str) -> None:
    # However a glob of this machine would take the address.
    (found,) = load(tmp_path, f"'{path}'", 'inputs: "**/*"\n').destinations
    assert (found.is_object, found.is_file, found.is_table) == (True, False, False)
    assert (found.path, found.errors_path) == (path, errors)


@pytest.mark.parametrize(
    ("written", "code"),
    [
        ("[gs://bucket/a.csv, gs://bucket/a.csv]", "GB206"),
        ("[gs://bucket/a.csv, gs://bucket/a.errors.jsonl]", "GB206"),
        ("gs://bucket/a.txt", "GB206"),
        ("gs://bucket/a", "GB206"),
        ("gs://bucket.csv", "GB106"),
        ("gs://bucket/../a.csv", "GB106"),
        (f"gs://bucket/{'a' * 997}.csv", "GB106"),
        ("s3://bucket/a.csv", "GB107"),
    ],
)
def test_objects_that_cannot_be_written(tmp_path: Path, written: str, code: str) -> None:
    assert codes(tmp_path, written) == [code]


def test_the_errors_of_another_destination_are_no_file_of_ours(tmp_path: Path) -> None:
    assert len(load(tmp_path, "[a.csv, b.jsonl, b.errors.jsonl]").destinations) == 3


@pytest.mark.parametrize("name", ["x.jsonl", "x.csv", "x.parquet", "x.sqlite", "first.errors.jsonl"])
def test_no_destination_lies_among_the_inputs(tmp_path: Path, name: str) -> None:
    suffix = name.partition(".")[2]
    written = f"[out/first.csv, out/{name}]" if name.startswith("x") else "[out/first.csv, x.csv]"
    assert codes(tmp_path, written, f'inputs: "out/*.{suffix}"\n')[0] == "GB203"


def test_parquet_without_pyarrow_is_told_before_anything_is_spent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(SpecInvalid) as caught:
        load(tmp_path, "[a.csv, a.parquet]")
    (found,) = caught.value.diagnostics
    assert (found.code, found.hint) == ("GB206", "pip install 'gbrun[parquet]'")
    assert '"a.parquet"' in found.message
    assert load(tmp_path, "[a.csv, a.sqlite]")


@pytest.mark.parametrize(
    ("destination", "properties"),
    [
        ("a.sqlite", "a: {}, A: {}"),
        ("{path: a.sqlite, columns: [ab, Ab]}", "a: {}"),
        ("{path: a.sqlite, columns: [_KEY]}", "a: {}"),
        ("a.csv", '"\\0": {}'),
        ("a.sqlite", ", ".join(f"p{n}: {{}}" for n in range(2001))),
    ],
)
def test_columns_that_a_table_cannot_have(tmp_path: Path, destination: str, properties: str) -> None:
    more = (
        "inputs: data/*.txt\n"
        f"output_schema: {{type: object, additionalProperties: false, properties: {{{properties}}}}}\n"
    )
    assert codes(tmp_path, destination, more) == ["GB206"]


def test_variables_stand_in_paths_and_columns(tmp_path: Path) -> None:
    more = "inputs: data/*.txt\nvariables: {x: city}\n"
    written = "{path: 'out/${var.x}.csv', columns: {a: '$.${var.x}'}}"
    assert load(tmp_path, written, more).destinations == (
        Destination(path="out/city.csv", columns=(Column(name="a", path="$.city"),)),
    )


def test_an_address_is_the_same_in_every_folder(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    one, other = (load(folder, "gs://bucket/a.csv") for folder in (tmp_path, tmp_path / "a"))
    resolved: Any = spec.resolved(one)
    assert resolved["destinations"] == [{"path": "gs://bucket/a.csv", "include": []}]
    assert spec.digest(one) == spec.digest(other)


def test_columns_count_in_the_digest_and_their_absence_does_not(tmp_path: Path) -> None:
    plain = load(tmp_path, "a.csv")
    resolved: Any = spec.resolved(plain)
    assert resolved["destinations"] == [{"path": "a.csv", "include": []}]
    one, other = (load(tmp_path, f"{{path: a.csv, columns: {c}}}") for c in ("[text, _key]", "[_key, text]"))
    assert len({spec.digest(found) for found in (plain, one, other)}) == 3


def test_no_destination_is_an_input(tmp_path: Path) -> None:
    """Not even under a name that the glob matches through a link."""
    from runner import inputs

    found = load(tmp_path, "[out/a.jsonl, out/b.csv]", 'inputs: "linked/*"\n')
    (tmp_path / "out").mkdir()
    os.symlink("out", tmp_path / "linked")
    for name in ("a.jsonl", "a.errors.jsonl", "b.csv", "c.txt"):
        (tmp_path / "out" / name).touch()
    assert [entry.key for entry in inputs.entries(found)] == ["linked/c.txt"]
