"""What a user installs: the wheel is built, put into an environment of its own, and used from there."""

from __future__ import annotations

import json
import os
import shutil
import site
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest


def run(*command: str | Path, cwd: Path, env: Mapping[str, str], code: int = 0) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=dict(env),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == code, f"{command} ended with {done.returncode}:\n{done.stdout}"
    assert "Traceback" not in done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """No PYTHONPATH, no keys: nothing of the checkout can be found by accident."""
    home = tmp_path_factory.mktemp("home")
    return {"PATH": os.environ["PATH"], "HOME": str(home), "LC_ALL": "C.UTF-8", "NO_PROXY": "127.0.0.1"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory, checkout: Path, environment: dict[str, str]) -> Path:
    """A wheel of the sources, built by the hatchling that is installed, so that nothing is fetched."""
    folder = tmp_path_factory.mktemp("wheel")
    sources = folder / "sources"
    sources.mkdir()
    for name in ("runner", "schemas"):
        shutil.copytree(checkout / name, sources / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", ".gitignore"):
        shutil.copy(checkout / name, sources)
    options = ("--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check")
    run(sys.executable, "-m", "pip", "wheel", ".", *options, "-w", folder, cwd=sources, env=environment)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory, wheel: Path, environment: dict[str, str]) -> Path:
    """The folder of programs of a new environment that holds the wheel, and borrows what it depends on."""
    folder = tmp_path_factory.mktemp("environment") / "venv"
    venv.create(folder, with_pip=False)
    python = folder / "bin/python"
    own = sysconfig.get_path("purelib", "venv", vars={"base": str(folder)})
    run(
        *(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index"),
        *("--disable-pip-version-check", wheel),
        cwd=folder,
        env=environment,
    )
    # A path file is read after the environment's own packages, so the wheel's gbrun comes first.
    borrowed = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *site.getsitepackages()}
    (Path(own) / "borrowed.pth").write_text("".join(f"{path}\n" for path in sorted(borrowed)))
    return python.parent


def test_the_wheel_carries_all_that_runs_need(wheel: Path, checkout: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        for path in (checkout / "schemas").glob("*.json"):
            assert archive.read(f"runner/schemas/{path.name}") == path.read_bytes()
    package = checkout / "runner"
    wanted = {
        path.relative_to(checkout).as_posix()
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert wanted <= names, "a file of the package is missing"
    assert {"runner/py.typed", "runner/schemas/spec.v1.json", "runner/emulator/messages.json"} <= names
    extra = {name for name in names if ".dist-info/" not in name} - wanted
    assert {name.rpartition("/")[0] for name in extra} == {"runner/schemas"}
    assert not any(name.startswith(("tests/", "specs/", "schemas/")) for name in names)


def test_it_is_the_wheel_that_runs(
    installed: Path, environment: dict[str, str], checkout: Path, tmp_path: Path
) -> None:
    shown = run(
        *(installed / "python", "-c", "import runner; print(runner.__file__)"), cwd=tmp_path, env=environment
    )
    assert Path(shown.strip()).is_relative_to(installed.parent)
    assert not Path(shown.strip()).is_relative_to(checkout)
    assert run(installed / "gbrun", "--version", cwd=tmp_path, env=environment).startswith("gbrun, version ")


def test_a_job_runs_outside_the_checkout(
    installed: Path, environment: dict[str, str], tmp_path: Path, checkout: Path
) -> None:
    def gbrun(*args: str, code: int = 0) -> str:
        return run(installed / "gbrun", *args, cwd=tmp_path, env=environment, code=code)

    gbrun("init", "job")
    assert "valid" in gbrun("validate", "job/job.yaml")
    spec = tmp_path / "job/job.yaml"
    good = spec.read_text()
    spec.write_text(good + "temprature: 1\n")
    assert 'unknown key "temprature"' in gbrun("validate", "job/job.yaml", code=64)
    spec.write_text(good)
    gbrun("plan", "job/job.yaml")
    assert "Rows 2 = 2 ok" in gbrun("apply", "job/job.yaml", "--auto-approve")
    assert "No changes" in gbrun("apply", "job/job.yaml", "--auto-approve")
    schema: dict[str, Any] = json.loads(gbrun("schema"))
    assert schema == json.loads((checkout / "schemas/spec.v1.json").read_bytes())
