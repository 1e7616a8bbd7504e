"""`gbrun import`: a lost state rebuilt from the service, and single jobs taken in."""

from __future__ import annotations

import json
import shutil
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from builders import LINEAGE, make_spec, make_state, ok_line

from runner import adoption
from runner.backends import local as local_backend
from runner.backends.gemini import GeminiBackend
from runner.backends.memory import MemoryBackend
from runner.blobs.memory import MemoryBlobs
from runner.clock import Clock
from runner.decide import Policy
from runner.errors import UsageInvalid
from runner.index import Index
from runner.ledger import Ledger
from runner.model import Job, JobState, PlannedShard, Request
from runner.results import Judge
from runner.run import Run
from runner.shard import ShardWriter
from runner.specmodel import ShardLimits
from runner.store import Store


def lose_the_state(project: Any) -> None:
    """All is gone but the service, which for `backend: local` lies in the same folder."""
    kept = project.folder / "service"
    shutil.move(project.state / "emulator", kept)
    shutil.rmtree(project.state)
    project.state.mkdir(parents=True)
    shutil.move(kept, project.state / "emulator")


def jobs_by_name(project: Any) -> dict[str, str]:
    with sqlite3.connect(project.state / "emulator/emulator.sqlite") as db:
        found = db.execute("SELECT display_name, id FROM jobs ORDER BY seq").fetchall()
    db.close()
    return {display: f"batches/{name}" for display, name in found}


@pytest.fixture
def project(project: Any, cli: Any) -> Any:
    """Its commands run inside this process, which is faster."""
    project.gbrun = cli
    return project


@pytest.fixture
def applied(project: Any) -> Any:
    """Five notes in three jobs, all answered."""
    project.inputs(5)
    project.spec(shards={"max_requests": 2})
    project.apply()
    return project


def test_a_job_made_with_inline_requests_by_someone_else(project: Any) -> None:
    """Its answers are inside the job, their keys beside them."""
    project.inputs(3)
    project.spec()
    requests = []
    for number in (1, 2):
        shown = project.run("render", "job.yaml", "--line", "--key", f"inputs/{number:03}.txt").stdout
        line = json.loads(shown)
        requests.append({"request": line["request"], "metadata": {"key": line["key"]}})
    body = {"batch": {"displayName": "by hand", "inputConfig": {"requests": {"requests": requests}}}}
    backend = local_backend.start(project.state / "emulator", None, 10.0)
    assert isinstance(backend, GeminiBackend)
    name = backend._rest.json("post", f"models/{project.settings['model']}:batchGenerateContent", body)[
        "name"
    ]
    while not backend.get(name).state.terminal:
        time.sleep(0.02)
    backend.close()

    got = project.run("import", "job.yaml", name)
    assert "answers 2 request(s) of this spec" in got.stdout
    (attempt,) = project.attempts()
    assert (attempt["outcomes"], attempt["strays"]) == ({"ok": 2}, {})
    assert "+ 1 new" in project.plan()
    project.apply()
    assert len(project.records()) == 3
    assert sum(attempt["request_count"] for attempt in project.attempts()) == 3


# ---------------------------------------------------------------- --scan


def test_a_lost_state_comes_back(applied: Any, gbrun: Any) -> None:
    applied.gbrun = gbrun
    lineage, records, jobs = applied.root()["lineage"], applied.records(), applied.jobs()
    tokens = [attempt["token"] for attempt in applied.attempts()]
    lose_the_state(applied)
    shutil.rmtree(applied.folder / "out")
    assert "+ 5 new" in applied.plan()

    got = applied.run("import", "job.yaml", "--scan")
    assert got.stdout.count("request(s) of this spec") == 3
    assert "Rows 5 = 5 ok\n" in got.stdout
    assert applied.records() == records
    assert applied.jobs() == jobs, "nothing was submitted"
    assert applied.root()["lineage"][:8] == lineage[:8]
    assert applied.root()["lineage"] != lineage
    assert [attempt["token"] for attempt in applied.attempts()] == tokens
    assert "No changes." in applied.plan("--detailed-exitcode", code=0)
    assert "Nothing needs a person." in applied.run("reconcile", "job.yaml").stdout


