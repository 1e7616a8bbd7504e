"""The canonical layout of a spec's text: keys in the order of the format, two spaces per level, no
trailing blanks, comments kept with what they stand before. Pure.

Works on lines, so that every comment and every way of writing a value survives; the result is parsed
again, and text whose values would change is refused.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import Any

import orjson
import yaml

from runner.errors import SpecInvalid, UsageInvalid
from runner.schemafile import schema_path
from runner.yamlfile import parse

_MODELINE = "# yaml-language-server"
_ODD_BREAK = re.compile("[\x85\u2028\u2029]")
_DASHES = re.compile(r"(?:-[ \t]+)*-?")


def format_text(text: str, path: str = "the spec") -> str:
    """The spec's text in canonical layout, ending in one newline. Formatting twice changes nothing.

    `path` stands in messages.

    Raises:
        SpecInvalid: the text cannot be read.
        UsageInvalid: the text cannot be laid out without changing what it says.
    """
    before = parse(text.encode(), path)
    if before.problems:
        raise SpecInvalid(before.problems)
    if _ODD_BREAK.search(text):
        raise UsageInvalid(
            "this spec holds a line break that only YAML knows (U+0085, U+2028 or U+2029)",
            hint="write it as an escape in double quotes",
        )
    body = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    lines = _sorted(_indented(body.split("\n"), body))
    after = "\n".join(lines).strip("\n") + "\n"
    again = parse(after.encode(), path)
    if again.problems or _content(again.value) != _content(before.value):
        raise UsageInvalid(
            "this spec cannot be laid out without changing what it says",
            hint="likely causes: an alias above its anchor, a `?` key, `...`, blank lines kept by `|+`",
        )
    return after


def _content(value: Any) -> dict[str, bytes]:
    """What a spec says: its values and the order of all keys but those at the top, which may move."""
    return {key: orjson.dumps(item) for key, item in value.items()}


# ------------------------------------------------------------------- indentation


def _indented(lines: Sequence[str], text: str) -> list[str]:
    """The lines at two spaces per level."""
    layout = _Layout(lines)
    layout.read(text)
    out: list[str] = []
    delta, was, base = 0, 0, 0
    target_below = layout.targets_below()
    for number, line in enumerate(lines):
        stripped = line.strip()
        if number in layout.block:
            first, parent = layout.block[number]
            shift = base + 2 - first if first >= 0 else base - was
            width = len(line) - len(line.lstrip(" "))
            out.append("" if width >= len(line) and width <= first else _shifted(line, shift, parent))
        elif number in layout.targets:
            was, base = layout.columns[number]
            delta = layout.targets[number] - (len(line) - len(line.lstrip(" ")))
            out.append((" " * layout.targets[number] + _tight(stripped)).rstrip())
        elif number in layout.inside:
            out.append(_shifted(line.rstrip() if not layout.inside[number] else line, delta, base + 1))
        elif stripped.startswith("#"):
            at = layout.target_above(number)
            out.append(" " * (target_below[number] if at is None else at) + stripped)
        else:
            out.append(stripped)
    return out


def _shifted(line: str, by: int, least: int) -> str:
    """The line moved to the right by `by` columns, never to the left of `least`."""
    rest = line.lstrip(" ")
    return " " * max(least, len(line) - len(rest) + by) + rest if rest else ""


def _tight(line: str) -> str:
    """The line with one space after each dash that begins it."""
    dashes = _DASHES.match(line)
    lead = dashes[0] if dashes is not None else ""
    if not lead or (len(lead) < len(line) and not lead.endswith((" ", "\t"))):
        return line
    return " ".join([*("-" for char in lead if char == "-"), line[len(lead) :]]).rstrip()


class _Layout:
    """Where the lines of a text stand in its structure. Line numbers are 0-based."""

    def __init__(self, lines: Sequence[str]) -> None:
        self.lines = lines
        self.targets: dict[int, int] = {}
        """Column at which a line begins that starts a key or a list item."""
        self.columns: dict[int, tuple[int, int]] = {}
        """Column now and then of the innermost key or item that such a line starts."""
        self.block: dict[int, tuple[int, int]] = {}
        """Lines of block text: the column of that text now, and the least new column."""
        self.inside: dict[int, bool] = {}
        """Other lines inside a value that began above; True where they belong to quoted text."""

    def targets_below(self) -> list[int]:
        """For each line, the column of the nearest line at or below it that starts something."""
        found, out = 0, []
        for number in range(len(self.lines) - 1, -1, -1):
            found = self.targets.get(number, found)
            out.append(found)
        return out[::-1]

    def target_above(self, number: int) -> int | None:
        """The column of a comment that ends a block, deeper than what follows; None for any other."""

        def width(at: int) -> int:
            return len(self.lines[at]) - len(self.lines[at].lstrip(" "))

        below = next((at for at in range(number, len(self.lines)) if at in self.targets), None)
        outer = 0 if below is None else width(below)
        inside: list[int] = []
        for at in range(number, -1, -1):
            if at in self.targets:
                if width(at) <= outer:
                    break
                inside.append(at)
        if width(number) <= outer or not inside:
            return None
        beside = (self.targets[at] for at in inside if width(at) <= width(number))
        return next(beside, min(self.targets[at] for at in inside))

    def read(self, text: str) -> None:
        """Take in the structure of a text that is known to be sound YAML."""
        events = iter(yaml.parse(text, Loader=yaml.CSafeLoader))
        for event in events:
            if isinstance(event, yaml.MappingStartEvent):
                self._node(event, events, 0)

    def _node(self, event: Any, events: Any, column: int) -> None:
        """Take in one value whose keys or dashes are to stand at `column`."""
        first, last, dash = event.start_mark.line, event.end_mark.line, event.start_mark.column
        self._start_value(event.start_mark, column)
        if isinstance(event, yaml.ScalarEvent):
            if event.style in ("|", ">"):
                self._block_text(event, column)
            else:
                self.inside.update(dict.fromkeys(range(first + 1, last + 1), event.style in ("'", '"')))
        elif isinstance(event, (yaml.MappingStartEvent, yaml.SequenceStartEvent)) and event.flow_style:
            self._flow(event, events)
        elif isinstance(event, yaml.MappingStartEvent):
            while not isinstance(key := next(events), yaml.MappingEndEvent):
                self._start(key.start_mark, column)
                self._node(next(events), events, column + 2)
        elif isinstance(event, yaml.SequenceStartEvent):
            while not isinstance(item := next(events), yaml.SequenceEndEvent):
                self._dash(item.start_mark, dash, column)
                self._node(item, events, column + 2)

    def _flow(self, opening: Any, events: Any) -> None:
        first = last = opening.start_mark.line
        depth = 1
        while depth:
            event: Any = next(events)
            begin, last = event.start_mark.line, event.end_mark.line
            depth += isinstance(event, (yaml.MappingStartEvent, yaml.SequenceStartEvent))
            depth -= isinstance(event, (yaml.MappingEndEvent, yaml.SequenceEndEvent))
            if isinstance(event, yaml.ScalarEvent) and event.style in ("'", '"'):
                self.inside.update(dict.fromkeys(range(begin + 1, last + 1), True))
        for number in range(first + 1, last + 1):
            self.inside.setdefault(number, False)

    def _block_text(self, event: Any, column: int) -> None:
        first, last = event.start_mark.line, event.end_mark.line
        if last < len(self.lines) and event.end_mark.column > 0 and last > first:
            last += 1
        body = range(first + 1, last)
        header = self.lines[first][event.start_mark.column :]
        widths = [len(self.lines[n]) - len(self.lines[n].lstrip(" ")) for n in body if self.lines[n].strip()]
        if not widths:
            return
        # An explicit indentation (`|2`) is counted from the parent: such text moves with its key.
        now = -1 if re.match(r"[|>][+-]?[1-9]", header) else widths[0]
        self.block.update(dict.fromkeys(body, (now, column)))

    def _start(self, mark: Any, column: int) -> None:
        before = self.lines[mark.line][: mark.column]
        if not before.strip():
            self.targets[mark.line] = column
        self.columns[mark.line] = (mark.column, column)

    def _start_value(self, mark: Any, column: int) -> None:
        """Take in a value that begins a line of its own, below its key or dash."""
        if mark.line not in self.columns and not self.lines[mark.line][: mark.column].strip():
            self.targets[mark.line] = column
            self.columns[mark.line] = (mark.column, column)

    def _dash(self, mark: Any, dash: int, column: int) -> None:
        number = mark.line
        while number > 0 and self.lines[number][dash : dash + 1] != "-":
            number -= 1
        if not self.lines[number][:dash].strip():
            self.targets[number] = column
        self.columns[number] = (dash, column)


# ------------------------------------------------------------------- order


@functools.cache
def _order() -> tuple[str, ...]:
    schema = orjson.loads(schema_path("spec.v1.json").read_bytes())
    return tuple(schema["properties"])


def _sorted(lines: Sequence[str]) -> list[str]:
    """The top-level keys in the order of the format, each with the comments right above it."""
    document = parse("\n".join(lines).encode(), "the spec")
    if document.value is None:
        return list(lines)
    starts = sorted((document.marks[(key,)].key_line - 1, key) for key in document.value)
    if document.marks[()].line != starts[0][0] + 1 or lines[starts[0][0]].lstrip().startswith("{"):
        return list(lines)
    head, first = _head(lines, starts[0][0])
    blocks: dict[str, list[str]] = {}
    begin = first
    tail: list[str] = []
    for position, (_, key) in enumerate(starts):
        last = position + 1 == len(starts)
        end = _above(lines, starts[position + 1][0]) if not last else len(lines)
        if last:
            end = _above(lines, len(lines))
            tail = list(lines[end:])
        blocks[key] = list(lines[begin:end])
        begin = end
    known = {key: place for place, key in enumerate(_order())}
    ordered = sorted(blocks, key=lambda key: (known.get(key, len(known)), 0 if key in known else 1))
    out = [*head]
    for key in ordered:
        out += blocks[key]
    return _spaced([*out, *tail])


def _above(lines: Sequence[str], number: int) -> int:
    """The first line of the comments and blanks right above a line."""
    while number > 0 and (not lines[number - 1].strip() or lines[number - 1].startswith("#")):
        number -= 1
    return number


def _head(lines: Sequence[str], first: int) -> tuple[list[str], int]:
    """Lines that stay on top: an editor's line, the document's start, a comment set off by a blank."""
    number = 0
    for at in range(first):
        if lines[at].startswith((_MODELINE, "---", "%")) or not lines[at].strip():
            number = at + 1
    return list(lines[:number]), number


def _spaced(lines: Sequence[str]) -> list[str]:
    """The lines with at most one blank between two; block text keeps its own."""
    document = parse("\n".join(lines).encode(), "the spec")
    kept: set[int] = set()
    for mark in document.marks.values():
        if mark.style in ("|", ">", '"', "'"):
            number = mark.line
            while number < len(lines) and (not lines[number].strip() or lines[number].startswith(" ")):
                kept.add(number)
                number += 1
            while number - 1 in kept and not lines[number - 1].strip():
                number -= 1
                kept.discard(number)
    out: list[str] = []
    for number, line in enumerate(lines):
        if line or number in kept or (out and out[-1]):
            out.append(line)
    return out
