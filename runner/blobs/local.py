"""Blobs in a folder of the local file system.

A write goes to a temporary dot file in the target's own folder, is synced, gets its name in
one step, and the folder is synced: after a crash there is the old blob or the new one. Folders
are made 0700 and files 0600. Reading never creates anything.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from runner.blobs import (
    BlobChanged,
    BlobExists,
    BlobMissing,
    Unfinished,
    check_name,
    locked,
    version_of,
)
from runner.errors import StateError, UsageInvalid

_LOCK_POLL_S = 0.05
_TEMPORARY = ".tmp-"
_NO_HARD_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}


class LocalBlobs:
    """A blob store in `root`, which is created by the first write."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def read(self, name: str) -> tuple[bytes, str]:
        """See `Blobs.read`."""
        with self.open(name) as stream, _failing("read", self._path(name)):
            data = stream.read()
        return data, version_of(data)

    def read_range(self, name: str, offset: int, length: int) -> bytes:
        """See `Blobs.read_range`."""
        with self.open(name) as stream, _failing("read", self._path(name)):
            stream.seek(offset)
            return stream.read(length)

    def open(self, name: str) -> BinaryIO:
        """See `Blobs.open`."""
        path = self._path(name)
        with _failing("read", path):
            return path.open("rb")

    def size(self, name: str) -> int:
        """See `Blobs.size`."""
        path = self._path(name)
        with _failing("read", path):
            return path.stat().st_size

    def exists(self, name: str) -> bool:
        """See `Blobs.exists`."""
        path = self._path(name)
        with suppress(BlobMissing), _failing("read", path):
            path.stat()
            return True
        return False

    def modified_s(self, name: str) -> float:
        """See `Blobs.modified_s`."""
        path = self._path(name)
        with _failing("read", path):
            return path.stat().st_mtime

    def create(self, name: str, data: bytes) -> str:
        """See `Blobs.create`."""
        return self.create_from(name, (data,))

    def create_from(self, name: str, chunks: Iterable[bytes]) -> str:
        """See `Blobs.create_from`."""
        path = self._path(name)
        if self.exists(name):
            raise BlobExists(f"{path} exists already")
        with self._written(path, chunks) as (temp, version), _failing("write", path):
            try:
                os.link(temp, path)
            except FileExistsError:
                raise BlobExists(f"{path} exists already") from None
            except OSError as error:
                if error.errno not in _NO_HARD_LINKS:
                    raise
                with self._swapping():
                    if path.exists():
                        raise BlobExists(f"{path} exists already") from None
                    os.replace(temp, path)
            _sync_folder(path.parent)
        return version

    def replace(self, name: str, data: bytes, version: str) -> str:
        """See `Blobs.replace`."""
        path = self._path(name)
        if not self.exists(name):
            raise BlobChanged(f"{path} was removed by another run")
        with self._written(path, (data,)) as (temp, new_version), _failing("write", path):
            with self._swapping():
                try:
                    now = version_of(path.read_bytes())
                except FileNotFoundError:
                    raise BlobChanged(f"{path} was removed by another run") from None
                if now != version:
                    raise BlobChanged(f"{path} was changed by another run")
                os.replace(temp, path)
            _sync_folder(path.parent)
        return new_version

    def list(self, prefix: str) -> Iterator[str]:
        """See `Blobs.list`."""
        folder = prefix.rpartition("/")[0]
        if folder:
            check_name(folder)
        for name in _walk(self.root / folder, folder and folder + "/"):
            if name.startswith(prefix):
                yield name

    def delete(self, name: str) -> None:
        """See `Blobs.delete`; not synced: a blob that a crash brings back is deleted again."""
        path = self._path(name)
        if not self.exists(name):
            return
        with suppress(BlobMissing), _failing("delete", path), self._swapping():
            path.unlink()

    def unfinished(self) -> Iterator[Unfinished]:
        """See `Blobs.unfinished`."""
        for path in sorted(self.root.glob(f"**/{_TEMPORARY}*")):
            with suppress(FileNotFoundError):
                found = path.stat()
                yield Unfinished(path.relative_to(self.root).as_posix(), found.st_size, found.st_mtime)

    def delete_unfinished(self, name: str) -> None:
        """See `Blobs.delete_unfinished`."""
        folder, slash, last = name.rpartition("/")
        if not last.startswith(_TEMPORARY):
            raise UsageInvalid(f"{name!r} is no unfinished write")
        path = (self._path(folder) if slash else self.root) / last
        with suppress(BlobMissing), _failing("delete", path):
            path.unlink()

    @contextmanager
    def lock(self, name: str, holder: bytes, timeout_s: float) -> Iterator[None]:
        """See `Blobs.lock`: flock on a file that is never renamed; its content is advisory."""
        path = self._path(name)
        deadline = time.monotonic() + timeout_s
        looked = 0
        while (handle := self._try_lock(path)) is None:
            looked += 1
            # The second look is for a `read_lock` that held the file for the blink of its probe.
            if looked > 1 and time.monotonic() >= deadline:
                raise locked(str(path), _words(path))
            time.sleep(_LOCK_POLL_S)
        try:
            with _failing("write", path):
                os.ftruncate(handle, 0)
                os.pwrite(handle, holder, 0)
            try:
                yield
            finally:
                with suppress(OSError):
                    os.ftruncate(handle, 0)
        finally:
            os.close(handle)

    def read_lock(self, name: str) -> bytes | None:
        """See `Blobs.read_lock`."""
        path = self._path(name)
        with suppress(BlobMissing), _failing("read", path):
            handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                # A killed holder leaves its words behind but not its lock.
                fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return _words(path)
            finally:
                os.close(handle)
        return None

    def free_lock(self, name: str, holder: bytes) -> bool:
        """See `Blobs.free_lock`: a lock ends with its process."""
        return False

    def _path(self, name: str) -> Path:
        return self.root / check_name(name)

    def _try_lock(self, path: Path) -> int | None:
        """A descriptor that holds the lock, None while someone else does."""
        with _failing("lock", path):
            _make_folder(path.parent)
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # A lock on a file that was deleted meanwhile keeps nobody out.
                if os.path.samestat(os.fstat(handle), path.stat()):
                    return handle
            except (BlockingIOError, FileNotFoundError):
                pass
            except BaseException:
                os.close(handle)
                raise
            os.close(handle)
            return None

    @contextmanager
    def _swapping(self) -> Iterator[None]:
        """Keep every other process between its compare and its rename out."""
        handle = os.open(self.root / ".cas", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    @contextmanager
    def _written(self, path: Path, chunks: Iterable[bytes]) -> Iterator[tuple[Path, str]]:
        """A synced temporary file beside `path` and its version; gone when the block ends."""
        import secrets

        temp = path.parent / f"{_TEMPORARY}{secrets.token_hex(8)}"
        digest = hashlib.sha256()
        try:
            with _failing("write", path):
                _make_folder(path.parent)
                stream = os.fdopen(os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")
            try:
                for chunk in chunks:
                    digest.update(chunk)
                    with _failing("write", path):
                        stream.write(chunk)
                with _failing("write", path):
                    stream.flush()
                    os.fsync(stream.fileno())
            finally:
                # All is on disk by now, or an error is on its way that this must not replace.
                with suppress(OSError):
                    stream.close()
            yield temp, digest.hexdigest()
        finally:
            with suppress(OSError):
                temp.unlink()


@contextmanager
def _failing(verb: str, path: Path) -> Iterator[None]:
    """Turn an OSError into an error of the state that names the path and the reason."""
    try:
        yield
    except OSError as error:
        if verb in ("read", "delete") and isinstance(error, FileNotFoundError | NotADirectoryError):
            raise BlobMissing(f"{path} is missing") from None
        hint = "free some space and run the command again" if error.errno == errno.ENOSPC else ""
        raise StateError(f"cannot {verb} {path}: {error.strerror or error}", hint=hint) from error


def _make_folder(folder: Path) -> None:
    """Create a folder and what is missing above it, 0700, so that it survives a crash."""
    if folder.is_dir():
        return
    if folder.parent != folder:
        _make_folder(folder.parent)
    with suppress(FileExistsError):
        folder.mkdir(0o700)
        _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _walk(folder: Path, before: str) -> Iterator[str]:
    """Names below `folder`, in the order of the whole strings."""
    try:
        with os.scandir(folder) as found:
            entries = [
                (entry.name + "/" * entry.is_dir(follow_symlinks=False), entry.path)
                for entry in found
                if not entry.name.startswith(".")
            ]
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise StateError(f"cannot list {folder}: {error.strerror}") from error
    # A folder sorts as `name/`: `a-b` stands before `a/b`.
    for name, path in sorted(entries):
        if name.endswith("/"):
            yield from _walk(Path(path), before + name)
        else:
            yield before + name


def _words(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None
