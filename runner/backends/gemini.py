"""The Gemini Developer API, through Google's SDK.

The only module that imports the SDK, and only when a backend is made: the import takes most of
a second. The SDK's retries stay off; `RetryingBackend` repeats what is safe to repeat.

Jobs are read from raw JSON. The SDK's `BatchJob` drops `error`, `done`, `batchStats` and
`response`, so a failed job would have no reason and no counts, and it turns a state it does not
know into a warning.
Source: google-genai 3.4.0, batches.py `_BatchJob_from_mldev`, read 2026-11-21.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode, urlsplit

from runner.clock import Clock, SystemClock
from runner.errors import (
    BackendError,
    StateError,
    SubmissionDeferred,
    SubmissionRefused,
    SubmissionUnknown,
)
from runner.model import BackendSpec, Job, JobState, Json, ShardLimits, Upload

if TYPE_CHECKING:
    from google.genai import types

DEFAULT_BASE_URL = "https://generativelanguage.googleapis.com"
# The SDK warns where both key variables are set; whoever sets up logging decides if that shows.
logging.getLogger("google_genai").addHandler(logging.NullHandler())

_CHUNK_BYTES = 1 << 18
_PAGE_SIZE = 100
_MIME_TYPE = "application/jsonl"

_STATES = {
    "QUEUED": JobState.PENDING,
    "PENDING": JobState.PENDING,
    "RUNNING": JobState.RUNNING,
    "UPDATING": JobState.RUNNING,
    "PAUSED": JobState.PAUSED,
    "CANCELLING": JobState.CANCELLING,
    "SUCCEEDED": JobState.SUCCEEDED,
    "PARTIALLY_SUCCEEDED": JobState.PARTIAL,
    "FAILED": JobState.FAILED,
    "CANCELLED": JobState.CANCELLED,
    "EXPIRED": JobState.EXPIRED,
}
"""After `BATCH_STATE_` or `JOB_STATE_`. Source: google-genai 3.4.0 types.JobState, and recorded
replies of the service, read 2026-11-21."""

_REFUSED = {400, 401, 403, 404}
_TRANSIENT = {408, 429, 500, 502, 503, 504}
_GONE = {403, 404}
"""What a missing file answers: 404, or 403 "or it may not exist".
Source: recorded replies of the service, 2026-09."""


class GeminiBackend:
    """Batch jobs of one API key at one endpoint.

    `base_url` may have a path; None is Google's own. `request_timeout_s` bounds each wait for the
    service, so a long transfer that keeps moving is not cut off. Raises `BackendError` for a key
    that cannot stand in a header.
    """

    # Source: 2 GB per input file, Gemini API documentation, read 2026-11-21. It names no number
    # of requests; this one keeps a shard's files and a lost job at a size that can be handled.
    limits = ShardLimits(max_requests=1_000_000, max_bytes=2_000_000_000)
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
        import httpx2
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
        # Our own client below the SDK: the SDK's hands no download out as a stream, and follows
        # redirects, which could send a create twice. A proxy cannot reach our loopback.
        trust_env = not _is_loopback(host)
        tls = httpx2.create_ssl_context(trust_env=trust_env)
        self._http = httpx2.Client(
            timeout=request_timeout_s, follow_redirects=False, trust_env=trust_env, verify=tls
        )
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

    # ------------------------------------------------------------ files

    def upload(self, path: Path, *, name: str, sha256: str) -> Upload:
        """See `Backend.upload`."""
        try:
            file = self._upload(path, name, named=True)
        except BackendError:
            # Whatever went wrong, perhaps only the reply is missing and the file is there.
            found = self._file(name)
            if found is not None and _sha256_of(found.sha256_hash or "") == sha256:
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
        received = _sha256_of(file.sha256_hash or "")
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
            with self._speaking(f"cannot delete the upload {name}"):
                self._client.files.delete(name=name)
        except BackendError as error:
            if error.http_status not in _GONE:
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
        with stream, self._speaking(f"cannot upload {name}"):
            file = self._client.files.upload(file=stream, config=config)
            if not file.name:
                raise KeyError("name")
            return file

    def _file(self, name: str) -> types.File | None:
        """The file of this name, None where there is none."""
        try:
            with self._speaking(f"cannot look up the upload {name}"):
                return self._client.files.get(name=name)
        except BackendError as error:
            if error.http_status in _GONE:
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

    def create(self, *, model: str, upload_name: str, display_name: str) -> Job:
        """See `Backend.create`."""
        import httpx2
        from google.genai import errors

        what = f"cannot create the job {display_name}"
        path = model if "/" in model else f"models/{model}"
        body = {"batch": {"inputConfig": {"fileName": upload_name}, "displayName": display_name}}
        try:
            reply = self._json("post", f"{quote(path)}:batchGenerateContent", body)
            name = reply["name"]
            if not isinstance(name, str) or not name.startswith("batches/"):
                raise ValueError(f"the reply names no job: {json.dumps(reply)[:200]}")
        except errors.APIError as error:
            problem = _problem(what, error)
            kind: type[BackendError] = SubmissionUnknown
            if problem.http_status in _REFUSED:
                kind = SubmissionRefused
            elif problem.http_status == 429 and problem.status:
                kind = SubmissionDeferred
            raise kind(
                problem.message,
                hint=problem.hint,
                status=problem.status,
                http_status=problem.http_status,
                transient=kind is SubmissionDeferred,
            ) from error
        except (
            httpx2.ConnectError,
            httpx2.ConnectTimeout,
            httpx2.PoolTimeout,
            httpx2.ProxyError,
            httpx2.UnsupportedProtocol,
        ) as error:
            # All of these end before the first byte of the request has left.
            raise SubmissionRefused(f"{what}: no connection: {error}", transient=True) from error
        except Exception as error:
            # Whatever it is, it came after the request may have left: to call it harmless is to
            # risk paying twice.
            raise SubmissionUnknown(f"{what}: {error or type(error).__name__}") from error
        # Of the reply only the name is read: a job that exists must not get lost over the rest.
        return Job(job_name=name, display_name=display_name, state=JobState.PENDING, model=model)

    def jobs(self) -> Iterator[Job]:
        """See `Backend.jobs`."""
        token = ""
        seen: set[str] = set()
        while True:
            query = {"pageSize": str(_PAGE_SIZE)} | ({"pageToken": token} if token else {})
            with self._speaking("cannot list the jobs"):
                page = self._json("get", f"batches?{urlencode(query)}")
                operations = page.get("operations") or []
                token = str(page.get("nextPageToken") or "")
            for operation in operations:
                with self._speaking("cannot read the list of jobs"):
                    job = _read_listed(operation)
                if job is not None:
                    yield job
            if not token:
                return
            if token in seen:
                raise BackendError(
                    "cannot list the jobs: the service goes round in its pages", transient=True
                )
            seen.add(token)

    def get(self, job_name: str) -> Job:
        """See `Backend.get`."""
        with self._speaking(f"cannot look up the job {job_name}"):
            return _read_job(self._json("get", quote(job_name)))

    def cancel(self, job_name: str) -> None:
        """See `Backend.cancel`."""
        try:
            with self._speaking(f"cannot cancel the job {job_name}"):
                self._client.batches.cancel(name=job_name)
        except BackendError as error:
            if error.http_status not in (400, 409) or not self.get(job_name).state.terminal:
                raise

    def delete(self, job_name: str) -> None:
        """See `Backend.delete`."""
        try:
            with self._speaking(f"cannot delete the job {job_name}"):
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
        from google.genai import errors

        url = f"{self._base_url}/{self._api_version}/{quote(job.output_name)}:download?alt=media"
        headers = {"x-goog-api-key": self._api_key}
        with (
            self._speaking(f"cannot download the output {job.output_name} of {job.job_name}"),
            self._http.stream("GET", url, headers=headers, follow_redirects=True) as response,
        ):
            errors.APIError.raise_for_response(response)
            yield from response.iter_bytes(_CHUNK_BYTES)

    def close(self) -> None:
        """See `Backend.close`."""
        self._client.close()
        self._http.close()

    # ------------------------------------------------------------ the wire

    def _json(self, method: str, path: str, body: Mapping[str, Json] | None = None) -> dict[str, Json]:
        """The service's reply as plain JSON, one request, with the SDK's address, key and timeout."""
        reply = self._client._api_client.request(method, path, dict(body or {}))
        value = json.loads(reply.body or "{}")
        if not isinstance(value, dict):
            raise ValueError(f"the reply is not an object: {str(value)[:200]}")
        return value

    @contextmanager
    def _speaking(self, what: str) -> Iterator[None]:
        """Turn what the SDK and the connection raise into `BackendError`; not for `create`."""
        import httpx2
        from google.genai import errors

        try:
            yield
        except errors.APIError as error:
            raise _problem(what, error) from error
        except httpx2.HTTPError as error:
            raise BackendError(f"{what}: {error or type(error).__name__}", transient=True) from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            # What the SDK raises where a reply lacks what it takes for granted.
            raise BackendError(
                f"{what}: the reply cannot be understood: {error!r}"[:500], transient=True
            ) from error


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


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _problem(what: str, error: Any) -> BackendError:
    """The service's refusal in its own words; `status` stays empty where it sent no status body."""
    details = error.details if isinstance(error.details, dict) else {}
    body = details.get("error")
    said = body if isinstance(body, dict) else {}
    status = str(said.get("status") or "")
    message = str(said.get("message") or details.get("message") or "").strip()[:2000]
    hint = ""
    if error.code in (401, 403) or "API_KEY_INVALID" in json.dumps(said.get("details") or ""):
        hint = "check that GOOGLE_API_KEY or GEMINI_API_KEY holds a key of the right project"
    return BackendError(
        f"{what}: {message or 'no reason given'} ({' '.join([str(error.code), status]).strip()})",
        hint=hint,
        status=status,
        http_status=error.code,
        transient=error.code in _TRANSIENT,
    )


