"""What the importer of Vertex batch jobs takes, which is less than JSON. Pure.

Vertex loads a job's file as a table: each JSON key is a column of one type, and one line that does not
fit fails the whole job, after it waited in the queue. The requests of a spec differ in texts alone, so what
is the same in all of them is held against the rules once, before anything is sent.

Source: failed imports of live jobs, 2026-09, and the limits of tables that they are loaded into,
https://cloud.google.com/bigquery/docs/schemas and /nested-repeated, read 2026-11-21. The rules are not
published; where the two leave room, the stricter reading is taken.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

import msgspec

from runner.model import Json

MAX_DEPTH = 15
"""Objects inside each other, `request` being the first."""
_NAME = r"[A-Za-z_][A-Za-z0-9_]{0,299}"
_EMPTY_IS_ABSENT = frozenset(
    {
        "generationConfig", "generation_config", "thinkingConfig", "thinking_config", "toolConfig",
        "tool_config", "functionCallingConfig", "function_calling_config", "retrievalConfig",
        "retrieval_config", "embed_content_config", "labels",
    }
)  # fmt: skip
"""Messages whose fields all have defaults and that say nothing by being there."""
_FREE = frozenset(
    {
        "args", "response", "parametersJsonSchema", "parameters_json_schema", "responseJsonSchema",
        "response_json_schema", "responseFormat", "response_format", "default", "example",
    }
)  # fmt: skip
"""Fields that hold any JSON: in there `null` is a value."""

Step = str | int


class Problem(msgspec.Struct, frozen=True):
    """Something that would fail the import of every request."""

    place: tuple[Step, ...]
    message: str
    hint: str


def rewritten(value: Json) -> Json:
    """The request without what it would say the same without: `null` and empty messages of defaults."""
    if isinstance(value, Mapping):
        kept: dict[str, Json] = {}
        for key, item in value.items():
            if item is None and key not in _FREE:
                continue
            item = item if key in _FREE else rewritten(item)
            if not (item == {} and key in _EMPTY_IS_ABSENT):
                kept[key] = item
        return kept
    if isinstance(value, (list, tuple)):
        return [rewritten(item) for item in value]
    return value


def problems(value: Json, place: tuple[Step, ...], depth: int) -> Iterator[Problem]:
    """What the importer would not take of a part of a request that stands `depth` objects deep.

    `place` is where the part was written; the places of problems go on from there.
    """
    types: dict[tuple[str, ...], tuple[str, tuple[Step, ...]]] = {}
    yield from _walk(value, place, depth, (), types)


def _walk(
    value: Json,
    place: tuple[Step, ...],
    depth: int,
    column: tuple[str, ...],
    types: dict[tuple[str, ...], tuple[str, tuple[Step, ...]]],
) -> Iterator[Problem]:
    if value is None:
        yield Problem(place, "`null` has no place in a batch job on Vertex", "leave the key out")
        return
    kind = _kind(value)
    known = types.setdefault(column, (kind, place))
    if known[0] != kind:
        message = f"on Vertex a key has one type throughout: here it is {kind}, and {known[0]} elsewhere"
        yield Problem(place, message, "give both the same type")
        return
    if isinstance(value, Mapping):
        yield from _object(value, place, depth, column, types)
    elif isinstance(value, Sequence) and not isinstance(value, str):
        in_any_of = any(step in ("anyOf", "any_of") for step in column)
        if column[-1:] == ("type",) and in_any_of:
            yield Problem(
                place, "a list of types inside `anyOf` fails on Vertex", "write one branch for each"
            )
            return
        for index, item in enumerate(value):
            yield from _walk(item, (*place, index), depth, (*column, "[]"), types)


def _object(
    value: Mapping[str, Json],
    place: tuple[Step, ...],
    depth: int,
    column: tuple[str, ...],
    types: dict[tuple[str, ...], tuple[str, tuple[Step, ...]]],
) -> Iterator[Problem]:
    if depth > MAX_DEPTH:
        message = f"Vertex takes requests that are at most {MAX_DEPTH} objects deep, and this is the next"
        yield Problem(place, message, "make the schema or the settings flatter")
        return
    if not value:
        what = f'"{place[-1]}" is an empty object, which Vertex cannot load from a batch file'
        hint = "give it a setting, or run the job on `backend: gemini`"
        yield Problem(place, what, hint)
    for key, item in value.items():
        if not re.fullmatch(_NAME, key):
            message = f'"{key}" cannot be the name of a column, which it becomes on Vertex'
            hint = "letters, digits and `_`, beginning with a letter"
            yield Problem((*place, key), message, hint)
            continue
        yield from _walk(item, (*place, key), depth + 1, (*column, key), types)


def _kind(value: Json) -> str:
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, str):
        return "text"
    if isinstance(value, (int, float)):
        return "a number"
    return "an object" if isinstance(value, Mapping) else "a list"
