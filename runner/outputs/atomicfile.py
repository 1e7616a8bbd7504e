"""A file that is written beside its place and moved there in one step, or not at all."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

from runner.behind import Behind
from runner.errors import GbrunError

_CHUNK_BYTES = 1 << 20


class AtomicFile:
    """What every destination shares: `seal` ends the writing, `place` moves the file to its place."""

    def __init__(self, path: Path) -> None:
        """Raises GbrunError where the folder cannot be made or written.

        Only one writer at a time: what a killed one left beside the place is removed.
        """
        import glob
        import tempfile

        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            for stale in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
                stale.unlink(missing_ok=True)
            handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        except OSError as error:
            raise self.failed(error.strerror) from error
        os.close(handle)
        self.temporary: Path | None = Path(name)

    def failed(self, why: object) -> GbrunError:
        """The error of a file that cannot be written."""
        return GbrunError(f"cannot write {self.path}: {why}")

    def write(self, record: bytes, meta: bytes = b"") -> None:
        """Append one record; see `outputs.Output.write`."""
        raise NotImplementedError

    def write_all(self, records: Sequence[bytes], metas: Sequence[bytes] = ()) -> None:
        """See `outputs.Output.write_all`."""
        for record, meta in zip(records, metas or [b""] * len(records), strict=True):
            self.write(record, meta)

    def finish(self) -> tuple[str, int]:
        """End the writing into the temporary file and close it; its SHA-256 (hex) and its size in bytes."""
        raise NotImplementedError

    def abandon(self) -> None:
        """Close what is open without finishing it; called for a file that was not placed."""
        raise NotImplementedError

    def seal(self) -> tuple[str, int]:
        """Finish the writing and return the SHA-256 (hex) and the size in bytes.

        Raises GbrunError where it cannot be finished, such as on a full disk.
        """
        assert self.temporary is not None
        try:
            found = self.finish()
            _sync(self.temporary)
            umask = os.umask(0)
            os.umask(umask)
            self.temporary.chmod(0o666 & ~umask)
        except OSError as error:
            raise self.failed(error.strerror or error) from error
        return found

    def claim(self) -> None:
        """Raises GbrunError where what lies at the place may not be replaced; a file says nothing of that."""

    def place(self) -> None:
        """Move the sealed file to its place, in one step."""
        assert self.temporary is not None
        try:
            self.temporary.replace(self.path)
            self.temporary = None
            sync_folder(self.path.parent)
        except OSError as error:
            raise self.failed(error.strerror) from error

    def remove(self) -> None:
        """Delete what lies at the place, if anything does."""
        try:
            self.path.unlink(missing_ok=True)
        except OSError as error:
            raise self.failed(error.strerror) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.temporary is not None:
            self.abandon()
            self.temporary.unlink(missing_ok=True)


class ByteFile(AtomicFile):
    """An atomic file written from its first byte to its last."""

    def __init__(self, path: Path) -> None:
        """See `AtomicFile`."""
        super().__init__(path)
        assert self.temporary is not None
        self.byte_count = 0
        self._hash = hashlib.sha256()
        self._buffer: list[bytes] = []
        self._buffered = 0
        self._file = self.temporary.open("wb")
        self._behind = Behind[None]()

    def append(self, data: bytes) -> None:
        """Add bytes at the end."""
        self._buffer.append(data)
        self._buffered += len(data)
        if self._buffered >= _CHUNK_BYTES:
            # The next call raises what fails there.
            self._behind.begin(partial(self._write, self._taken()))

    def finish(self) -> tuple[str, int]:
        """See `AtomicFile.finish`."""
        self._behind.end()
        self._write(self._taken())
        self.abandon()
        return self._hash.hexdigest(), self.byte_count

    def abandon(self) -> None:
        """See `AtomicFile.abandon`."""
        self._behind.close()
        self._file.close()

    def _taken(self) -> bytes:
        data = b"".join(self._buffer)
        self._buffer, self._buffered = [], 0
        return data

    def _write(self, data: bytes) -> None:
        self._hash.update(data)
        self.byte_count += len(data)
        try:
            self._file.write(data)
        except OSError as error:
            raise self.failed(error.strerror) from error


def sync_folder(folder: Path) -> None:
    """Make a rename in this folder survive a power cut."""
    _sync(folder)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def digest(path: Path) -> tuple[str, int]:
    """SHA-256 (hex) and byte size of a file. Raises OSError."""
    hasher = hashlib.sha256()
    size = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            hasher.update(chunk)
            size += len(chunk)
    return hasher.hexdigest(), size


def look(path: Path) -> tuple[str, int] | None:
    """SHA-256 (hex) and size of what lies at a destination, None for nothing.

    Raises GbrunError where it is there but cannot be read, or is no file.
    """
    try:
        return digest(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise GbrunError(f"cannot read the destination {path}: {error.strerror}") from error
