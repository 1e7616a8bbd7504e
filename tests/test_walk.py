"""A user's way through a job: plan, apply, edit, rename, remove, interrupt, kill, and go on."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

HOLD_LOCK = """
import sys
from pathlib import Path
from runner.blobs.local import LocalBlobs
with LocalBlobs(Path(sys.argv[1])).lock("lock.json", b'{"operation": "apply", "host": "elsewhere"}', 0):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(scope="module")
def applied_once(tmp_path_factory: pytest.TempPathFactory, make_gbrun: Any, make_project: Any) -> Path:
    """Five notes, applied; to be copied, never changed."""
    folder = tmp_path_factory.mktemp("applied")
    project = make_project(folder / "project", make_gbrun(folder / "home"))
    project.inputs(5)
    project.spec()
    project.apply()
    return Path(project.folder)


@pytest.fixture
def ready(project: Any, applied_once: Path, cli: Any) -> Any:
    """Five notes, applied, for this test alone. A state is not bound to the place where it was made.

    Its commands run inside this process, which is faster.
    """
    shutil.copytree(applied_once, project.folder, dirs_exist_ok=True)
    project.gbrun = cli
    return project


def wants_nothing(project: Any) -> None:
    """The re-plan after an apply is empty, and an apply of it submits nothing and makes no attempt."""
    jobs, attempts, root = project.jobs(), project.attempts(), project.root()
    assert project.plan("--detailed-exitcode", code=0).endswith(
        "No changes. Everything the spec asks for is there.\n"
    )
    project.apply(code=0)
    assert (project.jobs(), project.attempts(), project.root()) == (jobs, attempts, root)


# ---------------------------------------------------------------- first run


def test_init_plan_apply_apply(gbrun: Any, new_project: Callable[..., Any]) -> None:
    project = new_project("my first job")
    gbrun("init", ".", cwd=project.folder)
    project.settings |= {"name": "my-first-job", "destination": "out/my-first-job.jsonl"}

    planned = project.plan("--detailed-exitcode", code=2)
    assert "  + 2 new" in planned
    assert planned.endswith("Plan: 2 new; 1 job.\n")
    assert not project.state.exists()
    assert not (project.folder / "out").exists()

    applied = project.apply()
    assert "Requests 2 = 2 ok\n" in applied.stdout
    assert "Rows 2 = 2 ok\n" in applied.stdout
    assert "no model was called" in applied.stderr
    assert [record["_key"] for record in project.records()] == ["inputs/monday.txt", "inputs/tuesday.txt"]
    assert all(record["mood"] in ("good", "bad", "mixed") for record in project.records())
    assert project.failures() == []
    assert len(project.attempts()) == 1
    wants_nothing(project)
    assert project.leftovers() == []


def test_init_leaves_what_is_there_alone(gbrun: Any, project: Any) -> None:
    project.write("job.yaml", "mine")
    got = gbrun("init", ".", cwd=project.folder, code=64)
    assert "job.yaml exists; nothing was written" in got.stderr
    assert os.listdir(project.folder) == ["job.yaml"]


def test_the_plan_that_is_printed_is_the_one_that_is_carried_out(project: Any) -> None:
    project.inputs(7)
    project.spec(shards={"max_requests": 3})
    planned = project.plan()
    assert "Shards 3 (7 requests" in planned
    assert project.apply().stdout.startswith(planned)
    assert [len(ids) for _, ids in project.jobs()] == [3, 3, 1]


def test_a_plan_changes_nothing(ready: Any) -> None:
    def look() -> dict[Path, tuple[bytes, int]]:
        cache = ready.state / "index.sqlite"
        return {
            path: (path.read_bytes(), path.stat().st_mtime_ns)
            for path in ready.folder.rglob("*")
            if path.is_file() and not path.name.startswith(cache.name)
        }

    ready.write("inputs/new.txt", "One more.\n")
    before = look()
    ready.plan("--detailed-exitcode", code=2)
    assert look() == before


# ---------------------------------------------------------------- edits


def test_an_edited_input_is_the_only_one_that_runs(ready: Any) -> None:
    before = {record["_key"]: record for record in ready.records()}
    sent = ready.requests_sent()
    ready.write("inputs/002.txt", "Note 2, again: the shelf fell.\n")

    planned = ready.plan("--detailed-exitcode", code=2)
    assert re.search(r"^  ~ 1 rerun +input 1$", planned, re.M)
    assert re.search(r"^  = 4 unchanged$", planned, re.M)
    assert "Requests 1 = 1 ok\n" in ready.apply().stdout

    assert len(ready.requests_sent()) == len(sent) + 1
    after = {record["_key"]: record for record in ready.records()}
    assert list(after) == list(before)
    assert {key for key in after if after[key] != before[key]} <= {"inputs/002.txt"}
    wants_nothing(ready)


