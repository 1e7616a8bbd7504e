"""The staging folder of Vertex jobs in Cloud Storage: files that go up, rows that come back.

Every write is made only where there is no object yet, and what is read is one generation of an object.
Nothing is repeated here, `RetryingBackend` does that; the library's errors become `BackendError`.

Source: google-cloud-storage 3.17.1; https://cloud.google.com/storage/docs/request-preconditions, read
2026-11-21.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from runner import gcsuri
from runner.backends.sdk import LOG_IN, is_loopback
from runner.errors import BackendError, StateError
from runner.gcsuri import GcsUri

CHUNK_BYTES = 8 << 20
_TRANSIENT = {408, 429, 500, 502, 503, 504}


@dataclass(frozen=True, slots=True)
class Object:
    """One object of a listing."""

    bucket: str
    name: str
    generation: int
    byte_count: int


class Staging:
    """Objects in Cloud Storage. Nothing is asked before the first call."""

    def __init__(
        self,
        project: str,
        credentials: Any,
        endpoint: str | None,
        timeout_s: float,
        chunk_bytes: int = CHUNK_BYTES,
    ) -> None:
        """`endpoint` is another address than Google's, or than the one that STORAGE_EMULATOR_HOST names.
        What is larger than `chunk_bytes` goes up and comes down in pieces of this size."""
        self._chunk_bytes = chunk_bytes
        self._project = project
        self._credentials = credentials
        self._endpoint = endpoint
        self._timeout_s = (min(10.0, timeout_s), timeout_s)

    @cached_property
    def _client(self) -> Any:
        # The library would ask for the bucket's settings in the background, for traces that nobody reads.
        os.environ.setdefault("DISABLE_GCS_PYTHON_CLIENT_OTEL_BUCKET_METADATA", "true")
        from google.cloud.storage import Client

        options = {"api_endpoint": self._endpoint} if self._endpoint else None
        client = Client(project=self._project, credentials=self._credentials, client_options=options)
        host = (self._endpoint or "").partition("://")[2].partition(":")[0]
        if host and is_loopback(host):
            client._http.trust_env = False
        return client

    def close(self) -> None:
        """Release connections."""
        if "_client" in self.__dict__:
            self._client.close()

    def make_bucket(self, name: str) -> None:
        """Make a bucket; one that exists already is no error."""
        try:
            with _storing(f"cannot make the bucket {name}", name):
                self._client.create_bucket(name, timeout=self._timeout_s)
        except BackendError as error:
            if error.http_status != 409:
                raise

    def put(self, path: Path, place: GcsUri) -> bool:
        """Upload a file; False where the place is taken by other bytes. Safe to repeat."""
        with _storing(f"cannot upload {place}", place.bucket):
            blob = self._blob(place)
            blob.chunk_size = self._chunk_bytes
            try:
                with _opened(path) as stream:
                    blob.upload_from_file(
                        stream,
                        size=path.stat().st_size,
                        content_type="application/jsonl",
                        if_generation_match=0,
                        retry=None,
                        timeout=self._timeout_s,
                    )
                return True
            except Exception as error:
                if _status(error) != 412:
                    raise
            # Perhaps our own, whose answer was lost.
            blob.reload(retry=None, timeout=self._timeout_s)
            return int(blob.size) == path.stat().st_size and blob.md5_hash == _md5(path)

    def exists(self, place: GcsUri) -> bool:
        """Whether there is an object."""
        with _storing(f"cannot look up {place}", place.bucket):
            return bool(self._blob(place).exists(retry=None, timeout=self._timeout_s))

    def delete(self, place: GcsUri) -> None:
        """Delete an object; one that is gone is no error."""
        try:
            with _storing(f"cannot delete {place}", place.bucket):
                self._blob(place).delete(retry=None, timeout=self._timeout_s)
        except BackendError as error:
            if error.http_status != 404:
                raise

    def listing(self, prefix: str) -> tuple[Object, ...]:
        """All objects whose address begins with `gs://bucket/...`, by name."""
        bucket, _, name = prefix.removeprefix(gcsuri.SCHEME).partition("/")
        with _storing(f"cannot list {prefix}", bucket):
            found = self._client.list_blobs(
                bucket,
                prefix=name,
                fields="items(name,generation,size),nextPageToken",
                retry=None,
                timeout=self._timeout_s,
            )
            return tuple(
                sorted(
                    (Object(bucket, blob.name, int(blob.generation), int(blob.size)) for blob in found),
                    key=lambda one: one.name,
                )
            )

    def chunks(self, one: Object) -> Iterator[bytes]:
        """The bytes of an object as the listing showed it."""
        place = f"{gcsuri.SCHEME}{one.bucket}/{one.name}"
        with _storing(f"cannot read {place}", one.bucket):
            blob = self._client.bucket(one.bucket).blob(one.name, generation=one.generation)
            for start in range(0, one.byte_count, self._chunk_bytes):
                end = min(start + self._chunk_bytes, one.byte_count)
                chunk: bytes = blob.download_as_bytes(
                    start=start,
                    end=end - 1,
                    # The service knows the checksum of the whole only.
                    checksum=None,
                    retry=None,
                    timeout=self._timeout_s,
                )
                if len(chunk) != end - start:
                    raise BackendError(f"{place} came back cut off", transient=True)
                yield chunk

    def _blob(self, place: GcsUri) -> Any:
        return self._client.bucket(place.bucket).blob(place.name)


def _opened(path: Path) -> Any:
    try:
        return path.open("rb")
    except OSError as error:
        raise StateError(f"cannot read {path}: {error.strerror}") from error


def _md5(path: Path) -> str:
    with path.open("rb") as stream:
        return base64.b64encode(hashlib.file_digest(stream, "md5").digest()).decode()


@contextmanager
def _storing(what: str, bucket: str) -> Iterator[None]:
    """Turn the library's errors into `BackendError`."""
    from google.api_core.exceptions import GoogleAPIError
    from google.auth.exceptions import GoogleAuthError, TransportError
    from google.cloud.storage.exceptions import DataCorruption, InvalidResponse

    try:
        yield
    except (BackendError, StateError):
        raise
    except DataCorruption as error:
        raise BackendError(f"{what}: bytes were damaged on the way", transient=True) from error
    except (GoogleAPIError, InvalidResponse) as error:
        raise _refused(what, bucket, _status(error), _said(error)) from error
    except GoogleAuthError as error:
        raise BackendError(
            f"{what}: no access token: {_said(error)}",
            hint=LOG_IN,
            status="UNAUTHENTICATED",
            transient=isinstance(error, TransportError),
        ) from error
    except OSError as error:
        # The connection's; those of the library underneath are of this kind too.
        raise BackendError(f"{what}: {type(error).__name__}: {error}"[:500], transient=True) from error


def _refused(what: str, bucket: str, status: int, said: str) -> BackendError:
    hint = ""
    if status in (401, 403):
        hint = f"you need roles/storage.objectUser on the bucket {bucket}"
    elif status == 404 and "bucket" in said:
        hint = f"make it (gcloud storage buckets create gs://{bucket}), or name another in staging_uri"
    transient = status in _TRANSIENT or not status
    return BackendError(f"{what}: {said} ({status})", hint=hint, http_status=status, transient=transient)


def _status(error: BaseException) -> int:
    """The HTTP status behind an error of the library, 0 where there is none."""
    code = getattr(error, "code", 0) or getattr(getattr(error, "response", None), "status_code", 0)
    return int(code or 0)


def _said(error: BaseException) -> str:
    """The service's own words, without the request's address."""
    words = str(getattr(error, "message", "") or error)
    return re.sub(r"^[A-Z]+ https?://\S+: ", "", words).strip()[:300] or type(error).__name__
