"""A state in a bucket: writes that count once whatever the network does, and words for what can go wrong."""

from __future__ import annotations

import gc
import json
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import msgspec
import pytest

from runner.blobs import BlobChanged, BlobExists, BlobMissing
from runner.blobs.gcs import GcsBlobs
from runner.blobs.gcserrors import EMULATOR_VARIABLE
from runner.emulator.faults import FaultPlan
from runner.emulator.gcs import Objects
from runner.emulator.server import Server, serve
from runner.errors import StateChanged, StateError, UsageInvalid
from runner.gcsuri import GcsUri, parse

PLACE = GcsUri("bucket", "folder")
LARGE = 9 << 20
"""More than goes into one request."""


def objects_of(server: Server) -> Objects:
    return server._http.service.objects


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., GcsBlobs]]:
    """Blobs on a server with these rules of HTTP faults, its bucket made before they count."""
    servers = []

    def begin(*rules: dict[str, Any], **options: Any) -> GcsBlobs:
        plan = msgspec.convert({"http": list(rules)}, FaultPlan)
        servers.append(serve(tmp_path / f"emulator-{len(servers)}", 0, plan))
        objects_of(servers[-1]).create_bucket("bucket")
        monkeypatch.setenv(EMULATOR_VARIABLE, servers[-1].url)
        return GcsBlobs(PLACE, **options)

    yield begin
    for server in servers:
        server.close()


def pieces(data: bytes) -> Iterator[bytes]:
    for at in range(0, len(data), 1 << 20):
        yield data[at : at + (1 << 20)]


# ---------------------------------------------------------------- once, whatever happens


@pytest.mark.parametrize("kind", ["lost_reply", "reset", "http_5xx", "http_429"])
def test_every_write_counts_once(start: Callable[..., GcsBlobs], kind: str) -> None:
    blobs = start({"on": "storage_write", "kind": kind, "every": 2})

    for number in range(3):
        name = f"rows/{number}.jsonl.gz"
        version = blobs.create(name, b"first")
        for data in (b"second", b"third"):
            version = blobs.replace(name, data, version)
        assert blobs.read(name) == (b"third", version)
        with pytest.raises(BlobExists):
            blobs.create(name, b"third")
        with pytest.raises(BlobChanged):
            blobs.replace(name, b"third", str(int(version) + 1))


@pytest.mark.parametrize("kind", ["lost_reply", "reset", "http_5xx"])
def test_every_large_write_counts_once(start: Callable[..., GcsBlobs], kind: str) -> None:
    blobs = start({"on": "storage_write", "kind": kind, "every": 2, "times": 3})
    data = os.urandom(LARGE)

    version = blobs.create_from("responses/t.1.jsonl.gz", pieces(data))
    assert blobs.read("responses/t.1.jsonl.gz") == (data, version)
    with pytest.raises(BlobExists):
        blobs.create_from("responses/t.1.jsonl.gz", pieces(data))


def test_the_last_answer_of_a_large_write_may_be_lost(start: Callable[..., GcsBlobs]) -> None:
    # The session and one chunk of eight MiB come before it.
    blobs = start({"on": "storage_write", "kind": "lost_reply", "skip": 2, "times": 1})
    data = os.urandom(LARGE)
    version = blobs.create_from("a", pieces(data))
    assert blobs.read("a") == (data, version)


def test_a_strangers_blob_is_no_lost_write_of_ours_though_its_bytes_are_the_same(
    start: Callable[..., GcsBlobs],
) -> None:
    blobs = start({"on": "storage_write", "kind": "reset", "skip": 1, "times": 1})
    other = GcsBlobs(PLACE)
    version = other.create("attempts/t.json", b"{}")
    with pytest.raises(BlobExists):
        blobs.create("attempts/t.json", b"{}")
    other.replace("attempts/t.json", b"[]", version)
    with pytest.raises(BlobChanged):
        blobs.replace("attempts/t.json", b"[]", version)


