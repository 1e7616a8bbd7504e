"""`gbrun state migrate`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from runner.cli.options import Duration, pick_spec, spec_options
from runner.errors import StateForeign, UsageInvalid


@click.command("migrate")
@spec_options
@click.option("--to", "to", metavar="PLACE", help="Folder or gs://bucket/folder that the state goes to.")
@click.option("--from", "from_", metavar="PLACE", help="Where it comes from; it goes to the spec's place.")
@click.option("--lock-timeout", type=Duration(), default=0.0, help="Wait this long for the locks.")
def command(to: str | None, from_: str | None, lock_timeout: float, **given: Any) -> None:
    """Copy the state of SPEC to another place, check what arrived, and close the old place.

    Before `state:` is changed in the spec, say --to; after it, --from. The copy stays readable in the old
    place, but no command uses it any more; to go back, migrate back. Refused where the other place has
    another state, or a newer one.
    """
    from runner import keys, migration, statespec, view
    from runner.cli.job import state_of, store_at
    from runner.clock import SystemClock, clock_text
    from runner.gcsuri import GcsUri

    if (to is None) == (from_ is None):
        raise UsageInvalid("nothing says where the state goes", hint="give --to PLACE, or --from PLACE")
    spec, here = state_of(pick_spec(given))
    other = statespec.parse(to or from_ or "", "--to" if to else "--from")
    if other == (spec.state_uri or spec.state):
        raise UsageInvalid(f"the state of {spec.path.name} is in {here.label} already", hint="nothing to do")
    kept = statespec.cache(spec.folder, spec.name, other) if isinstance(other, GcsUri) else other
    there = store_at(other, kept)
    source, target = (here, there) if to else (there, here)
    # Before the locks, which would make a folder of a name that was mistyped.
    migration.check_source(source)
    now = clock_text(SystemClock().now())
    with source.lock("state migrate", now, lock_timeout), target.lock("state migrate", now, lock_timeout):
        state, _ = source.load()
        if state is not None and (state.name, state.env) != (spec.name, spec.env):
            raise StateForeign(
                f"{source.label} is the state of {state.name!r} ({state.env or 'no environment'}),"
                f" not of {spec.name!r}",
                hint="name the spec it belongs to",
            )
        if spec.backend.type == "local" or spec.backend.mode == "direct":
            # Their jobs lie on this machine, beside the state that began them.
            keys.refuse_live(attempt for attempt, _ in source.attempts())
        done = migration.migrate(source, target)
    click.echo(
        f"Copied {done.part_count:,} part(s), {view.size(done.byte_count)}, to {target.label};"
        f" serial {done.state.serial}."
    )
    if to:
        written = other if isinstance(other, GcsUri) else Path(os.path.relpath(other, spec.folder)).as_posix()
        click.echo(f"Now set `state: {written}` in {spec.path.name}, or give --state.")
    click.echo(f"{source.label} is closed: its parts are left as they were, and no command uses them.")
