"""Where records go. Each destination is replaced as a whole or not at all."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from runner import columns
from runner.model import Destination, Spec
from runner.outputs import jsonl
from runner.outputs.cells import Rows


class Output(Protocol):
    """A destination that is being written, beside its place. A context manager: leaving it without
    `place` leaves nothing behind and what was there as it was.
    """

    path: Path
    """Where it will be."""

    def write(self, record: bytes, meta: bytes = b"") -> None:
        """Append a record: a JSON line that begins with `_key`, and the line of an object with the
        fields of `include: [meta]`, empty where they are not wanted.

        Raises GbrunError naming key and column for what the destination cannot hold.
        """

    def seal(self) -> tuple[str, int]:
        """Finish the writing and return the SHA-256 (hex) and the size in bytes. Raises GbrunError."""

    def place(self) -> None:
        """Move the sealed file to its place, in one step. Raises GbrunError."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


def open(spec: Spec, destination: Destination) -> Output:
    """Begin to write a destination of a spec. Raises GbrunError where its folder cannot be written."""
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
