"""Records as objects of Cloud Storage, over our own emulator and over one that others wrote.

Nothing here ever met the service itself.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from builders import make_spec
from contract.test_blobs import url_of_fake_gcs_server, url_of_gcs
from msgspec import structs

from runner import destinationspec, outputs
from runner.blobs import gcsobjects
from runner.blobs.gcserrors import EMULATOR_VARIABLE
from runner.blobs.gcsobjects import GcsObjects
from runner.errors import GbrunError
from runner.model import ALTERED, Owner
from runner.outputs import gcs as object_output
from runner.results import dump_line
from runner.specmodel import Column, Destination, Spec

SERVERS = [url_of_gcs, url_of_fake_gcs_server]
OURS, THEIRS = "0123456789abcdef" * 2, "fedcba9876543210" * 2
US = Owner(lineage=OURS)
SCHEMA = {
    "type": "object",
    "properties": {"topic": {"type": "string"}, "tags": {"type": "array", "items": {"type": "string"}}},
    "required": ["topic", "tags"],
    "additionalProperties": False,
}
RECORD = {"_key": "a", "topic": "shelves", "tags": ["x", "é"]}
SUFFIXES = destinationspec.SUFFIXES


class Place:
    """A folder of a bucket, and a stranger's hands in it."""

    def __init__(self, bucket: str = "bucket") -> None:
        self.folder = f"folder-{os.urandom(8).hex()}"
        self.objects = GcsObjects(bucket, 20)

    def uri(self, name: str) -> str:
        return f"gs://{self.objects.bucket}/{self.folder}/{name}"

    def blob(self, name: str) -> Any:
        return self.objects.look(f"{self.folder}/{name}")

    def names(self) -> list[str]:
        found = self.objects.client.list_blobs(self.objects.bucket, prefix=f"{self.folder}/")
        return sorted(blob.name.removeprefix(f"{self.folder}/") for blob in found)

    def read(self, name: str) -> bytes:
        return bytes(self.objects.blob(f"{self.folder}/{name}").download_as_bytes())

    def write(self, name: str, data: bytes, metadata: dict[str, str] | None = None) -> None:
        blob = self.objects.blob(f"{self.folder}/{name}")
        blob.metadata = metadata or {}
        blob.upload_from_string(data)

    def delete(self, name: str) -> None:
        self.objects.blob(f"{self.folder}/{name}").delete()

    def generations(self) -> dict[str, int]:
        return {name: int(self.blob(name).generation) for name in self.names()}


@pytest.fixture(params=["gcs", "fake_gcs_server"])
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    monkeypatch.setenv(EMULATOR_VARIABLE, request.getfixturevalue(f"url_of_{request.param}"))
    made = Place()
    yield made
    made.objects.close()


@pytest.fixture
def spec(tmp_path: Path, place: Place) -> Spec:
    destination = Destination(path=place.uri("out.jsonl"))
    return make_spec(tmp_path, output_schema=SCHEMA, destinations=(destination,))


def put(spec: Spec, *records: dict[str, Any], owner: Owner = US) -> tuple[str, int]:
    """Write records to the spec's first destination; what was sealed."""
    with outputs.open(spec, spec.destinations[0], owner) as output:
        for record in records:
            output.write(dump_line(record))
        sealed = output.seal()
        output.claim()
        output.place()
    return sealed


def look(spec: Spec, lineage: str = OURS) -> tuple[str, int] | None:
    return outputs.look(spec, spec.destinations[0].path, lineage)


# ---------------------------------------------------------------- one object


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_object_has_the_bytes_of_the_file(place: Place, spec: Spec, suffix: str) -> None:
    columns = (Column(name="topic", path="$.topic"),)
    for chosen in ((), columns):
        here = Destination(path=f"here/out{suffix}", columns=chosen)
        there = Destination(path=place.uri(f"out{suffix}"), columns=chosen)
        assert put(replace(spec, destinations=(here,)), RECORD) == (
            sealed := put(replace(spec, destinations=(there,)), RECORD)
        )
        data = (spec.folder / here.path).read_bytes()
        assert place.read(f"out{suffix}") == data
        assert look(replace(spec, destinations=(there,))) == sealed
        assert sealed == (hashlib.sha256(data).hexdigest(), len(data))
    assert place.names() == [f"out{suffix}"]
    said = place.blob(f"out{suffix}").metadata
    assert (said["gbrun-lineage"], said["gbrun-sha256"]) == (OURS, sealed[0])


