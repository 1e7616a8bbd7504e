"""The real SDK over HTTP: upload, create, poll, download, list, cancel, delete, inline."""

from __future__ import annotations

import base64
import hashlib
import json
import time
import urllib.error
import urllib.request

import pytest
from google.genai import errors, types


def test_a_file_batch_comes_back_in_order_with_its_keys(emulator, line):
    lines = [line(f"r{n}", f"Say something about the number {n} please.") for n in range(25)]
    operation, output = emulator.run(lines)
    assert operation["metadata"]["state"] == "BATCH_STATE_SUCCEEDED"
    assert operation["metadata"]["batchStats"] == {"requestCount": "25", "successfulRequestCount": "25"}
    assert operation["response"]["responsesFile"] == operation["metadata"]["output"]["responsesFile"]
    assert [row["key"] for row in output] == [f"r{n}" for n in range(25)]
    for row in output:
        text = row["response"]["candidates"][0]["content"]["parts"][0]["text"]
        assert text.startswith("[emulator] ")
        assert row["response"]["modelVersion"] == "gbrun-emulator"
        types.GenerateContentResponse.model_validate(row["response"])


def test_the_sdk_sees_every_state_and_the_output_name(start, line):
    driver = start({"timing": {"pending_s": 0.3, "running_s": 0.3}})
    name = driver.create([line("a", "one two three")])
    seen = []
    while True:
        job = driver.client.batches.get(name=name)
        if not seen or seen[-1] != job.state:
            seen.append(job.state)
        if job.done:
            break
    assert [str(state.value) for state in seen] == [
        "JOB_STATE_PENDING",
        "JOB_STATE_RUNNING",
        "JOB_STATE_SUCCEEDED",
    ]
    assert job.display_name == "job"
    assert job.dest.file_name == f"files/batch-{name.removeprefix('batches/')}"
    assert len(job.dest.file_name) == len("files/") + 42
    assert job.create_time < job.end_time


def test_counts_are_strings_and_stay_pending_while_running(start, line):
    driver = start({"timing": {"pending_s": 0, "running_s": 30}})
    name = driver.create([line("a", "x"), line("b", "y")])
    while True:
        metadata = driver.http("GET", name)[1]["metadata"]
        if metadata["state"] == "BATCH_STATE_RUNNING":
            break
    operation = driver.http("GET", name)[1]
    assert "done" not in operation
    assert "response" not in operation
    assert operation["metadata"]["batchStats"] == {"requestCount": "2", "pendingRequestCount": "2"}


def test_upload_in_chunks_keeps_the_bytes(emulator, tmp_path):
    data = b"".join(b"%09d\n" % n for n in range(1_800_000))
    path = tmp_path / "big.jsonl"
    path.write_bytes(data)
    file = emulator.client.files.upload(file=str(path), config={"mime_type": "jsonl", "name": "big-1"})
    assert file.name == "files/big-1"
    assert file.size_bytes == len(data)
    digest = hashlib.sha256(data).hexdigest()
    assert base64.b64decode(file.sha256_hash).decode() == digest
    assert file.state == types.FileState.ACTIVE
    assert file.uri == f"{emulator.url}/v1beta/files/big-1"
    assert (file.expiration_time - file.create_time).total_seconds() == pytest.approx(48 * 3600, abs=1)
    blobs = list((tmp_path / "emulator" / "files").iterdir())
    assert [hashlib.sha256(blob.read_bytes()).hexdigest() for blob in blobs] == [digest]


def test_a_taken_name_is_already_exists(emulator, line):
    emulator.upload([line("a", "x")], name="same")
    with pytest.raises(errors.ClientError) as caught:
        emulator.upload([line("a", "y")], name="same")
    assert (caught.value.code, caught.value.status) == (409, "ALREADY_EXISTS")


@pytest.mark.parametrize("name", ["A", "under_score", "-dash", "x" * 41])
def test_a_bad_file_name_is_refused(emulator, line, name):
    with pytest.raises(errors.ClientError) as caught:
        emulator.upload([line("a", "x")], name=name)
    assert caught.value.code == 400


def test_files_are_listed_in_pages_and_deleted_once(emulator, line):
    names = [emulator.upload([line("a", str(n))]).name for n in range(7)]
    pager = emulator.client.files.list(config={"page_size": 3})
    assert len(pager.page) == 3
    assert [file.name for file in pager] == names[::-1]
    emulator.client.files.delete(name=names[0])
    with pytest.raises(errors.ClientError) as caught:
        emulator.client.files.delete(name=names[0])
    assert caught.value.code == 403
    assert "or it may not exist" in caught.value.message
    with pytest.raises(errors.ClientError) as caught:
        emulator.client.files.get(name=names[0])
    assert (caught.value.code, caught.value.status) == (403, "PERMISSION_DENIED")


