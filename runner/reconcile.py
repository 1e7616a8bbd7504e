"""What the service shows of a state's jobs, held against what the state knows; a person's word on the rest.

`compare` is pure. `adopt` and `abandon` record what a person says, after looking whether it can be.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from runner import statefile
from runner.clock import clock_text
from runner.errors import BackendError, GuardRefused, UsageInvalid
from runner.model import Attempt, AttemptState, Job
from runner.run import Run

_NOT_FOUND = 404
_WITHOUT_JOB = frozenset(
    {AttemptState.POSTING, AttemptState.ABANDONED, AttemptState.REFUSED, AttemptState.VOID}
)


@dataclass(frozen=True, slots=True)
class Doubt:
    """A submission without a job in the state, and the jobs that carry its token."""

    attempt: Attempt
    jobs: tuple[Job, ...]

    @property
    def needs_person(self) -> bool:
        """Whether the next apply cannot settle it by what is seen now."""
        if self.attempt.state is AttemptState.POSTING:
            return not self.jobs
        return self.attempt.state is not AttemptState.ABANDONED


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Where state and service differ."""

    known: int
    """Jobs that both know."""
    doubts: tuple[Doubt, ...]
    strangers: tuple[Job, ...]
    """Jobs with a token of this lineage that no attempt has."""
    duplicates: tuple[Job, ...]
    """Second jobs of a token whose first one the state knows."""
    hidden: tuple[Attempt, ...]
    """Live attempts whose job the listing does not show."""

    @property
    def needs_person(self) -> bool:
        """Whether something is left that no apply settles by itself."""
        return (
            any(doubt.needs_person for doubt in self.doubts)
            or any(not _brought_nothing(job) for job in self.strangers)
            or bool(self.hidden)
        )


def compare(lineage: str, attempts: Sequence[Attempt], jobs: Iterable[Job]) -> Comparison:
    """The differences between attempts and a full listing."""
    by_token = {attempt.token: attempt for attempt in attempts}
    names = {attempt.job_name for attempt in attempts if attempt.job_name}
    carried: dict[str, list[Job]] = {}
    seen: set[str] = set()
    strangers, duplicates = [], []
    for job in jobs:
        parsed = statefile.parse_token(job.display_name)
        if job.job_name in names:
            seen.add(job.job_name)
        elif parsed is None or parsed.lineage != lineage[:8]:
            continue
        elif job.display_name not in by_token:
            strangers.append(job)
        elif by_token[job.display_name].job_name:
            duplicates.append(job)
        else:
            carried.setdefault(job.display_name, []).append(job)
    doubts = [
        Doubt(attempt, tuple(carried.get(attempt.token, ())))
        for attempt in attempts
        if attempt.token in carried or (attempt.state is AttemptState.POSTING and not attempt.deferred_until)
    ]
    return Comparison(
        known=len(seen),
        doubts=tuple(doubts),
        strangers=tuple(strangers),
        duplicates=tuple(duplicates),
        hidden=tuple(a for a in attempts if a.state.live and a.job_name and a.job_name not in seen),
    )


def lines(found: Comparison, spec_name: str) -> list[str]:
    """A comparison for people, with the next step of each difference."""
    again = f"gbrun reconcile {spec_name}"
    out = []
    for doubt in found.doubts:
        token, count = doubt.attempt.token, doubt.attempt.request_count
        out.append(f"Ambiguous: {token}  {doubt.attempt.state}, {count:,} request(s), {_when(doubt.attempt)}")
        out += [f"    {_job(job)} carries its name" for job in doubt.jobs]
        if not doubt.jobs:
            out.append("    no job carries its name; an apply looks for it as long as it may still show up")
            out.append(f"    if a job was made:  {again} --adopt {token}=JOB")
            out.append(f"    if none was made:   {again} --abandon {token}")
        elif doubt.needs_person:
            out.append(f"    take it in:  {again} --adopt {token}={doubt.jobs[0].job_name}")
        else:
            out.append(f"    the next apply takes it in (gbrun apply {spec_name})")
    for job in found.strangers:
        out.append(f"Unknown: {job.display_name}  {_job(job)} is of this state, which does not know it")
        if _brought_nothing(job):
            out.append("    it brought nothing; nothing is to be done")
        else:
            out.append(f"    take in what it brings:  gbrun import {spec_name} {job.job_name}")
    for job in found.duplicates:
        words = "it has ended" if job.state.terminal else "the next apply cancels it"
        out.append(f"Second job: {job.display_name}  {_job(job)}; {words}")
    for attempt in found.hidden:
        out.append(f"Not shown: {attempt.token}  {attempt.job_name} is known here and not to the service")
        out.append(f"    if it is gone for good:  {again} --abandon {attempt.token}")
    out.append(f"{found.known:,} job(s) are known to both the state and the service.")
    if not found.needs_person:
        out.append("Nothing needs a person.")
    return out


