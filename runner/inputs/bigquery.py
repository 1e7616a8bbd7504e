"""Rows of a table in BigQuery or of a query, page by page, in the order that BigQuery gives.

A query is only ever a SELECT: a dry run says what it is before it runs. Its result does not change while it
is read. A table that changes meanwhile is an error.

Source: google-cloud-bigquery 3.47.0; https://cloud.google.com/bigquery/docs/reference/rest/v2/tabledata/list,
/v2/Job, read 2026-11-21.
"""

from __future__ import annotations

import base64
import datetime
import hashlib
import json
import math
import sqlite3
import unicodedata
from collections.abc import Iterator, Mapping
from contextlib import closing
from decimal import Decimal
from typing import Any

from runner import bqclient, bqtable
from runner.errors import InputUnreadable
from runner.model import BadRow, Entry, Json, Row
from runner.sandbox import CompiledTemplate, Fields, TemplateFailed
from runner.specmodel import DEFAULT_ENV, BigQuerySource, Spec

PAGE_ROWS = 2000
_READER = "roles/bigquery.dataViewer and roles/bigquery.jobUser"
_UNREAD_KINDS = {"VIEW": "a view", "MATERIALIZED_VIEW": "a view", "EXTERNAL": "an external table"}


def entries(spec: Spec, index: int, source: BigQuerySource) -> Iterator[Entry]:
    """The rows of one source, each with its Row, or why it is none.

    Raises InputUnreadable: BigQuery refuses, the table changes meanwhile, or two rows have the same key.
    """
    label = source.table or f"inputs[{index}].query"
    keys = _Keys(spec, source)
    with closing(sqlite3.connect("")) as db:
        db.execute("CREATE TABLE seen (key TEXT PRIMARY KEY, number INTEGER) WITHOUT ROWID")
        for number, fields in enumerate(_rows(source, label), 1):
            found = keys.key(fields, f"{label}#{number}")
            if isinstance(found, BadRow):
                yield Entry(found.key, index, "", None, found)
                continue
            if not db.execute("INSERT OR IGNORE INTO seen VALUES (?, ?)", (found, number)).rowcount:
                (first,) = db.execute("SELECT number FROM seen WHERE key = ?", (found,)).fetchone()
                raise InputUnreadable(
                    f"rows {first:,} and {number:,} of {label} have the same key {found!r}",
                    hint="have `id` name columns that tell the rows apart, or read fewer rows with a query",
                )
            hashed = _digest(fields)
            signature = (_whole(hashed[:8]), 0, 0, _whole(hashed[8:16]))
            yield Entry(found, index, "", signature, Row(found, fields, hashed.hex()))


class _Keys:
    """Makes keys of rows."""

    def __init__(self, spec: Spec, source: BigQuerySource) -> None:
        self._template = source.id
        self._compiled = CompiledTemplate(source.id.text)
        self._used = sorted(name for owner, name in self._compiled.names if owner == "input")
        # A key is stored and shown, so it never holds a secret.
        shown = {name: value for name, value in spec.variables.items() if name not in spec.sensitive}
        self._values = {"var": Fields("var", shown), "env": spec.env or DEFAULT_ENV}

    def key(self, fields: Mapping[str, Json], place: str) -> str | BadRow:
        """The key of a row; `place` is how a row without one is called."""
        try:
            text = self._compiled.render({"input": Fields("input", fields), **self._values})
        except TemplateFailed as error:
            line = self._template.line + max(error.line, 1) - 1
            return BadRow(place, "template", error.message, self._template.path, line)
        key = unicodedata.normalize("NFC", text)
        empty = [name for name in self._used if fields.get(name) is None]
        if empty and "None" in key:
            return BadRow(place, "no_key", f"has no key: its column {empty[0]!r} is null")
        if not key.strip():
            return BadRow(place, "no_key", "has no key: its `id` gives an empty text")
        if any(unicodedata.category(char) in ("Cc", "Cs") for char in key):
            return BadRow(place, "no_key", f"has no usable key: {key!a} holds a control character")
        return key


def _rows(source: BigQuerySource, label: str) -> Iterator[dict[str, Json]]:
    what = f"cannot read {label}"
    project = source.project or (bqtable.parse(source.table).project if source.table else None)
    with (
        bqclient.connected(project, what, InputUnreadable) as client,
        bqclient.asking(
            what,
            InputUnreadable,
            role=_READER,
            wrong="correct the query" if source.query else "name a table, or read it with a query",
        ),
    ):
        found = _of_query(client, source, label) if source.query else _of_table(client, source, label)
        for row in found:
            yield {name: as_json(value) for name, value in row.items()}


def _of_query(client: Any, source: BigQuerySource, label: str) -> Iterator[Any]:
    from google.cloud import bigquery

    retry = bqclient.patience()
    trial = client.query(source.query, job_config=bigquery.QueryJobConfig(dry_run=True), retry=retry)
    if trial.statement_type != "SELECT":
        raise InputUnreadable(
            f"{label} is no SELECT but {trial.statement_type or 'something unknown'}",
            hint="a plan changes nothing: write one SELECT",
        )
    job = client.query(source.query, retry=retry)
    yield from job.result(page_size=PAGE_ROWS, retry=retry)


def _of_table(client: Any, source: BigQuerySource, label: str) -> Iterator[Any]:
    retry = bqclient.patience()
    table = client.get_table(source.table, retry=retry)
    if table.table_type in _UNREAD_KINDS:
        raise InputUnreadable(
            f"{label} is {_UNREAD_KINDS[table.table_type]}, which only a query can read",
            hint=f"query: SELECT * FROM `{source.table}`",
        )
    yield from client.list_rows(table, page_size=PAGE_ROWS, retry=retry)
    after = client.get_table(source.table, retry=retry)
    if (table.modified, table.num_rows) != (after.modified, after.num_rows):
        raise InputUnreadable(
            f"{label} was changed while it was being read",
            hint="run the command again, or read it with a query, whose result stays as it is",
        )


def as_json(value: Any) -> Json:
    """A value of the library as JSON: the same for equal values, whatever page it came with.

    Dates and times in ISO 8601, timestamps in UTC with `Z`; NUMERIC and BIGNUMERIC as text without zeros at
    the end; bytes in base64; numbers that JSON does not have as `NaN`, `Infinity` and `-Infinity`.
    """
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, Mapping):
        return {str(name): as_json(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, Decimal):
        text = format(value, "f")
        return text.rstrip("0").rstrip(".") if "." in text else text
    if isinstance(value, datetime.datetime) and value.tzinfo is not None:
        return f"{value.astimezone(datetime.UTC).replace(tzinfo=None).isoformat()}Z"
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    return str(value)


def _digest(fields: Mapping[str, Json]) -> bytes:
    text = json.dumps(fields, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def _whole(data: bytes) -> int:
    """63 bits, which SQLite holds as one number."""
    return int.from_bytes(data, "big") >> 1
