"""The staging folder of Vertex over our own emulator and over one that others wrote."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.oauth2.credentials import Credentials
from test_blobs import url_of_fake_gcs_server, url_of_gcs

from runner.backends.vertexstaging import Staging
from runner.errors import BackendError
from runner.gcsuri import GcsUri

SERVERS = [url_of_gcs, url_of_fake_gcs_server]


@pytest.fixture(params=["gcs", "fake_gcs_server"])
def staging(request: pytest.FixtureRequest) -> Iterator[Staging]:
    made = Staging(
        "my-project", Credentials(token="t"), request.getfixturevalue(f"url_of_{request.param}"), 10.0
    )
    made.make_bucket("bucket")
    yield made
    made.close()


@pytest.fixture
def folder() -> str:
    return f"folder-{os.urandom(8).hex()}"


def written(where: Path, data: bytes) -> Path:
    path = where / "data.jsonl"
    path.write_bytes(data)
    return path


# Below and above what is sent in one request, and in one chunk.
@pytest.mark.parametrize("size", [0, 10, (8 << 20) + 1000, 17 << 20])
def test_what_was_put_comes_back(
    staging: Staging, tmp_path: Path, folder: str, size: int, request: pytest.FixtureRequest
) -> None:
    data = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    place = GcsUri("bucket", f"{folder}/a b+ä.jsonl")
    path = written(tmp_path, data)
    assert staging.put(path, place)
    # Safe to repeat, and never over other bytes.
    assert staging.put(path, place)
    if size < 8 << 20 or "fake" not in request.node.name:
        # fake-gcs-server holds larger uploads to no precondition.
        assert not staging.put(written(tmp_path, data + b"!"), place)
    (found,) = staging.listing(f"gs://bucket/{folder}/")
    assert (found.bucket, found.name, found.byte_count) == ("bucket", place.name, size)
    assert b"".join(staging.chunks(found)) == data


def test_objects_come_and_go(staging: Staging, tmp_path: Path, folder: str) -> None:
    path = written(tmp_path, b"x\n")
    names = [f"{folder}/{name}.jsonl" for name in ("a1/p", "a10/p", "a1/q")]
    for name in names:
        staging.put(path, GcsUri("bucket", name))
    assert [one.name for one in staging.listing(f"gs://bucket/{folder}/a1/")] == names[::2]
    assert staging.exists(GcsUri("bucket", names[0]))
    staging.delete(GcsUri("bucket", names[0]))
    staging.delete(GcsUri("bucket", names[0]))
    assert not staging.exists(GcsUri("bucket", names[0]))
    assert staging.listing(f"gs://bucket/{folder}/nothing/") == ()


def test_a_bucket_that_is_not_there(staging: Staging, tmp_path: Path) -> None:
    with pytest.raises(BackendError) as error:
        staging.put(written(tmp_path, b"x\n"), GcsUri("nowhere", "x"))
    assert (error.value.http_status, error.value.transient) == (404, False)
