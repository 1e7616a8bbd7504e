"""The simulation's teeth: deliberate breakages, each kept as a patch, and each must be caught."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parent.parent
PATCHES = sorted((CHECKOUT / "tests/simulation/breakages").glob("*.patch"))
SEEDS = 200
"""Lives within which a breakage must show; most show in the first ten."""


@pytest.mark.parametrize("patch", PATCHES, ids=lambda path: path.stem)
def test_breakage_is_caught(patch: Path, tmp_path: Path) -> None:
    shutil.copytree(CHECKOUT / "runner", tmp_path / "runner", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(
        CHECKOUT / "tests/simulation", tmp_path / "tests/simulation", ignore=shutil.ignore_patterns("*.patch")
    )
    applied = subprocess.run(
        ["patch", "-p1", "-F3", "--no-backup-if-mismatch", "-i", str(patch)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert applied.returncode == 0, f"{patch.name} no longer applies:\n{applied.stdout}{applied.stderr}"
    # What is broken there, lives of the other kind never come by.
    only = ["--service", "vertex"] if patch.stem.startswith("vertex_") else []
    child = subprocess.run(
        [sys.executable, "-m", "tests.simulation.run", "--seeds", str(SEEDS), "--processes", "1", *only],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert child.returncode == 1, f"{patch.stem} was not caught within {SEEDS} seeds:\n{child.stdout[-2000:]}"
    assert "replay: " in child.stdout, child.stderr
    caught = next(line for line in child.stdout.splitlines() if line.startswith("seed ") and "breaks" in line)
    assert "ends in a bug" not in caught, child.stdout[-3000:]
    print(f"{patch.stem}: {caught}")  # noqa: T201


def test_the_required_breakages_are_there() -> None:
    assert {path.stem for path in PATCHES} >= {
        "no_adopt",
        "in_place_save",
        "lock_ignored",
        "first_page_only",
        "delete_before_store",
        "join_by_position",
        "retry_on_create",
        "vertex_filter_trusted",
        "vertex_first_object_only",
        "vertex_place_reused",
        "vertex_prefix_shared",
    }
