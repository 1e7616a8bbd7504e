"""Documents whose blocks are files to write and commands to run, with what the commands print.

`GBRUN_UPDATE_GOLDEN=1` writes the output into the document; read the diff before you keep it.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted(p for p in (ROOT / "docs").glob("*.md") if "<!-- run:" in p.read_text("utf-8"))
BLOCK = re.compile(r"<!-- (file|run): (.*?) -->\n```(\w+)\n(.*?)```\n", re.DOTALL)


def execute(command: str, folder: Path) -> str:
    environment = {
        "PATH": f"{folder / 'bin'}:/usr/bin:/bin",
        "PYTHONPATH": str(ROOT),
        "HOME": str(folder),
        "NO_PROXY": "127.0.0.1,localhost",
        "LANG": "C.UTF-8",
    }
    done = subprocess.run(
        ["/bin/sh", "-c", command],
        cwd=folder / "project",
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    # The lineage is drawn anew for each state, and the plan's id depends on it.
    return re.sub(r'"plan_id":"[0-9a-f]+"', '"plan_id":"..."', done.stdout)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: p.name)
def test_the_document_tells_what_happens(document: Path, tmp_path: Path) -> None:
    (tmp_path / "project").mkdir()
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin" / "gbrun"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m runner.cli "$@"\n')
    command.chmod(0o755)
    text = document.read_text("utf-8")

    def play(match: re.Match[str]) -> str:
        kind, what, language, body = match.groups()
        if kind == "file":
            path = tmp_path / "project" / what
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(body, "utf-8")
            return match.group()
        return f"<!-- run: {what} -->\n```{language}\n{execute(what, tmp_path)}```\n"

    played = BLOCK.sub(play, text)

    if os.environ.get("GBRUN_UPDATE_GOLDEN"):
        document.write_text(played, "utf-8")
    assert played == document.read_text("utf-8")


def test_there_are_documents_to_execute() -> None:
    assert [p.name for p in DOCUMENTS]