def adopt(run: Run, token: str, job_name: str) -> Job:
    """Record a job as that of an attempt; the next apply collects it.

    Raises:
        UsageInvalid: there is no such attempt or job, or the job carries another name.
        GuardRefused: the attempt has a job, or the job belongs to another attempt.
    """
    attempt = _attempt(run, token)
    if attempt.job_name == job_name:
        return run.backend.get(job_name)
    if attempt.state not in _WITHOUT_JOB:
        raise GuardRefused(
            f"{token} is {attempt.state}, with the job {attempt.job_name or '(none yet)'}",
            hint="only a submission without a job can be given one",
        )
    owner = next((a.token for a in run.ledger.attempts.values() if a.job_name == job_name), None)
    if owner is not None:
        raise GuardRefused(f"{job_name} is the job of {owner}, not of {token}", hint="name another job")
    try:
        job = run.backend.get(job_name)
    except BackendError as error:
        if error.http_status != _NOT_FOUND:
            raise
        raise UsageInvalid(
            f"the service has no job {job_name}", hint="the list without options shows what there is"
        ) from error
    if job.display_name != token:
        raise UsageInvalid(
            f"the job {job_name} is named {job.display_name!r}, not {token!r}: it was made for another",
            hint=f"gbrun import {run.spec.invocation} {job_name} takes in whatever it answers of this spec",
        )
    run.ledger.replace(
        attempt,
        state=AttemptState.SUBMITTED,
        job_name=job.job_name,
        job_state=job.state,
        adopted=True,
        deferred_until=0.0,
        error="",
    )
    return job


def abandon(run: Run, token: str) -> int:
    """Record that an attempt has no job; returns how many jobs were looked through.

    Raises:
        UsageInvalid: there is no such attempt, or it is not in doubt.
        GuardRefused: a job of that name, or the attempt's own job, exists.
    """
    attempt = _attempt(run, token)
    if attempt.state is AttemptState.ABANDONED:
        return 0
    if attempt.state not in (AttemptState.POSTING, AttemptState.SUBMITTED, AttemptState.TERMINAL):
        raise UsageInvalid(f"{token} is {attempt.state}: there is nothing to give up")
    count = 0
    for job in run.backend.jobs():
        count += 1
        if token == job.display_name or job.job_name == attempt.job_name:
            raise _exists(run, token, job)
    if attempt.job_name:
        try:
            raise _exists(run, token, run.backend.get(attempt.job_name))
        except BackendError as error:
            if error.http_status != _NOT_FOUND:
                raise
    run.ledger.replace(
        attempt, state=AttemptState.ABANDONED, deferred_until=0.0, error="given up by hand: no job was found"
    )
    return count


def _exists(run: Run, token: str, job: Job) -> GuardRefused:
    return GuardRefused(
        f"the job {job.job_name} of {token} exists ({job.state}); to give it up may mean to pay twice",
        hint=f"gbrun apply {run.spec.invocation} takes it in, gbrun cancel {run.spec.invocation} ends it",
    )


def _attempt(run: Run, token: str) -> Attempt:
    attempt = run.ledger.attempts.get(token)
    if attempt is None:
        raise UsageInvalid(
            f"the state has no submission {token!r}", hint=f"gbrun reconcile {run.spec.invocation} lists them"
        )
    return attempt


def _brought_nothing(job: Job) -> bool:
    return job.state.terminal and not job.output_name


def _job(job: Job) -> str:
    made = f", made {job.create_time}" if job.create_time else ""
    return f"{job.job_name} ({job.state}{made})"


def _when(attempt: Attempt) -> str:
    return f"posted {clock_text(attempt.posted_at)}" if attempt.posted_at else "never posted"
