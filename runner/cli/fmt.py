"""`gbrun fmt`."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import click

from runner.errors import Exit, UsageInvalid


@click.command("fmt")
@click.argument("spec", type=click.Path(path_type=Path, readable=False))
@click.option("--check", is_flag=True, help="Write nothing; exit 1 where the file would change.")
def command(spec: Path, check: bool) -> int:
    """Lay SPEC out in the usual order and indentation. Comments and values stay as they are."""
    from runner import specformat, yamlfile

    try:
        data = yamlfile.read_bytes(spec)
        text = data.decode()
    except yamlfile.FileProblem as problem:
        raise UsageInvalid(f"{spec} {problem.message}") from problem
    except UnicodeDecodeError as error:
        raise UsageInvalid(
            f"{spec} is not UTF-8: byte {data[error.start]:#04x} at offset {error.start:,}",
            hint="save the file as UTF-8",
        ) from error
    formatted = specformat.format_text(text, spec.as_posix())
    if formatted == text:
        return Exit.CONVERGED
    if check:
        click.echo(f"{spec} is not formatted")
        return Exit.ERROR
    _replace(spec, formatted.encode())
    click.echo(f"Formatted {spec}")
    return Exit.CONVERGED


def _replace(spec: Path, data: bytes) -> None:
    """Write a file in one step: whoever is interrupted, or out of space, still has the old one."""
    target = Path(os.path.realpath(spec))
    temp = target.with_name(f".{target.name}.gbrun-fmt")
    try:
        temp.write_bytes(data)
        shutil.copymode(target, temp)
        temp.replace(target)
    except OSError as error:
        temp.unlink(missing_ok=True)
        raise UsageInvalid(f"{spec} cannot be written: {error.strerror}") from error
