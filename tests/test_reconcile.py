"""`gbrun reconcile`: what the service shows, held against what the state knows."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import replace
from typing import Any

import pytest
from builders import LINEAGE, make_attempt

from runner import reconcile
from runner.blobs.local import LocalBlobs
from runner.model import AttemptState, Job, JobState
from runner.store import Store

STUCK = [{"kind": "stuck_pending", "seconds": 600}]


@pytest.fixture
def project(project: Any, cli: Any) -> Any:
    """Its commands run inside this process, which is faster."""
    project.gbrun = cli
    return project


def token(number: int, lineage: str = LINEAGE) -> str:
    return f"gb1-{lineage[:8]}-{number:016x}-a1"


def job(name: str, display_name: str, state: JobState = JobState.RUNNING, output: str = "") -> Job:
    return Job(job_name=name, display_name=display_name, state=state, output_name=output)


def in_flight(project: Any, count: int = 2, **faults: Any) -> str:
    """One job in flight; its token."""
    project.inputs(count)
    project.faults(**(faults or {"jobs": STUCK}))
    project.spec()
    project.apply("--no-wait", code=3)
    (attempt,) = project.attempts()
    return str(attempt["token"])


def change(project: Any, name: str, **changes: Any) -> None:
    """Change an attempt as a run that died would have left it."""
    store = Store(LocalBlobs(project.state), None, "state")
    attempt, version = next(found for found in store.attempts() if found[0].token == name)
    store.replace_attempt(replace(attempt, **changes), version)


def job_name(project: Any, display_name: str) -> str:
    with sqlite3.connect(project.state / "emulator/emulator.sqlite") as db:
        (found,) = db.execute("SELECT id FROM jobs WHERE display_name = ?", (display_name,)).fetchone()
    db.close()
    return f"batches/{found}"


def lost(project: Any) -> str:
    """A job that exists, and an attempt that does not know it; the token."""
    found = in_flight(project)
    change(project, found, state=AttemptState.POSTING, job_name="", job_state=None)
    return found


# ---------------------------------------------------------------- the comparison


def test_a_job_is_known_by_its_name_and_an_attempt_by_its_token() -> None:
    known = make_attempt(token(1), job_name="batches/1")
    found = reconcile.compare(LINEAGE, [known], [job("batches/1", token(1)), job("batches/9", "someone's")])
    assert (found.known, found.needs_person) == (1, False)
    assert (found.doubts, found.strangers, found.duplicates, found.hidden) == ((), (), (), ())


@pytest.mark.parametrize(
    ("state", "shown", "needs_person"),
    [
        (AttemptState.POSTING, False, True),
        (AttemptState.POSTING, True, False),
        (AttemptState.ABANDONED, True, False),
        (AttemptState.REFUSED, True, True),
        (AttemptState.VOID, True, True),
    ],
)
def test_a_submission_without_a_job(state: AttemptState, shown: bool, needs_person: bool) -> None:
    attempt = make_attempt(token(1), state=state)
    found = reconcile.compare(LINEAGE, [attempt], [job("batches/1", token(1))] if shown else [])
    assert [(doubt.attempt, len(doubt.jobs)) for doubt in found.doubts] == [(attempt, int(shown))]
    assert found.needs_person is needs_person


def test_a_submission_that_was_put_off_made_no_job_and_is_not_in_doubt() -> None:
    attempt = make_attempt(token(1), state=AttemptState.POSTING, deferred_until=5.0)
    assert not reconcile.compare(LINEAGE, [attempt], []).needs_person
    assert reconcile.compare(LINEAGE, [attempt], [job("batches/1", token(1))]).doubts


@pytest.mark.parametrize(
    ("state", "output", "needs_person"),
    [
        (JobState.RUNNING, "", True),
        (JobState.SUCCEEDED, "files/x", True),
        (JobState.EXPIRED, "files/x", True),
        (JobState.CANCELLED, "", False),
    ],
)
def test_a_job_of_this_lineage_that_the_state_does_not_know(
    state: JobState, output: str, needs_person: bool
) -> None:
    other = job("batches/2", token(2, "f" * 32))
    found = reconcile.compare(LINEAGE, [], [job("batches/1", token(2), state, output), other])
    assert [stranger.job_name for stranger in found.strangers] == ["batches/1"]
    assert found.needs_person is needs_person


def test_a_second_job_and_a_job_that_is_not_shown() -> None:
    first = make_attempt(token(1), job_name="batches/1")
    gone = make_attempt(token(2), job_name="batches/2")
    past = make_attempt(token(3), job_name="batches/3", state=AttemptState.CLEANED)
    jobs = [job("batches/1", token(1)), job("batches/7", token(1))]
    found = reconcile.compare(LINEAGE, [first, gone, past], jobs)
    assert [second.job_name for second in found.duplicates] == ["batches/7"]
    assert found.hidden == (gone,)
    assert found.needs_person


# ---------------------------------------------------------------- the command


def test_nothing_applied_and_nothing_wrong(project: Any, gbrun: Any) -> None:
    project.gbrun = gbrun
    project.inputs(1)
    project.spec()
    assert "nothing has been applied yet" in project.run("reconcile", "job.yaml").stdout
    assert not project.state.exists()
    assert "no submission 'x'" in project.run("reconcile", "job.yaml", "--abandon", "x", code=64).stderr
    project.apply()
    before = project.root()
    got = project.run("reconcile", "job.yaml")
    assert "1 job(s) are known to both" in got.stdout
    assert "Nothing needs a person." in got.stdout
    assert project.root() == before


def test_a_submission_that_made_no_job_is_given_up_by_hand(project: Any) -> None:
    name = in_flight(project, http=[{"on": "create", "kind": "reset", "times": 1}])
    assert project.jobs() == []
    got = project.run("reconcile", "job.yaml", code=8)
    assert f"Ambiguous: {name}  posting, 2 request(s), posted 2" in got.stdout
    assert f"--abandon {name}" in got.stdout

    given_up = project.run("reconcile", "job.yaml", "--abandon", name)
    assert "of the 0 job(s) of the account none is of that name" in given_up.stdout
    assert [attempt["state"] for attempt in project.attempts()] == ["abandoned"]
    project.run("reconcile", "job.yaml", "--abandon", name)
    project.apply()
    assert [display for display, _ in project.jobs()] == [f"{name[:-1]}2"]
    assert len(project.records()) == 2


def test_a_job_that_exists_cannot_be_given_up_and_can_be_adopted(project: Any) -> None:
    name = lost(project)
    made = job_name(project, name)
    got = project.run("reconcile", "job.yaml")
    assert f"{made} (pending" in got.stdout
    assert "the next apply takes it in" in got.stdout

    refused = project.run("reconcile", "job.yaml", "--abandon", name, code=7)
    assert made in refused.stderr
    assert name in refused.stderr
    assert [attempt["state"] for attempt in project.attempts()] == ["posting"]

    for _ in range(2):
        project.run("reconcile", "job.yaml", "--adopt", f"{name}={made}")
    (attempt,) = project.attempts()
    assert (attempt["state"], attempt["job_name"], attempt["adopted"]) == ("submitted", made, True)
    project.run("reconcile", "job.yaml", "--abandon", name, code=7)
    assert len(project.jobs()) == 1


def test_only_the_right_job_is_adopted(project: Any) -> None:
    first = in_flight(project)
    project.write("inputs/more.txt", "One more.\n")
    project.apply("--no-wait", code=3)
    (second,) = {attempt["token"] for attempt in project.attempts()} - {first}
    change(project, second, state=AttemptState.POSTING, job_name="", job_state=None)
    of_first = job_name(project, first)

    taken = project.run("reconcile", "job.yaml", "--adopt", f"{second}={of_first}", code=7).stderr
    assert f"{of_first} is the job of {first}, not of {second}" in taken
    change(project, first, state=AttemptState.POSTING, job_name="", job_state=None)
    other = project.run("reconcile", "job.yaml", "--adopt", f"{second}={of_first}", code=64).stderr
    assert f"is named '{first}', not '{second}'" in other
    missing = project.run("reconcile", "job.yaml", "--adopt", f"{second}=batches/none", code=64).stderr
    assert "the service has no job batches/none" in missing
    unknown = project.run("reconcile", "job.yaml", "--adopt", f"gb1-x={of_first}", code=64).stderr
    assert "the state has no submission 'gb1-x'" in unknown
    project.run("reconcile", "job.yaml", "--adopt", "nonsense", code=64)
    project.run("reconcile", "job.yaml", "--adopt", "a=b", "--abandon", "a", code=64)
    assert {attempt["state"] for attempt in project.attempts()} == {"posting"}


def test_a_job_that_an_older_copy_of_the_state_does_not_know(project: Any) -> None:
    project.settings["shards"] = {"max_requests": 1}
    project.inputs(2)
    project.faults(jobs=[{**STUCK[0], "seconds": 1}])
    project.spec()
    project.apply("--no-wait", code=3)
    gone = sorted(project.state.glob("attempts/*.json"))[0]
    name = json.loads(gone.read_bytes())["token"]
    gone.unlink()

    got = project.run("reconcile", "job.yaml", code=8)
    made = job_name(project, name)
    assert f"Unknown: {name}  {made}" in got.stdout
    assert f"gbrun import job.yaml {made}" in got.stdout
    project.run("import", "job.yaml", made, code=None)
    project.run("wait", "job.yaml", code=None)
    project.apply()
    assert "Nothing needs a person." in project.run("reconcile", "job.yaml").stdout
    assert len(project.jobs()) == 2
    assert len(project.records()) == 2


def test_a_job_that_the_service_no_longer_has(project: Any) -> None:
    name = in_flight(project, jobs=[{**STUCK[0], "times": 1}])
    made = job_name(project, name)
    with sqlite3.connect(project.state / "emulator/emulator.sqlite") as db:
        db.execute("DELETE FROM jobs")
    db.close()
    got = project.run("reconcile", "job.yaml", code=8)
    assert f"Not shown: {name}  {made} is known here and not to the service" in got.stdout
    project.run("reconcile", "job.yaml", "--abandon", name)
    project.apply()
    assert len(project.records()) == 2


def test_an_attempt_that_ended_is_not_in_doubt(project: Any) -> None:
    project.inputs(1)
    project.spec()
    project.apply()
    (attempt,) = project.attempts()
    got = project.run("reconcile", "job.yaml", "--abandon", attempt["token"], code=64)
    assert f"{attempt['token']} is cleaned" in got.stderr
    named = f"{attempt['token']}=batches/other"
    assert "with the job" in project.run("reconcile", "job.yaml", "--adopt", named, code=7).stderr


def test_it_takes_the_lock(project: Any) -> None:
    project.inputs(1)
    project.spec()
    project.apply()
    with LocalBlobs(project.state).lock("lock.json", b'{"operation": "apply"}', 0):
        assert "locked by operation apply" in project.run("reconcile", "job.yaml", code=5).stderr
