"""One YAML document -> plain values by the YAML 1.2 core rules, and the mark of each. Pure.

Only the scanner and parser of the YAML library are used. Values are made here, from its events: bounded in
depth and number, never by running anything.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec
import yaml

from runner.errors import Diagnostic
from runner.marks import Mark, Place, Source
from runner.model import Json

MAX_DEPTH = 64
"""Deepest nesting of mappings and lists."""
MAX_VALUES = 200_000
"""Most values in one file, with every alias written out."""

_QUOTE_IT = "write it in quotes"
_TAG = "tag:yaml.org,2002:"

# A leading zero is kept as text: post codes, file modes and account numbers are not numbers.
_INTEGER = r"[-+]?(?:0|[1-9][0-9]*)\Z"
_BASED = r"0o[0-7]+\Z|0x[0-9a-fA-F]+\Z"
_FLOAT = r"[-+]?(?:\.[0-9]+|(?:0|[1-9][0-9]*)(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?\Z"
_NOT_FINITE = r"[-+]?\.(?:inf|Inf|INF)\Z|\.(?:nan|NaN|NAN)\Z"
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


class Stopped(Exception):
    """The file cannot be read any further; the reason is among the reader's problems."""


class _Loader(yaml.CSafeLoader):
    """Only its scanner and parser are used: values are made by `Reader`."""


class _Node(msgspec.Struct):
    start: int
    end: int
    value: Json = None
    items: list[tuple[str | int, _Node, _Node | None]] | None = None
    """(key or position, value, the key's own node) of a collection, None for a scalar."""
    mapping: bool = False
    style: str = ""
    size: int = 1
    depth: int = 1


class Reader:
    """Turns the parser's events into nodes, and nodes into values with marks."""

    def __init__(self, text: str, source: Source) -> None:
        self.text = text
        self.source = source
        self.problems: list[Diagnostic] = []
        self._loader = _Loader(text)
        self._anchors: dict[str, _Node | None] = {}

    # ------------------------------------------------------------ events -> nodes

    def document(self) -> _Node:
        """The root of the only document; raises Stopped where there is none."""
        root: _Node | None = None
        while not isinstance(event := self._next(), yaml.StreamEndEvent):
            start = event.start_mark.index
            if isinstance(event, yaml.DocumentStartEvent):
                if root is not None:
                    self._add("GB010", start, 3, "a second document begins here", "keep one")
                    raise Stopped
                root = self._node(self._next(), 1)
        if root is None or (root.items is None and root.value is None and root.style == ""):
            self._add("GB004", 0, 0, "the file is empty")
            raise Stopped
        if not root.mapping:
            found = "a list" if root.items is not None else kind(root.value)
            self._add("GB011", root.start, 1, f"the file must hold a mapping of keys to values, not {found}")
            raise Stopped
        return root

    def _next(self) -> Any:
        try:
            event: Any = self._loader.get_event()
            return event
        except yaml.MarkedYAMLError as error:
            self._syntax(error)
        except yaml.YAMLError as error:
            self._add("GB006", 0, 0, f"not YAML: {error}")
        raise Stopped

    def _node(self, event: Any, depth: int) -> _Node:
        start, end = event.start_mark.index, event.end_mark.index
        if depth > MAX_DEPTH:
            self._add("GB012", start, 1, f"nested more than {MAX_DEPTH} levels deep")
            raise Stopped
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
                    line, column = self.source.position(first[name].start)
                    message = f'key "{name}" is already set on line {line}'
                    hint = f"keep one of lines {line} and {self.source.position(key.start)[0]}"
                    if line == self.source.position(key.start)[0]:
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
                raise Stopped
            if depth + node.depth - 1 > MAX_DEPTH:
                self._add("GB012", at, 1, f"nested more than {MAX_DEPTH} levels deep")
                raise Stopped

    def _alias(self, event: Any) -> _Node:
        name, start, end = event.anchor, event.start_mark.index, event.end_mark.index
        node = self._anchors.get(name)
        if node is None:
            if name in self._anchors:
                self._add("GB013", start, end - start, f'alias "*{name}" stands inside its own anchor')
            else:
                hint = f'write the anchor "&{name}" above it, or quote the value if the * is meant as text'
                self._add("GB006", start, end - start, f'alias "*{name}" has no anchor', hint)
            raise Stopped
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
        if re.match(_INTEGER, text) or re.match(_BASED, text):
            base = {"0o": 8, "0x": 16}.get(text[:2], 10)
            # Longer than any number JSON readers keep: not even worth converting.
            value = int(text, base) if len(text) < 64 else 1 << 64
            if not -(1 << 63) <= value < 1 << 64:
                self._add(
                    "GB017", start, end - start, f"{text[:40]} does not fit 64 bits", "write it in quotes"
                )
            return value
        if re.match(_FLOAT, text):
            number = float(text)
            if abs(number) == float("inf"):
                self._add(
                    "GB017", start, end - start, f"{text[:40]} is too large a number", "write it in quotes"
                )
            return number
        if re.match(_NOT_FINITE, text):
            self._add("GB017", start, end - start, f"{text} is not a number that JSON can hold")
        return text

    # ------------------------------------------------------------ nodes -> values

    def build(self, node: _Node, place: Place, marks: dict[Place, Mark], key: _Node | None) -> Json:
        """The value of a node; puts the mark of it and of everything inside into `marks`."""
        line, column = self.source.position(node.start)
        key_line, key_column = self.source.position(key.start) if key is not None else (0, 0)
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

    def _length(self, start: int, end: int) -> int:
        """Characters from `start` to `end`, or to the end of the first line."""
        line, column = self.source.position(start)
        rest = len(self.source.lines[line - 1].rstrip()) - column + 1
        return max(1, min(end - start, rest))

    def _add(self, code: str, index: int, length: int, message: str, hint: str = "") -> None:
        self.problems.append(self.source.diagnostic(index, code, message, hint, length=length))

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
            line = self.source.position(min(error.context_mark.index, len(self.text)))[0]
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
