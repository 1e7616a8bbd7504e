"""Blobs in Cloud Storage: versions are generations, and every write has a precondition on one.

How a write counts once is in `gcsobjects`. Locks are leases, see `lease`.
"""

from __future__ import annotations

import io
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, BinaryIO

from runner.blobs import BlobChanged, BlobExists, BlobMissing, Unfinished, check_name, gcserrors
from runner.blobs.gcsobjects import CHUNK_BYTES, PATIENCE_S, TIMEOUT_S, GcsObjects
from runner.blobs.lease import HEARTBEAT_S, TAKEOVER_S, Leases, steady_s
from runner.errors import StateError, UsageInvalid
from runner.gcsuri import GcsUri


class GcsBlobs:
    """A blob store below one address. Nothing is asked before the first call."""

    def __init__(
        self,
        place: GcsUri,
        *,
        heartbeat_s: float = HEARTBEAT_S,
        takeover_s: float = TAKEOVER_S,
        patience_s: float = PATIENCE_S,
        clock: Callable[[], float] = steady_s,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """`heartbeat_s`, `takeover_s`, `clock` and `sleep` are of the locks; see `Leases`."""
        self.place = place
        self._objects = GcsObjects(place.bucket, patience_s)
        self._leases = Leases(
            _Cells(self),
            f"{place}/",
            heartbeat_s=heartbeat_s,
            takeover_s=takeover_s,
            clock=clock,
            sleep=sleep,
        )

    # ------------------------------------------------------------ reading

    def read(self, name: str) -> tuple[bytes, str]:
        """See `Blobs.read`."""
        with self._asking("read", name) as blob:
            data: bytes = blob.download_as_bytes(retry=self._objects.retry, timeout=TIMEOUT_S)
            return data, str(blob.generation)

    def read_range(self, name: str, offset: int, length: int) -> bytes:
        """See `Blobs.read_range`."""
        if length < 1:
            self.size(name)
            return b""
        with self._asking("read", name) as blob:
            return self._range(blob, offset, length)

    def open(self, name: str) -> BinaryIO:
        """See `Blobs.open`; a blob that is replaced meanwhile is an error of the stream."""
        with self._asking("read", name) as blob:
            first = self._range(blob, 0, CHUNK_BYTES)
        if len(first) < CHUNK_BYTES:
            return io.BytesIO(first)
        return io.BufferedReader(_Rest(self, name, blob, first), CHUNK_BYTES)

    def size(self, name: str) -> int:
        """See `Blobs.size`."""
        return int(self._look(name).size)

    def exists(self, name: str) -> bool:
        """See `Blobs.exists`."""
        try:
            self._look(name)
        except BlobMissing:
            return False
        return True

    def modified_s(self, name: str) -> float:
        """See `Blobs.modified_s`: by the service's clock."""
        return float(self._look(name).updated.timestamp())

    def list(self, prefix: str) -> Iterator[str]:
        """See `Blobs.list`."""
        below = f"{self.place.name}/"
        with self._asking("list", prefix or ".", checked=False):
            listing = self._objects.client.list_blobs(
                self.place.bucket,
                prefix=below + prefix,
                fields="items(name),nextPageToken",
                retry=self._objects.retry,
                timeout=TIMEOUT_S,
            )
            names = sorted(blob.name.removeprefix(below) for blob in listing)
        # Consoles make empty objects that stand for folders.
        yield from (name for name in names if _is_name(name))

    def range_of(self, name: str, blob: Any, offset: int, length: int) -> bytes:
        """A range of the very generation that `blob` was read from."""
        with self._asking("read", name):
            return self._range(blob, offset, length, if_generation_match=blob.generation)

    # ------------------------------------------------------------ writing

    def create(self, name: str, data: bytes) -> str:
        """See `Blobs.create`."""
        check_name(name)
        self._leases.check()
        return self.put_new(name, io.BytesIO(data), len(data))

    def create_from(self, name: str, chunks: Iterable[bytes]) -> str:
        """See `Blobs.create_from`: what does not fit into one request waits in a temporary file."""
        check_name(name)
        with tempfile.SpooledTemporaryFile(CHUNK_BYTES, prefix="gbrun-") as spool:
            for chunk in chunks:
                try:
                    spool.write(chunk)
                except OSError as error:
                    raise StateError(
                        f"cannot write {self._uri(name)}: {error.strerror} in {tempfile.gettempdir()}",
                        hint="free some space, or set TMPDIR to a folder that has some",
                    ) from error
            byte_count = spool.tell()
            spool.seek(0)
            self._leases.check()
            return self.put_new(name, spool, byte_count)

    def replace(self, name: str, data: bytes, version: str) -> str:
        """See `Blobs.replace`."""
        check_name(name)
        self._leases.check()
        return self.put_over(name, data, version)

    def delete(self, name: str) -> None:
        """See `Blobs.delete`."""
        check_name(name)
        self._leases.check()
        try:
            with self._asking("delete", name) as blob:
                blob.delete(retry=self._objects.retry, timeout=TIMEOUT_S)
        except BlobMissing:
            return

    def unfinished(self) -> Iterator[Unfinished]:
        """See `Blobs.unfinished`: the service shows no upload that is not complete, and ends it itself."""
        return iter(())

    def delete_unfinished(self, name: str) -> None:
        """See `Blobs.delete_unfinished`."""
        raise UsageInvalid(f"{name!r} is no unfinished write")

    def put_new(self, name: str, source: Any, byte_count: int) -> str:
        """Create from a file, whatever the locks say. Raises BlobExists."""
        version = self._put(name, source, byte_count, 0)
        if version is None:
            raise BlobExists(f"{self._uri(name)} exists already")
        return version

    def put_over(self, name: str, data: bytes, version: str) -> str:
        """Replace a version, whatever the locks say. Raises BlobChanged."""
        generation = int(version) if version.isdecimal() else 0
        # No object has generation 0, and as a precondition it would mean that there must be none.
        new = self._put(name, io.BytesIO(data), len(data), generation) if generation else None
        if new is None:
            raise BlobChanged(f"{self._uri(name)} was changed or removed by another run")
        return new

    # ------------------------------------------------------------ locks

    def lock(self, name: str, holder: bytes, timeout_s: float) -> AbstractContextManager[None]:
        """See `Blobs.lock`."""
        return self._leases.hold(check_name(name), holder, timeout_s)

    def read_lock(self, name: str) -> bytes | None:
        """See `Blobs.read_lock`; a holder that was killed is named until it is passed over or freed."""
        return self._leases.holder(check_name(name))

    def free_lock(self, name: str, holder: bytes) -> bool:
        """See `Blobs.free_lock`."""
        return self._leases.free(check_name(name), holder)

    # ------------------------------------------------------------ the service

    def _look(self, name: str) -> Any:
        """The object's metadata. Raises BlobMissing."""
        with self._asking("read", name):
            return self._objects.look(self._key(name))

    def _range(self, blob: Any, offset: int, length: int, **options: Any) -> bytes:
        from google.api_core.exceptions import RequestRangeNotSatisfiable

        try:
            data: bytes = blob.download_as_bytes(
                start=offset,
                end=offset + length - 1,
                # The service knows the checksum of the whole only.
                checksum=None,
                # In one piece, so that what comes is of one generation.
                single_shot_download=True,
                retry=self._objects.retry,
                timeout=TIMEOUT_S,
                **options,
            )
        except RequestRangeNotSatisfiable:
            return b""
        return data

    def _put(self, name: str, source: Any, byte_count: int, generation: int) -> str | None:
        """Write where the object has this generation (0: none); the new one, None where it has not."""
        kind = "application/gzip" if name.endswith(".gz") else "application/json"
        with self._asking("write", name, missing=False):
            return self._objects.put(self._key(name), source, byte_count, generation, kind, {})

    def _key(self, name: str) -> str:
        return f"{self.place.name}/{name}"

    def _uri(self, name: str) -> str:
        return f"{self.place}/{name}"

    @contextmanager
    def _asking(self, verb: str, name: str, *, missing: bool = True, checked: bool = True) -> Iterator[Any]:
        """The object, for calls whose errors become errors of the state."""
        if checked:
            check_name(name)
        try:
            yield self._objects.blob(self._key(name))
        except (StateError, UsageInvalid):
            raise
        except Exception as error:
            found = gcserrors.translated(
                error, f"cannot {verb} {self._uri(name)}", self.place.bucket, missing=missing
            )
            if found is None:
                raise
            if isinstance(found, BlobMissing):
                raise BlobMissing(f"{self._uri(name)} is missing") from None
            raise found from error


class _Cells:
    """What the locks read and write, without a look at the locks."""

    def __init__(self, blobs: GcsBlobs) -> None:
        self._blobs = blobs

    def read(self, name: str) -> tuple[bytes, str]:
        """See `Blobs.read`."""
        return self._blobs.read(name)

    def create(self, name: str, data: bytes) -> str:
        """See `Blobs.create`."""
        return self._blobs.put_new(name, io.BytesIO(data), len(data))

    def replace(self, name: str, data: bytes, version: str) -> str:
        """See `Blobs.replace`."""
        return self._blobs.put_over(name, data, version)


class _Rest(io.RawIOBase):
    """A blob larger than one range, read range by range."""

    def __init__(self, blobs: GcsBlobs, name: str, blob: Any, first: bytes) -> None:
        self._blobs = blobs
        self._name = name
        self._blob = blob
        self._at = 0
        self._ready: bytes = first

    def readable(self) -> bool:
        """Always."""
        return True

    def readinto(self, buffer: Any) -> int:
        """See `io.RawIOBase.readinto`."""
        if not self._ready:
            self._ready = self._blobs.range_of(self._name, self._blob, self._at, CHUNK_BYTES)
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        self._at += count
        return count


def _is_name(name: str) -> bool:
    try:
        check_name(name)
    except UsageInvalid:
        return False
    return True
