"""`gbrun gc`."""

from __future__ import annotations

from typing import Any

import click

from runner.cli.options import Duration, pick_spec, spec_options
from runner.errors import Exit, GbrunError


@click.command("gc")
@spec_options
@click.option("--older-than", type=Duration(), default=0.0, help="Only what was written this long ago.")
@click.option("--dry-run", is_flag=True, help="Only list what would go.")
@click.option("--lock-timeout", type=Duration(), default=0.0, help="Wait this long for the state's lock.")
def command(older_than: float, dry_run: bool, lock_timeout: float, **given: Any) -> int:
    """Delete parts of the state of SPEC that nothing refers to any more.

    Kept is what the root, one of the last 20 roots in history/ or an attempt refers to; attempts stay.
    """
    from runner import garbage, view
    from runner.cli.job import Job
    from runner.clock import SystemClock, clock_text

    with Job(pick_spec(given)) as job:
        if job.state is None and not job.store.attempts():
            raise GbrunError("nothing has been applied yet", hint=f"gbrun apply {job.spec.invocation}")
        now = SystemClock().now()
        with job.store.lock("gc", clock_text(now), lock_timeout):
            found = garbage.find(job.store, now - older_than)
            if not dry_run:
                garbage.delete(job.store, found)
    for one in found:
        click.echo(f"  - {one.name}  {view.size(one.byte_count)}{'  unfinished' if one.unfinished else ''}")
    total = view.size(sum(one.byte_count for one in found))
    verb = "Would delete" if dry_run else "Deleted"
    click.echo(f"{verb} {len(found):,} file(s), {total}.")
    return Exit.CONVERGED
