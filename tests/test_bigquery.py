"""Rows out of BigQuery and records into it, held against an emulator that is not ours.

Nothing here ever met the service itself.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from bigquery_server import served
from builders import make_spec, make_template
from msgspec import structs

from runner import bqclient, inputs, outputs
from runner.errors import GbrunError, InputUnreadable
from runner.model import ALTERED, NOBODY, BadRow, Entry, Owner, Row
from runner.outputs import bigquery as table_output
from runner.results import dump_line
from runner.specmodel import BigQuerySource, Destination, Spec

NEEDED = ("bqemulator", "duckdb", "numpy", "google.cloud.bigquery")
ABSENT = [name for name in NEEDED if importlib.util.find_spec(name) is None]
pytestmark = pytest.mark.skipif(bool(ABSENT), reason=f"not installed: {', '.join(ABSENT)}")

PROJECT = "my-project"
OURS, THEIRS = "0123456789abcdef" * 2, "fedcba9876543210" * 2
US = Owner(lineage=OURS)
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "team": {"type": ["string", "null"]},
        "count": {"type": "integer"},
        "score": {"type": "number"},
        "sure": {"type": "boolean"},
        "tags": {"type": "array", "items": {"type": "string"}},
        "place": {
            "type": "object",
            "properties": {
                "city": {"type": "string"},
                "rooms": {"type": "array", "items": {"type": "integer"}},
            },
        },
        "any": {},
        "grid": {"type": "array", "items": {"type": "array", "items": {"type": "integer"}}},
    },
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with served(tmp_path_factory.mktemp("bqemulator")) as found:
        yield found


@pytest.fixture
def service(address: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The library's client; the dataset `ds` is there and empty."""
    monkeypatch.setenv(bqclient.EMULATOR_VARIABLE, address)
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", PROJECT)
    with bqclient.connected(PROJECT, "test") as client:
        client.delete_dataset("ds", delete_contents=True, not_found_ok=True)
        client.create_dataset("ds")
        yield client


def fill(client: Any, name: str, rows: Iterable[dict[str, Any]], **columns: str) -> None:
    """A table that is nobody's, with these rows."""
    from google.cloud import bigquery

    schema = [bigquery.SchemaField(column, kind) for column, kind in columns.items()]
    client.create_table(bigquery.Table(f"{PROJECT}.{name}", schema=schema))
    found = list(rows)
    if found:
        assert client.insert_rows_json(f"{PROJECT}.{name}", found) == []


# ---------------------------------------------------------------- rows


def reading(key: str = "{{ input.id }}", **source: str) -> Spec:
    made = BigQuerySource(id=make_template(key, line=5), **source)
    return make_spec(inputs=(made,), prompt="{{ input.body }}")


def entries(spec: Spec) -> list[Entry]:
    return list(inputs.entries(spec))


def rows(spec: Spec) -> list[Row]:
    found = [inputs.read(spec, entry) for entry in inputs.entries(spec)]
    assert not [row for row in found if isinstance(row, BadRow)]
    return found  # type: ignore[return-value]


def test_rows_of_a_table(service: Any) -> None:
    fill(
        service, "ds.notes", [{"id": f"n{i}", "body": f"Note {i}"} for i in range(5)],
        id="STRING", body="STRING",
    )  # fmt: skip
    spec = reading(table=f"{PROJECT}.ds.notes")
    assert [row.key for row in rows(spec)] == ["n0", "n1", "n2", "n3", "n4"]
    assert rows(spec)[3].fields == {"id": "n3", "body": "Note 3"}


