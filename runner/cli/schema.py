"""`gbrun schema`."""

from __future__ import annotations

import click


@click.command("schema")
@click.argument("name", type=click.Choice(["spec", "events"]), default="spec")
def command(name: str) -> None:
    """Print the JSON Schema of specs (for editors) or of --json events."""
    from runner.schemafile import schema_path

    click.echo(schema_path(f"{name}.v1.json").read_text(encoding="utf-8"), nl=False)
