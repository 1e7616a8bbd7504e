"""`gbrun state`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from runner.cli import migrate
from runner.cli.options import Duration, Key, pick_spec, spec_options
from runner.errors import GbrunError, StateUnreadable, UsageInvalid

if TYPE_CHECKING:
    from runner.cli.job import Job
    from runner.ledger import Ledger
    from runner.purge import Subject

_lock_timeout = click.option(
    "--lock-timeout", type=Duration(), default=0.0, help="Wait this long for the state's lock."
)


@click.group("state")
def command() -> None:
    """Look into the state of a spec, or change it by hand."""


command.add_command(migrate.command)


@command.command("list")
@spec_options
def list_keys(**given: Any) -> None:
    """Print every key of the last finished apply with its outcome and requests, tab-separated."""
    from runner.cli import terminal
    from runner.cli.job import Job

    with Job(pick_spec(given)) as job:
        for row in job.index.rows():
            ids = ",".join(wanted.request_id for wanted in row.wanted)
            click.echo(f"{terminal.in_one_line(row.key)}\t{row.outcome or 'open'}\t{ids}")


@command.command("show")
@spec_options
@click.argument("key", type=Key(), required=False)
def show(key: str | None, **given: Any) -> None:
    """Print the root and its attempts as JSON, or all that the state knows of one KEY."""
    import msgspec
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
                "problem": msgspec.to_builtins(row.bad) if row.bad else None,
                "requests": [msgspec.to_builtins(found) for found in outcomes if found],
            }
    click.echo(orjson.dumps(body, option=orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS).decode())


@command.command("pull")
@spec_options
def pull(**given: Any) -> None:
    """Print the root of the state, byte for byte, for a backup that `gbrun state push` takes back."""
    from runner.cli.job import Job
    from runner.store import ROOT

    with Job(pick_spec(given)) as job:
        _refuse_none(job)
        data, _ = job.store.blobs.read(ROOT)
    click.echo(data, nl=False)


@command.command("push")
@spec_options
@click.argument("file", type=click.Path(path_type=Path))
@_lock_timeout
def push(file: Path, lock_timeout: float, **given: Any) -> None:
    """Make FILE, a pulled root or one of history/, the root of the state.

    Refuses the root of another state, an older one than the present, and one that would forget
    answers that are paid for. The present root goes into history/.
    """
    from runner import roots
    from runner.cli.job import state_of
    from runner.clock import SystemClock, clock_text

    spec, store = state_of(pick_spec(given))
    try:
        data = file.read_bytes()
    except OSError as error:
        raise StateUnreadable(
            f"cannot read {file}: {error.strerror}", hint="name a file that `gbrun state pull` wrote"
        ) from error
    with store.lock("state push", clock_text(SystemClock().now()), lock_timeout):
        done = roots.push(store, data, str(file), name=spec.name, env=spec.env)
    if not done.changed:
        click.echo(f"{store.label} has this root already, serial {done.state.serial}.")
        return
    click.echo(f"{store.label} is at serial {done.state.serial} now.")
    for name in done.attached:
        click.echo(f"  {name} is newer than {file.name}; the root names it, so its answers are not lost")


@command.command("mv")
@spec_options
@click.argument("old", type=Key())
@click.argument("new", type=Key())
@_lock_timeout
def mv(old: str, new: str, lock_timeout: float, **given: Any) -> None:
    """Give the key OLD the name NEW, as for an input that was moved."""
    from runner import keys

    with _changing(given, "state mv", lock_timeout) as (job, ledger):
        ledger.save(keys.rename(job.store, ledger.state, old, new))
    click.echo(f"{old} is {new} now; the next apply writes the destinations with it.")


@command.command("rm")
@spec_options
@click.argument("keys", type=Key(), nargs=-1, required=True)
@_lock_timeout
def rm(keys: tuple[str, ...], lock_timeout: float, **given: Any) -> None:
    """Forget KEYS. Their outcomes stay: where the input is still there, they are reused."""
    from runner.keys import forget

    with _changing(given, "state rm", lock_timeout) as (job, ledger):
        ledger.save(forget(job.store, ledger.state, keys))
    click.echo(f"Forgot {len(set(keys)):,} key(s); the next apply writes the destinations without them.")


@command.command("accept")
@spec_options
@click.argument("keys", type=Key(), nargs=-1, required=True)
@_lock_timeout
def accept(keys: tuple[str, ...], lock_timeout: float, **given: Any) -> None:
    """Take the failures of KEYS as final: they are never tried again by themselves.

    The rows stay failed, stay in the errors file and count as failures. `--replace` runs them again.
    """
    from runner.keys import accept as accept_keys

    with _changing(given, "state accept", lock_timeout) as (job, ledger):
        state, taken = accept_keys(job.store, ledger.state, keys, job.index.answered)
        if taken:
            ledger.save(state)
    for one in taken:
        click.echo(f"{one.request_id}  {one.outcome} {one.code}".rstrip() + "  accepted")
    if not taken:
        click.echo("Nothing changes: accepted before.")


@command.command("purge")
@spec_options
@click.option("--key", "patterns", metavar="GLOB", multiple=True, required=True, help="Rows that go.")
@click.option("--unknown", is_flag=True, help="Also stored requests that no known row names.")
@click.option("--auto-approve", is_flag=True, help="Do not ask.")
@_lock_timeout
def purge(
    patterns: tuple[str, ...], unknown: bool, auto_approve: bool, lock_timeout: float, **given: Any
) -> None:
    """Take rows out of every part of the state: texts, answers, keys; for good.

    What the destinations and the service hold is not touched. Safe to interrupt: run it again.
    """
    import tempfile
    from contextlib import closing

    from runner.cli.apply import approve
    from runner.globs import Selector
    from runner.purge import Purge

    selector = Selector("--key", patterns)
    with (
        _changing(given, "state purge", lock_timeout) as (job, ledger),
        tempfile.TemporaryDirectory(prefix="gbrun-") as workspace,
        closing(Purge(job.store, selector.matches, Path(workspace), unknown=unknown)) as one,
    ):
        subject = one.look(ledger.state)
        selector.check()
        _show_subject(subject, unknown)
        approve(auto_approve, "Purge for good?")
        job.index.close()
        one.run(ledger)
        paths = ", ".join(destination.path for destination in job.spec.destinations)
    click.echo(
        f"Purged from {job.state_label}. Not touched:\n"
        f"  {paths}: the next apply, or gbrun export, writes it without these rows\n"
        "  the inputs: a row whose input is still there is new, and sent again\n"
        f"  the service: uploads, jobs and outputs there{_EMULATOR if not job.spec.backend.paid else ''}"
    )


_EMULATOR = " (of `backend: local`, the folder emulator/ in the state)"


def _show_subject(subject: Subject, unknown: bool) -> None:
    from runner.cli import terminal

    click.echo(f"Purge: {subject.row_count:,} row(s), {len(subject.requests):,} request(s)")
    for key in sorted(subject.keys)[:20]:
        click.echo(f"  - {terminal.in_one_line(key)}")
    if len(subject.keys) > 20:
        click.echo(f"  ... and {len(subject.keys) - 20:,} more keys")
    for key in sorted(subject.former):
        click.echo(f"  - {key} (the same document under a former key)")
    for key in sorted(set(subject.shared.values())):
        click.echo(f"  = kept: what the row {key} asks too; purge that key as well, or its text stays")
    if subject.unknown_count:
        words = "go too" if unknown else "stay (--unknown takes them out)"
        click.echo(f"  {subject.unknown_count:,} stored request(s) belong to no known row, and {words}")


def _refuse_none(job: Job) -> None:
    if job.state is None:
        raise GbrunError("nothing has been applied yet", hint=f"gbrun apply {job.spec.invocation}")


@contextmanager
def _changing(given: dict[str, Any], operation: str, lock_timeout_s: float) -> Iterator[tuple[Job, Ledger]]:
    """The state under its lock, with nothing in flight; the old root is kept."""
    from runner import keys
    from runner.cli.job import Job
    from runner.clock import SystemClock, clock_text
    from runner.ledger import Ledger

    with Job(pick_spec(given)) as job:
        _refuse_none(job)
        with job.store.lock(operation, clock_text(SystemClock().now()), lock_timeout_s):
            job.refresh()
            ledger = Ledger(job.store)
            ledger.open()
            keys.refuse_live(ledger.attempts.values())
            yield job, ledger
