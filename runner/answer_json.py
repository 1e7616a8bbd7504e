"""The JSON value of an answer: strictly, out of a fence or out of prose, or repaired. Pure.

What is cut off is never a value, and a value never holds less, or more, than the answer said. Of a key that
stands twice in an object the last counts, as in every reader of JSON; an answer that needs repair must not
have one.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Iterator

import msgspec

from runner.model import Json

MAX_DEPTH = 254
"""Levels of nesting of a value: what orjson writes. What is deeper could be read here and not elsewhere."""
MAX_PIECES = 1000
"""Of a text that look like a value or a fence, and are tried."""

_FENCE = re.compile(r"```[A-Za-z0-9_+-]*[ \t]*\r?\n?(.*?)```", re.DOTALL)
_BRACKETS = re.compile(r'"(?:[^"\\]|\\.|\\\Z)*+(?P<end>"|\Z)|[][{}]', re.DOTALL)
"""Brackets, and whole strings, so that brackets inside of them do not count."""
_BARE_BRACKETS = re.compile(r"[][{}]")
_GOES_ON = re.compile(r'\s*,\s*(?:\{(?!\s*\})|\[(?!\s*\])|"[^"]*"\s*:)')
"""Behind a value: it is the first of several, whose brackets are missing."""
_MEMBERS = re.compile(r"\{\s*[\"'“]")
"""Members of an object, and no remark in brackets."""
_OPENING = re.compile(r"[{\[]")


def extract_json(text: str, *, repair: bool = False) -> tuple[Json, str] | None:
    """The JSON value of an answer and how it was found: strictly (""), in a `fence`, or in `prose`.

    With `repair`, what is nearly JSON is a value too, found by the `library` (see `repair`).

    None where there is none; a value that is cut off is never completed. Only an object or an array counts
    as found in prose, since any sentence may hold a number; an empty one only where it stands alone.
    Takes time in proportion to the text's length.
    """
    text = text.strip().removeprefix("\ufeff").strip()
    try:
        return parse_text(text), ""
    except (ValueError, RecursionError):
        pass
    fences = _fences(text)
    for body, end in fences:
        try:
            value = parse_text(body)
        except (ValueError, RecursionError):
            continue
        return None if _is_open(text, end) else (value, "fence")
    if "}" not in text and "]" not in text:
        return None
    found = _in_prose(text)
    if found is not None:
        value, end = found
        return None if _is_open(text, end) or _GOES_ON.match(text, end) else (value, "prose")
    if repair:
        from runner.repair import repaired

        for candidate, in_prose in _candidates(text, [body for body, _ in fences]):
            value = repaired(candidate, in_prose=in_prose)
            if value is not None:
                return value, "library"
    return None


def parse(data: bytes) -> Json:
    """The value of JSON text.

    Raises:
        ValueError: it is not JSON, not UTF-8, or nested deeper than `MAX_DEPTH`.
        RecursionError: it is nested far deeper.
    """
    # msgspec, since orjson rounds whole numbers of more than 64 bits.
    try:
        value: Json = msgspec.json.decode(data)
    except msgspec.DecodeError:
        # It refuses half a surrogate pair, which JSON allows; NaN and infinities stay refused.
        value = _loads(data.decode())
    return _checked(value, data.count(b"[") + data.count(b"{"))


def parse_text(text: str) -> Json:
    """The value of JSON text; raises as `parse` does."""
    try:
        value: Json = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeEncodeError):
        # Half a surrogate pair, which the line had as an escape; see `parse`.
        value = _loads(text)
    return _checked(value, text.count("[") + text.count("{"))


def _loads(text: str) -> Json:
    return json.loads(text, parse_constant=_refuse_constant, parse_float=_finite)


def _checked(value: Json, bracket_count: int) -> Json:
    if bracket_count > MAX_DEPTH and _too_deep(value):
        raise ValueError(f"nested deeper than {MAX_DEPTH} levels")
    return value


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text} is out of range")
    return value


def _refuse_constant(name: str) -> Json:
    raise ValueError(f"{name} is not JSON")


def _too_deep(value: Json) -> bool:
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [outer for outer in level if isinstance(outer, dict | list)]
        if not level:
            return False
        level = [inner for outer in level for inner in (outer.values() if isinstance(outer, dict) else outer)]
    return True


def _fences(text: str) -> list[tuple[str, int]]:
    """What stands in fences, each with the place behind it, up to one inside of a value."""
    found = []
    depth, brackets = 0, _brackets(text, 0)
    bracket = next(brackets, None)
    for match in itertools.islice(_FENCE.finditer(text), MAX_PIECES):
        while bracket is not None and bracket.end() <= match.start():
            depth = _depth(depth, bracket.group())
            bracket = next(brackets, None)
        if depth > 0:
            break
        found.append((match.group(1).strip(), match.end()))
    return found


def _in_prose(text: str) -> tuple[Json, int] | None:
    """The first value that is not empty and the place behind it; an empty one where it stands alone."""
    empty: list[tuple[Json, int]] = []
    passed = False
    at = _next_open(text, 0)
    for _ in range(MAX_PIECES):
        if at < 0:
            return empty[0] if len(empty) == 1 and not passed else None
        end = _close_of(text, at) + 1
        try:
            value = parse_text(text[at:end])
        except (ValueError, RecursionError):
            if _MEMBERS.match(text, at):
                # The answer itself is broken; what follows is not all of it.
                return None
            # What stands inside of other brackets is not the answer: go on behind them.
            passed = True
        else:
            if value not in ({}, []):
                return value, end
            empty.append((value, end))
        at = _next_open(text, end)
    return None


def _candidates(text: str, fenced: list[str]) -> Iterator[tuple[str, bool]]:
    """What may be nearly JSON, and whether there is more around it than a fence."""
    for body in fenced:
        if body[:1] in ("{", "[") and body[-1:] in ("}", "]"):
            yield body, False
    start, end = _next_open(text, 0), max(text.rfind("}"), text.rfind("]")) + 1
    if 0 <= start < end and _next_open(text, end) < 0:
        yield text[start:end], bool((text[:start] + text[end:]).strip(" \t\r\n,;"))


def _is_open(text: str, start: int) -> bool:
    """Whether a value is begun behind `start` and not ended: then the answer is cut off."""
    depth = 0
    for match in _brackets(text, start):
        depth = _depth(depth, match.group())
    return depth > 0


def _close_of(text: str, start: int) -> int:
    """The place of the bracket that closes the one at `start`, the text's end where none does."""
    depth = 0
    for match in _brackets(text, start):
        depth = _depth(depth, match.group())
        if depth == 0:
            return match.start()
    return len(text)


def _depth(depth: int, token: str) -> int:
    return max(0, depth + (token in ("{", "[")) - (token in ("}", "]")))


def _brackets(text: str, start: int) -> Iterator[re.Match[str]]:
    """Brackets and strings from `start` on; a quote that nothing closes is no string."""
    for match in _BRACKETS.finditer(text, start):
        if match["end"] == "":
            # Nor does anything close a later one: read without strings, or it takes the square of the time.
            yield from _BARE_BRACKETS.finditer(text, match.start())
            return
        yield match


def _next_open(text: str, start: int) -> int:
    found = _OPENING.search(text, start)
    return found.start() if found else -1
