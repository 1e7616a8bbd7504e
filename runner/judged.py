"""Stored responses, judged, as the records and failures of rows in input order.

Rows are taken in windows: the answers of a window are read in the order in which they lie in the
stored files, so that memory is bounded whatever order a service answers in.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice

import msgspec
from msgspec import structs

from runner import records
from runner.errors import StateUnreadable
from runner.model import Answer, Outcome, Stored
from runner.records import Sample
from runner.recordspool import Place, RecordSpool
from runner.results import Judge, dump_line
from runner.rowtable import AskedRow, KnownRow
from runner.specmodel import Spec
from runner.store import Store

_PAGE_ROWS = 5_000
_WINDOW_BYTES = 8 << 20
_RUN_BYTES = 1 << 20


class Run(msgspec.Struct, frozen=True, gc=False):
    """What is written for rows that follow each other and are of one class."""

    outcome: str
    """Their class; `in_flight` and `held_back` for rows that have none yet."""
    lines: list[bytes]
    """Of each row the record, or the line for the errors file; empty for one that is not settled."""
    metas: list[bytes] = []
    """Of each row where its record came from, as the line of a JSON object, where a destination wants it."""


def runs(
    spec: Spec,
    store: Store,
    found: Iterable[KnownRow | AskedRow],
    answered: Callable[[Sequence[str]], Mapping[str, Stored]],
    live: Callable[[str], str | None],
    fresh: RecordSpool | None = None,
) -> Iterator[Run]:
    """What is written for all rows, in the order given.

    `answered` gives the latest outcomes of what stands for requests, `live` the attempt that holds one,
    `fresh` the records that were made of answers when they came.

    Raises:
        StateUnreadable: a response that an outcome refers to is gone or damaged.
    """
    reader = _Reader(spec, store, fresh)
    rows = iter(found)
    while page := list(islice(rows, _PAGE_ROWS)):
        asked = [row.ids for row in page]
        held = reader.held(asked)
        outcomes = answered(
            [one for ids, place in zip(asked, held, strict=True) if place is None for one in ids]
        )
        window: list[tuple[KnownRow | AskedRow, _Found]] = []
        size = 0
        for row, ids, place in zip(page, asked, held, strict=True):
            if any(map(live, ids)):
                window.append((row, "in_flight"))
                continue
            if place is not None:
                window.append((row, place))
                continue
            stored = [outcomes[request_id] for request_id in ids if request_id in outcomes]
            if len(stored) < len(ids):
                window.append((row, "held_back"))
                continue
            window.append((row, stored))
            for one in stored:
                size += one.ref.length if one.ref is not None else 0
            if size >= _WINDOW_BYTES:
                yield from reader.results(window)
                window, size = [], 0
        yield from reader.results(window)


def again(spec: Spec, store: Store) -> Callable[[Stored], Stored]:
    """A function that gives a stored outcome as it is judged now, from the response as it came back."""
    judge = Judge.of(spec)

    def judged(before: Stored) -> Stored:
        response = store.response(before)
        answer = judge.line(response) if response is not None else None
        if not isinstance(answer, Answer) or answer.outcome is before.outcome:
            return before
        return structs.replace(before, outcome=answer.outcome, code=answer.code, message=answer.message)

    return judged


_Found = list[Stored] | Place | str
"""What there is of a row: its outcomes, the place of a record that is ready, or why there is nothing."""


class _Reader:
    def __init__(self, spec: Spec, store: Store, fresh: RecordSpool | None) -> None:
        self._spec = spec
        self._store = store
        self._judge = Judge.of(spec)
        self._with_meta = any("meta" in destination.include for destination in spec.destinations)
        # Where a record came from is said by its outcome only.
        self._fresh = None if self._with_meta else fresh

    def held(self, asked: Sequence[Sequence[str]]) -> Sequence[Place | None]:
        """Where the records of rows lie that want these requests, of those that are ready."""
        if self._fresh is None:
            return [None] * len(asked)
        return self._fresh.take(ids[0] if len(ids) == 1 else "" for ids in asked)

    def results(self, window: list[tuple[KnownRow | AskedRow, _Found]]) -> Iterator[Run]:
        answers = self._read(
            one for _, found in window if isinstance(found, list) for one in found if one.ref is not None
        )
        lines: list[bytes] = []
        size = 0
        for row, found in window:
            if isinstance(found, tuple):
                assert self._fresh is not None
                line = records.record(row.key, self._fresh.fields(found))
                lines.append(line)
                size += len(line)
                if size < _RUN_BYTES:
                    continue
            if lines:
                yield Run(Outcome.OK, lines)
                lines, size = [], 0
            if isinstance(found, str):
                yield Run(found, [b""])
            elif isinstance(found, list):
                yield self._settled(row, [Sample(one, answers.get(one.request_id)) for one in found])
        if lines:
            yield Run(Outcome.OK, lines)

    def _settled(self, row: KnownRow | AskedRow, samples: list[Sample]) -> Run:
        spec = self._spec
        if row.problem:
            return Run(Outcome.BAD_INPUT, [_bad(row)])
        needed = spec.samples.needed if spec.samples.count > 1 else len(samples)
        if records.row_class([sample.outcome for sample in samples], needed) != Outcome.OK:
            outcome, line = records.failed(row.key, samples, spec)
            return Run(outcome, [line])
        line = records.record(row.key, dump_line(records.combined(samples, spec)))
        return Run(Outcome.OK, [line], self._metas([sample.stored for sample in samples]))

    def _metas(self, stored: Sequence[Stored]) -> list[bytes]:
        return [dump_line(records.meta(stored))] if self._with_meta else []

    def _read(self, wanted: Iterable[Stored]) -> dict[str, Answer]:
        """Answers by request id."""
        places: defaultdict[tuple[str, int, int], list[Stored]] = defaultdict(list)
        for one in wanted:
            assert one.ref is not None
            places[one.token, one.ref.part, one.ref.member].append(one)
        answers: dict[str, Answer] = {}
        for (token, part, member), stored in sorted(places.items()):
            data = self._store.response_member(token, part, member)
            for one in stored:
                ref = one.ref
                assert ref is not None
                answer = self._judge.line(data[ref.offset : ref.offset + ref.length])
                if not isinstance(answer, Answer) or answer.request_id != one.request_id:
                    raise StateUnreadable(f"responses/{token}.{part}.jsonl.gz does not hold {one.request_id}")
                answers[one.request_id] = answer
        return answers


def _bad(row: KnownRow | AskedRow) -> bytes:
    bad = row.bad
    assert bad is not None
    where = f"{bad.path}:{bad.line}: " if bad.path else ""
    return records.failure(row.key, Outcome.BAD_INPUT, bad.code, where + bad.message, 0, None)
