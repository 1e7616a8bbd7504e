"""`gbrun plan`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from runner.cli.options import pick_spec, selection_options, spec_options
from runner.errors import Exit

if TYPE_CHECKING:
    from runner.cli.job import Job
    from runner.model import Plan


@click.command("plan")
@spec_options
@selection_options
@click.option("--detailed-exitcode", is_flag=True, help="Exit 2 where an apply would do anything.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON lines (gbrun schema events).")
@click.option("-v", "--verbose", is_flag=True, help="Print every row, unchanged ones too.")
def command(
    detailed_exitcode: bool,
    as_json: bool,
    verbose: bool,
    target: tuple[str, ...],
    replace: tuple[str, ...],
    retry: str,
    no_stat_cache: bool,
    **given: Any,
) -> int:
    """Show what an apply of SPEC would do, and why. Changes nothing."""
    from runner.cli.job import Job

    with Job(pick_spec(given)) as job:
        made = job.plan(target=target, replace=replace, retry=retry, stat_cache=not no_stat_cache)
        if as_json:
            print_json(job, made, verbose=verbose)
        else:
            print_plan(job, made, verbose=verbose)
    if made.refusals:
        return Exit.REFUSED
    return Exit.CHANGES if detailed_exitcode and made.has_changes else Exit.CONVERGED


def print_plan(job: Job, made: Plan, *, verbose: bool = False) -> None:
    """The plan for people."""
    from runner import view
    from runner.cli import terminal

    if verbose:
        terminal.show_lines(view.change(found) for found in job.changes(made, unchanged=True))
    terminal.show_lines(
        view.plan(
            job.spec,
            made,
            state_label=job.state_label,
            causes=job.causes(made),
            with_samples=not verbose,
        )
    )


def print_json(job: Job, made: Plan, *, verbose: bool = False) -> None:
    """The plan for programs."""
    from runner import events
    from runner.cli import terminal

    terminal.show_json([events.version()])
    terminal.show_json(events.changes(job.changes(made, unchanged=verbose)))
    terminal.show_json(events.plan(made))
