"""Records as an object of Cloud Storage: a file that is written here and uploaded as a whole.

The object's metadata says whose it is and what it holds:

    gbrun-lineage   the state that owns the object
    gbrun-sha256    digest of its bytes
    gbrun-crc32c    the checksum that the service knows the same bytes by

An object that somebody uploads in its place is another generation, which has none of these; tools that keep
the metadata of what they replace are found out by the checksum. The bytes are never read back.

Source: google-cloud-storage 3.17.1; https://cloud.google.com/storage/docs/metadata, read 2026-11-21. Tried
against emulators only, never against the service.
"""

from __future__ import annotations

import base64
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from runner import gcsuri
from runner.blobs import BlobMissing, gcserrors
from runner.blobs.gcsobjects import CHUNK_BYTES, PATIENCE_S, TIMEOUT_S, GcsObjects
from runner.errors import GbrunError
from runner.gcsuri import GcsUri
from runner.model import ALTERED, Owner
from runner.outputs.atomicfile import AtomicFile

LINEAGE, DIGEST, CHECKSUM = "gbrun-lineage", "gbrun-sha256", "gbrun-crc32c"
_TYPES = {
    ".jsonl": "application/jsonl",
    ".csv": "text/csv",
    ".parquet": "application/vnd.apache.parquet",
    ".sqlite": "application/vnd.sqlite3",
}


class ObjectFile:
    """An object, written as a file in a temporary folder; see `outputs.Output`."""

    def __init__(self, uri: str, owner: Owner, begin: Callable[[Path], AtomicFile]) -> None:
        """`begin` opens the file whose bytes the object is to have. Raises GbrunError as it does."""
        self._place = gcsuri.parse_object(uri)
        self._uri = uri
        self._owner = owner
        self._suffix = os.path.splitext(uri)[1]
        self._sealed = ALTERED
        self._generation: int | None = None
        """Of the object as `claim` saw it, 0 for none."""
        self._is_there = False
        """Whether that one holds what is sealed."""
        try:
            self._folder = tempfile.TemporaryDirectory(prefix="gbrun-")
        except OSError as error:
            raise GbrunError(
                f"cannot write {uri}: {error.strerror} in {tempfile.gettempdir()}",
                hint="free some space, or set TMPDIR to a folder that has some",
            ) from error
        try:
            self._file = begin(Path(self._folder.name) / f"records{self._suffix}")
        except BaseException:
            self._folder.cleanup()
            raise

    def write(self, record: bytes, meta: bytes = b"") -> None:
        """See `outputs.Output.write`."""
        self._file.write(record, meta)

    def write_all(self, records: Sequence[bytes], metas: Sequence[bytes] = ()) -> None:
        """See `outputs.Output.write_all`."""
        self._file.write_all(records, metas)

    def seal(self) -> tuple[str, int]:
        """See `outputs.Output.seal`: digest and size are those of the file."""
        self._sealed = self._file.seal()
        return self._sealed

    def claim(self) -> None:
        """See `outputs.Output.claim`. What `place` replaces is what is seen here, and nothing else."""
        with _asking(self._place, f"cannot look at {self._uri}") as objects:
            blob = _found(objects, self._place)
        self._generation = 0 if blob is None else int(blob.generation)
        self._is_there = blob is not None and held(blob, self._owner.lineage) == self._sealed
        if blob is not None and not self._owner.may_replace(self._uri, _lineage(blob)):
            raise foreign(self._uri, _lineage(blob))

    def place(self) -> None:
        """Upload the sealed file, unless the object holds just that already.

        Raises GbrunError where Cloud Storage refuses, for an object of another owner, and for one that was
        written or deleted after it was claimed.
        """
        if self._generation is None:
            self.claim()
        if self._is_there:
            return
        assert self._file.temporary is not None
        assert self._generation is not None
        what = f"cannot write {self._uri}"
        with _opened(self._file.temporary, what) as stream, _asking(self._place, what) as objects:
            metadata = {
                LINEAGE: self._owner.lineage,
                DIGEST: self._sealed[0],
                CHECKSUM: _checksum(stream),
            }
            stream.seek(0)
            kind, size = _TYPES[self._suffix], self._sealed[1]
            written = objects.put(self._place.name, stream, size, self._generation, kind, metadata)
        if written is None:
            raise changed(what)

    def remove(self) -> None:
        """Delete the object, where it is the owner's; what is another's stays."""
        what = f"cannot delete {self._uri}"
        with _asking(self._place, what) as objects:
            blob = _found(objects, self._place)
            if blob is None or not self._owner.may_replace(self._uri, _lineage(blob)):
                return
            try:
                # By its name: one that names a generation would also take it out of the bucket's history.
                # A deletion that is repeated because its answer was lost finds nothing.
                objects.blob(self._place.name).delete(
                    if_generation_match=blob.generation, retry=objects.retry, timeout=TIMEOUT_S
                )
            except Exception as error:
                code = gcserrors.status(error)
                if code == 412:
                    raise changed(what) from error
                if code != 404:
                    raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.__exit__(kind, error, trace)
        self._folder.cleanup()


