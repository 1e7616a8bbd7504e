"""A job as the long-running operation that the service shows. Pure.

No `done` until the end; counts are strings; all rows stay pending while the job runs; results stand
twice, in `metadata.output` and in `response`.

Source: recorded operations of the Developer API, 2025-09 to 2026-09.
"""

from __future__ import annotations

from typing import Any

from runner.emulator.jobs import Job
from runner.emulator.wire import embeds, timestamp

_TYPE = "type.googleapis.com/google.ai.generativelanguage.v1main."


def operation(job: Job, inlined: list[Any] | None) -> dict[str, Any]:
    """The operation; `inlined` holds the output of a job with inline requests, None for one with a file."""
    name = f"batches/{job.id}"
    kind = f"{_TYPE}{'EmbedContentBatch' if embeds(job.model) else 'GenerateContentBatch'}"
    shown: dict[str, Any] = {"@type": kind, "model": job.model, "displayName": job.display_name}
    if job.input_file:
        shown["inputConfig"] = {"fileName": job.input_file}
    shown["createTime"] = timestamp(job.created_ns)
    output: dict[str, Any] | None = None
    if job.ended and job.output:
        if inlined is None:
            output = {"responsesFile": output_name(job.id)}
        else:
            output = {"inlinedResponses": {"inlinedResponses": inlined}}
        shown["output"] = output
    if job.ended:
        shown["endTime"] = timestamp(job.ended_ns)
    shown |= {
        "updateTime": timestamp(job.updated_ns),
        "batchStats": _stats(job),
        "state": f"BATCH_STATE_{job.state}",
        "name": name,
    }
    body: dict[str, Any] = {"name": name, "metadata": shown}
    if job.ended:
        body["done"] = True
        if job.ending.code:
            body["error"] = {"code": job.ending.code, "message": job.ending.message}
        elif output:
            body["response"] = {"@type": f"{kind}Output", **output}
    return body


def output_name(job_id: str) -> str:
    """The name of a job's output file: 42 characters, too long for files.get and files.delete."""
    return f"files/batch-{job_id}"


def _stats(job: Job) -> dict[str, str]:
    stats = {"requestCount": str(job.rows)}
    if not job.ended:
        return {**stats, "pendingRequestCount": str(job.rows)}
    counts = {
        "successfulRequestCount": job.ok,
        "failedRequestCount": job.failed,
        "pendingRequestCount": job.rows - job.ok - job.failed,
    }
    return {**stats, **{name: str(count) for name, count in counts.items() if count}}
