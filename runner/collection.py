"""Steps of an apply that watch jobs and take in what they bring.

What came back is stored first, then its outcomes, then the root that names them; only then is
anything deleted at the service.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from runner import parts, remedies, results
from runner.errors import BackendError
from runner.ingest import Collector, failed_as_a_whole
from runner.model import Attempt, AttemptState, Job, JobState, Request, Stored
from runner.remedies import Remedy
from runner.run import Run
from runner.shard import ShardWriter


def poll(run: Run, attempt: Attempt) -> None:
    """Look at a job and record what changed."""
    try:
        job = run.backend.get(attempt.job_name)
    except BackendError as error:
        if error.http_status == 404:
            error.hint = (
                f"{attempt.job_name} was deleted, or was made with another key;"
                f" gbrun reconcile {run.spec.invocation} tells what there is"
            )
        raise
    run.looked_at[attempt.token] = run.clock.now()
    if job.state is not attempt.job_state or job.state.terminal:
        state = AttemptState.TERMINAL if job.state.terminal else attempt.state
        run.ledger.replace(
            attempt,
            state=state,
            job_state=job.state,
            output_name=job.output_name,
            error=job.error_message,
            error_code=job.error_code,
        )
        words = f": {job.error_message}" if job.error_message else ""
        run.event("job", attempt.token, f"{job.state.replace('_', ' ')}{words}")

    waited_s = run.clock.now() - attempt.posted_at
    if (
        job.state is JobState.PENDING
        and attempt.posted_at
        and waited_s > run.policy.stall_after_s
        and attempt.token not in run.stalled
    ):
        run.stalled.add(attempt.token)
        run.event(
            "stalled",
            attempt.token,
            f"{job.job_name} has been pending for {waited_s / 3600:.0f} hours; wait, or cancel it and"
            " apply again (it is never sent twice by itself)",
        )


def collect(run: Run, attempt: Attempt) -> None:
    """Store what came back, then its outcomes, then the root that names them."""
    run.index.sync(run.ledger.state, run.ledger.attempts.values())
    summary = run.index.ingested(attempt.token)
    if summary is None:
        collector = Collector(
            attempt,
            run.judge,
            run.store.shard_lines(attempt.shard_id),
            run.index,
            lambda stored: _again(run, attempt, stored),
            run.records.attempt(attempt.token) if run.records is not None else None,
        )
        if attempt.output_name:
            _download(run, attempt, collector)
        got = collector.finish()
        summary = {"outcomes": got.outcomes, "strays": got.strays, "usage": got.usage}
        name = run.store.put_outcomes(attempt.token, summary, got.lines)
        run.ledger.save(replace(run.ledger.state, outcomes=(*run.ledger.state.outcomes, name)))
        run.index.extend(run.ledger.state, attempt.token, summary, got.lines)
        run.again.update(got.again)
    attempt = replace(attempt, outcomes=summary["outcomes"], strays=summary["strays"])
    run.sent.update(summary["outcomes"])
    run.usage.update(summary["usage"])
    if failed_as_a_whole(attempt):
        words = f"the job of {attempt.token} failed: {attempt.error}"
        run.errors.append(words)
    run.ledger.replace(attempt, state=AttemptState.COLLECTED)
    run.event(
        "collected", attempt.token, _counts_text(attempt.outcomes, attempt.strays), dict(attempt.outcomes)
    )


def _download(run: Run, attempt: Attempt, collector: Collector) -> None:
    job = Job(
        job_name=attempt.job_name,
        display_name=attempt.token,
        state=attempt.job_state or JobState.SUCCEEDED,
        output_name=attempt.output_name,
    )
    chunks = run.backend.output(job)
    if run.spec.sensitive:
        # An echoed request holds what is to be stored nowhere.
        chunks = (results.without_echo(line) + b"\n" for line in parts.split_lines(chunks))
    run.store.put_responses(attempt.token, chunks, collector.line)


def clean(run: Run, attempt: Attempt) -> None:
    """Delete what the spec's `cleanup` no longer wants at the service."""
    if attempt.upload_name:
        run.backend.delete_upload(attempt.upload_name)
    if run.policy.cleanup == "all" and attempt.posted_at:
        # A job that was imported is another state's, and may still be needed there.
        run.backend.delete(attempt.job_name)
    run.ledger.replace(attempt, state=AttemptState.CLEANED)


def repack(run: Run) -> None:
    """Pack what is to be retried, in the order in which it was sent first."""
    folder = tempfile.mkdtemp(dir=run.scratch)
    writer = ShardWriter(Path(folder), run.spec.shards)
    run.index.sync(run.ledger.state, run.ledger.attempts.values())
    # Another attempt may have answered one meanwhile, or hold it now.
    waiting = {first: remedy for first, remedy in run.again.items() if _may_be_sent(run, first, remedy)}
    run.again = {}
    adopted = sorted(a.shard_id for a in run.ledger.attempts.values() if a.token in run.wanted)
    for shard_id in list(dict.fromkeys([*run.shards, *adopted])):
        for line in run.store.shard_lines(shard_id) if waiting else ():
            request_id = parts.request_id(line)
            if request_id not in waiting:
                continue
            remedy = waiting.pop(request_id)
            if remedy is None:
                writer.add(Request(request_id, line + b"\n"))
            else:
                run.remedies.add(remedy.request_id)
                writer.add(Request(remedy.request_id, remedies.line(line, remedy)))
    for shard in writer.finish():
        run.shards[shard.shard_id] = shard
        run.todo.append(shard.shard_id)
        run.event("retry", "", f"{shard.request_count:,} requests go into another job")


def _again(run: Run, attempt: Attempt, stored: Stored) -> tuple[bool, Remedy | None]:
    """Whether a failure that some row wants answered is to be sent again, and how it is changed."""
    failures, request_id = run.spec.failures, stored.request_id
    wanted = attempt.token in run.wanted and (run.wants(request_id) or request_id in run.remedies)
    if not wanted or not run.policy.retry or stored.jobs >= failures.max_attempts:
        return False, None
    root, taken = request_id, None
    while (before := run.index.remedied(root)) is not None:
        taken = before.remedy if taken is None else taken
        root = before.request_id
    remedy = remedies.following(root, stored, taken or {}, run.spec)
    return remedy is not None or stored.retryable(failures.retry), remedy


def _may_be_sent(run: Run, request_id: str, remedy: Remedy | None) -> bool:
    if remedy is not None:
        return run.index.stored(remedy.request_id) is None and run.index.live(remedy.request_id) is None
    stored, failures = run.index.stored(request_id), run.spec.failures
    if stored is None or run.index.live(request_id) is not None:
        return False
    return stored.retryable(failures.retry) and stored.jobs < failures.max_attempts


def _counts_text(outcomes: Mapping[str, int], strays: Mapping[str, int]) -> str:
    text = ", ".join(f"{count:,} {name}" for name, count in outcomes.items()) or "nothing came back"
    if strays:
        text += (
            f" (besides: {', '.join(f'{count:,} {name}' for name, count in sorted(strays.items()))} lines)"
        )
    return text
