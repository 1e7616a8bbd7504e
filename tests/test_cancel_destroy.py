"""`gbrun cancel` and `gbrun destroy`: what is in flight ends, what came back is kept."""

from __future__ import annotations

import gzip
import sqlite3
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from builders import LINEAGE, make_attempt, make_spec, make_state

from runner import cancellation, destruction
from runner.backends.memory import MemoryBackend
from runner.blobs.local import LocalBlobs
from runner.blobs.memory import MemoryBlobs
from runner.decide import Policy
from runner.errors import BackendError, GuardRefused, StateError
from runner.index import Index
from runner.ledger import Ledger
from runner.model import AttemptState, Job, JobState, Request
from runner.results import Judge
from runner.run import Run
from runner.shard import ShardWriter
from runner.specmodel import Destination, ShardLimits
from runner.store import Store

STUCK = {"kind": "stuck_pending", "seconds": 600}


@pytest.fixture
def project(project: Any, cli: Any) -> Any:
    """Its commands run inside this process, which is faster."""
    project.gbrun = cli
    return project


def in_flight(project: Any, times: int = 2) -> None:
    """Four notes in two jobs that stay pending."""
    project.inputs(4)
    project.faults(jobs=[{**STUCK, "times": times}])
    project.spec(shards={"max_requests": 2})
    project.apply("--no-wait", code=3)


def remote(folder: Path) -> dict[str, str]:
    """Display name -> state of every job at the service."""
    with sqlite3.connect(folder / "emulator/emulator.sqlite") as db:
        found = db.execute("SELECT display_name, state FROM jobs").fetchall()
    db.close()
    return dict(found)


def uploads(folder: Path) -> int:
    with sqlite3.connect(folder / "emulator/emulator.sqlite") as db:
        (count,) = db.execute("SELECT count(*) FROM files").fetchone()
    db.close()
    return int(count)


# ---------------------------------------------------------------- cancel


def test_nothing_in_flight(project: Any) -> None:
    project.inputs(1)
    project.spec()
    assert project.run("cancel", "job.yaml").stdout == "Nothing in flight.\n"
    assert not project.state.exists()


def test_cancelled_jobs_leave_rows_to_retry_and_the_destination_alone(project: Any) -> None:
    in_flight(project)
    refused = project.run("cancel", "job.yaml", code=7)
    assert "2 job(s) in flight with 4 request(s):" in refused.stdout
    assert "add --auto-approve" in refused.stderr
    assert set(remote(project.state).values()) == {"PENDING"}

    got = project.run("cancel", "job.yaml", "--auto-approve")
    assert "Requests 4 = 4 missing" in got.stdout
    assert "4 request(s) have no answer" in got.stdout
    assert set(remote(project.state).values()) == {"CANCELLED"}
    assert {attempt["state"] for attempt in project.attempts()} == {"cleaned"}
    assert not (project.folder / "out").exists()
    assert "! 4 retry" in project.plan()
    project.run("cancel", "job.yaml", "--auto-approve")
    project.apply()
    assert len(project.records()) == 4


@pytest.mark.parametrize("count", [1, 2])
def test_a_job_that_ended_meanwhile_is_collected(project: Any, wait_for: Any, count: int) -> None:
    in_flight(project)
    with sqlite3.connect(project.state / "emulator/emulator.sqlite") as db:
        db.execute("UPDATE jobs SET starts_at = 0 WHERE seq <= ?", (count,))
    db.close()

    def ended() -> bool:
        project.run("reconcile", "job.yaml")
        return list(remote(project.state).values()).count("SUCCEEDED") == count

    wait_for(ended)
    got = project.run("cancel", "job.yaml", "--auto-approve")
    if count == 1:
        assert "Requests 4 = 2 missing + 2 ok" in got.stdout
        assert sorted(remote(project.state).values()) == ["CANCELLED", "SUCCEEDED"]
        assert project.records() == []
        project.apply()
    else:
        assert "Requests 4 = 4 ok" in got.stdout
        assert "Rows 4 = 4 ok" in got.stdout
    assert len(project.records()) == 4
    assert len(project.jobs()) == 4 - count
    assert "No changes." in project.plan()


