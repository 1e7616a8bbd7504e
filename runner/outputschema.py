"""The user's JSON Schema, checked before anything is sent. Pure.

Records are judged by jsonschema-rs alone; so a schema is sound exactly when that compiles it, without
the network and without other files. jsonschema only explains what is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from runner.marks import Place
from runner.model import Json
from runner.shape import expected, shown, suggest

Report = Callable[[Place, str, str, str], None]
"""Takes the place in the schema, a code, a message and a hint."""

_MAPS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
"""Keywords whose keys are names that the user chose."""
_DATA = frozenset({"const", "enum", "default", "examples", "example"})
"""Keywords whose values are data, not schemas."""


def check(schema: dict[str, Json], report: Report) -> None:
    """Report every problem of a schema."""
    import jsonschema_rs

    if isinstance(schema.get("properties"), Mapping) and "_key" in schema["properties"]:
        message = 'a schema cannot have a property "_key"'
        report(("properties", "_key"), "GB314", message, "every record gets its row's key under that name")
    try:
        # The first follows `$schema`, as the judge of records does. The second holds a schema of an older
        # draft to the present one too: what the service is sent is made from these keywords.
        jsonschema_rs.validator_for(schema, validate_formats=True, offline=True)
        jsonschema_rs.Draft202012Validator(schema, offline=True)
    except ValueError as error:
        problems = list(dict.fromkeys(_problems(schema)))
        first = str(error).splitlines()[0]
        for problem in problems or [((), "GB311", f"the validator does not take this schema: {first}", "")]:
            report(*problem)


def _problems(schema: dict[str, Json]) -> Iterator[tuple[Place, str, str, str]]:
    import jsonschema

    kind = jsonschema.Draft202012Validator
    for error in kind(kind.META_SCHEMA).iter_errors(schema):
        yield _metaschema_problem(error)
    for place, keyword, value in _keywords(schema, ()):
        if keyword == "pattern" and isinstance(value, str) and not _compiles({"pattern": value}):
            yield _bad_pattern((*place, "pattern"), value)
        elif keyword == "patternProperties" and isinstance(value, Mapping):
            for pattern in value:
                if not _compiles({"pattern": pattern}):
                    yield _bad_pattern((*place, "patternProperties", pattern), pattern)
        elif keyword in ("$ref", "$dynamicRef") and isinstance(value, str):
            if value.startswith("#"):
                if not _resolves(schema, value):
                    yield (*place, keyword), "GB313", f'"{value}" names nothing in this schema', ""
            elif not _compiles({**schema, "$ref": value}):
                hint = "copy what it names into `$defs` and refer to that"
                yield (*place, keyword), "GB313", f'"{value}" lies outside this schema and is not read', hint


def _bad_pattern(place: Place, pattern: str) -> tuple[Place, str, str, str]:
    message = f"{shown(pattern)} is not a regular expression that the validator takes"
    return place, "GB312", message, "write it in JavaScript's (ECMA 262) syntax"


def _metaschema_problem(error: Any) -> tuple[Place, str, str, str]:
    place = tuple(error.absolute_path)
    name = (
        "this item" if place and isinstance(place[-1], int) else f'"{place[-1]}"' if place else "the schema"
    )
    if place and place[-1] == "type" and error.validator == "anyOf":
        types = ("string", "number", "integer", "boolean", "array", "object", "null")
        message = f"{name} must be one of {', '.join(types)}; it is {shown(error.instance)}"
        hint = suggest(error.instance, types) if isinstance(error.instance, str) else ""
        return place, "GB311", message, hint
    if error.validator == "type":
        given = error.validator_value
        words = expected([given] if isinstance(given, str) else given)
        return place, "GB311", f"{name} must be {words}, not {shown(error.instance)}", ""
    return place, "GB311", f"{name} is not valid JSON Schema: {error.message[:200]}", ""


def _keywords(schema: Json, place: Place) -> Iterator[tuple[Place, str, Json]]:
    """Every key of the schema with the place that holds it, leaving out what is data."""
    if isinstance(schema, Mapping):
        for key, value in schema.items():
            yield place, key, value
            if key not in _DATA or (place and place[-1] in _MAPS):
                yield from _keywords(value, (*place, key))
    elif isinstance(schema, list):
        for index, value in enumerate(schema):
            yield from _keywords(value, (*place, index))


def _compiles(schema: dict[str, Json]) -> bool:
    import jsonschema_rs

    try:
        jsonschema_rs.validator_for(schema, offline=True)
    except ValueError:
        return False
    return True


def _resolves(schema: dict[str, Json], reference: str) -> bool:
    """Whether `#...` names something, with the rest of the schema's references left aside."""
    definitions = {key: value for key, value in schema.items() if key in ("$defs", "definitions", "$id")}
    return reference == "#" or _compiles({**definitions, "$ref": reference}) or _pointer(schema, reference)


def _pointer(schema: Json, reference: str) -> bool:
    for step in reference.removeprefix("#/").split("/"):
        name = step.replace("~1", "/").replace("~0", "~")
        if isinstance(schema, Mapping) and name in schema:
            schema = schema[name]
        elif isinstance(schema, list) and name.isdigit() and int(name) < len(schema):
            schema = schema[int(name)]
        else:
            return False
    return True
