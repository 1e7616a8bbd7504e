"""Diagnostics as text, as JSON and as GitHub annotations, and the one table of their codes. Pure."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from runner.errors import Diagnostic
from runner.model import Json

MAX_SNIPPET = 160
"""Characters of a source line that are shown."""
MAX_MESSAGE = 400
"""Characters of a message that are shown as text; a file may hold a key of any length."""


@dataclass(frozen=True, slots=True)
class Code:
    """What a diagnostic code stands for; `docs/diagnostics/` has a page for each."""

    title: str
    explanation: str


CODES: Mapping[str, Code] = {
    # Reading a file.
    "GB001": Code(
        "file cannot be read", "The file is missing, is not a regular file, or its rights forbid it."
    ),
    "GB002": Code("file is not UTF-8", "Specs, prompts and schemas are UTF-8 text."),
    "GB003": Code("control character", "The file holds a character that text cannot hold, such as NUL."),
    "GB004": Code("file is empty", "The file holds no values."),
    "GB005": Code("file is too large", "Specs, prompts and schemas are at most 4 MiB."),
    "GB006": Code("YAML syntax", "The text is not YAML."),
    "GB007": Code("tab as indentation", "YAML is indented by spaces only."),
    "GB008": Code("merge conflict", "Markers of an unresolved merge stand in the file."),
    "GB009": Code("duplicate key", "A mapping sets the same key twice."),
    "GB010": Code("several documents", "A file holds one YAML document."),
    "GB011": Code("not a mapping", "The file must hold keys and values."),
    "GB012": Code("nested too deep", "Values are nested at most 64 levels deep."),
    "GB013": Code("aliases out of bounds", "Aliases would expand without end, or to too many values."),
    "GB014": Code("merge key", "`<<` is not supported; a spec builds on another with `extends`."),
    "GB015": Code("tag", "Tags such as `!!python/object` are refused."),
    "GB016": Code("key is not a string", "Keys are strings; what YAML reads as something else needs quotes."),
    "GB017": Code("number out of range", "The number cannot be written in JSON."),
    "GB018": Code("JSON syntax", "A `.json` file must be JSON."),
    # The shape of a spec.
    "GB101": Code("missing key", "A required key is missing."),
    "GB102": Code("wrong type", "The value is of another type than the key takes."),
    "GB103": Code("unknown key", "The spec format has no such key."),
    "GB104": Code("unknown value", "The key takes one of a few values."),
    "GB105": Code("out of bounds", "The value is too small, too large, too short or too long."),
    "GB106": Code("wrong form", "The text does not have the form that the key takes."),
    "GB107": Code("not built yet", "The format has it, this version of gbrun does not."),
    "GB108": Code("misplaced key", "The key belongs elsewhere in the spec."),
    "GB109": Code("spec version", "This gbrun reads another version of the spec format."),
    "GB110": Code("missing package", "The key needs a package that is not installed."),
    # Files and places that a spec names.
    "GB201": Code("named file cannot be read", "A prompt, schema or fault file is missing or unreadable."),
    "GB202": Code(
        "path leads out", "A path leaves the spec's folder, by `..`, as absolute path or by a link."
    ),
    "GB203": Code("destination among inputs", "The inputs would match what gbrun writes."),
    "GB204": Code("unknown encoding", "Python knows no such text encoding."),
    "GB205": Code("unusable glob", "The glob cannot match files below the spec's folder."),
    "GB206": Code("unusable destination", "Records cannot be written to this path."),
    # Templates and schemas.
    "GB301": Code("template syntax", "The prompt or system instruction is not a Jinja template."),
    "GB302": Code("template reads another", "Templates cannot include, import or extend others."),
    "GB311": Code("invalid JSON Schema", "The output schema is not JSON Schema."),
    "GB312": Code("unusable pattern", "The validator does not take a regular expression of the schema."),
    "GB313": Code("unresolved reference", "A `$ref` names nothing inside the schema."),
    "GB314": Code("reserved property", "The schema has a property that every record already has."),
    "GB315": Code(
        "Python not allowed", "The schema is a pydantic model, and no flag says that its code may run."
    ),
    "GB316": Code("unusable model", "The pydantic model cannot be imported, or has no JSON Schema."),
    # Variables, environments, parents.
    "GB401": Code("unknown variable", "No such variable is declared."),
    "GB402": Code("variable without value", "The variable has no default, and nothing sets it."),
    "GB403": Code("variable of wrong type", "The value does not fit the variable's type."),
    "GB404": Code("unknown environment", "The spec has no such environment."),
    "GB405": Code("malformed reference", "`${...}` holds neither `var.NAME` nor `env`."),
    "GB406": Code("sensitive variable misused", "A sensitive value would be shown or stored."),
    "GB407": Code("unusable parent", "The spec that `extends` names cannot be built on."),
    # Backends.
    "GB501": Code("no backend", "Neither the spec nor the environment chooses a backend."),
    "GB502": Code("setting of another backend", "The setting does not go with this backend."),
    "GB503": Code("not for Vertex's importer", "One such request would fail the import of the whole job."),
    # Rows.
    "GB601": Code("input cannot be read", "A file cannot be opened, or changed while it was read."),
    "GB602": Code("input is not text", "A file is not text in the source's encoding."),
    "GB603": Code("template fails on a row", "The template cannot be rendered with the data of a row."),
    "GB604": Code("request too large", "The request of a row is over `shards.max_bytes`."),
    "GB605": Code("row without a key", "The `id` of a table gives a row no text that can name it."),
    # Lints: warnings, errors with `validate --strict`.
    "GB901": Code("model is gone", "The service no longer has the model."),
    "GB902": Code("model is re-routed", "Another model answers under this id, at its own price."),
    "GB903": Code("unknown model", "gbrun does not know the model id."),
    "GB904": Code("parameter rejected", "The model rejects a request with this setting."),
    "GB905": Code("parameter ignored", "The model ignores this setting."),
    "GB906": Code("schema with tools", "Answers that use tools need not follow the output schema."),
    "GB907": Code("unknown template name", "The template reads a name that no row has."),
    "GB908": Code("unused variable", "A declared variable is used nowhere."),
    "GB909": Code("prompt without input", "The prompt is the same for every row."),
    "GB910": Code("schema rule not enforced", "The service ignores a rule; gbrun checks it after the fact."),
    "GB911": Code("thinking eats the answer", "`max_output_tokens` leaves little for the answer."),
    "GB912": Code("labels not sent", "Labels reach the job only on Vertex."),
    "GB913": Code("reference in a template", "`${...}` is not replaced inside a template."),
    "GB914": Code("model will be gone", "The service has announced the model's end."),
    "GB915": Code("unknown format", "A `format` of the schema is not known, and so not checked."),
    "GB916": Code("unknown schema keyword", "A keyword of the schema that JSON Schema does not have."),
    "GB917": Code("samples cannot differ", "Several answers are asked for, with nothing left to chance."),
    "GB919": Code("column without values", "A column names a field that no record has."),
}


def text(diagnostics: Iterable[Diagnostic]) -> str:
    """Diagnostics for people, an empty line between two, with a final newline; empty for none."""
    shown = [_block(diagnostic) for diagnostic in diagnostics]
    return "\n\n".join(shown) + "\n" if shown else ""


def _block(diagnostic: Diagnostic) -> str:
    kind = "Warning" if diagnostic.severity == "warning" else "Error"
    message = diagnostic.message
    if len(message) > MAX_MESSAGE:
        message = message[: MAX_MESSAGE - 3] + "..."
    lines = [f"{kind}: {_clean(message)}  [{diagnostic.code}]"]
    inside = f", in {_clean(diagnostic.where)}" if diagnostic.where else ""
    place = f":{diagnostic.line}:{diagnostic.column}" if diagnostic.line else ""
    if diagnostic.path:
        lines.append(f"  on {_clean(diagnostic.path)}{place}{inside}")
    if diagnostic.line and diagnostic.snippet:
        snippet, start, length = _window(diagnostic)
        number = str(diagnostic.line)
        lines.append(f"  {number} | {_clean(snippet)}".rstrip())
        underline = " " * _width(snippet[:start]) + "^" * max(1, _width(snippet[start : start + length]))
        lines.append(f"  {' ' * len(number)} | {underline}")
    if diagnostic.hint:
        lines.append(f"  {_clean(diagnostic.hint)}")
    return "\n".join(lines)


def json_object(diagnostic: Diagnostic) -> dict[str, Json]:
    """The diagnostic as one object of the JSON lines output."""
    return {
        "type": "diagnostic",
        "severity": diagnostic.severity,
        "code": diagnostic.code,
        "message": diagnostic.message,
        "path": diagnostic.path,
        "line": diagnostic.line,
        "column": diagnostic.column,
        "length": diagnostic.length,
        "where": diagnostic.where,
        "snippet": diagnostic.snippet,
        "hint": diagnostic.hint,
    }


def github(diagnostic: Diagnostic) -> str:
    """The diagnostic as a workflow command that GitHub shows beside the line.

    Source: https://docs.github.com/actions/reference/workflow-commands-for-github-actions
    """
    properties = {}
    if diagnostic.line:
        properties = {
            "file": diagnostic.path,
            "line": str(diagnostic.line),
            "col": str(diagnostic.column),
        }
    properties["title"] = diagnostic.code
    listed = ",".join(f"{key}={_property(value)}" for key, value in properties.items())
    before = "" if diagnostic.line or not diagnostic.path else f"{diagnostic.path}: "
    after = f"\n{diagnostic.hint}" if diagnostic.hint else ""
    return f"::{diagnostic.severity} {listed}::{_data(before + diagnostic.message + after)}"


def _data(value: str) -> str:
    return value.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(value: str) -> str:
    return _data(value).replace(":", "%3A").replace(",", "%2C")


def _clean(value: str) -> str:
    """The text without what could move a terminal's cursor or turn the direction of writing."""
    value = value.replace("\t", " ").replace("\n", " ")
    return "".join("\ufffd" if unicodedata.category(char) in ("Cc", "Cf", "Cs") else char for char in value)


def _window(diagnostic: Diagnostic) -> tuple[str, int, int]:
    """The part of the source line to show, and where in it the underline begins and how long it is."""
    line, start = diagnostic.snippet, max(0, diagnostic.column - 1)
    first = 0 if len(line) <= MAX_SNIPPET else max(0, min(start - 20, len(line) - MAX_SNIPPET))
    cut = line[first : first + MAX_SNIPPET]
    if first:
        cut = "..." + cut[3:]
    if first + MAX_SNIPPET < len(line):
        cut = cut[:-3] + "..."
    return cut, start - first, min(diagnostic.length, len(cut) - (start - first))


def _width(value: str) -> int:
    """Columns of a terminal that a text takes."""
    wide = sum(unicodedata.east_asian_width(char) in ("W", "F") for char in value)
    zero = sum(unicodedata.combining(char) != 0 for char in value)
    return len(value) + wide - zero
