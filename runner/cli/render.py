"""`gbrun render`."""

from __future__ import annotations

from typing import Any

import click

from runner.cli.options import Key, pick_spec, spec_options
from runner.errors import InputUnreadable, UsageInvalid


@click.command("render")
@spec_options
@click.option("--key", type=Key(), help="The row; the first one where it is left out.")
@click.option("--line", is_flag=True, help="Print the JSONL line byte for byte.")
def command(key: str | None, line: bool, **given: Any) -> None:
    """Print the exact request that SPEC makes of a row, or one per sample. Sends nothing."""
    import os
    import sys

    import orjson

    from runner import badrows, inputs
    from runner import spec as specfile
    from runner.model import BadRow
    from runner.plan import RowsUnreadable
    from runner.render import Renderer

    loaded = specfile.load(environ=os.environ, **pick_spec(given))
    entry = next((e for e in inputs.entries(loaded) if key is None or e.key == key), None)
    if entry is None and key is None:
        raise InputUnreadable("the spec's inputs match nothing", hint="check `inputs`")
    if entry is None:
        raise UsageInvalid(f"no input has the key {key!r}", hint="gbrun plan -v prints the keys")
    row = inputs.read(loaded, entry)
    requests = row if isinstance(row, BadRow) else Renderer(loaded).requests(row)
    if isinstance(requests, BadRow):
        raise RowsUnreadable([requests], 1, [badrows.diagnose(loaded, requests)])
    for request in requests:
        if line:
            sys.stdout.buffer.write(request.line)
        else:
            click.echo(orjson.dumps(orjson.loads(request.line), option=orjson.OPT_INDENT_2).decode())