def test_rows_of_a_query_keep_its_order_over_pages(service: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runner.inputs.bigquery.PAGE_ROWS", 7)
    query = "SELECT CAST(n AS STRING) AS id FROM UNNEST(GENERATE_ARRAY(1, 30)) AS n ORDER BY n DESC"
    assert [row.key for row in rows(reading(query=query))] == [str(n) for n in range(30, 0, -1)]


def test_every_type_has_one_form(service: Any) -> None:
    query = """
        SELECT 'a' AS id, 9007199254740993 AS whole, 0.5 AS number, TRUE AS truth,
          CAST(NULL AS STRING) AS nothing, NUMERIC '1.50' AS money, BIGNUMERIC '-12.000' AS large,
          CAST('nan' AS FLOAT64) AS none, CAST('-inf' AS FLOAT64) AS least,
          DATE '2026-01-02' AS day, TIME '01:02:03' AS hour,
          DATETIME '2026-01-02 03:04:05.5' AS local, TIMESTAMP '2026-01-02 03:04:05+02' AS moment,
          b'ab' AS bytes, [1, 2] AS list, STRUCT('P' AS city, [TRUE] AS flags) AS place,
          JSON '{"b": [1, null], "a": "x"}' AS free
    """
    (row,) = rows(reading(query=query))
    assert row.fields == {
        "id": "a",
        "whole": 9007199254740993,
        "number": 0.5,
        "truth": True,
        "nothing": None,
        "money": "1.5",
        "large": "-12",
        "none": "NaN",
        "least": "-Infinity",
        "day": "2026-01-02",
        "hour": "01:02:03",
        "local": "2026-01-02T03:04:05.500000",
        "moment": "2026-01-02T01:04:05Z",
        "bytes": "YWI=",
        "list": [1, 2],
        "place": {"city": "P", "flags": [True]},
        "free": {"b": [1, None], "a": "x"},
    }


def test_a_row_is_known_by_what_it_holds(service: Any) -> None:
    def one(body: str) -> Entry:
        (found,) = entries(reading(query=f"SELECT 'a' AS id, '{body}' AS body"))
        return found

    assert one("x").signature == one("x").signature != one("y").signature
    assert isinstance(one("x").row, Row)
    # The order of the columns is no part of it.
    (turned,) = entries(reading(query="SELECT 'x' AS body, 'a' AS id"))
    assert turned.signature == one("x").signature


def test_two_rows_with_one_key_are_named(service: Any) -> None:
    query = "SELECT * FROM UNNEST(['a', 'b', 'c', 'b']) AS id"
    with pytest.raises(InputUnreadable, match=r"rows 2 and 4 of inputs\[0\].query have the same key 'b'"):
        entries(reading(query=query))


def test_keys_are_nfc(service: Any) -> None:
    (row,) = rows(reading(query="SELECT 'Cafe\u0301' AS id"))
    assert row.key == "Caf\u00e9"


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("CAST(NULL AS STRING)", "has no key: its column 'id' is null"),
        ("''", "has no key: its `id` gives an empty text"),
        ("'a\\nb'", "holds a control character"),
    ],
)
def test_a_row_without_a_key_is_a_bad_row(service: Any, value: str, said: str) -> None:
    (entry,) = entries(reading(query=f"SELECT {value} AS id"))
    bad = inputs.read(reading(query="x"), entry)
    assert isinstance(bad, BadRow)
    assert (bad.key, bad.code, entry.signature) == ("inputs[0].query#1", "no_key", None)
    assert said in bad.message


def test_a_key_of_a_column_that_is_not_there_names_the_line(service: Any) -> None:
    (entry,) = entries(reading("{{ input.nr }}", query="SELECT 1 AS id"))
    assert isinstance(entry.row, BadRow)
    assert (entry.row.code, entry.row.line) == ("template", 5)
    assert "input has no field 'nr'; it has id" in entry.row.message


@pytest.mark.parametrize("query", ["DELETE FROM ds.notes WHERE TRUE", "SELECT 1 AS id; SELECT 2 AS id"])
def test_a_plan_runs_only_a_select(service: Any, query: str) -> None:
    fill(service, "ds.notes", [{"id": "a"}], id="STRING")
    with pytest.raises(InputUnreadable, match="is no SELECT but"):
        entries(reading(query=query))
    assert len(list(service.list_rows(f"{PROJECT}.ds.notes"))) == 1


