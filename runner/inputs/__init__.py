"""Rows, found and read in a fixed order.

`entries` names the inputs, `read` opens one. The split lets a plan compare an unchanged file by its
signature and never read it. Rows of a table are read where they are found: their entries hold them.
"""

from __future__ import annotations

from collections.abc import Iterator

from runner.inputs import files
from runner.model import BadRow, Batch, Entry, Row
from runner.specmodel import BigQuerySource, Spec


def entries(spec: Spec) -> Iterator[Entry]:
    """Every input of the spec, source by source: files sorted by key, rows of tables as they come.

    Raises:
        InputUnreadable: a folder cannot be listed, a link leaves the spec's folder, a table cannot be read.
    """
    for one in found(spec):
        if isinstance(one, Batch):
            yield from one
        else:
            yield one


def found(spec: Spec) -> Iterator[Entry | Batch]:
    """The same, files by the batch."""
    for index, source in enumerate(spec.inputs):
        if isinstance(source, BigQuerySource):
            from runner.inputs import bigquery

            yield from bigquery.entries(spec, index, source)
        else:
            yield from files.batches(spec, index, source)


def read(spec: Spec, entry: Entry) -> Row | BadRow:
    """The row behind an entry, or why it cannot be one."""
    if entry.row is not None:
        return entry.row
    source = spec.inputs[entry.source]
    assert not isinstance(source, BigQuerySource)
    return files.read(source, entry)