def test_batches_are_listed_newest_first_in_pages(emulator, line):
    file = emulator.upload([line("a", "x")])
    names = [
        emulator.client.batches.create(
            model=emulator.model, src=file.name, config={"display_name": f"j{n}"}
        ).name
        for n in range(5)
    ]
    listed = list(emulator.client.batches.list(config={"page_size": 2}))
    assert [job.name for job in listed] == names[::-1]
    assert [job.display_name for job in listed] == ["j4", "j3", "j2", "j1", "j0"]
    assert emulator.http("GET", "batches?pageToken=wrong")[0] == 400


def test_cancel_before_the_start(start, line):
    driver = start({"timing": {"pending_s": 60}})
    name = driver.create([line("a", "x")])
    driver.client.batches.cancel(name=name)
    operation = driver.wait(name)
    assert operation["metadata"]["state"] == "BATCH_STATE_CANCELLED"
    assert operation["error"] == {"code": 13, "message": "Batch was cancelled."}
    assert operation["metadata"]["batchStats"] == {"requestCount": "1", "pendingRequestCount": "1"}
    assert driver.client.batches.get(name=name).state == types.JobState.JOB_STATE_CANCELLED
    driver.client.batches.cancel(name=name)


def test_cancel_after_the_start_ends_succeeded_with_row_errors(start, line):
    driver = start({"timing": {"pending_s": 0, "running_s": 100}})
    name = driver.create([line(f"r{n}", "x") for n in range(4)])
    while driver.http("GET", name)[1]["metadata"]["state"] != "BATCH_STATE_RUNNING":
        pass
    driver.client.batches.cancel(name=name)
    operation = driver.wait(name)
    assert operation["metadata"]["state"] == "BATCH_STATE_SUCCEEDED"
    assert operation["metadata"]["batchStats"] == {"requestCount": "4", "failedRequestCount": "4"}
    rows = [json.loads(row) for row in driver.output(operation).splitlines()]
    assert rows == [{"key": f"r{n}", "error": {"code": 1}} for n in range(4)]


def test_deleting_a_batch_deletes_its_output(emulator, line):
    name = emulator.create([line("a", "x")])
    operation = emulator.wait(name)
    output = operation["metadata"]["output"]["responsesFile"]
    assert emulator.output(operation)
    emulator.client.batches.delete(name=name)
    with pytest.raises(errors.ClientError) as caught:
        emulator.client.batches.delete(name=name)
    assert (caught.value.code, caught.value.status) == (404, "NOT_FOUND")
    with pytest.raises(errors.ClientError) as caught:
        emulator.client.files.download(file=output)
    assert caught.value.code == 404
    with pytest.raises(errors.ClientError):
        emulator.client.batches.get(name=name)


def test_only_download_works_on_an_output(emulator, line):
    operation = emulator.wait(emulator.create([line("a", "x")]))
    output = operation["metadata"]["output"]["responsesFile"]
    for call in (emulator.client.files.get, emulator.client.files.delete):
        with pytest.raises(errors.ClientError) as caught:
            call(name=output)
        assert caught.value.code == 400
        assert "cannot be more than 40 characters" in caught.value.message
    status, data = emulator.http("GET", f"{output}:download?alt=media")
    assert status == 200
    assert data["key"] == "a"


def test_the_input_may_be_deleted_while_the_job_waits(start, line):
    driver = start({"timing": {"pending_s": 0.3}})
    file = driver.upload([line("a", "x")])
    job = driver.client.batches.create(model=driver.model, src=file.name)
    driver.client.files.delete(name=file.name)
    assert driver.wait(job.name)["metadata"]["batchStats"]["successfulRequestCount"] == "1"


def test_inline_requests_come_back_inline_with_their_metadata(emulator):
    job = emulator.client.batches.create(
        model=emulator.model,
        src=[
            types.InlinedRequest(
                contents="What is two and two?",
                metadata={"key": "r1"},
                config={"temperature": 0, "system_instruction": "Be short."},
            ),
            types.InlinedRequest(contents="And three?"),
        ],
        config={"display_name": "inline"},
    )
    operation = emulator.wait(job.name)
    assert operation["metadata"]["output"]["inlinedResponses"] == operation["response"]["inlinedResponses"]
    assert "inputConfig" not in operation["metadata"]
    found = emulator.client.batches.get(name=job.name).dest.inlined_responses
    assert [response.metadata for response in found] == [{"key": "r1"}, None]
    assert all(response.response.text.startswith("[emulator] ") for response in found)


