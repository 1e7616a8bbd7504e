"""The emulator's Vertex, asked by the SDK and over plain HTTP; every body passes Google's own description."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from discovery import differences
from google import genai
from google.cloud import storage
from google.genai import types
from google.oauth2.credentials import Credentials

from runner.emulator import faults
from runner.emulator.server import Server, serve

PLACE = "projects/my-project/locations/us-central1"
MODEL = "publishers/google/models/gemini-3.5-flash-lite"
EMBEDDING = "publishers/google/models/gemini-embedding-001"
TERMINAL = ("SUCCEEDED", "FAILED", "CANCELLED", "EXPIRED", "PARTIALLY_SUCCEEDED")


class Service:
    """Plain HTTP with a token, and objects in a bucket."""

    def __init__(self, server: Server) -> None:
        self.url = server.url
        credentials = Credentials(token="t")
        self.storage = storage.Client(
            project="p", credentials=credentials, client_options={"api_endpoint": server.url}
        )
        self.bucket = self.storage.create_bucket("shelf")

    def __call__(
        self, method: str, path: str, body: Any = None, *, token: str = "t", version: str = "v1beta1"
    ) -> tuple[int, Any]:
        data = None if body is None else json.dumps(body).encode()
        place = path if path.startswith("projects/") else f"{PLACE}/{path}"
        request = urllib.request.Request(f"{self.url}/{version}/{place}", data, method=method)
        if token:
            request.add_header("Authorization", f"Bearer {token}")
        try:
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(
                request, timeout=20
            ) as reply:
                return reply.status, json.loads(reply.read())
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.loads(error.read())

    def submit(self, *lines: Any, model: str = MODEL, name: str = "job", **more: Any) -> dict[str, Any]:
        data = b"".join(
            (line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n" for line in lines
        )
        self.bucket.blob(f"in/{name}.jsonl").upload_from_string(data)
        return self.create(f"gs://shelf/in/{name}.jsonl", model=model, name=name, **more)

    def create(self, uri: str, *, model: str = MODEL, name: str = "job", **more: Any) -> dict[str, Any]:
        body = {
            "model": model,
            "inputConfig": {"instancesFormat": "jsonl", "gcsSource": {"uris": [uri]}},
            "displayName": name,
            "outputConfig": {
                "predictionsFormat": "jsonl",
                "gcsDestination": {"outputUriPrefix": f"gs://shelf/out/{name}"},
            },
            **more,
        }
        status, job = self("POST", "batchPredictionJobs", body)
        assert status == 200, job
        assert differences("BatchPredictionJob", job) == []
        assert job["state"] == "JOB_STATE_PENDING"
        return dict(job)

    def ended(self, job: dict[str, Any]) -> dict[str, Any]:
        end = time.monotonic() + 20
        while True:
            status, now = self("GET", job["name"])
            assert status == 200
            assert differences("BatchPredictionJob", now) == []
            if now["state"].removeprefix("JOB_STATE_") in TERMINAL:
                return dict(now)
            assert time.monotonic() < end
            time.sleep(0.02)

    def rows(self, name: str = "job") -> list[Any]:
        found = sorted(self.storage.list_blobs("shelf", prefix=f"out/{name}/"), key=lambda blob: blob.name)
        return [json.loads(line) for blob in found for line in blob.download_as_bytes().splitlines()]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Service]]:
    running: list[tuple[Server, Service]] = []

    def begin(plan: faults.FaultPlan | None = None) -> Service:
        server = serve(tmp_path / f"emulator-{len(running)}", 0, plan or quick())
        running.append((server, Service(server)))
        return running[-1][1]

    yield begin
    for server, service in running:
        service.storage.close()
        server.close()


@pytest.fixture
def service(start: Callable[..., Service]) -> Service:
    return start()


def quick(**more: Any) -> faults.FaultPlan:
    return faults.FaultPlan(timing=faults.Timing(pending_s=0), **more)


def asking(key: str, text: str = "", **more: Any) -> dict[str, Any]:
    contents = [{"role": "user", "parts": [{"text": text or f"Question {key}."}]}]
    return {"key": key, "request": {"contents": contents, **more}}


# ---------------------------------------------------------------- the walk itself


def test_the_walk_finds_what_is_not_in_the_document() -> None:
    job = {"name": "n", "state": "JOB_STATE_SUCCEEDED", "createTime": "2026-11-21T12:00:00.5Z"}
    assert differences("BatchPredictionJob", job) == []
    for wrong in (
        {"colour": "red"},
        {"state": "JOB_STATE_LOST"},
        {"createTime": "yesterday"},
        {"completionStats": {"successfulCount": 3}},
        {"labels": {"a": 1}},
        {"error": {"code": "3"}},
        {"inputConfig": {"gcsSource": {"uris": "gs://a/b"}}},
    ):
        assert len(differences("BatchPredictionJob", job | wrong)) == 1, wrong


# ---------------------------------------------------------------- jobs


def test_a_job_from_file_to_rows(service: Service) -> None:
    keys = [f"r{n}" for n in range(12)]
    job = service.ended(service.submit(*map(asking, keys)))
    assert job["state"] == "JOB_STATE_SUCCEEDED"
    assert job["completionStats"] == {"successfulCount": "12"}
    folder = job["outputInfo"]["gcsOutputDirectory"]
    assert folder == f"gs://shelf/out/job/prediction-model-{job['createTime']}"
    rows = service.rows()
    assert sorted(row["key"] for row in rows) == sorted(keys)
    assert [row["key"] for row in rows] != keys
    names = [blob.name.rpartition("/")[2] for blob in service.storage.list_blobs("shelf", prefix="out/")]
    assert names == [f"predictions_{n:04}.jsonl" for n in range(1, len(names) + 1)]
    assert len(names) > 1
    for row in rows:
        assert row["status"] == ""
        assert row["request"]["contents"][0]["parts"][0]["fileData"] is None
        assert list(row["request"]["contents"][0]) == ["role", "parts"]
        assert differences("GenerateContentResponse", row["response"]) == []


def test_a_projects_number_stands_for_its_id(service: Service) -> None:
    job = service.submit(asking("r1"))
    assert job["name"].split("/")[1].isdecimal()
    assert service("GET", f"batchPredictionJobs/{job['name'].rpartition('/')[2]}")[1]["name"] == job["name"]
    status, body = service("GET", job["name"].replace("us-central1", "global"))
    assert (status, body["error"]["status"]) == (404, "NOT_FOUND")


def test_siblings_of_a_request_come_back(service: Service) -> None:
    service.ended(service.submit({**asking("r1"), "custom_id": "c"}))
    assert service.rows()[0]["custom_id"] == "c"


def test_keys_that_look_like_numbers_come_back_as_numbers(service: Service) -> None:
    service.ended(service.submit(asking("000000"), asking("000017"), name="numbers"))
    assert {row["key"] for row in service.rows("numbers")} == {0, 17}
    service.ended(service.submit(asking("000000"), asking("r1"), name="mixed"))
    assert {row["key"] for row in service.rows("mixed")} == {"000000", "r1"}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"{", "JSON"),
        (b"[]", "object"),
        ({"key": "r2", "request": {}}, "empty struct"),
        (asking("r2", tools=[{"googleSearch": {}}]), "empty struct"),
        (asking("r2", tools=None), "null"),
        (asking("r2", labels={"$ref": "x"}), "invalid field name"),
        (asking("r2", contents="text"), "REPEATED"),
    ],
)
def test_one_line_that_does_not_fit_fails_the_job(service: Service, line: Any, said: str) -> None:
    job = service.ended(service.submit(asking("r1"), line))
    assert (job["state"], job["error"]["code"]) == ("JOB_STATE_FAILED", 3)
    assert said in job["error"]["message"]
    assert service.rows() == []


def test_what_is_wrong_with_a_row_is_said_in_its_status(service: Service) -> None:
    no_role = {"key": "r2", "request": {"contents": [{"parts": [{"text": "x"}]}]}}
    job = service.ended(service.submit(asking("r1"), no_role, asking("r3", other={"x": 1})))
    assert job["state"] == "JOB_STATE_SUCCEEDED"
    assert job["completionStats"] == {"successfulCount": "1", "failedCount": "2"}
    by_key = {row["key"]: row for row in service.rows()}
    for key, said in (("r2", "valid role"), ("r3", "Cannot find field")):
        words, _, rest = by_key[key]["status"].partition(": ")
        error = json.loads(rest)["error"]
        assert (words, error["code"], error["status"]) == ("Bad Request", 400, "INVALID_ARGUMENT")
        assert said in error["message"]
        assert "response" not in by_key[key]


@pytest.mark.parametrize(("uri", "code"), [("gs://nowhere/x.jsonl", 9), ("gs://shelf/none.jsonl", 5)])
def test_a_place_that_does_not_exist_fails_the_job_later(service: Service, uri: str, code: int) -> None:
    job = service.ended(service.create(uri))
    assert (job["state"], job["error"]["code"]) == ("JOB_STATE_FAILED", code)


@pytest.mark.parametrize(
    ("kind", "state", "code"),
    [
        ("failed", "FAILED", 13),
        ("expired", "EXPIRED", 4),
        ("cancelled", "CANCELLED", 1),
        ("partially_succeeded", "PARTIALLY_SUCCEEDED", None),
    ],
)
def test_finished_rows_of_a_job_that_ended_early_are_there(
    start: Callable[..., Service], kind: Any, state: str, code: int | None
) -> None:
    service = start(quick(jobs=[faults.JobRule(kind=kind, partial=0.5)]))
    job = service.ended(service.submit(*(asking(f"r{n}") for n in range(4))))
    assert job["state"] == f"JOB_STATE_{state}"
    assert job.get("error", {}).get("code") == code
    assert sorted(row["key"] for row in service.rows()) == ["r0", "r1"]
    if kind != "cancelled":
        assert job["completionStats"] == {"successfulCount": "2", "incompleteCount": "2"}


def test_missing_rights_name_the_service_agent(start: Callable[..., Service]) -> None:
    service = start(quick(jobs=[faults.JobRule(kind="failed", code=7)]))
    job = service.ended(service.submit(asking("r1")))
    number = job["name"].split("/")[1]
    assert job["error"]["code"] == 7
    assert f"service-{number}@gcp-sa-aiplatform.iam.gserviceaccount.com" in job["error"]["message"]


def test_listings_have_pages_and_filters(service: Service) -> None:
    names = [
        service.submit(asking("r1"), name=f"job-{n}", labels={"gbrun_token": f"job-{n}"})["name"]
        for n in range(3)
    ]
    names.append(service.submit(asking("r1"), name="stranger")["name"])

    def listed(query: str) -> list[str]:
        found, token = [], ""
        while True:
            status, page = service("GET", f"batchPredictionJobs?{query}{token}")
            assert status == 200
            assert differences("ListBatchPredictionJobsResponse", page) == []
            found += [job["name"] for job in page.get("batchPredictionJobs", ())]
            if "nextPageToken" not in page:
                return found
            token = f"&pageToken={page['nextPageToken']}"

    assert listed("pageSize=1") == names[::-1]
    assert listed("filter=labels.gbrun_token:*") == names[2::-1]
    assert listed("pageSize=2&filter=labels.gbrun_token:*") == names[2::-1]
    assert listed("filter=labels.gbrun_token%3D%22job-1%22") == [names[1]]
    assert listed("filter=display_name%3Dstranger%20AND%20state!%3D%22JOB_STATE_FAILED%22") == [names[3]]
    assert service("GET", "batchPredictionJobs?filter=colour%3Dred")[0] == 400
    # The Developer API of the same folder knows none of them.
    request = urllib.request.Request(f"{service.url}/v1beta/batches", headers={"x-goog-api-key": "k"})
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=20) as reply:
        assert json.loads(reply.read()) == {}


def test_cancel_and_delete(start: Callable[..., Service]) -> None:
    service = start(faults.FaultPlan(timing=faults.Timing(pending_s=60)))
    job = service.submit(asking("r1"))
    status, body = service("DELETE", job["name"])
    assert (status, body["error"]["status"]) == (400, "FAILED_PRECONDITION")
    assert service("POST", f"{job['name']}:cancel") == (200, {})
    assert service.ended(job)["state"] == "JOB_STATE_CANCELLED"
    status, body = service("POST", f"{job['name']}:cancel")
    assert (status, body["error"]["status"]) == (400, "FAILED_PRECONDITION")
    status, operation = service("DELETE", job["name"])
    assert (status, differences("GoogleLongrunningOperation", operation), "done" in operation) == (
        200,
        [],
        False,
    )
    status, operation = service("GET", operation["name"])
    assert (operation["done"], differences("GoogleLongrunningOperation", operation)) == (True, [])
    assert service("GET", job["name"])[0] == service("DELETE", job["name"])[0] == 404


def test_bodies_that_make_no_job(service: Service) -> None:
    good = {
        "model": MODEL,
        "inputConfig": {"instancesFormat": "jsonl", "gcsSource": {"uris": ["gs://shelf/x"]}},
        "displayName": "job",
        "outputConfig": {"predictionsFormat": "jsonl", "gcsDestination": {"outputUriPrefix": "gs://shelf/o"}},
    }
    for wrong, status in (
        ({"model": "publishers/google/models/gemini-1.5-flash"}, 404),
        ({"model": "models/gemini-3.5-flash-lite"}, 404),
        ({"displayName": ""}, 400),
        ({"inputConfig": {"instancesFormat": "jsonl"}}, 400),
        ({"outputConfig": {}}, 400),
        ({"labels": {"Team": "a"}}, 400),
        ({"colour": "red"}, 400),
    ):
        got, body = service("POST", "batchPredictionJobs", good | wrong)
        assert got == status, body
    assert service("GET", "batchPredictionJobs")[1] == {}


def test_nobody_is_let_in_without_a_token(service: Service) -> None:
    for token in ("", "invalid"):
        status, body = service("GET", "batchPredictionJobs", token=token)
        assert (status, body["error"]["status"]) == (401, "UNAUTHENTICATED")
    assert service("GET", "batchPredictionJobs", version="v1")[0] == 200


# ---------------------------------------------------------------- synchronous calls


def test_synchronous_calls(service: Service) -> None:
    request = asking("r1")["request"]
    status, body = service("POST", f"{MODEL}:generateContent", request)
    assert (status, differences("GenerateContentResponse", body)) == (200, [])
    service.ended(service.submit(asking("r1")))
    assert service.rows()[0]["response"]["candidates"] == body["candidates"]

    status, body = service("POST", f"{MODEL}:countTokens", request)
    assert (status, differences("CountTokensResponse", body)) == (200, [])
    assert body["totalTokens"] > 0

    content = {"role": "user", "parts": [{"text": "one"}]}
    asked = {"content": content, "embedContentConfig": {"outputDimensionality": 8}}
    status, body = service("POST", f"{EMBEDDING}:embedContent", asked)
    assert (status, differences("EmbedContentResponse", body)) == (200, [])
    assert len(body["embedding"]["values"]) == 8

    for path, refused, wanted in (
        (f"{MODEL}:generateContent", {"contents": [{"parts": [{"text": "x"}]}]}, 400),
        (f"{MODEL}:embedContent", asked, 404),
        ("publishers/google/models/gemini-1.5-pro:generateContent", request, 404),
        (f"{MODEL}:predict", {}, 404),
    ):
        assert service("POST", path, refused)[0] == wanted


def test_embeddings_of_a_file(service: Service) -> None:
    content = {"role": "user", "parts": [{"text": "one"}]}
    line = {
        "key": "r1",
        "request": {"content": content, "embed_content_config": {"output_dimensionality": 8}},
    }
    job = service.ended(service.submit(line, model=EMBEDDING))
    assert job["state"] == "JOB_STATE_SUCCEEDED"
    (row,) = service.rows()
    assert len(row["response"]["embedding"]["values"]) == 8
    assert int(row["response"]["tokenCount"]) > 0


def test_the_sdk_takes_it_for_the_service(service: Service) -> None:
    client = genai.Client(
        vertexai=True,
        project="my-project",
        location="us-central1",
        credentials=Credentials(token="t"),
        http_options=types.HttpOptions(base_url=service.url, timeout=20_000),
    )
    try:
        service.bucket.blob("in/sdk.jsonl").upload_from_string(json.dumps(asking("r1")) + "\n")
        job = client.batches.create(
            model="gemini-3.5-flash-lite",
            src="gs://shelf/in/sdk.jsonl",
            config={"dest": "gs://shelf/out/sdk", "display_name": "sdk"},
        )
        assert job.name is not None
        service.ended({"name": job.name})
        job = client.batches.get(name=job.name)
        assert job.state == types.JobState.JOB_STATE_SUCCEEDED
        assert job.completion_stats is not None
        assert job.completion_stats.successful_count == 1
        assert [one.name for one in client.batches.list(config={"page_size": 1})] == [job.name]
        answer = client.models.generate_content(model="gemini-3.5-flash-lite", contents="Hello?")
        assert answer.text
        vector = client.models.embed_content(model="gemini-embedding-001", contents="Hello?")
        assert vector.embeddings
        client.batches.delete(name=job.name)
    finally:
        client.close()