def test_an_edited_prompt_runs_everything_and_a_revert_costs_nothing(ready: Any) -> None:
    first = ready.spec().read_bytes()
    records = ready.records()
    ready.spec(prompt="In one word: what is this note about?\n\n{{ input.text }}\n")

    planned = ready.plan("--detailed-exitcode", code=2)
    assert re.search(r"^  ~ 5 rerun +prompt 5$", planned, re.M)
    assert "Requests 5 = 5 ok\n" in ready.apply().stdout
    assert len(ready.requests_sent()) == 10
    wants_nothing(ready)

    ready.write("job.yaml", first)
    planned = ready.plan("--detailed-exitcode", code=2)
    assert re.search(r"^  = 5 reused", planned, re.M)
    assert "Shards" not in planned
    ready.apply()
    assert len(ready.requests_sent()) == 10
    assert ready.records() == records
    wants_nothing(ready)


def test_every_part_of_the_request_is_named_as_the_reason(ready: Any) -> None:
    for change, reason in (
        ({"model": "gemini-3.8-flash"}, "model"),
        ({"system_instruction": "Be brief."}, "system_instruction"),
        ({"generation_config": {"temperature": 0}}, "generation_config"),
        ({"output_schema": {**ready.settings["output_schema"], "description": "A note"}}, "output_schema"),
    ):
        before = {key: ready.settings.get(key) for key in change}
        ready.spec(**change)
        assert re.search(rf"^  ~ 5 rerun +{reason} 5$", ready.plan(), re.M), reason
        ready.spec(**before)
    assert "No changes" in ready.plan()


def test_a_renamed_file_is_reused(ready: Any) -> None:
    (ready.folder / "inputs/001.txt").rename(ready.folder / "inputs/zz.txt")

    planned = ready.plan("--detailed-exitcode", code=2)
    assert re.search(r"^  = 1 reused ", planned, re.M)
    assert re.search(r"inputs/zz.txt:? +was inputs/001.txt", planned)
    assert "removed" not in planned
    ready.apply()

    assert len(ready.requests_sent()) == 5
    assert [record["_key"] for record in ready.records()][-1] == "inputs/zz.txt"
    assert len(ready.records()) == 5
    wants_nothing(ready)


def test_a_copied_file_is_the_same_request(ready: Any) -> None:
    ready.write("inputs/copy.txt", (ready.folder / "inputs/003.txt").read_bytes())

    planned = ready.plan("--detailed-exitcode", code=2)
    assert re.search(r"inputs/copy.txt:? +same request as inputs/003.txt", planned)
    ready.apply()

    assert len(ready.requests_sent()) == 5
    found = {record.pop("_key"): record for record in ready.records()}
    assert found["inputs/copy.txt"] == found["inputs/003.txt"]
    wants_nothing(ready)


def test_two_equal_files_are_paid_once(project: Any, cli: Any) -> None:
    project.gbrun = cli
    project.write("inputs/a.txt", "The same.\n")
    project.write("inputs/b.txt", "The same.\n")
    project.spec()
    assert re.search(r"inputs/b.txt:? +same request as inputs/a.txt", project.plan())
    applied = project.apply().stdout
    assert "Requests 1 = 1 ok\n" in applied
    assert "Rows 2 = 2 ok\n" in applied
    wants_nothing(project)


def test_a_removed_file_leaves_the_records_and_keeps_its_outcome(ready: Any) -> None:
    gone = ready.folder / "inputs/004.txt"
    text = gone.read_bytes()
    records = ready.records()
    gone.unlink()

    planned = ready.plan("--detailed-exitcode", code=2)
    assert re.search(r"^  - 1 removed +leave the destination, results kept$", planned, re.M)
    ready.apply()
    assert ready.records() == records[:4]
    wants_nothing(ready)

    gone.write_bytes(text)
    ready.apply()
    assert ready.records() == records
    assert len(ready.requests_sent()) == 5


def test_too_many_removals_are_refused(ready: Any) -> None:
    for name in ("inputs/000.txt", "inputs/001.txt"):
        (ready.folder / name).unlink()
    records = ready.records()
    assert "Refused: 2 of 5 rows would be removed, 40%" in ready.plan(code=7)
    ready.apply(code=7)
    assert ready.records() == records


