"""The shape of a spec: its values held against `schemas/spec.v1.json`, as diagnostics. Pure but for
reading that schema.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import orjson

from runner import __version__
from runner.marks import Place
from runner.model import Json
from runner.schemafile import schema_path
from runner.tree import Tree
from runner.yamlnodes import kind

_REFERENCE = rb"\\$\\{"
_NEVER = r"[^\s\S]"
_STAND_IN = (_NEVER, r"\$\{")
"""Patterns of a text that may only stand for a value, once and before variables are filled in."""

# Keys that the format has and this version does not build. They are refused by name:
# a spec that says `rollout` must never run without one. List positions are written `*`.
_LATER_KEYS: Mapping[tuple[str, ...], frozenset[str]] = {
    (): frozenset({"contents", "attachments", "pdf", "rollout"}),
    ("backend",): frozenset({"retry_min_s", "retry_max_s"}),
    ("inputs",): frozenset({"csv", "jsonl", "parquet", "sqlite", "gcs", "id"}),
    ("inputs", "*"): frozenset({"csv", "jsonl", "parquet", "sqlite", "gcs", "id"}),
    ("shards",): frozenset({"max_tokens", "max_cost_usd"}),
    ("concurrency",): frozenset({"max_uploads"}),
    ("guards",): frozenset({"max_cost_usd", "max_cost_per_request_usd"}),
    ("lifecycle",): frozenset({"ignore_changes"}),
}
_STANDS_FOR = {
    "contents": "prompt",
    "attachments": "prompt",
    **dict.fromkeys(_LATER_KEYS["inputs",], "files"),
}
"""What a later key is written instead of: that one is then not reported as missing."""
_TOP_LEVEL = ("system_instruction", "safety_settings", "tools", "tool_config", "cached_content", "labels")
_SCHEMA_KEYS = ("response_schema", "response_json_schema", "response_mime_type", "response_format")
_WORDS = {
    "string": "text",
    "number": "a number",
    "integer": "a whole number",
    "boolean": "true or false",
    "array": "a list",
    "object": "a mapping",
    "null": "null",
}


def not_built(what: str) -> tuple[str, str]:
    """Message and hint for a part of the format that this version does not have."""
    return f"{what} is not built yet in gbrun {__version__}", "remove it"


def did_you_mean(word: str) -> str:
    """The hint that proposes a word."""
    return f'did you mean "{word}"?'


def suggest(word: str, known: Iterable[str]) -> str:
    """`did you mean "x"?` for the nearest known word, or an empty text."""
    import difflib

    options = list(known)
    snake = re.sub(r"(?<=[a-z0-9])([A-Z])", r"_\1", word).lower().replace("-", "_")
    for candidate in (snake, word):
        near = difflib.get_close_matches(candidate, options, 1, 0.6)
        if near:
            return did_you_mean(near[0])
    return ""


def shown(value: Json) -> str:
    """A value as a message shows it: short, with its kind where that helps."""
    if isinstance(value, str):
        return f'"{value}"' if len(value) <= 60 else f'"{value[:57]}..."'
    return kind(value)


def expected(types: Iterable[str]) -> str:
    """JSON's type names in words: `text, a number or a list`."""
    words = [_WORDS[name] for name in dict.fromkeys(types)]
    return " or ".join(words) if len(words) < 3 else f"{', '.join(words[:-1])} or {words[-1]}"


def check(tree: Tree) -> None:
    """Report what is wrong with the shape of a spec whose variables are filled in.

    The overrides of environments are checked too, with `${...}` allowed anywhere in them.
    """
    _check(tree, {key: item for key, item in tree.value.items() if key != "environments"}, ())
    if "environments" in tree.value:
        _check(tree, tree.value["environments"], ("environments",))
    known = _schema("spec")["properties"]
    for key, value in tree.value.items():
        if tree.sound(key) and key in known:
            tree.value[key] = _plain_numbers(value, known[key])


@functools.cache
def _schema(part: str) -> dict[str, Any]:
    data = schema_path("spec.v1.json").read_bytes()
    if part == "environments":
        whole = orjson.loads(data)
        return {"$defs": whole["$defs"], "$ref": "#/$defs/environments"}
    # The published schema lets `${...}` stand for a number; once variables are filled in, none may.
    strict: dict[str, Any] = orjson.loads(data.replace(_REFERENCE, rb"[^\\s\\S]"))
    return strict


