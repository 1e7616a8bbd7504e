"""Records as the table `records` of an SQLite database.

The same records give the same bytes: everything that SQLite would take from its build or from the order
of transactions is set.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

from runner.outputs.atomicfile import AtomicFile, digest
from runner.outputs.cells import Misfit, Rows, json_text, scalar

APPLICATION_ID = 0x6762726E
"""`gbrn`, for tools such as `file`."""
FORMAT = 1
"""`PRAGMA user_version`: rises when the tables are laid out differently."""
_TYPES = {"integer": "INTEGER", "boolean": "INTEGER", "number": "REAL"}
_VERSION_AT = 96
"""Where a database names the library that wrote it. Source: https://www.sqlite.org/fileformat2.html"""
_VERSION = 3_037_000
_BATCH = 1000


class SqliteFile(AtomicFile):
    """A database with one table, its rows in the order of the inputs."""

    def __init__(self, path: Path, rows: Rows) -> None:
        """See `AtomicFile`."""
        super().__init__(path)
        assert self.temporary is not None
        self._rows = rows
        self._waiting: list[list[Any]] = []
        self._db = sqlite3.connect(self.temporary, isolation_level=None)
        layout = rows.layout
        types = [_TYPES.get(column.type.kind, "TEXT") for column in layout.columns]
        types[layout.key] = "TEXT PRIMARY KEY NOT NULL"
        names = layout.names
        told = ", ".join(
            f"{_quoted(name)} {kind}" for name, kind in zip(names, [*types, "TEXT"], strict=False)
        )
        self._insert = f"INSERT INTO records VALUES ({','.join('?' * len(names))})"
        try:
            self._db.executescript(
                "PRAGMA page_size=4096; PRAGMA encoding='UTF-8'; PRAGMA auto_vacuum=NONE;"
                # Nothing to roll back to: what is not finished is thrown away.
                "PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; PRAGMA locking_mode=EXCLUSIVE;"
                f"PRAGMA application_id={APPLICATION_ID}; PRAGMA user_version={FORMAT};"
                f"BEGIN; CREATE TABLE records ({told});"
            )
        except sqlite3.Error as error:
            self.__exit__(None, None, None)
            raise self.failed(error) from error

    def write(self, record: bytes, meta: bytes = b"") -> None:
        """Append one record."""
        rows = self._rows
        key, values, rest = rows.values(record, meta)
        cells: list[Any] = []
        for column, value in zip(rows.layout.columns, values, strict=True):
            kind = column.type.kind
            try:
                plain = kind == "string" or kind in _TYPES
                cells.append(scalar(value, kind) if plain else _nested(value))
            except Misfit as error:
                raise rows.misfit(key, column.name, error) from error
        if rows.layout.others:
            cells.append(rows.others(rest))
        self._waiting.append(cells)
        if len(self._waiting) == _BATCH:
            self._flush()

    def finish(self) -> tuple[str, int]:
        """See `AtomicFile.finish`."""
        assert self.temporary is not None
        self._flush()
        try:
            self._db.execute("COMMIT")
            self._db.close()
        except sqlite3.Error as error:
            raise self.failed(error) from error
        with self.temporary.open("r+b") as file:
            file.seek(_VERSION_AT)
            file.write(_VERSION.to_bytes(4, "big"))
        return digest(self.temporary)

    def abandon(self) -> None:
        """See `AtomicFile.abandon`."""
        self._db.close()

    def _flush(self) -> None:
        rows, self._waiting = self._waiting, []
        try:
            self._db.executemany(self._insert, rows)
        except sqlite3.Error as error:
            raise self.failed(error) from error


def _nested(value: Any) -> str | None:
    return None if value is None else json_text(value)


def _quoted(name: str) -> str:
    doubled = name.replace('"', '""')
    return f'"{doubled}"'
