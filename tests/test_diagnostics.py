from __future__ import annotations

import re
from pathlib import Path

import pytest

from runner import diagnostics, lints, spec
from runner.diagnostics import CODES
from runner.errors import Diagnostic, SpecInvalid

ROOT = Path(__file__).parent.parent
PAGES = ROOT / "docs" / "diagnostics"
BASE = {
    "version": "version: 1",
    "name": "name: tickets",
    "backend": "backend: local",
    "inputs": "inputs: data/*.txt",
    "model": "model: gemini-3.5-flash-lite",
    "prompt": 'prompt: "{{ input.text }}"',
    "destination": "destination: out/tickets.jsonl",
}
NOT_A_FRAGMENT = {
    "GB001", "GB002", "GB003", "GB005", "GB012", "GB013", "GB018", "GB110", "GB316", "GB404", "GB601",
    "GB602", "GB603", "GB604", "GB605",
}  # fmt: skip
"""Pages whose example is no part of a spec: other files, other arguments, other bytes."""
WHOLE = {"GB004", "GB010", "GB011", "GB101", "GB501"}
"""Pages whose example is a whole spec."""


def example(**over: object) -> Diagnostic:
    values = {
        "code": "GB103",
        "message": 'unknown key "temprature"',
        "path": "tickets.yaml",
        "line": 21,
        "column": 5,
        "length": 10,
        "where": "generation_config",
        "snippet": "    temprature: 0.2",
        "hint": 'did you mean "temperature"?',
    }
    return Diagnostic(**{**values, **over})


def test_text_is_the_layout_that_the_design_shows() -> None:
    assert diagnostics.text([example()]) == (
        'Error: unknown key "temprature"  [GB103]\n'
        "  on tickets.yaml:21:5, in generation_config\n"
        "  21 |     temprature: 0.2\n"
        "     |     ^^^^^^^^^^\n"
        '  did you mean "temperature"?\n'
    )


def test_text_puts_an_empty_line_between_two_and_nothing_for_none() -> None:
    place = {"line": 0, "column": 0, "snippet": "", "where": "", "hint": ""}
    one = example(path="--env", message="a", severity="warning", **place)
    assert (
        diagnostics.text([one, one]) == "Warning: a  [GB103]\n  on --env\n\nWarning: a  [GB103]\n  on --env\n"
    )
    assert diagnostics.text([]) == ""


def test_underline_stands_below_wide_characters() -> None:
    shown = diagnostics.text([example(snippet="対応: x", column=5, length=1, hint="")])
    assert shown.splitlines()[-1] == "     |       ^"


def test_a_long_line_is_cut_around_the_place() -> None:
    shown = diagnostics.text([example(snippet="a" * 500 + "BAD" + "c" * 500, column=501, length=3, hint="")])
    source, underline = shown.splitlines()[2:]
    assert len(source) < diagnostics.MAX_SNIPPET + 10
    start = underline.index("^")
    assert source[start : start + 3] == "BAD"
    assert underline.count("^") == 3


def test_a_long_message_is_cut() -> None:
    shown = diagnostics.text([example(message="m" * 10_000, snippet="", hint="")])
    assert len(shown) < diagnostics.MAX_MESSAGE + 100


def test_nothing_reaches_the_terminal_that_could_steer_it() -> None:
    shown = diagnostics.text(
        [example(message="\x1b[2J\u202ereversed", path="a\nb", snippet="x\x07\x1b[0m\ty")]
    )
    assert not set(shown) & {"\x1b", "\x07", "\u202e", "\t"}


def test_json_has_every_field() -> None:
    found = diagnostics.json_object(example())
    assert found["type"] == "diagnostic"
    assert set(found) == {"type", *Diagnostic.__dataclass_fields__}


def test_github_annotation() -> None:
    assert diagnostics.github(example()) == (
        "::error file=tickets.yaml,line=21,col=5,title=GB103"
        '::unknown key "temprature"%0Adid you mean "temperature"?'
    )


def test_github_annotation_escapes_what_would_end_it() -> None:
    found = example(path="a,b:c%.yaml", message="100%\r\nof it", hint="", severity="warning")
    assert diagnostics.github(found) == (
        "::warning file=a%2Cb%3Ac%25.yaml,line=21,col=5,title=GB103::100%25%0D%0Aof it"
    )


def test_github_annotation_without_a_place_names_where() -> None:
    found = diagnostics.github(example(path="--env", line=0, column=0, hint=""))
    assert found == '::error title=GB103::--env: unknown key "temprature"'


def test_every_code_has_its_page_and_every_page_its_code() -> None:
    assert {page.stem for page in PAGES.glob("GB*.md")} == set(CODES)
    index = (PAGES / "README.md").read_text(encoding="utf-8")
    for name, code in CODES.items():
        page = (PAGES / f"{name}.md").read_text(encoding="utf-8")
        assert page.startswith(f"# {name}: {code.title}\n\n{code.explanation}\n")
        assert f"| [{name}]({name}.md) | {code.title} |" in index


def test_every_code_in_the_source_is_in_the_table() -> None:
    named: set[str] = set()
    for path in (ROOT / "runner").glob("*.py"):
        named |= set(re.findall(r"\bGB\d{3}\b", path.read_text(encoding="utf-8")))
    assert named == set(CODES)


def test_every_code_is_produced_by_a_test() -> None:
    produced: set[str] = set()
    for path in (ROOT / "tests" / "golden" / "specs").glob("*/expected.txt"):
        produced |= set(re.findall(r"\[(GB\d{3})\]$", path.read_text(encoding="utf-8"), re.MULTILINE))
    for path in (ROOT / "tests").glob("test_*.py"):
        if path.name != Path(__file__).name:
            produced |= set(re.findall(r'"(GB\d{3})"', path.read_text(encoding="utf-8")))
    assert set(CODES) - produced == set()


def codes_of(text: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    monkeypatch.chdir(folder)
    Path("spec.yaml").write_text(text, encoding="utf-8")
    environ = {"GBRUN_VAR_token": "t", "GBRUN_VAR_rules": "r"}
    try:
        return {found.code for found in lints.lint(spec.load(Path("spec.yaml"), environ=environ))}
    except SpecInvalid as error:
        return {found.code for found in error.diagnostics}


def completed(fragment: str) -> str:
    """A fragment of a spec with the keys that it lacks."""
    missing = [line for key, line in BASE.items() if not re.search(rf"^{key}:", fragment, re.MULTILINE)]
    return "\n".join([*missing, fragment]) + "\n"


@pytest.mark.parametrize("code", sorted(set(CODES) - NOT_A_FRAGMENT))
def test_the_example_of_a_page_gives_its_code(
    code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (PAGES / f"{code}.md").read_text(encoding="utf-8")
    first, *mended = re.findall(r"```yaml\n(.*?)\n```", page, re.DOTALL)
    assert code in codes_of(first if code in WHOLE else completed(first), tmp_path, monkeypatch)
    if mended and code not in ("GB201", "GB407"):
        assert code not in codes_of(completed(mended[0]), tmp_path, monkeypatch)
