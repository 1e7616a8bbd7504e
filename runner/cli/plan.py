"""`gbrun plan`."""

from __future__ import annotations

from typing import Any

import click

from runner.cli.options import pick_spec, spec_options
from runner.errors import Exit


@click.command("plan")
@spec_options
@click.option("--detailed-exitcode", is_flag=True, help="Exit 2 where an apply would do anything.")
def command(detailed_exitcode: bool, **given: Any) -> int:
    """Show what an apply of SPEC would do, and why. Changes nothing."""
    from runner import view
    from runner.cli import terminal
    from runner.cli.job import Job

    with Job(**pick_spec(given)) as job:
        made = job.plan()
        terminal.show_lines(view.plan(job.spec, made, state_label=job.state_label))
    if made.refusals:
        return Exit.REFUSED
    return Exit.CHANGES if detailed_exitcode and made.has_changes else Exit.CONVERGED
