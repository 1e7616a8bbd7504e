"""Blobs in this process's memory: for tests and simulations. Nothing outlives the object."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
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


class MemoryBlobs:
    """A blob store in a dictionary; safe to share between threads, each acting as a process."""

    def __init__(self) -> None:
        self._data: dict[str, bytes] = {}
        self._modified_s: dict[str, float] = {}
        self._holders: dict[str, bytes] = {}
        self._changed = threading.Condition()

    def read(self, name: str) -> tuple[bytes, str]:
        """See `Blobs.read`."""
        data = self._get(name)
        return data, version_of(data)

    def read_range(self, name: str, offset: int, length: int) -> bytes:
        """See `Blobs.read_range`."""
        return self._get(name)[offset : offset + length]

    def open(self, name: str) -> BinaryIO:
        """See `Blobs.open`."""
        return io.BytesIO(self._get(name))

    def size(self, name: str) -> int:
        """See `Blobs.size`."""
        return len(self._get(name))

    def exists(self, name: str) -> bool:
        """See `Blobs.exists`."""
        return check_name(name) in self._data

    def modified_s(self, name: str) -> float:
        """See `Blobs.modified_s`."""
        self._get(name)
        return self._modified_s[name]

    def create(self, name: str, data: bytes) -> str:
        """See `Blobs.create`."""
        with self._changed:
            if check_name(name) in self._data:
                raise BlobExists(f"{name} exists already")
            self._data[name] = bytes(data)
            self._modified_s[name] = time.time()
        return version_of(data)

    def create_from(self, name: str, chunks: Iterable[bytes]) -> str:
        """See `Blobs.create_from`."""
        check_name(name)
        return self.create(name, b"".join(chunks))

    def replace(self, name: str, data: bytes, version: str) -> str:
        """See `Blobs.replace`."""
        with self._changed:
            now = self._data.get(check_name(name))
            if now is None or version_of(now) != version:
                raise BlobChanged(f"{name} was {'removed' if now is None else 'changed'} by another run")
            self._data[name] = bytes(data)
            self._modified_s[name] = time.time()
        return version_of(data)

    def list(self, prefix: str) -> Iterator[str]:
        """See `Blobs.list`."""
        with self._changed:
            names = sorted(name for name in self._data if name.startswith(prefix))
        yield from names

    def delete(self, name: str) -> None:
        """See `Blobs.delete`."""
        with self._changed:
            self._data.pop(check_name(name), None)

    def unfinished(self) -> Iterator[Unfinished]:
        """See `Blobs.unfinished`; every write here is finished."""
        return iter(())

    def delete_unfinished(self, name: str) -> None:
        """See `Blobs.delete_unfinished`."""

    @contextmanager
    def lock(self, name: str, holder: bytes, timeout_s: float) -> Iterator[None]:
        """See `Blobs.lock`; the holder is a thread of this process."""
        check_name(name)
        with self._changed:
            if not self._changed.wait_for(lambda: name not in self._holders, timeout_s):
                raise locked(name, self._holders[name])
            self._holders[name] = bytes(holder)
        try:
            yield
        finally:
            with self._changed:
                del self._holders[name]
                self._changed.notify_all()

    def read_lock(self, name: str) -> bytes | None:
        """See `Blobs.read_lock`."""
        return self._holders.get(check_name(name))

    def free_lock(self, name: str, holder: bytes) -> bool:
        """See `Blobs.free_lock`: a lock ends with its block."""
        return False

    def _get(self, name: str) -> bytes:
        try:
            return self._data[check_name(name)]
        except KeyError:
            raise BlobMissing(f"{name} is missing") from None
