"""`gbrun init`."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from runner.errors import UsageInvalid

_SPEC = """\
# A batch job: every input becomes one request, every answer one checked record.
#
#   gbrun plan job.yaml       shows what would run, and why
#   gbrun apply job.yaml      runs it; a second apply does nothing
version: 1
name: {name}

# `local` is an emulator on this machine: no account, no cost, and made-up answers.
# For real answers write `backend: gemini` and set GEMINI_API_KEY.
backend: local

# One row per file. Paths are relative to this file.
inputs: inputs/*.txt

model: gemini-3.5-flash-lite

# A Jinja template. The input offers text, path, name, stem, suffix and mime_type.
prompt: |
  Summarise this note in one sentence and say how it feels.

  {{{{ input.text }}}}

# Answers are checked against this JSON Schema. Without it, records hold plain text.
output_schema:
  type: object
  properties:
    summary:
      type: string
    mood:
      type: string
      enum: [good, bad, mixed]
  required: [summary, mood]

# One JSON line per input, in order; failures go to out/{name}.errors.jsonl.
destination: out/{name}.jsonl
"""
_INPUTS = {
    "inputs/monday.txt": "The new shelf arrived and fits the wall. A good start of the week.\n",
    "inputs/tuesday.txt": "Rain all day, and the train was late twice. Bad timing for the interview.\n",
}
_IGNORED = (b".gbrun/", b"out/")


@click.command("init")
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False), default=Path("."))
def command(folder: Path) -> None:
    """Write a commented spec that works at once, two inputs, and .gitignore, into FOLDER."""
    name = _name(folder)
    files = {"job.yaml": _SPEC.format(name=name), **_INPUTS}
    present = [path for path in files if (folder / path).exists()]
    if present:
        raise UsageInvalid(f"{folder / present[0]} exists; nothing was written", hint="choose another folder")
    try:
        for path, text in files.items():
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text, encoding="utf-8")
            click.echo(f"Wrote {target}")
        _ignore(folder / ".gitignore")
    except OSError as error:
        raise UsageInvalid(
            f"{error.filename or folder} cannot be written: {error.strerror}", hint="choose another folder"
        ) from error
    where = shlex.quote(str(folder / "job.yaml"))
    click.echo(f"\nNow: gbrun plan {where}\nThen: gbrun apply {where}")


def _name(folder: Path) -> str:
    words = "".join(c if c.isascii() and c.isalnum() else "-" for c in folder.resolve().name.lower())
    return words.strip("-")[:40].rstrip("-") or "job"


def _ignore(path: Path) -> None:
    # Bytes: what others have written there need not be UTF-8.
    data = path.read_bytes() if path.exists() else b""
    missing = [line for line in _IGNORED if line not in data.splitlines()]
    if missing:
        if data and not data.endswith(b"\n"):
            data += b"\n"
        path.write_bytes(data + b"".join(line + b"\n" for line in missing))
        click.echo(f"Wrote {path}")
