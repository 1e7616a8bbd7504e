"""Where values stand in the files that they were read from, and diagnostics that point there. Pure."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Mapping

import msgspec

from runner.errors import Diagnostic

Place = tuple[str | int, ...]
"""Keys and list positions from the root to a value."""

_NEWLINE = re.compile("\r\n|\n|\r")


class Source(msgspec.Struct, frozen=True):
    """A file that was read."""

    path: str
    """As shown to the user."""
    lines: tuple[str, ...] = ()
    """Without their line ends."""
    starts: tuple[int, ...] = (0,)
    """Offset of each line in the text."""

    def position(self, index: int) -> tuple[int, int]:
        """1-based line and column of an offset in the text."""
        line = bisect_right(self.starts, index)
        return line, index - self.starts[line - 1] + 1

    def diagnostic(
        self, index: int, code: str, message: str, hint: str = "", *, length: int = 1
    ) -> Diagnostic:
        """A diagnostic at an offset of the text."""
        line, column = self.position(index)
        return Diagnostic(
            code=code,
            message=message,
            path=self.path,
            line=line,
            column=column,
            length=max(1, length),
            snippet=self.lines[line - 1] if line <= len(self.lines) else "",
            hint=hint,
        )


def source_of(text: str, path: str) -> Source:
    """The lines of a text; they end at `\\n`, `\\r\\n` or `\\r`, as in editors."""
    starts = (0, *(match.end() for match in _NEWLINE.finditer(text)))
    return Source(path, tuple(_NEWLINE.split(text)), starts)


class Mark(msgspec.Struct, frozen=True, kw_only=True):
    """Where a value stands, and the key in front of it. Lines and columns are 1-based."""

    source: Source
    line: int
    column: int
    length: int
    """Characters of the value on its first line."""
    style: str = ""
    """`|`, `>`, `"` or `'` of a scalar; empty for a plain one and for collections."""
    key_line: int = 0
    """0 where the value has no key: the root and the items of a list."""
    key_column: int = 0
    key_length: int = 0


def nearest(marks: Mapping[Place, Mark], place: Place) -> Mark | None:
    """The mark of `place` or of its nearest ancestor; None in an empty table."""
    for end in range(len(place), -1, -1):
        mark = marks.get(place[:end])
        if mark is not None:
            return mark
    return None


def where(place: Place) -> str:
    """`inputs[0].files` for `("inputs", 0, "files")`; empty for the root."""
    text = ""
    for step in place:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
    return text


def locate(
    marks: Mapping[Place, Mark],
    place: Place,
    *,
    code: str,
    message: str,
    hint: str = "",
    key: bool = False,
    severity: str = "error",
) -> Diagnostic:
    """A diagnostic that points at the value of `place`, or at its key.

    A value that does not begin on the line of its key (a block, a list) is shown by its key.
    """
    mark = nearest(marks, place)
    if mark is None:
        raise ValueError("a document always has a mark for its root")
    at_key = mark.key_line > 0 and (key or mark.line != mark.key_line or mark.style in ("|", ">"))
    line = mark.key_line if at_key else mark.line
    lines = mark.source.lines
    return Diagnostic(
        code=code,
        message=message,
        path=mark.source.path,
        line=line,
        column=mark.key_column if at_key else mark.column,
        length=mark.key_length if at_key else mark.length,
        where=where(place[:-1]),
        snippet=lines[line - 1] if 0 < line <= len(lines) else "",
        hint=hint,
        severity=severity,
    )
