"""YAML and JSON text -> plain values, and the place of each of them in the file.

Scalars follow the YAML 1.2 core rules, so `no`, `on`, `12:30:45`, `0644` and dates stay strings and
`1e-3` is a number. What other loaders accept in silence is a problem here: duplicate keys, `<<`, tags,
keys that are not strings, numbers that JSON cannot hold. Nothing in a file can run code, and nothing
raises for bad content: what is wrong comes back as diagnostics. The one effect is reading files.
"""

from __future__ import annotations

import json
import os
import re
import stat
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from runner.errors import Diagnostic
from runner.model import Json

MAX_BYTES = 4 * 1024 * 1024
"""Largest spec, prompt or schema file."""
MAX_DEPTH = 64
"""Deepest nesting of mappings and lists."""
MAX_VALUES = 200_000
"""Most values in one file, with every alias written out."""

Place = tuple[str | int, ...]
"""Keys and list positions from the root to a value."""


@dataclass(frozen=True, slots=True)
class Source:
    """A file that was read."""

    path: str
    """As shown to the user."""
    lines: tuple[str, ...]
    """Without their line ends."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
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


@dataclass(frozen=True, slots=True)
class Document:
    """One file as values; `value` is None where it could not be read at all."""

    source: Source
    value: Json = None
    marks: Mapping[Place, Mark] = field(default_factory=dict)
    problems: tuple[Diagnostic, ...] = ()

    def mark(self, place: Place) -> Mark:
        """The mark of a value, or of the nearest thing around it that has one."""
        return nearest(self.marks, place) or Mark(source=self.source, line=0, column=0, length=0)


class FileProblem(Exception):
    """A file that cannot be read; `code` and the message are those of a diagnostic."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


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


