"""Records as a table of BigQuery, replaced by one load job.

The table's labels say whose it is, what it holds and which load brought that:

    gbrun_lineage     the state that owns the table
    gbrun_load        a counter of its loads, which begins with the ms of the table's own time
    gbrun_pending     digest of what is being loaded, empty once that is done
    gbrun_digest      digest of what it holds, in base 32 (a label is shorter than 64 hex digits)
    gbrun_bytes, gbrun_rows, gbrun_modified   size of that, rows, time of its last change in ms

A load is announced (`gbrun_pending`, the counter) before it is started, and the counter is part of the job's
id: a load that is repeated after its answer was lost meets the job that it made.

Source: google-cloud-bigquery 3.47.0; https://cloud.google.com/bigquery/docs/reference/rest/v2/Job,
/v2/tables, /docs/labels-intro#requirements, read 2026-11-21.
"""

from __future__ import annotations

import base64
import hashlib
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import orjson

from runner import bqclient, bqtable
from runner.columns import Layout, Selector, TypedColumn
from runner.errors import GbrunError
from runner.model import ALTERED, Json, Owner
from runner.outputs.atomicfile import ByteFile
from runner.outputs.cells import Misfit, Rows, json_text, scalar, step
from runner.recordtypes import INTEGER, JSON, KEY, STRING, Type
from runner.results import dump_line

LINEAGE, LOAD, PENDING = "gbrun_lineage", "gbrun_load", "gbrun_pending"
DIGEST, BYTES, ROWS, MODIFIED = "gbrun_digest", "gbrun_bytes", "gbrun_rows", "gbrun_modified"
SETTLE_MS = 120_000
"""A change this soon after a load counts as gbrun's own: writing the labels is one."""
FAILURES = Layout(
    columns=tuple(
        TypedColumn(name, kind, Selector((name,), None))
        for name, kind in {
            KEY: STRING,
            "outcome": STRING,
            "code": STRING,
            "message": STRING,
            "attempts": INTEGER,
            "raw": JSON,
        }.items()
    ),
    key=0,
    others="",
    fields=frozenset({KEY, "outcome", "code", "message", "attempts", "raw"}),
    whole=False,
)
"""The columns of a table of failures."""
_MAX_DEPTH = 15
"""Levels of nested columns. Source: https://cloud.google.com/bigquery/docs/nested-repeated"""
_MAX_LOADS = 20
"""Failed loads of the same records that are passed over."""
_EDITOR = "roles/bigquery.dataEditor on the dataset and roles/bigquery.jobUser on the project"
_PLAIN = {
    "string": "STRING",
    "integer": "INTEGER",
    "number": "FLOAT",
    "float32": "FLOAT",
    "boolean": "BOOLEAN",
}

Others = dict[str, Json]
"""Path of a field within its column, joined with `/` -> its value."""
Convert = Callable[[Json, str, Others], Json]
"""Takes a value, its path and where to put what its type has no field for."""