def test_synchronous_calls(emulator):
    answer = emulator.client.models.generate_content(model=emulator.model, contents="How are you today?")
    assert answer.text.startswith("[emulator] ")
    assert answer.usage_metadata.prompt_token_count == 5
    counted = emulator.client.models.count_tokens(model=emulator.model, contents="How are you today?")
    assert counted.total_tokens == 5


@pytest.mark.parametrize("version", ["v1", "v1beta", "v1beta1"])
def test_every_api_version_is_served(start, line, version):
    driver = start(version=version)
    operation, output = driver.run([line("a", "x")])
    assert len(output) == 1
    assert operation["done"] is True


@pytest.mark.parametrize(
    "model",
    [
        "gemini-1.5-flash",
        "gemini-2.0-flash-lite",
        "gpt-4",
        "gemini-embedding-001",
        "tunedModels/x",
        "models/nope",
    ],
)
def test_an_unknown_model_is_not_found(emulator, line, model):
    file = emulator.upload([line("a", "x")])
    with pytest.raises(errors.ClientError) as caught:
        emulator.client.batches.create(model=model, src=file.name)
    assert caught.value.code == 404


def test_latest_aliases_are_known_to_v1beta_only(start, line):
    driver = start()
    file = driver.upload([line("a", "x")])
    path = "models/gemini-flash-latest:batchGenerateContent"
    body = {"batch": {"displayName": "j", "inputConfig": {"fileName": file.name}}}
    assert driver.http("POST", path, body)[0] == 200
    status, answer = driver.http("POST", path, body, version="v1")
    assert status == 404
    assert "is not found for API version v1," in answer["error"]["message"]


def test_keys(emulator, start):
    status, body = emulator.http("GET", "batches", key=None)
    assert (status, body["error"]["status"]) == (403, "PERMISSION_DENIED")
    other = start(key="invalid", folder="other")
    with pytest.raises(errors.ClientError) as caught:
        list(other.client.batches.list())
    assert (caught.value.code, caught.value.status) == (400, "INVALID_ARGUMENT")
    assert caught.value.details["error"]["details"][0]["reason"] == "API_KEY_INVALID"


def test_a_missing_input_file_is_not_found(emulator):
    with pytest.raises(errors.ClientError) as caught:
        emulator.client.batches.create(model=emulator.model, src="files/nothing")
    assert caught.value.code == 404
    assert caught.value.message == "Requested entity was not found."


def test_expired_files_vanish(start, line):
    driver = start({"timing": {"file_ttl_s": 0.05}})
    file = driver.upload([line("a", "x")])
    time.sleep(0.1)
    assert driver.http("GET", file.name)[0] == 403
    assert driver.http("GET", "files")[1] == {}
    assert (
        driver.http(
            "POST",
            f"models/{driver.model}:batchGenerateContent",
            {"batch": {"inputConfig": {"fileName": file.name}}},
        )[0]
        == 404
    )


def test_a_wrong_offset_is_refused_and_the_upload_goes_on(emulator):
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def post(url, data, **headers):
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        request = urllib.request.Request(url, data, names, method="POST")
        try:
            with opener.open(request, timeout=5) as reply:
                return reply.status, dict(reply.headers), json.loads(reply.read())
        except urllib.error.HTTPError as error:
            with error:
                return error.code, dict(error.headers), json.loads(error.read())

    _, headers, _ = post(
        f"{emulator.url}/upload/v1beta/files",
        b'{"file": {"displayName": "d"}}',
        X_Goog_Upload_Protocol="resumable",
        X_Goog_Upload_Command="start",
        x_goog_api_key="k",
    )
    url = headers["x-goog-upload-url"]
    chunk = {"X_Goog_Upload_Command": "upload", "X_Goog_Upload_Offset": "0"}
    assert post(url, b"abc", **chunk)[1]["x-goog-upload-status"] == "active"
    assert post(url, b"abc", **chunk)[0] == 400
    assert post(url, b"", X_Goog_Upload_Command="query")[1]["x-goog-upload-size-received"] == "3"
    last = {"X_Goog_Upload_Command": "upload, finalize", "X_Goog_Upload_Offset": "3"}
    status, headers, body = post(url, b"def", **last)
    assert (status, headers["x-goog-upload-status"]) == (200, "final")
    assert body["file"]["sizeBytes"] == "6"
    assert post(url, b"", X_Goog_Upload_Command="finalize")[2]["file"]["name"] == body["file"]["name"]
