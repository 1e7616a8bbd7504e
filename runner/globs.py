"""Glob patterns over keys. Pure.

`*`, `?` and `[...]` match within one part of a path, `**` any number of parts.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable
from operator import methodcaller

from runner.errors import UsageInvalid

_MAGIC = re.compile(r"[*?\[]")


def has_wildcard(glob: str) -> bool:
    """Whether a glob has anything but literal text."""
    return _MAGIC.search(glob) is not None


def split(glob: str) -> tuple[str, str]:
    """The folder that needs no matching, and the rest of the pattern."""
    parts = glob.split("/")
    count = 0
    while count < len(parts) - 1 and not _MAGIC.search(parts[count]):
        count += 1
    literal = "/".join(parts[:count])
    return literal or ("/" if glob.startswith("/") else ""), "/".join(parts[count:])


def compile_glob(glob: str) -> re.Pattern[str]:
    """The pattern as a regular expression for whole keys (NFC, with `/`)."""
    parts = unicodedata.normalize("NFC", glob).split("/")
    pattern = ""
    for position, part in enumerate(parts):
        last = position == len(parts) - 1
        if part == "**":
            pattern += ".*" if last else "(?:[^/]+/)*"
        else:
            pattern += _part(part) + ("" if last else "/")
    return re.compile(pattern, re.DOTALL)


def test(glob: str) -> Callable[[str], object]:
    """What is true of the keys that match a pattern, as fast as can be for `**/*.txt` and its like."""
    end = glob.removeprefix("**/*")
    if glob.startswith("**/*") and "/" not in end and not _MAGIC.search(end):
        return methodcaller("endswith", unicodedata.normalize("NFC", end))
    return compile_glob(glob).fullmatch


def matches(glob: str, key: str) -> bool:
    """Whether a key matches a glob."""
    return compile_glob(glob).fullmatch(key) is not None


def _part(part: str) -> str:
    out, at = "", 0
    while at < len(part):
        char = part[at]
        close = part.find("]", at + 2) if char == "[" else -1
        if char == "*":
            out += "[^/]*"
        elif char == "?":
            out += "[^/]"
        elif close > 0:
            body = re.sub(r"([\\[&~|])", r"\\\1", part[at + 1 : close])
            # A range such as [+-0] holds the slash, which no part of a path has.
            out += f"(?!/)[^{body[1:]}]" if body[0] in "!^" else f"(?!/)[{body}]"
            at = close
        else:
            out += re.escape(char)
        at += 1
    return out


class Selector:
    """Patterns that pick rows by key, and which of them picked any."""

    def __init__(self, option: str, patterns: Iterable[str]) -> None:
        """`option` names where the patterns came from, for the error. Raises UsageInvalid for no glob."""
        self._option = option
        self._patterns = [(pattern, self._compiled(pattern)) for pattern in patterns]
        self._used: set[str] = set()
        self._near: list[str] = []

    def _compiled(self, pattern: str) -> re.Pattern[str]:
        try:
            return compile_glob(pattern)
        except re.error:
            raise UsageInvalid(
                f"{self._option} {pattern!r} is not a glob: a range in [...] cannot be read",
                hint="write a literal [ as [[]",
            ) from None

    def matches(self, key: str) -> bool:
        """Whether any pattern picks this key."""
        found = False
        for text, pattern in self._patterns:
            if pattern.fullmatch(key):
                self._used.add(text)
                found = True
        if not found and len(self._near) < 1000:
            self._near.append(key)
        return found

    def check(self) -> None:
        """Raises UsageInvalid for a pattern that picked nothing."""
        for text, _ in self._patterns:
            if text not in self._used:
                import difflib

                hint = "gbrun plan SPEC -v prints the keys"
                near = difflib.get_close_matches(text, self._near, n=1, cutoff=0.5)
                if near:
                    hint = f"did you mean {near[0]!r}?"
                elif "/" not in text and _MAGIC.search(text) and any("/" in key for key in self._near):
                    hint = f"a wildcard stays within one folder; '**/{text}' looks in all of them"
                raise UsageInvalid(f"{self._option} {text!r} matches no key", hint=hint)
