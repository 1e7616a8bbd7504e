"""`gbrun status`."""

from __future__ import annotations

from typing import Any

import click

from runner.cli.options import pick_spec, spec_options
from runner.errors import Exit


@click.command("status")
@spec_options
def command(**given: Any) -> int:
    """Show what SPEC has in flight, as the state knows it. Exit 3 where anything is."""
    from runner import view
    from runner.cli import terminal
    from runner.cli.job import Job

    with Job(pick_spec(given)) as job:
        attempts = [attempt for attempt, _ in job.attempts]
        terminal.show_lines(view.status(job.spec, job.state, attempts, state_label=job.state_label))
        live = any(attempt.state.live for attempt in attempts)
    return Exit.IN_PROGRESS if live else Exit.CONVERGED
