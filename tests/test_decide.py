"""What an apply does next: one step for each situation, and an end to every run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from builders import make_attempt, make_job
from hypothesis import given
from hypothesis import strategies as st

from runner.decide import (
    Abandon,
    Adopt,
    Clean,
    Collect,
    Done,
    Find,
    NotFound,
    Policy,
    Poll,
    Post,
    Prepare,
    Quarantine,
    Situation,
    Sleep,
    Void,
    decide,
    defer_until,
    resolve,
)
from runner.model import Attempt, AttemptState, Job, JobState

NOW = 10_000.0
S = AttemptState


def make_policy(**changes: Any) -> Policy:
    values: dict[str, Any] = {
        "max_jobs": 2,
        "poll_interval_s": 30.0,
        "request_timeout_s": 120.0,
        "settle_s": 60.0,
        "submit": True,
        "wait": True,
        "cleanup": "inputs",
    }
    return Policy(**{**values, **changes})


def situation(*attempts: Attempt, **changes: Any) -> Situation:
    """Everything wanted and mine, looked at just now, unless said otherwise."""
    tokens = frozenset(a.token for a in attempts)
    values: dict[str, Any] = {
        "attempts": attempts,
        "mine": tokens,
        "wanted": tokens,
        "todo": 0,
        "looked_at": dict.fromkeys(tokens, NOW),
        "quarantined": frozenset(),
        "halted": False,
    }
    return Situation(**{**values, **changes})


def at(state: AttemptState, token: str = "t", **changes: Any) -> Attempt:
    return make_attempt(token, state=state, **changes)


NONE: frozenset[str] = frozenset()
LONG_AGO = {"t": NOW - 30}
TABLE: list[tuple[str, Situation, dict[str, Any], Any]] = [
    ("nothing", situation(), {}, Done(complete=True)),
    ("something to send", situation(todo=1), {}, Prepare()),
    ("something to send, only collecting", situation(todo=1), {"submit": False}, Done(complete=False)),
    ("refused before", situation(todo=1, halted=True), {}, Done(complete=False)),
    ("refused, nothing left", situation(halted=True), {}, Done(complete=False)),
    ("mine, prepared", situation(at(S.PREPARED)), {}, Post("t")),
    ("a stranger's, prepared", situation(at(S.PREPARED), mine=NONE), {}, Void("t")),
    ("a stranger's, prepared, halted", situation(at(S.PREPARED), mine=NONE, halted=True), {}, Void("t")),
    ("a stranger's, only collecting", situation(at(S.PREPARED), mine=NONE), {"submit": False}, Void("t")),
    ("posted, unknown end", situation(at(S.POSTING), looked_at={}), {}, Find("t")),
    ("posted, just looked", situation(at(S.POSTING)), {}, Sleep(NOW + 30)),
    ("posted, just looked, no waiting", situation(at(S.POSTING)), {"wait": False}, Done(complete=False)),
    ("posted, looked a while ago", situation(at(S.POSTING), looked_at=LONG_AGO), {}, Find("t")),
    (
        "posted by another, only collecting",
        situation(at(S.POSTING), mine=NONE, looked_at={}),
        {"submit": False},
        Find("t"),
    ),
    ("creates are serial", situation(at(S.POSTING), todo=3), {}, Sleep(NOW + 30)),
    ("pushed back, not yet", situation(at(S.POSTING, deferred_until=NOW + 5), todo=1), {}, Sleep(NOW + 5)),
    ("pushed back, now", situation(at(S.POSTING, deferred_until=NOW), todo=1), {}, Post("t")),
    (
        "pushed back, only collecting",
        situation(at(S.POSTING, deferred_until=NOW)),
        {"submit": False},
        Done(complete=False),
    ),
    (
        "pushed back, halted",
        situation(at(S.POSTING, deferred_until=NOW), halted=True),
        {},
        Done(complete=False),
    ),
    ("quarantined", situation(at(S.POSTING), quarantined=frozenset("t")), {}, Done(complete=False)),
    (
        "quarantined, more to send",
        situation(at(S.POSTING), quarantined=frozenset("t"), todo=1),
        {},
        Prepare(),
    ),
    (
        "superseded jobs hold all slots, no waiting",
        situation(at(S.SUBMITTED), wanted=NONE, todo=1),
        {"max_jobs": 1, "wait": False},
        Done(complete=False),
    ),
    ("running, just looked", situation(at(S.SUBMITTED)), {}, Sleep(NOW + 30)),
    ("running, looked a while ago", situation(at(S.SUBMITTED), looked_at=LONG_AGO), {}, Poll("t")),
    ("running, no waiting", situation(at(S.SUBMITTED)), {"wait": False}, Done(complete=False)),
    ("running, more to send", situation(at(S.SUBMITTED), todo=1), {}, Prepare()),
    ("as many as may run", situation(at(S.SUBMITTED), at(S.SUBMITTED, "u"), todo=1), {}, Sleep(NOW + 30)),
    (
        "as many as may run, no waiting",
        situation(at(S.SUBMITTED), todo=1),
        {"wait": False, "max_jobs": 1},
        Done(complete=False),
    ),
    ("running, nobody wants it", situation(at(S.SUBMITTED), wanted=NONE), {}, Done(complete=True)),
    (
        "running, nobody wants it, not looked at",
        situation(at(S.SUBMITTED), wanted=NONE, looked_at={}),
        {},
        Poll("t"),
    ),
    ("finished", situation(at(S.TERMINAL), todo=1), {}, Collect("t")),
    ("finished, halted", situation(at(S.TERMINAL), halted=True), {}, Collect("t")),
    (
        "finished, another's, only collecting",
        situation(at(S.TERMINAL), mine=NONE, wanted=NONE),
        {"submit": False},
        Collect("t"),
    ),
    ("collected", situation(at(S.COLLECTED), todo=1), {}, Clean("t")),
    ("collected, kept", situation(at(S.COLLECTED)), {"cleanup": "keep"}, Done(complete=True)),
    ("cleaned", situation(at(S.CLEANED)), {}, Done(complete=True)),
    (
        "ends without a job",
        situation(at(S.VOID), at(S.REFUSED, "u"), at(S.ABANDONED, "v")),
        {},
        Done(complete=True),
    ),
    ("strangers first", situation(at(S.TERMINAL), at(S.PREPARED, "u"), mine=NONE), {}, Void("u")),
    ("results before new jobs", situation(at(S.TERMINAL), at(S.PREPARED, "u")), {}, Collect("t")),
    ("jobs before looking", situation(at(S.SUBMITTED), at(S.PREPARED, "u"), looked_at={}), {}, Post("u")),
]


@pytest.mark.parametrize(
    ("seen", "policy", "step"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE]
)
def test_steps(seen: Situation, policy: dict[str, Any], step: Any) -> None:
    assert decide(seen, make_policy(**policy), NOW) == step


def test_a_slot_that_a_superseded_job_holds_is_waited_for() -> None:
    seen = situation(at(S.SUBMITTED), at(S.SUBMITTED, "u"), wanted=NONE, todo=1)

    assert decide(seen, make_policy(), NOW) == Sleep(NOW + 30)


# ---------------------------------------------------------------- every run ends


def simulate(shards: int, jobs: list[int], answers: list[str], policy: Policy) -> list[Any]:
    """Follow the steps against a small service; `jobs` says how many polls a job takes."""
    attempts: dict[str, Attempt] = {}
    looked: dict[str, float] = {}
    polls: dict[str, int] = {}
    todo, now, number, steps = shards, NOW, 0, []
    halted = False
    for _ in range(1000):
        seen = Situation(
            attempts=tuple(attempts.values()),
            mine=frozenset(attempts),
            wanted=frozenset(attempts),
            todo=todo,
            looked_at=dict(looked),
            quarantined=NONE,
            halted=halted,
        )
        step = decide(seen, policy, now)
        assert step == decide(seen, policy, now)
        steps.append(step)
        match step:
            case Done():
                return steps
            case Sleep(until):
                assert until > now
                now = until
            case Prepare():
                number, todo = number + 1, todo - 1
                token = f"t{number}"
                attempts[token] = make_attempt(token, state=S.PREPARED)
            case Post(token):
                attempt = attempts[token] = replace(attempts[token], state=S.POSTING, deferred_until=0.0)
                answer = answers.pop() if answers else "ok"
                if answer == "429":
                    until = defer_until(attempt, now)
                    attempts[token] = replace(attempt, deferred_until=until, deferrals=attempt.deferrals + 1)
                elif answer == "400":
                    attempts[token] = replace(attempt, state=S.REFUSED)
                    halted = True
                elif answer == "ok":
                    attempts[token] = replace(attempt, state=S.SUBMITTED)
                    looked[token] = now
            case Find(token):
                looked[token] = now
                attempts[token] = replace(attempts[token], state=S.SUBMITTED)
            case Poll(token):
                looked[token] = now
                polls[token] = polls.get(token, 0) + 1
                if polls[token] >= jobs[int(token[1:]) % len(jobs)]:
                    attempts[token] = replace(attempts[token], state=S.TERMINAL)
            case Collect(token):
                attempts[token] = replace(attempts[token], state=S.COLLECTED)
            case Clean(token):
                attempts[token] = replace(attempts[token], state=S.CLEANED)
            case _:
                raise AssertionError(step)
        in_flight = [a for a in attempts.values() if a.state in (S.POSTING, S.SUBMITTED)]
        assert len(in_flight) <= policy.max_jobs
    raise AssertionError("no end")


@given(
    st.integers(0, 6),
    st.lists(st.integers(1, 4), min_size=1, max_size=3),
    st.lists(st.sampled_from(["ok", "429", "lost", "400"]), max_size=6),
    st.builds(
        make_policy,
        max_jobs=st.integers(1, 3),
        cleanup=st.sampled_from(["keep", "inputs", "all"]),
        wait=st.booleans(),
    ),
)
def test_every_run_makes_progress_to_an_end(
    shards: int, jobs: list[int], answers: list[str], policy: Policy
) -> None:
    refused = "400" in answers
    steps = simulate(shards, jobs, answers, policy)

    if policy.wait and not refused:
        assert steps[-1] == Done(complete=True)
        assert sum(isinstance(s, Prepare) for s in steps) == shards
        assert sum(isinstance(s, Collect) for s in steps) == shards
    if not policy.wait:
        assert not any(isinstance(s, Sleep) for s in steps)


# ---------------------------------------------------------------- pushed back


@pytest.mark.parametrize(
    ("deferrals", "minutes"), [(0, 1), (1, 2), (2, 4), (3, 8), (4, 15), (9, 15), (1000, 15)]
)
def test_a_429_is_waited_out_in_minutes(deferrals: int, minutes: int) -> None:
    assert defer_until(make_attempt(deferrals=deferrals), NOW) == NOW + 60 * minutes


# ---------------------------------------------------------------- an unknown end

POSTED = make_attempt(state=S.POSTING, posted_at=1000.0)
SETTLED = 1000.0 + 120.0 + 60.0


def verdict(now: float, *found: Job, clean: int = 0, **changes: Any) -> Any:
    values: dict[str, Any] = {"control": True, "knows_a_job": True, "abandoned_before": False}
    attempt = replace(POSTED, clean_listings=clean)
    return resolve(attempt, found, **{**values, **changes}, policy=make_policy(), now=now)


@pytest.mark.parametrize("now", [1000.0, SETTLED + 999])
@pytest.mark.parametrize("control", [True, False])
def test_a_job_that_is_found_is_adopted_at_any_time(now: float, control: bool) -> None:
    job = make_job()

    assert verdict(now, job, control=control, clean=1) == Adopt(job, ())


@pytest.mark.parametrize(
    ("states", "kept"),
    [
        (["pending", "running"], "running"),
        (["running", "succeeded", "pending"], "succeeded"),
        (["failed", "pending"], "pending"),
        (["cancelled", "expired"], "expired"),
        (["failed", "expired"], "expired"),
        (["partially_succeeded", "running"], "partially_succeeded"),
        (["cancelled", "cancelling", "failed"], "cancelling"),
    ],
)
def test_of_several_jobs_the_furthest_along_is_kept(states: list[str], kept: str) -> None:
    jobs = [make_job(f"batches/{n}", JobState(state)) for n, state in enumerate(states)]
    found = verdict(SETTLED, *jobs)

    assert isinstance(found, Adopt)
    assert found.job.state == kept
    assert sorted(j.job_name for j in (found.job, *found.others)) == [j.job_name for j in jobs]
    assert verdict(SETTLED, *reversed(jobs)) == found


def test_of_two_alike_the_choice_does_not_depend_on_the_listing() -> None:
    one, two = make_job("batches/1"), make_job("batches/2")

    assert verdict(SETTLED, two, one) == verdict(SETTLED, one, two) == Adopt(one, (two,))


def test_every_state_of_a_job_can_be_ranked() -> None:
    for state in JobState:
        assert isinstance(verdict(SETTLED, make_job(state=state)), Adopt)


@pytest.mark.parametrize(
    ("now", "changes", "expected"),
    [
        (SETTLED - 1, {}, NotFound(0)),
        (SETTLED - 1, {"clean": 1}, NotFound(1)),
        (SETTLED, {}, NotFound(1)),
        (SETTLED, {"control": False}, NotFound(0)),
        (SETTLED + 9e9, {"control": False, "clean": 1}, NotFound(1)),
        (SETTLED, {"clean": 1}, Abandon()),
        (SETTLED, {"clean": 1, "abandoned_before": True}, Quarantine()),
        (SETTLED, {"clean": 0, "abandoned_before": True}, NotFound(1)),
        (SETTLED, {"clean": 1, "knows_a_job": False}, NotFound(1)),
        (SETTLED + 60, {"knows_a_job": False}, NotFound(1)),
        (SETTLED + 60, {"clean": 1, "knows_a_job": False}, Abandon()),
    ],
)
def test_nothing_found(now: float, changes: dict[str, Any], expected: Any) -> None:
    assert verdict(now, **changes) == expected