def test_a_query_that_is_wrong_says_so(service: Any) -> None:
    with pytest.raises(InputUnreadable, match=r"cannot read inputs\[0\].query: .*") as caught:
        entries(reading(query="SELECT FROM WHERE"))
    assert caught.value.hint == "correct the query"


def test_a_table_that_is_not_there(service: Any) -> None:
    with pytest.raises(InputUnreadable, match=r"cannot read my-project.ds.gone: Not found"):
        entries(reading(table=f"{PROJECT}.ds.gone"))


def test_a_table_that_changes_while_it_is_read(service: Any) -> None:
    fill(service, "ds.notes", [{"id": "a"}, {"id": "b"}], id="STRING")
    found = inputs.entries(reading(table=f"{PROJECT}.ds.notes"))
    next(found)
    there = table(service, "notes")
    there.description = "changed"
    service.update_table(there, ["description"])
    with pytest.raises(InputUnreadable, match="was changed while it was being read"):
        list(found)


def test_a_view_is_read_by_a_query(service: Any) -> None:
    from google.cloud import bigquery

    fill(service, "ds.notes", [{"id": "a"}], id="STRING")
    view = bigquery.Table(f"{PROJECT}.ds.seen")
    view.view_query = "SELECT id FROM ds.notes"
    service.create_table(view)
    with pytest.raises(InputUnreadable, match="is a view") as caught:
        entries(reading(table=f"{PROJECT}.ds.seen"))
    assert caught.value.hint == "query: SELECT * FROM `my-project.ds.seen`"


def test_an_address_where_nobody_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(bqclient.EMULATOR_VARIABLE, "http://127.0.0.1:9")
    monkeypatch.setattr(bqclient, "PATIENCE_S", 0.5)
    with pytest.raises(InputUnreadable, match="BigQuery cannot be reached") as caught:
        entries(reading(table=f"{PROJECT}.ds.notes"))
    assert "is an emulator running there?" in caught.value.hint


# ---------------------------------------------------------------- records


@pytest.fixture
def spec(tmp_path: Path) -> Spec:
    return make_spec(
        tmp_path, output_schema=SCHEMA, destinations=(Destination(path=f"bq://{PROJECT}.ds.out"),)
    )


def put(spec: Spec, *records: dict[str, Any], owner: Owner = US) -> tuple[str, int]:
    """Write records to the spec's first destination; what was sealed."""
    with outputs.open(spec, spec.destinations[0], owner) as output:
        for record in records:
            output.write(dump_line(record))
        sealed = output.seal()
        output.place()
    return sealed


def look(spec: Spec, lineage: str = OURS) -> tuple[str, int] | None:
    return outputs.look(spec, spec.destinations[0].path, lineage)


def loads(client: Any) -> list[str]:
    """Ids of the load jobs into `ds.out` that gbrun made, oldest first."""
    found = [job for job in client.list_jobs(all_users=True) if job.job_id.startswith("gbrun-")]
    return [job.job_id for job in reversed(found)]


@pytest.fixture
def before(service: Any) -> set[str]:
    return set(loads(service))


def table(client: Any, name: str = "out") -> Any:
    return client.get_table(f"{PROJECT}.ds.{name}")


def contents(client: Any, name: str = "out") -> list[dict[str, Any]]:
    return [dict(row) for row in client.list_rows(f"{PROJECT}.ds.{name}")]


FULL: dict[str, Any] = {
    "_key": "a",
    "team": "billing",
    "count": 9007199254740993,
    "score": 1.5,
    "sure": True,
    "tags": ["x", "é"],
    "place": {"city": "Porto", "rooms": [1, 2], "extra": "kept"},
    "any": {"b": [1, None]},
    "grid": [[1], [2]],
}


