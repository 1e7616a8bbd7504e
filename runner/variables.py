"""Typed variables of a spec, and `${var.NAME}` and `${env}` in its text. Pure.

Precedence, lowest first: default, the environment's values, `GBRUN_VAR_NAME`, `--var-file`, `--var`.
Templates are left alone: there a variable is `{{ var.NAME }}`, known only when a row is rendered.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import msgspec
import orjson

from runner.errors import Diagnostic
from runner.marks import Mark, Place, locate, nearest
from runner.model import Json
from runner.shape import shown, suggest
from runner.specmodel import DEFAULT_ENV, Values
from runner.tree import Tree
from runner.yamlfile import Document

PREFIX = "GBRUN_VAR_"

_UNSET = object()
_NUMBER = r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?\Z"
_INTEGER = r"-?(?:0|[1-9][0-9]*)\Z"
_SURROGATE = "[\ud800-\udfff]"
_REFERENCE = re.compile(r"\$\$\{|\$\{([^{}]*)\}|\$\{")
_TEMPLATES = ("prompt", "system_instruction")
_NOT_FILLED = ("version", "variables", "environments", "extends")
_SECRET_PLACES = ("extra_body", "tools", "tool_config", "cached_content")
"""Keys that are sent but never shown; everything else of a spec stands in plans, paths and names."""
_WORDS = {
    "string": "text",
    "number": "a number",
    "integer": "a whole number",
    "boolean": "true or false",
    "list": "a list",
}


class _Variable(msgspec.Struct, frozen=True):
    name: str
    type: str
    default: Any
    sensitive: bool


def resolve(
    tree: Tree,
    *,
    env: str | None,
    chosen: Mapping[str, Any],
    environ: Mapping[str, str],
    files: Iterable[Document],
    given: Mapping[str, Json],
) -> Values:
    """The value of every declared variable; what has none, or an unfit one, is reported.

    `chosen` holds the values that environment `env` sets, `files` the variable files and `given`
    those of the command line, whose texts are converted to the declared types. An environment
    variable of the shell that no spec declares is none of ours: other specs may want it.
    """
    written = tree.get("variables")
    raws = written if isinstance(written, dict) else {}
    declared = {
        name: variable for name, raw in raws.items() if (variable := _declared(tree, name, raw)) is not None
    }
    # An unfit default is reported already; keeping it spares a second report, that there is no value.
    values = {name: v.default for name, v in declared.items() if v.default is not _UNSET}
    reader = _Reader(tree, declared, values, frozenset(raws))
    for name, default in values.items():
        reader.keep_secret(name, default, nearest(tree.marks, ("variables", name, "default")))
    for name, value in chosen.items():
        reader.take(name, value, ("environments", str(env), "variables", name))
    for name in declared:
        if PREFIX + name in environ:
            reader.take_text(name, environ[PREFIX + name], PREFIX + name)
    for document in files:
        for problem in document.problems:
            # A broken file does not tell which of its lines holds a secret.
            tree.add((), replace(problem, snippet="") if reader.has_secrets() else problem)
        for name, value in (document.value or {}).items():
            reader.take(name, value, (name,), document)
    for name, value in given.items():
        if isinstance(value, str):
            reader.take_text(name, value, f"--var {name}")
        else:
            reader.take(name, value, (), shown_as=f"--var {name}")
    for name in declared:
        if name not in values and name not in reader.failed:
            hint = f"give it a default, or set it with --var {name}=... or {PREFIX}{name}"
            tree.problem(("variables", name), "GB402", f'variable "{name}" has no value', hint, key=True)
    sensitive = frozenset(name for name, variable in declared.items() if variable.sensitive)
    return Values(
        values,
        frozenset(raws),
        sensitive,
        frozenset(reader.secrets),
        frozenset(reader.secret_lines),
    )


def _declared(tree: Tree, name: str, raw: Json) -> _Variable | None:
    """The declaration; None where its shape is wrong, which is reported elsewhere."""
    if not isinstance(raw, Mapping):
        return None if raw is None else _Variable(name, _type_of(raw), raw, False)
    default = raw.get("default", _UNSET)
    kind = raw.get("type", "string" if default is _UNSET else _type_of(default))
    if not isinstance(kind, str) or kind not in _WORDS:
        return None
    sensitive = raw.get("sensitive") is True
    variable = _Variable(name, kind, default, sensitive)
    if sensitive and kind != "string":
        message = f'a sensitive variable must be of type string; "{name}" is of type {kind}'
        tree.problem(("variables", name, "sensitive"), "GB406", message, "write the value as text")
    if default is not _UNSET and not _fits(kind, default):
        message = f'default of "{name}" must be {_WORDS[kind]}, not {_described(default, sensitive)}'
        tree.problem(("variables", name, "default"), "GB403", message)
    return variable


class _Reader:
    """Takes values from one source after the other; a later one wins."""

    def __init__(
        self,
        tree: Tree,
        declared: Mapping[str, _Variable],
        values: dict[str, Json],
        names: frozenset[str],
    ) -> None:
        """`names` are those of all declarations, also of the ones whose shape is wrong."""
        self.tree = tree
        self.names = names
        self.declared = declared
        self.values = values
        self.failed: set[str] = set()
        self.secrets: set[str] = set()
        self.secret_lines: set[tuple[str, int]] = set()

    def has_secrets(self) -> bool:
        """Whether any declared variable is sensitive."""
        return any(variable.sensitive for variable in self.declared.values())

    def keep_secret(self, name: str, value: Json, mark: Mark | None) -> None:
        """Remember what a source gave for a sensitive variable, to keep it out of messages."""
        variable = self.declared.get(name)
        if variable is None or not variable.sensitive:
            return
        for text in _texts(value):
            self.secrets.update({text, *(line.strip() for line in text.splitlines())} - {""})
        if mark is not None:
            self.secret_lines.add((mark.source.path, mark.line))

    def take(
        self, name: str, value: Json, place: Place, document: Document | None = None, shown_as: str = ""
    ) -> None:
        """A value with a type of its own, from a file or a caller."""

        def refuse(code: str, message: str, hint: str = "") -> None:
            found = locate(marks, place, code=code, message=message, hint=hint, key=code == "GB401")
            if shown_as:
                found = Diagnostic(code=code, message=message, path=shown_as, hint=hint)
            self.tree.add(() if document is not None or shown_as else place, found)

        variable = self.declared.get(name)
        marks = document.marks if document is not None else self.tree.marks
        self.keep_secret(name, value, None if shown_as else nearest(marks, place))
        if variable is None:
            if name not in self.names:
                mark = nearest(marks, place)
                if mark is not None and not shown_as and self.has_secrets():
                    # It may be a sensitive variable's name with a slip in it.
                    self.secret_lines.add((mark.source.path, mark.line))
                refuse("GB401", *_unknown(name, self.declared))
        elif not _fits(variable.type, value):
            self.failed.add(name)
            what = _described(value, variable.sensitive)
            refuse("GB403", f'variable "{name}" must be {_WORDS[variable.type]}, not {what}')
        else:
            self.values[name] = value

    def take_text(self, name: str, text: str, shown_as: str) -> None:
        """A value from the command line or the shell, converted to the declared type."""
        variable = self.declared.get(name)
        if variable is None:
            self.take(name, text, (), shown_as=shown_as)
            return
        self.keep_secret(name, text, None)
        value = _converted(variable.type, text)
        if value is _UNSET:
            self.failed.add(name)
            what = _described(text, variable.sensitive)
            message = f'variable "{name}" must be {_WORDS[variable.type]}, not {what}'
            self.tree.add((), Diagnostic(code="GB403", message=message, path=shown_as))
        else:
            self.values[name] = value


def _unknown(name: str, declared: Iterable[str]) -> tuple[str, str]:
    known = list(declared)
    names = f"the spec declares {', '.join(known)}" if known else "the spec declares no variables"
    return f'unknown variable "{name}"', suggest(name, known) or names


def _texts(value: Json) -> list[str]:
    """Every text and number in a value, as text."""
    if isinstance(value, Mapping):
        return [text for item in value.values() for text in _texts(item)]
    if isinstance(value, list):
        return [text for item in value for text in _texts(item)]
    return [value if isinstance(value, str) else orjson.dumps(value).decode()]


def _type_of(value: Json) -> str:
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, (int, float)):
        return "number"
    return "list" if isinstance(value, list) else "string"


def _fits(kind: str, value: Json) -> bool:
    if kind == "list":
        return isinstance(value, list) and all(isinstance(item, (str, int, float)) for item in value)
    if kind == "integer":
        return isinstance(value, int) and not isinstance(value, bool)
    if kind == "number":
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return isinstance(value, bool if kind == "boolean" else str)


def _converted(kind: str, text: str) -> Any:
    """The text as a value of the type, or _UNSET."""
    # Bytes of the shell that are no UTF-8 arrive as half surrogates, which no request can hold.
    if re.search(_SURROGATE, text):
        return _UNSET
    if kind == "string":
        return text
    if kind == "list":
        if not text.startswith("["):
            return [part.strip() for part in text.split(",")] if text.strip() else []
        try:
            value = orjson.loads(text)
        except ValueError:
            return _UNSET
        return value if _fits("list", value) else _UNSET
    if kind == "boolean":
        return {"true": True, "false": False}.get(text, _UNSET)
    if re.match(_INTEGER if kind == "integer" else _NUMBER, text) is None or len(text) > 40:
        return _UNSET
    value = int(text) if re.match(_INTEGER, text) else float(text)
    fits = abs(value) < 1 << 63 if isinstance(value, int) else abs(value) != float("inf")
    return value if fits else _UNSET


def _described(value: Json, sensitive: bool) -> str:
    return "the (sensitive) value given" if sensitive else shown(value)


# ------------------------------------------------------------------- ${...}


def fill(tree: Tree, variables: Values, env: str | None) -> None:
    """Replace `${var.NAME}` and `${env}` in every text of the spec but its templates.

    A text that is one reference becomes the variable's value, with its type; `$${` is a literal `${`.
    """
    for key, value in list(tree.value.items()):
        if key in _NOT_FILLED or (key in _TEMPLATES and isinstance(value, str)):
            continue
        tree.value[key] = _filled(tree, (key,), value, variables, env)


def _filled(tree: Tree, place: Place, value: Json, variables: Values, env: str | None) -> Json:
    if isinstance(value, dict):
        return {key: _filled(tree, (*place, key), item, variables, env) for key, item in value.items()}
    if isinstance(value, list):
        return [_filled(tree, (*place, i), item, variables, env) for i, item in enumerate(value)]
    if not isinstance(value, str) or "${" not in value:
        return value
    whole = _REFERENCE.fullmatch(value)
    if whole is not None and whole[1] is not None:
        found = _lookup(tree, place, whole[1].strip(), variables, env)
        return value if found is _UNSET else found
    parts, end, complete = [], 0, True
    for match in _REFERENCE.finditer(value):
        parts.append(value[end : match.start()])
        end = match.end()
        if match[0] == "$${":
            parts.append("${")
            continue
        found = _lookup(tree, place, None if match[1] is None else match[1].strip(), variables, env)
        if isinstance(found, list):
            message = f'a list cannot stand inside a text: "{match[0]}"'
            tree.problem(place, "GB403", message, "make it the whole value")
            found = _UNSET
        complete = complete and found is not _UNSET
        parts.append(
            found if isinstance(found, str) else "" if found is _UNSET else orjson.dumps(found).decode()
        )
    return "".join([*parts, value[end:]]) if complete else value


def _lookup(tree: Tree, place: Place, name: str | None, variables: Values, env: str | None) -> Any:
    """What a reference stands for; _UNSET after reporting that it stands for nothing."""
    if name == "env":
        return env or DEFAULT_ENV
    if name is None or not name.startswith("var."):
        message = '"${" without its "}"' if name is None else f'"${{{name}}}" is no reference'
        tree.problem(place, "GB405", message, "write ${var.NAME} or ${env}; $${ stands for a literal ${")
        tree.unfilled.add(place)
        return _UNSET
    variable = name.removeprefix("var.")
    tree.used.add(variable)
    if variable in variables.sensitive and place[0] not in _SECRET_PLACES:
        message = (
            f'the sensitive variable "{variable}" cannot be used in "{place[0]}", which is shown and stored'
        )
        tree.problem(place, "GB406", message, f"use it in a template or in {', '.join(_SECRET_PLACES)}")
        return _UNSET
    if variable in variables.values:
        return variables.values[variable]
    if variable not in variables.declared:
        tree.problem(place, "GB401", *_unknown(variable, sorted(variables.declared)))
    tree.unfilled.add(place)
    return _UNSET


# ------------------------------------------------------------------- secrets


def redact(diagnostic: Diagnostic, known: Values) -> Diagnostic:
    """The diagnostic without any sensitive value in it."""
    if (diagnostic.path, diagnostic.line) in known.secret_lines:
        diagnostic = replace(diagnostic, snippet="")
    # Longest first: one secret may be a part of another.
    for secret in sorted(known.secrets, key=lambda text: (-len(text), text)):
        if secret in diagnostic.snippet:
            diagnostic = replace(diagnostic, snippet="")
        diagnostic = replace(
            diagnostic,
            message=diagnostic.message.replace(secret, "(sensitive)"),
            hint=diagnostic.hint.replace(secret, "(sensitive)"),
        )
    return diagnostic
