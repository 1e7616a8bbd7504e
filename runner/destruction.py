"""The end of a state: what it made at the service is deleted, and its folder is put aside.

Deletes only what the state's attempts name, and only after its output is stored; every step may
be repeated. The folder is renamed, never deleted, and destinations are never touched.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from runner import cancellation, collection, statefile, submission
from runner.errors import BackendError, GuardRefused, StateError
from runner.model import Attempt, AttemptState, Job, Json
from runner.run import Run
from runner.specmodel import Spec

_NOT_FOUND = 404


@dataclass(frozen=True, slots=True, kw_only=True)
class Remains:
    """What a state has at the service."""

    jobs: tuple[str, ...]
    """Names of the jobs that it made."""
    uploads: tuple[str, ...]
    doubtful: tuple[Attempt, ...]
    """Submissions of which nobody knows whether they made a job."""


def remains(lineage: str, attempts: Sequence[Attempt], listing: Iterable[Job]) -> Remains:
    """What the attempts name, completed by the jobs in the listing that carry their names."""
    tokens = {attempt.token for attempt in attempts}
    named = {attempt.job_name for attempt in attempts if attempt.job_name}
    ours = {a.job_name: None for a in attempts if a.job_name and a.posted_at}
    carried = set()
    for job in listing:
        parsed = statefile.parse_token(job.display_name)
        # An import may have brought in a job of somebody else, which stays where it is.
        of_lineage = parsed is not None and parsed.lineage == lineage[:8]
        if of_lineage and (job.display_name in tokens or job.job_name in named):
            ours[job.job_name] = None
            carried.add(job.display_name)
    return Remains(
        jobs=tuple(ours),
        uploads=tuple(
            a.upload_name or a.token
            for a in attempts
            # One that was given up before its request was sent may have uploaded its file all the same.
            if a.state in (AttemptState.PREPARED, AttemptState.VOID)
            or (a.upload_name and a.state is not AttemptState.CLEANED)
        ),
        doubtful=tuple(
            a
            for a in attempts
            if a.state is AttemptState.POSTING and not a.deferred_until and a.token not in carried
        ),
    )


def check_allowed(spec: Spec, applied: Mapping[str, Json] | None) -> None:
    """Raises GuardRefused where the spec applied last (or this one) forbids it, or the folder holds more.

    `applied` is the resolved spec of the last apply, None where it is not known.
    """
    if (applied or {}).get("prevent_destroy"):
        raise GuardRefused(
            f"the spec of {spec.name} that was applied last says `lifecycle.prevent_destroy: true`",
            hint="take it out of the spec, apply that, then destroy",
        )
    if spec.prevent_destroy:
        raise GuardRefused(
            f"{spec.path.name} says `lifecycle.prevent_destroy: true`", hint="take it out of the spec"
        )
    files = [spec.folder / one.path for one in spec.destinations if one.is_file]
    for path in (spec.path, *files):
        if spec.state in Path(os.path.abspath(path)).parents:
            raise GuardRefused(
                f"{path} lies in the state folder {spec.state}, which would be put aside with it",
                hint="move it out of the folder",
            )
    for one in spec.destinations:
        if spec.state_uri is not None and one.path.startswith(f"{spec.state_uri}/"):
            raise GuardRefused(
                f"{one.path} lies in the state {spec.state_uri}, which would be put aside with it",
                hint="choose a destination outside of it, apply that, then destroy",
            )


def empty(run: Run, found: Remains, timeout_s: float | None) -> bool:
    """End what is in flight, keep what it brought, and delete; False where jobs did not end in time."""
    # Jobs that showed up after they were given up hold paid answers too.
    submission.survey(run)
    tokens = [attempt.token for attempt in cancellation.in_flight(run.ledger.attempts.values())]
    names = cancellation.cancel(run, tokens)
    interval_s = run.policy.poll_interval_s
    if not cancellation.wait_for_end(run.backend, names, run.clock, interval_s, timeout_s):
        return False
    collect(run, tokens)
    delete(run, found)
    return True


def collect(run: Run, tokens: Iterable[str]) -> None:
    """Store what jobs that have ended brought. A job that is gone has nothing to store."""
    for token in tokens:
        attempt = run.ledger.attempts[token]
        try:
            if attempt.state is AttemptState.SUBMITTED:
                collection.poll(run, attempt)
        except BackendError as error:
            if error.http_status != _NOT_FOUND:
                raise
            run.ledger.replace(attempt, state=AttemptState.ABANDONED, error=error.message)
        if run.ledger.attempts[token].state is AttemptState.TERMINAL:
            collection.collect(run, run.ledger.attempts[token])


def delete(run: Run, found: Remains) -> None:
    """Delete the remains at the service. Raises StateError where a job's output is not stored yet."""
    live = [attempt for attempt in run.ledger.attempts.values() if attempt.state.live]
    if live:
        raise StateError(
            f"{live[0].token} is still {live[0].state}; nothing was deleted", hint="run destroy again"
        )
    for name in found.uploads:
        run.backend.delete_upload(name)
    for name in found.jobs:
        run.backend.delete(name)
    for attempt in list(run.ledger.attempts.values()):
        if attempt.state is AttemptState.COLLECTED:
            run.ledger.replace(attempt, state=AttemptState.CLEANED)


def archive(folder: Path, serial: int) -> Path:
    """Rename the state folder to `<folder>.destroyed-<serial>` and return its new place."""
    target = folder.with_name(f"{folder.name}.destroyed-{serial}")
    number = 1
    while target.exists():
        # An earlier state of this spec ended with the same serial.
        number += 1
        target = folder.with_name(f"{folder.name}.destroyed-{serial}-{number}")
    try:
        folder.rename(target)
    except OSError as error:
        raise StateError(
            f"cannot rename {folder} to {target}: {error.strerror or error}",
            hint="everything at the service is deleted; mend the cause and run destroy again",
        ) from error
    return target
