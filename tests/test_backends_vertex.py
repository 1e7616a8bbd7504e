"""The Vertex backend against a loopback server that answers exactly as each test says."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from google.oauth2.credentials import Credentials
from scripted_server import Call, Reply, Service, answer, refusal

from runner.backends import vertex, vertexwire
from runner.backends.vertex import VertexBackend, from_environment
from runner.errors import BackendError, SubmissionDeferred, SubmissionRefused, SubmissionUnknown
from runner.model import Job, JobState
from runner.specmodel import BackendSpec

TOKEN = "gb1-0123abcd-0123456789abcdef-a1"
PLACE = "/v1beta1/projects/my-project/locations/us-central1"
NAME = "projects/123456789012/locations/us-central1/batchPredictionJobs/77"
DATA = b'{"key":"r1","request":{}}\n'
DIGEST = hashlib.sha256(DATA).hexdigest()


class HandClock:
    """Moves only when someone sleeps."""

    def __init__(self) -> None:
        self.seconds = 1_700_000_000.0

    def now(self) -> float:
        return self.seconds

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds


@pytest.fixture
def service() -> Iterator[Service]:
    service = Service()
    yield service
    service.close()


@pytest.fixture
def backend(service: Service) -> Iterator[VertexBackend]:
    backend = connect(service.url)
    yield backend
    backend.close()


def connect(url: str, **changes: Any) -> VertexBackend:
    settings: dict[str, Any] = {
        "project": "my-project",
        "location": "us-central1",
        "staging_uri": "gs://shelf/some/folder",
        "credentials": Credentials(token="secret"),
        "base_url": url,
        "storage_url": url,
        "api_version": "v1beta1",
        "request_timeout_s": 5.0,
        "labels": {"team": "support"},
        "clock": HandClock(),
    }
    return VertexBackend(**{**settings, **changes})


def create(backend: VertexBackend) -> Job:
    upload = f"gs://shelf/some/folder/{TOKEN}.jsonl"
    return backend.create(model="gemini-3.5-flash-lite", upload_name=upload, display_name=TOKEN)


def job(state: str = "SUCCEEDED", **more: Any) -> dict[str, Any]:
    prefix = f"gs://shelf/some/folder/out/{TOKEN}"
    return {
        "name": NAME,
        "displayName": TOKEN,
        "model": "publishers/google/models/gemini-3.5-flash-lite",
        "state": f"JOB_STATE_{state}",
        "outputConfig": {"predictionsFormat": "jsonl", "gcsDestination": {"outputUriPrefix": prefix}},
        **more,
    }


# ---------------------------------------------------------------- create


def test_create_sends_one_request(service: Service, backend: VertexBackend) -> None:
    service.script = lambda _: answer(job("PENDING"))
    made = create(backend)
    assert (made.job_name, made.display_name, made.state) == (NAME, TOKEN, JobState.PENDING)
    (call,) = service.calls
    assert (call.method, call.path) == ("POST", f"{PLACE}/batchPredictionJobs")
    assert call.headers["authorization"] == "Bearer secret"
    assert call.json == {
        "model": "publishers/google/models/gemini-3.5-flash-lite",
        "inputConfig": {
            "instancesFormat": "jsonl",
            "gcsSource": {"uris": [f"gs://shelf/some/folder/{TOKEN}.jsonl"]},
        },
        "displayName": TOKEN,
        "outputConfig": {
            "predictionsFormat": "jsonl",
            "gcsDestination": {"outputUriPrefix": f"gs://shelf/some/folder/out/{TOKEN}"},
        },
        "labels": {"team": "support", "gbrun_token": TOKEN},
    }


@pytest.mark.parametrize("status", [400, 401, 403, 404])
def test_a_refusal_made_no_job(service: Service, backend: VertexBackend, status: int) -> None:
    service.script = lambda _: refusal(status, "NO", "It cannot be.")
    with pytest.raises(SubmissionRefused, match=r"It cannot be\.") as error:
        create(backend)
    assert error.value.http_status == status
    assert service.posts() == 1


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (refusal(429, "RESOURCE_EXHAUSTED", "Later."), SubmissionDeferred),
        (Reply(429, b"busy"), SubmissionUnknown),
        (refusal(500, "INTERNAL", "Oops."), SubmissionUnknown),
        (refusal(503, "UNAVAILABLE", "Oops."), SubmissionUnknown),
        (answer({}), SubmissionUnknown),
        (answer({"name": "projects/1/locations/x/models/3"}), SubmissionUnknown),
        (Reply(200, b"not JSON"), SubmissionUnknown),
        (Reply(reset=True), SubmissionUnknown),
        (Reply(301, b"", {"Location": "/elsewhere"}), SubmissionUnknown),
    ],
)
def test_what_may_have_made_a_job_is_unknown(
    service: Service, backend: VertexBackend, reply: Reply, kind: type[BackendError]
) -> None:
    service.script = lambda _: reply
    with pytest.raises(BackendError) as error:
        create(backend)
    assert type(error.value) is kind
    assert len(service.calls) == 1


def test_no_connection_made_no_job(service: Service) -> None:
    backend = connect("http://127.0.0.1:9")
    with pytest.raises(SubmissionRefused, match="no connection"):
        create(backend)
    backend.close()


def test_without_a_token_nothing_is_sent(service: Service) -> None:
    class Expired(Credentials):  # type: ignore[misc]
        token = None
        expired = True

        def refresh(self, request: Any) -> None:
            from google.auth.exceptions import RefreshError

            raise RefreshError("the key was revoked")

    backend = connect(service.url, credentials=Expired(token=None))
    with pytest.raises(SubmissionRefused, match="the key was revoked") as error:
        create(backend)
    assert "application-default login" in error.value.hint
    with pytest.raises(BackendError, match="the key was revoked"):
        backend.get(NAME)
    assert service.calls == []
    backend.close()


# ---------------------------------------------------------------- reading jobs


def test_a_job_is_read_as_it_stands(service: Service, backend: VertexBackend) -> None:
    stats = {"successfulCount": "5", "failedCount": "1", "incompleteCount": "-1"}
    service.script = lambda _: answer(job(completionStats=stats, createTime="a", endTime="b", newField=[1]))
    found = backend.get(NAME)
    assert (found.state, found.model, found.display_name) == (
        JobState.SUCCEEDED,
        "gemini-3.5-flash-lite",
        TOKEN,
    )
    assert found.counts == {"request": 6, "successful": 5, "failed": 1}
    assert found.output_name == f"gs://shelf/some/folder/out/{TOKEN}/"
    assert (found.create_time, found.end_time) == ("a", "b")
    assert service.calls[-1].path == f"/v1beta1/{NAME}"
    backend.get("77")
    assert service.calls[-1].path == f"{PLACE}/batchPredictionJobs/77"


@pytest.mark.parametrize(
    ("word", "state"),
    [
        ("QUEUED", JobState.PENDING),
        ("PENDING", JobState.PENDING),
        ("RUNNING", JobState.RUNNING),
        ("UPDATING", JobState.RUNNING),
        ("PAUSED", JobState.PAUSED),
        ("CANCELLING", JobState.CANCELLING),
        ("CANCELLED", JobState.CANCELLED),
        ("FAILED", JobState.FAILED),
        ("EXPIRED", JobState.EXPIRED),
        ("PARTIALLY_SUCCEEDED", JobState.PARTIAL),
    ],
)
def test_states(word: str, state: JobState) -> None:
    found = vertexwire.read_job(job(word))
    assert found.state is state
    # Rows that were finished are there whatever the end was.
    assert bool(found.output_name) == state.terminal


@pytest.mark.parametrize("word", ["", "UNSPECIFIED", "NEW_ONE"])
def test_an_unknown_state_is_an_error(word: str) -> None:
    with pytest.raises(BackendError, match="not known here"):
        vertexwire.read_job(job(word))
    assert vertexwire.read_job(job(word), listed=True).state is JobState.UNKNOWN


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (3, "validate --backend vertex"),
        (7, "service-123456789012@gcp-sa-aiplatform.iam.gserviceaccount.com"),
        (9, "bucket"),
        (13, ""),
    ],
)
def test_a_failed_job_says_what_to_look_at(code: int, words: str) -> None:
    found = vertexwire.read_job(job("FAILED", error={"code": code, "message": "In the service's words."}))
    assert found.error_code == code
    assert found.error_message.startswith("In the service's words.")
    assert words in found.error_message


@pytest.mark.parametrize(
    ("status", "message", "hint"),
    [
        (401, "Bad token.", "application-default login"),
        (
            403,
            "Vertex AI API has not been used in project 1 before or it is disabled.",
            "gcloud services enable",
        ),
        (403, "Permission denied.", "roles/aiplatform.user"),
        (404, "Publisher Model `x` was not found.", "location"),
    ],
)
def test_a_refusal_has_a_next_step(
    service: Service, backend: VertexBackend, status: int, message: str, hint: str
) -> None:
    service.script = lambda _: refusal(status, "NO", message)
    with pytest.raises(BackendError) as error:
        create(backend)
    assert hint in error.value.hint


def test_listings_ask_for_our_jobs_page_by_page(service: Service, backend: VertexBackend) -> None:
    pages = {
        "": {"batchPredictionJobs": [job("RUNNING")], "nextPageToken": "two"},
        "two": {"nextPageToken": "three"},
        "three": {"batchPredictionJobs": [job("NEW_ONE", name=f"{NAME}7"), job("FAILED", name=f"{NAME}8")]},
    }
    service.script = lambda call: answer(pages[call.query.get("pageToken", [""])[0]])
    assert [found.job_name for found in backend.jobs()] == [NAME, f"{NAME}7", f"{NAME}8"]
    assert {tuple(call.query["filter"]) for call in service.calls} == {("labels.gbrun_token:*",)}
    # A filter that hides what is there must not look like a job that was not made.
    service.script = lambda call: answer({} if "filter" in call.query else pages[""] | {"nextPageToken": ""})
    assert [found.job_name for found in backend.jobs()] == [NAME]
    service.script = lambda _: answer({"nextPageToken": "round"})
    with pytest.raises(BackendError, match="goes round"):
        list(backend.jobs())


def test_a_job_that_has_ended_cannot_be_cancelled_and_that_is_no_error(
    service: Service, backend: VertexBackend
) -> None:
    state = "SUCCEEDED"

    def script(call: Call) -> Reply:
        ended = refusal(400, "FAILED_PRECONDITION", "It has ended.")
        return answer(job(state)) if call.method == "GET" else ended

    service.script = script
    backend.cancel(NAME)
    assert service.calls[0].path == f"/v1beta1/{NAME}:cancel"
    state = "RUNNING"
    with pytest.raises(BackendError, match="It has ended"):
        backend.cancel(NAME)


# ---------------------------------------------------------------- deleting


def test_deleting_waits_for_the_operation_and_takes_its_own_output_along(
    service: Service, backend: VertexBackend
) -> None:
    deleted: list[str] = []
    asked = 0

    def script(call: Call) -> Reply:
        nonlocal asked
        if call.path.startswith("/storage/v1/"):
            if call.method == "DELETE":
                deleted.append(call.path)
                return Reply(204, b"")
            name = f"{call.query['prefix'][0]}prediction-x/predictions.jsonl"
            return answer({"items": [{"name": name, "generation": "1", "size": "3"}]})
        if "/operations/" in call.path:
            asked += 1
            return answer({"name": "projects/1/locations/x/operations/5", "done": asked > 1})
        if call.method == "DELETE":
            return answer({"name": "projects/1/locations/x/operations/5"})
        return answer(job())

    service.script = script
    backend.delete(NAME)
    quoted = f"some%2Ffolder%2Fout%2F{TOKEN}%2Fprediction-x%2Fpredictions.jsonl"
    assert deleted == [f"/storage/v1/b/shelf/o/{quoted}"]
    assert asked == 2

    # Where the prefix is not that of an attempt, only the folder the job says it wrote to is its own.
    deleted.clear()
    other = {"gcsDestination": {"outputUriPrefix": "gs://shelf/everything"}}
    info = {"gcsOutputDirectory": "gs://shelf/everything/prediction-y"}
    for body, count in ((job(outputConfig=other), 0), (job(outputConfig=other, outputInfo=info), 1)):
        service.script = lambda call, body=body: (  # type: ignore[misc]
            answer(body) if call.method == "GET" and call.path == f"/v1beta1/{NAME}" else script(call)
        )
        backend.delete(NAME)
        assert len(deleted) == count


def test_deleting_what_is_gone_is_no_error(service: Service, backend: VertexBackend) -> None:
    service.script = lambda _: refusal(404, "NOT_FOUND", "gone")
    backend.delete(NAME)
    backend.delete_upload(TOKEN)
    assert not backend.upload_exists(TOKEN)


def test_a_job_that_is_not_over_is_not_deleted(service: Service, backend: VertexBackend) -> None:
    def script(call: Call) -> Reply:
        if call.path.startswith("/storage/"):
            return answer({})
        refused = refusal(400, "FAILED_PRECONDITION", "still running")
        return answer(job("RUNNING")) if call.method == "GET" else refused

    service.script = script
    with pytest.raises(BackendError, match="still running"):
        backend.delete(NAME)


# ---------------------------------------------------------------- output


class Bucket:
    """Objects by name, and a plan of listings to come before the real one."""

    def __init__(self, service: Service) -> None:
        self.objects: dict[str, bytes] = {}
        self.early: list[list[str]] = []
        self.job: dict[str, Any] | None = job()
        service.script = self.answer

    def answer(self, call: Call) -> Reply:
        if call.path.startswith("/download/"):
            name = call.path.rpartition("/o/")[2].replace("%2F", "/")
            start, end = call.headers["range"].removeprefix("bytes=").split("-")
            data = self.objects[name][int(start) : int(end) + 1]
            return Reply(206, data, {"Content-Range": f"bytes {start}-{end}/{len(self.objects[name])}"})
        if call.path.startswith("/storage/"):
            names = self.early.pop(0) if self.early else list(self.objects)
            prefix = call.query["prefix"][0]
            items = [
                {"name": name, "generation": "7", "size": str(len(self.objects[name]))}
                for name in names
                if name.startswith(prefix)
            ]
            return answer({"items": items})
        return answer(self.job) if self.job else refusal(404, "NOT_FOUND", "gone")


OUT = f"some/folder/out/{TOKEN}"


def output(backend: VertexBackend) -> bytes:
    return b"".join(backend.output(vertexwire.read_job(job())))


def test_every_file_of_rows_is_read_in_order_and_ended(service: Service, backend: VertexBackend) -> None:
    bucket = Bucket(service)
    bucket.objects = {
        f"{OUT}/prediction-model-x/predictions_0002.jsonl": b"c\n",
        f"{OUT}/prediction-model-x/predictions_0001.jsonl": b"a\nb",
        f"{OUT}/000001_prediction.results.jsonl": b"z\n",
        f"{OUT}/prediction-model-x/empty_prediction.jsonl": b"",
        f"{OUT}/prediction-model-x/errors_stats.txt": b"no",
        f"{OUT}/other.jsonl": b"no",
        # Of another attempt, whose name begins alike.
        f"{OUT}0/prediction-model-x/predictions.jsonl": b"no",
    }
    assert output(backend) == b"z\na\nb\nc\n"


def test_rows_may_land_late(service: Service, backend: VertexBackend) -> None:
    bucket = Bucket(service)
    names = [f"{OUT}/p/prediction-{n}.jsonl" for n in range(3)]
    bucket.objects = dict.fromkeys(names, b"x\n")
    bucket.early = [[], names[:1], names[:2], names[:2]]
    assert output(backend) == b"x\nx\n"
    clock = backend._clock
    assert isinstance(clock, HandClock)
    assert clock.seconds == 1_700_000_000.0 + 3 * 5.0
    bucket.early = [names[: n % 3] for n in range(50)]
    with pytest.raises(BackendError, match="still landing") as error:
        output(backend)
    assert error.value.transient


def test_a_job_without_rows_has_no_output_and_a_deleted_one_is_an_error(
    service: Service, backend: VertexBackend
) -> None:
    bucket = Bucket(service)
    assert output(backend) == b""
    bucket.job = None
    with pytest.raises(BackendError) as error:
        output(backend)
    assert error.value.http_status == 404


@pytest.mark.parametrize(
    ("reply", "transient"),
    [
        (Reply(reset=True), True),
        (refusal(503, "UNAVAILABLE", "busy"), True),
        (refusal(403, "PERMISSION_DENIED", "You do not have storage.objects.list access."), False),
        (refusal(404, "NOT_FOUND", "The specified bucket does not exist."), False),
    ],
)
def test_errors_of_the_storage(
    service: Service, backend: VertexBackend, reply: Reply, transient: bool
) -> None:
    service.script = lambda _: reply
    with pytest.raises(BackendError) as error:
        output(backend)
    assert error.value.transient is transient
    assert bool(error.value.hint) is not transient


def test_a_download_that_ends_too_early_is_transient(service: Service, backend: VertexBackend) -> None:
    bucket = Bucket(service)
    bucket.objects = {f"{OUT}/prediction.jsonl": b"0123456789\n"}

    def script(call: Call) -> Reply:
        reply = bucket.answer(call)
        if call.path.startswith("/download/"):
            return Reply(206, reply.body[:4], reply.headers, claimed_length=len(reply.body))
        return reply

    service.script = script
    with pytest.raises(BackendError) as error:
        output(backend)
    assert error.value.transient


# ---------------------------------------------------------------- uploads


def test_an_upload_is_made_where_there_is_none(
    service: Service, backend: VertexBackend, tmp_path: Path
) -> None:
    path = tmp_path / "shard.jsonl"
    path.write_bytes(DATA)
    service.script = lambda _: answer({"name": "x", "generation": "1", "size": str(len(DATA))})
    made = backend.upload(path, name=TOKEN, sha256=DIGEST)
    assert (made.name, made.sha256) == (f"gs://shelf/some/folder/{TOKEN}.jsonl", DIGEST)
    (call,) = service.calls
    assert call.query["ifGenerationMatch"] == ["0"]
    assert DATA in call.body
    assert str(tmp_path).encode() not in call.body


def test_an_upload_that_is_there_is_looked_at(
    service: Service, backend: VertexBackend, tmp_path: Path
) -> None:
    import base64

    path = tmp_path / "shard.jsonl"
    path.write_bytes(DATA)
    md5 = base64.b64encode(hashlib.md5(DATA).digest()).decode()

    def script(same: bool) -> Callable[[Call], Reply]:
        def reply(call: Call) -> Reply:
            if call.method == "GET":
                return answer({"size": str(len(DATA)), "md5Hash": md5 if same else "AAAA"})
            first = DIGEST[:16].encode() not in call.body
            return refusal(412, "conditionNotMet", "no") if first else answer({"generation": "1"})

        return reply

    service.script = script(True)
    assert backend.upload(path, name=TOKEN, sha256=DIGEST).name == f"gs://shelf/some/folder/{TOKEN}.jsonl"
    service.script = script(False)
    made = backend.upload(path, name=TOKEN, sha256=DIGEST)
    assert made.name == f"gs://shelf/some/folder/{TOKEN}-{DIGEST[:16]}.jsonl"


# ---------------------------------------------------------------- settings


def test_addresses_and_the_principal() -> None:
    for location, host in (
        ("us-central1", "us-central1-aiplatform.googleapis.com"),
        ("global", "aiplatform.googleapis.com"),
        ("eu", "aiplatform.eu.rep.googleapis.com"),
    ):
        backend = connect("", base_url=None, storage_url=None, location=location)
        # The SDK's own choice of address is the same.
        url = vertex.default_base_url(location)
        assert url == f"https://{host}"
        from google import genai

        client = genai.Client(
            vertexai=True, project="my-project", location=location, credentials=Credentials(token="x")
        )
        assert str(client._api_client._http_options.base_url).rstrip("/") == url
        client.close()
        assert backend.principal == f"vertex:{host}:my-project/{location}"
        backend.close()


def test_a_backend_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    spec = BackendSpec(type="vertex", project="my-project", location="us-central1", api_version="v1")
    backend = from_environment(spec, {}, {"GBRUN_VERTEX_TOKEN": " t "})
    assert backend.principal == "vertex:us-central1-aiplatform.googleapis.com:my-project/us-central1"
    with pytest.raises(BackendError, match="folder for its files"):
        backend.upload(tmp_path, name=TOKEN, sha256="")
    backend.close()
    with pytest.raises(BackendError, match="project and a location"):
        from_environment(BackendSpec(type="vertex"), {}, {})
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "none.json"))
    with pytest.raises(BackendError, match=r"none\.json") as error:
        from_environment(spec, {}, {})
    assert "application-default login" in error.value.hint
