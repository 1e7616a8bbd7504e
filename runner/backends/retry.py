"""A backend that repeats what is safe to repeat. `create` is not, and passes straight through."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from runner.backends import Backend, was_not_answered
from runner.errors import BackendError
from runner.model import Job, Upload

_DELAYS_S = (1.0, 2.0, 4.0, 8.0)

T = TypeVar("T")


class RetryingBackend:
    """Repeats idempotent calls of `inner` up to four times after a transient `BackendError`.

    Waits 1, 2, 4 and 8 seconds through `sleep`; what the last try raises is passed on. Listing
    holds all jobs of the account in memory, so that a repeated listing shows none twice.
    """

    def __init__(self, inner: Backend, sleep: Callable[[float], None] = time.sleep) -> None:
        self._inner = inner
        self._sleep = sleep
        self.limits = inner.limits
        self.poll_interval_s = inner.poll_interval_s
        self.principal = inner.principal
        self.notice = inner.notice

    def upload(self, path: Path, *, name: str, sha256: str) -> Upload:
        """See `Backend.upload`."""
        return self._repeated(lambda: self._inner.upload(path, name=name, sha256=sha256))

    def upload_exists(self, name: str) -> bool:
        """See `Backend.upload_exists`."""
        return self._repeated(lambda: self._inner.upload_exists(name))

    def delete_upload(self, name: str) -> None:
        """See `Backend.delete_upload`."""
        self._repeated(lambda: self._inner.delete_upload(name))

    def create(
        self, *, model: str, upload_name: str, display_name: str, task: str = "generate_content"
    ) -> Job:
        """See `Backend.create`; never repeated: a job may exist although the reply was lost."""
        return self._inner.create(model=model, upload_name=upload_name, display_name=display_name, task=task)

    def jobs(self) -> Iterator[Job]:
        """See `Backend.jobs`."""
        yield from self._repeated(lambda: list(self._inner.jobs()))

    def get(self, job_name: str) -> Job:
        """See `Backend.get`."""
        return self._repeated(lambda: self._inner.get(job_name))

    def cancel(self, job_name: str) -> None:
        """See `Backend.cancel`."""
        self._repeated(lambda: self._inner.cancel(job_name))

    def delete(self, job_name: str) -> None:
        """See `Backend.delete`."""
        self._repeated(lambda: self._inner.delete(job_name))

    def output(self, job: Job) -> Iterator[bytes]:
        """See `Backend.output`; a broken download starts anew and goes on where it broke off.

        Where other bytes come by then, as when rows landed meanwhile, it is for the caller to begin again:
        half of one output and half of another make a line that neither had.
        """
        given, digest = 0, hashlib.sha256()
        delays = iter(_DELAYS_S)
        while True:
            position, again = 0, hashlib.sha256() if given else digest
            try:
                for chunk in self._inner.output(job):
                    fresh = chunk[max(0, given - position) :]
                    position += len(chunk)
                    if again is not digest:
                        again.update(chunk[: len(chunk) - len(fresh)])
                    if fresh:
                        if again.digest() != digest.digest():
                            break
                        again = digest
                        digest.update(fresh)
                        given += len(fresh)
                        yield fresh
            except BackendError as error:
                self._wait(error, delays)
                continue
            if again.digest() != digest.digest():
                raise BackendError(
                    f"the output of {job.job_name} changed while it was being read", transient=True
                )
            return

    def answer(self, *, task: str, model: str, line: bytes) -> bytes:
        """See `Backend.answer`; repeated after 429, 503 and where there was no connection.

        Not after a timeout or a broken connection: the answer may be made, and paid, already. A 503
        may in principle cost twice too, but has been seen as a refusal only.
        """
        return self._repeated(lambda: self._inner.answer(task=task, model=model, line=line), was_not_answered)

    def close(self) -> None:
        """See `Backend.close`."""
        self._inner.close()

    def _repeated(
        self, call: Callable[[], T], may_repeat: Callable[[BackendError], bool] = lambda error: True
    ) -> T:
        delays = iter(_DELAYS_S)
        while True:
            try:
                return call()
            except BackendError as error:
                if not may_repeat(error):
                    raise
                self._wait(error, delays)

    def _wait(self, error: BackendError, delays: Iterator[float]) -> None:
        """Wait before the next try; raises `error` where there is to be none."""
        delay = next(delays, None)
        if delay is None or not error.transient:
            raise error
        self._sleep(delay)
