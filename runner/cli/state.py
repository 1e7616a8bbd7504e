"""`gbrun state`."""

from __future__ import annotations

import dataclasses
from typing import Any

import click

from runner.cli.options import pick_spec, spec_options
from runner.errors import UsageInvalid


@click.group("state")
def command() -> None:
    """Look into the state of a spec."""


@command.command("list")
@spec_options
def list_keys(**given: Any) -> None:
    """Print every key of the last finished apply with its outcome and requests, tab-separated."""
    from runner.cli.job import Job

    with Job(pick_spec(given)) as job:
        for row in job.index.rows():
            ids = ",".join(wanted.request_id for wanted in row.wanted)
            click.echo(f"{row.key}\t{row.outcome or 'open'}\t{ids}")


@command.command("show")
@spec_options
@click.argument("key", required=False)
def show(key: str | None, **given: Any) -> None:
    """Print the root and its attempts as JSON, or all that the state knows of one KEY."""
    import orjson

    from runner.cli.job import Job

    with Job(pick_spec(given)) as job:
        body: dict[str, Any]
        if key is None:
            body = {
                "state": dataclasses.asdict(job.state) if job.state else None,
                "attempts": [dataclasses.asdict(attempt) for attempt, _ in job.attempts],
            }
        else:
            row = job.index.row(key)
            if row is None:
                raise UsageInvalid(f"the state has no key {key!r}", hint="gbrun state list SPEC")
            outcomes = [job.index.stored(wanted.request_id) for wanted in row.wanted]
            body = {
                "key": row.key,
                "outcome": row.outcome,
                "input": row.input,
                "problem": dataclasses.asdict(row.bad) if row.bad else None,
                "requests": [dataclasses.asdict(found) for found in outcomes if found],
            }
    click.echo(orjson.dumps(body, option=orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS).decode())
