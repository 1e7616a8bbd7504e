"""What is allowed in an output schema and probably not meant, or not enforced by the service. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from runner import outputschema, response_schema, validator, warning
from runner.errors import Diagnostic
from runner.marks import Place
from runner.model import Json
from runner.shape import suggest
from runner.specmodel import Spec

_KEYWORDS = frozenset(
    {
        "$anchor", "$comment", "$defs", "$dynamicAnchor", "$dynamicRef", "$id", "$ref", "$schema",
        "$vocabulary", "additionalProperties", "allOf", "anyOf", "const", "contains", "contentEncoding",
        "contentMediaType", "contentSchema", "default", "definitions", "dependentRequired",
        "dependentSchemas", "deprecated", "description", "else", "enum", "examples", "exclusiveMaximum",
        "exclusiveMinimum", "format", "if", "items", "maxContains", "maxItems", "maxLength",
        "maxProperties", "maximum", "minContains", "minItems", "minLength", "minProperties", "minimum",
        "multipleOf", "not", "oneOf", "pattern", "patternProperties", "prefixItems", "properties",
        "propertyNames", "readOnly", "required", "then", "title", "type", "unevaluatedItems",
        "unevaluatedProperties", "uniqueItems", "writeOnly", "discriminator", "example", "propertyOrdering",
    }
)  # fmt: skip
"""Of JSON Schema 2020-12, of its notes, and of notes that others add; all others are read by nobody."""


def lint(spec: Spec) -> Iterator[Diagnostic]:
    """Warnings about the schema of a spec, in no particular order."""
    yield from _not_enforced(spec)
    yield from _formats(spec)
    yield from _keywords(spec)


def _not_enforced(spec: Spec) -> Iterator[Diagnostic]:
    if spec.output_schema is None:
        return
    if spec.tools:
        message = "with tools, the service does not hold answers to output_schema"
        hint = "expect outcomes `invalid` and `unparseable`, or leave one of the two out"
        yield warning.at(spec, ("tools",), "GB906", message, hint, key=True)
    first: dict[str, Place] = {}
    count: dict[str, int] = {}
    for note in response_schema.lower(spec.output_schema)[1]:
        pointer, _, what = note.partition(": ")
        place = _pointer(spec.output_schema, pointer)
        format_ = re.match(r"format `(.*)` is checked locally only", what, re.DOTALL)
        if format_ is not None and format_[1] not in validator.FORMATS:
            continue
        named = re.match(r"`([^`]+)` is checked locally only", what)
        if named is not None:
            if named[1] not in _KEYWORDS:
                continue
            place = (*place, named[1])
            # In nearly every schema, and harmless: the service is told which properties there are.
            if named[1] == "additionalProperties" and _value(spec.output_schema, place) is False:
                continue
        first.setdefault(what, place)
        count[what] = count.get(what, 0) + 1
    for what, place in first.items():
        more = f", here and in {count[what] - 1} more place(s)" if count[what] > 1 else ""
        message = f"the service does not enforce a part of the schema: {what}{more}"
        hint = "answers that break it come back as `invalid`"
        yield _in_schema(spec, place, "GB910", message, hint, key=True)


def _pointer(schema: Json, pointer: str) -> Place:
    """The steps of a JSON pointer as far as they lead; a pointer may go through a `$ref`."""
    place: list[str | int] = []
    for name in pointer.split("/")[1:]:
        step: str | int = int(name) if isinstance(schema, (list, tuple)) and name.isdigit() else name
        try:
            schema = schema[step]
        except (KeyError, IndexError, TypeError):
            break
        place.append(step)
    return tuple(place)


def _value(schema: Json, place: Place) -> Json:
    for step in place:
        try:
            schema = schema[step]
        except (KeyError, IndexError, TypeError):
            return None
    return schema


def _formats(spec: Spec) -> Iterator[Diagnostic]:
    known = validator.FORMATS.union(*response_schema.FORMATS.values())
    for place, keyword, value in outputschema.keywords(spec.output_schema):
        if keyword != "format" or (place and place[-1] in outputschema.MAPS) or value in known:
            continue
        message = f'format "{value}" is unknown: nobody checks it'
        hint = suggest(value, validator.FORMATS) or "say it with `pattern`, or leave it out"
        yield _in_schema(spec, (*place, "format"), "GB915", message, hint)


def _keywords(spec: Spec) -> Iterator[Diagnostic]:
    schema = spec.output_schema
    if not isinstance(schema, Mapping) or "2020-12" not in schema.get("$schema", "2020-12"):
        # Older drafts have other keywords.
        return
    for place, keyword, value in outputschema.keywords(schema):
        if (place and place[-1] in outputschema.MAPS) or keyword in _KEYWORDS or keyword.startswith("x-"):
            continue
        message = f'"{keyword}" is no keyword of JSON Schema: it checks nothing'
        hint = suggest(keyword, sorted(_KEYWORDS)) or "remove it, or say it with a keyword that there is"
        if keyword == "nullable":
            if value is not True:
                continue
            message = (
                '"nullable" lets the model answer null, and JSON Schema does not know it: null is invalid'
            )
            hint = 'write the type as a list: [string, "null"]'
        yield _in_schema(spec, (*place, keyword), "GB916", message, hint, key=True)


def _in_schema(
    spec: Spec, place: Place, code: str, message: str, hint: str, *, key: bool = False
) -> Diagnostic:
    """A warning about a part of the schema; in words where that part was not written, as in a model's."""
    if spec.origin is not None and ("output_schema", *place[:1]) not in spec.origin.marks:
        message += f", at {''.join(f'/{step}' for step in place)} of the model's schema"
    return warning.at(spec, ("output_schema", *place), code, message, hint, key=key)
