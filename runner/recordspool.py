"""Records of answers that a run took in, on disk, so that their export need not judge them again.

A cache of one run: what it does not hold is read from the state, and a run whose state another changed ends
without an export. Records lie as they came; pages say where each is, in the order in which the requests were
sent. An export asks in much the same order, so that memory is flat however many there are and whatever order
they came in.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import chain, islice

import msgspec

from runner import records
from runner.behind import Behind
from runner.model import Answer
from runner.specmodel import Spec

_FLUSH_BYTES = 1 << 20
_READ_BYTES = 1 << 18
_PAGE_RECORDS = 1_000
_COUNT_BITS = 40

Place = tuple[int, int]
"""(byte offset, byte count) in the file."""
_PAGE = msgspec.msgpack.Decoder(list[tuple[str, Place]])


class RecordSpool:
    """The fields of records by request. The file, which has no name, is made for the first attempt."""

    def __init__(self, spec: Spec) -> None:
        """Nothing is held where one answer is no record by itself."""
        self._spec = spec
        self._file: int | None = None
        self._size = 0
        self._pages: dict[str, list[Place]] = {}
        """Token -> where the pages of the attempt lie."""
        self._heads: dict[str, tuple[Place, Iterator[tuple[str, Place]]]] | None = None
        """The next request of each attempt -> the place of its record, and what follows it."""
        self._behind = Behind[None]()
        self._ahead = (0, b"")
        """What was read last: its offset, and its bytes."""

    def attempt(self, token: str) -> AttemptRecords | None:
        """What takes the records of one reading of an attempt's output, of which nothing is held before."""
        self.forget(token)
        return AttemptRecords(self, self._spec, token) if self._spec.samples.count == 1 else None

    def forget(self, token: str) -> None:
        """Hold no records of an attempt."""
        self._pages.pop(token, None)
        self._heads = None

    def take(self, request_ids: Iterable[str]) -> list[Place | None]:
        """Where the records of requests lie; None for one that is not held, not the next of its attempt, or
        was taken before."""
        if self._heads is None:
            self._heads = {}
            for pages in self._pages.values():
                self._advance(self._read_pages(pages))
        places: list[Place | None] = []
        for request_id in request_ids:
            place, following = self._heads.pop(request_id, (None, iter(())))
            places.append(place)
            self._advance(following)
        return places

    def fields(self, place: Place) -> bytes:
        """The record at a place, all but its key, as the line of a JSON object."""
        offset, count = place
        at, data = self._ahead
        if offset < at or offset + count > at + len(data):
            at, data = self._ahead = offset, self._read(offset, max(count, _READ_BYTES))
        return data[offset - at : offset - at + count]

    def close(self) -> None:
        """Close the file."""
        self._behind.close()
        if self._file is not None:
            os.close(self._file)

    def append(self, data: bytes | bytearray) -> int:
        """Write at the end of the file; the byte offset of where that begins."""
        if self._file is None:
            handle, name = tempfile.mkstemp()
            os.unlink(name)
            self._file = handle
        at = self._size
        self._size += len(data)
        self._behind.begin(partial(_write, self._file, data))
        return at

    def hold(self, token: str, pages: list[Place]) -> None:
        """Take over the pages of an attempt, which have been written."""
        self._pages[token] = pages

    def _advance(self, places: Iterator[tuple[str, Place]]) -> None:
        assert self._heads is not None
        following = next(places, None)
        if following is not None:
            self._heads[following[0]] = (following[1], places)

    def _read_pages(self, pages: Iterable[Place]) -> Iterator[tuple[str, Place]]:
        return chain.from_iterable(_PAGE.decode(self._read(offset, count)) for offset, count in pages)

    def _read(self, offset: int, count: int) -> bytes:
        assert self._file is not None
        self._behind.end()
        return os.pread(self._file, count, offset)


def _write(file: int, data: bytes | bytearray) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]


class AttemptRecords:
    """The records of one reading of an attempt's output. They are held once all of them are there."""

    def __init__(self, spool: RecordSpool, spec: Spec, token: str) -> None:
        self._spool = spool
        self._spec = spec
        self._token = token
        self._places: dict[str, int] = {}
        """Request -> the place of its record: offset and count in one number, for a third of the memory."""
        self._buffer = bytearray()
        self._at = spool.append(b"")

    def add(self, answer: Answer) -> None:
        """Take the record of an answer that is ok, and remedies no other."""
        line = records.line(answer, self._spec)
        self._places[answer.request_id] = (self._at + len(self._buffer)) << _COUNT_BITS | len(line)
        # Copied: orjson gives a line the memory of a longer one, and short ones that are kept waste it all.
        self._buffer += line
        if len(self._buffer) >= _FLUSH_BYTES:
            self._flush()

    def displace(self, token: str) -> None:
        """Say that an answer stands in the place of one of that attempt: two would be held of one request."""
        self._spool.forget(token)

    def seal(self, request_ids: Iterable[str]) -> None:
        """Hold what was added; the requests of the attempt are given in the order in which they were sent."""
        self._flush()
        places = self._places
        held = (request_id for request_id in request_ids if request_id in places)
        pages = []
        while page := [(one, divmod(places[one], 1 << _COUNT_BITS)) for one in islice(held, _PAGE_RECORDS)]:
            data = msgspec.msgpack.encode(page)
            pages.append((self._spool.append(data), len(data)))
        self._spool.hold(self._token, pages)

    def _flush(self) -> None:
        self._spool.append(self._buffer)
        self._at += len(self._buffer)
        self._buffer = bytearray()