def _check(tree: Tree, value: Json, base: Place) -> None:
    import jsonschema_rs

    schema = _schema("environments" if base else "spec")
    fast = jsonschema_rs.Draft202012Validator(schema, offline=True)
    # jsonschema takes 0.1 s to import and explains well; a good spec never pays for it.
    if fast.is_valid(value):
        return
    import jsonschema

    before = len(tree.found)
    for error in jsonschema.Draft202012Validator(schema).iter_errors(value):
        _Explanation(tree, error, base).report()
    if len(tree.found) == before:
        # The two validators differ in corners such as `$` before a final newline.
        for other in fast.iter_errors(value):
            place = (*base, *other.instance_path)
            missing = tree.partial and not place
            if place not in tree.unfilled and not missing:
                tree.problem(place, "GB106", other.message.splitlines()[0])


class _Explanation:
    """One error of the validator in the words of a spec."""

    def __init__(self, tree: Tree, error: Any, base: Place) -> None:
        self.tree = tree
        self.error = error
        self.base = base
        self.place: Place = (*base, *error.absolute_path)
        self.name = f'"{self.place[-1]}"' if self.place and isinstance(self.place[-1], str) else "this item"

    def report(self) -> None:
        """Add what the error means to the tree's problems."""
        error = self.error
        if "propertyNames" in error.relative_schema_path:
            name, words = error.instance, error.schema.get("patternErrorMessage", "another name")
            message = f'name "{name}" must be {words}'
            self.tree.problem((*self.place, name), "GB106", message, key=True)
        elif error.validator == "additionalProperties":
            self._unknown_keys()
        elif error.validator == "required":
            self._missing()
        elif error.validator == "anyOf":
            self._any_of()
        else:
            self._value()

    def _add(self, code: str, message: str, hint: str = "") -> None:
        if self.place not in self.tree.unfilled:
            self.tree.problem(self.place, code, message, hint)

    def _pattern_place(self) -> tuple[str, ...]:
        place = self.place[2:] if self.base else self.place
        return tuple("*" if isinstance(step, int) else step for step in place)

    def _unknown_keys(self) -> None:
        known = self.error.schema.get("properties", {})
        place = self._pattern_place()
        for key in self.error.instance:
            if key in known:
                continue
            code, message, hint = "GB103", f'unknown key "{key}"', suggest(key, known)
            if key in _LATER_KEYS.get(place, ()):
                code = "GB107"
                message, hint = not_built(f'"{key}"')
            elif self.base and not place and key in _schema("spec")["properties"]:
                code, message, hint = "GB108", f'an environment cannot set "{key}"', "set it for all"
            elif place == ("generation_config",) and key in (*_SCHEMA_KEYS, *_TOP_LEVEL):
                code, message = "GB108", f'"{key}" does not belong here'
                hint = f"write `{key}` at the top level of the spec"
                if key in _SCHEMA_KEYS:
                    hint = "give the schema as `output_schema` at the top level; gbrun sets the rest"
            elif not hint and len(known) <= 12:
                hint = f"known here: {', '.join(known)}"
            elif not hint and place == ("generation_config",):
                hint = "what gbrun does not know yet goes into `extra_body`"
            self.tree.problem((*self.place, key), code, message, hint, key=True)

    def _missing(self) -> None:
        if self.tree.partial and not self.place:
            return
        instance = self.error.instance
        known = self.error.schema.get("properties", {})
        extra = [key for key in instance if key not in known]
        meant = {_STANDS_FOR.get(key, "") for key in extra}
        meant.update(name for key in extra for name in known if suggest(key, known) == did_you_mean(name))
        for key in self.error.validator_value:
            if key not in instance and key not in meant:
                inside = f" in {self.name}" if self.place else ""
                hint = "write `version: 1`" if key == "version" else ""
                self._add("GB101", f'required key "{key}" is missing{inside}', hint)

    def _any_of(self) -> None:
        """Report the errors of the one branch that was meant, as far as the value's type tells."""
        branches: dict[int, list[Any]] = {}
        for error in self.error.context:
            branches.setdefault(error.relative_schema_path[0], []).append(error)
        schemas = [_resolved(branch) for branch in self.error.validator_value]
        meant = [
            index
            for index, branch in enumerate(schemas)
            if branch.get("pattern") not in _STAND_IN and not _wrong_type(branches[index])
        ]
        if meant:
            # Of several kinds of mapping, the one whose first key is there.
            keys = self.error.instance if isinstance(self.error.instance, dict) else {}
            named = [index for index in meant if schemas[index].get("required", [None])[0] in keys]
            for error in branches[(named or meant)[0]]:
                _Explanation(self.tree, error, self.base).report()
        else:
            self._wrong_type([name for branch in schemas for name in _types(branch)])

    def _value(self) -> None:
        error, value = self.error, self.error.instance
        limit, name = error.validator_value, self.name
        match error.validator:
            case "type":
                self._wrong_type(_types(error.schema))
            case "pattern" if limit in _STAND_IN:
                self._wrong_type(_types(error.schema))
            case "const":
                hint = f"this version of gbrun reads version {limit}"
                self._add("GB109", f"{name} must be {limit}, not {shown(value)}", hint)
            case "enum":
                choices = [choice for choice in limit if not (choice.islower() and choice.upper() in limit)]
                message = f"{name} must be one of {', '.join(choices)}; it is {shown(value)}"
                self._add("GB104", message, suggest(value, limit) if isinstance(value, str) else "")
            case "pattern":
                words = error.schema.get("patternErrorMessage", f"text that matches {limit}")
                self._add("GB106", f"{name} must be {words}; it is {shown(value)}")
            case "minimum":
                self._add("GB105", f"{name} must be at least {limit}; it is {value}")
            case "maximum":
                self._add("GB105", f"{name} must be at most {limit}; it is {value}")
            case "minLength" | "minItems" | "minProperties":
                self._add("GB105", f"{name} must not be empty")
            case "maxItems":
                self._add("GB105", f"{name} must have at most {limit} item(s); it has {len(value)}")
            case "uniqueItems":
                self._add("GB105", f"{name} names something twice")
            case _:
                self._add("GB106", f"{name}: {error.message}")

    def _wrong_type(self, types: Collection[str]) -> None:
        value = self.error.instance
        if value is None:
            self._add("GB102", f"{self.name} has no value", "give it one, or remove the key")
            return
        found = f"text {shown(value)}" if isinstance(value, str) else shown(value)
        quote = "string" in types and isinstance(value, (bool, int, float))
        hint = "put it in quotes" if quote else ""
        self._add("GB102", f"{self.name} must be {expected(types)}, not {found}", hint)


