"""`gbrun apply`, and the run that `gbrun wait` shares with it."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from runner.cli.options import Duration, pick_spec, spec_options
from runner.errors import Exit, GuardRefused, PlanStale

if TYPE_CHECKING:
    from runner.apply import Result, Stop
    from runner.cli.job import Job
    from runner.model import Plan

_REPLANS = 5


@click.command("apply")
@spec_options
@click.option("--auto-approve", is_flag=True, help="Do not ask.")
@click.option("--no-wait", is_flag=True, help="Submit and return; apply again to collect.")
@click.option("--wait-timeout", type=Duration(), help="Return after this long (90s, 5m, 2h).")
@click.option("--lock-timeout", type=Duration(), default=0.0, help="Wait this long for the state's lock.")
@click.option("--parallelism", type=click.IntRange(min=1), help="Jobs at once, instead of the spec's.")
@click.option("--overwrite", is_flag=True, help="Replace a destination that this state never wrote.")
@click.option("-q", "--quiet", is_flag=True, help="Say only what needs attention.")
def command(
    auto_approve: bool,
    no_wait: bool,
    wait_timeout: float | None,
    lock_timeout: float,
    parallelism: int | None,
    overwrite: bool,
    quiet: bool,
    **given: Any,
) -> int:
    """Make SPEC so: submit what the plan shows, wait, collect, write the records.

    Safe to repeat and to interrupt: what was submitted is found again, and nothing that has a
    result is sent twice.
    """
    from runner import view
    from runner.cli import terminal
    from runner.cli.job import Job

    with Job(writes=True, **pick_spec(given)) as job:
        made = job.plan()
        terminal.show_lines(view.plan(job.spec, made, state_label=job.state_label))
        if made.refusals:
            return Exit.REFUSED
        refuse_foreign(job, made, overwrite)
        if not made.has_changes:
            return _settled_code(job, made)
        approve(auto_approve)
        return carry_out(
            job,
            made,
            submit=True,
            wait=not no_wait,
            wait_timeout_s=wait_timeout,
            lock_timeout_s=lock_timeout,
            max_jobs=parallelism,
            quiet=quiet,
        )


def approve(auto_approve: bool) -> None:
    """Ask on a terminal. Raises GuardRefused without one, or where the answer is no."""
    if auto_approve:
        return
    if not sys.stdin.isatty():
        raise GuardRefused("nobody can be asked without a terminal", hint="add --auto-approve")
    if not click.confirm("Apply?", err=True):
        raise GuardRefused("not approved; nothing was done")


def refuse_foreign(job: Job, made: Plan, overwrite: bool) -> None:
    """Raises GuardRefused for a destination that exists and that this state never wrote."""
    from runner import export

    if overwrite:
        return
    written = made.basis.export.files if made.basis.export else {}
    for path, found in export.look(job.spec).items():
        if found is not None and path not in written:
            raise GuardRefused(
                f"{path} exists, and this state did not write it",
                hint="move it away, choose another destination, or add --overwrite",
            )


def carry_out(
    job: Job,
    made: Plan,
    *,
    submit: bool,
    wait: bool,
    wait_timeout_s: float | None,
    lock_timeout_s: float,
    max_jobs: int | None,
    quiet: bool,
) -> int:
    """Run a plan, print how it ended, and return the exit code."""
    from runner import view
    from runner.apply import Event, Stop
    from runner.cli import terminal

    backend = job.backend()
    if backend.notice:
        click.echo(f"Note: {backend.notice}.", err=True)
    progress = terminal.Progress(quiet=quiet)
    stop = Stop()

    def on_event(event: Event) -> None:
        progress.event(event.kind, event.token, event.text)

    with _signals(stop) as received, _deadline(stop, wait_timeout_s):
        try:
            for attempt in range(_REPLANS):
                try:
                    got = job.run(
                        made,
                        backend,
                        submit=submit,
                        wait=wait,
                        stop=stop,
                        on_event=on_event,
                        lock_timeout_s=lock_timeout_s,
                        max_jobs=max_jobs,
                    )
                    break
                except PlanStale:
                    if attempt == _REPLANS - 1:
                        raise
                    job.refresh()
                    again = job.plan()
                    if submit and again.plan_id != made.plan_id:
                        terminal.show_lines(
                            (
                                "The state has moved on; the plan is now:",
                                *view.plan(job.spec, again, state_label=job.state_label),
                            )
                        )
                    made = again
        finally:
            progress.close()
    terminal.show_lines(view.result(job.spec, got))
    if received and got.stopped:
        return Exit.TERMINATED if received[0] == signal.SIGTERM else Exit.INTERRUPTED
    return exit_code(job, got)


def exit_code(job: Job, got: Result) -> int:
    """The exit code of a run that was not interrupted."""
    if got.quarantined:
        return Exit.AMBIGUOUS
    if got.errors:
        return Exit.ERROR
    if not got.complete:
        return Exit.IN_PROGRESS
    return _failures_code(job, got.rows)


def _failures_code(job: Job, rows: Any) -> int:
    total = sum(rows.values())
    failed = total - rows.get("ok", 0)
    return Exit.FAILURES if total and failed / total > job.spec.failures.max_ratio else Exit.CONVERGED


def _settled_code(job: Job, made: Plan) -> int:
    failed = sum(made.failed.values())
    if made.row_count and failed / made.row_count > job.spec.failures.max_ratio:
        return Exit.FAILURES
    return Exit.CONVERGED


@contextmanager
def _signals(stop: Stop) -> Iterator[list[int]]:
    """The first Ctrl-C or SIGTERM asks to stop after the present step; the second ends at once."""
    received: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)
        stop.requested = True
        click.echo("\nStopping; jobs that were submitted go on. Once more ends at once.", err=True)

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _deadline(stop: Stop, timeout_s: float | None) -> Iterator[None]:
    if timeout_s is None:
        yield
        return

    def expire() -> None:
        stop.requested = True

    timer = threading.Timer(timeout_s, expire)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
