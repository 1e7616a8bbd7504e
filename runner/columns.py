"""What a destination writes of a record: its columns, their types and how their values are found."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import reduce
from typing import TYPE_CHECKING

import msgspec

from runner.model import Json
from runner.recordtypes import JSON, KEY, META, NOTES, STRING, WHOLE, Type, of_record
from runner.shape import suggest
from runner.specmodel import Column, Destination, Spec

if TYPE_CHECKING:
    from jsonpath_rfc9535 import JSONPathQuery

Steps = tuple[str | int, ...]
"""Names and positions from a record to one of its values."""


class BadPath(ValueError):
    """Not a JSONPath; the text says why."""


class Selector(msgspec.Struct, frozen=True):
    """A JSONPath, compiled."""

    steps: Steps | None
    """Where the path leads if it can match at most once, None where it may match more often."""
    query: JSONPathQuery | None

    def value(self, record: Json) -> Json:
        """The value it finds, null for none; a list of values where it may match more than once.

        Raises ValueError for a record that is too deep to search.
        """
        if self.steps is not None:
            for step in self.steps:
                record = _child(record, step)
            return record
        assert self.query is not None
        from jsonpath_rfc9535 import JSONPathError

        try:
            return [node.value for node in self.query.finditer(record)]
        except (JSONPathError, RecursionError) as error:
            raise ValueError(f"{self.query} cannot be evaluated: {error}") from error


class TypedColumn(msgspec.Struct, frozen=True):
    """A column of a table."""

    name: str
    type: Type
    selector: Selector


class Layout(msgspec.Struct, frozen=True):
    """The columns of a destination, known before the first record."""

    columns: tuple[TypedColumn, ...]
    key: int
    """Which column holds the record's key."""
    others: str
    """Name of a last column with the fields that have no column, as JSON; empty where there is none."""
    fields: frozenset[str] | None
    """Fields of a record that the columns were made from; None where the spec chose the columns."""
    whole: bool
    """Whether the last column holds the answer as such: an object of which no field is known."""

    @property
    def names(self) -> list[str]:
        """Every column, in order."""
        return [column.name for column in self.columns] + ([self.others] if self.others else [])


def field_path(name: str) -> str:
    """The JSONPath of a field of the record."""
    escaped = "".join(_escape(char) for char in name)
    return f"$['{escaped}']"


def compiled(path: str) -> Selector:
    """The selector of a JSONPath (RFC 9535). Raises BadPath."""
    import jsonpath_rfc9535 as jsonpath

    try:
        query = jsonpath.compile(path)
    except jsonpath.JSONPathError as error:
        # The place within the path is said as "line 1, column 4", which a reader takes for the file's.
        raise BadPath(str(error).partition(", line ")[0]) from error
    return Selector(_steps(query), query)


def layout(spec: Spec, destination: Destination, *, nested: bool) -> Layout:
    """The columns of a destination.

    `nested` says that lists and structs have columns of their own kind: then fields of a struct that
    the schema does not name go to the last column too.
    """
    meta = "meta" in destination.include
    record, others = of_record(spec, meta=meta)
    if destination.columns:
        columns = [_chosen(column, record) for column in destination.columns]
        key = next((at for at, column in enumerate(columns) if column.selector.steps == (KEY,)), -1)
        if key < 0:
            columns.insert(0, TypedColumn(KEY, STRING, Selector((KEY,), None)))
            key = 0
        others, fields = "", None
    else:
        own = (spec.output_schema or {}).get("properties") or {}
        hidden = set() if meta else {name for name in NOTES if name not in own}
        columns = [
            TypedColumn(name, kind, Selector((name,), None))
            for name, kind in record.fields
            if name not in hidden
        ]
        key, fields = 0, frozenset(name for name, _ in record.fields)
    if nested and not others and any(_is_open(column.type) for column in columns):
        others = "_extra"
    whole = others == WHOLE
    names = {column.name for column in columns}
    while others and others in names:
        others += "_"
    return Layout(tuple(columns), key, others, fields, whole)