def test_an_empty_folder_is_refused_by_the_guard_on_rows(project: Any) -> None:
    project.spec()
    assert "guards.min_rows is 1, and the inputs give 0 row(s)" in project.plan(code=7)
    project.apply(code=7)


# ---------------------------------------------------------------- destinations


@pytest.mark.parametrize("damage", ["missing", "altered"])
def test_a_damaged_destination_is_written_again_at_no_cost(ready: Any, damage: str) -> None:
    path = ready.folder / "out/notes.jsonl"
    good = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(good[:-20])

    said = "is missing" if damage == "missing" else "was altered"
    planned = ready.plan("--detailed-exitcode", code=2)
    assert f"re-export: out/notes.jsonl {said}" in planned
    ready.apply()
    assert path.read_bytes() == good
    assert len(ready.requests_sent()) == 5
    wants_nothing(ready)


def test_export_rebuilds_the_destination(ready: Any) -> None:
    path = ready.folder / "out/notes.jsonl"
    good = path.read_bytes()
    path.unlink()
    ready.run("export", "job.yaml")
    assert path.read_bytes() == good
    assert len(ready.requests_sent()) == 5


def test_a_foreign_destination_is_refused_without_overwrite(project: Any, cli: Any) -> None:
    project.gbrun = cli
    project.inputs(2)
    project.spec()
    foreign = project.write("out/notes.jsonl", "somebody's work\n")

    got = project.apply(code=7)
    assert "out/notes.jsonl exists, and this state did not write it" in got.stderr
    assert foreign.read_text() == "somebody's work\n"
    assert project.jobs() == []

    project.apply("--overwrite")
    assert len(project.records()) == 2
    wants_nothing(project)


def test_a_deleted_index_is_rebuilt(ready: Any, gbrun: Any) -> None:
    ready.gbrun = gbrun
    for path in ready.state.glob("index.sqlite*"):
        path.unlink()
    wants_nothing(ready)


def test_a_damaged_index_is_rebuilt(ready: Any, gbrun: Any) -> None:
    ready.gbrun = gbrun
    for path in ready.state.glob("index.sqlite*"):
        path.write_bytes(b"not a database")
    wants_nothing(ready)


def test_a_refused_state_leaves_nothing_open(ready: Any, gbrun: Any) -> None:
    ready.gbrun = gbrun
    state = ready.state
    ready.spec(name="other")
    got = ready.run(
        "plan", "job.yaml", "--state", state, code=64, env={"PYTHONWARNINGS": "always::ResourceWarning"}
    )
    assert "ResourceWarning" not in got.stderr


def test_without_a_schema_a_record_holds_text(project: Any, cli: Any) -> None:
    project.gbrun = cli
    project.inputs(3)
    project.spec(output_schema=None)
    project.apply()
    assert [sorted(record) for record in project.records()] == [["_key", "text"]] * 3
    assert all(record["text"] for record in project.records())
    wants_nothing(project)


# ---------------------------------------------------------------- waiting


@pytest.mark.parametrize("command", ["apply", "wait"])
def test_no_wait_leaves_jobs_that_a_later_run_collects(project: Any, command: str) -> None:
    project.inputs(4)
    project.faults(timing={"pending_s": 2.5})
    project.spec(shards={"max_requests": 2})

    got = project.apply("--no-wait", code=3)
    assert "4 request(s) are in flight" in got.stdout
    assert "Go on with: gbrun apply job.yaml" in got.stdout
    assert not (project.folder / "out/notes.jsonl").exists()
    assert "2 job(s) in flight, 4 requests." in project.run("status", "job.yaml", code=3).stdout
    assert re.search(r"^  … 4 in flight +in 2 job\(s\)$", project.plan("--detailed-exitcode", code=2), re.M)

    if command == "apply":
        project.apply()
    else:
        project.run("wait", "job.yaml")
    assert len(project.records()) == 4
    assert len(project.jobs()) == 2
    project.run("status", "job.yaml", code=0)
    wants_nothing(project)


def test_no_wait_again_and_a_timeout_submit_nothing_twice(project: Any, cli: Any) -> None:
    project.inputs(4)
    project.gbrun = cli
    project.faults(timing={"pending_s": 4.0})
    project.spec(shards={"max_requests": 2})
    project.apply("--no-wait", code=3)
    project.apply("--no-wait", code=3)
    project.apply("--wait-timeout", "0.2s", code=3)
    assert len(project.jobs()) == 2
    project.run("wait", "job.yaml", "--wait-timeout", "200ms", code=3)
    project.apply()
    assert Counter(project.requests_sent()).most_common(1)[0][1] == 1
    wants_nothing(project)


