"""Ending jobs before their time: which ones, the asking, the wait for their end, and taking in what came.

A job that ended meanwhile is simply collected. Every step may be repeated.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence

from runner import collection, submission
from runner.backends import Backend
from runner.clock import Clock
from runner.errors import BackendError
from runner.model import Attempt, AttemptState
from runner.run import Run

_SLICE_S = 0.25
_NOT_FOUND = 404


def in_flight(attempts: Iterable[Attempt], wanted: Collection[str] = ()) -> tuple[Attempt, ...]:
    """The live attempts; without those of which some row still wants a request (`wanted`, tokens)."""
    return tuple(attempt for attempt in attempts if attempt.state.live and attempt.token not in wanted)


def spend(attempts: Sequence[Attempt]) -> str:
    """What is at stake, in one line."""
    requests = sum(attempt.request_count for attempt in attempts)
    return f"{len(attempts):,} job(s) in flight with {requests:,} request(s)"


def cancel(run: Run, tokens: Collection[str]) -> tuple[str, ...]:
    """Ask for the end of these attempts, and return the names of their jobs.

    One that was never posted is given up; one whose end is unknown is looked for, and stays as it
    is where no job shows.
    """
    for token in tokens:
        attempt = run.ledger.attempts[token]
        if attempt.state is AttemptState.PREPARED or _waits_for_quota(attempt):
            # A 429 made no job, and what is only prepared was never posted.
            submission.void(run, attempt)
        elif attempt.state is AttemptState.POSTING:
            submission.find(run, attempt)
    names = []
    for token in tokens:
        attempt = run.ledger.attempts[token]
        if attempt.state is AttemptState.SUBMITTED:
            _unless_gone(lambda name=attempt.job_name: run.backend.cancel(name))  # type: ignore[misc]
            names.append(attempt.job_name)
    return tuple(names)


def wait_for_end(
    backend: Backend, job_names: Iterable[str], clock: Clock, poll_interval_s: float, timeout_s: float | None
) -> bool:
    """Wait until these jobs have ended; False where the time was up before. Changes nothing."""
    until = None if timeout_s is None else clock.now() + timeout_s
    for name in job_names:
        while not _ended(backend, name):
            due = clock.now() + poll_interval_s
            while clock.now() < due:
                if until is not None and clock.now() >= until:
                    return False
                clock.sleep(min(_SLICE_S, due - clock.now()))
    return True


def collect_ended(run: Run, tokens: Collection[str]) -> None:
    """Store what the jobs of these attempts brought, as far as they have ended."""
    for token in tokens:
        if run.ledger.attempts[token].state is AttemptState.SUBMITTED:
            collection.poll(run, run.ledger.attempts[token])
        if run.ledger.attempts[token].state is AttemptState.TERMINAL:
            collection.collect(run, run.ledger.attempts[token])
        if run.ledger.attempts[token].state is AttemptState.COLLECTED and run.policy.cleanup != "keep":
            collection.clean(run, run.ledger.attempts[token])


def _waits_for_quota(attempt: Attempt) -> bool:
    return attempt.state is AttemptState.POSTING and attempt.deferred_until > 0.0


def _ended(backend: Backend, job_name: str) -> bool:
    try:
        return backend.get(job_name).state.terminal
    except BackendError as error:
        if error.http_status != _NOT_FOUND:
            raise
        return True


def _unless_gone(act: Callable[[], None]) -> None:
    try:
        act()
    except BackendError as error:
        if error.http_status != _NOT_FOUND:
            raise
