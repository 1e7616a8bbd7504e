"""What the local blob store does to the disk."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runner.blobs import BlobExists, BlobMissing
from runner.blobs.local import LocalBlobs
from runner.errors import StateError, StateLocked


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "root"


def _files(root: Path) -> list[str]:
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())


def test_only_the_owner_may_look(root: Path) -> None:
    old = os.umask(0)
    try:
        blobs = LocalBlobs(root)
        blobs.replace("a/b/c", b"2", blobs.create("a/b/c", b"1"))
        with blobs.lock("lock.json", b"{}", 0):
            pass
    finally:
        os.umask(old)

    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in [root, *root.rglob("*")]}
    assert {oct(mode) for path, mode in modes.items() if path.is_dir()} == {"0o700"}
    assert {oct(mode) for path, mode in modes.items() if path.is_file()} == {"0o600"}


def test_reading_creates_nothing(root: Path) -> None:
    blobs = LocalBlobs(root)

    assert list(blobs.list("")) == []
    assert not blobs.exists("a")
    assert blobs.read_lock("lock.json") is None
    blobs.delete("a")
    with pytest.raises(BlobMissing):
        blobs.read("a")
    assert not root.parent.exists()


def test_a_file_of_the_users_is_left_as_it_is(root: Path) -> None:
    root.mkdir(parents=True, mode=0o755)
    root.chmod(0o755)
    LocalBlobs(root).create("a", b"1")

    assert stat.S_IMODE(root.stat().st_mode) == 0o755


def test_bytes_reach_the_disk_before_the_name_and_the_name_before_the_return(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blobs = LocalBlobs(root)
    version = blobs.create("f/a", b"1")
    steps: list[str] = []

    def recorded(name: str, real: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            if name == "fsync":
                kind = "folder" if stat.S_ISDIR(os.fstat(args[0]).st_mode) else "file"
                steps.append(f"fsync {kind}")
            else:
                steps.append(name)
            return real(*args, **kwargs)

        return call

    for name in ("fsync", "link", "replace"):
        monkeypatch.setattr(os, name, recorded(name, getattr(os, name)))

    blobs.create("f/b", b"1")
    assert steps == ["fsync file", "link", "fsync folder"]
    steps.clear()
    blobs.replace("f/a", b"2", version)
    assert steps == ["fsync file", "replace", "fsync folder"]
    steps.clear()
    blobs.create("new/g/c", b"1")
    assert steps == ["fsync folder", "fsync folder", "fsync file", "link", "fsync folder"]
    steps.clear()
    list(blobs.list(""))
    blobs.read("f/a")
    blobs.delete("f/a")
    assert steps == []


def test_a_stream_is_in_a_dot_file_of_the_same_folder_until_it_is_whole(root: Path) -> None:
    blobs = LocalBlobs(root)
    seen: list[list[str]] = []

    def chunks() -> Iterator[bytes]:
        yield b"x" * 100_000
        seen.append(_files(root))
        assert list(blobs.list("")) == []
        yield b"y"

    blobs.create_from("f/a", chunks())

    ((temp,),) = seen
    assert temp.startswith("f/.tmp-")
    assert _files(root) == ["f/a"]
    assert blobs.size("f/a") == 100_001


def test_a_loser_that_finds_out_after_writing_leaves_nothing(root: Path) -> None:
    blobs = LocalBlobs(root)

    def chunks() -> Iterator[bytes]:
        yield b"slow"
        blobs.create("a", b"fast")

    with pytest.raises(BlobExists):
        blobs.create_from("a", chunks())
    assert blobs.read("a")[0] == b"fast"
    assert _files(root) == ["a"]


def test_without_hard_links_a_create_is_still_exclusive(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)
    blobs = LocalBlobs(root)

    def chunks() -> Iterator[bytes]:
        yield b"slow"
        blobs.create("a", b"fast")

    with pytest.raises(BlobExists):
        blobs.create_from("a", chunks())
    assert blobs.read("a")[0] == b"fast"
    assert _files(root) == [".cas", "a"]


def _full(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _full_when_written(real: Any) -> Any:
    def fdopen(*args: Any, **kwargs: Any) -> Any:
        stream = real(*args, **kwargs)
        full = os.open("/dev/full", os.O_WRONLY)
        os.dup2(full, stream.fileno())
        os.close(full)
        return stream

    return fdopen


@pytest.mark.parametrize("data", [b"small", b"x" * 1_000_000])
@pytest.mark.parametrize("step", ["fdopen", "fsync", "link", "replace"])
def test_a_full_disk_is_named_and_leaves_what_was(
    root: Path, monkeypatch: pytest.MonkeyPatch, step: str, data: bytes
) -> None:
    blobs = LocalBlobs(root)
    version = blobs.create("old", b"old")
    monkeypatch.setattr(os, step, _full_when_written(os.fdopen) if step == "fdopen" else _full)

    if step != "link":
        with pytest.raises(StateError, match=r"cannot write .*old: No space left on device") as error:
            blobs.replace("old", data, version)
        assert "free some space" in error.value.hint
    if step != "replace":
        with pytest.raises(StateError, match=r"cannot write .*new: No space left on device"):
            blobs.create_from("new", [data, data])
    monkeypatch.undo()
    assert blobs.read("old") == (b"old", version)
    assert [name for name in _files(root) if name != ".cas"] == ["old"]


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    blobs = LocalBlobs(tmp_path / "file" / "root")

    with pytest.raises(StateError, match=r"cannot write .*file/root/a: Not a directory"):
        blobs.create("a", b"1")
    with pytest.raises(StateError, match=r"cannot lock .*lock.json: Not a directory"):
        blobs.lock("lock.json", b"{}", 0).__enter__()


def test_a_read_only_folder_is_named(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blobs = LocalBlobs(root)
    version = blobs.create("a", b"1")
    real = os.open

    # Not by chmod: the tests may run as root, whom no mode stops.
    def read_only(path: Any, flags: int, *args: Any) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return real(path, flags, *args)

    monkeypatch.setattr(os, "open", read_only)
    for verb, call in (
        ("write", lambda: blobs.create("b", b"1")),
        ("write", lambda: blobs.replace("a", b"2", version)),
        ("delete", lambda: blobs.delete("a")),
        ("lock", lambda: blobs.lock("lock.json", b"{}", 0).__enter__()),
    ):
        with pytest.raises(StateError, match=f"cannot {verb} .*: Read-only file system"):
            call()
    assert blobs.read("a") == (b"1", version)
    assert _files(root) == ["a"]


def test_a_lock_on_a_file_that_was_deleted_meanwhile_is_not_enough(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blobs = LocalBlobs(root)
    real = fcntl.flock
    deleted: list[int] = []

    def flock(handle: int, operation: int) -> None:
        real(handle, operation)
        if not deleted:
            deleted.append(handle)
            (root / "lock.json").unlink()

    monkeypatch.setattr(fcntl, "flock", flock)
    with blobs.lock("lock.json", b"{}", 0), pytest.raises(StateLocked), blobs.lock("lock.json", b"{}", 0):
        pass
    assert deleted
