"""Values that conform to a schema and look as if someone had read the prompt. Pure.

`maker` turns a schema, in the dialect of `responseSchema` or of `responseJsonSchema`, into a function
from (seed, prompt) to a value. The value depends on nothing else. Keywords that the service
ignores are ignored here as well; nothing of a model is imitated beyond the shape.

Source: https://ai.google.dev/gemini-api/docs/structured-output (keywords), read 2026-11-21.
"""

from __future__ import annotations

import datetime
import functools
import hashlib
import math
import re
import uuid
from collections.abc import Callable, Sequence
from typing import Any

import orjson

from runner.emulator import patterns

_MASK = 0xFFFFFFFFFFFFFFFF
_EPOCH = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
_RATIO_NAMES = re.compile(r"confiden|probab|ratio|score|likelihood", re.IGNORECASE)
_SENTENCE_END = re.compile(r"[.!?](?=\s|$)")
_SCANNED = 200_000
"""Characters of a prompt that enum values are looked for in."""
_SHALLOW = 4
"""Depth below which optional properties and items are left out, so that recursive schemas end."""
_DEEPEST = 40

Make = Callable[[int, "Prompt", int], Any]


class Prompt:
    """The text of a request, as the makers quote it."""

    __slots__ = ("_lower", "_sentence", "last", "text")

    def __init__(self, text: str, last: str) -> None:
        self.text = text
        """All text of the contents."""
        self.last = last
        """The last text part, where templates put the document."""
        self._lower: str | None = None
        self._sentence: str | None = None

    @property
    def lower(self) -> str:
        """The text in lower case, cut where it is very long."""
        if self._lower is None:
            self._lower = self.text[-_SCANNED:].lower()
        return self._lower

    @property
    def sentence(self) -> str:
        """The first sentence of the last line that has three words, at most 120 characters.

        Templates end with the document, so this is its text rather than the instruction.
        """
        if self._sentence is None:
            lines = self.last[-4000:].splitlines()
            line = next((line for line in reversed(lines) if line.count(" ") > 1), " ".join(lines[-1:]))
            line = " ".join(line[:400].split())
            stop = _SENTENCE_END.search(line, 4)
            sentence = line[: stop.end()] if stop else line
            if len(sentence) > 120:
                sentence = sentence[:120].rsplit(" ", 1)[0]
            self._sentence = sentence or "no text"
        return self._sentence


def draw(seed: int, salt: int) -> int:
    """A 64-bit number that depends on both arguments in every bit."""
    mixed = ((seed ^ salt) * 0xBF58476D1CE4E5B9 + 0x632BE59BD9B4E019) & _MASK
    mixed = ((mixed ^ (mixed >> 29)) * 0x94D049BB133111EB) & _MASK
    return mixed ^ (mixed >> 32)


@functools.lru_cache(maxsize=128)
def maker(schema: bytes) -> Make:
    """The function that makes values for a schema, given as JSON text.

    Raises:
        ValueError: the schema has a reference that leads nowhere, or is no schema at all.
    """
    parsed = orjson.loads(schema)
    if not isinstance(parsed, dict):
        raise ValueError("a schema must be an object")
    try:
        return _Builder(parsed).build(parsed, "$", "")
    except (AttributeError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"invalid schema: {error}") from None


def types_of(schema: dict[str, Any]) -> list[str]:
    """The types a schema node allows, in lower case; guessed from its keywords where it names none."""
    kind = schema.get("type")
    names = [kind] if isinstance(kind, str) else list(kind or ())
    kinds = [name.lower() for name in names if name != "TYPE_UNSPECIFIED"]
    if not kinds:
        kinds = ["object"] if "properties" in schema else ["array"] if "items" in schema else ["string"]
    if schema.get("nullable") and "null" not in kinds:
        kinds.append("null")
    return kinds


