"""A state under gs://, through the whole command line: two machines, kills, hands, and the end."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runner import spec as specfile
from runner.blobs.gcs import GcsBlobs
from runner.errors import SpecInvalid, UsageInvalid
from runner.gcsuri import GcsUri

PLACE = GcsUri("bucket", "teams/notes")


@pytest.fixture
def project(make_remote: Callable[..., Any]) -> Any:
    return make_remote()


# ---------------------------------------------------------------- the spec


def test_the_state_of_a_spec_may_be_an_address(project: Any) -> None:
    path = project.spec()
    found = specfile.load(path, environ={})
    assert found.state_uri == PLACE
    assert found.state.parent == project.folder / ".gbrun/notes"
    elsewhere = specfile.load(path, environ={}, state="gs://bucket/other")
    assert elsewhere.state_uri == GcsUri("bucket", "other")
    assert elsewhere.state != found.state
    here = specfile.load(path, environ={}, state="some/folder")
    assert (here.state_uri, here.state) == (None, Path("some/folder").absolute())
    # Where the state lies is no part of what was asked for.
    assert specfile.digest(found) == specfile.digest(elsewhere) == specfile.digest(here)


def test_the_address_may_hold_variables(project: Any) -> None:
    project.settings |= {"state": "gs://${var.bucket}/notes", "variables": {"bucket": {"type": "string"}}}
    path = project.spec()
    found = specfile.load(path, environ={}, variables={"bucket": "my-bucket"})
    assert found.state_uri == GcsUri("my-bucket", "notes")


@pytest.mark.parametrize(
    ("written", "code", "message"),
    [
        ("gs://bucket", "GB106", "names a bucket without a folder in it"),
        ("gs://B/a", "GB106", "has no bucket name: 'B'"),
        ("s3://bucket/a", "GB107", "is not built yet"),
    ],
)
def test_addresses_that_are_none_are_pointed_at(project: Any, written: str, code: str, message: str) -> None:
    path = project.spec(state=written)
    with pytest.raises(SpecInvalid) as caught:
        specfile.load(path, environ={})
    (problem,) = caught.value.diagnostics
    assert problem.code == code
    assert message in problem.message
    assert problem.line
    with pytest.raises(UsageInvalid, match="--state"):
        specfile.load(project.spec(state=None), environ={}, state=written)


# ---------------------------------------------------------------- the walk


def test_an_apply_keeps_everything_in_the_bucket(project: Any) -> None:
    project.inputs(3)
    project.spec()
    got = project.apply()
    assert "state gs://bucket/teams/notes" in got.stdout

    names = list(project.blobs.list(""))
    folders = {name.partition("/")[0] for name in names} - {"lock.json", "state.json"}
    assert folders == {"attempts", "outcomes", "responses", "rows", "shards", "specs"}
    assert {path.name for path in project.state.iterdir()} <= {
        "emulator", "index.sqlite", "index.sqlite-shm", "index.sqlite-wal", "index.lock",
    }  # fmt: skip
    assert len(project.records()) == 3
    assert "No changes." in project.plan()
    project.apply()
    assert len(project.requests_sent()) == 3
    # Only a cache: without it the same is known.
    shutil.rmtree(project.state)
    assert "No changes." in project.plan()
    assert project.run("state", "list", "job.yaml").stdout.count("ok") == 3


def test_another_machine_goes_on_from_there(make_remote: Callable[..., Any]) -> None:
    first = make_remote(folder="first")
    first.inputs(2)
    first.spec()
    first.apply()
    second = make_remote(folder="second", server=first.server)
    second.inputs(3)
    second.spec()
    assert "1 new" in second.plan()
    second.apply()
    assert len(second.requests_sent()) == 1
    assert [record["_key"] for record in second.records()] == [f"inputs/00{n}.txt" for n in range(3)]
    first.inputs(3)
    assert "Plan: re-export only." in first.plan()
    first.apply()
    assert len(first.requests_sent()) == 2


def test_answers_that_are_lost_on_the_way_change_nothing(make_remote: Callable[..., Any]) -> None:
    project = make_remote({"on": "storage_write", "kind": "lost_reply", "every": 5})
    project.inputs(3)
    project.spec()
    project.apply()
    assert len(project.requests_sent()) == 3
    assert "No changes." in project.plan()


def test_two_applies_at_once_send_nothing_twice(project: Any) -> None:
    project.inputs(12)
    project.spec(shards={"max_requests": 3})
    args = ("apply", "job.yaml", "--auto-approve", "--overwrite")
    running = [
        project.gbrun.start(*args, *more, cwd=project.folder, env=project.env)
        for more in ((), ("--lock-timeout", "60"))
    ]
    codes = [project.gbrun.finish(child, code=None).code for child in running]
    assert set(codes) <= {0, 5, 6}, codes
    project.apply("--overwrite", "--lock-timeout", "60")
    sent = project.requests_sent()
    assert len(sent) == len(set(sent)) == 12
    assert len(project.records()) == 12
    assert "No changes." in project.plan()


def test_a_killed_apply_leaves_a_lock_that_a_person_frees(
    make_remote: Callable[..., Any], wait_for: Callable[..., None]
) -> None:
    # The write after the lock hangs for long enough to be met there.
    project = make_remote({"on": "storage_write", "kind": "slow", "delay_s": 3, "skip": 2, "times": 1})
    project.inputs(2)
    project.spec()
    child = project.gbrun.start("apply", "job.yaml", "--auto-approve", cwd=project.folder, env=project.env)
    wait_for(lambda: project.blobs.read_lock("lock.json"))
    child.kill()
    child.wait()

    got = project.apply(code=5)
    assert "is locked by operation apply, pid" in got.stderr
    shown = project.run("lock", "show", "job.yaml", code=5).stdout
    id_ = shown.partition(" id ")[2].partition(",")[0]
    assert f"gbrun force-unlock SPEC {id_}" in got.stderr
    assert "which is not 'other'" in project.run("force-unlock", "job.yaml", "other", code=5).stderr
    assert "is free" in project.run("force-unlock", "job.yaml", id_).stdout
    assert "is not locked" in project.run("lock", "show", "job.yaml").stdout
    assert "Nothing to do" in project.run("force-unlock", "job.yaml", id_).stdout
    project.apply()
    assert len(project.requests_sent()) == 2
    assert "No changes." in project.plan()


def test_a_lock_freed_under_a_living_apply_stops_it_cleanly(
    make_remote: Callable[..., Any], wait_for: Callable[..., None]
) -> None:
    project = make_remote({"on": "storage_write", "kind": "slow", "delay_s": 2, "skip": 2, "times": 1})
    project.inputs(2)
    project.spec()
    child = project.gbrun.start("apply", "job.yaml", "--auto-approve", cwd=project.folder, env=project.env)
    wait_for(lambda: project.blobs.read_lock("lock.json"))
    holder = json.loads(project.blobs.read_lock("lock.json") or b"")
    project.run("force-unlock", "job.yaml", holder["id"])
    # The first one may plan again and hold the lock by its own right.
    project.apply("--lock-timeout", "60")
    got = project.gbrun.finish(child, code=None)
    assert got.code in (0, 6), got.said
    sent = project.requests_sent()
    assert len(sent) == len(set(sent)) == 2


def test_the_state_is_changed_by_hand_as_a_folder_is(project: Any) -> None:
    project.inputs(3)
    project.spec()
    project.apply()
    pulled = project.run("state", "pull", "job.yaml").stdout
    assert json.loads(pulled)["kind"] == "state"
    project.run("state", "mv", "job.yaml", "inputs/000.txt", "inputs/zero.txt")
    assert "inputs/zero.txt" in project.run("state", "list", "job.yaml").stdout
    project.write("root.json", pulled)
    assert "already" in project.run("state", "push", "job.yaml", "root.json", code=6).stderr
    project.run("state", "purge", "job.yaml", "--key", "inputs/001.txt", "--auto-approve")
    assert "inputs/001.txt" not in project.run("state", "list", "job.yaml").stdout
    assert "file(s)" in project.run("gc", "job.yaml").stdout


def test_a_destroyed_state_lies_beside_its_place(project: Any) -> None:
    project.inputs(2)
    project.spec()
    project.apply()
    before = {name: project.blobs.read(name)[0] for name in project.blobs.list("") if name != "lock.json"}
    serial = json.loads(before["state.json"])["serial"]

    got = project.run("destroy", "job.yaml", "--auto-approve")
    assert f"The state lies in gs://bucket/teams/notes.destroyed-{serial};" in got.stdout
    aside = GcsBlobs(GcsUri("bucket", f"teams/notes.destroyed-{serial}"))
    kept = {name: aside.read(name)[0] for name in aside.list("")}
    assert kept.keys() == before.keys()
    assert list(project.blobs.list("")) == ["lock.json"]
    assert len(project.records()) == 2
    assert "2 new" in project.plan()


def test_a_bucket_outlives_a_machine_of_ci(project: Any) -> None:
    project.inputs(1)
    project.spec(backend={"type": "gemini"})
    env = {**project.env, "CI": "true", "GEMINI_API_KEY": "k"}
    got = project.run("apply", "job.yaml", code=7, env=env)
    assert "nobody can be asked without a terminal" in got.stderr
    project.spec(state=None)
    got = project.run("apply", "job.yaml", code=7, env=env)
    assert "the state is a folder of a CI machine" in got.stderr
    assert "state: gs://bucket/folder" in got.stderr


def test_errors_of_the_place_are_said_without_a_traceback(project: Any) -> None:
    project.inputs(1)
    project.spec()
    got = project.run("plan", "job.yaml", "--state", "gs://no-such-bucket/notes", code=1)
    assert "there is no bucket 'no-such-bucket'" in got.stderr
    assert "gcloud storage buckets create" in got.stderr
    got = project.run("plan", "job.yaml", "--state", "gs://bucket", code=64)
    assert "write gs://bucket/folder" in got.stderr