def test_only_what_no_row_wants(project: Any) -> None:
    in_flight(project, times=4)
    former = set(remote(project.state))
    assert "no row wants" in project.run("cancel", "job.yaml", "--superseded", "--auto-approve").stdout
    assert set(remote(project.state).values()) == {"PENDING"}

    project.spec(prompt="Something else about {{ input.text }}?\n")
    project.apply("--no-wait", code=3)
    got = project.run("cancel", "job.yaml", "--superseded", "--auto-approve")
    assert "2 job(s) in flight with 4 request(s):" in got.stdout
    states = remote(project.state)
    assert {states[name] for name in former} == {"CANCELLED"}
    assert {states[name] for name in states.keys() - former} == {"PENDING"}
    assert "4 in flight" in project.plan()


# ---------------------------------------------------------------- destroy


def test_a_state_with_jobs_in_flight_is_put_aside(project: Any) -> None:
    in_flight(project)
    serial = project.root()["serial"]
    refused = project.run("destroy", "job.yaml", code=7)
    assert "2 job(s) in flight with 4 request(s), to be cancelled" in refused.stdout
    assert "2 job(s) and 2 upload(s) to be deleted" in refused.stdout
    assert len(remote(project.state)) == 2
    assert project.root()["serial"] == serial

    project.write("out/notes.jsonl", "mine\n")
    got = project.run("destroy", "job.yaml", "--auto-approve")
    (aside,) = project.state.parent.glob("default-local.destroyed-*")
    assert f"Destroyed. The state lies in .gbrun/notes/{aside.name};" in got.stdout
    assert not project.state.exists()
    assert remote(aside) == {}
    assert uploads(aside) == 0
    assert (project.folder / "out/notes.jsonl").read_text() == "mine\n"
    names = {path.name for path in aside.iterdir()}
    assert {"state.json", "attempts", "outcomes", "shards", "specs"} <= names

    assert "Nothing to destroy" in project.run("destroy", "job.yaml", "--auto-approve").stdout
    assert "+ 4 new" in project.plan()


def test_answers_are_stored_before_their_job_is_deleted(project: Any) -> None:
    project.inputs(2)
    project.spec()
    project.apply()
    # As if killed before anything was collected.
    store = Store(LocalBlobs(project.state), None, "state")
    ((attempt, version),) = store.attempts()
    store.replace_attempt(replace(attempt, state=AttemptState.SUBMITTED), version)
    project.run("destroy", "job.yaml", "--auto-approve")
    (aside,) = project.state.parent.glob("default-local.destroyed-*")
    (kept,) = aside.glob("responses/*.gz")
    assert gzip.decompress(kept.read_bytes()).count(b'"key"') == 2
    assert remote(aside) == {}
    assert len(project.records()) == 2


def test_prevent_destroy_holds_as_it_was_applied_last(project: Any) -> None:
    project.inputs(1)
    project.spec(lifecycle={"prevent_destroy": True})
    project.apply()
    assert "prevent_destroy" in project.run("destroy", "job.yaml", "--auto-approve", code=7).stderr
    project.spec(lifecycle=None)
    refused = project.run("destroy", "job.yaml", "--auto-approve", code=7).stderr
    assert "that was applied last says `lifecycle.prevent_destroy: true`" in refused
    assert len(remote(project.state)) == 1

    # Taken out and applied, though nothing else is to be done: now it may go. And the other way round.
    project.apply()
    assert "No changes." in project.plan()
    project.spec(lifecycle={"prevent_destroy": True})
    assert "job.yaml says" in project.run("destroy", "job.yaml", "--auto-approve", code=7).stderr
    project.apply()
    project.spec(lifecycle={"prevent_destroy": False})
    project.run("destroy", "job.yaml", "--auto-approve", code=7)
    project.apply()
    project.run("destroy", "job.yaml", "--auto-approve")
    assert not project.state.exists()


def test_a_submission_in_doubt_stops_it(project: Any) -> None:
    project.inputs(2)
    project.faults(http=[{"on": "create", "kind": "reset", "times": 1}])
    project.spec()
    project.apply("--no-wait", code=3)
    got = project.run("destroy", "job.yaml", "--auto-approve", code=8)
    assert "gbrun reconcile job.yaml" in got.stderr
    (attempt,) = project.attempts()
    assert attempt["state"] == "posting"
    project.run("reconcile", "job.yaml", "--abandon", attempt["token"])
    project.run("destroy", "job.yaml", "--auto-approve")


