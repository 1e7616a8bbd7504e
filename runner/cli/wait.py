"""`gbrun wait`."""

from __future__ import annotations

from typing import Any

import click

from runner.cli.options import Duration, pick_spec, spec_options
from runner.errors import Exit


@click.command("wait")
@spec_options
@click.option("--wait-timeout", type=Duration(), help="Return after this long (90s, 5m, 2h).")
@click.option("--lock-timeout", type=Duration(), default=0.0, help="Wait this long for the state's lock.")
@click.option("-q", "--quiet", is_flag=True, help="Say only what needs attention.")
def command(wait_timeout: float | None, lock_timeout: float, quiet: bool, **given: Any) -> int:
    """Wait for what SPEC has in flight and collect it. Submits nothing.

    Writes the destinations where nothing is left to submit.
    """
    from runner.cli.apply import Mode, carry_out
    from runner.cli.job import Job

    with Job(pick_spec(given)) as job:
        if not any(attempt.state.live for attempt, _ in job.attempts):
            click.echo("Nothing in flight.")
            return Exit.CONVERGED
        made = job.plan()
        return carry_out(
            job,
            made,
            Mode(
                submit=False,
                wait=True,
                wait_timeout_s=wait_timeout,
                lock_timeout_s=lock_timeout,
                quiet=quiet,
            ),
        )
