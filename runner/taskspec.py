"""What a spec asks for per row beside its prompt: how many answers, vectors instead of answers, and
what is done about failures.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping

from runner import modelfacts, templates
from runner.model import Json
from runner.specmodel import Failures, Samples, Template
from runner.specpaths import SpecPaths
from runner.tree import Tree

_OF_ANSWERS = (
    "system_instruction",
    "generation_config",
    "safety_settings",
    "tools",
    "tool_config",
    "cached_content",
    "output_schema",
    "samples",
)
"""Keys that mean nothing where vectors are asked for."""
_GBRUNS_OWN = ("title", "normalize")


def samples(tree: Tree) -> Samples:
    """How many answers per row, and what becomes of them."""
    value = tree.get("samples") if tree.sound("samples") else None
    if value is None:
        return Samples()
    if isinstance(value, int):
        return Samples(count=value)
    found = Samples(**value)
    if found.needed > found.count:
        message = f'"min_ok" must be at most count, which is {found.count}; it is {found.needed}'
        tree.problem(("samples", "min_ok"), "GB105", message)
    if found.aggregate == "mean" and tree.get("output_schema") is None:
        message = '"mean" is of numbers, and without an output_schema answers are text'
        tree.problem(("samples", "aggregate"), "GB108", message, "add an output_schema, or choose majority")
    return found


def failures(tree: Tree) -> Failures:
    """Which failures are sent again, how, and how many are accepted."""
    if not tree.sound("failures"):
        return Failures()
    value = dict(tree.get("failures"))
    if "retry" in value:
        value["retry"] = tuple(sorted(set(value["retry"])))
    for outcome, settings in value.get("remedies", {}).items():
        _factor(tree, outcome, settings)
    if value.get("repair") and importlib.util.find_spec("json_repair") is None:
        message = "repairing answers needs the package json-repair, which is not installed"
        tree.problem(("failures", "repair"), "GB110", message, "pip install 'gbrun[repair]'")
    return Failures(**value)


def _factor(tree: Tree, outcome: str, settings: Mapping[str, Json]) -> None:
    tokens = settings.get("max_output_tokens")
    if not isinstance(tokens, str):
        return
    place = ("failures", "remedies", outcome, "max_output_tokens")
    if float(tokens[1:]) <= 1:
        tree.problem(place, "GB105", f'a factor must be above 1; it is "{tokens}"', "for example x2")
    elif tree.get("generation_config", "max_output_tokens") is None:
        message = f'"{tokens}" is a multiple of generation_config.max_output_tokens, which is not set'
        tree.problem(place, "GB101", message, "set it, or write a number of tokens here")


def check_task(tree: Tree) -> None:
    """Report keys that do not go with the spec's task."""
    if tree.get("task") != "embed_content":
        if tree.get("embed_content_config") is not None:
            message = '"embed_content_config" goes with task: embed_content'
            hint = "add `task: embed_content`, or remove it"
            tree.problem(("embed_content_config",), "GB108", message, hint, key=True)
        return
    for key in _OF_ANSWERS:
        if tree.get(key) is not None:
            message = f'"{key}" does not go with task: embed_content'
            tree.problem((key,), "GB108", message, "remove it", key=True)
    config = tree.get("embed_content_config") or {}
    if "title" in config and config.get("task_type") != "RETRIEVAL_DOCUMENT":
        message = '"title" goes with task_type: RETRIEVAL_DOCUMENT'
        tree.problem(("embed_content_config", "title"), "GB108", message, "remove it", key=True)


def title(tree: Tree, paths: SpecPaths) -> Template | None:
    """The template of the title of a document to embed."""
    return templates.read(tree, paths, "embed_content_config", "title")


def embedding(tree: Tree) -> tuple[Mapping[str, Json], bool]:
    """The settings that are sent, and whether vectors are scaled to length 1."""
    config = (tree.get("embed_content_config") or {}) if tree.sound("embed_content_config") else {}
    sent = {key: value for key, value in config.items() if key not in _GBRUNS_OWN}
    return sent, config.get("normalize") is True


def dimensions(tree: Tree, config: Mapping[str, Json]) -> int | None:
    """How long the vectors will be: as asked for, or as the model makes them; None where that is not known.

    A model that starts to make others in the middle of a job must not go unseen: they do not compare.
    """
    if tree.get("task") != "embed_content":
        return None
    asked, model = config.get("output_dimensionality"), tree.get("model")
    known = modelfacts.facts(model.removeprefix("models/")) if isinstance(model, str) else None
    return asked if isinstance(asked, int) else (known or {}).get("dimensions")