def test_the_same_serial_twice_is_two_folders(project: Any) -> None:
    project.inputs(1)
    project.spec()
    for _ in range(2):
        project.apply("--overwrite")
        project.run("destroy", "job.yaml", "--auto-approve")
    names = sorted(path.name for path in project.state.parent.iterdir())
    assert len(names) == 2
    assert names[1] == f"{names[0]}-2"


def test_a_folder_that_holds_a_destination_is_not_put_aside() -> None:
    spec = make_spec(Path("/job"), state=Path("/job/all"), destinations=(Destination(path="all/out.jsonl"),))
    with pytest.raises(GuardRefused, match=r"/job/all/out\.jsonl lies in the state folder"):
        destruction.check_allowed(spec, None)
    with pytest.raises(GuardRefused, match=r"spec\.yaml lies in"):
        destruction.check_allowed(make_spec(Path("/job"), state=Path("/job")), None)
    destruction.check_allowed(make_spec(Path("/job"), state=Path("/job/.gbrun/x")), {"name": "x"})


# ---------------------------------------------------------------- what is deleted


def test_only_what_the_attempts_name_is_deleted() -> None:
    def token(number: int, lineage: str = LINEAGE) -> str:
        return f"gb1-{lineage[:8]}-{number:016x}-a1"

    def job(name: str, display_name: str) -> Job:
        return Job(job_name=name, display_name=display_name, state=JobState.RUNNING)

    attempts = [
        make_attempt(token(1), job_name="batches/1", posted_at=5.0, upload_name="files/1"),
        make_attempt(token(2), job_name="batches/2", state=AttemptState.COLLECTED),
        make_attempt(token(3), state=AttemptState.POSTING, posted_at=5.0, upload_name="files/3"),
        make_attempt(token(4), state=AttemptState.POSTING, posted_at=5.0, upload_name="files/4"),
        make_attempt(token(5), state=AttemptState.PREPARED),
        make_attempt(token(7), state=AttemptState.VOID),
        make_attempt(
            token(6), job_name="batches/6", posted_at=5.0, state=AttemptState.CLEANED, upload_name="files/6"
        ),
    ]
    listing = [
        job("batches/2", "somebody's"),
        job("batches/3", token(3)),
        job("batches/8", token(8)),
        job("batches/9", token(1, "f" * 32)),
        job("batches/11", token(1)),
    ]
    found = destruction.remains(LINEAGE, attempts, listing)
    assert set(found.jobs) == {"batches/1", "batches/3", "batches/6", "batches/11"}
    assert found.uploads == ("files/1", "files/3", "files/4", token(5), token(7))
    assert [attempt.token for attempt in found.doubtful] == [token(4)]


class Died(BaseException):
    """A run that ends at this point, as if killed."""


class World:
    """Three jobs of one state in memory: one running, one ended, one posted with its reply lost."""

    def __init__(self, folder: Path, clock: Any) -> None:
        self.clock, self.folder = clock, folder
        folder.mkdir(parents=True)
        self.store = Store(MemoryBlobs(), None, "state")
        self.service = MemoryBackend(clock, running_s=1000.0)
        writer = ShardWriter(folder, ShardLimits(max_requests=1, max_bytes=10**6))
        for number in range(3):
            writer.add(Request(f"r{number}", b'{"key":"r%d","request":{}}\n' % number))
        self.store.save(make_state(), "")
        self.tokens = []
        for number, shard in enumerate(writer.finish()):
            self.store.put_shard(shard.shard_id, shard.path)
            token = f"gb1-{LINEAGE[:8]}-{shard.shard_id[:16]}-a1"
            upload = self.service.upload(shard.path, name=token, sha256=shard.shard_id)
            job = self.service.create(model="m", upload_name=upload.name, display_name=token)
            attempt = make_attempt(
                token, shard_id=shard.shard_id, upload_name=upload.name, posted_at=1.0, request_count=1
            )
            lost = number == 2
            self.store.create_attempt(
                replace(attempt, state=AttemptState.POSTING)
                if lost
                else replace(attempt, job_name=job.job_name)
            )
            self.tokens.append(token)
            if number == 0:
                clock.sleep(2000)

    def run(self) -> Run:
        found = Run(
            spec=make_spec(),
            store=self.store,
            index=Index(self.store),
            ledger=Ledger(self.store),
            backend=self.service,
            clock=self.clock,
            policy=Policy(
                max_jobs=1, poll_interval_s=30, request_timeout_s=9, settle_s=9, submit=False, wait=False,
                cleanup="inputs",
            ),
            judge=Judge(None),
            on_event=lambda event: None,
            scratch=self.folder,
        )  # fmt: skip
        found.ledger.open()
        return found

    def destroy(self) -> None:
        run = self.run()
        attempts = list(run.ledger.attempts.values())
        found = destruction.remains(LINEAGE, attempts, self.service.jobs())
        assert found.doubtful == ()
        assert destruction.empty(run, found, None)

    def left(self) -> tuple[int, int, set[str]]:
        self.service.fault = None
        states = {str(attempt.state) for attempt, _ in self.store.attempts()}
        uploads = sum(self.service.upload_exists(token) for token in self.tokens)
        return len(list(self.service.jobs())), uploads, states


