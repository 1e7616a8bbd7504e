"""`gbrun reconcile`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from runner.cli.options import Duration, Setting, pick_spec, spec_options
from runner.errors import Exit, UsageInvalid

if TYPE_CHECKING:
    from runner.run import Run


@click.command("reconcile")
@spec_options
@click.option("--adopt", type=Setting(), metavar="TOKEN=JOB", help="Record that JOB was made for TOKEN.")
@click.option("--abandon", metavar="TOKEN", help="Record that no job was made for TOKEN.")
@click.option("--lock-timeout", type=Duration(), default=0.0, help="Wait this long for the state's lock.")
def command(adopt: tuple[str, str] | None, abandon: str | None, lock_timeout: float, **given: Any) -> int:
    """Hold the state of SPEC against all jobs of the account. Exit 8 while anything needs a person.

    Shows submissions whose end is unknown, jobs of this state that it does not know, and jobs that
    the service does not show. Submits nothing and cancels nothing.
    """
    from runner import reconcile
    from runner.cli import execution, terminal
    from runner.cli.job import Job

    if adopt is not None and abandon is not None:
        raise UsageInvalid("--adopt and --abandon are two decisions", hint="take one after the other")
    with Job(pick_spec(given)) as job:
        name = job.spec.invocation
        if job.state is None:
            _refuse_unknown(adopt[0] if adopt else abandon)
            click.echo(f"{job.spec.name}  state {job.state_label}: nothing has been applied yet.")
            return Exit.CONVERGED
        with execution.locked(job, "reconcile", terminal.show_event, lock_timeout_s=lock_timeout) as run:
            if adopt is not None:
                _adopt(run, *adopt)
            elif abandon is not None:
                _abandon(run, abandon)
            found = reconcile.compare(
                run.ledger.state.lineage, list(run.ledger.attempts.values()), run.backend.jobs()
            )
        terminal.show_lines(reconcile.lines(found, name))
    return Exit.AMBIGUOUS if found.needs_person else Exit.CONVERGED


def _refuse_unknown(token: str | None) -> None:
    """Raises UsageInvalid for a token, where there is no state that could know it."""
    if token is not None:
        raise UsageInvalid(f"there is no state, and so no submission {token!r}")


def _adopt(run: Run, token: str, job_name: str) -> None:
    from runner import reconcile

    found = reconcile.adopt(run, token, job_name)
    click.echo(f"{job_name} ({found.state}) is now the job of {token}; the next apply collects it.")


def _abandon(run: Run, token: str) -> None:
    from runner import reconcile

    count = reconcile.abandon(run, token)
    click.echo(
        f"{token} is given up: of the {count:,} job(s) of the account none is of that name."
        " The next apply sends its requests again."
    )
