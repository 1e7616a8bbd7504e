"""Records as a Parquet file, typed from the output schema. Needs pyarrow, which is loaded late."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.model import Json
from runner.outputs.atomicfile import AtomicFile, digest
from runner.outputs.cells import Misfit, Rows, json_text, scalar, step
from runner.recordtypes import Type

if TYPE_CHECKING:
    import pyarrow as pa

ROW_GROUP_ROWS = 5120
"""Rows per row group, so that the bytes depend on the records alone."""
_MAX_FLOAT32 = float.fromhex("0x1.fffffep+127")
_BATCH_ROWS = 256
"""Rows that are held as Python values at a time; Arrow's take a fraction of the memory."""

Others = dict[str, Json]
"""Path of a field within its column, joined with `/` -> its value."""
Convert = Callable[[Json, str, Others], Any]
"""Takes a value, its path and where to put what its type has no field for."""


class ParquetFile(AtomicFile):
    """A Parquet file, compressed with zstd."""

    def __init__(self, path: Path, rows: Rows) -> None:
        """See `AtomicFile`."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        super().__init__(path)
        assert self.temporary is not None
        self._rows = rows
        layout = rows.layout
        self._converts = [_converter(column.type) for column in layout.columns]
        fields = [pa.field(column.name, _arrow(column.type)) for column in layout.columns]
        if layout.others:
            fields.append(pa.field(layout.others, pa.string()))
        self._schema = pa.schema(fields)
        self._waiting: list[list[Any]] = [[] for _ in fields]
        self._batches: list[pa.RecordBatch] = []
        self._file = self.temporary.open("wb")
        self._writer = pq.ParquetWriter(self._file, self._schema, compression="zstd")

    def write(self, record: bytes, meta: bytes = b"") -> None:
        """Append one record."""
        rows = self._rows
        key, values, rest = rows.values(record, meta)
        for convert, column, value, cells in zip(
            self._converts, rows.layout.columns, values, self._waiting, strict=False
        ):
            try:
                cells.append(convert(value, step(column.name), rest))
            except Misfit as error:
                raise rows.misfit(key, column.name, error) from error
        if rows.layout.others:
            self._waiting[-1].append(rows.others(rest))
        if len(self._waiting[0]) == _BATCH_ROWS:
            self._to_arrow()
            if len(self._batches) * _BATCH_ROWS == ROW_GROUP_ROWS:
                self._write_group()

    def finish(self) -> tuple[str, int]:
        """See `AtomicFile.finish`."""
        assert self.temporary is not None
        if self._waiting[0]:
            self._to_arrow()
        if self._batches:
            self._write_group()
        self._writer.close()
        self._file.close()
        return digest(self.temporary)

    def abandon(self) -> None:
        """See `AtomicFile.abandon`."""
        # It writes its footer, for which there may be no room: what went wrong first is told.
        with suppress(OSError, ValueError):
            self._writer.close()
        with suppress(OSError):
            self._file.close()

    def _to_arrow(self) -> None:
        import pyarrow as pa

        arrays = [
            pa.array(cells, type=field.type) for cells, field in zip(self._waiting, self._schema, strict=True)
        ]
        self._batches.append(pa.RecordBatch.from_arrays(arrays, schema=self._schema))
        self._waiting = [[] for _ in self._waiting]

    def _write_group(self) -> None:
        import pyarrow as pa

        table = pa.Table.from_batches(self._batches, self._schema)
        self._batches = []
        try:
            self._writer.write_table(table, row_group_size=ROW_GROUP_ROWS)
        except OSError as error:
            raise self.failed(error.strerror or error) from error


def _arrow(kind: Type) -> pa.DataType:
    import pyarrow as pa

    if kind.kind == "list" and kind.items is not None:
        return pa.list_(_arrow(kind.items))
    if kind.kind == "struct":
        return pa.struct([pa.field(name, _arrow(inner)) for name, inner in kind.fields])
    plain = {"integer": pa.int64(), "number": pa.float64(), "boolean": pa.bool_(), "float32": pa.float32()}
    return plain.get(kind.kind, pa.string())


def _converter(kind: Type) -> Convert:
    """What turns a value into one that Arrow takes for the type without losing anything."""
    if kind.kind == "list" and kind.items is not None:
        return _floats if kind.items.kind == "float32" else _list(_converter(kind.items))
    if kind.kind == "struct":
        return _struct({name: _converter(inner) for name, inner in kind.fields})
    if kind.kind in ("json", "object"):
        return lambda value, path, others: None if value is None else json_text(value)
    return lambda value, path, others: scalar(value, kind.kind)


def _floats(value: Json, path: str, others: Others) -> list[float] | None:
    if value is None:
        return None
    if not isinstance(value, list) or not all(type(item) in (float, int) for item in value):
        raise Misfit("holds a vector of numbers, and the value is none")
    for item in value:
        # Arrow would make it infinite.
        if not -_MAX_FLOAT32 <= item <= _MAX_FLOAT32:
            raise Misfit(f"holds single-precision numbers, and one is {json_text(item)[:40]}")
    return value


def _list(convert: Convert) -> Convert:
    def converted(value: Json, path: str, others: Others) -> list[Any] | None:
        if value is None:
            return None
        if not isinstance(value, list):
            raise Misfit(f"holds a list at {path}, and the value is none")
        return [convert(item, f"{path}/{at}", others) for at, item in enumerate(value)]

    return converted


def _struct(fields: dict[str, Convert]) -> Convert:
    def converted(value: Json, path: str, others: Others) -> dict[str, Any] | None:
        if value is None:
            return None
        if not isinstance(value, dict):
            raise Misfit(f"holds an object at {path}, and the value is none")
        for name, inner in value.items():
            if name not in fields:
                others[f"{path}/{step(name)}"] = inner
        return {name: convert(value.get(name), f"{path}/{name}", others) for name, convert in fields.items()}

    return converted
