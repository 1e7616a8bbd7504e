"""Parts of a JSON Schema: the types they mean, the values they list, and two of them made into one. Pure.

Of rules that overlap the first counts: that forbids less than both.
"""

from __future__ import annotations

from collections.abc import Mapping

from runner.model import Json

JOINED = "\0allOf"
"""A keyword of our own: as `allOf`, but made of a branch and what stands beside it, and the like."""


def joined(rest: Mapping[str, Json], variant: Json) -> Json:
    """What must fit both; the properties of `rest` come first."""
    if not isinstance(variant, Mapping):
        return rest if variant is True else variant
    own = variant.get("properties")
    if not isinstance(own, Mapping) or not isinstance(rest.get("properties"), Mapping):
        return {**variant, JOINED: [rest]}
    names = {**dict.fromkeys(rest["properties"]), **dict.fromkeys(own)}
    properties = {
        name: _both(own[name], rest["properties"][name])
        if name in own and name in rest["properties"]
        else own.get(name, rest["properties"].get(name))
        for name in names
    }
    others = {key: value for key, value in rest.items() if key != "properties"}
    return {**variant, "properties": properties, JOINED: [others]}


def _both(one: Json, other: Json) -> Json:
    if one == other or not isinstance(other, Mapping):
        return one
    return {JOINED: [one, other]} if isinstance(one, Mapping) else other


def add(merged: dict[str, Json], part: Mapping[str, Json]) -> None:
    """Take in the rules of a part that do not overlap with those there are."""
    for key, value in part.items():
        if key == "properties" and isinstance(merged.get(key), Mapping):
            properties = dict(merged[key])
            for name, sub in value.items():
                properties[name] = _both(properties[name], sub) if name in properties else sub
            merged[key] = properties
        elif key == "required":
            merged[key] = list(dict.fromkeys([*merged.get(key, ()), *value]))
        else:
            merged.setdefault(key, value)


def types_of(schema: Mapping[str, Json]) -> list[str]:
    """The types a schema names, or means by what it speaks of."""
    given = schema.get("type")
    if given is not None:
        return [given] if isinstance(given, str) else list(given)
    if "properties" in schema:
        return ["object"]
    if "items" in schema or "prefixItems" in schema:
        return ["array"]
    return list(dict.fromkeys(type_of(value) for value in listed(schema)))


def type_of(value: Json) -> str:
    """The JSON type of a value; empty for an object or an array. 1.0 is an integer, as in JSON Schema."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else "boolean"
    if isinstance(value, int | float):
        return "integer" if value == value // 1 else "number"
    return "string" if isinstance(value, str) else ""


def listed(schema: Mapping[str, Json]) -> list[Json]:
    """The only values that a schema allows, by `const` or `enum`; none where it names no values."""
    if "const" in schema:
        return [schema["const"]]
    return list(schema.get("enum", ()))