@pytest.mark.parametrize("kind", ["cut_body", "lost_reply", "reset", "http_5xx"])
def test_reads_go_on_where_they_stopped(start: Callable[..., GcsBlobs], kind: str) -> None:
    blobs = start({"on": "storage_read", "kind": kind, "every": 2, "times": 4})
    data = os.urandom(LARGE + 77)
    blobs.create_from("a", pieces(data))

    for _ in range(2):
        with blobs.open("a") as stream:
            assert stream.read(5) == data[:5]
            assert stream.read() == data[5:]
        assert blobs.read("a")[0] == data
        assert blobs.read_range("a", 1000, LARGE) == data[1000 : 1000 + LARGE]


def test_a_stream_never_mixes_two_versions(start: Callable[..., GcsBlobs]) -> None:
    blobs = start()
    version = blobs.create_from("a", pieces(b"1" * 2 * LARGE))
    with blobs.open("a") as stream:
        assert stream.read(10) == b"1" * 10
        blobs.replace("a", b"2" * 2 * LARGE, version)
        with pytest.raises(StateError):
            stream.read()


def test_lists_have_all_pages_and_only_names_of_ours(start: Callable[..., GcsBlobs]) -> None:
    blobs = start()
    server = blobs._objects.client._connection.API_BASE_URL
    names = [f"rows/{number}.jsonl.gz" for number in range(1105)]
    bucket = blobs._objects.client.bucket("bucket")
    held = GcsBlobs(GcsUri("bucket", "folder-2"))
    held.create("rows/of-another", b"")
    for odd in ("folder/", "folder/rows/", "folder/a//b", "folder", "folder/.hidden"):
        bucket.blob(odd).upload_from_string(b"")
    writers = [threading.Thread(target=_fill, args=(server, names[part::4])) for part in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert list(blobs.list("rows/")) == sorted(names)
    assert list(blobs.list("")) == sorted(names)


def _fill(url: str, names: list[str]) -> None:
    blobs = GcsBlobs(PLACE)
    for name in names:
        blobs.create(name, b"")


def test_nothing_is_left_of_a_stream_that_fails(start: Callable[..., GcsBlobs], tmp_path: Path) -> None:
    blobs = start()

    def failing() -> Iterator[bytes]:
        yield from pieces(bytes(LARGE))
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        blobs.create_from("a", failing())
    assert not blobs.exists("a")
    assert list(blobs.list("")) == list(blobs.unfinished()) == []


# ---------------------------------------------------------------- locks


def test_a_lock_lives_through_lost_answers(start: Callable[..., GcsBlobs]) -> None:
    rule = {"on": "storage_write", "kind": "lost_reply", "every": 2}
    blobs = start(rule, heartbeat_s=0.05, takeover_s=30)
    with blobs.lock("lock.json", b'{"id": "one"}', 0):
        before = GcsBlobs(PLACE).read("lock.json")[1]
        _until(lambda: int(GcsBlobs(PLACE).read("lock.json")[1]) > int(before))
        blobs.create("a", b"x")
    assert blobs.read_lock("lock.json") is None


def test_a_holder_that_was_passed_over_writes_nothing_more(start: Callable[..., GcsBlobs]) -> None:
    holder = start(heartbeat_s=60)
    other = GcsBlobs(PLACE, heartbeat_s=0.3, takeover_s=0.2)
    with holder.lock("lock.json", b'{"operation": "apply", "pid": 1, "id": "a"}', 0):
        version = holder.create("state.json", b"1")
        with other.lock("lock.json", b'{"operation": "destroy", "pid": 2, "id": "b"}', 5):
            late = GcsBlobs(PLACE)
            # As after a sleep of this machine: the next write asks first.
            holder._leases._held["lock.json"].renewed_at -= 200
            calls: list[Callable[[], object]] = [
                lambda: holder.replace("state.json", b"2", version),
                lambda: holder.create("new", b""),
                lambda: holder.create_from("new", [b""]),
                lambda: holder.delete("state.json"),
            ]
            for call in calls:
                with pytest.raises(StateChanged, match=r"was lost: operation destroy, pid 2 holds it now"):
                    call()
            assert late.read("state.json")[0] == b"1"
            assert not late.exists("new")
        # What it does not hold any more it does not give back either.
    assert holder.read_lock("lock.json") is None


def test_a_beat_that_finds_another_holder_tells_the_next_write(start: Callable[..., GcsBlobs]) -> None:
    holder = start(heartbeat_s=0.05, takeover_s=3000)
    other = GcsBlobs(PLACE)
    with holder.lock("lock.json", b'{"id": "a"}', 0):
        words = other.read_lock("lock.json")
        assert words is not None
        assert other.free_lock("lock.json", words)
        held = holder._leases._held["lock.json"]
        _until(lambda: held.lost)
        with pytest.raises(StateChanged, match="it was freed by hand"):
            holder.create("a", b"")


def _until(holds: Callable[[], object]) -> None:
    for _ in range(400):
        if holds():
            return
        threading.Event().wait(0.02)
    raise AssertionError("it did not come about")


# ---------------------------------------------------------------- words


@pytest.fixture
def refusing(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., GcsBlobs]]:
    """Blobs at a server that answers everything with one status."""
    servers = []

    def begin(status: int, body: str) -> GcsBlobs:
        class Refusal(BaseHTTPRequestHandler):
            def answer(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.send_header("Content-Type", "application/json")
                self.end_headers()
                self.wfile.write(body.encode())

            do_GET = do_POST = do_DELETE = do_PUT = answer

            def log_message(self, format: str, *args: Any) -> None:
                pass

        server = HTTPServer(("127.0.0.1", 0), Refusal)
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        servers.append((server, thread))
        monkeypatch.setenv(EMULATOR_VARIABLE, f"http://127.0.0.1:{server.server_port}")
        return GcsBlobs(PLACE, patience_s=0.3)

    yield begin
    for server, thread in servers:
        server.shutdown()
        thread.join()
        server.server_close()


def every_call(blobs: GcsBlobs) -> list[Callable[[], object]]:
    return [
        lambda: blobs.read("a"),
        lambda: blobs.open("a"),
        lambda: blobs.size("a"),
        lambda: blobs.exists("a"),
        lambda: list(blobs.list("")),
        lambda: blobs.create("a", b"x"),
        lambda: blobs.create_from("a", pieces(bytes(LARGE))),
        lambda: blobs.replace("a", b"x", "1"),
        lambda: blobs.delete("a"),
        lambda: blobs.lock("lock.json", b"{}", 0).__enter__(),
        lambda: blobs.read_lock("lock.json"),
    ]


def refused(call: Callable[[], object]) -> StateError:
    with pytest.raises(StateError) as caught:
        call()
    assert type(caught.value) is StateError, caught.value
    assert "gs://bucket/folder" in caught.value.message
    assert caught.value.hint
    assert "http://" not in caught.value.message
    return caught.value


@pytest.mark.parametrize("call", range(11))
def test_missing_rights_name_the_role(refusing: Callable[..., GcsBlobs], call: int) -> None:
    said = "me@x.test does not have storage.objects.get access to the Google Cloud Storage object."
    blobs = refusing(403, json.dumps({"error": {"code": 403, "message": said, "errors": []}}))
    error = refused(every_call(blobs)[call])
    assert "no right to do that" in error.message
    assert "me@x.test does not have" in error.message
    assert "grant roles/storage.objectUser on gs://bucket" in error.hint


def test_other_refusals(refusing: Callable[..., GcsBlobs]) -> None:
    for status, message, hint in (
        (400, "Cloud Storage answers 400", "run the command again"),
        (503, "Cloud Storage answers 503", "run the command again"),
        (429, "Cloud Storage answers 429", "run the command again"),
    ):
        for call in every_call(refusing(status, "")):
            error = refused(call)
            assert message in error.message
            assert hint in error.hint


@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
@pytest.mark.filterwarnings("ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning")
def test_credentials_that_are_refused(refusing: Callable[..., GcsBlobs]) -> None:
    for call in every_call(refusing(401, "")):
        # The library asks for better ones, and has none.
        error = refused(call)
        assert "there are no credentials" in error.message
        assert "gcloud auth application-default login" in error.hint
    # It leaves what it was refused unread.
    gc.collect()


@pytest.mark.parametrize("status", [429, 503])
def test_calls_that_are_repeated_leave_no_connection_open(
    refusing: Callable[..., GcsBlobs], status: int
) -> None:
    blobs = refusing(status, "")
    gc.collect()
    with warnings.catch_warnings(record=True) as left:
        warnings.simplefilter("always")
        for call in every_call(blobs):
            refused(call)
        gc.collect()
    assert not left


def test_a_missing_bucket_is_said_by_every_call(start: Callable[..., GcsBlobs]) -> None:
    start()
    blobs = GcsBlobs(GcsUri("other-bucket", "folder"), patience_s=1)
    for call in every_call(blobs):
        with pytest.raises(StateError, match="there is no bucket 'other-bucket'") as caught:
            call()
        assert not isinstance(caught.value, BlobMissing)
        assert "gcloud storage buckets create gs://other-bucket" in caught.value.hint


def test_an_object_may_be_called_bucket(start: Callable[..., GcsBlobs]) -> None:
    blobs = start()
    with pytest.raises(BlobMissing):
        blobs.read("bucket/of/buckets")


def test_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(EMULATOR_VARIABLE, "http://127.0.0.1:1")
    for call in every_call(GcsBlobs(PLACE, patience_s=0.2)):
        error = refused(call)
        assert "Cloud Storage cannot be reached" in error.message
        assert "STORAGE_EMULATOR_HOST is 'http://127.0.0.1:1'" in error.hint


def test_no_credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(EMULATOR_VARIABLE, raising=False)
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    error = refused(lambda: GcsBlobs(PLACE).read("a"))
    assert "there are no credentials" in error.message
    assert "gcloud auth application-default login" in error.hint

    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "none.json"))
    assert "there are no credentials" in refused(lambda: GcsBlobs(PLACE).read("a")).message


