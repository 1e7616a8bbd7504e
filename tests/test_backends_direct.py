"""Jobs that are synchronous calls of this process: nothing is asked twice, nothing answered is lost."""

from __future__ import annotations

import hashlib
import json
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runner.backends import direct
from runner.backends.direct import CALLS_AT_ONCE, CALLS_PER_ROW, DirectBackend
from runner.backends.memory import MemoryBackend
from runner.errors import BackendError, SubmissionRefused
from runner.model import Job, JobState

TOKEN = "gb1-0123abcd-0123456789abcdef-a1"


class Inner(MemoryBackend):
    """Answers calls as a function says, and counts them."""

    def __init__(self, clock: Any) -> None:
        super().__init__(clock)
        self.asked: Counter[str] = Counter()
        self.at_once = self.most_at_once = 0
        self.lock = threading.Lock()
        self.before: Callable[[str], None] = lambda key: None

    def answer(self, *, task: str, model: str, line: bytes) -> bytes:
        key = json.loads(line)["key"]
        with self.lock:
            self.asked[key] += 1
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            self.before(key)
            return super().answer(task=task, model=model, line=line)
        finally:
            with self.lock:
                self.at_once -= 1


@pytest.fixture
def inner(clock: Any) -> Inner:
    return Inner(clock)


def submit(backend: DirectBackend, folder: Path, count: int) -> Job:
    lines = [{"key": f"r{n}", "request": {"contents": [{"parts": [{"text": "x"}]}]}} for n in range(count)]
    data = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    (folder / "shard.jsonl").write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    upload = backend.upload(folder / "shard.jsonl", name=TOKEN, sha256=digest)
    assert upload.sha256 == digest
    return backend.create(model="m", upload_name=upload.name, display_name=TOKEN)


def ended(backend: DirectBackend, job: Job) -> Job:
    for _ in range(2000):
        found = backend.get(job.job_name)
        if found.state.terminal:
            return found
        threading.Event().wait(0.005)
    raise AssertionError("the job does not end")


def keys(backend: DirectBackend, job: Job) -> list[str]:
    return sorted(json.loads(line)["key"] for line in b"".join(backend.output(job)).splitlines())


def test_every_request_is_asked_once_and_a_few_at_a_time(inner: Inner, tmp_path: Path) -> None:
    backend = DirectBackend(inner, tmp_path / "direct")
    done = ended(backend, submit(backend, tmp_path, 50))

    assert done.state is JobState.SUCCEEDED
    assert keys(backend, done) == sorted(f"r{n}" for n in range(50))
    assert set(inner.asked.values()) == {1}
    assert inner.most_at_once <= CALLS_AT_ONCE
    assert [job.display_name for job in backend.jobs()] == [TOKEN]
    backend.delete_upload("direct/" + TOKEN)
    assert list((tmp_path / "direct").iterdir()) == []
    backend.close()


def test_another_process_goes_on_with_what_is_left(inner: Inner, tmp_path: Path) -> None:
    def refuse(key: str) -> None:
        if key == "r20":
            raise BackendError("quota", http_status=429, transient=True)

    inner.before = refuse
    backend = DirectBackend(inner, tmp_path / "direct")
    job = submit(backend, tmp_path, 40)
    with pytest.raises(BackendError, match="quota"):
        ended(backend, job)
    backend.close()
    answered = {key for key in inner.asked if key != "r20"}
    # Killed while it wrote: half a line stands at the end.
    with (tmp_path / "direct" / f"{TOKEN}.answers").open("ab") as file:
        file.write(b'{"key":"r39","resp')
    inner.before = lambda key: None

    other = DirectBackend(inner, tmp_path / "direct")
    done = ended(other, job)
    assert keys(other, done) == sorted(f"r{n}" for n in range(40))
    assert {inner.asked[key] for key in answered} == {1}
    other.close()


def test_an_error_that_lasts_is_told_and_kept_apart_from_the_rows(inner: Inner, tmp_path: Path) -> None:
    def refuse(key: str) -> None:
        raise BackendError("no such key", http_status=401)

    inner.before = refuse
    backend = DirectBackend(inner, tmp_path / "direct")
    job = submit(backend, tmp_path, 3)
    with pytest.raises(BackendError, match="no such key") as error:
        ended(backend, job)
    assert not error.value.transient
    backend.close()


def test_a_cancelled_job_keeps_what_came_back(inner: Inner, tmp_path: Path) -> None:
    enough = threading.Event()

    def slowly(key: str) -> None:
        if len(inner.asked) > 5:
            enough.set()
            threading.Event().wait(0.05)

    inner.before = slowly
    backend = DirectBackend(inner, tmp_path / "direct")
    job = submit(backend, tmp_path, 400)
    backend.get(job.job_name)
    assert enough.wait(10)
    backend.cancel(job.job_name)
    done = backend.get(job.job_name)

    assert done.state is JobState.CANCELLED
    assert keys(backend, done) == sorted(inner.asked)
    assert len(inner.asked) < 400
    backend.close()


def test_a_job_of_nothing_is_refused(inner: Inner, tmp_path: Path) -> None:
    with pytest.raises(SubmissionRefused, match="is not there"):
        DirectBackend(inner, tmp_path / "direct").create(
            model="m", upload_name="direct/x", display_name=TOKEN
        )


