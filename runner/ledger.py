"""The part of the state that a run holds in memory: the root and its attempts, with their versions.

Every change is saved before the next one is made, and only where nobody else changed it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import replace

from runner.errors import StateChanged
from runner.model import Attempt, Basis, Json, State
from runner.store import Store


class Ledger:
    """Root and attempts as they were read last and changed since. For use under the lock."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._version = ""
        self._versions: dict[str, str] = {}
        self.state: State
        """The root; unset until `open` found one or the caller set the first."""
        self.attempts: dict[str, Attempt] = {}
        """By token, in the order of tokens."""

    @property
    def exists(self) -> bool:
        """Whether there is a stored root."""
        return bool(self._version)

    def open(self) -> None:
        """Read everything."""
        state, self._version = self._store.load()
        if state is not None:
            self.state = state
        self._take(self._store.attempts())

    def reload(self) -> bool:
        """Read everything again; whether someone else has changed anything.

        Raises StateChanged where the state is gone.
        """
        before = (self._version, self._versions)
        state, version = self._store.load()
        if state is None:
            raise StateChanged("the state was deleted while this run was waiting")
        self.state, self._version = state, version
        self._take(self._store.attempts())
        return before != (self._version, self._versions)

    def basis(self) -> Basis:
        """What a plan made from this would have as its basis."""
        return basis(self.state if self.exists else None, self.attempts.values())

    def save(self, state: State) -> None:
        """Replace the root, with the next serial. Raises StateChanged."""
        self.state = replace(state, serial=state.serial + 1)
        self._version = self._store.save(self.state, self._version)

    def create(self, attempt: Attempt) -> None:
        """Create an attempt. Raises BlobExists where someone else owns the token."""
        self._versions[attempt.token] = self._store.create_attempt(attempt)
        self.attempts[attempt.token] = attempt

    def replace(self, attempt: Attempt, **changes: Json) -> Attempt:
        """Change an attempt and return it as it is now. Raises StateChanged."""
        new = replace(attempt, **changes)
        self._versions[new.token] = self._store.replace_attempt(new, self._versions[new.token])
        self.attempts[new.token] = new
        return new

    def _take(self, found: list[tuple[Attempt, str]]) -> None:
        self.attempts = {attempt.token: attempt for attempt, _ in found}
        self._versions = {attempt.token: version for attempt, version in found}


def basis(state: State | None, attempts: Iterable[Attempt]) -> Basis:
    """What a plan is made from, as a value that another run can compare."""
    if state is None:
        return Basis()
    seen = hashlib.sha256()
    for attempt in attempts:
        seen.update(f"{attempt.token} {attempt.state}\n".encode())
    return Basis(
        lineage=state.lineage,
        serial=state.serial,
        attempts=seen.hexdigest()[:16],
        rows=state.rows,
        outcome_count=len(state.outcomes),
        export=state.export,
    )
