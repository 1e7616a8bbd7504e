"""Rows, found and read in a fixed order.

`entries` names the inputs without opening them, `read` opens one. The split lets a plan
compare an unchanged input by its signature and never read it.
"""

from __future__ import annotations

from collections.abc import Iterator

from runner.inputs import files
from runner.model import BadRow, Entry, Row, Spec


def entries(spec: Spec) -> Iterator[Entry]:
    """Every input of the spec, source by source, files sorted by key.

    Raises:
        InputUnreadable: a folder cannot be listed, or a link leaves the spec's folder.
    """
    for index, source in enumerate(spec.inputs):
        yield from files.entries(spec, index, source)


def read(spec: Spec, entry: Entry) -> Row | BadRow:
    """The row behind an entry, or why it cannot be one."""
    return files.read(spec.inputs[entry.source], entry)
