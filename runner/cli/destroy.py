"""`gbrun destroy`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from runner.cli.options import Duration, pick_spec, spec_options
from runner.errors import Exit, SubmissionUnknown

if TYPE_CHECKING:
    from runner.cli.job import Job
    from runner.run import Run


@click.command("destroy")
@spec_options
@click.option("--auto-approve", is_flag=True, help="Do not ask.")
@click.option("--wait-timeout", type=Duration(), help="Wait at most this long for jobs to end (90s, 5m).")
@click.option("--lock-timeout", type=Duration(), default=0.0, help="Wait this long for the state's lock.")
def command(auto_approve: bool, wait_timeout: float | None, lock_timeout: float, **given: Any) -> int:
    """Cancel the jobs of SPEC, delete what it made at the service, and put its state aside.

    Its folder is renamed to FOLDER.destroyed-SERIAL, with everything that came back; destinations stay as
    they are. Refused where the spec applied last says `lifecycle.prevent_destroy: true`.
    """
    from runner import destruction
    from runner.cli import execution, terminal
    from runner.cli.job import Job

    with Job(pick_spec(given)) as job:
        if job.state is None:
            click.echo(f"Nothing to destroy: there is no state in {job.state_label}.")
            return Exit.CONVERGED
        # The lock is kept while the question stands: what is shown is what is destroyed.
        with execution.locked(job, "destroy", terminal.show_event, lock_timeout_s=lock_timeout) as run:
            destruction.check_allowed(job.spec, job.store.spec(run.ledger.state.spec_digest))
            if not _empty(job, run, auto_approve, wait_timeout):
                return Exit.IN_PROGRESS
            run.backend.close()
            job.index.close()
            label = _put_aside(job, run.ledger.state.serial)
        click.echo(f"Destroyed. The state lies in {label}; destinations were not touched.")
    return Exit.CONVERGED


def _put_aside(job: Job, serial: int) -> str:
    """Put the state aside and say where it lies."""
    from runner import destruction, migration
    from runner.cli.job import store_at

    uri = job.spec.state_uri
    if uri is not None:
        return migration.put_aside(job.store, uri, serial, lambda place: store_at(place, None)).label
    target = destruction.archive(job.spec.state, serial)
    return Path(job.state_label).with_name(target.name).as_posix()


def _empty(job: Job, run: Run, auto_approve: bool, wait_timeout: float | None) -> bool:
    """Show, ask, end what is in flight, keep what it brought, and delete; False where it did not end."""
    from runner import cancellation, destruction
    from runner.cli.apply import approve

    attempts = list(run.ledger.attempts.values())
    found = destruction.remains(run.ledger.state.lineage, attempts, run.backend.jobs())
    live = cancellation.in_flight(attempts)
    for attempt in found.doubtful:
        raise SubmissionUnknown(
            f"whether a job was made for {attempt.token} is not known, so nothing was destroyed",
            hint=f"gbrun reconcile {job.spec.invocation}",
        )
    click.echo(f"{job.spec.name}  state {job.state_label} serial {run.ledger.state.serial}")
    click.echo(f"  {cancellation.spend(live)}, to be cancelled; what comes back is kept")
    click.echo(f"  {len(found.jobs):,} job(s) and {len(found.uploads):,} upload(s) to be deleted")
    click.echo("  the state folder is renamed; destinations stay")
    approve(auto_approve, "Destroy?")
    if not destruction.empty(run, found, wait_timeout):
        click.echo("Jobs have not ended yet; nothing was deleted. Run destroy again.", err=True)
        return False
    return True