def test_nothing_is_asked_before_the_first_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(EMULATOR_VARIABLE, "http://127.0.0.1:1")
    blobs = GcsBlobs(PLACE)
    assert list(blobs.unfinished()) == []
    with pytest.raises(UsageInvalid):
        blobs.delete_unfinished("a")


# ---------------------------------------------------------------- addresses


@pytest.mark.parametrize(
    ("text", "bucket", "name"),
    [
        ("gs://bucket/a", "bucket", "a"),
        ("gs://b-1.example.org/a/b-c_d/", "b-1.example.org", "a/b-c_d"),
        ("gs://bucket/ä ö", "bucket", "ä ö"),
    ],
)
def test_addresses(text: str, bucket: str, name: str) -> None:
    assert parse(text) == GcsUri(bucket, name)
    assert str(parse(text)) == text.removesuffix("/")


@pytest.mark.parametrize(
    "text",
    [
        "gs://", "gs://bucket", "gs://bucket/", "gs://bucket//a", "gs://bucket/a//b", "gs://bucket/../a",
        "gs:/b/a", "gs://bucket/.hidden", "gs://Bucket/a", "gs://b/a", "gs://bucket/a\nb", "gs://bucket/a*",
        "s3://bucket/a", "gs://bucket/" + "x" * 701, "gs://buc ket/a", "gs://-bucket/a", "gs://bucket/a#1",
        "gs://bucket/\udcff",
    ],
)  # fmt: skip
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ValueError, match=r"^[a-z]"):
        parse(text)