class _Builder:
    def __init__(self, root: dict[str, Any]) -> None:
        self.root = root
        self.references: dict[str, Make] = {}

    def build(self, schema: Any, path: str, name: str) -> Make:
        if schema is True or schema == {}:
            return _text_maker({}, path)
        if "$ref" in schema:
            return self.reference(schema["$ref"], name)
        if "enum" in schema:
            return _enum_maker(schema, path)
        for keyword in ("anyOf", "oneOf"):
            if schema.get(keyword):
                return self.union(schema, keyword, path, name)
        makes = {kind: self.typed(kind, schema, path, name) for kind in types_of(schema)}
        nullable = makes.pop("null", None) is not None
        return _chosen(list(makes.values()), nullable, _salt(path, "type"))

    def reference(self, target: str, name: str) -> Make:
        if target not in self.references:
            node: Any = self.root
            for step in target.removeprefix("#").strip("/").split("/"):
                if step:
                    node = node[step.replace("~1", "/").replace("~0", "~")]
            # Registered before it is built: a schema may refer to itself.
            cell: list[Make] = []
            self.references[target] = lambda seed, prompt, depth: (
                None if depth > _DEEPEST else cell[0](draw(seed, depth), prompt, depth + 1)
            )
            cell.append(self.build(node, target, name))
        return self.references[target]

    def union(self, schema: dict[str, Any], keyword: str, path: str, name: str) -> Make:
        shared = {key: value for key, value in schema.items() if key not in ("anyOf", "oneOf")}
        nullable = bool(schema.get("nullable"))
        makes = []
        for index, option in enumerate(schema[keyword]):
            if "$ref" not in option and types_of(option) == ["null"]:
                nullable = True
                continue
            merged = {**shared, **option}
            for joined in ("properties", "required"):
                if joined in shared and joined in option:
                    both = (shared[joined], option[joined])
                    merged[joined] = (
                        {**both[0], **both[1]} if joined == "properties" else [*both[0], *both[1]]
                    )
            merged.pop("nullable", None)
            makes.append(self.build(merged, f"{path}|{index}", name))
        return _chosen(makes, nullable, _salt(path, "anyOf"))

    def typed(self, kind: str, schema: dict[str, Any], path: str, name: str) -> Make:
        match kind:
            case "object":
                return self.object(schema, path)
            case "array":
                return self.array(schema, path, name)
            case "integer" | "number":
                return _number_maker(schema, path, name, whole=kind == "integer")
            case "boolean":
                salt = _salt(path, "boolean")
                return lambda seed, prompt, depth: draw(seed, salt) & 1 == 1
            case "null":
                return lambda seed, prompt, depth: None
            case _:
                return _text_maker(schema, path)

    def object(self, schema: dict[str, Any], path: str) -> Make:
        properties = schema.get("properties", {})
        order = [name for name in schema.get("propertyOrdering", ()) if name in properties]
        order += [name for name in properties if name not in order]
        required = set(schema.get("required", ()))
        fields = [
            (name, name in required, _salt(path, name), self.build(properties[name], f"{path}.{name}", name))
            for name in order
        ]
        least = int(schema.get("minProperties", 0))
        most = int(schema.get("maxProperties", 1 << 31))
        optional_room = max(0, most - len(required))
        least_optional = max(0, least - len(required))
        extra = schema.get("additionalProperties")
        if not fields and isinstance(extra, dict):
            item = self.build(extra, f"{path}.*", "")
            count = min(most, max(1, least))
            return lambda seed, prompt, depth: (
                {f"item_{n + 1}": item(draw(seed, n), prompt, depth + 1) for n in range(count)}
                if depth < _SHALLOW or least
                else {}
            )

        def make(seed: int, prompt: Prompt, depth: int) -> Any:
            out = {}
            optional = 0
            for name, needed, salt, child in fields:
                if not needed:
                    wanted = optional < least_optional or (depth < _SHALLOW and draw(seed, salt) & 7 != 0)
                    if not wanted or optional >= optional_room:
                        continue
                    optional += 1
                out[name] = child(seed, prompt, depth + 1)
            return out

        return make

    def array(self, schema: dict[str, Any], path: str, name: str) -> Make:
        salt = _salt(path, "items")
        least = int(schema.get("minItems", 0))
        most = int(schema.get("maxItems", 1 << 31))
        first = [
            self.build(item, f"{path}[{index}]", name)
            for index, item in enumerate(schema.get("prefixItems", ()))
        ]
        items = schema.get("items")
        rest = self.build(items, f"{path}[]", name) if isinstance(items, dict) else _text_maker({}, path)
        endless = items is not False

        def make(seed: int, prompt: Prompt, depth: int) -> Any:
            number = draw(seed, salt)
            count = 1 + number % 3 if depth < _SHALLOW else 0
            count = min(most, max(least, count, min(len(first), most)))
            if not endless:
                count = min(count, len(first))
            out: list[Any] = []
            for index in range(count):
                child = first[index] if index < len(first) else rest
                value = child(draw(seed, salt + index + 1), prompt, depth + 1)
                # Lists of distinct values are what most schemas mean; `minItems` goes first.
                if index >= max(least, len(first)) and value in out:
                    continue
                out.append(value)
            return out

        return make


