"""Records of answers that a run took in, on disk, so that their export need not judge them again.

A cache of one run: what it does not hold is read from the state.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from typing import IO

import msgspec

from runner import records
from runner.model import Answer, Outcome, ResponseRef
from runner.specmodel import Spec

_DECODER = msgspec.msgpack.Decoder(dict[int, bytes])


class RecordSpool:
    """The fields of records by the place of the answer, one member of a response file at a time."""

    def __init__(self, spec: Spec) -> None:
        """The file, which has no name, is made when there is something to hold."""
        self._spec = spec
        self._file: IO[bytes] | None = None
        self._places: dict[tuple[str, int, int], tuple[int, int]] = {}
        """(token, part, member) -> (byte offset, byte count) in the file."""
        self._size = 0
        self._current: tuple[str, int, int] | None = None
        self._fields: dict[int, bytes] = {}

    def adder(self, token: str) -> Callable[[ResponseRef, Answer], None]:
        """What holds the record of an answer, if it is one by itself: for one reading of an attempt's
        output, of which nothing is held before."""
        self._flush()
        self._places = {place: at for place, at in self._places.items() if place[0] != token}
        return partial(self._add, token)

    def _add(self, token: str, ref: ResponseRef, answer: Answer) -> None:
        if answer.outcome is not Outcome.OK or self._spec.samples.count > 1:
            return
        place = (token, ref.part, ref.member)
        if place != self._current:
            self._flush()
            self._current = place
        self._fields[ref.offset] = records.fields(answer, self._spec)

    def fields(self, token: str, part: int, member: int) -> Mapping[int, bytes]:
        """Byte offset of a line in a member -> the fields of its record, as `records.fields` gives them."""
        self._flush()
        found = self._places.get((token, part, member))
        if found is None:
            return {}
        assert self._file is not None
        self._file.seek(found[0])
        return _DECODER.decode(self._file.read(found[1]))

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    def _flush(self) -> None:
        if self._current is not None and self._fields:
            if self._file is None:
                self._file = tempfile.TemporaryFile()  # noqa: SIM115
            data = msgspec.msgpack.encode(self._fields)
            self._file.seek(self._size)
            self._file.write(data)
            self._places[self._current] = (self._size, len(data))
            self._size += len(data)
        self._current, self._fields = None, {}
