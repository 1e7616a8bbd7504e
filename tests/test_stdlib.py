"""A run over real text that is on every machine: the source files of Python's standard library."""

from __future__ import annotations

import shutil
import sysconfig
from pathlib import Path
from typing import Any

import pytest

SKIPPED = {"site-packages", "__pycache__", "test", "tests", "idle_test"}
PROMPT = "Describe this module in one sentence.\n\n{{ input.name }}\n{{ input.text[:2000] }}\n"


def copy_library(target: Path) -> int:
    """Copy the library's modules below `target`; how many there are."""
    source = Path(sysconfig.get_path("stdlib"))
    count = 0
    for path in sorted(source.rglob("*.py")):
        relative = path.relative_to(source)
        if SKIPPED & set(relative.parts):
            continue
        copy = target / relative
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
        count += 1
    return count


@pytest.fixture
def library(project: Any) -> Any:
    count = copy_library(project.folder / "lib")
    # A file in an encoding that is not the spec's, and one that is no text at all.
    project.write("lib/odd_latin.py", b"# coding: latin-1\nname = 'Andr\xe9'\n")
    project.write("lib/odd_binary.py", b"x = 1\n\x00\x01\n")
    project.good_count, project.count = count, count + 2
    project.spec(
        name="stdlib",
        inputs=[{"files": {"glob": "lib/**/*.py"}, "on_bad_row": "skip"}],
        prompt=PROMPT,
        destination="out/stdlib.jsonl",
        shards={"max_requests": 250},
        failures={"max_ratio": 0.05},
    )
    return project


def test_a_run_over_the_standard_library(library: Any) -> None:
    count, good = library.count, library.good_count
    assert count > 600
    planned = library.plan("--detailed-exitcode", code=2)
    assert f"{good:,} new" in planned
    assert "bad_input 2" in planned

    applied = library.apply().stdout
    records = library.records()
    assert f"Rows {count:,} = {good:,} ok + 2 bad_input\n" in applied
    assert [r["_key"] for r in records] == sorted(r["_key"] for r in records)
    assert len(records) == good
    assert {f["_key"]: (f["outcome"], f["code"]) for f in library.failures()} == {
        "lib/odd_latin.py": ("bad_input", "encoding"),
        "lib/odd_binary.py": ("bad_input", "nul_byte"),
    }
    sent = library.requests_sent()
    # Files with the same name and the same first 2,000 characters, such as empty ones, are one request.
    assert len(sent) == len(set(sent))
    assert good * 0.8 < len(sent) <= good

    jobs = library.jobs()
    assert "No changes" in library.apply().stdout
    assert library.jobs() == jobs

    edited = library.folder / "lib/argparse.py"
    edited.write_text("# edited\n" + edited.read_text(encoding="utf-8"), encoding="utf-8")
    planned = library.plan("--detailed-exitcode", code=2)
    assert "1 rerun" in planned
    assert "input 1" in planned
    assert "Requests 1 = 1 ok\n" in library.apply().stdout

    library.spec(prompt=PROMPT + "Use plain words.\n")
    planned = library.plan("--detailed-exitcode", code=2)
    assert f"{good:,} rerun" in planned
    assert f"prompt {good:,}" in planned
    assert f"Requests {len(sent):,} = {len(sent):,} ok\n" in library.apply().stdout
    paid = len(library.requests_sent())

    library.spec(prompt=PROMPT)
    planned = library.plan("--detailed-exitcode", code=2)
    assert f"{good:,} reused" in planned
    library.apply()
    assert len(library.requests_sent()) == paid
    after = library.records()
    assert [r for r in after if r["_key"] != "lib/argparse.py"] == [
        r for r in records if r["_key"] != "lib/argparse.py"
    ]
    assert library.leftovers() == []
