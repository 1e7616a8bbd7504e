"""Where records go: files, and tables of BigQuery. Each destination is replaced as a whole or not at all."""

from __future__ import annotations

from types import TracebackType
from typing import Protocol, Self

from runner import bqtable, columns
from runner.model import NOBODY, Destination, Owner, Spec
from runner.outputs import atomicfile, jsonl
from runner.outputs.cells import Rows


class Output(Protocol):
    """A destination that is being written, beside its place. A context manager: leaving it without
    `place` leaves nothing behind and what was there as it was.
    """

    def write(self, record: bytes, meta: bytes = b"") -> None:
        """Append a record: a JSON line that begins with `_key`, and the line of an object with the
        fields of `include: [meta]`, empty where they are not wanted.

        Raises GbrunError naming key and column for what the destination cannot hold.
        """

    def seal(self) -> tuple[str, int]:
        """Finish the writing and return the SHA-256 (hex) and the size in bytes. Raises GbrunError."""

    def place(self) -> None:
        """Move what is sealed to its place, in one step. Raises GbrunError."""

    def remove(self) -> None:
        """Take away what an earlier export left at the place. Raises GbrunError."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


def open(spec: Spec, destination: Destination, owner: Owner = NOBODY) -> Output:
    """Begin to write a destination of a spec for the state that owns it.

    Raises GbrunError where its folder cannot be written.
    """
    if destination.is_table:
        from runner.outputs import bigquery

        layout = columns.layout(spec, destination, nested=True)
        return bigquery.TableFile(destination.path, Rows(destination.path, layout), owner)
    path, suffix = spec.folder / destination.path, destination.suffix
    if suffix == ".jsonl" and not destination.columns:
        return jsonl.JsonlFile(path)
    layout = columns.layout(spec, destination, nested=suffix == ".parquet")
    rows = Rows(destination.path, layout)
    if suffix == ".csv":
        from runner.outputs import csv

        return csv.CsvFile(path, rows)
    if suffix == ".sqlite":
        from runner.outputs import sqlite

        return sqlite.SqliteFile(path, rows)
    if suffix == ".parquet":
        from runner.outputs import parquet

        return parquet.ParquetFile(path, rows)
    return jsonl.JsonlFile(path, rows)


def open_failures(spec: Spec, owner: Owner = NOBODY) -> Output:
    """Begin to write the failures, beside the first destination. Raises GbrunError as `open` does."""
    first = spec.destinations[0]
    if first.is_table:
        from runner.outputs import bigquery

        rows = Rows(first.errors_path, bigquery.FAILURES)
        return bigquery.TableFile(first.errors_path, rows, owner, mends=True)
    return jsonl.JsonlFile(spec.folder / first.errors_path)


def look(spec: Spec, path: str, lineage: str) -> tuple[str, int] | None:
    """SHA-256 (hex) and size of what lies at a destination, None for nothing.

    A table that is not as the state of this lineage left it has neither: `("", 0)`. Raises GbrunError where
    it cannot be read.
    """
    if path.startswith(bqtable.SCHEME):
        from runner.outputs import bigquery

        return bigquery.look(path, lineage)
    return atomicfile.look(spec.folder / path)
