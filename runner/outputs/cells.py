"""Records as rows of columns: a record's bytes become values, values become cells of a table."""

from __future__ import annotations

import json
from typing import Any

import msgspec

from runner import results
from runner.columns import Layout
from runner.errors import GbrunError
from runner.model import Json

_MIN_INT64, _MAX_INT64 = -(1 << 63), (1 << 63) - 1
_MAX_SHOWN_CHARS = 40


class Misfit(ValueError):
    """A value that a column cannot hold; the text says which and why."""


class Rows:
    """Turns records into the values of one layout."""

    def __init__(self, path: str, layout: Layout) -> None:
        """`path` is the destination as the spec writes it, for messages."""
        self.layout = layout
        self._path = path

    def values(self, record: bytes, meta: bytes) -> tuple[str, list[Json], dict[str, Json]]:
        """(key, a value per column, fields that have no column).

        Raises GbrunError for a record with such fields where the layout has no place for them.
        """
        fields = _parsed(with_meta(record, meta))
        layout = self.layout
        key: str = fields["_key"]
        values: list[Json] = []
        for column in layout.columns:
            try:
                values.append(column.selector.value(fields))
            except ValueError as error:
                raise self.misfit(key, column.name, error) from error
        rest: dict[str, Json] = {}
        if layout.fields is not None:
            rest = {
                name if layout.whole else step(name): value
                for name, value in fields.items()
                if name not in layout.fields
            }
        if rest and not layout.others:
            raise self.misfit(key, next(iter(rest)), "has no column")
        return key, values, rest

    def others(self, rest: dict[str, Json]) -> str | None:
        """The cell of the last column: its fields as JSON text; None where there are none."""
        return json_text(rest) if rest or self.layout.whole else None

    def misfit(self, key: str, column: str, what: object) -> GbrunError:
        """The error of a record that the destination cannot hold."""
        return GbrunError(
            f'{self._path} cannot hold the record of "{key}": "{column}" {what}',
            hint="choose what is written with `columns`, or write a .jsonl file, which holds any value",
        )


def with_meta(record: bytes, meta: bytes) -> bytes:
    """A record's line with the fields of `meta` (a JSON object's line, or nothing) at its end."""
    if not meta:
        return record
    fields = _parsed(meta)
    # An answer may have a field of such a name: then the name counts once.
    if any(b'"%s":' % name.encode() in record for name in fields):
        return results.dump_line(_parsed(record) | fields)
    return record[:-2] + b"," + meta[1:]


def json_text(value: Json) -> str:
    """A value as JSON text, on one line."""
    return results.dump_line(value)[:-1].decode()


def step(name: str) -> str:
    """A field's name as a step of a path that is joined with `/` (as in RFC 6901)."""
    return name.replace("~", "~0").replace("/", "~1")


def scalar(value: Json, kind: str) -> Any:
    """A value as text, 64-bit integer, double or truth value; null stays None.

    Raises Misfit where it is of another kind or would lose something.
    """
    if value is None:
        return None
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind == "string" and isinstance(value, str):
        return text(value)
    if kind == "boolean" and isinstance(value, bool):
        return value
    if kind == "integer" and is_number and value == value // 1:
        if not _MIN_INT64 <= value <= _MAX_INT64:
            raise Misfit(f"holds 64-bit integers, and the value is {_shown(value)}")
        return int(value)
    if kind == "number" and is_number:
        try:
            number = float(value)
        except OverflowError:
            number = 0.0
        if number != value:
            raise Misfit(f"holds double-precision numbers, and the value is {_shown(value)}")
        return number
    raise Misfit(f"holds values of type {kind}, and the value is {_shown(value)}")


def text(value: str) -> str:
    """The text itself. Raises Misfit for half a surrogate pair, which UTF-8 cannot hold."""
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise Misfit(f"holds text, and character {error.start + 1:,} is half a surrogate pair") from error
    return value


def _parsed(line: bytes) -> Any:
    """The object of a line that gbrun wrote, with whole numbers of any size."""
    try:
        return msgspec.json.decode(line)
    except msgspec.DecodeError:
        # It refuses half a surrogate pair, and what is nested very deep.
        return json.loads(line)


def _shown(value: Json) -> str:
    shown = json_text(value)
    return shown if len(shown) <= _MAX_SHOWN_CHARS else f"{shown[:_MAX_SHOWN_CHARS]}..."