def _read_job(operation: Mapping[str, Json]) -> Job:
    """The job of an operation. Raises `BackendError` for a state that gbrun does not know."""
    meta = operation.get("metadata") or {}
    word = str(meta.get("state") or "").rpartition("STATE_")[2]
    if word not in _STATES:
        raise BackendError(
            f"the job {operation['name']} is in a state that is not known here: {word or '(none)'}",
            hint="look for a newer version of gbrun",
        )
    error = operation.get("error") or {}
    output = meta.get("output") or operation.get("response") or {}
    stats = meta.get("batchStats") or {}
    counts = {
        name: int(stats[field])
        for name, field in (
            ("request", "requestCount"),
            ("successful", "successfulRequestCount"),
            ("failed", "failedRequestCount"),
            ("pending", "pendingRequestCount"),
        )
        if field in stats
    }
    return Job(
        job_name=operation["name"],
        display_name=str(meta.get("displayName") or ""),
        state=_STATES[word],
        model=str(meta.get("model") or "").removeprefix("models/"),
        output_name=str(output.get("responsesFile") or ""),
        error_code=int(error.get("code") or 0),
        error_message=str(error.get("message") or ""),
        create_time=str(meta.get("createTime") or ""),
        end_time=str(meta.get("endTime") or ""),
        counts=counts,
    )


