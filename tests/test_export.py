"""Records and failures in input order, whatever the order of the responses; whole or not at all."""

from __future__ import annotations

import hashlib
import json
import stat
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import orjson
import pytest
from builders import Outcomes, error_line, make_attempt, make_spec, make_stored, ok_line
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from runner import export
from runner.blobs.memory import MemoryBlobs
from runner.errors import GbrunError, StateError, StateUnreadable
from runner.ingest import Collector
from runner.model import BadRow, JobState, Outcome, Stored
from runner.outputs.atomicfile import look
from runner.outputs.jsonl import JsonlFile
from runner.parts import load_outcome
from runner.results import Judge
from runner.rowtable import KnownRow, dump_problem
from runner.specmodel import Column, Destination, Spec
from runner.store import Store

SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
REAL = "r" + "0123456789abcdef" * 2


def row(ordinal: int, key: str, *request_ids: str, bad: BadRow | None = None) -> KnownRow:
    wanted = json.dumps([[part, 0, request_id] for part, request_id in enumerate(request_ids)])
    return KnownRow(ordinal, key, "d", "c", wanted, "", dump_problem(bad) if bad else "", None)


@dataclass
class Answered:
    """A store that holds the responses to some requests."""

    store: Store = field(default_factory=lambda: Store(MemoryBlobs(), None, "state"))
    stored: dict[str, Stored] = field(default_factory=dict)

    def take(
        self, sent: Sequence[str], lines: Sequence[bytes], token: str = "t-a1", schema: Any = SCHEMA
    ) -> None:
        attempt = make_attempt(token, job_state=JobState.SUCCEEDED)
        shard = [orjson.dumps({"key": key}) for key in sent]
        collector = Collector(attempt, Judge(schema), shard, Outcomes(self.stored))
        self.store.put_responses(token, [b"\n".join(lines)], collector.line)
        self.stored |= {s.request_id: s for s in map(load_outcome, collector.finish().lines)}

    def write(
        self,
        spec: Spec,
        rows: Sequence[KnownRow],
        live: Callable[[str], str | None] = lambda _: None,
    ) -> export.Written:
        with ExitStack() as held:
            written = export.write(
                spec, self.store, iter(rows), Outcomes(self.stored).stored_among, live, held
            )
            written.prepare()
            written.place()
        return written


@pytest.fixture
def spec(tmp_path: Path) -> Spec:
    return make_spec(tmp_path, output_schema=SCHEMA, destinations=(Destination(path="out/x.jsonl"),))