def test_a_run_that_dies_at_any_call_is_done_again(tmp_path: Path, new_clock: Callable[[], Any]) -> None:
    calm = World(tmp_path / "calm", new_clock())
    steps: list[str] = []
    calm.service.fault = lambda at, args: steps.append(at)
    calm.destroy()
    assert calm.left() == (0, 0, {"cleaned"})
    assert steps.index("output.after") < steps.index("delete.before")
    assert len(steps) > 20

    for moment, step in enumerate(steps):
        world = World(tmp_path / str(moment), new_clock())
        count = [0]

        def fault(at: str, args: Mapping[str, str], moment: int = moment, count: list[int] = count) -> Any:
            count[0] += 1
            return Died() if count[0] == moment + 1 else None

        world.service.fault = fault
        with pytest.raises(Died):
            world.destroy()
        world.service.fault = None
        world.destroy()
        assert world.left() == (0, 0, {"cleaned"}), step
        answers = list(world.store.blobs.list("responses/"))
        assert len(answers) == 1, step


def test_nothing_is_deleted_while_a_job_lives(tmp_path: Path, clock: Any) -> None:
    world = World(tmp_path / "world", clock)
    run = world.run()
    found = destruction.remains(LINEAGE, list(run.ledger.attempts.values()), world.service.jobs())
    with pytest.raises(StateError, match="nothing was deleted"):
        destruction.delete(run, found)
    assert world.left()[:2] == (3, 3)


def test_jobs_that_somebody_deleted_do_not_stop_it(tmp_path: Path, clock: Any) -> None:
    world = World(tmp_path / "world", clock)
    for name in ("batches/memory000001", "batches/memory000002"):
        world.service.delete(name)
    world.destroy()
    assert world.left() == (0, 0, {"abandoned", "cleaned"})


def test_the_wait_ends_with_its_time(tmp_path: Path, clock: Any) -> None:
    world = World(tmp_path / "world", clock)
    running = ["batches/memory000002"]
    before = clock.now()
    assert not cancellation.wait_for_end(world.service, running, clock, 30, 90.0)
    assert 90 <= clock.now() - before < 91
    assert cancellation.wait_for_end(world.service, running, clock, 30, None)

    def forbidden(at: str, args: Mapping[str, str]) -> BaseException:
        return BackendError("403", http_status=403)

    world.service.fault = forbidden
    with pytest.raises(BackendError, match="403"):
        cancellation.wait_for_end(world.service, running, clock, 30, None)


def test_what_was_never_posted_is_given_up(tmp_path: Path, clock: Any) -> None:
    world = World(tmp_path / "world", clock)
    run = world.run()
    first, second, third = world.tokens
    run.ledger.replace(run.ledger.attempts[first], state=AttemptState.PREPARED, job_name="")
    run.ledger.replace(run.ledger.attempts[third], deferred_until=10.0)
    assert cancellation.cancel(run, world.tokens) == (run.ledger.attempts[second].job_name,)
    assert run.ledger.attempts[first].state is AttemptState.VOID
    assert run.ledger.attempts[third].state is AttemptState.VOID