def test_records_that_are_there_are_known_again_and_others_are_not_overwritten(applied: Any) -> None:
    lose_the_state(applied)
    applied.run("import", "job.yaml", "--scan")
    assert "No changes." in applied.plan()

    lose_the_state(applied)
    applied.write("out/notes.jsonl", '{"mine": 1}\n')
    refused = applied.run("import", "job.yaml", "--scan", code=7)
    assert "out/notes.jsonl exists, and this state did not write it" in refused.stderr
    assert applied.records() == [{"mine": 1}]
    assert len(applied.attempts()) == 3, "what came back is kept all the same"
    assert len(applied.apply("--overwrite").stdout) > 0
    assert len(applied.records()) == 5
    assert len(applied.jobs()) == 3

    lose_the_state(applied)
    applied.write("out/notes.jsonl", "")
    applied.run("import", "job.yaml", "--scan", "--overwrite", "-q")
    assert len(applied.records()) == 5


def test_answers_are_found_though_the_shards_are_others(applied: Any) -> None:
    """An edited input moves no request but its own; the outputs say which they answer."""
    lose_the_state(applied)
    applied.write("inputs/000.txt", "Another note.\n")
    applied.spec(shards={"max_requests": 3})
    got = applied.run("import", "job.yaml", "--scan")
    assert "answers 1 request(s) of this spec" in got.stdout
    assert "1 request(s) have no answer" in got.stdout
    assert "+ 1 new" in applied.plan()
    applied.apply("--overwrite")
    assert len(applied.records()) == 5
    assert len(applied.requests_sent()) == 6


def test_jobs_of_another_prompt_are_left_out(applied: Any) -> None:
    lose_the_state(applied)
    applied.spec(prompt="Something else about {{ input.text }}?\n")
    got = applied.run("import", "job.yaml", "--scan", code=1)
    assert got.stdout.count("answers no request of this spec") == 3
    assert "none of 3 job(s) can be taken in; nothing was changed" in got.stderr
    assert not (applied.state / "state.json").exists()
    assert not applied.attempts()


def test_a_state_that_is_there_is_not_rebuilt(applied: Any) -> None:
    before = applied.root()
    assert "holds a state (serial" in applied.run("import", "job.yaml", "--scan", code=7).stderr
    assert applied.root() == before


def test_of_several_lineages_one_has_to_be_chosen(applied: Any) -> None:
    first = applied.root()["lineage"][:8]
    lose_the_state(applied)
    applied.write("inputs/more.txt", "One more.\n")
    applied.apply("--overwrite")
    second = applied.root()["lineage"][:8]
    lose_the_state(applied)

    asked = applied.run("import", "job.yaml", "--scan", code=64).stderr
    assert "the account has jobs of 2 lineages:" in asked
    assert f"\n  {first}  3 job(s), made 2" in asked
    assert "--lineage" in asked
    wrong = applied.run("import", "job.yaml", "--scan", "--lineage", "abcdef01", code=64).stderr
    assert "no job of the account is of lineage 'abcdef01'" in wrong
    applied.run("import", "job.yaml", "--scan", "--lineage", second)
    assert applied.root()["lineage"][:8] == second
    assert len(applied.attempts()) == 3
    assert "No changes." in applied.plan()


def test_an_account_without_jobs(project: Any) -> None:
    project.inputs(1)
    project.spec()
    got = project.run("import", "job.yaml", "--scan", code=64)
    assert "nothing to rebuild a state from" in got.stderr
    assert not (project.state / "state.json").exists()


def test_a_job_that_still_runs_is_collected_later(project: Any) -> None:
    project.inputs(3)
    project.faults(jobs=[{"kind": "stuck_pending", "seconds": 600, "times": 1}])
    project.spec(shards={"max_requests": 2})
    project.apply("--no-wait", code=3)
    lose_the_state(project)
    got = project.run("import", "job.yaml", "--scan", code=3)
    assert "still in flight. Collect: gbrun wait job.yaml" in got.stdout
    assert project.records() == []
    with sqlite3.connect(project.state / "emulator/emulator.sqlite") as db:
        db.execute("UPDATE jobs SET starts_at = 0")
    db.close()
    project.run("wait", "job.yaml")
    assert len(project.records()) == 3
    assert len(project.jobs()) == 2


