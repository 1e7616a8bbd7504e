"""Names of tables in BigQuery: `project.dataset.table`, with `bq://` before it where it is a destination.

Source: https://cloud.google.com/bigquery/docs/tables#table_naming, /datasets#dataset-naming, and
https://cloud.google.com/resource-manager/docs/creating-managing-projects, read 2026-11-21.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

import msgspec

SCHEME = "bq://"
_PROJECT = r"(?:[a-z0-9.-]+:)?[a-z][a-z0-9-]{3,28}[a-z0-9]"
_DATASET = r"[A-Za-z0-9_]{1,1024}"
_TABLE_BYTES = 1024

_COLUMN = r"[A-Za-z_][A-Za-z0-9_]{0,299}"
_RESERVED = (
    "_TABLE_",
    "_FILE_",
    "_PARTITION",
    "_ROW_TIMESTAMP",
    "__ROOT__",
    "_COLIDENTIFIER",
    "_CHANGE_SEQUENCE_NUMBER",
    "_CHANGE_TYPE",
    "_CHANGE_TIMESTAMP",
)
MAX_COLUMNS = 10_000


class TableName(msgspec.Struct, frozen=True):
    """A table and where it is."""

    project: str
    dataset: str
    table: str

    def __str__(self) -> str:
        return f"{self.project}.{self.dataset}.{self.table}"


def parse(text: str) -> TableName:
    """The table of a name, with or without `bq://`.

    Raises ValueError, in words that follow the text, for what cannot be one.
    """
    parts = text.removeprefix(SCHEME).rsplit(".", 2)
    if len(parts) != 3:
        raise ValueError("does not name project, dataset and table")
    project, dataset, table = parts
    if not re.fullmatch(_PROJECT, project):
        raise ValueError(
            f"has no project id: {project!r} (6 to 30 characters: lower-case letters, digits, -)"
        )
    if not re.fullmatch(_DATASET, dataset):
        raise ValueError(f"has no dataset: {dataset!r} (letters, digits and _)")
    if not _is_table(table):
        raise ValueError(f"has no table: {table!r} (letters, digits, _ - and spaces, at most 1,024 bytes)")
    return TableName(project, dataset, table)


def _is_table(text: str) -> bool:
    """Letters, marks, numbers, connectors, dashes and spaces, as Unicode sorts characters."""
    kinds = {unicodedata.category(char) for char in text}
    allowed = all(kind[0] in "LMN" or kind in ("Pc", "Pd", "Zs") for kind in kinds)
    return bool(text) and allowed and len(text.encode()) <= _TABLE_BYTES


def unusable_columns(names: Sequence[str]) -> str:
    """Why a table or a struct cannot have these columns, in words; empty where it can.

    Source: https://cloud.google.com/bigquery/docs/schemas#column_names, /quotas#standard_tables, read
    2026-11-21. Names that BigQuery calls flexible are refused: loads of JSON do not take all of them.
    """
    if len(names) > MAX_COLUMNS:
        return f"BigQuery takes at most {MAX_COLUMNS:,} columns; these are {len(names):,}"
    seen: dict[str, str] = {}
    for name in names:
        if not re.fullmatch(_COLUMN, name) or name.upper().startswith(_RESERVED):
            return f"a column of BigQuery cannot be called {name!a}"
        if name.lower() in seen:
            return f'BigQuery cannot tell the columns "{seen[name.lower()]}" and "{name}" apart'
        seen[name.lower()] = name
    return ""