class TableFile(ByteFile):
    """A table, spooled as JSON lines in a temporary folder."""

    def __init__(self, uri: str, rows: Rows, owner: Owner, *, mends: bool = False) -> None:
        """`mends` writes what BigQuery cannot hold as text, rather than raise."""
        self._name = bqtable.parse(uri)
        self._uri = uri
        self._rows = rows
        self._owner = owner
        self._mends = mends
        self._folder = tempfile.TemporaryDirectory(prefix="gbrun-")
        super().__init__(Path(self._folder.name) / "records.jsonl")
        layout = rows.layout
        self._fields = [field(column.name, column.type) for column in layout.columns]
        self._fields[layout.key]["mode"] = "REQUIRED"
        self._converts = [_converter(column.type) for column in layout.columns]
        if layout.others:
            self._fields.append(field(layout.others, JSON))
        self._row_count = 0
        self._sealed = ALTERED
        # The same lines under another schema are another table.
        self._hash.update(orjson.dumps(self._fields))

    def failed(self, why: object) -> GbrunError:
        """See `AtomicFile.failed`."""
        return GbrunError(f"cannot write {self._uri}: {why}")

    def write(self, record: bytes, meta: bytes = b"") -> None:
        """Append one record."""
        rows = self._rows
        key, values, rest = rows.values(record, meta)
        cells: dict[str, Json] = {}
        for convert, column, value in zip(self._converts, rows.layout.columns, values, strict=True):
            try:
                cells[column.name] = convert(
                    _mended(value) if self._mends else value, step(column.name), rest
                )
            except Misfit as error:
                raise rows.misfit(key, column.name, error) from error
        if rows.layout.others:
            try:
                cells[rows.layout.others] = _json(rest if rest or rows.layout.whole else None, "", rest)
            except Misfit as error:
                raise rows.misfit(key, rows.layout.others, error) from error
        self._row_count += 1
        self.append(dump_line(cells))

    def finish(self) -> tuple[str, int]:
        """See `AtomicFile.finish`."""
        self._sealed = super().finish()
        return self._sealed

    def claim(self) -> None:
        """See `AtomicFile.claim`."""
        what = f"cannot look at {self._uri}"
        with bqclient.connected(self._name.project, what) as client, _writing(self._name, what):
            table = _found(client, self._name)
            if table is not None:
                self._check(table)

    def place(self) -> None:
        """Load the sealed records into the table, in place of what it holds; once, however often asked.

        Raises GbrunError where BigQuery refuses, and for a table of another owner.
        """
        what = f"cannot write {self._uri}"
        with bqclient.connected(self._name.project, what) as client, _writing(self._name, what):
            table = self._own(client)
            if held(table, self._owner.lineage) != self._sealed:
                table = self._announce(client, table)
                self._settle(client, self._load(client, table))

    def remove(self) -> None:
        """Delete the table, where it is this state's."""
        what = f"cannot delete {self._uri}"
        with bqclient.connected(self._name.project, what) as client, _writing(self._name, what):
            table = _found(client, self._name)
            if table is not None and table.labels.get(LINEAGE) == self._owner.lineage:
                client.delete_table(table, not_found_ok=True, retry=bqclient.patience())

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        super().__exit__(kind, error, trace)
        self._folder.cleanup()

    # ------------------------------------------------------------ one load

    def _own(self, client: Any) -> Any:
        """The table, made where there is none. Raises GbrunError for one of another owner."""
        from google.api_core.exceptions import Conflict
        from google.cloud import bigquery

        owner = self._owner
        table = _found(client, self._name)
        if table is None:
            fresh = bigquery.Table(str(self._name), schema=self._schema())
            fresh.labels = {LINEAGE: owner.lineage}
            try:
                return client.create_table(fresh, retry=bqclient.patience())
            except Conflict:
                table = client.get_table(str(self._name), retry=bqclient.patience())
        self._check(table)
        return table

    def _check(self, table: Any) -> None:
        found = table.labels.get(LINEAGE, "")
        if not self._owner.may_replace(self._uri, found):
            raise foreign(self._uri, found)

    def _announce(self, client: Any, table: Any) -> Any:
        """The table, whose labels say what is to be loaded and as which load."""
        labels = table.labels
        if labels.get(PENDING) != self._digest or labels.get(LINEAGE) != self._owner.lineage:
            # Beyond every load into a table of this name, also into one that was deleted or lost its labels.
            number = max(_number(labels.get(LOAD)), _milliseconds(table)) + 1
            table.labels = {
                **labels,
                LINEAGE: self._owner.lineage,
                PENDING: self._digest,
                LOAD: str(number),
            }
            table = client.update_table(table, ["labels"], retry=bqclient.patience())
        return table

    def _load(self, client: Any, table: Any) -> int:
        """Load the records into a table where that was announced; the number of the load that is done."""
        first = _number(table.labels.get(LOAD))
        for number in range(first, first + _MAX_LOADS):
            job_id = self._job_id(number)
            job, is_new = self._started(client, table, job_id)
            try:
                job.result(retry=bqclient.patience())
            except Exception as error:
                # One that failed before is passed over; a new one that fails is told.
                if is_new or bqclient.status_of(error) == 0:
                    raise
                continue
            return number
        raise self.failed(f"{_MAX_LOADS} loads of the same records failed")

    def _started(self, client: Any, table: Any, job_id: str) -> tuple[Any, bool]:
        """The job of this id, and whether it was made just now."""
        from google.api_core.exceptions import Conflict
        from google.cloud import bigquery

        assert self.temporary is not None
        config = bigquery.LoadJobConfig(
            schema=self._schema(),
            source_format="NEWLINE_DELIMITED_JSON",
            write_disposition="WRITE_TRUNCATE",
            create_disposition="CREATE_NEVER",
        )
        try:
            with self.temporary.open("rb") as stream:
                job = client.load_table_from_file(
                    stream,
                    table.reference,
                    job_id=job_id,
                    location=table.location,
                    project=self._name.project,
                    job_config=config,
                )
        except Conflict:
            job = client.get_job(
                job_id, project=self._name.project, location=table.location, retry=bqclient.patience()
            )
            return job, False
        return job, True

    def _settle(self, client: Any, number: int) -> None:
        """Write down what the table holds now, and which load brought it."""
        for _ in range(3):
            table = client.get_table(str(self._name), retry=bqclient.patience())
            modified = _milliseconds(table)
            table.labels = {
                **table.labels,
                LINEAGE: self._owner.lineage,
                LOAD: str(number),
                PENDING: "",
                DIGEST: self._digest,
                BYTES: str(self._sealed[1]),
                ROWS: str(self._row_count),
                MODIFIED: str(modified),
            }
            table = client.update_table(table, ["labels"], retry=bqclient.patience())
            if _milliseconds(table) - modified <= SETTLE_MS:
                return

    @property
    def _digest(self) -> str:
        return _short(self._sealed[0])

    def _job_id(self, number: int) -> str:
        content = hashlib.sha256(f"{self._uri} {self._sealed[0]}".encode()).hexdigest()
        return f"gbrun-{self._owner.lineage[:8]}-{content[:32]}-{number}"

    def _schema(self) -> list[Any]:
        from google.cloud import bigquery

        return [bigquery.SchemaField.from_api_repr(one) for one in self._fields]