def test_records_have_columns_of_their_kind(service: Any, spec: Spec) -> None:
    sealed = put(spec, FULL, {"_key": "b", "team": None})
    kinds = {one.name: (one.field_type, one.mode) for one in table(service).schema}
    assert kinds == {
        "_key": ("STRING", "REQUIRED"),
        "team": ("STRING", "NULLABLE"),
        "count": ("INTEGER", "NULLABLE"),
        "score": ("FLOAT", "NULLABLE"),
        "sure": ("BOOLEAN", "NULLABLE"),
        "tags": ("STRING", "REPEATED"),
        "place": ("RECORD", "NULLABLE"),
        "any": ("JSON", "NULLABLE"),
        "grid": ("JSON", "NULLABLE"),
        "_extra": ("JSON", "NULLABLE"),
    }
    first, second = contents(service)
    assert first == {
        **FULL,
        "place": {"city": "Porto", "rooms": [1, 2]},
        "_extra": {"place/extra": "kept"},
    }
    assert (second["_key"], second["team"], second["tags"], second["place"]) == ("b", None, [], None)
    assert look(spec) == sealed


def test_vectors(service: Any, tmp_path: Path) -> None:
    spec = make_spec(
        tmp_path, task="embed_content", destinations=(Destination(path=f"bq://{PROJECT}.ds.out"),)
    )
    put(spec, {"_key": "a", "embedding": [0.25, -1.0]})
    assert contents(service) == [{"_key": "a", "embedding": [0.25, -1.0]}]


def test_chosen_columns(service: Any, spec: Spec) -> None:
    from runner.specmodel import Column

    columns = (Column(name="id", path="$._key"), Column(name="rooms", path="$.place.rooms[*]"))
    chosen = replace(spec, destinations=(structs.replace(spec.destinations[0], columns=columns),))
    put(chosen, FULL)
    assert contents(service) == [{"id": "a", "rooms": [1, 2]}]


def test_the_same_records_are_loaded_once(service: Any, spec: Spec, before: set[str]) -> None:
    assert put(spec, FULL) == put(spec, FULL)
    assert len(set(loads(service)) - before) == 1


