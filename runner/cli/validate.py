"""`gbrun validate`."""

from __future__ import annotations

from typing import Any

import click

from runner.cli.options import pick_spec, spec_options


@click.command("validate")
@spec_options
def command(**given: Any) -> None:
    """Check SPEC and everything it names, without network; every problem in one run."""
    import os

    from runner import response_schema
    from runner import spec as specfile

    chosen = pick_spec(given)
    loaded = specfile.load(
        chosen["spec"], environ=os.environ, backend=chosen["backend"], state=chosen["state"]
    )
    if loaded.output_schema is not None:
        _, local_only = response_schema.lower(loaded.output_schema)
        for note in local_only:
            click.echo(f"note: output_schema {note}")
    click.echo(f"{loaded.name}: valid.")
