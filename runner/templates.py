"""The templates of a spec: their text, the place it was written at, and whether it is a template."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from runner import plaintemplate
from runner.errors import Diagnostic
from runner.marks import Mark, Place, Source, where
from runner.specmodel import Template
from runner.specpaths import SpecPaths
from runner.tree import Tree

if TYPE_CHECKING:
    from jinja2 import nodes


def read(tree: Tree, paths: SpecPaths, *place: str | int) -> Template | None:
    """The template at a place, from the spec or from its own file.

    None where there is none, or after reporting that it cannot be read. A folded or quoted text of
    several lines has its first line's place, and no better one for the others.
    """
    if not tree.sound(*place):
        return None
    value = tree.get(*place)
    if isinstance(value, str):
        mark = tree.marks[place]
        line, column = _text_start(mark, value)
        path = paths.relative(os.path.abspath(mark.source.path))
        template = Template(text=value, path=path, line=line, column=column)
        _parse(tree, place, template, mark.source)
        return template
    found = paths.text((*place, "file"), value["file"])
    if found is None:
        return None
    text, source = found
    tree.marks[(*place, "text")] = Mark(source=source, line=1, column=1, length=len(source.lines[0]))
    template = Template(text=text, path=paths.relative(os.path.join(paths.folder, value["file"])), line=1)
    _parse(tree, (*place, "file"), template, source)
    return template


def check_sensitive(tree: Tree, place: Place, template: Template | None, sensitive: frozenset[str]) -> None:
    """Report where a template does more with a sensitive variable than print it.

    A row is rendered with a mark in the place of each, so that a filter would change the mark and a
    comparison would ask about it.
    """
    if template is None or not sensitive or not tree.sound(*place):
        return
    import jinja2

    source = tree.marks[(*place, "text") if (*place, "text") in tree.marks else place].source
    for line, name in _bent(jinja2.Environment().parse(template.text), sensitive, outputs=True):
        if name:
            message = f'the sensitive variable "{name}" can only be printed as it is'
            hint = f"write {{{{ var.{name} }}}}, without filters, tests or calls"
        else:
            message = "`var` is used as a whole, and the spec has sensitive variables"
            hint = "write each variable as var.NAME"
        found = locate(template, source, line, code="GB406", message=message, where=where(place), hint=hint)
        tree.add(place, found)


def _bent(
    node: nodes.Node, sensitive: frozenset[str], *, outputs: bool, printed: bool = False
) -> Iterator[tuple[int, str]]:
    """(line, name) of each use that is not a plain `{{ var.NAME }}`; the name is empty for `var` alone.

    `outputs` says whether what is printed here goes out as it is, `printed` whether the node does.
    """
    from jinja2 import nodes

    name = field(node, "var")
    if name is not None:
        if name in sensitive and not printed:
            yield node.lineno, name
        return
    if isinstance(node, nodes.Name) and node.name == "var" and node.ctx == "load":
        yield node.lineno, ""
    # The output of these is kept, and may be filtered before it goes out.
    kept = (nodes.FilterBlock, nodes.AssignBlock, nodes.Macro, nodes.CallBlock, nodes.Block)
    if isinstance(node, kept) or (isinstance(node, nodes.For) and node.recursive):
        outputs = False
    printed = (isinstance(node, nodes.Output) and outputs) or (isinstance(node, nodes.Concat) and printed)
    for child in node.iter_child_nodes():
        yield from _bent(child, sensitive, outputs=outputs, printed=printed)


def field(node: nodes.Node, owner: str) -> str | None:
    """`x` for `owner.x` and `owner["x"]` in a template, None for anything else."""
    from jinja2 import nodes

    if not isinstance(node, (nodes.Getattr, nodes.Getitem)):
        return None
    if not isinstance(node.node, nodes.Name) or node.node.name != owner:
        return None
    if isinstance(node, nodes.Getattr):
        return node.attr
    return str(node.arg.value) if isinstance(node.arg, nodes.Const) else None


def locate(template: Template, source: Source, line: int, **rest: Any) -> Diagnostic:
    """A diagnostic at a line of a template, 1-based within its text; the whole line is underlined."""
    at = template.line + max(line, 1) - 1
    snippet = source.lines[at - 1] if at <= len(source.lines) else ""
    return Diagnostic(
        path=source.path,
        line=at,
        column=len(snippet) - len(snippet.lstrip()) + 1,
        length=max(1, len(snippet.strip())),
        snippet=snippet,
        **rest,
    )


def _parse(tree: Tree, place: Place, template: Template, source: Source) -> None:
    if plaintemplate.parsed(template.text) is not None:
        return
    # Jinja takes 60 ms to import, and neither --help nor a simple template needs any of it.
    import jinja2
    from jinja2 import nodes

    from runner.sandbox import CompiledTemplate, TemplateFailed

    inside = where(tuple(step for step in place if step != "file"))
    try:
        CompiledTemplate(template.text)
    except TemplateFailed as failed:
        message = f"template: {failed.message}"
        tree.add(place, locate(template, source, failed.line, code="GB301", message=message, where=inside))
        return
    others = (nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends)
    for node in jinja2.Environment().parse(template.text).find_all(others):
        tag = {"FromImport": "from ... import"}.get(type(node).__name__, type(node).__name__.lower())
        message = f"template: `{tag}` reads another template"
        hint = "templates read no files: write the text here, or pass it as a variable"
        found = locate(template, source, node.lineno, code="GB302", message=message, where=inside, hint=hint)
        tree.add(place, found)


def _text_start(mark: Mark, text: str) -> tuple[int, int]:
    """Line and column at which the first line of a text value stands."""
    if mark.style not in ("|", ">"):
        return mark.line, mark.column + (1 if mark.style else 0)
    lines = mark.source.lines
    for number, line in enumerate(text.split("\n")):
        at = mark.line + number
        if line.strip() and at < len(lines):
            written = len(lines[at]) - len(lines[at].lstrip(" "))
            return mark.line + 1, written - (len(line) - len(line.lstrip(" "))) + 1
    return mark.line + 1, 1
