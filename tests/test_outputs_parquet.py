"""Parquet as others read it: types from the schema, groups of a fixed number of rows."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_outputs import META, spec_of, written

from runner.errors import GbrunError
from runner.outputs.parquet import ROW_GROUP_ROWS
from runner.specmodel import Column, Destination, Samples


def schema_of(path: Path) -> dict[str, str]:
    return {field.name: str(field.type) for field in pq.ParquetFile(path).schema_arrow}


def test_types_come_from_the_schema(tmp_path: Path) -> None:
    path = written(spec_of(tmp_path, Destination(path="x.parquet", include=("meta",))), [{"_key": "a"}], META)
    assert schema_of(path) == {
        "_key": "string",
        "text": "string",
        "count": "int64",
        "score": "double",
        "sure": "bool",
        "tags": "list<element: string>",
        "place": "struct<city: string, at: list<element: double>>",
        "any": "string",
        "_repaired": "string",
        "_remedied": "string",
        "_request_id": "string",
        "_attempt": "string",
        "_model_version": "string",
        "_response_id": "string",
        "_usage": "struct<prompt: int64, cached: int64, output: int64, thoughts: int64>",
        "_finish_reason": "string",
    }


def test_columns_have_the_type_of_what_they_select(tmp_path: Path) -> None:
    paths = {
        "city": "$.place.city",
        "at": "$.place.at[*]",
        "first": "$.place.at[0]",
        "n": "$['count']",
        "tags": "$.tags[?length(@) > 1]",
        "all": "$.place.*",
        "deep": "$..city",
        "two": "$['text','count']",
        "none": "$.gone",
        "whole": "$.place",
        "record": "$",
    }
    columns = tuple(Column(name=name, path=path) for name, path in paths.items())
    record = {
        "_key": "a",
        "place": {"city": "B", "at": [1, 2.5]},
        "count": 3,
        "tags": ["x", "yy"],
        "text": "t",
    }
    path = written(spec_of(tmp_path, Destination(path="x.parquet", columns=columns)), [record])
    assert schema_of(path) == {
        "_key": "string",
        "city": "string",
        "at": "list<element: double>",
        "first": "double",
        "n": "int64",
        "tags": "list<element: string>",
        "all": "string",
        "deep": "string",
        "two": "string",
        "none": "string",
        "whole": "struct<city: string, at: list<element: double>>",
        "record": "struct<_key: string, text: string, count: int64, score: double, sure: bool,"
        " tags: list<element: string>, place: struct<city: string, at: list<element: double>>, any: string,"
        " _repaired: string, _remedied: string>",
    }
    (found,) = pq.read_table(path).to_pylist()
    assert (found["at"], found["tags"], found["first"]) == ([1.0, 2.5], ["yy"], 1.0)
    assert (found["deep"], found["two"], found["none"]) == ('["B"]', '["t",3]', None)
    assert json.loads(found["all"]) == ["B", [1, 2.5]]


@pytest.mark.parametrize(
    "count", [0, 1, 255, 256, 257, ROW_GROUP_ROWS, ROW_GROUP_ROWS + 1, 2 * ROW_GROUP_ROWS]
)
def test_row_groups_have_a_fixed_number_of_rows(tmp_path: Path, count: int) -> None:
    spec = spec_of(tmp_path, Destination(path="x.parquet"))
    file = pq.ParquetFile(written(spec, ({"_key": f"{n}", "count": n} for n in range(count))))
    sizes = [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)]
    assert sum(sizes) == count
    assert all(size == ROW_GROUP_ROWS for size in sizes[:-1])
    assert file.read().column("count").to_pylist() == list(range(count))


def test_vectors_are_lists_of_float32(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, Destination(path="x.parquet"), None, task="embed_content")
    vector = [0.1, -1, 2.5e-8]
    path = written(spec, [{"_key": "a", "embedding": vector}, {"_key": "b", "embedding": None}])
    assert schema_of(path) == {"_key": "string", "embedding": "list<element: float>"}
    assert pq.read_table(path).column("embedding").to_pylist() == [
        pa.array(vector, pa.float32()).to_pylist(),
        None,
    ]
    for bad in ([1.0, "x"], [True], "x"):
        with pytest.raises(GbrunError, match='record of "a": "embedding" holds a vector'):
            written(spec, [{"_key": "a", "embedding": bad}])


def test_samples_are_a_list(tmp_path: Path) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}}
    spec = spec_of(tmp_path, Destination(path="x.parquet"), schema, samples=Samples(count=3))
    record: dict[str, Any] = {
        "_key": "a",
        "samples": [{"n": 1}, None, {"n": 2, "_repaired": "fence", "x": 3}],
    }
    path = written(spec, [record])
    assert schema_of(path)["samples"].startswith("list<element: struct<n: int64, ")
    (found,) = pq.read_table(path).to_pylist()
    assert found["samples"] == [
        {"n": 1, "_repaired": None, "_remedied": None},
        None,
        {"n": 2, "_repaired": "fence", "_remedied": None},
    ]
    assert found["_extra"] == '{"samples/2/x":3}'


def test_nothing_of_the_time_is_in_it(tmp_path: Path) -> None:
    path = written(spec_of(tmp_path, Destination(path="x.parquet")), [{"_key": "a"}])
    metadata = pq.ParquetFile(path).metadata
    assert set(metadata.metadata or {}) <= {b"ARROW:schema"}
    assert metadata.created_by.startswith("parquet-cpp-arrow version ")


def test_pyarrow_is_loaded_by_parquet_alone(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path\n"
        "from builders import make_spec\nfrom runner import outputs\n"
        "from runner.specmodel import Destination\n"
        "for name in ('x.jsonl', 'x.csv', 'x.sqlite'):\n"
        "    one = Destination(path=name)\n"
        "    with outputs.open(make_spec(Path(sys.argv[1]), destinations=(one,)), one) as output:\n"
        '        output.write(b\'{"_key":"a","text":"b"}\\n\'); output.seal()\n'
        "assert not {'pyarrow', 'jsonpath_rfc9535'} & sys.modules.keys()\n"
    )
    here = Path(__file__).parent
    environment = {"PYTHONPATH": f"{here}:{here.parent}"}
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], env=environment, check=True, timeout=60)


@pytest.mark.parametrize("value", [1e300, -1e39, 10**400])
def test_a_vector_beyond_single_precision_is_told(tmp_path: Path, value: Any) -> None:
    """Arrow would write infinity."""
    spec = spec_of(tmp_path, Destination(path="x.parquet"), None, task="embed_content")
    with pytest.raises(GbrunError, match='record of "a": "embedding" holds single-precision numbers'):
        written(spec, [{"_key": "a", "embedding": [0.5, value]}])
    greatest = 3.4028234663852886e38
    path = written(spec, [{"_key": "a", "embedding": [greatest, -greatest]}])
    assert pq.read_table(path).to_pylist() == [{"_key": "a", "embedding": [greatest, -greatest]}]
