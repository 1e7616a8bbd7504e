"""Rows that cannot become requests, as diagnostics that point at the file to mend. Pure."""

from __future__ import annotations

import shlex

from runner.errors import Diagnostic
from runner.model import BadRow
from runner.specmodel import BigQuerySource, Spec

_CODES = {
    "unreadable": "GB601",
    "changed": "GB601",
    "encoding": "GB602",
    "nul_byte": "GB602",
    "surrogate": "GB602",
    "template": "GB603",
    "too_large": "GB604",
    "no_key": "GB605",
}


def diagnose(spec: Spec, bad: BadRow) -> Diagnostic:
    """The row's problem: in the template's own file and line where the template broke on its data."""
    code = _CODES[bad.code]
    if not bad.path:
        # Keys of files are paths; those of tables are not.
        of_files = not any(isinstance(source, BigQuerySource) for source in spec.inputs)
        path = spec.shown(bad.key) if of_files else bad.key
        return Diagnostic(code=code, message=f"the input {bad.message}", path=path)
    template = spec.prompt
    ids = [source.id for source in spec.inputs if isinstance(source, BigQuerySource)]
    for other in (spec.system_instruction, *ids):
        if other is None or other.path != bad.path:
            continue
        if other.line <= bad.line < other.line + other.text.count("\n") + 1:
            template = other
    lines = template.text.split("\n")
    at = bad.line - template.line
    snippet = lines[at] if 0 <= at < len(lines) else ""
    indent = " " * (template.column - 1)
    return Diagnostic(
        code=code,
        message=bad.message,
        path=spec.shown(bad.path),
        line=bad.line,
        column=template.column + len(snippet) - len(snippet.lstrip()),
        length=max(1, len(snippet.strip())),
        where=f"input {bad.key}",
        snippet=indent + snippet,
        hint=f"gbrun render {spec.invocation} --key {shlex.quote(bad.key)} shows it alone",
    )
