"""The user's JSON Schema, from the spec, a file or a pydantic model, checked before anything is sent.

Records are judged by jsonschema-rs alone; so a schema is sound when that compiles it, without the network
and without other files, the parts that it does not look at too. jsonschema only explains what is wrong.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from runner import pydanticmodel, validator, yamlfile
from runner.marks import Place, locate
from runner.model import Json
from runner.shape import expected, shown, suggest
from runner.specmodel import Spec
from runner.specpaths import SpecPaths
from runner.tree import Tree

Report = Callable[[Place, str, str, str], None]
"""Takes the place in the schema, a code, a message and a hint."""

MAPS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
"""Keywords whose keys are names that the user chose."""
_HOLDS_SCHEMAS = frozenset(
    {
        *MAPS, "additionalItems", "additionalProperties", "allOf", "anyOf", "contains", "contentSchema",
        "dependencies", "else", "if", "items", "not", "oneOf", "prefixItems", "propertyNames", "then",
        "unevaluatedItems", "unevaluatedProperties",
    }
)  # fmt: skip
_DATA = frozenset({"const", "enum", "default", "examples", "example"})
"""Keywords whose values are data, not schemas."""


def read(tree: Tree, paths: SpecPaths, *, allow_python: bool) -> Mapping[str, Json] | None:
    """The spec's `output_schema`; None where it has none, and after reporting what is wrong with it.

    Runs the code of a module that it names, where `allow_python` says so.
    """
    if not tree.sound("output_schema"):
        return None
    value = tree.get("output_schema")
    if isinstance(value, str):
        return _from_file(tree, paths, value)
    if isinstance(value.get("pydantic"), str):
        return _from_model(tree, paths, value, allow_python)
    check(value, lambda at, *problem: tree.problem(("output_schema", *at), *problem))
    schema: Mapping[str, Json] = value
    return schema


def _from_file(tree: Tree, paths: SpecPaths, written: str) -> Mapping[str, Json] | None:
    data = paths.data(("output_schema",), written)
    if data is None:
        return None
    parse = yamlfile.parse_json if written.endswith(".json") else yamlfile.parse
    document = parse(data, paths.shown(written))
    for found in document.problems:
        tree.add(("output_schema",), found)
    if document.value is None:
        return None

    def report(at: Place, code: str, message: str, hint: str) -> None:
        tree.add(("output_schema",), locate(document.marks, at, code=code, message=message, hint=hint))

    check(document.value, report)
    tree.marks.update({("output_schema", *at): mark for at, mark in document.marks.items() if at})
    schema: Mapping[str, Json] = document.value
    return schema


def _from_model(
    tree: Tree, paths: SpecPaths, value: Mapping[str, Json], allow_python: bool
) -> Mapping[str, Json] | None:
    place: Place = ("output_schema", "pydantic")
    name = value["pydantic"]
    for key in value:
        if key != "pydantic":
            message = f'"{key}" does not go with "pydantic", which is the whole schema'
            tree.problem(("output_schema", key), "GB108", message, "leave one of the two out", key=True)
    if not allow_python:
        message = f'"{name}" is Python code, and reading a spec runs none by itself'
        tree.problem(place, "GB315", message, "give --allow-python if you trust the code")
    if not tree.sound("output_schema"):
        return None
    try:
        schema = pydanticmodel.schema(name, paths.folder)
    except pydanticmodel.Unusable as problem:
        tree.problem(place, "GB316", str(problem), problem.hint)
        return None

    def report(at: Place, code: str, message: str, hint: str) -> None:
        pointer = "".join(f"/{step}" for step in at)
        tree.problem(place, code, f"{message}, at {pointer or '/'} of the schema of {name}", hint)

    check(schema, report)
    return schema


def check_samples(tree: Tree, spec: Spec) -> None:
    """Report a property whose place is taken in the record of several samples."""
    properties = (spec.output_schema or {}).get("properties")
    if (
        spec.samples.count > 1
        and spec.samples.aggregate in ("majority", "mean")
        and isinstance(properties, Mapping)
        and "_agreement" in properties
    ):
        message = (
            f'a schema cannot have a property "_agreement" with samples.aggregate: {spec.samples.aggregate}'
        )
        hint = "the record says under that name how many of the answers agree"
        tree.problem(("output_schema", "properties", "_agreement"), "GB314", message, hint)


def check(schema: dict[str, Json], report: Report) -> None:
    """Report every problem of a schema."""
    import jsonschema_rs

    if isinstance(schema.get("properties"), Mapping) and "_key" in schema["properties"]:
        message = 'a schema cannot have a property "_key"'
        report(("properties", "_key"), "GB314", message, "every record gets its row's key under that name")
    try:
        # The first follows `$schema`, as the judge of records does. The second holds a schema of an older
        # draft to the present one too: what the service is sent is made from these keywords.
        validator.compiled(schema)
        jsonschema_rs.Draft202012Validator(schema, offline=True)
    except ValueError as error:
        problems = [*_of_the_metaschema(schema), *_unusable(schema, sound=False, everywhere=False)]
        # A reference may lead to a schema below a keyword that JSON Schema does not have.
        problems = problems or list(_unusable(schema, sound=False, everywhere=True))
        first = str(error).splitlines()[0]
        problems = problems or [((), "GB311", f"the validator does not take this schema: {first}", "")]
    else:
        # What nothing refers to is not compiled.
        problems = list(_unusable(schema, sound=True, everywhere=False))
    for problem in dict.fromkeys(problems):
        report(*problem)


def _of_the_metaschema(schema: dict[str, Json]) -> Iterator[tuple[Place, str, str, str]]:
    import jsonschema

    kind = jsonschema.Draft202012Validator
    for error in kind(kind.META_SCHEMA).iter_errors(schema):
        yield _metaschema_problem(error)


def _unusable(
    schema: dict[str, Json], *, sound: bool, everywhere: bool
) -> Iterator[tuple[Place, str, str, str]]:
    """Patterns and references that do not work, in a schema that is `sound` as far as it is compiled."""
    compiles = functools.cache(lambda reference: _compiles({**schema, "$ref": reference}))
    for place, keyword, value in keywords(schema, (), everywhere):
        if keyword == "pattern" and isinstance(value, str) and not _compiles({"pattern": value}):
            yield _bad_pattern((*place, "pattern"), value)
        elif keyword == "patternProperties" and isinstance(value, Mapping):
            for pattern in value:
                if not _compiles({"pattern": pattern}):
                    yield _bad_pattern((*place, "patternProperties", pattern), pattern)
        elif keyword in ("$ref", "$dynamicRef") and isinstance(value, str):
            if value.startswith("#"):
                if not (compiles(value) if sound else _resolves(schema, value)):
                    yield (*place, keyword), "GB313", f'"{value}" names nothing in this schema', ""
            elif not compiles(value):
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


def keywords(schema: Json, place: Place = (), everywhere: bool = False) -> Iterator[tuple[Place, str, Json]]:
    """Every key of the schema with the place that holds it, leaving out what is data.

    Unless `everywhere`, also what lies below a keyword that JSON Schema does not have, and schemas with an
    `$id` of their own, whose references start there.
    """
    if isinstance(schema, Mapping):
        names = bool(place) and place[-1] in MAPS
        if "$id" in schema and place and not names and not everywhere:
            return
        for key, value in schema.items():
            yield place, key, value
            if names or (key not in _DATA if everywhere else key in _HOLDS_SCHEMAS):
                yield from keywords(value, (*place, key), everywhere)
    elif isinstance(schema, list):
        for index, value in enumerate(schema):
            yield from keywords(value, (*place, index), everywhere)


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
