"""Carrying plans out: a job's store, index and backend put to work under the state's lock.

Apart from `job`, so that a plan loads nothing of what only an apply needs.
"""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from runner import principal
from runner import spec as specfile
from runner.apply import Apply, Result, Stop
from runner.backends import Backend
from runner.cli.job import Job
from runner.clock import SystemClock, clock_text
from runner.decide import Policy
from runner.ledger import Ledger
from runner.model import Plan
from runner.results import Judge
from runner.run import Event, Run


@contextmanager
def locked(
    job: Job, operation: str, on_event: Callable[[Event], None], *, lock_timeout_s: float
) -> Iterator[Run]:
    """What the steps of an apply work with, under the lock, for commands that take single steps.

    Submits nothing and waits for nothing. Raises StateLocked, and StateForeign for another endpoint
    while submissions are in flight.
    """
    backend, clock = job.backend(), SystemClock()
    with (
        job.store.lock(operation, clock_text(clock.now()), lock_timeout_s),
        tempfile.TemporaryDirectory(prefix="gbrun-") as scratch,
    ):
        steps = Run(
            spec=job.spec,
            store=job.store,
            index=job.index,
            ledger=Ledger(job.store),
            backend=backend,
            clock=clock,
            policy=_policy(job, backend, submit=False, wait=False),
            judge=Judge.of(job.spec),
            on_event=on_event,
            scratch=Path(scratch),
        )
        steps.ledger.open()
        if steps.ledger.exists:
            live = any(attempt.state.live for attempt in steps.ledger.attempts.values())
            warning = principal.check(steps.ledger.state.principal, backend.principal, live=live)
            if warning:
                steps.event("principal", "", warning)
        yield steps


def _policy(
    job: Job,
    backend: Backend,
    *,
    submit: bool,
    wait: bool,
    max_jobs: int | None = None,
    retry: str = "transient",
) -> Policy:
    settings = job.spec.backend
    return Policy(
        max_jobs=max_jobs or job.spec.max_jobs,
        poll_interval_s=settings.poll_interval_s or backend.poll_interval_s,
        request_timeout_s=settings.request_timeout_s,
        settle_s=settings.settle_s,
        max_enqueued_tokens=job.spec.max_enqueued_tokens,
        retry=retry != "none",
        stall_after_s=settings.stall_after_s,
        submit=submit,
        wait=wait,
        cleanup=job.spec.cleanup,
    )


def run(
    job: Job,
    made: Plan,
    backend: Backend,
    *,
    submit: bool,
    wait: bool,
    stop: Stop,
    on_event: Callable[[Event], None],
    lock_timeout_s: float,
    max_jobs: int | None = None,
    retry: str = "transient",
    overwrite: bool = False,
) -> Result:
    """Carry a plan out."""
    policy = _policy(job, backend, submit=submit, wait=wait, max_jobs=max_jobs, retry=retry)
    return Apply(
        spec=job.spec,
        resolved=specfile.resolved(job.spec),
        plan=made,
        store=job.store,
        index=job.index,
        backend=backend,
        clock=SystemClock(),
        policy=policy,
        new_lineage=lambda: uuid.uuid4().hex,
        on_event=on_event,
        stop=stop,
        lock_timeout_s=lock_timeout_s,
        overwrite=overwrite,
    ).run()
