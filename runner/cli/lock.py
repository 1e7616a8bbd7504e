"""`gbrun lock`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from runner.cli.options import pick_spec, spec_options
from runner.errors import Exit


@click.group("lock")
def command() -> None:
    """Look at the lock of a spec's state."""


@command.command("show")
@spec_options
def show(**given: Any) -> int:
    """Print who holds the lock; exit 5 where somebody does, 0 where it is free."""
    from runner.cli.job import state_of

    _, store = state_of(pick_spec(given))
    holder = store.lock_holder()
    if holder is None:
        click.echo(f"{store.label} is not locked.")
        return Exit.CONVERGED
    click.echo(f"{store.label} is locked by {words(holder)}")
    return Exit.LOCKED


def words(holder: Mapping[str, Any]) -> str:
    """A holder in one line."""
    names = ("operation", "id", "pid", "host", "since")
    return (
        ", ".join(f"{name} {holder[name]}" for name in names if holder.get(name)) or "a run that just began"
    )
