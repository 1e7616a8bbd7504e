"""The Gemini backend against a loopback server that answers exactly as each test says."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import socket
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from scripted_server import Call, Reply, Service, answer, refusal

from runner.backends import Backend
from runner.backends.gemini import GeminiBackend, from_environment
from runner.backends.retry import RetryingBackend
from runner.clock import Clock
from runner.errors import (
    BackendError,
    StateError,
    SubmissionDeferred,
    SubmissionRefused,
    SubmissionUnknown,
)
from runner.model import Answer, Job, JobState, Outcome
from runner.results import Judge
from runner.specmodel import BackendSpec

DATA = b'{"key":"r1","request":{}}\n'
DIGEST = hashlib.sha256(DATA).hexdigest()
TOKEN = "gb1-0123abcd-0123456789abcdef-a1"


@pytest.fixture
def service() -> Iterator[Service]:
    service = Service()
    yield service
    service.close()


@pytest.fixture
def backend(service: Service) -> Iterator[GeminiBackend]:
    backend = connect(service.url)
    yield backend
    backend.close()


def connect(
    url: str, *, api_key: str = "key", request_timeout_s: float = 5.0, clock: Clock | None = None
) -> GeminiBackend:
    return GeminiBackend(
        api_key=api_key,
        base_url=url,
        api_version="v1beta",
        request_timeout_s=request_timeout_s,
        clock=clock,
    )


def create(backend: Backend) -> Job:
    return backend.create(model="gemini-3.5-flash-lite", upload_name="files/shard", display_name=TOKEN)


def operation(name: str = "batches/b1", state: str = "BATCH_STATE_PENDING", **more: Any) -> dict[str, Any]:
    meta = {"state": state, "displayName": TOKEN, "model": "models/gemini-3.5-flash-lite"}
    return {"name": name, "metadata": meta | more.pop("metadata", {}), **more}


# ---------------------------------------------------------------- create


def test_create_sends_one_request_with_the_model_the_file_and_the_token(
    service: Service, backend: GeminiBackend
) -> None:
    service.script = lambda _: answer(operation())

    job = create(backend)

    assert (job.job_name, job.display_name, job.state) == ("batches/b1", TOKEN, JobState.PENDING)
    (call,) = service.calls
    assert (call.method, call.path) == ("POST", "/v1beta/models/gemini-3.5-flash-lite:batchGenerateContent")
    assert call.json == {"batch": {"inputConfig": {"fileName": "files/shard"}, "displayName": TOKEN}}
    assert call.headers["x-goog-api-key"] == "key"
    assert call.headers["x-server-timeout"] == "5"


def test_a_job_of_embeddings_is_made_in_its_own_words(service: Service, backend: GeminiBackend) -> None:
    service.script = lambda _: answer(operation())
    job = backend.create(
        model="gemini-embedding-001", upload_name="files/shard", display_name=TOKEN, task="embed_content"
    )
    assert (job.job_name, job.model) == ("batches/b1", "gemini-embedding-001")
    (call,) = service.calls
    assert (call.method, call.path) == ("POST", "/v1beta/models/gemini-embedding-001:asyncBatchEmbedContent")
    assert call.json == {"batch": {"inputConfig": {"file_name": "files/shard"}, "displayName": TOKEN}}


REFUSED, DEFERRED, UNKNOWN = SubmissionRefused, SubmissionDeferred, SubmissionUnknown
CREATE = [
    (
        refusal(400, "INVALID_ARGUMENT", "Error on line 1: invalid JSON, near column 23"),
        REFUSED,
        "near column 23",
    ),
    (refusal(401, "UNAUTHENTICATED", "who are you"), REFUSED, "who are you"),
    (refusal(403, "PERMISSION_DENIED", "not you"), REFUSED, "not you"),
    (refusal(404, "NOT_FOUND", "Requested entity was not found."), REFUSED, "entity was not found"),
    (Reply(404, b"<html>nothing here</html>"), REFUSED, "nothing here"),
    (refusal(429, "RESOURCE_EXHAUSTED", "enqueued tokens"), DEFERRED, "enqueued tokens"),
    (Reply(429, b""), UNKNOWN, "429"),
    (Reply(429, b"slow down"), UNKNOWN, "slow down"),
    (Reply(429, b'{"error":"slow"}'), UNKNOWN, "429"),
    (refusal(408, "DEADLINE_EXCEEDED", "too slow"), UNKNOWN, "too slow"),
    (refusal(409, "ABORTED", "conflict"), UNKNOWN, "conflict"),
    (refusal(499, "CANCELLED", "gone"), UNKNOWN, "gone"),
    (refusal(500, "INTERNAL", "oops"), UNKNOWN, "oops"),
    (refusal(503, "UNAVAILABLE", "overloaded"), UNKNOWN, "overloaded"),
    (Reply(503, b""), UNKNOWN, "503"),
    (Reply(504, b"\xff\xfe"), UNKNOWN, "cannot create"),
    (Reply(200, b""), UNKNOWN, "cannot create"),
    (Reply(200, b"{}"), UNKNOWN, "cannot create"),
    (Reply(200, b"[]"), UNKNOWN, "not an object"),
    (Reply(200, b"not json"), UNKNOWN, "cannot create"),
    (Reply(200, b'{"name":null}'), UNKNOWN, "names no job"),
    (Reply(200, b'{"name":"operations/9"}'), UNKNOWN, "names no job"),
    (Reply(200, b'{"name":"batch', claimed_length=100), UNKNOWN, "cannot create"),
    (answer(operation(), 201), UNKNOWN, "201"),
    (Reply(307, b"", {"Location": "/elsewhere"}), UNKNOWN, "307"),
    (Reply(302, b"", {"Location": "/elsewhere"}), UNKNOWN, "302"),
    (Reply(reset=True), UNKNOWN, "cannot create"),
]


@pytest.mark.parametrize(("reply", "kind", "words"), CREATE)
def test_create_says_what_is_certain_and_posts_once(
    service: Service, backend: GeminiBackend, reply: Reply, kind: type[BackendError], words: str
) -> None:
    service.script = lambda _: reply

    with pytest.raises(BackendError) as error:
        create(RetryingBackend(backend, sleep=lambda _: None))

    assert type(error.value) is kind
    assert words in error.value.message
    assert TOKEN in error.value.message
    assert len(service.calls) == 1
    assert service.posts() == 1


def test_a_refusal_carries_the_services_status(service: Service, backend: GeminiBackend) -> None:
    service.script = lambda _: refusal(429, "RESOURCE_EXHAUSTED", "quota")
    with pytest.raises(SubmissionDeferred) as error:
        create(backend)
    assert (error.value.status, error.value.http_status, error.value.transient) == (
        "RESOURCE_EXHAUSTED",
        429,
        True,
    )


def test_a_create_that_is_not_answered_in_time_is_unknown(service: Service) -> None:
    service.script = lambda _: Reply(hang_s=20)
    backend = connect(service.url, request_timeout_s=0.3)
    with pytest.raises(SubmissionUnknown):
        create(backend)
    backend.close()
    assert service.posts() == 1


@pytest.mark.parametrize("host", ["127.0.0.1", "does-not-exist.invalid"])
def test_a_create_that_found_no_connection_is_refused(host: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    backend = connect(f"http://{host}:{port}")
    with pytest.raises(SubmissionRefused, match="no connection") as error:
        create(backend)
    backend.close()
    assert error.value.transient


def test_a_create_over_tls_that_was_not_established_is_refused(service: Service) -> None:
    backend = connect(service.url.replace("http:", "https:"))
    with pytest.raises(SubmissionRefused, match="no connection"):
        create(backend)
    backend.close()
    assert service.posts() == 0


def test_a_created_job_is_not_lost_over_the_rest_of_the_reply(
    service: Service, backend: GeminiBackend
) -> None:
    metas: list[Any] = [{"state": "BATCH_STATE_NEVER_HEARD_OF"}, {"batchStats": "?"}, [], None, "text"]
    for meta in metas:
        reply = answer({"name": "batches/b1", "metadata": meta})
        service.script = lambda _, reply=reply: reply  # type: ignore[misc]
        assert create(backend).job_name == "batches/b1"


# ---------------------------------------------------------------- jobs


def test_a_job_is_read_with_what_the_sdk_drops(service: Service, backend: GeminiBackend) -> None:
    service.script = lambda _: answer(
        operation(
            state="BATCH_STATE_FAILED",
            metadata={
                "createTime": "2026-11-21T00:00:00Z",
                "endTime": "2026-11-21T01:00:00Z",
                "batchStats": {
                    "requestCount": "31",
                    "pendingRequestCount": "30",
                    "successfulRequestCount": "1",
                },
            },
            done=True,
            error={"code": 13, "message": "system error"},
            response={"responsesFile": "files/batch-b1"},
        )
    )

    assert backend.get("batches/b1") == Job(
        job_name="batches/b1",
        display_name=TOKEN,
        state=JobState.FAILED,
        model="gemini-3.5-flash-lite",
        output_name="files/batch-b1",
        error_code=13,
        error_message="system error",
        create_time="2026-11-21T00:00:00Z",
        end_time="2026-11-21T01:00:00Z",
        counts={"request": 31, "successful": 1, "pending": 30},
    )
    assert [call.path for call in service.calls] == ["/v1beta/batches/b1"]


@pytest.mark.parametrize("prefix", ["BATCH_STATE_", "JOB_STATE_"])
def test_every_state_of_the_service_has_a_meaning(
    service: Service, backend: GeminiBackend, prefix: str
) -> None:
    from google.genai import types

    for state in types.JobState:
        word = state.value.removeprefix("JOB_STATE_")
        reply = answer(operation(state=prefix + word))
        service.script = lambda _, reply=reply: reply  # type: ignore[misc]
        if word == "UNSPECIFIED":
            with pytest.raises(BackendError, match="UNSPECIFIED"):
                backend.get("batches/b1")
        else:
            backend.get("batches/b1")


def test_a_partial_success_is_an_end(service: Service, backend: GeminiBackend) -> None:
    service.script = lambda _: answer(operation(state="JOB_STATE_PARTIALLY_SUCCEEDED"))
    assert backend.get("batches/b1").state.terminal


@pytest.mark.parametrize("state", ["BATCH_STATE_FROBNICATING", "", None])
def test_an_unknown_state_is_an_error_and_not_a_wait(
    service: Service, backend: GeminiBackend, state: Any
) -> None:
    service.script = lambda _: answer(operation(state=state))
    with pytest.raises(BackendError, match=r"batches/b1.*not known here") as error:
        backend.get("batches/b1")
    assert not error.value.transient


def test_a_job_that_does_not_exist_is_404(service: Service, backend: GeminiBackend) -> None:
    service.script = lambda _: refusal(404, "NOT_FOUND", "Requested entity was not found.")
    with pytest.raises(BackendError, match="Requested entity was not found") as error:
        backend.get("batches/b1")
    assert error.value.http_status == 404
    backend.delete("batches/b1")


def test_a_strangers_job_in_an_unknown_state_does_not_hide_the_others(
    service: Service, backend: GeminiBackend
) -> None:
    strange = operation(
        "batches/b1", "BATCH_STATE_FROBNICATING", metadata={"displayName": "of somebody else"}
    )
    ours = operation("batches/b2", "BATCH_STATE_FROBNICATING")
    service.script = lambda _: answer({"operations": [strange, operation("batches/b3")]})
    assert [job.state for job in backend.jobs()] == [JobState.UNKNOWN, JobState.PENDING]
    # Ours may be another state's of the same account: only who looks it up is told.
    service.script = lambda _: answer({"operations": [ours]})
    assert [job.display_name for job in backend.jobs()] == [ours["metadata"]["displayName"]]


def test_listing_goes_on_after_an_empty_page(service: Service, backend: GeminiBackend) -> None:
    pages: dict[str, Any] = {
        "": {"operations": [operation("batches/b1")], "nextPageToken": "t2"},
        "t2": {"nextPageToken": "t3"},
        "t3": {"operations": [], "nextPageToken": "t4"},
        "t4": {"operations": [operation("batches/b2")]},
    }
    service.script = lambda call: answer(pages[call.query.get("pageToken", [""])[0]])

    assert [job.job_name for job in backend.jobs()] == ["batches/b1", "batches/b2"]
    assert len(service.calls) == 4


def test_a_listing_that_goes_round_ends(service: Service, backend: GeminiBackend) -> None:
    service.script = lambda _: answer({"operations": [operation()], "nextPageToken": "again"})
    with pytest.raises(BackendError, match="round"):
        list(backend.jobs())
    assert len(service.calls) == 2


@pytest.mark.parametrize("body", [b"[]", b"not json", b'{"operations":[null]}', b'{"operations":[{}]}'])
def test_a_listing_that_cannot_be_read_is_not_an_empty_one(
    service: Service, backend: GeminiBackend, body: bytes
) -> None:
    service.script = lambda _: Reply(body=body)
    with pytest.raises(BackendError, match="cannot"):
        list(backend.jobs())


def test_a_listing_interrupted_by_429_is_repeated_and_shows_no_job_twice(
    service: Service, backend: GeminiBackend
) -> None:
    waited: list[float] = []

    def script(call: Call) -> Reply:
        if "pageToken" not in call.query:
            return answer({"operations": [operation("batches/b1")], "nextPageToken": "t2"})
        if len(service.calls) < 6:
            return refusal(429, "RESOURCE_EXHAUSTED", "slow down")
        return answer({"operations": [operation("batches/b2")]})

    service.script = script
    jobs = RetryingBackend(backend, sleep=waited.append).jobs()
    assert [job.job_name for job in jobs] == ["batches/b1", "batches/b2"]
    assert waited == [1.0, 2.0]


def test_retries_end_and_permanent_errors_are_not_retried(service: Service, backend: GeminiBackend) -> None:
    waited: list[float] = []
    retrying = RetryingBackend(backend, sleep=waited.append)

    service.script = lambda _: refusal(503, "UNAVAILABLE", "overloaded")
    with pytest.raises(BackendError, match="overloaded"):
        retrying.get("batches/b1")
    assert waited == [1.0, 2.0, 4.0, 8.0]
    assert len(service.calls) == 5

    service.script = lambda _: refusal(400, "INVALID_ARGUMENT", "no")
    with pytest.raises(BackendError, match="no"):
        retrying.get("batches/b1")
    assert len(service.calls) == 6


def test_cancelling_a_job_that_has_ended_is_no_error(service: Service, backend: GeminiBackend) -> None:
    state = "BATCH_STATE_SUCCEEDED"

    def script(call: Call) -> Reply:
        if call.method == "POST":
            return refusal(400, "FAILED_PRECONDITION", "the job has ended")
        return answer(operation(state=state))

    service.script = script
    backend.cancel("batches/b1")
    assert service.calls[0].path == "/v1beta/batches/b1:cancel"
    state = "BATCH_STATE_RUNNING"
    with pytest.raises(BackendError, match="the job has ended"):
        backend.cancel("batches/b1")


# ---------------------------------------------------------------- uploads


class Files:
    """A script of the upload protocol; `taken` are the files that exist."""

    def __init__(self, service: Service, **first: Any) -> None:
        self.service = service
        self.taken: dict[str, dict[str, Any]] = {}
        self.state = "ACTIVE"
        self.digest = base64.b64encode(hashlib.sha256(DATA).digest()).decode()
        self.missing_status = 404
        self.finalize: Reply | None = None
        self.name_refused: Reply | None = None
        self.started: list[dict[str, Any]] = []
        self.bodies: list[bytes] = []
        service.script = self

    def __call__(self, call: Call) -> Reply:
        if call.path == "/upload/v1beta/files":
            return self.start(call)
        if call.path == "/session":
            self.bodies.append(call.body)
            if self.finalize is not None:
                reply, self.finalize = self.finalize, None
                return reply
            name = self.started[-1].get("name") or f"files/chosen{len(self.started)}"
            file = {
                "name": name,
                "state": self.state,
                "sha256Hash": self.digest,
                "sizeBytes": str(len(call.body)),
            }
            self.taken[name] = file
            return answer({"file": file}, X_Goog_Upload_Status="final")
        name = call.path.removeprefix("/v1beta/")
        if call.method == "GET" and name in self.taken:
            file = dict(self.taken[name])
            self.taken[name]["state"] = "ACTIVE" if file["state"] == "PROCESSING" else file["state"]
            return answer(file)
        if call.method == "DELETE" and self.taken.pop(name, {}):
            return answer({})
        return refusal(self.missing_status, "NOT_FOUND", "or it may not exist")

    def start(self, call: Call) -> Reply:
        wanted = call.json["file"]
        self.started.append(wanted)
        if "name" in wanted and self.name_refused is not None:
            return self.name_refused
        if wanted.get("name") in self.taken:
            return refusal(409, "ALREADY_EXISTS", "the file exists")
        return answer({}, X_Goog_Upload_URL=f"{self.service.url}/session")


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    path = tmp_path / "shärd.jsonl"
    path.write_bytes(DATA)
    return path


def test_an_upload_asks_for_its_name_and_type(service: Service, backend: GeminiBackend, shard: Path) -> None:
    files = Files(service)

    upload = backend.upload(shard, name=TOKEN, sha256=DIGEST)

    assert (upload.name, upload.sha256) == (f"files/{TOKEN}", DIGEST)
    assert files.bodies == [DATA]
    (wanted,) = files.started
    assert wanted == {
        "name": f"files/{TOKEN}",
        "display_name": TOKEN,
        "mime_type": "application/jsonl",
        "size_bytes": len(DATA),
    }
    assert all("file-name" not in name for name in service.calls[0].headers)


RAW = hashlib.sha256(DATA).digest()
FORMS = {
    "hex": DIGEST,
    "HEX": DIGEST.upper(),
    "base64": base64.b64encode(RAW).decode(),
    "base64 without padding": base64.b64encode(RAW).decode().rstrip("="),
    "base64url": base64.urlsafe_b64encode(RAW).decode(),
    "base64 of hex": base64.b64encode(DIGEST.encode()).decode(),
    "hex of hex": DIGEST.encode().hex(),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("state", ["ACTIVE", "PROCESSING"])
def test_a_file_of_that_name_and_digest_is_used_again(
    service: Service, backend: GeminiBackend, shard: Path, form: str, state: str
) -> None:
    files = Files(service)
    name = f"files/{TOKEN}"
    files.taken[name] = {"name": name, "state": state, "sha256Hash": FORMS[form]}

    upload = backend.upload(shard, name=TOKEN, sha256=DIGEST)

    assert (upload.name, upload.sha256) == (name, DIGEST)
    assert files.bodies == []


@pytest.mark.parametrize("missing_status", [403, 404])
@pytest.mark.parametrize(
    "file",
    [
        None,
        {"state": "ACTIVE", "sha256Hash": base64.b64encode(hashlib.sha256(b"other").digest()).decode()},
        {"state": "ACTIVE", "sha256Hash": "?"},
        {"state": "ACTIVE"},
        {"state": "FAILED", "sha256Hash": DIGEST},
    ],
)
def test_otherwise_the_service_chooses_the_name(
    service: Service,
    backend: GeminiBackend,
    shard: Path,
    file: dict[str, Any] | None,
    missing_status: int,
) -> None:
    files = Files(service)
    files.missing_status = missing_status
    files.name_refused = refusal(400, "INVALID_ARGUMENT", "no names, please")
    if file is not None:
        files.taken[f"files/{TOKEN}"] = {"name": f"files/{TOKEN}", **file}

    upload = backend.upload(shard, name=TOKEN, sha256=DIGEST)

    assert upload.name == "files/chosen2"
    assert "name" not in files.started[1]
    assert files.bodies == [DATA]


def test_a_finalize_reply_without_the_file_is_a_failed_upload(
    service: Service, backend: GeminiBackend, shard: Path
) -> None:
    files = Files(service)
    files.finalize = answer({}, X_Goog_Upload_Status="final")

    assert backend.upload(shard, name=TOKEN, sha256=DIGEST).name == "files/chosen2"


def test_a_file_that_cannot_be_processed_is_an_error(
    service: Service, backend: GeminiBackend, shard: Path
) -> None:
    Files(service).state = "FAILED"
    with pytest.raises(BackendError, match="could not process"):
        backend.upload(shard, name=TOKEN, sha256=DIGEST)


def test_a_file_that_is_never_ready_is_not_waited_for_forever(service: Service, shard: Path) -> None:
    class Moved:
        def __init__(self) -> None:
            self.seconds = 0.0

        def now(self) -> float:
            return self.seconds

        def sleep(self, seconds: float) -> None:
            self.seconds += seconds

    files = Files(service)
    files.state = "PROCESSING"

    def stuck(call: Call) -> Reply:
        reply = files(call)
        for file in files.taken.values():
            file["state"] = "PROCESSING"
        return reply

    service.script = stuck
    backend = connect(service.url, clock=Moved())
    with pytest.raises(BackendError, match="still being processed after 5 s"):
        backend.upload(shard, name=TOKEN, sha256=DIGEST)
    backend.close()


def test_an_upload_that_arrived_damaged_is_not_used(
    service: Service, backend: GeminiBackend, shard: Path
) -> None:
    Files(service).digest = base64.b64encode(hashlib.sha256(b"other").digest()).decode()
    with pytest.raises(BackendError, match="damaged") as error:
        backend.upload(shard, name=TOKEN, sha256=DIGEST)
    assert error.value.transient


def test_an_upload_whose_reasons_are_elsewhere_says_them(
    service: Service, backend: GeminiBackend, shard: Path
) -> None:
    service.script = lambda _: refusal(400, "INVALID_ARGUMENT", "API key not valid.")
    with pytest.raises(BackendError, match="API key not valid"):
        backend.upload(shard, name=TOKEN, sha256=DIGEST)
    with pytest.raises(StateError, match="cannot read"):
        backend.upload(shard.parent / "none", name=TOKEN, sha256=DIGEST)


@pytest.mark.parametrize("missing_status", [403, 404])
def test_an_upload_can_be_asked_for_and_deleted_twice(
    service: Service, backend: GeminiBackend, shard: Path, missing_status: int
) -> None:
    Files(service).missing_status = missing_status
    upload = backend.upload(shard, name=TOKEN, sha256=DIGEST)

    assert backend.upload_exists(upload.name)
    backend.delete_upload(upload.name)
    backend.delete_upload(upload.name)
    assert not backend.upload_exists(upload.name)


# ---------------------------------------------------------------- output

DONE = Job(
    job_name="batches/b1",
    display_name=TOKEN,
    state=JobState.SUCCEEDED,
    output_name="files/batch-0123456789012345678901234567890123456789",
)


def test_an_output_is_downloaded_with_the_key_and_never_looked_up(service: Service) -> None:
    service.script = lambda _: Reply(body=b"line\n" * 100_000)
    backend = connect(service.url + "/prefix/")

    chunks = list(backend.output(DONE))

    backend.close()
    assert b"".join(chunks) == b"line\n" * 100_000
    assert max(map(len, chunks)) <= 1 << 18
    (call,) = service.calls
    assert call.path == f"/prefix/v1beta/{DONE.output_name}:download"
    assert call.query == {"alt": ["media"]}
    assert call.headers["x-goog-api-key"] == "key"


def test_a_job_without_output_asks_for_none(service: Service, backend: GeminiBackend) -> None:
    assert list(backend.output(Job(job_name="batches/b1", display_name="", state=JobState.FAILED))) == []
    assert service.calls == []


INLINE = [
    {
        "metadata": {"key": "r1"},
        "response": {"candidates": [{"content": {"parts": [{"text": "a\u2028\ud800"}]}}]},
    },
    {"metadata": {"key": "r2"}, "error": {"code": 13, "message": "\u00e9"}},
    None,
]


@pytest.mark.parametrize("place", ["metadata", "response"])
def test_answers_inside_a_job_come_as_lines(service: Service, backend: GeminiBackend, place: str) -> None:
    output = {"inlinedResponses": {"inlinedResponses": INLINE}}
    more: dict[str, Any] = {"response": output} if place == "response" else {"metadata": {"output": output}}
    service.script = lambda _: answer(operation(state="BATCH_STATE_SUCCEEDED", done=True, **more))
    job = backend.get("batches/b1")
    assert job.output_name == "batches/b1"

    lines = b"".join(backend.output(job)).splitlines(keepends=True)

    assert [json.loads(line) for line in lines] == INLINE
    assert all(line.endswith(b"\n") for line in lines)
    assert [call.path for call in service.calls] == ["/v1beta/batches/b1"] * 2
    assert list(RetryingBackend(backend).output(job)) == lines


def test_a_job_with_no_answers_inside_gives_none(service: Service, backend: GeminiBackend) -> None:
    service.script = lambda _: answer(operation(metadata={"output": {"inlinedResponses": {}}}))
    assert list(backend.output(backend.get("batches/b1"))) == []


def test_answers_inside_a_job_that_is_gone(service: Service, backend: GeminiBackend) -> None:
    service.script = lambda _: refusal(404, "NOT_FOUND", "Requested entity was not found.")
    job = Job(job_name="batches/b1", display_name="", state=JobState.SUCCEEDED, output_name="batches/b1")
    with pytest.raises(BackendError, match="cannot read the answers in batches/b1") as error:
        list(backend.output(job))
    assert error.value.http_status == 404


def test_a_short_download_is_a_transient_error(service: Service, backend: GeminiBackend) -> None:
    service.script = lambda _: Reply(body=b"line\n" * 10, claimed_length=1000)
    with pytest.raises(BackendError, match=r"cannot download|broke off") as error:
        list(backend.output(DONE))
    assert error.value.transient


def test_a_broken_download_goes_on_where_it_broke_off(service: Service, backend: GeminiBackend) -> None:
    body = b"".join(b"line %d\n" % number for number in range(100_000))

    def script(_: Call) -> Reply:
        if len(service.calls) < 3:
            return Reply(body=body[: len(body) * len(service.calls) // 3], claimed_length=len(body))
        return Reply(body=body)

    service.script = script
    waited: list[float] = []
    assert b"".join(RetryingBackend(backend, sleep=waited.append).output(DONE)) == body
    assert waited == [1.0, 2.0]


@pytest.mark.parametrize("later", [b"new\n" + b"line\n" * 200_000, b"line\n", b""])
def test_an_output_that_changed_meanwhile_is_not_pieced_together(
    service: Service, backend: GeminiBackend, later: bytes
) -> None:
    first = b"line\n" * 100_000

    def script(_: Call) -> Reply:
        return Reply(body=first, claimed_length=1_000_000) if len(service.calls) < 2 else Reply(body=later)

    service.script = script
    got: list[bytes] = []
    with pytest.raises(BackendError, match="changed while it was being read") as error:
        got.extend(RetryingBackend(backend, sleep=lambda _: None).output(DONE))
    assert error.value.transient
    assert got
    assert first.startswith(b"".join(got))


def test_an_output_that_is_gone_says_so(service: Service, backend: GeminiBackend) -> None:
    service.script = lambda _: refusal(404, "NOT_FOUND", "Requested entity was not found.")
    with pytest.raises(BackendError, match="Requested entity was not found") as error:
        list(backend.output(DONE))
    assert error.value.http_status == 404


def test_a_large_output_is_never_held(service: Service, backend: GeminiBackend) -> None:
    body = b"x" * 64_000_000
    service.script = lambda _: Reply(body=body)
    tracemalloc.start()
    try:
        assert sum(len(chunk) for chunk in backend.output(DONE)) == len(body)
        assert tracemalloc.get_traced_memory()[1] < 8_000_000
    finally:
        tracemalloc.stop()


# ---------------------------------------------------------------- synchronous calls

REQUEST = {"contents": [{"parts": [{"text": "Hello."}]}], "generation_config": {"temperature": 0}}
WITH_FILE = {"contents": [{"parts": [{"file_data": {"file_uri": "https://host/v1beta/files/a"}}]}]}
EMBED = {"content": {"parts": [{"text": "Hello."}]}, "output_dimensionality": 4}


def ask(backend: Backend, request: Any = REQUEST, task: str = "generate_content") -> bytes:
    line = json.dumps({"key": "r1", "request": request}).encode() + b"\n"
    model = "gemini-embedding-001" if task == "embed_content" else "gemini-3.5-flash-lite"
    return backend.answer(task=task, model=model, line=line)


def test_an_answer_is_the_services_own_json_on_one_line(service: Service, backend: GeminiBackend) -> None:
    body = (
        b'{\n  "candidates": [ {"a": "x \\n  y  z\xe2\x80\xa8"} ],\r\n  "n": 1.10,\n  "half": "\\ud800"\n}\n'
    )
    service.script = lambda _: Reply(body=body)

    one_line = b'{"candidates": [ {"a": "x \\n  y  z\xe2\x80\xa8"} ],"n": 1.10,"half": "\\ud800"}'
    assert ask(backend) == b'{"key":"r1","response":' + one_line + b"}\n"
    (call,) = service.calls
    assert (call.method, call.path) == ("POST", "/v1beta/models/gemini-3.5-flash-lite:generateContent")
    assert call.json == REQUEST
    assert call.headers["x-goog-api-key"] == "key"


HOSTILE = [
    (b"[" * 20_000 + b"]" * 20_000, "20,000 levels"),
    (b"9" * 5_000, "5,000 digits"),
    (b"NaN", "NaN"),
]


@pytest.mark.parametrize("value", [value for value, _ in HOSTILE], ids=[name for _, name in HOSTILE])
def test_a_hostile_answer_is_a_line_like_others(
    value: bytes, service: Service, backend: GeminiBackend
) -> None:
    """It is paid for: to fail here would be to ask, and to pay, again."""
    service.script = lambda _: Reply(body=b'{\n  "candidates": [{"odd": ' + value + b"}]\n}\n")
    line = ask(backend)
    assert line == b'{"key":"r1","response":{"candidates": [{"odd": ' + value + b"}]}}\n"
    name = f"r{'0' * 32}"
    found = Judge(None).line(line.replace(b'"r1"', b'"%s"' % name.encode()))
    assert isinstance(found, Answer)
    assert (found.request_id, found.outcome) == (name, Outcome.UNPARSEABLE)


def test_an_embedding_call_names_its_model(service: Service, backend: GeminiBackend) -> None:
    service.script = lambda _: answer({"embedding": {"values": [1]}})
    assert ask(backend, EMBED, "embed_content") == b'{"key":"r1","response":{"embedding": {"values": [1]}}}\n'
    (call,) = service.calls
    assert call.path == "/v1beta/models/gemini-embedding-001:embedContent"
    assert call.json == {"model": "models/gemini-embedding-001", **EMBED}


NO_FILE = "You do not have permission to access the File a or it may not exist."
OF_THE_ROW = [
    (refusal(400, "INVALID_ARGUMENT", "* contents: bad\n"), REQUEST, 3),
    (refusal(400, "INVALID_ARGUMENT", "Request payload size exceeds the limit"), REQUEST, 3),
    (refusal(403, "PERMISSION_DENIED", NO_FILE), WITH_FILE, 7),
    (refusal(404, "NOT_FOUND", "Requested entity was not found."), WITH_FILE, 5),
]


@pytest.mark.parametrize(("reply", "request_body", "code"), OF_THE_ROW)
def test_a_refusal_of_the_row_is_its_error(
    service: Service, backend: GeminiBackend, reply: Reply, request_body: Any, code: int
) -> None:
    service.script = lambda _: reply
    said = json.loads(reply.body)["error"]
    error = {"code": code, "message": said["message"], "status": said["status"]}
    assert json.loads(ask(RetryingBackend(backend), request_body)) == {"key": "r1", "error": error}
    assert len(service.calls) == 1


BAD_KEY = answer(
    {
        "error": {
            "code": 400,
            "message": "API key not valid.",
            "status": "INVALID_ARGUMENT",
            "details": [{"reason": "API_KEY_INVALID"}],
        }
    },
    400,
)
NO_MODEL = "models/x is not found for API version v1beta"
NOT_OF_THE_ROW = [
    (BAD_KEY, REQUEST, False, 1),
    (refusal(400, "FAILED_PRECONDITION", "User location is not supported"), REQUEST, False, 1),
    (Reply(400, b"<html>bad request</html>"), REQUEST, False, 1),
    (refusal(401, "UNAUTHENTICATED", "who are you"), WITH_FILE, False, 1),
    (refusal(403, "PERMISSION_DENIED", "not you"), WITH_FILE, False, 1),
    (refusal(403, "PERMISSION_DENIED", NO_FILE), REQUEST, False, 1),
    (refusal(404, "NOT_FOUND", NO_MODEL), WITH_FILE, False, 1),
    (refusal(404, "NOT_FOUND", "Requested entity was not found."), REQUEST, False, 1),
    (Reply(404, b"<html>no such page</html>"), WITH_FILE, False, 1),
    (refusal(429, "RESOURCE_EXHAUSTED", "quota"), REQUEST, True, 5),
    (refusal(503, "UNAVAILABLE", "overloaded"), REQUEST, True, 5),
    (refusal(500, "INTERNAL", "oops"), REQUEST, True, 1),
    (refusal(504, "DEADLINE_EXCEEDED", "too slow"), REQUEST, True, 1),
    (Reply(reset=True), REQUEST, True, 1),
    (Reply(200, b""), REQUEST, True, 1),
    (Reply(200, b"[]"), REQUEST, True, 1),
    (Reply(200, b'{"candidates":[', claimed_length=100), REQUEST, True, 1),
]


@pytest.mark.parametrize(("reply", "request_body", "transient", "calls"), NOT_OF_THE_ROW)
def test_any_other_failure_is_not_the_rows(
    service: Service, backend: GeminiBackend, reply: Reply, request_body: Any, transient: bool, calls: int
) -> None:
    """And it is asked again only where no answer can have been paid for."""
    service.script = lambda _: reply
    with pytest.raises(BackendError, match=r"cannot ask gemini-3\.5-flash-lite for r1") as error:
        ask(RetryingBackend(backend, sleep=lambda _: None), request_body)
    assert error.value.transient is transient
    assert len(service.calls) == calls


def test_an_answer_that_does_not_come_in_time_is_not_asked_for_again(service: Service) -> None:
    service.script = lambda _: Reply(hang_s=20)
    backend = connect(service.url, request_timeout_s=0.3)
    with pytest.raises(BackendError) as error:
        ask(RetryingBackend(backend, sleep=lambda _: None))
    backend.close()
    assert (error.value.transient, len(service.calls)) == (True, 1)


def test_without_a_connection_it_is_tried_again() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    backend = connect(f"http://127.0.0.1:{port}")
    waited: list[float] = []
    with pytest.raises(BackendError, match="no connection") as error:
        ask(RetryingBackend(backend, sleep=waited.append))
    backend.close()
    assert (error.value.status, error.value.http_status, error.value.transient) == ("UNAVAILABLE", 0, True)
    assert waited == [1.0, 2.0, 4.0, 8.0]


# ---------------------------------------------------------------- who talks to whom


def test_the_key_comes_from_the_environment_and_googles_wins(service: Service) -> None:
    spec = BackendSpec(type="gemini", base_url=service.url)
    service.script = lambda _: answer({})

    backend = from_environment(spec, {"GEMINI_API_KEY": "one", "GOOGLE_API_KEY": " two\n"})
    assert list(backend.jobs()) == []
    backend.close()

    assert service.calls[0].headers["x-goog-api-key"] == "two"
    assert backend.principal == f"gemini:127.0.0.1:{hashlib.sha256(b'two').hexdigest()[:12]}"


def test_without_a_key_the_next_step_is_named() -> None:
    with pytest.raises(BackendError, match="GEMINI_API_KEY") as error:
        from_environment(BackendSpec(type="gemini"), {"GOOGLE_API_KEY": " "})
    assert "--backend local" in error.value.hint
    with pytest.raises(BackendError, match="characters that no key has"):
        from_environment(BackendSpec(type="gemini"), {"GOOGLE_API_KEY": "k\u00e9y"})


def test_a_loopback_service_is_reached_past_any_proxy_and_setting(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("GOOGLE_GENAI_USE_VERTEXAI", "true")
    monkeypatch.setenv("GOOGLE_GENAI_API_VERSION", "v1")
    service.script = lambda _: answer({"name": "files/a"})
    backend = connect(service.url)
    assert list(backend.jobs()) == []
    assert backend.upload_exists("files/a")
    backend.close()
    assert [call.path for call in service.calls] == ["/v1beta/batches", "/v1beta/files/a"]


def test_two_keys_in_the_environment_print_nothing(service: Service) -> None:
    code = f"""
from runner.backends.gemini import GeminiBackend
GeminiBackend(api_key="k", base_url="{service.url}", api_version="v1beta", request_timeout_s=5).close()
"""
    environ = {**os.environ, "GOOGLE_API_KEY": "one", "GEMINI_API_KEY": "two"}
    run = subprocess.run(
        [sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True
    )
    assert (run.stdout, run.stderr) == ("", "")


def test_the_sdk_is_imported_only_for_a_backend() -> None:
    code = (
        "import sys, runner.backends.gemini, runner.backends.local; sys.exit('google.genai' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_key_never_shows_in_an_error(service: Service) -> None:
    service.script = lambda _: Reply(reset=True)
    backend = connect(service.url, api_key="very-secret")
    for call in (
        lambda: backend.get("batches/b1"),
        lambda: create(backend),
        lambda: list(backend.output(DONE)),
    ):
        with pytest.raises(BackendError) as error:
            call()
        assert "very-secret" not in f"{error.value!r} {error.value.__cause__!r}"
    backend.close()
