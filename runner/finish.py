"""The end of an apply: the rows snapshot and the destinations, named by one new root."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from runner import export, rowtable
from runner.index import Index
from runner.model import Export, Json, Plan, Spec, State
from runner.rowtable import KnownRow
from runner.store import Store


@dataclass(frozen=True, slots=True)
class Finished:
    """What was written, and the root that names it, not yet saved."""

    state: State
    written: export.Written
    absorb: Callable[[], None]
    """Takes the snapshot over into the index; for after the root is saved."""


def write(spec: Spec, plan: Plan, state: State, store: Store, index: Index, held: ExitStack) -> Finished:
    """Write the snapshot (where rows differ from the last one), and the destinations beside their places.

    The index must be in step with `state`. What is not placed is removed when `held` is closed.
    Raises what `export.write` raises.
    """
    snapshot = _Snapshot(plan, index)
    if plan.rows_path is not None:
        state = replace(state, rows=store.put_rows(snapshot.lines()))
    with tempfile.TemporaryDirectory(prefix="gbrun-") as workspace:
        written = export.write(
            spec, store, snapshot.rows, index.stored, lambda _: None, Path(workspace), held
        )
    exported = Export(
        rows=state.rows,
        outcome_count=len(state.outcomes),
        judge=plan.judge_digest,
        files=written.files,
    )

    def absorb() -> None:
        if plan.rows_path is not None:
            index.absorb(state.rows, snapshot.components, snapshot.settled_rows())

    return Finished(replace(state, export=exported), written, absorb)


class _Snapshot:
    """The rows of a plan with the outcomes they have now."""

    def __init__(self, plan: Plan, index: Index) -> None:
        self._plan = plan
        self._index = index
        known = {
            **index.components,
            plan.components_id: {"spec": plan.spec_digest, "digests": dict(plan.components)},
        }
        used = {row.components for row in self.rows()} if plan.rows_path is not None else set()
        self.components: Mapping[str, Mapping[str, Json]] = {
            name: known[name] for name in sorted(used) if name in known
        }

    def rows(self, order: str = "ordinal") -> Iterator[KnownRow]:
        """Every row of the plan."""
        if self._plan.rows_path is None:
            yield from self._index.rows()
            return
        db = rowtable.connect(self._plan.rows_path)
        try:
            yield from rowtable.rows(db, order=order)
        finally:
            db.close()

    def settled_rows(self, order: str = "ordinal") -> Iterator[KnownRow]:
        """The same with their outcomes."""
        for row in self.rows(order):
            yield row._replace(outcome=export.row_outcome(row, self._index.outcome))

    def lines(self) -> Iterator[bytes]:
        """The snapshot's lines, sorted by key."""
        yield rowtable.header(self.components)
        for row in self.settled_rows(order="key"):
            yield row.line()
