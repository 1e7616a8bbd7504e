"""What every destination keeps: whole or not at all, the same bytes for the same records, nothing lost."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from builders import make_spec
from hypothesis import given, settings
from hypothesis import strategies as st

from runner import outputs
from runner.errors import GbrunError
from runner.outputs.atomicfile import look
from runner.results import dump_line
from runner.specmodel import Column, Destination, Spec

SUFFIXES = (".jsonl", ".csv", ".parquet", ".sqlite")
TYPED = (".parquet", ".sqlite")
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "text": {"type": ["string", "null"]},
        "count": {"type": "integer"},
        "score": {"type": "number"},
        "sure": {"type": "boolean"},
        "tags": {"type": "array", "items": {"type": "string"}},
        "place": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "at": {"type": "array", "items": {"type": "number"}}},
            "additionalProperties": False,
        },
        "any": {},
    },
    "additionalProperties": False,
}
META = (
    b'{"_request_id":"r1","_attempt":"t-a1","_model_version":"m","_response_id":"Zx9","_usage":{"prompt":3,"output":2},'
    b'"_finish_reason":"STOP"}\n'
)
NESTED = {"tags", "place", "any", "_usage", "_extra", "_agreement"}


def spec_of(
    folder: Path, destination: Destination, schema: dict[str, Any] | None = SCHEMA, **more: Any
) -> Spec:
    return make_spec(folder, output_schema=schema, destinations=(destination,), **more)


def written(spec: Spec, records: Iterable[dict[str, Any]], meta: bytes = b"") -> Path:
    """The file of a spec's only destination, with these records."""
    (destination,) = spec.destinations
    with outputs.open(spec, destination) as output:
        for record in records:
            output.write(dump_line(record), meta)
        sealed = output.seal()
        output.place()
    assert sealed == look(output.path)
    return output.path


def read_back(path: Path) -> list[dict[str, Any]]:
    """The records of a destination with JSON text parsed, as far as the format tells it from other text."""
    match path.suffix:
        case ".jsonl":
            return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]
        case ".csv":
            text = path.read_bytes().decode()
            return list(csv.DictReader(io.StringIO(text, newline="")))
        case ".sqlite":
            db = sqlite3.connect(path)
            db.row_factory = sqlite3.Row
            found = [dict(row) for row in db.execute("SELECT * FROM records")]
            db.close()
            return found
    rows: list[dict[str, Any]] = pq.ParquetFile(path).read().to_pylist()
    return rows


# ---------------------------------------------------------------- whole or not at all


@pytest.fixture(params=SUFFIXES)
def spec(request: Any, tmp_path: Path) -> Spec:
    return spec_of(tmp_path, Destination(path=f"out/x{request.param}"))


def path_of(spec: Spec) -> Path:
    return spec.folder / spec.destinations[0].path


def test_a_file_appears_when_it_is_placed(spec: Spec) -> None:
    path = path_of(spec)
    with outputs.open(spec, spec.destinations[0]) as output:
        output.write(b'{"_key":"a","count":1}\n')
        assert not path.exists()
        sealed = output.seal()
        assert not path.exists()
        output.place()
    assert sealed == (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_size)
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("seals", [False, True])
def test_what_is_not_placed_leaves_nothing(spec: Spec, seals: bool) -> None:
    class Died(BaseException):
        pass

    path = path_of(spec)
    path.parent.mkdir()
    path.write_bytes(b"old")

    def die() -> None:
        with outputs.open(spec, spec.destinations[0]) as output:
            for number in range(6000):
                output.write(b'{"_key":"%d","text":"%s"}\n' % (number, b"x" * 300))
            if seals:
                output.seal()
            raise Died

    with pytest.raises(Died):
        die()
    assert path.read_bytes() == b"old"
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_what_a_killed_writer_left_goes_with_the_next(spec: Spec) -> None:
    program = (
        "import os, sys; from pathlib import Path\n"
        "from test_outputs import spec_of, Destination, outputs\n"
        "spec = spec_of(Path(sys.argv[1]), Destination(path=sys.argv[2]))\n"
        "output = outputs.open(spec, spec.destinations[0])\n"
        '[output.write(b\'{"_key":"%d"}\\n\' % n) for n in range(6000)]\n'
        "output.seal(); os.kill(os.getpid(), 9)"
    )
    here = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": f"{here}:{here.parent}"}
    args = [sys.executable, "-c", program, str(spec.folder), spec.destinations[0].path]
    done = subprocess.run(args, env=environment, capture_output=True, timeout=60, check=False)
    assert done.returncode == -9, done.stderr
    folder = path_of(spec).parent
    (left,) = folder.iterdir()
    assert left.name.startswith(".x.")

    written(spec, [{"_key": "a"}])
    assert [p.name for p in folder.iterdir()] == [path_of(spec).name]


