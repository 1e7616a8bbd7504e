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
from collections.abc import Mapping
from pathlib import Path

import msgspec

from runner.errors import Diagnostic
from runner.marks import Mark, Place, Source, source_of
from runner.model import Json
from runner.yamlnodes import Reader, Stopped

MAX_BYTES = 4 * 1024 * 1024
"""Largest spec, prompt or schema file."""


class Document(msgspec.Struct, frozen=True):
    """One file as values; `value` is None where it could not be read at all."""

    source: Source
    value: Json = None
    marks: Mapping[Place, Mark] = {}
    problems: tuple[Diagnostic, ...] = ()


class FileProblem(Exception):
    """A file that cannot be read; `code` and the message are those of a diagnostic."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


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
        return Document(Source(shown), problems=(found,))
    return parse_json(data, shown) if path.suffix == ".json" else parse(data, shown)


def decode(data: bytes, shown: str) -> tuple[str, Source, tuple[Diagnostic, ...]]:
    """UTF-8 text without its BOM, its lines, and what stands in the way of reading it."""
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        found = Diagnostic(
            code="GB002", message="the file is UTF-16, not UTF-8", path=shown, hint="save it as UTF-8"
        )
        return "", Source(shown), (found,)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        source = source_of(data.decode("utf-8", errors="replace"), shown)
        index = len(data[: error.start].decode("utf-8", errors="replace"))
        message = f"byte 0x{data[error.start]:02x} is not UTF-8"
        return "", source, (source.diagnostic(index, "GB002", message, "save the file as UTF-8"),)
    source = source_of(text, shown)
    control = _CONTROL.search(text)
    if control is None:
        return text, source, ()
    name = "a NUL byte" if control[0] == "\0" else f"the control character U+{ord(control[0]):04X}"
    message = f"the file holds {name}"
    return "", source, (source.diagnostic(control.start(), "GB003", message, "remove it"),)


def parse(data: bytes, shown: str) -> Document:
    """One YAML document whose root is a mapping, with every problem found."""
    text, source, problems = decode(data, shown)
    if problems:
        return Document(source, problems=problems)
    conflict = _conflict(source)
    if conflict is not None:
        return Document(source, problems=(conflict,))
    reader = Reader(text, source)
    try:
        root = reader.document()
    except Stopped:
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
        found = source.diagnostic(error.pos, "GB018", f"not JSON: {error.msg}")
        return Document(source, problems=(found,))
    except (ValueError, RecursionError) as error:
        reason = "nested too deep" if isinstance(error, RecursionError) else str(error)
        return Document(source, problems=(source.diagnostic(0, "GB018", f"not JSON: {reason}"),))
    alone = re.search(_SURROGATE, re.sub(_SURROGATES, lambda pair: pair[1] + " " * 12, text))
    if alone is not None:
        message = f"{alone[2]} is half of a surrogate pair: no character"
        found = source.diagnostic(alone.start(2), "GB018", message, length=6)
        return Document(source, problems=(found,))
    # JSON is YAML but for surrogate pairs, which the YAML scanner refuses: written as one character
    # they cost a few columns on their line, and the value is taken from the JSON parser anyway.
    joined = re.sub(_SURROGATES, lambda pair: pair[1] + json.loads(f'"{pair[2]}"'), text)
    document = parse(joined.encode(), shown)
    known = [found for found in document.problems if found.code in _JSON_PROBLEMS]
    if known:
        return Document(source, problems=tuple(known))
    whole = Mark(source=source, line=1, column=1, length=len(source.lines[0]))
    return Document(source, value, document.marks or {(): whole})


_CONTROL = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_CONFLICT = re.compile(r"(?:<{7}|={7}|>{7})(?: |$)")
_ESCAPE = r"(?<!\\)((?:\\\\)*)"
_SURROGATES = _ESCAPE + r"(\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2})"
_SURROGATE = _ESCAPE + r"(\\u[dD][89a-fA-F][0-9a-fA-F]{2})"
_JSON_PROBLEMS = ("GB004", "GB009", "GB011", "GB012", "GB013", "GB017")


def _refuse_constant(name: str) -> Json:
    raise ValueError(f"{name} is not a JSON number")


def _conflict(source: Source) -> Diagnostic | None:
    """Merge conflict markers, which no YAML file can hold at the start of a line."""
    found = [(number, line) for number, line in enumerate(source.lines) if _CONFLICT.match(line)]
    if not any(line[0] in "<>" for _, line in found):
        return None
    first, line = found[0]
    others = ", ".join(str(number + 1) for number, _ in found[1:])
    message = f'unresolved merge conflict: "{line[:7]}"' + (
        f", more markers on lines {others}" if others else ""
    )
    hint = "resolve the conflict and remove the markers"
    return source.diagnostic(source.starts[first], "GB008", message, hint, length=len(line))
