"""The immutable parts of the state as compressed JSON lines, written and read as streams.

Each part is one or more gzip members with a fixed header, no time and no name: one version of the library
gives the same bytes for the same content, and what parts are known by never depends on them. Responses
are cut into members of about 1 MiB, each starting at a line, so that one line can be read without the rest.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, Any, BinaryIO

import msgspec
import orjson
from isal import isal_zlib
from msgspec import structs

from runner.behind import Behind
from runner.errors import StateUnreadable
from runner.model import ResponseRef, Stored

if TYPE_CHECKING:
    from concurrent.futures import Future

MEMBER_BYTES = 1 << 20
"""Uncompressed size at which a response member is closed; a longer line makes a longer member."""
_MEMBERS_AHEAD = 2
_READ_BYTES = 1 << 18
_LEVEL = 2
"""Of isal, which packs four times as fast as zlib and unpacks twice as fast, into a fifth more space."""

_DAMAGED: type[Exception] = isal_zlib.error  # type: ignore[assignment]  # the library's stub is wrong


def compress(lines: Iterable[bytes]) -> Iterator[bytes]:
    """One gzip member holding the lines, each given with its newline."""
    packer = _packer()
    buffer: list[bytes] = []
    size = 0
    with closing(Behind[bytes]()) as behind:
        for line in lines:
            buffer.append(line)
            size += len(line)
            if size >= MEMBER_BYTES:
                yield behind.begin(partial(packer.compress, b"".join(buffer))) or b""
                buffer, size = [], 0
        yield behind.end() or b""
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
    """The compressed members of a response stream; `on_line` is told each line and its place.

    Members are compressed by another thread, ahead of the one whose lines are told.
    """
    # Plans read parts and write none.
    from concurrent.futures import ThreadPoolExecutor

    ahead: deque[tuple[list[bytes], Future[bytes]]] = deque()
    at = 0
    with ThreadPoolExecutor(1, thread_name_prefix="gbrun-pack") as packer:
        for lines in _members(split_lines(chunks)):
            whole = b"\n".join([*lines, b""])
            ahead.append((lines, packer.submit(_member, whole)))
            # Long lines are not held beside each other.
            while len(ahead) > (_MEMBERS_AHEAD if len(whole) < 2 * MEMBER_BYTES else 0):
                yield (data := _told(*ahead.popleft(), part, at, on_line))
                at += len(data)
        while ahead:
            yield (data := _told(*ahead.popleft(), part, at, on_line))
            at += len(data)


def _told(
    lines: list[bytes],
    packed: Future[bytes],
    part: int,
    member: int,
    on_line: Callable[[bytes, ResponseRef], None],
) -> bytes:
    """Tell the lines of a member, and return its compressed bytes."""
    offset = 0
    for line in lines:
        on_line(line, ResponseRef(part=part, member=member, offset=offset, length=len(line)))
        offset += len(line) + 1
    return packed.result()


def _members(lines: Iterable[bytes]) -> Iterator[list[bytes]]:
    """Lines in groups of about MEMBER_BYTES."""
    group: list[bytes] = []
    size = 0
    for line in lines:
        group.append(line)
        size += len(line) + 1
        if size >= MEMBER_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def unpack_member(data: bytes, name: str, *, cut: bool = False) -> bytes | None:
    """The uncompressed bytes of the gzip member that `data` starts with.

    None where the member goes on behind `data`, which may only be where `cut` says that more follows.
    """
    unpacker = isal_zlib.decompressobj(wbits=31)
    try:
        out = unpacker.decompress(data)
    except _DAMAGED as error:
        raise StateUnreadable(f"{name} is damaged: {error}") from error
    if not unpacker.eof:
        if cut:
            return None
        raise StateUnreadable(f"{name} ends too early")
    return out


def members(stream: BinaryIO, name: str) -> Iterator[tuple[int, bytes]]:
    """Each member of a part as (byte offset in the file, uncompressed bytes), one at a time."""
    offset = 0
    data = b""
    while True:
        unpacker = isal_zlib.decompressobj(wbits=31)
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
            except _DAMAGED as error:
                raise StateUnreadable(f"{name} is damaged: {error}") from error
            used += len(data) - len(unpacker.unused_data)
            data = unpacker.unused_data
        yield offset, b"".join(out)
        offset += used


_ENCODER = msgspec.json.Encoder()
_OUTCOME = msgspec.json.Decoder(Stored)
_HEAD = re.compile(rb'\{"key":"(r[0-9a-f]{32})"')


def dump_outcome(stored: Stored) -> bytes:
    """One line of an outcomes part."""
    try:
        return _ENCODER.encode(stored) + b"\n"
    except UnicodeEncodeError:
        # The service's words may hold half a surrogate pair, which is no text.
        words = ("code", "message", "model_version", "response_id", "finish_reason")
        clean = {name: getattr(stored, name).encode("utf-8", "replace").decode() for name in words}
        return _ENCODER.encode(structs.replace(stored, **clean)) + b"\n"


def load_outcome(line: bytes) -> Stored:
    """The inverse of dump_outcome."""
    return _OUTCOME.decode(line)


def request_id(line: bytes) -> str:
    """The id of the request that a line of a shard holds."""
    # Such a line begins with it; reading all of the line takes many times as long.
    head = _HEAD.match(line)
    return head[1].decode() if head else str(orjson.loads(line)["key"])


def _packer() -> Any:
    # wbits 31 writes a gzip header with no time and no file name.
    return isal_zlib.compressobj(_LEVEL, wbits=31)


def _member(data: bytes) -> bytes:
    packer = _packer()
    packed: bytes = packer.compress(data) + packer.flush()
    return packed


def _decompressed(stream: BinaryIO, name: str) -> Iterator[bytes]:
    unpacker = isal_zlib.decompressobj(wbits=31)
    data = b""
    while True:
        data = data or stream.read(_READ_BYTES)
        if not data:
            break
        if unpacker.eof:
            unpacker = isal_zlib.decompressobj(wbits=31)
        try:
            out = unpacker.decompress(data)
        except _DAMAGED as error:
            raise StateUnreadable(f"{name} is damaged: {error}") from error
        data = unpacker.unused_data
        if out:
            yield out
    if not unpacker.eof:
        raise StateUnreadable(f"{name} ends too early")
