"""A state that moves: complete or not at all, there and back, and never from under somebody."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from builders import LINEAGE, make_attempt, make_state

from runner import migration, statefile
from runner.blobs.gcs import GcsBlobs
from runner.blobs.gcserrors import EMULATOR_VARIABLE
from runner.blobs.memory import MemoryBlobs
from runner.emulator.server import serve
from runner.errors import GbrunError, StateChanged, StateError, StateForeign, StateUnreadable
from runner.gcsuri import GcsUri
from runner.model import AttemptState, State
from runner.statefile import Moved
from runner.store import ROOT, Store


def make_store(label: str, **changes: Any) -> Store:
    """A state with a part of every kind."""
    store = Store(MemoryBlobs(), None, label)
    rows = store.put_rows([b'{"version":1}\n', b"row\n"])
    outcomes = store.put_outcomes("t", {}, [b'{"id":"r1"}\n'])
    store.put_spec("5" * 16, {"name": "tickets"})
    store.blobs.create("shards/s.jsonl.gz", b"shard")
    store.blobs.create("responses/t.1.jsonl.gz", b"responses" * 400_000)
    store.create_attempt(make_attempt(state=AttemptState.COLLECTED, job_name="batches/1"))
    old = make_state(rows=rows)
    store.keep_history(old)
    store.save(make_state(**{"serial": 7, "rows": rows, "outcomes": (outcomes,), **changes}), "")
    return store


def empty(label: str = "there") -> Store:
    return Store(MemoryBlobs(), None, label)


def everything(store: Store) -> dict[str, bytes]:
    return {name: store.blobs.read(name)[0] for name in store.blobs.list("")}


def root(store: Store) -> State:
    state, _ = store.load()
    assert state is not None
    return state


# ---------------------------------------------------------------- the copy


def test_every_part_arrives_and_the_old_place_is_closed() -> None:
    source, target = make_store("here"), empty()
    before = everything(source)

    done = migration.migrate(source, target)

    assert everything(target) == before
    assert done.part_count == len(before) - 1
    assert done.byte_count == sum(map(len, before.values())) - len(before[ROOT])
    assert done.state == root(target)
    with pytest.raises(
        StateForeign, match="here is closed: the state was moved to there at serial 7"
    ) as caught:
        source.load()
    assert "gbrun state migrate SPEC --from there" in caught.value.hint
    # All that was there is there, the last root among the old ones.
    kept = everything(source)
    assert kept["history/00000007.json"] == before[ROOT]
    assert {name: kept[name] for name in before if name != ROOT} == {
        name: data for name, data in before.items() if name != ROOT
    }


def test_what_is_no_part_stays_behind() -> None:
    source, target = make_store("here"), empty()
    for name in ("lock.json", "index.sqlite", "emulator/jobs/1.in", "direct/t.answers"):
        source.blobs.create(name, b"x")
    migration.migrate(source, target)
    assert {name.partition("/")[0] for name in target.blobs.list("")} == {
        "attempts", "history", "outcomes", "responses", "rows", "shards", "specs", "state.json",
    }  # fmt: skip


def test_there_and_back_again() -> None:
    here, there = make_store("here"), empty()
    migration.migrate(here, there)
    state, version = there.load()
    assert state is not None
    # There it was used: an attempt went on, a part that was garbage made room for another of its name.
    (attempt, attempt_version) = there.attempts()[0]
    there.replace_attempt(replace(attempt, state=AttemptState.CLEANED), attempt_version)
    there.blobs.delete("rows/1.jsonl.gz")
    rows = there.put_rows([b'{"version":1}\n', b"another\n"])
    assert rows == state.rows
    there.save(replace(state, serial=9), version)

    migration.migrate(there, here)

    assert root(here).serial == 9
    assert list(here.lines(rows))[-1] == b"another"
    assert here.attempts()[0][0].state is AttemptState.CLEANED
    with pytest.raises(StateForeign, match="there is closed"):
        there.load()
    migration.migrate(here, there)
    assert root(there).serial == 9


class Dies(Exception):
    """The process is killed here."""


class Mortal(MemoryBlobs):
    """Dies before or after its `left`-th write."""

    left = 10_000
    before = True

    def _step(self, write: Callable[[], Any]) -> Any:
        self.left -= 1
        if self.left == 0 and self.before:
            raise Dies
        done = write()
        if self.left == 0:
            raise Dies
        return done

    def create_from(self, name: str, chunks: Iterable[bytes]) -> str:
        data = list(chunks)
        return str(self._step(lambda: super(Mortal, self).create(name, b"".join(data))))

    def create(self, name: str, data: bytes) -> str:
        return str(self._step(lambda: super(Mortal, self).create(name, data)))

    def replace(self, name: str, data: bytes, version: str) -> str:
        return str(self._step(lambda: super(Mortal, self).replace(name, data, version)))

    def delete(self, name: str) -> None:
        self._step(lambda: super(Mortal, self).delete(name))


@pytest.mark.parametrize("before", [True, False])
def test_killed_at_any_write_it_is_done_again(before: bool) -> None:
    wanted = everything(make_store("here"))
    deaths = 0
    for at in range(1, 40):
        source = make_store("here")
        target = Store(Mortal(), None, "there")
        mine = Mortal()
        mine._data, mine._modified_s = source.blobs._data, source.blobs._modified_s  # type: ignore[attr-defined]
        source = Store(mine, None, "here")
        for blobs in (mine, target.blobs):
            blobs.left, blobs.before = at, before  # type: ignore[attr-defined]
        # The source is written after the target.
        try:
            migration.migrate(source, target)
        except Dies:
            deaths += 1
        else:
            break
        for blobs in (mine, target.blobs):
            blobs.left = 10_000  # type: ignore[attr-defined]
        there = target.blobs.exists(ROOT)
        if there:
            assert everything(target) == wanted, "a root is there before all of its parts"
        if statefile.load_moved(source.blobs.read(ROOT)[0], "") is None:
            migration.migrate(source, target)
        assert everything(target) == wanted
        with pytest.raises(StateForeign):
            source.load()
    assert deaths >= 7


# ---------------------------------------------------------------- refusals


def test_no_state_is_nothing_to_copy() -> None:
    with pytest.raises(GbrunError, match="there is no state in here"):
        migration.migrate(empty("here"), empty())


def test_another_state_is_never_overwritten() -> None:
    source, target = make_store("here"), make_store("there", lineage="f" * 32)
    before = everything(target)
    with pytest.raises(StateForeign, match="lineage ffff"):
        migration.migrate(source, target)
    assert everything(target) == before
    assert root(source).serial == 7


def test_a_newer_state_is_never_overwritten() -> None:
    for serial, words in ((8, "serial 8 already"), (7, "both have serial 7, and differ")):
        target = make_store("there", serial=serial, principal="another")
        before = everything(target)
        with pytest.raises(StateChanged, match=words):
            migration.migrate(make_store("here"), target)
        assert everything(target) == before


def test_an_older_copy_of_the_same_is_brought_up_to_date() -> None:
    target = make_store("there", serial=3)
    migration.migrate(make_store("here"), target)
    assert root(target).serial == 7
    assert "history/00000003.json" in list(target.blobs.list("history/"))


def test_a_place_that_was_moved_on_later_is_not_brought_back_by_an_old_copy() -> None:
    target = make_store("there")
    note = statefile.dump_moved(Moved("elsewhere", LINEAGE, 12))
    target.blobs.replace(ROOT, note, target.blobs.read(ROOT)[1])
    with pytest.raises(StateChanged, match="serial 12 already"):
        migration.migrate(make_store("here"), target)


def test_a_job_that_only_the_target_knows_is_not_forgotten() -> None:
    other = make_attempt("gb1-01234567-aaaaaaaaaaaaaaaa-a1", job_name="batches/9")
    for attempt in (other, make_attempt(job_name="batches/9")):
        target = empty()
        target.create_attempt(attempt)
        with pytest.raises(StateForeign, match="there knows of batches/9, and here does not"):
            migration.migrate(make_store("here"), target)


def test_parts_of_somebody_else_are_left_alone() -> None:
    target = empty()
    target.blobs.create("shards/s.jsonl.gz", b"other")
    with pytest.raises(StateForeign, match=r"there has another shards/s.jsonl.gz than here"):
        migration.migrate(make_store("here"), target)
    assert target.blobs.read("shards/s.jsonl.gz")[0] == b"other"


def test_what_arrives_otherwise_is_an_error_and_the_old_place_stays_open() -> None:
    class Careless(MemoryBlobs):
        def create_from(self, name: str, chunks: Iterable[bytes]) -> str:
            return self.create(name, b"".join(chunks)[:-1])

    source = make_store("here")
    with pytest.raises(StateError, match=r"there/specs/5+\.json is not what here/specs/"):
        migration.migrate(source, Store(Careless(), None, "there"))
    assert root(source).serial == 7


# ---------------------------------------------------------------- the note


def test_the_note_is_a_note_and_nothing_else_is() -> None:
    moved = Moved("gs://b/p", LINEAGE, 4)
    data = statefile.dump_moved(moved)
    assert statefile.load_moved(data, "x") == moved
    assert statefile.load_moved(statefile.dump_state(make_state(name="moved")), "x") is None
    assert statefile.load_moved(b'{"kind": "moved"', "x") is None
    with pytest.raises(StateUnreadable, match="x was edited"):
        statefile.load_moved(data.replace(b'"serial": 4', b'"serial": 5'), "x")
    with pytest.raises(StateUnreadable, match="is not gbrun's state file"):
        statefile.load_state(data, "x")


# ---------------------------------------------------------------- the command


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """The environment in which gs://bucket is there."""
    server = serve(tmp_path / "cloud", 0, None)
    server._http.service.objects.create_bucket("bucket")
    monkeypatch.setenv(EMULATOR_VARIABLE, server.url)
    yield {EMULATOR_VARIABLE: server.url}
    server.close()