def test_a_second_create_makes_no_second_job(inner: Inner, tmp_path: Path) -> None:
    backend = DirectBackend(inner, tmp_path / "direct")
    job = submit(backend, tmp_path, 3)
    assert backend.create(model="m", upload_name="direct/" + TOKEN, display_name=TOKEN) == job
    ended(backend, job)
    assert set(inner.asked.values()) == {1}
    backend.close()


def test_a_job_that_is_not_there(inner: Inner, tmp_path: Path) -> None:
    with pytest.raises(BackendError) as error:
        DirectBackend(inner, tmp_path / "direct").get("direct/none")
    assert error.value.http_status == 404


def test_what_is_kept_is_for_its_owner_alone(inner: Inner, tmp_path: Path) -> None:
    backend = DirectBackend(inner, tmp_path / "direct")
    ended(backend, submit(backend, tmp_path, 2))
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "direct").iterdir()} == {0o600}
    backend.close()


def test_an_unexpected_error_ends_the_calls_and_is_told(inner: Inner, tmp_path: Path) -> None:
    """Else the calls would be made again and again, with nothing said."""

    def stumble(key: str) -> None:
        if key == "r1":
            raise RecursionError("too deep")

    inner.before = stumble
    backend = DirectBackend(inner, tmp_path / "direct")
    job = submit(backend, tmp_path, 3)
    with pytest.raises(RecursionError, match="too deep"):
        ended(backend, job)
    backend.close()
    assert set(inner.asked.values()) == {1}


@pytest.mark.parametrize("hostile", ["[" * 20_000 + "]" * 20_000, "9" * 5_000, '"\\ud800"', "NaN"])
def test_an_answer_that_cannot_be_read_is_not_asked_for_again(
    inner: Inner, tmp_path: Path, hostile: str
) -> None:
    backend = DirectBackend(inner, tmp_path / "direct")
    job = submit(backend, tmp_path, 3)
    line = f'{{"key":"r1","response":{{"candidates":[{hostile}]}}}}\n'
    (tmp_path / "direct" / f"{TOKEN}.answers").write_text(line)

    done = ended(backend, job)
    assert inner.asked == Counter(r0=1, r2=1)
    assert line.encode() in b"".join(backend.output(done))
    backend.close()


def test_a_call_that_breaks_off_is_made_a_few_times_over_all_runs(
    inner: Inner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each may be paid for: a row that never answers in time must not be asked for ever."""

    def hang(key: str) -> None:
        if key == "r1":
            raise BackendError("it does not answer in time", http_status=504, transient=True)

    monkeypatch.setattr(direct, "_WAITS_S", (0.0,))
    inner.before = hang
    for _ in range(CALLS_PER_ROW - 1):
        backend = DirectBackend(inner, tmp_path / "direct")
        job = submit(backend, tmp_path, 20)
        with pytest.raises(BackendError, match="in time"):
            ended(backend, job)
        backend.close()
    backend = DirectBackend(inner, tmp_path / "direct")
    done = ended(backend, job)
    assert done.state is JobState.SUCCEEDED
    assert keys(backend, done) == sorted(f"r{n}" for n in range(20))
    assert inner.asked == Counter({f"r{n}": 1 for n in range(20)} | {"r1": CALLS_PER_ROW})
    (line,) = (line for line in b"".join(backend.output(done)).splitlines() if b'"r1"' in line)
    assert json.loads(line)["error"] == {"code": 4, "message": "it does not answer in time"}
    backend.delete_upload("direct/" + TOKEN)
    assert list((tmp_path / "direct").iterdir()) == []
    backend.close()


def opened() -> set[Path]:
    """Folders of files that this process has open, as far as the system tells."""
    handles = Path("/proc/self/fd")
    return {folder for handle in handles.glob("*") for folder in handle.resolve().parents}


@pytest.mark.parametrize("status", [429, 503, 401])
def test_a_refused_call_is_no_rows_fault(inner: Inner, tmp_path: Path, status: int) -> None:
    def refuse(key: str) -> None:
        raise BackendError("no", http_status=status, transient=status != 401)

    inner.before = refuse
    for _ in range(CALLS_PER_ROW + 1):
        backend = DirectBackend(inner, tmp_path / "direct")
        job = submit(backend, tmp_path, 1)
        with pytest.raises(BackendError, match="no"):
            ended(backend, job)
        assert tmp_path.resolve() not in opened()
        backend.close()
    assert inner.asked == Counter(r0=CALLS_PER_ROW + 1)


def test_calls_that_stop_are_not_made_again_at_once(inner: Inner, tmp_path: Path) -> None:
    def refuse(key: str) -> None:
        raise BackendError("quota", http_status=429, transient=True)

    inner.before = refuse
    backend = DirectBackend(inner, tmp_path / "direct")
    job = submit(backend, tmp_path, 1)
    for _ in range(2):
        with pytest.raises(BackendError, match="quota"):
            ended(backend, job)
    for _ in range(50):
        assert backend.get(job.job_name).state is JobState.RUNNING
    assert inner.asked == Counter(r0=2)
    backend.close()
