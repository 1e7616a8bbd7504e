"""A root put in the place of the present one by hand: after damage, or from another copy."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from runner import statefile
from runner.blobs import BlobMissing
from runner.errors import StateChanged, StateError, StateForeign, StateUnreadable
from runner.garbage import named, unnamed_records
from runner.model import State
from runner.store import ROOT, Store


@dataclass(frozen=True, slots=True)
class Pushed:
    """What became of a push."""

    state: State
    changed: bool
    attached: tuple[str, ...] = ()
    """Outcome segments that the pushed root did not name, and that are paid for."""


@dataclass(frozen=True, slots=True)
class _Present:
    """What is known of the state before the push."""

    root: State | None
    """None where there is none, or none that can be read."""
    version: str
    best: State | None
    """The root, else the newest good one of the history."""


def push(store: Store, data: bytes, source: str, *, name: str, env: str | None) -> Pushed:
    """Make these bytes the root of the state of spec `name`; for use under the lock.

    The present root goes into the history. Where it is missing or damaged, segments that are newer
    than the pushed root are named by it from now on, so that nothing in them is paid for again.

    Raises:
        StateUnreadable: the bytes are no root, or it names parts that are not here.
        StateForeign: it belongs to another spec, environment or lineage.
        StateChanged: it is older than the present root, or another one with the same serial.
        StateError: it would forget outcomes that the present root names.
    """
    new = statefile.load_state(data, source)
    if (new.name, new.env) != (name, env):
        raise StateForeign(
            f"{source} is the state of {new.name!r} ({new.env or 'no environment'}),"
            f" not of {name!r} ({env or 'no environment'})",
            hint="push it with the spec it belongs to",
        )
    present = _present(store)
    _check_order(store, new, source, present)
    if present.root == new:
        return Pushed(new, changed=False)
    _check_parts(store, new, source, present)
    if present.root is not None:
        store.keep_history(present.root)
        store.save(new, present.version)
        return Pushed(new, changed=True)
    attempts = [attempt for attempt, _ in store.attempts()]
    attached = tuple(unnamed_records(store, new.outcomes, attempts))
    if attached:
        new = replace(new, serial=new.serial + 1, outcomes=(*new.outcomes, *attached))
    store.save(new, present.version)
    return Pushed(new, changed=True, attached=attached)


def _present(store: Store) -> _Present:
    try:
        root, version = store.load()
    except StateUnreadable:
        return _Present(None, store.blobs.read(ROOT)[1], _newest_good(store))
    return _Present(root, version, root or _newest_good(store))


def _newest_good(store: Store) -> State | None:
    for name in sorted(store.blobs.list("history/"), reverse=True):
        try:
            return statefile.load_state(store.blobs.read(name)[0], name)
        except (StateUnreadable, BlobMissing):
            continue
    return None


def _check_order(store: Store, new: State, source: str, present: _Present) -> None:
    best = present.best
    lineages = {best.lineage[:8]} if best else _lineages(store.blobs.list("attempts/"))
    if (best and best.lineage != new.lineage) or (lineages and new.lineage[:8] not in lineages):
        here = best.lineage if best else " and ".join(sorted(lineages)) + "..."
        raise StateForeign(
            f"{source} has lineage {new.lineage}, and {store.label} has {here}",
            hint="a root goes back only to the state it was pulled from",
        )
    if best is None:
        return
    if new.serial < best.serial:
        raise StateChanged(
            f"{source} has serial {new.serial}, and {store.label} is at {best.serial} already",
            hint="pull again, and push what you pulled then",
        )
    if new.serial == best.serial and new != best:
        raise StateChanged(
            f"{source} and {store.label} both have serial {new.serial}, and differ",
            hint="pull again, and push what you pulled then",
        )


def _check_parts(store: Store, new: State, source: str, present: _Present) -> None:
    missing = sorted(name for name in named(new) if not store.blobs.exists(name))
    if missing:
        raise StateUnreadable(
            f"{source} names {len(missing)} part(s) that are not in {store.label}, such as {missing[0]}",
            hint="copy the parts there first, or push a root of this very folder",
        )
    dropped = sorted(set(present.root.outcomes if present.root else ()) - set(new.outcomes))
    if dropped:
        raise StateError(
            f"{source} does not name {dropped[0]}, which the present root names: the answers in it would be"
            " paid for again",
            hint="pull again, and push what you pulled then",
        )


def _lineages(attempts: Iterable[str]) -> set[str]:
    """The first digits of the lineages in the names of attempts."""
    return {name.removeprefix("attempts/").split("-")[1] for name in attempts if name.count("-") > 1}