def lines_of(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def test_records_are_in_the_order_of_the_inputs(spec: Spec) -> None:
    answered = Answered()
    answered.take(
        ["r1", "r2", "r3"], [ok_line("r3", '{"n":3}'), ok_line("r1", '{"n":1}'), ok_line("r2", '{"n":2}')]
    )
    written = answered.write(
        spec, [row(0, "b", "r2"), row(1, "a", "r1"), row(2, "c", "r3"), row(3, "d", "r2")]
    )

    path = spec.folder / "out/x.jsonl"
    assert (
        path.read_bytes()
        == b'{"_key":"b","n":2}\n{"_key":"a","n":1}\n{"_key":"c","n":3}\n{"_key":"d","n":2}\n'
    )
    assert written.rows == {"ok": 4}
    assert written.files == {
        "out/x.jsonl": (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_size)
    }
    assert export.look(spec) == {**written.files, "out/x.errors.jsonl": None}
    assert not (spec.folder / "out/x.errors.jsonl").exists()


@given(st.permutations(range(6)), st.permutations(range(6)), st.integers(1, 3))
@settings(max_examples=30, deadline=None)
def test_the_order_of_responses_and_attempts_does_not_matter(
    tmp_path_factory: pytest.TempPathFactory, one: list[int], two: list[int], attempts: int
) -> None:
    texts = []
    for order in (one, two):
        spec = make_spec(tmp_path_factory.mktemp("x"), output_schema=SCHEMA)
        answered = Answered()
        for number in range(attempts):
            mine = [n for n in order if n % attempts == number]
            lines = [ok_line(f"r{n}", f'{{"n":{n}}}') if n != 4 else error_line("r4", 3) for n in mine]
            answered.take([f"r{n}" for n in mine], lines, f"t-a{number}")
        answered.write(spec, [row(n, f"k{n}", f"r{n}") for n in range(6)])
        texts.append([(spec.folder / name).read_bytes() for name in export.destinations(spec)])

    assert texts[0] == texts[1]
    assert texts[0][0].count(b"\n") == 5


def test_failures_go_beside_the_records(spec: Spec) -> None:
    answered = Answered()
    answered.stored = {"r4": make_stored("r4", Outcome.TRANSIENT, jobs=2)}
    answered.take(
        ["r1", "r2", "r3", "r4", "r5"],
        [
            ok_line("r1", '{"n":"x"}'),
            error_line("r2", 3, "no such field"),
            ok_line("r3", '{"n":1}'),
            ok_line("r5", '{"n":', finish="MAX_TOKENS"),
        ],
    )
    bad = BadRow("f", "template", "has no field", "p.j2", 4)
    rows = [row(n, key, f"r{n + 1}") for n, key in enumerate("abcde")]
    written = answered.write(spec, [*rows, row(5, "f", bad=bad)])

    assert lines_of(spec.folder / "out/x.jsonl") == [{"_key": "c", "n": 1}]
    found = {line["_key"]: line for line in lines_of(spec.folder / "out/x.errors.jsonl")}
    assert list(found) == ["a", "b", "d", "e", "f"]
    assert {tuple(line) for line in found.values()} == {
        ("_key", "outcome", "code", "message", "attempts", "raw")
    }
    assert [(f["outcome"], f["code"], f["attempts"]) for f in found.values()] == [
        ("invalid", "SCHEMA", 1),
        ("rejected", "INVALID_ARGUMENT", 1),
        ("missing", "NO_LINE", 3),
        ("truncated", "MAX_TOKENS", 1),
        ("bad_input", "template", 0),
    ]
    assert found["a"]["raw"] == '{"n":"x"}'
    assert found["b"]["raw"] == {"code": 3, "message": "no such field"}
    assert found["f"]["message"] == "p.j2:4: has no field"
    assert written.rows == {
        "ok": 1,
        "invalid": 1,
        "rejected": 1,
        "missing": 1,
        "truncated": 1,
        "bad_input": 1,
    }
    assert set(written.files) == {"out/x.jsonl", "out/x.errors.jsonl"}


def test_the_errors_file_goes_when_nothing_failed(spec: Spec) -> None:
    answered = Answered()
    answered.take(["r1"], [error_line("r1", 13)])
    answered.write(spec, [row(0, "a", "r1")])
    assert (spec.folder / "out/x.errors.jsonl").exists()

    answered.take(["r1"], [ok_line("r1", '{"n":1}')], "t-a2")
    written = answered.write(spec, [row(0, "a", "r1")])
    assert not (spec.folder / "out/x.errors.jsonl").exists()
    assert set(written.files) == {"out/x.jsonl"}


def test_rows_that_are_not_settled_are_counted_and_left_out(spec: Spec) -> None:
    answered = Answered()
    answered.take(["r1", "r2"], [ok_line("r1", '{"n":1}'), ok_line("r2", '{"n":2}')])
    rows = [row(0, "a", "r1"), row(1, "b", "r2"), row(2, "c", "r3"), row(3, "d", "r1", "r3")]
    written = answered.write(spec, rows, live={"r2": "t-a9"}.get)

    assert lines_of(spec.folder / "out/x.jsonl") == [{"_key": "a", "n": 1}]
    assert written.rows == {"ok": 1, "in_flight": 1, "held_back": 2}
    assert not (spec.folder / "out/x.errors.jsonl").exists()


def test_a_row_has_the_first_class_of_its_parts_that_is_not_ok(spec: Spec) -> None:
    answered = Answered()
    lines = [ok_line("r1", '{"n":1}'), error_line("r2", 3), ok_line("r3", "words"), error_line("r4", 13)]
    answered.take(["r1", "r2", "r3", "r4"], lines)
    written = answered.write(spec, [row(0, "a", "r1", "r2", "r3", "r4")])

    assert written.rows == {"unparseable": 1}
    assert answered.write(spec, [row(0, "a", "r1", "gone")]).rows == {"held_back": 1}


def test_responses_are_judged_again_under_the_spec_of_now(spec: Spec) -> None:
    answered = Answered()
    answered.take(["r1"], [ok_line("r1", '{"n":1}')])
    stricter = replace(spec, output_schema={**SCHEMA, "required": ["n", "m"]})

    assert answered.write(stricter, [row(0, "a", "r1")]).rows == {"invalid": 1}
    assert answered.write(replace(spec, output_schema=None), [row(0, "a", "r1")]).rows == {"ok": 1}
    assert lines_of(spec.folder / "out/x.jsonl") == [{"_key": "a", "text": '{"n":1}'}]


def test_meta(spec: Spec) -> None:
    answered = Answered()
    answered.take(["r1"], [ok_line("r1", '{"n":1}', responseId="Zx9")])
    answered.write(
        replace(spec, destinations=(Destination(path="m.jsonl", include=("meta",)),)), [row(0, "a", "r1")]
    )

    assert lines_of(spec.folder / "m.jsonl") == [
        {
            "_key": "a",
            "n": 1,
            "_request_id": "r1",
            "_attempt": "t-a1",
            "_model_version": "gemini-3.5-flash-lite",
            "_usage": {"prompt": 11, "output": 5, "thoughts": 3},
            "_response_id": "Zx9",
            "_finish_reason": "STOP",
        }
    ]


@pytest.mark.parametrize(
    "line",
    [
        ok_line("r1", '{"n": "\\ud800"}'),
        b'{"key":"r1","response":{"candidates":[{"content":{"parts":[{"text":"\\ud800"}]},"finishReason":"MAX_TOKENS"}]}}',
        b'{"key":"%b","error":{"code":3,"details":' % REAL.encode() + b"[" * 300 + b"]" * 300 + b"}}",
    ],
    ids=["surrogate in an answer", "surrogate in a cut answer", "deep error"],
)
def test_odd_failures_are_written(spec: Spec, line: bytes) -> None:
    answered = Answered()
    (where,) = [ref for _, ref in _kept(answered.store, [line])]
    request_id = REAL if REAL.encode() in line else "r1"
    answered.stored = {request_id: make_stored(request_id, Outcome.INVALID, ref=where)}
    answered.write(spec, [row(0, "a", request_id)])

    assert [found["_key"] for found in lines_of(spec.folder / "out/x.errors.jsonl")] == ["a"]


def _kept(store: Store, lines: Sequence[bytes]) -> list[tuple[bytes, Any]]:
    seen: list[tuple[bytes, Any]] = []
    store.put_responses("t-a1", [b"\n".join(lines)], lambda line, ref: seen.append((line, ref)))
    return seen


# ---------------------------------------------------------------- nothing half-written


def damaged(answered: Answered, data: bytes | None) -> None:
    name = "responses/t-a1.1.jsonl.gz"
    answered.store.blobs.delete(name)
    if data is not None:
        answered.store.blobs.create(name, data)


def test_a_damaged_response_leaves_the_destination_as_it_was(spec: Spec) -> None:
    answered = Answered()
    answered.take(["r1", "r2"], [ok_line("r1", '{"n":1}'), ok_line("r2", '{"n":2}')])
    rows = [row(0, "a", "r1"), row(1, "b", "r2")]
    before = answered.write(spec, rows).files
    whole = answered.store.blobs.read("responses/t-a1.1.jsonl.gz")[0]
    for data in [None, *(whole[:end] for end in range(len(whole)))]:
        damaged(answered, data)
        with pytest.raises(StateError):
            answered.write(spec, rows)
        assert export.look(spec) == {**before, "out/x.errors.jsonl": None}
    assert [p.name for p in (spec.folder / "out").iterdir()] == ["x.jsonl"]


def test_a_response_that_is_another_requests_is_refused(spec: Spec) -> None:
    answered = Answered()
    answered.take(["r1", "r2"], [ok_line("r1", '{"n":1}'), ok_line("r2", '{"n":2}')])
    answered.stored["r1"] = structs.replace(answered.stored["r1"], ref=answered.stored["r2"].ref)
    with pytest.raises(StateUnreadable, match="does not hold r1"):
        answered.write(spec, [row(0, "a", "r1")])


def test_a_destination_that_cannot_be_written_is_an_error(spec: Spec) -> None:
    (spec.folder / "out").write_text("a file")
    with pytest.raises(GbrunError, match="cannot write"):
        Answered().write(spec, [])


# ---------------------------------------------------------------- several at once

SEVERAL = (
    Destination(path="out/x.csv", include=("meta",)),
    Destination(path="out/x.jsonl"),
    Destination(path="meta.jsonl", include=("meta",)),
    Destination(path="deep/down/x.sqlite", columns=(Column(name="id", path="$._key"),)),
    Destination(path="out/x.parquet"),
)


def test_all_destinations_are_written_and_failures_go_beside_the_first(spec: Spec) -> None:
    several = replace(spec, destinations=SEVERAL, output_schema={**SCHEMA, "additionalProperties": False})
    answered = Answered()
    lines = [ok_line("r1", '{"n":1}'), error_line("r2", 3), ok_line("r3", '{"n":3}')]
    answered.take(["r1", "r2", "r3"], lines)
    rows = [row(0, "b", "r3"), row(1, "a", "r2"), row(2, "c", "r1")]
    written = answered.write(several, rows)

    assert list(written.files) == [*(d.path for d in SEVERAL), "out/x.errors.jsonl"]
    assert export.look(several) == written.files
    assert lines_of(spec.folder / "out/x.jsonl") == [{"_key": "b", "n": 3}, {"_key": "c", "n": 1}]
    assert [list(line) for line in lines_of(spec.folder / "meta.jsonl")] == [
        ["_key", "n", "_request_id", "_attempt", "_model_version", "_response_id", "_usage", "_finish_reason"]
    ] * 2
    header, first, _ = (spec.folder / "out/x.csv").read_text().splitlines()
    assert header.startswith("_key,n,_repaired,_remedied,_request_id,")
    assert first.startswith("b,3,,,r3,t-a1,")
    assert (spec.folder / "out/x.parquet").read_bytes()[:4] == b"PAR1"
    assert [line["_key"] for line in lines_of(spec.folder / "out/x.errors.jsonl")] == ["a"]

    again = answered.write(several, rows)
    assert again.files == written.files
    found = {path.relative_to(spec.folder).as_posix() for path in spec.folder.rglob("*") if path.is_file()}
    assert found == set(written.files)


def test_where_one_destination_cannot_hold_a_record_none_is_written(spec: Spec) -> None:
    several = replace(spec, destinations=SEVERAL)
    answered = Answered()
    answered.take(["r1", "r2"], [ok_line("r1", '{"n":1}'), ok_line("r2", f'{{"n":{2**70}}}')])
    before = answered.write(several, [row(0, "a", "r1")]).files
    with pytest.raises(GbrunError, match=r'out/x.parquet cannot hold the record of "b": "n"'):
        answered.write(several, [row(0, "a", "r1"), row(1, "b", "r2")])
    assert export.look(several) == {**before, "out/x.errors.jsonl": None}
    assert not list(spec.folder.rglob("*.part"))


def test_what_is_never_placed_changes_nothing_that_can_be_seen(spec: Spec) -> None:
    answered = Answered()
    answered.take(["r1"], [ok_line("r1", '{"n":1}')])
    for name in ("x.jsonl", "x.errors.jsonl"):
        (spec.folder / "out").mkdir(exist_ok=True)
        (spec.folder / "out" / name).write_text("somebody's")
    with ExitStack() as held:
        export.write(
            spec,
            answered.store,
            iter([row(0, "a", "r1")]),
            Outcomes(answered.stored).stored_among,
            lambda _: None,
            held,
        )
    assert {path.name: path.read_text() for path in (spec.folder / "out").iterdir()} == {
        "x.jsonl": "somebody's",
        "x.errors.jsonl": "somebody's",
    }


# ---------------------------------------------------------------- the file itself


def test_a_file_appears_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "new" / "x.jsonl"
    with JsonlFile(path) as file:
        file.write(b"1\n")
        assert not path.exists()
        found = file.seal()
        assert not path.exists()
        file.place()
    assert path.read_bytes() == b"1\n"
    assert found == (hashlib.sha256(b"1\n").hexdigest(), 2) == look(path)
    assert [p.name for p in path.parent.iterdir()] == ["x.jsonl"]


def test_without_a_commit_nothing_changes(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b"old\n")
    with JsonlFile(path) as file:
        file.write(b"x" * 3_000_000)

    assert path.read_bytes() == b"old\n"
    assert [p.name for p in tmp_path.iterdir()] == ["x.jsonl"]


def test_many_lines(tmp_path: Path) -> None:
    lines = [b"%d %s\n" % (n, b"x" * 999) for n in range(3000)]
    with JsonlFile(tmp_path / "x.jsonl") as file:
        for line in lines:
            file.write(line)
        digest, size = file.seal()
        file.place()

    whole = b"".join(lines)
    assert (tmp_path / "x.jsonl").read_bytes() == whole
    assert (digest, size) == (hashlib.sha256(whole).hexdigest(), len(whole))


def test_a_file_has_the_rights_that_the_user_gives_new_files(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    with JsonlFile(tmp_path / "x.jsonl") as file:
        file.seal()
        file.place()

    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("plain", "x.jsonl")]
    assert modes[0] == modes[1]


def test_looking_at_what_is_not_there_or_no_file(tmp_path: Path) -> None:
    assert look(tmp_path / "gone") is None
    with pytest.raises(GbrunError, match="cannot read the destination"):
        look(tmp_path)


@pytest.mark.parametrize(
    ("path", "errors"),
    [
        ("out.jsonl", "out.errors.jsonl"),
        ("a/b.c.jsonl", "a/b.c.errors.jsonl"),
        ("/abs/x.jsonl", "/abs/x.errors.jsonl"),
    ],
)
def test_where_failures_go(path: str, errors: str) -> None:
    assert Destination(path=path).errors_path == errors