def test_a_state_moves_into_a_bucket_and_back(project: Any, bucket: dict[str, str]) -> None:
    project.inputs(3)
    project.spec()
    project.apply()
    records = project.records()
    uri = "gs://bucket/notes"

    assert "give --to PLACE" in project.run("state", "migrate", "job.yaml", code=64, env=bucket).stderr
    got = project.run("state", "migrate", "job.yaml", "--to", uri, env=bucket)
    assert f"to {uri}; serial 3." in got.stdout
    assert f"Now set `state: {uri}` in job.yaml" in got.stdout
    for command in (
        ("plan",),
        ("apply", "--auto-approve"),
        ("status",),
        ("state", "list"),
        ("state", "pull"),
    ):
        got = project.run(*command, "job.yaml", code=64, env=bucket)
        assert f"the state was moved to {uri} at serial 3" in got.stderr
    again = project.run("state", "migrate", "job.yaml", "--to", uri, code=64, env=bucket)
    assert "the state was moved to" in again.stderr

    project.spec(state=uri)
    assert "No changes." in project.run("plan", "job.yaml", env=bucket).stdout
    project.inputs(4)
    project.apply(env=bucket)
    assert project.records()[:3] == records
    assert len(project.records()) == 4

    back = ("state", "migrate", "job.yaml", "--from", uri)
    project.spec(state=None)
    assert f"{uri} is closed" in project.run(*back, env=bucket).stdout
    assert "No changes." in project.plan()
    assert len(project.requests_sent()) == 3, "the fourth was sent by the emulator of the other place"
    got = project.run("plan", "job.yaml", "--state", uri, code=64, env=bucket)
    assert "the state was moved to .gbrun/notes/default-local" in got.stderr
    assert GcsBlobs(GcsUri("bucket", "notes")).exists("rows/1.jsonl.gz")


