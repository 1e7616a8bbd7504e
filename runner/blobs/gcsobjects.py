"""Objects of a bucket: looked at, and written so that every write counts once.

The library repeats requests whose answer was lost. A write that is repeated meets its own first try, so
each carries a mark of its own in the object's metadata: an object with that mark is no stranger's.
Small objects are sent in one request, larger ones in a resumable upload; neither is visible before all of
its bytes are there. Errors are the library's; `gcserrors` has words for them.

Source: google-cloud-storage 3.17.1; https://cloud.google.com/storage/docs/request-preconditions,
https://cloud.google.com/storage/docs/retry-strategy, read 2026-11-21.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

from runner.blobs import gcserrors

PATIENCE_S = 60.0
"""How long a request is repeated for that fails in a way that may pass."""
CHUNK_BYTES = 8 << 20
"""Largest object that is sent in one request, and what goes into each of more; the library's own bound."""
TIMEOUT_S = (10.0, 60.0)
"""For a connection, and for an answer."""
_MARK = "gbrun-write"


class GcsObjects:
    """The objects of one bucket. Nothing is asked before the first call."""

    def __init__(self, bucket: str, patience_s: float) -> None:
        self.bucket = bucket
        self._patience_s = patience_s

    @cached_property
    def client(self) -> Any:
        """The library's, with the credentials of the environment."""
        # The library would ask for the bucket's settings in the background, for traces that nobody reads.
        os.environ.setdefault("DISABLE_GCS_PYTHON_CLIENT_OTEL_BUCKET_METADATA", "true")
        from google.cloud import storage

        return storage.Client(project=None)

    def retry(self, call: Callable[[], Any]) -> Callable[[], Any]:
        """A call, made repeatable: reads and deletions are by nature, writes by their precondition."""
        from google.cloud.storage.retry import DEFAULT_RETRY

        repeated: Callable[[], Any] = DEFAULT_RETRY.with_timeout(self._patience_s)(call, on_error=_release)
        return repeated

    def close(self) -> None:
        """Release connections."""
        if "client" in self.__dict__:
            self.client.close()

    def blob(self, name: str) -> Any:
        """An object as the library has it; nothing is asked."""
        return self.client.bucket(self.bucket).blob(name)

    def look(self, name: str) -> Any:
        """An object with its metadata. Raises the library's NotFound."""
        blob = self.blob(name)
        blob.reload(retry=self.retry, timeout=TIMEOUT_S)
        return blob

    def put(
        self,
        name: str,
        source: Any,
        byte_count: int,
        generation: int,
        content_type: str,
        metadata: Mapping[str, str],
    ) -> str | None:
        """Write where the object has this generation (0: none); the new one, None where it has not."""
        mark = secrets.token_hex(16)
        blob = self.blob(name)
        blob.metadata = {**metadata, _MARK: mark}
        blob.chunk_size = CHUNK_BYTES
        try:
            blob.upload_from_file(
                source,
                size=byte_count,
                content_type=content_type,
                if_generation_match=generation,
                retry=self.retry,
                timeout=TIMEOUT_S,
            )
            return str(blob.generation)
        except Exception as error:
            # 404 and 410: of an upload that was complete before its answer was lost.
            if gcserrors.status(error) not in (404, 410, 412):
                raise
            found = self._ours(name, mark)
            if found is None and gcserrors.status(error) != 412:
                raise
            return found

    def _ours(self, name: str, mark: str) -> str | None:
        """The generation that a write with this mark made, where it is still there."""
        from google.api_core.exceptions import NotFound

        try:
            found = self.look(name)
        except NotFound:
            return None
        return str(found.generation) if (found.metadata or {}).get(_MARK) == mark else None


def _release(error: Exception) -> None:
    """Close the connection of a download that was refused. The library leaves its answer unread, and holds
    all of them while it repeats the call."""
    response = getattr(error, "response", None)
    if response is not None:
        response.close()