def _read_listed(operation: Mapping[str, Json]) -> Job | None:
    """The job of an operation; None for a stranger's in a state that is not known, which is not our affair."""
    try:
        return _read_job(operation)
    except BackendError:
        if str((operation.get("metadata") or {}).get("displayName") or "").startswith("gb1-"):
            raise
        return None


def _file_state(file: types.File) -> str:
    """`ACTIVE`, `PROCESSING` or `FAILED`; a file without a state is usable."""
    return str(file.state.value) if file.state else "ACTIVE"


def _sha256_of(text: str) -> str:
    """The hex digest that a `sha256Hash` stands for, empty where it cannot be read.

    The field is bytes in JSON, so base64, and has been seen as base64 of the hex text too.
    """
    candidates = [text.encode()]
    try:
        padded = text.translate(str.maketrans("-_", "+/")) + "=" * (-len(text) % 4)
        candidates.append(base64.b64decode(padded, validate=True))
    except (binascii.Error, ValueError):
        pass
    if re.fullmatch(r"[0-9a-fA-F]{128}", text):
        candidates.append(bytes.fromhex(text))
    for candidate in candidates:
        if len(candidate) == 32:
            return candidate.hex()
        if re.fullmatch(rb"[0-9a-fA-F]{64}", candidate):
            return candidate.decode().lower()
    return ""
