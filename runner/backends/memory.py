"""A batch service in this process's memory, for tests and simulations.

It keeps the rules that matter to a caller: a create call is not idempotent and makes a job each
time, a malformed line refuses the whole job, jobs advance with the clock, an output goes when
its job is deleted. One object is the service: it outlives the runs that a simulation kills.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from runner.clock import Clock
from runner.errors import BackendError, SubmissionRefused
from runner.model import Job, JobState, Json, Upload
from runner.specmodel import ShardLimits

Answer = Callable[[Mapping[str, Json]], Mapping[str, Json]]
"""A request line, parsed -> the response line without its key: `response` or `error`."""

Fault = Callable[[str, Mapping[str, str]], BaseException | None]
"""(step, arguments) -> what to raise there, or None.

A step is a method and a side of its effect: `create.before`, `create.after`. What is raised
after the effect is a lost reply.
"""

_CHUNK_BYTES = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How a job ends once it has run."""

    state: JobState = JobState.SUCCEEDED
    error_code: int = 0
    error_message: str = ""


@dataclass(slots=True, kw_only=True)
class _Job:
    name: str
    display_name: str
    model: str
    lines: list[Mapping[str, Json]]
    created_at: float
    cancelled_at: float | None = None


class MemoryBackend:
    """The `Backend` contract over dictionaries.

    A job is pending for `pending_s`, runs for `running_s` seconds of `clock`, and ends as
    `ending(display_name)` says; it stands in listings `listing_lag_s` after its creation.
    Output exists for a job that succeeded or partially succeeded.
    """

    limits = ShardLimits(max_requests=1_000_000, max_bytes=2_000_000_000)
    poll_interval_s = 1.0
    principal = "memory"
    notice = "backend memory: no model was called"

    def __init__(
        self,
        clock: Clock,
        *,
        answer: Answer | None = None,
        ending: Callable[[str], Ending] | None = None,
        fault: Fault | None = None,
        pending_s: float = 1.0,
        running_s: float = 1.0,
        listing_lag_s: float = 0.0,
    ) -> None:
        self._clock = clock
        self._answer = answer or conforming
        self._ending = ending or (lambda _: Ending())
        self.fault = fault
        """May be exchanged at any time."""
        self._pending_s = pending_s
        self._running_s = running_s
        self._listing_lag_s = listing_lag_s
        self._files: dict[str, bytes] = {}
        self._jobs: dict[str, _Job] = {}
        self._created = 0

    def upload(self, path: Path, *, name: str, sha256: str) -> Upload:
        """See `Backend.upload`."""
        self._step("upload.before", name=name)
        data = path.read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        if digest != sha256:
            raise BackendError(f"the upload {name} arrived damaged: SHA-256 {digest}, sent {sha256}")
        full = f"files/{name}"
        if self._files.get(full, data) != data:
            full = self._new_name("files")
        self._files[full] = data
        self._step("upload.after", name=name)
        return Upload(name=full, sha256=digest)

    def upload_exists(self, name: str) -> bool:
        """See `Backend.upload_exists`."""
        self._step("upload_exists.before", name=name)
        return _full(name) in self._files

    def delete_upload(self, name: str) -> None:
        """See `Backend.delete_upload`."""
        self._step("delete_upload.before", name=name)
        self._files.pop(_full(name), None)
        self._step("delete_upload.after", name=name)

    def create(
        self, *, model: str, upload_name: str, display_name: str, task: str = "generate_content"
    ) -> Job:
        """See `Backend.create`."""
        self._step("create.before", display_name=display_name, upload_name=upload_name)
        data = self._files.get(upload_name)
        if data is None:
            raise SubmissionRefused(
                f"Requested entity was not found: {upload_name}", status="NOT_FOUND", http_status=404
            )
        job = _Job(
            name=self._new_name("batches"),
            display_name=display_name,
            model=model,
            lines=_parsed(data, task),
            created_at=self._clock.now(),
        )
        self._jobs[job.name] = job
        self._step("create.after", display_name=display_name, upload_name=upload_name)
        return self._seen(job)

    def jobs(self) -> Iterator[Job]:
        """See `Backend.jobs`; newest first."""
        self._step("jobs.before")
        for job in reversed(list(self._jobs.values())):
            if self._clock.now() >= job.created_at + self._listing_lag_s:
                yield self._seen(job)
        self._step("jobs.after")

    def get(self, job_name: str) -> Job:
        """See `Backend.get`."""
        self._step("get.before", job_name=job_name)
        return self._seen(self._job(job_name))

    def cancel(self, job_name: str) -> None:
        """See `Backend.cancel`; a job that has not ended is cancelled at once, with no output."""
        self._step("cancel.before", job_name=job_name)
        job = self._job(job_name)
        if not self._seen(job).state.terminal:
            job.cancelled_at = self._clock.now()
        self._step("cancel.after", job_name=job_name)

    def delete(self, job_name: str) -> None:
        """See `Backend.delete`."""
        self._step("delete.before", job_name=job_name)
        self._jobs.pop(job_name, None)
        self._step("delete.after", job_name=job_name)

    def output(self, job: Job) -> Iterator[bytes]:
        """See `Backend.output`."""
        self._step("output.before", job_name=job.job_name)
        if not job.output_name:
            return
        found = self._job(job.job_name)
        data = b"".join(self._answered(line) for line in found.lines)
        for start in range(0, len(data), _CHUNK_BYTES):
            yield data[start : start + _CHUNK_BYTES]
        self._step("output.after", job_name=job.job_name)

    def answer(self, *, task: str, model: str, line: bytes) -> bytes:
        """See `Backend.answer`; a request that a job would be refused for is a row's error here."""
        row = json.loads(line)
        self._step("answer.before", key=row["key"], model=model)
        if _is_of(task, row):
            found = self._answered(row)
        else:
            error = {"code": 3, "message": "Invalid request", "status": "INVALID_ARGUMENT"}
            found = json.dumps({"key": row["key"], "error": error}).encode() + b"\n"
        self._step("answer.after", key=row["key"], model=model)
        return found

    def close(self) -> None:
        """See `Backend.close`; the service lives on."""

    def _answered(self, line: Mapping[str, Json]) -> bytes:
        body = {"key": line.get("key"), **self._answer(line)}
        return json.dumps(body, ensure_ascii=False).encode() + b"\n"

    def _step(self, step: str, **args: str) -> None:
        error = self.fault(step, args) if self.fault else None
        if error is not None:
            raise error

    def _new_name(self, kind: str) -> str:
        self._created += 1
        return f"{kind}/memory{self._created:06d}"

    def _job(self, job_name: str) -> _Job:
        job = self._jobs.get(job_name)
        if job is None:
            raise BackendError(
                f"Requested entity was not found: {job_name}", status="NOT_FOUND", http_status=404
            )
        return job

    def _seen(self, job: _Job) -> Job:
        """The job as the clock has it now."""
        now = self._clock.now()
        started_at = job.created_at + self._pending_s
        ended_at = started_at + self._running_s
        if job.cancelled_at is not None:
            ended_at = job.cancelled_at
            ending = Ending(state=JobState.CANCELLED, error_code=13, error_message="The job was cancelled.")
        elif now >= ended_at:
            ending = self._ending(job.display_name)
        else:
            ending = Ending(state=JobState.RUNNING if now >= started_at else JobState.PENDING)
        answered = ending.state in (JobState.SUCCEEDED, JobState.PARTIAL)
        count = len(job.lines)
        return Job(
            job_name=job.name,
            display_name=job.display_name,
            state=ending.state,
            model=job.model,
            output_name=f"files/batch-{job.name.removeprefix('batches/')}" if answered else "",
            error_code=ending.error_code,
            error_message=ending.error_message,
            create_time=_timestamp(job.created_at),
            end_time=_timestamp(ended_at) if ending.state.terminal else "",
            counts={
                "request": count,
                "successful": count if answered else 0,
                "failed": 0,
                "pending": 0 if answered else count,
            },
        )


