"""What `import` and `cancel` do once everything that ended is collected: write what is complete."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import click

from runner.errors import Exit

if TYPE_CHECKING:
    from runner.cli.job import Job
    from runner.model import Plan


def settle(job: Job, *, overwrite: bool, quiet: bool) -> int:
    """Write the destinations where every row has its answer, else say what is missing. Submits nothing."""
    from runner.cli.apply import Mode, carry_out, refuse_foreign

    job.refresh()
    made = job.plan()
    name = job.spec.invocation
    if made.live_tokens:
        click.echo(f"{len(made.live_tokens):,} job(s) are still in flight. Collect: gbrun wait {name}")
        return Exit.IN_PROGRESS
    if made.shards or made.refusals:
        words = [f"{made.request_count:,} request(s) have no answer"] if made.shards else []
        click.echo(
            f"The destinations are as they were: {'; '.join([*words, *made.refusals])}."
            f" See: gbrun plan {name}"
        )
        return Exit.CONVERGED
    if not made.has_changes:
        return Exit.CONVERGED
    refuse_foreign(job, made, overwrite or _same_as_there(job, made))
    return carry_out(job, made, Mode(submit=False, wait=False, quiet=quiet, overwrite=overwrite))


def _same_as_there(job: Job, made: Plan) -> bool:
    """Whether the destinations hold already what would be written: then they are this state's."""
    from runner import export

    with ExitStack() as never_placed:
        written = export.write(
            job.spec,
            job.store,
            job.rows(made),
            job.index.answered_among,
            job.index.in_flight,
            never_placed,
        )
    there = export.look(job.spec, made.basis.lineage)
    return all(found in (None, written.files.get(path)) for path, found in there.items())
