"""Records as JSON lines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from runner import results
from runner.outputs.atomicfile import ByteFile
from runner.outputs.cells import Rows, with_meta


class JsonlFile(ByteFile):
    """A file of JSON lines; without columns, each is written as it comes."""

    def __init__(self, path: Path, rows: Rows | None = None) -> None:
        """See `AtomicFile`."""
        super().__init__(path)
        self._rows = rows

    def write(self, record: bytes, meta: bytes = b"") -> None:
        """Append one line, given with its newline."""
        if self._rows is None:
            self.append(with_meta(record, meta))
            return
        _, values, _ = self._rows.values(record, meta)
        self.append(results.dump_line(dict(zip(self._rows.layout.names, values, strict=True))))

    def write_all(self, records: Sequence[bytes], metas: Sequence[bytes] = ()) -> None:
        """See `outputs.Output.write_all`."""
        if self._rows is not None or metas:
            super().write_all(records, metas)
            return
        self.append(b"".join(records))