def test_a_load_whose_answer_was_lost_is_found_again(
    service: Any, spec: Spec, before: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Lost(BaseException):
        pass

    def dies(self: Any, client: Any, number: int) -> None:
        raise Lost

    with monkeypatch.context() as patched:
        patched.setattr(table_output.TableFile, "_settle", dies)
        with pytest.raises(Lost):
            put(spec, FULL)
    assert len(contents(service)) == 1
    # Half done: not as it was left, and so to be written again.
    assert look(spec) == ALTERED
    sealed = put(spec, FULL)
    assert look(spec) == sealed
    assert len(set(loads(service)) - before) == 1


def test_a_table_with_an_unfinished_load_is_not_what_it_was(
    service: Any, spec: Spec, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Lost(BaseException):
        pass

    def dies(self: Any, client: Any, number: int) -> None:
        raise Lost

    put(spec, FULL)
    with monkeypatch.context() as patched:
        patched.setattr(table_output.TableFile, "_settle", dies)
        with pytest.raises(Lost):
            put(spec, {"_key": "z", "team": "other"})
    # As many rows, a moment later: only the announcement tells.
    assert look(spec) == ALTERED


def test_a_load_that_failed_is_followed_by_another(
    service: Any, spec: Spec, before: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    schema = table_output.TableFile._schema

    def strict(self: Any) -> list[Any]:
        from google.cloud import bigquery

        return [
            bigquery.SchemaField(one.name, "INTEGER") if one.name == "team" else one for one in schema(self)
        ]

    with monkeypatch.context() as patched:
        patched.setattr(table_output.TableFile, "_schema", strict)
        with pytest.raises(GbrunError, match="cannot write bq://"):
            put(spec, FULL)
    assert look(spec) != put(spec, FULL) == look(spec)
    first, second = sorted(int(name.rsplit("-", 1)[1]) for name in set(loads(service)) - before)
    assert second == first + 1


def test_what_was_there_before_is_loaded_again(service: Any, spec: Spec, before: set[str]) -> None:
    other = {"_key": "z", "team": "other"}
    first = put(spec, FULL)
    put(spec, other)
    assert put(spec, FULL) == first == look(spec)
    assert [row["_key"] for row in contents(service)] == ["a"]
    assert len(set(loads(service)) - before) == 3


def test_an_older_load_with_a_lost_answer_does_not_stand_for_a_newer(
    service: Any, spec: Spec, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Lost(BaseException):
        pass

    def dies(self: Any, client: Any, number: int) -> None:
        raise Lost

    with monkeypatch.context() as patched:
        patched.setattr(table_output.TableFile, "_settle", dies)
        for record in (FULL, {"_key": "z", "team": "other"}):
            with pytest.raises(Lost):
                put(spec, record)
    put(spec, FULL)
    assert [row["_key"] for row in contents(service)] == ["a"]


def test_no_records_are_an_empty_table(service: Any, spec: Spec) -> None:
    put(spec, FULL)
    assert put(spec) == look(spec)
    assert contents(service) == []


def test_another_schema_is_another_table(service: Any, spec: Spec, before: set[str]) -> None:
    put(spec, {"_key": "a", "team": "x"})
    properties = {**SCHEMA["properties"], "count": {"type": "number"}}
    put(replace(spec, output_schema={**SCHEMA, "properties": properties}), {"_key": "a", "team": "x"})
    kinds = {one.name: one.field_type for one in table(service).schema}
    assert kinds["count"] == "FLOAT"
    assert len(set(loads(service)) - before) == 2


def test_what_is_not_placed_leaves_nothing(service: Any, spec: Spec) -> None:
    with outputs.open(spec, spec.destinations[0], US) as output:
        output.write(dump_line(FULL))
        output.seal()
    assert look(spec) is None


@pytest.mark.parametrize("owner", [THEIRS, ""])
def test_a_table_of_another_owner_stays(service: Any, spec: Spec, owner: str) -> None:
    fill(service, "ds.out", [{"mine": "precious"}], mine="STRING")
    there = table(service)
    there.labels = {table_output.LINEAGE: owner} if owner else {}
    service.update_table(there, ["labels"])
    with pytest.raises(GbrunError, match="belongs to another owner") as caught:
        put(spec, FULL)
    assert "--overwrite" in caught.value.hint
    assert contents(service) == [{"mine": "precious"}]
    assert look(spec) == ALTERED
    put(spec, FULL, owner=Owner(lineage=OURS, takes_over=True))
    assert [row["_key"] for row in contents(service)] == ["a"]
    assert table(service).labels[table_output.LINEAGE] == OURS


def test_a_table_of_ours_without_labels_is_written_again(service: Any, spec: Spec) -> None:
    put(spec, FULL)
    there = table(service)
    service.delete_table(there)
    fill(service, "ds.out", [], mine="STRING")
    path = spec.destinations[0].path
    put(spec, FULL, owner=Owner(lineage=OURS, written=frozenset({path})))
    assert [row["_key"] for row in contents(service)] == ["a"]


def test_rows_that_were_added_are_seen(service: Any, spec: Spec) -> None:
    sealed = put(spec, FULL)
    assert service.insert_rows_json(f"{PROJECT}.ds.out", [{"_key": "b"}]) == []
    assert look(spec) == ALTERED != sealed


def test_a_later_change_is_seen(service: Any, spec: Spec) -> None:
    put(spec, FULL)
    there = table(service)
    written = int(there.labels[table_output.MODIFIED])
    # As if the load had been ten minutes ago.
    there.labels = {**there.labels, table_output.MODIFIED: str(written - 600_000)}
    service.update_table(there, ["labels"])
    assert look(spec) == ALTERED


def test_a_table_that_is_gone_is_seen_and_loaded_again(service: Any, spec: Spec) -> None:
    put(spec, FULL)
    service.delete_table(table(service))
    assert look(spec) is None
    # The job that loaded these records before is still known, and must not stand for this load.
    put(spec, FULL)
    assert [row["_key"] for row in contents(service)] == ["a"]


def test_a_dataset_that_is_not_there(service: Any, tmp_path: Path) -> None:
    spec = make_spec(tmp_path, destinations=(Destination(path=f"bq://{PROJECT}.nowhere.out"),))
    with pytest.raises(GbrunError, match="Not found") as caught:
        look(spec)
    assert caught.value.hint.endswith("bq mk --dataset my-project:nowhere")


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"count": 1 << 70}, '"count" holds 64-bit integers'),
        ({"tags": ["a", None]}, '"tags" holds a list without nulls at tags'),
        ({"any": "\ud800"}, '"any" holds JSON as BigQuery knows it'),
        ({"team": "\ud800"}, "half a surrogate pair"),
    ],
)
def test_what_does_not_fit_names_key_and_column(spec: Spec, record: dict[str, Any], said: str) -> None:
    with (
        outputs.open(spec, spec.destinations[0], US) as output,
        pytest.raises(GbrunError) as caught,
    ):
        output.write(dump_line({"_key": "k1", **record}))
    assert f'bq://{PROJECT}.ds.out cannot hold the record of "k1"' in caught.value.message
    assert said in caught.value.message


