"""`gbrun test`."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any

import click

from runner.cli.options import pick_spec, spec_options
from runner.errors import Exit, InputUnreadable, UsageInvalid

if TYPE_CHECKING:
    from collections.abc import Iterator

    from runner.cli.job import Job
    from runner.model import Entry


@click.command("test")
@spec_options
@click.option("-n", "count", type=click.IntRange(1, 100), default=3, show_default=True, help="How many rows.")
@click.option("--key", help="This row instead of the first ones.")
def command(count: int, key: str | None, **given: Any) -> int:
    """Ask a few rows of SPEC at once and show request, answer, validation, tokens and cost.

    The same requests as in a batch, through synchronous calls at the standard price. Nothing is stored.
    For embeddings the vectors are also held against those that a batch brought. Exit 4 where an answer is
    not good.
    """
    from runner import badrows, inputs, trial
    from runner.cli import terminal
    from runner.cli.job import Job
    from runner.model import BadRow
    from runner.plan import RowsUnreadable
    from runner.render import Renderer, secrets_of
    from runner.sealing import reveal

    with Job(pick_spec(given)) as job:
        spec = job.spec
        renderer, secrets = Renderer(spec), secrets_of(spec)
        backend = job.backend()
        trials = []
        skipped = False
        try:
            for entry in _picked(job, count, key):
                row = inputs.read(spec, entry)
                requests = row if isinstance(row, BadRow) else renderer.requests(row)
                if isinstance(requests, BadRow):
                    problem = badrows.diagnose(spec, requests)
                    if spec.inputs[entry.source].on_bad_row != "skip":
                        raise RowsUnreadable([requests], 1, [problem])
                    skipped = True
                    terminal.show_lines(
                        [f"{entry.key}  not asked", f"  {problem.message}  [{problem.code}]", ""]
                    )
                    continue
                for request in requests:
                    sent = reveal(request.line, secrets, spec.name)
                    former = _former_vector(job, request.request_id)
                    found = trial.ask(
                        spec,
                        request,
                        sent,
                        lambda line: backend.answer(task=spec.task, model=spec.model, line=line),
                        former,
                    )
                    trials.append(found)
                    terminal.show_lines([*trial.shown(spec, entry.key, found), ""])
        finally:
            # Whatever ended it: these were asked, and are paid for.
            if trials:
                terminal.show_lines(trial.summary(spec, trials))
        if backend.notice:
            click.echo(f"Note: {backend.notice}.", err=True)
    good = not skipped and all(found.good for found in trials)
    return Exit.CONVERGED if good else Exit.FAILURES


def _picked(job: Job, count: int, key: str | None) -> Iterator[Entry]:
    from runner import inputs

    entries = inputs.entries(job.spec)
    if key is None:
        found = list(islice(entries, count))
        if not found:
            raise InputUnreadable("the spec's inputs match nothing", hint="check `inputs`")
    else:
        found = [entry for entry in entries if entry.key == key]
        if not found:
            raise UsageInvalid(f"no input has the key {key!r}", hint="gbrun plan -v prints the keys")
    return iter(found)


def _former_vector(job: Job, request_id: str) -> list[float] | None:
    """The vector that a batch brought for a request, as it came."""
    from runner.model import Answer, Outcome
    from runner.results import Judge

    stored = job.index.stored(request_id) if job.spec.task == "embed_content" else None
    response = job.store.response(stored) if stored is not None else None
    answer = Judge.of(job.spec).line(response) if response is not None else None
    if not isinstance(answer, Answer) or answer.outcome is not Outcome.OK:
        return None
    vector: list[float] = answer.value
    return vector
