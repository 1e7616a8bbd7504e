"""Batch prediction on Vertex AI, through Google's SDK and Cloud Storage.

A job reads one object of the staging folder and writes rows below a prefix that is this attempt's alone.
The SDK's retries stay off; `RetryingBackend` repeats what is safe to repeat.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from runner import gcsuri
from runner.backends import sdk, vertexwire
from runner.backends.rest import Rest
from runner.backends.vertexstaging import Object, Staging
from runner.backendspec import ceilings
from runner.clock import Clock, SystemClock
from runner.errors import BackendError
from runner.gcsuri import GcsUri
from runner.model import Job, JobState, Upload
from runner.specmodel import BackendSpec

TOKEN_VARIABLE = "GBRUN_VERTEX_TOKEN"
"""An access token to use instead of Application Default Credentials."""
_SCOPE = "https://www.googleapis.com/auth/cloud-platform"
_MOST_LISTINGS = 12


class VertexBackend:
    """Batch jobs of one project in one location.

    `staging_uri` may be None where only synchronous answers are asked for. `storage_url` is the address of
    Cloud Storage, None for Google's own. `labels` go to every job. `request_timeout_s` bounds each wait for
    the service.
    """

    limits = ceilings("vertex", "generate_content")
    poll_interval_s = 30.0
    notice = ""

    def __init__(
        self,
        *,
        project: str,
        location: str,
        staging_uri: str | None,
        credentials: Any,
        base_url: str | None,
        storage_url: str | None = None,
        api_version: str,
        request_timeout_s: float,
        labels: Mapping[str, str] = {},
        listing_gap_s: float = 5.0,
        clock: Clock | None = None,
    ) -> None:
        """`listing_gap_s` lies between two listings of a job's output that have to be equal."""
        from google import genai

        self._staging_uri = gcsuri.parse(staging_uri) if staging_uri else None
        self._labels = dict(labels)
        self._listing_gap_s = listing_gap_s
        self._clock = clock or SystemClock()
        self._timeout_s = request_timeout_s
        self._base_url = (base_url or default_base_url(location)).rstrip("/")
        host = urlsplit(self._base_url).hostname or ""
        self.principal = f"vertex:{host}:{quote(project, safe='')}/{location}"
        self._http, tls = sdk.connection(host, request_timeout_s)
        self._storage = Staging(project, credentials, storage_url, request_timeout_s)
        self._client = genai.Client(
            vertexai=True,
            # All three said: of those that come from the environment the SDK forgets some.
            project=project,
            location=location,
            credentials=credentials,
            http_options=genai.types.HttpOptions(
                base_url=self._base_url,
                api_version=api_version,
                timeout=max(1, int(request_timeout_s * 1000)),
                httpx_client=self._http,
                async_client_args={"verify": tls},
            ),
        )
        self._rest = Rest(self._client, vertexwire.problem)

    # ------------------------------------------------------------ files

    def upload(self, path: Path, *, name: str, sha256: str) -> Upload:
        """See `Backend.upload`; the name of an upload is its whole address."""
        place = self._upload_place(name)
        if not self._storage.put(path, place):
            place = self._upload_place(f"{name}-{sha256[:16]}")
            if not self._storage.put(path, place):
                raise BackendError(f"{place} is taken by other bytes", hint="name another staging_uri")
        return Upload(name=str(place), sha256=sha256)

    def upload_exists(self, name: str) -> bool:
        """See `Backend.upload_exists`."""
        return self._storage.exists(self._upload_place(name))

    def delete_upload(self, name: str) -> None:
        """See `Backend.delete_upload`."""
        self._storage.delete(self._upload_place(name))

    def _upload_place(self, name: str) -> GcsUri:
        """The place of an upload by its address, or by the name that was asked for."""
        if name.startswith(gcsuri.SCHEME):
            bucket, _, rest = name.removeprefix(gcsuri.SCHEME).partition("/")
            return GcsUri(bucket, rest)
        folder = self._staged()
        return GcsUri(folder.bucket, f"{folder.name}/{name}.jsonl")

    def _staged(self) -> GcsUri:
        if self._staging_uri is None:
            raise BackendError(
                "a batch job on Vertex needs a folder for its files",
                hint='write "staging_uri" into `backend`, or set GBRUN_STAGING_URI',
            )
        return self._staging_uri

    # ------------------------------------------------------------ jobs

    def create(
        self, *, model: str, upload_name: str, display_name: str, task: str = "generate_content"
    ) -> Job:
        """See `Backend.create`; rows of either task look alike to the service.

        What is wrong with the file, its bucket or the rights to it shows only when the job fails.
        """
        prefix = f"{self._staged()}/out/{display_name}"
        upload = str(self._upload_place(upload_name))
        body = vertexwire.create_body(model, upload, prefix, display_name, self._labels)
        with sdk.submitting(f"cannot create the job {display_name}", vertexwire.problem):
            reply = self._rest.json("post", "batchPredictionJobs", body)
            name = reply["name"]
            if not vertexwire.is_job_name(name):
                raise ValueError(f"the reply names no job: {json.dumps(reply)[:200]}")
        # Of the reply only the name is read: a job that exists must not get lost over the rest.
        return Job(job_name=name, display_name=display_name, state=JobState.PENDING, model=model)

    def jobs(self) -> Iterator[Job]:
        """See `Backend.jobs`: those that gbrun made, which all carry its label.

        Where the filter shows none, everyone's: a filter that does not do what it should must never
        look like a job that was not made.
        """
        empty = True
        for job in self._listed({"filter": vertexwire.LISTED}):
            empty = False
            yield job
        if empty:
            yield from self._listed({})

    def _listed(self, chosen: Mapping[str, str]) -> Iterator[Job]:
        for body in self._rest.listed("batchPredictionJobs", "batchPredictionJobs", chosen):
            with self._rest.speaking("cannot read the list of jobs"):
                job = vertexwire.read_job(body, listed=True)
            yield job

    def get(self, job_name: str) -> Job:
        """See `Backend.get`."""
        with self._rest.speaking(f"cannot look up the job {job_name}"):
            return vertexwire.read_job(self._rest.json("get", _job_path(job_name)))

    def cancel(self, job_name: str) -> None:
        """See `Backend.cancel`."""
        try:
            with self._rest.speaking(f"cannot cancel the job {job_name}"):
                self._rest.json("post", f"{_job_path(job_name)}:cancel")
        except BackendError as error:
            if error.http_status not in (400, 409) or not self.get(job_name).state.terminal:
                raise

    def delete(self, job_name: str) -> None:
        """See `Backend.delete`; the output goes first, as the job is what leads to it."""
        what = f"cannot delete the job {job_name}"
        try:
            with self._rest.speaking(what):
                body = self._rest.json("get", _job_path(job_name))
        except BackendError as error:
            if error.http_status == 404:
                return
            raise
        for one in self._own_output(body):
            self._storage.delete(GcsUri(one.bucket, one.name))
        try:
            with self._rest.speaking(what):
                operation = self._rest.json("delete", _job_path(job_name))
        except BackendError as error:
            if error.http_status == 404:
                return
            raise
        self._finish(operation, what)

    def _own_output(self, body: Mapping[str, Any]) -> tuple[Object, ...]:
        """What this job wrote, and nobody else."""
        folder, prefix = vertexwire.output_folder(body), vertexwire.output_prefix(body)
        # A prefix that ends in the name of the attempt is that attempt's alone.
        mine = folder or (prefix if prefix.endswith(f"/out/{body.get('displayName')}/") else "")
        return self._storage.listing(mine) if mine else ()

    def _finish(self, operation: Mapping[str, Any], what: str) -> None:
        """Wait for a long-running operation."""
        deadline = self._clock.now() + self._timeout_s
        pause_s = 0.1
        while not operation.get("done"):
            if self._clock.now() >= deadline:
                raise BackendError(f"{what}: not done after {self._timeout_s:g} s", transient=True)
            self._clock.sleep(pause_s)
            pause_s = min(pause_s * 2, 5.0)
            with self._rest.speaking(what):
                operation = self._rest.json("get", quote(str(operation["name"])))
        error = operation.get("error")
        if error:
            raise BackendError(f"{what}: {error.get('message') or error}")

    def output(self, job: Job) -> Iterator[bytes]:
        """See `Backend.output`; whole objects, by name, each ended by a newline.

        Rows that were finished are there for failed, cancelled and expired jobs too, and may land late.
        """
        if not job.output_name:
            return
        found = self._landed(job.output_name)
        if not found:
            # Nothing came, unless the job was deleted, which takes its output along.
            self.get(job.job_name)
        for one in found:
            last = b"\n"
            for chunk in self._storage.chunks(one):
                last = chunk[-1:] or last
                yield chunk
            if last != b"\n":
                yield b"\n"

    def _landed(self, prefix: str) -> tuple[Object, ...]:
        """The objects with rows, once two listings in a row show the same."""
        prefix = f"{prefix.rstrip('/')}/"
        before = self._storage.listing(prefix)
        for _ in range(_MOST_LISTINGS):
            self._clock.sleep(self._listing_gap_s)
            now = self._storage.listing(prefix)
            if now == before:
                return tuple(one for one in now if vertexwire.is_output(one.name[len(_name(prefix)) :]))
            before = now
        raise BackendError(f"rows are still landing below {prefix}", transient=True)

    # ------------------------------------------------------------ synchronous calls

    def answer(self, *, task: str, model: str, line: bytes) -> bytes:
        """See `Backend.answer`."""
        row = json.loads(line)
        method, body = vertexwire.answer_call(task, row["request"])
        return self._rest.answer(model, vertexwire.model_path(model), method, row, body)

    def close(self) -> None:
        """See `Backend.close`."""
        self._client.close()
        self._http.close()
        self._storage.close()


