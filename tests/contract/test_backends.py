"""One suite over every backend: in memory, the SDK against the emulator's two services, and `backend: local`
in the place of either."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from google.oauth2.credentials import Credentials

from runner.backends import Backend
from runner.backends import local as local_backend
from runner.backends.gemini import GeminiBackend
from runner.backends.memory import Ending, MemoryBackend
from runner.backends.retry import RetryingBackend
from runner.backends.vertex import VertexBackend
from runner.clock import SystemClock
from runner.errors import BackendError, SubmissionRefused, SubmissionUnknown
from runner.model import Job, JobState

MODEL = "gemini-3.5-flash-lite"
EMBEDDING_MODEL = "gemini-embedding-001"
TOKEN = "gb1-0123abcd-0123456789abcdef-a1"
SCHEMA = {"type": "OBJECT", "properties": {"n": {"type": "INTEGER"}}, "required": ["n"]}


class HandClock:
    """Moves only when someone sleeps."""

    def __init__(self) -> None:
        self.seconds = 1_700_000_000.0

    def now(self) -> float:
        return self.seconds

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds


KINDS = ["memory", "gemini", "local", "vertex", "local like vertex"]
CLOCKS: dict[str, Any] = {"memory": HandClock(), "local": SystemClock()}


@pytest.fixture(params=KINDS)
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Backend]:
    made: Backend
    if request.param == "memory":
        yield MemoryBackend(CLOCKS["memory"])
        return
    process = pytest.importorskip("runner.emulator.process")
    if request.param.startswith("local"):
        like = "vertex" if request.param.endswith("vertex") else "gemini"
        made = local_backend.start(tmp_path / "emulator", None, 10.0, like=like)
        yield made
        made.close()
        return
    with process.start(tmp_path / "emulator", None) as emulator:
        if request.param == "vertex":
            made = connect_to_vertex(emulator.url)
            yield made
            made.close()
            return
        made = GeminiBackend(
            api_key="any key", base_url=emulator.url, api_version="v1beta", request_timeout_s=10.0
        )
        made.poll_interval_s = 0.1
        yield made
        made.close()


def connect_to_vertex(url: str) -> VertexBackend:
    made = VertexBackend(
        project="my-project",
        location="europe-west4",
        staging_uri="gs://shelf/some/folder",
        credentials=Credentials(token="any token"),
        base_url=url,
        storage_url=url,
        api_version="v1",
        request_timeout_s=10.0,
        labels={"team": "support"},
        listing_gap_s=0.02,
    )
    made.poll_interval_s = 0.1
    made._storage.make_bucket("shelf")
    return made


def is_vertex(backend: Backend) -> bool:
    return isinstance(backend, VertexBackend)


def rows_of(backend: Backend, job: Job) -> list[Any]:
    """What came back, as rows of the Developer API: without what Vertex puts beside."""
    rows = [json.loads(line) for line in b"".join(backend.output(job)).splitlines()]
    for row in rows if is_vertex(backend) else ():
        assert row.pop("status") == ""
        assert row.pop("processed_time")
        assert row.pop("request")
    return rows


def write_shard(folder: Path, *keys: str, name: str = "shard.jsonl") -> tuple[Path, str]:
    lines = [
        {
            "key": key,
            "request": {
                "contents": [{"role": "user", "parts": [{"text": f"count {key}"}]}],
                "generationConfig": {"responseMimeType": "application/json", "responseSchema": SCHEMA},
            },
        }
        for key in keys
    ]
    data = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    path = folder / name
    path.write_bytes(data)
    return path, hashlib.sha256(data).hexdigest()


def submit(backend: Backend, folder: Path, *keys: str, token: str = TOKEN) -> Job:
    path, digest = write_shard(folder, *keys)
    upload = backend.upload(path, name=token, sha256=digest)
    return backend.create(model=MODEL, upload_name=upload.name, display_name=token)


def finished(backend: Backend, job_name: str) -> Job:
    clock = CLOCKS["memory"] if isinstance(backend, MemoryBackend) else CLOCKS["local"]
    deadline = clock.now() + 60
    while not (job := backend.get(job_name)).state.terminal:
        assert clock.now() < deadline, f"{job_name} is still {job.state}"
        clock.sleep(backend.poll_interval_s)
    return job


def test_a_backend_says_who_and_how_much(backend: Backend) -> None:
    assert backend.limits.max_requests > 0
    assert backend.limits.max_bytes > 0
    assert backend.poll_interval_s > 0
    assert backend.principal


def test_a_job_runs_from_upload_to_output(backend: Backend, tmp_path: Path) -> None:
    job = submit(backend, tmp_path, "r1", "r2", "r3")
    assert ("/batchPredictionJobs/" if is_vertex(backend) else "batches/") in job.job_name
    assert (job.display_name, job.model, job.state.terminal) == (TOKEN, MODEL, False)

    done = finished(backend, job.job_name)

    assert (done.job_name, done.display_name, done.model) == (job.job_name, TOKEN, MODEL)
    assert (done.state, done.error_code, done.error_message) == (JobState.SUCCEEDED, 0, "")
    assert done.counts["request"] == 3
    assert done.output_name
    assert done.create_time < done.end_time
    lines = rows_of(backend, done)
    assert {line["key"] for line in lines} == {"r1", "r2", "r3"}
    for line in lines:
        (part,) = line["response"]["candidates"][0]["content"]["parts"]
        assert isinstance(json.loads(part["text"])["n"], int)


def test_the_same_output_comes_back_each_time(backend: Backend, tmp_path: Path) -> None:
    done = finished(backend, submit(backend, tmp_path, "r1", "r2").job_name)

    assert list(backend.output(done)) == list(backend.output(done)) != []


def test_an_upload_may_be_repeated_and_looked_up(backend: Backend, tmp_path: Path) -> None:
    path, digest = write_shard(tmp_path, "r1")
    first = backend.upload(path, name=TOKEN, sha256=digest)
    again = backend.upload(path, name=TOKEN, sha256=digest)

    assert first == again
    assert first.sha256 in (digest, "")
    assert backend.upload_exists(first.name)
    backend.delete_upload(first.name)
    backend.delete_upload(first.name)
    assert not backend.upload_exists(first.name)


def test_other_bytes_under_a_taken_name_get_another_name(backend: Backend, tmp_path: Path) -> None:
    path, digest = write_shard(tmp_path, "r1")
    other_path, other_digest = write_shard(tmp_path, "r2", name="other.jsonl")

    first = backend.upload(path, name=TOKEN, sha256=digest)
    other = backend.upload(other_path, name=TOKEN, sha256=other_digest)

    assert first.name != other.name
    job = backend.create(model=MODEL, upload_name=other.name, display_name=TOKEN)
    assert b'"r2"' in b"".join(backend.output(finished(backend, job.job_name)))


def test_every_create_makes_a_job_and_listings_show_them_all(backend: Backend, tmp_path: Path) -> None:
    made = [submit(backend, tmp_path, "r1").job_name for _ in range(3)]
    made += [submit(backend, tmp_path, "r1", token="gb1-0123abcd-0123456789abcdef-a2").job_name]

    listed = {job.job_name: job.display_name for job in backend.jobs()}

    assert len(set(made)) == 4
    assert set(listed) == set(made)
    assert [listed[name] for name in made].count(TOKEN) == 3


def test_a_job_of_a_missing_upload_is_refused(backend: Backend) -> None:
    if is_vertex(backend):
        job = backend.create(model=MODEL, upload_name=TOKEN, display_name=TOKEN)
        done = finished(backend, job.job_name)
        assert (done.state, done.error_code) == (JobState.FAILED, 5)
        assert "staging_uri" in done.error_message
        assert list(backend.output(done)) == []
        return
    with pytest.raises(SubmissionRefused) as error:
        backend.create(model=MODEL, upload_name="files/none", display_name=TOKEN)
    assert error.value.http_status in (403, 404)
    assert list(backend.jobs()) == []


def test_one_malformed_line_refuses_the_job(backend: Backend, tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_bytes(b'{"key":"r1","request":\n')
    upload = backend.upload(path, name=TOKEN, sha256=hashlib.sha256(path.read_bytes()).hexdigest())

    if is_vertex(backend):
        done = finished(
            backend, backend.create(model=MODEL, upload_name=upload.name, display_name=TOKEN).job_name
        )
        assert (done.state, done.error_code) == (JobState.FAILED, 3)
        assert "line 1" in done.error_message
        return
    with pytest.raises(SubmissionRefused, match="line 1") as error:
        backend.create(model=MODEL, upload_name=upload.name, display_name=TOKEN)
    assert error.value.http_status == 400
    assert list(backend.jobs()) == []


def text_line(key: str, text: str) -> bytes:
    body = {"key": key, "request": {"contents": [{"role": "user", "parts": [{"text": text}]}]}}
    return json.dumps(body).encode()


def embed_line(backend: Backend, key: str, text: str, size: int = 8) -> bytes:
    request: dict[str, Any] = {"content": {"parts": [{"text": text}]}, "outputDimensionality": size}
    if is_vertex(backend):
        content = {**request["content"], "role": "user"}
        request = {"content": content, "embed_content_config": {"output_dimensionality": size}}
    return json.dumps({"key": key, "request": request}).encode()


def ended(backend: Backend, folder: Path, task: str, *lines: bytes) -> Job:
    """A whole job of these lines, under a token of their own."""
    data = b"".join(line + b"\n" for line in lines)
    path = folder / "lines.jsonl"
    path.write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    token = f"gb1-0123abcd-{digest[:16]}-a1"
    upload = backend.upload(path, name=token, sha256=digest)
    model = EMBEDDING_MODEL if task == "embed_content" else MODEL
    job = backend.create(model=model, upload_name=upload.name, display_name=token, task=task)
    assert (job.model, job.display_name) == (model, token)
    done = finished(backend, job.job_name)
    assert (done.state, done.model) == (JobState.SUCCEEDED, model)
    return done


def run(backend: Backend, folder: Path, task: str, *lines: bytes) -> list[Any]:
    """The lines that a whole job of these lines gives back."""
    return rows_of(backend, ended(backend, folder, task, *lines))


def test_a_job_of_texts_gives_vectors(backend: Backend, tmp_path: Path) -> None:
    lines = run(
        backend,
        tmp_path,
        "embed_content",
        embed_line(backend, "r1", "one"),
        embed_line(backend, "r2", "two", 3),
    )

    assert {line["key"]: len(line["response"]["embedding"]["values"]) for line in lines} == {"r1": 8, "r2": 3}
    for line in lines:
        assert int(line["response"]["tokenCount"]) > 0


@pytest.mark.parametrize("task", ["generate_content", "embed_content"])
def test_a_job_of_the_other_tasks_lines_is_refused(backend: Backend, tmp_path: Path, task: str) -> None:
    other = embed_line(backend, "r1", "one") if task == "generate_content" else text_line("r1", "one")
    if is_vertex(backend):
        done = ended(backend, tmp_path, task, other)
        (row,) = (json.loads(line) for line in b"".join(backend.output(done)).splitlines())
        assert row["status"].startswith("Bad Request: {")
        assert "response" not in row
        assert (done.counts["failed"], done.counts["request"]) == (1, 1)
        return
    with pytest.raises(SubmissionRefused, match="line 1") as error:
        run(backend, tmp_path, task, other)
    assert error.value.http_status == 400


def test_a_synchronous_answer_is_the_line_of_a_batch(backend: Backend, tmp_path: Path) -> None:
    line = text_line("r1", "What is two and two?")
    answer = backend.answer(task="generate_content", model=MODEL, line=line)
    assert answer.endswith(b"}\n")
    assert b"\n" not in answer[:-1]
    assert [json.loads(answer)] == run(backend, tmp_path, "generate_content", line)

    line = embed_line(backend, "r1", "some text")
    asked = json.loads(backend.answer(task="embed_content", model=EMBEDDING_MODEL, line=line + b"\n"))
    (batched,) = run(backend, tmp_path, "embed_content", line)
    assert asked["key"] == "r1"
    assert asked["response"]["embedding"] == batched["response"]["embedding"]


@pytest.mark.parametrize("task", ["generate_content", "embed_content"])
def test_a_request_that_is_refused_for_itself_is_an_error_line(backend: Backend, task: str) -> None:
    line = embed_line(backend, "r1", "one") if task == "generate_content" else text_line("r1", "one")
    model = EMBEDDING_MODEL if task == "embed_content" else MODEL
    answer = backend.answer(task=task, model=model, line=line)
    assert answer.endswith(b"}\n")
    body = json.loads(answer)
    assert set(body) == {"key", "error"}
    assert (body["key"], body["error"]["code"], body["error"]["status"]) == ("r1", 3, "INVALID_ARGUMENT")
    assert body["error"]["message"]


def test_answers_may_be_asked_for_at_once(backend: Backend) -> None:
    lines = {f"r{n}": text_line(f"r{n}", f"Question {n}.") for n in range(40)}

    def ask(line: bytes) -> bytes:
        return backend.answer(task="generate_content", model=MODEL, line=line)

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, lines.values()))
    assert [json.loads(answer)["key"] for answer in answers] == list(lines)
    assert answers == [ask(line) for line in lines.values()]


def test_a_job_that_does_not_exist_is_404(backend: Backend) -> None:
    with pytest.raises(BackendError) as error:
        backend.get("123" if is_vertex(backend) else "batches/none")
    assert error.value.http_status == 404
    assert not error.value.transient


def test_a_cancelled_job_ends(backend: Backend, tmp_path: Path) -> None:
    job = submit(backend, tmp_path, "r1")
    backend.cancel(job.job_name)

    assert finished(backend, job.job_name).state in (JobState.CANCELLED, JobState.SUCCEEDED)
    backend.cancel(job.job_name)


def test_a_deleted_job_takes_its_output_along(backend: Backend, tmp_path: Path) -> None:
    done = finished(backend, submit(backend, tmp_path, "r1").job_name)
    backend.delete(done.job_name)
    backend.delete(done.job_name)

    with pytest.raises(BackendError):
        backend.get(done.job_name)
    with pytest.raises(BackendError):
        list(backend.output(done))
    assert list(backend.jobs()) == []


def test_a_job_without_output_gives_no_bytes(backend: Backend) -> None:
    assert list(backend.output(Job(job_name="batches/none", display_name="", state=JobState.FAILED))) == []


def test_local_jobs_outlive_the_process_and_are_called_what_they_are(tmp_path: Path) -> None:
    pytest.importorskip("runner.emulator.process")
    backend = local_backend.start(tmp_path / "emulator", None, 10.0)
    job = submit(backend, tmp_path, "r1")
    backend.close()

    backend = local_backend.start(tmp_path / "emulator", None, 10.0)
    try:
        assert [seen.job_name for seen in backend.jobs()] == [job.job_name]
        assert b'"r1"' in b"".join(backend.output(finished(backend, job.job_name)))
        assert backend.principal == "local"
        assert "no model was called" in backend.notice
    finally:
        backend.close()


# ---------------------------------------------------------------- what only the one in memory can show


def test_a_lost_reply_leaves_a_job(tmp_path: Path) -> None:
    backend = MemoryBackend(HandClock())
    steps: list[str] = []

    def lose(step: str, args: Any) -> Exception | None:
        steps.append(step)
        return SubmissionUnknown("the reply was lost") if step == "create.after" else None

    backend.fault = lose
    with pytest.raises(SubmissionUnknown):
        submit(RetryingBackend(backend), tmp_path, "r1")
    backend.fault = None

    assert steps == ["upload.before", "upload.after", "create.before", "create.after"]
    assert [job.display_name for job in backend.jobs()] == [TOKEN]


def test_a_request_that_never_arrived_leaves_none(tmp_path: Path) -> None:
    backend = MemoryBackend(
        HandClock(),
        fault=lambda step, _: SubmissionUnknown("lost on the way") if step == "create.before" else None,
    )
    with pytest.raises(SubmissionUnknown):
        submit(backend, tmp_path, "r1")
    backend.fault = None
    assert list(backend.jobs()) == []


def test_a_new_job_may_show_late_in_listings(tmp_path: Path) -> None:
    clock = HandClock()
    backend = MemoryBackend(clock, listing_lag_s=30)
    job = submit(backend, tmp_path, "r1")

    assert list(backend.jobs()) == []
    assert backend.get(job.job_name).job_name == job.job_name
    clock.sleep(30)
    assert [seen.job_name for seen in backend.jobs()] == [job.job_name]


def test_jobs_advance_with_the_clock_and_end_as_told(tmp_path: Path) -> None:
    clock = HandClock()
    expired = Ending(state=JobState.EXPIRED, error_code=4, error_message="too late")
    backend = MemoryBackend(clock, ending=lambda _: expired, pending_s=10, running_s=20)
    name = submit(backend, tmp_path, "r1").job_name

    seen = []
    for _ in range(4):
        seen.append(backend.get(name).state)
        clock.sleep(10)
    done = backend.get(name)
    assert seen == [JobState.PENDING, JobState.RUNNING, JobState.RUNNING, JobState.EXPIRED]
    assert (done.error_code, done.error_message, done.output_name) == (4, "too late", "")
    assert list(backend.output(done)) == []
    backend.cancel(name)
    assert backend.get(name).state is JobState.EXPIRED


def test_answers_come_from_the_function_handed_in(tmp_path: Path) -> None:
    clock = HandClock()
    backend = MemoryBackend(clock, answer=lambda line: {"error": {"code": 13, "message": line["key"]}})
    done = finished_on(backend, clock, submit(backend, tmp_path, "r1").job_name)

    assert json.loads(b"".join(backend.output(done))) == {"key": "r1", "error": {"code": 13, "message": "r1"}}


def test_faults_strike_before_and_after_an_answer() -> None:
    def struck_at(moment: str) -> list[tuple[str, dict[str, str]]]:
        steps: list[tuple[str, dict[str, str]]] = []

        def fault(step: str, args: Any) -> Exception | None:
            steps.append((step, dict(args)))
            return BackendError("the reply was lost") if step == moment else None

        backend = MemoryBackend(HandClock(), fault=fault)
        with pytest.raises(BackendError, match="lost"):
            backend.answer(task="generate_content", model=MODEL, line=text_line("r1", "x"))
        return steps

    args = {"key": "r1", "model": MODEL}
    assert struck_at("answer.before") == [("answer.before", args)]
    assert struck_at("answer.after") == [("answer.before", args), ("answer.after", args)]


def finished_on(backend: MemoryBackend, clock: HandClock, job_name: str) -> Job:
    clock.sleep(60)
    return backend.get(job_name)