def _salt(path: str, name: str) -> int:
    return int.from_bytes(hashlib.blake2b(f"{path}\n{name}".encode(), digest_size=8).digest(), "big")


def _chosen(makes: Sequence[Make], nullable: bool, salt: int) -> Make:
    if not makes:
        return lambda seed, prompt, depth: None
    if len(makes) == 1 and not nullable:
        return makes[0]

    def make(seed: int, prompt: Prompt, depth: int) -> Any:
        number = draw(seed, salt)
        if nullable and (number & 7 == 0 or depth > _SHALLOW):
            return None
        return makes[(number >> 8) % len(makes)](seed, prompt, depth)

    return make


def _enum_maker(schema: dict[str, Any], path: str) -> Make:
    values = [value for value in schema["enum"] if value is not None] or [None]
    numeric = {"integer", "number"} & set(types_of(schema)) if schema.get("type") else set()
    if numeric:
        values = [float(value) if "number" in numeric else int(value) for value in values]
    salt = _salt(path, "enum")
    words = []
    for value in values:
        if isinstance(value, str) and value.strip():
            plain = value.strip().lower()
            words.append((value, {plain, plain.replace("_", " ")}))

    def make(seed: int, prompt: Prompt, depth: int) -> Any:
        text = prompt.lower
        best: list[Any] = values
        most = 0
        for value, spellings in words:
            count = sum([_occurrences(text, spelling) for spelling in spellings])
            if count > most:
                best, most = [value], count
            elif count and count == most:
                best = [*best, value]
        return best[draw(seed, salt) % len(best)]

    return make


def _occurrences(text: str, word: str) -> int:
    """How often a word stands in a text; "bug" does not stand in "debugging"."""
    count = 0
    place = text.find(word)
    while place >= 0:
        end = place + len(word)
        before, after = text[place - 1 : place], text[end : end + 1]
        if not (before.isalnum() or after.isalnum() or before == "_" or after == "_"):
            count += 1
        place = text.find(word, end)
    return count


def _number_maker(schema: dict[str, Any], path: str, name: str, *, whole: bool) -> Make:
    salt = _salt(path, "number")
    minimum, maximum = schema.get("minimum"), schema.get("maximum")
    span = 1 if not whole and _RATIO_NAMES.search(name) else 100
    low = minimum if minimum is not None else min(0, maximum - span if maximum is not None else 0)
    high = maximum if maximum is not None else max(low + span, span)
    if whole:
        least, most = math.ceil(low), math.floor(high)
        return lambda seed, prompt, depth: least + draw(seed, salt) % max(1, most - least + 1)

    def make(seed: int, prompt: Prompt, depth: int) -> Any:
        share = (draw(seed, salt) % 101) / 100
        return float(min(high, max(low, round(low * (1 - share) + high * share, 2))))

    return make


def _text_maker(schema: dict[str, Any], path: str) -> Make:
    salt = _salt(path, "string")
    low = int(schema.get("minLength", 0))
    high = int(schema.get("maxLength", 1 << 31))
    pattern = schema.get("pattern")
    formatted = _FORMATS.get(schema.get("format", ""))

    def make(seed: int, prompt: Prompt, depth: int) -> Any:
        number = draw(seed, salt)
        if formatted:
            return formatted(number)
        text = prompt.sentence
        if pattern:
            found = patterns.example(pattern, number, low, high, text)
            if found is not None:
                return found
        if number & 3 == 0:
            text = " ".join(text.split()[:6])
        if len(text) < low:
            text = (text + " ") * (low // (len(text) + 1) + 1)
            text = text[: max(low, 1)]
        return text[:high]

    return make


def _moment(number: int) -> datetime.datetime:
    return _EPOCH + datetime.timedelta(seconds=number % (2200 * 86400))


_FORMATS: dict[str, Callable[[int], str]] = {
    "date": lambda number: _moment(number).strftime("%Y-%m-%d"),
    "date-time": lambda number: _moment(number).strftime("%Y-%m-%dT%H:%M:%SZ"),
    "time": lambda number: _moment(number).strftime("%H:%M:%SZ"),
    "duration": lambda number: f"PT{1 + number % 90}M",
    "email": lambda number: f"person{number % 1000}@example.com",
    "hostname": lambda number: f"host{number % 1000}.example.com",
    "ipv4": lambda number: f"192.0.2.{number % 256}",
    "ipv6": lambda number: f"2001:db8::{number % 65536:x}",
    "uri": lambda number: f"https://example.com/{number % 100000}",
    "uuid": lambda number: str(uuid.UUID(int=(number << 64) | (number ^ _MASK), version=4)),
}
