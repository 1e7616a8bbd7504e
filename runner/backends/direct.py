"""`mode: direct`: jobs whose requests are synchronous calls, made by this process.

To everything above it a job is a job: it has a token, it is polled, its output is downloaded. It lies in
files, and each answer is appended and synced as it comes, so that a run that is killed loses, and pays twice
for, at most the calls that were in flight.

A call that breaks off may have been answered, and paid for, all the same. It is made `CALLS_PER_ROW` times,
over all runs; then that is the row's error, so that its next calls are counted as another job's.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import threading
import time
from collections import Counter
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import orjson

from runner.backends import Backend, was_not_answered
from runner.errors import BackendError, StateError, SubmissionRefused
from runner.model import Job, JobState, Upload

CALLS_AT_ONCE = 8
CALLS_PER_ROW = 3
"""Of one job, that break off without an answer."""
_RPC_CODES = {500: 13, 504: 4}
_UNAVAILABLE = 14
_WAITS_S = (0.0, 1.0, 4.0, 15.0, 60.0)
"""Before calls are made again, by how often in a row they stopped with no answer in between."""
_CHUNK_BYTES = 1 << 18
_PREFIX = "direct/"
_KEY = re.compile(rb'\{"key":\s*"([^"\\]+)"')
"""How a backend begins the line of an answer."""


class DirectBackend:
    """The `Backend` contract over synchronous calls of `inner`.

    Jobs lie in `folder`: `<name>.jsonl` is what is asked, `<name>.job` what for, `<name>.answers` what came
    back so far, `<name>.broken` the keys of calls that broke off. A job runs while this process has it
    polled or waits for it; another process goes on with what is not answered.
    """

    poll_interval_s = 0.2

    def __init__(self, inner: Backend, folder: Path) -> None:
        self._inner = inner
        self._folder = folder
        self._running: dict[str, _Calls] = {}
        self._stops = 0
        self._goes_on_at = 0.0
        self.limits = inner.limits
        self.principal = f"direct-{inner.principal}"
        self.notice = inner.notice

    def upload(self, path: Path, *, name: str, sha256: str) -> Upload:
        """See `Backend.upload`: the file is kept beside the state."""
        try:
            data = path.read_bytes()
        except OSError as error:
            raise StateError(f"cannot read {path}: {error.strerror}") from error
        with self._writing():
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            _replace(self._path(name, "jsonl"), data)
        return Upload(name=_PREFIX + name, sha256=hashlib.sha256(data).hexdigest())

    def upload_exists(self, name: str) -> bool:
        """See `Backend.upload_exists`."""
        return self._path(name, "jsonl").is_file()

    def delete_upload(self, name: str) -> None:
        """See `Backend.delete_upload`: all of the job goes, since it is of use to nobody else."""
        self.delete(name)

    def create(
        self, *, model: str, upload_name: str, display_name: str, task: str = "generate_content"
    ) -> Job:
        """See `Backend.create`, but for one thing: what was begun under this name goes on, so that a
        second call makes no second job.
        """
        if not self.upload_exists(upload_name):
            raise SubmissionRefused(f"cannot create the job {display_name}: {upload_name} is not there")
        about = {"model": model, "task": task, "upload": upload_name}
        with self._writing():
            _replace(self._path(display_name, "job"), orjson.dumps(about))
        return self._job(display_name, JobState.PENDING, about)

    def jobs(self) -> Iterator[Job]:
        """See `Backend.jobs`."""
        for path in sorted(self._folder.glob("*.job")):
            yield self._seen(path.stem)

    def get(self, job_name: str) -> Job:
        """See `Backend.get`; begins or goes on with the calls where nobody does.

        Raises what made the calls stop, for which no row is to blame: mostly a call that cannot be
        answered now.
        """
        name = job_name.removeprefix(_PREFIX)
        job = self._seen(name)
        if job.state.terminal:
            return job
        calls = self._running.get(name)
        if calls is None:
            if time.monotonic() < self._goes_on_at:
                return job
            about = self._about(name)
            files = (
                self._path(about["upload"], "jsonl"),
                *(self._path(name, k) for k in ("answers", "broken")),
            )
            calls = self._running[name] = _Calls(self._inner, about, *files)
        if calls.ended:
            del self._running[name]
            calls.close()
            if calls.error is not None:
                self._stops = 1 if calls.answered_any else self._stops + 1
                self._goes_on_at = time.monotonic() + _WAITS_S[min(self._stops, len(_WAITS_S)) - 1]
                raise calls.error
        return self._seen(name)

    def cancel(self, job_name: str) -> None:
        """See `Backend.cancel`: no further call is made; what came back is kept."""
        name = job_name.removeprefix(_PREFIX)
        self._stop(name)
        with self._writing():
            self._path(name, "cancelled").touch(mode=0o600)

    def delete(self, job_name: str) -> None:
        """See `Backend.delete`."""
        name = job_name.removeprefix(_PREFIX)
        self._stop(name)
        with self._writing():
            for kind in ("job", "jsonl", "answers", "broken", "cancelled"):
                self._path(name, kind).unlink(missing_ok=True)

    def output(self, job: Job) -> Iterator[bytes]:
        """See `Backend.output`."""
        path = self._path(job.job_name, "answers")
        if job.output_name and path.is_file():
            with path.open("rb") as file:
                while chunk := file.read(_CHUNK_BYTES):
                    yield chunk

    def answer(self, *, task: str, model: str, line: bytes) -> bytes:
        """See `Backend.answer`."""
        return self._inner.answer(task=task, model=model, line=line)

    def close(self) -> None:
        """See `Backend.close`; waits for the calls in flight, whose answers are paid for."""
        for name in list(self._running):
            self._stop(name)
        self._inner.close()

    # ------------------------------------------------------------ files

    def _path(self, name: str, kind: str) -> Path:
        return self._folder / f"{name.removeprefix(_PREFIX)}.{kind}"

    def _about(self, name: str) -> dict[str, str]:
        try:
            found: dict[str, str] = json.loads(self._path(name, "job").read_bytes())
        except FileNotFoundError as error:
            raise BackendError(f"there is no job {_PREFIX}{name}", http_status=404) from error
        except (OSError, ValueError) as error:
            raise BackendError(f"the job {_PREFIX}{name} cannot be read: {error}") from error
        return found

    def _seen(self, name: str) -> Job:
        about = self._about(name)
        if self._path(name, "cancelled").exists():
            state = JobState.CANCELLED
        elif _lines(self._path(name, "answers")) >= _lines(self._path(about["upload"], "jsonl")):
            state = JobState.SUCCEEDED
        else:
            state = JobState.RUNNING
        return self._job(name, state, about)

    def _job(self, name: str, state: JobState, about: dict[str, str]) -> Job:
        return Job(
            job_name=_PREFIX + name,
            display_name=name,
            state=state,
            model=about["model"],
            output_name=_PREFIX + name if state.terminal else "",
        )

    def _stop(self, name: str) -> None:
        calls = self._running.pop(name, None)
        if calls is not None:
            calls.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StateError(f"cannot write to {self._folder}: {error.strerror}") from error


class _Calls:
    """The calls of one job that have no answer yet, a few at a time."""

    def __init__(
        self, backend: Backend, about: dict[str, str], asked: Path, answers: Path, broken: Path
    ) -> None:
        self.error: Exception | None = None
        """What made the calls stop before their end."""
        self.answered_any = False
        self._backend = backend
        self._about = about
        self._answers = answers
        self._broken = broken
        self._breaks = Counter(broken.read_text().splitlines() if broken.exists() else ())
        self._halted = threading.Event()
        self._writes = threading.Lock()
        answered = _answered(answers)
        self._asked = _read(asked)
        self._left = (line for line in self._asked if orjson.loads(line)["key"] not in answered)
        self._next = threading.Lock()
        self._pool = ThreadPoolExecutor(CALLS_AT_ONCE, thread_name_prefix="gbrun-call")
        self._workers = [self._pool.submit(self._work) for _ in range(CALLS_AT_ONCE)]

    @property
    def ended(self) -> bool:
        """Whether no call is in flight, and none will be made."""
        return all(worker.done() for worker in self._workers)

    def close(self) -> None:
        """Make no further call and wait for those in flight."""
        self._halted.set()
        self._pool.shutdown(wait=True)
        self._left.close()
        self._asked.close()

    def _work(self) -> None:
        while not self._halted.is_set():
            with self._next:
                line = next(self._left, None)
            if line is None:
                return
            try:
                answer = self._answer(line)
                with self._writes:
                    _append(self._answers, answer)
                self.answered_any = True
            except OSError as error:
                self._halt(BackendError(f"cannot write {self._answers}: {error.strerror}"))
            except Exception as error:
                # A bug too must be told: calls that merely end would be made, and paid, again for ever.
                self._halt(error)

    def _answer(self, line: bytes) -> bytes:
        """The line of an answer, or of a row's error where its calls broke off too often."""
        try:
            return self._backend.answer(task=self._about["task"], model=self._about["model"], line=line)
        except BackendError as error:
            if was_not_answered(error) or not error.transient:
                raise
            key = orjson.loads(line)["key"]
            with self._writes:
                _append(self._broken, key.encode())
                self._breaks[key] += 1
            if self._breaks[key] < CALLS_PER_ROW:
                raise
            code = _RPC_CODES.get(error.http_status, _UNAVAILABLE)
            return orjson.dumps({"key": key, "error": {"code": code, "message": error.message}})

    def _halt(self, error: Exception) -> None:
        self.error = self.error or error
        self._halted.set()


