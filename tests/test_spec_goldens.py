"""Broken and doubtful specs, each with the exact diagnostics that it gives.

A case is a folder with `spec.yaml`, what it names, and `expected.txt`; `args.json` holds further
arguments of `spec.load`. GBRUN_UPDATE_GOLDEN=1 writes the expectations anew.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from runner import diagnostics, lints, spec
from runner.errors import SpecInvalid

CASES = sorted(path for path in (Path(__file__).parent / "golden" / "specs").iterdir() if path.is_dir())


def rendered(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """What a user of `validate` sees, run inside the case's folder."""
    monkeypatch.chdir(folder)
    args = json.loads(Path("args.json").read_text()) if Path("args.json").exists() else {}
    args.setdefault("environ", {})
    args["variable_files"] = [Path(name) for name in args.get("variable_files", ())]
    try:
        loaded = spec.load(Path("spec.yaml"), **args)
    except SpecInvalid as error:
        return diagnostics.text(error.diagnostics)
    return diagnostics.text(lints.lint(loaded))


@pytest.mark.parametrize("folder", CASES, ids=[case.name for case in CASES])
def test_golden(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = rendered(folder, monkeypatch)
    expected = folder / "expected.txt"
    if os.environ.get("GBRUN_UPDATE_GOLDEN") == "1":
        expected.write_text(found, encoding="utf-8")
    assert found == expected.read_text(encoding="utf-8")


def test_there_are_enough_cases() -> None:
    assert len(CASES) >= 40


def test_no_case_shows_where_it_ran() -> None:
    for case in CASES:
        assert str(Path(__file__).parent) not in (case / "expected.txt").read_text(encoding="utf-8")
