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
from runner.schemaparts import JOINED, add, joined, listed, type_of, types_of

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
        JOINED,
    }
)  # fmt: skip
_SAYS_NOTHING = frozenset(
    {
        "$ref", "$schema", "$id", "$anchor", "$comment", "$defs", "definitions", "default", "examples",
        "example", "deprecated", "readOnly", "writeOnly", "title", "description",
    }
)  # fmt: skip
"""Keywords beside a `$ref` that forbid nothing."""
_STRUCTURE = frozenset({"type", "properties", "items", "prefixItems", "enum", "const"})
"""Keywords of which one at least gives a schema a form at the service."""
_SPEAKS_OF: Mapping[str, frozenset[str]] = {
    **dict.fromkeys(("minItems", "maxItems"), frozenset({"array"})),
    **dict.fromkeys(("minProperties", "maxProperties"), frozenset({"object"})),
    **dict.fromkeys(("minLength", "maxLength", "pattern"), frozenset({"string"})),
    **dict.fromkeys(("minimum", "maximum"), frozenset({"integer", "number"})),
}
"""Of which types a rule says anything."""
MAX_PARTS = 10_000
"""Parts of a schema that are lowered, each reference followed anew; one of more is not sent."""
_ADDED = "+"
"""Before a reference whose rules were added to those beside it, among the references on the way."""
_Note = tuple[str, str]
"""JSON pointer and what is said of the place."""


