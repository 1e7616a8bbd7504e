"""Parts of a state that nothing refers to any more: left by crashes, purges and old roots.

A part is reachable from the root, from a root of the history, or from an attempt. What holds
the only record of an attempt's answers is never garbage, whether a root names it or not.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import orjson

from runner.errors import StateUnreadable
from runner.model import Attempt, State
from runner.store import Store, response_name

_RESPONSES = re.compile(r"responses/(.+)\.(\d+)\.jsonl\.gz")


@dataclass(frozen=True, slots=True)
class Garbage:
    """Something that can be deleted."""

    name: str
    byte_count: int
    unfinished: bool = False
    """A write that a killed process left in the middle."""


def find(store: Store, written_before_s: float) -> list[Garbage]:
    """What nothing refers to and was written no later than this (seconds since the epoch).

    For use under the lock: whoever writes a part names it before letting the lock go.

    Raises:
        StateUnreadable: there is no root, or something that is referred to cannot be read.
    """
    state, _ = store.load()
    if state is None:
        raise StateUnreadable(
            f"{store.label} has no state.json, so nothing says which parts are in use",
            hint="restore it with gbrun state push, from a pulled one or from history/",
        )
    attempts = [attempt for attempt, _ in store.attempts()]
    roots = [state, *(old for _, old, _ in store.history())]
    kept = {name for root in roots for name in named(root)}
    kept |= {f"specs/{digest}.json" for root in roots for digest in _specs(store, root)}
    kept |= {store.shard_name(attempt.shard_id) for attempt in attempts}
    kept |= set(unnamed_records(store, {name for name in kept if name.startswith("outcomes/")}, attempts))
    kept |= _responses(store, {name for name in kept if name.startswith("outcomes/")}, attempts)
    found = [
        Garbage(name, store.blobs.size(name))
        for folder in ("outcomes/", "responses/", "rows/", "shards/", "specs/")
        for name in store.blobs.list(folder)
        if name not in kept and store.blobs.modified_s(name) <= written_before_s
    ]
    found += [
        Garbage(one.name, one.byte_count, unfinished=True)
        for one in store.blobs.unfinished()
        if one.modified_s <= written_before_s
    ]
    return found


def delete(store: Store, found: Iterable[Garbage]) -> None:
    """Delete what `find` gave."""
    for one in found:
        if one.unfinished:
            store.blobs.delete_unfinished(one.name)
        else:
            store.blobs.delete(one.name)


def named(state: State) -> set[str]:
    """The parts that a root names."""
    return {name for name in (state.rows, *state.outcomes, f"specs/{state.spec_digest}.json") if name}


def unnamed_records(store: Store, segments: Iterable[str], attempts: Iterable[Attempt]) -> list[str]:
    """Outcome segments besides these that hold the only record of an attempt, oldest first."""
    known = set(segments)
    tokens = {_token(store, name) for name in known}
    wanted = {attempt.token for attempt in attempts} - tokens
    others = sorted(set(store.blobs.list("outcomes/")) - known, key=lambda name: (len(name), name))
    return [name for name in others if _token(store, name) in wanted]


def _responses(store: Store, segments: Iterable[str], attempts: Iterable[Attempt]) -> set[str]:
    """Response files that are in use: all but second downloads and those of nobody."""
    used: set[str] = set()
    recorded: set[str] = set()
    for name in segments:
        lines = store.lines(name)
        next(lines)
        for body in map(orjson.loads, lines):
            if body.get("ref"):
                used.add(response_name(body["attempt"], body["ref"][0]))
                recorded.add(body["attempt"])
    known = {attempt.token for attempt in attempts}
    for name in store.blobs.list("responses/"):
        match = _RESPONSES.fullmatch(name)
        token = match[1] if match else ""
        if token in known and token not in recorded:
            used.add(name)
    return used


def _specs(store: Store, root: State) -> set[str]:
    """Digests of the specs that a root's rows were rendered from."""
    if not root.rows or not store.blobs.exists(root.rows):
        return set()
    lines = store.lines(root.rows)
    header = orjson.loads(next(lines))
    return {str(known["spec"]) for known in header["components"].values()}


def _token(store: Store, segment: str) -> str:
    if not store.blobs.exists(segment):
        return ""
    lines = store.lines(segment)
    return str(orjson.loads(next(lines))["token"])
