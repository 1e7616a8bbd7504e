"""A warning at a place of a spec. Pure."""

from __future__ import annotations

from runner.errors import Diagnostic
from runner.marks import Place, locate, nearest
from runner.specmodel import Spec


def at(spec: Spec, place: Place, code: str, message: str, hint: str = "", *, key: bool = False) -> Diagnostic:
    """A warning at a value, or at the nearest thing around it; at the top-level key without an origin."""
    if spec.origin is None or nearest(spec.origin.marks, place) is None:
        line = spec.lines.get(str(place[0]), 0)
        column = 1 if line else 0
        return Diagnostic(
            code=code,
            message=message,
            path=spec.path.name,
            line=line,
            column=column,
            hint=hint,
            severity="warning",
        )
    return locate(
        spec.origin.marks, place, code=code, message=message, hint=hint, key=key, severity="warning"
    )
