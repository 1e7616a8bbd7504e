"""The contract of a blob store: bytes at a name, each with a version.

A name is relative, `/`-separated and the same in every implementation; no part of it may be
empty or begin with a dot, which keeps `..` out and leaves dot files to the implementation.
A version is opaque to callers: equal versions of a name mean equal bytes. Nothing is visible under a
name before all of its bytes are. `tests/contract/test_blobs.py` runs one suite over all of them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from typing import BinaryIO, Protocol

import msgspec

from runner.errors import StateError, StateLocked, UsageInvalid


class BlobMissing(StateError):
    """There is nothing under this name."""


class BlobExists(StateError):
    """A create-if-absent found something under this name; it was left alone."""


class BlobChanged(StateError):
    """A replace-if-unchanged found other bytes, or none, under this name; they were left alone."""


class Unfinished(msgspec.Struct, frozen=True):
    """A write that was begun and has no name of its own yet."""

    name: str
    """Where its bytes lie; no name of a blob."""
    byte_count: int
    modified_s: float


class Blobs(Protocol):
    """What the store needs of a place that keeps bytes.

    Every method may raise `StateError` where the place cannot be read or written, and
    `UsageInvalid` for a name that is not one.
    """

    def read(self, name: str) -> tuple[bytes, str]:
        """The bytes and their version. Raises `BlobMissing`."""
        ...

    def read_range(self, name: str, offset: int, length: int) -> bytes:
        """At most `length` bytes from byte `offset`, fewer at the end. Raises `BlobMissing`."""
        ...

    def open(self, name: str) -> BinaryIO:
        """The bytes as a stream that the caller closes. Raises `BlobMissing`."""
        ...

    def size(self, name: str) -> int:
        """The number of bytes. Raises `BlobMissing`."""
        ...

    def exists(self, name: str) -> bool:
        """Whether there is something under this name."""
        ...

    def modified_s(self, name: str) -> float:
        """When it was written, in seconds since the epoch. Raises `BlobMissing`."""
        ...

    def create(self, name: str, data: bytes) -> str:
        """Create and return the version; of racing callers one wins. Raises `BlobExists`."""
        ...

    def create_from(self, name: str, chunks: Iterable[bytes]) -> str:
        """Create from chunks, holding one at a time, and return the version.

        Nothing is visible, and nothing stays behind, where the iterator raises; what it raises
        is passed on. Raises `BlobExists`, possibly only after the last chunk.
        """
        ...

    def replace(self, name: str, data: bytes, version: str) -> str:
        """Replace what still has `version` and return the new version. Raises `BlobChanged`."""
        ...

    def list(self, prefix: str) -> Iterator[str]:
        """Names that begin with this string, sorted; `""` gives all.

        Unfinished writes are never among them; a name used for a lock may be.
        """
        ...

    def delete(self, name: str) -> None:
        """Remove what is under this name; nothing there is no error."""
        ...

    def unfinished(self) -> Iterator[Unfinished]:
        """Writes that were begun: those under way, and what a killed process left of its own."""
        ...

    def delete_unfinished(self, name: str) -> None:
        """Remove an unfinished write by the name that `unfinished` gave it."""
        ...

    def lock(self, name: str, holder: bytes, timeout_s: float) -> AbstractContextManager[None]:
        """Hold a lock, exclusive across processes, for the length of a `with` block.

        `holder` is JSON that says who holds it, for others to show. The lock is freed when the
        block ends and when the process dies, where the place can tell; else once it has shown no
        life for some minutes. `timeout_s` 0 tries once. A holder that was passed over cannot write
        any more: `create`, `replace` and `delete` raise StateChanged until the block ends.

        Raises:
            StateLocked: it was not free within `timeout_s` seconds; names the holder.
        """
        ...

    def read_lock(self, name: str) -> bytes | None:
        """What the present holder of a lock says about itself, None where nobody holds it."""
        ...

    def free_lock(self, name: str, holder: bytes) -> bool:
        """Free a lock whose holder is gone, where that is what `read_lock` still says of it.

        False where it says something else, and where a lock ends with its process anyway.
        """
        ...


def check_name(name: str) -> str:
    """The name, where it is one. Raises `UsageInvalid`."""
    if "\0" in name or "\\" in name or any(not part or part.startswith(".") for part in name.split("/")):
        raise UsageInvalid(f"{name!r} cannot name a part of the state")
    return name


def version_of(data: bytes) -> str:
    """The version of these bytes: their SHA-256, hex."""
    return hashlib.sha256(data).hexdigest()


def locked(name: str, holder: bytes | None) -> StateLocked:
    """The error for a lock that is not free, in the holder's own words where they are readable."""
    return StateLocked(
        f"{name} is locked by {holder_words(holder)}",
        hint="wait for it to end, or give it time with --lock-timeout",
    )


def holder_words(holder: bytes | None) -> str:
    """What a holder says of itself in one line, `another run` where that cannot be read."""
    try:
        words = json.loads(holder or b"")
    except ValueError:
        words = None
    if not isinstance(words, dict):
        return "another run"
    said = [f"{key} {words[key]}" for key in ("operation", "pid", "host", "since") if words.get(key)]
    return ", ".join(said) or "another run"
