"""Where a change of the spec is said to be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest


def test_a_cause_in_a_parent_has_the_place_of_the_parent(project: Any) -> None:
    project.inputs(1)
    project.write(
        "shared/base.yaml",
        "version: 1\nname: notes\nbackend: local\nmodel: gemini-3.5-flash-lite\n"
        "prompt: |\n  {{ input.text }}\ngeneration_config:\n  temperature: 1\n",
    )
    project.write(
        "job.yaml", "extends: shared/base.yaml\ninputs: inputs/*.txt\ndestination: out/notes.jsonl\n"
    )
    project.apply()
    base = Path(project.folder) / "shared" / "base.yaml"
    base.write_text(base.read_text().replace("temperature: 1", "temperature: 0.5"))

    assert "Cause: generation_config  shared/base.yaml:7\n" in project.plan()
    elsewhere = project.gbrun("plan", "project/job.yaml", cwd=project.folder.parent)
    assert "Cause: generation_config  project/shared/base.yaml:7\n" in elsewhere.stdout

    project.write(
        "job.yaml", (Path(project.folder) / "job.yaml").read_text() + "system_instruction: Be brief.\n"
    )

    assert "Cause: system_instruction  job.yaml:4\n" in project.plan()


@pytest.mark.parametrize(
    ("before", "after", "shown"),
    [
        (
            "a {{ input.text }}",
            "a {{ input.text }}\n",
            ["  a {{ input.text }}", "- \\ no newline at the end"],
        ),
        (
            "a {{ input.text }}\n",
            "a {{ input.text }}",
            ["  a {{ input.text }}", "+ \\ no newline at the end"],
        ),
        ("{{ input.text }}\na", "{{ input.text }}\u2028a", None),
        ("a {{ input.text }}", "b {{ input.text }}", ["- a {{ input.text }}", "+ b {{ input.text }}"]),
        ("a {{ input.text }}\n", "b {{ input.text }}\n", ["- a {{ input.text }}", "+ b {{ input.text }}"]),
    ],
)
def test_no_change_of_a_text_is_invisible(
    before: str, after: str, shown: list[str] | None, project: Any
) -> None:
    project.inputs(1)
    project.spec(prompt=before)
    project.apply()
    project.spec(prompt=after)
    told = project.plan().partition("Cause: prompt")[2].partition("\n")[2].partition("Shards")[0]

    if shown is None:
        assert [line[4:5] for line in told.rstrip("\n").split("\n")] == ["-", "-", "+"]
        return
    assert told == "".join(f"    {line}\n" for line in shown)
