"""The Gemini Developer API, through Google's SDK.

The SDK's retries stay off; `RetryingBackend` repeats what is safe to repeat.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

from runner.backends import geminiwire, sdk
from runner.backends.rest import Rest
from runner.backendspec import ceilings
from runner.clock import Clock, SystemClock
from runner.errors import BackendError, StateError
from runner.model import Job, JobState, Upload
from runner.specmodel import BackendSpec

if TYPE_CHECKING:
    from google.genai import types

DEFAULT_BASE_URL = "https://generativelanguage.googleapis.com"

_CHUNK_BYTES = 1 << 18
_MIME_TYPE = "application/jsonl"


class GeminiBackend:
    """Batch jobs of one API key at one endpoint.

    `base_url` may have a path; None is Google's own. `request_timeout_s` bounds each wait for the
    service, so a long transfer that keeps moving is not cut off. Raises `BackendError` for a key
    that cannot stand in a header.
    """

    limits = ceilings("gemini", "generate_content")
    poll_interval_s = 30.0
    notice = ""

    def __init__(
        self,
        *,
        api_key: str,
        base_url: str | None,
        api_version: str,
        request_timeout_s: float,
        clock: Clock | None = None,
    ) -> None:
        from google import genai

        if not api_key.isascii() or not api_key.isprintable() or not api_key:
            raise BackendError("the API key has characters that no key has", hint="copy it again")
        self._base_url = (base_url or DEFAULT_BASE_URL).rstrip("/")
        self._api_version = api_version
        self._api_key = api_key
        self._timeout_s = request_timeout_s
        self._clock = clock or SystemClock()
        host = urlsplit(self._base_url).hostname or ""
        self.principal = f"gemini:{host}:{hashlib.sha256(api_key.encode()).hexdigest()[:12]}"
        self._http, tls = sdk.connection(host, request_timeout_s)
        self._client = genai.Client(
            api_key=api_key,
            # Said, or GOOGLE_GENAI_USE_VERTEXAI in the environment would make it another service.
            vertexai=False,
            http_options=genai.types.HttpOptions(
                base_url=self._base_url,
                api_version=api_version,
                timeout=max(1, int(request_timeout_s * 1000)),
                httpx_client=self._http,
                # Not used, but else the SDK reads all certificates twice more, for 50 ms.
                async_client_args={"verify": tls},
            ),
        )
        self._rest = Rest(self._client, geminiwire.problem)

    # ------------------------------------------------------------ files

    def upload(self, path: Path, *, name: str, sha256: str) -> Upload:
        """See `Backend.upload`."""
        try:
            file = self._upload(path, name, named=True)
        except BackendError:
            # Whatever went wrong, perhaps only the reply is missing and the file is there.
            found = self._file(name)
            if found is not None and geminiwire.sha256_of(found.sha256_hash or "") == sha256:
                found = self._settled(found)
                if _file_state(found) == "ACTIVE":
                    return Upload(name=found.name or "", sha256=sha256)
            file = self._upload(path, name, named=False)
        file = self._settled(file)
        if _file_state(file) != "ACTIVE":
            reason = file.error.message if file.error else None
            raise BackendError(
                f"the service could not process the upload {file.name}: {reason or _file_state(file)}"
            )
        received = geminiwire.sha256_of(file.sha256_hash or "")
        if received and received != sha256:
            raise BackendError(
                f"the upload {file.name} arrived damaged: SHA-256 {received}, sent {sha256}", transient=True
            )
        return Upload(name=file.name or "", sha256=received)

    def upload_exists(self, name: str) -> bool:
        """See `Backend.upload_exists`."""
        return self._file(name) is not None

    def delete_upload(self, name: str) -> None:
        """See `Backend.delete_upload`."""
        try:
            with self._rest.speaking(f"cannot delete the upload {name}"):
                self._client.files.delete(name=name)
        except BackendError as error:
            if error.http_status not in geminiwire.GONE:
                raise

    def _upload(self, path: Path, name: str, *, named: bool) -> types.File:
        config: types.UploadFileConfigDict = {"mime_type": _MIME_TYPE, "display_name": name}
        if named:
            config["name"] = name
        try:
            stream = path.open("rb")
        except OSError as error:
            raise StateError(f"cannot read {path}: {error.strerror}") from error
        # A stream rather than a path: of a path the SDK sends the file's local name along.
        with stream, self._rest.speaking(f"cannot upload {name}"):
            file = self._client.files.upload(file=stream, config=config)
            if not file.name:
                raise KeyError("name")
            return file

    def _file(self, name: str) -> types.File | None:
        """The file of this name, None where there is none."""
        try:
            with self._rest.speaking(f"cannot look up the upload {name}"):
                return self._client.files.get(name=name)
        except BackendError as error:
            if error.http_status in geminiwire.GONE:
                return None
            raise

    def _settled(self, file: types.File) -> types.File:
        """The file once it is no longer being processed."""
        deadline = self._clock.now() + self._timeout_s
        pause_s = 0.1
        while _file_state(file) == "PROCESSING":
            if self._clock.now() >= deadline:
                raise BackendError(
                    f"the upload {file.name} was still being processed after {self._timeout_s:g} s",
                    transient=True,
                )
            self._clock.sleep(pause_s)
            pause_s = min(pause_s * 2, 5.0)
            name = file.name or ""
            seen = self._file(name)
            if seen is None:
                raise BackendError(f"the upload {name} vanished while it was being processed", transient=True)
            file = seen
        return file

    # ------------------------------------------------------------ jobs

    def create(
        self, *, model: str, upload_name: str, display_name: str, task: str = "generate_content"
    ) -> Job:
        """See `Backend.create`."""
        what = f"cannot create the job {display_name}"
        method, body = geminiwire.create_call(task, upload_name, display_name)
        with sdk.submitting(what, geminiwire.problem):
            reply = self._rest.json("post", f"{quote(geminiwire.model_path(model))}:{method}", body)
            name = reply["name"]
            if not isinstance(name, str) or not name.startswith("batches/"):
                raise ValueError(f"the reply names no job: {json.dumps(reply)[:200]}")
        # Of the reply only the name is read: a job that exists must not get lost over the rest.
        return Job(job_name=name, display_name=display_name, state=JobState.PENDING, model=model)

    def jobs(self) -> Iterator[Job]:
        """See `Backend.jobs`."""
        for operation in self._rest.listed("batches", "operations"):
            with self._rest.speaking("cannot read the list of jobs"):
                job = geminiwire.read_job(operation, listed=True)
            yield job

    def get(self, job_name: str) -> Job:
        """See `Backend.get`."""
        with self._rest.speaking(f"cannot look up the job {job_name}"):
            return geminiwire.read_job(self._rest.json("get", quote(job_name)))

    def cancel(self, job_name: str) -> None:
        """See `Backend.cancel`."""
        try:
            with self._rest.speaking(f"cannot cancel the job {job_name}"):
                self._client.batches.cancel(name=job_name)
        except BackendError as error:
            if error.http_status not in (400, 409) or not self.get(job_name).state.terminal:
                raise

    def delete(self, job_name: str) -> None:
        """See `Backend.delete`."""
        try:
            with self._rest.speaking(f"cannot delete the job {job_name}"):
                self._client.batches.delete(name=job_name)
        except BackendError as error:
            if error.http_status != 404:
                raise

    def output(self, job: Job) -> Iterator[bytes]:
        """See `Backend.output`; chunks of at most 256 KiB.

        A body shorter than its Content-Length is an error of the connection, and so transient.
        The file is never looked up: its id is longer than `files.get` accepts.
        Source: google-genai issue 1759, read 2026-11-21.
        """
        if not job.output_name:
            return
        if job.output_name == job.job_name:
            with self._rest.speaking(f"cannot read the answers in {job.job_name}"):
                yield from geminiwire.inline_lines(self._rest.json("get", quote(job.job_name)))
            return
        from google.genai import errors

        url = f"{self._base_url}/{self._api_version}/{quote(job.output_name)}:download?alt=media"
        headers = {"x-goog-api-key": self._api_key}
        with (
            self._rest.speaking(f"cannot download the output {job.output_name} of {job.job_name}"),
            self._http.stream("GET", url, headers=headers, follow_redirects=True) as response,
        ):
            errors.APIError.raise_for_response(response)
            yield from response.iter_bytes(_CHUNK_BYTES)

    # ------------------------------------------------------------ synchronous calls

    def answer(self, *, task: str, model: str, line: bytes) -> bytes:
        """See `Backend.answer`."""
        row = json.loads(line)
        method, body = geminiwire.answer_call(task, model, row["request"])
        return self._rest.answer(model, geminiwire.model_path(model), method, row, body)

    def close(self) -> None:
        """See `Backend.close`."""
        self._client.close()
        self._http.close()


def from_environment(spec_backend: BackendSpec, environ: Mapping[str, str]) -> GeminiBackend:
    """A backend for `spec_backend`, with the key that the environment holds.

    GOOGLE_API_KEY wins over GEMINI_API_KEY, as in the SDK. Raises `BackendError` without a key.
    """
    key = (environ.get("GOOGLE_API_KEY") or environ.get("GEMINI_API_KEY") or "").strip()
    if not key:
        raise BackendError(
            "there is no API key: neither GEMINI_API_KEY nor GOOGLE_API_KEY is set",
            hint="export GEMINI_API_KEY=..., or try the spec without an account: --backend local",
        )
    return GeminiBackend(
        api_key=key,
        base_url=spec_backend.base_url or environ.get("GOOGLE_GEMINI_BASE_URL"),
        api_version=spec_backend.api_version,
        request_timeout_s=spec_backend.request_timeout_s,
    )


def _file_state(file: types.File) -> str:
    """`ACTIVE`, `PROCESSING` or `FAILED`; a file without a state is usable."""
    return str(file.state.value) if file.state else "ACTIVE"