def test_an_import_that_dies_before_the_root_is_done_again(
    applied: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    lose_the_state(applied)

    def die(*args: Any) -> str:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Store, "save", die)
        applied.run("import", "job.yaml", "--scan", code=130)
    assert not (applied.state / "state.json").exists()
    assert len(applied.attempts()) == 3
    got = applied.run("import", "job.yaml", "--scan")
    assert got.stdout.count("is known already") == 3
    assert "No changes." in applied.plan()
    assert len(applied.jobs()) == 3


# ---------------------------------------------------------------- one job


def test_a_job_of_another_state_is_taken_in_by_name(applied: Any) -> None:
    """Whatever its name; what is answered here already is not asked of it."""
    former = jobs_by_name(applied)
    lose_the_state(applied)
    shutil.rmtree(applied.folder / "out")
    with sqlite3.connect(applied.state / "emulator/emulator.sqlite") as db:
        db.execute("UPDATE jobs SET display_name = 'by hand ' || seq")
    db.close()
    applied.spec(inputs="inputs/000.txt")
    applied.apply()
    applied.spec(inputs="inputs/*.txt")
    assert "+ 4 new" in applied.plan()

    for number, name in enumerate(former.values()):
        got = applied.run("import", "job.yaml", name)
        assert (
            f"{name}  by hand {number + 1}  answers {1 if number in (0, 2) else 2} request(s)" in got.stdout
        )
    assert "No changes." in applied.plan()
    assert len(applied.records()) == 5
    assert len(applied.jobs()) == 4
    foreign = [attempt for attempt in applied.attempts() if attempt["job_name"] in former.values()]
    assert [attempt["posted_at"] for attempt in foreign] == [0.0] * 3

    again = applied.run("import", "job.yaml", former[next(iter(former))])
    assert "is known already" in again.stdout


def test_a_job_taken_in_where_there_is_no_state_yet_brings_its_lineage(applied: Any) -> None:
    lineage = applied.root()["lineage"][:8]
    name = next(iter(jobs_by_name(applied).values()))
    lose_the_state(applied)
    applied.run("import", "job.yaml", name)
    assert applied.root()["lineage"][:8] == lineage
    assert "+ 3 new" in applied.plan()
    assert "2 unchanged" in applied.plan() or "2 reused" in applied.plan()


def test_what_cannot_be_taken_in_is_said(applied: Any) -> None:
    before, attempts = applied.root(), applied.attempts()
    assert (
        "the service has no job batches/x" in applied.run("import", "job.yaml", "batches/x", code=64).stderr
    )
    assert "name a JOB, or give --scan" in applied.run("import", "job.yaml", code=64).stderr
    assert applied.run("import", "job.yaml", "batches/x", "--scan", code=64)
    assert "add --scan" in applied.run("import", "job.yaml", "b", "--lineage", "1" * 8, code=64).stderr
    assert (applied.root(), applied.attempts()) == (before, attempts)


# ---------------------------------------------------------------- what holds what


@pytest.fixture
def take(tmp_path: Path, clock: Clock) -> Callable[..., Any]:
    """Take a job into an empty state; its output is given as lines."""
    requests = [Request(f"r{n}", b'{"key":"r%d","request":{}}\n' % n) for n in range(5)]
    writer = ShardWriter(tmp_path, ShardLimits(max_requests=2, max_bytes=10**6))
    for request in requests:
        writer.add(request)
    planned = writer.finish()

    def run(job: Job, output: bytes = b"", answered: tuple[str, ...] = ()) -> Any:
        store = Store(MemoryBlobs(), None, "state")
        backend = MemoryBackend(clock)
        backend.output = lambda job: iter([output[:7], output[7:]])  # type: ignore[method-assign]
        work = Run(
            spec=make_spec(),
            store=store,
            index=Index(store),
            ledger=Ledger(store),
            backend=backend,
            clock=clock,
            policy=Policy(
                max_jobs=1, poll_interval_s=1, request_timeout_s=1, settle_s=1, submit=False, wait=False,
                cleanup="keep",
            ),
            judge=Judge(None),
            on_event=lambda event: None,
            scratch=tmp_path,
        )  # fmt: skip
        work.ledger.state = make_state(serial=0)
        folder = tmp_path / f"work-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        adopter = adoption.Adoption(work, planned, lambda key: key in answered, folder)
        try:
            taken = adopter.take(job)
        finally:
            adopter.close()
            work.index.close()
        lines = list(store.shard_lines(taken.attempt.shard_id)) if taken.attempt else []
        return taken, [json.loads(line)["key"] for line in lines]

    run.planned = planned  # type: ignore[attr-defined]
    return run


