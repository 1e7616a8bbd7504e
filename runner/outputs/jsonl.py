"""Records as JSON lines in a local file, replaced atomically."""

from __future__ import annotations

import glob
import hashlib
import os
import tempfile
from pathlib import Path
from types import TracebackType

from runner.errors import GbrunError


class JsonlFile:
    """A file written beside its place: `seal` ends the writing, `place` moves it there."""

    def __init__(self, path: Path) -> None:
        """Raises GbrunError where the folder cannot be made or written.

        Only one writer at a time: what a killed one left beside the place is removed.
        """
        self.path = path
        self.line_count = 0
        self.byte_count = 0
        self._hash = hashlib.sha256()
        self._buffer: list[bytes] = []
        self._buffered = 0
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            for stale in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
                stale.unlink(missing_ok=True)
            handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        except OSError as error:
            raise GbrunError(f"cannot write {path}: {error.strerror}") from error
        self._file = os.fdopen(handle, "wb")
        self._temporary: Path | None = Path(name)

    def write(self, line: bytes) -> None:
        """Append one line, given with its newline."""
        self.line_count += 1
        self._buffer.append(line)
        self._buffered += len(line)
        if self._buffered >= 1 << 20:
            self._flush()

    def seal(self) -> tuple[str, int]:
        """Finish the writing and return the SHA-256 (hex) and the size in bytes."""
        try:
            self._flush()
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            assert self._temporary is not None
            umask = os.umask(0)
            os.umask(umask)
            self._temporary.chmod(0o666 & ~umask)
        except OSError as error:
            raise GbrunError(f"cannot write {self.path}: {error.strerror}") from error
        return self._hash.hexdigest(), self.byte_count

    def place(self) -> None:
        """Move the sealed file to its place, in one step."""
        assert self._temporary is not None
        try:
            self._temporary.replace(self.path)
            self._temporary = None
            sync_folder(self.path.parent)
        except OSError as error:
            raise GbrunError(f"cannot write {self.path}: {error.strerror}") from error

    def __enter__(self) -> JsonlFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._temporary is not None:
            self._file.close()
            self._temporary.unlink(missing_ok=True)

    def _flush(self) -> None:
        data = b"".join(self._buffer)
        self._buffer, self._buffered = [], 0
        self._hash.update(data)
        self.byte_count += len(data)
        try:
            self._file.write(data)
        except OSError as error:
            raise GbrunError(f"cannot write {self.path}: {error.strerror}") from error


def sync_folder(folder: Path) -> None:
    """Make a rename in this folder survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def look(path: Path) -> tuple[str, int] | None:
    """SHA-256 (hex) and size of what lies at a destination, None for nothing.

    Raises GbrunError where it is there but cannot be read, or is no file.
    """
    hasher = hashlib.sha256()
    size = 0
    try:
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                hasher.update(chunk)
                size += len(chunk)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise GbrunError(f"cannot read the destination {path}: {error.strerror}") from error
    return hasher.hexdigest(), size
