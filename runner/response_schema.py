"""The user's JSON Schema, lowered to what the service can enforce. Pure.

The service takes an OpenAPI subset as `responseSchema`; the full schema is always checked
locally, so lowering may lose rules but must not forbid an answer that the schema allows. One
exception: a schema that speaks of `properties` or `items` and names no type is taken to mean an
object or an array, as everyone who writes one does.

Source: https://ai.google.dev/api/caching#Schema (fields of Schema); batch jobs were reported to
return degenerate JSON with `responseJsonSchema` and sound JSON with `responseSchema`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from runner.model import Json

_TYPES = frozenset({"string", "number", "integer", "boolean", "array", "object"})
_KEPT = (
    "title",
    "description",
    "minItems",
    "maxItems",
    "minProperties",
    "maxProperties",
    "minLength",
    "maxLength",
    "pattern",
    "minimum",
    "maximum",
)
FORMATS = {
    "string": {"date-time"},
    "integer": {"int32", "int64"},
    "number": {"float", "double"},
}
"""What the service takes as a `format`, by type."""
_SILENT = frozenset(
    {
        "$schema", "$id", "$anchor", "$comment", "$defs", "definitions", "default", "examples", "example",
        "deprecated", "discriminator", "readOnly", "writeOnly", "type", "nullable", "enum", "const", "format",
        "items", "properties", "required", "anyOf", "oneOf", "allOf", "$ref", "propertyOrdering", *_KEPT,
    }
)  # fmt: skip
_SAYS_NOTHING = frozenset(
    {
        "$ref", "$schema", "$id", "$anchor", "$comment", "$defs", "definitions", "default", "examples",
        "example", "deprecated", "readOnly", "writeOnly", "title", "description",
    }
)  # fmt: skip
"""Keywords beside a `$ref` that forbid nothing."""


def lower(schema: Mapping[str, Json]) -> tuple[dict[str, Json], tuple[str, ...]]:
    """The `responseSchema` to send, and one line per rule that only the local check enforces.

    Property order is kept through `propertyOrdering`. Each line starts with a JSON pointer
    into the user's schema. The schema to send is empty where a part of the user's has no form at
    the service (an object or array of anything): then the service is only told to answer JSON.
    """
    lowering = _Lowering(schema)
    lowered = lowering.node(schema, "", ())
    notes = tuple(dict.fromkeys((*lowering.formless, *lowering.notes)))
    return ({} if lowering.formless else lowered), notes


def ordered(schema: Json) -> Json:
    """The schema in a form whose sorted-key JSON still tells the order of properties.

    Two schemas that ask for their properties in another order are different requests.
    """
    if isinstance(schema, Mapping):
        return {
            key: [[name, ordered(sub)] for name, sub in value.items()]
            if key == "properties" and isinstance(value, Mapping)
            else ordered(value)
            for key, value in schema.items()
        }
    if isinstance(schema, Sequence) and not isinstance(schema, str):
        return [ordered(item) for item in schema]
    return schema


class _Lowering:
    def __init__(self, root: Mapping[str, Json]) -> None:
        self.root = root
        self.notes: list[str] = []
        self.formless: list[str] = []

    def no_form(self, pointer: str, what: str) -> dict[str, Json]:
        self.formless.append(f"{pointer or '/'}: {what}: no schema is sent, only that JSON is wanted")
        return {}

    def note(self, pointer: str, what: str) -> None:
        self.notes.append(f"{pointer or '/'}: {what}")

    def node(self, schema: Json, pointer: str, refs: tuple[str, ...]) -> dict[str, Json]:
        if schema is True or schema == {}:
            return self.no_form(pointer, "anything goes")
        if not isinstance(schema, Mapping):
            return self.no_form(pointer, "`false`")
        if "$ref" in schema:
            return self._reference(schema, pointer, refs)
        for key in schema:
            if key not in _SILENT:
                self.note(pointer, f"`{key}` is checked locally only")
        merged = self._merge_all_of(schema, pointer, refs)
        variants = merged.get("anyOf") or merged.get("oneOf")
        if "oneOf" in merged:
            how = "is checked locally only" if merged.get("anyOf") else "is sent as anyOf"
            self.note(pointer, f"`oneOf` {how}")
        out: dict[str, Json] = {}
        if isinstance(variants, Sequence):
            self._any_of(out, variants, pointer, refs, typed="type" in merged or "properties" in merged)
        self._type(out, merged, pointer)
        self._values(out, merged, pointer)
        for key in _KEPT:
            if key in merged:
                out[key] = merged[key]
        self._children(out, merged, pointer, refs)
        return out

    def _reference(self, schema: Mapping[str, Json], pointer: str, refs: tuple[str, ...]) -> dict[str, Json]:
        target = str(schema["$ref"])
        if target in refs:
            return self.no_form(pointer, f"a cycle through {target}")
        found = self._target(target)
        if found is None:
            return self.no_form(pointer, f"{target} is resolved locally only")
        out = self.node(found, pointer, (*refs, target))
        for key in schema:
            if key in ("title", "description"):
                out[key] = schema[key]
            elif key not in _SAYS_NOTHING:
                self.note(pointer, f"`{key}` beside a $ref is checked locally only")
        return out

    def _target(self, target: str) -> Json:
        """What a local `$ref` points at, None where it points elsewhere."""
        found: Any = self.root
        if target == "#":
            return found
        if not target.startswith("#/"):
            return None
        for part in target.removeprefix("#/").split("/"):
            name = part.replace("~1", "/").replace("~0", "~")
            if isinstance(found, Mapping) and name in found:
                found = found[name]
            elif isinstance(found, Sequence) and name.isdigit() and int(name) < len(found):
                found = found[int(name)]
            else:
                return None
        return found

    def _merge_all_of(
        self, schema: Mapping[str, Json], pointer: str, refs: tuple[str, ...]
    ) -> Mapping[str, Json]:
        if "allOf" not in schema:
            return schema
        merged = {key: value for key, value in schema.items() if key != "allOf"}
        for part in schema["allOf"]:
            if isinstance(part, Mapping) and "$ref" in part:
                part = self._target(str(part["$ref"])) if part["$ref"] not in refs else None
            for key, value in part.items() if isinstance(part, Mapping) else ():
                if key == "properties":
                    merged[key] = {**merged.get(key, {}), **value}
                elif key == "required":
                    merged[key] = [*merged.get(key, []), *(v for v in value if v not in merged.get(key, []))]
                else:
                    merged.setdefault(key, value)
        self.note(pointer, "`allOf` is merged; rules that overlap are checked locally only")
        return merged

    def _any_of(
        self,
        out: dict[str, Json],
        variants: Sequence[Json],
        pointer: str,
        refs: tuple[str, ...],
        *,
        typed: bool,
    ) -> None:
        kept = [v for v in variants if not (isinstance(v, Mapping) and v.get("type") == "null")]
        if len(kept) < len(variants):
            out["nullable"] = True
        known = len(self.formless)
        places = [pointer] if len(kept) == 1 else [f"{pointer}/anyOf/{i}" for i in range(len(kept))]
        lowered = [self.node(v, place, refs) for v, place in zip(kept, places, strict=True)]
        if typed and len(self.formless) > known:
            # Such as `anyOf: [{required: [a]}, {required: [b]}]`: the type beside it is enough to send.
            del self.formless[known:]
            self.note(pointer, "`anyOf` is checked locally only")
        elif len(lowered) == 1:
            out.update(lowered[0])
        elif lowered:
            out["anyOf"] = lowered

    def _type(self, out: dict[str, Json], schema: Mapping[str, Json], pointer: str) -> None:
        given = schema.get("type")
        names = [given] if isinstance(given, str) else list(given or ())
        if "null" in names or schema.get("nullable") is True:
            out["nullable"] = True
        names = [n for n in names if n in _TYPES]
        if not names and "type" not in out and "anyOf" not in out:
            if "properties" in schema:
                names = ["object"]
            elif "items" in schema or "prefixItems" in schema:
                names = ["array"]
            elif all(isinstance(v, str) for v in _allowed(schema)) and _allowed(schema):
                names = ["string"]
        if len(names) == 1:
            out["type"] = names[0].upper()
        elif names:
            out["anyOf"] = [{"type": name.upper()} for name in names]
            if {"object", "array"} & set(names):
                self.no_form(pointer, f"a value that is {' or '.join(names)}")
        kind = names[0] if len(names) == 1 else ""
        if "format" in schema:
            if schema["format"] in FORMATS.get(kind, ()):
                out["format"] = schema["format"]
            else:
                self.note(pointer, f"format `{schema['format']}` is checked locally only")

    def _values(self, out: dict[str, Json], schema: Mapping[str, Json], pointer: str) -> None:
        allowed = _allowed(schema)
        if not allowed:
            return
        texts = [v for v in allowed if v is not None]
        if None in allowed:
            out["nullable"] = True
        if texts and all(isinstance(v, str) for v in texts) and out.get("type", "STRING") == "STRING":
            out["type"] = "STRING"
            out["enum"] = texts
        elif texts:
            self.note(pointer, "values that are not text cannot be an enum at the service")

    def _children(
        self, out: dict[str, Json], schema: Mapping[str, Json], pointer: str, refs: tuple[str, ...]
    ) -> None:
        properties = schema.get("properties")
        if isinstance(properties, Mapping) and properties:
            out["properties"] = {
                name: self.node(sub, f"{pointer}/properties/{name}", refs) for name, sub in properties.items()
            }
            ordering = schema.get("propertyOrdering")
            out["propertyOrdering"] = list(ordering) if isinstance(ordering, Sequence) else list(properties)
            required = [name for name in schema.get("required", ()) if name in properties]
            if required:
                out["required"] = required
        for name in schema.get("required", ()):
            if name not in (properties or ()):
                self.note(pointer, f'`required` of "{name}", which is no property, is checked locally only')
        if "prefixItems" in schema:
            # The service knows one schema for all items; `items` speaks only of those that follow.
            first = [
                self.node(s, f"{pointer}/prefixItems/{i}", refs) for i, s in enumerate(schema["prefixItems"])
            ]
            rest = schema.get("items", True)
            if rest is not False and schema.get("maxItems", len(first) + 1) > len(first):
                first.append(self.node(rest, f"{pointer}/items", refs))
            kinds = [kind for at, kind in enumerate(first) if kind not in first[:at]]
            out["items"] = kinds[0] if len(kinds) == 1 else {"anyOf": kinds}
        elif "items" in schema:
            out["items"] = self.node(schema["items"], f"{pointer}/items", refs)
        if out.get("type") == "OBJECT" and "properties" not in out:
            self.no_form(pointer, "an object of any properties")
        if out.get("type") == "ARRAY" and "items" not in out:
            self.no_form(pointer, "an array of anything")
        if "type" not in out and "anyOf" not in out:
            self.no_form(pointer, "a value without a type")


def _allowed(schema: Mapping[str, Json]) -> list[Json]:
    if "const" in schema:
        return [schema["const"]]
    return list(schema.get("enum", ()))