def _replace(path: Path, data: bytes) -> None:
    temporary = path.with_name(path.name + ".part")
    _write(temporary, data, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    temporary.replace(path)


def _append(path: Path, line: bytes) -> None:
    _write(path, line.rstrip(b"\n") + b"\n", os.O_CREAT | os.O_WRONLY | os.O_APPEND)


def _write(path: Path, data: bytes, flags: int) -> None:
    handle = os.open(path, flags, 0o600)
    try:
        view: Any = memoryview(data)
        while view:
            view = view[os.write(handle, view) :]
        os.fsync(handle)
    finally:
        os.close(handle)


def _read(path: Path) -> Generator[bytes]:
    with path.open("rb") as file:
        yield from file


def _lines(path: Path) -> int:
    try:
        with path.open("rb") as file:
            return sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(_CHUNK_BYTES), b""))
    except FileNotFoundError:
        return 0


def _answered(path: Path) -> set[str]:
    """Keys that have an answer; half a line at the end, of a run that was killed, is cut off."""
    if not path.exists():
        return set()
    whole = 0
    found = set()
    with path.open("rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                break
            whole += len(line)
            found.add(_key(line))
    os.truncate(path, whole)
    return found


def _key(line: bytes) -> str:
    """The key of an answer, whatever else the line holds: what is answered is not asked again."""
    found = _KEY.match(line)
    return found[1].decode() if found else ""
