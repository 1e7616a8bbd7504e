"""The end of an apply: the rows snapshot and the destinations, named by one new root."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace

from runner import export, rowtable
from runner.index import Index
from runner.model import Export, Json, Owner, Plan, State
from runner.recordspool import RecordSpool
from runner.specmodel import Spec
from runner.store import Store


@dataclass(frozen=True, slots=True)
class Finished:
    """What was written, and the root that names it, not yet saved."""

    state: State
    written: export.Written
    absorb: Callable[[], None]
    """Takes the snapshot over into the index; for after the root is saved."""


def write(
    spec: Spec,
    plan: Plan,
    state: State,
    store: Store,
    index: Index,
    held: ExitStack,
    *,
    overwrite: bool = False,
    fresh: RecordSpool | None = None,
) -> Finished:
    """Write the destinations beside their places, and the snapshot (where rows differ from the last one).

    The index must be in step with `state`. What is not placed is removed when `held` is closed. `overwrite`
    takes objects and tables of other owners over; `fresh` holds records made of answers when they came.
    Raises what `export.write` raises.
    """
    owner = owned(state, overwrite=overwrite)
    if plan.rows_path is None:
        written = export.write(
            spec, store, index.rows(), index.answered_among, lambda _: None, held, owner=owner, fresh=fresh
        )
        return Finished(_exported(state, plan, written), written, lambda: None)
    spool = rowtable.planned(plan.rows_path)
    try:
        rows = rowtable.asked(spool)
        written = export.write(
            spec, store, rows, index.answered_among, lambda _: None, held, owner=owner, fresh=fresh
        )
        with rowtable.transaction(spool):
            rowtable.settle(spool, [(_final(name), count) for name, count in written.classes])
        known = {
            **index.components,
            plan.components_id: {"spec": plan.spec_digest, "digests": dict(plan.components)},
        }
        components = {name: known[name] for name in rowtable.component_ids(spool) if name in known}
        state = replace(state, rows=store.put_rows(_lines(spool, components)))
    finally:
        spool.close()
    path, name = plan.rows_path, state.rows
    return Finished(_exported(state, plan, written), written, lambda: index.absorb(name, components, path))


def owned(state: State, *, overwrite: bool = False) -> Owner:
    """Whose destinations an export of this state writes."""
    before = frozenset(state.export.files) if state.export is not None else frozenset()
    return Owner(lineage=state.lineage, written=before, takes_over=overwrite)


def _exported(state: State, plan: Plan, written: export.Written) -> State:
    written.prepare()
    exported = Export(
        rows=state.rows, outcome_count=len(state.outcomes), judge=plan.judge_digest, files=written.files
    )
    return replace(state, export=exported)


def _final(outcome: str) -> str:
    return "" if outcome in ("in_flight", "held_back") else outcome


def _lines(spool: sqlite3.Connection, components: Mapping[str, Json]) -> Iterator[bytes]:
    """The snapshot's lines, sorted by key."""
    yield rowtable.header(components)
    yield from rowtable.lines(spool)