def test_wait_submits_nothing(project: Any) -> None:
    project.inputs(2)
    project.spec()
    assert "Nothing in flight." in project.run("wait", "job.yaml").stdout
    assert project.jobs() == []


def test_a_revert_while_jobs_run_wants_them_again(project: Any, cli: Any) -> None:
    project.gbrun = cli
    project.inputs(3)
    project.faults(timing={"pending_s": 3.0})
    first = project.spec().read_bytes()
    project.apply("--no-wait", code=3)
    project.spec(prompt="Other.\n{{ input.text }}\n")
    assert "3 request(s) in flight that no row wants any more" in project.plan()
    project.write("job.yaml", first)
    assert "3 in flight" in project.plan()
    project.apply()
    assert len(project.jobs()) == 1
    wants_nothing(project)


# ---------------------------------------------------------------- states


def test_two_specs_share_a_folder(new_project: Callable[..., Any]) -> None:
    one, two = new_project("shared"), new_project("shared")
    one.inputs(3)
    two.settings |= {"name": "other", "destination": "out/other.jsonl", "prompt": "Other: {{ input.text }}"}
    one.spec("job.yaml")
    two.spec("other.yaml")
    one.apply()
    two.run("apply", "other.yaml", "--auto-approve")
    assert len(one.records()) == len(two.records()) == 3
    assert len(one.jobs()) == len(two.jobs()) == 1
    assert one.root()["lineage"] != two.root()["lineage"]
    for path in ("job.yaml", "other.yaml"):
        assert "No changes" in one.run("plan", path, "--detailed-exitcode").stdout


def test_a_state_of_another_name_is_refused(ready: Any, gbrun: Any) -> None:
    ready.gbrun = gbrun
    state, root = ready.state, ready.root()
    ready.spec(name="other")
    for command in (("plan",), ("apply", "--auto-approve"), ("status",), ("export",)):
        got = ready.run(*command, "job.yaml", "--state", state, code=64)
        assert "is the state of 'notes'" in got.stderr
        assert "--state" in got.stderr
    ready.settings["name"] = "notes"
    assert ready.root() == root