def test_the_same_records_give_the_same_digest_wherever_they_go(tmp_path: Path, spec: Spec) -> None:
    def sealed(owner: Owner) -> tuple[str, int]:
        with outputs.open(spec, spec.destinations[0], owner) as output:
            output.write(dump_line(FULL))
            return output.seal()

    assert sealed(US) == sealed(NOBODY)


def test_failures_always_have_a_place(service: Any, spec: Spec) -> None:
    failure = {"_key": "a", "outcome": "invalid", "code": "schema", "message": "m \ud800", "attempts": 1}
    with outputs.open_failures(spec, US) as output:
        output.write(dump_line({**failure, "raw": {"text": ["\ud800", 1 << 80]}}))
        sealed = output.seal()
        output.place()
    assert outputs.look(spec, f"bq://{PROJECT}.ds.out_errors", OURS) == sealed
    (found,) = contents(service, "out_errors")
    assert (found["_key"], found["outcome"], found["attempts"]) == ("a", "invalid", 1)
    assert found["message"] == "m \ufffd"
    with outputs.open_failures(spec, US) as output:
        output.remove()
    assert outputs.look(spec, f"bq://{PROJECT}.ds.out_errors", OURS) is None


def test_a_table_of_failures_that_is_not_ours_is_not_deleted(service: Any, spec: Spec) -> None:
    fill(service, "ds.out_errors", [{"mine": "x"}], mine="STRING")
    with outputs.open_failures(spec, US) as output:
        output.remove()
    assert contents(service, "out_errors") == [{"mine": "x"}]


# ---------------------------------------------------------------- a whole life

ANSWER: dict[str, Any] = {
    "type": "object",
    "properties": {"topic": {"type": "string"}, "tags": {"type": "array", "items": {"type": "string"}}},
    "required": ["topic", "tags"],
    "additionalProperties": False,
}
QUERY = "SELECT nr, body FROM ds.notes ORDER BY nr"
DESTINATION = f"bq://{PROJECT}.ds.topics"


