"""The order of the files of `runner/`: each imports only what stands above it, and only what it may."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import runner

ROOT = Path(runner.__file__).resolve().parent


def words(text: str) -> list[str]:
    return text.split()


# Read from top to bottom this is the program. A new file gets its place here.
ORDER = words("""
    errors gcsuri bqtable model specmodel clock globs sealing units statefile behind parts
    blobs blobs.local blobs.memory blobs.lease blobs.gcserrors blobs.gcsobjects blobs.gcs
    diagnostics badrows schemafile
    plaintemplate sandbox schemaparts response_schema importer validator
    modelfacts marks yamlnodes yamlfile tree shape layers variables specpaths templates bigqueryspec taskspec
    pydanticmodel outputschema recordtypes columns destinationspec backendspec statespec spec
    warning schemalints lints specformat
    bqclient inputs.files inputs.bigquery inputs
    render remedies shard rowclass rowtable planspool history reexport plan causes
    store indexfile index garbage roots keys repair answer_json rowerrors results records recordspool
    ingest judged
    outputs.atomicfile outputs.cells outputs.jsonl outputs.csv outputs.parquet outputs.sqlite
    outputs.gcs outputs.bigquery outputs export
    emulator emulator.patterns emulator.messages emulator.wire emulator.database emulator.faults
    emulator.files emulator.gcswire emulator.gcs
    emulator.jobs emulator.values emulator.answers emulator.embeddings
    emulator.nearlyjson emulator.spoils
    emulator.rules emulator.operations emulator.replies emulator.rows emulator.vertexfile emulator.vertexrows
    emulator.vertex emulator.service emulator.worker
    emulator.listener emulator.exchange emulator.gcsroutes emulator.vertexroutes emulator.handler
    emulator.server emulator.foreground emulator.__main__ emulator.process
    backends backends.memory backends.sdk backends.geminiwire backends.rest backends.gemini
    backends.vertexwire
    backends.vertexstaging backends.vertex backends.local backends.direct backends.retry
    decide principal ledger purge run submission collection finish apply
    cancellation reconcile adoption destruction migration
    events view story trial
    cli.options cli.terminal cli cli.__main__ cli.job cli.execution cli.init cli.schema cli.fmt cli.emulator
    cli.validate
    cli.render cli.test cli.plan cli.apply cli.status cli.wait cli.export cli.show cli.migrate cli.state
    cli.lock cli.force_unlock cli.gc cli.reconcile cli.settle cli.import_job cli.cancel cli.destroy
""")  # fmt: skip
PURE = words("""
    errors gcsuri bqtable model specmodel globs sealing statefile behind parts plaintemplate sandbox
    schemaparts
    response_schema
    importer validator
    recordtypes render remedies shard rowclass reexport plan causes repair answer_json rowerrors results
    records ingest
    backends.geminiwire backends.vertexwire decide events view story
""")  # fmt: skip
# What the pure modules may stand on, so that they run inside any other engine.
THIRD_PARTY_OF_PURE = {"isal", "orjson", "msgspec", "jinja2", "jsonschema_rs", "json_repair"}
# Clocks, chance, the environment, the network, other processes. `plan` spools into SQLite on purpose.
EFFECTS = {
    "asyncio", "datetime", "getpass", "glob", "http", "locale", "multiprocessing", "os", "platform", "random",
    "secrets", "shutil", "signal", "socket", "sqlite3", "subprocess", "sys", "tempfile", "threading", "time",
    "urllib", "uuid",
}  # fmt: skip
SPOOLS: dict[str, set[str]] = {}


@dataclass(frozen=True)
class Import:
    """One import statement's target."""

    name: str
    line: int
    lazy: bool
    """Inside a function: loaded when it is called."""
    typing: bool
    """Under `if TYPE_CHECKING`: never loaded."""

    @property
    def top(self) -> str:
        return self.name.partition(".")[0]


def module_name(path: Path, root: Path = ROOT) -> str:
    parts = list(path.relative_to(root).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def sources(root: Path = ROOT) -> dict[str, Path]:
    return {name: path for path in sorted(root.rglob("*.py")) if (name := module_name(path, root))}


def imports(source: str, known: set[str]) -> Iterator[Import]:
    """Every import of a file, wherever it stands; `from runner import x` is an import of x."""

    def walk(node: ast.AST, lazy: bool, typing: bool) -> Iterator[Import]:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            for child in node.body:
                yield from walk(child, lazy, True)
            for child in node.orelse:
                yield from walk(child, lazy, typing)
            return
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            lazy = True
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno, lazy, typing)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "relative import"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                whole = full.removeprefix("runner.") in known or node.module == "google"
                name = full if whole else str(node.module)
                yield Import(name, node.lineno, lazy, typing)
        for child in ast.iter_child_nodes(node):
            yield from walk(child, lazy, typing)

    return walk(ast.parse(source), False, False)


FILES = sources()
FOUND = {name: list(imports(path.read_text(encoding="utf-8"), set(FILES))) for name, path in FILES.items()}


def upward(order: list[str], found: dict[str, list[Import]]) -> list[str]:
    """Imports that go against the order."""
    place = {name: number for number, name in enumerate(order)}
    return [
        f"{name}:{one.line} imports {target}"
        for name, ones in found.items()
        for one in ones
        if not one.typing and one.name.startswith("runner.")
        if place[target := one.name.removeprefix("runner.")] > place[name]
    ]


def test_the_list_is_the_folder() -> None:
    assert len(ORDER) == len(set(ORDER))
    assert set(ORDER) == set(FILES)


def test_each_file_imports_only_those_above_it() -> None:
    # The command line's entry finds its commands by name, below it.
    assert upward(ORDER, FOUND) == []


