"""What is nearly JSON, repaired by json_repair and held against the text it was made from. Pure.

The library guesses: it closes what is cut off, drops what it does not understand, makes up what is missing
and strips the ends of texts. So its value counts only where the text can be read as that value, token by
token: every bracket, key, text and number of the text is in the value, in its order, and nothing else is.
What may differ is how things are written: trailing and missing commas, other quotes or none, comments,
Python's literals, quotes inside of texts.
"""

from __future__ import annotations

import itertools
import math
import re
from typing import SupportsIndex

from runner.model import Json

MAX_CHARS = 256 * 1024
"""Of a text that is repaired; an answer of 65,536 tokens has about as many."""
MAX_DEPTH = 64
"""Levels of brackets in a text that is repaired; the library calls itself about five times per level."""
_LOOKS_PER_CHAR = 64
"""How often the library may look at the text; answers that it can repair took 1 to 22."""

_CLOSING = {'"': '"', "'": "'", "“": "”", "”": "”"}
_BLANK = re.compile(r"(?:[\s\u180e\u200b\u2060\ufeff]|/\*.*?\*/|(?://|#)[^\r\n]*(?=[\r\n]))+", re.DOTALL)
"""White space, what cannot be seen, comments that end."""
_NUMBER = re.compile(r"-?(?:0|[1-9]\d*(?:_\d+)*)(?:\.\d+)?(?:[eE][-+]?\d+)?", re.ASCII)
_WORD = re.compile(r"[A-Za-z]+")
_WORDS = {"true": True, "false": False, "null": None, "none": None}
_NOT_A_TEXT = frozenset({"nan", "inf", "infinity", "undefined", "none", "null", "true", "false"})
"""Words that stand for something else when no quotes are around them."""
_STRUCTURE = frozenset("{}[],\r\n\"'“”")
_LIKE_A_MEMBER = re.compile(r":(?:\s|\Z)|/\*")
_ESCAPE = re.compile(
    r"\\(?:u([Dd][89ABab][0-9A-Fa-f]{2})\\u([Dd][C-Fc-f][0-9A-Fa-f]{2})|u([0-9A-Fa-f]{4})|x([0-9A-Fa-f]{2})"
    r"|([bfnrt\"'/\\“”]))"
)
_ESCAPED = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}


def repaired(text: str, *, in_prose: bool) -> dict[str, Json] | list[Json] | None:
    """The object or array that `text` nearly is, from its first bracket to its last; None if it is none.

    `in_prose`: there is more around the text, so that what stands in brackets may be a remark: texts then
    need quotes. Needs the package json_repair. Time is bounded by the text's length, not by its kind.
    """
    if len(text) > MAX_CHARS or _depth(text) > MAX_DEPTH:
        return None
    import json_repair

    try:
        value = json_repair.repair_json(_Metered(text), return_objects=True, skip_json_loads=True)
    except Exception:
        # Heuristics over any text: whatever stops them, there is no value.
        return None
    if isinstance(value, dict | list) and _Reading(text, bare=not in_prose).is_of(value):
        plain: dict[str, Json] | list[Json] = _plain(value)
        return plain
    return None


def _plain(value: Json) -> Json:
    """The value without pieces of the metered text: a schema's validator takes no other kind of text."""
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    return str(value) if isinstance(value, str) else value


def _depth(text: str) -> int:
    steps = (1 if char in "[{(" else -1 for char in re.findall(r"[][{}()]", text))
    return max(itertools.accumulate(steps), default=0)


class _TooLong(Exception):
    pass


class _Metered(str):
    """A text that can be looked at so often: some take the library the square of the time."""

    looks_left: int

    def __new__(cls, text: str, looks_left: int | None = None) -> _Metered:
        made = super().__new__(cls, text)
        made.looks_left = _LOOKS_PER_CHAR * len(text) + 1000 if looks_left is None else looks_left
        return made

    def __getitem__(self, at: SupportsIndex | slice) -> str:
        found = super().__getitem__(at)
        self.looks_left -= 1 + len(found) // 64
        if self.looks_left < 0:
            raise _TooLong
        return found if len(found) <= 1 else _Metered(found, self.looks_left)

    def __add__(self, other: str) -> _Metered:
        return _Metered(super().__add__(other), self.looks_left)