def default_base_url(location: str) -> str:
    """Google's own address for a location. Source: google-genai 3.4.0, `_api_client.py`."""
    if location == "global":
        return "https://aiplatform.googleapis.com"
    if location in ("us", "eu"):
        return f"https://aiplatform.{location}.rep.googleapis.com"
    return f"https://{location}-aiplatform.googleapis.com"


def from_environment(
    settings: BackendSpec, labels: Mapping[str, str], environ: Mapping[str, str]
) -> VertexBackend:
    """A backend for `settings`, with the credentials of the environment.

    GBRUN_VERTEX_TOKEN, an access token, wins over Application Default Credentials, which google-auth
    finds. Raises `BackendError` without credentials, and where nothing says which project and location.
    """
    if not settings.project or not settings.location:
        raise BackendError(
            "the backend vertex needs a project and a location",
            hint="write them into `backend`, or set GOOGLE_CLOUD_PROJECT and GOOGLE_CLOUD_LOCATION",
        )
    return VertexBackend(
        project=settings.project,
        location=settings.location,
        staging_uri=settings.staging_uri,
        credentials=_credentials((environ.get(TOKEN_VARIABLE) or "").strip()),
        base_url=settings.base_url,
        # Beside an emulator of the service stands one of the storage, at the same address.
        storage_url=None if settings.paid or environ.get("STORAGE_EMULATOR_HOST") else settings.base_url,
        api_version=settings.api_version,
        request_timeout_s=settings.request_timeout_s,
        labels=labels,
    )


def _credentials(token: str) -> Any:
    from google.auth.exceptions import DefaultCredentialsError

    if token:
        from google.oauth2.credentials import Credentials

        return Credentials(token=token)  # type: ignore[no-untyped-call]
    import google.auth

    try:
        return google.auth.default(scopes=[_SCOPE])[0]
    except DefaultCredentialsError as error:
        raise BackendError(
            f"there are no credentials for Google Cloud: {str(error).splitlines()[0][:200]}",
            hint=sdk.LOG_IN,
        ) from error


def _job_path(job_name: str) -> str:
    return quote(job_name) if "/" in job_name else f"batchPredictionJobs/{quote(job_name)}"


def _name(prefix: str) -> str:
    return prefix.removeprefix(gcsuri.SCHEME).partition("/")[2]
