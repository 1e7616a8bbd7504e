"""What a person at the terminal meets: help, mistakes, bugs, pipes, colours, exit codes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

from runner import cli as cli_module
from runner import errors
from runner.cli import COMMANDS
from runner.errors import Exit, GbrunError

HELP = {
    "init": "FOLDER",
    "validate": "SPEC",
    "plan": "SPEC",
    "apply": "SPEC",
    "status": "SPEC",
    "wait": "SPEC",
    "export": "SPEC",
    "show": "SPEC",
}


# ---------------------------------------------------------------- help


def commands(group: click.Group, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], click.Command]]:
    """Every command and subcommand by its words."""
    found: list[tuple[tuple[str, ...], click.Command]] = []
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None, name
        found.append(((*path, name), command))
        if isinstance(command, click.Group):
            found += commands(command, (*path, name))
    return found


ALL = commands(cli_module.group)


@pytest.mark.parametrize("words", [words for words, _ in ALL], ids=" ".join)
def test_every_command_has_help(words: tuple[str, ...], cli: Callable[..., Any], tmp_path: Path) -> None:
    for option in ("--help", "-h"):
        got = cli(*words, option, cwd=tmp_path)
        assert got.stdout.startswith(f"Usage: gbrun {' '.join(words)} [OPTIONS]")
        assert got.stderr == ""
    assert HELP.get(words[0], "") in got.stdout


@pytest.mark.parametrize(("words", "command"), ALL, ids=[" ".join(words) for words, _ in ALL])
def test_every_option_says_what_it_does(words: tuple[str, ...], command: click.Command) -> None:
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{words} {parameter.opts}"
            assert parameter.help.endswith("."), f"{words} {parameter.opts}"


def test_the_list_of_commands_is_the_folder_of_commands(checkout: Path) -> None:
    shared = {"__init__", "__main__", "job", "options", "terminal"}
    files = {path.stem for path in Path(cli_module.__file__).parent.glob("*.py")} - shared
    modules = {"import": "import_job"}
    assert {modules.get(name) or name.replace("-", "_") for name in COMMANDS} <= files
    for name in COMMANDS:
        assert COMMANDS[name].endswith("."), name


def test_version(cli: Callable[..., Any], tmp_path: Path) -> None:
    assert re.fullmatch(r"gbrun, version \d+\.\d+\.\d+\S*\n", cli("--version", cwd=tmp_path).stdout)


# ---------------------------------------------------------------- mistakes


def test_an_unknown_command_with_a_suggestion(cli: Callable[..., Any], tmp_path: Path) -> None:
    got = cli("aply", cwd=tmp_path, code=64)
    assert "No such command 'aply'" in got.stderr
    assert "gbrun apply" in got.stderr


def test_an_unknown_command_that_is_near_to_nothing(cli: Callable[..., Any], tmp_path: Path) -> None:
    got = cli("zzzzzz", cwd=tmp_path, code=64)
    assert "No such command 'zzzzzz'" in got.stderr
    assert "did you mean" not in got.stderr.lower()


@pytest.mark.parametrize("args", [("plan",), ("plan", "a", "b"), ("plan", "a", "--no-such"), ("apply",)])
def test_a_wrong_call_is_a_usage_error(
    args: tuple[str, ...], cli: Callable[..., Any], tmp_path: Path
) -> None:
    got = cli(*args, cwd=tmp_path, code=64)
    assert got.stdout == ""
    assert "Usage: gbrun" in got.stderr


@pytest.mark.parametrize("value", ["", "soon", "-5s", "5 parsecs", "1e9"])
def test_a_duration_that_is_none(value: str, cli: Callable[..., Any], project: Any) -> None:
    project.spec()
    got = cli("apply", "job.yaml", "--wait-timeout", value, cwd=project.folder, code=64)
    assert "90s, 5m or 2h" in got.stderr


@pytest.mark.parametrize("command", ["validate", "plan", "apply", "status", "show", "export", "wait"])
def test_a_typo_in_the_spec(command: str, cli: Callable[..., Any], project: Any) -> None:
    project.inputs(1)
    path = project.spec()
    path.write_text(path.read_text() + "generation_config:\n  temprature: 0.2\nmodle: x\n")
    line = path.read_text().splitlines().index("  temprature: 0.2") + 1
    got = cli(command, "job.yaml", cwd=project.folder, code=64)
    assert f"job.yaml:{line}:3" in got.stderr
    assert f"job.yaml:{line + 1}:1" in got.stderr, "every problem in one run"
    assert 'unknown key "temprature"' in got.stderr
    assert 'did you mean "temperature"?' in got.stderr
    assert 'did you mean "model"?' in got.stderr
    assert got.stdout == ""
    assert sorted(os.listdir(project.folder)) == ["inputs", "job.yaml"], "nothing was created"


BROKEN = {
    "empty": b"",
    "not a mapping": b"- 1\n",
    "not YAML": b"version: [1\n",
    "not text": b"\xff\xfe\x00\x80",
    "duplicate key": b"version: 1\nversion: 1\n",
    "merge markers": b"version: 1\n<<<<<<< HEAD\nname: a\n=======\nname: b\n>>>>>>> x\n",
    "bomb": b"a: &a [x,x,x,x,x,x,x,x,x]\n"
    + b"".join(
        f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 9)}]\n".encode() for i in range(12)
    ),
    "deep": b"[" * 5000,
    "tag": b"version: !!python/object/apply:os.system ['touch owned']\n",
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_spec_that_is_none(case: str, cli: Callable[..., Any], project: Any) -> None:
    project.write("job.yaml", BROKEN[case])
    got = cli("plan", "job.yaml", cwd=project.folder, code=64)
    assert got.stderr.startswith("Error: ")
    assert "job.yaml" in got.stderr
    assert os.listdir(project.folder) == ["job.yaml"]


def test_a_spec_that_is_not_there(cli: Callable[..., Any], tmp_path: Path) -> None:
    got = cli("plan", "no.yaml", cwd=tmp_path, code=64)
    assert "no.yaml" in got.stderr
    got = cli("plan", ".", cwd=tmp_path, code=64)
    assert got.stderr.startswith("Error: ")


@pytest.mark.parametrize("change", [{"prompt": {"file": "no.md"}}, {"output_schema": "no.json"}])
def test_a_file_that_the_spec_names_is_not_there(
    change: dict[str, Any], cli: Callable[..., Any], project: Any
) -> None:
    project.spec(**change)
    got = cli("plan", "job.yaml", cwd=project.folder, code=64)
    assert re.search(r"no\.(md|json)", got.stderr)
    assert "job.yaml:" in got.stderr


def test_paths_that_escape(cli: Callable[..., Any], project: Any) -> None:
    for change in ({"inputs": "../*.txt"}, {"destination": "../out.jsonl"}, {"output_schema": "../s.json"}):
        before = {key: project.settings[key] for key in change}
        project.spec(**change)
        got = cli("plan", "job.yaml", cwd=project.folder, code=64)
        assert "leads out of the folder" in got.stderr
        project.spec(**before)


def test_inputs_that_cannot_be_sent_stop_the_plan_and_are_named(gbrun: Any, project: Any) -> None:
    project.inputs(1)
    project.write("inputs/latin.txt", b"Andr\xe9")
    project.write("inputs/nul.txt", b"a\0b")
    project.spec()
    got = gbrun("apply", "job.yaml", "--auto-approve", cwd=project.folder, code=1)
    assert "inputs/latin.txt" in got.stderr
    assert "0xe9 at offset 4" in got.stderr
    assert "inputs/nul.txt" in got.stderr
    assert "on_bad_row: skip" in got.stderr
    assert project.jobs() == []


def test_a_plan_that_is_stopped_leaves_nothing_open(gbrun: Any, project: Any) -> None:
    project.inputs(1)
    project.write("inputs/latin.txt", b"Andr\xe9")
    project.spec()
    warnings = {"PYTHONWARNINGS": "always::ResourceWarning"}
    got = gbrun("plan", "job.yaml", cwd=project.folder, code=1, env=warnings)
    assert "ResourceWarning" not in got.stderr


def test_a_file_name_that_is_not_utf8(gbrun: Any, project: Any) -> None:
    project.inputs(1)
    project.spec()
    Path(os.fsdecode(os.fsencode(project.folder) + b"/inputs/caf\xe9.txt")).write_text("x")
    got = gbrun("plan", "job.yaml", cwd=project.folder, code=1)
    assert "inputs/caf" in got.stderr


def test_a_template_error_names_the_place_and_the_input(cli: Callable[..., Any], project: Any) -> None:
    project.inputs(1)
    project.spec(prompt="{{ input.text.nothing.more }}\n")
    got = cli("plan", "job.yaml", cwd=project.folder, code=1)
    assert "inputs/000.txt" in got.stderr
    assert "job.yaml:" in got.stderr


def test_no_key_is_an_error_that_names_the_choices(cli: Callable[..., Any], project: Any) -> None:
    project.inputs(1)
    project.spec(backend=None)
    got = cli("plan", "job.yaml", cwd=project.folder, code=64)
    for word in ("local", "GEMINI_API_KEY", "vertex"):
        assert word in got.stderr


def test_a_key_that_the_state_does_not_know(cli: Callable[..., Any], project: Any) -> None:
    project.spec()
    for args in (("show", "job.yaml", "--key", "nobody"), ("state", "show", "job.yaml", "nobody")):
        got = cli(*args, cwd=project.folder, code=64)
        assert "nobody" in got.stderr
        assert "gbrun state list" in got.stderr


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written(project: Any, cli: Callable[..., Any]) -> None:
    project.inputs(1)
    project.spec()
    project.folder.chmod(0o500)
    try:
        got = cli("apply", "job.yaml", "--auto-approve", cwd=project.folder, code=1)
    finally:
        project.folder.chmod(0o700)
    assert "Error: " in got.stderr


def test_a_state_folder_that_cannot_be_made(project: Any, gbrun: Any) -> None:
    project.inputs(1)
    project.spec()
    project.write(".gbrun", "a file where the folder should be")
    got = project.apply(code=1)
    assert ".gbrun" in got.stderr


def test_a_destination_that_is_a_folder(project: Any, cli: Callable[..., Any]) -> None:
    project.gbrun = cli
    project.inputs(1)
    project.spec()
    (project.folder / "out/notes.jsonl").mkdir(parents=True)
    got = project.apply(code=1)
    assert "out/notes.jsonl" in got.stderr
    assert project.jobs() == [], "known before anything is paid for"


# ---------------------------------------------------------------- looking


def test_state_list_show_and_story(project: Any, cli: Callable[..., Any]) -> None:
    project.gbrun = cli
    project.inputs(3)
    project.spec()
    project.apply()
    lines = project.run("state", "list", "job.yaml").stdout.splitlines()
    assert [line.split("\t")[:2] for line in lines] == [[f"inputs/00{n}.txt", "ok"] for n in range(3)]
    assert re.fullmatch(r"r[0-9a-f]{32}", lines[0].split("\t")[2])
    assert '"lineage"' in project.run("state", "show", "job.yaml").stdout
    assert '"outcome": "ok"' in project.run("state", "show", "job.yaml", "inputs/001.txt").stdout
    assert "Rows 3: 3 ok" in project.run("show", "job.yaml").stdout
    story = project.run("show", "job.yaml", "--key", "inputs/001.txt").stdout
    assert "Note 1: the shelf has 1 boards." in story
    assert "outcome: ok" in story


# ---------------------------------------------------------------- what is shown


def test_what_a_terminal_would_obey_is_shown_instead(project: Any, cli: Callable[..., Any]) -> None:
    project.gbrun = cli
    project.write("inputs/a\x1b[31m\u202e\n.txt", "clean\x1b]0;title\x07\tand\r\nmore")
    project.spec()
    name = r"inputs/a\x1b[31m\u202e\n.txt"
    assert f"    + {name}\n" in project.plan()
    assert f"  + {name}\n" in project.plan("-v")
    project.apply()
    assert project.run("state", "list", "job.yaml").stdout.startswith(f"{name}\tok\t")
    story = project.run("show", "job.yaml", "--key", "inputs/a\x1b[31m\u202e\n.txt").stdout
    assert story.startswith(f"{name}  ok\n")
    assert "clean\\x1b]0;title\\x07\tand\\r\n" in story
    assert "matches no key" in project.run("plan", "job.yaml", "--target", "\x1b[5m", code=64).stderr


def test_problems_are_events_too(project: Any, cli: Callable[..., Any]) -> None:
    project.inputs(1)
    project.spec(prompt="{{ input.txt }}")
    got = cli("plan", "job.yaml", "--json", cwd=project.folder, code=1)
    assert [json.loads(line)["type"] for line in got.stdout.splitlines()] == ["version", "diagnostic"]
    assert json.loads(got.stdout.splitlines()[1])["where"] == "input inputs/000.txt"
    project.spec(modle="x")
    for command in (("plan",), ("apply", "--auto-approve")):
        got = cli(*command, "job.yaml", "--json", cwd=project.folder, code=64)
        version, problem = map(json.loads, got.stdout.splitlines())
        assert version["type"] == "version"
        assert (problem["type"], problem["code"], problem["where"]) == ("diagnostic", "GB103", "")
        assert "[GB103]" in got.stderr


def test_a_path_that_is_not_utf8(cli: Callable[..., Any], tmp_path: Path) -> None:
    name = os.fsdecode(b"job\xff.yaml")
    got = cli("validate", name, "--format", "json", cwd=tmp_path, code=64)
    assert json.loads(got.stdout.splitlines()[1])["path"] == r"job\udcff.yaml"


@pytest.mark.parametrize(
    "arguments",
    [
        ("show", "job.yaml", "--key", "\udcff"),
        ("render", "job.yaml", "--key", "\udcff"),
        ("state", "rm", "job.yaml", "\udcff"),
        ("plan", "job.yaml", "--target", "\udcff"),
        ("plan", "job.yaml", "--target", "[z-a]"),
        ("plan", "job.yaml", "--replace", "["),
    ],
)
def test_no_row_can_have_such_a_key(
    arguments: tuple[str, ...], project: Any, cli: Callable[..., Any]
) -> None:
    project.inputs(1)
    project.spec()
    got = cli(*arguments, cwd=project.folder, code=64)
    assert "Error: " in got.stderr


def test_a_selector_says_how_far_a_wildcard_reaches(project: Any, cli: Callable[..., Any]) -> None:
    project.inputs(1)
    project.spec()
    got = cli("plan", "job.yaml", "--replace", "*", cwd=project.folder, code=64)
    assert "a wildcard stays within one folder; '**/*' looks in all of them" in got.stderr


def test_secrets_are_not_in_what_is_said_of_mistakes(
    project: Any, cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    project.spec()
    assert (
        "hunter2" not in cli("plan", "job.yaml", "--var", "token:hunter2", cwd=project.folder, code=64).said
    )

    def broken(*args: Any, **options: Any) -> None:
        raise RuntimeError

    monkeypatch.setattr("runner.spec.load", broken)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    got = cli("plan", "job.yaml", "--var", "a=hunter2", "--var=b=hunter2", cwd=project.folder, code=70)
    found = re.search(r"hint: report it with the log (\S+)", got.stderr)
    assert found
    log = Path(found[1]).read_text()
    assert '["plan", "job.yaml", "--var", "a=...", "--var=b=..."]' in log
    assert "hunter2" not in log


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize("options", [(), ("--json",)])
def test_a_full_disk_is_no_bug(project: Any, gbrun: Any, options: tuple[str, ...]) -> None:
    project.inputs(1)
    project.spec()
    with open("/dev/full", "wb") as full:
        child = subprocess.run(
            [sys.executable, "-m", "runner.cli", "plan", "job.yaml", *options],
            cwd=project.folder,
            env=gbrun.environment(),
            stdin=subprocess.DEVNULL,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
    assert child.stderr == "Error: No space left on device\n\nhint: make room and run it again\n"
    assert child.returncode == 1


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_nobody_wants_to_read(project: Any, gbrun: Any, options: tuple[str, ...]) -> None:
    project.inputs(1)
    project.spec()
    child = subprocess.run(
        ["sh", "-c", 'exec "$@" >&-', "sh", sys.executable, "-m", "runner.cli", "plan", "job.yaml", *options],
        cwd=project.folder,
        env=gbrun.environment(),
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
        check=False,
    )
    assert (child.returncode, child.stderr) == (0, "")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "nope.yaml does not exist"),
        (b"name: \xff", "nope.yaml is not UTF-8: byte 0xff at offset 6"),
        (b"a: [", "on nope.yaml:1:5"),
    ],
)
def test_what_cannot_be_formatted(
    content: bytes | None, words: str, cli: Callable[..., Any], tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / "nope.yaml").write_bytes(content)
    got = cli("fmt", "nope.yaml", cwd=tmp_path, code=64)
    assert words in got.stderr


def test_a_folder_that_cannot_be_begun(cli: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    got = cli("init", "file/below", cwd=tmp_path, code=64)
    assert got.stderr.startswith("Error: file")
    assert "cannot be written: Not a directory" in got.stderr


def test_a_folder_with_a_space_and_an_ignore_file_of_another_kind(
    cli: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "my jobs").mkdir()
    (tmp_path / "my jobs" / ".gitignore").write_bytes(b"caf\xe9")
    got = cli("init", "my jobs", cwd=tmp_path)
    assert "\nNow: gbrun plan 'my jobs/job.yaml'\n" in got.stdout
    assert (tmp_path / "my jobs" / ".gitignore").read_bytes() == b"caf\xe9\n.gbrun/\nout/\n"


def test_a_format_that_cannot_be_written_leaves_the_file(
    cli: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "real.yaml").write_text("name: x\nversion: 1\n")
    (tmp_path / "job.yaml").symlink_to("real.yaml")

    def full(self: Path, data: bytes) -> int:
        with open(self, "wb") as stream:
            stream.write(data[:5])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_bytes", full)
        got = cli("fmt", "job.yaml", cwd=tmp_path, code=64)
    assert "job.yaml cannot be written: No space left on device" in got.stderr
    assert (tmp_path / "real.yaml").read_text() == "name: x\nversion: 1\n"
    cli("fmt", "job.yaml", cwd=tmp_path)
    assert (tmp_path / "real.yaml").read_text() == "version: 1\nname: x\n"
    assert (tmp_path / "job.yaml").is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix != "") == ["job.yaml", "real.yaml"]


# ---------------------------------------------------------------- bugs, pipes, colours


def test_a_bug_gives_a_log_and_no_traceback(
    project: Any, cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def broken(*args: Any, **options: Any) -> None:
        raise RuntimeError("the cat sat on it")

    monkeypatch.setattr("runner.spec.load", broken)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    project.spec()
    got = cli("plan", "job.yaml", cwd=project.folder, code=70)
    assert got.stdout == ""
    assert "a bug in gbrun" in got.stderr
    assert "RuntimeError: the cat sat on it" in got.stderr
    found = re.search(r"hint: report it with the log (\S+)", got.stderr)
    assert found
    log = Path(found[1]).read_text()
    assert "Traceback (most recent call last)" in log
    assert '["plan", "job.yaml"]' in log


def test_a_reader_that_goes_away(project: Any, gbrun: Any, cli: Callable[..., Any]) -> None:
    project.gbrun = cli
    # More than a pipe holds, so that the write meets the closed end.
    for number in range(1500):
        project.write(f"inputs/{number}-{'x' * 60}.txt", str(number))
    project.spec()
    project.apply()
    child = gbrun.start("state", "list", "job.yaml", cwd=project.folder)
    assert child.stdout
    assert child.stderr
    child.stdout.readline()
    child.stdout.close()
    said = child.stderr.read()
    assert child.wait(30) in (Exit.ERROR, 141)
    assert said == ""


@pytest.mark.parametrize("no_colour", ["", "1"])
def test_colours_are_for_terminals_that_want_them(project: Any, gbrun: Any, no_colour: str) -> None:
    project.inputs(1)
    project.spec()
    plain = project.plan()
    assert "\x1b" not in plain
    ours, theirs = os.openpty()
    try:
        child = subprocess.run(
            [sys.executable, "-m", "runner.cli", "plan", "job.yaml"],
            cwd=project.folder,
            env=gbrun.environment(TERM="xterm", **({"NO_COLOR": no_colour} if no_colour else {})),
            stdin=subprocess.DEVNULL,
            stdout=theirs,
            stderr=subprocess.PIPE,
            timeout=60,
            check=False,
        )
        shown = os.read(ours, 1 << 16).decode()
    finally:
        os.close(ours)
        os.close(theirs)
    assert child.returncode == 0, child.stderr
    assert ("\x1b[" in shown) == (not no_colour)
    assert re.sub(r"\x1b\[[0-9;]*m", "", shown).replace("\r\n", "\n") == plain


def test_results_on_stdout_progress_on_stderr(project: Any, cli: Callable[..., Any]) -> None:
    project.gbrun = cli
    project.inputs(1)
    project.spec()
    got = project.apply()
    assert re.search(r"^submitted ", got.stderr, re.M)
    assert re.search(r"^collected ", got.stderr, re.M)
    assert "submitted" not in got.stdout
    project.write("inputs/more.txt", "More.")
    quiet = project.apply("--quiet")
    assert "submitted" not in quiet.stderr
    assert "no model was called" in quiet.stderr, "a notice is never left out"


# ---------------------------------------------------------------- exit codes


def classes(root: type[GbrunError]) -> list[type[GbrunError]]:
    return [root, *(found for child in root.__subclasses__() for found in classes(child))]


def test_the_table_of_exit_codes_is_true() -> None:
    table = dict(re.findall(r"^ +([A-Z]\w+) +(\d+)", errors.__doc__ or "", re.M))
    found = {kind.__name__: kind for kind in classes(GbrunError) if kind.__module__ == errors.__name__}
    assert set(table) == set(found)
    for name, code in table.items():
        assert found[name].exit_code == int(code), name


def test_every_error_has_a_code_of_the_table() -> None:
    # Blobs have errors of their own; whatever is raised ends in a code that the table has.
    import runner.blobs
    import runner.plan

    assert runner.blobs.BlobMissing in classes(GbrunError)
    assert runner.plan.RowsUnreadable in classes(GbrunError)
    for kind in classes(GbrunError):
        assert kind.exit_code in set(Exit), kind
    assert {int(code) for code in Exit} == {0, 1, 2, 3, 4, 5, 6, 7, 8, 64, 70, 130, 143}


def test_an_error_in_a_command_ends_in_its_code(
    project: Any, cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    project.spec()
    for kind in classes(GbrunError):
        if kind.__module__ != errors.__name__ or kind is errors.SpecInvalid:
            continue

        def fail(*args: Any, kind: type[GbrunError] = kind, **options: Any) -> None:
            raise kind("what happened", hint="what to do")

        monkeypatch.setattr("runner.spec.load", fail)
        got = cli("validate", "job.yaml", cwd=project.folder, code=int(kind.exit_code))
        assert got.stderr == "Error: what happened\n\nhint: what to do\n"
