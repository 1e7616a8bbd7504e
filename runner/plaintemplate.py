"""Templates of text and names alone, such as `Sort this: {{ input.text }}`: done without Jinja. Pure.

Jinja takes longer to load than a plan with nothing to do has to think, and longer to render such a template
than most else of a request takes.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Any

MAX_OUTPUT_CHARS = 20_000_000
"""Longest text a template may make; the service's own limit for a request is below it."""
_HOLE = r"(?<!\{)\{\{[ \t]*(?:(input|var)\.([A-Za-z_][A-Za-z0-9_]*)|(env))[ \t]*\}\}"
_OPENINGS = ("{{", "{%", "{#")
_NEWLINE = r"\r\n|\r"


class PlainTemplate:
    """Such a template."""

    def __init__(self, texts: list[str], holes: list[tuple[str, str]]) -> None:
        """`texts` stand around and between the `holes`."""
        # As Jinja reads them.
        self._first, *self._texts = [re.sub(_NEWLINE, "\n", text) for text in texts]
        self._holes = holes
        # These may be attributes of what Jinja is handed.
        self._is_rendered = not any(name.startswith("_") for _, name in holes)

    @property
    def names(self) -> frozenset[tuple[str, str]]:
        """(`input`, `text`) pairs that it reads, as `sandbox.CompiledTemplate.names`; the second is empty for
        `env`."""
        return frozenset(self._holes)

    def render(self, values: Mapping[str, Mapping[str, Any]]) -> str | None:
        """The text for values by owner and name.

        None where Jinja is to say what becomes of it: a name is missing, a value is no text, or the text is
        too long.
        """
        if not self._is_rendered:
            return None
        made = [self._first]
        for (owner, name), text in zip(self._holes, self._texts, strict=True):
            value = values[owner].get(name)
            if type(value) is not str:
                return None
            made.append(value)
            made.append(text)
        whole = "".join(made)
        return whole if len(whole) <= MAX_OUTPUT_CHARS else None


@functools.lru_cache(maxsize=64)
def parsed(text: str) -> PlainTemplate | None:
    """The template, or None where it is more than text and names, so that only Jinja can tell what it is."""
    texts, owners, names, wholes = (re.split(_HOLE, text)[at::4] for at in range(4))
    if any(opening in found for opening in _OPENINGS for found in texts):
        return None
    holes = [(owner or whole, name or "") for owner, name, whole in zip(owners, names, wholes, strict=True)]
    return PlainTemplate(texts, holes)