def _plain_numbers(value: Json, schema: Mapping[str, Any]) -> Json:
    """The value with `1` for `1.0` in every setting that is a number.

    The two mean the same and are written differently in JSON, which would make another request of it.
    """
    schema = _resolved(schema)
    if isinstance(value, float):
        return int(value) if value.is_integer() and {"integer", "number"} & set(_types(schema)) else value
    branches = [_resolved(branch) for branch in schema.get("anyOf", [schema])]
    if isinstance(value, dict):
        parts: Mapping[str, Any] = next(
            (branch["properties"] for branch in branches if "properties" in branch), {}
        )
        return {
            key: _plain_numbers(item, parts[key]) if key in parts else item for key, item in value.items()
        }
    if isinstance(value, list):
        items: Mapping[str, Any] = next((branch["items"] for branch in branches if "items" in branch), {})
        return [_plain_numbers(item, items) for item in value]
    return value


def _resolved(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    reference = schema.get("$ref")
    if reference is None:
        return schema
    target: Mapping[str, Any] = _schema("spec")["$defs"][reference.removeprefix("#/$defs/")]
    return target


def _types(schema: Mapping[str, Any]) -> list[str]:
    """The JSON types that a schema takes, without the text that only stands for `${...}`."""
    if "anyOf" in schema:
        return [name for branch in schema["anyOf"] if "pattern" not in branch for name in _types(branch)]
    if "enum" in schema:
        return ["string"]
    types = schema.get("type", [])
    names = [types] if isinstance(types, str) else list(types)
    bare = schema.get("pattern") in _STAND_IN
    return [name for name in names if not (bare and name == "string" and len(names) > 1)]


def _wrong_type(errors: list[Any]) -> bool:
    """Whether a branch of `anyOf` failed because it takes another type of value."""
    for error in errors:
        if error.relative_path:
            continue
        if error.validator == "type":
            return True
        if error.validator == "enum" and not isinstance(error.instance, str):
            return True
        if error.validator == "pattern" and error.validator_value in _STAND_IN:
            return True
        if error.validator == "anyOf" and all(
            _wrong_type([inner for inner in error.context if inner.relative_schema_path[0] == index])
            for index in range(len(error.validator_value))
        ):
            return True
    return False


def check_bounds(tree: Tree, place: Place, value: float, unit: str) -> None:
    """Report a value that was written as text, such as `3GB`, and is outside the schema's bounds."""
    schema: Any = _schema("spec")["$defs"][place[0]]
    for step in place[1:]:
        branches = [branch for branch in schema.get("anyOf", [schema]) if "properties" in branch]
        schema = branches[0]["properties"][step]
    least, most = schema["minimum"], schema["maximum"]
    if not least <= value <= most:
        number = int(value) if value == int(value) else value
        message = f'"{place[-1]}" must be from {least:,} to {most:,} {unit}; it is {number:,} {unit}'
        tree.problem(place, "GB105", message)