def made(display_name: str, state: JobState = JobState.SUCCEEDED, output: str = "files/x") -> Job:
    return Job(job_name="batches/1", display_name=display_name, state=state, output_name=output)


def test_a_token_of_a_shard_of_the_spec_is_that_shard(take: Any) -> None:
    shard: PlannedShard = take.planned[1]
    token = f"gb1-{LINEAGE[:8]}-{shard.shard_id[:16]}-a7"
    taken, keys = take(made(token, JobState.RUNNING, ""))
    assert (taken.attempt.token, taken.attempt.number, keys) == (token, 7, ["r2", "r3"])
    assert taken.attempt.posted_at

    taken, keys = take(made(f"gb1-ffffffff-{shard.shard_id[:16]}-a7", JobState.RUNNING, ""))
    assert (taken.attempt.number, taken.attempt.posted_at, keys) == (1, 0.0, ["r2", "r3"])


def test_output_is_joined_by_key_and_put_into_the_order_of_the_spec(take: Any) -> None:
    lines = [
        ok_line("r4", "a"),
        b"null",
        b"",
        b'{"key": 5}',
        b"{broken",
        ok_line("r0", "a"),
        ok_line("rx", "b"),
    ]
    taken, keys = take(made("mine"), b"\n".join([*lines, ok_line("r0", "again")]))
    assert keys == ["r0", "r4"]
    assert (taken.attempt.request_count, taken.attempt.number) == (2, 1)
    taken, keys = take(made("mine"), b"\n".join(lines), answered=("r4",))
    assert keys == ["r0"]
    taken, keys = take(made("mine"), b"\n".join(lines), answered=("r4", "r0"))
    assert (taken.attempt, keys) == (None, [])


def test_a_shard_that_is_answered_in_part_is_asked_only_for_the_rest(take: Any) -> None:
    shard: PlannedShard = take.planned[0]
    token = f"gb1-{LINEAGE[:8]}-{shard.shard_id[:16]}-a1"
    output = ok_line("r0", "a") + b"\n" + ok_line("r1", "a") + b"\n"
    taken, keys = take(made(token), output, answered=("r1",))
    assert keys == ["r0"]
    assert taken.attempt.token != token


@pytest.mark.parametrize(
    ("state", "output", "why"),
    [
        (JobState.RUNNING, "", "is running and no shard of this spec"),
        (JobState.CANCELLED, "", "is cancelled and has no output"),
        (JobState.SUCCEEDED, "files/x", "answers no request of this spec"),
    ],
)
def test_a_job_that_holds_nothing_of_the_spec(take: Any, state: JobState, output: str, why: str) -> None:
    taken, _ = take(made("gb1-01234567-ffffffffffffffff-a1", state, output), ok_line("other", "a"))
    assert taken.attempt is None
    assert why in taken.why


def test_lineages_are_told_apart() -> None:
    names = ["gb1-aaaaaaaa-0000000000000000-a1", "gb1-bbbbbbbb-0000000000000000-a1", "other", "gb1-x"]
    found = adoption.by_lineage(made(name) for name in names)
    assert {lineage: len(jobs) for lineage, jobs in found.items()} == {"aaaaaaaa": 1, "bbbbbbbb": 1}
    assert adoption.choose(found, "bbbbbbbb" + "0" * 24) == "bbbbbbbb"
    assert adoption.choose({"aaaaaaaa": found["aaaaaaaa"]}, None) == "aaaaaaaa"
    for wanted in (None, "cccccccc", ""):
        with pytest.raises(UsageInvalid):
            adoption.choose(found, wanted)
