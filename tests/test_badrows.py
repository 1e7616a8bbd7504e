"""Rows that cannot become requests, told as diagnostics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest


@pytest.mark.parametrize(
    ("code", "name", "data", "spec", "expected"),
    [
        (
            "GB602",
            "latin.txt",
            b"caf\xe9\n",
            {},
            ["is not utf-8: byte 0xe9 at offset 3", "on inputs/latin.txt"],
        ),
        ("GB602", "nul.txt", b"a\0b", {}, ["NUL character at offset 1"]),
        (
            "GB603",
            "an empty one.txt",
            b"",
            {"prompt": "Hello.\n{{ input.text }}\n  {{ 100 / (input.text|length) }}\n"},
            [
                "ZeroDivisionError: division by zero",
                "on job.yaml:5:5, in input inputs/an empty one.txt",
                "5 |     {{ 100 / (input.text|length) }}",
                "gbrun render job.yaml --key 'inputs/an empty one.txt'",
            ],
        ),
        ("GB604", "long.txt", b"x" * 5000, {"shards": {"max_bytes": 1000}}, ["over shards.max_bytes"]),
    ],
)
def test_each_kind(
    project: Any, code: str, name: str, data: bytes, spec: dict[str, Any], expected: list[str]
) -> None:
    project.inputs(1)
    (project.folder / "inputs" / name).write_bytes(data)
    project.spec(**spec)
    if "prompt" in spec:
        # A block scalar, so that the template's lines are the file's.
        text = (project.folder / "job.yaml").read_text()
        head, _, _ = text.partition("prompt:")
        block = "".join(f"  {line}\n" for line in spec["prompt"].splitlines())
        keys = {k: v for k, v in project.settings.items() if k != "prompt"}
        (project.folder / "job.yaml").write_text(
            f"version: 1\nprompt: |\n{block}"
            + "".join(f"{k}: {v!r}\n" for k, v in keys.items() if k != "version" and v is not None)
        )
        assert head is not None
    got = project.run("plan", "job.yaml", code=1)
    for words in (f"  [{code}]\n", *expected):
        assert words in got.stderr, got.stderr
    assert "1 input(s) cannot be turned into requests" in got.stderr
    assert "Traceback" not in got.stderr


def test_a_file_that_cannot_be_read(project: Any) -> None:
    project.inputs(1)
    (project.folder / "inputs" / "gone.txt").symlink_to("nowhere.txt")
    project.spec()
    got = project.run("plan", "job.yaml", code=1)
    assert got.stderr.startswith(
        "Error: the input is a link to 'nowhere.txt' that cannot be read: No such file or directory"
        "  [GB601]\n  on inputs/gone.txt\n"
    )


def test_what_the_system_says_about_a_file_is_told() -> None:
    from builders import make_spec

    from runner import badrows
    from runner.model import BadRow

    found = badrows.diagnose(
        make_spec(Path("/tmp")), BadRow("a.txt", "unreadable", "cannot be read: Permission denied")
    )
    assert (found.code, found.path, found.message) == (
        "GB601",
        "a.txt",
        "the input cannot be read: Permission denied",
    )


def test_a_template_that_fails_everywhere_is_not_tried_everywhere(project: Any) -> None:
    project.inputs(150)
    project.spec(prompt="{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}")
    got = project.run("plan", "job.yaml", code=1)
    assert "100 input(s) cannot be turned into requests, and the others were not looked at" in got.stderr
    assert got.stderr.count("[GB603]") == 20
