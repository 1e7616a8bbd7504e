"""Files found by a glob, as text rows.

Hidden files and folders, the state and the destinations are never inputs.
"""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from runner import globs
from runner.errors import InputUnreadable
from runner.model import BadRow, Entry, FilesSource, Row, Spec

_READ_BYTES = 1 << 16
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


def entries(spec: Spec, index: int, source: FilesSource) -> Iterator[Entry]:
    """The files of one source, sorted by key (by code point), each with its signature.

    Raises:
        InputUnreadable: a folder cannot be listed, or a link leads out of the spec's folder.
    """
    folder = str(spec.folder)
    literal, rest = globs.split(source.glob)
    start = os.path.normpath(os.path.join(folder, literal)) if literal else folder
    base = os.path.relpath(start, folder).replace(os.sep, "/")
    prefix = "" if base == "." else f"{base}/"
    wanted = globs.compile_glob(rest)
    excluded = [globs.compile_glob(pattern) for pattern in source.exclude]
    never = {os.path.realpath(spec.state)}
    never.update(os.path.realpath(os.path.join(folder, d.path)) for d in spec.destinations)
    recursive = "**" in rest.split("/")
    depth = None if recursive else rest.count("/")
    inside = None if spec.allow_outside else os.path.realpath(folder)
    if not os.path.isdir(start):
        return
    for relative, found in _walk(start, "", depth, inside, frozenset({os.path.realpath(start)}), never):
        if not wanted.fullmatch(relative):
            continue
        key = prefix + relative
        if not key.isascii():
            key = unicodedata.normalize("NFC", key)
        if excluded and any(pattern.fullmatch(key) for pattern in excluded):
            continue
        stat = found.stat()
        signature = (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)
        yield Entry(key, index, found.path, signature)


def read(source: FilesSource, entry: Entry) -> Row | BadRow:
    """The file as a row: decoded, a byte order mark dropped, line ends as they are."""
    try:
        handle = os.open(entry.path, os.O_RDONLY)
    except OSError as error:
        return BadRow(entry.key, "unreadable", f"cannot be read: {error.strerror}")
    try:
        before = os.fstat(handle)
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


def _walk(
    folder: str,
    prefix: str,
    depth: int | None,
    inside: str | None,
    ancestors: frozenset[str],
    never: set[str],
) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Files below a folder as (relative name, entry), in the order of their full names."""
    try:
        with os.scandir(folder) as listing:
            found = [(_sort_name(e), e) for e in listing if not e.name.startswith(".")]
    except OSError as error:
        raise InputUnreadable(f"cannot list {prefix or folder}: {error.strerror}") from error
    found.sort(key=lambda pair: pair[0])
    for name, entry in found:
        linked = entry.is_symlink()
        if linked and inside is not None and not _is_inside(os.path.realpath(entry.path), inside):
            raise InputUnreadable(
                f"{prefix}{entry.name} is a link that leaves the spec's folder",
                hint="set `allow_outside: true` to follow it, or exclude it",
            )
        if name.endswith("/"):
            real = os.path.realpath(entry.path) if linked else entry.path
            if depth == 0 or real in ancestors or real in never:
                continue
            yield from _walk(
                entry.path,
                prefix + name,
                None if depth is None else depth - 1,
                inside,
                ancestors | {os.path.realpath(real)},
                never,
            )
        elif entry.is_file() and entry.path not in never:
            yield prefix + entry.name, entry


def _sort_name(entry: os.DirEntry[str]) -> str:
    # A folder sorts as `name/`, as in git: then a walk yields whole paths in sorted order.
    name = entry.name if entry.name.isascii() else unicodedata.normalize("NFC", entry.name)
    return name + "/" if entry.is_dir() else name


def _is_inside(path: str, folder: str) -> bool:
    return Path(path).is_relative_to(folder)
