"""What is allowed in a spec and probably not meant: warnings that need no network. Pure but for the
dated table of models that gbrun ships.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from runner import columns, modelfacts, outputschema, response_schema, validator
from runner.errors import Diagnostic
from runner.marks import Place, locate, nearest
from runner.model import BigQuerySource, Json, Spec, Template
from runner.shape import suggest
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
        *_schema(spec),
        *_formats(spec),
        *_templates(spec),
        *_columns(spec),
    ]
    if spec.labels and spec.backend.protocol != "vertex":
        message = "labels are shown here only: the Developer API does not take them"
        found.append(
            _at(spec, ("labels",), "GB912", message, "remove them, or keep them as a note", key=True)
        )
    if spec.origin is not None:
        known = spec.origin.known
        found = [redact(diagnostic, known) for diagnostic in found]
    main = spec.origin.marks[()].source.path if spec.origin else ""
    return sorted(
        dict.fromkeys(found), key=lambda d: (d.path != main, d.path, d.line, d.column, d.code, d.message)
    )


def _at(
    spec: Spec, place: Place, code: str, message: str, hint: str = "", *, key: bool = False
) -> Diagnostic:
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


# ------------------------------------------------------------------- models


def _model(spec: Spec) -> Iterator[Diagnostic]:
    model, facts = spec.model, modelfacts.facts(spec.model)
    as_of = f"as of {modelfacts.table()['as_of']}"
    if model.endswith("-latest"):
        message = f'"{model}" is an alias: the service decides which model answers, and at which price'
        yield _at(spec, ("model",), "GB902", message, "name a version")
    elif facts is None:
        known = [
            name
            for name, known in modelfacts.table()["models"].items()
            if "*" not in name and "gone" not in known
        ]
        hint = (
            suggest(model, known) or f"known {as_of}: {', '.join(k for k in known if 'embedding' not in k)}"
        )
        yield _at(spec, ("model",), "GB903", f'model "{model}" is unknown to this version of gbrun', hint)
    elif "gone" in facts:
        message = f'model "{model}" is gone since {facts["gone"]} ({as_of})'
        yield _at(spec, ("model",), "GB901", message, f"use {facts['use']}")
    elif "answered_by" in facts:
        other = facts["answered_by"]
        message = (
            f'"{model}" is answered by {other} since {facts["since"]}, at the price of {other} ({as_of})'
        )
        yield _at(spec, ("model",), "GB902", message, f"write {other}, and the spec says what runs")
    elif "ends" in facts:
        then = facts.get("then_answered_by")
        after = f"; from then on {then} answers, at its own price" if then else ""
        message = f'model "{model}" ends on {facts["ends"]}{after} ({as_of})'
        yield _at(spec, ("model",), "GB914", message, f"try {facts['use']}")
    elif facts.get("embeds") and spec.task != "embed_content":
        message = f'"{model}" makes embeddings; it does not answer a generate_content request'
        yield _at(spec, ("model",), "GB904", message, "choose a model that generates text")
    elif spec.task == "embed_content" and not facts.get("embeds"):
        known = [name for name, other in modelfacts.table()["models"].items() if other.get("embeds")]
        message = f'"{model}" makes no embeddings'
        yield _at(spec, ("model",), "GB904", message, f"known {as_of}: {', '.join(known)}")


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
        yield _at(spec, place, "GB904", f"{spec.model} rejects {what}", hint, key=True)
    for name in family.get("ignores", ()):
        place = tuple(name.split("."))
        if _setting(spec, place) is not None:
            yield _at(spec, place, "GB905", f"{spec.model} ignores {place[-1]}", "remove it", key=True)


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
            yield _at(spec, ("generation_config", name), "GB917", message, "remove it", key=True)


def _thinking(spec: Spec) -> Iterator[Diagnostic]:
    most = spec.generation_config.get("max_output_tokens")
    budget = _setting(spec, ("generation_config", "thinking_config", "thinking_budget"))
    if most is None or budget == 0:
        return
    place: Place = ("generation_config", "max_output_tokens")
    hint = "raise it, or turn thinking down in thinking_config"
    if budget is not None and budget >= most:
        message = f"thinking_budget {budget} leaves nothing of max_output_tokens {most} for the answer"
        yield _at(spec, place, "GB911", message, hint)
    elif most < LEAST_OUTPUT_TOKENS and _answering(spec).get("thinks"):
        message = f"{spec.model} thinks, and its thoughts count: max_output_tokens {most} may leave no answer"
        yield _at(spec, place, "GB911", message, hint)


# ------------------------------------------------------------------- the schema


def _schema(spec: Spec) -> Iterator[Diagnostic]:
    if spec.output_schema is None:
        return
    if spec.tools:
        message = "with tools, the service does not hold answers to output_schema"
        hint = "expect outcomes `invalid` and `unparseable`, or leave one of the two out"
        yield _at(spec, ("tools",), "GB906", message, hint, key=True)
    first: dict[str, Place] = {}
    count: dict[str, int] = {}
    for note in response_schema.lower(spec.output_schema)[1]:
        pointer, _, what = note.partition(": ")
        place = _pointer(spec.output_schema, pointer)
        format_ = re.match(r"format `(.*)` is checked locally only", what, re.DOTALL)
        if format_ is not None and format_[1] not in validator.FORMATS:
            continue
        named = re.match(r"`(\w+)` is checked locally only", what)
        if named is not None:
            place = (*place, named[1])
            # In nearly every schema, and harmless: the service is told which properties there are.
            if named[1] == "additionalProperties" and _value(spec.output_schema, place) is False:
                continue
        first.setdefault(what, place)
        count[what] = count.get(what, 0) + 1
    for what, place in first.items():
        more = f", here and in {count[what] - 1} more place(s)" if count[what] > 1 else ""
        message = f"the service does not enforce a part of the schema: {what}{more}"
        hint = "answers that break it come back as `invalid`"
        yield _in_schema(spec, place, "GB910", message, hint, key=True)


def _pointer(schema: Json, pointer: str) -> Place:
    """The steps of a JSON pointer as far as they lead; a pointer may go through a `$ref`."""
    place: list[str | int] = []
    for name in pointer.split("/")[1:]:
        step: str | int = int(name) if isinstance(schema, (list, tuple)) and name.isdigit() else name
        try:
            schema = schema[step]
        except (KeyError, IndexError, TypeError):
            break
        place.append(step)
    return tuple(place)


def _value(schema: Json, place: Place) -> Json:
    for step in place:
        try:
            schema = schema[step]
        except (KeyError, IndexError, TypeError):
            return None
    return schema


def _formats(spec: Spec) -> Iterator[Diagnostic]:
    known = validator.FORMATS.union(*response_schema.FORMATS.values())
    for place, keyword, value in outputschema.keywords(spec.output_schema):
        if keyword != "format" or (place and place[-1] in outputschema.MAPS) or value in known:
            continue
        message = f'format "{value}" is unknown: nobody checks it'
        hint = suggest(value, validator.FORMATS) or "say it with `pattern`, or leave it out"
        yield _in_schema(spec, (*place, "format"), "GB915", message, hint)


def _in_schema(
    spec: Spec, place: Place, code: str, message: str, hint: str, *, key: bool = False
) -> Diagnostic:
    """A warning about a part of the schema; in words where that part was not written, as in a model's."""
    if spec.origin is not None and ("output_schema", *place[:1]) not in spec.origin.marks:
        message += f", at {''.join(f'/{step}' for step in place)} of the model's schema"
    return _at(spec, ("output_schema", *place), code, message, hint, key=key)


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
            yield _at(spec, place, "GB919", f'column "{name}" has no values: {message}', hint)


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
        yield _at(spec, ("prompt",), "GB909", message, hint, key=True)
    for name in spec.variables:
        if name not in used:
            place = ("variables", name)
            yield _at(spec, place, "GB908", f'variable "{name}" is used nowhere', "remove it", key=True)


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
        if (name := _field(node, "var")) is not None
    ]
    return set(read) if len(read) == len(owners) else set(spec.variables)


def _field(node: nodes.Node, owner: str) -> str | None:
    """`x` for `owner.x` and `owner["x"]`, None for anything else."""
    from jinja2 import nodes

    if not isinstance(node, (nodes.Getattr, nodes.Getitem)):
        return None
    if not isinstance(node.node, nodes.Name) or node.node.name != owner:
        return None
    if isinstance(node, nodes.Getattr):
        return node.attr
    return str(node.arg.value) if isinstance(node.arg, nodes.Const) else None


def _unknown_names(spec: Spec, key: Place, template: Template, tree: nodes.Template) -> Iterator[Diagnostic]:
    from jinja2 import nodes

    known: dict[str, tuple[str, ...]] = {"var": tuple(spec.variables)}
    if not _tables(spec):
        known["input"] = FILE_FIELDS
    own = {node.name for node in tree.find_all(nodes.Name) if node.ctx != "load"}
    own |= {macro.name for macro in tree.find_all(nodes.Macro)}
    for node in tree.find_all((nodes.Getattr, nodes.Getitem)):
        for owner, fields in known.items():
            name = _field(node, owner)
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