def doubts(spec: Spec, destination: Destination) -> Iterable[tuple[int, str, str]]:
    """Columns that can only be empty: position in `columns`, what is wrong, one next step."""
    meta = "meta" in destination.include
    record, _ = of_record(spec, meta=meta)
    for at, column in enumerate(destination.columns):
        selector = compiled(column.path)
        steps = selector.steps if selector.steps is not None else _first_names(selector)
        kind: Type | None = record
        for depth, step in enumerate(steps):
            if kind is None or kind.kind != "struct" or not isinstance(step, str):
                break
            inner = kind.field(step)
            if inner is None and depth == 0 and step in META:
                yield at, f'records have "{step}" only with `include: [meta]`', "add `include: [meta]`"
            elif inner is None and not (kind.is_open and _open_on_purpose(spec, steps[:depth])):
                where = ".".join(map(str, steps[:depth])) or "a record"
                yield at, f'{where} has no field "{step}"', _hint(step, kind)
            kind = inner


def _hint(name: str, kind: Type) -> str:
    names = [name for name, _ in kind.fields]
    return suggest(name, names) or f"it has {', '.join(names[:12])}{', ...' if len(names) > 12 else ''}"


def _open_on_purpose(spec: Spec, steps: Steps) -> bool:
    """Whether the schema says of itself that it allows fields which it does not name."""
    schema: Json = spec.output_schema
    for step in steps:
        properties = schema.get("properties") if isinstance(schema, Mapping) else None
        schema = properties.get(step) if isinstance(properties, Mapping) else None
    # Where the place is reached by a reference or through branches, nobody can tell.
    plain = isinstance(schema, Mapping) and not (
        {"$ref", "allOf", "anyOf", "oneOf", "if", "patternProperties", "dependentSchemas"} & schema.keys()
    )
    return not plain or bool(schema.get("additionalProperties"))


def _chosen(column: Column, record: Type) -> TypedColumn:
    selector = compiled(column.path)
    if selector.steps is not None:
        return TypedColumn(column.name, reduce(_type_of_child, selector.steps, record), selector)
    items = _type_of_matches(selector, record)
    return TypedColumn(column.name, Type("list", items=items) if items.kind != "json" else JSON, selector)


def _type_of_child(kind: Type, step: str | int) -> Type:
    if isinstance(step, str):
        return kind.field(step) or JSON
    return kind.items or JSON


def _type_of_matches(selector: Selector, record: Type) -> Type:
    """The type of each match of a path of names, positions and wildcards over lists; else `json`."""
    from jsonpath_rfc9535.segments import JSONPathChildSegment
    from jsonpath_rfc9535.selectors import NameSelector

    assert selector.query is not None
    kind = record
    for segment in selector.query.segments:
        if not isinstance(segment, JSONPathChildSegment) or len(segment.selectors) != 1:
            return JSON
        (only,) = segment.selectors
        # A wildcard, a filter or a slice over the fields of a struct may give any of them.
        kind = _type_of_child(kind, only.name) if isinstance(only, NameSelector) else kind.items or JSON
    return kind


def _steps(query: JSONPathQuery) -> Steps | None:
    if not query.singular_query():
        return None
    return tuple(_step(segment.selectors[0]) for segment in query.segments)


def _first_names(selector: Selector) -> Steps:
    """The names that a path of several matches begins with."""
    from jsonpath_rfc9535.segments import JSONPathChildSegment
    from jsonpath_rfc9535.selectors import NameSelector

    assert selector.query is not None
    names: list[str] = []
    for segment in selector.query.segments:
        first = segment.selectors[0]
        alone = isinstance(segment, JSONPathChildSegment) and len(segment.selectors) == 1
        if not alone or not isinstance(first, NameSelector):
            break
        names.append(first.name)
    return tuple(names)


def _step(selector: object) -> str | int:
    from jsonpath_rfc9535.selectors import IndexSelector, NameSelector

    if isinstance(selector, NameSelector):
        return selector.name
    assert isinstance(selector, IndexSelector)
    return selector.index


def _child(value: Json, step: str | int) -> Json:
    if isinstance(step, str):
        return value.get(step) if isinstance(value, dict) else None
    if not isinstance(value, list) or not -len(value) <= step < len(value):
        return None
    return value[step]


def _is_open(kind: Type) -> bool:
    """Whether a value of the type may hold fields that the type does not name."""
    inner: list[Type] = [field for _, field in kind.fields]
    if kind.items is not None:
        inner.append(kind.items)
    return kind.is_open or any(_is_open(one) for one in inner)


def _escape(char: str) -> str:
    if char in "'\\":
        return f"\\{char}"
    return f"\\u{ord(char):04x}" if char < " " else char