def test_a_file_has_the_rights_that_the_user_gives_new_files(spec: Spec) -> None:
    (spec.folder / "plain").touch()
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (spec.folder / "plain", written(spec, []))]
    assert modes[0] == modes[1]


def test_a_folder_that_cannot_be_written(spec: Spec) -> None:
    (spec.folder / "out").write_text("a file")
    with pytest.raises(GbrunError, match="cannot write"):
        outputs.open(spec, spec.destinations[0])


def test_a_full_disk_is_told(spec: Spec, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every write of the process fails beyond 64 KiB, as on a disk that is full."""
    import resource
    import signal

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
    noise = os.urandom(1 << 18).hex()
    try:
        with pytest.raises(GbrunError, match="cannot write"):
            written(spec, [{"_key": "a", "text": noise}, {"_key": "b", "text": noise[::-1]}])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert list((spec.folder / "out").iterdir()) == []


# ---------------------------------------------------------------- the same bytes


def test_the_same_records_give_the_same_bytes_in_every_process(spec: Spec) -> None:
    program = (
        "import sys; from pathlib import Path\n"
        "from test_outputs import *\n"
        "spec = spec_of(Path(sys.argv[1]), Destination(path=sys.argv[2], include=('meta',)), OPEN)\n"
        "written(spec, many(), META)"
    )
    here = Path(__file__).parent
    texts = []
    for seed in ("1", "2"):
        environment = {
            **os.environ,
            "PYTHONPATH": f"{here}:{here.parent}",
            "PYTHONHASHSEED": seed,
            "TZ": f"Etc/GMT{seed}",
        }
        args = [sys.executable, "-c", program, str(spec.folder), spec.destinations[0].path]
        subprocess.run(args, env=environment, check=True, timeout=60)
        texts.append(path_of(spec).read_bytes())
    assert texts[0] == texts[1]
    assert len(read_back(path_of(spec))) == 6000


OPEN = {
    **SCHEMA,
    "properties": {**SCHEMA["properties"], "place": {"type": "object", "properties": {"a": {}}}},
}
del OPEN["additionalProperties"]


def many() -> Iterable[dict[str, Any]]:
    for number in range(6000):
        others = {f"o{n}": n for n in range(number % 5)}
        yield {"_key": f"k{number * 7919 % 6000:05}", "count": number, "place": {"a": 1, **others}, **others}


# ---------------------------------------------------------------- nothing lost

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
TEXTS = st.text() | st.sampled_from(
    ["", " ", "\u2028", "\u0085", "a\r\nb", "\r", "\n", '"', "=1+1", "a,b", "\0", "null"]
)
RECORDS = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            "text": st.none() | TEXTS,
            "count": st.none() | st.integers(-(2**63), 2**63 - 1),
            "score": st.none() | st.floats(allow_nan=False, allow_infinity=False) | st.integers(-99, 99),
            "sure": st.none() | st.booleans(),
            "tags": st.none() | st.lists(TEXTS, max_size=3),
            "place": st.none()
            | st.fixed_dictionaries({}, optional={"city": TEXTS, "at": st.lists(st.floats(-1, 1))}),
            "any": VALUES,
        },
    ),
    max_size=5,
)


def expected(suffix: str, record: dict[str, Any]) -> dict[str, Any]:
    """A record as the format gives it back."""
    row = {name: record.get(name) for name in ("_key", *SCHEMA["properties"])}
    match suffix:
        case ".jsonl":
            return record
        case ".parquet":
            row["any"] = text_of(row["any"])
            if row["place"] is not None:
                row["place"] = {"city": None, "at": None} | row["place"]
            return row
        case ".sqlite":
            row = {name: text_of(value) if name in NESTED else value for name, value in row.items()}
            return row
    return {
        name: "" if value is None else value if isinstance(value, str) and name != "any" else text_of(value)
        for name, value in row.items()
    }


def text_of(value: Any) -> str | None:
    return None if value is None else dump_line(value)[:-1].decode()


@pytest.mark.parametrize("suffix", SUFFIXES)
@given(records=RECORDS)
@settings(max_examples=60, deadline=None)
def test_what_is_read_back_is_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, records: list[dict[str, Any]]
) -> None:
    keyed = [{"_key": f"k{9 - number}", **record} for number, record in enumerate(records)]
    spec = spec_of(tmp_path_factory.mktemp("x"), Destination(path=f"x{suffix}"))
    assert read_back(written(spec, keyed)) == [expected(suffix, record) for record in keyed]


def test_an_empty_result_has_its_columns(spec: Spec) -> None:
    path = written(spec, [])
    assert read_back(path) == []
    names = ["_key", *SCHEMA["properties"]]
    match path.suffix:
        case ".csv":
            assert path.read_text() == ",".join(names) + "\n"
        case ".parquet":
            assert pq.ParquetFile(path).schema_arrow.names == names
        case ".sqlite":
            db = sqlite3.connect(path)
            assert [column[0] for column in db.execute("SELECT * FROM records").description] == names
            db.close()
        case _:
            assert path.read_bytes() == b""


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("count", 2**63, "64-bit integers, and the value is 9223372036854775808"),
        ("count", -(2**63) - 1, "64-bit integers"),
        ("count", 10**40, "64-bit integers, and the value is 10000000000"),
        ("score", 2**53 + 1, "double-precision numbers, and the value is 9007199254740993"),
        ("score", 10**400, "double-precision numbers"),
        ("text", "a\ud800", "holds text, and character 2 is half a surrogate pair"),
    ],
)
def test_a_value_that_does_not_fit_stops_everything(spec: Spec, field: str, value: Any, says: str) -> None:
    suffix = spec.destinations[0].suffix
    records = [{"_key": "good"}, {"_key": "the bad/one.txt", field: value}]
    if suffix == ".jsonl" or (suffix == ".csv" and field != "text"):
        assert json.loads(str(read_back(written(spec, records))[1][field])) == value if field != "text" else 1
        return
    path = path_of(spec)
    path.parent.mkdir()
    path.write_bytes(b"old")
    with pytest.raises(GbrunError) as caught:
        written(spec, records)
    assert f'out/x{suffix} cannot hold the record of "the bad/one.txt": "{field}" ' in caught.value.message
    assert says in caught.value.message
    assert "columns" in caught.value.hint
    assert path.read_bytes() == b"old"
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", TYPED)
@pytest.mark.parametrize(
    ("field", "value"), [("text", 5), ("count", "5"), ("count", 1.5), ("count", True), ("sure", 1)]
)
def test_a_value_of_another_type_is_told(tmp_path: Path, suffix: str, field: str, value: Any) -> None:
    spec = spec_of(tmp_path, Destination(path=f"x{suffix}"))
    with pytest.raises(GbrunError, match=f'record of "a": "{field}" holds values of type'):
        written(spec, [{"_key": "a", field: value}])


@pytest.mark.parametrize("value", [5, {"city": 1}, {"at": 1}, {"at": [1, "x"]}])
def test_a_nested_value_of_another_type_is_told(tmp_path: Path, value: Any) -> None:
    spec = spec_of(tmp_path, Destination(path="x.parquet"))
    with pytest.raises(GbrunError, match='record of "a": "place" holds'):
        written(spec, [{"_key": "a", "place": value}])


def test_whole_numbers_written_as_fractions_are_whole(spec: Spec) -> None:
    (found,) = read_back(written(spec, [{"_key": "a", "count": 2.0}]))
    assert str(found["count"]) == ("2.0" if spec.destinations[0].suffix == ".jsonl" else "2")


# ---------------------------------------------------------------- fields without a column


def columns_of(path: Path) -> list[str]:
    match path.suffix:
        case ".csv":
            return path.read_text().split("\n")[0].split(",")
        case ".parquet":
            return list(pq.ParquetFile(path).schema_arrow.names)
    db = sqlite3.connect(path)
    names = [column[0] for column in db.execute("SELECT * FROM records").description]
    db.close()
    return names


TABLES = pytest.mark.parametrize("suffix", [".csv", ".parquet", ".sqlite"])


@TABLES
def test_what_an_open_schema_lets_through_goes_to_the_last_column(tmp_path: Path, suffix: str) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}}
    spec = spec_of(tmp_path, Destination(path=f"x{suffix}", include=("meta",)), schema)
    records = [{"_key": "a", "n": 1, "x": {"y": 2}, "a/b~": None}, {"_key": "b", "n": 2}]
    first, second = read_back(written(spec, records, META))
    assert columns_of(tmp_path / f"x{suffix}") == [
        "_key", "n", "_repaired", "_remedied", "_request_id", "_attempt", "_model_version", "_response_id",
        "_usage", "_finish_reason", "_extra",
    ]  # fmt: skip
    assert json.loads(first["_extra"]) == {"x": {"y": 2}, "a~1b~0": None}
    assert second["_extra"] == ("" if suffix == ".csv" else None)
    assert first["_request_id"] == "r1"
    usage = first["_usage"]
    told = usage if suffix == ".parquet" else json.loads(usage)
    assert (told["prompt"], told["output"]) == (3, 2)


def test_what_a_struct_has_no_field_for_goes_there_too(tmp_path: Path) -> None:
    inner = {"type": "object", "properties": {"id": {"type": "integer"}}}
    schema = {
        "type": "object",
        "properties": {"one": inner, "many": {"type": "array", "items": inner}},
        "additionalProperties": False,
    }
    record = {"_key": "a", "one": {"id": 1, "x/y": 2}, "many": [{"id": 3}, {"id": 4, "z": [5]}]}
    spec = spec_of(tmp_path, Destination(path="x.parquet"), schema)
    (found,) = read_back(written(spec, [record]))
    assert found == {
        "_key": "a",
        "one": {"id": 1},
        "many": [{"id": 3}, {"id": 4}],
        "_extra": '{"one/x~1y":2,"many/1/z":[5]}',
    }
    # Where a table keeps nested values as JSON, nothing is missing from them.
    spec = spec_of(tmp_path, Destination(path="x.csv"), schema)
    assert columns_of(written(spec, [record])) == ["_key", "one", "many"]


@TABLES
def test_a_field_that_nobody_knows_is_never_dropped(tmp_path: Path, suffix: str) -> None:
    spec = spec_of(tmp_path, Destination(path=f"x{suffix}"))
    with pytest.raises(GbrunError, match='record of "a": "new" has no column'):
        written(spec, [{"_key": "a", "new": 1}])
    assert read_back(written(spec, [{"_key": "a", "_repaired": "fence"}]))


@TABLES
@pytest.mark.parametrize(
    ("schema", "record", "cells"),
    [
        (None, {"text": "a"}, {"text": "a"}),
        ({"type": "integer"}, {"value": 5}, {"value": 5}),
        ({"type": "array", "items": {"type": "string"}}, {"value": ["a"]}, {"value": ["a"]}),
        ({"type": "object"}, {"a": 1, "b/c": 2}, {"value": '{"a":1,"b/c":2}'}),
        ({"type": "object"}, {}, {"value": "{}"}),
        ({}, {"a": 1}, {"value": None, "_extra": '{"a":1}'}),
        ({}, {"value": "x"}, {"value": '"x"', "_extra": None}),
    ],
)
def test_answers_that_are_no_objects(
    tmp_path: Path, suffix: str, schema: Any, record: dict[str, Any], cells: dict[str, Any]
) -> None:
    spec = spec_of(tmp_path, Destination(path=f"x{suffix}"), schema)
    path = written(spec, [{"_key": "a", **record}])
    assert columns_of(path) == ["_key", *cells]
    (found,) = read_back(path)
    if suffix != ".parquet":
        cells = {name: text_of(v) if isinstance(v, list) else v for name, v in cells.items()}
    if suffix == ".csv":
        cells = {name: "" if value is None else str(value) for name, value in cells.items()}
    assert found == {"_key": "a", **cells}


# ---------------------------------------------------------------- chosen columns


def column(**paths: str) -> tuple[Column, ...]:
    return tuple(Column(name=name, path=path) for name, path in paths.items())


CHOSEN = column(score="$.score", id="$._key", first="$.tags[0]", at="$.place.at[*]", tokens="$._usage.prompt")
FULL = {"_key": "a", "score": 1.5, "tags": ["x", "y"], "place": {"at": [1.0, 2.0]}}


def test_chosen_columns_in_their_order(spec: Spec) -> None:
    (destination,) = spec.destinations
    chosen = spec_of(spec.folder, Destination(path=destination.path, include=("meta",), columns=CHOSEN))
    path = written(chosen, [FULL, {"_key": "b"}], META)
    first, second = read_back(path)
    nested: Callable[[Any], Any] = (
        text_of if destination.suffix in (".csv", ".sqlite") else lambda value: value
    )
    full = {"score": 1.5, "id": "a", "first": "x", "at": nested([1.0, 2.0]), "tokens": 3}
    empty = {"score": None, "id": "b", "first": None, "at": nested([]), "tokens": 3}
    if destination.suffix == ".csv":
        full = {name: str(value) for name, value in full.items()}
        empty = {name: "" if value is None else str(value) for name, value in empty.items()}
    assert (list(first), first, second) == (list(full), full, empty)


def test_the_key_comes_first_where_no_column_holds_it(spec: Spec) -> None:
    (destination,) = spec.destinations
    chosen = spec_of(spec.folder, Destination(path=destination.path, columns=column(n="$.count")))
    (found,) = read_back(written(chosen, [{"_key": "a", "count": 5, "text": "not wanted"}]))
    assert {name: str(value) for name, value in found.items()} == {"_key": "a", "n": "5"}
    assert next(iter(found)) == "_key"


def test_a_record_too_deep_for_a_path_is_told(spec: Spec) -> None:
    (destination,) = spec.destinations
    chosen = spec_of(spec.folder, Destination(path=destination.path, columns=column(n="$..x")))
    deep: Any = 1
    for _ in range(150):
        deep = [deep]
    with pytest.raises(GbrunError, match=r'record of "a": "n" .*cannot be evaluated'):
        written(chosen, [{"_key": "a", "any": deep}])


# ---------------------------------------------------------------- JSON lines


def test_lines_with_meta_are_the_record_and_then_the_meta(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, Destination(path="x.jsonl", include=("meta",)))
    path = written(spec, [{"_key": "a", "text": "\u2028"}, {"_key": "b", "_usage": 1, "count": 10**30}], META)
    one, two = path.read_bytes().splitlines(keepends=True)
    assert one == '{"_key":"a","text":"\u2028",'.encode() + META[1:]
    # A field of that name stays where it was, and counts once.
    assert list(json.loads(two))[:3] == ["_key", "_usage", "count"]
    assert json.loads(two)["_usage"] == {"prompt": 3, "output": 2}
    assert json.loads(two)["count"] == 10**30
    assert two.count(b"_usage") == 1
