"""Files found by a glob, as text rows.

Hidden files and folders, the state and the destinations are never inputs.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import unicodedata
from collections.abc import Callable, Iterator
from operator import attrgetter, itemgetter
from pathlib import Path

import msgspec

from runner import globs
from runner.errors import InputUnreadable
from runner.model import BadRow, Batch, Entry, Row
from runner.specmodel import FilesSource, Spec

_READ_BYTES = 1 << 16
_BATCH = 250
"""Files at once: few enough that what is kept of them stays in the processor's cache."""
_MAX_DEPTH = 200
"""Folders inside folders, far below what Python's own stack takes, and what it may hold open."""
_looks = attrgetter("st_size", "st_mtime_ns", "st_ctime_ns", "st_ino")
"""A signature of what a stat gives."""
MIME_TYPES = {
    ".csv": "text/csv",
    ".htm": "text/html",
    ".html": "text/html",
    ".json": "application/json",
    ".jsonl": "application/jsonl",
    ".md": "text/markdown",
    ".py": "text/x-python",
    ".rst": "text/x-rst",
    ".rtf": "text/rtf",
    ".tsv": "text/tab-separated-values",
    ".txt": "text/plain",
    ".xml": "text/xml",
    ".yaml": "application/yaml",
    ".yml": "application/yaml",
}
"""Shipped, because the machine's own table differs from machine to machine."""


def batches(spec: Spec, index: int, source: FilesSource) -> Iterator[Batch]:
    """The files of one source, sorted by key (by code point), each with its signature.

    Raises:
        InputUnreadable: a folder cannot be listed, a file vanished meanwhile, a name is no text, or a
            link leads out of the spec's folder.
    """
    folder = str(spec.folder)
    literal, rest = globs.split(source.glob)
    start = os.path.normpath(os.path.join(folder, literal)) if literal else folder
    base = os.path.relpath(start, folder).replace(os.sep, "/")
    prefix = "" if base == "." else f"{base}/"
    never = _Never(spec)
    hidden = any(part.startswith(".") and part != ".." for part in prefix.split("/"))
    if hidden or not os.path.isdir(start) or never.covers(start):
        return
    walk = _Walk(
        source=index,
        wanted=globs.test(rest),
        excluded=[globs.compile_glob(pattern) for pattern in source.exclude],
        closed=[
            globs.compile_glob(head)
            for pattern in source.exclude
            for head in (pattern.removesuffix("/*").removesuffix("/**"),)
            if f"{head}/**" == pattern.removesuffix("/*")
        ],
        prefix=prefix,
        inside=None if spec.allow_outside else os.path.realpath(folder),
        never=never,
    )
    depth = None if "**" in rest.split("/") else rest.count("/")
    yield from walk.batches(start, "", depth, frozenset({os.path.realpath(start)}))


def read(source: FilesSource, entry: Entry) -> Row | BadRow:
    """The file as a row: decoded, a byte order mark dropped, line ends as they are."""
    try:
        # A named pipe would else wait for a writer.
        handle = os.open(entry.path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError as error:
        link = f"is a link to {os.readlink(entry.path)!r} that " if os.path.islink(entry.path) else ""
        return BadRow(entry.key, "unreadable", f"{link}cannot be read: {error.strerror}")
    try:
        before = os.fstat(handle)
        if not stat.S_ISREG(before.st_mode):
            return BadRow(entry.key, "unreadable", "is not a regular file")
        # One byte more than there should be, so that one call also shows that nothing follows.
        chunks = [os.read(handle, min(before.st_size + 1, _READ_BYTES))]
        while len(chunks[-1]) == _READ_BYTES or (before.st_size >= _READ_BYTES and chunks[-1]):
            chunks.append(os.read(handle, _READ_BYTES))
        after = os.fstat(handle)
    except OSError as error:
        return BadRow(entry.key, "unreadable", f"cannot be read: {error.strerror}")
    finally:
        os.close(handle)
    data = b"".join(chunks)
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns) or len(
        data
    ) != after.st_size:
        return BadRow(entry.key, "changed", "was changed while it was being read")
    try:
        text = data.decode(source.encoding)
    except UnicodeDecodeError as error:
        found = data[error.start : error.start + 1].hex()
        return BadRow(
            entry.key, "encoding", f"is not {source.encoding}: byte 0x{found} at offset {error.start:,}"
        )
    if "\0" in text:
        return BadRow(
            entry.key, "nul_byte", f"holds a NUL character at offset {text.index(chr(0)):,}: not text"
        )
    name = entry.key.rsplit("/", 1)[-1]
    stem, suffix = os.path.splitext(name)
    fields = {
        "text": text.removeprefix("\ufeff"),
        "path": entry.key,
        "name": name,
        "stem": stem,
        "suffix": suffix,
        "mime_type": MIME_TYPES.get(suffix.lower(), "text/plain"),
    }
    return Row(entry.key, fields, hashlib.sha256(data).hexdigest())


