"""`gbrun cancel`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from runner.cli.options import Duration, pick_spec, spec_options
from runner.errors import Exit

if TYPE_CHECKING:
    from runner.cli.job import Job


@click.command("cancel")
@spec_options
@click.option("--superseded", is_flag=True, help="Only jobs that hold no request any row wants.")
@click.option("--auto-approve", is_flag=True, help="Do not ask.")
@click.option("--wait-timeout", type=Duration(), help="Wait at most this long for their end (90s, 5m, 2h).")
@click.option("--lock-timeout", type=Duration(), default=0.0, help="Wait this long for the state's lock.")
@click.option("-q", "--quiet", is_flag=True, help="Say only what needs attention.")
def command(
    superseded: bool,
    auto_approve: bool,
    wait_timeout: float | None,
    lock_timeout: float,
    quiet: bool,
    **given: Any,
) -> int:
    """Cancel what SPEC has in flight, and keep what comes back. Exit 3 where something has not ended yet.

    A job that has ended meanwhile is collected. What was not answered stays to be sent: see the plan.
    """
    from runner import cancellation
    from runner.cli import execution, terminal
    from runner.cli.apply import approve
    from runner.cli.job import Job
    from runner.cli.settle import settle

    with Job(pick_spec(given)) as job:
        wanted = job.plan().live_tokens if superseded and _live(job) else frozenset()
        chosen = cancellation.in_flight((attempt for attempt, _ in job.attempts), wanted)
        if not chosen:
            click.echo("Nothing in flight that no row wants." if superseded else "Nothing in flight.")
            return Exit.CONVERGED
        click.echo(f"{cancellation.spend(chosen)}:")
        for attempt in chosen:
            click.echo(f"  {attempt.token}  {attempt.job_name or attempt.state}  {attempt.request_count:,}")
        approve(auto_approve, "Cancel?")
        tokens = [attempt.token for attempt in chosen]
        show = terminal.show_event if not quiet else lambda event: None
        with execution.locked(job, "cancel", show, lock_timeout_s=lock_timeout) as run:
            names = cancellation.cancel(run, tokens)
        ended = cancellation.wait_for_end(
            run.backend, names, run.clock, run.policy.poll_interval_s, wait_timeout
        )
        with execution.locked(job, "cancel", show, lock_timeout_s=lock_timeout) as run:
            cancellation.collect_ended(run, tokens)
            left = [run.ledger.attempts[token] for token in tokens if run.ledger.attempts[token].state.live]
        if not quiet:
            _tell(run.sent, len(names))
        for attempt in left:
            click.echo(f"{attempt.token} is still {attempt.state}", err=True)
        if left and ended:
            click.echo(f"hint: gbrun reconcile {job.spec.invocation} shows what is known of it", err=True)
        code = settle(job, overwrite=False, quiet=quiet)
        return Exit.IN_PROGRESS if left else _without_others(code)


def _live(job: Job) -> bool:
    return any(attempt.state.live for attempt, _ in job.attempts)


def _tell(sent: dict[str, int], job_count: int) -> None:
    words = " + ".join(f"{count:,} {name}" for name, count in sorted(sent.items())) or "nothing"
    click.echo(f"Asked {job_count:,} job(s) to end. Requests {sum(sent.values()):,} = {words}")


def _without_others(code: int) -> int:
    # Jobs that were not to be cancelled may go on: that is no unfinished cancellation.
    return Exit.CONVERGED if code == Exit.IN_PROGRESS else code
