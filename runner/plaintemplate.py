"""Templates of text and names alone, such as `Sort this: {{ input.text }}`: understood without Jinja. Pure.

Jinja takes longer to load than a plan with nothing to do has to think; so what such a template reads is told
here, and Jinja is left to what renders it.
"""

from __future__ import annotations

import re

_HOLE = r"(?<!\{)\{\{[ \t]*(?:(input|var)\.([A-Za-z_][A-Za-z0-9_]*)|(env))[ \t]*\}\}"
_OPENINGS = ("{{", "{%", "{#")


def names(text: str) -> frozenset[tuple[str, str]] | None:
    """(`input`, `text`) pairs that a template reads, as `sandbox.CompiledTemplate.names`; the second is empty
    for `env`.

    None where it is more than text and names, so that only Jinja can tell what it is.
    """
    rest = re.sub(_HOLE, " ", text)
    if any(opening in rest for opening in _OPENINGS):
        return None
    return frozenset((owner or whole, name) for owner, name, whole in re.findall(_HOLE, text))
