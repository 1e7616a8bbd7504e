"""`gbrun export`."""

from __future__ import annotations

from typing import Any

import click

from runner.cli.options import Duration, pick_spec, spec_options
from runner.errors import Exit, GbrunError
from runner.model import Action


@click.command("export")
@spec_options
@click.option("--partial", is_flag=True, help="Write what is there, though some rows have no answer yet.")
@click.option("--lock-timeout", type=Duration(), default=0.0, help="Wait this long for the state's lock.")
@click.option("--overwrite", is_flag=True, help="Replace a destination that this state never wrote.")
def command(partial: bool, overwrite: bool, lock_timeout: float, **given: Any) -> int:
    """Write the destinations of SPEC again from stored answers. Sends nothing, costs nothing."""
    from runner.cli.apply import refuse_foreign
    from runner.cli.job import Job
    from runner.clock import SystemClock, clock_text

    with Job(pick_spec(given)) as job:
        if job.state is None:
            raise GbrunError("nothing has been applied yet", hint=f"gbrun apply {job.spec.invocation}")
        made = job.plan()
        open_count = sum(made.counts.get(action, 0) for action in _OPEN)
        if open_count and not partial:
            raise GbrunError(
                f"{open_count:,} row(s) have no answer yet",
                hint="apply first, or add --partial to write the others",
            )
        refuse_foreign(job, made, overwrite)
        now = clock_text(SystemClock().now())
        with job.store.lock("export", now, lock_timeout):
            written = job.export(made, overwrite=overwrite)
    for path, (_, byte_count) in written.files.items():
        click.echo(f"Wrote {path} ({byte_count:,} bytes)")
    for name, count in sorted(written.rows.items()):
        click.echo(f"  {count:,} {name}")
    return Exit.CONVERGED


_OPEN = (Action.NEW, Action.RERUN, Action.RETRY, Action.IN_FLIGHT)
