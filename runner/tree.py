"""The values of a spec with the place of each, and the problems found in them so far. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from runner.errors import Diagnostic
from runner.marks import Mark, Place, locate


class Tree:
    """A spec on its way from files to a `Spec`. Problems are collected, never raised."""

    def __init__(self, value: dict[str, Any], marks: dict[Place, Mark]) -> None:
        self.value = value
        self.marks = marks
        self.found: list[Diagnostic] = []
        self.used: set[str] = set()
        """Variables that were filled in."""
        self.unfilled: set[Place] = set()
        """Values that still hold `${...}`, because what it names has no value."""
        self.partial = False
        """Whether a file that this spec extends could not be read, so that nothing counts as missing."""
        self._bad: set[Place] = set()

    def problem(self, place: Place, code: str, message: str, hint: str = "", *, key: bool = False) -> None:
        """Record a problem with the value at `place`, or with its key."""
        self.add(place, locate(self.marks, place, code=code, message=message, hint=hint, key=key))

    def add(self, place: Place, diagnostic: Diagnostic) -> None:
        """Record a problem of `place` that is shown elsewhere, such as in the file it names."""
        self._bad.add(place)
        self.found.append(diagnostic)

    def sound(self, *place: str | int) -> bool:
        """Whether the value is there, and no problem was found at it, in it or around it.

        A problem of the whole spec, such as a key that is missing, says nothing of the keys that are there.
        """
        if self.get(*place) is None:
            return False
        size = len(place)
        problems = (bad for bad in self._bad | self.unfilled if bad)
        return not any(bad[:size] == place or place[: len(bad)] == bad for bad in problems)

    def get(self, *place: str | int) -> Any:
        """The value at `place`; None where there is none."""
        value: Any = self.value
        for step in place:
            try:
                value = value[step]
            except (KeyError, IndexError, TypeError):
                return None
        return value

    def override(self, place: Place, value: Any, marks: Mapping[Place, Mark], at: Place) -> None:
        """Put `value` at `place`; its marks are those of `at` in `marks`.

        Two mappings are merged key by key; everything else replaces what was there.
        """
        if place == () or (isinstance(self.get(*place), dict) and isinstance(value, dict)):
            self.marks[place] = marks[at]
            for key, item in value.items():
                self.override((*place, key), item, marks, (*at, key))
            return
        size = len(place)
        self.marks = {old: mark for old, mark in self.marks.items() if old[:size] != place}
        self.marks.update(_below(marks, at, place))
        self.get(*place[:-1])[place[-1]] = _copied(value)


def _below(marks: Mapping[Place, Mark], at: Place, place: Place) -> Iterator[tuple[Place, Mark]]:
    size = len(at)
    for old, mark in marks.items():
        if old[:size] == at:
            yield (*place, *old[size:]), mark


def _copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    return [_copied(item) for item in value] if isinstance(value, list) else value
