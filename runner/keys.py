"""Keys of a state changed by hand: renamed, forgotten, their outcomes accepted.

Each function writes new parts and returns the root that names them, for the caller to save.
"""

from __future__ import annotations

import difflib
import heapq
import unicodedata
from bisect import bisect
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import replace

from msgspec import structs

from runner import parts, rowtable
from runner.errors import GuardRefused, UsageInvalid
from runner.model import Attempt, Outcome, State, Stored
from runner.rowtable import KnownRow
from runner.store import Store

_SUGGESTED_FROM = 10_000
"""Keys that a misspelt one is compared with."""


def refuse_live(attempts: Iterable[Attempt]) -> None:
    """Raises GuardRefused while submissions are in flight: their run would undo the change."""
    live = [attempt for attempt in attempts if attempt.state.live]
    if live:
        words = ", ".join(attempt.job_name or attempt.token for attempt in live[:3])
        raise GuardRefused(
            f"{len(live)} submission(s) are in flight ({words}{', ...' if len(live) > 3 else ''})",
            hint="let them end first: gbrun wait SPEC",
        )


def rename(store: Store, state: State, old: str, new: str) -> State:
    """The root after a key got another name. Raises UsageInvalid: no OLD, or a NEW that is there."""
    old, new = _nfc(old), _nfc(new)
    row = _find(store, state, [old])[old]
    if any(known.key == new for known in _rows(store, state)):
        raise UsageInvalid(
            f"the state has the key {new!r} already", hint=f"forget it first: gbrun state rm SPEC {new}"
        )
    others = (known for known in _rows(store, state) if known.key != old)
    merged = heapq.merge(others, [row._replace(key=new)], key=lambda known: known.key)
    return _saved(store, state, merged)


def forget(store: Store, state: State, keys: Collection[str]) -> State:
    """The root without these keys; their outcomes stay. Raises UsageInvalid for a key that is not there."""
    gone = _find(store, state, [_nfc(key) for key in keys])
    return _saved(store, state, without(_rows(store, state), gone.values()))


def accept(
    store: Store, state: State, keys: Collection[str], stored: Callable[[str], Stored | None]
) -> tuple[State, list[Stored]]:
    """The root after these rows' failures were taken as final, and the outcomes that are so now.

    `stored` gives a request's latest outcome. The destinations stay as they are: a failure that is
    accepted is written like any other.

    Raises:
        UsageInvalid: a key that is not there, or whose row has no failure to accept.
    """
    taken: dict[str, Stored] = {}
    for key, row in _find(store, state, [_nfc(key) for key in keys]).items():
        found = [stored(wanted.request_id) for wanted in row.wanted]
        failed = [one for one in found if one is not None and one.outcome is not Outcome.OK]
        if not failed or None in found:
            raise UsageInvalid(*_nothing_to_accept(key, row, None in found))
        taken |= {one.request_id: structs.replace(one, accepted=True) for one in failed if not one.accepted}
    if not taken:
        return state, []
    # A segment of no attempt: it has no token, and adds nothing to what was sent.
    name = store.put_outcomes("", {}, map(parts.dump_outcome, taken.values()))
    export = state.export
    if export is not None and export.outcome_count == len(state.outcomes):
        export = replace(export, outcome_count=export.outcome_count + 1)
    return replace(state, outcomes=(*state.outcomes, name), export=export), list(taken.values())


def without(rows: Iterable[KnownRow], gone: Iterable[KnownRow]) -> Iterator[KnownRow]:
    """Rows of a snapshot without some of them, with ordinals that have no gaps."""
    keys, ordinals = set(), []
    for row in gone:
        keys.add(row.key)
        ordinals.append(row.ordinal)
    ordinals.sort()
    for row in rows:
        if row.key not in keys:
            yield row._replace(ordinal=row.ordinal - bisect(ordinals, row.ordinal))


def _nothing_to_accept(key: str, row: KnownRow, is_open: bool) -> tuple[str]:
    if row.problem:
        return (f"{key!r} was never sent, so there is no outcome to accept; mend or exclude the input",)
    if is_open:
        return (f"{key!r} has no outcome yet",)
    return (f"{key!r} is ok; only failures are accepted",)


def _rows(store: Store, state: State) -> Iterator[KnownRow]:
    if not state.rows:
        raise UsageInvalid("the state has no keys yet: no apply has finished", hint="gbrun apply SPEC")
    lines = store.lines(state.rows)
    next(lines)
    return map(rowtable.from_line, lines)


def _find(store: Store, state: State, keys: Collection[str]) -> dict[str, KnownRow]:
    wanted = set(keys)
    found: dict[str, KnownRow] = {}
    others: list[str] = []
    for row in _rows(store, state):
        if row.key in wanted:
            found[row.key] = row
        elif len(others) < _SUGGESTED_FROM:
            others.append(row.key)
    for key in keys:
        if key not in found:
            near = difflib.get_close_matches(key, others, n=1)
            raise UsageInvalid(
                f"the state has no key {key!r}",
                hint=f"did you mean {near[0]!r}?" if near else "gbrun state list SPEC prints the keys",
            )
    return found


def _saved(store: Store, state: State, rows: Iterable[KnownRow]) -> State:
    lines = store.lines(state.rows)
    header = next(lines)

    def new() -> Iterator[bytes]:
        yield header + b"\n"
        for row in rows:
            yield row.line()

    return replace(state, rows=store.put_rows(new()))


def _nfc(key: str) -> str:
    return unicodedata.normalize("NFC", key)