# ---------------------------------------------------------------- looking


def look(uri: str, lineage: str) -> tuple[str, int] | None:
    """Digest and size of what a table holds; None for no table, ALTERED for anything but what this state
    loaded last.

    Raises GbrunError where the dataset is not there, or may not be read.
    """
    table = _looked_up(uri)
    return None if table is None else held(table, lineage)


def owner_of(uri: str) -> str:
    """The lineage that a table belongs to, empty where it has none or is not there. Raises GbrunError."""
    table = _looked_up(uri)
    return "" if table is None else str(table.labels.get(LINEAGE, ""))


def held(table: Any, lineage: str) -> tuple[str, int]:
    """Digest and size of what a table holds, as far as its labels are still true; else ALTERED."""
    labels = table.labels
    known = labels.get(LINEAGE) == lineage and DIGEST in labels and not labels.get(PENDING)
    same = (
        known
        and str(table.num_rows) == labels.get(ROWS)
        and not table.streaming_buffer
        and _milliseconds(table) - _number(labels.get(MODIFIED)) <= SETTLE_MS
    )
    return (_long(labels[DIGEST]), _number(labels.get(BYTES))) if same else ALTERED


def foreign(uri: str, owner: str) -> GbrunError:
    """The error for a table that is not this state's."""
    whose = f"its label {LINEAGE} is {owner}" if owner else f"it has no label {LINEAGE}"
    return GbrunError(
        f"{uri} belongs to another owner: {whose}",
        hint="choose another table, or add --overwrite to take this one over",
    )


def _looked_up(uri: str) -> Any:
    name = bqtable.parse(uri)
    what = f"cannot look at {uri}"
    with bqclient.connected(name.project, what) as client, _writing(name, what):
        found = _found(client, name)
        if found is None:
            # Before anything is spent: without a dataset there will be no table.
            client.get_dataset(f"{name.project}.{name.dataset}", retry=bqclient.patience())
        return found


