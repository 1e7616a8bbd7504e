"""The files that make one spec: the parent it extends, its own values, the chosen environment.

Mappings merge key by key, everything else replaces; every value keeps the place it was written at,
whichever file that was. Reads files, changes nothing.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from runner.errors import Diagnostic, SpecInvalid
from runner.marks import Place, locate
from runner.shape import suggest
from runner.tree import Tree
from runner.yamlfile import Document, read

MAX_PARENTS = 10
_FIXED = frozenset({"version", "name", "variables", "environments", "extends", "allow_outside"})
"""What an environment cannot set; `variables` in it are values, not declarations."""


def stack(path: Path) -> Tree:
    """The spec in `path` over the specs it extends.

    What is wrong with a parent is among the tree's problems.

    Raises:
        SpecInvalid: the file itself cannot be read as a mapping.
    """
    child = read(path, path.as_posix())
    if child.value is None:
        raise SpecInvalid(child.problems)
    found: list[Diagnostic] = list(child.problems)
    documents = [child]
    seen = {os.path.realpath(path)}
    allowed = child.value.get("allow_outside") is True
    while (parent := _parent(documents[-1], path, seen, allowed, found)) is not None:
        documents.append(parent)
    root = documents.pop()
    tree = Tree(root.value, dict(root.marks))
    for document in reversed(documents):
        tree.override((), document.value, document.marks, ())
    for problem in found:
        tree.add(("extends",), problem)
    # The last of the chain names no parent, unless that parent could not be read.
    tree.partial = "extends" in root.value
    return tree


def _parent(
    document: Document, main: Path, seen: set[str], allowed: bool, found: list[Diagnostic]
) -> Document | None:
    written = document.value.get("extends")
    if not isinstance(written, str):
        return None
    place: Place = ("extends",)

    def refuse(message: str, hint: str = "") -> None:
        found.append(locate(document.marks, place, code="GB407", message=message, hint=hint))

    path = main.parent / written
    real, root = os.path.realpath(path), os.path.realpath(main.parent)
    if "\0" in written or "${" in written:
        refuse(f'"{written}" cannot be a path', "`extends` takes no variables: it is read before them")
    elif not allowed and not real.startswith(root.rstrip(os.sep) + os.sep):
        message = f'"{written}" leads out of the folder of the spec'
        hint = "move it inside, or set `allow_outside: true`"
        found.append(locate(document.marks, place, code="GB202", message=message, hint=hint))
    elif real in seen:
        refuse(f'"{written}" extends itself, directly or through others', "remove one `extends`")
    elif len(seen) > MAX_PARENTS:
        refuse(f"more than {MAX_PARENTS} specs build on each other")
    else:
        seen.add(real)
        parent = read(path, Path(os.path.normpath(path)).as_posix())
        if parent.problems and not parent.source.lines:
            refuse(parent.problems[0].message)
        else:
            found.extend(parent.problems)
        if parent.value is not None:
            return parent
    return None


def choose(tree: Tree, env: str) -> Mapping[str, object]:
    """Put the overrides of environment `env` over the spec; the variables it sets come back."""
    environments = tree.get("environments")
    known = environments if isinstance(environments, dict) else {}
    if env not in known:
        hint = suggest(env, known)
        names = f"the spec has {', '.join(known)}" if known else "the spec has no `environments`"
        message = f'unknown environment "{env}"'
        tree.add((), Diagnostic(code="GB404", message=message, path="--env", hint=hint or names))
        return {}
    overrides = known[env]
    if not isinstance(overrides, dict):
        return {}
    marks = dict(tree.marks)
    for key, value in overrides.items():
        if key not in _FIXED:
            tree.override((key,), value, marks, ("environments", env, key))
    values = overrides.get("variables")
    return values if isinstance(values, dict) else {}
