"""`gbrun apply`, and the run that `gbrun wait` shares with it."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from runner.cli.options import Duration, pick_spec, selection_options, spec_options
from runner.errors import Exit, GuardRefused, PlanStale

if TYPE_CHECKING:
    from runner.apply import Result, Stop
    from runner.backends import Backend
    from runner.cli.job import Job
    from runner.model import Plan
    from runner.run import Event

_REPLANS = 50
"""Plans made anew because other runs moved the state on, before giving up."""


@click.command("apply")
@spec_options
@selection_options
@click.option("--auto-approve", is_flag=True, help="Do not ask.")
@click.option("--no-wait", is_flag=True, help="Submit and return; apply again to collect.")
@click.option("--wait-timeout", type=Duration(), help="Return after this long (90s, 5m, 2h).")
@click.option("--lock-timeout", type=Duration(), default=0.0, help="Wait this long for the state's lock.")
@click.option("--parallelism", type=click.IntRange(min=1), help="Jobs at once, instead of the spec's.")
@click.option("--allow-local-state", is_flag=True, help="In CI, accept a state folder for a paid backend.")
@click.option("--overwrite", is_flag=True, help="Replace a destination that this state never wrote.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON lines (gbrun schema events).")
@click.option("-q", "--quiet", is_flag=True, help="Say only what needs attention.")
def command(
    auto_approve: bool,
    no_wait: bool,
    wait_timeout: float | None,
    lock_timeout: float,
    parallelism: int | None,
    overwrite: bool,
    as_json: bool,
    quiet: bool,
    target: tuple[str, ...],
    replace: tuple[str, ...],
    retry: str,
    no_stat_cache: bool,
    allow_local_state: bool,
    **given: Any,
) -> int:
    """Make SPEC so: submit what the plan shows, wait, collect, write the records.

    Safe to repeat and to interrupt: what was submitted is found again, and nothing that has a
    result is sent twice.
    """
    from runner.cli.job import Job
    from runner.cli.plan import print_json, print_plan

    with Job(pick_spec(given), writes=True) as job:
        made = job.plan(target=target, replace=replace, retry=retry, stat_cache=not no_stat_cache)
        (print_json if as_json else print_plan)(job, made)
        if made.refusals:
            return Exit.REFUSED
        refuse_foreign(job, made, overwrite)
        refuse_fleeting(job, allow_local_state)
        if not made.has_changes:
            job.record_spec(lock_timeout)
            return _settled_code(job, made)
        approve(auto_approve)
        return carry_out(
            job,
            made,
            Mode(
                submit=True,
                wait=not no_wait,
                wait_timeout_s=wait_timeout,
                lock_timeout_s=lock_timeout,
                max_jobs=parallelism,
                quiet=quiet,
                as_json=as_json,
                target=target,
                replace=replace,
                retry=retry,
                overwrite=overwrite,
            ),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Mode:
    """How to carry a plan out, as the command line says it."""

    submit: bool
    wait: bool
    wait_timeout_s: float | None = None
    lock_timeout_s: float = 0.0
    max_jobs: int | None = None
    quiet: bool = False
    as_json: bool = False
    target: tuple[str, ...] = ()
    replace: tuple[str, ...] = ()
    retry: str = "transient"
    overwrite: bool = False


def approve(auto_approve: bool, question: str = "Apply?") -> None:
    """Ask on a terminal. Raises GuardRefused without one, or where the answer is no."""
    if auto_approve:
        return
    if not sys.stdin.isatty():
        raise GuardRefused("nobody can be asked without a terminal", hint="add --auto-approve")
    if not click.confirm(question, err=True):
        raise GuardRefused("not approved; nothing was done")


def refuse_fleeting(job: Job, allowed: bool) -> None:
    """Raises GuardRefused for paid jobs whose only record is on a CI machine that may be thrown away."""
    if job.spec.state_uri is not None:
        return
    if os.environ.get("CI", "").lower() == "true" and job.spec.backend.paid and not allowed:
        raise GuardRefused(
            "the state is a folder of a CI machine, and the backend is paid: what is lost is paid again",
            hint="set `state: gs://bucket/folder`, or keep the folder and add --allow-local-state",
        )


def refuse_foreign(job: Job, made: Plan, overwrite: bool) -> None:
    """Raises GuardRefused for a destination that exists and that this state never wrote, or that says it
    is another's.
    """
    from runner import export

    if overwrite:
        return
    lineage = made.basis.lineage
    owners = export.owners(job.spec)
    for path, (owner, said) in owners.items():
        if owner != lineage:
            raise GuardRefused(
                f"{path} belongs to another state: its {said} is {owner}",
                hint="choose another destination, or add --overwrite to take this one over",
            )
    # What says that it is ours is, also where the last export did not write it.
    written = {*owners, *(made.basis.export.files if made.basis.export else {})}
    for path, found in export.look(job.spec, lineage).items():
        if found is not None and path not in written:
            raise GuardRefused(
                f"{path} exists, and this state did not write it",
                hint="move it away, choose another destination, or add --overwrite",
            )


def carry_out(job: Job, made: Plan, mode: Mode) -> int:
    """Run a plan, print how it ended, and return the exit code."""
    from runner import events, view
    from runner.apply import Stop
    from runner.cli import terminal

    backend = job.backend()
    if backend.notice:
        click.echo(f"Note: {backend.notice}.", err=True)
    progress = terminal.Progress(quiet=mode.quiet)
    stop = Stop()

    def on_event(event: Event) -> None:
        progress.event(event.kind, event.token, event.text)
        if mode.as_json:
            terminal.show_json([events.event(event)])

    with (
        _signals(stop, direct=job.spec.backend.mode == "direct") as received,
        _deadline(stop, mode.wait_timeout_s),
    ):
        try:
            got = _run(job, made, backend, mode, stop, on_event)
        finally:
            progress.close()
    if mode.as_json:
        terminal.show_json([events.result(got)])
    else:
        terminal.show_lines(view.result(job.spec, got))
    if received and got.stopped:
        return Exit.INTERRUPTED if received[0] == signal.SIGINT else Exit.TERMINATED
    return exit_code(job, got)


def _run(
    job: Job, made: Plan, backend: Backend, mode: Mode, stop: Stop, on_event: Callable[[Event], None]
) -> Result:
    """Run the plan; where the state moved on meanwhile, plan again, show it, and go on."""
    from runner.cli import execution
    from runner.cli.plan import print_plan

    for _ in range(_REPLANS):
        try:
            return execution.run(
                job,
                made,
                backend,
                submit=mode.submit,
                wait=mode.wait,
                stop=stop,
                on_event=on_event,
                lock_timeout_s=mode.lock_timeout_s,
                max_jobs=mode.max_jobs,
                retry=mode.retry,
                overwrite=mode.overwrite,
            )
        except PlanStale:
            job.refresh()
            again = job.plan(target=mode.target, replace=mode.replace, retry=mode.retry)
            if mode.submit and again.plan_id != made.plan_id and not mode.as_json:
                click.echo("The state has moved on; the plan is now:")
                print_plan(job, again)
            made = again
    raise PlanStale("the state keeps moving on under this plan", hint="wait for the other runs to end")


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
def _signals(stop: Stop, *, direct: bool) -> Iterator[list[int]]:
    """The first Ctrl-C or SIGTERM asks to stop after the present step; the second ends at once."""
    received: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)
        stop.requested = True
        with suppress(OSError):
            rest = "calls in flight are waited for" if direct else "jobs that were submitted go on"
            click.echo(f"\nStopping; {rest}. Once more ends at once.", err=True)

    # SIGHUP: the terminal is gone, and nobody can be told, but the state is saved all the same.
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, handle) for number in numbers}
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