def _found(client: Any, name: bqtable.TableName) -> Any:
    from google.api_core.exceptions import NotFound

    try:
        return client.get_table(str(name), retry=bqclient.patience())
    except NotFound:
        return None


def _writing(name: bqtable.TableName, what: str) -> Any:
    return bqclient.asking(
        what,
        role=_EDITOR,
        missing=f"make the dataset in the location you want: bq mk --dataset {name.project}:{name.dataset}",
        wrong="look at the names in `columns` and in the output schema",
    )


def _milliseconds(table: Any) -> int:
    return 0 if table.modified is None else round(table.modified.timestamp() * 1000)


def _number(text: str | None) -> int:
    return int(text) if text and text.isdigit() else 0


def _short(sha256: str) -> str:
    return base64.b32encode(bytes.fromhex(sha256)).decode().rstrip("=").lower()


def _long(label: str) -> str:
    """The inverse of `_short`; empty for a label that somebody else wrote."""
    try:
        return base64.b32decode(label.upper() + "=" * (-len(label) % 8)).hex()
    except ValueError:
        return ""


# ---------------------------------------------------------------- columns and values


def field(name: str, kind: Type, depth: int = 1) -> dict[str, Any]:
    """A column as BigQuery's REST API describes it; what has no column of its own kind is JSON."""
    if kind.kind == "list" and kind.items is not None and _has_column(kind.items, depth):
        return {**field(name, kind.items, depth), "mode": "REPEATED"}
    if kind.kind == "struct" and _has_column(kind, depth):
        inner = [field(inner, of, depth + 1) for inner, of in kind.fields]
        return {"name": name, "type": "RECORD", "mode": "NULLABLE", "fields": inner}
    return {"name": name, "type": _PLAIN.get(kind.kind, "JSON"), "mode": "NULLABLE"}


def _has_column(kind: Type, depth: int) -> bool:
    """Whether a type is more than JSON, and no list: BigQuery has no lists of lists."""
    if kind.kind == "struct":
        return depth < _MAX_DEPTH and not bqtable.unusable_columns([name for name, _ in kind.fields])
    return kind.kind in _PLAIN


def _converter(kind: Type, depth: int = 1) -> Convert:
    """What turns a value into one that a load takes for the type without losing anything."""
    if kind.kind == "list" and kind.items is not None and _has_column(kind.items, depth):
        return _list(_converter(kind.items, depth))
    if kind.kind == "struct" and _has_column(kind, depth):
        return _struct({name: _converter(inner, depth + 1) for name, inner in kind.fields})
    if kind.kind not in _PLAIN:
        return _json
    plain = "number" if kind.kind == "float32" else kind.kind
    return lambda value, path, others: scalar(value, plain)


def _json(value: Json, path: str, others: Others) -> Json:
    try:
        orjson.dumps(value)
    except orjson.JSONEncodeError as error:
        raise Misfit(f"holds JSON as BigQuery knows it, and the value is none: {error}") from error
    return value


def _list(convert: Convert) -> Convert:
    def converted(value: Json, path: str, others: Others) -> list[Json]:
        if value is None:
            return []
        if not isinstance(value, list):
            raise Misfit(f"holds a list at {path}, and the value is none")
        if any(item is None for item in value):
            raise Misfit(f"holds a list without nulls at {path}, and the value has one")
        return [convert(item, f"{path}/{at}", others) for at, item in enumerate(value)]

    return converted


def _struct(fields: Mapping[str, Convert]) -> Convert:
    def converted(value: Json, path: str, others: Others) -> dict[str, Json] | None:
        if value is None:
            return None
        if not isinstance(value, dict):
            raise Misfit(f"holds an object at {path}, and the value is none")
        for name, inner in value.items():
            if name not in fields:
                others[f"{path}/{step(name)}"] = inner
        return {name: convert(value.get(name), f"{path}/{name}", others) for name, convert in fields.items()}

    return converted


def _mended(value: Json) -> Json:
    """The value with half surrogate pairs replaced; as JSON text where BigQuery's JSON cannot hold it."""
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    try:
        orjson.dumps(value)
    except orjson.JSONEncodeError:
        return _mended(json_text(value))
    return value
