"""Where the records go: the `destination` of a spec, checked against its inputs and against itself."""

from __future__ import annotations

import importlib.util
import os
import posixpath
import unicodedata
from collections.abc import Iterator, Mapping, Sequence

from runner import bigqueryspec, bqtable, columns, gcsuri, globs
from runner.marks import Place
from runner.recordtypes import KEY
from runner.shape import not_built
from runner.specmodel import BigQuerySource, Column, Destination, FilesSource, Source, Spec
from runner.specpaths import SpecPaths
from runner.tree import Tree

SUFFIXES = (".jsonl", ".csv", ".parquet", ".sqlite")
MAX_SQLITE_COLUMNS = 2000
"""Source: SQLITE_MAX_COLUMN in https://www.sqlite.org/limits.html"""


def read(tree: Tree, paths: SpecPaths, inputs: Sequence[Source]) -> tuple[Destination, ...]:
    """The destinations, in the order of the spec; problems go to the tree."""
    if not tree.sound("destination"):
        return ()
    found = [_one(tree, place) for place in _places(tree)]
    written: dict[str, str] = {}
    for number, (place, destination) in enumerate(found):
        if not _is_usable(tree, paths, place, destination):
            continue
        files = [destination.path, destination.errors_path] if number == 0 else [destination.path]
        _not_among_inputs(tree, place, files, inputs)
        for name in files:
            real = name
            if destination.is_file:
                real = os.path.realpath(os.path.join(paths.folder, unicodedata.normalize("NFC", name)))
            if real in written:
                message = f'"{destination.path}" would be written twice: it is also {written[real]}'
                tree.problem(place, "GB206", message, "give each destination a path of its own")
            what = "where failures go" if name != destination.path else "another destination"
            written.setdefault(real, what)
    return tuple(destination for _, destination in found)


def check_tables(tree: Tree, spec: Spec) -> None:
    """Report columns that a table cannot have, whether the spec names them or its output schema does."""
    for place, destination in zip(_places(tree), spec.destinations, strict=True):
        if destination.suffix == ".jsonl":
            continue
        nested = destination.is_table or destination.suffix == ".parquet"
        names = columns.layout(spec, destination, nested=nested).names
        message = _unusable(names, destination)
        if message:
            hint = "choose what is written, and under which names, with `columns`"
            tree.problem(place, "GB206", message, hint)


def _unusable(names: Sequence[str], destination: Destination) -> str:
    for name in names:
        if "\0" in name or (not name.isascii() and any("\ud800" <= char <= "\udfff" for char in name)):
            return f"a column of a table cannot be called {name!a}"
    if destination.is_table:
        return bqtable.unusable_columns(names)
    if destination.suffix != ".sqlite":
        return ""
    if len(names) > MAX_SQLITE_COLUMNS:
        return f"SQLite takes at most {MAX_SQLITE_COLUMNS:,} columns; these are {len(names):,}"
    seen: dict[str, str] = {}
    for name in names:
        # SQLite folds the letters of ASCII alone.
        folded = name.encode().lower().decode()
        if folded in seen:
            return f'SQLite cannot tell the columns "{seen[folded]}" and "{name}" apart'
        seen[folded] = name
    return ""


def _places(tree: Tree) -> list[Place]:
    value = tree.get("destination")
    return [("destination", i) for i in range(len(value))] if isinstance(value, list) else [("destination",)]


def _one(tree: Tree, place: Place) -> tuple[Place, Destination]:
    """One destination, and the place of its path."""
    value = tree.get(*place)
    if isinstance(value, str):
        return place, Destination(path=value)
    chosen = tuple(_columns(tree, (*place, "columns"))) if "columns" in value else ()
    include = tuple(value.get("include", ()))
    return (*place, "path"), Destination(path=value["path"], include=include, columns=chosen)


def _columns(tree: Tree, place: Place) -> Iterator[Column]:
    value = tree.get(*place)
    if not isinstance(value, Mapping):
        for at, name in enumerate(value):
            if name.startswith("$"):
                message = f'a list of columns names fields of the record; "{name}" is a path'
                hint = f"write a mapping, such as {{{_last_name(name)}: {name}}}"
                tree.problem((*place, at), "GB106", message, hint)
            yield Column(name=name, path=columns.field_path(name))
        return
    for name, path in value.items():
        try:
            steps = columns.compiled(path).steps
        except columns.BadPath as error:
            hint = f"for the field of that name: $.{path}" if path.isidentifier() else ""
            message = f'column "{name}" must be a JSONPath (RFC 9535); "{path}" is none: {error}'
            tree.problem((*place, name), "GB106", message, hint or "for example $.address.city")
            continue
        if name == KEY and steps != (KEY,):
            message = 'the column "_key" holds the key of the row, and nothing else'
            tree.problem((*place, name), "GB106", message, "give the column another name", key=True)
        yield Column(name=name, path=path)


def _last_name(path: str) -> str:
    name = path.rpartition(".")[2]
    return name if name.isidentifier() else "name"


def _is_usable(tree: Tree, paths: SpecPaths, place: Place, destination: Destination) -> bool:
    path = destination.path
    if destination.is_table:
        return bigqueryspec.is_usable(tree, place, path)
    if "://" in path and not destination.is_object:
        tree.problem(place, "GB107", *not_built(f'a destination like "{path}"'))
        return False
    if posixpath.splitext(path)[1] not in SUFFIXES:
        message = (
            f"a destination must be a path that ends in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}"
            " (also under gs://), or bq://project.dataset.table;"
            f' it is "{path}"'
        )
        tree.problem(place, "GB206", message)
        return False
    if not (_is_object(tree, place, path) if destination.is_object else paths.inside(place, path)):
        return False
    if destination.suffix == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        message = f'"{path}" cannot be written: Parquet needs pyarrow, which is not installed'
        tree.problem(place, "GB206", message, "pip install 'gbrun[parquet]'")
    return True


def _is_object(tree: Tree, place: Place, path: str) -> bool:
    try:
        gcsuri.parse_object(path)
    except ValueError as error:
        tree.problem(place, "GB106", f'"{path}" {error}', "write gs://bucket/folder/name")
        return False
    return True


def _not_among_inputs(tree: Tree, place: Place, files: Sequence[str], inputs: Sequence[Source]) -> None:
    if not tree.sound("inputs"):
        return
    for name in files:
        if any(
            isinstance(source, BigQuerySource) and name == bqtable.SCHEME + source.table for source in inputs
        ):
            tree.problem(place, "GB203", f'"{name}" is read as input too', "write to another table")
            return
        if name.startswith((bqtable.SCHEME, gcsuri.SCHEME)):
            continue
        key = unicodedata.normalize("NFC", posixpath.normpath(name))
        for source in inputs:
            if not isinstance(source, FilesSource):
                continue
            excluded = any(globs.matches(pattern, key) for pattern in source.exclude)
            if globs.matches(source.glob, key) and not excluded:
                message = f'"{key}" would be written among the inputs: "{source.glob}" matches it'
                tree.problem(place, "GB203", message, "write to another folder, or exclude it")
                return
