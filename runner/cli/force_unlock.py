"""`gbrun force-unlock`."""

from __future__ import annotations

from typing import Any

import click

from runner.cli.options import pick_spec, spec_options
from runner.errors import StateLocked


@click.command("force-unlock")
@spec_options
@click.argument("id")
def command(id: str, **given: Any) -> None:
    """Free the lock ID of a state whose holder is gone; `gbrun lock show` prints the ID.

    For a state in a bucket: a holder that was killed there keeps its lock for five minutes. One that
    still runs loses it, and fails at its next write. The lock of a state in a folder ends with its
    process, so there is never anything to free: this says so, or who holds it.
    """
    from runner.cli.job import state_of
    from runner.cli.lock import words

    _, store = state_of(pick_spec(given))
    holder = store.lock_holder()
    if holder is None:
        click.echo(f"{store.label} is not locked: the lock of a run ends with its process. Nothing to do.")
        return
    if store.free_lock(id):
        click.echo(f"{store.label} is free: the lock of {words(holder)} was broken.")
        return
    other = "" if holder.get("id") in (id, None) else f", which is not {id!r}"
    process = f"process {holder['pid']} on {holder['host']}" if "pid" in holder else "its process"
    raise StateLocked(
        f"{store.label} is locked by {words(holder)}{other}: {process} still runs",
        hint=f"wait for it, or end it (Ctrl-C, or kill {holder.get('pid', 'PID')}); its lock ends with it",
    )