def test_a_folder_moves_to_a_folder(project: Any) -> None:
    project.inputs(2)
    project.spec()
    project.apply()
    got = project.run("state", "migrate", "job.yaml", "--to", "kept/state")
    assert "Now set `state: kept/state` in job.yaml" in got.stdout
    project.spec(state="kept/state")
    assert "No changes." in project.plan()
    assert (
        "is in kept/state already"
        in project.run("state", "migrate", "job.yaml", "--to", "kept/state", code=64).stderr
    )
    missing = project.run("state", "migrate", "job.yaml", "--from", "not/there", code=1)
    assert "there is no state in not/there" in missing.stderr
    assert not (project.folder / "not").exists()


def test_a_state_of_another_spec_stays(project: Any) -> None:
    project.inputs(1)
    project.spec()
    project.apply()
    project.spec(name="other", destination="out/other.jsonl")
    got = project.run("state", "migrate", "job.yaml", "--from", ".gbrun/notes/default-local", code=64)
    assert "is the state of 'notes'" in got.stderr


def test_jobs_of_this_machine_are_waited_for(project: Any) -> None:
    project.inputs(1)
    project.faults(timing={"running_s": 600})
    project.spec()
    project.apply("--no-wait", code=3)
    got = project.run("state", "migrate", "job.yaml", "--to", "elsewhere", code=7)
    assert "in flight" in got.stderr
    assert json.loads((project.state / "state.json").read_bytes())["kind"] == "state"