# ---------------------------------------------------------------- looking


def look(uri: str, lineage: str) -> tuple[str, int] | None:
    """Digest and size of what an object holds; None for no object, ALTERED for anything but what a state of
    this lineage put there.

    Raises GbrunError where there is no bucket, or it may not be read.
    """
    blob = _looked_up(uri)
    return None if blob is None else held(blob, lineage)


def owner_of(uri: str) -> str:
    """The lineage that an object belongs to, empty where it has none or is not there. Raises GbrunError."""
    blob = _looked_up(uri)
    return "" if blob is None else _lineage(blob)


def held(blob: Any, lineage: str) -> tuple[str, int]:
    """Digest and size of what an object holds, as far as its metadata is of this content; else ALTERED."""
    said = blob.metadata or {}
    same = said.get(LINEAGE) == lineage and DIGEST in said and said.get(CHECKSUM) == blob.crc32c
    return (str(said[DIGEST]), int(blob.size)) if same else ALTERED


def foreign(uri: str, lineage: str) -> GbrunError:
    """The error for an object that is not this state's."""
    whose = f"its metadata {LINEAGE} is {lineage}" if lineage else f"it has no metadata {LINEAGE}"
    return GbrunError(
        f"{uri} belongs to another owner: {whose}",
        hint="choose another destination, or add --overwrite to take this one over",
    )


def changed(what: str) -> GbrunError:
    """The error for an object that is not any more what it was a moment ago."""
    return GbrunError(
        f"{what}: somebody else wrote or deleted it meanwhile",
        hint="move it away if it is wanted; the next apply replaces it",
    )


def _looked_up(uri: str) -> Any:
    place = gcsuri.parse_object(uri)
    with _asking(place, f"cannot look at {uri}") as objects:
        return _found(objects, place)


def _found(objects: GcsObjects, place: GcsUri) -> Any:
    """The object with its metadata, None for none. Raises the library's errors, also for want of a bucket."""
    try:
        return objects.look(place.name)
    except Exception as error:
        if isinstance(gcserrors.translated(error, "", place.bucket, missing=True), BlobMissing):
            return None
        raise


def _lineage(blob: Any) -> str:
    return str((blob.metadata or {}).get(LINEAGE, ""))


def _opened(path: Path, what: str) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise GbrunError(f"{what}: {error.strerror}: {path}", hint="run the command again") from error


def _checksum(stream: BinaryIO) -> str:
    """CRC32C in Base64, as the service tells it."""
    import google_crc32c

    # The package has no types.
    make: Any = google_crc32c.Checksum
    found = make()
    while chunk := stream.read(CHUNK_BYTES):
        found.update(chunk)
    return base64.b64encode(found.digest()).decode()


@contextmanager
def _asking(place: GcsUri, what: str) -> Iterator[GcsObjects]:
    """The bucket's objects, for calls whose errors become GbrunError with `what` before their words."""
    objects = GcsObjects(place.bucket, PATIENCE_S)
    try:
        yield objects
    except GbrunError:
        raise
    except Exception as error:
        found = gcserrors.translated(
            error,
            what,
            place.bucket,
            missing=False,
            kind=GbrunError,
            elsewhere="choose another destination",
        )
        if found is None:
            raise
        raise found from error
    finally:
        objects.close()
