"""Cloud Storage of the emulator, by the real client library and by hand."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

import google_crc32c
import pytest
from google.api_core.exceptions import BadRequest, Conflict, NotFound, PreconditionFailed
from google.auth.credentials import AnonymousCredentials
from google.cloud import storage
from google.cloud.storage.retry import DEFAULT_RETRY


def again(call: Callable[[], Any]) -> Any:
    def release(error: Any) -> None:
        # The library leaves the answers of downloads that it begins again to the garbage collector.
        if getattr(error, "response", None) is not None:
            error.response.close()

    return DEFAULT_RETRY.with_delay(0.01, 0.1).with_timeout(10)(call, on_error=release)


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISABLE_GCS_PYTHON_CLIENT_OTEL_BUCKET_METADATA", "true")


@pytest.fixture
def open_bucket(start: Callable[..., Any]) -> Callable[..., Any]:
    """The bucket `bkt` of an emulator with a fault plan; it is made where it is not there."""

    def begin(plan: dict[str, Any] | None = None, **options: Any) -> Any:
        url = start(plan, **options).url
        client = storage.Client("p", AnonymousCredentials(), client_options={"api_endpoint": url})
        try:
            return client.get_bucket("bkt")
        except NotFound:
            return client.create_bucket("bkt")

    return begin


@pytest.fixture
def bucket(open_bucket: Callable[..., Any]) -> Any:
    return open_bucket()


def url_of(bucket: Any) -> str:
    return str(bucket.client._connection.API_BASE_URL)


def ask(
    url: str, method: str = "GET", body: bytes | None = None, **headers: str
) -> tuple[int, bytes, dict[str, str]]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(url, body, named, method=method)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=20) as reply:
            return reply.status, reply.read(), dict(reply.headers)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read(), dict(error.headers)


# ---------------------------------------------------------------- buckets


def test_a_bucket_is_made_once_and_others_are_not_there(bucket: Any) -> None:
    with pytest.raises(Conflict):
        bucket.client.create_bucket("bkt")
    with pytest.raises(BadRequest):
        bucket.client.create_bucket("UPPER")
    for call in (
        bucket.client.bucket("none").blob("a").reload,
        bucket.client.bucket("none").blob("a").download_as_bytes,
        bucket.client.bucket("none").blob("a").delete,
        lambda: bucket.client.bucket("none").blob("a").upload_from_string("x"),
        lambda: list(bucket.client.list_blobs("none")),
    ):
        with pytest.raises(NotFound, match="The specified bucket does not exist"):
            call()


# ---------------------------------------------------------------- objects


@pytest.mark.parametrize("name", ["a", "a/b/c.json", "ä ö/ß", "q?x=1#y", "per%2Fcent", "a//b", "+ &="])
def test_an_object_comes_back_under_its_name(bucket: Any, name: str) -> None:
    blob = bucket.blob(name)
    blob.metadata = {"mine": "yes", "what": "ünïcode"}
    blob.upload_from_string(b"--==\r\nany \x00 bytes\r\n--", content_type="application/x-test")

    found = bucket.get_blob(name)
    assert found.download_as_bytes() == b"--==\r\nany \x00 bytes\r\n--"
    assert (found.size, found.content_type, found.metadata) == (21, "application/x-test", blob.metadata)
    assert found.md5_hash == base64.b64encode(hashlib.md5(found.download_as_bytes()).digest()).decode()
    assert found.generation == blob.generation
    assert [one.name for one in bucket.list_blobs()] == [name]
    found.delete()
    assert bucket.get_blob(name) is None
    with pytest.raises(NotFound, match="No such object"):
        found.delete()
    with pytest.raises(NotFound, match="No such object"):
        bucket.blob(name).download_as_bytes()


def test_generations_only_rise(bucket: Any) -> None:
    seen = []
    for number in range(40):
        blob = bucket.blob(f"x{number % 3}")
        blob.upload_from_string(b"same")
        seen.append(blob.generation)
        if number % 5 == 0:
            blob.delete()
    assert seen == sorted(set(seen))


def test_preconditions_hold_on_every_call(bucket: Any) -> None:
    blob = bucket.blob("a")
    with pytest.raises(PreconditionFailed):
        blob.upload_from_string(b"x", if_generation_match=17)
    blob.upload_from_string(b"1", if_generation_match=0)
    first = blob.generation
    for match in ({"if_generation_match": 0}, {"if_generation_match": first + 1}):
        with pytest.raises(PreconditionFailed):
            bucket.blob("a").upload_from_string(b"x", **match)
        with pytest.raises(PreconditionFailed):
            bucket.blob("a").delete(**match)
        with pytest.raises(PreconditionFailed):
            bucket.blob("a").reload(**match)
        with pytest.raises(PreconditionFailed):
            bucket.blob("a").download_as_bytes(**match)
    with pytest.raises(PreconditionFailed):
        bucket.blob("a").upload_from_string(b"x", if_metageneration_match=2)
    assert blob.download_as_bytes() == b"1"

    blob.upload_from_string(b"2", if_generation_match=first, if_metageneration_match=1)
    assert bucket.blob("a").download_as_bytes() == b"2"
    with pytest.raises(NotFound):
        bucket.blob("a", generation=first).download_as_bytes()
    bucket.blob("a").delete(if_generation_match=blob.generation)


def test_the_envelopes_are_those_of_the_service(bucket: Any) -> None:
    bucket.blob("a").upload_from_string(b"x")
    root = f"{url_of(bucket)}/storage/v1/b/bkt/o"

    code, body, _ = ask(f"{root}/a?ifGenerationMatch=3")
    error = json.loads(body)["error"]
    assert (code, error["code"], error["errors"][0]["reason"]) == (412, 412, "conditionNotMet")
    code, body, _ = ask(f"{root}/none")
    assert (code, json.loads(body)["error"]["errors"][0]["reason"]) == (404, "notFound")
    assert json.loads(body)["error"]["message"] == "No such object: bkt/none"
    assert ask(f"{root}?maxResults=x")[0] == 400
    assert ask(f"{root}?pageToken=%21")[0] == 400
    assert ask(f"{root}/a/compose", "POST", b"{}")[0] == 404
    assert ask(f"{url_of(bucket)}/upload/storage/v1/b/bkt/o?uploadType=odd", "POST", b"")[0] == 400


@pytest.mark.parametrize("wrong", [{"md5Hash": "AAAA"}, {"crc32c": "AAAAAA=="}])
def test_bytes_that_are_not_those_of_the_hash_are_refused(bucket: Any, wrong: dict[str, str]) -> None:
    parts = [
        b"--xx\r\ncontent-type: application/json\r\n\r\n",
        json.dumps({"name": "a", **wrong}).encode(),
        b"\r\n--xx\r\ncontent-type: text/plain\r\n\r\nhello\r\n--xx--",
    ]
    url = f"{url_of(bucket)}/upload/storage/v1/b/bkt/o?uploadType=multipart"
    code, body, _ = ask(url, "POST", b"".join(parts), Content_Type='multipart/related; boundary="xx"')
    assert code == 400
    assert "doesn't match calculated" in json.loads(body)["error"]["message"]
    assert bucket.get_blob("a") is None


def test_ranges(bucket: Any) -> None:
    blob = bucket.blob("a")
    blob.upload_from_string(b"0123456789")
    assert blob.download_as_bytes(start=2, end=4) == b"234"
    assert blob.download_as_bytes(start=8) == b"89"
    assert blob.download_as_bytes(start=-3) == b"789"
    url = f"{url_of(bucket)}/download/storage/v1/b/bkt/o/a?alt=media"
    code, body, headers = ask(url, Range="bytes=1-2")
    assert (code, body, headers["Content-Range"]) == (206, b"12", "bytes 1-2/10")
    crc32c = base64.b64encode(google_crc32c.Checksum(b"0123456789").digest()).decode()
    assert f"crc32c={crc32c}" in headers["X-Goog-Hash"]
    assert ask(url, Range="bytes=10-")[0] == 416


def test_listings_have_prefixes_folders_and_pages(bucket: Any) -> None:
    names = sorted(["a", "a/1", "a/2", "a/b/1", "a/b/2", "b", "ä", "a-"])
    for name in names:
        bucket.blob(name).upload_from_string(name)
    for size in (1, 2, 3, 1000):
        assert [one.name for one in bucket.list_blobs(page_size=size)] == names
        assert [one.name for one in bucket.list_blobs(prefix="a/", page_size=size)] == names[2:6]
        found = bucket.list_blobs(prefix="a/", delimiter="/", page_size=size)
        assert [one.name for one in found] == ["a/1", "a/2"]
        assert found.prefixes == {"a/b/"}
    assert [one.name for one in bucket.list_blobs(max_results=3)] == names[:3]
    # What came from a listing is downloaded by its own address: it must lead back here.
    for one in bucket.list_blobs():
        assert one.media_link.startswith(url_of(bucket))
        assert one.download_as_bytes() == one.name.encode()


def test_objects_outlive_the_server(open_bucket: Callable[..., Any]) -> None:
    first = open_bucket()
    first.blob("a/b").upload_from_string(b"kept")
    second = open_bucket()
    assert second.blob("a/b").download_as_bytes() == b"kept"
    blob = second.blob("a/b")
    blob.upload_from_string(b"new")
    assert first.get_blob("a/b").generation == blob.generation


def test_of_racing_writers_one_wins(bucket: Any) -> None:
    bucket.blob("replaced").upload_from_string(b"start")
    generation = bucket.get_blob("replaced").generation
    won: list[str] = []
    start = threading.Barrier(8)

    def race(number: int) -> None:
        start.wait()
        for name, match in (("created", 0), ("replaced", generation)):
            try:
                bucket.blob(name).upload_from_string(b"%d" % number, if_generation_match=match)
                won.append(f"{name} {number}")
            except PreconditionFailed:
                pass

    threads = [threading.Thread(target=race, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    now = [f"{name} {bucket.blob(name).download_as_bytes().decode()}" for name in ("created", "replaced")]
    assert sorted(won) == now


# ---------------------------------------------------------------- resumable uploads


def test_a_large_object_comes_in_chunks(bucket: Any) -> None:
    data = os.urandom(9 << 20)
    blob = bucket.blob("large", chunk_size=1 << 20)
    blob.metadata = {"mine": "yes"}
    blob.upload_from_string(data, if_generation_match=0)
    found = bucket.get_blob("large")
    assert (found.download_as_bytes(), found.metadata) == (data, {"mine": "yes"})
    with pytest.raises(PreconditionFailed):
        bucket.blob("large", chunk_size=1 << 20).upload_from_string(data, if_generation_match=0)


def test_an_upload_by_hand_shows_nothing_before_its_end(bucket: Any) -> None:
    url = f"{url_of(bucket)}/upload/storage/v1/b/bkt/o?uploadType=resumable&name=a&ifGenerationMatch=0"
    _, _, headers = ask(url, "POST", b"{}")
    session = headers["Location"]

    def chunk(body: bytes, span: str) -> tuple[int, dict[str, str]]:
        code, _, got = ask(session, "PUT", body, Content_Range=span)
        return code, got

    assert chunk(b"", "bytes */*")[0] == 308
    assert chunk(b"01234", "bytes 0-4/*")[0] == 308
    code, got = chunk(b"01234", "bytes 0-4/*")
    assert (code, got["Range"]) == (308, "bytes=0-4"), "a chunk that is sent twice counts once"
    code, got = chunk(b"9", "bytes 9-9/*")
    assert (code, got["Range"]) == (308, "bytes=0-4"), "a gap is not filled"
    assert bucket.get_blob("a") is None
    assert chunk(b"34567", "bytes 3-7/8")[0] == 200
    assert chunk(b"34567", "bytes 3-7/8")[0] == 200, "the end may be said twice"
    assert chunk(b"", "bytes */8")[0] == 200
    assert bucket.blob("a").download_as_bytes() == b"01234567"
    assert chunk(b"x", "bytes nonsense")[0] == 400

    assert ask(url, "POST", b"{}")[0] == 412
    _, _, headers = ask(url.replace("name=a", "name=late"), "POST", b"{}")
    bucket.blob("late").upload_from_string(b"other")
    session = headers["Location"]
    assert chunk(b"0", "bytes 0-0/1")[0] == 412
    assert bucket.blob("late").download_as_bytes() == b"other"
    assert ask(session, "DELETE")[0] == 499
    assert chunk(b"0", "bytes 0-0/1")[0] == 404


# ---------------------------------------------------------------- faults


@pytest.mark.parametrize("kind", ["lost_reply", "reset", "http_429", "http_5xx"])
def test_faults_strike_and_pass(open_bucket: Callable[..., Any], kind: str) -> None:
    bucket = open_bucket({"http": [{"on": "storage_write", "kind": kind, "times": 1}]})
    blob = bucket.blob("a")
    if kind == "lost_reply":
        # The work was done, so its repetition meets itself.
        with pytest.raises(PreconditionFailed):
            blob.upload_from_string(b"x", if_generation_match=0, retry=again)
    else:
        blob.upload_from_string(b"x", if_generation_match=0, retry=again)
    assert bucket.blob("a").download_as_bytes() == b"x"
    blob.upload_from_string(b"y", retry=None)


def test_a_cut_body_is_gone_on_with(open_bucket: Callable[..., Any]) -> None:
    bucket = open_bucket({"http": [{"on": "storage_read", "kind": "cut_body", "times": 1}]})
    data = os.urandom(3 << 20)
    bucket.blob("a").upload_from_string(data)
    assert bucket.blob("a").download_as_bytes(retry=again) == data


def test_a_lost_chunk_is_sent_again(open_bucket: Callable[..., Any]) -> None:
    rules = [{"on": "storage_write", "kind": "lost_reply", "skip": skip, "times": 1} for skip in (2, 4, 11)]
    bucket = open_bucket({"http": rules})
    data = os.urandom(9 << 20)
    bucket.blob("a", chunk_size=1 << 20).upload_from_string(data, if_generation_match=0, retry=again)
    assert bucket.blob("a").download_as_bytes() == data


def test_slow_answers_come_late_and_every_call_counts(open_bucket: Callable[..., Any]) -> None:
    # The first two calls are those that make the bucket.
    rule = {"on": "storage", "kind": "slow", "delay_s": 0.3, "skip": 3, "times": 1}
    bucket = open_bucket({"http": [rule]})
    took = []
    for _ in range(3):
        begun = time.monotonic()
        list(bucket.list_blobs())
        took.append(time.monotonic() - begun >= 0.3)
    assert took == [False, True, False]
