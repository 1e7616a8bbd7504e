"""Steps of an apply that make jobs, or find those that may have been made.

Creating a job is not idempotent at the service: what is about to be done is saved before it is
done, and an attempt whose end is unknown is looked for, never repeated blindly.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from runner import decide, parts, statefile
from runner.blobs import BlobExists
from runner.clock import clock_text
from runner.errors import PlanStale, StateChanged, SubmissionDeferred, SubmissionRefused, SubmissionUnknown
from runner.model import Attempt, AttemptState, Job
from runner.render import secrets_of
from runner.run import Run
from runner.sealing import reveal


def void(run: Run, attempt: Attempt) -> None:
    """Give up an attempt that a dead run never posted; what a row wants of it is to be sent again."""
    run.ledger.replace(attempt, state=AttemptState.VOID)
    _send_again(run, attempt)


def prepare(run: Run) -> None:
    """Begin an attempt for the next shard. Raises StateChanged where another run has begun it."""
    shard_id = run.todo[0]
    planned = run.shards.get(shard_id)
    numbers = [a.number for a in run.ledger.attempts.values() if a.shard_id[:16] == shard_id[:16]]
    if planned is not None:
        run.store.put_shard(shard_id, planned.path)
        request_count, byte_count = planned.request_count, planned.byte_count
    else:
        former = next(a for a in run.ledger.attempts.values() if a.shard_id == shard_id)
        request_count, byte_count = former.request_count, former.byte_count
    number = max(numbers, default=0) + 1
    attempt = Attempt(
        token=statefile.token(run.ledger.state.lineage, shard_id, number),
        shard_id=shard_id,
        number=number,
        state=AttemptState.PREPARED,
        model=run.spec.model,
        task=run.spec.task,
        request_count=request_count,
        byte_count=byte_count,
        created_at=run.clock.now(),
    )
    try:
        run.ledger.create(attempt)
    except BlobExists as error:
        raise StateChanged(
            f"another run has begun {attempt.token}", hint="wait for it, then plan again"
        ) from error
    run.todo.pop(0)
    run.mine.add(attempt.token)
    run.wanted.add(attempt.token)


def post(run: Run, attempt: Attempt) -> None:
    """Upload the shard where it is not there yet, then create the job with one POST."""
    known = run.uploads.get(attempt.token) or attempt.upload_name
    if not known or (attempt.deferrals and not run.backend.upload_exists(known)):
        # Uploads vanish after 48 hours, and a quota can hold a submission up for longer.
        known = _upload(run, attempt)
    run.uploads[attempt.token] = known
    attempt = run.ledger.replace(
        attempt,
        state=AttemptState.POSTING,
        upload_name=run.uploads[attempt.token],
        posted_at=run.clock.now(),
        deferred_until=0.0,
    )
    try:
        job = run.backend.create(
            model=attempt.model,
            upload_name=attempt.upload_name,
            display_name=attempt.token,
            task=attempt.task,
        )
    except SubmissionDeferred as error:
        until = decide.defer_until(attempt, run.clock.now())
        run.ledger.replace(
            attempt, deferred_until=until, deferrals=attempt.deferrals + 1, error=error.message
        )
        run.event("deferred", attempt.token, f"{error.message}; posted again at {clock_text(until)}")
    except SubmissionRefused as error:
        run.ledger.replace(attempt, state=AttemptState.REFUSED, error=error.message)
        run.errors.append(error.message)
        run.event("refused", attempt.token, error.message)
    except SubmissionUnknown as error:
        run.ledger.replace(attempt, error=error.message)
        run.looked_at[attempt.token] = 0.0
        run.event("ambiguous", attempt.token, f"{error.message}; looking for the job")
    else:
        _submitted(run, attempt, job, adopted=False)


def _upload(run: Run, attempt: Attempt) -> str:
    hasher = hashlib.sha256()
    secrets = secrets_of(run.spec)
    with tempfile.NamedTemporaryFile(prefix="gbrun-", suffix=".jsonl") as file:
        for line in run.store.shard_lines(attempt.shard_id):
            sent = reveal(line, secrets, run.spec.name) + b"\n"
            hasher.update(sent)
            file.write(sent)
        file.flush()
        upload = run.backend.upload(Path(file.name), name=attempt.token, sha256=hasher.hexdigest())
    return upload.name


def _submitted(run: Run, attempt: Attempt, job: Job, *, adopted: bool) -> None:
    attempt = run.ledger.replace(
        attempt,
        state=AttemptState.SUBMITTED,
        job_name=job.job_name,
        job_state=job.state,
        adopted=adopted,
        error="",
    )
    run.wanted.add(attempt.token)
    run.looked_at[attempt.token] = run.clock.now()
    kind = "adopted" if adopted else "submitted"
    run.event(kind, attempt.token, f"{attempt.request_count:,} requests as {job.job_name}")
    if job.state.terminal:
        run.looked_at[attempt.token] = 0.0


def find(run: Run, attempt: Attempt) -> None:
    """Look for the job of a submission whose end is unknown (a lost reply, or a dead run)."""
    known = {a.job_name for a in run.ledger.attempts.values() if a.job_name and a.state.live}
    found: list[Job] = []
    saw_known = False
    for job in run.backend.jobs():
        saw_known |= job.job_name in known
        if job.display_name == attempt.token:
            found.append(job)
    control = saw_known if known else run.backend.upload_exists(attempt.upload_name)
    verdict = decide.resolve(
        attempt,
        tuple(found),
        control=control,
        knows_a_job=bool(known),
        abandoned_before=_given_up_before(run, attempt),
        policy=run.policy,
        now=run.clock.now(),
    )
    run.looked_at[attempt.token] = run.clock.now()
    match verdict:
        case decide.Adopt(job, others):
            for other in others:
                run.backend.cancel(other.job_name)
                run.event("duplicate", attempt.token, f"{other.job_name} is a second job; cancelled")
            _submitted(run, attempt, job, adopted=True)
        case decide.NotFound(clean_listings):
            if clean_listings != attempt.clean_listings:
                run.ledger.replace(attempt, clean_listings=clean_listings)
        case decide.Abandon():
            run.ledger.replace(attempt, state=AttemptState.ABANDONED)
            run.event("abandoned", attempt.token, "no job was made; to be submitted once more")
            _send_again(run, attempt)
        case decide.Quarantine():
            run.quarantined.add(attempt.token)
            run.event("quarantined", attempt.token, "no job was found for the second time")


def survey(run: Run) -> None:
    """See every job once: those with this state's name that it does not know are reported or adopted.

    They come from a state that was restored from an older copy, or from a job that showed up
    long after it was given up.
    """
    attempts = run.ledger.attempts
    late = False
    prefix = f"gb1-{run.ledger.state.lineage[:8]}-"
    for job in run.backend.jobs():
        token = job.display_name
        if not token.startswith(prefix):
            continue
        known = attempts.get(token)
        if known is None:
            run.event(
                "stranger",
                token,
                f"{job.job_name} carries this state's name and is not known to it;"
                f" gbrun import {run.spec.invocation} {job.job_name} takes it in",
            )
        elif known.state is AttemptState.ABANDONED:
            run.event("late", token, f"{job.job_name} was made after all; what it brings is kept")
            for waiting in _deferred_again(run, known):
                # A 429 made no job, and the one it was to replace is there.
                run.ledger.replace(waiting, state=AttemptState.REFUSED, error=f"{token} has a job after all")
            if _made_again(run, known) and not job.state.terminal:
                run.backend.cancel(job.job_name)
            _submitted(run, known, job, adopted=True)
            late = True
        elif known.job_name and known.job_name != job.job_name and not job.state.terminal:
            run.event("duplicate", token, f"{job.job_name} is a second job; cancelled")
            run.backend.cancel(job.job_name)
    run.surveyed = True
    if late:
        raise PlanStale("a job that was given up is there after all", hint="plan again")


def _send_again(run: Run, attempt: Attempt) -> None:
    """Put a shard back that was not sent. Raises PlanStale where a part of it has been answered since."""
    if attempt.token not in run.wanted:
        return
    run.index.sync(run.ledger.state, run.ledger.attempts.values())
    if any(run.index.stored(request_id) is not None for request_id in _keys(run, attempt)):
        raise PlanStale("a part of what was not sent has been answered meanwhile", hint="plan again")
    run.wanted.discard(attempt.token)
    run.todo.insert(0, attempt.shard_id)


def _made_again(run: Run, given_up: Attempt) -> bool:
    """Whether the shard of an attempt that was given up has been submitted once more."""
    ended = (AttemptState.VOID, AttemptState.REFUSED, AttemptState.ABANDONED)
    return any(
        a.shard_id == given_up.shard_id and a.number > given_up.number and a.state not in ended
        for a in run.ledger.attempts.values()
    )


def _deferred_again(run: Run, given_up: Attempt) -> list[Attempt]:
    return [
        a
        for a in run.ledger.attempts.values()
        if a.shard_id == given_up.shard_id
        and a.number > given_up.number
        and a.state is AttemptState.POSTING
        and a.deferred_until > 0
    ]


def _given_up_before(run: Run, attempt: Attempt) -> bool:
    """Whether any of its requests was in a submission that was given up: twice is for a person."""
    given_up = [
        a
        for a in run.ledger.attempts.values()
        if a.state is AttemptState.ABANDONED and a.token != attempt.token
    ]
    if any(a.shard_id == attempt.shard_id for a in given_up):
        return True
    mine = set(_keys(run, attempt)) if given_up else set()
    return any(not mine.isdisjoint(_keys(run, a)) for a in given_up)


def _keys(run: Run, attempt: Attempt) -> Iterator[str]:
    return map(parts.request_id, run.store.shard_lines(attempt.shard_id))