def test_nothing_is_seen_before_it_is_placed_and_nothing_is_left(
    place: Place, spec: Spec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert look(spec) is None
    with outputs.open(spec, spec.destinations[0], US) as output:
        output.write(dump_line(RECORD))
        output.seal()
        output.claim()
        assert place.names() == []
    assert list(tmp_path.glob("gbrun-*")) == []
    assert look(spec) is None
    put(spec, RECORD)
    assert list(tmp_path.glob("gbrun-*")) == []


def test_the_same_records_are_uploaded_once(place: Place, spec: Spec) -> None:
    put(spec, RECORD)
    before = place.generations()
    put(spec, RECORD)
    assert place.generations() == before
    put(spec, RECORD, {**RECORD, "_key": "b"})
    assert place.generations() != before


def test_records_of_many_requests(place: Place, spec: Spec) -> None:
    large = [{"_key": str(n), "topic": "x" * 1_000_000, "tags": []} for n in range(18)]
    assert put(spec, *large) == look(spec)
    assert len(place.read("out.jsonl").splitlines()) == 18
    before = place.generations()
    assert put(spec, *large) == look(spec)
    assert place.generations() == before


@pytest.mark.parametrize("lineage", [THEIRS, ""])
def test_another_owners_object_is_left_alone(place: Place, spec: Spec, lineage: str) -> None:
    place.write("out.jsonl", b"precious", {"gbrun-lineage": lineage} if lineage else {"team": "data"})
    assert look(spec) == ALTERED
    with pytest.raises(GbrunError, match=f"out.jsonl belongs to another owner: .*{lineage}") as caught:
        put(spec, RECORD)
    assert "--overwrite" in caught.value.hint
    assert place.read("out.jsonl") == b"precious"
    assert put(spec, RECORD, owner=structs.replace(US, takes_over=True)) == look(spec)


def test_a_lineage_owns_what_it_wrote(place: Place, spec: Spec) -> None:
    put(spec, RECORD)
    path = spec.destinations[0].path
    assert outputs.owner_of(path) == (OURS, "metadata gbrun-lineage")
    assert look(spec, THEIRS) == ALTERED
    place.delete("out.jsonl")
    assert outputs.owner_of(path) == ("", "")


def test_what_somebody_uploaded_in_its_place_is_seen(place: Place, spec: Spec) -> None:
    sealed = put(spec, RECORD)
    kept = dict(place.blob("out.jsonl").metadata)
    data = place.read("out.jsonl")
    place.write("out.jsonl", data)
    # Even the same bytes: nothing says so.
    assert look(spec) == ALTERED
    # As a mounted bucket does it: other bytes, the metadata of what was there.
    place.write("out.jsonl", data[:-2] + b"x\n", kept)
    assert look(spec) == ALTERED
    path = spec.destinations[0].path
    assert put(spec, RECORD, owner=structs.replace(US, written=frozenset({path}))) == sealed == look(spec)


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("act", ["write", "delete"])
def test_what_is_done_to_it_after_the_claim_is_not_lost(
    place: Place, spec: Spec, before: bool, act: str
) -> None:
    if before:
        put(spec, RECORD)
    elif act == "delete":
        pytest.skip("there is nothing to delete")
    with outputs.open(spec, spec.destinations[0], US) as output:
        output.write(dump_line({**RECORD, "topic": "other"}))
        output.seal()
        output.claim()
        if act == "write":
            place.write("out.jsonl", b"precious")
        else:
            place.delete("out.jsonl")
        with pytest.raises(GbrunError, match=r"cannot write gs://.*: somebody else wrote or deleted it"):
            output.place()
    assert place.names() == ([] if act == "delete" else ["out.jsonl"])
    if act == "write":
        assert place.read("out.jsonl") == b"precious"


def test_failures_lie_beside_and_are_deleted(place: Place, spec: Spec) -> None:
    with outputs.open_failures(spec, US) as output:
        output.write(b'{"_key":"a"}\n')
        sealed = output.seal()
        output.place()
    assert place.read("out.errors.jsonl") == b'{"_key":"a"}\n'
    assert outputs.look(spec, place.uri("out.errors.jsonl"), OURS) == sealed
    for _ in range(2):
        with outputs.open_failures(spec, US) as output:
            output.remove()
        assert place.names() == []


def test_failures_of_others_are_not_deleted(place: Place, spec: Spec) -> None:
    place.write("out.errors.jsonl", b"precious", {"gbrun-lineage": THEIRS})
    with outputs.open_failures(spec, US) as output:
        output.remove()
    assert place.read("out.errors.jsonl") == b"precious"


def test_failures_that_change_while_they_are_deleted_stay(
    cloud: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # fake-gcs-server deletes whatever generation there is.
    cloud()
    place = Place()
    spec = make_spec(tmp_path, destinations=(Destination(path=place.uri("out.jsonl")),))
    with outputs.open_failures(spec, US) as output:
        output.seal()
        output.place()
    seen = gcsobjects.GcsObjects.look

    def late(self: GcsObjects, name: str) -> Any:
        found = seen(self, name)
        place.write("out.errors.jsonl", b"precious")
        return found

    with outputs.open_failures(spec, US) as output, monkeypatch.context() as patched:
        patched.setattr(gcsobjects.GcsObjects, "look", late)
        with pytest.raises(GbrunError, match=r"cannot delete gs://.*: somebody else wrote or deleted it"):
            output.remove()
    assert place.read("out.errors.jsonl") == b"precious"
    place.objects.close()


# ---------------------------------------------------------------- what goes wrong


@pytest.mark.parametrize("kind", ["lost_reply", "reset", "http_5xx", "http_429"])
@pytest.mark.parametrize("megabytes", [0, 9])
def test_every_upload_counts_once(
    cloud: Callable[..., Any], tmp_path: Path, kind: str, megabytes: int
) -> None:
    cloud({"on": "storage_write", "kind": kind, "every": 2, "times": 3})
    destination = Destination(path="gs://bucket/out.jsonl")
    spec = make_spec(tmp_path, output_schema=SCHEMA, destinations=(destination,))
    for number in range(3):
        record = {**RECORD, "topic": f"{number}" + "x" * (megabytes << 20)}
        assert put(spec, record) == look(spec)


def test_errors_are_told_in_our_words(
    cloud: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cloud()
    spec = make_spec(tmp_path, destinations=(Destination(path="gs://other-bucket/a/out.csv"),))
    with outputs.open(spec, spec.destinations[0], US) as output:
        output.seal()
        calls: list[Callable[[], object]] = [
            output.claim, output.place, output.remove, lambda: look(spec),
            lambda: outputs.owner_of(spec.destinations[0].path),
        ]  # fmt: skip
        for call in calls:
            with pytest.raises(GbrunError, match="there is no bucket 'other-bucket'") as caught:
                call()
            assert type(caught.value) is GbrunError
            assert "gs://other-bucket/a/out.csv" in caught.value.message
            assert "or choose another destination" in caught.value.hint
        monkeypatch.setenv(EMULATOR_VARIABLE, "http://127.0.0.1:1")
        monkeypatch.setattr(object_output, "PATIENCE_S", 0.2)
        for call in calls:
            with pytest.raises(GbrunError, match="Cloud Storage cannot be reached"):
                call()


def test_a_full_disk_is_told_before_anything_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = make_spec(tmp_path, destinations=(Destination(path="gs://bucket/out.csv"),))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with pytest.raises(GbrunError, match=r"cannot write gs://bucket/out\.csv") as caught:
        outputs.open(spec, spec.destinations[0], US)
    assert "TMPDIR" in caught.value.hint


# ---------------------------------------------------------------- a whole life


@pytest.fixture
def ready(project: Any, cli: Any, place: Place) -> Any:
    """Four notes, in four objects and in four files of the same settings; not applied yet."""
    project.gbrun = cli
    project.inputs(4)
    more: dict[str, dict[str, Any]] = {
        ".csv": {"include": ["meta"]},
        ".sqlite": {"columns": {"id": "$._key", "topic": "$.topic"}},
    }
    project.spec(
        destination=[
            {"path": path, **more.get(suffix, {})}
            for suffix in SUFFIXES
            for path in (place.uri(f"notes{suffix}"), f"out/notes{suffix}")
        ],
        output_schema=SCHEMA,
    )
    return project


def settled(project: Any) -> None:
    assert project.plan("--detailed-exitcode", code=0).endswith(
        "No changes. Everything the spec asks for is there.\n"
    )
    assert project.leftovers() == []
    assert len(project.requests_sent()) == 4


def same_there_as_here(project: Any, place: Place) -> None:
    assert place.names() == sorted(f"notes{suffix}" for suffix in SUFFIXES)
    for suffix in SUFFIXES:
        assert place.read(f"notes{suffix}") == (project.folder / f"out/notes{suffix}").read_bytes()


def test_four_objects_have_the_bytes_of_four_files(ready: Any, place: Place) -> None:
    said = ready.apply().stdout
    assert f"Wrote {place.uri('notes.parquet')}" in said
    same_there_as_here(ready, place)
    settled(ready)
    before = place.generations()
    ready.apply()
    ready.run("export", "job.yaml")
    assert place.generations() == before
    assert sorted(ready.root()["export"]["files"]) == sorted(
        [place.uri(f"notes{s}") for s in SUFFIXES] + [f"out/notes{s}" for s in SUFFIXES]
    )


@pytest.mark.parametrize("damage", ["missing", "altered"])
def test_each_of_them_is_looked_after(ready: Any, place: Place, damage: str) -> None:
    ready.apply()
    for suffix in SUFFIXES:
        name = f"notes{suffix}"
        if damage == "missing":
            place.delete(name)
        else:
            place.write(name, place.read(name)[:-9])
    before = place.generations()
    planned = ready.plan("--detailed-exitcode", code=2)
    said = "is missing" if damage == "missing" else "was altered"
    for suffix in SUFFIXES:
        assert f"{place.uri(f'notes{suffix}')} {said}" in planned
    assert place.generations() == before
    ready.apply()
    same_there_as_here(ready, place)
    settled(ready)


@pytest.mark.parametrize("lineage", [THEIRS, ""])
@pytest.mark.parametrize("name", ["notes.parquet", "notes.errors.jsonl"])
def test_strangers_are_refused_before_anything_is_spent(
    ready: Any, place: Place, lineage: str, name: str
) -> None:
    place.write(name, b"precious", {"gbrun-lineage": lineage} if lineage else None)
    said = ready.apply(code=7).stderr
    assert place.uri(name) in said
    assert "--overwrite" in said
    assert (f"its metadata gbrun-lineage is {THEIRS}" in said) == bool(lineage)
    assert ready.requests_sent() == []
    assert place.read(name) == b"precious"
    ready.apply("--overwrite")
    same_there_as_here(ready, place)
    settled(ready)


def test_an_object_that_was_taken_over_is_not_taken_back(ready: Any, place: Place) -> None:
    ready.apply()
    place.write("notes.csv", b"precious", {"gbrun-lineage": THEIRS})
    for command in ("apply", "export"):
        arguments = [command, "job.yaml", *(["--auto-approve"] if command == "apply" else [])]
        said = ready.run(*arguments, code=7).stderr
        assert f"{place.uri('notes.csv')} belongs to another state" in said
    assert place.read("notes.csv") == b"precious"
    ready.run("export", "job.yaml", "--overwrite")
    same_there_as_here(ready, place)
    settled(ready)


def test_what_appears_while_jobs_run_is_no_ones_loss(
    ready: Any, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found at the end, before the root would name it ours: so it is refused for as long as it lies there."""
    from runner import finish

    write = finish.export.write

    def late(*args: Any, **options: Any) -> Any:
        place.write("notes.csv", b"precious")
        return write(*args, **options)

    with monkeypatch.context() as patched:
        patched.setattr(finish.export, "write", late)
        assert "belongs to another owner" in ready.apply(code=1).stderr
    assert place.names() == ["notes.csv"]
    assert "this state did not write it" in ready.apply(code=7).stderr
    assert place.read("notes.csv") == b"precious"
    place.delete("notes.csv")
    ready.apply()
    same_there_as_here(ready, place)
    settled(ready)


def test_an_object_that_is_left_out_for_a_while_is_still_ours(ready: Any, place: Place) -> None:
    ready.apply()
    destinations = ready.settings["destination"]
    ready.spec(destination=destinations[1:])
    ready.apply()
    ready.spec(destination=destinations)
    ready.apply()
    same_there_as_here(ready, place)
    settled(ready)


@pytest.mark.parametrize("uploads", range(4))
@pytest.mark.parametrize("late", [False, True])
def test_killed_around_each_upload(
    ready: Any, place: Place, monkeypatch: pytest.MonkeyPatch, uploads: int, late: bool
) -> None:
    class Died(BaseException):
        pass

    done: list[str] = []
    upload = gcsobjects.GcsObjects.put

    def die(self: GcsObjects, name: str, *rest: Any) -> Any:
        if len(done) == uploads and not late:
            raise Died
        done.append(name)
        found = upload(self, name, *rest)
        if len(done) > uploads:
            raise Died
        return found

    with monkeypatch.context() as patched:
        patched.setattr(gcsobjects.GcsObjects, "put", die)
        with pytest.raises(Died):
            ready.apply()
    assert len(place.names()) == uploads + late
    # The root names them all, and so the next plan sees which are not there.
    planned = ready.plan("--detailed-exitcode", code=2)
    assert planned.count(f"gs://bucket/{place.folder}/") == 4 - uploads - late
    before = place.generations()
    ready.apply()
    assert before.items() <= place.generations().items()
    same_there_as_here(ready, place)
    settled(ready)


def test_killed_before_the_root_is_saved(ready: Any, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    class Died(BaseException):
        pass

    def die(self: Any) -> None:
        raise Died

    with monkeypatch.context() as patched:
        patched.setattr("runner.export._Files.prepare", die)
        with pytest.raises(Died):
            ready.apply()
    assert place.names() == []
    ready.apply()
    same_there_as_here(ready, place)
    settled(ready)


def test_failures_come_and_go(ready: Any, place: Place) -> None:
    ready.settings["failures"] = {"max_ratio": 1}
    ready.faults(timing={"pending_s": 0}, rows=[{"kind": "blocked_prompt", "match": "3 boards"}])
    ready.spec(destination=place.uri("notes.csv"))
    ready.apply()
    assert place.names() == ["notes.csv", "notes.errors.jsonl"]
    (failed,) = place.read("notes.errors.jsonl").splitlines()
    assert json.loads(failed)["_key"] == "inputs/003.txt"
    settled(ready)
    (ready.folder / "inputs/003.txt").unlink()
    ready.settings["guards"] = {"max_removed_ratio": 1}
    ready.spec()
    ready.apply()
    assert place.names() == ["notes.csv"]
    settled(ready)


def test_a_bucket_that_is_missing_is_told_before_anything_is_spent(
    project: Any, cli: Any, cloud: Callable[..., Any]
) -> None:
    # fake-gcs-server does not tell a bucket that is missing from an object that is.
    cloud()
    project.gbrun = cli
    project.inputs(1)
    project.spec(destination="gs://no-such-bucket/notes.csv")
    for command in (["plan", "job.yaml"], ["apply", "job.yaml", "--auto-approve"]):
        said = project.run(*command, code=1).stderr
        assert "there is no bucket 'no-such-bucket'" in said
        assert "choose another destination" in said
    assert project.requests_sent() == []


def test_a_record_that_does_not_fit_is_told_and_nothing_is_uploaded(ready: Any, place: Place) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 2**63}}, "required": ["n"]}
    ready.spec(destination=[place.uri("notes.jsonl"), place.uri("notes.sqlite")], output_schema=schema)
    said = ready.apply(code=1).stderr
    assert f'{place.uri("notes.sqlite")} cannot hold the record of "inputs/000.txt": "n"' in said
    assert place.names() == []


# ---------------------------------------------------------------- beside a state in the same bucket


@pytest.fixture
def remote(make_remote: Callable[..., Any]) -> Callable[..., Any]:
    def begin(*rules: dict[str, Any]) -> Any:
        made = make_remote(*rules)
        made.inputs(4)
        made.spec(
            output_schema=SCHEMA,
            destination=[
                one for s in SUFFIXES for one in (f"gs://bucket/teams/out/notes{s}", f"out/notes{s}")
            ],
        )
        return made

    return begin


@pytest.mark.parametrize(
    "rules",
    [
        [],
        [{"on": "storage_write", "kind": "lost_reply", "every": 7}],
        [{"on": "storage", "kind": "http_5xx", "every": 15}],
    ],
)
def test_state_and_records_in_one_bucket(remote: Callable[..., Any], rules: list[dict[str, Any]]) -> None:
    project = remote(*rules)
    project.apply()
    here = Place()
    here.folder = "teams/out"
    same_there_as_here(project, here)
    settled(project)
    here.delete("notes.csv")
    assert "gs://bucket/teams/out/notes.csv is missing" in project.plan("--detailed-exitcode", code=2)
    project.apply()
    project.run("gc", "job.yaml")
    settled(project)
    project.run("destroy", "job.yaml", "--auto-approve")
    same_there_as_here(project, here)
    # Another state now, though it is of the same spec: what lies there is not its own.
    assert "belongs to another state" in project.apply(code=7).stderr
    here.objects.close()
    gc.collect()


def test_a_destination_in_the_state_is_not_put_aside(remote: Callable[..., Any]) -> None:
    project = remote()
    project.spec(destination="gs://bucket/teams/notes/out.jsonl")
    project.apply()
    said = project.run("destroy", "job.yaml", "--auto-approve", code=7).stderr
    assert "gs://bucket/teams/notes/out.jsonl lies in the state gs://bucket/teams/notes" in said