def lower(schema: Mapping[str, Json]) -> tuple[dict[str, Json], tuple[str, ...]]:
    """The `responseSchema` to send, and one line per rule that only the local check enforces.

    Property order is kept through `propertyOrdering`. Each line starts with a JSON pointer
    into the user's schema. The schema to send is empty where a part of the user's has no form at
    the service (an object or array of anything): then the service is only told to answer JSON.
    """
    lowering = _Lowering(schema)
    lowered = lowering.node(schema, "", ())
    if lowering.is_too_large:
        lowering = _Lowering(schema)
        lowering.no_form("", f"more than {MAX_PARTS:,} parts, each reference followed")
    found = dict.fromkeys((*lowering.formless, *lowering.notes))
    return ({} if lowering.formless else lowered), tuple(f"{place or '/'}: {what}" for place, what in found)


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
        self.notes: list[_Note] = []
        self.formless: list[_Note] = []
        self._left = MAX_PARTS

    @property
    def is_too_large(self) -> bool:
        """Whether the schema was given up: then nothing that was found of it is of use."""
        return self._left < 0

    def no_form(self, pointer: str, what: str) -> dict[str, Json]:
        self.formless.append((pointer, f"{what}: no schema is sent, only that JSON is wanted"))
        return {}

    def note(self, pointer: str, what: str) -> None:
        self.notes.append((pointer, what))

    def node(self, schema: Json, pointer: str, refs: tuple[str, ...]) -> dict[str, Json]:
        self._left -= 1
        if self.is_too_large:
            return {}
        if schema is True or schema == {}:
            return self.no_form(pointer, "anything goes")
        if not isinstance(schema, Mapping):
            return self.no_form(pointer, "`false`")
        if "$ref" in schema and _SAYS_NOTHING.issuperset(schema):
            return self._reference(schema, pointer, refs)
        merged, refs = self._merged(schema, pointer, refs)
        keyword = "anyOf" if merged.get("anyOf") else "oneOf"
        if "oneOf" in merged:
            how = "is checked locally only" if merged.get("anyOf") else "is sent as anyOf"
            self.note(pointer, f"`oneOf` {how}")
        variants = merged.get(keyword)
        rest = {key: value for key, value in merged.items() if key not in ("anyOf", "oneOf")}
        if isinstance(variants, Sequence) and variants:
            return self._any_of(rest, variants, pointer, keyword, refs)
        return self._plain(rest, pointer, refs)

    def _plain(self, schema: Mapping[str, Json], pointer: str, refs: tuple[str, ...]) -> dict[str, Json]:
        """A schema without references and branches."""
        names = types_of(schema)
        is_nullable = "null" in names or schema.get("nullable") is True or None in listed(schema)
        names = [name for name in names if name in _TYPES]
        if len(names) > 1:
            holders = {"object": {"properties"}, "array": {"items", "prefixItems"}}
            if any(not (keys & schema.keys()) for name, keys in holders.items() if name in names):
                return self.no_form(pointer, f"a value that is {' or '.join(names)}")
            branches = [self._of_one_type(schema, name, pointer, refs) for name in names]
            return _branched(branches, {}, is_nullable=is_nullable)
        if not names:
            return self.no_form(pointer, "a value without a type")
        out = self._of_one_type(schema, names[0], pointer, refs)
        return {**out, "nullable": True} if is_nullable else out

    def _of_one_type(
        self, schema: Mapping[str, Json], name: str, pointer: str, refs: tuple[str, ...]
    ) -> dict[str, Json]:
        out: dict[str, Json] = {"type": name.upper()}
        if "format" in schema:
            if schema["format"] in FORMATS.get(name, ()):
                out["format"] = schema["format"]
            else:
                self.note(pointer, f"format `{schema['format']}` is checked locally only")
        for key in _KEPT:
            if key in schema and name in _SPEAKS_OF.get(key, _TYPES):
                out[key] = schema[key]
        self._values(out, schema, pointer)
        if name == "object":
            self._properties(out, schema, pointer, refs)
        if name == "array":
            self._items(out, schema, pointer, refs)
        return out

    def _reference(self, schema: Mapping[str, Json], pointer: str, refs: tuple[str, ...]) -> dict[str, Json]:
        """A reference with nothing beside it that forbids anything."""
        target = str(schema["$ref"])
        if target in refs:
            return self.no_form(pointer, f"a cycle through {target}")
        found = self._target(target)
        if found is None:
            return self.no_form(pointer, f"{target} is resolved locally only")
        words = {key: schema[key] for key in ("title", "description") if key in schema}
        if isinstance(found, Mapping) and words:
            found = {**found, **words}
        return self.node(found, pointer, (*refs, target))

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

    def _merged(
        self, schema: Mapping[str, Json], pointer: str, refs: tuple[str, ...], *, is_part: bool = False
    ) -> tuple[Mapping[str, Json], tuple[str, ...]]:
        """The schema with what `allOf` and a `$ref` beside other rules add to it, and the references taken.

        Of rules that overlap the first counts: that forbids less than both.
        """
        for key in schema:
            if key not in _SILENT:
                self.note(pointer, f"`{key}` is checked locally only")
        merged = {key: value for key, value in schema.items() if key not in ("allOf", "$ref", JOINED)}
        parts = [part for part in schema.get("allOf", ()) if isinstance(part, Mapping)]
        if "$ref" in schema:
            parts.insert(0, {"$ref": schema["$ref"]})
        if parts and not is_part:
            what = "what stands beside a $ref" if "$ref" in schema else "`allOf`"
            self.note(pointer, f"{what} is merged; rules that overlap are checked locally only")
        for part in (*parts, *schema.get(JOINED, ())):
            if "$ref" in part:
                target = str(part["$ref"])
                # Twice on one way: the same part may be added to a property of what it is added to.
                if target in refs or refs.count(_ADDED + target) > 1:
                    self.no_form(pointer, f"a cycle through {target}")
                    continue
                found = self._target(target)
                if not isinstance(found, Mapping):
                    self.no_form(pointer, f"{target} is resolved locally only")
                    continue
                refs = (*refs, _ADDED + target)
                beside = {key: value for key, value in part.items() if key != "$ref"}
                part = {**found, "allOf": [*found.get("allOf", ()), beside]} if beside else found
            added, refs = self._merged(part, pointer, refs, is_part=True)
            add(merged, added)
        return merged, refs

    def _any_of(
        self,
        rest: Mapping[str, Json],
        variants: Sequence[Json],
        pointer: str,
        keyword: str,
        refs: tuple[str, ...],
    ) -> dict[str, Json]:
        """`rest` is what stands beside the branches, and holds for each of them."""
        kept = [v for v in variants if not (isinstance(v, Mapping) and v.get("type") in ("null", ["null"]))]
        is_nullable = len(kept) < len(variants) or rest.get("nullable") is True or "null" in types_of(rest)
        words = {key: rest[key] for key in ("title", "description") if key in rest}
        places = [pointer if len(kept) == 1 else f"{pointer}/{keyword}/{at}" for at in range(len(kept))]
        if not (_STRUCTURE & rest.keys()) or not kept:
            branches = [self.node(v, place, refs) for v, place in zip(kept, places, strict=True)]
            if not branches:
                return self.no_form(pointer, "a value without a type")
            return _branched(branches, words, is_nullable=is_nullable)
        plain = {key: value for key, value in rest.items() if key in _SILENT and key not in words}
        noted, lost = len(self.notes), len(self.formless)
        alone = self._plain(plain, pointer, refs)
        if len(self.formless) > lost:
            # Only together with a branch it has a form, if at all.
            del self.formless[lost:]
            alone = {}
        known = {(place, what) for place, what in self.notes[noted:]}
        branches = []
        for variant, place in zip(kept, places, strict=True):
            noted = len(self.notes)
            branches.append(self.node(joined(plain, variant), place, refs))
            # What is said of the rest already is not said of each branch.
            self.notes[noted:] = [
                note for note in self.notes[noted:] if (pointer + note[0][len(place) :], note[1]) not in known
            ]
        if len(self.formless) == lost:
            return _branched(branches, words, is_nullable=is_nullable)
        if alone:
            # Such as a branch that allows anything: what stands beside it is enough to send.
            del self.formless[lost:]
            self.note(pointer, f"`{keyword}` is checked locally only")
        return _branched([alone], words, is_nullable=is_nullable)

    def _values(self, out: dict[str, Json], schema: Mapping[str, Json], pointer: str) -> None:
        texts = [value for value in listed(schema) if isinstance(value, str)]
        if out["type"] == "STRING" and texts:
            if "" in texts:
                # Source: "enum[0]: cannot be empty", as users of the service report it.
                self.note(pointer, "an empty text cannot stand in an enum at the service")
            else:
                out["enum"] = texts
        elif any(value is not None for value in listed(schema)):
            self.note(pointer, "values that are not text cannot be an enum at the service")
            numbers = [value for value in listed(schema) if type_of(value) in ("integer", "number")]
            if out["type"] in ("INTEGER", "NUMBER") and numbers:
                out.setdefault("minimum", min(numbers))
                out.setdefault("maximum", max(numbers))

    def _properties(
        self, out: dict[str, Json], schema: Mapping[str, Json], pointer: str, refs: tuple[str, ...]
    ) -> None:
        properties = schema.get("properties")
        properties = properties if isinstance(properties, Mapping) else {}
        required = schema.get("required", ())
        for name in required:
            if name not in properties:
                self.note(pointer, f'`required` of "{name}", which is no property, is checked locally only')
        if not properties:
            self.no_form(pointer, "an object of any properties")
            return
        out["properties"] = {
            name: self.node(sub, f"{pointer}/properties/{name}", refs) for name, sub in properties.items()
        }
        given = schema.get("propertyOrdering")
        first = [name for name in given if name in properties] if isinstance(given, list | tuple) else []
        out["propertyOrdering"] = list(dict.fromkeys([*first, *properties]))
        if kept := [name for name in required if name in properties]:
            out["required"] = kept

    def _items(
        self, out: dict[str, Json], schema: Mapping[str, Json], pointer: str, refs: tuple[str, ...]
    ) -> None:
        if "prefixItems" in schema:
            # The service knows one schema for all items; `items` speaks only of those that follow.
            first = [
                self.node(s, f"{pointer}/prefixItems/{i}", refs) for i, s in enumerate(schema["prefixItems"])
            ]
            rest = schema.get("items", True)
            if rest is not False and schema.get("maxItems", len(first) + 1) > len(first):
                first.append(self.node(rest, f"{pointer}/items", refs))
            out["items"] = _branched(first, {}, is_nullable=False)
        elif "items" in schema:
            out["items"] = self.node(schema["items"], f"{pointer}/items", refs)
        else:
            self.no_form(pointer, "an array of anything")


def _branched(
    branches: Sequence[dict[str, Json]], words: Mapping[str, Json], *, is_nullable: bool
) -> dict[str, Json]:
    """What fits one of the branches. `anyOf` stands alone: all else is said in each branch.

    Source: "When using any_of, it must be the only field set", Vertex AI, as its users report it.
    """
    flat: list[dict[str, Json]] = []
    for branch in branches:
        inner = branch["anyOf"] if branch.keys() == {"anyOf"} else [branch]
        for one in inner:
            found = {**words, **one} if len(branches) > 1 else {**one, **words}
            if len(branches) > 1 and words.get("description", "") != found.get("description", ""):
                texts = (words.get("description"), one["description"])
                found["description"] = "\n".join(text for text in texts if text)
            if is_nullable:
                found["nullable"] = True
            if found not in flat:
                flat.append(found)
    return flat[0] if len(flat) == 1 else {"anyOf": flat}