class _Reading:
    """A text that is read along a value, from its first character on."""

    def __init__(self, text: str, *, bare: bool) -> None:
        self.text = text
        self.bare = bare
        self.at = 0
        self.end = 0
        """Of the last bracket, colon, text, word or number."""
        self.last = ""
        """What that was: `open` for what a value or key may follow, `number`, or something else."""

    def is_of(self, value: Json) -> bool:
        """Whether the text is this value, and all of it."""
        return self._value(value) and self.at == len(self.text)

    def _value(self, value: Json) -> bool:
        if isinstance(value, dict):
            members = (
                self._text(key, is_key=True) and self._take(":") and self._value(inner)
                for key, inner in value.items()
            )
            return self._take("{") and all(members) and self._take("}")
        if isinstance(value, list):
            return self._take("[") and all(self._value(inner) for inner in value) and self._take("]")
        if isinstance(value, str):
            return self._text(value, is_key=False)
        self._skip()
        if value is None or isinstance(value, bool):
            word = _WORD.match(self.text, self.at)
            if word is None or _WORDS.get(word.group().lower(), "") is not value:
                return False
            self.at = word.end()
        else:
            number = _NUMBER.match(self.text, self.at)
            if number is None or not _is_written(value, number.group()):
                return False
            if not self._is_apart() and self.last == "number" and "\n" not in self.text[self.end : self.at]:
                # As in `12 345`, which is one number to many people.
                return False
            self.at = number.end()
        self._passed("number")
        return self._is_ended()

    def _take(self, char: str) -> bool:
        self._skip(comma=char != ":")
        self.at += 1
        self._passed("open" if char in "[{:" else "close")
        return self.text[self.at - 1 : self.at] == char

    def _passed(self, what: str) -> None:
        self.end, self.last = self.at, what

    def _is_apart(self) -> bool:
        """Whether what starts here stands behind a bracket, a colon or a comma."""
        return self.last == "open" or "," in self.text[self.end : self.at]

    def _skip(self, *, comma: bool = True) -> None:
        """Pass what says nothing, and one comma: two would leave a value out."""
        self._blank()
        if comma and self.text[self.at : self.at + 1] == ",":
            self.at += 1
            self._blank()

    def _blank(self) -> None:
        blank = _BLANK.match(self.text, self.at)
        self.at = blank.end() if blank else self.at

    def _is_ended(self) -> bool:
        """Whether no word goes on here."""
        return self.text[self.at : self.at + 1] in ",:]}" or _BLANK.match(self.text, self.at) is not None

    def _text(self, value: str, *, is_key: bool) -> bool:
        self._skip()
        closing = _CLOSING.get(self.text[self.at : self.at + 1])
        if closing is not None:
            return self._quoted(value, closing)
        if not value or value.strip() != value or not (value[0].isalnum() or value[0] in "_$-"):
            return False
        if not (_is_bare_key(value) if is_key else self.bare and _is_bare_text(value)):
            return False
        if not self._is_apart() or not self.text.startswith(value, self.at):
            return False
        self.at += len(value)
        self._passed("text")
        return self._is_ended()

    def _quoted(self, value: str, closing: str) -> bool:
        text, at = self.text, self.at + 1
        for char in value:
            escape = _ESCAPE.match(text, at) if text.startswith("\\", at) else None
            if escape is not None:
                if _unescaped(escape) != char:
                    return False
                at = escape.end()
                continue
            if not text.startswith(char, at):
                return False
            at += 1
            if char == closing and _may_close(text, at, closing):
                return False
        self.at = at + 1
        self._passed("text")
        return text.startswith(closing, at)


def _may_close(text: str, at: int, closing: str) -> bool:
    """Whether the quote before `at` looks like the end of a text, and so cannot be told from one."""
    blank = _BLANK.match(text, at)
    after = blank.end() if blank else at
    return text[after : after + 1] in (",", ":", "]", "}", "+", closing, "")


def _is_written(value: float, text: str) -> bool:
    try:
        return math.isfinite(value) and type(value)(text) == value
    except ValueError:
        return False


def _is_bare_key(value: str) -> bool:
    return not _STRUCTURE & set(value) and ":" not in value


def _is_bare_text(value: str) -> bool:
    if _STRUCTURE & set(value) or _LIKE_A_MEMBER.search(value) or value.lower().lstrip("-") in _NOT_A_TEXT:
        return False
    try:
        float(value)
    except ValueError:
        return True
    return False


def _unescaped(escape: re.Match[str]) -> str:
    high, low, code, byte, char = escape.groups()
    if high:
        return chr(0x10000 + ((int(high, 16) - 0xD800) << 10) + (int(low, 16) - 0xDC00))
    if code or byte:
        return chr(int(code or byte, 16))
    return _ESCAPED.get(char, char)
