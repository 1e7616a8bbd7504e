"""Where records go: files here and in Cloud Storage, and tables of BigQuery.

Each destination is replaced as a whole or not at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from runner import bqtable, columns, gcsuri
from runner.model import NOBODY, Owner
from runner.outputs import atomicfile, jsonl
from runner.outputs.cells import Rows
from runner.specmodel import Destination, Spec


class Output(Protocol):
    """A destination that is being written, beside its place. A context manager: leaving it without
    `place` leaves nothing behind and what was there as it was.
    """

    def write(self, record: bytes, meta: bytes = b"") -> None:
        """Append a record: a JSON line that begins with `_key`, and the line of an object with the
        fields of `include: [meta]`, empty where they are not wanted.

        Raises GbrunError naming key and column for what the destination cannot hold.
        """

    def write_all(self, records: Sequence[bytes], metas: Sequence[bytes] = ()) -> None:
        """Append records as `write` does, with as many `metas` or none."""

    def seal(self) -> tuple[str, int]:
        """Finish the writing and return the SHA-256 (hex) and the size in bytes. Raises GbrunError."""

    def claim(self) -> None:
        """Raises GbrunError where the place holds what is not the owner's to replace. Changes nothing."""

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
    if destination.is_object:
        from runner.outputs import gcs

        return gcs.ObjectFile(destination.path, owner, lambda path: _file(spec, destination, path))
    return _file(spec, destination, spec.folder / destination.path)


def _file(spec: Spec, destination: Destination, path: Path) -> atomicfile.AtomicFile:
    """Begin to write a destination as a file of this machine."""
    suffix = destination.suffix
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
    if first.is_object:
        from runner.outputs import gcs

        return gcs.ObjectFile(first.errors_path, owner, jsonl.JsonlFile)
    return jsonl.JsonlFile(spec.folder / first.errors_path)


def look(spec: Spec, path: str, lineage: str) -> tuple[str, int] | None:
    """SHA-256 (hex) and size of what lies at a destination, None for nothing.

    An object or a table that is not as the state of this lineage left it has neither: ALTERED. Raises
    GbrunError where it cannot be read.
    """
    if path.startswith(bqtable.SCHEME):
        from runner.outputs import bigquery

        return bigquery.look(path, lineage)
    if path.startswith(gcsuri.SCHEME):
        from runner.outputs import gcs

        return gcs.look(path, lineage)
    return atomicfile.look(spec.folder / path)


def owner_of(path: str) -> tuple[str, str]:
    """The lineage that an object or a table says it belongs to, and where it says so.

    Two empty texts where it says nothing, is not there, or is a file. Raises GbrunError.
    """
    found, said = "", ""
    if path.startswith(bqtable.SCHEME):
        from runner.outputs import bigquery

        found, said = bigquery.owner_of(path), f"label {bigquery.LINEAGE}"
    elif path.startswith(gcsuri.SCHEME):
        from runner.outputs import gcs

        found, said = gcs.owner_of(path), f"metadata {gcs.LINEAGE}"
    return (found, said) if found else ("", "")
