"""The types of a record's fields, as far as a spec tells before the first answer is there. Pure.

What has no clear type is `json`: written as JSON text wherever values have types.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import reduce

import msgspec

from runner.model import Json
from runner.specmodel import Spec

KEY = "_key"
OTHERS = "_extra"
WHOLE = "value"
MAX_SCHEMAS = 10_000
"""Parts of a schema that are looked at, each reference followed anew: what lies beyond is `json`."""


class Type(msgspec.Struct, frozen=True):
    """What a value may be, besides null."""

    kind: str
    """`string`, `integer`, `number`, `boolean`, `float32`, `list`, `struct`, `object` (of any fields) or
    `json` (anything)."""
    items: Type | None = None
    """Of a `list`."""
    fields: tuple[tuple[str, Type], ...] = ()
    """Of a `struct`, in the order of the schema."""
    is_open: bool = False
    """Whether a `struct` may hold other fields too."""

    def field(self, name: str) -> Type | None:
        """The type of a field, None where the type names none of that name."""
        return dict(self.fields).get(name)


STRING, INTEGER, NUMBER, BOOLEAN = Type("string"), Type("integer"), Type("number"), Type("boolean")
JSON = Type("json")
_TOKENS = ("prompt", "cached", "output", "thoughts")
VECTOR = Type("list", items=Type("float32"))
NOTES: Mapping[str, Type] = {"_repaired": STRING, "_remedied": STRING}
"""What a record says of the way it was won, where there is anything to say."""
META: Mapping[str, Type] = {
    "_request_id": STRING,
    "_attempt": STRING,
    "_model_version": STRING,
    "_response_id": STRING,
    "_usage": Type("struct", fields=tuple((name, INTEGER) for name in _TOKENS)),
    "_finish_reason": STRING,
}
"""What `include: [meta]` adds to a record."""
_SCALARS: Mapping[str, Type] = {
    "string": STRING,
    "integer": INTEGER,
    "number": NUMBER,
    "boolean": BOOLEAN,
}


def of_record(spec: Spec, *, meta: bool) -> tuple[Type, str]:
    """The type of a whole record, and the name of the column for fields that it does not tell.

    That name is `_extra`, or `value` where an answer is an object of any fields, or empty where there
    are no such fields.
    """
    fields, others = _body(spec)
    several = spec.samples.count > 1
    if several and spec.samples.aggregate == "all":
        items = Type("struct", fields=tuple(_noted(fields).items()), is_open=bool(others))
        fields = {"samples": JSON if others == WHOLE else Type("list", items=items)}
        others = ""
    else:
        if several and spec.samples.aggregate == "mean":
            fields = {name: NUMBER if kind == INTEGER else kind for name, kind in fields.items()}
        if several and spec.samples.aggregate in ("majority", "mean"):
            fields["_agreement"] = Type("object")
        fields = _noted(fields)
    fields = {KEY: STRING, **{name: kind for name, kind in fields.items() if name != KEY}}
    if meta:
        fields.update(_of_several(META) if several else META)
    return Type("struct", fields=tuple(fields.items()), is_open=bool(others)), others


def _body(spec: Spec) -> tuple[dict[str, Type], str]:
    """Fields of one answer, and the name of the column for those that are not told."""
    if spec.task == "embed_content":
        return {"embedding": VECTOR}, ""
    if spec.output_schema is None:
        # Only tools and other modalities give parts that are not text.
        mixed = spec.tools or "response_modalities" in spec.generation_config
        return {"text": STRING, "parts": JSON} if mixed else {"text": STRING}, ""
    answer = of_schema(spec.output_schema)
    if answer.kind == "struct":
        return dict(answer.fields), OTHERS if answer.is_open else ""
    if answer.kind == "object":
        return {}, WHOLE
    return {"value": answer}, OTHERS if answer.kind == "json" else ""


def _noted(fields: Mapping[str, Type]) -> dict[str, Type]:
    return {**fields, **{name: kind for name, kind in NOTES.items() if name not in fields}}


def _of_several(meta: Mapping[str, Type]) -> dict[str, Type]:
    """The same over several requests: a list of each, but the tokens are summed up."""
    return {name: kind if kind.kind == "struct" else Type("list", items=kind) for name, kind in meta.items()}


def of_schema(schema: Mapping[str, Json]) -> Type:
    """The type of the values that a JSON Schema allows."""
    return _Reader(schema).type(schema, frozenset())


class _Reader:
    def __init__(self, root: Mapping[str, Json]) -> None:
        self._root = root
        self._left = MAX_SCHEMAS

    def type(self, schema: Json, seen: frozenset[str]) -> Type:
        """`seen` are the references that led here: a schema that holds itself has no end."""
        self._left -= 1
        if not isinstance(schema, Mapping) or self._left < 0:
            return JSON
        found = [self._own(schema, seen)]
        reference = schema.get("$ref")
        if isinstance(reference, str):
            target = None if reference in seen else _pointed(self._root, reference)
            found.append(self.type(target, seen | {reference}))
        found += [self.type(part, seen) for part in _schemas(schema.get("allOf"))]
        for keyword in ("anyOf", "oneOf"):
            branches = [part for part in _schemas(schema.get(keyword)) if not _is_null(part)]
            if branches:
                found.append(reduce(_either, (self.type(part, seen) for part in branches)))
        return reduce(_both, found)

    def _own(self, schema: Mapping[str, Json], seen: frozenset[str]) -> Type:
        given = schema.get("type")
        names = {given} if isinstance(given, str) else set(given or ())
        names.discard("null")
        if not names:
            names = _implied(schema)
        if names == {"integer", "number"}:
            return NUMBER
        if len(names) != 1:
            return JSON
        (name,) = names
        if name == "array":
            items = self._items(schema, seen)
            return Type("list", items=items) if items.kind != "json" else JSON
        return self._object(schema, seen) if name == "object" else _SCALARS.get(name, JSON)

    def _items(self, schema: Mapping[str, Json], seen: frozenset[str]) -> Type:
        first = _schemas(schema.get("prefixItems"))
        rest = schema.get("items")
        if first and rest is False:
            return reduce(_either, (self.type(part, seen) for part in first))
        return reduce(_either, (self.type(part, seen) for part in (*first, rest)))

    def _object(self, schema: Mapping[str, Json], seen: frozenset[str]) -> Type:
        properties = schema.get("properties")
        if not isinstance(properties, Mapping) or not properties:
            return Type("object")
        fields = tuple((name, self.type(part, seen)) for name, part in properties.items())
        is_open = schema.get("additionalProperties") is not False or bool(schema.get("patternProperties"))
        return Type("struct", fields=fields, is_open=is_open)


def _implied(schema: Mapping[str, Json]) -> set[str]:
    """The JSON types of a schema that names none: those of the values it lists, or what it speaks of."""
    if "const" in schema or isinstance(schema.get("enum"), Sequence):
        values = [schema["const"]] if "const" in schema else schema["enum"]
        return {_name(value) for value in values if value is not None}
    if "properties" in schema:
        return {"object"}
    return {"array"} if "items" in schema else set()


def _name(value: Json) -> str:
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, Mapping | list | tuple):
        return "any"
    return "string" if isinstance(value, str) else "integer" if isinstance(value, int) else "number"


def _either(one: Type, other: Type) -> Type:
    """The type of values of which each is of one type or of the other."""
    if one == other:
        return one
    kinds = {one.kind, other.kind}
    if kinds == {"integer", "number"}:
        return NUMBER
    if kinds == {"struct"}:
        return _merged(one, other, is_open=one.is_open or other.is_open, join=_either)
    if kinds == {"list"} and one.items and other.items:
        items = _either(one.items, other.items)
        return Type("list", items=items) if items.kind != "json" else JSON
    return Type("object") if kinds == {"struct", "object"} else JSON


def _both(one: Type, other: Type) -> Type:
    """The type of values that are of both types: the one that tells more."""
    if one.kind == "json" or (one.kind == "object" and other.kind == "struct"):
        return other
    if one.kind == other.kind == "struct":
        return _merged(one, other, is_open=one.is_open and other.is_open, join=_both)
    return INTEGER if {one.kind, other.kind} == {"integer", "number"} else one


def _merged(one: Type, other: Type, *, is_open: bool, join: Callable[[Type, Type], Type]) -> Type:
    fields = dict(one.fields)
    for name, kind in other.fields:
        fields[name] = join(fields[name], kind) if name in fields else kind
    return Type("struct", fields=tuple(fields.items()), is_open=is_open)


def _schemas(value: Json) -> list[Json]:
    return list(value) if isinstance(value, list | tuple) else []


def _is_null(schema: Json) -> bool:
    return isinstance(schema, Mapping) and (
        schema.get("type") == "null" or ("const" in schema and schema["const"] is None)
    )


def _pointed(root: Mapping[str, Json], reference: str) -> Json:
    """The schema that `#...` names; None where it is not found by its path."""
    if reference == "#":
        return root
    if not reference.startswith("#/"):
        return None
    found: Json = root
    for step in _steps(reference):
        if isinstance(found, Mapping) and step in found:
            found = found[step]
        elif isinstance(found, list) and step.isdigit() and int(step) < len(found):
            found = found[int(step)]
        else:
            return None
    return found


def _steps(reference: str) -> Iterable[str]:
    return (step.replace("~1", "/").replace("~0", "~") for step in reference[2:].split("/"))
