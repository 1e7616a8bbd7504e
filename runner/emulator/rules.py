"""What the service demands of a request beyond names and types. Pure.

`row` reads one JSONL line, `request` and `embedding` check a body that `messages.check` made canonical.
All raise `Problem`. It is as strict as the service is known to be, and lenient where nothing is known:
string formats, duplicate and missing keys are let through.

Source: https://ai.google.dev/api/generate-content and /api/caching#Schema, error texts as reported
by users of the service; read 2026-11-21. Which of these the live service finds at create and which
only per row is not known; here all are found at create.
"""

from __future__ import annotations

import functools
import re
from typing import Any

import orjson

from runner.emulator.embeddings import DIMENSIONS, takes_media
from runner.emulator.messages import Problem, check
from runner.emulator.wire import embeds

_DATA = (
    "text", "inlineData", "fileData", "functionCall", "functionResponse", "executableCode",
    "codeExecutionResult", "toolCall", "toolResponse",
)  # fmt: skip
_DATA_SET = frozenset(_DATA)
_TEXT = frozenset({"text"})
_MIME_TYPES = ("text/plain", "application/json", "application/xml", "application/yaml", "text/x.enum")
_RANGES: tuple[tuple[str, float, float], ...] = (
    ("temperature", 0, 2),
    ("topP", 0, 1),
    ("topK", 1, 1 << 31),
    ("candidateCount", 1, 8),
    ("maxOutputTokens", 1, 1 << 31),
    ("presencePenalty", -2, 2),
    ("frequencyPenalty", -2, 2),
    ("logprobs", 0, 20),
)


def row(line: bytes, model: str) -> dict[str, Any]:
    """One line of a batch file for `model`: `{"key"?: str, "request": canonical request}`.

    Raises:
        Problem: with the text that follows `Error on line N: `.
    """
    try:
        parsed = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise Problem(f"invalid JSON, near column {error.colno}: {error.msg}") from None
    try:
        found: dict[str, Any] = check("EmbedRow" if embeds(model) else "Row", parsed)
        if "request" not in found:
            raise Problem("no request is given")
        asked(found["request"], model)
    except Problem as problem:
        raise Problem(f"invalid JSON, near column {_column(line, problem)}: {problem.message}") from None
    return found


def asked(body: dict[str, Any], model: str) -> None:
    """Check a canonical request of the kind that `model` answers. Raises Problem."""
    if embeds(model):
        embedding(body, model)
    else:
        request(body)


def embedding(body: dict[str, Any], model: str) -> None:
    """Check a canonical EmbedContentRequest. Raises Problem.

    An empty text is let through: at a synchronous call it is refused, and in a file it is taken for
    that row's fault alone.
    """
    content = body.get("content")
    if content is None:
        raise _at(Problem("content is not specified"), "content")
    _parts(content, "content", kinds=_DATA_SET if takes_media(model) else _TEXT)
    size = body.get("outputDimensionality", DIMENSIONS)
    if not 1 <= size <= DIMENSIONS:
        message = f"output_dimensionality must be in the range [1, {DIMENSIONS}]."
        raise _at(Problem(message), "outputDimensionality")


def request(body: dict[str, Any]) -> None:
    """Check a canonical GenerateContentRequest. Raises Problem."""
    contents = body.get("contents")
    if not contents:
        raise _at(Problem("contents is not specified"), "contents")
    for index, content in enumerate(contents):
        role = content.get("role")
        if role not in ("user", "model", None, "", "function"):
            raise _at(Problem("Please use a valid role: user, model."), "contents", index, "role")
        _parts(content, "contents", index)
    system = body.get("systemInstruction")
    if system is not None:
        _parts(system, "systemInstruction")
    config = body.get("generationConfig")
    if config:
        try:
            _generation_config(config)
        except Problem as problem:
            raise _at(problem, "generationConfig") from None
    for index, tool in enumerate(body.get("tools", ())):
        for place, declaration in enumerate(tool.get("functionDeclarations", ())):
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.:-]{0,63}", declaration.get("name", "")):
                message = "Invalid function name. Must start with a letter or an underscore."
                raise _at(Problem(message), "tools", index, "functionDeclarations", place, "name")


def _at(problem: Problem, *path: str | int) -> Problem:
    problem.path[:0] = path
    return problem


