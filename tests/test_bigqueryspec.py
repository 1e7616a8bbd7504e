"""What a spec says of BigQuery, and names of tables and columns. Problems are in `golden/specs`."""

from __future__ import annotations

from pathlib import Path

import pytest

from runner import bigqueryspec, bqtable, lints, spec
from runner.badrows import diagnose
from runner.bqtable import TableName
from runner.errors import SpecInvalid
from runner.model import BadRow
from runner.specmodel import BigQuerySource, Destination, Spec

TEXT = """\
version: 1
name: tickets
backend: local
inputs:
  - bigquery: {query: "SELECT nr, body FROM t", project: billed-project}
    id: "{{ input.nr }}"
    on_bad_row: skip
  - bigquery: {table: my-project.support.tickets}
    id: "{{ input.ticket_id }}"
model: gemini-3.5-flash-lite
prompt: "{{ input.body }}"
destination: bq://my-project.support.teams
"""


def loaded(folder: Path, text: str = TEXT) -> Spec:
    (folder / "spec.yaml").write_text(text, encoding="utf-8")
    return spec.load(folder / "spec.yaml", environ={})


def test_sources_and_destination(tmp_path: Path) -> None:
    found = loaded(tmp_path)
    first, second = found.inputs
    assert isinstance(first, BigQuerySource)
    assert isinstance(second, BigQuerySource)
    assert (first.query, first.table, first.project) == ("SELECT nr, body FROM t", "", "billed-project")
    assert (first.on_bad_row, second.on_bad_row) == ("skip", "fail")
    assert (first.id.text, first.id.line) == ("{{ input.nr }}", 6)
    assert second.table == "my-project.support.tickets"
    (destination,) = found.destinations
    assert (destination.is_table, destination.suffix) == (True, "")
    assert destination.errors_path == "bq://my-project.support.teams_errors"


def test_a_table_called_like_a_suffix_is_still_a_table() -> None:
    assert Destination(path="bq://my-project.support.csv").suffix == ""


def test_a_single_source(tmp_path: Path) -> None:
    text = TEXT.replace("  - bigquery: {table", "#").partition("#")[0].replace("  - bigquery", "  bigquery")
    text = text.replace("    id", "  id").replace("    on_", "  on_")
    (source,) = loaded(tmp_path, text + TEXT[TEXT.index("model:") :]).inputs
    assert isinstance(source, BigQuerySource)


def test_the_digest_knows_what_is_asked_and_not_where_it_stands(tmp_path: Path) -> None:
    first = spec.digest(loaded(tmp_path))
    assert spec.digest(loaded(tmp_path, TEXT.replace("inputs:", "# rows\ninputs:"))) == first
    assert spec.digest(loaded(tmp_path, TEXT.replace("input.nr", "input.id"))) != first
    resolved = spec.resolved(loaded(tmp_path))
    assert resolved["destinations"][0]["path"] == "bq://my-project.support.teams"
    assert resolved["inputs"][0]["id"] == "{{ input.nr }}"


def test_columns_are_not_doubted(tmp_path: Path) -> None:
    assert lints.lint(loaded(tmp_path)) == []


def test_a_missing_package_is_told_with_what_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bigqueryspec, "is_installed", lambda: False)
    with pytest.raises(SpecInvalid) as caught:
        loaded(tmp_path)
    found = caught.value.diagnostics
    assert [one.code for one in found] == ["GB110", "GB110", "GB206"]
    assert {one.hint for one in found} == {"pip install 'gbrun[bigquery]'"}


def test_a_row_without_a_key_is_shown_by_its_number(tmp_path: Path) -> None:
    bad = BadRow("inputs[0].query#7", "no_key", "has no key: its column 'nr' is null")
    found = diagnose(loaded(tmp_path), bad)
    assert (found.code, found.path) == ("GB605", "inputs[0].query#7")


def test_a_key_that_fails_is_shown_at_its_template(tmp_path: Path) -> None:
    bad = BadRow("inputs[0].query#7", "template", "input has no field 'nr'", "spec.yaml", 6)
    found = diagnose(loaded(tmp_path), bad)
    assert (found.line, found.snippet.strip()) == (6, "{{ input.nr }}")


@pytest.mark.parametrize(
    ("text", "table"),
    [
        ("my-project.ds.t", TableName("my-project", "ds", "t")),
        ("bq://my-project.ds.t", TableName("my-project", "ds", "t")),
        ("example.com:my-project.d_1.für 2026", TableName("example.com:my-project", "d_1", "für 2026")),
    ],
)
def test_names(text: str, table: TableName) -> None:
    assert bqtable.parse(text) == table
    assert str(table) == text.removeprefix("bq://")


@pytest.mark.parametrize(
    "text",
    ["", "ds.t", "my-project.ds.", "my-project..t", "p.ds.t", "my-project.d-s.t", "my-project.ds.t$20260101",
     "my-project.ds.t`", "my-project.ds." + "t" * 1025, "MY-PROJECT.ds.t", "my-project.ds.t*"],
)  # fmt: skip
def test_no_names(text: str) -> None:
    with pytest.raises(ValueError, match=r"has no|does not name"):
        bqtable.parse(text)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["_key", "team", "a_1"], ""),
        (["1st"], "cannot be called '1st'"),
        (["_TABLE_suffix"], "cannot be called '_TABLE_suffix'"),
        (["_partitiontime"], "cannot be called '_partitiontime'"),
        (["x" * 301], "cannot be called"),
        (["Team", "team"], "cannot tell"),
        ([f"c{n}" for n in range(10_001)], "at most 10,000 columns"),
    ],
)
def test_columns(names: list[str], said: str) -> None:
    found = bqtable.unusable_columns(names)
    assert said in found
    assert bool(found) == bool(said)
