"""`gbrun import`."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from contextlib import closing
from typing import TYPE_CHECKING, Any

import click

from runner.cli.options import Duration, pick_spec, spec_options
from runner.errors import GbrunError, GuardRefused, UsageInvalid

if TYPE_CHECKING:
    from runner import model
    from runner.cli.job import Job
    from runner.run import Run


@click.command("import")
@spec_options
@click.argument("job_name", metavar="[JOB]", required=False)
@click.option("--scan", is_flag=True, help="Rebuild a lost state from all jobs of the account.")
@click.option("--lineage", help="With --scan: the state to rebuild, by the first 8 digits of its lineage.")
@click.option("--overwrite", is_flag=True, help="Replace a destination that this state never wrote.")
@click.option("--lock-timeout", type=Duration(), default=0.0, help="Wait this long for the state's lock.")
@click.option("-q", "--quiet", is_flag=True, help="Say only what needs attention.")
def command(
    job_name: str | None,
    scan: bool,
    lineage: str | None,
    overwrite: bool,
    lock_timeout: float,
    quiet: bool,
    **given: Any,
) -> int:
    """Take jobs of the account into the state of SPEC: one by its name, or all of a lost state.

    Collects what they brought and writes the destinations where nothing is missing. Submits nothing.
    """
    from runner.cli.job import Job
    from runner.cli.settle import settle

    if scan == (job_name is not None):
        raise UsageInvalid("nothing says what to import", hint="name a JOB, or give --scan (not both)")
    if lineage is not None and not scan:
        raise UsageInvalid("--lineage chooses among the jobs that --scan finds", hint="add --scan")
    with Job(pick_spec(given), writes=True) as job:
        if scan and job.state is not None:
            raise GuardRefused(
                f"{job.state_label} holds a state (serial {job.state.serial}); --scan rebuilds a lost one",
                hint="import single jobs by name, or move the state folder away",
            )

        def choose(run: Run) -> tuple[str, list[model.Job]]:
            return _one(run, str(job_name)) if job_name else _all(run, lineage)

        _take(job, choose, lock_timeout, quiet=quiet)
        return settle(job, overwrite=overwrite, quiet=quiet)


def _take(
    job: Job, choose: Callable[[Run], tuple[str, list[model.Job]]], lock_timeout: float, *, quiet: bool
) -> None:
    """Make attempts of the chosen jobs and collect those that have ended."""
    from runner import adoption, cancellation
    from runner import spec as specfile
    from runner.cli import execution, terminal
    from runner.model import Outcome, State

    planned = job.plan_anew().shards

    def answered(request_id: str) -> bool:
        stored = job.index.stored(request_id)
        return stored is not None and stored.outcome is Outcome.OK

    show = terminal.show_event if not quiet else lambda event: None
    with execution.locked(job, "import", show, lock_timeout_s=lock_timeout) as run:
        ledger = run.ledger
        if ledger.exists != (job.state is not None):
            raise GuardRefused("another run has begun a state meanwhile", hint="look with: gbrun status")
        lineage, jobs = choose(run)
        if not ledger.exists:
            ledger.state = State(
                lineage=lineage + uuid.uuid4().hex[len(lineage) :],
                serial=0,
                name=job.spec.name,
                env=job.spec.env,
                spec_digest=job.spec_digest,
                principal=run.backend.principal,
            )
        with closing(adoption.Adoption(run, planned, answered, job.workspace())) as adopter:
            taken = [adopter.take(found) for found in jobs]
        for one in taken:
            click.echo(f"  {one.job.job_name}  {one.job.display_name}  {one.why}")
        tokens = [one.attempt.token for one in taken if one.attempt is not None]
        if not tokens:
            raise GbrunError(
                f"none of {len(taken):,} job(s) can be taken in; nothing was changed",
                hint="are the spec and its inputs as they were when the jobs were made?",
            )
        if not ledger.exists:
            # The root comes last: what dies before it has made no state, and is done again.
            run.store.put_spec(job.spec_digest, specfile.resolved(job.spec))
            ledger.save(ledger.state)
        cancellation.collect_ended(run, tokens)


def _one(run: Run, job_name: str) -> tuple[str, list[model.Job]]:
    from runner import statefile
    from runner.errors import BackendError

    try:
        found = run.backend.get(job_name)
    except BackendError as error:
        if error.http_status != 404:
            raise
        raise UsageInvalid(
            f"the service has no job {job_name}",
            hint="names look like batches/..., on Vertex projects/.../batchPredictionJobs/...",
        ) from error
    parsed = statefile.parse_token(found.display_name)
    return (parsed.lineage if parsed else ""), [found]


def _all(run: Run, wanted: str | None) -> tuple[str, list[model.Job]]:
    from runner import adoption

    found = adoption.by_lineage(run.backend.jobs())
    lineage = adoption.choose(found, wanted)
    return lineage, found[lineage]
