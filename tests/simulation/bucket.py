"""Cloud Storage of a life: objects with generations, and the library's client as one process has it."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO

from google.api_core import exceptions

from .process import Violation


@dataclass(frozen=True, slots=True)
class Stored:
    """One generation of an object."""

    data: bytes
    generation: int
    owner: str
    """The job that wrote it, `us` for what was uploaded, `others` for what was there before us."""


class Bucket:
    """All objects, by name; outlives the processes."""

    def __init__(self) -> None:
        self.objects: dict[str, Stored] = {}
        self._generations = 0

    def write(self, name: str, data: bytes, owner: str) -> None:
        """Put an object there, in the place of what was there."""
        self._generations += 1
        self.objects[name] = Stored(data, self._generations, owner)


@dataclass(frozen=True, slots=True)
class Wire:
    """What stands between the library and the bucket."""

    bucket: Bucket
    before: Callable[[str, bool], None]
    """(call, whether it changes anything): may raise what the library would."""
    after: Callable[[str], None]
    deleting: Callable[[Stored], None]
    """An object is about to go."""
    downloading: Callable[[Stored, int, int], bytes]
    """What arrives of the bytes of an object from one place to another; may raise what the library would."""


class Client:
    """The part of `google.cloud.storage.Client` that the staging folder takes."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    def bucket(self, name: str) -> Client:
        """There is one bucket."""
        return self

    def blob(self, name: str, generation: int | None = None) -> Blob:
        """An object's handle."""
        return Blob(self._wire, name, generation)

    def list_blobs(
        self, bucket: str, *, prefix: str, fields: str, retry: None, timeout: object
    ) -> Iterator[Blob]:
        """The objects of a prefix, by name; strongly consistent, as the service is."""
        self._wire.before("list", False)
        found = []
        for name, stored in sorted(self._wire.bucket.objects.items()):
            if name.startswith(prefix):
                found.append(Blob(self._wire, name, stored.generation))
                found[-1].size = len(stored.data)
        return iter(found)


class Blob:
    """The part of `google.cloud.storage.Blob` that the staging folder takes."""

    def __init__(self, wire: Wire, name: str, generation: int | None) -> None:
        self._wire = wire
        self.name = name
        self.generation = generation
        self.chunk_size = 0
        self.size = 0
        self.md5_hash = ""

    def upload_from_file(
        self,
        stream: IO[bytes],
        *,
        size: int,
        content_type: str,
        retry: None,
        timeout: object,
        if_generation_match: int | None = None,
    ) -> None:
        """Put an object there; 412 where there is one and there is to be none."""
        data = stream.read()
        self._wire.before("put", True)
        there = self._wire.bucket.objects.get(self.name)
        if there is not None and if_generation_match == 0:
            raise exceptions.PreconditionFailed("At least one of the pre-conditions did not hold")
        if there is not None and there.owner == "others":
            raise Violation("what is not ours stays as it is", f"{self.name} is overwritten")
        self._wire.bucket.write(self.name, data, "us")
        self._wire.after("put")

    def reload(self, *, retry: None, timeout: object) -> None:
        """Take in size and digest."""
        self._wire.before("reload", False)
        data = self._there().data
        self.size = len(data)
        self.md5_hash = base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()

    def exists(self, *, retry: None, timeout: object) -> bool:
        """Whether it is there."""
        self._wire.before("exists", False)
        return self.name in self._wire.bucket.objects

    def delete(self, *, retry: None, timeout: object) -> None:
        """Delete it; 404 where it is gone."""
        self._wire.before("delete", True)
        there = self._there()
        if there.owner == "others":
            raise Violation("what is not ours stays as it is", f"{self.name} is deleted")
        self._wire.deleting(there)
        del self._wire.bucket.objects[self.name]
        self._wire.after("delete")

    def download_as_bytes(
        self, *, start: int, end: int, checksum: None, retry: None, timeout: object
    ) -> bytes:
        """A range of the generation that was asked for; 404 where another is there now."""
        self._wire.before("download", False)
        there = self._there()
        if self.generation not in (None, there.generation):
            raise exceptions.NotFound(f"No such object: {self.name}#{self.generation}")
        return self._wire.downloading(there, start, end + 1)

    def _there(self) -> Stored:
        there = self._wire.bucket.objects.get(self.name)
        if there is None:
            raise exceptions.NotFound(f"No such object: {self.name}")
        return there