def read_bytes(path: Path) -> bytes:
    """The bytes of a regular file of at most `MAX_BYTES`.

    Raises:
        FileProblem: the file is missing, not a regular file, unreadable or too large.
    """
    try:
        # Looked at before it is opened: opening a named pipe would wait for a writer.
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            raise FileProblem("GB001", "is a folder, not a file")
        if not stat.S_ISREG(mode):
            raise FileProblem("GB001", "is not a regular file")
        with open(path, "rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise FileProblem("GB001", "does not exist") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise FileProblem("GB001", f"cannot be read: {reason}") from error
    if len(data) > MAX_BYTES:
        raise FileProblem("GB005", f"is larger than {MAX_BYTES // (1024 * 1024)} MiB")
    return data


def read(path: Path, shown: str) -> Document:
    """The file as a document; a `.json` file is held to JSON's own syntax. Never raises for content."""
    try:
        data = read_bytes(path)
    except FileProblem as problem:
        found = Diagnostic(code=problem.code, message=f'"{shown}" {problem.message}', path=shown)
        return Document(Source(shown, ()), problems=(found,))
    return parse_json(data, shown) if path.suffix == ".json" else parse(data, shown)


def decode(data: bytes, shown: str) -> tuple[str, Source, tuple[Diagnostic, ...]]:
    """UTF-8 text without its BOM, its lines, and what stands in the way of reading it."""
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        found = Diagnostic(
            code="GB002", message="the file is UTF-16, not UTF-8", path=shown, hint="save it as UTF-8"
        )
        return "", Source(shown, ()), (found,)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        text = data.decode("utf-8", errors="replace")
        before = data[: error.start].decode("utf-8", errors="replace")
        source, starts = _source(text, shown)
        line = bisect_right(starts, len(before))
        found = _at(
            source,
            "GB002",
            f"byte 0x{data[error.start]:02x} is not UTF-8",
            line,
            len(before) - starts[line - 1] + 1,
            hint="save the file as UTF-8",
        )
        return "", source, (found,)
    source, starts = _source(text, shown)
    control = _CONTROL.search(text)
    if control is None:
        return text, source, ()
    line = bisect_right(starts, control.start())
    name = "a NUL byte" if control[0] == "\0" else f"the control character U+{ord(control[0]):04X}"
    found = _at(
        source,
        "GB003",
        f"the file holds {name}",
        line,
        control.start() - starts[line - 1] + 1,
        hint="remove it",
    )
    return "", source, (found,)


def parse(data: bytes, shown: str) -> Document:
    """One YAML document whose root is a mapping, with every problem found."""
    text, source, problems = decode(data, shown)
    if problems:
        return Document(source, problems=problems)
    conflict = _conflict(source)
    if conflict is not None:
        return Document(source, problems=(conflict,))
    reader = _Reader(text, source)
    try:
        root = reader.document()
    except _Stop:
        return Document(source, problems=tuple(reader.problems))
    marks: dict[Place, Mark] = {}
    return Document(source, reader.build(root, (), marks, None), marks, tuple(reader.problems))


def parse_json(data: bytes, shown: str) -> Document:
    """One JSON document whose root is an object, its keys in the order of the file."""
    text, source, problems = decode(data, shown)
    if problems:
        return Document(source, problems=problems)
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        found = _at(source, "GB018", f"not JSON: {error.msg}", error.lineno, error.colno)
        return Document(source, problems=(found,))
    except (ValueError, RecursionError) as error:
        reason = "nested too deep" if isinstance(error, RecursionError) else str(error)
        return Document(source, problems=(_at(source, "GB018", f"not JSON: {reason}", 1, 1),))
    # JSON is YAML but for surrogate pairs, which the YAML scanner refuses: written as one character
    # they cost a few columns on their line, and the value is taken from the JSON parser anyway.
    joined = _SURROGATES.sub(lambda found: found[1] + json.loads(f'"{found[2]}"'), text)
    alone = _SURROGATE.search(joined)
    if alone is not None:
        line = joined.count("\n", 0, alone.start(2)) + 1
        column = alone.start(2) - joined.rfind("\n", 0, alone.start(2))
        message = f"{alone[2]} is half of a surrogate pair: no character"
        return Document(source, problems=(_at(source, "GB018", message, line, column, length=6),))
    document = parse(joined.encode(), shown)
    known = [found for found in document.problems if found.code in _JSON_PROBLEMS]
    if known:
        return Document(source, problems=tuple(known))
    return Document(source, value, document.marks or {(): _whole(source)})


_CONTROL = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_CONFLICT = re.compile(r"(?:<{7}|={7}|>{7})(?: |$)")
_NEWLINE = re.compile("\r\n|\n|\r")
_ESCAPE = r"(?<!\\)((?:\\\\)*)"
_SURROGATES = re.compile(_ESCAPE + r"(\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2})")
_SURROGATE = re.compile(_ESCAPE + r"(\\u[dD][89a-fA-F][0-9a-fA-F]{2})")
_JSON_PROBLEMS = ("GB004", "GB009", "GB011", "GB012", "GB013", "GB017")
_QUOTE_IT = "write it in quotes"
_TAG = "tag:yaml.org,2002:"

# A leading zero is kept as text: post codes, file modes and account numbers are not numbers.
_INTEGER = re.compile(r"[-+]?(?:0|[1-9][0-9]*)\Z")
_BASED = re.compile(r"0o[0-7]+\Z|0x[0-9a-fA-F]+\Z")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|(?:0|[1-9][0-9]*)(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?\Z")
_NOT_FINITE = re.compile(r"[-+]?\.(?:inf|Inf|INF)\Z|\.(?:nan|NaN|NAN)\Z")
_WORDS: dict[str, Json] = {
    "": None,
    "~": None,
    "null": None,
    "Null": None,
    "NULL": None,
    "true": True,
    "True": True,
    "TRUE": True,
    "false": False,
    "False": False,
    "FALSE": False,
}


def _refuse_constant(name: str) -> Json:
    raise ValueError(f"{name} is not a JSON number")


def _source(text: str, shown: str) -> tuple[Source, list[int]]:
    """The lines of a text, and the offset at which each begins."""
    starts = [0, *(match.end() for match in _NEWLINE.finditer(text))]
    return Source(shown, tuple(_NEWLINE.split(text))), starts


def _whole(source: Source) -> Mark:
    return Mark(source=source, line=1, column=1, length=len(source.lines[0]) if source.lines else 0)


def _at(
    source: Source, code: str, message: str, line: int, column: int, *, length: int = 1, hint: str = ""
) -> Diagnostic:
    snippet = source.lines[line - 1] if 0 < line <= len(source.lines) else ""
    return Diagnostic(
        code=code,
        message=message,
        path=source.path,
        line=line,
        column=column,
        length=length,
        snippet=snippet,
        hint=hint,
    )


def _conflict(source: Source) -> Diagnostic | None:
    """Merge conflict markers, which no YAML file can hold at the start of a line."""
    found = [
        (number, line)
        for number, line in enumerate(source.lines, 1)
        if re.match(r"(<{7}|={7}|>{7})(?: |$)", line)
    ]
    if not any(line[0] in "<>" for _, line in found):
        return None
    number, line = found[0]
    others = ", ".join(str(number) for number, _ in found[1:])
    message = f'unresolved merge conflict: "{line[:7]}"'
    return _at(
        source,
        "GB008",
        message + (f", more markers on lines {others}" if others else ""),
        number,
        1,
        length=len(line),
        hint="resolve the conflict and remove the markers",
    )


class _Stop(Exception):
    """The file cannot be read any further; the reason is among the reader's problems."""


class _Loader(yaml.CSafeLoader):
    """Only its scanner and parser are used: values are made by `_Reader`."""


@dataclass(slots=True)
class _Node:
    start: int
    end: int
    value: Json = None
    items: list[tuple[str | int, _Node, _Node | None]] | None = None
    """(key or position, value, the key's own node) of a collection, None for a scalar."""
    mapping: bool = False
    style: str = ""
    size: int = 1
    depth: int = 1


class _Reader:
    """Turns the parser's events into nodes, and nodes into values with marks."""

    def __init__(self, text: str, source: Source) -> None:
        self.text = text
        self.source = source
        self.problems: list[Diagnostic] = []
        self._starts = [0, *(match.end() for match in _NEWLINE.finditer(text))]
        self._loader = _Loader(text)
        self._anchors: dict[str, _Node | None] = {}

    # ------------------------------------------------------------ events -> nodes

    def document(self) -> _Node:
        """The root of the only document; raises _Stop where there is none."""
        root: _Node | None = None
        while not isinstance(event := self._next(), yaml.StreamEndEvent):
            start = event.start_mark.index
            if isinstance(event, yaml.DocumentStartEvent):
                if root is not None:
                    self._add("GB010", start, 3, "a second document begins here", "keep one")
                    raise _Stop
                root = self._node(self._next(), 1)
        if root is None or (root.items is None and root.value is None and root.style == ""):
            self._add("GB004", 0, 0, "the file is empty")
            raise _Stop
        if not root.mapping:
            found = "a list" if root.items is not None else kind(root.value)
            self._add("GB011", root.start, 1, f"the file must hold a mapping of keys to values, not {found}")
            raise _Stop
        return root

    def _next(self) -> Any:
        try:
            event: Any = self._loader.get_event()
            return event
        except yaml.MarkedYAMLError as error:
            self._syntax(error)
        except yaml.YAMLError as error:
            self._add("GB006", 0, 0, f"not YAML: {error}")
        raise _Stop

    def _node(self, event: Any, depth: int) -> _Node:
        start, end = event.start_mark.index, event.end_mark.index
        if depth > MAX_DEPTH:
            self._add("GB012", start, 1, f"nested more than {MAX_DEPTH} levels deep")
            raise _Stop
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event)
        if event.anchor is not None:
            self._anchors[event.anchor] = None
        if isinstance(event, yaml.ScalarEvent):
            node = self._scalar(event)
        else:
            node = _Node(start, end, items=[], mapping=isinstance(event, yaml.MappingStartEvent))
            expected = _TAG + ("map" if node.mapping else "seq")
            if event.tag not in (None, "!", expected):
                self._tag(event)
            self._children(node, depth)
        if event.anchor is not None:
            self._anchors[event.anchor] = node
        return node

    def _children(self, node: _Node, depth: int) -> None:
        assert node.items is not None
        first: dict[str, _Node] = {}
        while True:
            event = self._next()
            at, length = event.start_mark.index, event.end_mark.index - event.start_mark.index
            if isinstance(event, (yaml.MappingEndEvent, yaml.SequenceEndEvent)):
                node.end = at + length
                return
            if not node.mapping:
                child = self._node(event, depth + 1)
                node.items.append((len(node.items), child, None))
            else:
                key = self._node(event, depth + 1)
                child = self._node(self._next(), depth + 1)
                name = self._key(key)
                if name is not None and name in first:
                    line, column = self._position(first[name].start)
                    message = f'key "{name}" is already set on line {line}'
                    hint = f"keep one of lines {line} and {self._position(key.start)[0]}"
                    if line == self._position(key.start)[0]:
                        message = f'key "{name}" is already set in column {column} of this line'
                        hint = "keep one of the two"
                    self._add("GB009", key.start, key.end - key.start, message, hint)
                elif name is not None:
                    first[name] = key
                    node.items.append((name, child, key))
            node.size += child.size
            node.depth = max(node.depth, child.depth + 1)
            if node.size > MAX_VALUES:
                message = f"more than {MAX_VALUES:,} values, with every alias written out"
                self._add("GB013", at, length, message)
                raise _Stop
            if depth + node.depth - 1 > MAX_DEPTH:
                self._add("GB012", at, 1, f"nested more than {MAX_DEPTH} levels deep")
                raise _Stop

    def _alias(self, event: Any) -> _Node:
        name, start, end = event.anchor, event.start_mark.index, event.end_mark.index
        node = self._anchors.get(name)
        if node is None:
            if name in self._anchors:
                self._add("GB013", start, end - start, f'alias "*{name}" stands inside its own anchor')
            else:
                hint = f'write the anchor "&{name}" above it, or quote the value if the * is meant as text'
                self._add("GB006", start, end - start, f'alias "*{name}" has no anchor', hint)
            raise _Stop
        return _Node(start, end, node.value, node.items, node.mapping, "", node.size, node.depth)

    def _key(self, key: _Node) -> str | None:
        """The key's name, or None after reporting that it cannot be one."""
        length = key.end - key.start
        if key.items is None and isinstance(key.value, str):
            if key.value == "<<" and not key.style:
                self._add(
                    "GB014", key.start, length, 'the merge key "<<" is not supported', "write the keys out"
                )
                return None
            return key.value
        found = kind(key.value) if key.items is None else "a mapping" if key.mapping else "a list"
        written = self.text[key.start : key.end]
        hint = f'write "{written}" in quotes' if key.items is None and written else ""
        self._add("GB016", key.start, length, f"a key must be a string, not {found}", hint)
        return None

    def _scalar(self, event: Any) -> _Node:
        start, end = event.start_mark.index, event.end_mark.index
        node = _Node(start, end, event.value, style=event.style or "")
        tag = event.tag.removeprefix(_TAG) if event.tag else None
        if (tag is None and not event.implicit[0]) or tag in ("!", "str"):
            return node
        node.value = self._plain(event.value, start, end)
        if tag is not None and tag != _TYPES.get(type(node.value)):
            if not (tag == "float" and isinstance(node.value, int)):
                self._tag(event)
            else:
                node.value = float(node.value)
        return node

    def _plain(self, text: str, start: int, end: int) -> Json:
        if text in _WORDS:
            return _WORDS[text]
        if _INTEGER.match(text) or _BASED.match(text):
            base = {"0o": 8, "0x": 16}.get(text[:2], 10)
            # Longer than any number JSON readers keep: not even worth converting.
            value = int(text, base) if len(text) < 64 else 1 << 64
            if not -(1 << 63) <= value < 1 << 64:
                self._add(
                    "GB017", start, end - start, f"{text[:40]} does not fit 64 bits", "write it in quotes"
                )
            return value
        if _FLOAT.match(text):
            number = float(text)
            if abs(number) == float("inf"):
                self._add(
                    "GB017", start, end - start, f"{text[:40]} is too large a number", "write it in quotes"
                )
            return number
        if _NOT_FINITE.match(text):
            self._add("GB017", start, end - start, f"{text} is not a number that JSON can hold")
        return text

    # ------------------------------------------------------------ nodes -> values

    def build(self, node: _Node, place: Place, marks: dict[Place, Mark], key: _Node | None) -> Json:
        """The value of a node; puts the mark of it and of everything inside into `marks`."""
        line, column = self._position(node.start)
        key_line, key_column = self._position(key.start) if key is not None else (0, 0)
        marks[place] = Mark(
            source=self.source,
            line=line,
            column=column,
            length=self._length(node.start, node.end),
            style=node.style,
            key_line=key_line,
            key_column=key_column,
            key_length=key.end - key.start if key is not None else 0,
        )
        if node.items is None:
            return node.value
        values = [(name, self.build(child, (*place, name), marks, own)) for name, child, own in node.items]
        return dict(values) if node.mapping else [value for _, value in values]

    # ------------------------------------------------------------ problems

    def _position(self, index: int) -> tuple[int, int]:
        line = bisect_right(self._starts, index)
        return line, index - self._starts[line - 1] + 1

    def _length(self, start: int, end: int) -> int:
        """Characters from `start` to `end`, or to the end of the first line."""
        line, column = self._position(start)
        rest = len(self.source.lines[line - 1].rstrip()) - column + 1
        return max(1, min(end - start, rest))

    def _add(self, code: str, index: int, length: int, message: str, hint: str = "") -> None:
        line, column = self._position(index)
        self.problems.append(_at(self.source, code, message, line, column, length=max(1, length), hint=hint))

    def _tag(self, event: Any) -> None:
        written = str(event.tag).replace(_TAG, "!!")
        index = event.start_mark.index
        self._add("GB015", index, len(written), f'tag "{written}" is not allowed here', "remove the tag")

    def _syntax(self, error: yaml.MarkedYAMLError) -> None:
        mark = error.problem_mark or error.context_mark
        # After an unfinished bracket or quote the scanner stands at the end of the file.
        index = min(mark.index, len(self.text)) if mark is not None else 0
        char = self.text[index : index + 1]
        problem = error.problem or "cannot be read"
        if char == "\t":
            self._add("GB007", index, 1, "a tab cannot be used for indentation", "use spaces")
            return
        message, hint = f"not YAML: {problem}", ""
        if "cannot start any token" in problem:
            message, hint = f'a plain value cannot begin with "{char}"', "put the value in quotes"
        elif "mapping values are not allowed" in problem:
            message, hint = (
                'not YAML: ": " in the middle of a value',
                "put the value in quotes, or mend the indentation",
            )
        elif "alphabetic or numeric" in problem and "alias" in (error.context or ""):
            message, hint = 'a plain value cannot begin with "*"', "put the value in quotes"
        elif "end of stream" in problem and "quoted" in (error.context or "") and error.context_mark:
            index, message = error.context_mark.index, "not YAML: the quote that opens here is never closed"
        elif char == "{" and self.text[index - 1 : index] == "$":
            hint = "between { and }, put ${...} in quotes"
        elif error.context and error.context_mark is not None:
            line = self._position(min(error.context_mark.index, len(self.text)))[0]
            message += f" ({error.context} that begins on line {line})"
        self._add("GB006", index, 1, message, hint)


_TYPES: dict[type, str] = {str: "str", int: "int", float: "float", bool: "bool", type(None): "null"}


def kind(value: Json) -> str:
    """The JSON type of a value, in words."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return f"the boolean {str(value).lower()}"
    if isinstance(value, (int, float)):
        return f"the number {value}"
    if isinstance(value, str):
        return "text"
    return "a mapping" if isinstance(value, Mapping) else "a list"
