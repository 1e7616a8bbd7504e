"""The contract of a service that runs batch jobs.

An implementation sends and receives, and translates errors; it decides nothing, prints
nothing and keeps no state between calls. `tests/contract/` runs one suite over all of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from runner.errors import BackendError
from runner.model import Job, Upload
from runner.specmodel import ShardLimits


class Backend(Protocol):
    """What the executor needs of a service.

    Every method may raise `BackendError`; `transient` on it says whether the same call may
    succeed later. Only `create` has errors of its own.
    """

    limits: ShardLimits
    """The service's own ceilings for one job."""
    poll_interval_s: float
    """How long to wait between two looks at a job, unless the spec says otherwise."""
    principal: str
    """Whose jobs these are, see `principal`: `gemini:<host>:<12 hex of the key's digest>`,
    `vertex:<host>:<project>/<location>`. No secret."""
    notice: str
    """A sentence every run must show, such as that no model was called; may be empty."""

    def upload(self, path: Path, *, name: str, sha256: str) -> Upload:
        """Put a JSONL file at the service and return it once it is usable (ACTIVE).

        Asks for `name`; where a file of that name exists with this digest it is reused, where
        the name is taken by other bytes or not accepted the service chooses one. `sha256` is
        the hex digest of the file's bytes. Safe to repeat.
        """
        ...

    def upload_exists(self, name: str) -> bool:
        """Whether an upload is still there (the positive control before a job is created again)."""
        ...

    def delete_upload(self, name: str) -> None:
        """Delete an upload; one that is already gone is no error."""
        ...

    def create(
        self, *, model: str, upload_name: str, display_name: str, task: str = "generate_content"
    ) -> Job:
        """Create a job with exactly one POST, never repeated by anything below this call.

        `task` is `generate_content` or `embed_content`, as the file's lines are.

        Raises:
            SubmissionRefused: certainly no job (400, 401, 403, 404, or nothing was sent).
            SubmissionDeferred: 429 with a status body; no job.
            SubmissionUnknown: anything else (timeout, reset, 408, 5xx, 2xx without a name).
        """
        ...

    def jobs(self) -> Iterator[Job]:
        """Every job of the account, all pages; an empty page is not the end."""
        ...

    def get(self, job_name: str) -> Job:
        """One job as it is now. Raises BackendError, with http_status 404 where it does not exist."""
        ...

    def cancel(self, job_name: str) -> None:
        """Ask for a cancellation; a job that has already ended is no error."""
        ...

    def delete(self, job_name: str) -> None:
        """Delete a job and its output; one that is already gone is no error."""
        ...

    def output(self, job: Job) -> Iterator[bytes]:
        """The job's output as chunks of bytes, in order; nothing where it has none.

        Answers that are kept inside the job (`output_name` is then `job_name`) come as one line
        each, their keys in `metadata.key`.
        """
        ...

    def answer(self, *, task: str, model: str, line: bytes) -> bytes:
        """Ask one request synchronously: a line of a batch file in, a line of a batch's output out.

        `line` is `{"key":...,"request":{...}}`; what comes back ends with a newline and is
        `{"key":...,"response":{...}}` with the service's JSON verbatim, or, for a refusal that is
        about this request alone, `{"key":...,"error":{"code":...,"message":...,"status":...}}` with
        a google.rpc code. May be called from several threads at once.

        Raises:
            BackendError: everything that is not the request's fault: no connection (`status` is
                then UNAVAILABLE and `http_status` 0), timeouts, 401, 403, an unknown model, 429, 5xx.
                Except without a connection and with 429, the answer may have been paid for.
        """
        ...

    def close(self) -> None:
        """Release connections and anything that was started."""
        ...


def was_not_answered(error: BackendError) -> bool:
    """Whether a synchronous call that failed was surely not answered, and so not paid for."""
    return error.http_status in (429, 503) or (error.http_status == 0 and error.status == "UNAVAILABLE")
