"""What changed in the spec since rows last ran, as line diffs. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import PurePath

import msgspec

from runner.model import Action, Json, Plan
from runner.specmodel import Spec

_MAX_LINES = 24
_CONTEXT_LINES = 1
_NO_NEWLINE = "\\ no newline at the end"


class Cause(msgspec.Struct, frozen=True):
    """A part of the spec that changed."""

    component: str
    place: str
    """`file:line`."""
    lines: tuple[str, ...]
    """Each with `- `, `+ ` or two spaces in front; a gap is `...`."""


def find(spec: Spec, made: Plan, before: Iterable[Json], now: Mapping[str, Json]) -> list[Cause]:
    """The causes of a plan's reruns: for each component named as a reason, what it was and is.

    `before` are the resolved specs that rows of the last apply ran under, `now` this one.
    """
    named = {reason for (action, reasons) in made.reasons if action is Action.RERUN for reason in reasons}
    causes = []
    for component in made.components:
        if component not in named:
            continue
        for old in before:
            lines = _diff(*_ended(_lines(component, old), _lines(component, now)))
            if lines:
                causes.append(Cause(component, _place(spec, component), lines))
                break
    return causes


def _place(spec: Spec, component: str) -> str:
    template = {"prompt": spec.prompt, "system_instruction": spec.system_instruction}.get(component)
    if template is not None:
        return f"{spec.shown(template.path)}:{template.line}"
    mark = spec.origin.marks.get((component,)) if spec.origin is not None else None
    if spec.origin is None or mark is None:
        return spec.shown(spec.path.name)
    # As the places of templates: relative to the spec's folder, also in a spec that this one extends.
    folder = PurePath(spec.origin.marks[()].source.path).parent
    path = PurePath(mark.source.path)
    shown = path.relative_to(folder) if path.is_relative_to(folder) else path
    return f"{spec.shown(shown.as_posix())}:{mark.key_line or mark.line}"


def _lines(component: str, resolved: Mapping[str, Json]) -> list[str]:
    value = resolved.get(component)
    if isinstance(value, Mapping) and component in ("prompt", "system_instruction"):
        value = value.get("text", "")
    if value is None or value == {} or value == []:
        return []
    if isinstance(value, str):
        # At `\n` alone, so that other ends of lines are a difference too.
        return value.split("\n")
    return json.dumps(value, indent=2, ensure_ascii=False).splitlines()


def _ended(old: list[str], new: list[str]) -> tuple[list[str], list[str]]:
    """Both without the empty line behind a final newline; a text that lacks what the other has says so."""
    ends = [lines[-1:] == [""] for lines in (old, new)]
    told = [_NO_NEWLINE] if ends[0] != ends[1] and old and new else []
    first, second = (
        lines[:-1] if ended else lines + told for lines, ended in zip((old, new), ends, strict=True)
    )
    return first, second


def _diff(old: list[str], new: list[str]) -> tuple[str, ...]:
    lines: list[str] = []
    import difflib

    for line in difflib.unified_diff(old, new, lineterm="", n=_CONTEXT_LINES):
        if line.startswith(("---", "+++")):
            continue
        if line.startswith("@@"):
            if lines:
                lines.append("...")
            continue
        lines.append(f"{line[0]} {line[1:]}")
    if len(lines) > _MAX_LINES:
        rest = len(lines) - _MAX_LINES
        lines = [*lines[:_MAX_LINES], f"... {rest:,} more lines"]
    return tuple(lines)
