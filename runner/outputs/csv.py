"""Records as comma-separated values (RFC 4180), in UTF-8, with lines that end in `\\n`.

Values stand as they are: nothing is added to a text that a spreadsheet would take for a formula.
"""

from __future__ import annotations

import csv
from pathlib import Path

from runner.model import Json
from runner.outputs.atomicfile import ByteFile
from runner.outputs.cells import Misfit, Rows, json_text, text


class CsvFile(ByteFile):
    """A CSV file with a header."""

    def __init__(self, path: Path, rows: Rows) -> None:
        """See `AtomicFile`."""
        super().__init__(path)
        self._rows = rows
        # With this line end the writer puts every `\r` and `\n` in quotes, in all versions of Python.
        self._writer = csv.writer(_Echo(), lineterminator="\r\n")
        self._line(rows.layout.names)

    def write(self, record: bytes, meta: bytes = b"") -> None:
        """Append one record."""
        rows = self._rows
        key, values, rest = rows.values(record, meta)
        cells: list[str | None] = []
        for column, value in zip(rows.layout.columns, values, strict=True):
            try:
                cells.append(_cell(value, column.type.kind))
            except Misfit as error:
                raise rows.misfit(key, column.name, error) from error
        if rows.layout.others:
            cells.append(rows.others(rest))
        self._line(cells)

    def _line(self, cells: list[str] | list[str | None]) -> None:
        line: str = self._writer.writerow(cells)
        self.append(line.removesuffix("\r\n").encode() + b"\n")


def _cell(value: Json, kind: str) -> str | None:
    if value is None:
        return None
    if kind == "string" and isinstance(value, str):
        return text(value)
    whole = kind == "integer" and isinstance(value, float) and value.is_integer()
    return json_text(int(value) if whole else value)


class _Echo:
    """Gives back what the writer writes."""

    def write(self, line: str) -> str:
        return line