@pytest.fixture
def ready(service: Any, project: Any, cli: Any, address: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Four notes in a table, and a spec that reads them with a query and writes to another table."""
    # `cli` takes what names Google out of the environment.
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", PROJECT)
    notes = [{"nr": n, "body": f"Note {n}: the shelf has {n} boards."} for n in range(4)]
    fill(service, "ds.notes", notes, nr="INTEGER", body="STRING")
    project.gbrun = cli
    project.spec(
        inputs=[{"bigquery": {"query": QUERY}, "id": "note-{{ input.nr }}"}],
        prompt="What is this note about?\n\n{{ input.body }}\n",
        output_schema=ANSWER,
        destination=DESTINATION,
    )
    return project


def settled(project: Any) -> None:
    assert project.plan("--detailed-exitcode", code=0).endswith(
        "No changes. Everything the spec asks for is there.\n"
    )
    assert project.leftovers() == []


def test_rows_from_a_query_become_records_in_a_table(ready: Any, service: Any) -> None:
    assert "4 new" in ready.plan("--detailed-exitcode", code=2)
    ready.apply()
    settled(ready)
    found = contents(service, "topics")
    assert [row["_key"] for row in found] == [f"note-{n}" for n in range(4)]
    assert all(row["topic"] and isinstance(row["tags"], list) for row in found)
    assert list(ready.root()["export"]["files"]) == [DESTINATION]
    assert table(service, "topics").labels[table_output.LINEAGE] == ready.root()["lineage"]
    # Unchanged rows are known at a glance, and without it they are still unchanged.
    assert "No changes." in ready.plan("--no-stat-cache")
    assert len(ready.requests_sent()) == 4


def test_a_changed_a_new_and_a_removed_row(ready: Any, service: Any) -> None:
    ready.apply()
    service.query("UPDATE ds.notes SET body = 'Something else' WHERE nr = 1").result()
    service.query("DELETE FROM ds.notes WHERE nr = 3").result()
    service.query("INSERT INTO ds.notes (nr, body) VALUES (9, 'Ninth')").result()
    ready.settings["guards"] = {"max_removed_ratio": 1}
    ready.spec()
    shown = ready.plan("--detailed-exitcode", code=2)
    assert "1 new" in shown
    assert "1 rerun" in shown
    assert "1 removed" in shown
    ready.apply()
    settled(ready)
    assert [row["_key"] for row in contents(service, "topics")] == ["note-0", "note-1", "note-2", "note-9"]
    assert len(ready.requests_sent()) == 6


def test_a_table_that_someone_touched_is_written_again_at_no_cost(ready: Any, service: Any) -> None:
    ready.apply()
    service.insert_rows_json(f"{PROJECT}.ds.topics", [{"_key": "stranger"}])
    assert f"re-export: {DESTINATION} was altered\n" in ready.plan("--detailed-exitcode", code=2)
    ready.apply()
    assert len(contents(service, "topics")) == 4
    service.delete_table(f"{PROJECT}.ds.topics")
    assert f"re-export: {DESTINATION} is missing\n" in ready.plan("--detailed-exitcode", code=2)
    ready.apply()
    assert len(contents(service, "topics")) == 4
    settled(ready)
    assert len(ready.requests_sent()) == 4


@pytest.mark.parametrize("label", [THEIRS, ""])
def test_another_owners_table_is_refused_before_anything_is_spent(
    ready: Any, service: Any, label: str
) -> None:
    fill(service, "ds.topics", [{"mine": "precious"}], mine="STRING")
    there = table(service, "topics")
    there.labels = {table_output.LINEAGE: label} if label else {"team": "data"}
    service.update_table(there, ["labels"])
    said = ready.apply(code=7).stderr
    assert DESTINATION in said
    assert "--overwrite" in said
    assert ready.requests_sent() == []
    assert contents(service, "topics") == [{"mine": "precious"}]
    ready.apply("--overwrite")
    settled(ready)
    # The others' labels stay.
    assert label or table(service, "topics").labels["team"] == "data"


def test_a_table_that_was_taken_over_is_not_taken_back(ready: Any, service: Any) -> None:
    ready.apply()
    there = table(service, "topics")
    there.labels = {**there.labels, table_output.LINEAGE: THEIRS}
    service.update_table(there, ["labels"])
    said = ready.apply(code=7).stderr
    assert f"its label gbrun_lineage is {THEIRS}" in said
    assert len(contents(service, "topics")) == 4


def test_a_table_that_appears_while_jobs_run_is_never_named_ours(
    ready: Any, service: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from runner import finish

    write = finish.export.write

    def late(*args: Any, **options: Any) -> Any:
        fill(service, "ds.topics", [{"mine": "precious"}], mine="STRING")
        return write(*args, **options)

    with monkeypatch.context() as patched:
        patched.setattr(finish.export, "write", late)
        assert "belongs to another owner" in ready.apply(code=1).stderr
    assert "this state did not write it" in ready.apply(code=7).stderr
    assert contents(service, "topics") == [{"mine": "precious"}]


def test_failures_go_to_a_table_beside_and_leave_it_again(ready: Any, service: Any) -> None:
    ready.settings["failures"] = {"max_ratio": 1}
    ready.faults(timing={"pending_s": 0}, rows=[{"kind": "blocked_prompt", "match": "3 boards"}])
    ready.spec()
    ready.apply(code=None)
    failed = contents(service, "topics_errors")
    assert [(row["_key"], row["outcome"]) for row in failed] == [("note-3", "blocked")]
    assert len(contents(service, "topics")) == 3
    assert sorted(ready.root()["export"]["files"]) == [DESTINATION, f"{DESTINATION}_errors"]
    settled(ready)
    service.query("DELETE FROM ds.notes WHERE nr = 3").result()
    ready.settings["guards"] = {"max_removed_ratio": 1}
    ready.spec()
    ready.apply()
    settled(ready)
    assert list(ready.root()["export"]["files"]) == [DESTINATION]
    assert "topics_errors" not in [one.table_id for one in service.list_tables("ds")]


def test_a_dataset_that_is_missing_is_told_before_anything_is_spent(ready: Any) -> None:
    ready.spec(destination=f"bq://{PROJECT}.nowhere.topics")
    assert "bq mk --dataset my-project:nowhere" in ready.apply(code=1).stderr
    assert ready.requests_sent() == []


def test_bad_rows_of_a_table_can_be_skipped(ready: Any, service: Any) -> None:
    service.insert_rows_json(f"{PROJECT}.ds.notes", [{"body": "without a number"}])
    said = ready.run("plan", "job.yaml", code=1).stderr
    assert "[GB605]" in said
    assert "has no key: its column 'nr' is null" in said
    ready.settings["inputs"][0]["on_bad_row"] = "skip"
    ready.settings["failures"] = {"max_ratio": 1}
    ready.spec()
    ready.apply()
    (failed,) = contents(service, "topics_errors")
    assert (failed["_key"], failed["outcome"], failed["code"]) == ("inputs[0].query#1", "bad_input", "no_key")
    settled(ready)


def test_a_file_and_a_table_at_once(ready: Any, service: Any) -> None:
    ready.spec(destination=["out/topics.jsonl", {"path": DESTINATION, "columns": ["topic"]}])
    ready.apply()
    lines = (ready.folder / "out/topics.jsonl").read_text().splitlines()
    assert contents(service, "topics") == [
        {"_key": record["_key"], "topic": record["topic"]} for record in map(json.loads, lines)
    ]
    settled(ready)


def test_the_first_row_can_be_rendered_and_the_records_exported_again(ready: Any, service: Any) -> None:
    assert "Note 2: the shelf" in ready.run("render", "job.yaml", "--key", "note-2").stdout
    ready.apply()
    service.delete_table(f"{PROJECT}.ds.topics")
    assert f"Wrote {DESTINATION}" in ready.run("export", "job.yaml").stdout
    settled(ready)


def test_an_export_takes_a_table_over_only_when_told(ready: Any, service: Any) -> None:
    ready.apply()
    there = table(service, "topics")
    there.labels = {table_output.LINEAGE: THEIRS}
    service.update_table(there, ["labels"])
    assert "belongs to another state" in ready.run("export", "job.yaml", code=7).stderr
    ready.run("export", "job.yaml", "--overwrite")
    assert table(service, "topics").labels[table_output.LINEAGE] == ready.root()["lineage"]
    settled(ready)
