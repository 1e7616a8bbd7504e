"""The documentation is true: commands, help, exit codes, specs, and the blocks that can be run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

from runner import cli as cli_module
from runner.cli import COMMANDS
from runner.errors import Exit

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
SPECS = sorted((ROOT / "specs").glob("*.yaml"))
BLOCK = re.compile(r"^<!-- executed -->\n+```\w*\n(.*?)^```$", re.M | re.S)


def pages() -> list[Path]:
    """Every page of the documentation."""
    return sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("specs/*.md")])


EXECUTED = [
    pytest.param(page, found[1], id=f"{page.relative_to(ROOT)}:{text[: found.start()].count(chr(10)) + 1}")
    for page in pages()
    for text in [page.read_text(encoding="utf-8")]
    for found in BLOCK.finditer(text)
]


# ---------------------------------------------------------------- the command line


def test_the_help_in_the_readme_is_the_real_one(gbrun: Any, tmp_path: Path) -> None:
    shown = gbrun("--help", cwd=tmp_path, env={"COLUMNS": "80"}).stdout
    blocks = re.findall(r"^```\w*\n(Usage: gbrun.*?)^```$", README, re.M | re.S)
    assert blocks == [shown]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_in_the_readme_and_has_help(name: str) -> None:
    assert re.search(rf"^  {name} +{re.escape(COMMANDS[name])}$", README, re.M)
    command = cli_module.group.get_command(click.Context(cli_module.group), name)
    assert command is not None
    assert command.help
    assert command.help.strip().partition("\n")[0].endswith(".")


def test_every_command_and_option_that_is_mentioned_exists() -> None:
    known = set(COMMANDS)
    for page in pages():
        if page.name == "CHANGELOG.md":
            continue
        text = page.read_text(encoding="utf-8")
        fenced = re.findall(r"^```\w*\n(.*?)^```", text, re.M | re.S)
        lines = [line for block in fenced for line in re.findall(r"^(?:\$ )?(gbrun [^\n#|>]*)", block, re.M)]
        lines += re.findall(r"`(gbrun [^`\n]*)`", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))
        for line in lines:
            words = line.split()
            where = f"{page.relative_to(ROOT)}: {line}"
            if not re.fullmatch(r"[a-z][a-z-]*", words[1]):
                continue
            assert words[1] in known, where
            command = cli_module.group.get_command(click.Context(cli_module.group), words[1])
            if isinstance(command, click.Group):
                continue
            assert command is not None
            options = {"--help", "-h"} | {o for p in command.params for o in (*p.opts, *p.secondary_opts)}
            for word in words[2:]:
                name = word.rstrip(".,;)").partition("=")[0]
                if re.fullmatch(r"--?[a-z][a-z-]*", name):
                    assert name in options, where


def test_the_rights_of_every_command_are_told() -> None:
    text = (ROOT / "docs/rights.md").read_text(encoding="utf-8")
    table = text.partition("| command |")[2].partition("\n\n")[0]
    named = re.findall(r"`([a-z-]+(?: [a-z]+)?)`", "".join(re.findall(r"^\|[^|]*\|", table, re.M)))
    assert len(named) == len(set(named))
    told = set(named)
    for name in COMMANDS:
        command = cli_module.group.get_command(click.Context(cli_module.group), name)
        parts = command.commands if isinstance(command, click.Group) else {}
        assert name in told or (parts and {f"{name} {part}" for part in parts} <= told), name


def test_the_exit_codes_of_the_readme_are_the_real_ones() -> None:
    table = README.partition("| exit code |")[2].partition("\n\n")[0]
    rows = [line.split("|")[1] for line in table.splitlines() if re.match(r"\| \d", line)]
    assert {int(word) for row in rows for word in re.findall(r"\d+", row)} == {int(code) for code in Exit}


# ---------------------------------------------------------------- the specs


def test_there_are_specs() -> None:
    assert len(SPECS) >= 3


@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.name)
def test_a_shipped_spec_validates_and_plans(path: Path, cli: Callable[..., Any], tmp_path: Path) -> None:
    # In a copy: whoever tried the specs in the checkout has state and records there.
    folder = tmp_path / "specs"
    shutil.copytree(ROOT / "specs", folder, ignore=shutil.ignore_patterns(".gbrun", "out"))
    shutil.copytree(ROOT / "schemas", tmp_path / "schemas")
    got = cli("validate", f"specs/{path.name}", cwd=tmp_path)
    assert "warning" not in got.said.lower()
    planned = cli("plan", f"specs/{path.name}", "--detailed-exitcode", cwd=tmp_path, code=2).stdout
    assert re.search(r"^  \+ +\d+ new", planned, re.M)
    assert re.search(r"^Plan: \d+ new; \d+ jobs?\.$", planned, re.M)


def test_the_readme_of_the_specs_names_each_of_them() -> None:
    text = (ROOT / "specs/README.md").read_text(encoding="utf-8")
    for path in SPECS:
        assert f"`{path.name}`]({path.name})" in text


# ---------------------------------------------------------------- blocks and links


def test_the_readme_has_blocks_that_are_executed() -> None:
    assert BLOCK.search(README), "mark the quickstart's block with <!-- executed -->"


@pytest.mark.parametrize(("page", "block"), EXECUTED)
def test_an_executed_block_runs(page: Path, block: str, gbrun: Any, tmp_path: Path) -> None:
    """In a folder with a copy of what a clone has, with `gbrun` on the path."""
    folder = tmp_path / "work"
    folder.mkdir()
    for name in ("specs", "schemas"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns(".gbrun", "out"))
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "gbrun").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m runner.cli "$@"\n')
    (programs / "gbrun").chmod(0o755)
    environment = gbrun.environment(PATH=f"{programs}{os.pathsep}{os.environ['PATH']}")
    lines = [line.removeprefix("$ ") for line in block.splitlines()]
    done = subprocess.run(
        ["sh", "-eu", "-c", "\n".join(lines)],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    if page.name == "README.md" and "gbrun init first" in block:
        assert "No changes." in done.stdout
        assert len((folder / "first/out/first.jsonl").read_text().splitlines()) == 2


def test_every_link_leads_somewhere() -> None:
    for page in pages():
        text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            if re.match(r"[a-z]+:|#", target):
                continue
            path = page.parent / target.partition("#")[0]
            assert path.exists(), f"{page.relative_to(ROOT)} links to {target}"
