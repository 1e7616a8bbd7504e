"""What a spec says of BigQuery: rows of a table or a query, and tables that records go to."""

from __future__ import annotations

import importlib.util

from runner import bqtable, templates
from runner.marks import Place
from runner.specmodel import BigQuerySource
from runner.specpaths import SpecPaths
from runner.tree import Tree

INSTALL = "pip install 'gbrun[bigquery]'"


def source(tree: Tree, paths: SpecPaths, place: Place) -> BigQuerySource | None:
    """The source at a place; None after reporting what is wrong with it."""
    at: Place = (*place, "bigquery")
    value = tree.get(*at)
    if "table" in value and "query" in value:
        message = '"bigquery" reads a table or a query, not both'
        tree.problem((*at, "query"), "GB108", message, "remove one of the two", key=True)
    elif "table" not in value and "query" not in value:
        message = 'required key "table" is missing in "bigquery"'
        tree.problem(at, "GB101", message, "write table: project.dataset.table, or query: SELECT ...")
    if "table" in value:
        _table(tree, (*at, "table"), value["table"])
    if not is_installed():
        message = "BigQuery needs the package google-cloud-bigquery, which is not installed"
        tree.problem(at, "GB110", message, INSTALL, key=True)
    template = templates.read(tree, paths, *place, "id")
    if template is None or not tree.sound(*at):
        return None
    return BigQuerySource(
        id=template,
        table=value.get("table", ""),
        query=value.get("query", ""),
        project=value.get("project"),
        on_bad_row=tree.get(*place, "on_bad_row") or "fail",
    )


def is_usable(tree: Tree, place: Place, path: str) -> bool:
    """Whether records can go to a table; False after reporting why not."""
    if not is_installed():
        message = f'"{path}" cannot be written: it needs google-cloud-bigquery, which is not installed'
        tree.problem(place, "GB206", message, INSTALL)
        return False
    return _table(tree, place, path, bqtable.SCHEME)


def is_installed() -> bool:
    """Whether the library is there; it is not loaded."""
    return importlib.util.find_spec("google.cloud.bigquery") is not None


def _table(tree: Tree, place: Place, text: str, scheme: str = "") -> bool:
    try:
        if not scheme and text.startswith(bqtable.SCHEME):
            raise ValueError(f"begins with {bqtable.SCHEME}, which only a destination does")
        bqtable.parse(text)
    except ValueError as error:
        tree.problem(place, "GB106", f'"{text}" {error}', f"write {scheme}project.dataset.table")
        return False
    return True