def test_a_file_in_the_wrong_place_is_seen() -> None:
    found = {"a": list(imports("def f():\n    from runner import b", {"a", "b"})), "b": []}
    assert upward(["a", "b"], found) == ["a:2 imports b"]
    typed = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import runner.b\n"
    assert upward(["a", "b"], {"a": list(imports(typed, {"a", "b"})), "b": []}) == []


def test_the_table_of_the_architecture_has_the_same_order(checkout: Path) -> None:
    text = (checkout / "ARCHITECTURE.md").read_text(encoding="utf-8")
    table = text.partition("| file | owns | pure |")[2].partition("\n\n")[0]
    rows = [re.findall(r"`([\w/]+)`", line.split("|")[1]) for line in table.splitlines() if "`" in line]
    listed = [name.rstrip("/") for row in rows for name in row]
    tops = list(dict.fromkeys(name.partition(".")[0] for name in ORDER))
    assert sorted(listed) == sorted(tops)
    at = {name: number for number, row in enumerate(rows) for name in (n.rstrip("/") for n in row)}
    wrong = [
        f"{name} imports {target}"
        for name, ones in FOUND.items()
        for one in ones
        if not one.typing and one.name.startswith("runner.")
        if at[target := one.name.split(".")[1]] > at[name.partition(".")[0]]
    ]
    assert wrong == []


# ---------------------------------------------------------------- Google


GOOGLE = {
    "backends.sdk": ("google.genai", "google.auth"),
    "backends.rest": ("google.genai",),
    "backends.gemini": ("google.genai",),
    "backends.vertex": ("google.genai", "google.auth", "google.oauth2"),
    "backends.vertexstaging": ("google.cloud", "google.api_core", "google.auth"),
    "backends.local": ("google.oauth2",),
    "bqclient": ("google.cloud", "google.api_core", "google.auth"),
    "inputs.bigquery": ("google.cloud",),
    "outputs.bigquery": ("google.cloud", "google.api_core"),
    "blobs.gcsobjects": ("google.cloud", "google.api_core"),
    "blobs.gcs": ("google.api_core",),
    "blobs.gcserrors": ("google.cloud", "google.api_core", "google.auth"),
}


def test_google_is_imported_in_few_places_and_late() -> None:
    for name, ones in FOUND.items():
        for one in ones:
            if one.top == "google":
                assert name in GOOGLE, f"{name}:{one.line}"
                assert one.name.startswith(GOOGLE[name]), f"{name}:{one.line} imports {one.name}"
                assert one.lazy or one.typing, f"{name}:{one.line} imports {one.name} while loading"
    assert all(any(one.top == "google" for one in FOUND[name]) for name in GOOGLE)


def test_the_backends_are_imported_late_by_the_commands() -> None:
    for name, ones in FOUND.items():
        for one in ones:
            names = ("runner.backends.gemini", "runner.backends.vertex", "runner.backends.local")
            if one.name in names and not one.typing:
                assert one.lazy or name == "backends.local", f"{name}:{one.line}"
            if one.name == "runner.blobs.gcs" and not one.typing:
                assert one.lazy, f"{name}:{one.line}"


# ---------------------------------------------------------------- purity


@pytest.mark.parametrize("name", PURE)
def test_a_pure_module_has_no_effects(name: str) -> None:
    for one in FOUND[name]:
        if one.typing or one.top == "__future__":
            continue
        where = f"{name}:{one.line} imports {one.name}"
        if one.top == "runner":
            continue
        if one.top in sys.stdlib_module_names:
            assert one.top not in EFFECTS - SPOOLS.get(name, set()), where
        else:
            assert one.top in THIRD_PARTY_OF_PURE, where


# The walk from row to request line and from response line to record has to run without a command line,
# a store or a service.
@pytest.mark.parametrize("name", ["render", "shard", "results", "ingest", "decide", "response_schema"])
def test_what_runs_inside_other_engines_stands_on_pure_modules_alone(name: str) -> None:
    seen: set[str] = set()
    todo = [name]
    while todo:
        module = todo.pop()
        if module in seen:
            continue
        seen.add(module)
        todo += [
            one.name.removeprefix("runner.")
            for one in FOUND[module]
            if one.name.startswith("runner.") and not one.typing
        ]
    assert seen <= set(PURE)


def test_the_core_knows_no_command_line() -> None:
    for name, ones in FOUND.items():
        for one in ones:
            if one.top in ("click", "rich"):
                assert name.partition(".")[0] == "cli", f"{name}:{one.line} imports {one.name}"


def test_the_emulator_shares_only_errors_with_the_rest() -> None:
    """What tests the client must not be made of it."""
    for name, ones in FOUND.items():
        if not name.startswith("emulator"):
            continue
        for one in ones:
            if one.top == "runner" and not one.name.startswith("runner.emulator"):
                assert one.name in ("runner", "runner.errors"), f"{name}:{one.line} imports {one.name}"


def test_every_import_is_a_declared_dependency(checkout: Path) -> None:
    project = tomllib.loads((checkout / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = (
        entry for name, ones in project["optional-dependencies"].items() if name != "dev" for entry in ones
    )
    entries = [*project["dependencies"], *extras]
    declared = {re.split(r"[<>=\[ ]", entry)[0].replace("-", "_") for entry in entries}
    known = declared | {"google" for name in declared if name.startswith("google_")}
    known |= {"yaml"} if "pyyaml" in declared else set()
    used = {one.top for ones in FOUND.values() for one in ones if not one.typing}
    assert used - set(sys.stdlib_module_names) - {"runner", "__future__"} <= known
