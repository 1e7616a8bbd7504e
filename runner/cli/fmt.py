"""`gbrun fmt`."""

from __future__ import annotations

from pathlib import Path

import click

from runner.errors import Exit, UsageInvalid


@click.command("fmt")
@click.argument("spec", type=click.Path(path_type=Path))
@click.option("--check", is_flag=True, help="Write nothing; exit 1 where the file would change.")
def command(spec: Path, check: bool) -> int:
    """Lay SPEC out in the usual order and indentation. Comments and values stay as they are."""
    from runner import specformat

    try:
        text = spec.read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageInvalid(f"{spec} cannot be read: {error}") from error
    formatted = specformat.format_text(text)
    if formatted == text:
        return Exit.CONVERGED
    if check:
        click.echo(f"{spec} is not formatted")
        return Exit.ERROR
    spec.write_bytes(formatted.encode())
    click.echo(f"Formatted {spec}")
    return Exit.CONVERGED
