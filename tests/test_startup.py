"""What a command loads. A budget on modules, not on time: it fails the same way on every machine."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import Any

import pytest

from runner import index

SHOW = """
import json, sys
before = set(sys.modules)
from runner.cli import run
code = run(json.loads(sys.argv[1]))
sys.stdout.flush()
print("\\n" + json.dumps([code, sorted(set(sys.modules) - before)]), file=sys.stderr)
"""
GOOGLE = {"google"}
HEAVY = {"jinja2", "jsonschema", "jsonschema_rs", "rich", "orjson", "msgspec", "yaml", "sqlite3", "httpx"}
FOR_A_PLAN = {
    "click", "isal", "jinja2", "jsonschema_rs", "markupsafe", "msgspec", "orjson", "runner",
    "typing_extensions", "yaml",
}  # fmt: skip


def loaded(project: Any, *args: str, code: int = 0) -> set[str]:
    """Every module that a command loads, by full name."""
    child = subprocess.run(
        [sys.executable, "-c", SHOW, json.dumps(args)],
        cwd=project.folder,
        env=project.gbrun.environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    returned, names = json.loads(child.stderr.splitlines()[-1])
    assert returned == code, child.stderr
    return set(names)


def tops(names: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in names}


def foreign(names: set[str]) -> set[str]:
    """Top-level modules that are neither Python's nor private parts of a package."""
    known = sys.stdlib_module_names | {"cython_runtime"}
    return {name for name in tops(names) if name not in known and not name.startswith("_")}


@pytest.mark.parametrize("args", [("--help",), ("--version",), ("-h",), ()])
def test_help_loads_next_to_nothing(args: tuple[str, ...], project: Any) -> None:
    # Without a command there is a usage error, which loads no more than the help does.
    names = loaded(project, *args, code=0 if args else 64)
    assert not tops(names) & (GOOGLE | HEAVY)
    assert foreign(names) <= {"click", "runner"}
    assert {name for name in names if name.startswith("runner")} <= {
        "runner", "runner.cli", "runner.errors"
    }  # fmt: skip
    assert len(names) < 120, sorted(names)


def test_the_help_of_a_command_loads_its_own_file_alone(project: Any) -> None:
    for command in ("plan", "apply", "init", "emulator"):
        names = loaded(project, command, "--help")
        assert not tops(names) & (GOOGLE | HEAVY), command
        ours = {name for name in names if name.startswith("runner.")}
        assert f"runner.cli.{command}" in ours
        assert ours <= {"runner.cli", "runner.errors", "runner.cli.options", f"runner.cli.{command}"}


@pytest.mark.parametrize("command", ["plan", "validate", "status", "show"])
def test_what_only_looks_loads_no_service_and_no_explanations(command: str, project: Any) -> None:
    project.inputs(2)
    project.spec()
    names = loaded(project, command, "job.yaml")
    assert not tops(names) & (GOOGLE | {"httpx", "rich", "pydantic", "jsonschema"})
    assert foreign(names) <= FOR_A_PLAN


def test_a_plan_with_nothing_to_do_loads_nothing_that_renders_or_writes(project: Any) -> None:
    project.inputs(2)
    project.spec()
    # Files that are younger are read again by the plan behind the apply.
    time.sleep(index.RACY_NS / 1e9 + 0.1)
    project.apply()
    names = loaded(project, "plan", "job.yaml")
    assert not tops(names) & {"jinja2", "markupsafe", "difflib", "secrets"}
    assert not names & {"runner.sandbox", "runner.importer", "runner.repair", "runner.finish", "runner.lints"}


def test_an_apply_with_nothing_to_do_loads_no_service(project: Any) -> None:
    project.inputs(2)
    project.spec()
    project.apply()
    names = loaded(project, "apply", "job.yaml")
    assert not tops(names) & (GOOGLE | {"httpx", "rich", "pydantic", "jsonschema"})


def test_a_plan_with_records_in_a_bucket_loads_the_client_of_storage_alone(
    project: Any, monkeypatch: pytest.MonkeyPatch, cloud: Any
) -> None:
    environment, url = project.gbrun.environment, cloud().url
    monkeypatch.setattr(
        project.gbrun, "environment", lambda **more: environment(STORAGE_EMULATOR_HOST=url, **more)
    )
    project.inputs(1)
    project.spec(destination="gs://bucket/notes.csv")
    for command in ("validate", "plan"):
        names = loaded(project, command, "job.yaml")
        assert ("google.cloud.storage" in names) == (command == "plan")
        assert not names & {"google.genai", "google.cloud.bigquery", "httpx", "runner.outputs.csv"}


def test_the_look_has_teeth(project: Any) -> None:
    """An apply that has to do something does load the service's client."""
    project.inputs(1)
    project.spec()
    assert tops(loaded(project, "apply", "job.yaml", "--auto-approve")) >= GOOGLE
