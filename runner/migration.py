"""A state copied to another place, and the old place closed; the same for one that is put aside.

Parts are copied first, each only where there is none yet, and read back; the root comes last. Then the old
root gives way to a note of where the state went, which every command refuses. For use under both locks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from runner import index, statefile
from runner.blobs import BlobMissing, Blobs
from runner.errors import GbrunError, StateChanged, StateError, StateForeign
from runner.gcsuri import GcsUri
from runner.model import State
from runner.statefile import Moved
from runner.store import ROOT, Store

_ATTEMPTS = "attempts/"
_FOLDERS = ("specs/", "shards/", "responses/", "rows/", "outcomes/", "history/", _ATTEMPTS)
_READ_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Copied:
    """What was there to copy."""

    state: State
    part_count: int
    byte_count: int


@dataclass(frozen=True, slots=True)
class _Present:
    """What stands at the target."""

    root: State | None
    moved: Moved | None
    version: str


def check_source(source: Store) -> tuple[State, str]:
    """The state that is to be copied, and its version. Raises GbrunError where there is none."""
    state, version = source.load()
    if state is None:
        raise GbrunError(f"there is no state in {source.label}", hint="look at `state:`, --from and --to")
    return state, version


def migrate(source: Store, target: Store) -> Copied:
    """Make the target the place of the source's state, and close the source. Safe to repeat.

    Raises:
        GbrunError: there is no state to copy.
        StateForeign: another state is at the target, or parts of one; the source was moved before.
        StateChanged: the target is newer, or was used since the two were one.
        StateError: a part did not arrive as it was sent.
    """
    state, version = check_source(source)
    present = _present(target)
    _check_order(source, state, target, present)
    _check_attempts(source, target)
    parts = byte_count = 0
    for name in _names(source.blobs):
        byte_count += _copy(
            source, target, name, over=present.moved is not None or name.startswith(_ATTEMPTS)
        )
        parts += 1
    if present.root is not None and present.root != state:
        target.keep_history(present.root)
    if present.root != state:
        _put_root(target, source.blobs.read(ROOT)[0], present.version)
    # Parts of the same name may hold something else than they did before.
    index.discard(target)
    source.keep_history(state)
    note = statefile.dump_moved(Moved(target.label, state.lineage, state.serial))
    source.blobs.replace(ROOT, note, version)
    return Copied(state, parts, byte_count)


def put_aside(store: Store, place: GcsUri, serial: int, at: Callable[[GcsUri], Store]) -> Store:
    """Copy a state to `<place>.destroyed-<serial>`, delete it where it was, and return its new place."""
    number = 1
    while True:
        suffix = f"-{number}" if number > 1 else ""
        target = at(GcsUri(place.bucket, f"{place.name}.destroyed-{serial}{suffix}"))
        if next(target.blobs.list(""), None) is None:
            break
        number += 1
    names = list(_names(store.blobs))
    for name in names:
        _copy(store, target, name, over=False)
    target.blobs.create(ROOT, store.blobs.read(ROOT)[0])
    # Without its root there is no state any more, whatever is left of it should this be interrupted.
    for name in (ROOT, *names):
        store.blobs.delete(name)
    return target


def _present(store: Store) -> _Present:
    try:
        data, version = store.blobs.read(ROOT)
    except BlobMissing:
        return _Present(None, None, "")
    moved = statefile.load_moved(data, f"{store.label}/{ROOT}")
    if moved is not None:
        return _Present(None, moved, version)
    return _Present(store.load()[0], None, version)


def _check_order(source: Store, state: State, target: Store, present: _Present) -> None:
    there = present.root or present.moved
    if there is None:
        return
    if there.lineage != state.lineage:
        raise StateForeign(
            f"{target.label} has a state of lineage {there.lineage}, and {source.label} is {state.lineage}",
            hint="name an empty place",
        )
    if there.serial > state.serial:
        raise StateChanged(
            f"{target.label} is at serial {there.serial} already, and {source.label} at {state.serial}",
            hint=f"{target.label} is the newer one: use it as it is",
        )
    if present.root is not None and there.serial == state.serial and present.root != state:
        raise StateChanged(
            f"{target.label} and {source.label} both have serial {state.serial}, and differ",
            hint="both were used since they were one; name an empty place",
        )


def _check_attempts(source: Store, target: Store) -> None:
    """A job that only the target knows of must not be forgotten."""
    known = {attempt.token: attempt for attempt, _ in source.attempts()}
    for attempt, _ in target.attempts():
        ours = known.get(attempt.token)
        if ours is None or (attempt.job_name and attempt.job_name != ours.job_name):
            raise StateForeign(
                f"{target.label} knows of {attempt.job_name or attempt.token}, and {source.label} does not",
                hint="both were used since they were one; name an empty place",
            )


def _names(blobs: Blobs) -> Iterator[str]:
    for folder in _FOLDERS:
        yield from list(blobs.list(folder))


def _copy(source: Store, target: Store, name: str, *, over: bool) -> int:
    """Copy one part and read it back; its size. `over`: what stands there may be replaced."""
    wanted, byte_count = _digest(source.blobs, name)
    if target.blobs.exists(name):
        if _digest(target.blobs, name)[0] == wanted:
            return byte_count
        if not over:
            raise StateForeign(
                f"{target.label} has another {name} than {source.label}", hint="name an empty place"
            )
        target.blobs.delete(name)
    target.blobs.create_from(name, _chunks(source.blobs, name))
    if _digest(target.blobs, name)[0] != wanted:
        raise StateError(
            f"{target.label}/{name} is not what {source.label}/{name} is", hint="run the command again"
        )
    return byte_count


def _put_root(target: Store, data: bytes, version: str) -> None:
    if version:
        target.blobs.replace(ROOT, data, version)
    else:
        target.blobs.create(ROOT, data)
    if target.blobs.read(ROOT)[0] != data:
        raise StateError(f"{target.label}/{ROOT} is not what was written", hint="run the command again")


def _digest(blobs: Blobs, name: str) -> tuple[str, int]:
    seen, byte_count = hashlib.sha256(), 0
    for chunk in _chunks(blobs, name):
        seen.update(chunk)
        byte_count += len(chunk)
    return seen.hexdigest(), byte_count


def _chunks(blobs: Blobs, name: str) -> Iterator[bytes]:
    with blobs.open(name) as stream:
        while chunk := stream.read(_READ_BYTES):
            yield chunk
