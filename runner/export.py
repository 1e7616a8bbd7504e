"""Records go to the destinations, failures beside the first, in input order.

The same state always gives the same bytes; memory is flat.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from runner import outputs
from runner.model import NOBODY, Outcome, Owner, Stored
from runner.rowtable import AskedRow, KnownRow
from runner.specmodel import Spec
from runner.store import Store

if TYPE_CHECKING:
    # Plans only look at destinations.
    from runner.recordspool import RecordSpool


@dataclass(frozen=True, slots=True)
class Written:
    """What an export wrote."""

    files: Mapping[str, tuple[str, int]]
    """Destination path as in the spec -> (SHA-256 hex, byte size)."""
    classes: Sequence[tuple[str, int]]
    """The classes of the rows, in their order, as (class, how many rows follow each other that have it);
    `in_flight` and `held_back` for those that have none yet."""
    prepare: Callable[[], None]
    """Raises GbrunError where a place holds what is another's, then removes the failures of an earlier
    export where nothing failed now. To be called before the root names what is written: it would make
    another's things ours, and a file that no root names a stranger's."""
    place: Callable[[], None]
    """Moves the files to their places; until then nothing can be seen of them."""

    @property
    def rows(self) -> dict[str, int]:
        """Rows per class, in the order in which they came up."""
        counts: dict[str, int] = {}
        for name, count in self.classes:
            counts[name] = counts.get(name, 0) + count
        return counts


def write(
    spec: Spec,
    store: Store,
    rows: Iterable[KnownRow | AskedRow],
    answered: Callable[[Sequence[str]], Mapping[str, Stored]],
    live: Callable[[str], str | None],
    held: ExitStack,
    *,
    owner: Owner = NOBODY,
    fresh: RecordSpool | None = None,
) -> Written:
    """Write records and failures, in the order of `rows`, beside their places; `Written.place` moves them.

    The caller names what will be there in the state first, so that a run that is killed in
    between leaves a state that sees the difference. `answered` and `live` are as for `judged.runs`.
    What is not placed is removed when `held` is closed. `owner` is the state that the records are of; `fresh`
    is as for `judged.runs`.

    Raises:
        StateUnreadable: a response that an outcome refers to is gone or damaged.
        GbrunError: a destination cannot be written.
    """
    files = _Files(spec, held, owner)
    # Plans only look at destinations.
    from runner import judged

    classes: list[tuple[str, int]] = []
    name, count = "", 0
    for run in judged.runs(spec, store, rows, answered, live, fresh):
        if run.outcome != name:
            classes.append((name, count))
            name, count = run.outcome, 0
        count += len(run.lines)
        if name == Outcome.OK:
            files.records(run.lines, run.metas)
        else:
            files.failures([line for line in run.lines if line])
    classes.append((name, count))
    return Written(files.seal(), classes[1:], files.prepare, files.place)


class _Files:
    """The outputs of one export: every destination, and the failures beside the first."""

    def __init__(self, spec: Spec, held: ExitStack, owner: Owner) -> None:
        self._records = [
            (one, held.enter_context(outputs.open(spec, one, owner))) for one in spec.destinations
        ]
        self._writes = [(file.write_all, "meta" in one.include) for one, file in self._records]
        self._failures_name = spec.destinations[0].errors_path
        self._failures = held.enter_context(outputs.open_failures(spec, owner))
        self._failure_count = 0

    def records(self, lines: Sequence[bytes], metas: Sequence[bytes]) -> None:
        """Write records to each destination, with `metas` (lines of objects) where these are wanted."""
        for write_all, with_meta in self._writes:
            write_all(lines, metas if with_meta else ())

    def failures(self, lines: Sequence[bytes]) -> None:
        """Write lines of the failures."""
        self._failures.write_all(lines)
        self._failure_count += len(lines)

    def seal(self) -> dict[str, tuple[str, int]]:
        """End the writing; path as in the spec -> (SHA-256 hex, byte size) of all that is to be placed."""
        sealed = {destination.path: file.seal() for destination, file in self._records}
        if self._failure_count:
            sealed[self._failures_name] = self._failures.seal()
        return sealed

    def prepare(self) -> None:
        """See `Written.prepare`."""
        for _, file in self._records:
            file.claim()
        if self._failure_count:
            self._failures.claim()
        else:
            self._failures.remove()

    def place(self) -> None:
        """Move all of them to their places."""
        for _, file in self._records:
            file.place()
        if self._failure_count:
            self._failures.place()


def destinations(spec: Spec) -> tuple[str, ...]:
    """Every file, object and table this spec may write, as in the spec."""
    paths = (destination.path for destination in spec.destinations)
    return (*paths, spec.destinations[0].errors_path)


def look(spec: Spec, lineage: str = "") -> dict[str, tuple[str, int] | None]:
    """What lies at each destination now, for the state of this lineage; see `outputs.look`."""
    return {path: outputs.look(spec, path, lineage) for path in destinations(spec)}


def owners(spec: Spec) -> dict[str, tuple[str, str]]:
    """Destination -> the lineage that it says it belongs to, and where; only of those that say so."""
    found = {path: outputs.owner_of(path) for path in destinations(spec)}
    return {path: owner for path, owner in found.items() if owner[0]}