def _parts(content: dict[str, Any], *path: str | int, kinds: frozenset[str] = _DATA_SET) -> None:
    parts = content.get("parts")
    if not parts:
        raise _at(Problem("contents.parts must not be empty."), *path, "parts")
    for index, part in enumerate(parts):
        given = _DATA_SET.intersection(part)
        if len(given) != 1:
            message = "required oneof field 'data' must have one initialized field"
            if given:
                message = f"oneof field 'data' is already set. Cannot set '{sorted(given)[-1]}'"
            raise _at(Problem(message), *path, "parts", index)
        if not given <= kinds:
            raise _at(Problem(f"{min(given)} is not supported by this model."), *path, "parts", index)


def _generation_config(config: dict[str, Any]) -> None:
    for name, low, high in _RANGES:
        if name in config and not low <= config[name] <= high:
            raise _at(Problem(f"{name} must be in the range [{low}, {high}]."), name)
    if len(config.get("stopSequences", ())) > 5:
        raise _at(Problem("the number of stop sequences must not be above 5."), "stopSequences")
    mime_type = config.get("responseMimeType", "")
    if mime_type and mime_type not in _MIME_TYPES:
        raise _at(Problem(f"allowed mimetypes are {', '.join(_MIME_TYPES)}."), "responseMimeType")
    thinking = config.get("thinkingConfig", {})
    if "thinkingBudget" in thinking and "thinkingLevel" in thinking:
        raise _at(
            Problem("You can only set only one of thinking budget and thinking level."), "thinkingConfig"
        )
    schema = config.get("responseSchema")
    if schema is not None and "responseJsonSchema" in config:
        problem = Problem("only one of response_schema and response_json_schema may be set.")
        raise _at(problem, "responseJsonSchema")
    if schema is not None or "responseJsonSchema" in config:
        given = "responseSchema" if schema is not None else "responseJsonSchema"
        allowed = ("application/json", "text/x.enum") if schema is not None else ("application/json",)
        if mime_type not in allowed:
            problem = Problem(f"response_mime_type must be {allowed[0]} when a response schema is set.")
            raise _at(problem, given)
    if schema is not None:
        try:
            _whole_schema(orjson.dumps(schema))
        except Problem as problem:
            raise _at(problem, "responseSchema") from None


@functools.lru_cache(maxsize=64)
def _whole_schema(schema: bytes) -> None:
    """Check a schema once per file instead of once per line; a failure is not remembered."""
    _schema(orjson.loads(schema))


def _schema(schema: dict[str, Any]) -> None:
    kind = schema.get("type", "TYPE_UNSPECIFIED")
    if kind == "TYPE_UNSPECIFIED" and not schema.get("anyOf"):
        raise _at(Problem("must be specified"), "type")
    if "enum" in schema:
        if kind != "STRING":
            raise _at(Problem("only allowed for STRING type"), "enum")
        for index, value in enumerate(schema["enum"]):
            if not value:
                raise _at(Problem("cannot be empty"), "enum", index)
    if kind == "ARRAY" and "items" not in schema:
        raise _at(Problem("missing field."), "items")
    properties = schema.get("properties", {})
    if kind == "OBJECT" and not properties:
        raise _at(Problem("should be non-empty for OBJECT type"), "properties")
    if properties and kind != "OBJECT":
        raise _at(Problem("only allowed for OBJECT type"), "properties")
    for name in ("required", "propertyOrdering"):
        for index, property_name in enumerate(schema.get(name, ())):
            if property_name not in properties:
                raise _at(Problem("property is not defined"), name, index)
    for name, child in properties.items():
        _child(child, "properties", f"[{name}]")
    if "items" in schema:
        _child(schema["items"], "items")
    for index, child in enumerate(schema.get("anyOf", ())):
        _child(child, "anyOf", index)


def _child(schema: dict[str, Any], *path: str | int) -> None:
    try:
        _schema(schema)
    except Problem as problem:
        raise _at(problem, *path) from None


def _column(line: bytes, problem: Problem) -> int:
    """Where the problem is, 1-based, found by looking for the names of its path one after another."""
    text = line.decode("utf-8", "replace")
    place = 0
    steps = [step.strip("[]") for step in problem.path if isinstance(step, str)]
    for step in [*steps, *([problem.unknown] if problem.unknown else [])]:
        found = text.find(f'"{step}"', place)
        if found < 0:
            break
        place = found + len(step) + 2
    if problem.unknown:
        place -= len(problem.unknown) + 2
    elif place:
        colon = text.find(":", place)
        place = len(text) - len(text[colon + 1 :].lstrip()) if colon >= 0 else place
    return place + 1
