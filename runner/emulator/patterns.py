"""Strings that match simple regular expressions. Pure.

Understands literals, classes, groups, alternatives, repeats and anchors, which is what schemas use;
anything else (look-around, back references, unicode properties) is not attempted.
"""

from __future__ import annotations

import functools
import re
import string
from collections.abc import Callable

_DIGITS = string.digits
_WORD = string.ascii_lowercase + string.digits + "_"
_SETS = {"d": _DIGITS, "w": _WORD, "s": " ", "D": string.ascii_lowercase, "W": "-", "S": _WORD}
_CONTROLS = {"n": "\n", "t": "\t", "r": "\r", "f": "\f", "v": "\v"}
_PRINTABLE = string.ascii_letters + string.digits + " _-.,:;!?/+*#@&%=()"
_GROUP = re.compile(r"\?(?::|P?<\w+>)")
_REPEAT = re.compile(r"(\*|\+|\?|\{(\d+)(,?)(\d*)\})\??")
_LONGEST = 64

Node = Callable[["_Draw"], str]


class _Unsupported(Exception):
    pass


class _Draw:
    """A stream of choices, and how many repeats above the least to make."""

    __slots__ = ("extra", "state")

    def __init__(self, seed: int, extra: int) -> None:
        self.state = seed
        self.extra = extra

    def below(self, limit: int) -> int:
        self.state = (self.state * 6364136223846793005 + 1442695040888963407) & 0xFFFFFFFFFFFFFFFF
        return (self.state >> 33) % limit


def example(pattern: str, seed: int, low: int, high: int, padding: str) -> str | None:
    """A string of `low` to `high` characters that `pattern` matches, or None where none is found.

    `padding` may be appended where the pattern is open at its end and the string is too short.
    """
    node, compiled = _compile(pattern)
    if node is None or compiled is None:
        return None
    for extra in (seed % 4, *range(_LONGEST)):
        text = node(_Draw(seed, extra))
        for candidate in (text, (text + padding * (1 + low // max(1, len(padding))))[: max(low, len(text))]):
            if low <= len(candidate) <= high and compiled.search(candidate):
                return candidate
    return None


@functools.lru_cache(maxsize=256)
def _compile(pattern: str) -> tuple[Node | None, re.Pattern[str] | None]:
    try:
        return _Parser(pattern).whole(), re.compile(pattern.replace("(?<", "(?P<"))
    except (_Unsupported, re.error, IndexError, ValueError):
        return None, None


class _Parser:
    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        self.place = 0

    def whole(self) -> Node:
        node = self.alternatives()
        if self.place < len(self.pattern):
            raise _Unsupported
        return node

    def alternatives(self) -> Node:
        branches = [self.sequence()]
        while self.peek() == "|":
            self.place += 1
            branches.append(self.sequence())
        if len(branches) == 1:
            return branches[0]
        return lambda draw: branches[draw.below(len(branches))](draw)

    def sequence(self) -> Node:
        nodes: list[Node] = []
        while self.peek() not in ("", "|", ")"):
            nodes.append(self.repeated(self.atom()))
        return lambda draw: "".join([node(draw) for node in nodes])

    def repeated(self, node: Node) -> Node:
        found = _REPEAT.match(self.pattern, self.place)
        if not found:
            return node
        self.place = found.end()
        low, high = {"*": (0, _LONGEST), "+": (1, _LONGEST), "?": (0, 1)}.get(found[1], (0, 0))
        if found[2]:
            low = int(found[2])
            high = int(found[4]) if found[4] else (low + _LONGEST if found[3] else low)
        return lambda draw: "".join([node(draw) for _ in range(min(high, low + draw.extra))])

    def atom(self) -> Node:
        char = self.pattern[self.place]
        self.place += 1
        if char == "(":
            if self.peek() == "?":
                found = _GROUP.match(self.pattern, self.place)
                if not found:
                    raise _Unsupported
                self.place = found.end()
            node = self.alternatives()
            if self.peek() != ")":
                raise _Unsupported
            self.place += 1
            return node
        if char in "^$":
            return lambda draw: ""
        if char == "[":
            return _one_of(self.members())
        if char == ".":
            return _one_of(_WORD)
        if char == "\\":
            if self.peek() in ("b", "B"):
                self.place += 1
                return lambda draw: ""
            return _one_of(self.escape())
        return _one_of(char)

    def members(self) -> str:
        """The characters of a class, after its `[`."""
        negated = self.peek() == "^"
        self.place += negated
        chars = ""
        while (char := self.pattern[self.place]) != "]" or not chars:
            self.place += 1
            chars += self.escape() if char == "\\" else char
            if self.peek() == "-" and self.pattern[self.place + 1] != "]":
                self.place += 1
                end = self.pattern[self.place]
                self.place += 1
                last = self.escape() if end == "\\" else end
                chars += "".join(
                    map(chr, range(ord(chars[-1]) + 1, min(ord(last), ord(chars[-1]) + 255) + 1))
                )
        self.place += 1
        if negated:
            chars = "".join(char for char in _PRINTABLE if char not in chars)
        if not chars:
            raise _Unsupported
        return chars

    def escape(self) -> str:
        """The characters an escape stands for, after its backslash."""
        char = self.pattern[self.place]
        self.place += 1
        if char in "xu":
            width = 2 if char == "x" else 4
            digits = self.pattern[self.place : self.place + width]
            self.place += width
            return chr(int(digits, 16))
        if char.isdigit() or char in "pPk":
            raise _Unsupported
        return _SETS.get(char) or _CONTROLS.get(char) or char

    def peek(self) -> str:
        return self.pattern[self.place : self.place + 1]


def _one_of(chars: str) -> Node:
    if len(chars) == 1:
        return lambda draw: chars
    return lambda draw: chars[draw.below(len(chars))]
