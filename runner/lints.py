"""What is allowed in a spec and probably not meant: warnings that need no network. Pure but for the
dated table of models that gbrun ships.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from runner import columns, modelfacts, schemalints, warning
from runner.errors import Diagnostic
from runner.marks import Place
from runner.shape import suggest
from runner.specmodel import BigQuerySource, Spec, Template
from runner.templates import field
from runner.templates import locate as locate_in_template
from runner.variables import redact

if TYPE_CHECKING:
    from jinja2 import nodes

FILE_FIELDS = ("text", "path", "name", "stem", "suffix", "mime_type")
"""What `input` has for a row that is a file."""
LEAST_OUTPUT_TOKENS = 1024
"""Below this, thinking alone is likely to use `max_output_tokens` up."""

_SEES = ("input", "var", "env")
_GLOBALS = ("range", "dict", "cycler", "joiner", "namespace", "true", "false", "none")
_REFERENCE = re.compile(r"\$\{\s*(var\.\w+|env)\s*\}")


def lint(spec: Spec) -> list[Diagnostic]:
    """Warnings about a spec, in the order of its file; `validate --strict` makes errors of them."""
    found = [
        *_model(spec),
        *_settings(spec),
        *_thinking(spec),
        *_samples(spec),
        *schemalints.lint(spec),
        *_templates(spec),
        *_columns(spec),
    ]
    if spec.labels and spec.backend.protocol != "vertex":
        message = "labels are shown here only: the Developer API does not take them"
        found.append(
            warning.at(spec, ("labels",), "GB912", message, "remove them, or keep them as a note", key=True)
        )
    if spec.origin is not None:
        known = spec.origin.known
        found = [redact(diagnostic, known) for diagnostic in found]
    main = spec.origin.marks[()].source.path if spec.origin else ""
    return sorted(
        dict.fromkeys(found), key=lambda d: (d.path != main, d.path, d.line, d.column, d.code, d.message)
    )


# ------------------------------------------------------------------- models


def _model(spec: Spec) -> Iterator[Diagnostic]:
    model, facts = spec.model, modelfacts.facts(spec.model)
    as_of = f"as of {modelfacts.table()['as_of']}"
    if model.endswith("-latest"):
        message = f'"{model}" is an alias: the service decides which model answers, and at which price'
        yield warning.at(spec, ("model",), "GB902", message, "name a version")
    elif facts is None:
        known = [
            name
            for name, known in modelfacts.table()["models"].items()
            if "*" not in name and "gone" not in known
        ]
        hint = (
            suggest(model, known) or f"known {as_of}: {', '.join(k for k in known if 'embedding' not in k)}"
        )
        yield warning.at(
            spec, ("model",), "GB903", f'model "{model}" is unknown to this version of gbrun', hint
        )
    elif "gone" in facts:
        message = f'model "{model}" is gone since {facts["gone"]} ({as_of})'
        yield warning.at(spec, ("model",), "GB901", message, f"use {facts['use']}")
    elif "answered_by" in facts:
        other = facts["answered_by"]
        message = (
            f'"{model}" is answered by {other} since {facts["since"]}, at the price of {other} ({as_of})'
        )
        yield warning.at(spec, ("model",), "GB902", message, f"write {other}, and the spec says what runs")
    elif "ends" in facts:
        then = facts.get("then_answered_by")
        after = f"; from then on {then} answers, at its own price" if then else ""
        message = f'model "{model}" ends on {facts["ends"]}{after} ({as_of})'
        yield warning.at(spec, ("model",), "GB914", message, f"try {facts['use']}")
    elif facts.get("embeds") and spec.task != "embed_content":
        message = f'"{model}" makes embeddings; it does not answer a generate_content request'
        yield warning.at(spec, ("model",), "GB904", message, "choose a model that generates text")
    elif spec.task == "embed_content" and not facts.get("embeds"):
        known = [name for name, other in modelfacts.table()["models"].items() if other.get("embeds")]
        message = f'"{model}" makes no embeddings'
        yield warning.at(spec, ("model",), "GB904", message, f"known {as_of}: {', '.join(known)}")


def _answering(spec: Spec) -> Mapping[str, Any]:
    """Facts of the model that really answers; empty where nothing is known."""
    facts = modelfacts.facts(spec.model) or {}
    return modelfacts.facts(facts["answered_by"]) or {} if "answered_by" in facts else facts


def _settings(spec: Spec) -> Iterator[Diagnostic]:
    facts = _answering(spec)
    family = modelfacts.table()["families"].get(facts.get("family"), {})
    for rule in family.get("rejects", ()):
        place = tuple(rule["setting"].split("."))
        value = _setting(spec, place)
        if value is None or ("values" in rule and value not in rule["values"]):
            continue
        if "above" in rule and not value > rule["above"]:
            continue
        what = f"{place[-1]} {value}" if "values" in rule or "above" in rule else str(place[-1])
        hint = f"use {rule['use']}" if "use" in rule else "remove it"
        yield warning.at(spec, place, "GB904", f"{spec.model} rejects {what}", hint, key=True)
    for name in family.get("ignores", ()):
        place = tuple(name.split("."))
        if _setting(spec, place) is not None:
            yield warning.at(spec, place, "GB905", f"{spec.model} ignores {place[-1]}", "remove it", key=True)


def _setting(spec: Spec, place: tuple[str, ...]) -> Any:
    value: Any = getattr(spec, place[0])
    for step in place[1:]:
        value = value.get(step) if isinstance(value, Mapping) else None
    return value


def _samples(spec: Spec) -> Iterator[Diagnostic]:
    if spec.samples.count == 1:
        return
    config = spec.generation_config
    for name in ("temperature", "seed"):
        if config.get(name) == 0 or (name == "seed" and name in config):
            message = f"{name} is fixed, so all {spec.samples.count} samples of a row may be the same"
            yield warning.at(spec, ("generation_config", name), "GB917", message, "remove it", key=True)


def _thinking(spec: Spec) -> Iterator[Diagnostic]:
    most = spec.generation_config.get("max_output_tokens")
    budget = _setting(spec, ("generation_config", "thinking_config", "thinking_budget"))
    if most is None or budget == 0:
        return
    place: Place = ("generation_config", "max_output_tokens")
    hint = "raise it, or turn thinking down in thinking_config"
    if budget is not None and budget >= most:
        message = f"thinking_budget {budget} leaves nothing of max_output_tokens {most} for the answer"
        yield warning.at(spec, place, "GB911", message, hint)
    elif most < LEAST_OUTPUT_TOKENS and _answering(spec).get("thinks"):
        message = f"{spec.model} thinks, and its thoughts count: max_output_tokens {most} may leave no answer"
        yield warning.at(spec, place, "GB911", message, hint)


# ------------------------------------------------------------------- destinations


def _columns(spec: Spec) -> Iterator[Diagnostic]:
    for number, destination in enumerate(spec.destinations):
        for at, message, hint in columns.doubts(spec, destination):
            name = destination.columns[at].name
            place: Place = ("destination", number, "columns")
            marks = spec.origin.marks if spec.origin else {}
            if place not in marks:
                place = ("destination", "columns")
            place = (*place, name) if (*place, name) in marks else (*place, at)
            yield warning.at(spec, place, "GB919", f'column "{name}" has no values: {message}', hint)


# ------------------------------------------------------------------- templates


def _templates(spec: Spec) -> Iterator[Diagnostic]:
    import jinja2
    from jinja2 import nodes

    used = set(spec.origin.used) if spec.origin else set()
    reads_input = False
    places: tuple[tuple[Place, Template | None], ...] = (
        (("prompt",), spec.prompt),
        (("system_instruction",), spec.system_instruction),
        (("embed_content_config", "title"), spec.title),
        *((place, source.id) for place, source in _tables(spec)),
    )
    for key, template in places:
        if template is None:
            continue
        tree = jinja2.Environment().parse(template.text)
        names = {node.name for node in tree.find_all(nodes.Name)}
        reads_input = reads_input or ("input" in names and key[0] != "inputs")
        used |= _variables_read(tree, spec)
        yield from _unknown_names(spec, key, template, tree)
        for match in _REFERENCE.finditer(template.text):
            line = template.text.count("\n", 0, match.start()) + 1
            message = f"{match[0]} is not replaced in a template"
            hint = f"write {{{{ {match[1]} }}}}"
            yield _in_template(spec, key, template, line, "GB913", message, hint, match[0])
    if not reads_input:
        message = "the prompt uses nothing of the input: every row asks the same"
        field = "COLUMN" if _tables(spec) else "text"
        hint = f"write {{{{ input.{field} }}}} where the row belongs"
        yield warning.at(spec, ("prompt",), "GB909", message, hint, key=True)
    for name in spec.variables:
        if name not in used:
            place = ("variables", name)
            yield warning.at(
                spec, place, "GB908", f'variable "{name}" is used nowhere', "remove it", key=True
            )


def _tables(spec: Spec) -> list[tuple[Place, BigQuerySource]]:
    """The sources whose rows have columns that only the service knows, each with the place of its key."""
    marks = spec.origin.marks if spec.origin else {}
    found: list[tuple[Place, BigQuerySource]] = []
    for number, source in enumerate(spec.inputs):
        if isinstance(source, BigQuerySource):
            listed: Place = ("inputs", number, "id")
            found.append((listed if listed in marks else ("inputs", "id"), source))
    return found


def _variables_read(tree: nodes.Template, spec: Spec) -> set[str]:
    """Names of variables that a template reads; all of them where it picks one at run time."""
    from jinja2 import nodes

    owners = [node for node in tree.find_all(nodes.Name) if node.name == "var"]
    read = [
        name
        for node in tree.find_all((nodes.Getattr, nodes.Getitem))
        if (name := field(node, "var")) is not None
    ]
    return set(read) if len(read) == len(owners) else set(spec.variables)


def _unknown_names(spec: Spec, key: Place, template: Template, tree: nodes.Template) -> Iterator[Diagnostic]:
    from jinja2 import nodes

    known: dict[str, tuple[str, ...]] = {"var": tuple(spec.variables)}
    if not _tables(spec):
        known["input"] = FILE_FIELDS
    own = {node.name for node in tree.find_all(nodes.Name) if node.ctx != "load"}
    own |= {macro.name for macro in tree.find_all(nodes.Macro)}
    for node in tree.find_all((nodes.Getattr, nodes.Getitem)):
        for owner, fields in known.items():
            name = field(node, owner)
            if name is None or name in fields or owner in own:
                continue
            hint = (
                suggest(name, fields)
                or f"{owner} has {', '.join(fields) or 'nothing: no variable is declared'}"
            )
            message = f'"{owner}.{name}" does not exist'
            written = f"{owner}.{name}"
            yield _in_template(spec, key, template, node.lineno, "GB907", message, hint, written)
    inside = {"loop", "caller", "varargs", "kwargs", "self", "super"}
    for name_node in tree.find_all(nodes.Name):
        name = name_node.name
        if name in own or name in inside or name in _SEES or name in _GLOBALS:
            continue
        hint = suggest(name, _SEES) or "a template sees input, var and env"
        if name in FILE_FIELDS or name in spec.variables:
            hint = f"write {'input' if name in FILE_FIELDS else 'var'}.{name}"
        message = f'"{name}" is not defined'
        yield _in_template(spec, key, template, name_node.lineno, "GB907", message, hint, name)


def _in_template(
    spec: Spec, key: Place, template: Template, line: int, code: str, message: str, hint: str, written: str
) -> Diagnostic:
    """A warning at a line of a template; what is `written` there is underlined where it is found."""
    marks = spec.origin.marks if spec.origin else {}
    mark = marks.get((*key, "text")) or marks.get(key)
    if mark is None:
        at = template.line + line - 1
        return Diagnostic(
            code=code, message=message, path=template.path, line=at, column=1, hint=hint, severity="warning"
        )
    found = locate_in_template(
        template,
        mark.source,
        line,
        code=code,
        message=message,
        hint=hint,
        where=".".join(map(str, key)),
        severity="warning",
    )
    word = re.search(rf"(?<![\w.]){re.escape(written)}(?!\w)", found.snippet)
    return replace(found, column=word.start() + 1, length=len(written)) if word else found