class _Never:
    """Paths that are never inputs: the state, the destinations and the files beside them."""

    def __init__(self, spec: Spec) -> None:
        self._state = os.path.realpath(spec.state)
        self._paths = {self._state}
        for destination in spec.destinations:
            if not destination.is_file:
                continue
            path = os.path.realpath(os.path.join(spec.folder, destination.path))
            stem, _ = os.path.splitext(path)
            self._paths |= {path, f"{stem}.errors.jsonl"}
        self.names = {os.path.basename(path) for path in self._paths}
        """Last parts of the paths: real paths are asked for only where a name fits."""

    def covers(self, folder: str) -> bool:
        """Whether a folder is the state or lies inside of it."""
        return Path(os.path.realpath(folder)).is_relative_to(self._state)

    def holds(self, path: str) -> bool:
        """Whether a path, by whatever links it was reached, is one of them."""
        return os.path.basename(path) in self.names and os.path.realpath(path) in self._paths


class _Walk(msgspec.Struct, frozen=True, kw_only=True):
    source: int
    wanted: Callable[[str], object]
    excluded: list[re.Pattern[str]]
    closed: list[re.Pattern[str]]
    """Folders below which everything is excluded: they are not even looked into."""
    prefix: str
    inside: str | None
    """Folder that links must not leave, None where they may."""
    never: _Never

    def batches(
        self, folder: str, below: str, depth: int | None, ancestors: frozenset[str]
    ) -> Iterator[Batch]:
        """The files below a folder, in the order of their keys."""
        # What is asked for beside an open folder, by name alone, is found without a walk from the root.
        handle = self._open(folder, below)
        try:
            listing, odd = self._listing(handle, below)
            cuts = [at for at, (name, _) in enumerate(listing) if name in odd] if odd else []
            first = 0
            for cut in (*cuts, len(listing)):
                for at in range(first, cut, _BATCH):
                    yield self._plain(folder, below, listing[at : min(at + _BATCH, cut)])
                first = cut + 1
                if cut == len(listing):
                    continue
                name, entry = listing[cut]
                path = f"{folder}/{entry.name}"
                if name[-1] == "/":
                    yield from self._deeper(below + name, path, entry, depth, ancestors)
                else:
                    yield from self._odd(folder, below + name, path, entry)
        finally:
            os.close(handle)

    def _plain(self, folder: str, below: str, found: list[tuple[str, os.DirEntry[str]]]) -> Batch:
        """Regular files of a folder, one after the other. What is done here is done per file."""
        wanted, head = self.wanted, self.prefix + below
        found = [(name, entry) for name, entry in found if wanted(below + name)]
        if self.excluded:
            found = [(name, entry) for name, entry in found if not self._excludes(head + name)]
        names = [entry.name for _, entry in found]
        if not self.never.names.isdisjoint(names):
            found = [(name, entry) for name, entry in found if not self.never.holds(f"{folder}/{entry.name}")]
            names = [entry.name for _, entry in found]
        keys = [head + name for name, _ in found]
        _check_names(keys)
        signatures: list[tuple[int, int, int, int] | None]
        try:
            signatures = [_looks(entry.stat()) for _, entry in found]
        except OSError:
            signatures = [_signature(entry) for _, entry in found]
        return Batch(source=self.source, folder=folder, names=names, keys=keys, signatures=signatures)

    def _odd(self, folder: str, relative: str, path: str, entry: os.DirEntry[str]) -> Iterator[Batch]:
        """A link or a pipe, where it is an input."""
        key = self.prefix + relative
        if not self.wanted(relative) or self._excludes(key):
            return
        _check_names([key])
        self._check_link(relative, path, entry)
        if self.never.holds(path):
            return
        signature = _signature(entry)
        if signature is None or stat.S_ISREG(entry.stat().st_mode):
            yield Batch(
                source=self.source, folder=folder, names=[entry.name], keys=[key], signatures=[signature]
            )

    def _excludes(self, key: str) -> bool:
        return any(pattern.fullmatch(key) for pattern in self.excluded)

    def _deeper(
        self, relative: str, path: str, entry: os.DirEntry[str], depth: int | None, ancestors: frozenset[str]
    ) -> Iterator[Batch]:
        if depth == 0:
            return
        real = os.path.realpath(path) if entry.is_symlink() else path
        if real in ancestors or self.never.holds(path):
            return
        folder = self.prefix + relative[:-1]
        if any(pattern.fullmatch(folder) for pattern in self.closed):
            return
        _check_names([folder])
        if len(ancestors) > _MAX_DEPTH:
            raise InputUnreadable(
                f"{folder[:80]}... lies more than {_MAX_DEPTH} folders deep",
                hint="move it up, or exclude it with a pattern that ends in /**",
            )
        self._check_link(relative, path, entry)
        below = None if depth is None else depth - 1
        yield from self.batches(path, relative, below, ancestors | {os.path.realpath(real)})

    def _open(self, folder: str, below: str) -> int:
        try:
            return os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            raise self._unlisted(below, error) from error

    def _listing(self, handle: int, below: str) -> tuple[list[tuple[str, os.DirEntry[str]]], set[str]]:
        """What an open folder holds, sorted by name, and the names of what is no regular file."""
        odd: set[str] = set()
        found: list[tuple[str, os.DirEntry[str]]] = []
        try:
            with os.scandir(handle) as listing:
                for entry in listing:
                    name = entry.name
                    if name[0] == ".":
                        continue
                    if not name.isascii():
                        name = unicodedata.normalize("NFC", name)
                    if not _is_plain(entry):
                        # A folder as `name/`, as in git, so that a walk yields whole paths in order.
                        name = name + "/" if _is_folder(entry) else name
                        odd.add(name)
                    found.append((name, entry))
        except OSError as error:
            raise self._unlisted(below, error) from error
        found.sort(key=itemgetter(0))
        return found, odd

    def _unlisted(self, below: str, error: OSError) -> InputUnreadable:
        return InputUnreadable(
            f"cannot list {(self.prefix + below).rstrip('/') or '.'}: {error.strerror}",
            hint="mend it, or exclude it with a pattern that ends in /**",
        )

    def _check_link(self, relative: str, path: str, entry: os.DirEntry[str]) -> None:
        if self.inside is None or not entry.is_symlink():
            return
        if not Path(os.path.realpath(path)).is_relative_to(self.inside):
            raise InputUnreadable(
                f"{self.prefix}{relative.rstrip('/')} is a link that leaves the spec's folder",
                hint="set `allow_outside: true` to follow it, or exclude it (a folder with /** at the end)",
            )


def _signature(entry: os.DirEntry[str]) -> tuple[int, int, int, int] | None:
    """How a file looks; None for a link to nothing, or a file that has just gone: reading it says so, as of
    any row."""
    try:
        return _looks(entry.stat())
    except OSError:
        return None


def _check_names(keys: list[str]) -> None:
    try:
        "".join(keys).encode()
    except UnicodeEncodeError:
        for key in keys:
            _check_name(key)


def _check_name(key: str) -> None:
    try:
        key.encode()
    except UnicodeEncodeError as error:
        raise InputUnreadable(
            f"the file name {os.fsencode(key)!r} is not UTF-8", hint="rename it, or exclude it"
        ) from error


def _is_plain(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file(follow_symlinks=False)
    except OSError:
        return False


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        # A link that leads to itself.
        return False
