"""The importer of Vertex batch jobs: what it does not load, of a whole file. Pure.

Rows become rows of a table, so a JSON key is a column of one type throughout the file; one line that does not
fit fails the job. Nothing about what the rows ask is looked at here.

Source: failed imports of live jobs, 2026-09: types, nesting, names, empty objects, nulls, lists of types in
anyOf, keys that look like numbers. The wording behind "Failed to import data" is the emulator's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import orjson

MAX_DEPTH = 15
_COLUMN = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,299}")
_NUMBER = re.compile(r"-?[0-9]{1,18}(?:\.[0-9]+)?")


class ImportFailed(Exception):
    """The file is not loaded."""


class Importer:
    """Loads one file, line by line."""

    def __init__(self) -> None:
        self.rows = 0
        self._types: dict[tuple[str, ...], str] = {}
        self._numeric = True

    @property
    def keys_are_numbers(self) -> bool:
        """Whether the column `key` was taken for numbers."""
        return self._numeric and ("key",) in self._types

    def load(self, lines: Iterable[bytes]) -> None:
        """Take all lines. Raises ImportFailed."""
        for number, line in enumerate(lines, 1):
            try:
                self._line(line)
            except ImportFailed as error:
                raise ImportFailed(f"Failed to import data: line {number}: {error}") from None
            self.rows = number
        if not self.rows:
            raise ImportFailed("Failed to import data: the file has no rows.")

    def _line(self, line: bytes) -> None:
        try:
            row = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            raise ImportFailed(f"JSON parsing error: {error.msg}") from None
        if not isinstance(row, dict):
            raise ImportFailed("JSON table encountered: expected an object")
        key = row.get("key")
        self._numeric = self._numeric and isinstance(key, str) and bool(_NUMBER.fullmatch(key))
        self._object(row, (), 0)

    def _object(self, value: dict[str, Any], path: tuple[str, ...], depth: int) -> None:
        if not value:
            raise ImportFailed(f"unsupported empty struct type for field '{'.'.join(path)}'")
        if depth > MAX_DEPTH:
            raise ImportFailed(f"too many nested record levels at '{'.'.join(path)}'")
        for name, item in value.items():
            if not _COLUMN.fullmatch(name):
                raise ImportFailed(f"invalid field name '{name}' below '{'.'.join(path)}'")
            self._value(item, (*path, name), depth)

    def _value(self, value: Any, path: tuple[str, ...], depth: int) -> None:
        where = ".".join(path)
        kind = _kind(value)
        if kind == "null":
            raise ImportFailed(f"null value for field '{where}'")
        known = self._types.setdefault(path, kind)
        if known != kind:
            raise ImportFailed(f"field '{where}' is {kind}, and was {known} before")
        if isinstance(value, dict):
            self._object(value, path, depth + 1)
        elif isinstance(value, list):
            if path[-1] == "type" and "anyOf" in {step.replace("any_of", "anyOf") for step in path}:
                raise ImportFailed(f"field '{where}' is a list inside anyOf")
            for item in value:
                self._value(item, (*path, "[]"), depth)


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "BOOLEAN"
    if isinstance(value, (int, float)):
        return "NUMBER"
    if isinstance(value, str):
        return "STRING"
    return "RECORD" if isinstance(value, dict) else "REPEATED"