def test_a_state_that_was_cut_short_is_never_believed(ready: Any, gbrun: Any) -> None:
    ready.gbrun = gbrun
    ready.write("inputs/new.txt", "One more.\n")
    ready.apply()
    path = ready.state / "state.json"
    good = path.read_bytes()
    path.write_bytes(good[: len(good) // 2])
    for command in (("plan",), ("apply", "--auto-approve"), ("status",)):
        got = ready.run(*command, "job.yaml", code=1)
        assert "state.json is truncated or not JSON" in got.stderr
        assert "history/" in got.stderr
    path.write_bytes(good)
    wants_nothing(ready)


def test_a_lock_that_another_process_holds(ready: Any, gbrun: Any) -> None:
    ready.write("inputs/new.txt", "One more.\n")
    jobs = ready.jobs()
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD_LOCK, str(ready.state)],
        env=gbrun.environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout
        assert holder.stdout.readline() == "held\n"
        got = ready.apply(code=5)
        assert "is locked by operation apply, host elsewhere" in got.stderr
        assert "--lock-timeout" in got.stderr
        assert ready.jobs() == jobs
        assert "1 new" in ready.plan()

        waiting = gbrun.start(
            "apply", "job.yaml", "--auto-approve", "--lock-timeout", "60s", cwd=ready.folder
        )
        time.sleep(1.5)
        assert waiting.poll() is None
    finally:
        holder.communicate()
    gbrun.finish(waiting, code=0)
    wants_nothing(ready)


def test_nobody_to_ask_without_a_terminal(project: Any) -> None:
    project.inputs(2)
    project.spec()
    got = project.run("apply", "job.yaml", code=7)
    assert "--auto-approve" in got.stderr
    assert project.jobs() == []
    project.apply()
    assert "No changes" in project.run("apply", "job.yaml", code=0).stdout


def test_one_apply_goes_through_all_attempts(project: Any, cli: Any) -> None:
    project.gbrun = cli
    project.inputs(3)
    project.faults(rows=[{"kind": "row_error", "first_attempts": 2}])
    project.spec()
    project.apply(code=0)
    assert len(project.records()) == 3
    assert len(project.jobs()) == 3


# ---------------------------------------------------------------- interrupted


def disturbed(project: Any) -> None:
    """Eight notes in four jobs, two at a time, each of them slow enough to be cut off."""
    project.inputs(8)
    project.faults(timing={"pending_s": 0.15, "running_s": 0.35})
    project.spec(shards={"max_requests": 2}, concurrency={"max_jobs": 2})


def nothing_twice(project: Any) -> None:
    """Each request was in one job, each shard has one attempt that counted, and all adds up."""
    assert Counter(Counter(project.requests_sent()).values()) == {1: 8}, project.jobs()
    counted = Counter(a["shard_id"] for a in project.attempts() if a["state"] in ("collected", "cleaned"))
    assert sorted(counted.values()) == [1, 1, 1, 1]
    assert {a["state"] for a in project.attempts()} <= {"cleaned", "void", "abandoned"}
    sent = sum(sum(header["summary"]["outcomes"].values()) for header, _ in project.outcomes())
    assert sent == 8


def test_killed_at_any_instant_the_next_apply_goes_on(new_project: Callable[..., Any], gbrun: Any) -> None:
    calm = new_project("calm")
    disturbed(calm)
    began = time.monotonic()
    calm.apply()
    took_s = time.monotonic() - began
    chance = random.Random(20261121)
    landed = Counter()
    for number in range(5):
        project = new_project(f"killed-{number}")
        disturbed(project)
        for _ in range(2):
            child = gbrun.start("apply", "job.yaml", "--auto-approve", cwd=project.folder)
            # A killed run leaves the rest shorter; the first part of each is imports and nothing else.
            time.sleep(chance.uniform(0.25, 0.9) * took_s)
            landed[child.poll() is None] += 1
            child.kill()
            child.communicate()
        project.apply()

        nothing_twice(project)
        # A write that was cut off may stay behind as a hidden file; it is never read.
        assert all("/.tmp-" in name or name.endswith(".part") for name in project.leftovers())
        assert (project.folder / "out/notes.jsonl").read_bytes() == (
            calm.folder / "out/notes.jsonl"
        ).read_bytes()
        assert project.shards() == calm.shards()
        wants_nothing(project)
    assert landed[True] >= 4, "too few of the kills met a running apply"


def test_killed_between_the_records_and_the_state_that_names_them(
    project: Any, cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Died(BaseException):
        pass

    def die(folder: Path) -> None:
        raise Died

    project.gbrun = cli
    project.inputs(2)
    project.spec()
    with monkeypatch.context() as patch:
        # What follows the rename of the records.
        patch.setattr("runner.outputs.atomicfile.sync_folder", die)
        with pytest.raises(Died):
            project.apply()
    assert len(project.records()) == 2
    project.apply()
    assert len(project.jobs()) == 1
    wants_nothing(project)


def test_ctrl_c_saves_and_says_how_to_go_on(project: Any, gbrun: Any, wait_for: Any) -> None:
    project.inputs(8)
    project.faults(timing={"pending_s": 2.0})
    project.spec(shards={"max_requests": 2}, concurrency={"max_jobs": 2})
    child = gbrun.start("apply", "job.yaml", "--auto-approve", cwd=project.folder)
    wait_for(lambda: sum(a["state"] == "submitted" for a in project.attempts()) == 2)
    child.send_signal(signal.SIGINT)
    got = gbrun.finish(child, code=130, timeout_s=20)

    assert "jobs that were submitted go on" in got.stderr
    assert "4 request(s) are in flight" in got.stdout
    assert "Go on with: gbrun apply job.yaml" in got.stdout
    assert len(project.jobs()) == 2
    # The lock is free, and nothing was cancelled.
    project.run("status", "job.yaml", code=3)
    project.apply()
    nothing_twice(project)
    assert project.leftovers() == []
    assert len(project.records()) == 8
    wants_nothing(project)


def test_sigterm_is_143_and_the_second_signal_ends_at_once(project: Any, gbrun: Any, wait_for: Any) -> None:
    project.inputs(2)
    project.faults(timing={"pending_s": 3.0})
    project.spec()
    child = gbrun.start("apply", "job.yaml", "--auto-approve", cwd=project.folder)
    wait_for(lambda: any(a["state"] == "submitted" for a in project.attempts()))
    child.send_signal(signal.SIGTERM)
    gbrun.finish(child, code=143, timeout_s=20)
    assert len(project.jobs()) == 1
    project.apply()
    assert len(project.jobs()) == 1
    assert json.loads((project.state / "state.json").read_bytes())["serial"] >= 3
