"""The immutable parts of the state as compressed JSON lines, written and read as streams.

Each part is one or more gzip members with a fixed header, so that the same content always has
the same bytes. Responses are cut into members of about 1 MiB, each starting at a line, so that
one line can be read without the rest.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, BinaryIO

import orjson

from runner.errors import StateUnreadable
from runner.model import Outcome, ResponseRef, Stored

MEMBER_BYTES = 1 << 20
"""Uncompressed size at which a response member is closed; a longer line makes a longer member."""
_READ_BYTES = 1 << 18
_LEVEL = 3
"""Parts are read back soon and often; higher levels cost more time than they save space."""


def compress(lines: Iterable[bytes]) -> Iterator[bytes]:
    """One gzip member holding the lines, each given with its newline."""
    packer = _packer()
    buffer: list[bytes] = []
    size = 0
    for line in lines:
        buffer.append(line)
        size += len(line)
        if size >= _READ_BYTES:
            yield packer.compress(b"".join(buffer))
            buffer, size = [], 0
    yield packer.compress(b"".join(buffer)) + packer.flush()


def read_lines(stream: BinaryIO, name: str) -> Iterator[bytes]:
    """The lines of a part without their newlines; lines end at the byte `\\n` and nowhere else.

    Raises StateUnreadable where the part is damaged or ends too early.
    """
    tail = b""
    for chunk in _decompressed(stream, name):
        head, newline, rest = chunk.rpartition(b"\n")
        if not newline:
            tail += chunk
            continue
        yield from (tail + head).split(b"\n")
        tail = rest
    if tail:
        yield tail


def split_lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Lines of a byte stream without their newlines; a last line may lack its newline."""
    tail: list[bytes] = []
    for chunk in chunks:
        first, *more = chunk.split(b"\n")
        tail.append(first)
        if more:
            yield b"".join(tail)
            yield from more[:-1]
            tail = [more[-1]]
    last = b"".join(tail)
    if last:
        yield last


def pack_responses(
    chunks: Iterable[bytes], part: int, on_line: Callable[[bytes, ResponseRef], None]
) -> Iterator[bytes]:
    """The compressed members of a response stream; `on_line` is told each line and its place."""
    member = 0
    buffer: list[bytes] = []
    size = 0
    for line in split_lines(chunks):
        on_line(line, ResponseRef(part=part, member=member, offset=size, length=len(line)))
        buffer += (line, b"\n")
        size += len(line) + 1
        if size >= MEMBER_BYTES:
            packed = _member(buffer)
            member += len(packed)
            buffer, size = [], 0
            yield packed
    if buffer:
        yield _member(buffer)


def unpack_member(data: bytes, name: str) -> bytes:
    """The uncompressed bytes of the gzip member that `data` starts with."""
    unpacker = zlib.decompressobj(wbits=31)
    try:
        out = unpacker.decompress(data)
    except zlib.error as error:
        raise StateUnreadable(f"{name} is damaged: {error}") from error
    if not unpacker.eof:
        raise StateUnreadable(f"{name} ends too early")
    return out


def members(stream: BinaryIO, name: str) -> Iterator[tuple[int, bytes]]:
    """Each member of a part as (byte offset in the file, uncompressed bytes), one at a time."""
    offset = 0
    data = b""
    while True:
        unpacker = zlib.decompressobj(wbits=31)
        out: list[bytes] = []
        used = 0
        while not unpacker.eof:
            data = data or stream.read(_READ_BYTES)
            if not data:
                if used:
                    raise StateUnreadable(f"{name} ends too early")
                return
            try:
                out.append(unpacker.decompress(data))
            except zlib.error as error:
                raise StateUnreadable(f"{name} is damaged: {error}") from error
            used += len(data) - len(unpacker.unused_data)
            data = unpacker.unused_data
        yield offset, b"".join(out)
        offset += used


def dump_outcome(stored: Stored) -> bytes:
    """One line of an outcomes part."""
    body: dict[str, Any] = {
        "id": stored.request_id,
        "outcome": stored.outcome,
        "attempt": stored.token,
        "jobs": stored.jobs,
    }
    if stored.ref is not None:
        ref = stored.ref
        body["ref"] = [ref.part, ref.member, ref.offset, ref.length]
    for name in ("code", "message", "usage", "model_version", "finish_reason", "accepted"):
        value = getattr(stored, name)
        if value:
            body[name] = value
    try:
        return orjson.dumps(body) + b"\n"
    except orjson.JSONEncodeError:
        # The service's words may hold half a surrogate pair, which is no text.
        words = {"code": stored.code, "message": stored.message, "model_version": stored.model_version}
        clean = {key: value.encode("utf-8", "replace").decode() for key, value in words.items() if value}
        return orjson.dumps({**body, **clean}) + b"\n"


def load_outcome(line: bytes) -> Stored:
    """The inverse of dump_outcome."""
    body = orjson.loads(line)
    ref = body.get("ref")
    return Stored(
        request_id=body["id"],
        outcome=Outcome(body["outcome"]),
        token=body["attempt"],
        jobs=body["jobs"],
        code=body.get("code", ""),
        message=body.get("message", ""),
        ref=ResponseRef(part=ref[0], member=ref[1], offset=ref[2], length=ref[3]) if ref else None,
        usage=body.get("usage", {}),
        model_version=body.get("model_version", ""),
        finish_reason=body.get("finish_reason", ""),
        accepted=body.get("accepted", False),
    )


def _packer() -> zlib._Compress:
    # wbits 31 writes a gzip header with no time and no file name.
    return zlib.compressobj(_LEVEL, wbits=31)


def _member(buffer: list[bytes]) -> bytes:
    packer = _packer()
    return packer.compress(b"".join(buffer)) + packer.flush()


def _decompressed(stream: BinaryIO, name: str) -> Iterator[bytes]:
    unpacker = zlib.decompressobj(wbits=31)
    data = b""
    while True:
        data = data or stream.read(_READ_BYTES)
        if not data:
            break
        if unpacker.eof:
            unpacker = zlib.decompressobj(wbits=31)
        try:
            out = unpacker.decompress(data)
        except zlib.error as error:
            raise StateUnreadable(f"{name} is damaged: {error}") from error
        data = unpacker.unused_data
        if out:
            yield out
    if not unpacker.eof:
        raise StateUnreadable(f"{name} ends too early")
