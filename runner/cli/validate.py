"""`gbrun validate`."""

from __future__ import annotations

from typing import Any

import click

from runner.cli.options import pick_spec, spec_options
from runner.errors import Exit, SpecInvalid


@click.command("validate")
@spec_options
@click.option("--strict", is_flag=True, help="Treat warnings as errors.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["text", "json", "github"]),
    default="text",
    help="How to print problems.",
)
def command(strict: bool, form: str, **given: Any) -> int:
    """Check SPEC and everything it names, without network; every problem in one run."""
    import os

    from runner import diagnostics, events, lints
    from runner import spec as specfile
    from runner.cli import terminal

    name = ""
    try:
        loaded = specfile.load(environ=os.environ, **pick_spec(given))
        name, found = loaded.name, tuple(lints.lint(loaded))
    except SpecInvalid as error:
        found = error.diagnostics
    if form == "json":
        terminal.show_json([events.version(), *map(diagnostics.json_object, found)])
    elif form == "github":
        for diagnostic in found:
            click.echo(diagnostics.github(diagnostic))
    else:
        click.echo(diagnostics.text(found), err=True, nl=False)
        if name:
            warned = f", {len(found)} warning(s)" if found else ""
            click.echo(f"{name}: valid{warned}.")
    return Exit.USAGE if not name or (strict and found) else Exit.CONVERGED
