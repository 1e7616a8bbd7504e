"""`gbrun show`."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import click

from runner.cli.options import Key, pick_spec, spec_options
from runner.errors import UsageInvalid

if TYPE_CHECKING:
    from collections.abc import Iterator

    from runner.cli.job import Job
    from runner.story import Chapter


@click.command("show")
@spec_options
@click.option("--key", type=Key(), help="Tell the story of this row.")
def command(key: str | None, **given: Any) -> None:
    """Show what the last finished apply of SPEC left, or the story of one row."""
    from runner import story
    from runner.cli import terminal
    from runner.cli.job import Job

    with Job(pick_spec(given)) as job:
        if key is None:
            terminal.show_lines(_summary(job))
            return
        row = job.index.row(key)
        if row is None:
            raise UsageInvalid(
                f"the state has no key {key!r}", hint=f"gbrun state list {job.spec.invocation}"
            )
        chapters = [_chapter(job, one) for request_id in row.ids for one in _chain(job, request_id)]
        terminal.show_lines(story.tell(row.key, row.outcome, row.bad, chapters))


def _summary(job: Job) -> list[str]:
    from runner import view

    attempts = [attempt for attempt, _ in job.attempts]
    lines = view.status(job.spec, job.state, attempts, state_label=job.state_label)
    outcomes = Counter(row.outcome or "open" for row in job.index.rows())
    if outcomes:
        lines.append(
            f"Rows {sum(outcomes.values()):,}: " + ", ".join(f"{n:,} {o}" for o, n in outcomes.items())
        )
    if job.state is not None and job.state.export is not None:
        lines += [f"Wrote {path} ({view.size(size)})" for path, (_, size) in job.state.export.files.items()]
    return lines


def _chain(job: Job, request_id: str) -> Iterator[str]:
    """A request and those that were sent to remedy it."""
    while request_id:
        yield request_id
        stored = job.index.stored(request_id)
        request_id = stored.remedied_by if stored is not None else ""


def _chapter(job: Job, request_id: str) -> Chapter:
    import orjson

    from runner.results import Judge
    from runner.story import Chapter

    stored = job.index.stored(request_id)
    if stored is None:
        return Chapter(request_id, None, None, b"", b"", None)
    attempt = next((a for a, _ in job.attempts if a.token == stored.token), None)
    sent = b""
    if attempt is not None:
        lines = job.store.shard_lines(attempt.shard_id)
        sent = next((line for line in lines if orjson.loads(line)["key"] == request_id), b"")
    response = job.store.response(stored) or b""
    answer = Judge.of(job.spec).line(response) if response else None
    return Chapter(request_id, stored, attempt, sent, response, answer)