def conforming(line: Mapping[str, Json]) -> Mapping[str, Json]:
    """A response of one candidate: the smallest answer that fits the request's schema, or `ok`.

    To content to embed, a vector of equal entries and of length 1.
    """
    request = line.get("request") or {}
    if "content" in request:
        size = int(request.get("outputDimensionality") or request.get("output_dimensionality") or 4)
        return {"response": {"embedding": {"values": [size**-0.5] * size}, "tokenCount": "1"}}
    config = request.get("generationConfig") or request.get("generation_config") or {}
    schema = config.get("responseSchema") or config.get("response_schema")
    text = json.dumps(_smallest(schema), ensure_ascii=False) if schema else "ok"
    return {
        "response": {
            "candidates": [
                {
                    "content": {"parts": [{"text": text}], "role": "model"},
                    "finishReason": "STOP",
                    "index": 0,
                }
            ],
            "usageMetadata": {"promptTokenCount": 1, "candidatesTokenCount": 1, "totalTokenCount": 2},
            "modelVersion": "memory",
        }
    }


def _smallest(schema: Mapping[str, Json]) -> Json:
    if schema.get("enum"):
        return schema["enum"][0]
    if schema.get("anyOf"):
        return _smallest(schema["anyOf"][0])
    match str(schema.get("type", "")).lower():
        case "object":
            return {name: _smallest(child) for name, child in (schema.get("properties") or {}).items()}
        case "array":
            return [_smallest(schema.get("items") or {})] * int(schema.get("minItems") or 0)
        case "string":
            return "x" * int(schema.get("minLength") or 1)
        case "integer":
            return int(schema.get("minimum") or 0)
        case "number":
            return float(schema.get("minimum") or 0)
        case "boolean":
            return False
        case _:
            return None


def _parsed(data: bytes, task: str) -> list[Mapping[str, Json]]:
    """The lines of a request file; one that is none of the task refuses them all, as at the service."""
    lines: list[Mapping[str, Json]] = []
    for number, text in enumerate(data.removesuffix(b"\n").split(b"\n"), start=1):
        try:
            line = json.loads(text)
        except ValueError:
            line = None
        if not isinstance(line, dict) or not _is_of(task, line):
            raise SubmissionRefused(
                f"Error on line {number}: invalid JSON", status="INVALID_ARGUMENT", http_status=400
            )
        lines.append(line)
    return lines


def _is_of(task: str, line: Mapping[str, Json]) -> bool:
    """Whether a line holds what the task is about; one that holds nothing passes for an answer's."""
    return ("content" in (line.get("request") or {})) == (task == "embed_content")


def _full(name: str) -> str:
    return name if name.startswith("files/") else f"files/{name}"


def _timestamp(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")
